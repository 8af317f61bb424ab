//! The wrapped command: started, signalled and waited for. The lifecycle drives it, from the main
//! thread, which lives to the end: the child is told of our death when the *thread* that started
//! it ends (PR_SET_PDEATHSIG).
//!
//! There is one reaper, `reap`. It takes the `Child` away when it has its status, so a pid that may
//! belong to somebody else by now can never be signalled; nothing else may wait for a process.

pub mod exec;
pub mod handover;
mod holders;
pub mod notify;
pub mod probe;
pub mod signals;
pub mod stderr;
mod successor;
pub mod workers;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use handover::AppListener;
use notify::{NOTIFY_SOCKET, NotifySocket};

pub use successor::signal_orphans;

/// The running command.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
}

impl Child {
    /// Starts `command` through the exec shim (`exec`), with our stdio and environment, and what is
    /// `given` to it.
    ///
    /// It shares our process group, so that a signal to the group reaches it as it would without
    /// us; at a terminal it has its own, so that an interrupt from the keyboard reaches us alone and
    /// what is in flight can be finished first.
    ///
    /// # Errors
    /// Only when no process can be made. A command that cannot be run is the shim's end, with 127
    /// or 126.
    pub fn start(command: &[OsString], given: Given<'_>) -> io::Result<Child> {
        let Given { soft_limit, listener, stderr, notify } = given;
        let mut shim = Command::new("/proc/self/exe");
        handover::announce(&mut shim, listener.is_some());
        // systemd's own is not the app's: what is true of both is ours to report.
        match notify {
            Some(socket) => shim.env(NOTIFY_SOCKET, socket.path()),
            None => shim.env_remove(NOTIFY_SOCKET),
        };
        if let Some(pipe) = stderr {
            shim.stderr(pipe.for_child()?);
        }
        if io::stdin().is_terminal() {
            shim.process_group(0);
        }
        shim.arg0("bufproxy");
        let mut start =
            |socket| shim.args(exec::arguments(soft_limit, socket)).args(command).spawn();
        let started = match listener {
            Some(listener) => listener.inherited(|socket| start(Some(socket))),
            None => start(None),
        };
        // Dropping std's handle neither waits nor kills.
        Ok(Child { pid: Pid::from_child(&started?) })
    }

    /// Sends `signal`. That it has just ended is no error: `reap` will say so.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(self.pid, signal);
    }
}

/// What the command gets from us.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The descriptor limit that we were started with. None: ours is unchanged.
    pub soft_limit: Option<u64>,
    /// Its descriptor 3.
    pub listener: Option<&'a AppListener>,
    /// None: our own.
    pub stderr: Option<&'a stderr::Pipe>,
    /// Where it may say that it is ready.
    pub notify: Option<&'a NotifySocket>,
}

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// The exit code that says the same: 128 and the signal for a killed one, as shells do.
    pub fn code(self) -> u8 {
        match self {
            Exit::Code(code) => code as u8,
            Exit::Signal(signal) => 128u8.wrapping_add(signal as u8),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// Reaps every process that has ended: orphans too, which come to us as PID 1 or as subreaper. To be
/// called at each SIGCHLD (one signal may stand for several ends). Gives the end of `child`, and
/// takes it.
pub fn reap(child: &mut Option<Child>) -> Option<Exit> {
    let mut ended = None;
    // Err is ECHILD: there is none left.
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if child.as_ref().is_some_and(|child| child.pid == pid) {
            *child = None;
            ended = Some(exit(status));
        }
    }
    ended
}

/// Orphans of the command come to us and not to an init that may not be there. PID 1 gets them
/// anyway.
pub fn adopt_orphans() {
    let us = rustix::process::getpid();
    if !us.is_init() {
        // Kernels since 3.4 have it; without it only reaping is lost.
        let _ = rustix::process::set_child_subreaper(Some(us));
    }
}

fn exit(status: WaitStatus) -> Exit {
    match status.terminating_signal() {
        Some(signal) => Exit::Signal(signal),
        None => Exit::Code(status.exit_status().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_command_gives_128_and_its_signal() {
        assert_eq!(Exit::Code(3).code(), 3);
        assert_eq!(Exit::Signal(9).code(), 137);
        assert_eq!(Exit::Signal(15).code(), 143);
        assert_eq!(Exit::Signal(9).to_string(), "killed by signal 9");
        assert_eq!(Exit::Code(3).to_string(), "exit code 3");
    }
}
