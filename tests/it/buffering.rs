//! Invariants 1 and 2: the app sees a request when it is whole, and is rid of a response at once.

use std::time::{Duration, Instant};

use crate::support::{App, Client, Proxy, chunked, ok, pattern, unix_path, until};

#[test]
fn upload_is_complete_before_the_app_sees_it() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    proxy.settle();
    app.assert_no_connection();

    client.send("67890");
    let (worker, request) = app.request();
    assert_eq!(request.line(), "POST /upload HTTP/1.1");
    assert_eq!(request.text(), "1234567890");
    worker.reply("thanks");
    assert_eq!(client.response().text(), "thanks");
}

#[test]
fn head_is_complete_before_the_app_sees_it() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    for byte in b"GET /slow HTTP/1.1\r\nHost: a\r\n\r" {
        client.send([*byte]);
    }
    proxy.settle();
    app.assert_no_connection();

    client.send("\n");
    let (worker, request) = app.request();
    assert_eq!(request.line(), "GET /slow HTTP/1.1");
    worker.reply("");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn half_sent_uploads_do_not_keep_others_from_the_app() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1"]);
    let mut uploads: Vec<_> = (0..40).map(|_| proxy.connect()).collect();
    for upload in &mut uploads {
        upload.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
        upload.send(vec![b'x'; 50_000]);
    }
    let mut client = proxy.connect();
    client.get("/fast");
    let (worker, request) = app.request();
    assert_eq!(request.target(), "/fast");
    worker.reply("now");
    assert_eq!(client.response().text(), "now");
}

