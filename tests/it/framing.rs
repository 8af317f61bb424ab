//! Invariants 6 and 11: one reading of every message, the same for the app and for us; and a
//! response that was cut never looks complete.

use crate::support::{App, Client, Proxy, chunked, ok, pattern};

/// Requests that are refused, each with its status and what is wrong with it.
const REFUSED: &[(u16, &str, &str)] = &[
    // RFC 9112 6.1, 6.3: how long the body is.
    (
        400,
        "CL beside TE",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "TE beside CL",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "two lengths that differ",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    ),
    (
        400,
        "two equal lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    ),
    (400, "list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd"),
    (400, "signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd"),
    (400, "negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\nabcd"),
    (400, "hexadecimal length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd"),
    (400, "empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nabcd"),
    (400, "length of words", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: four\r\n\r\nabcd"),
    (
        400,
        "length past 64 bits",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551620\r\n\r\nabcd",
    ),
    (
        400,
        "inner space in the length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4 4\r\n\r\nabcd",
    ),
    (
        501,
        "unknown coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked twice",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "two codings",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "TE in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "space before the colon",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    ),
    // RFC 9112 2.2, 5: lines.
    (400, "bare LF after the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n"),
    (400, "bare LF between fields", "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
    (400, "bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
    (400, "NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
    (400, "folded field", "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
    (400, "space before the first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    (400, "field without a colon", "GET / HTTP/1.1\r\nHost: a\r\nfield\r\n\r\n"),
    (400, "field without a name", "GET / HTTP/1.1\r\nHost: a\r\n: value\r\n\r\n"),
    (400, "space in a name", "GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n"),
    // RFC 9112 3.2: Host.
    (400, "no Host", "GET / HTTP/1.1\r\n\r\n"),
    (400, "two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    (400, "space in Host", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    (400, "userinfo in Host", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    (400, "list in Host", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    (400, "port past 65535", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n"),
    (400, "empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    (400, "empty authority", "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n"),
    // RFC 9112 3: the request line.
    (400, "two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "fragment", "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "control byte in the target", "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "target without a slash", "GET path HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "asterisk for GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "no version", "GET /\r\n\r\n"),
    (400, "lower-case version", "GET / http/1.1\r\nHost: a\r\n\r\n"),
    (400, "long version", "GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
    (505, "version 2", "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    (501, "CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
    // What comes to the wrong port.
    (400, "TLS", "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03"),
    (
        400,
        "PROXY protocol",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (400, "PROXY protocol, version 2", "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"),
    (505, "HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    (400, "WebSocket URI", "GET ws://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        417,
        "unknown expectation",
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\nx",
    ),
    // RFC 9112 7.1: chunks.
    (
        400,
        "chunk size in words",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ),
    (
        400,
        "chunk size with 0x",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x4\r\nabcd\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk size past 64 bits",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nabcde\r\n0\r\n\r\n",
    ),
    (
        400,
        "space after a chunk size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4 \r\nabcd\r\n0\r\n\r\n",
    ),
    (
        400,
        "bare LF after a chunk size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\nabcd\r\n0\r\n\r\n",
    ),
    (
        400,
        "no CRLF after a chunk",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcdXX0\r\n\r\n",
    ),
    (
        400,
        "bare LF in a chunk extension",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4;a\nb\r\nabcd\r\n0\r\n\r\n",
    ),
    (
        400,
        "request in place of the last CRLF",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
];

#[test]
fn ambiguous_requests_are_refused() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    for (status, what, request) in REFUSED {
        let mut client = proxy.connect();
        // The second request must never be read as one: what came before it has no known end.
        client.send(format!("{request}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.status(), *status, "{what}: {request:?}");
        assert_eq!(response.get("connection"), Some("close"), "{what}");
        client.half_close();
        client.wait_closed();
        app.assert_no_connection();
    }
    let records = proxy.stop().stdout;
    assert_eq!(records.len(), REFUSED.len(), "{records:#?}");
    let expectation = records.iter().find(|line| line.contains(" status_code=417 "));
    assert!(expectation.unwrap().ends_with(" end=expectation"), "{expectation:?}");
}

#[test]
fn unusual_requests_that_have_one_reading_are_served() {
    let app = App::answering(ok("fine"));
    let proxy = Proxy::start(&app, &[]);
    for request in [
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhOsT:a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n",
        "PURGE /x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /%00%2f%zz?a=b?c&&=%0d%0a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX-Empty:\r\nX-Latin: \u{e9}\r\nX-Tab: a\tb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length:  3 \r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ChUnKeD\r\n\r\n3;x=\"y z\";q\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n00A\r\n0123456789\r\n000\r\n\r\n",
    ] {
        let mut client = proxy.connect();
        client.send(request);
        assert_eq!(client.response().text(), "fine", "{request:?}");
    }
}

#[test]
fn body_that_looks_like_a_request_stays_a_body() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let inner = "GET /inner HTTP/1.1\r\nHost: a\r\n\r\n";
    for method in ["GET", "POST", "DELETE"] {
        let mut client = proxy.connect();
        client.send(format!(
            "{method} /outer HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}",
            inner.len()
        ));
        let (worker, request) = app.request();
        assert_eq!(request.text(), inner);
        worker.reply("outer");
        assert_eq!(client.response().text(), "outer");
    }
    proxy.settle();
    app.assert_no_connection();
}

#[test]
fn request_without_a_length_has_no_body() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\n\r\n");
    for target in ["/1", "/2"] {
        let (worker, request) = app.request();
        assert_eq!((request.target(), request.text().as_str()), (target, ""));
        worker.reply(target);
        assert_eq!(client.response().text(), target);
    }
}

#[test]
fn responses_without_a_body_have_none() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();

    client.send("HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n");
    app.request().0.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
    assert_eq!(client.response_to_head().get("content-length"), Some("1000"));

    client.send("HEAD /head-of-chunked HTTP/1.1\r\nHost: a\r\n\r\n");
    app.request().0.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.response_to_head().status(), 200);

    client.get("/204");
    app.request().0.send("HTTP/1.1 204 No Content\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.get("content-length")), (204, None));

    client.get("/304");
    app.request()
        .0
        .send("HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"x\"\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.get("etag")), (304, Some("\"x\"")));

    // An app that sends a body all the same: it must not become the next answer.
    for wrong in [
        "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nbody",
    ] {
        client.get("/wrong");
        app.request().0.send(wrong);
        assert!(matches!(client.response().status(), 204 | 304));
    }
    client.get("/next");
    app.request().0.reply("in step");
    assert_eq!(client.response().text(), "in step");
}

#[test]
fn interim_responses_never_replace_the_final_one() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/hints");
    app.request().0.send(
        "HTTP/1.1 100 Continue\r\n\r\n\
         HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfinal",
    );
    let hints = client.head();
    assert_eq!((hints.status(), hints.get("link")), (103, Some("</a.css>; rel=preload")));
    assert_eq!(client.response().text(), "final");

    // An HTTP/1.0 client knows no interim responses.
    let mut client = proxy.connect();
    client.send("GET /hints HTTP/1.0\r\n\r\n");
    app.request()
        .0
        .send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(client.head().status(), 200);
}

#[test]
fn upgrade_that_nobody_asked_for_is_an_invalid_response() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/101");
    app.request()
        .0
        .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n");
    assert_eq!(client.response().status(), 502);
    assert_eq!(proxy.record("/101").get("end"), "invalid_response");
}

#[test]
fn invalid_responses_become_502() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    for invalid in [
        "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: four\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551620\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nX: a\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nX Y: a\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        // A 1xx has no body: what follows it is the next head.
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 4\r\n\r\nabcdHTTP/1.1 200 OK\r\n\r\n",
    ] {
        let mut client = proxy.connect();
        client.send("POST /invalid HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        app.request().0.send(invalid);
        assert_eq!(client.response().status(), 502, "{invalid:?}");
    }
    assert_eq!(proxy.record("/invalid").get("end"), "invalid_response");
    // An error of the app's is an answer, whatever its number.
    for status in ["299", "600", "999"] {
        let mut client = proxy.connect();
        client.get("/odd");
        app.request().0.send(format!("HTTP/1.1 {status} Odd\r\nContent-Length: 3\r\n\r\nodd"));
        assert_eq!(client.response().line(), format!("HTTP/1.1 {status} Odd"));
    }
}

#[test]
fn body_that_is_broken_where_it_begins_becomes_502() {
    // Head and body come together: nothing was sent to the client yet.
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--gzip", "6"]);
    for (i, accepts) in ["", "Accept-Encoding: gzip\r\n"].into_iter().enumerate() {
        let mut client = proxy.connect();
        client.send(format!(
            "POST /broken{i} HTTP/1.1\r\nHost: a\r\n{accepts}Content-Length: 0\r\n\r\n"
        ));
        app.request().0.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n\
             not a size\r\n",
        );
        assert_eq!(client.response().status(), 502, "{accepts:?}");
        assert_eq!(proxy.record(&format!("/broken{i}")).get("end"), "invalid_response");
    }
}

#[test]
fn endless_response_head_becomes_502() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\n");
    worker.send_until_refused(format!("X: {}\r\n", "y".repeat(1000)));
    assert_eq!(client.response().status(), 502);
}

/// A response that ends before its end, and what of its body came.
const CUT: &[(&str, &str)] = &[
    ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "half"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "half"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf", "half"),
    // gunicorn 23 to 26 writes a second response into a body when a worker times out.
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nHTTP/1.1 500 Internal Server Error\r\n\r\n",
        "half",
    ),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n", "half"),
];

#[test]
fn cut_response_never_looks_complete() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    for (i, (response, came)) in CUT.iter().enumerate() {
        let mut client = proxy.connect();
        // No retry and no 502 in the way: the head is at the client before the cut.
        client.send(format!("POST /cut{i} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        let (mut worker, _) = app.request();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        worker.send(format!("{head}\r\n\r\n"));
        proxy.settle();
        worker.send(body);
        drop(worker);
        let cut = client.cut_response();
        assert_eq!(cut.partial.status(), 200, "{response:?}");
        assert!(came.as_bytes().starts_with(&cut.partial.body), "{response:?}: {:?}", cut.partial);
        assert_eq!(proxy.record(&format!("/cut{i}")).get("end"), "truncated", "{response:?}");
    }
}

#[test]
fn large_cut_response_never_looks_complete() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect_slow();
    client.get("/large");
    let (mut worker, _) = app.request();
    worker.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 3_000_000));
    worker.send(pattern(2_000_000));
    drop(worker);
    let cut = client.cut_response();
    assert_eq!(cut.partial.status(), 200);
    assert_eq!(proxy.record("/large").get("end"), "truncated");
}

#[test]
fn reset_of_a_close_delimited_response_is_a_cut() {
    let app = App::tcp();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/reset");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\n\r\nhalf");
    assert_eq!(client.head().status(), 200);
    worker.reset();
    // It has to be chunked to an HTTP/1.1 client, so that the missing end shows.
    client.exact("4\r\nhalf\r\n".len());
    client.wait_closed();
    assert_eq!(proxy.record("/reset").get("end"), "truncated");
}

#[test]
fn close_delimited_response_is_whole_at_its_end() {
    let app = App::answering("HTTP/1.1 200 OK\r\n\r\nall of it");
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    for _ in 0..2 {
        client.get("/");
        assert_eq!(client.response().text(), "all of it");
    }
}

#[test]
fn http_1_0_client_gets_a_content_length() {
    let body = pattern(700_000);
    let mut chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    chunks.extend(chunked(&body, 5000));
    let mut close_delimited = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    close_delimited.extend(&body);
    for response in [chunks, close_delimited] {
        let app = App::answering(response);
        let proxy = Proxy::start(&app, &[]);
        let mut client = proxy.connect();
        client.send("GET / HTTP/1.0\r\n\r\n");
        let response = client.response();
        assert_eq!(response.get("content-length"), Some("700000"));
        assert_eq!(response.get("transfer-encoding"), None);
        assert!(response.body == body, "the body was changed on the way");
        client.wait_closed();
    }
}

#[test]
fn cut_response_for_an_http_1_0_client_becomes_502() {
    // Nothing of it was sent yet, as its length was not known: a clean failure.
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST /cut HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
    app.request().0.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    assert_eq!(client.response().status(), 502);
}

#[test]
fn bytes_after_a_response_reach_nobody() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--upstream-keepalive", "5s"]);
    let mut client = proxy.connect();
    client.get("/");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\noneHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo");
    assert_eq!(client.response().text(), "one");
    // A connection with surplus bytes is not kept for the next request.
    worker.wait_closed();
    client.get("/");
    app.request().0.reply("own answer");
    assert_eq!(client.response().text(), "own answer");
}

#[test]
fn head_that_comes_byte_by_byte_is_the_same_head() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = Client::connect(proxy.addr);
    for byte in b"POST /bytes HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n" {
        client.send([*byte]);
    }
    let (mut worker, request) = app.request();
    assert_eq!((request.line(), request.text().as_str()), ("POST /bytes HTTP/1.1", "abcd"));
    for byte in ok("slowly") {
        worker.send([byte]);
    }
    drop(worker);
    assert_eq!(client.response().text(), "slowly");
}

#[test]
fn half_closed_client_has_left() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    let (worker, _) = app.request();
    client.half_close();
    client.wait_closed();
    assert_eq!(proxy.record("/half").get("end"), "client_gone");
    worker.reply("to nobody");
}

#[test]
fn flood_of_interim_responses_becomes_502() {
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    for (hints, status) in [(16, 200), (17, 502)] {
        let app = App::answering([hint.repeat(hints).into_bytes(), ok("final")].concat());
        let proxy = Proxy::start(&app, &[]);
        let mut client = proxy.connect();
        client.get("/flood");
        for _ in 0..16 {
            assert_eq!(client.head().status(), 103);
        }
        assert_eq!(client.response().status(), status);
    }
}

#[test]
fn max_forwards_zero_does_not_reach_the_app() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    for (method, status) in [("OPTIONS", 200), ("TRACE", 501)] {
        let mut client = proxy.connect();
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"));
        assert_eq!(client.response().status(), status, "{method}");
    }
    app.assert_no_connection();
}

#[test]
fn unknown_coding_is_501() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST /coded HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n");
    assert_eq!(client.response().status(), 501);
    assert_eq!(proxy.record("/coded").get("end"), "unknown_coding");
    app.assert_no_connection();
}
