//! Invariant 2: a slot is held until the worker is done, whatever became of the client.

use std::io::ErrorKind;

use rustix::process::Signal;

use crate::support::{App, Client, Proxy, ok, pattern};

/// One slot, and a second request behind it that shows when the slot is free.
fn one_slot() -> (App, Proxy) {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1"]);
    (app, proxy)
}

/// Queues a request that takes the next free slot.
fn next_in_line(proxy: &Proxy) -> Client {
    let mut client = proxy.connect();
    client.get("/next");
    proxy.settle();
    client
}

#[test]
fn client_that_left_does_not_free_the_slot_of_a_working_app() {
    let (app, proxy) = one_slot();
    let mut client = proxy.connect();
    client.get("/gone");
    let (mut worker, _) = app.request();
    drop(client);

    // The record is written now, with what is known now.
    let record = proxy.record("/gone");
    assert_eq!((record.get("status_code"), record.get("end")), ("499", "client_gone"));

    // The worker still works: closing its connection would not have stopped it.
    let mut next = next_in_line(&proxy);
    app.assert_no_connection();
    worker.assert_open();

    // It is read to its end, and only then the next one goes.
    worker.try_send(ok(pattern(500_000))).expect("read to the end though nobody wants it");
    worker.wait_closed();
    app.request().0.reply("");
    assert_eq!(next.response().status(), 200);
}

#[test]
fn client_that_left_a_small_response_lets_the_worker_finish() {
    let (app, proxy) = one_slot();
    let mut client = proxy.connect();
    client.get("/gone");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n");
    client.head();
    drop(client);
    assert_eq!(proxy.record("/gone").get("end"), "client_gone");

    let mut next = next_in_line(&proxy);
    app.assert_no_connection();
    worker.try_send(pattern(900_000)).expect("read to its end");
    worker.wait_closed();
    app.request().0.reply("");
    next.response();
}

#[test]
fn client_that_left_a_large_response_ends_the_worker_at_its_next_write() {
    let (app, proxy) = one_slot();
    let mut client = proxy.connect();
    client.get("/gone");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    worker.try_send(pattern(2 * 1024 * 1024)).unwrap();
    client.exact(1024 * 1024 + 1);
    drop(client);
    assert_eq!(proxy.record("/gone").get("end"), "client_gone");

    // shutdown(SHUT_RD): the write fails, the connection is not closed before the worker is.
    let mut next = next_in_line(&proxy);
    assert_eq!(worker.send_until_refused(pattern(64 * 1024)), ErrorKind::BrokenPipe);
    app.assert_no_connection();
    drop(worker);
    app.request().0.reply("");
    next.response();
}

#[test]
fn client_that_left_a_stream_ends_the_worker_at_its_next_write() {
    let (app, proxy) = one_slot();
    let mut client = proxy.connect();
    client.get("/events");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
    client.head();
    drop(client);
    assert_eq!(proxy.record("/events").get("end"), "client_gone");

    assert_eq!(worker.send_until_refused("data: 2\n\n"), ErrorKind::BrokenPipe);
    let mut next = next_in_line(&proxy);
    app.assert_no_connection();
    drop(worker);
    app.request().0.reply("");
    next.response();
}

#[test]
fn slot_of_a_failed_attempt_is_free_again() {
    let (app, proxy) = one_slot();
    for _ in 0..3 {
        let mut client = proxy.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
        drop(app.request());
        assert_eq!(client.response().status(), 502);
    }
    let mut client = proxy.connect();
    client.get("/");
    app.request().0.reply("fine");
    assert_eq!(client.response().text(), "fine");
}

#[test]
fn slow_clients_beyond_the_slots_are_all_served() {
    let body = pattern(1024 * 1024);
    let app = App::answering(ok(&body));
    let proxy = Proxy::start(&app, &["--concurrency", "2"]);
    let mut slow: Vec<_> = (0..20).map(|_| proxy.connect_slow()).collect();
    for client in &mut slow {
        client.get("/slow");
    }
    // None of them has read a byte, and one more is served.
    let mut fast = proxy.connect();
    fast.get("/fast");
    assert!(fast.response().body == body);
    for client in &mut slow {
        assert!(client.response().body == body);
    }
    assert!(app.most_at_once() <= 2);
}

#[test]
fn client_that_left_at_an_early_hint_does_not_free_the_slot() {
    let (app, proxy) = one_slot();
    let mut client = proxy.connect();
    client.get("/hinted");
    let (mut worker, _) = app.request();
    // Both are there when the proxy looks again: the hint cannot be passed on.
    proxy.signal(Signal::STOP);
    client.reset();
    worker.send("HTTP/1.1 103 Early Hints\r\n\r\n");
    proxy.signal(Signal::CONT);
    assert_eq!(proxy.record("/hinted").get("end"), "client_gone");

    let mut next = next_in_line(&proxy);
    app.assert_no_connection();
    worker.assert_open();
    worker.reply("");
    app.request().0.reply("");
    assert_eq!(next.response().status(), 200);
}
