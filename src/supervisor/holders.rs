//! Who holds the app's listener, from /proc: how its master and its workers are told from whatever else
//! the command has started.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::config::UpstreamAddr;

/// Processes that are looked through for the one that listens.
const SEARCHED: usize = 64;

/// The app's master: the first process from the command down that holds the listener.
#[derive(Debug)]
pub(super) struct Master {
    pub(super) pid: Pid,
    /// Its descriptor, which its workers have by the same number.
    fd: PathBuf,
    /// What that is: `socket:[INODE]`.
    listener: PathBuf,
}

impl Master {
    /// `command` itself, or what it has started in the foreground (`uv run`, a shell).
    pub(super) fn find(command: Pid, upstream: &UpstreamAddr) -> Option<Master> {
        let listeners = listeners(upstream);
        if listeners.is_empty() {
            return None;
        }
        let mut processes = vec![command];
        let mut next = 0;
        while let Some(&pid) = processes.get(next).filter(|_| next < SEARCHED) {
            if let Some((fd, listener)) = held(pid, &listeners) {
                return Some(Master { pid, fd, listener });
            }
            processes.extend(started_by(pid));
            next += 1;
        }
        None
    }

    /// It lives, and listens.
    pub(super) fn is_there(&self) -> bool {
        self.is_held_by(self.pid).is_ok_and(|held| held)
    }

    /// Its children that hold the listener.
    ///
    /// # Errors
    /// It cannot be known who is a worker, because /proc does not tell, or because one has children with
    /// the listener, too: it may be another master (gunicorn's USR2).
    pub(super) fn workers(&self) -> io::Result<Vec<Pid>> {
        let mut workers = Vec::new();
        for pid in children(self.pid)? {
            if self.is_held_by(pid)? {
                for child in children(pid).unwrap_or_default() {
                    if self.is_held_by(child)? {
                        return Err(io::Error::other("a worker has workers of its own"));
                    }
                }
                workers.push(pid);
            }
        }
        Ok(workers)
    }

