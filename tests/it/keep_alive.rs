//! Client connections: kept when both sides may, closed cleanly when not (RFC 9112, 9.3).

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{App, Proxy, ok, pattern, until};

#[test]
fn http_1_1_connection_is_kept() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    for i in 0..5 {
        client.get(&format!("/{i}"));
        let response = client.response();
        assert_eq!(response.text(), "x");
        assert_ne!(response.get("connection"), Some("close"));
    }
    assert_eq!(app.accepted(), 5);
}

#[test]
fn connection_close_is_obeyed() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(client.response().get("connection"), Some("close"));
    client.wait_closed();
}

#[test]
fn nothing_after_connection_close_is_processed() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(
        "GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    client.response();
    client.half_close();
    client.wait_closed();
    assert_eq!(app.targets(), ["/1"]);
}

#[test]
fn http_1_0_connection_is_closed_unless_asked_to_stay() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    client.response();
    client.wait_closed();

    let mut client = proxy.connect();
    for _ in 0..3 {
        client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.response().get("connection"), Some("keep-alive"));
    }
}

#[test]
fn app_that_closes_does_not_close_the_client() {
    let app = App::answering("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx");
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    for _ in 0..3 {
        client.get("/");
        assert_ne!(client.response().get("connection"), Some("close"));
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let app = App::unix();
    app.serve(|conn, request| conn.send(ok(format!("{} {}", request.target(), request.text()))));
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\
         POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\ntwo\
         POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthree\r\n0\r\n\r\n\
         \r\nGET /4 HTTP/1.1\r\nHost: a\r\n\r\n\
         GET /5 HTTP/1.1\r\nHo",
    );
    for expected in ["/1 ", "/2 two", "/3 three", "/4 "] {
        assert_eq!(client.response().text(), expected);
    }
    client.send("st: a\r\n\r\n");
    assert_eq!(client.response().text(), "/5 ");
    assert_eq!(app.most_at_once(), 1, "pipelined requests went to the app together");
}

#[test]
fn more_is_pipelined_than_is_read_ahead() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/first");
    let (worker, _) = app.request();
    let padding = "x".repeat(3000);
    for n in 0..10 {
        client.get(&format!("/{n}?{padding}"));
    }
    proxy.settle();
    worker.reply("first");
    assert_eq!(client.response().text(), "first");
    for n in 0..10 {
        let (worker, request) = app.request();
        assert!(request.target().starts_with(&format!("/{n}?")), "{}", request.target());
        worker.reply(n.to_string());
        assert_eq!(client.response().text(), n.to_string());
    }
}

#[test]
fn pipelined_head_is_followed_by_no_body() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("HEAD /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
    app.request().0.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
    assert_eq!(client.response_to_head().get("content-length"), Some("100"));
    app.request().0.reply("two");
    assert_eq!(client.response().text(), "two");
}

#[test]
fn idle_connection_is_closed_without_a_word() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &["--client-keepalive", "1s"]);
    let mut client = proxy.connect();
    client.get("/");
    client.response();
    assert_eq!(client.rest(), b"");
    drop(client);
    assert_eq!(proxy.stop().stdout.len(), 1);
}

#[test]
fn upstream_connection_is_kept_when_asked() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--upstream-keepalive", "10s", "--concurrency", "1"]);
    let mut client = proxy.connect();
    client.get("/1");
    let (mut worker, request) = app.request();
    assert_ne!(request.get("connection"), Some("close"));
    worker.send(ok("one"));
    assert_eq!(client.response().text(), "one");

    client.get("/2");
    assert_eq!(worker.request().target(), "/2");
    worker.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\ntwo");
    assert_eq!(client.response().text(), "two");
    worker.wait_closed();

    // A kept connection that the app closes while it is idle is no error of the next request.
    client.get("/3");
    let (mut worker, _) = app.request();
    worker.send(ok("three"));
    assert_eq!(client.response().text(), "three");
    drop(worker);
    client.send("POST /4 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
    app.request().0.reply("four");
    assert_eq!(client.response().text(), "four");
}

