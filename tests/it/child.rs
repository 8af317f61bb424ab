//! The wrapped command as a process: what it is given, whose child it is, and who reaps. (What it
//! means for requests is in `lifecycle` and `shutdown`.)

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, getpgrp, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::support::{App, GUARD, Proxy, bufproxy, ok, unix_path, until};

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
fn what_the_app_said_last_is_in_the_message_when_it_dies_before_it_has_answered() {
    let script = r#"echo starting >&2; printf 'no \033[1mdatabase\n\n' >&2; exit 3"#;
    let words = r#"its last words: "no \u{1b}[1mdatabase""#;
    let early = run(&["sh", "-c", script]);
    let said = format!("bufproxy: app ended: exit code 3; {words}");
    assert!(stderr(&early).lines().any(|line| line == said), "{}", stderr(&early));

    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--upstream", "unix:app.sock", "--"]);
    let output = command.args(["sh", "-c", script]).output().unwrap();
    // Ours of the start may come before or after its first.
    let boot = |line: &&str| line.starts_with("bufproxy 0");
    let lines: Vec<&str> = stderr(&output).lines().filter(|line| !boot(line)).collect();
    let command = r#"sh -c echo starting >&2; printf 'no \033[1mdatabase\n\n' >&2; exit 3"#;
    let message =
        format!("bufproxy: error: app ended before it answered: exit code 3 ({command}); {words}");
    assert_eq!(lines, ["starting", "no \x1b[1mdatabase", "", message.as_str()]);
}

#[test]
fn what_the_app_says_while_it_does_not_answer_is_in_the_message_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--upstream", "unix:app.sock"]);
    command.args(["--boot-timeout", "3s", "--", "sh", "-c", "echo no key >&2; exec sleep 60"]);
    let output = command.output().unwrap();
    let last = stderr(&output).lines().last().unwrap();
    assert!(last.contains("within boot-timeout 3s: the socket does not exist."), "{last}");
    assert!(last.ends_with("; its last words: \"no key\""), "{last}");
}

#[test]
fn stderr_of_the_app_arrives_whole_and_in_order() {
    // Slowly, then 1 MB at once; at the end a line without an end, and somebody who goes on.
    let script = r#"for i in 1 2 3 4 5; do echo "slow $i" >&2; sleep 0.03; done
        i=0; while [ $i -lt 20000 ]; do echo "$i 345678901234567890123456789012345678901234567" >&2; i=$((i+1)); done
        head -c 9000 /dev/zero | tr '\0' x >&2; echo >&2
        (while echo noise >&2; do :; done) > /dev/null &
        printf 'no end' >&2; exit 3"#;
    let output = run(&["sh", "-c", script]);
    assert_eq!(output.status.code(), Some(3));
    let mut expected: Vec<String> = (1..=5).map(|i| format!("slow {i}")).collect();
    let line = |i| format!("{i} 345678901234567890123456789012345678901234567");
    expected.extend((0..20_000).map(line));
    expected.push("x".repeat(9000));
    let mut lines = stderr(&output).lines().map(|line| line.replace("noise", ""));
    let mut said = lines.by_ref().filter(|line| !line.is_empty() && !line.starts_with("bufproxy"));
    for expected in expected {
        assert_eq!(said.next().unwrap(), expected);
    }
    assert_eq!(said.next().unwrap(), "no end");
    assert_eq!(said.next(), None);
    let ours = stderr(&output).lines().filter(|line| line.contains("app ended: exit code 3"));
    assert!(ours.clone().count() == 1 && ours.clone().all(|line| line.starts_with("bufproxy: ")));
}

#[test]
fn stderr_that_nobody_reads_holds_the_app_and_not_us() {
    let dir = tempfile::tempdir().unwrap();
    let app = App::answering(ok("served"));
    let front = dir.path().join("front.sock");
    let mut command = bufproxy(dir.path());
    command.arg("--listen").arg(format!("unix:{}", front.display()));
    command.args(["--open-port", "early", "--drain-timeout", "4s", "--upstream", app.address()]);
    command.args(["--", "sh", "-c", "while :; do echo is there anybody >&2; done"]);
    let (_unread, full) = std::io::pipe().unwrap();
    command.stdout(Stdio::null()).stderr(full.try_clone().unwrap());
    let mut proxy = command.spawn().unwrap();
    until(|| front.exists());
    let pid = Pid::from_child(&proxy);
    let writable = || poll(&mut [PollFd::new(&full, PollFlags::OUT)], Some(&Timespec::default()));
    until(|| writable().unwrap() == 0);
    let mut client = UnixStream::connect(&front).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("served"), "{answer}");
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(proxy.wait().unwrap().code(), Some(0));
}

