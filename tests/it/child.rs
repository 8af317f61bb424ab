//! The wrapped command as a process: what it is given, whose child it is, and who reaps. (What it
//! means for requests is in `lifecycle` and `shutdown`.)

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use rustix::process::{Pid, Signal, getpgrp, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::support::{App, GUARD, Proxy, bufproxy, unix_path};

/// Our arguments up to the command. The port opens at once: no answer is needed.
fn arguments(dir: &TempDir) -> Vec<String> {
    let upstream = unix_path(dir).display().to_string();
    ["--listen", "127.0.0.1:0", "--open-port", "early", "--upstream", &upstream, "--"]
        .map(String::from)
        .to_vec()
}

/// Runs `command` wrapped, to its end.
fn run(command: &[&str]) -> Output {
    run_in(|bufproxy| bufproxy, command)
}

/// As `run`, where `change` completes or replaces our own command line.
fn run_in(change: impl FnOnce(Command) -> Command, command: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut bufproxy = change(bufproxy(dir.path()));
    bufproxy.args(arguments(&dir)).args(command).output().unwrap()
}

/// A command that runs until it is stopped. Waits until it has said `up`.
#[track_caller]
fn wrap(script: &str) -> Proxy {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(arguments(&dir)).args(["sh", "-c", script]);
    let proxy = Proxy::spawn(command, dir);
    proxy.stdout.wait_for(|line| line == "up");
    proxy
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Our binary, run by a shell after `setting`.
fn under_shell(setting: &str) -> impl FnOnce(Command) -> Command {
    let script = format!("{setting}; exec \"$0\" \"$@\"");
    move |bufproxy| {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).arg(bufproxy.get_program());
        shell.current_dir(bufproxy.get_current_dir().unwrap());
        shell
    }
}

/// Children of the proxy's main thread, zombies included.
fn children(proxy: &Proxy) -> BTreeSet<i32> {
    let pid = proxy.pid().as_raw_nonzero();
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn no_signal_is_ignored_or_blocked_in_the_app() {
    // As under nohup, and as a shell starts a background job.
    let ignoring = under_shell("trap '' HUP INT QUIT USR1");
    let output = run_in(ignoring, &["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]);
    let masks: Vec<_> = stdout(&output).lines().collect();
    assert_eq!(masks.len(), 2, "{output:?}");
    for mask in masks {
        let bits = u64::from_str_radix(mask.split_whitespace().last().unwrap(), 16).unwrap();
        // 32 and 33 are the C library's own; it ignores them in whatever it spawns.
        assert_eq!(bits & !(0b11 << 31), 0, "{mask}");
    }
}

#[test]
fn the_app_gets_the_descriptor_limit_that_we_got() {
    let script = "ulimit -Sn; grep 'open files' /proc/$PPID/limits";
    let output = run_in(under_shell("ulimit -Sn 300"), &["sh", "-c", script]);
    let (soft, ours) = stdout(&output).split_once('\n').unwrap();
    assert_eq!(soft, "300");
    let ours: Vec<_> = ours.split_whitespace().collect();
    assert_eq!(ours[3], ours[4], "ours is raised to the hard one");
}

#[test]
fn arguments_and_environment_reach_the_app_as_they_are() {
    let script = r#"printf '[%s]' "$0" "$@" "${NOTIFY_SOCKET-}${LISTEN_PID-}${LISTEN_FDS-}$LISTEN_FDNAMES" "$MINE""#;
    let output = run_in(
        |mut bufproxy| {
            bufproxy.envs([("NOTIFY_SOCKET", "/run/notify"), ("MINE", "kept")]);
            bufproxy.envs([("LISTEN_PID", "1"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "a")]);
            bufproxy
        },
        &["sh", "-c", script, "a  b", "", "--help", "--", "é*$X"],
    );
    assert_eq!(stdout(&output), "[a  b][][--help][--][é*$X][][kept]");
    // argv[0] too.
    let output = run(&["cat", "/proc/self/cmdline"]);
    assert_eq!(stdout(&output), "cat\0/proc/self/cmdline\0");
}

#[test]
fn the_app_is_in_our_process_group() {
    let output = run(&["cat", "/proc/self/stat"]);
    let group = stdout(&output).split(' ').nth(4).unwrap();
    assert_eq!(group, getpgrp().as_raw_nonzero().to_string());
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    for (command, code, said) in [
        (&["sh", "-c", "exit 3"][..], 3, "app ended: exit code 3"),
        (&["sh", "-c", "kill -9 $$"], 137, "app ended: killed by signal 9"),
        (&["nonesuch", "-x"], 127, "cannot run \"nonesuch\": not found in PATH"),
        (&["/etc/passwd"], 126, "cannot run \"/etc/passwd\": permission denied"),
        (&["./none"], 127, "cannot run \"./none\": no such file"),
    ] {
        let output = run(command);
        assert_eq!(output.status.code(), Some(code), "{command:?}");
        assert!(stderr(&output).contains(said), "{command:?}: {}", stderr(&output));
    }
}

#[test]
fn nothing_runs_for_a_parent_that_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = bufproxy(dir.path());
    // Not the process that starts it here.
    let output = shim.args(["__exec", "1", "-", "-", "--", "touch", "ran"]).output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{output:?}");
    assert!(!dir.path().join("ran").exists());
}

#[test]
fn orphans_are_adopted_and_reaped_and_their_status_is_not_the_apps() {
    // Each says whose child it is once its parent, a subshell, has ended.
    let proxy = wrap(
        r#"export B=$PPID
           orphan='while set -- $(cat /proc/$$/stat); [ $4 != $B ] && [ $4 != 1 ]; do :; done
                   echo adopted by $4; exit 3'
           for i in 1 2 3 4 5 6 7 8; do (sh -c "$orphan" &); done
           i=0; while [ $i -lt 100 ]; do (sh -c 'exit 3' &); i=$((i+1)); done
           echo up; exec sleep 60"#,
    );
    let us = format!("adopted by {}", proxy.pid().as_raw_nonzero());
    proxy.stdout.wait_for_nth(8, |line| line == us);
    let deadline = Instant::now() + GUARD;
    while children(&proxy).len() > 1 {
        assert!(Instant::now() < deadline, "left behind: {:?}", children(&proxy));
        std::thread::yield_now();
    }
    let app = *children(&proxy).first().unwrap();
    kill_process(Pid::from_raw(app).unwrap(), Signal::USR1).unwrap();
    assert_eq!(proxy.wait().code, 128 + Signal::USR1.as_raw());
}

#[test]
fn term_to_every_process_is_a_stop_that_was_asked_for() {
    // Whichever of the two is first.
    for _ in 0..10 {
        let proxy = wrap("echo up; exec sleep 60");
        kill_process_group(proxy.pid(), Signal::TERM).unwrap();
        let exit = proxy.wait();
        assert_eq!(exit.code, 0, "{exit:?}");
    }
}

#[test]
fn quit_is_passed_on_at_once() {
    let proxy = wrap("trap 'echo got QUIT; exit 0' QUIT; echo up; while :; do sleep 0.02; done");
    proxy.signal(Signal::QUIT);
    let exit = proxy.wait();
    assert_eq!(exit.code, 0, "{exit:?}");
    assert!(exit.stdout.contains(&"got QUIT".into()), "{exit:?}");
}

#[test]
fn second_int_kills_an_app_that_does_not_stop() {
    let proxy = wrap("trap '' TERM INT; echo up; while :; do sleep 0.02; done");
    let app = Pid::from_raw(*children(&proxy).first().unwrap()).unwrap();
    proxy.signal(Signal::INT);
    proxy.stderr.wait_for(|line| line.starts_with("bufproxy: stopping (INT)"));
    proxy.signal(Signal::INT);
    let exit = proxy.wait();
    assert_eq!(exit.code, 130, "{exit:?}");
    assert!(exit.stderr.contains(&"bufproxy: second INT: ending at once".into()), "{exit:?}");
    assert!(rustix::process::test_kill_process(app).is_err(), "the app lives on");
}

#[test]
fn ready_file_of_the_last_run_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    std::fs::write(&ready, "stale").unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--upstream"]).arg(unix_path(&dir));
    command.args(["--ready-file", "ready", "--", "sh", "-c"]);
    command.arg("[ -e ready ] && exit 9; echo up; : > ready; exec sleep 60");
    let proxy = Proxy::spawn(command, dir);
    let line = proxy.stderr.wait_for(|line| line.contains("port open"));
    assert!(line.starts_with("bufproxy: ready-file appeared after "), "{line}");
    assert_eq!(proxy.stop().code, 0);
}

#[test]
fn healthcheck_tells_by_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let check = |socket: &Path| {
        let mut command = bufproxy(dir.path());
        command.args(["healthcheck", "--admin"]).arg(format!("unix:{}", socket.display()));
        command.output().unwrap()
    };
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--admin", &format!("unix:{}", socket.display())]);
    let output = check(&socket);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");

    assert_eq!(proxy.stop().code, 0);
    let output = check(&socket);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.starts_with("bufproxy: error: unix:") && said.lines().count() == 1, "{said}");
}
