//! The overload: four workers of 100 ms, more requests than they can do, and clients that leave after
//! a second. What counts is what is answered before its client has left.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use tokio::task::spawn_local;
use tokio::time::{sleep_until, timeout};

use super::app::Upstream;
use super::load::{self, Client, block_on};
use super::proxies::{Kind, Proxy};
use super::table::{figure, markdown};

const WORKERS: usize = 4;
const WORK: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(1);
/// Requests a second that the workers can do.
const CAPACITY: f64 = 40.0;
const TIMES: [f64; 2] = [1.2, 3.0];

/// Gives the table.
pub(crate) fn run(kinds: &[Kind], quick: bool, dir: &Path) -> io::Result<String> {
    let seconds = if quick { 10 } else { 30 };
    let mut rows = Vec::new();
    for times in TIMES {
        for kind in kinds {
            rows.push(one(*kind, times, seconds, dir)?);
        }
    }
    let columns = [
        "four workers of 100 ms, clients leave after 1 s",
        "load, of capacity",
        "answered in time, of capacity",
        "p50 of them, ms",
        "done by the app",
        "next answer after the load, s",
    ];
    Ok(markdown(&columns.map(String::from), &rows))
}

fn one(kind: Kind, times: f64, seconds: u32, dir: &Path) -> io::Result<Vec<String>> {
    let dir = tempfile::Builder::new().prefix("overload").tempdir_in(dir)?;
    let socket = dir.path().join("app.sock");
    let done = workers(&socket)?;
    let proxy = Proxy::start(kind, &socket, Upstream::ConnectionPerRequest, "4", &[], dir.path())?;
    let count = (CAPACITY * times * f64::from(seconds)) as u32;
    let gap = Duration::from_secs(1).div_f64(CAPACITY * times);
    let (mut answered, recovery) = block_on(async {
        let answered = Rc::new(RefCell::new(Vec::new()));
        let begun = Instant::now();
        for n in 0..count {
            sleep_until((begun + gap * n).into()).await;
            let (mut client, answered) = (Client::new(proxy.address), answered.clone());
            spawn_local(async move {
                let begun = Instant::now();
                let answer = timeout(PATIENCE, client.exchange(&load::get("/"))).await;
                if let Ok(Ok(())) = answer {
                    answered.borrow_mut().push(begun.elapsed());
                }
            });
        }
        sleep_until((Instant::now() + PATIENCE).into()).await;
        let after = Instant::now();
        let next = Client::new(proxy.address).exchange(&load::get("/")).await;
        Ok((answered.take(), next.map(|()| after.elapsed())))
    })?;
    answered.sort_unstable();
    let part = answered.len() as f64 / (CAPACITY * f64::from(seconds));
    let p50 = answered.get(answered.len() / 2).map(|time| time.as_secs_f64() * 1e3);
    let row = vec![
        kind.name().to_string(),
        format!("{times}"),
        format!("{part:.2}"),
        p50.map_or("–".into(), figure),
        done.load(Relaxed).to_string(),
        recovery.map_or("–".into(), |time| figure(time.as_secs_f64())),
    ];
    eprintln!("{row:?}");
    Ok(row)
}

/// Sync workers on one listener: each takes a connection, works, answers and closes. Counts what they
/// have done.
fn workers(socket: &Path) -> io::Result<Arc<AtomicUsize>> {
    let listener = Arc::new(UnixListener::bind(socket)?);
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..WORKERS {
        let (listener, done) = (listener.clone(), done.clone());
        thread::spawn(move || {
            while let Ok((mut connection, _)) = listener.accept() {
                let mut head = [0; 8192];
                if connection.read(&mut head).is_ok_and(|read| read > 0) {
                    thread::sleep(WORK);
                    done.fetch_add(1, Relaxed);
                    // The client may have left.
                    let _ = connection.write_all(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
                    );
                }
            }
        });
    }
    Ok(done)
}
