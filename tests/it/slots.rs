//! Invariant 2: a slot is held until the worker is done, whatever became of the client.

use std::io::ErrorKind;
use std::thread;

use rustix::process::Signal;

use crate::support::{
    App, AppConn, Client, Message, Proxy, chunked, ok, pattern, unix_path, until,
};

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

    // Long before it has said so much that nobody would want it.
    until(|| worker.try_send("data: 2\n\n").is_err());
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

#[test]
fn worker_whose_answer_breaks_the_rules_keeps_its_slot() {
    let (app, proxy) = one_slot();
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (path, answer) in [
        ("/no-http", "Traceback (most recent call last)\r\n"),
        ("/bad-chunk", &format!("{chunked}4\r\nfine\r\nnot a size\r\n")),
    ] {
        let mut client = proxy.connect();
        client.get(path);
        let (mut worker, _) = app.request();
        worker.send(answer);
        let record = proxy.record(path);
        assert_ne!(record.get("end"), "ok");

        // It may work on, whatever we think of it.
        let mut next = next_in_line(&proxy);
        app.assert_no_connection();
        assert_eq!(worker.send_until_refused("more"), ErrorKind::BrokenPipe);
        drop(worker);
        app.request().0.reply("");
        assert_eq!(next.response().status(), 200);
    }
}

/// A POST that is longer than what goes out before a worker reads.
fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

#[test]
fn request_that_was_begun_is_sent_whole_whatever_becomes_of_the_client() {
    // gunicorn would run the app on the part that came, as if it were all.
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1", "--app-timeout", "500ms"]);
    let body = pattern(3 * 1024 * 1024);

    let mut client = proxy.connect();
    client.send(post("/504", &body));
    let mut worker = app.accept();
    assert_eq!(client.response().status(), 504);
    assert!(worker.request().body == body, "the body was changed on the way");
    worker.reply("");

    let mut client = proxy.connect();
    client.send(post("/left", &body));
    let mut worker = app.accept();
    drop(client);
    assert_eq!(proxy.record("/left").get("end"), "client_gone");
    assert!(worker.request().body == body, "the body was changed on the way");
    worker.reply("");

    let mut client = proxy.connect();
    client.send(post("/left-later", &body));
    let mut worker = app.accept();
    worker.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
    client.head();
    drop(client);
    assert_eq!(proxy.record("/left-later").get("end"), "client_gone");
    assert!(worker.request().body == body, "the body was changed on the way");
    worker.send("done");
    worker.wait_closed();

    // A stream, which is not read any more.
    let mut client = proxy.connect();
    client.send(post("/left-stream", &body));
    let mut worker = app.accept();
    worker.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
    client.head();
    drop(client);
    assert_eq!(proxy.record("/left-stream").get("end"), "client_gone");
    assert!(worker.request().body == body, "the body was changed on the way");
    let mut next = next_in_line(&proxy);
    app.assert_no_connection();
    drop(worker);
    app.request().0.reply("");
    next.response();
}

#[test]
fn no_slot_is_lost_however_exchanges_end() {
    let app = App::unix();
    app.serve(any_answer);
    let dir = tempfile::tempdir().unwrap();
    let admin = format!("unix:{}", unix_path(&dir).display());
    let proxy = Proxy::start(&app, &["--concurrency", "3", "--admin", &admin]);
    let addr = proxy.addr;
    thread::scope(|scope| {
        for seed in 0..12 {
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..40 {
                    any_client(Client::connect(addr), &mut random);
                }
            });
        }
    });
    assert!(app.most_at_once() <= 3, "{} at once", app.most_at_once());

    // All three slots are free: three requests are at the app together.
    let mut clients: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.get("/meet");
    }
    for client in &mut clients {
        assert_eq!(client.response().text(), "met");
    }
    // And nothing is left of the others.
    let mut admin = Client::unix(&unix_path(&dir));
    until(|| {
        admin.get("/status");
        let status: serde_json::Value = serde_json::from_slice(&admin.response().body).unwrap();
        ["/in_flight", "/queued", "/receiving", "/delivering", "/spooled/memory", "/spooled/disk"]
            .iter()
            .all(|count| status.pointer(count).unwrap() == 0)
    });
}

/// Answers in one of the ways that an app has, good and bad.
fn any_answer(conn: &mut AppConn, request: Message) {
    static MEETING: std::sync::Barrier = std::sync::Barrier::new(3);
    match request.target() {
        "/meet" => {
            MEETING.wait();
            conn.send(ok("met"));
        }
        "/0" => conn.send(ok("small")),
        "/1" => conn.send(ok(pattern(2_000_000))),
        "/2" => {
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            conn.send(chunked(&pattern(300_000), 10_000));
        }
        "/3" => conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ncut"),
        "/4" => conn.send("no HTTP at all\r\n\r\n"),
        "/5" => conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"),
        _ => {}
    }
}

/// Sends one request and leaves at a moment of chance, politely or not.
fn any_client(mut client: Client, random: &mut fastrand::Rng) {
    let target = random.u8(0..7);
    let body = vec![b'x'; random.usize(0..100_000)];
    let head = format!(
        "PUT /{target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), &body].concat();
    // A third of the requests are cut; most of the others wait for something of their answer.
    let whole = random.u8(0..3) > 0;
    let sent = if whole { request.len() } else { random.usize(1..request.len()) };
    let _ = client.try_send(&request[..sent]);
    if whole && random.u8(0..3) > 0 {
        client.read_some(random.usize(1..500_000));
    }
    if random.bool() {
        client.reset();
    }
}

#[test]
fn early_hints_do_not_tie_a_worker_to_a_client_that_does_not_read() {
    const ANSWERS: usize = 20;
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n".as_bytes();
    let app = App::answering([hint, &ok(pattern(30_000))].concat());
    let dir = tempfile::tempdir().unwrap();
    let path = unix_path(&dir);
    let listen = format!("unix:{}", path.display());
    let proxy = Proxy::start(&app, &["--concurrency", "1", "--listen", &listen]);
    // A Unix socket takes an answer whole or, when it is full, not a byte: the hint is what waits.
    let mut slow = Client::unix(&path);
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n".repeat(ANSWERS));
    // They have their turns one after the other, so the slow one is stuck before the end of this.
    let mut other = proxy.connect();
    for _ in 0..ANSWERS {
        other.get("/other");
        assert_eq!(other.response().status(), 200);
    }
    for i in 0..ANSWERS {
        assert_eq!(slow.head().status(), 103, "answer {i}");
        assert!(slow.response().body == pattern(30_000), "answer {i} was changed on the way");
    }
}
