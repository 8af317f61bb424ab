//! HUP: the configuration file is read again, and nothing is dropped meanwhile.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use rustix::fs::{CWD, FileType, mknodat};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{App, Client, GUARD, Proxy, bufproxy, ok, repository, unix_path, until};

/// A proxy with a configuration file, and where that is.
fn with_file(app: &App, text: &str) -> (Proxy, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bufproxy.toml");
    fs::write(&file, text).unwrap();
    let proxy = Proxy::start(app, &["--config", file.to_str().unwrap()]);
    (proxy, file, dir)
}

/// HUP, and back when it has been dealt with for the `n`th time.
#[track_caller]
fn reload(proxy: &Proxy, n: usize) -> String {
    proxy.signal(Signal::HUP);
    proxy.stderr.wait_for_nth(n, |line| line.contains("HUP: "))
}

fn post(proxy: &Proxy, bytes: usize) -> u16 {
    let mut client = proxy.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n"));
    client.try_send(vec![b'x'; bytes]).ok();
    client.response().status()
}

#[test]
fn limits_are_those_of_the_file_after_hup() {
    let app = App::answering(ok("x"));
    let (proxy, file, _dir) = with_file(&app, "max-body = \"100\"\n");
    assert_eq!(post(&proxy, 200), 413);
    fs::write(&file, "max-body = \"1k\"\n").unwrap();
    let said = reload(&proxy, 1);
    assert_eq!(said, format!("bufproxy: HUP: read {} again", file.display()));
    assert_eq!(post(&proxy, 200), 200);
}

#[test]
fn limits_are_those_of_the_file_for_a_client_that_pipelines_too() {
    let post =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200\r\n\r\n".to_string() + &"x".repeat(200);
    let app = App::unix();
    let (proxy, file, _dir) = with_file(&app, "max-body = \"1k\"\n");
    let mut client = proxy.connect();
    client.send(&post);
    let (worker, _) = app.request();
    fs::write(&file, "max-body = \"100\"\n").unwrap();
    reload(&proxy, 1);
    // Its next request has come when this one is answered.
    client.send(&post);
    proxy.settle();
    worker.reply("x");
    assert_eq!(client.response().status(), 200);
    assert_eq!(client.response().status(), 413);
}

#[test]
fn invalid_file_changes_nothing_and_is_said() {
    let app = App::answering(ok("x"));
    let (proxy, file, _dir) = with_file(&app, "max-body = \"100\"\n");
    fs::write(&file, "max-body = \"100mb\"\n").unwrap();
    let said = reload(&proxy, 1);
    assert!(
        said.starts_with("bufproxy: error: HUP: the configuration stays as it was: "),
        "{said}"
    );
    assert!(said.contains("max-body") && said.contains("100mb"), "{said}");
    assert_eq!(post(&proxy, 200), 413);
}

