//! What happens when somebody takes too long: a clean answer while that is possible, a cut that
//! shows when it is not, and the record says who.

use std::time::Duration;

use crate::support::{App, Client, Proxy, ok, pattern, unix_path};

#[test]
fn app_that_does_not_answer_is_504() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--app-timeout", "100ms"]);
    let mut client = proxy.connect();
    client.get("/slow");
    let (_worker, _) = app.request();
    assert_eq!(client.response().status(), 504);
    let record = proxy.record("/slow");
    assert_eq!((record.get("status_code"), record.get("end")), ("504", "app_timeout"));
    assert_eq!(record.get("slow"), "app");
}

#[test]
fn slot_stays_with_the_worker_after_a_504() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--app-timeout", "200ms", "--concurrency", "1"]);
    let mut client = proxy.connect();
    client.get("/slow");
    let (worker, _) = app.request();
    assert_eq!(client.response().status(), 504);

    let mut next = proxy.connect();
    next.get("/next");
    proxy.settle();
    app.assert_no_connection();
    drop(worker);
    app.request().0.reply("");
    assert_eq!(next.response().status(), 200);
}

#[test]
fn app_timeout_is_not_retried() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--app-timeout", "100ms"]);
    let mut client = proxy.connect();
    client.get("/");
    let (_worker, _) = app.request();
    assert_eq!(client.response().status(), 504);
    app.assert_no_connection();
}

#[test]
fn time_in_the_queue_counts_as_the_apps() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--app-timeout", "200ms", "--concurrency", "1"]);
    let mut first = proxy.connect();
    first.get("/first");
    let (_worker, _) = app.request();
    let mut second = proxy.connect();
    second.get("/second");
    assert_eq!(second.response().status(), 503);
    assert_eq!(proxy.record("/second").get("end"), "deadline");
    app.assert_no_connection();
}

#[test]
fn app_that_stops_in_its_response_is_cut() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--app-idle-timeout", "100ms"]);
    let mut client = proxy.connect();
    client.get("/stops");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    let cut = client.cut_response();
    assert_eq!(cut.partial.text(), "half");
    assert_eq!(proxy.record("/stops").get("end"), "app_idle_timeout");
}

#[test]
fn app_that_stops_before_anything_was_sent_is_504() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--app-idle-timeout", "100ms", "--concurrency", "1"]);
    let mut client = proxy.connect();
    client.send("GET /stops HTTP/1.0\r\n\r\n");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    assert_eq!(client.response().status(), 504);

    // The worker is not done for all that.
    let mut next = proxy.connect();
    next.get("/next");
    proxy.settle();
    app.assert_no_connection();
    drop(worker);
    app.request().0.reply("");
    assert_eq!(next.response().status(), 200);
}

#[test]
fn app_that_reads_on_while_it_answers_is_not_silent() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--app-idle-timeout", "1s"]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n");
    client.send(vec![b'x'; 3_000_000]);
    let mut worker = app.accept();
    worker.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nso\r\n");
    let (mut read, mut pause) = (0, 0);
    while read < 2_500_000 {
        read += worker.read_some(3_000_000 - read).len();
        if read > pause {
            std::thread::sleep(Duration::from_millis(250));
            pause += 300_000;
        }
    }
    worker.send("0\r\n\r\n");
    assert_eq!(client.response().text(), "so");
}

#[test]
fn client_that_does_not_read_is_cut() {
    let app = App::answering(ok(pattern(3 * 1024 * 1024)));
    let proxy = Proxy::start(&app, &["--send-timeout", "200ms"]);
    let mut client = proxy.connect_slow();
    client.get("/unread");
    let record = proxy.record("/unread");
    assert_eq!((record.get("status_code"), record.get("end")), ("200", "send_timeout"));
    client.cut_response();
}

#[test]
fn client_that_reads_slowly_is_served() {
    let body = pattern(3 * 1024 * 1024);
    let app = App::answering(ok(&body));
    let proxy = Proxy::start(&app, &["--send-timeout", "500ms"]);
    let mut client = proxy.connect_slow();
    client.get("/slow");
    let response = client.head();
    assert_eq!(response.status(), 200);
    // One second of reading a little now and then, then the rest.
    let mut got = Vec::new();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(50));
        got.extend(client.exact(4096));
    }
    got.extend(client.exact(body.len() - got.len()));
    assert!(got == body, "the body was changed on the way");
    assert_eq!(proxy.record("/slow").get("end"), "ok");
}

#[test]
fn connection_without_a_byte_leaves_no_record() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--header-timeout", "100ms", "--client-keepalive", "100ms"]);
    let mut client = proxy.connect();
    assert_eq!(client.rest(), b"");
    assert_eq!(proxy.stop().stdout, [""; 0]);
}

#[test]
fn early_hint_does_not_stop_the_apps_clock() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--app-timeout", "300ms"]);
    let mut client = proxy.connect();
    client.get("/hinted");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n");
    assert_eq!(client.head().status(), 103);
    assert_eq!(client.response().status(), 504);
    assert_eq!(proxy.record("/hinted").get("end"), "app_timeout");
}

#[test]
fn client_that_does_not_read_is_not_answered_in_vain() {
    let app = App::answering(ok(pattern(8000)));
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}", unix_path(&dir).display());
    let format = "$request status_code=$status sent=$bytes_sent end=$end";
    let options = ["--listen", &listen, "--send-timeout", "200ms", "--log-format", format];
    let proxy = Proxy::start(&app, &options);
    // A Unix socket takes a response of this size whole or not at all; TCP might take a part of it.
    let mut client = Client::unix(&unix_path(&dir));
    for i in 0..100 {
        client.get(&format!("/{i}"));
        let record = proxy.record(&format!("/{i} "));
        if record.get("end") != "ok" {
            // To the log it is as if the client had left.
            let is = ["end", "sent", "status_code"].map(|field| record.get(field).to_owned());
            return assert_eq!(is, ["send_timeout", "0", "499"]);
        }
    }
    panic!("the kernel takes everything");
}