#[test]
fn cut_upload_never_reaches_the_app() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);

    let mut leaves = proxy.connect();
    leaves.send("POST /leaves HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    drop(leaves);
    let mut resets = proxy.connect();
    resets.send("POST /resets HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    resets.reset();
    let mut half_closes = proxy.connect();
    half_closes.send("POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    half_closes.half_close();
    let mut chunks = proxy.connect();
    chunks.send(
        "POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
    );
    drop(chunks);

    for target in ["/leaves", "/resets", "/half", "/chunks"] {
        let record = proxy.record(target);
        assert_eq!((record.get("status_code"), record.get("end")), ("499", "client_gone"));
    }
    app.assert_no_connection();
}

#[test]
fn chunked_upload_arrives_with_its_exact_length() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let body = pattern(100_000);
    let mut client = proxy.connect();
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
    client.send(chunked(&body, 777));
    let (worker, request) = app.request();
    assert_eq!(request.get("content-length"), Some("100000"));
    assert_eq!(request.get("trailer"), None);
    assert!(request.body == body, "the body was changed on the way");
    worker.reply("");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn empty_chunked_upload_arrives_with_length_zero() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    let (worker, request) = app.request();
    assert_eq!(request.get("content-length"), Some("0"));
    worker.reply("");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn large_upload_is_byte_exact_through_disk() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--body-memory", "64k"]);
    let body = pattern(20 * 1024 * 1024 + 13);
    let mut client = proxy.connect();
    client.send(format!("PUT /big HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(&body);
    let (worker, request) = app.request();
    assert!(request.body == body, "the body was changed on the way");
    worker.reply("");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn large_response_is_byte_exact_through_disk() {
    let body = pattern(8 * 1024 * 1024 + 13);
    let app = App::answering(ok(&body));
    let proxy = Proxy::start(&app, &["--response-memory", "64k"]);
    let mut client = proxy.connect_slow();
    client.get("/big");
    let response = client.response();
    assert_eq!(response.get("content-length"), Some(body.len().to_string().as_str()));
    assert!(response.body == body, "the body was changed on the way");
}

#[test]
fn chunked_response_is_byte_exact_through_disk() {
    let body = pattern(5 * 1024 * 1024 + 13);
    let mut response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    response.extend(chunked(&body, 8191));
    let app = App::answering(response);
    let proxy = Proxy::start(&app, &["--response-memory", "64k"]);
    let mut client = proxy.connect_slow();
    client.get("/big");
    assert!(client.response().body == body, "the body was changed on the way");
}

#[test]
fn memory_budget_holds_back_nobody() {
    let body = pattern(3 * 1024 * 1024);
    let app = App::answering(ok(&body));
    let proxy = Proxy::start(&app, &["--memory", "1m"]);
    let mut clients: Vec<_> = (0..8).map(|_| proxy.connect_slow()).collect();
    for client in &mut clients {
        client.get("/");
    }
    for client in &mut clients {
        assert!(client.response().body == body, "the body was changed on the way");
    }
}

#[test]
fn two_hundred_megabytes_of_responses_stay_within_the_memory_budget() {
    let body = pattern(4 * 1024 * 1024);
    let app = App::answering(ok(&body));
    let proxy = Proxy::start(&app, &["--memory", "8m"]);
    let mut clients: Vec<_> = (0..50).map(|_| proxy.connect_slow()).collect();
    for client in &mut clients {
        client.get("/4mb");
    }
    // The app is rid of all of them while nobody reads.
    for _ in 0..50 {
        app.wait_served();
    }
    let most: u64 = proxy.status_field("VmHWM").parse().unwrap();
    assert!(most < 48 * 1024, "{most} KiB at most");
    let threads: u64 = proxy.status_field("Threads").parse().unwrap();
    assert!(threads <= 8, "{threads} threads");
    assert!(clients[49].response().body == body, "the body was changed on the way");
}

#[test]
fn slow_reader_does_not_hold_a_worker() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1"]);
    let mut slow = proxy.connect_slow();
    let body = pattern(3 * 1024 * 1024);
    let begun = Instant::now();
    slow.get("/3mb");
    let (mut worker, _) = app.request();
    worker.try_send(ok(&body)).expect("taken though the client reads nothing");
    worker.wait_closed();
    let held = begun.elapsed();

    // The one slot is free: another client is served while the first has not read a byte.
    let mut fast = proxy.connect();
    fast.get("/fast");
    app.request().0.reply("now");
    assert_eq!(fast.response().text(), "now");

    // On a busy machine the worker may have been long about it; its client is longer.
    std::thread::sleep(held);
    assert!(slow.response().body == body, "the body was changed on the way");
    let record = proxy.record("/3mb");
    assert_eq!((record.get("slow"), record.get("end")), ("client_down", "ok"));
}

#[test]
fn client_that_was_slow_is_served_on() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect_slow();
    let body = pattern(3 * 1024 * 1024);
    for target in ["/one", "/two"] {
        let begun = Instant::now();
        client.get(target);
        let (mut worker, _) = app.request();
        worker.send(ok(&body));
        worker.wait_closed();
        // By then what is left is with a task of its own; and longer than the worker took.
        std::thread::sleep(std::time::Duration::from_secs(1) + begun.elapsed());
        assert!(client.response().body == body, "the body was changed on the way");
        let record = proxy.record(target);
        assert_eq!((record.get("slow"), record.get("end")), ("client_down", "ok"));
        assert_eq!(record.get("body_bytes_sent"), body.len().to_string());
    }
    // One that leaves then, and one that a timeout cuts, have their record too.
    client.get("/three");
    app.request().0.reply(&body);
    std::thread::sleep(std::time::Duration::from_secs(1));
    client.reset();
    let record = proxy.record("/three");
    assert_eq!((record.get("status_code"), record.get("end")), ("200", "client_gone"));

    let proxy = Proxy::start(&app, &["--send-timeout", "1s"]);
    let mut client = proxy.connect_slow();
    client.get("/four");
    app.request().0.reply(&body);
    let record = proxy.record("/four");
    assert_eq!((record.get("status_code"), record.get("end")), ("200", "send_timeout"));
    client.cut_response();
}

#[test]
fn response_head_is_not_held_back_for_its_body() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    worker.send("b");
    assert_eq!(client.exact(1), b"b");
    worker.send("ody");
    assert_eq!(client.exact(3), b"ody");
}

#[test]
fn worker_is_released_at_the_end_of_the_message() {
    // gunicorn lingers up to 2 s inside the worker until its peer closes.
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    for response in [
        ok("body"),
        b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n".to_vec(),
    ] {
        let mut client = proxy.connect();
        client.get("/");
        let (mut worker, request) = app.request();
        assert_eq!(request.get("connection"), Some("close"));
        worker.send(response);
        worker.wait_closed();
        client.response();
    }
}

#[test]
fn early_answer_to_an_upload_reaches_the_client() {
    // The app refuses a body that it does not read: writing fails, its answer is there to be read.
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n");
    client.send(vec![b'x'; 5_000_000]);
    let mut worker = app.accept();
    worker.read_some(1000);
    worker.send(
        "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig",
    );
    drop(worker);
    let response = client.response();
    assert_eq!((response.status(), response.text().as_str()), (413, "big"));
    assert_eq!(proxy.record("/early").get("end"), "ok");
}

#[test]
fn slow_upload_is_named_in_the_record() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1");
    // The head is in; the one thing that is measured here is time that passes.
    proxy.settle();
    std::thread::sleep(Duration::from_millis(200));
    client.send("2");
    client.response();
    let record = proxy.record("/slow");
    assert!(record.seconds("receive") >= Duration::from_millis(200), "{record:?}");
    assert_eq!(record.get("slow"), "client_up");
}

