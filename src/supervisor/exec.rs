//! The exec shim: what has to happen in the child between fork and exec, done by our own binary
//! (`/proc/self/exe __exec PARENT LIMIT SOCKET -- COMMAND…`), because code between fork and exec would need
//! `unsafe`. `main` calls `run` before anything else; on success the command has replaced us.
//!
//! std has emptied the signal mask and set SIGPIPE to its default by then; our handlers go with the
//! exec; argv reaches the command untouched.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use super::handover::LISTEN_PID;
use crate::sys;

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "__exec";

/// What stands before the command on the shim's command line: `socket` is the descriptor that is to
/// be the command's descriptor 3.
pub(super) fn arguments(soft_limit: Option<u64>, socket: Option<RawFd>) -> [String; 5] {
    let parent = std::process::id().to_string();
    let limit = soft_limit.map_or("-".into(), |limit| limit.to_string());
    let socket = socket.map_or("-".into(), |socket| socket.to_string());
    [SUBCOMMAND.into(), parent, limit, socket, "--".into()]
}

/// Becomes the command. `args` is what follows `SUBCOMMAND`; returns only when that failed.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExecError {
    let mut args = args.into_iter();
    let mut number = || args.next()?.to_str()?.parse::<u64>().ok();
    let (parent, soft_limit, socket) = (number(), number(), number());
    let mut command = args.skip(1);
    let Some(program) = command.next() else {
        return ExecError::Usage;
    };
    // Our death ends the app too: it must not hold the memory and the socket of a proxy that has
    // been killed. The kernel tells of deaths after this call only: was there one before?
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u64);
    if now != parent {
        return ExecError::Orphan;
    }
    if soft_limit.is_some() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        // Lowering the soft limit cannot fail.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: soft_limit, maximum });
    }
    let mut next = Command::new(&program);
    next.args(command);
    if let Some(socket) = socket {
        // An exec keeps the process id: the command's own is ours.
        next.env(LISTEN_PID, std::process::id().to_string());
        let moved = u16::try_from(socket).map_err(io::Error::other).and_then(sys::move_to_three);
        if let Err(error) = moved {
            return ExecError::Socket(error);
        }
    }
    let error = next.exec();
    ExecError::Failed { program, error }
}

/// Why the command does not run.
#[derive(Debug)]
pub enum ExecError {
    Failed {
        program: OsString,
        error: io::Error,
    },
    /// bufproxy ended before the command began.
    Orphan,
    /// The socket cannot be passed.
    Socket(io::Error),
    /// Called by hand.
    Usage,
}

impl ExecError {
    /// 127 for a command that does not exist, 126 for one that cannot be run, as shells do.
    pub fn code(&self) -> u8 {
        match self {
            ExecError::Failed { error, .. } if error.kind() == io::ErrorKind::NotFound => 127,
            ExecError::Failed { .. } | ExecError::Socket(_) => 126,
            ExecError::Orphan => 143,
            ExecError::Usage => 2,
        }
    }
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExecError::Failed { program, error } => {
                write!(f, "cannot run {program:?}: ")?;
                match error.kind() {
                    io::ErrorKind::NotFound => f.write_str(what_is_missing(program)),
                    io::ErrorKind::PermissionDenied => {
                        f.write_str("permission denied (is it an executable file?)")
                    }
                    _ => write!(f, "{error}"),
                }
            }
            ExecError::Orphan => f.write_str("bufproxy ended before its command began"),
            ExecError::Socket(error) => write!(f, "cannot pass the app's socket: {error}"),
            ExecError::Usage => {
                write!(f, "{SUBCOMMAND} is for bufproxy itself: bufproxy -- COMMAND")
            }
        }
    }
}

/// ENOENT of exec has three causes.
fn what_is_missing(program: &OsStr) -> &'static str {
    let path = Path::new(program);
    if path.components().count() == 1 && !program.to_string_lossy().contains('/') {
        "not found in PATH"
    } else if path.exists() {
        "its interpreter (first line of the file) does not exist"
    } else {
        "no such file"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(program: &str, kind: io::ErrorKind) -> ExecError {
        ExecError::Failed { program: program.into(), error: kind.into() }
    }

    #[test]
    fn a_command_that_cannot_run_is_named_with_the_cause() {
        let absent = failed("gunicorn", io::ErrorKind::NotFound);
        assert_eq!(absent.to_string(), r#"cannot run "gunicorn": not found in PATH"#);
        assert_eq!(absent.code(), 127);
        let absent = failed("./bin/none", io::ErrorKind::NotFound);
        assert_eq!(absent.to_string(), r#"cannot run "./bin/none": no such file"#);
        let script = failed("/proc/self/status", io::ErrorKind::NotFound);
        assert!(script.to_string().contains("interpreter"), "{script}");
        assert_eq!(failed("/", io::ErrorKind::PermissionDenied).code(), 126);
    }
}
