//! The tail: an open loop over kept-alive connections. Each request has a time at which it is meant to
//! be sent, and its latency counts from then, also when its connection was still busy (no coordinated
//! omission, as wrk2 has it). And the pauses: the same load at a low rate while bufproxy has other work.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::app::{App, Upstream};
use super::load::{self, block_on, closed_loop};
use super::proxies::{Kind, Proxy};
use super::table::{figure, markdown, median};

const CONNECTIONS: usize = 64;
/// Parts of the capacity.
const LOADS: [f64; 3] = [0.2, 0.5, 0.8];

/// Gives the table. The capacity is what nginx does in a closed loop, or the first of `kinds`, so
/// that all have the same load.
pub(crate) fn run(kinds: &[Kind], quick: bool, dir: &Path) -> io::Result<String> {
    let rounds = if quick { 3 } else { 9 };
    let time = Duration::from_secs(1);
    let upstream = Upstream::ConnectionPerRequest;
    let app = App::start(dir, upstream)?;
    let start = |kind: &Kind| Proxy::start(*kind, &app.socket, upstream, "off", &[], dir);
    let proxies = kinds.iter().map(start).collect::<io::Result<Vec<_>>>()?;
    let measure = proxies.iter().find(|proxy| proxy.kind == Kind::Nginx).or(proxies.first());
    let Some(measure) = measure else { return Ok(String::new()) };
    let capacity = capacity(measure)?;
    let mut rows = Vec::new();
    for load in LOADS {
        let rate = capacity * load;
        // They take turns, and the median of the rounds counts: the machine makes pauses of its own.
        let mut measured = vec![Vec::new(); proxies.len()];
        for _ in 0..rounds {
            for (proxy, measured) in proxies.iter().zip(&mut measured) {
                measured.push(quantiles(open_loop(proxy.address, rate, time)?));
            }
        }
        for (proxy, measured) in proxies.iter().zip(&measured) {
            let load = format!("{:.0} % ({rate:.0}/s)", load * 100.0);
            rows.push([vec![proxy.kind.name().to_string(), load], medians(measured)].concat());
        }
    }
    let columns = ["open loop, 100 B, ms", "load", "p50", "p99", "p99.9", "most"];
    Ok(markdown(&columns.map(String::from), &rows))
}

/// Milliseconds: p50, p99, p99.9, the most.
fn quantiles(mut micros: Vec<u64>) -> [f64; 4] {
    micros.sort_unstable();
    let last = micros.len().saturating_sub(1);
    let at = |part: f64| micros.get(((micros.len() as f64 * part) as usize).min(last));
    [0.5, 0.99, 0.999, 1.0].map(|part| at(part).map_or(f64::NAN, |&n| n as f64 / 1e3))
}

/// Of each quantile the median of the rounds.
fn medians(rounds: &[[f64; 4]]) -> Vec<String> {
    let of = |n: usize| rounds.iter().map(|round| round[n]).collect::<Vec<_>>();
    (0..4).map(|n| figure(median(&of(n)))).collect()
}

/// What else bufproxy does must not stop its loop. It takes the machine's cores as well, so that another
/// bufproxy also does the same: the difference between the two rows is ours. They take turns, and the
/// machine makes pauses of its own, so that the median of the rounds counts, not the worst.
pub(crate) fn pauses(filter: &str, quick: bool, dir: &Path) -> io::Result<String> {
    const RATE: f64 = 2_000.0;
    let rounds = if quick { 3 } else { 7 };
    let time = Duration::from_secs(2);
    let upstream = Upstream::ConnectionPerRequest;
    let app = App::start(dir, upstream)?;
    let start = || Proxy::start(Kind::Bufproxy, &app.socket, upstream, "off", &[], dir);
    let (proxy, other) = (start()?, start()?);
    let wait = || thread::sleep(Duration::from_millis(10));
    let signal = |proxy: &Proxy, signal| {
        wait();
        proxy.process.signal(signal)
    };
    type Work<'w> = &'w (dyn Fn() -> io::Result<()> + Sync);
    let works: [(&str, Work<'_>); 7] = [
        ("nothing", &|| {
            wait();
            Ok(())
        }),
        ("another one spools 100 MB after the other", &|| upload(other.address)),
        ("it spools 100 MB after the other", &|| upload(proxy.address)),
        ("another one reopens its log every 10 ms", &|| signal(&other, Signal::USR1)),
        ("it reopens its log every 10 ms", &|| signal(&proxy, Signal::USR1)),
        ("another one reloads its settings every 10 ms", &|| signal(&other, Signal::HUP)),
        ("it reloads its settings every 10 ms", &|| signal(&proxy, Signal::HUP)),
    ];
    let works: Vec<_> = works.into_iter().filter(|(name, _)| name.contains(filter)).collect();
    let mut measured = vec![Vec::new(); works.len()];
    for _ in 0..rounds {
        for ((name, work), measured) in works.iter().zip(&mut measured) {
            let done = AtomicBool::new(false);
            let micros = thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        work()?;
                    }
                    io::Result::Ok(())
                });
                let micros = open_loop(proxy.address, RATE, time);
                done.store(true, Ordering::Relaxed);
                worker.join().map_err(|_| io::Error::other(*name))??;
                micros
            })?;
            measured.push(quantiles(micros));
        }
    }
    let row = |((name, _), measured): (&(&str, _), &Vec<[f64; 4]>)| {
        let worst = measured.iter().map(|round| round[3]).fold(0.0, f64::max);
        [vec![name.to_string()], medians(measured), vec![figure(worst)]].concat()
    };
    let rows: Vec<_> = works.iter().zip(&measured).map(row).collect();
    let columns =
        ["2,000 requests/s, ms, while", "p50", "p99", "p99.9", "most", "most of all rounds"];
    Ok(markdown(&columns.map(String::from), &rows))
}

