//! Invariant 7: what no worker has read may always be sent again; what one may have read only if
//! its method is idempotent. And an app that is not there is waited for.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use crate::support::{App, Proxy, pattern, unix_path};

const POST: &str = "POST /order HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\norder";

#[test]
fn unread_post_is_sent_again() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(POST);
    app.accept().close_unread();
    let (worker, request) = app.request();
    assert_eq!(request.text(), "order");
    worker.reply("once");
    assert_eq!(client.response().text(), "once");
}

#[test]
fn unread_large_post_is_sent_again_whole() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let body = pattern(300_000);
    let mut client = proxy.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(&body);
    app.accept().close_unread();
    let (worker, request) = app.request();
    assert!(request.body == body, "the body was changed on the way");
    worker.reply("once");
    assert_eq!(client.response().text(), "once");
}

#[test]
fn at_most_8_kib_go_out_before_a_worker_has_read() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--body-memory", "64k"]);
    // In memory, and on disk.
    for length in [30_000, 300_000] {
        let mut client = proxy.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
        client.send(pattern(length));
        let mut worker = app.accept();
        proxy.settle();
        // The rest follows when the worker has read: this is all that there is yet.
        let first = worker.read_some(100_000);
        assert!(first.len() <= 8192, "{} bytes of {length} at once", first.len());
        assert!(first.starts_with(b"POST / HTTP/1.1\r\n"));
    }
}

#[test]
fn read_post_is_not_sent_again() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(POST);
    let (worker, request) = app.request();
    assert_eq!(request.text(), "order");
    drop(worker);
    assert_eq!(client.response().status(), 502);
    assert_eq!(proxy.record("/order").get("end"), "reset_before_response");
    app.assert_no_connection();
}

#[test]
fn partly_read_large_post_is_not_sent_again() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send("POST /order HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n");
    client.send(pattern(300_000));
    let mut worker = app.accept();
    // As gunicorn reads, until more has come than the first write: then it leaves bytes unread.
    let mut read = 0;
    while read <= 8192 {
        read += worker.read_some(8192).len();
    }
    drop(worker);
    assert_eq!(client.response().status(), 502);
    app.assert_no_connection();
}

#[test]
fn read_get_is_sent_again_once() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/second-try");
    drop(app.request());
    let (worker, request) = app.request();
    assert_eq!(request.target(), "/second-try");
    worker.reply("second");
    assert_eq!(client.response().text(), "second");

    let mut client = proxy.connect();
    client.get("/no-third");
    drop(app.request());
    drop(app.request());
    assert_eq!(client.response().status(), 502);
    assert_eq!(proxy.record("/no-third").get("end"), "reset_before_response");
    app.assert_no_connection();
}

#[test]
fn put_and_delete_are_idempotent_and_patch_is_not() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    for method in ["PUT", "DELETE", "HEAD", "OPTIONS"] {
        let mut client = proxy.connect();
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        drop(app.request());
        let (worker, request) = app.request();
        assert!(request.line().starts_with(method));
        worker.reply("");
        assert_eq!(client.response_to_head().status(), 200);
    }
    let mut client = proxy.connect();
    client.send("PATCH / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    drop(app.request());
    assert_eq!(client.response().status(), 502);
    app.assert_no_connection();
}

#[test]
fn nothing_is_sent_again_once_the_response_began() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/began");
    let (mut worker, _) = app.request();
    worker.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(client.head().status(), 200);
    drop(worker);
    assert_eq!(client.exact(4), b"half");
    client.wait_closed();
    assert_eq!(proxy.record("/began").get("end"), "truncated");
    app.assert_no_connection();
}

#[test]
fn retry_can_be_limited() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--retry", "proven"]);
    let mut client = proxy.connect();
    client.get("/");
    drop(app.request());
    assert_eq!(client.response().status(), 502);
    app.assert_no_connection();

    let proxy = Proxy::start(&app, &["--retry", "off"]);
    let mut client = proxy.connect();
    client.send(POST);
    app.accept().close_unread();
    assert_eq!(client.response().status(), 502);
    app.assert_no_connection();
}

#[test]
fn missing_socket_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = unix_path(&dir);
    let proxy = Proxy::start_at(&format!("unix:{}", path.display()), &[]);
    let mut client = proxy.connect();
    client.send(POST);
    proxy.settle();
    client.assert_silent();
    let app = App::at(dir, &path, 1024);
    let (worker, request) = app.request();
    assert_eq!(request.text(), "order");
    worker.reply("here now");
    assert_eq!(client.response().text(), "here now");
}

#[test]
fn refusing_socket_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = unix_path(&dir);
    // A stale file, as a killed app leaves it: ECONNREFUSED.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let proxy = Proxy::start_at(&format!("unix:{}", path.display()), &[]);
    let mut client = proxy.connect();
    client.send(POST);
    proxy.settle();
    client.assert_silent();
    std::fs::remove_file(&path).unwrap();
    let app = App::at(dir, &path, 1024);
    app.request().0.reply("here now");
    assert_eq!(client.response().text(), "here now");
}

