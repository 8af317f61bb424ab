//! `bufproxy drain`: a stop for those who cannot send a signal, as the hook of another container.

use std::io::Read;
use std::process::{Child, Stdio};

use crate::support::{App, Proxy, bufproxy};

/// `bufproxy drain --wait`, running; its socket is `admin` in the test's directory.
fn drain(admin: &str, options: &[&str]) -> Child {
    let mut command = bufproxy(std::env::temp_dir().as_path());
    command.args(["drain", "--wait", "--admin", admin]).args(options);
    command.stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn drain_returns_when_everything_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let admin = format!("unix:{}", dir.path().join("admin.sock").display());
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--admin", &admin]);
    let mut client = proxy.connect();
    client.get("/in-flight");
    let (worker, _) = app.request();

    let mut draining = drain(&admin, &[]);
    let line = proxy.stderr.wait_for(|line| line.starts_with("bufproxy: stopping ("));
    assert!(line.starts_with("bufproxy: stopping (drain): 1 request in flight"), "{line}");
    assert!(draining.try_wait().unwrap().is_none(), "it does not wait");

    worker.reply("done");
    let response = client.response();
    assert_eq!((response.text().as_str(), response.get("connection")), ("done", Some("close")));
    client.wait_closed();
    assert_eq!(proxy.wait().code, 0);
    assert!(draining.wait().unwrap().success());
}

#[test]
fn drain_gives_up_at_its_timeout_and_says_what_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let admin = format!("unix:{}", dir.path().join("admin.sock").display());
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--admin", &admin]);
    let mut client = proxy.connect();
    client.get("/in-flight");
    let (worker, _) = app.request();
    let mut draining = drain(&admin, &["--timeout", "300ms"]);
    assert_eq!(draining.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    draining.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let counts = "0 receiving, 0 queued, 1 in flight, 0 delivering";
    assert_eq!(said, format!("bufproxy: error: {admin}: not drained within 0.3 s: {counts}\n"));
    // The drain itself goes on.
    worker.reply("");
    assert_eq!(client.response().status(), 200);
}