#[test]
fn file_that_is_gone_changes_nothing_and_is_said() {
    let app = App::answering(ok("x"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bufproxy.toml");
    fs::write(&file, "max-body = \"100\"\n").unwrap();
    // Found, not named.
    let mut command = bufproxy(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--upstream", app.address()]);
    let proxy = Proxy::spawn(command, dir);
    fs::remove_file(&file).unwrap();
    let said = reload(&proxy, 1);
    assert_eq!(
        said,
        "bufproxy: error: HUP: the configuration stays as it was: bufproxy.toml is not there any \
         more: write it again, or restart without it"
    );
    assert_eq!(post(&proxy, 200), 413);
}

#[test]
fn file_that_is_slow_to_read_holds_nobody_up() {
    let app = App::answering(ok("x"));
    let (proxy, file, _dir) = with_file(&app, "max-body = \"100\"\n");
    fs::remove_file(&file).unwrap();
    mknodat(CWD, &file, FileType::Fifo, 0o600.into(), 0).unwrap();
    proxy.signal(Signal::HUP);
    // Opened when it is being read, and there is nothing in it yet.
    let mut writer = OpenOptions::new().write(true).open(&file).unwrap();
    assert_eq!(post(&proxy, 200), 413);
    proxy.signal(Signal::HUP);
    writer.write_all(b"max-body = \"1k\"\n").unwrap();
    drop(writer);
    proxy.stderr.wait_for_nth(1, |line| line.contains("HUP: "));
    // One after the other: the second is at it now.
    let mut writer = OpenOptions::new().write(true).open(&file).unwrap();
    assert_eq!(post(&proxy, 200), 200);
    writer.write_all(b"max-body = \"50\"\n").unwrap();
    drop(writer);
    proxy.stderr.wait_for_nth(2, |line| line.contains("HUP: "));
    assert_eq!(post(&proxy, 100), 413);
}

#[test]
fn option_that_needs_a_restart_is_named() {
    let app = App::answering(ok("x"));
    let (proxy, file, _dir) = with_file(&app, "");
    fs::write(&file, "threads = 2\nspool-max = \"2g\"\n").unwrap();
    let said = reload(&proxy, 1);
    assert!(said.ends_with("; needs a restart: threads, spool-max"), "{said}");
    // For as long as it does.
    fs::write(&file, "threads = 2\n").unwrap();
    let again = reload(&proxy, 2);
    assert!(again.ends_with("; needs a restart: threads"), "{again}");
    fs::write(&file, "").unwrap();
    proxy.signal(Signal::HUP);
    let file = file.display();
    proxy.stderr.wait_for(|line| line == format!("bufproxy: HUP: read {file} again"));
}

#[test]
fn what_is_odd_in_the_new_file_is_said() {
    let app = App::answering(ok("x"));
    let (proxy, file, _dir) = with_file(&app, "");
    fs::write(&file, "ready-path = \"/up\"\n").unwrap();
    reload(&proxy, 1);
    let warning = proxy.stderr.wait_for(|line| line.starts_with("bufproxy: warning: "));
    assert!(warning.contains("ready-path"), "{warning}");
}

#[test]
fn what_was_odd_at_the_start_is_not_said_again() {
    let app = App::answering(ok("x"));
    let (proxy, _file, _dir) = with_file(&app, "ready-path = \"/up\"\n");
    reload(&proxy, 1);
    // What the first has to say stands before the line of the second.
    reload(&proxy, 2);
    let said = proxy.stderr.seen();
    assert_eq!(said.iter().filter(|line| line.contains("ready-path")).count(), 1, "{said:#?}");
}

#[test]
fn address_of_a_wrapped_app_stays() {
    for passed in ["off", "on"] {
        let dir = tempfile::tempdir().unwrap();
        let (socket, file) = (unix_path(&dir), dir.path().join("bufproxy.toml"));
        let text = |socket: &Path| format!("upstream = \"unix:{}\"\n", socket.display());
        fs::write(&file, text(&socket)).unwrap();
        let mut command = bufproxy(dir.path());
        command.args(["--listen", "127.0.0.1:0", "--restart", "on", "--pass-socket", passed]);
        command.args(["--", "python3"]).arg(repository().join("tests/apps/worker.py"));
        command.arg(if passed == "on" { Path::new("-") } else { &socket });
        let proxy = Proxy::spawn(command, dir);
        proxy.stderr.wait_for(|line| line.contains("port open"));
        fs::write(&file, text(Path::new("/nowhere.sock"))).unwrap();
        let said = reload(&proxy, 1);
        assert!(said.ends_with(" again; needs a restart: upstream"), "{said}");
        let pid = || {
            let mut client = proxy.connect();
            client.get("/pid");
            let response = client.response();
            assert_eq!(response.status(), 200, "{passed}");
            response.text()
        };
        let first = pid();
        kill_process(Pid::from_raw(first.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
        proxy.stderr.wait_for(|line| line.contains("restarting in 1 s"));
        assert_ne!(pid(), first);
    }
}

#[test]
fn log_goes_to_the_new_file_in_the_new_format() {
    let app = App::answering(ok("x"));
    let dir = tempfile::tempdir().unwrap();
    let log = |name: &str| dir.path().join(name);
    let text = |name: &str, format: &str| {
        format!("access-log = \"{}\"\nlog-format = '{format}'\n", log(name).display())
    };
    let (proxy, file, _dir) = with_file(&app, &text("one", "first $status"));
    assert_eq!(post(&proxy, 1), 200);
    fs::write(&file, text("two", "second $status")).unwrap();
    reload(&proxy, 1);
    assert_eq!(post(&proxy, 1), 200);
    // Nothing holds the old one any more.
    let open = |file: &Path| {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", proxy.pid().as_raw_nonzero()));
        let mut links = descriptors.unwrap().map(|entry| fs::read_link(entry.unwrap().path()));
        links.any(|link| link.is_ok_and(|link| link == file))
    };
    assert!(open(&log("two")));
    until(|| !open(&log("one")));
    proxy.stop();
    assert_eq!(read(&log("one")), "first 200\n");
    assert_eq!(read(&log("two")), "second 200\n");
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn request_in_flight_ends_at_its_upstream_and_the_next_goes_to_the_new_one() {
    let (old, new) = (App::unix(), App::unix());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bufproxy.toml");
    let upstream = |app: &App| format!("upstream = \"{}\"\nconcurrency = 1\n", app.address());
    fs::write(&file, upstream(&old)).unwrap();
    let proxy = Proxy::launch(|command| {
        command.arg("--config").arg(&file);
    });
    let mut first = proxy.connect();
    first.get("/first");
    let (worker, _) = old.request();
    let mut second = proxy.connect();
    second.get("/second");
    proxy.settle();
    fs::write(&file, upstream(&new)).unwrap();
    reload(&proxy, 1);
    // It waited for the old one; the new one has a free slot.
    let (other, request) = new.request();
    assert_eq!(request.target(), "/second");
    other.reply("new");
    worker.reply("old");
    assert_eq!(first.response().text(), "old");
    assert_eq!(second.response().text(), "new");
}

#[test]
fn hundred_reloads_under_load_fail_nothing_and_leave_nothing() {
    let app = App::unix();
    app.serve(|conn, request| conn.send(ok(request.target())));
    let (proxy, file, _dir) = with_file(&app, "queue = 100\n");
    assert_eq!(post(&proxy, 1), 200);
    reload(&proxy, 1);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", proxy.pid().as_raw_nonzero()));
    let before = descriptors().unwrap().count();
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for i in 0..4 {
            let (addr, stop, served) = (proxy.addr, &stop, &served);
            scope.spawn(move || {
                let mut client = Client::connect(addr);
                while !stop.load(Relaxed) {
                    client.get(&format!("/{i}"));
                    assert_eq!(client.response().text(), format!("/{i}"));
                    served.fetch_add(1, Relaxed);
                }
            });
        }
        for n in 0..100 {
            fs::write(&file, format!("queue = {}\n", 100 + n)).unwrap();
            let said = reload(&proxy, n + 2);
            assert!(said.contains(" again"), "{said}");
        }
        stop.store(true, Relaxed);
    });
    assert!(served.load(Relaxed) > 100, "not under load");
    // The clients' connections are gone as soon as their ends have been seen.
    let begun = Instant::now();
    while descriptors().unwrap().count() > before {
        assert!(begun.elapsed() < GUARD, "descriptors are left");
        proxy.settle();
    }
}

#[test]
fn records_for_the_log_of_before_a_reload_are_there_at_the_end() {
    let app = App::unix();
    let dir = tempfile::tempdir().unwrap();
    let [before, after] = ["before.log", "after.log"].map(|name| dir.path().join(name));
    let to = |log: &Path| format!("access-log = \"{}\"\n", log.display());
    let (proxy, file, _dir) = with_file(&app, &to(&before));
    let mut client = proxy.connect();
    client.get("/cut");
    let (_worker, _) = app.request();
    fs::write(&file, to(&after)).unwrap();
    reload(&proxy, 1);
    proxy.settle();
    proxy.signal(Signal::INT);
    proxy.stderr.wait_for(|line| line.contains("stopping (INT)"));
    proxy.signal(Signal::INT);
    proxy.wait();
    let written = [before, after].map(|log| fs::read_to_string(log).unwrap());
    assert!(written[0].contains("GET /cut "), "{written:?}");
    assert_eq!(written[1].matches("settle").count(), 2, "{written:?}");
}