    /// Whether this descriptor of the process is the listener. Of one that has ended it is not.
    fn is_held_by(&self, pid: Pid) -> io::Result<bool> {
        match fs::read_link(directory(pid).join("fd").join(&self.fd)) {
            Ok(target) => Ok(target == self.listener),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Who holds the app's listener, each with its parent.
pub(super) fn holders(upstream: &[UpstreamAddr]) -> Vec<(Pid, Pid)> {
    let [upstream] = upstream else { return Vec::new() };
    let listeners = listeners(upstream);
    if listeners.is_empty() {
        return Vec::new();
    }
    processes().into_iter().filter(|(pid, _)| held(*pid, &listeners).is_some()).collect()
}

/// `socket:[INODE]` of every socket that listens at this address.
fn listeners(upstream: &UpstreamAddr) -> Vec<PathBuf> {
    let table = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let inodes: Vec<String> = match upstream {
        UpstreamAddr::Unix(path) => listening_at(&table("unix"), path),
        UpstreamAddr::Tcp(_, port) => {
            ["tcp", "tcp6"].iter().flat_map(|name| listening_on(&table(name), *port)).collect()
        }
    };
    inodes.iter().map(|inode| format!("socket:[{inode}]").into()).collect()
}

/// Inodes of the sockets that listen at `path`, from the text of `/proc/net/unix`.
fn listening_at(table: &str, path: &Path) -> Vec<String> {
    /// Flags of one that listens (`__SO_ACCEPTCON`); what it has accepted has its path, too.
    const LISTENS: &str = "00010000";
    let inode = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        let flags = columns.nth(3)?;
        let inode = columns.nth(2)?;
        let (_, name) = line.split_once(&format!(" {inode} "))?;
        (flags == LISTENS && Path::new(name) == path).then(|| inode.to_owned())
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// Inodes of the sockets that listen on `port`, from the text of `/proc/net/tcp` or `tcp6`.
fn listening_on(table: &str, port: u16) -> Vec<String> {
    /// TCP_LISTEN
    const LISTENS: &str = "0A";
    let port = format!(":{port:04X}");
    let inode = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        let local = columns.nth(1)?;
        let state = columns.nth(1)?;
        let inode = columns.nth(5)?;
        (state == LISTENS && local.ends_with(&port)).then(|| inode.to_owned())
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// Every process and its parent.
fn processes() -> Vec<(Pid, Pid)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = parsed(entry.file_name().to_str()?)?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // PID (NAME) STATE PARENT, and the name may have anything in it.
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?;
            Some((pid, parsed(parent)?))
        })
        .collect()
}

/// What the first thread of a process has forked: there a server does it.
fn children(pid: Pid) -> io::Result<Vec<Pid>> {
    children_of(&directory(pid).join("task").join(pid.as_raw_nonzero().to_string()))
}

/// What a process has started, in any of its threads (`uv run` does it in one of tokio's).
fn started_by(pid: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(directory(pid).join("task")) else { return Vec::new() };
    let children = |thread: fs::DirEntry| children_of(&thread.path()).unwrap_or_default();
    threads.filter_map(Result::ok).flat_map(children).collect()
}

fn children_of(thread: &Path) -> io::Result<Vec<Pid>> {
    let text = fs::read_to_string(thread.join("children"))?;
    Ok(text.split_ascii_whitespace().filter_map(parsed).collect())
}

/// The descriptor of one of these sockets that the process has open, and which it is. Of another
/// user's process nobody knows.
fn held(pid: Pid, sockets: &[PathBuf]) -> Option<(PathBuf, PathBuf)> {
    fs::read_dir(directory(pid).join("fd")).ok()?.find_map(|entry| {
        let entry = entry.ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        sockets.contains(&target).then(|| (entry.file_name().into(), target))
    })
}

fn directory(pid: Pid) -> PathBuf {
    format!("/proc/{}", pid.as_raw_nonzero()).into()
}

fn parsed(number: &str) -> Option<Pid> {
    Pid::from_raw(number.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::process::{getpid, getppid};

    use super::*;

    fn link(fd: impl AsFd) -> PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap()
    }

    #[test]
    fn the_listener_is_told_from_what_it_has_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b.sock");
        let upstream = UpstreamAddr::Unix(path.clone());
        assert_eq!(listeners(&upstream), [""; 0].map(PathBuf::from));
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let _accepted = listener.accept().unwrap();
        let found = listeners(&upstream);
        assert_eq!(found, [link(&listener)]);
        assert!(held(getpid(), &found).is_some());
        drop(listener);
        assert_eq!(held(getpid(), &found), None);
        // Another test may have just forked, and its child not reached its exec.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !listeners(&upstream).is_empty() {
            assert!(std::time::Instant::now() < deadline, "it listens on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_listener_on_tcp_is_found_by_its_port() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let address = listener.local_addr().unwrap();
            let _client = TcpStream::connect(address).unwrap();
            let _accepted = listener.accept().unwrap();
            let upstream = UpstreamAddr::Tcp("localhost".into(), address.port());
            assert!(listeners(&upstream).contains(&link(&listener)), "{address}");
        }
    }

    #[test]
    fn parents_are_known() {
        let (us, parent) = (getpid(), getppid().unwrap());
        assert!(processes().contains(&(us, parent)));
    }

    #[test]
    fn what_another_thread_has_started_is_found() {
        let mut child = std::thread::spawn(|| {
            let child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            let found = started_by(getpid()).contains(&Pid::from_child(&child));
            assert!(found && !children(getpid()).unwrap().contains(&Pid::from_child(&child)));
            child
        })
        .join()
        .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_one_that_listens_is_its_own_master() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        let upstream = UpstreamAddr::Unix(path.clone());
        assert!(Master::find(getpid(), &upstream).is_none());
        let listener = UnixListener::bind(&path).unwrap();
        let master = Master::find(getpid(), &upstream).unwrap();
        assert_eq!(master.pid, getpid());
        assert!(master.is_there());
        drop(listener);
        assert!(!master.is_there());
    }
}
