//! The command's own word that it is ready: READY=1 of sd_notify(3), to a socket of ours that it is
//! given instead of systemd's.
//!
//! gunicorn says so before it has workers. It is not given the socket; where it is started by something
//! else (`sh -c`, `uv run`) it is known by what it adds.
//!
//! The socket is there as long as we are, and read: a sender must not wait, and puma, which tells every
//! second how it is, would take the socket's end for an error.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::net::UnixDatagram;

/// The variable of sd_notify(3).
pub(super) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// What gunicorn says beside READY=1.
const GUNICORN: &[u8] = b"STATUS=Gunicorn arbiter booted";

/// The socket, in a directory for this user alone. Both are removed with it.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    dir: TempDir,
}

impl NotifySocket {
    /// Must be called inside a runtime.
    pub fn bind() -> io::Result<NotifySocket> {
        let ours = Permissions::from_mode(0o700);
        let dir =
            tempfile::Builder::new().prefix("bufproxy-notify-").permissions(ours).tempdir()?;
        let socket = UnixDatagram::bind(path(&dir))?;
        Ok(NotifySocket { socket, dir })
    }

    pub(super) fn path(&self) -> PathBuf {
        path(&self.dir)
    }

    /// Waits until the command says that it is ready. Cancel safe.
    pub async fn ready(&self) {
        let mut datagram = [0; 4096];
        while let Ok(n) = self.socket.recv(&mut datagram).await {
            let mut lines = datagram[..n].split(|&byte| byte == b'\n');
            if lines.clone().any(|line| line == b"READY=1") && !lines.any(|line| line == GUNICORN) {
                return;
            }
        }
        // It cannot be; the app's answer counts still.
        std::future::pending().await
    }
}

fn path(dir: &TempDir) -> PathBuf {
    dir.path().join("notify")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net;
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_ready_counts_and_not_gunicorns() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = NotifySocket::bind().unwrap();
            let mode = socket.dir.path().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
            let sender = net::UnixDatagram::unbound().unwrap();
            sender.connect(socket.path()).unwrap();
            for other in ["", "READY=0", "STATUS=READY=1", "XREADY=1", "STATUS=a\nMAINPID=3"] {
                sender.send(other.as_bytes()).unwrap();
            }
            sender.send(b"READY=1\nSTATUS=Gunicorn arbiter booted").unwrap();
            let short = Duration::from_millis(50);
            assert!(tokio::time::timeout(short, socket.ready()).await.is_err());
            sender.send(b"STATUS=up\nREADY=1\n").unwrap();
            tokio::time::timeout(Duration::from_secs(10), socket.ready()).await.unwrap();
            let dir = socket.dir.path().to_owned();
            drop(socket);
            assert!(!dir.exists());
        });
    }
}