#[test]
fn stderr_that_is_gone_does_the_app_no_harm() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo 0123456789 >&2 || exit 9; i=$((i+1)); done
                  echo done";
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(arguments(&dir)).args(["sh", "-c", script]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stderr(writer).stdout(Stdio::piped()).spawn().unwrap();
    let output = output.wait_with_output().unwrap();
    assert_eq!((stdout(&output), output.status.code()), ("done\n", Some(0)));
    let output = run_in(under_shell("exec 2>&-"), &["sh", "-c", script]);
    assert_eq!((stdout(&output), output.status.code()), ("done\n", Some(0)));
}

#[test]
fn line_without_an_end_is_not_held_back_for_ever() {
    // One that stops in the middle, one that never stops.
    for (script, seen) in [
        ("printf 'no end' >&2; exec sleep 60", "no end".into()),
        ("while :; do printf xxxxxxxx >&2; done", "x".repeat(10_000)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = bufproxy(dir.path());
        // So that it ends where nothing comes.
        command.args(["--open-port", "ready", "--boot-timeout", "10s"]);
        command.args(["--listen", "127.0.0.1:0", "--upstream"]).arg(unix_path(&dir));
        command.args(["--", "sh", "-c", script]).stdout(Stdio::null());
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut proxy = command.stderr(writer).spawn().unwrap();
        drop(command);
        let (mut said, mut block) = (String::new(), [0; 4096]);
        while !said.contains(&seen) {
            let n = reader.read(&mut block).unwrap();
            said += std::str::from_utf8(&block[..n]).unwrap();
            assert!(n > 0 && !said.contains("did not answer within"), "{said}");
        }
        proxy.kill().unwrap();
        proxy.wait().unwrap();
    }
}

#[test]
fn last_words_are_of_the_last_kilobytes() {
    let script = "printf '  line 1\\nOldError: long ago\\n' >&2
                  i=0; while [ $i -lt 1000 ]; do echo 'much later' >&2; i=$((i+1)); done; exit 3";
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--upstream"]).arg(unix_path(&dir));
    let output = command.args(["--", "sh", "-c", script]).output().unwrap();
    let last = stderr(&output).lines().last().unwrap();
    assert!(last.ends_with("; its last words: \"much later\""), "{last}");
}

#[test]
fn stderr_of_the_next_process_arrives_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    let mut arguments = arguments(&dir);
    arguments.splice(0..0, ["--restart", "on"].map(String::from));
    command.args(arguments).args(["sh", "-c", "echo x >> n; echo start $(wc -l < n) >&2; exit 1"]);
    let proxy = Proxy::spawn(command, dir);
    proxy.stderr.wait_for(|line| line == "start 2");
    let said = proxy.stderr.wait_for(|line| line.contains("restarting in 2 s"));
    let expected = "app ended: exit code 1; restarting in 2 s; its last words: \"start 2\"";
    assert_eq!(said, format!("bufproxy: {expected}"));
}

#[test]
fn terminal_stays_the_apps_own() {
    const PTY: &str = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    let pty = |bufproxy: Command| {
        let mut python = Command::new("python3");
        python.args(["-c", PTY]).arg(bufproxy.get_program()).stdin(Stdio::null());
        python.current_dir(bufproxy.get_current_dir().unwrap());
        python
    };
    let output = run_in(pty, &["sh", "-c", "[ -t 2 ] && echo 'it is one' >&2; exit 3"]);
    assert!(stdout(&output).contains("it is one"), "{output:?}");
    assert!(stdout(&output).contains("app ended: exit code 3\r\n"), "{output:?}");
    let output = run(&["sh", "-c", "[ -t 2 ] || echo 'it is none' >&2; exit 3"]);
    assert!(stderr(&output).contains("it is none"), "{output:?}");
}

