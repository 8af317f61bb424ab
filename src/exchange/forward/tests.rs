use super::*;
use crate::trust::tests::{config, request, try_request};

/// Writes the whole head for the app, from a peer at 10.16.227.159 of which `resolved` is believed.
fn forward_with(config: &Config, text: &str, resolved: Resolved) -> String {
    let with = Forward {
        config,
        peer: Peer::Ip("10.16.227.159:4321".parse().unwrap()),
        local: Some("[::ffff:172.17.0.2]:5000".parse().unwrap()),
        resolved,
        started_ms: 1_700_000_000_500,
        keep_alive: false,
    };
    let mut out = ForwardedHead::default();
    out.write(&request(text), &with);
    out.finish(0, u64::MAX, None);
    String::from_utf8(out.bytes).unwrap()
}

fn forward(text: &str, resolved: Resolved) -> String {
    forward_with(&config(), text, resolved)
}

/// Values of one field, in order.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

const UNTRUSTED: Resolved = Resolved {
    trusted: false,
    client: Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 16, 227, 159))),
    scheme: "http",
};

const TRUSTED: Resolved = Resolved {
    trusted: true,
    client: Some(IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7))),
    scheme: "https",
};

const MODES: [Forwarded; 3] = [Forwarded::Preserve, Forwarded::Append, Forwarded::Replace];

