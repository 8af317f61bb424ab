//! The restart: an app that stops for a second, its socket gone, and comes back, under 300 requests a
//! second. What counts is how many of them fail.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use tokio::task::spawn_local;
use tokio::time::{sleep_until, timeout};

use super::app::Upstream;
use super::load::{self, Client, block_on};
use super::proxies::{Kind, Proxy};
use super::table::{figure, markdown};

/// Twice what they are asked for: 4 / 6 ms.
const WORKERS: usize = 4;
const WORK: Duration = Duration::from_millis(6);
const RATE: u32 = 300;
/// It serves for this long, is away for `AWAY`, and serves on.
const BEFORE: Duration = Duration::from_secs(2);
const AWAY: Duration = Duration::from_secs(1);
const ALL: u32 = 6;
const PATIENCE: Duration = Duration::from_secs(10);

/// Gives the table.
pub(crate) fn run(kinds: &[Kind], dir: &Path) -> io::Result<String> {
    let rows: io::Result<Vec<_>> = kinds.iter().map(|kind| one(*kind, dir)).collect();
    let columns =
        ["the app is away for 1 s", "requests", "failed", "longest wait of the others, ms"];
    Ok(markdown(&columns.map(String::from), &rows?))
}

fn one(kind: Kind, dir: &Path) -> io::Result<Vec<String>> {
    let dir = tempfile::Builder::new().prefix("restart").tempdir_in(dir)?;
    let socket = dir.path().join("app.sock");
    let app = workers(&socket)?;
    let proxy = Proxy::start(kind, &socket, Upstream::ConnectionPerRequest, "4", &[], dir.path())?;
    let (failed, longest) = thread::scope(|scope| {
        let restart = scope.spawn(|| {
            thread::sleep(BEFORE);
            std::fs::remove_file(&socket)?;
            // Accepting ends, what is being worked on is answered, what waits is reset.
            rustix::net::shutdown(&app, Shutdown::Both)?;
            drop(app);
            thread::sleep(AWAY);
            workers(&socket)
        });
        let seen = block_on(load(&proxy));
        restart.join().map_err(|_| io::Error::other("a thread of the bench panicked"))??;
        seen
    })?;
    let row = vec![
        kind.name().to_string(),
        (RATE * ALL).to_string(),
        failed.to_string(),
        figure(longest.as_secs_f64() * 1e3),
    ];
    eprintln!("{row:?}");
    Ok(row)
}

/// How many failed, and the longest time of those that did not.
async fn load(proxy: &Proxy) -> io::Result<(u32, Duration)> {
    let failed = Rc::new(Cell::new(0));
    let longest = Rc::new(Cell::new(Duration::ZERO));
    let begun = Instant::now();
    let mut requests = Vec::new();
    for n in 0..RATE * ALL {
        sleep_until((begun + Duration::from_secs(1) * n / RATE).into()).await;
        let (mut client, failed, longest) =
            (Client::new(proxy.address), failed.clone(), longest.clone());
        requests.push(spawn_local(async move {
            let sent = Instant::now();
            match timeout(PATIENCE, client.exchange(&load::get("/"))).await {
                Ok(Ok(())) => longest.set(longest.get().max(sent.elapsed())),
                Ok(Err(_)) | Err(_) => failed.set(failed.get() + 1),
            }
        }));
    }
    for request in requests {
        request.await.map_err(io::Error::other)?;
    }
    Ok((failed.get(), longest.get()))
}

/// Sync workers on one listener, until that is shut down.
fn workers(socket: &Path) -> io::Result<Arc<UnixListener>> {
    let listener = Arc::new(UnixListener::bind(socket)?);
    for _ in 0..WORKERS {
        let listener = listener.clone();
        thread::spawn(move || {
            while let Ok((mut connection, _)) = listener.accept() {
                let mut head = [0; 8192];
                if connection.read(&mut head).is_ok_and(|read| read > 0) {
                    thread::sleep(WORK);
                    // The client may have left.
                    let _ = connection.write_all(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
                    );
                }
            }
        });
    }
    Ok(listener)
}
