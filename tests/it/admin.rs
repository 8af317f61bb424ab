//! The admin listener: apart from the data path, and there when every worker is busy.

use std::path::PathBuf;

use crate::support::{App, Client, Message, Proxy, bufproxy};

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
