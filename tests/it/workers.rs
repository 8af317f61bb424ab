//! `concurrency auto`: as many slots as gunicorn has workers, however it was started.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Client, Proxy, bufproxy, repository, unix_path, until, venv};

/// A proxy with gunicorn as its child.
struct Wrapped {
    proxy: Proxy,
    admin: PathBuf,
    master: Pid,
}

impl Wrapped {
    /// `prefix`: what starts gunicorn; `workers`: its options; `conf`: its configuration file.
    #[track_caller]
    fn start(prefix: &[&str], workers: &str, conf: &str) -> Wrapped {
        let dir = tempfile::tempdir().unwrap();
        let (admin, pid_file) = (dir.path().join("admin.sock"), dir.path().join("pid"));
        fs::write(dir.path().join("gunicorn.conf.py"), conf).unwrap();
        let socket = format!("unix:{}", unix_path(&dir).display());
        let mut command = bufproxy(dir.path());
        command.args(["--listen", "127.0.0.1:0", "--admin"]);
        command.arg(format!("unix:{}", admin.display())).args(["--upstream", &socket, "--"]);
        command.args(prefix).env("PATH", path_with_launchers(dir.path()));
        let gunicorn = venv().join("gunicorn").display().to_string();
        let bind = format!("{gunicorn} --bind {socket} {workers}");
        let rest = format!(
            "--pid {} --chdir {} tests.apps.wsgi:app",
            pid_file.display(),
            repository().display()
        );
        let line = format!("{bind} {rest}");
        match prefix {
            ["sh", "-c"] => command.arg(format!("true && {line}; exit $?")),
            _ => command.args(line.split_whitespace()),
        };
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let proxy = Proxy::spawn(command, dir);
        let open = proxy.stderr.find(1, Duration::from_secs(60), |line| line.contains("port open"));
        assert!(open.is_some(), "the port does not open: {:#?}", proxy.stderr.seen());
        let pid = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        let app = Wrapped { proxy, admin, master: Pid::from_raw(pid).unwrap() };
        // The first of them has answered; gunicorn pauses between two.
        if workers.contains("--workers 2") {
            until(|| app.workers().len() == 2);
        }
        app
    }

    fn slots(&self) -> Option<u64> {
        self.status("slots")
    }

    /// A figure of the upstream.
    fn status(&self, name: &str) -> Option<u64> {
        let mut admin = Client::unix(&self.admin);
        admin.get("/status");
        let status: serde_json::Value = serde_json::from_slice(&admin.response().body).unwrap();
        status["upstreams"][0][name].as_u64()
    }

    /// Waits for the line of the `nth` time that it has so many.
    #[track_caller]
    fn wait_for(&self, nth: usize, slots: u64, workers: &str) {
        let line = format!("bufproxy: concurrency {slots}: the app has {workers}");
        self.proxy.stderr.wait_for_nth(nth, |said| said == line);
        assert_eq!(self.slots(), Some(slots));
    }

    fn workers(&self) -> Vec<Pid> {
        children(self.master)
    }
}

fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
}

/// Launchers that start what follows them as the real ones do: `newrelic-admin` and `ddtrace-run`
/// become it (os.execl), `uv run` starts it as its child and passes TERM on.
fn path_with_launchers(dir: &Path) -> String {
    for (name, script) in [
        ("newrelic-admin", "shift; exec \"$@\""),
        ("ddtrace-run", "exec \"$@\""),
        ("uv", "shift; \"$@\" & trap \"kill $!\" TERM; wait $!; wait $!"),
    ] {
        let file = dir.join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap())
}

#[test]
fn slots_follow_ttin_and_ttou() {
    let app = Wrapped::start(&[], "--workers 2", "");
    assert_eq!(app.slots(), Some(2));
    app.proxy.signal(Signal::TTIN);
    app.wait_for(1, 3, "3 workers");
    // To gunicorn itself.
    kill_process(app.master, Signal::TTIN).unwrap();
    app.wait_for(1, 4, "4 workers");
    kill_process(app.master, Signal::TTOU).unwrap();
    app.wait_for(2, 3, "3 workers");
    app.proxy.signal(Signal::TTOU);
    app.wait_for(1, 2, "2 workers");
    app.proxy.signal(Signal::TTOU);
    app.wait_for(1, 1, "1 worker");
}

#[test]
fn slots_are_workers_that_are_alive_times_threads() {
    let app = Wrapped::start(&[], "--workers 2 --threads 3", "");
    assert_eq!(app.slots(), Some(6));
    // The master cannot start another one.
    kill_process(app.master, Signal::STOP).unwrap();
    kill_process(app.workers()[0], Signal::KILL).unwrap();
    app.wait_for(1, 3, "1 worker x 3 threads");
    kill_process(app.master, Signal::CONT).unwrap();
    app.wait_for(1, 6, "2 workers x 3 threads");
}

