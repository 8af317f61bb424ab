//! As a unit of systemd: listeners that it has opened, and what it is told.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{CWD, FileType, mknodat};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{App, GUARD, Proxy, bufproxy, repository, unix_path, until};

/// What systemd does for a socket unit: opens `sockets`, as descriptors from 3 on, and executes us.
const SYSTEMD: &str = "
import os, socket, sys
count = int(sys.argv[1])
opened = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
for number, listener in enumerate(opened, 3):
    # Out of the way of the numbers that are wanted.
    os.dup2(os.dup2(listener.fileno(), 100 + number), number, inheritable=True)
os.environ.update(LISTEN_FDS=str(count), LISTEN_FDNAMES='http', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
";

/// bufproxy in front of `app`, started with that many listeners.
fn activated(app: &App, count: usize, dir: &TempDir) -> Command {
    let bufproxy = bufproxy(dir.path());
    let mut command = Command::new("python3");
    command.args(["-c", SYSTEMD, &count.to_string()]).arg(bufproxy.get_program());
    command.env_clear().env("TMPDIR", dir.path()).current_dir(dir.path());
    command.env("PATH", std::env::var_os("PATH").unwrap());
    // A port that nobody could bind: it is not even tried.
    command.args(["--listen", "192.0.2.1:1", "--upstream", app.address()]);
    command
}

#[test]
fn listeners_of_systemd_are_used() {
    let app = App::unix();
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::spawn(activated(&app, 2, &dir), dir);
    let boot = proxy.stderr.wait_for(|line| line.contains(" listening on "));
    assert!(boot.matches("127.0.0.1:").count() == 2, "{boot}");
    let mut client = proxy.connect();
    client.get("/");
    app.request().0.reply("served");
    assert_eq!(client.response().text(), "served");
    assert_eq!(proxy.stop().code, 0);
}

#[test]
fn listeners_for_somebody_else_are_not_touched() {
    let app = App::unix();
    let proxy = Proxy::launch(|command| {
        command.args(["--upstream", app.address()]);
        command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    });
    let mut client = proxy.connect();
    client.get("/");
    app.request().0.reply("");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn listeners_that_are_not_there_are_said() {
    let app = App::unix();
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    command.args(["--upstream", app.address()]);
    let program = command.get_program().to_owned();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(r#"LISTEN_PID=$$ LISTEN_FDS=2 exec "$0" "$@" 3<&- 4<&-"#).arg(program);
    shell.args(command.get_args());
    let output = shell.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("bufproxy: error: cannot take the listeners of LISTEN_FDS=2"),
        "{said}"
    );
}

/// bufproxy as a service that tells systemd how it is, with an app of its own.
struct Service {
    proxy: Proxy,
    told: UnixDatagram,
    /// The app answers when this exists.
    gate: PathBuf,
    /// Where the app listens, before that.
    socket: PathBuf,
}

impl Service {
    fn start(options: &[&str]) -> Service {
        let dir = tempfile::tempdir().unwrap();
        let (gate, notify) = (dir.path().join("gate"), dir.path().join("notify"));
        let told = UnixDatagram::bind(&notify).unwrap();
        told.set_read_timeout(Some(GUARD)).unwrap();
        let socket = unix_path(&dir);
        let mut command = bufproxy(dir.path());
        command.args(["--listen", "127.0.0.1:0", "--upstream"]).arg(&socket).args(options);
        command.args(["--", "python3"]).arg(repository().join("tests/apps/worker.py"));
        command.arg(&socket).arg(&gate).env("NOTIFY_SOCKET", &notify);
        Service { proxy: Proxy::spawn(command, dir), told, gate, socket }
    }

    #[track_caller]
    fn next(&self) -> String {
        let mut datagram = [0; 1000];
        let n = self.told.recv(&mut datagram).unwrap();
        String::from_utf8(datagram[..n].to_vec()).unwrap()
    }

    #[track_caller]
    fn becomes_ready(&self) {
        std::fs::File::create(&self.gate).unwrap();
        assert_eq!(self.next(), "READY=1");
        assert!(self.next().starts_with("STATUS=app answered HEAD / after "));
    }
}

#[test]
fn systemd_is_told_what_is_true_of_the_app_too() {
    let service = Service::start(&[]);
    // The app listens before it answers; that is not ready.
    service.told.set_nonblocking(true).unwrap();
    assert!(service.told.recv(&mut [0; 10]).is_err());
    service.told.set_nonblocking(false).unwrap();
    // A reload does not make it so.
    until(|| service.socket.exists());
    service.proxy.signal(Signal::HUP);
    service.proxy.stderr.wait_for(|line| line.contains("HUP: "));
    service.becomes_ready();

    service.proxy.signal(Signal::HUP);
    assert!(service.next().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(service.next(), "READY=1");

    service.proxy.signal(Signal::TERM);
    assert_eq!(service.next(), "STOPPING=1");
    assert!(service.next().starts_with("STATUS=stopping (TERM): "));
    assert_eq!(service.proxy.wait().code, 0);
}

#[test]
fn reload_that_ends_when_the_app_has_answered_is_no_readiness() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("slow.toml");
    std::fs::write(&file, "").unwrap();
    let service = Service::start(&["--config", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    mknodat(CWD, &file, FileType::Fifo, 0o600.into(), 0).unwrap();
    // It gets the signal, too, and would not live through it before that.
    until(|| service.socket.exists());
    service.proxy.signal(Signal::HUP);
    // Opened when it is being read.
    let read = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    service.becomes_ready();
    drop(read);
    service.proxy.stderr.wait_for(|line| line.contains("HUP: "));
    // Its loop has turned since.
    service.proxy.settle();
    service.proxy.signal(Signal::TERM);
    assert_eq!(service.next(), "STOPPING=1");
}
