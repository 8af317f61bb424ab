//! Upgraded connections: nothing goes through that the app has not agreed to, then everything does.

use crate::support::{App, AppConn, Client, Proxy, pattern};

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
    worker.send(
        "HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nConnection: Upgrade\r\n\
         Content-Length: 2\r\n\r\nno",
    );
    worker.wait_closed();
    let refusal = client.response();
    assert_eq!((refusal.text().as_str(), refusal.get("upgrade")), ("no", Some("other")));
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

#[test]
fn app_switches_only_to_what_was_offered() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    for chosen in ["Upgrade: other\r\n", "Upgrade: websocket, other\r\n", "Upgrade:\r\n", ""] {
        let mut client = proxy.connect();
        client.send(OFFER);
        app.request().0.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\n{chosen}Connection: Upgrade\r\n\r\n"
        ));
        assert_eq!(client.response().status(), 502, "{chosen:?}");
        assert_eq!(proxy.record("/chat").get("end"), "invalid_response", "{chosen:?}");
    }
}

const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                      Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A tunnel: client and app that have agreed.
fn agreed(app: &App, proxy: &Proxy) -> (Client, AppConn) {
    let mut client = proxy.connect();
    client.send(OFFER);
    let (mut worker, request) = app.request();
    assert_eq!(request.get("upgrade"), Some("websocket"));
    assert_eq!(request.get("connection"), Some("upgrade"));
    worker.send(AGREED);
    let response = client.head();
    assert_eq!(response.status(), 101);
    assert_eq!(response.get("upgrade"), Some("websocket"));
    assert_eq!(response.get("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    (client, worker)
}

#[test]
fn tunnel_carries_bytes_both_ways_and_the_record_counts_them() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1"]);
    let (mut client, mut worker) = agreed(&app, &proxy);
    client.send("ping");
    assert_eq!(worker.read_some(4), b"ping");
    worker.send("pong!");
    assert_eq!(client.exact(5), b"pong!");
    drop(client);
    worker.wait_closed();
    let record = proxy.record("/chat");
    assert_eq!((record.get("status_code"), record.get("end")), ("101", "ok"));
    assert_eq!((record.get("tunnel"), record.get("body_bytes_sent")), ("1", "5"));
    assert_eq!(record.get("received"), (OFFER.len() + 4).to_string());
}

#[test]
fn what_came_with_the_101_and_with_the_offer_goes_through() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(format!("{OFFER}early"));
    let (mut worker, _) = app.request();
    worker.send(format!("{AGREED}first"));
    client.head();
    assert_eq!(client.exact(5), b"first");
    assert_eq!(worker.read_some(5), b"early");
}

#[test]
fn end_of_the_app_ends_the_tunnel_after_what_it_sent() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let (mut client, mut worker) = agreed(&app, &proxy);
    let last = pattern(1_000_000);
    let sent = last.clone();
    let writer = std::thread::spawn(move || worker.send(sent));
    assert!(client.rest() == last, "not all of it came");
    writer.join().unwrap();
}

#[test]
fn last_words_of_an_app_that_does_not_listen_are_heard() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let (mut client, mut worker) = agreed(&app, &proxy);
    // More than goes into the app's socket, so that some of it waits here; not more than all on the way
    // take, or this would wait, too.
    client.send(pattern(300_000));
    proxy.settle();
    let last = pattern(500_000);
    let sent = last.clone();
    let writer = std::thread::spawn(move || worker.send(sent));
    assert!(client.rest() == last, "not all of it came");
    writer.join().unwrap();
    assert_eq!(proxy.record("/chat").get("end"), "ok");
}

#[test]
fn client_that_still_sends_when_the_app_has_ended_reads_its_last_words() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect_slow();
    client.send(OFFER);
    let (mut worker, _) = app.request();
    worker.send(AGREED);
    assert_eq!(client.head().status(), 101);
    // More than the client takes, not more than the kernel does.
    let last = pattern(50_000);
    worker.send(&last);
    drop(worker);
    // Nothing of the client's is unread when the tunnel ends.
    assert_eq!(proxy.record("/chat").get("end"), "ok");
    proxy.settle();
    client.send("too late");
    proxy.settle();
    assert!(client.rest() == last, "not all of it came");
}

#[test]
fn slow_side_paces_the_other() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect_slow();
    client.send(OFFER);
    let (mut worker, _) = app.request();
    worker.send(AGREED);
    worker.set_write_timeout(std::time::Duration::from_millis(300));
    let refused = worker.send_until_refused(pattern(64 * 1024 * 1024));
    assert_eq!(
        refused,
        std::io::ErrorKind::WouldBlock,
        "64 MB went into a client that reads nothing"
    );
    client.head();
}

#[test]
fn idle_tunnel_is_closed() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--tunnel-idle-timeout", "200ms"]);
    let (mut client, mut worker) = agreed(&app, &proxy);
    client.wait_closed();
    worker.wait_closed();
    assert_eq!(proxy.record("/chat").get("end"), "app_idle_timeout");
}

#[test]
fn tunnels_have_a_limit() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-tunnels", "1"]);
    let _open = agreed(&app, &proxy);
    let mut client = proxy.connect();
    client.send(OFFER);
    assert_eq!(client.response().status(), 503);
    assert_eq!(proxy.nth_record(1, "status_code=503").get("end"), "too_many_connections");
}

#[test]
fn stop_lets_the_app_say_goodbye() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--drain-timeout", "300ms", "--idle-grace", "off"]);
    let (mut client, mut worker) = agreed(&app, &proxy);
    worker.send("hello");
    assert_eq!(client.exact(5), b"hello");
    proxy.signal(rustix::process::Signal::TERM);
    // It is cut at the deadline, not before, and recorded.
    client.wait_closed();
    let exit = proxy.wait();
    assert_eq!(exit.code, 0);
    let record = exit.stdout.iter().find(|line| line.contains("/chat")).unwrap();
    assert!(record.contains("tunnel=1") && record.contains("body_bytes_sent=5 "), "{record}");
}

#[test]
fn upgrades_that_are_under_way_together_do_not_pass_the_limit() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-tunnels", "1"]);
    let mut one = proxy.connect();
    one.send(OFFER);
    let (worker, _) = app.request();
    let mut two = proxy.connect();
    two.send(OFFER);
    assert_eq!(two.response().status(), 503);
    app.assert_no_connection();
    // One that the app refuses gives its place back.
    worker.reply("no");
    assert_eq!(one.response().text(), "no");
    let (_client, _worker) = agreed(&app, &proxy);
}