#[test]
fn old_workers_at_their_last_request_are_no_slots_beside_the_new_ones() {
    for to_gunicorn in [false, true] {
        let app = Wrapped::start(&[], "--workers 2", "");
        let old = app.workers();
        let mut long = app.proxy.connect();
        let dir = tempfile::tempdir().unwrap();
        let done = dir.path().join("done");
        long.get(&format!("/until?path={}", done.display()));
        app.proxy.stdout.wait_for(|line| line == "waiting");
        match to_gunicorn {
            true => kill_process(app.master, Signal::HUP).unwrap(),
            false => app.proxy.signal(Signal::HUP),
        }
        // Two new ones, and the one that waits.
        until(|| {
            let now = app.workers();
            now.len() == 3 && now.iter().filter(|pid| old.contains(pid)).count() == 1
        });
        fs::write(done, "").unwrap();
        assert_eq!(long.response().text(), "waited\n");
        until(|| app.workers().len() == 2);
        assert_eq!(app.slots(), Some(2));
        let said = app.proxy.stderr.seen();
        assert!(!said.iter().any(|line| line.contains("the app has")), "{said:#?}");
    }
}

#[test]
fn request_that_no_worker_takes_takes_one_slot_out_until_it_is_read() {
    let app = Wrapped::start(&[], "--workers 2", "");
    let workers = app.workers();
    let all = |signal| workers.iter().for_each(|pid| kill_process(*pid, signal).unwrap());
    // They live, and take nothing.
    all(Signal::STOP);
    let mut client = app.proxy.connect();
    client.get("/");
    until(|| app.slots() == Some(1));
    all(Signal::CONT);
    assert_eq!(client.response().status(), 200);
    assert_eq!(app.slots(), Some(2));

    // The same when its client does not wait for that: a worker is busy with it for nobody.
    all(Signal::STOP);
    client.get("/sleep?s=2");
    until(|| app.slots() == Some(1));
    drop(client);
    app.proxy.record("/sleep");
    assert_eq!(app.slots(), Some(1));
    all(Signal::CONT);
    until(|| app.slots() == Some(2));
    assert_eq!(app.status("in_flight"), Some(1));
}

#[test]
fn workers_that_only_python_can_count_are_counted() {
    let app = Wrapped::start(&[], "", "workers = 1 + 2\n");
    let boot = app.proxy.stderr.wait_for(|line| line.contains(" listening on "));
    assert!(boot.contains("concurrency auto (gunicorn sync, its workers counted)"), "{boot}");
    app.wait_for(1, 3, "3 workers");
}

#[test]
fn workers_are_found_behind_launchers() {
    for launcher in
        [&["newrelic-admin", "run-program"][..], &["ddtrace-run"], &["uv", "run"], &["sh", "-c"]]
    {
        let app = Wrapped::start(launcher, "--workers 2", "");
        let boot = app.proxy.stderr.wait_for(|line| line.contains(" listening on "));
        assert!(boot.contains("concurrency 2 (gunicorn sync, 2 workers)"), "{launcher:?}: {boot}");
        let child = children(app.proxy.pid())[0];
        let behind = matches!(launcher[0], "uv" | "sh");
        assert_eq!(child != app.master, behind, "{launcher:?}");
        // It has come to gunicorn: a shell would stop at TTIN, and end at HUP.
        app.proxy.signal(Signal::TTIN);
        app.wait_for(1, 3, "3 workers");
        let old = app.workers();
        app.proxy.signal(Signal::HUP);
        until(|| {
            let now = app.workers();
            now.len() == 2 && !now.iter().any(|pid| old.contains(pid))
        });
        app.wait_for(1, 2, "2 workers");
        let mut client = app.proxy.connect();
        client.get("/");
        assert_eq!(client.response().status(), 200, "{launcher:?}");
        let exit = app.proxy.stop();
        assert_eq!(exit.code, 0, "{launcher:?}: {exit:#?}");
    }
}

#[test]
fn workers_of_a_passed_socket_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut command: Command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--"]).arg(venv().join("gunicorn"));
    command.args(["--workers", "2", "--chdir"]).arg(repository()).arg("tests.apps.wsgi:app");
    let proxy = Proxy::spawn(command, dir);
    let open = proxy.stderr.find(1, Duration::from_secs(60), |line| line.contains("port open"));
    assert!(open.is_some(), "{:#?}", proxy.stderr.seen());
    proxy.signal(Signal::TTIN);
    proxy.stderr.wait_for(|line| line == "bufproxy: concurrency 3: the app has 3 workers");
}