#[test]
fn answer_is_read_whole_though_more_was_sent_behind_its_request() {
    // A close with bytes unread would be a reset that takes the end of the answer with it.
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-body", "1k"]);
    let body = pattern(300_000);
    let mut client = proxy.connect_slow();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let (mut worker, _) = app.request();
    worker.send(ok(&body));
    worker.wait_closed();
    client.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.response().body == body, "the body was changed on the way");

    // Answered here, and its body is not read.
    let mut client = proxy.connect();
    client.send("OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\nContent-Length: 99\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    client.send([b'x'; 99]);
    assert_eq!(client.rest(), b"");
}

#[test]
fn upstream_connection_with_an_unread_body_on_it_is_not_kept() {
    // The next request would be read together with what is left of this one: that no byte of an
    // answer came would prove nothing of it any more.
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--upstream-keepalive", "10s", "--concurrency", "1"]);
    let mut client = proxy.connect();
    client.send("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n");
    client.send(pattern(50_000));
    let mut worker = app.accept();
    assert!(!worker.read_some(8192).is_empty());
    proxy.settle();
    worker.send(ok("not read"));
    assert_eq!(client.response().text(), "not read");
    client.get("/2");
    let (worker, request) = app.request();
    assert_eq!(request.target(), "/2");
    worker.reply("");
    client.response();
}

#[test]
fn post_over_tcp_does_not_go_to_a_connection_that_may_be_closing() {
    // Nothing would prove that no worker has read it, and so it could not be sent again.
    let app = App::tcp();
    let proxy = Proxy::start(&app, &["--upstream-keepalive", "10s", "--concurrency", "1"]);
    let mut client = proxy.connect();
    client.get("/1");
    let (mut kept, _) = app.request();
    kept.send(ok("one"));
    client.response();
    client.send("POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
    let (mut worker, request) = app.request();
    assert_eq!(request.target(), "/2");
    // Not more connections than slots.
    kept.wait_closed();
    worker.send(ok("two"));
    assert_eq!(client.response().text(), "two");
    client.get("/3");
    assert_eq!(worker.request().target(), "/3");
}

#[test]
fn upstream_connection_with_more_on_it_than_an_answer_is_not_used_again() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--upstream-keepalive", "10s", "--concurrency", "1"]);
    let mut client = proxy.connect();
    for (with_it, behind) in [(ok("of nobody"), Vec::new()), (Vec::new(), ok("of nobody"))] {
        client.get("/1");
        let (mut worker, _) = app.request();
        worker.send([ok("one"), with_it].concat());
        assert_eq!(client.response().text(), "one");
        worker.send(behind);
        client.get("/2");
        let (next, request) = app.request();
        assert_eq!(request.target(), "/2");
        next.reply("two");
        assert_eq!(client.response().text(), "two");
    }
}

#[test]
fn upstream_connection_that_was_idle_for_too_long_is_not_used_again() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--upstream-keepalive", "1ms", "--concurrency", "1"]);
    let mut client = proxy.connect();
    client.get("/1");
    let (mut worker, _) = app.request();
    worker.send(ok("one"));
    assert_eq!(client.response().text(), "one");
    std::thread::sleep(Duration::from_millis(2));
    client.get("/2");
    app.request().0.reply("two");
    assert_eq!(client.response().text(), "two");
}

#[test]
fn upstream_connection_that_one_loop_kept_serves_another() {
    let app = App::unix();
    let options = ["--upstream-keepalive", "10s", "--concurrency", "1", "--threads", "2"];
    let proxy = Proxy::start(&app, &options);
    let mut clients = [proxy.connect(), proxy.connect(), proxy.connect(), proxy.connect()];
    let mut worker = None;
    for i in 0..20 {
        let client = &mut clients[i % 4];
        client.get(&format!("/{i}"));
        let worker = worker.get_or_insert_with(|| app.accept());
        assert_eq!(worker.request().target(), format!("/{i}"));
        worker.send(ok(i.to_string()));
        assert_eq!(client.response().text(), i.to_string());
    }
}

