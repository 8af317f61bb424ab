//! Memory per client: what the proxy's processes grow by when clients are there and nothing moves.
//! For clients that stall in a body also where the rest of it is: in the kernel's socket queues, on
//! disk, or still in a worker.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::app::{App, Upstream};
use super::load::{self, block_on, closed_loop};
use super::proxies::{Kind, Proxy};
use super::table::{figure, markdown};

const MEGABYTE: usize = 1024 * 1024;
const STALLED: usize = 200;
/// Long enough for what a proxy gives back when a client has been idle for a second or two.
const SETTLE: Duration = Duration::from_millis(2500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// Kept alive after one request.
    Idle(usize),
    HalfHead(usize),
    Reader,
    Upload,
}

/// What a case's clients cost together, in bytes; workers in number.
#[derive(Clone, Copy, Debug)]
struct Cost {
    memory: u64,
    queued: u64,
    disk: u64,
    workers: usize,
}

/// Gives the table.
pub(crate) fn run(kinds: &[Kind], filter: &str, quick: bool, dir: &Path) -> io::Result<String> {
    let app = App::start(dir, Upstream::ConnectionPerRequest)?;
    let many = if quick { 2000 } else { 6000 };
    let cases =
        [Case::Idle(1000), Case::Idle(many), Case::HalfHead(1000), Case::Reader, Case::Upload];
    let mut columns = vec!["memory, KiB per client".to_string()];
    columns.extend(kinds.iter().map(|kind| kind.name().to_string()));
    let mut rows = Vec::new();
    for case in cases.iter().filter(|case| case.name().contains(filter)) {
        let mut costs = Vec::new();
        for kind in kinds {
            let proxy = Proxy::start(*kind, &app.socket, app.upstream, "off", dir)?;
            let cost = block_on(measure(*case, &proxy, &app)).map_err(|error| {
                io::Error::other(format!("{}: {}: {error}", kind.name(), case.name()))
            })?;
            drop(proxy);
            // Nothing of this proxy is to be counted as the next one's.
            while app.open() > 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            eprintln!("{}: {}: {cost:?}", case.name(), kind.name());
            costs.push(cost);
        }
        let mut row = |name: String, cell: &dyn Fn(&Cost) -> String| {
            rows.push([vec![name], costs.iter().map(cell).collect()].concat());
        };
        let kib = |bytes: u64| figure(bytes as f64 / 1024.0 / case.clients() as f64);
        row(case.name(), &|cost| kib(cost.memory));
        if matches!(case, Case::Reader | Case::Upload) {
            row("– in the kernel's queues to the client".into(), &|cost| kib(cost.queued));
            row("– on disk".into(), &|cost| kib(cost.disk));
            row("– workers held, of 200".into(), &|cost| cost.workers.to_string());
        }
    }
    Ok(markdown(&columns, &rows))
}

impl Case {
    fn name(self) -> String {
        match self {
            Case::Idle(clients) => format!("{clients} idle kept-alive clients"),
            Case::HalfHead(clients) => format!("{clients} half-sent heads"),
            Case::Reader => format!("{STALLED} stalled readers of 1 MiB"),
            Case::Upload => format!("{STALLED} uploads stalled after 1 MiB of 2"),
        }
    }

    fn clients(self) -> usize {
        match self {
            Case::Idle(clients) | Case::HalfHead(clients) => clients,
            Case::Reader | Case::Upload => STALLED,
        }
    }
}

async fn measure(case: Case, proxy: &Proxy, app: &App) -> io::Result<Cost> {
    // What is loaded or allocated at the first requests is not a client's.
    let warm = (0..8).map(|_| proxy.client()).collect();
    closed_loop(warm, load::get("/100").into(), 64).await?;
    let (memory, disk) = (proxy.process.allocated(), proxy.process.disk());
    let clients = match case {
        Case::Idle(clients) => idle(proxy, clients).await?,
        Case::HalfHead(clients) => {
            let head = load::get("/100");
            partial(proxy, clients, head[..head.len() / 2].to_vec()).await?
        }
        Case::Reader => partial(proxy, STALLED, load::get("/1048576")).await?,
        Case::Upload => partial(proxy, STALLED, load::post("/100", 2 * MEGABYTE, MEGABYTE)).await?,
    };
    sleep(SETTLE).await;
    let cost = Cost {
        memory: proxy.process.allocated().saturating_sub(memory),
        queued: send_queues(proxy.address.port())?,
        disk: proxy.process.disk().saturating_sub(disk),
        workers: app.open(),
    };
    drop(clients);
    Ok(cost)
}

async fn idle(proxy: &Proxy, clients: usize) -> io::Result<Vec<TcpStream>> {
    let request = load::get("/100");
    let mut streams = Vec::with_capacity(clients);
    for _ in 0..clients {
        let mut client = proxy.client();
        client.exchange(&request).await?;
        streams.push(client.into_stream().ok_or_else(|| io::Error::other("not kept alive"))?);
    }
    Ok(streams)
}

/// Clients that send `bytes`, or as much of them as is taken, and nothing more; they read nothing.
async fn partial(proxy: &Proxy, clients: usize, bytes: Vec<u8>) -> io::Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(clients);
    for _ in 0..clients {
        let mut stream = load::connect_slow(proxy.address).await?;
        let bytes = bytes.clone();
        streams.push(spawn_local(async move {
            // A proxy that takes no more is measured as it is then.
            match timeout(Duration::from_secs(2), stream.write_all(&bytes)).await {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Ok(stream),
            }
        }));
    }
    let mut open = Vec::with_capacity(clients);
    for stream in streams {
        open.push(stream.await.map_err(io::Error::other)??);
    }
    Ok(open)
}

/// Bytes that the sockets on `port` have taken and the clients have not acknowledged.
fn send_queues(port: u16) -> io::Result<u64> {
    let local = format!(":{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp")?;
    let queue = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let queue = fields.get(4)?.split(':').next()?;
        fields.get(1)?.ends_with(&local).then(|| u64::from_str_radix(queue, 16).ok())?
    };
    // A listener's queue counts connections.
    let connected = table.lines().skip(1).filter(|line| !line.contains(" 0A "));
    Ok(connected.filter_map(queue).sum())
}
