//! `Expect: 100-continue` (RFC 9110, 10.1.1): answered here, after the limits, before the body.

use crate::support::{App, Proxy};

const WAITS: &str =
    "POST /upload HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";

#[test]
fn waiting_client_is_told_to_go_on() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(WAITS);
    assert_eq!(client.head().line(), "HTTP/1.1 100 Continue");
    app.assert_no_connection();
    client.send("body");
    let (worker, request) = app.request();
    assert_eq!((request.text().as_str(), request.get("expect")), ("body", None));
    worker.reply("");
    assert_eq!(client.head().status(), 200);
}

#[test]
fn body_that_is_too_large_is_refused_instead() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-body", "3"]);
    let mut client = proxy.connect();
    client.send(WAITS);
    assert_eq!(client.head().status(), 413);
}

#[test]
fn client_that_did_not_wait_is_not_told() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(format!("{WAITS}body"));
    app.request().0.reply("");
    assert_eq!(client.head().status(), 200);
}

#[test]
fn http_1_0_client_is_not_told() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    proxy.settle();
    client.assert_silent();
    client.send("body");
    app.request().0.reply("");
    assert_eq!(client.head().status(), 200);
}

#[test]
fn chunked_upload_is_told_to_go_on() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(
        "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    assert_eq!(client.head().status(), 100);
    client.send("4\r\nbody\r\n0\r\n\r\n");
    let (worker, request) = app.request();
    assert_eq!(request.text(), "body");
    worker.reply("");
    assert_eq!(client.head().status(), 200);
}