#[test]
fn ready_1_of_the_app_opens_the_port_and_nothing_else_does() {
    const APP: &str = "
import os, socket, sys, time
told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
told.connect(os.environ['NOTIFY_SOCKET'])
def say(*words):
    # More than the kernel keeps for somebody who does not read.
    for _ in range(100):
        for word in words:
            told.send(word)
    print('said', flush=True)
say(b'STATUS=READY=1', b'READY=0', b'READY=1\\nSTATUS=Gunicorn arbiter booted')
while not os.path.exists('gate'):
    time.sleep(0.002)
say(b'STATUS=up\\nREADY=1')
say(b'WATCHDOG=1')
time.sleep(60)
";
    let (dir, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let gate = dir.path().join("gate");
    let mut command = bufproxy(dir.path());
    command.env("TMPDIR", temporary.path());
    command.args(["--listen", "127.0.0.1:0", "--upstream"]).arg(unix_path(&dir));
    command.args(["--", "python3", "-c", APP]);
    let proxy = Proxy::spawn(command, dir);
    proxy.stdout.wait_for(|line| line == "said");
    let refused = std::net::TcpStream::connect(proxy.addr).map_err(|e| e.kind());
    assert_eq!(refused.err(), Some(std::io::ErrorKind::ConnectionRefused));
    std::fs::write(gate, "").unwrap();
    let line = proxy.stderr.wait_for(|line| line.contains("port open"));
    assert!(line.starts_with("bufproxy: app said READY=1 after "), "{line}");
    proxy.stdout.wait_for_nth(3, |line| line == "said");
    assert_eq!(proxy.stop().code, 0);
    let left = |name: &str| name.starts_with("bufproxy-");
    let names =
        std::fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names.into_iter().any(|name| left(&name.to_string_lossy())));
}

#[test]
fn ready_1_is_not_asked_of_gunicorn_nor_where_something_else_was_chosen() {
    for (name, option, given) in [
        ("gunicorn", &[][..], false),
        ("app", &["--ready-path", "/up"], false),
        ("app", &["--ready-file", "up"], false),
        ("app", &[], true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(name);
        let script = format!("printf '#!/bin/sh\necho ${{NOTIFY_SOCKET:+given}}\n' > {name}");
        let mut made = Command::new("sh");
        made.args(["-c", &format!("{script}; chmod +x {name}")]);
        assert!(made.current_dir(&dir).status().unwrap().success());
        let mut command = bufproxy(dir.path());
        command.args(["--listen", "127.0.0.1:0", "--upstream"]).arg(unix_path(&dir)).args(option);
        let output = command.env("NOTIFY_SOCKET", "/systemd").arg("--").arg(program);
        let output = output.output().unwrap();
        assert_eq!(stdout(&output).trim() == "given", given, "{name} {option:?}: {output:?}");
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

#[test]
fn readiness_is_asked_of_the_chosen_host() {
    const APP: &str = "
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(16)
while True:
    connection, _ = listener.accept()
    for line in connection.recv(65536).decode().splitlines():
        print(line.lower(), flush=True)
    connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n')
    connection.close()
";
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--ready-host", "shop.example"]);
    command.arg("--upstream").arg(unix_path(&dir));
    command.args(["--", "python3", "-c", APP]).arg(unix_path(&dir));
    let proxy = Proxy::spawn(command, dir);
    proxy.stdout.wait_for(|line| line == "host: shop.example");
    proxy.stderr.wait_for(|line| line.contains("port open"));
}

#[test]
fn orphans_that_end_all_the_time_do_not_hold_up_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--drain-timeout", "1s"]).args(arguments(&dir));
    let app = "import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
while True:
    if os.fork() == 0:
        os._exit(os.fork() * 0)
    os.wait()";
    command.args(["python3", "-c", app]);
    let proxy = Proxy::spawn(command, dir);
    proxy.stdout.wait_for(|line| line == "up");
    let exit = proxy.stop();
    assert_eq!(exit.code, 0, "{exit:?}");
    assert!(exit.stderr.iter().any(|line| line.contains("did not end in time")), "{exit:?}");
}
