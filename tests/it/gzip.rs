//! Responses are compressed for those who ask, as nginx does it, and stay whole.

use std::io::Read;

use flate2::read::GzDecoder;

use crate::support::{App, Client, Proxy, pattern};

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

/// Asks for gzip.
fn get(client: &mut Client, target: &str) {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip, br\r\n\r\n"));
}

fn html(more: &str, body: &[u8]) -> Vec<u8> {
    let mut response = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n{more}\r\n",
        body.len()
    )
    .into_bytes();
    response.extend_from_slice(body);
    response
}

#[test]
fn whole_body_has_its_exact_length() {
    let body = pattern(5000);
    let app = App::answering(html("ETag: \"a\"\r\nAccept-Ranges: bytes\r\n", &body));
    let proxy = Proxy::start(&app, &["--gzip", "2"]);
    let mut client = proxy.connect();
    get(&mut client, "/");
    let response = client.response();
    assert_eq!(response.get("content-encoding"), Some("gzip"));
    assert_eq!(response.get("vary"), Some("Accept-Encoding"));
    assert_eq!(response.get("etag"), Some("W/\"a\""));
    assert_eq!(response.get("accept-ranges"), None);
    assert_eq!(response.get("transfer-encoding"), None);
    assert_eq!(response.get("content-length"), Some(&*response.body.len().to_string()));
    assert!(unpacked(&response.body) == body, "changed on the way");
    assert_eq!(proxy.record("GET / ").get("body_bytes_sent"), response.body.len().to_string());
}

#[test]
fn client_that_does_not_ask_is_told_that_others_get_something_else() {
    let body = pattern(5000);
    let app = App::answering(html("", &body));
    let proxy = Proxy::start(&app, &["--gzip", "2"]);
    let mut client = proxy.connect();
    client.get("/");
    let response = client.response();
    assert_eq!(response.get("content-encoding"), None);
    assert_eq!(response.get("vary"), Some("Accept-Encoding"));
    assert!(response.body == body);
}

#[test]
fn head_is_told_what_get_would_be() {
    let app = App::answering(html("ETag: \"a\"\r\n", &pattern(5000)));
    let proxy = Proxy::start(&app, &["--gzip", "2"]);
    let mut client = proxy.connect();
    let request = |accepts| format!("HEAD / HTTP/1.1\r\nHost: a\r\n{accepts}\r\n");
    client.send(request("Accept-Encoding: gzip\r\n"));
    let response = client.response_to_head();
    assert_eq!(response.get("content-encoding"), Some("gzip"));
    assert_eq!(
        (response.get("etag"), response.get("vary")),
        (Some("W/\"a\""), Some("Accept-Encoding"))
    );
    // Its length is known to nobody.
    assert_eq!((response.get("content-length"), response.get("transfer-encoding")), (None, None));
    client.send(request(""));
    let response = client.response_to_head();
    assert_eq!(
        (response.get("content-encoding"), response.get("content-length")),
        (None, Some("5000"))
    );
}

#[test]
fn not_modified_is_said_of_what_the_client_has() {
    let app =
        App::answering("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 5000\r\n\r\n");
    let proxy = Proxy::start(&app, &["--gzip", "2"]);
    let mut client = proxy.connect();
    for (known, etag, length, vary) in [
        ("\"b\", W/\"a\"", "W/\"a\"", None, Some("Accept-Encoding")),
        ("\"a\"", "\"a\"", Some("5000"), None),
    ] {
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: {known}\r\n\r\n"));
        let response = client.response();
        assert_eq!((response.status(), response.get("etag")), (304, Some(etag)));
        assert_eq!((response.get("content-length"), response.get("vary")), (length, vary));
        assert_eq!(response.get("content-encoding"), None);
    }
}

#[test]
fn large_body_comes_in_chunks_and_whole() {
    let body = pattern(3_000_000);
    let app = App::answering(html("Vary: Cookie, Accept-Encoding\r\n", &body));
    let proxy = Proxy::start(&app, &["--gzip", "1"]);
    let mut client = proxy.connect();
    for _ in 0..2 {
        get(&mut client, "/");
        let response = client.response();
        assert_eq!(response.get("transfer-encoding"), Some("chunked"));
        assert_eq!(response.get("content-length"), None);
        assert_eq!(response.get("vary"), Some("Cookie, Accept-Encoding"));
        assert!(unpacked(&response.body) == body, "changed on the way");
    }
}

#[test]
fn event_is_readable_before_the_next_one() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--gzip", "6"]);
    let mut client = proxy.connect();
    get(&mut client, "/events");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
    client.head();
    let mut packed = Vec::new();
    let mut plain = [0; 9];
    // The first event is complete before the app has said anything more.
    while GzDecoder::new(&packed[..]).read_exact(&mut plain).is_err() {
        packed.extend(client.chunk());
    }
    assert_eq!(&plain, b"data: 1\n\n");
}

#[test]
fn cut_response_does_not_look_complete() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--gzip", "6"]);
    let mut client = proxy.connect();
    get(&mut client, "/");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 100000\r\n\r\n");
    worker.send(pattern(50_000));
    drop(worker);
    client.cut_response();
    assert_eq!(proxy.record("GET / ").get("end"), "truncated");
}

#[test]
fn images_parts_and_what_has_a_digest_go_as_they_are() {
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 2000\r\n\r\n",
        "HTTP/1.1 206 OK\r\nContent-Type: text/html\r\nContent-Length: 2000\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Digest: sha-256=:YQ==:\r\nContent-Length: 2000\r\n\r\n",
    ] {
        let app = App::answering([response.as_bytes(), &pattern(2000)].concat());
        let proxy = Proxy::start(&app, &["--gzip", "2"]);
        let mut client = proxy.connect();
        get(&mut client, "/");
        let message = client.response();
        assert_eq!((message.get("content-encoding"), message.get("vary")), (None, None));
        assert!(message.body == pattern(2000));
    }
}

#[test]
fn what_does_not_get_smaller_is_whole_for_a_slow_reader_too() {
    // The compressor gives more at once than it was given.
    let body: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(3 * 1024 * 1024).collect();
    let app = App::answering(html("", &body));
    let proxy = Proxy::start(&app, &["--gzip", "6"]);
    let mut client = proxy.connect_slow();
    get(&mut client, "/");
    assert!(unpacked(&client.response().body) == body, "changed on the way");
}

#[test]
fn higher_level_makes_fewer_bytes() {
    let words = |i: u32| format!("{} slow clients, {} workers; ", i * 7919 % 1009, i % 17);
    let body: String = (0..3000).map(words).collect();
    let app = App::answering(html("", body.as_bytes()));
    let [fast, small] = ["1", "9"].map(|level| {
        let proxy = Proxy::start(&app, &["--gzip", level]);
        let mut client = proxy.connect();
        get(&mut client, "/");
        let packed = client.response().body;
        assert!(unpacked(&packed) == body.as_bytes(), "changed on the way");
        packed.len()
    });
    assert!(small < fast, "{small} bytes at level 9, {fast} at level 1");
}
