//! Two stops that are not a plain TERM: `bufproxy drain`, for those who cannot send a signal, and TERM
//! to every process at once, as Heroku does it, with `config/gunicorn.conf.py` in gunicorn.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Signal, kill_process_group};

use crate::support::{App, Client, Proxy, bufproxy, repository, venv};

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

/// gunicorn with `config/gunicorn.conf.py`, as docs/heroku.md says, and these workers; on a socket that
/// its command line names, or on the one that it is passed.
fn drain_first(workers: &[&str], named: bool) -> Proxy {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.env("DYNO", "web.1").env("PYTHONDONTWRITEBYTECODE", "1");
    command.args(["--listen", "127.0.0.1:0", "--child-stop-signal", "QUIT", "--"]);
    command.arg(venv().join("gunicorn")).args(workers);
    if named {
        command.args(["--bind", &format!("unix:{}", dir.path().join("app.sock").display())]);
    }
    command.arg("--config").arg(repository().join("config/gunicorn.conf.py"));
    command.arg("--chdir").arg(repository()).arg("tests.apps.wsgi:app");
    let proxy = Proxy::spawn(command, dir);
    let open = proxy.stderr.find(1, Duration::from_secs(60), |line| line.contains("port open"));
    assert!(open.is_some(), "the port does not open: {:#?}", proxy.stderr.seen());
    let warnings = proxy.stderr.seen().into_iter().filter(|line| line.contains("warning"));
    assert_eq!(warnings.collect::<Vec<_>>(), [""; 0]);
    proxy
}

#[test]
fn term_to_everybody_loses_nothing_where_gunicorn_drains_first() {
    let sync = ["--workers", "2", "--worker-class", "sync"];
    let gthread = ["--workers", "1", "--worker-class", "gthread", "--threads", "2"];
    for (workers, named) in [(&sync[..], true), (&sync[..], false), (&gthread[..], false)] {
        let proxy = drain_first(workers, named);
        let mut idle = proxy.connect();
        idle.get("/");
        assert_eq!(idle.response().status(), 200);
        // A buffered response that its client takes slowly.
        let mut slow = proxy.connect_slow();
        slow.get("/big?n=3000000");
        slow.head();
        // An upload of which half is there.
        let mut upload = proxy.connect();
        upload.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nhalf");
        // Two at the workers, the others in the queue.
        let mut waiting: Vec<Client> = (0..10).map(|_| proxy.connect()).collect();
        for client in &mut waiting {
            client.get("/sleep?s=0.2");
        }
        proxy.stdout.wait_for_nth(2, |line| line == "sleeping");
        proxy.settle();

        kill_process_group(proxy.pid(), Signal::TERM).unwrap();
        proxy.stderr.wait_for(|line| line.contains("stopping (TERM)"));
        upload.send("half");
        idle.get("/");
        for client in &mut waiting {
            assert_eq!(client.response().text(), "slept\n", "{workers:?}");
        }
        assert_eq!(upload.response().status(), 200, "{workers:?}");
        assert_eq!(idle.response().status(), 200, "{workers:?}");
        slow.exact(3_000_000);
        let exit = proxy.wait();
        assert_eq!(exit.code, 0, "{exit:#?}");
        let summary = exit.stderr.iter().find(|line| line.contains("stopped after")).unwrap();
        assert!(summary.ends_with(" 0 refused, 0 cut"), "{summary}");
        // By QUIT, not killed at the deadline.
        assert!(exit.stderr.iter().any(|line| line.contains("Handling signal: quit")), "{exit:#?}");
    }
}
