//! Real gunicorn, wrapped as the README says.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::support::{
    Client, GUARD, Proxy, bufproxy, chunked, free_port, pattern, repository, venv,
};

const SYNC: &[&str] = &["--workers", "1", "--worker-class", "sync"];
const GTHREAD: &[&str] = &["--workers", "1", "--worker-class", "gthread", "--threads", "2"];

/// bufproxy with gunicorn and `tests/apps/wsgi.py` as its child; returns when the port is open.
fn start(gunicorn: &[&str]) -> Proxy {
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", dir.path().join("app.sock").display());
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--upstream", &socket, "--"]);
    command.arg(venv().join("gunicorn")).args(["--bind", &socket, "--chdir"]).arg(repository());
    command.args(gunicorn).arg("tests.apps.wsgi:app").env("PYTHONDONTWRITEBYTECODE", "1");
    open(command, dir)
}

fn open(command: Command, dir: tempfile::TempDir) -> Proxy {
    let proxy = Proxy::spawn(command, dir);
    let open = proxy.stderr.find(1, Duration::from_secs(60), |line| line.contains("port open"));
    assert!(open.is_some(), "the port does not open: {:#?}", proxy.stderr.seen());
    proxy
}

#[test]
fn proxy_protocol_gives_the_app_a_true_remote_addr() {
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", dir.path().join("app.sock").display());
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--upstream", &socket]);
    command.args(["--upstream-proxy-protocol", "on", "--trust", "private", "--"]);
    command.arg(venv().join("gunicorn")).args(["--bind", &socket, "--chdir"]).arg(repository());
    command
        .args(["--proxy-protocol", "v1", "tests.apps.wsgi:app"])
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let proxy = open(command, dir);
    let mut client = proxy.connect();
    client.send("GET /echo HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n");
    assert_eq!(echo(&mut client)["REMOTE_ADDR"], "203.0.113.7");
    client.get("/echo");
    assert_eq!(echo(&mut client)["REMOTE_ADDR"], "127.0.0.1");
}

#[test]
fn an_app_that_boots_is_not_said_to_have_no_workers() {
    let dir = tempfile::tempdir().unwrap();
    // It holds the socket that it was passed from its first moment on.
    std::fs::write(dir.path().join("gunicorn.conf.py"), "import time\n\ntime.sleep(2)\n").unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--"]).arg(venv().join("gunicorn"));
    // None at all would be taken for one, the least: of one alone nothing would be said.
    command.args(["--workers", "2", "--chdir"]).arg(repository()).arg("--config");
    command.arg(dir.path().join("gunicorn.conf.py")).arg("tests.apps.wsgi:app");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let proxy = open(command, dir);
    let said = proxy.stderr.seen();
    assert!(!said.iter().any(|line| line.contains("0 workers")), "{said:#?}");
}

/// What `/echo` saw.
fn echo(client: &mut Client) -> serde_json::Value {
    let response = client.response();
    assert_eq!(response.status(), 200, "{}", response.text());
    serde_json::from_slice(&response.body).unwrap()
}

#[test]
fn slow_reader_does_not_hold_a_sync_worker() {
    let proxy = start(SYNC);
    let mut slow = proxy.connect_slow();
    slow.get("/big?n=3000000");
    slow.head();
    // 1 KB of it, and the one worker serves somebody else at once.
    slow.exact(1000);
    let mut fast = proxy.connect();
    fast.get("/");
    assert_eq!(fast.response().status(), 200);
    slow.exact(2_999_000);
}

#[test]
fn slow_upload_does_not_hold_a_gthread_worker() {
    let proxy = start(GTHREAD);
    let mut slow: Vec<_> = (0..5).map(|_| proxy.connect()).collect();
    for client in &mut slow {
        client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nhalf");
    }
    let mut fast = proxy.connect();
    fast.get("/");
    assert_eq!(fast.response().status(), 200);
    for client in &mut slow {
        client.send(vec![b'x'; 99_996]);
        assert_eq!(echo(client)["length"], 100_000);
    }
}

#[test]
fn chunked_upload_has_a_content_length_for_the_app() {
    // Django reads an empty body where there is none.
    for class in [SYNC, GTHREAD] {
        let proxy = start(class);
        let mut client = proxy.connect();
        client.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(chunked(&pattern(100_000), 4096));
        let seen = echo(&mut client);
        assert_eq!((&seen["CONTENT_LENGTH"], &seen["length"]), (&"100000".into(), &100_000.into()));
        assert_eq!(seen.get("HTTP_TRANSFER_ENCODING"), None);
    }
}

#[test]
fn script_name_cannot_be_forged() {
    let proxy = start(SYNC);
    let mut client = proxy.connect();
    client.send(
        "GET /echo HTTP/1.1\r\nHost: a\r\nSCRIPT_NAME: /echo\r\nPATH_INFO: /admin\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\nREMOTE_USER: root\r\n\r\n",
    );
    let seen = echo(&mut client);
    assert_eq!((&seen["SCRIPT_NAME"], &seen["PATH_INFO"]), (&"".into(), &"/echo".into()));
    assert_eq!(seen["scheme"], "http");
    assert_eq!(seen.get("HTTP_REMOTE_USER"), None);
}

