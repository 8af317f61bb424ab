//! `pass-socket` and `restart`: the app's end loses nothing that waits for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{Client, Proxy, bufproxy, repository, unix_path, until};

/// bufproxy with `tests/apps/worker.py` as its child; `socket` is the worker's first argument.
fn command(dir: &TempDir, options: &[&str], socket: &str) -> Command {
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--upstream"]).arg(unix_path(dir)).args(options);
    command.args(["--", "python3"]).arg(worker()).arg(socket);
    command
}

fn worker() -> PathBuf {
    repository().join("tests/apps/worker.py")
}

/// With the listener passed; returns when the port is open.
#[track_caller]
fn passed(options: &[&str]) -> (Proxy, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let command = command(&dir, &[&["--pass-socket", "on"], options].concat(), "-");
    (open(Proxy::spawn(command, dir)), path)
}

#[track_caller]
fn open(proxy: Proxy) -> Proxy {
    proxy.stderr.wait_for(|line| line.contains("port open"));
    proxy
}

/// The process that serves.
#[track_caller]
fn app(proxy: &Proxy) -> Pid {
    let mut client = proxy.connect();
    client.get("/pid");
    Pid::from_raw(client.response().text().parse().unwrap()).unwrap()
}

/// Kills the app, and waits until that is known.
#[track_caller]
fn kill_app(proxy: &Proxy, nth: usize) -> String {
    kill_process(app(proxy), Signal::KILL).unwrap();
    proxy.stderr.wait_for_nth(nth, |line| line.starts_with("bufproxy: app ended"))
}

#[test]
fn the_app_serves_the_listener_that_it_is_passed() {
    let (proxy, dir) = passed(&[]);
    let mut client = proxy.connect();
    client.get("/");
    assert_eq!(client.response().text(), "xx");
    // One descriptor, the third: not the number that it has here, too.
    let open = std::fs::read_dir(format!("/proc/{}/fd", app(&proxy).as_raw_nonzero())).unwrap();
    let socket = std::fs::read_link(format!("/proc/{}/fd/3", app(&proxy).as_raw_nonzero()));
    let socket = socket.unwrap();
    let same = open.filter(|fd| {
        std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|other| other == socket)
    });
    assert_eq!(same.count(), 1);
    assert_eq!(proxy.stop().code, 0);
    assert!(!dir.join("app.sock").exists());
}