#[test]
fn forwarded_fields_follow_the_table() {
    const PEER: &str = "10.16.227.159";
    const CLIENT: &str = "198.51.100.7";
    const FORWARDED: &str = "for=6.6.6.6;by=_a";
    const MADE_FOR_PEER: &str = "for=10.16.227.159;host=\"a.test:8443\";proto=http";
    const MADE_FOR_CLIENT: &str = "for=198.51.100.7;host=\"a.test:8443\";proto=https";
    const APPENDED: &str = "for=6.6.6.6;by=_a, for=10.16.227.159;host=\"a.test:8443\";proto=https";
    const APPENDED_FOR: &str = "6.6.6.6, 7.7.7.7, 8.8.8.8, 10.16.227.159";
    let all = "GET / HTTP/1.1\nHost: a.test:8443\nX-Forwarded-For: 6.6.6.6, 7.7.7.7\n\
               X-Forwarded-For: 8.8.8.8\nX-Real-IP: 6.6.6.6\nForwarded: for=6.6.6.6;by=_a\n\
               X-Forwarded-Proto: HTTPS, ftp\nX-Forwarded-Proto: http\nX-Forwarded-Host: evil.test\n\
               X-Forwarded-Port: 1\nX-Forwarded-By: e\nX-Forwarded-Server: f\n\
               X-Forwarded-Prefix: /g\nX-Forwarded-Ssl: on\nX-Forwarded-Protocol: ssl\n\
               X-Forwarded-Scheme: https\nFront-End-Https: on\n";
    let none = "GET / HTTP/1.1\nHost: a.test:8443\n";
    let empty = "GET / HTTP/1.1\nHost: a.test:8443\nX-Forwarded-For:\nX-Real-Ip: \nForwarded:\n\
                 X-Forwarded-Proto:\nX-Forwarded-Host: \nX-Forwarded-Port: \n";

    // Field; then what an untrusted peer's, and in each mode a trusted peer's, all and none become.
    type Row = (&'static str, [&'static [&'static str]; 4], [&'static [&'static str]; 4]);
    let rows: [Row; 14] = [
        (
            "X-Forwarded-For",
            [&[PEER], &["6.6.6.6, 7.7.7.7", "8.8.8.8"], &[APPENDED_FOR], &[CLIENT]],
            [&[PEER], &[CLIENT], &[CLIENT], &[CLIENT]],
        ),
        (
            "X-Real-Ip",
            [&[PEER], &["6.6.6.6"], &[CLIENT], &[CLIENT]],
            [&[PEER], &[CLIENT], &[CLIENT], &[CLIENT]],
        ),
        (
            "Forwarded",
            [&[MADE_FOR_PEER], &[FORWARDED], &[APPENDED], &[MADE_FOR_CLIENT]],
            [&[], &[], &[], &[]],
        ),
        (
            "X-Forwarded-Proto",
            [&["http"], &["https"], &["https"], &["https"]],
            [&["http"], &["https"], &["https"], &["https"]],
        ),
        (
            "X-Forwarded-Host",
            [&["a.test:8443"], &["evil.test"], &["evil.test"], &["evil.test"]],
            [&["a.test:8443"], &[], &[], &[]],
        ),
        ("X-Forwarded-Port", [&["8443"], &["1"], &["1"], &["1"]], [&["8443"], &[], &[], &[]]),
        ("X-Forwarded-By", [&[], &["e"], &["e"], &["e"]], [&[]; 4]),
        ("X-Forwarded-Server", [&[], &["f"], &["f"], &["f"]], [&[]; 4]),
        ("X-Forwarded-Prefix", [&[], &["/g"], &["/g"], &["/g"]], [&[]; 4]),
        ("X-Forwarded-Ssl", [&[]; 4], [&[]; 4]),
        ("X-Forwarded-Protocol", [&[]; 4], [&[]; 4]),
        ("X-Forwarded-Scheme", [&[]; 4], [&[]; 4]),
        ("Front-End-Https", [&[]; 4], [&[]; 4]),
        ("Host", [&["a.test:8443"]; 4], [&["a.test:8443"]; 4]),
    ];
    for (name, with_all, with_none) in rows {
        for mode in MODES {
            let config = Config { forwarded: mode, ..config() };
            let column = 1 + mode as usize;
            for (request, expected) in [(all, with_all), (none, with_none), (empty, with_none)] {
                let trusted = forward_with(&config, request, TRUSTED);
                assert_eq!(values(&trusted, name), expected[column], "{name} {mode:?}\n{request}");
                let untrusted = forward_with(&config, request, UNTRUSTED);
                assert_eq!(values(&untrusted, name), expected[0], "{name} {mode:?}\n{request}");
            }
        }
    }
}

#[test]
fn appending_behind_nothing_names_the_peer_that_is_the_client() {
    let config = Config { forwarded: Forwarded::Append, ..config() };
    let peer = Resolved { client: UNTRUSTED.client, ..TRUSTED };
    let head = forward_with(&config, "GET / HTTP/1.1\nHost: a\n", peer);
    assert_eq!(values(&head, "X-Forwarded-For"), ["10.16.227.159"]);
}

#[test]
fn a_unix_peer_that_says_nothing_leaves_the_client_out() {
    for resolved in [UNTRUSTED, TRUSTED] {
        for mode in MODES {
            let config = Config { forwarded: mode, ..config() };
            let with = Forward {
                config: &config,
                peer: Peer::Unix,
                local: None,
                resolved: Resolved { client: None, ..resolved },
                started_ms: 1_700_000_000_500,
                keep_alive: false,
            };
            let mut out = ForwardedHead::default();
            out.write(&request("GET / HTTP/1.0\nForwarded: proto=https\n"), &with);
            let head = str::from_utf8(&out.bytes).unwrap();
            assert_eq!(values(head, "X-Forwarded-For"), [""; 0]);
            assert_eq!(values(head, "X-Real-Ip"), [""; 0]);
            assert_eq!(values(head, "Host"), ["localhost"]);
            assert_eq!(values(head, "X-Forwarded-Host"), [""; 0]);
            let element = match (resolved.trusted, mode) {
                (false, _) => "for=unknown;proto=http",
                (true, Forwarded::Preserve) => "proto=https",
                (true, Forwarded::Append) => "proto=https, for=unknown;proto=https",
                (true, Forwarded::Replace) => "for=unknown;proto=https",
            };
            assert_eq!(values(head, "Forwarded"), [element], "{mode:?}");
        }
    }
}

#[test]
fn addresses_of_version_6_are_written_as_each_field_wants_them() {
    let v6 = Resolved { client: Some("2001:db8::1".parse().unwrap()), ..UNTRUSTED };
    let head = forward("GET / HTTP/1.1\nHost: [::1]:81\nForwarded: for=a\n", v6);
    assert_eq!(values(&head, "X-Forwarded-For"), ["2001:db8::1"]);
    assert_eq!(values(&head, "X-Forwarded-Port"), ["81"]);
    assert_eq!(values(&head, "Forwarded"), ["for=\"[2001:db8::1]\";host=\"[::1]:81\";proto=http"]);
}

#[test]
fn the_target_is_passed_byte_for_byte_in_origin_form() {
    for (request_line, forwarded) in [
        ("GET /a%2Fb//c?x=%00&y=<\"> HTTP/1.1", "GET /a%2Fb//c?x=%00&y=<\"> HTTP/1.1"),
        ("GET / HTTP/1.0", "GET / HTTP/1.1"),
        ("GET http://b.test/a?q HTTP/1.1", "GET /a?q HTTP/1.1"),
        ("GET http://b.test HTTP/1.1", "GET / HTTP/1.1"),
        ("GET http://b.test?q HTTP/1.1", "GET /?q HTTP/1.1"),
        ("OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.1"),
        ("OPTIONS http://b.test HTTP/1.1", "OPTIONS * HTTP/1.1"),
        ("OPTIONS http://b.test/ HTTP/1.1", "OPTIONS / HTTP/1.1"),
        ("OPTIONS http://b.test?q HTTP/1.1", "OPTIONS /?q HTTP/1.1"),
        ("M-SEARCH /x HTTP/1.1", "M-SEARCH /x HTTP/1.1"),
    ] {
        let head = forward(&format!("{request_line}\nHost: a.test\n"), UNTRUSTED);
        assert_eq!(head.lines().next(), Some(forwarded));
    }
}

#[test]
fn exactly_one_host_is_sent_first() {
    for (text, host) in [
        ("GET / HTTP/1.1\nA: 1\nHOST: Shop.Example.test:8443\n", "Shop.Example.test:8443"),
        ("GET http://b.test:81/ HTTP/1.1\nHost: a.test\n", "b.test:81"),
        ("GET http://b.test/ HTTP/1.0\nA: 1\n", "b.test"),
        // An HTTP/1.0 client may leave it out; what we send is HTTP/1.1.
        ("GET / HTTP/1.0\nA: 1\n", "172.17.0.2:5000"),
    ] {
        let head = forward(text, UNTRUSTED);
        assert_eq!(head.lines().nth(1), Some(&*format!("Host: {host}")));
        assert_eq!(values(&head, "host"), [host]);
    }
}

#[test]
fn the_forwarded_port_is_that_of_host() {
    for (host, port) in [
        ("a.test", "80"),
        ("a.test:8080", "8080"),
        ("127.0.0.1", "80"),
        ("[2001:db8::443]", "80"),
        ("[2001:db8::443]:8080", "8080"),
        ("a.test:", "80"),
        ("a.test:00080", "00080"),
    ] {
        let head = forward(&format!("GET / HTTP/1.1\nHost: {host}\n"), UNTRUSTED);
        assert_eq!(values(&head, "X-Forwarded-Port"), [port], "{host}");
        assert_eq!(values(&head, "X-Forwarded-Host"), [host]);
    }
    assert_eq!(super::port(b"a.test", "https"), b"443");
}

#[test]
fn end_to_end_fields_keep_their_order_bytes_and_case() {
    let text = "GET / HTTP/1.1\nHost: a.test\naCCept: */*\nX-L: one\n\
                traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n\
                tracestate: rojo=00f067aa0ba902b7 ,congo=t61rcWkgMzE\nX-L: two\nX-Empty:\n\
                Cookie: a=\"1\"; b=2\nX-O: caf\u{e9}\t!\nIf-None-Match: \"a,b\"\nDate: x\n";
    let head = forward(text, UNTRUSTED);
    let expected = text.replace("X-Empty:", "X-Empty: ").replace('\n', "\r\n");
    assert!(head.starts_with(&expected), "{head}");
}

#[test]
fn fields_of_the_connection_and_the_framing_end_here() {
    let head = forward(
        "POST / HTTP/1.1\nHost: a\nConnection: keep-alive, upgrade\nKeep-Alive: timeout=5\n\
         Proxy-Connection: keep-alive\nProxy-Authenticate: a\nProxy-Authorization: Basic eDp5\n\
         Proxy: http://127.0.0.1:9\nTE: trailers\nTrailer: X-T\nTransfer-Encoding: chunked\n\
         Expect: 100-continue\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAARAAAAA\n\
         Content-Type: a/b\n",
        UNTRUSTED,
    );
    let names: Vec<&str> =
        head.lines().skip(1).filter_map(|l| Some(l.split_once(':')?.0)).collect();
    assert_eq!(
        names,
        [
            "Host",
            "Content-Type",
            "Connection",
            "X-Forwarded-For",
            "X-Real-Ip",
            "X-Forwarded-Proto",
            "X-Forwarded-Host",
            "X-Forwarded-Port",
            "X-Request-Id",
            "X-Request-Start",
            "Via"
        ]
    );
    assert_eq!(values(&head, "Connection"), ["close"]);
}

#[test]
fn connection_takes_away_only_what_is_the_clients_to_take() {
    let head = forward(
        "GET / HTTP/1.1\nHost: a\n\
         Connection: x-hop, Host, Content-Length, Cookie, Authorization, X-Forwarded-For, \
         X-Forwarded-Proto, X-Request-Id, Via, X-Hop2\n\
         X-Hop: 1\nX-Hop2: 1\nX-Hop3: 1\nCookie: a=1\nAuthorization: Basic eDp5\n\
         X-Forwarded-For: 6.6.6.6\nX-Request-Id: 8b6402de-d072-42c4-9854\nVia: 1.1 vegur\n",
        TRUSTED,
    );
    for (name, expected) in [
        ("X-Hop", &[][..]),
        ("X-Hop2", &[]),
        ("X-Hop3", &["1"]),
        ("Host", &["a"]),
        ("Cookie", &["a=1"]),
        ("Authorization", &["Basic eDp5"]),
        ("X-Forwarded-For", &["6.6.6.6"]),
        ("X-Forwarded-Proto", &["https"]),
        ("X-Request-Id", &["8b6402de-d072-42c4-9854"]),
        ("Via", &["1.1 vegur, 1.1 bufproxy"]),
    ] {
        assert_eq!(values(&head, name), expected, "{name}");
    }
}

#[test]
fn names_with_an_underscore_pass_only_where_they_are_allowed() {
    let text = "GET / HTTP/1.1\nHost: a\nSCRIPT_NAME: /admin\nX_Forwarded_For: 6.6.6.6\n\
                Remote_User: root\nApi_Key: k\n";
    let dropped = forward(text, TRUSTED);
    assert!(!dropped.contains('_'), "{dropped}");
    let config = Config { allow_underscore: vec!["api_key".to_string()], ..config() };
    let allowed = forward_with(&config, text, TRUSTED);
    assert_eq!(values(&allowed, "Api_Key"), ["k"]);
    assert_eq!(allowed.matches('_').count(), 1, "{allowed}");
}

#[test]
fn the_real_ip_header_of_an_untrusted_peer_is_dropped() {
    let text = "GET / HTTP/1.1\nHost: a\nFly-Client-IP: 6.6.6.6\n";
    let config = Config { real_ip_header: Some("fly-client-ip".to_string()), ..config() };
    assert_eq!(values(&forward_with(&config, text, UNTRUSTED), "Fly-Client-IP"), [""; 0]);
    assert_eq!(values(&forward_with(&config, text, TRUSTED), "Fly-Client-IP"), ["6.6.6.6"]);
    // Its name may be one that `allow-underscore` lets pass.
    let config = Config {
        real_ip_header: Some("x_client".to_string()),
        allow_underscore: vec!["x_client".to_string()],
        ..config
    };
    let text = "GET / HTTP/1.1\nHost: a\nX_Client: 6.6.6.6\n";
    assert_eq!(values(&forward_with(&config, text, UNTRUSTED), "X_Client"), [""; 0]);
    assert_eq!(values(&forward_with(&config, text, TRUSTED), "X_Client"), ["6.6.6.6"]);
}

#[test]
fn connection_does_not_take_away_the_real_ip_header_of_a_trusted_peer() {
    let text = "GET / HTTP/1.1\nHost: a\nConnection: close, Fly-Client-IP, X-Hop\n\
                Fly-Client-IP: 6.6.6.6\nX-Hop: 1\n";
    let config = Config { real_ip_header: Some("fly-client-ip".to_string()), ..config() };
    let head = forward_with(&config, text, TRUSTED);
    assert_eq!(values(&head, "Fly-Client-IP"), ["6.6.6.6"]);
    assert_eq!(values(&head, "X-Hop"), [""; 0]);
    assert_eq!(values(&forward_with(&config, text, UNTRUSTED), "Fly-Client-IP"), [""; 0]);
}

#[test]
fn a_valid_request_id_is_kept_and_any_other_is_replaced_by_one_uuid() {
    let long = "a".repeat(200);
    for kept in ["abcdefghij-0123456789", "AZaz09+/=-AZaz09+/=-", &long] {
        let head = forward(&format!("GET / HTTP/1.1\nHost: a\nX-Request-Id: {kept}\n"), UNTRUSTED);
        assert_eq!(values(&head, "X-Request-Id"), [kept]);
    }
    let too_long = "a".repeat(201);
    for made in ["", "a-short-one", &too_long, "with a blank 0123456789", "<b>0123456789abcdef"] {
        let head = forward(&format!("GET / HTTP/1.1\nHost: a\nX-Request-Id: {made}\n"), TRUSTED);
        let [id] = values(&head, "X-Request-Id")[..] else { panic!("{head}") };
        assert_eq!(id.len(), 36);
        assert!(is_request_id(id.as_bytes()));
        assert_eq!(id.as_bytes()[14], b'4', "version of {id}");
        assert!(b"89ab".contains(&id.as_bytes()[19]), "variant of {id}");
        let hyphens: Vec<usize> = id.match_indices('-').map(|(at, _)| at).collect();
        assert_eq!(hyphens, [8, 13, 18, 23]);
    }
    // Of several the first valid one.
    let head = forward(
        "GET / HTTP/1.1\nHost: a\nX-Request-Id: bad\nX-Request-Id: 01234567890123456789\n\
         X-Request-Id: abcdefghijklmnopqrstuvwxyz\n",
        UNTRUSTED,
    );
    assert_eq!(values(&head, "X-Request-Id"), ["01234567890123456789"]);
    assert_ne!(uuid(), uuid());
}

#[test]
fn every_form_of_a_routers_request_start_becomes_milliseconds() {
    const OURS: &str = "1700000000500";
    for (came, written) in [
        ("1600000000123", "1600000000123"),
        ("t=1600000000123", "1600000000123"),
        ("t=1600000000.123", "1600000000123"),
        ("1600000000.5", "1600000000500"),
        ("1600000000.1239", "1600000000123"),
        ("1600000000", "1600000000000"),
        ("t=1600000000123456", "1600000000123"),
        ("1600000000123456789", "1600000000123"),
        // A clock ahead of ours.
        ("1800000000000", OURS),
        // Not times.
        ("", OURS),
        ("t=", OURS),
        ("yesterday", OURS),
        ("-1600000000123", OURS),
        ("0", OURS),
        ("1600000000.12x", OURS),
        ("16000000001234567891", OURS),
        ("99999999999999999999", OURS),
    ] {
        for name in ["X-Request-Start", "X-Queue-Start"] {
            let text = format!("GET / HTTP/1.1\nHost: a\n{name}: {came}\n");
            let head = forward(&text, TRUSTED);
            assert_eq!(values(&head, "X-Request-Start"), [written], "{name} {came}");
            assert_eq!(values(&head, "X-Queue-Start"), [""; 0]);
            let head = forward(&text, UNTRUSTED);
            assert_eq!(values(&head, "X-Request-Start"), [OURS], "{name} {came}");
            assert_eq!(values(&head, "X-Queue-Start"), [""; 0]);
        }
    }
    let both =
        "GET / HTTP/1.1\nHost: a\nX-Queue-Start: 1600000000001\nX-Request-Start: 1600000000002\n";
    assert_eq!(values(&forward(both, TRUSTED), "X-Request-Start"), ["1600000000002"]);
}

#[test]
fn finish_moves_the_request_start_by_the_time_of_the_body_and_says_its_length() {
    let (config, head) = (config(), request("POST / HTTP/1.1\nHost: a\n"));
    let with = Forward {
        config: &config,
        peer: Peer::Unix,
        local: None,
        resolved: UNTRUSTED,
        started_ms: 1_700_000_000_500,
        keep_alive: true,
    };
    for (receive_ms, now_ms, length, start, tail) in [
        (5000, 1_700_000_009_000, Some(12), "1700000005500", "\r\nContent-Length: 12\r\n\r\n"),
        (5000, 1_700_000_003_000, Some(0), "1700000003000", "\r\nContent-Length: 0\r\n\r\n"),
        (0, 1_700_000_000_500, None, "1700000000500", "bufproxy\r\n\r\n"),
        (u64::MAX, 1_700_000_000_500, None, "1700000000500", "bufproxy\r\n\r\n"),
    ] {
        let mut out = ForwardedHead::default();
        out.write(&head, &with);
        assert!(out.bytes.ends_with(b"bufproxy\r\n"));
        out.finish(receive_ms, now_ms, length);
        let text = str::from_utf8(&out.bytes).unwrap();
        assert_eq!(out.request_start.of(&out.bytes), start.as_bytes());
        assert_eq!(values(text, "X-Request-Start"), [start]);
        assert!(text.ends_with(tail), "{text}");
        assert_eq!(values(text, "Connection"), [""; 0]);
    }
}

#[test]
fn max_forwards_counts_down_on_options_and_trace_alone() {
    for (method, came, sent, zero) in [
        ("OPTIONS", "10", "9", false),
        ("TRACE", "1", "0", false),
        ("OPTIONS", "0", "0", true),
        ("TRACE", "00", "0", true),
        ("GET", "10", "10", false),
        ("GET", "0", "0", false),
        ("OPTIONS", "ten", "ten", false),
        ("OPTIONS", "-1", "-1", false),
        // The lesser of one less and what we can count.
        ("OPTIONS", "99999999999999999999", "18446744073709551614", false),
        ("TRACE", "0000000000000000000000", "0", true),
    ] {
        let text = format!("{method} /a HTTP/1.1\nHost: a\nMax-Forwards: {came}\n");
        assert_eq!(max_forwards_zero(&request(&text)), zero, "{text}");
        assert_eq!(values(&forward(&text, UNTRUSTED), "Max-Forwards"), [sent], "{text}");
    }
    assert!(!max_forwards_zero(&request("OPTIONS /a HTTP/1.1\nHost: a\n")));
}

#[test]
fn via_names_the_version_that_the_client_spoke() {
    let head = forward("GET / HTTP/1.0\nHost: a\nVia: 1.1 vegur\n", UNTRUSTED);
    assert_eq!(values(&head, "Via"), ["1.1 vegur, 1.0 bufproxy"]);
}

#[test]
fn a_second_request_of_the_same_size_allocates_nothing() {
    let (config, head) = (config(), request(SEED));
    let with = Forward {
        config: &config,
        peer: Peer::Unix,
        local: None,
        resolved: UNTRUSTED,
        started_ms: 1_700_000_000_500,
        keep_alive: false,
    };
    let mut out = ForwardedHead::default();
    out.write(&head, &with);
    out.finish(0, 0, Some(u64::MAX));
    let before = (out.bytes.as_ptr(), out.bytes.capacity());
    out.write(&head, &with);
    out.finish(0, 0, Some(u64::MAX));
    assert_eq!((out.bytes.as_ptr(), out.bytes.capacity()), before);
}

#[test]
fn whatever_is_sent_the_app_gets_one_reading_of_it() {
    let names = "X-Forwarded-For X-Forwarded-Proto X-Forwarded-Host X-Forwarded-Port X-Real-Ip \
        Forwarded X-Forwarded-By X-Forwarded-Server X-Forwarded-Prefix X-Forwarded-Ssl \
        X-Forwarded-Protocol X-Forwarded-Scheme Front-End-Https X-Request-Id X-Request-Start \
        X-Queue-Start Via Connection Keep-Alive Proxy-Connection Proxy TE Trailer \
        Transfer-Encoding Content-Length Expect Upgrade HTTP2-Settings Max-Forwards \
        SCRIPT_NAME X_Forwarded_For Cookie Authorization Accept traceparent X-Hop A \
        Content-Type Date Proxy-Authorization Proxy-Authenticate";
    const VALUES: [&str; 20] = [
        "",
        "a",
        "1.2.3.4",
        "https",
        "http,https",
        "HTTPS",
        "6.6.6.6, 10.0.0.1",
        "\"[::1]:1\"",
        "for=\"a, for=1.2.3.4",
        "0",
        "17",
        "chunked",
        "close, X-Hop, Host, X-Forwarded-Proto",
        "keep-alive, via, cookie",
        "1600000000123",
        "8b6402de-d072-42c4-9854-0f71697b30e5",
        "caf\u{e9} \t x",
        ";;,,==\"\\\"",
        "a: b",
        "%0d%0aX: y",
    ];
    let forbidden = "x-forwarded-ssl x-forwarded-protocol x-forwarded-scheme front-end-https keep-alive \
        proxy-connection proxy te trailer transfer-encoding expect upgrade http2-settings \
        x-queue-start script_name x_forwarded_for proxy-authorization proxy-authenticate";
    let names: Vec<&str> = names.split(' ').collect();
    let mut random = fastrand::Rng::with_seed(2);
    let mut config = config();
    let mut out = ForwardedHead::default();
    let mut accepted = 0;
    for _ in 0..20_000 {
        let method = random.choice(["GET", "POST", "OPTIONS", "TRACE"]).unwrap();
        let target = random.choice(["/", "/a?b", "http://b.test", "http://b.test?q"]).unwrap();
        let version = random.choice(["HTTP/1.0", "HTTP/1.1"]).unwrap();
        let mut text = format!("{method} {target} {version}\nHost: a.test:81\n");
        for _ in 0..random.usize(..14) {
            let mut name = random.choice(&names).unwrap().to_string();
            if random.bool() {
                name = name.to_uppercase();
            }
            text += &format!("{name}: {}\n", random.choice(VALUES).unwrap());
        }
        let Ok(head) = try_request(&text) else { continue };
        accepted += 1;
        config.forwarded = random.choice(MODES).unwrap();
        config.trust.any_peer = random.bool();
        let peer = Peer::Ip("[2001:db8::9]:1".parse().unwrap());
        let peer = random.choice([Peer::Unix, peer]).unwrap();
        let resolved = crate::trust::resolve(&config, peer, &head);
        let with = Forward {
            config: &config,
            peer,
            local: None,
            resolved,
            started_ms: 1_700_000_000_500,
            keep_alive: random.bool(),
        };
        out.write(&head, &with);
        out.finish(7, 1_700_000_000_600, random.bool().then_some(17));

        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Request::new(&mut fields);
        let end = parsed.parse(&out.bytes).unwrap_or_else(|e| panic!("{e} in {text}"));
        assert_eq!(end, httparse::Status::Complete(out.bytes.len()), "{text}");
        let count = |name: &str| {
            parsed.headers.iter().filter(|f| f.name.eq_ignore_ascii_case(name)).count()
        };
        for name in forbidden.split(' ') {
            assert_eq!(count(name), 0, "{name} for {text}");
        }
        for name in ["Host", "X-Forwarded-Proto", "X-Request-Id", "X-Request-Start"] {
            assert_eq!(count(name), 1, "{name} for {text}");
        }
        assert!(count("Content-Length") <= 1 && count("Connection") <= 1, "{text}");
        let proto = parsed.headers.iter().find(|f| f.name == "X-Forwarded-Proto").unwrap().value;
        assert!(proto == b"http" || proto == b"https", "{text}");
        if !resolved.trusted {
            let shown = String::from_utf8_lossy(&out.bytes);
            let own = |name| values(&shown, name).iter().all(|v| *v == "2001:db8::9");
            assert!(own("X-Forwarded-For") && own("X-Real-Ip"), "{shown} for {text}");
            assert_eq!(proto, b"http");
        }
        let start = out.request_start.of(&out.bytes);
        assert!(start.len() == 13 && start <= b"1700000000600".as_slice(), "{text}");
        assert!(is_request_id(out.request_id.of(&out.bytes)), "{text}");
    }
    assert!(accepted > 5_000, "{accepted}");
}

/// The seed article's own request: the router's X-Forwarded-For holds the client and, at the right,
/// the CDN's edge that the router saw.
const SEED: &str = "\
GET / HTTP/1.1
Connection: close
Host: example.herokuapp.com
User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1)
Accept: text/html
X-Request-Id: 8b6402de-d072-42c4-9854-0f71697b30e5
X-Forwarded-For: 199.188.193.220, 108.162.219.160
X-Forwarded-Proto: http
X-Forwarded-Port: 80
Via: 1.1 vegur
Connect-Time: 1
X-Request-Start: 1700000000123
Total-Route-Time: 0
";

#[test]
fn the_routers_request_comes_to_the_app_as_the_router_sent_it() {
    let mut config = config();
    config.trust.any_peer = true;
    config.trust.ranges = crate::config::trust_presets::cloudflare();
    let peer = Peer::Ip("10.16.227.159:4321".parse().unwrap());
    let head = request(SEED);
    let resolved = crate::trust::resolve(&config, peer, &head);
    assert_eq!(resolved.client, Some("199.188.193.220".parse().unwrap()));
    let with = Forward {
        config: &config,
        peer,
        local: None,
        resolved,
        started_ms: 1_700_000_000_500,
        keep_alive: false,
    };
    let mut out = ForwardedHead::default();
    out.write(&head, &with);
    out.finish(0, 1_700_000_000_500, None);
    assert_eq!(
        str::from_utf8(&out.bytes).unwrap(),
        "GET / HTTP/1.1\r\n\
         Host: example.herokuapp.com\r\n\
         User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1)\r\n\
         Accept: text/html\r\n\
         X-Forwarded-For: 199.188.193.220, 108.162.219.160\r\n\
         X-Forwarded-Port: 80\r\n\
         Connect-Time: 1\r\n\
         Total-Route-Time: 0\r\n\
         Connection: close\r\n\
         X-Real-Ip: 199.188.193.220\r\n\
         X-Forwarded-Proto: http\r\n\
         X-Request-Id: 8b6402de-d072-42c4-9854-0f71697b30e5\r\n\
         X-Request-Start: 1700000000123\r\n\
         Via: 1.1 vegur, 1.1 bufproxy\r\n\
         \r\n"
    );
}
