//! The rescue: four gunicorn sync workers, 200 slow clients, and what that does to eight fast ones,
//! without a proxy and behind each.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;
use tokio::time::{sleep, sleep_until, timeout_at};

use super::app::Upstream;
use super::load::{self, Client, block_on};
use super::process::Process;
use super::proxies::{Kind, Proxy, free_address, start};
use super::table::{figure, markdown};

const FAST: usize = 8;
/// From the slow clients' coming to the measurement. The app is busy making 600 MB for the readers in
/// that time, and would be for fast ones just as well.
const SETTLE: Duration = Duration::from_secs(3);
const READERS: usize = 100;
const UPLOADERS: usize = 100;
const UPLOAD: usize = 60 * 1024;
const UPLOAD_TIME: Duration = Duration::from_secs(4);
/// 10 KB/s.
const READ_EVERY: Duration = Duration::from_millis(100);
const READ: usize = 1000;
const MEGABYTE: f64 = 1024.0 * 1024.0;

/// What stands between the clients and the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    Nothing,
    Proxy(Kind),
    /// A server that buffers by itself, in gunicorn's place.
    Waitress,
}

impl Front {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Front::Nothing => "gunicorn alone",
            Front::Proxy(kind) => kind.name(),
            Front::Waitress => "waitress, connection limit 2000",
        }
    }
}

/// What the fast clients saw.
#[derive(Debug, Default)]
struct Seen {
    per_second: f64,
    /// Milliseconds.
    p99: f64,
    failed: usize,
}

/// Gives the table.
pub(crate) fn run(fronts: &[Front], quick: bool, dir: &Path) -> io::Result<String> {
    let (alone, together) = if quick { (1, 3) } else { (3, 10) };
    let (alone, together) = (Duration::from_secs(alone), Duration::from_secs(together));
    let venv = venv()?;
    let mut rows = Vec::new();
    for front in fronts {
        let server = Server::start(*front, &venv, dir)?;
        let address = server.address;
        block_on(fast(address, Duration::from_secs(1)))?;
        let before = block_on(fast(address, alone))?;
        let over = AtomicBool::new(false);
        let (seen, slow_failed, memory) = thread::scope(|scope| {
            let slow = scope.spawn(|| block_on(slow(address, SETTLE + together)));
            let memory = scope.spawn(|| peak(server.measured(), &over));
            thread::sleep(SETTLE);
            let seen = block_on(fast(address, together));
            over.store(true, Ordering::Relaxed);
            io::Result::Ok((seen?, join(slow)??, join(memory)?))
        })?;
        // The machine may have been busier then than now: alone is the mean of before and after.
        let after = block_on(fast(address, alone))?;
        let alone = Seen {
            per_second: (before.per_second + after.per_second) / 2.0,
            p99: (before.p99 + after.p99) / 2.0,
            failed: before.failed + after.failed,
        };
        eprintln!(
            "{}: alone {alone:?}, with slow ones {seen:?}, slow failed {slow_failed}",
            front.name()
        );
        rows.push(vec![
            front.name().to_string(),
            figure(alone.per_second),
            figure(seen.per_second),
            format!("{:.3}", seen.per_second / alone.per_second),
            figure(alone.p99),
            figure(seen.p99),
            figure(seen.p99 / alone.p99),
            seen.failed.to_string(),
            slow_failed.to_string(),
            match front {
                Front::Nothing => "–".into(),
                _ => figure(memory as f64 / MEGABYTE),
            },
        ]);
    }
    let columns = [
        "in front of 4 workers",
        "fast requests/s alone",
        "with 200 slow clients",
        "kept",
        "p99 alone, ms",
        "p99 with, ms",
        "ratio",
        "fast failed",
        "slow failed",
        "memory, MiB",
    ];
    Ok(markdown(&columns.map(String::from), &rows))
}

/// A front and its workers, running.
struct Server {
    address: SocketAddr,
    /// Absent where the server is the front.
    proxy: Option<Proxy>,
    workers: Process,
}

impl Server {
    fn start(front: Front, venv: &Path, dir: &Path) -> io::Result<Server> {
        let dir = tempfile::Builder::new().prefix("rescue").tempdir_in(dir)?.keep();
        let mut address = free_address()?;
        let socket = dir.join("app.sock");
        let mut command;
        if front == Front::Waitress {
            command = Command::new(venv.join("bin/waitress-serve"));
            command.arg(format!("--listen={address}"));
            command.args(["--threads=4", "--connection-limit=2000"]);
        } else {
            let bind = match front {
                Front::Proxy(_) => format!("unix:{}", socket.display()),
                _ => address.to_string(),
            };
            command = Command::new(venv.join("bin/gunicorn"));
            command.args(["--workers=4", "--log-level=critical", "--bind", &bind]);
        }
        command.arg("app:app");
        command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/support"));
        let log = File::create(dir.join("workers.log"))?;
        let workers = start(&command, log, &dir, || match front {
            Front::Proxy(_) => socket.exists(),
            _ => TcpStream::connect(address).is_ok(),
        })?;
        let mut proxy = None;
        if let Front::Proxy(kind) = front {
            let upstream = Upstream::ConnectionPerRequest;
            let started = Proxy::start(kind, &socket, upstream, "4", &[], &dir)?;
            address = started.address;
            proxy = Some(started);
        }
        Ok(Server { address, proxy, workers })
    }

