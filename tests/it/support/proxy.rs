//! The real binary, started as a user starts it: options in, lines out, signals, exit code.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tempfile::TempDir;

use super::{App, Client, GUARD, Lines};

/// A running proxy. Killed, with its process group, when dropped.
pub(crate) struct Proxy {
    child: Child,
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    /// The access log.
    pub(crate) stdout: Lines,
    /// Diagnostics.
    pub(crate) stderr: Lines,
    /// Its temporary directory and working directory: spools, sockets, files of the test.
    _dir: TempDir,
}

/// What is left of a proxy that has ended.
#[derive(Debug)]
pub(crate) struct Exit {
    /// As a shell shows it: 128 + signal.
    pub(crate) code: i32,
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

/// The binary under test with a clean environment. `TEST_BUFPROXY` names another build of it (the
/// release or static one).
pub(crate) fn bufproxy(dir: &Path) -> Command {
    let program = std::env::var_os("TEST_BUFPROXY");
    let mut command =
        Command::new(program.as_deref().unwrap_or(OsStr::new(env!("CARGO_BIN_EXE_bufproxy"))));
    command.env_clear().env("TMPDIR", dir).current_dir(dir);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

impl Proxy {
    /// Starts it in front of `app`, on a port of the kernel's choice, with further options.
    #[track_caller]
    pub(crate) fn start(app: &App, options: &[&str]) -> Proxy {
        Proxy::start_at(app.address(), options)
    }

    /// In front of an address where nothing needs to be yet.
    #[track_caller]
    pub(crate) fn start_at(upstream: &str, options: &[&str]) -> Proxy {
        Proxy::launch(|command| {
            command.args(["--upstream", upstream]).args(options);
        })
    }

    /// With any options and environment: `set_up` completes the command.
    #[track_caller]
    pub(crate) fn launch(set_up: impl FnOnce(&mut Command)) -> Proxy {
        let dir = tempfile::tempdir().unwrap();
        let mut command = bufproxy(dir.path());
        command.args(["--listen", "127.0.0.1:0"]);
        set_up(&mut command);
        Proxy::spawn(command, dir)
    }

    /// Any command that ends in the proxy's boot line.
    #[track_caller]
    pub(crate) fn spawn(mut command: Command, dir: TempDir) -> Proxy {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: a wrapped command that a failed test leaves behind goes with it.
        let mut child = command.process_group(0).spawn().unwrap();
        let stdout = Lines::of(child.stdout.take().unwrap());
        let stderr = Lines::of(child.stderr.take().unwrap());
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut proxy = Proxy { child, addr: unknown, stdout, stderr, _dir: dir };
        // Generous: with a wrapped command this waits for Python.
        let boot = proxy.stderr.find(1, GUARD * 3, |line| line.contains(" listening on "));
        let boot = boot.unwrap_or_else(|| panic!("no boot line in {:#?}", proxy.stderr.seen()));
        let addr = boot.split(" listening on ").nth(1).unwrap().split([' ', ',']).next().unwrap();
        proxy.addr = addr.parse().unwrap_or_else(|e| panic!("{e}: {boot}"));
        proxy
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    #[track_caller]
    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.addr)
    }

    /// A client with the smallest receive buffer.
    #[track_caller]
    pub(crate) fn connect_slow(&self) -> Client {
        Client::slow(self.addr)
    }

    /// Returns when the proxy has dealt with everything that was sent to it before: two exchanges
    /// that never reach the app (400) go through the event loop behind it. Their records have the
    /// request `settle`.
    #[track_caller]
    pub(crate) fn settle(&self) {
        for _ in 0..2 {
            let mut client = self.connect();
            client.send("settle\r\n\r\n");
            assert_eq!(client.response().status(), 400);
        }
    }

    /// The record of the first (`n`th) request whose line contains `needle`, in the default format.
    #[track_caller]
    pub(crate) fn record(&self, needle: &str) -> Record {
        self.nth_record(1, needle)
    }

    #[track_caller]
    pub(crate) fn nth_record(&self, n: usize, needle: &str) -> Record {
        Record(self.stdout.wait_for_nth(n, |line| line.contains(needle)))
    }

    /// What its event loops watch.
    #[track_caller]
    pub(crate) fn loops(&self) -> Vec<OfLoop> {
        let process = format!("/proc/{}", self.pid().as_raw_nonzero());
        let kind = |fd: &str| match std::fs::read_link(format!("{process}/fd/{fd}")) {
            Ok(link) if link.to_string_lossy().starts_with("socket:") => "socket",
            Ok(link) if link.to_string_lossy() == "anon_inode:[eventpoll]" => "epoll",
            _ => "",
        };
        let watched = |fd: &str| -> Vec<String> {
            let info = std::fs::read_to_string(format!("{process}/fdinfo/{fd}"));
            let info = info.unwrap_or_default();
            let watched = info.lines().filter_map(|line| line.strip_prefix("tfd:"));
            watched.filter_map(|line| Some(line.split_whitespace().next()?.to_string())).collect()
        };
        let sockets = |fds: &[String]| fds.iter().filter(|fd| kind(fd) == "socket").count();
        let fds = std::fs::read_dir(format!("{process}/fdinfo")).unwrap();
        let fds = fds.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        // By the epoll of its parked clients: the runtime has descriptors of its own one twice.
        let loops: BTreeMap<u32, OfLoop> = fds
            .filter_map(|fd| {
                let of_loop = watched(&fd);
                let idle = of_loop.iter().find(|fd| kind(fd) == "epoll")?;
                let parked = sockets(&watched(idle));
                let sockets = sockets(&of_loop) + parked;
                Some((idle.parse().unwrap(), OfLoop { sockets, parked }))
            })
            .collect();
        loops.into_values().collect()
    }

    /// Clients that are idle for so long that they have no task.
    #[track_caller]
    pub(crate) fn parked(&self) -> usize {
        self.loops().iter().map(|of_loop| of_loop.parked).sum()
    }

    #[track_caller]
    pub(crate) fn wait_parked(&self, clients: usize) {
        super::until(|| self.parked() == clients);
    }

    /// Waits until all its threads sleep: what they were given is done, and what followed from that noted.
    #[track_caller]
    pub(crate) fn wait_asleep(&self) {
        let tasks = format!("/proc/{}/task", self.pid().as_raw_nonzero());
        super::until(|| {
            std::fs::read_dir(&tasks).unwrap().flatten().all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat"));
                stat.is_ok_and(|stat| stat.contains(") S "))
            })
        });
    }

    /// Waits until so many of the wrapped gunicorn's workers hear signals. One that TERM meets between
    /// its fork and its handlers never hears it, and gunicorn waits 30 s for that one.
    #[track_caller]
    pub(crate) fn wait_workers(&self, workers: usize) {
        super::until(|| hearing(self.pid().as_raw_nonzero().get()) == workers);
    }

    /// The first word of a field of `/proc/PID/status` (sizes are in KiB).
    #[track_caller]
    pub(crate) fn status_field(&self, name: &str) -> String {
        let path = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap().split_whitespace().next().unwrap().to_string()
    }

    /// Asks it to stop and waits for the end.
    #[track_caller]
    pub(crate) fn stop(self) -> Exit {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Exit {
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let limit = Timespec { tv_sec: 2 * GUARD.as_secs() as i64, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ended, 1, "it does not end: {:#?}", self.stderr.seen());
        let status = self.child.wait().unwrap();
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap();
        Exit { code, stdout: self.stdout.to_end(), stderr: self.stderr.to_end() }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("stderr of the proxy: {:#?}", self.stderr.seen());
            eprintln!("its access log: {:#?}", self.stdout.seen());
        }
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// How many processes below this one catch ABRT: gunicorn's workers do, as the last of their signals, and
/// its master does not.
fn hearing(pid: i32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children =
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: String = children.collect();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    children.map(|child| usize::from(catches_abort(child)) + hearing(child)).sum()
}

fn catches_abort(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|caught| u64::from_str_radix(caught.trim(), 16).ok());
    caught.is_some_and(|caught| caught >> (Signal::ABORT.as_raw() - 1) & 1 == 1)
}

/// Sockets that one event loop watches, the listener among them.
#[derive(Debug)]
pub(crate) struct OfLoop {
    pub(crate) sockets: usize,
    /// Of these clients idle for long.
    pub(crate) parked: usize,
}

/// One line of the access log in the default format.
#[derive(Debug)]
pub(crate) struct Record(pub(crate) String);

impl Record {
    /// The value of a field, without its quotes.
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> &str {
        // `service` is the one with a prefix: `measure#bufproxy.service=`.
        let starts = [format!(" {name}="), format!(".{name}=")];
        let rest = starts.iter().find_map(|start| self.0.split_once(start.as_str()));
        let (_, value) = rest.unwrap_or_else(|| panic!("no {name} in {}", self.0));
        match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next().unwrap(),
            None => value.split(' ').next().unwrap(),
        }
    }

    /// A field in seconds, as a duration.
    #[track_caller]
    pub(crate) fn seconds(&self, name: &str) -> Duration {
        Duration::from_secs_f64(self.get(name).parse().unwrap())
    }
}