#[test]
fn app_that_answers_before_it_has_read_gets_the_whole_request() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let body = pattern(3 * 1024 * 1024);
    let mut client = proxy.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(&body);
    let mut worker = app.accept();
    worker.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nso far\r\n");
    client.head();
    assert!(worker.request().body == body, "the body was changed on the way");
    worker.send("5\r\n, all\r\n0\r\n\r\n");
    assert_eq!(client.chunks(), b"so far, all");
}

#[test]
fn request_body_is_given_up_when_its_answer_has_come() {
    let app = App::unix();
    let options = ["--spool-max", "1m", "--max-body", "1m", "--response-spool-max", "1m"];
    let proxy = Proxy::start(&app, &options);
    let upload = |target: &str| {
        let mut client = proxy.connect_slow();
        client.send(format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n"));
        client.send(vec![b'x'; 900_000]);
        client
    };
    let mut reads_slowly = upload("/one");
    let (mut worker, _) = app.request();
    worker.send(ok(pattern(200_000)));
    worker.wait_closed();
    // It waits for its client in memory; the disk is for the next.
    let mut two = upload("/two");
    app.request().0.reply("");
    assert_eq!(two.response().status(), 200);
    assert_eq!(reads_slowly.response().body.len(), 200_000);
}

#[test]
fn response_that_cannot_be_read_back_is_cut() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--response-memory", "64k"]);
    let mut client = proxy.connect_slow();
    client.get("/lost");
    let (mut worker, _) = app.request();
    worker.send(ok(pattern(5 * 1024 * 1024)));
    worker.wait_closed();
    // The disk forgets what it has, again and again: some of it may still be on its way there.
    let fds = format!("/proc/{}/fd", proxy.pid().as_raw_nonzero());
    let forgets = std::thread::spawn(move || {
        for fd in (0..1000).flat_map(|_| std::fs::read_dir(&fds).into_iter().flatten().flatten()) {
            let fd = fd.path();
            if std::fs::read_link(&fd)
                .is_ok_and(|file| file.to_string_lossy().contains(" (deleted)"))
            {
                let _ = std::fs::OpenOptions::new().write(true).open(&fd).map(|f| f.set_len(0));
            }
        }
    });
    client.cut_response();
    assert_eq!(proxy.record("/lost").get("end"), "internal");
    forgets.join().unwrap();
}

#[test]
fn memory_that_only_waits_goes_to_disk_when_it_is_short() {
    let body = pattern(500_000);
    let app = App::answering(ok(&body));
    let dir = tempfile::tempdir().unwrap();
    let admin = format!("unix:{}", unix_path(&dir).display());
    let options = ["--memory", "2200k", "--body-memory", "400k", "--response-memory", "600k"];
    let proxy = Proxy::start(&app, &[&options[..], &["--admin", &admin]].concat());
    let mut client = Client::unix(&unix_path(&dir));
    let mut spooled = |what: &str| {
        client.get("/status");
        let status: serde_json::Value = serde_json::from_slice(&client.response().body).unwrap();
        status.pointer(&format!("/spooled/{what}")).and_then(|n| n.as_u64()).unwrap()
    };
    // A reader and an upload stall within their own limits, with less than a quarter of the budget.
    let mut reader = proxy.connect_slow();
    reader.get("/");
    reader.head();
    let mut upload = proxy.connect();
    upload.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
    upload.send(&body[..30_000]);
    until(|| spooled("memory") >= 300_000);
    assert_eq!(spooled("disk"), 0);
    // Many small ones make it more: what has not moved for a second makes room.
    let mut small: Vec<_> = (0..40).map(|_| proxy.connect()).collect();
    for upload in &mut small {
        upload.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
        upload.send(&body[..7_000]);
    }
    until(|| spooled("disk") >= 300_000 && spooled("memory") <= 400_000);
    upload.send(&body[30_000..100_000]);
    assert!(upload.response().body == body, "changed on the way");
    assert!(reader.exact(500_000) == body, "changed on the way");
}
