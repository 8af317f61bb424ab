//! The wrapped command: the port opens when the app answers, signals pass, and its end is ours.

use std::fs::File;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{Proxy, bufproxy, repository};

/// A proxy with `tests/apps/worker.py` behind it as its child.
struct Wrapped {
    proxy: Proxy,
    gate: PathBuf,
}

/// The proxy's command line, up to and with the child's; `gate` is the file that the app waits for.
fn wrap(dir: &TempDir, options: &[&str], gate: Option<&Path>) -> Command {
    let socket = dir.path().join("app.sock");
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--upstream"]).arg(&socket).args(options);
    command.arg("--").arg("python3").arg(repository().join("tests/apps/worker.py")).arg(socket);
    command.args(gate);
    command
}

impl Wrapped {
    /// Waits until the port is open.
    #[track_caller]
    fn start(options: &[&str]) -> Wrapped {
        let dir = tempfile::tempdir().unwrap();
        let gate = dir.path().join("gate");
        let proxy = Proxy::spawn(wrap(&dir, options, None), dir);
        proxy.stderr.wait_for(is_open);
        Wrapped { proxy, gate }
    }
}

fn is_open(line: &str) -> bool {
    line.contains("port open")
}

#[test]
fn port_opens_when_the_app_has_answered() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("boot");
    let proxy = Proxy::spawn(wrap(&dir, &[], Some(&gate)), dir);
    // The app listens already, as gunicorn does before it has workers: that proves nothing.
    let refused = TcpStream::connect(proxy.addr).map_err(|e| e.kind());
    assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused));
    assert!(!proxy.stderr.seen().iter().any(|line| is_open(line)));

    File::create(gate).unwrap();
    let line = proxy.stderr.wait_for(is_open);
    assert!(line.starts_with("bufproxy: app answered HEAD / after "), "{line}");
    let mut client = proxy.connect();
    client.get("/");
    assert_eq!(client.response().text(), "xx");
    drop(client);
    // The probe is no request of a client.
    let exit = proxy.stop();
    assert_eq!(exit.stdout.iter().filter(|line| line.contains("request=")).count(), 1, "{exit:?}");
}

#[test]
fn early_port_answers_503_until_the_app_does() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("boot");
    let options = ["--open-port", "early", "--connect-retry", "100ms", "--app-timeout", "200ms"];
    let proxy = Proxy::spawn(wrap(&dir, &options, Some(&gate)), dir);
    let mut client = proxy.connect();
    client.get("/early");
    assert_eq!(client.response().status(), 503);
    assert_eq!(proxy.record("/early").get("end"), "app_starting");
}

#[test]
fn exit_code_of_the_app_becomes_ours() {
    let wrapped = Wrapped::start(&["--retry", "off"]);
    let mut client = wrapped.proxy.connect();
    client.get("/exit?7");
    assert!(matches!(client.response().status(), 502 | 503));
    assert_eq!(wrapped.proxy.wait().code, 7);
}

#[test]
fn app_that_is_killed_ends_us_as_a_shell_would_show_it() {
    let wrapped = Wrapped::start(&["--retry", "off"]);
    let child = child_of(&wrapped.proxy);
    rustix::process::kill_process(child, Signal::KILL).unwrap();
    assert_eq!(wrapped.proxy.wait().code, 128 + 9);
}

/// The one child of the proxy's main thread.
fn child_of(proxy: &Proxy) -> rustix::process::Pid {
    let pid = proxy.pid().as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    rustix::process::Pid::from_raw(children.trim().parse().unwrap()).unwrap()
}

#[test]
fn what_the_app_had_finished_is_delivered_after_its_end() {
    let Wrapped { proxy, .. } = Wrapped::start(&[]);
    let mut client = proxy.connect_slow();
    client.get("/big");
    client.head();
    // Another exchange through the one worker: it is done with the first.
    let mut other = proxy.connect();
    other.get("/");
    other.response();
    rustix::process::kill_process(child_of(&proxy), Signal::KILL).unwrap();
    assert!(client.exact(2_000_000) == [b'x'; 2_000_000]);
    let exit = proxy.wait();
    assert_eq!(exit.code, 128 + 9);
    let summary = "0 finished, 1 delivered after the app's end, 0 refused, 0 cut";
    assert!(exit.stderr.iter().any(|line| line.ends_with(summary)), "{exit:?}");
}