#[test]
fn client_that_was_idle_for_long_is_served_as_before() {
    let app = App::answering(ok("x"));
    let format =
        "$request connection=$connection requests=$connection_requests peer=$realip_remote_addr";
    let proxy = Proxy::start(&app, &["--log-format", format]);
    let mut clients = [proxy.connect(), proxy.connect(), proxy.connect()];
    clients[0].get("/1");
    clients[0].response();
    proxy.wait_parked(3);
    for client in &mut clients {
        client.get("/2");
        assert_eq!(client.response().text(), "x");
    }
    assert_eq!(proxy.parked(), 0);
    let (first, second) = (proxy.record("/1"), proxy.record("/2"));
    assert_eq!(first.get("connection"), second.get("connection"));
    assert_eq!((first.get("requests"), second.get("requests")), ("1", "2"));
    assert_eq!(second.get("peer"), "127.0.0.1");
    assert_ne!(first.get("connection"), proxy.nth_record(2, "/2").get("connection"));
}

#[test]
fn client_that_leaves_after_long_idleness_leaves_nothing_behind() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &[]);
    let sockets = || proxy.loops().iter().map(|of_loop| of_loop.sockets).sum::<usize>();
    let before = sockets();
    let mut clients: Vec<_> = (0..4).map(|_| proxy.connect()).collect();
    for client in &mut clients[..2] {
        client.get("/");
        client.response();
    }
    proxy.wait_parked(4);
    assert_eq!(sockets(), before + 4);
    clients.pop().unwrap().reset();
    clients.remove(0).reset();
    drop(clients);
    until(|| sockets() == before);
    assert_eq!(proxy.stop().stdout.len(), 2);
}

#[test]
fn thousand_idle_clients_hold_less_than_half_a_megabyte() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &[]);
    let memory = || proxy.status_field("RssAnon").parse::<usize>().unwrap();
    let together = |n: usize| -> Vec<_> {
        let mut clients: Vec<_> = (0..n).map(|_| proxy.connect()).collect();
        clients.iter_mut().for_each(|client| client.get("/"));
        clients.iter_mut().for_each(|client| drop(client.response()));
        clients
    };
    // What the first requests allocate for all that come.
    drop(together(100));
    until(|| proxy.loops().iter().all(|of_loop| of_loop.sockets < 10));
    let before = memory();
    let clients = together(1000);
    proxy.wait_parked(1000);
    until(|| memory() < before + 512);
    drop(clients);
}

#[test]
fn idle_connection_has_its_whole_time_and_no_more() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &["--client-keepalive", "4s"]);
    let mut client = proxy.connect();
    let mut since = Instant::now();
    for _ in 0..2 {
        since = Instant::now();
        client.get("/");
        client.response();
        proxy.wait_parked(1);
    }
    assert_eq!(client.rest(), b"");
    // Kept to 100 ms.
    assert!(since.elapsed() >= Duration::from_millis(3900), "it was cut short");
    drop(client);
    assert_eq!(proxy.stop().stdout.len(), 2);
}

#[test]
fn connections_that_come_together_are_spread_over_the_loops() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &["--threads", "3"]);
    proxy.settle();
    let before = proxy.loops();
    proxy.signal(Signal::STOP);
    let mut clients: Vec<_> = (0..30).map(|_| proxy.connect()).collect();
    proxy.signal(Signal::CONT);
    for client in &mut clients {
        client.get("/");
        client.response();
    }
    let after = proxy.loops();
    assert!(before.len() == 3 && after.len() == 3, "{before:?} {after:?}");
    for (before, after) in before.iter().zip(&after) {
        let more = after.sockets - before.sockets;
        assert!((9..=11).contains(&more), "{before:?} {after:?}");
    }
}

#[test]
fn empty_lines_behind_a_body_are_no_request() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &["--header-timeout", "200ms"]);
    let post = "POST /post HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
    let (mut with, mut behind, mut late) = (proxy.connect(), proxy.connect(), proxy.connect());
    with.send(format!("{post}\r\n\r\n"));
    behind.send(post);
    for client in [&mut with, &mut behind] {
        assert_eq!(client.response().text(), "x");
    }
    behind.send("\r\n");
    late.send("\r\n\r\n");
    // When this one is told that its head is late, theirs would be, too.
    let mut clock = proxy.connect();
    clock.send("\r\nG");
    assert_eq!(clock.response().status(), 408);
    for client in [&mut with, &mut behind, &mut late] {
        client.get("/get");
        assert_eq!(client.response().text(), "x");
    }
    drop((with, behind, late));
    let mut records = proxy.stop().stdout;
    records.retain(|line| !line.contains("status_code=200"));
    assert_eq!(records.len(), 1, "{records:#?}");
}
