//! What the command leaves behind when it ends: processes that hold the app's listener, orphans now,
//! which come to us. A server that has executed itself anew (gunicorn's USR2) goes on with the work: it
//! is told by its workers, which hold the listener too. All others are workers of a dead master.
//!
//! Unlike the command itself it is not told when we are killed (the kernel forgets that at a fork).

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, getpid, kill_process};

use super::Child;
use crate::config::UpstreamAddr;

impl Child {
    /// The process that goes on with the work of a child that has ended.
    pub fn successor(upstream: &[UpstreamAddr]) -> Option<Child> {
        let holders = holders(upstream);
        let is_master = |pid: Pid| holders.iter().any(|(_, parent)| *parent == pid);
        let mut orphans = orphans(&holders);
        orphans.find(|pid| is_master(*pid)).map(|pid| Child { pid })
    }
}

/// Asks workers that the command has left behind to finish what they are at. gunicorn's would see by
/// themselves that they are alone; uvicorn's would serve for ever beside those of the next start.
pub fn stop_orphans(upstream: &[UpstreamAddr]) {
    for pid in orphans(&holders(upstream)) {
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Who holds the app's listener, each with its parent. (Of TCP nothing is known.)
fn holders(upstream: &[UpstreamAddr]) -> Vec<(Pid, Pid)> {
    let [UpstreamAddr::Unix(path)] = upstream else { return Vec::new() };
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let Some(inode) = listening_inode(&table, path) else { return Vec::new() };
    processes().into_iter().filter(|(pid, _)| holds(*pid, &inode)).collect()
}

fn orphans(holders: &[(Pid, Pid)]) -> impl Iterator<Item = Pid> {
    let us = getpid();
    holders.iter().filter(move |(_, parent)| *parent == us).map(|(pid, _)| *pid)
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