#[test]
fn killed_worker_cuts_its_response() {
    let proxy = start(SYNC);
    let mut client = proxy.connect();
    client.get("/die?after=200000");
    let cut = client.cut_response();
    assert_eq!(cut.partial.status(), 200);
    assert_eq!(proxy.record("/die").get("end"), "truncated");
    // The arbiter starts another one.
    let mut client = proxy.connect();
    client.get("/");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn worker_killed_before_its_answer_is_502() {
    let proxy = start(SYNC);
    let mut client = proxy.connect();
    client.send("POST /die HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.response().status(), 502);
    assert_eq!(proxy.record("/die").get("end"), "reset_before_response");
}

#[test]
fn stream_of_a_wsgi_app_comes_as_it_is_made() {
    let proxy = start(GTHREAD);
    let mut client = proxy.connect();
    let dir = tempfile::tempdir().unwrap();
    let rest = dir.path().join("rest");
    client.get(&format!("/stream?path={}", rest.display()));
    client.head();
    // The others are not made before it has come.
    client.exact("9\r\ndata: 0\n\n\r\n".len());
    std::fs::write(rest, "").unwrap();
    assert!(client.chunks().ends_with(b"data: 9\n\n"));
}

#[test]
fn client_that_leaves_a_stream_frees_the_worker_before_it_lingers() {
    let proxy = start(SYNC);
    // Half a second of events at the most; gunicorn would wait 2 s more for our close, each time. A busy
    // machine is not that slow each time.
    let mut took = (1..=5).map(|n| {
        let mut client = proxy.connect();
        client.get("/stream");
        client.head();
        drop(client);
        assert_eq!(proxy.nth_record(n, "/stream").get("end"), "client_gone");
        let begun = Instant::now();
        let mut next = proxy.connect();
        next.get("/");
        assert_eq!(next.response().status(), 200);
        begun.elapsed()
    });
    assert!(took.any(|took| took < Duration::from_millis(1900)), "it lingers");
}

#[test]
fn term_to_everybody_finishes_what_is_in_flight() {
    // As Heroku does it: the signal comes to gunicorn too.
    let proxy = start(SYNC);
    let mut client = proxy.connect();
    client.get("/sleep?s=0.5");
    proxy.stdout.wait_for(|line| line == "sleeping");
    rustix::process::kill_process_group(proxy.pid(), Signal::TERM).unwrap();
    assert_eq!(client.response().text(), "slept\n");
    let exit = proxy.wait();
    assert_eq!(exit.code, 0, "{exit:?}");
}

#[test]
fn socket_need_not_be_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--"]).arg(venv().join("gunicorn"));
    // A passed socket wins over what would collide with the port of the proxy.
    command.args(["--chdir"]).arg(repository()).arg("tests.apps.wsgi:app").env("PORT", "1");
    let private = dir.path().to_owned();
    let proxy = open(command, dir);
    let mut client = proxy.connect();
    client.get("/");
    assert_eq!(client.response().status(), 200);
    let ours = || {
        let names = std::fs::read_dir(&private).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("bufproxy-")).count()
    };
    assert_eq!(ours(), 1);
    proxy.signal(Signal::TERM);
    proxy.stderr.wait_for(|line| line.starts_with("bufproxy: stopped after "));
    assert_eq!(proxy.wait().code, 0);
}

#[test]
fn master_that_has_executed_itself_anew_is_followed() {
    executes_itself_anew(true, "");
}

#[test]
fn passed_socket_is_there_for_a_new_master_where_pre_exec_puts_it_back() {
    let put_back = "    os.dup2(server.LISTENERS[0].fileno(), 3)";
    let docs = std::fs::read_to_string(repository().join("docs/options.md")).unwrap();
    assert!(docs.contains(put_back.trim()), "it is what the page says");
    executes_itself_anew(false, &format!("import os\ndef pre_exec(server):\n{put_back}\n"));
}

/// `named`: gunicorn binds a socket; else it is passed one.
#[track_caller]
fn executes_itself_anew(named: bool, conf: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("gunicorn.conf.py"), conf).unwrap();
    let pids = dir.path().join("pid");
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--"]).arg(venv().join("gunicorn"));
    if named {
        command.args(["--bind", &format!("unix:{}", dir.path().join("app.sock").display())]);
    }
    command.arg("--pid").arg(&pids).arg("--chdir").arg(repository()).arg("tests.apps.wsgi:app");
    let proxy = open(command, dir);
    let old = master(&pids);
    proxy.signal(Signal::USR2);
    let new = master(&pids.with_extension("2"));
    assert_ne!(old, new);
    // As soon as the new one has a worker: an orphan without any may be a worker itself.
    let children = format!("/proc/{0}/task/{0}/children", new.as_raw_nonzero());
    wait_for(|| std::fs::read_to_string(&children).is_ok_and(|pids| !pids.is_empty()));
    kill_process(old, Signal::TERM).unwrap();
    let line = proxy.stderr.wait_for(|line| line.starts_with("bufproxy: app ended"));
    assert_eq!(line, "bufproxy: app ended: exit code 0; the process that it has left goes on");
    let mut client = proxy.connect();
    client.get("/");
    assert_eq!(client.response().status(), 200);
    // It is what signals go to, and whose workers count.
    proxy.signal(Signal::TTIN);
    proxy.stderr.wait_for(|line| line == "bufproxy: concurrency 2: the app has 2 workers");
    // It is told to stop as the first one would have been.
    proxy.signal(Signal::TERM);
    let exit = proxy.wait();
    assert_eq!(exit.code, 0, "{exit:?}");
    assert!(test_kill_process(new).is_err(), "it lives on");
}

