//! What the command leaves behind when it ends: processes that hold the app's listener, orphans now,
//! which come to us. A server that has executed itself anew (gunicorn's USR2) goes on with the work: it
//! is told by its workers, which hold the listener too. All others are workers of a dead master.
//!
//! Unlike the command itself it is not told when we are killed (the kernel forgets that at a fork).

use rustix::process::{Pid, Signal, getpid, kill_process};

use super::Child;
use super::holders::holders;
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

/// Signals workers that the command has left behind. TERM asks them to finish what they are at:
/// gunicorn's would see by themselves that they are alone; uvicorn's would serve for ever beside those
/// of the next start.
pub fn signal_orphans(upstream: &[UpstreamAddr], signal: Signal) {
    for pid in orphans(&holders(upstream)) {
        let _ = kill_process(pid, signal);
    }
}

fn orphans(holders: &[(Pid, Pid)]) -> impl Iterator<Item = Pid> {
    let us = getpid();
    holders.iter().filter(move |(_, parent)| *parent == us).map(|(pid, _)| *pid)
}
