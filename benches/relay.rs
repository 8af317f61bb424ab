//! A raw byte relay on tokio: what moving the bytes costs by itself, without HTTP and without a log
//! line. The limit that a proxy can come near to and not pass.
//!
//! With `keep` each client connection has one to the app. With `close` it connects when a client
//! sends something; once the app has begun to answer, the client's next bytes wait for its close.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{LocalSet, spawn_local};

thread_local! {
    /// What is read is written at once, so that one buffer is enough for all connections.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; 256 * 1024]);
}

/// `relay PORT SOCKET keep|close`: runs until it is killed.
pub(crate) fn run(port: u16, socket: PathBuf, keep_alive: bool) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (client, _) = listener.accept().await?;
            client.set_nodelay(true)?;
            let socket = socket.clone();
            spawn_local(async move { relay(client, &socket, keep_alive).await });
        }
    })
}

/// One client connection, to its end.
async fn relay(client: TcpStream, socket: &Path, keep_alive: bool) -> io::Result<()> {
    loop {
        client.readable().await?;
        let app = UnixStream::connect(socket).await?;
        let mut answered = false;
        loop {
            let (ready, from_client) = tokio::select! {
                ready = client.readable(), if keep_alive || !answered => (ready, true),
                ready = app.readable() => (ready, false),
            };
            ready?;
            let (moved, rest) = if from_client {
                pass(|to| client.try_read(to), |from| app.try_write(from))?
            } else {
                pass(|to| app.try_read(to), |from| client.try_write(from))?
            };
            match (moved, from_client) {
                (Some(0), true) => return Ok(()),
                (Some(0), false) => break,
                _ => answered |= !from_client,
            }
            let mut rest = &rest[..];
            while !rest.is_empty() {
                let written = if from_client {
                    app.writable().await?;
                    app.try_write(rest)
                } else {
                    client.writable().await?;
                    client.try_write(rest)
                };
                rest = &rest[unless_blocked(written)?.unwrap_or(0)..];
            }
        }
    }
}

/// One read and one write. Gives the bytes read (0 at the end, None when there were none after all)
/// and those of them that could not be written yet.
fn pass(
    read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    write: impl FnOnce(&[u8]) -> io::Result<usize>,
) -> io::Result<(Option<usize>, Vec<u8>)> {
    SCRATCH.with_borrow_mut(|scratch| {
        let Some(moved) = unless_blocked(read(scratch))? else { return Ok((None, Vec::new())) };
        if moved == 0 {
            return Ok((Some(0), Vec::new()));
        }
        let written = unless_blocked(write(&scratch[..moved]))?.unwrap_or(0);
        Ok((Some(moved), scratch[written..moved].to_vec()))
    })
}

fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}
