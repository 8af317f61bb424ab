//! The admin listener: apart from the data path, and there when every worker is busy.

use std::path::PathBuf;

use crate::support::{App, Client, Message, Proxy, bufproxy, ok, until};

/// A proxy with its admin listener on a Unix socket, and that socket's path.
fn with_admin(app: &App, options: &[&str]) -> (Proxy, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let admin = format!("unix:{}", path.display());
    let proxy = Proxy::start(app, &[options, &["--admin", &admin]].concat());
    (proxy, path, dir)
}

fn ask(path: &std::path::Path, target: &str) -> Message {
    let mut client = Client::unix(path);
    client.get(target);
    client.response()
}

#[test]
fn admin_answers_while_every_worker_is_busy() {
    let app = App::unix();
    let (proxy, path, _dir) = with_admin(&app, &["--concurrency", "1"]);
    let mut busy = proxy.connect();
    busy.get("/busy");
    let (worker, _) = app.request();
    let mut queued = proxy.connect();
    queued.get("/queued");
    proxy.settle();

    assert_eq!(ask(&path, "/healthz").status(), 200);
    let status: serde_json::Value = serde_json::from_slice(&ask(&path, "/status").body).unwrap();
    assert_eq!(status["in_flight"], 1, "{status}");
    assert_eq!(status["queued"], 1, "{status}");
    app.assert_no_connection();
    worker.reply("");
    app.request().0.reply("");
    busy.response();
    queued.response();
}

#[test]
fn metrics_count_what_happened() {
    let app = App::unix();
    let (proxy, path, _dir) = with_admin(&app, &[]);
    let mut client = proxy.connect();
    client.get("/");
    app.request().0.reply("");
    client.response();
    proxy.settle();
    proxy.nth_record(2, "settle");
    let metrics = ask(&path, "/metrics");
    assert!(metrics.get("content-type").unwrap().starts_with("text/plain"));
    let metrics = metrics.text();
    let ends = |reason: &str| {
        let line = metrics
            .lines()
            .find(|line| !line.starts_with('#') && line.contains(&format!("\"{reason}\"")));
        line.unwrap_or_else(|| panic!("no {reason} in {metrics}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .to_string()
    };
    assert_eq!(ends("ok"), "1");
    assert_eq!(ends("bad_request"), "2");
}

#[test]
fn readiness_comes_from_attempts_and_not_from_connects() {
    let app = App::unix();
    let (proxy, path, _dir) = with_admin(&app, &["--connect-retry", "100ms"]);
    let mut client = proxy.connect();
    client.get("/");
    app.request().0.reply("");
    client.response();
    assert_eq!(ask(&path, "/readyz").status(), 200);
    app.assert_no_connection();
    drop(app);
    client.get("/");
    assert_eq!(client.response().status(), 503);
    assert_eq!(ask(&path, "/readyz").status(), 503);
}

#[test]
fn readiness_comes_back_with_the_next_answer() {
    let (address, late) = App::tcp_later();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let admin = format!("unix:{}", path.display());
    let proxy = Proxy::start_at(&address, &["--connect-retry", "100ms", "--admin", &admin]);
    let mut client = proxy.connect();
    client.get("/");
    assert_eq!(client.response().status(), 503);
    assert_eq!(ask(&path, "/readyz").status(), 503);
    let app = late();
    client.get("/");
    app.request().0.reply("");
    assert_eq!(client.response().status(), 200);
    assert_eq!(ask(&path, "/readyz").status(), 200);
}

#[test]
fn healthcheck_tells_by_its_exit_code() {
    let app = App::unix();
    let (proxy, path, dir) = with_admin(&app, &[]);
    let healthcheck = || {
        let mut command = bufproxy(dir.path());
        command.args(["healthcheck", "--admin"]).arg(format!("unix:{}", path.display()));
        command.output().unwrap()
    };
    let healthy = healthcheck();
    assert_eq!(healthy.status.code(), Some(0), "{healthy:?}");
    assert_eq!(proxy.stop().code, 0);
    let gone = healthcheck();
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    assert!(String::from_utf8_lossy(&gone.stderr).contains("admin.sock"), "{gone:?}");
}

#[test]
fn unknown_paths_are_404() {
    let app = App::unix();
    let (_proxy, path, _dir) = with_admin(&app, &[]);
    assert_eq!(ask(&path, "/nothing").status(), 404);
}

/// The value of a series of `/metrics`, without its prefix.
#[track_caller]
fn metric(path: &std::path::Path, series: &str) -> u64 {
    let metrics = ask(path, "/metrics").text();
    let start = format!("bufproxy_{series} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&start));
    value.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().unwrap()
}

#[test]
fn counters_of_requests_move() {
    let app = App::unix();
    let spool = tempfile::tempdir().unwrap();
    let options = [
        ["--max-requests-per-client", "1"],
        ["--trust", "private"],
        ["--spool-dir", spool.path().to_str().unwrap()],
    ];
    let (proxy, path, _dir) = with_admin(&app, options.as_flattened());
    let mut client = proxy.connect();
    client.get("/again");
    app.accept().close_unread();
    app.request().0.reply("");
    client.response();
    proxy.record("/again");
    assert_eq!(metric(&path, "retries_total"), 1);
    assert_eq!(metric(&path, "responses_total{class=\"2xx\"}"), 1);
    assert_eq!(metric(&path, "connections_accepted_total"), 1);
    assert_eq!(metric(&path, "connections"), 1);

    const SAME: &str = "GET /same HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
    client.send(SAME);
    let (worker, _) = app.request();
    let mut other = proxy.connect();
    other.send(SAME);
    assert_eq!(other.response().status(), 503);
    worker.reply("");
    client.response();
    assert_eq!(metric(&path, "client_limited_total"), 1);
    assert_eq!(metric(&path, "connections_accepted_total"), 2);

    assert_eq!(metric(&path, "spool_errors_total"), 0);
    drop(spool);
    // More than is gathered in memory while the outcome of the first write is not known.
    client.send("POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    let _ = client.try_send(vec![b'x'; 1_000_000]);
    assert_eq!(client.response().status(), 503);
    assert!(metric(&path, "spool_errors_total") > 0);
    drop((client, other));
    until(|| metric(&path, "connections") == 0);
}

#[test]
fn counters_of_idle_connections_move() {
    let app = App::answering(ok("x"));
    let (proxy, path, _dir) =
        with_admin(&app, &["--max-connections", "10", "--client-keepalive", "2s"]);
    let mut crossing = proxy.connect();
    crossing.get("/");
    crossing.response();
    assert_eq!(crossing.rest(), b"", "closed when its time was over");
    crossing.get("/too-late");
    proxy.settle();
    assert_eq!(metric(&path, "crossed_close_total"), 0, "it is not over yet");
    drop(crossing);
    until(|| metric(&path, "crossed_close_total") == 1);

    assert_eq!(metric(&path, "idle_reaped_total"), 0);
    let served = || {
        let mut client = proxy.connect();
        client.get("/");
        assert_eq!(client.response().status(), 200);
        client
    };
    let _idle: Vec<_> = std::iter::repeat_with(served).take(10).collect();
    until(|| metric(&path, "idle_reaped_total") > 0);
}
