//! A server that has executed itself anew (gunicorn's USR2): the new master is a child of the old one,
//! and an orphan when that ends, which comes to us. It is known by the app's listener, which it
//! holds, and by its workers, which hold it too: an orphaned worker has none.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, getpid};

use super::Child;
use crate::config::UpstreamAddr;

impl Child {
    /// The process that goes on with the work of a child that has ended.
    pub fn successor(upstream: &[UpstreamAddr]) -> Option<Child> {
        let [UpstreamAddr::Unix(path)] = upstream else { return None };
        let table = fs::read_to_string("/proc/net/unix").ok()?;
        let inode = listening_inode(&table, path)?;
        let holders: Vec<(Pid, Pid)> =
            processes().into_iter().filter(|(pid, _)| holds(*pid, &inode)).collect();
        let is_master = |pid: Pid| holders.iter().any(|(_, parent)| *parent == pid);
        let ours = holders.iter().filter(|(_, parent)| *parent == getpid());
        ours.map(|(pid, _)| *pid).find(|pid| is_master(*pid)).map(|pid| Child { pid })
    }
}

/// `socket:[INODE]` of the socket that listens at `path`, from the text of `/proc/net/unix`.
fn listening_inode(table: &str, path: &Path) -> Option<String> {
    /// Flags of one that listens (`__SO_ACCEPTCON`); what it has accepted has its path, too.
    const LISTENS: &str = "00010000";
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let flags = columns.nth(3)?;
        let inode = columns.nth(2)?;
        let (_, name) = line.split_once(&format!(" {inode} "))?;
        (flags == LISTENS && Path::new(name) == path).then(|| format!("socket:[{inode}]"))
    })
}

/// Every process and its parent.
fn processes() -> Vec<(Pid, Pid)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let parsed = |number: &str| Pid::from_raw(number.parse().ok()?);
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

/// Whether the process has that socket open. Of another user's process nobody knows.
fn holds(pid: Pid, socket: &str) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())) else { return false };
    open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|target| target == Path::new(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_listener_is_told_from_what_it_has_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b.sock");
        let table = || fs::read_to_string("/proc/net/unix").unwrap();
        assert_eq!(listening_inode(&table(), &path), None);
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let _accepted = listener.accept().unwrap();
        let inode = listening_inode(&table(), &path).unwrap();
        let open =
            fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener)));
        assert_eq!(Path::new(&inode), open.unwrap());
        assert!(holds(getpid(), &inode));
        drop(listener);
        assert_eq!(listening_inode(&table(), &path), None);
        assert!(!holds(getpid(), &inode));
    }

    #[test]
    fn parents_are_known() {
        let us = getpid();
        let parent = rustix::process::getppid().unwrap();
        assert!(processes().contains(&(us, parent)));
    }
}