#[test]
fn what_waits_in_the_passed_socket_is_served_by_the_next_process() {
    let (proxy, dir) = passed(&["--restart", "on"]);
    let gate = dir.join("gate");
    // One is in the worker, three wait behind it.
    let mut worked_at = proxy.connect();
    worked_at.send(format!("POST /gate?{} HTTP/1.1\r\nHost: a\r\n", gate.display()));
    worked_at.send("Content-Length: 0\r\n\r\n");
    proxy.stdout.wait_for(|line| line == "at the gate");
    let first = app_behind(&proxy);
    let mut waiting: Vec<Client> = (0..3).map(|_| proxy.connect()).collect();
    for client in &mut waiting {
        client.send("POST /pid HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    }
    proxy.settle();
    kill_process(first, Signal::KILL).unwrap();
    assert_eq!(worked_at.response().status(), 502);
    let said = proxy.stderr.wait_for(|line| line.starts_with("bufproxy: app ended"));
    assert_eq!(said, "bufproxy: app ended: killed by signal 9; restarting in 1 s");
    for client in &mut waiting {
        let response = client.response();
        assert_eq!(response.status(), 200);
        assert_ne!(response.text(), first.as_raw_nonzero().to_string());
    }
    let record = proxy.record("/pid").0;
    assert!(!record.contains("retry="), "it was not even sent again: {record}");
    assert_eq!(proxy.stop().code, 0);
}

/// The app's process while it is busy: the one child of the proxy's main thread.
#[track_caller]
fn app_behind(proxy: &Proxy) -> Pid {
    let pid = proxy.pid().as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    Pid::from_raw(children.trim().parse().unwrap()).unwrap()
}

#[test]
fn what_waits_in_the_passed_socket_is_refused_at_once_when_nobody_comes_back() {
    let (proxy, dir) = passed(&["--connect-retry", "1m", "--app-timeout", "2m"]);
    let gate = dir.join("gate");
    let mut worked_at = proxy.connect();
    worked_at.send(format!("POST /gate?{} HTTP/1.1\r\nHost: a\r\n", gate.display()));
    worked_at.send("Content-Length: 0\r\n\r\n");
    proxy.stdout.wait_for(|line| line == "at the gate");
    let first = app_behind(&proxy);
    let mut waiting = proxy.connect();
    waiting.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    proxy.settle();
    kill_process(first, Signal::KILL).unwrap();
    assert_eq!(worked_at.response().status(), 502);
    assert_eq!(
        waiting.response().status(),
        503,
        "it was unread, so it may be sent again elsewhere"
    );
    let exit = proxy.wait();
    assert_eq!(exit.code, 128 + 9, "{exit:?}");
}

#[test]
fn app_that_ends_again_and_again_is_started_with_growing_pauses() {
    let dir = tempfile::tempdir().unwrap();
    let socket = unix_path(&dir).display().to_string();
    let options = ["--restart", "on", "--connect-retry", "20s", "--retry", "off"];
    let proxy = open(Proxy::spawn(command(&dir, &options, &socket), dir));
    let ended = kill_app(&proxy, 1);
    assert!(ended.ends_with("app ended: killed by signal 9; restarting in 1 s"), "{ended}");
    // Its socket is dead: who comes now waits, and the file is taken away for the next process.
    let ended = kill_app(&proxy, 2);
    assert!(ended.ends_with("restarting in 2 s"), "{ended}");
    let mut client = proxy.connect();
    client.get("/");
    assert_eq!(client.response().status(), 200);
    assert_eq!(proxy.stop().code, 0);
}

#[test]
fn stop_while_the_app_is_away_does_not_wait_for_it() {
    let (proxy, _) = passed(&["--restart", "on", "--concurrency", "1", "--connect-retry", "1m"]);
    kill_app(&proxy, 1);
    let mut waiting = [proxy.connect(), proxy.connect()];
    for client in &mut waiting {
        client.get("/waits");
    }
    proxy.settle();
    proxy.signal(Signal::TERM);
    for client in &mut waiting {
        assert_eq!(client.response().status(), 503);
    }
    let exit = proxy.wait();
    assert_eq!(exit.code, 0, "{exit:?}");
    let records: Vec<_> = exit.stdout.iter().filter(|line| line.contains("/waits")).collect();
    assert_eq!(records.len(), 2, "{exit:?}");
    for record in records {
        assert!(record.contains(" status_code=503 "), "{record}");
        assert!(record.ends_with(" end=draining"), "{record}");
    }
    assert!(exit.stderr.iter().any(|line| line.ends_with("2 refused, 0 cut")), "{exit:?}");
    let starts = exit.stderr.iter().filter(|line| line.contains("port open")).count();
    assert_eq!(starts, 1);
}

#[test]
fn app_that_ends_before_it_has_answered_is_not_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--restart", "on", "--upstream"]).arg(unix_path(&dir));
    command.args(["--", "sh", "-c", "exit 3"]);
    assert_eq!(command.output().unwrap().status.code(), Some(3));
}

#[test]
fn workers_of_a_dead_master_do_not_serve_beside_the_next_ones() {
    /// A master with one worker, which does not look whether its parent lives.
    const MASTER: &str = "
import os, sys
if os.fork() == 0:
    os.environ['LISTEN_PID'] = str(os.getpid())
    os.execvp('python3', ['python3', sys.argv[1], '-'])
os.wait()
";
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--pass-socket", "on", "--restart", "on"]);
    command.arg("--upstream").arg(unix_path(&dir));
    command.args(["--", "python3", "-c", MASTER]).arg(worker());
    let proxy = open(Proxy::spawn(command, dir));
    let (master, old) = (app_behind(&proxy), app(&proxy));
    assert_ne!(master, old);
    kill_process(master, Signal::KILL).unwrap();
    proxy.stdout.wait_for(|line| line == "got SIGTERM");
    assert_ne!(app(&proxy), old);
    assert_eq!(proxy.stop().code, 0);
}

#[test]
fn workers_of_a_master_that_is_killed_at_the_deadline_do_not_outlive_it() {
    /// A master that ignores TERM, with a worker that does too, and lets its parent go.
    const MASTER: &str = "
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.environ['LISTEN_PID'] = str(os.getpid())
    import socket
    listener = socket.socket(fileno=3)
    listener.setblocking(True)
    while True:
        connection, _ = listener.accept()
        connection.recv(8192)
        connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n')
        connection.close()
while True:
    time.sleep(1)
";
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--pass-socket", "on", "--drain-timeout", "500ms"]);
    command.arg("--upstream").arg(unix_path(&dir)).args(["--", "python3", "-c", MASTER]);
    let proxy = open(Proxy::spawn(command, dir));
    let master = app_behind(&proxy).as_raw_nonzero();
    let worker = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap();
    let worker = Pid::from_raw(worker.trim().parse().unwrap()).unwrap();
    proxy.signal(Signal::TERM);
    proxy.stderr.wait_for(|line| line.starts_with("bufproxy: stopped after "));
    let stat = format!("/proc/{}/stat", worker.as_raw_nonzero());
    until(|| std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")));
    assert_eq!(proxy.wait().code, 0);
}

#[test]
fn app_that_binds_the_path_itself_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--pass-socket", "on", "--upstream"]);
    // As gunicorn does it whose LISTEN_PID is another's: it takes the file away and binds its own.
    command.arg(unix_path(&dir)).args(["--", "sh", "-c", "rm $0; python3 $1 $0 & wait $!"]);
    command.arg(unix_path(&dir)).arg(worker());
    let proxy = open(Proxy::spawn(command, dir));
    proxy.stderr.wait_for(|line| line.contains("is not used"));
    let mut client = proxy.connect();
    client.get("/");
    assert_eq!(client.response().text(), "xx");
}

#[test]
fn dead_socket_of_the_last_run_is_removed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let socket = unix_path(&dir);
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let path = socket.display().to_string();
    let proxy = open(Proxy::spawn(command(&dir, &[], &path), dir));
    assert_eq!(proxy.stop().code, 0);

    // A file is no socket; where somebody serves one the app cannot bind, and says so itself.
    for (what, code) in [("file", 2), ("live", 1)] {
        let dir = tempfile::tempdir().unwrap();
        let socket = unix_path(&dir);
        let live = match what {
            "file" => std::fs::write(&socket, "mine").map(|()| None).unwrap(),
            _ => Some(std::os::unix::net::UnixListener::bind(&socket).unwrap()),
        };
        let path = socket.display().to_string();
        let output = command(&dir, &[], &path).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(Path::new(&socket).exists(), "{what}");
        drop(live);
    }
}

