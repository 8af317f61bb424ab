//! The contract with the app and with the client: what becomes of a head on its way.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{App, Message, Proxy, ok, unix_path};

/// Sends one request and gives what the app saw of it.
fn forwarded(options: &[&str], request: &str) -> Message {
    let app = App::unix();
    let proxy = Proxy::start(&app, options);
    let mut client = proxy.connect();
    client.send(request);
    let (worker, seen) = app.request();
    worker.reply("");
    assert_eq!(client.response().status(), 200);
    seen
}

/// Answers one GET with these bytes and gives what the client saw of it.
fn returned(response: &str) -> Message {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/");
    app.request().0.send(response);
    client.response()
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

#[test]
fn heroku_request_reaches_the_app_as_the_router_sent_it() {
    // The seed article's own request: two addresses, the right-most a CDN's.
    let app = App::unix();
    let proxy = Proxy::launch(|command| {
        command.env("DYNO", "web.1").args(["--upstream", app.address()]);
    });
    let mut client = proxy.connect();
    client.send(
        "GET / HTTP/1.1\r\n\
         Host: www.example.com\r\n\
         Connection: close\r\n\
         User-Agent: Mozilla/5.0 (Macintosh)\r\n\
         Accept: */*\r\n\
         X-Request-Id: 8b6402de-d072-42c4-9854-0f71697b30e5\r\n\
         X-Forwarded-For: 199.188.193.220, 141.101.98.1\r\n\
         X-Forwarded-Proto: https\r\n\
         X-Forwarded-Port: 443\r\n\
         Via: 1.1 vegur\r\n\
         X-Request-Start: 1400000000123\r\n\r\n",
    );
    let (worker, seen) = app.request();
    worker.reply("");
    assert_eq!(seen.line(), "GET / HTTP/1.1");
    for (name, value) in [
        ("Host", "www.example.com"),
        ("Connection", "close"),
        ("User-Agent", "Mozilla/5.0 (Macintosh)"),
        ("Accept", "*/*"),
        ("X-Request-Id", "8b6402de-d072-42c4-9854-0f71697b30e5"),
        ("X-Forwarded-For", "199.188.193.220, 141.101.98.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Port", "443"),
        ("X-Request-Start", "1400000000123"),
    ] {
        assert_eq!(seen.get(name), Some(value), "{}", seen.head);
    }
    // A line of its own is the same list (RFC 9110, 5.3).
    assert_eq!(seen.all("Via").join(", "), "1.1 vegur, 1.1 bufproxy");
    assert_eq!(seen.get("Content-Length"), None);
}

#[test]
fn untrusted_peers_word_does_not_count() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(
        "GET / HTTP/1.1\r\nHost: a\r\n\
         X-Forwarded-For: 6.6.6.6\r\n\
         X-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: evil.example\r\n\
         X-Forwarded-Port: 6666\r\n\
         X-Real-Ip: 6.6.6.6\r\n\
         Forwarded: for=6.6.6.6;proto=https\r\n\
         X-Request-Start: 1000000000000\r\n\r\n",
    );
    let (worker, seen) = app.request();
    worker.reply("");
    assert_eq!(seen.get("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(seen.get("X-Forwarded-Proto"), Some("http"));
    for forged in ["6.6.6.6", "evil.example", "6666", "1000000000000"] {
        assert!(!seen.head.contains(forged), "{}", seen.head);
    }
    // Said once, with what would allow it.
    let dropped = "dropped X-Forwarded-Proto: https from 127.0.0.1 (not trusted)";
    let said = proxy.stderr.wait_for(|line| line.contains(dropped));
    assert!(said.contains("--trust"), "{said}");
}

#[test]
fn request_start_is_made_anew_for_an_untrusted_peer() {
    let before = now_ms();
    let seen = forwarded(&[], "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let start: u128 = seen.get("X-Request-Start").unwrap().parse().unwrap();
    assert!((before..=now_ms()).contains(&start), "{start}");
}

#[test]
fn request_start_moves_on_by_the_time_of_the_body() {
    // Autoscalers take its distance from now for time in the queue.
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--trust", "127.0.0.1/32"]);
    let start = now_ms() - 1000;
    let mut client = proxy.connect();
    let begun = std::time::Instant::now();
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nX-Request-Start: {start}\r\nContent-Length: 2\r\n\r\n1"
    ));
    proxy.settle();
    std::thread::sleep(Duration::from_millis(100));
    client.send("2");
    let (worker, seen) = app.request();
    let most = begun.elapsed().as_millis();
    worker.reply("");
    let moved = seen.get("X-Request-Start").unwrap().parse::<u128>().unwrap() - start;
    assert!((100..=most).contains(&moved), "moved on by {moved} ms");
}

#[test]
fn preserve_passes_on_what_a_trusted_peer_sent() {
    let seen = forwarded(
        &["--trust", "127.0.0.1/32"],
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.5, 10.0.0.1\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n\r\n",
    );
    assert_eq!(seen.get("X-Forwarded-For"), Some("203.0.113.5, 10.0.0.1"));
    assert_eq!(seen.get("X-Forwarded-Proto"), Some("https"));
    assert_eq!(seen.get("X-Forwarded-Host"), Some("shop.example"));
}

#[test]
fn append_adds_the_peer() {
    let seen = forwarded(
        &["--trust", "127.0.0.1/32", "--forwarded", "append"],
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.5\r\n\r\n",
    );
    assert_eq!(seen.get("X-Forwarded-For"), Some("203.0.113.5, 127.0.0.1"));
}

#[test]
fn replace_leaves_only_the_resolved_client() {
    let seen = forwarded(
        &["--trust", "127.0.0.1/32", "--forwarded", "replace"],
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.5\r\n\r\n",
    );
    assert_eq!(seen.get("X-Forwarded-For"), Some("203.0.113.5"));
}

#[test]
fn scheme_is_one_lower_case_word() {
    // gunicorn takes a list or another case for http, and two that differ for an attack.
    for (sent, scheme) in [
        ("X-Forwarded-Proto: HTTPS\r\n", "https"),
        ("X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n", "https"),
        ("X-Forwarded-Proto: gopher\r\n", "http"),
        ("", "http"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{sent}\r\n");
        let seen = forwarded(&["--trust", "127.0.0.1/32"], &request);
        assert_eq!(seen.get("X-Forwarded-Proto"), Some(scheme), "{sent:?}");
        assert_eq!(seen.get("X-Forwarded-Ssl"), None);
    }
    let lists = ["https,http", "http,https", "https, https"];
    for list in lists {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: {list}\r\n\r\n");
        let seen = forwarded(&["--trust", "127.0.0.1/32"], &request);
        assert!(matches!(seen.get("X-Forwarded-Proto"), Some("http" | "https")), "{list:?}");
    }
}

#[test]
fn names_with_underscores_are_dropped() {
    // Over a Unix socket gunicorn trusts its peer: SCRIPT_NAME would move the whole site.
    let request = "GET / HTTP/1.1\r\nHost: a\r\nSCRIPT_NAME: /admin\r\nX_Forwarded_For: 6.6.6.6\r\n\
                   Transfer_Encoding: chunked\r\nMy_Own: 1\r\nX-Fine: 1\r\n\r\n";
    let seen = forwarded(&[], request);
    assert!(seen.fields().all(|(name, _)| !name.contains('_')), "{}", seen.head);
    assert_eq!(seen.get("X-Fine"), Some("1"));

    let seen = forwarded(&["--allow-underscore", "my_own"], request);
    assert_eq!(seen.get("My_Own"), Some("1"));
    assert_eq!(seen.get("SCRIPT_NAME"), None);
}

#[test]
fn hop_by_hop_fields_end_here() {
    let seen = forwarded(
        &[],
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Mine, Content-Length, X-Forwarded-For\r\n\
         X-Mine: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy: evil\r\n\
         Proxy-Authorization: Basic x\r\nTE: trailers\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABk\r\nContent-Length: 2\r\nX-Yours: 2\r\n\r\nab",
    );
    for gone in [
        "X-Mine",
        "Keep-Alive",
        "Proxy-Connection",
        "Proxy",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Upgrade",
        "HTTP2-Settings",
    ] {
        assert_eq!(seen.get(gone), None, "{}", seen.head);
    }
    assert_eq!(seen.get("Connection"), Some("close"));
    assert_eq!(seen.get("Content-Length"), Some("2"));
    assert_eq!(seen.get("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(seen.get("X-Yours"), Some("2"));
    assert_eq!(seen.text(), "ab");
}

#[test]
fn target_bytes_are_passed_verbatim() {
    for target in ["/", "//a//b/../c", "/%2F%2e%2E?q=%00&x=a?b", "/?", "/a;b=c", "/[x]{y}|z^'\"<>"]
    {
        let seen = forwarded(&[], &format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(seen.target(), target);
    }
}

#[test]
fn absolute_form_becomes_origin_form_and_its_authority_wins() {
    for (target, origin, host) in [
        ("http://b.example/x?y", "/x?y", "b.example"),
        ("http://b.example:8080", "/", "b.example:8080"),
        ("http://b.example?y", "/?y", "b.example"),
    ] {
        let seen = forwarded(&[], &format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n"));
        assert_eq!((seen.target(), seen.get("Host")), (origin, Some(host)));
    }
}

#[test]
fn http_1_0_request_goes_on_as_http_1_1_with_a_host() {
    let seen = forwarded(&[], "GET / HTTP/1.0\r\n\r\n");
    assert_eq!(seen.line(), "GET / HTTP/1.1");
    assert_eq!(seen.all("Host").len(), 1);
}

#[test]
fn request_id_is_kept_when_valid_and_made_when_not() {
    let valid = "0123456789abcdefABCDEF+/=-";
    let send = |id: &str| {
        forwarded(&[], &format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n"))
    };
    assert_eq!(send(valid).get("X-Request-Id"), Some(valid));
    let long = "a".repeat(201);
    for invalid in ["short", "has spaces in the middle of it", "quote\"quote\"quote\"quote", &long]
    {
        let seen = send(invalid);
        let made = seen.get("X-Request-Id").unwrap();
        assert_ne!(made, invalid);
        assert!((20..=200).contains(&made.len()), "{made}");
    }
    let one = forwarded(&[], "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let two = forwarded(&[], "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_ne!(one.get("X-Request-Id").unwrap(), two.get("X-Request-Id").unwrap());
}

#[test]
fn end_to_end_fields_keep_bytes_case_and_order() {
    let seen = forwarded(
        &[],
        "GET / HTTP/1.1\r\nHost: a\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
         TraceState: a=1,b=2\r\nX-Twice: 1\r\nx-twice: 2\r\nX-Latin: caf\u{e9}\r\nX-Inner: a  b\r\nX-Empty: \r\n\r\n",
    );
    let names: Vec<_> = seen.fields().map(|(name, _)| name.to_string()).collect();
    let mine = ["traceparent", "TraceState", "X-Twice", "x-twice", "X-Latin", "X-Inner", "X-Empty"];
    let kept: Vec<_> = names.iter().filter(|name| mine.contains(&name.as_str())).collect();
    assert_eq!(kept, mine);
    assert_eq!(seen.all("x-twice"), ["1", "2"]);
    assert_eq!(seen.get("x-inner"), Some("a  b"));
    // Bytes are shown as Latin-1 here; the client sent them as UTF-8.
    assert_eq!(seen.get("x-latin"), Some("caf\u{c3}\u{a9}"));
    assert_eq!(seen.get("x-empty"), Some(""));
}

#[test]
fn response_fields_reach_the_client() {
    let seen = returned(
        "HTTP/1.1 299 Own Words\r\nServer: gunicorn\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
         Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Kept: yes\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nContent-Length: 1\r\n\r\nx",
    );
    assert_eq!(seen.line(), "HTTP/1.1 299 Own Words");
    assert_eq!(seen.get("Server"), Some("gunicorn"));
    assert_eq!(seen.get("Date"), Some("Mon, 01 Jan 2024 00:00:00 GMT"));
    assert_eq!(seen.all("Set-Cookie"), ["a=1", "b=2"]);
    assert_eq!(seen.get("X-Kept"), Some("yes"));
    for gone in ["X-Hop", "Keep-Alive", "Proxy-Connection"] {
        assert_eq!(seen.get(gone), None, "{}", seen.head);
    }
}

#[test]
fn missing_date_and_reason_are_added() {
    let seen = returned("HTTP/1.1 599 \r\nContent-Length: 0\r\n\r\n");
    assert!(seen.line().len() > "HTTP/1.1 599 ".len(), "{:?}", seen.line());
    assert!(seen.get("Date").unwrap().ends_with(" GMT"));
}

#[test]
fn http_1_0_response_reaches_an_http_1_1_client_as_http_1_1() {
    let seen = returned("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold");
    assert_eq!((seen.line(), seen.text().as_str()), ("HTTP/1.1 200 OK", "old"));
}

#[test]
fn errors_of_the_app_pass_with_their_body() {
    for status in ["400 Bad Request", "404 Not Found", "500 Internal Server Error", "503 Busy"] {
        let seen = returned(&format!("HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nmine"));
        assert_eq!((seen.line(), seen.text().as_str()), (&*format!("HTTP/1.1 {status}"), "mine"));
    }
}

#[test]
fn own_answers_suit_whoever_asked() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-body", "1"]);
    let ask = |fields: &str| {
        let mut client = proxy.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 2\r\n\r\n"));
        client.response()
    };
    let plain = ask("Accept: */*\r\nX-Request-Id: 0123456789abcdefghij\r\n");
    assert!(plain.get("content-type").unwrap().starts_with("text/plain"));
    assert!(plain.text().contains("0123456789abcdefghij"), "{}", plain.text());
    let html = ask("Accept: text/html,application/xhtml+xml\r\n");
    assert!(html.get("content-type").unwrap().starts_with("text/html"));
    assert!(!html.text().contains("max-body"), "an option is not the visitor's business");
}

#[test]
fn error_page_is_the_users_own() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("error.html");
    std::fs::write(&page, "<h1>Back soon</h1>").unwrap();
    let upstream = format!("unix:{}", unix_path(&dir).display());
    let options = ["--connect-retry", "50ms", "--error-page", page.to_str().unwrap()];
    let proxy = Proxy::start_at(&upstream, &options);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.text().as_str()), (503, "<h1>Back soon</h1>"));
}

#[test]
fn every_response_of_the_app_is_the_same_over_ipv6() {
    let app = App::answering(ok("six"));
    let dual = Proxy::launch(|command| {
        *command = {
            let mut fresh = std::process::Command::new(command.get_program());
            fresh.env_clear().args(["--listen", "[::]:0", "--upstream", app.address()]);
            fresh
        };
    });
    let port = dual.addr.port();
    for address in [format!("[::1]:{port}"), format!("127.0.0.1:{port}")] {
        let mut client = crate::support::Client::connect(address.parse().unwrap());
        client.get("/");
        assert_eq!(client.response().text(), "six");
    }
    // An IPv4-mapped peer is shown as what it is.
    assert_eq!(dual.nth_record(2, "GET / ").get("remote_addr"), "127.0.0.1");
}

#[test]
fn large_head_behind_an_early_hint_is_passed() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/hinted");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 103 Early Hints\r\n\r\n");
    assert_eq!(client.head().status(), 103);
    worker.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n");
    for i in 0..10 {
        worker.send(format!("X-{i}: {}\r\n", "x".repeat(10_000)));
        proxy.settle();
    }
    worker.send("\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.get("x-9").map(str::len)), (200, Some(10_000)));
}

#[test]
fn client_is_who_the_chosen_field_of_a_trusted_peer_names() {
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Client: 198.51.100.7\r\n\
                   X-Forwarded-For: 203.0.113.9\r\n\r\n";
    let named = ["--trust", "private", "--real-ip-header", "X-Client"];
    let seen = forwarded(&named, request);
    assert_eq!(seen.get("X-Real-Ip"), Some("198.51.100.7"), "{}", seen.head);
    let seen = forwarded(&named[2..], request);
    assert_eq!(seen.get("X-Real-Ip"), Some("127.0.0.1"), "{}", seen.head);
    assert_eq!(seen.get("X-Client"), None, "{}", seen.head);
}
