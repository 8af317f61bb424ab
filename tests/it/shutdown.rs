//! TERM: what was accepted is finished, nothing new is taken, and the exit code says that it went
//! well.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{App, Proxy, ok, pattern};

/// Waits for the line that says that the drain has begun.
fn stopping(proxy: &Proxy) -> String {
    proxy.stderr.wait_for(|line| line.starts_with("bufproxy: stopping ("))
}

#[test]
fn idle_proxy_ends_at_once() {
    let app = App::unix();
    let exit = Proxy::start(&app, &[]).stop();
    assert_eq!(exit.code, 0, "{exit:?}");
    assert!(
        exit.stderr.iter().any(|line| line.starts_with("bufproxy: stopped after ")),
        "{exit:?}"
    );
}

#[test]
fn request_at_the_app_is_finished() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/in-flight");
    let (worker, _) = app.request();
    proxy.signal(Signal::TERM);
    assert!(stopping(&proxy).contains("(TERM): 1 request in flight"));
    worker.reply("done");
    let response = client.response();
    assert_eq!((response.text().as_str(), response.get("connection")), ("done", Some("close")));
    client.wait_closed();
    let exit = proxy.wait();
    assert_eq!(exit.code, 0, "{exit:?}");
    assert!(exit.stdout.iter().any(|line| line.contains("/in-flight")), "{exit:?}");
}

#[test]
fn queued_request_is_finished() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1"]);
    let mut first = proxy.connect();
    first.get("/first");
    let (worker, _) = app.request();
    let mut queued = proxy.connect();
    queued.get("/queued");
    proxy.settle();
    proxy.signal(Signal::TERM);
    stopping(&proxy);
    worker.reply("");
    app.request().0.reply("");
    assert_eq!(first.response().status(), 200);
    assert_eq!(queued.response().status(), 200);
    assert_eq!(proxy.wait().code, 0);
}

#[test]
fn upload_under_way_is_finished() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo");
    proxy.settle();
    proxy.signal(Signal::TERM);
    stopping(&proxy);
    client.send("dy");
    let (worker, request) = app.request();
    assert_eq!(request.text(), "body");
    worker.reply("");
    assert_eq!(client.response().status(), 200);
    assert_eq!(proxy.wait().code, 0);
}

#[test]
fn buffered_response_is_delivered() {
    let body = pattern(3 * 1024 * 1024);
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect_slow();
    client.get("/big");
    let (mut worker, _) = app.request();
    worker.send(ok(&body));
    worker.wait_closed();
    proxy.signal(Signal::TERM);
    let line = stopping(&proxy);
    assert!(line.contains("1 response being delivered"), "{line}");
    drop(app);
    assert!(client.response().body == body, "the body was changed on the way");
    assert_eq!(proxy.wait().code, 0);
}

#[test]
fn new_connections_are_refused_while_it_drains() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/");
    let (worker, _) = app.request();
    proxy.signal(Signal::TERM);
    stopping(&proxy);
    let refused = TcpStream::connect(proxy.addr).map_err(|e| e.kind());
    assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused));
    worker.reply("");
    client.response();
    assert_eq!(proxy.wait().code, 0);
}

#[test]
fn drain_delay_keeps_accepting() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--drain-delay", "1m", "--drain-timeout", "2m"]);
    proxy.signal(Signal::TERM);
    stopping(&proxy);
    let mut client = proxy.connect();
    client.get("/");
    app.request().0.reply("");
    let response = client.response();
    assert_eq!((response.status(), response.get("connection")), (200, Some("close")));
}

#[test]
fn request_on_an_idle_connection_is_still_answered() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--idle-grace", "5s"]);
    let mut idle = proxy.connect();
    idle.get("/1");
    app.request().0.reply("");
    idle.response();
    proxy.signal(Signal::TERM);
    stopping(&proxy);
    idle.get("/2");
    app.request().0.reply("");
    let response = idle.response();
    assert_eq!((response.status(), response.get("connection")), (200, Some("close")));
    idle.wait_closed();
    assert_eq!(proxy.wait().code, 0);
}

#[test]
fn idle_connections_are_closed_last() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--idle-grace", "100ms"]);
    let mut idle = proxy.connect();
    idle.get("/");
    app.request().0.reply("");
    idle.response();
    proxy.signal(Signal::TERM);
    assert_eq!(idle.rest(), b"");
    drop(idle);
    assert_eq!(proxy.wait().code, 0);
}

#[test]
fn deadline_ends_the_drain() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--drain-timeout", "300ms"]);
    let mut client = proxy.connect();
    client.get("/endless");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    client.head();
    let exit = proxy.stop();
    // A drain that was asked for; what was cut is in the summary and in its record.
    assert_eq!(exit.code, 0, "{exit:?}");
    assert!(exit.stderr.iter().any(|line| line.contains("1 cut")), "{exit:?}");
    let records: Vec<_> = exit.stdout.iter().filter(|line| line.contains("/endless")).collect();
    assert_eq!(records.len(), 1, "{exit:?}");
    assert!(records[0].contains(" status_code=200 "), "{exit:?}");
    assert!(records[0].contains(" body_bytes_sent=4 "), "{exit:?}");
    assert!(records[0].ends_with(" end=draining"), "{exit:?}");
    assert_eq!(client.exact(4), b"half");
    client.wait_closed();
}