#[test]
fn refusing_port_is_waited_for() {
    let (address, listen) = App::tcp_later();
    let proxy = Proxy::start_at(&address, &[]);
    let mut client = proxy.connect();
    client.send(POST);
    proxy.settle();
    client.assert_silent();
    listen().request().0.reply("here now");
    assert_eq!(client.response().text(), "here now");
}

#[test]
fn post_over_tcp_is_never_sent_again() {
    // A reset over TCP does not tell what was read before it.
    let app = App::tcp();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(POST);
    app.accept().close_unread();
    assert_eq!(client.response().status(), 502);
    app.assert_no_connection();
}

#[test]
fn full_backlog_is_waited_out() {
    let (app, waiting) = App::with_full_backlog();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(POST);
    proxy.settle();
    client.assert_silent();
    drop(waiting);
    drop(app.accept());
    app.request().0.reply("room now");
    assert_eq!(client.response().text(), "room now");
}

#[test]
fn want_of_descriptors_is_waited_out() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/before");
    app.request().0.reply("");
    client.response();
    let mut others = [proxy.connect(), proxy.connect()];
    proxy.settle();
    let pid = Some(proxy.pid());
    let none = Rlimit { current: Some(1), maximum: getrlimit(Resource::Nofile).maximum };
    let before = prlimit(pid, Resource::Nofile, none).unwrap();
    client.send(POST);
    for other in &mut others {
        other.send("settle\r\n\r\n");
        assert_eq!(other.response().status(), 400);
    }
    client.assert_silent();
    prlimit(pid, Resource::Nofile, before).unwrap();
    app.request().0.reply("room now");
    assert_eq!(client.response().text(), "room now");
}

#[test]
fn app_that_does_not_come_is_answered_503() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = format!("unix:{}", unix_path(&dir).display());
    let proxy = Proxy::start_at(&upstream, &["--connect-retry", "100ms"]);
    let mut client = proxy.connect();
    client.get("/never");
    let refusal = client.response();
    assert_eq!(refusal.status(), 503);
    assert!(refusal.get("retry-after").is_some());
    // No answer was ever seen from this app.
    assert_eq!(proxy.record("/never").get("end"), "app_starting");
}

#[test]
fn app_that_went_away_is_answered_503() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--connect-retry", "100ms"]);
    let mut client = proxy.connect();
    client.get("/before");
    app.request().0.reply("");
    client.response();
    drop(app);
    client.get("/after");
    assert_eq!(client.response().status(), 503);
    assert_eq!(proxy.record("/after").get("end"), "app_unavailable");
}

#[test]
fn client_that_leaves_while_the_app_is_away_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let path = unix_path(&dir);
    let proxy = Proxy::start_at(&format!("unix:{}", path.display()), &[]);
    let mut client = proxy.connect();
    client.get("/left");
    proxy.settle();
    drop(client);
    assert_eq!(proxy.record("/left").get("end"), "client_gone");
    let app = App::at(dir, &path, 1024);
    let mut client = proxy.connect();
    client.get("/stays");
    let (worker, request) = app.request();
    assert_eq!(request.target(), "/stays");
    worker.reply("");
    client.response();
    app.assert_no_connection();
}

#[test]
fn time_of_a_try_that_failed_is_not_time_in_the_queue() {
    let (one, other) = (App::unix(), App::unix());
    for app in [&one, &other] {
        // A worker that dies of it.
        app.serve(|_, _| std::thread::sleep(Duration::from_millis(100)));
    }
    let proxy = Proxy::start(&one, &["--upstream", other.address()]);
    let mut client = proxy.connect();
    client.get("/dies");
    assert_eq!(client.response().status(), 502);
    let record = proxy.record("/dies");
    assert_eq!(record.get("retry"), "1");
    assert!(record.seconds("queue") < record.seconds("connect"), "{record:?}");
    let phases = ["receive", "queue", "connect", "upstream", "send"];
    let sum: Duration = phases.iter().map(|name| record.seconds(name)).sum();
    assert_eq!(record.seconds("service"), sum, "{record:?}");
}

#[test]
fn record_of_a_second_try_says_how_long_that_one_took() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/twice");
    let (mut worker, _) = app.request();
    // A byte of an answer, then nothing: this try has a first byte, and fails.
    worker.send("HTTP/1.1 ");
    drop(worker);
    let (worker, _) = app.request();
    std::thread::sleep(Duration::from_millis(50));
    worker.reply("");
    client.response();
    let record = proxy.record("/twice");
    assert!(record.seconds("first_byte") >= Duration::from_millis(49), "{record:?}");
}
