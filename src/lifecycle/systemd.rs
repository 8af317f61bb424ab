//! What systemd offers and is told, by its two protocols: listeners by LISTEN_FDS (sd_listen_fds(3)),
//! and our state by datagrams to NOTIFY_SOCKET (sd_notify(3)). Without those variables nothing here
//! does anything. The variables are ours: the wrapped command does not get them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::time::{ClockId, clock_gettime};

use super::Failure;
use crate::sys;

/// The descriptors that we were started with to accept on.
#[derive(Debug, Default)]
pub struct Passed(pub(super) Vec<OwnedFd>);

impl Passed {
    /// Takes them. To be called first of all: see `sys::passed_descriptors`.
    ///
    /// # Errors
    /// They were announced and are not there.
    pub fn take() -> Result<Passed, Failure> {
        let variable = |name| std::env::var(name).ok();
        let ours = variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
        let Some(count) = variable("LISTEN_FDS").filter(|_| ours) else {
            return Ok(Passed::default());
        };
        let taken = count.parse().map_err(io::Error::other).and_then(sys::passed_descriptors);
        taken.map(Passed).map_err(|e| {
            Failure::new(format!("cannot take the listeners of LISTEN_FDS={count}: {e}"))
        })
    }
}

/// The manager that is told.
#[derive(Debug)]
pub(super) struct Manager(Option<(UnixDatagram, SocketAddr)>);

impl Manager {
    pub(super) fn of_process() -> Manager {
        Manager::at(std::env::var_os("NOTIFY_SOCKET").as_deref())
    }

    /// `name`: a path, or `@` and an abstract name.
    fn at(name: Option<&OsStr>) -> Manager {
        let address = name.and_then(|name| match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
            _ => SocketAddr::from_pathname(name).ok(),
        });
        let socket = UnixDatagram::unbound().and_then(|s| s.set_nonblocking(true).map(|()| s)).ok();
        Manager(socket.zip(address))
    }

    /// The port is open.
    pub(super) fn ready(&self) {
        self.send("READY=1");
    }

    /// The configuration is read again; `ready` ends it.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    pub(super) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// One line for `systemctl status`.
    pub(super) fn status(&self, line: &str) {
        self.send(&format!("STATUS={line}"));
    }

    /// A manager that does not listen is not our problem.
    fn send(&self, state: &str) {
        if let Manager(Some((socket, address))) = self {
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_names_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("bufproxy-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, variable) in [
            (UnixDatagram::bind(&path), path.as_os_str()),
            (UnixDatagram::bind_addr(&abstract_name), OsStr::new(&format!("@{name}"))),
        ] {
            let socket = socket.unwrap();
            let manager = Manager::at(Some(variable));
            manager.ready();
            manager.status("2 of 3");
            manager.reloading();
            let mut told = [0; 100];
            let mut next = || {
                let n = socket.recv(&mut told).unwrap();
                String::from_utf8(told[..n].to_vec()).unwrap()
            };
            assert_eq!(next(), "READY=1");
            assert_eq!(next(), "STATUS=2 of 3");
            let reloading = next();
            let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            assert!(usec.parse::<u64>().unwrap() > 0);
        }
        Manager::at(None).ready();
        Manager::at(Some(OsStr::new("/nowhere"))).ready();
    }
}