#[test]
fn deadline_leaves_one_record_of_each_request_whatever_it_waited_for() {
    let app = App::unix();
    let options = ["--drain-timeout", "300ms", "--concurrency", "1", "--threads", "2"];
    let proxy = Proxy::start(&app, &options);
    let mut delivering = proxy.connect_slow();
    delivering.get("/delivering");
    let (mut worker, _) = app.request();
    worker.send(ok(pattern(3 * 1024 * 1024)));
    worker.wait_closed();
    let mut at_the_app = proxy.connect();
    at_the_app.get("/app");
    let (_worker, _) = app.request();
    let mut queued = proxy.connect();
    queued.get("/queued");
    let mut body = proxy.connect();
    body.send("POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    let mut head = proxy.connect();
    head.send("GET /head HTTP/1.1\r\nHo");
    let _idle = proxy.connect();
    proxy.settle();

    let exit = proxy.stop();
    let records: Vec<_> = exit.stdout.iter().filter(|line| !line.contains("\"settle\"")).collect();
    assert_eq!(records.len(), 5, "{records:#?}");
    for (target, status) in
        [("/delivering", 200), ("/app", 499), ("/queued", 499), ("/body", 499), ("/head", 499)]
    {
        let of = |line: &&&String| line.contains(target);
        let record = records.iter().find(of).unwrap_or_else(|| panic!("{target}: {records:#?}"));
        assert!(record.contains(&format!(" status_code={status} ")), "{record}");
        assert!(record.ends_with(" end=draining"), "{record}");
    }
    assert!(exit.stderr.iter().any(|line| line.ends_with("0 refused, 5 cut")), "{exit:?}");
}

#[test]
fn deadline_ends_a_stream_so_that_it_does_not_look_complete() {
    // To an HTTP/1.0 client the end of the connection is the end of the response.
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--drain-timeout", "300ms"]);
    let mut client = proxy.connect();
    client.send("GET /stream HTTP/1.0\r\n\r\n");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
    client.head();
    assert_eq!(client.exact(9), b"data: 1\n\n");
    assert_eq!(proxy.stop().code, 0);
    client.wait_reset();
}

#[test]
fn more_terms_change_nothing() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/");
    let (worker, _) = app.request();
    for _ in 0..3 {
        proxy.signal(Signal::TERM);
        stopping(&proxy);
    }
    worker.reply("done");
    assert_eq!(client.response().text(), "done");
    assert_eq!(proxy.wait().code, 0);
}

#[test]
fn int_drains_and_a_second_int_ends_at_once() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/int");
    let (worker, _) = app.request();
    proxy.signal(Signal::INT);
    assert!(stopping(&proxy).contains("(INT)"));
    worker.assert_open();
    proxy.signal(Signal::INT);
    client.wait_closed();
    let exit = proxy.wait();
    assert_eq!(exit.stdout.iter().filter(|line| line.contains("/int")).count(), 1, "{exit:?}");
}

#[test]
fn requests_for_an_app_that_is_gone_are_answered_503() {
    // On Heroku TERM comes to every process at once: the app's socket is gone first.
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--connect-retry", "300ms"]);
    let mut client = proxy.connect();
    client.send("POST /late HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1");
    proxy.settle();
    drop(app);
    proxy.signal(Signal::TERM);
    stopping(&proxy);
    client.send("2");
    assert_eq!(client.response().status(), 503);
    let exit = proxy.wait();
    assert_eq!(exit.code, 0);
    // Whoever runs an app that is not our child may be starting it again.
    let record = exit.stdout.iter().find(|line| line.contains("/late")).unwrap();
    assert!(record.ends_with(" end=app_starting"), "{record}");
    assert!(exit.stderr.iter().any(|line| line.contains("1 refused")), "{exit:?}");
}

#[test]
fn client_that_was_idle_for_long_is_answered_during_the_grace_and_closed_after_it() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &["--drain-timeout", "20s", "--idle-grace", "2s"]);
    let (mut comes_back, mut stays_away) = (proxy.connect(), proxy.connect());
    for client in [&mut comes_back, &mut stays_away] {
        client.get("/before");
        client.response();
    }
    proxy.wait_parked(2);
    proxy.signal(Signal::TERM);
    stopping(&proxy);
    comes_back.get("/while-stopping");
    let response = comes_back.response();
    assert_eq!((response.status(), response.get("connection")), (200, Some("close")));
    assert_eq!(comes_back.rest(), b"");
    assert_eq!(stays_away.rest(), b"");
    drop((comes_back, stays_away));
    let exit = proxy.wait();
    assert_eq!((exit.code, exit.stdout.len()), (0, 3), "{exit:?}");
}

#[test]
fn refusal_is_readable_though_the_process_ends() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-body", "1k", "--idle-grace", "100ms"]);
    let mut client = proxy.connect();
    client.send("POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n");
    proxy.record("/large");
    proxy.signal(Signal::TERM);
    stopping(&proxy);
    // It sends on, and would be reset together with the answer.
    for _ in 0..20 {
        client.send(vec![b'x'; 10_000]);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(client.response().status(), 413);
    drop(client);
    assert_eq!(proxy.wait().code, 0);
}

#[test]
fn what_is_wrong_with_a_request_is_not_counted_as_refused_for_the_stop() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    proxy.settle();
    proxy.signal(Signal::TERM);
    stopping(&proxy);
    client.send("no size\r\n");
    assert_eq!(client.response().status(), 400);
    drop(client);
    let exit = proxy.wait();
    assert!(exit.stderr.iter().any(|line| line.contains("0 refused, 0 cut")), "{exit:?}");
}

#[test]
fn idle_connections_do_not_stay_for_a_request_that_is_still_at_the_app() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--idle-grace", "100ms", "--drain-timeout", "30s"]);
    let mut idle = proxy.connect();
    idle.get("/");
    app.request().0.reply("");
    idle.response();
    let mut busy = proxy.connect();
    busy.get("/busy");
    let (worker, _) = app.request();
    proxy.signal(Signal::TERM);
    assert_eq!(idle.rest(), b"");
    worker.reply("");
    assert_eq!(busy.response().status(), 200);
    assert_eq!(proxy.wait().code, 0);
}
