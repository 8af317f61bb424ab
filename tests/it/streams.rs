//! Streams are passed on as they come, and a slow reader paces the app.

use std::io::ErrorKind;
use std::time::Duration;

use crate::support::{App, GUARD, Proxy, chunked, pattern};

#[test]
fn events_are_flushed_as_they_come() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/events");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    // Each event is at the client before the next one is written.
    for i in 0..100 {
        let event = format!("data: {i}\n\n");
        worker.send(&event);
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        assert_eq!(client.exact(chunk.len()), chunk.as_bytes());
    }
    drop(worker);
    assert_eq!(client.exact(5), b"0\r\n\r\n");
    assert_eq!(proxy.record("/events").get("end"), "ok");
}

#[test]
fn x_accel_buffering_no_makes_a_stream() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nX-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.head();
    for _ in 0..100 {
        worker.send("5\r\nbytes\r\n");
        assert_eq!(client.exact(10), b"5\r\nbytes\r\n");
    }
    worker.send("0\r\n\r\n");
    assert_eq!(client.exact(5), b"0\r\n\r\n");
}

#[test]
fn http_1_0_stream_ends_with_its_connection() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
    let head = client.head();
    assert_eq!((head.get("transfer-encoding"), head.get("content-length")), (None, None));
    assert_eq!(client.exact(9), b"data: 1\n\n");
    worker.send("data: 2\n\n");
    drop(worker);
    assert_eq!(client.rest(), b"data: 2\n\n");
}

#[test]
fn slow_reader_of_a_stream_paces_the_app() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect_slow();
    client.get("/");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
    client.head();
    // A write that cannot go on within this time is paced.
    worker.set_write_timeout(Duration::from_millis(300));
    let mut taken = 0;
    let event = [b'x'; 64 * 1024];
    let error = loop {
        match worker.try_send(event) {
            Ok(()) => taken += event.len(),
            Err(e) => break e.kind(),
        }
        assert!(taken < 64 * 1024 * 1024, "64 MiB of a stream are taken from the app");
    };
    assert_eq!(error, ErrorKind::WouldBlock);
    // The client reads on, and so does the app.
    worker.set_write_timeout(GUARD);
    client.exact(taken / 2);
    worker.try_send(b"x").expect("there is room again");
}

#[test]
fn http_1_0_stream_that_is_cut_does_not_look_complete() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let begin = |target: &str| {
        let mut client = proxy.connect();
        client.send(format!("GET {target} HTTP/1.0\r\n\r\n"));
        let (mut worker, _) = app.request();
        worker.send(
            "HTTP/1.1 200 OK\r\nX-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n\
             4\r\nhalf\r\n",
        );
        client.head();
        assert_eq!(client.exact(4), b"half");
        (client, worker)
    };
    let (mut client, worker) = begin("/app-closes");
    drop(worker);
    client.wait_reset();
    assert_eq!(proxy.record("/app-closes").get("end"), "truncated");

    // To us it has left, though it still reads.
    let (mut client, _worker) = begin("/half-closes");
    client.half_close();
    client.wait_reset();
    assert_eq!(proxy.record("/half-closes").get("end"), "client_gone");
}

/// A response with trailers, after this request; what the client gets, as a text.
fn with_trailers(request: &str) -> String {
    let app = App::answering(
        "HTTP/1.1 200 OK\r\nDate: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         5\r\nhello\r\n0\r\nX-Sum: 1\r\nSet-Cookie: a=b\r\nContent-Length: 9\r\nX-Time: 2\r\n\r\n",
    );
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(request);
    String::from_utf8(client.rest()).unwrap()
}

#[test]
fn trailers_reach_the_client_that_asks_for_them() {
    let got = with_trailers(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTE: gzip;q=0.5, Trailers\r\n\r\n",
    );
    let expected = "HTTP/1.1 200 OK\r\nDate: x\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\
                    Connection: close\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Time: 2\r\n\r\n";
    assert_eq!(got, expected);
}

#[test]
fn trailers_are_dropped_for_a_client_that_does_not_ask() {
    let got = with_trailers("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let expected = "HTTP/1.1 200 OK\r\nDate: x\r\nTransfer-Encoding: chunked\r\n\
                    Connection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(got, expected);
    // Where there are no chunks there is no place for them.
    let got = with_trailers("GET / HTTP/1.0\r\nTE: trailers\r\n\r\n");
    let expected = "HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 5\r\nConnection: close\r\n\
                    \r\nhello";
    assert_eq!(got, expected);
    let got =
        with_trailers("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTE: trailers\r\n\r\n");
    assert!(!got.contains("Trailer"), "{got}");
}

#[test]
fn trailers_come_behind_a_body_that_waited_in_the_spool() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect_slow();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTE: trailers\r\n\r\n");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    worker.send(chunked(&pattern(3_000_000), 50_000).strip_suffix(b"\r\n").unwrap());
    worker.send("X-Sum: 1\r\n\r\n");
    drop(worker);
    client.head();
    assert!(client.rest().ends_with(b"\r\n0\r\nX-Sum: 1\r\n\r\n"));
}

#[test]
fn trailers_of_a_body_that_is_compressed_on_the_way_are_dropped() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--gzip", "1"]);
    let mut client = proxy.connect();
    client.send(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept-Encoding: gzip\r\n\
         TE: trailers\r\n\r\n",
    );
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTrailer: X-Sum\r\n");
    worker.send("Transfer-Encoding: chunked\r\n\r\n");
    let head = client.head();
    assert_eq!((head.get("content-encoding"), head.get("trailer")), (Some("gzip"), None));
    worker.send("5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n");
    assert!(client.rest().ends_with(b"\r\n0\r\n\r\n"));
}