#[test]
fn line_is_answered_at_once_though_a_worker_outlives_the_app() {
    /// A master with a worker that is not impressed by TERM, and answers nobody but the readiness probe.
    const MASTER: &str = "
import os, signal, sys, time
if os.fork() == 0:
    os.environ['LISTEN_PID'] = str(os.getpid())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import socket
    listener = socket.socket(fileno=3)
    listener.setblocking(True)
    connection, _ = listener.accept()
    connection.recv(8192)
    connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n')
    connection.close()
    connection, _ = listener.accept()
    connection.recv(8192)
    os.write(1, b'at work\\n')
while True:
    time.sleep(1)
";
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--pass-socket", "on", "--concurrency", "1"]);
    command.args(["--drain-timeout", "4s", "--upstream"]).arg(unix_path(&dir));
    command.args(["--", "python3", "-c", MASTER]);
    let proxy = open(Proxy::spawn(command, dir));
    let mut at_work = proxy.connect();
    at_work.get("/");
    proxy.stdout.wait_for(|line| line == "at work");
    let mut waiting = proxy.connect();
    waiting.get("/waits");
    proxy.settle();
    kill_process(app_behind(&proxy), Signal::KILL).unwrap();
    assert_eq!(waiting.response().status(), 503);
    assert_eq!(proxy.record("/waits").get("end"), "draining");
}