#[test]
fn command_that_cannot_be_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--upstream",
        "unix:app.sock",
        "--",
        "no-such-program",
    ]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(127), "{stderr}");
    assert!(stderr.contains("no-such-program"), "{stderr}");
}

#[test]
fn app_that_never_answers_ends_the_boot() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("never.sock");
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--boot-timeout", "300ms", "--upstream"]).arg(&socket);
    command.args(["--", "sleep", "60"]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("boot-timeout") && stderr.contains("never.sock"), "{stderr}");
}

#[test]
fn app_that_ends_at_boot_ends_us() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--upstream", "unix:app.sock"]);
    command.args(["--", "sh", "-c", "exit 3"]);
    assert_eq!(command.output().unwrap().status.code(), Some(3));
}

#[test]
fn signals_that_mean_nothing_to_us_go_to_the_app() {
    let wrapped = Wrapped::start(&[]);
    let signals = [
        (Signal::HUP, "SIGHUP"),
        (Signal::USR1, "SIGUSR1"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::TTIN, "SIGTTIN"),
        (Signal::TTOU, "SIGTTOU"),
        (Signal::WINCH, "SIGWINCH"),
    ];
    for (signal, name) in signals {
        wrapped.proxy.signal(signal);
        wrapped.proxy.stdout.wait_for(|line| line == format!("got {name}"));
    }
    let mut client = wrapped.proxy.connect();
    client.get("/");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn app_is_told_to_stop_when_its_work_is_done() {
    let Wrapped { proxy, gate } = Wrapped::start(&[]);
    let mut client = proxy.connect();
    client.get(&format!("/gate?{}", gate.display()));
    proxy.settle();
    proxy.signal(Signal::TERM);
    proxy.stderr.wait_for(|line| line.starts_with("bufproxy: stopping (TERM)"));
    // A TERM now would end the worker in the middle of its request.
    File::create(gate).unwrap();
    assert_eq!(client.response().status(), 200);
    let exit = proxy.wait();
    // The worker's own code is 143; a stop that was asked for is a success.
    assert_eq!(exit.code, 0, "{exit:?}");
    assert_eq!(exit.stdout.iter().filter(|line| *line == "got SIGTERM").count(), 1, "{exit:?}");
}

#[test]
fn stop_signal_can_be_chosen() {
    let wrapped = Wrapped::start(&["--child-stop-signal", "QUIT"]);
    let exit = wrapped.proxy.stop();
    assert_eq!(exit.code, 0, "{exit:?}");
    assert!(exit.stdout.contains(&"got SIGQUIT".to_string()), "{exit:?}");
    assert!(!exit.stdout.contains(&"got SIGTERM".to_string()), "{exit:?}");
}

#[test]
fn app_that_does_not_stop_is_killed_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("app.sock");
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--open-port", "early", "--drain-timeout", "500ms"]);
    command.arg("--upstream").arg(socket);
    command.args(["--", "sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"]);
    let proxy = Proxy::spawn(command, dir);
    proxy.stdout.wait_for(|line| line == "deaf");
    let child = child_of(&proxy);
    assert_eq!(proxy.stop().code, 0);
    assert!(!is_alive(child), "the app lives on");
}

/// Runs: not gone, and not a zombie that waits for its new parent.
fn is_alive(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn app_does_not_outlive_a_killed_proxy() {
    let wrapped = Wrapped::start(&[]);
    wrapped.proxy.signal(Signal::KILL);
    let exit = wrapped.proxy.wait();
    assert_eq!(exit.code, 128 + 9);
    // stdout ended, so the app, which had it too, has ended.
    assert!(exit.stdout.contains(&"got SIGTERM".to_string()), "{exit:?}");
}

#[test]
fn stop_does_not_give_up_what_a_full_app_has_not_taken_yet() {
    let Wrapped { proxy, gate } = Wrapped::start(&[]);
    // One is at the app, its backlog holds 17.
    let mut clients: Vec<_> = (0..24).map(|_| proxy.connect()).collect();
    clients[0].get(&format!("/gate?{}", gate.display()));
    proxy.stdout.wait_for(|line| line == "at the gate");
    for client in &mut clients[1..] {
        client.get("/");
    }
    proxy.settle();
    proxy.signal(Signal::TERM);
    proxy.stderr.wait_for(|line| line.starts_with("bufproxy: stopping (TERM)"));
    File::create(gate).unwrap();
    for client in &mut clients {
        assert_eq!(client.response().status(), 200);
    }
    assert_eq!(proxy.wait().code, 0);
}
