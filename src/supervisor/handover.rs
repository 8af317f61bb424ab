//! `pass-socket`: the app's listener belongs to us and is passed to the app, so that what waits in it
//! outlives the app, and no stale socket can exist. Made, kept and given up by the lifecycle.
//!
//! While we hold it, a dead app gives no connect error: whoever holds it has to say what the end of
//! the app means. If another process serves it again, keep it; if not, `refuse` it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::net::{self, identity};

/// As many as gunicorn asks for; the kernel's somaxconn may be less.
const BACKLOG: i32 = 2048;

/// The variables of socket activation (sd_listen_fds(3)).
pub(super) const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";

/// The listener, with its file.
#[derive(Debug)]
pub struct AppListener {
    socket: Socket,
    path: PathBuf,
    /// Of the file: another one at the path is not ours.
    file: (u64, u64),
    /// The directory is ours, too.
    private: bool,
}

impl AppListener {
    /// Listens at `path`. A dead socket there is removed, anything else is an error. `private`: the
    /// directory is made, for this user alone, and has to be new.
    pub fn bind(path: &Path, private: bool) -> io::Result<AppListener> {
        if private && let Some(dir) = path.parent() {
            DirBuilder::new().mode(0o700).create(dir)?;
        }
        net::remove_dead_socket(path);
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        let file = identity(path)?;
        let listener = AppListener { socket, path: path.to_owned(), file, private };
        listener.socket.listen(BACKLOG)?;
        Ok(listener)
    }

    /// Somebody has put another file in the place of ours: an app that binds by itself.
    pub fn is_replaced(&self) -> bool {
        identity(&self.path).is_ok_and(|file| file != self.file)
    }

    /// Nobody will accept any more: what waits is cut unread, and who comes is refused.
    ///
    /// Orphans of the app may hold the listener still. A shutdown holds for them, too; and what they
    /// would take from the backlog, we take first.
    pub fn refuse(self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        // One description with the app, which may have made it blocking.
        if self.socket.set_nonblocking(true).is_ok() {
            while self.socket.accept().is_ok() {}
        }
    }

    /// Runs `start` while this descriptor, whose number it is given, stays open over an exec. (No
    /// other process may be started meanwhile.)
    pub(super) fn inherited<T>(&self, start: impl FnOnce(RawFd) -> io::Result<T>) -> io::Result<T> {
        fcntl_setfd(&self.socket, FdFlags::empty())?;
        let started = start(self.socket.as_raw_fd());
        fcntl_setfd(&self.socket, FdFlags::CLOEXEC)?;
        started
    }
}

impl Drop for AppListener {
    fn drop(&mut self) {
        if !self.is_replaced() {
            let _ = fs::remove_file(&self.path);
        }
        if self.private
            && let Some(dir) = self.path.parent()
        {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// The environment of the command: what is meant for us is taken out, and one descriptor announced
/// if there is one. (LISTEN_PID is its own process id, which the exec shim sets.)
pub(super) fn announce(command: &mut Command, passed: bool) {
    for name in [LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES] {
        command.env_remove(name);
    }
    if passed {
        command.env(LISTEN_FDS, "1");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn what_waits_is_cut_unread_when_nobody_will_serve_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        let listener = AppListener::bind(&path, false).unwrap();
        // An orphan of the app.
        let held = listener.socket.try_clone().unwrap();
        let mut waiting = UnixStream::connect(&path).unwrap();
        waiting.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        listener.refuse();
        let error = waiting.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it proves that nothing was read");
        assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(held.accept().is_err());
    }

    #[test]
    fn a_private_socket_has_a_directory_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private/app.sock");
        let listener = AppListener::bind(&path, true).unwrap();
        let mode = fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let second = AppListener::bind(&path, true).unwrap_err();
        assert_eq!(second.kind(), ErrorKind::AlreadyExists, "made by somebody else, perhaps");
        drop(listener);
        assert!(!path.parent().unwrap().exists());
    }

    #[test]
    fn the_apps_own_socket_at_the_path_is_seen_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        let listener = AppListener::bind(&path, false).unwrap();
        assert!(!listener.is_replaced());
        fs::remove_file(&path).unwrap();
        let _apps = UnixListener::bind(&path).unwrap();
        assert!(listener.is_replaced());
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_live_socket_and_other_files_are_not_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        let live = UnixListener::bind(&path).unwrap();
        let in_use = AppListener::bind(&path, false).unwrap_err();
        assert_eq!(in_use.kind(), ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
        drop(live);
        // Dead by now.
        drop(AppListener::bind(&path, false).unwrap());
        fs::write(&path, "a file").unwrap();
        AppListener::bind(&path, false).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"a file");
    }
}