    fn measured(&self) -> &Process {
        self.proxy.as_ref().map_or(&self.workers, |proxy| &proxy.process)
    }
}

/// The fast clients for the time of `window`.
async fn fast(address: SocketAddr, window: Duration) -> io::Result<Seen> {
    let request: Rc<[u8]> = load::get("/fast").into();
    let start = tokio::time::Instant::now();
    let end = start + window;
    let clients: Vec<_> = (0..FAST)
        .map(|_| {
            let request = request.clone();
            spawn_local(async move {
                let mut client = Client::new(address);
                let (mut times, mut failed) = (Vec::new(), 0);
                let pending = loop {
                    let sent = Instant::now();
                    match timeout_at(end, client.exchange(&request)).await {
                        Ok(Ok(())) => times.push(sent.elapsed()),
                        Ok(Err(_)) => {
                            failed += 1;
                            sleep(Duration::from_millis(10)).await;
                        }
                        // Unanswered at the end: it took at least this long.
                        Err(_) => break sent.elapsed(),
                    }
                };
                (times, failed, pending)
            })
        })
        .collect();
    let (mut times, mut answered, mut seen) = (Vec::new(), 0, Seen::default());
    for client in clients {
        let (took, failed, pending) = client.await.map_err(io::Error::other)?;
        answered += took.len();
        seen.failed += failed;
        times.extend(took);
        times.push(pending);
    }
    times.sort();
    seen.per_second = answered as f64 / window.as_secs_f64();
    let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or(window);
    seen.p99 = p99.as_secs_f64() * 1e3;
    Ok(seen)
}

/// The slow clients for the time of `window`; gives how many of their exchanges failed. Readers all
/// come at once, uploads spread over the time that one takes.
async fn slow(address: SocketAddr, window: Duration) -> io::Result<usize> {
    let end = tokio::time::Instant::now() + window;
    let mut clients = Vec::new();
    for _ in 0..READERS {
        clients.push(spawn_local(async move {
            usize::from(matches!(timeout_at(end, read_slowly(address)).await, Ok(Err(_))))
        }));
    }
    for index in 0..UPLOADERS {
        clients.push(spawn_local(async move {
            let mut failed = 0;
            let start = end - window + UPLOAD_TIME * index as u32 / UPLOADERS as u32;
            sleep_until(start).await;
            while let Ok(result) = timeout_at(end, upload_slowly(address)).await {
                failed += usize::from(result.is_err());
            }
            failed
        }));
    }
    let mut failed = 0;
    for client in clients {
        failed += client.await.map_err(io::Error::other)?;
    }
    Ok(failed)
}

async fn read_slowly(address: SocketAddr) -> io::Result<()> {
    let mut stream = load::connect_slow(address).await?;
    stream.write_all(&load::get("/large")).await?;
    let mut buffer = [0; READ];
    loop {
        if stream.read(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sleep(READ_EVERY).await;
    }
}

async fn upload_slowly(address: SocketAddr) -> io::Result<()> {
    const PIECES: usize = 40;
    let request = load::post("/upload", UPLOAD, UPLOAD);
    let mut stream = load::connect(address).await?;
    for piece in request.chunks(request.len().div_ceil(PIECES)) {
        stream.write_all(piece).await?;
        sleep(UPLOAD_TIME / PIECES as u32).await;
    }
    let mut head = [0; 512];
    let read = stream.read(&mut head).await?;
    if head[..read].starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    Err(io::Error::other("not answered with 200"))
}

/// The most memory that `process` was seen with.
fn peak(process: &Process, over: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !over.load(Ordering::Relaxed) {
        peak = peak.max(process.memory());
        thread::sleep(Duration::from_millis(500));
    }
    peak
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> io::Result<T> {
    thread.join().map_err(|_| io::Error::other("a thread of the bench panicked"))
}

/// gunicorn and waitress as pip names them.
pub(crate) fn versions() -> io::Result<String> {
    let list = Command::new(venv()?.join("bin/pip")).args(["freeze"]).output()?.stdout;
    let list = String::from_utf8_lossy(&list);
    let servers = list
        .lines()
        .filter(|line| ["gunicorn", "waitress"].iter().any(|package| line.starts_with(package)));
    Ok(servers.collect::<Vec<_>>().join(", ").replace("==", " "))
}

/// A Python environment with gunicorn and waitress, made when it is not there.
fn venv() -> io::Result<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv");
    let run = |command: &mut Command| match command.status()? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("{command:?}: {status}"))),
    };
    if !venv.join("bin/pip").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    for (program, package) in [("gunicorn", "gunicorn"), ("waitress-serve", "waitress")] {
        if !venv.join("bin").join(program).exists() {
            run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", package]))?;
        }
    }
    Ok(venv)
}
