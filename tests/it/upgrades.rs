//! Offers of an upgrade: nothing goes through that the app has not agreed to.

use crate::support::{App, Proxy};

const OFFER: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn nothing_goes_through_before_the_101() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(format!("{OFFER}GET /early HTTP/1.1\r\nHost: a\r\n\r\n"));
    let (mut worker, _) = app.request();
    proxy.settle();
    worker.assert_open();
    worker.send("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno");
    worker.wait_closed();
    assert_eq!(client.response().text(), "no");
    // The connection stays HTTP: what followed was the next request.
    let (worker, request) = app.request();
    assert_eq!(request.target(), "/early");
    worker.reply("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn upgrades_that_cannot_be_are_plain_requests() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    for offer in [
        "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    ] {
        let mut client = proxy.connect();
        client.send(offer);
        let (worker, request) = app.request();
        assert_eq!(request.get("upgrade"), None, "{offer:?}");
        worker.reply("plain");
        assert_eq!(client.response().text(), "plain");
    }
}