#[test]
fn reuse_port_is_named_before_it_does_harm() {
    // As in the template that Heroku shows, with the port that it is given there.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("gunicorn.conf.py"), "reuse_port = True\n").unwrap();
    std::fs::copy(repository().join("tests/apps/wsgi.py"), dir.path().join("app.py")).unwrap();
    let port = free_port();
    let mut command = bufproxy(dir.path());
    command.env("PORT", port.to_string()).arg("--");
    command.arg(venv().join("gunicorn")).arg("app:app");
    let proxy = Proxy::spawn(command, dir);
    proxy.stderr.wait_for(|line| line.contains("reuse_port = True in gunicorn.conf.py"));
    let exit = proxy.wait();
    let said = exit.stderr.last().unwrap();
    assert!(exit.code == 1 && said.contains("has not taken the socket"), "{exit:?}");
    let first = |what: &str| exit.stderr.iter().position(|line| line.contains(what)).unwrap();
    assert!(first("reuse_port = True") < first("Starting gunicorn"), "{exit:?}");
}

#[test]
fn app_that_cannot_be_imported_is_named_in_the_last_line() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("broken.py"), "import nope\n").unwrap();
    for module in ["broken:app", "absent:app"] {
        let mut command = bufproxy(dir.path());
        command.args(["--listen", "127.0.0.1:0", "--"]).arg(venv().join("gunicorn"));
        command.args(["--workers", "2"]).arg(module).env("PYTHONDONTWRITEBYTECODE", "1");
        let output = command.output().unwrap();
        // 1 where gunicorn fails to halt, because the second worker has ended meanwhile.
        let code = output.status.code().unwrap();
        assert!(code == 3 || code == 1, "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let name = if module == "broken:app" { "nope" } else { "absent" };
        let words =
            format!("its last words: \"ModuleNotFoundError: No module named '{name}'\" … \"");
        let last = said.lines().last().unwrap();
        let ended = format!("bufproxy: error: app ended before it answered: exit code {code} (");
        assert!(last.starts_with(&ended) && last.contains(&words), "{said}");
        assert!(last.contains("Worker failed to boot."), "{said}");
    }
}

/// The process in gunicorn's pid file, when that is there.
#[track_caller]
fn master(file: &Path) -> Pid {
    wait_for(|| std::fs::read_to_string(file).is_ok_and(|text| text.ends_with('\n')));
    Pid::from_raw(std::fs::read_to_string(file).unwrap().trim().parse().unwrap()).unwrap()
}

#[track_caller]
fn wait_for(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + GUARD;
    while !condition() {
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::yield_now();
    }
}

#[test]
fn procfile_runs_from_a_clean_copy() {
    let procfile = std::fs::read_to_string(repository().join("Procfile")).unwrap();
    let web = procfile.lines().find_map(|line| line.strip_prefix("web: ")).expect("a web process");

    // What a clone has that the line needs: the app. The programs are on PATH, as after a build.
    let dir = tempfile::tempdir().unwrap();
    let apps = dir.path().join("tests/apps");
    std::fs::create_dir_all(&apps).unwrap();
    std::fs::copy(repository().join("tests/apps/wsgi.py"), apps.join("wsgi.py")).unwrap();
    let built = bufproxy(dir.path());
    let built = std::path::Path::new(built.get_program()).parent().unwrap();
    let path = [built, &venv()].map(|dir| dir.display().to_string()).join(":");

    let port = free_port();
    let mut command = Command::new("sh");
    // As the platform runs it, with the app's socket where no other copy has its own.
    let web = web.replace("/tmp/app.sock", &dir.path().join("app.sock").display().to_string());
    command.args(["-c", &format!("exec {web}")]).current_dir(dir.path());
    command.env("PORT", port.to_string()).env("DYNO", "web.1").env("WEB_CONCURRENCY", "2");
    command.env("PATH", format!("{path}:{}", std::env::var("PATH").unwrap()));
    let mut proxy = open(command, dir);
    proxy.addr = ([127, 0, 0, 1], port).into();
    let mut client = proxy.connect();
    client.get("/");
    assert!(client.response().text().starts_with("Hello from "));
    proxy.wait_workers(2);
    assert_eq!(proxy.stop().code, 0);
}