/// 100 MB, sent as fast as they are taken.
fn upload(address: SocketAddr) -> io::Result<()> {
    const SIZE: usize = 100_000_000;
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&load::post("/100", SIZE, 0))?;
    let piece = vec![b'x'; 100_000];
    for _ in 0..SIZE / piece.len() {
        stream.write_all(&piece)?;
    }
    match stream.read(&mut [0; 1024])? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Requests a second in a closed loop.
fn capacity(proxy: &Proxy) -> io::Result<f64> {
    const REQUESTS: usize = 20_000;
    let request: Rc<[u8]> = load::get("/100").into();
    block_on(async move {
        let clients = (0..CONNECTIONS).map(|_| proxy.client()).collect();
        let clients = closed_loop(clients, request.clone(), REQUESTS / 10).await?;
        let begun = Instant::now();
        closed_loop(clients, request, REQUESTS).await?;
        Ok(REQUESTS as f64 / begun.elapsed().as_secs_f64())
    })
}

/// One connection with its own timetable.
struct Client {
    stream: TcpStream,
    /// When the request that is under way, or the next one, is meant to be sent.
    due: Instant,
    busy: bool,
    /// Bytes of the answer so far.
    came: usize,
}

/// Latencies in microseconds at `rate` requests a second for `time`. Of its own, without a runtime:
/// tokio's timers are a millisecond wide.
fn open_loop(address: SocketAddr, rate: f64, time: Duration) -> io::Result<Vec<u64>> {
    let request = load::get("/100");
    let gap = Duration::from_secs_f64(1.0 / rate);
    let begun = Instant::now() + Duration::from_millis(50);
    let end = begun + time;
    let mut clients = Vec::new();
    for n in 0..CONNECTIONS as u32 {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        clients.push(Client { stream, due: begun + gap * n, busy: false, came: 0 });
    }
    // The first answer tells how long they are.
    let length = answer_length(address, &request)?;
    let mut latencies = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let now = Instant::now();
        for client in clients.iter_mut().filter(|client| !client.busy && client.due <= now) {
            if client.due < end {
                // It fits the socket: there is never more than one under way.
                client.stream.write_all(&request)?;
                client.busy = true;
            }
        }
        let busy = clients.iter().filter(|client| client.busy);
        let mut waited: Vec<_> =
            busy.map(|client| PollFd::new(&client.stream, PollFlags::IN)).collect();
        let idle = clients.iter().filter(|client| !client.busy && client.due < end);
        let next = idle.map(|client| client.due).min();
        if waited.is_empty() && next.is_none() {
            return Ok(latencies);
        }
        let wait = next.map(|at| at.saturating_duration_since(Instant::now()));
        let wait = wait.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        poll(&mut waited, wait.as_ref())?;
        let ready: Vec<bool> = waited.iter().map(|fd| !fd.revents().is_empty()).collect();
        let busy = clients.iter_mut().filter(|client| client.busy);
        for (client, _) in busy.zip(ready).filter(|(_, ready)| *ready) {
            match client.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => client.came += n,
            }
            if client.came >= length {
                latencies.push(client.due.elapsed().as_micros() as u64);
                client.due += gap * CONNECTIONS as u32;
                (client.busy, client.came) = (false, 0);
            }
        }
    }
}

/// Bytes of one answer, head and body: all have as many.
fn answer_length(address: SocketAddr, request: &[u8]) -> io::Result<usize> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(request)?;
    let (mut buffer, mut filled) = (vec![0; 64 * 1024], 0);
    loop {
        filled += stream.read(&mut buffer[filled..])?;
        let head = buffer[..filled].windows(4).position(|end| end == b"\r\n\r\n");
        if head.is_some_and(|head| filled >= head + 4 + 100) {
            return Ok(filled);
        }
    }
}
