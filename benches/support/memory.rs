//! Memory per client: what the proxy's processes grow by when clients are there and nothing moves,
//! and what of it is left when all have gone. For clients that stall in a body also where the rest of
//! it is: in the kernel's socket queues, on disk, or still in a worker.

use std::fs;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::app::{App, Upstream};
use super::load::{self, block_on, closed_loop};
use super::proxies::{Kind, Proxy};
use super::table::{figure, markdown};

/// Room for all that does not move.
const SPOOL: &[&str] = &["--spool-max", "16g"];
pub(crate) const MEGABYTE: usize = 1024 * 1024;
/// Clients that come at the same time; the next ones come when these are settled.
const BATCH: usize = 200;
/// Long enough for what a proxy gives back when clients have been idle, or gone, for a few seconds.
const SETTLE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// Kept alive after one request.
    Idle(usize),
    HalfHead(usize),
    Reader(usize),
    Upload(usize),
}

/// What a case's clients cost together, in bytes; workers in number.
#[derive(Clone, Copy, Debug)]
struct Cost {
    memory: u64,
    queued: u64,
    disk: u64,
    workers: usize,
    /// Memory when they have gone.
    left: u64,
}

/// Gives the table.
pub(crate) fn run(kinds: &[Kind], filter: &str, quick: bool, dir: &Path) -> io::Result<String> {
    let app = App::start(dir, Upstream::ConnectionPerRequest)?;
    let many = if quick { 2000 } else { 6000 };
    let cases = [
        Case::Idle(1000),
        Case::Idle(many),
        Case::HalfHead(1000),
        Case::HalfHead(many),
        Case::Reader(1000),
        Case::Reader(many),
        Case::Upload(1000),
        Case::Upload(many),
    ];
    let mut columns = vec!["memory, KiB per client".to_string()];
    columns.extend(kinds.iter().map(|kind| kind.name().to_string()));
    let mut rows = Vec::new();
    for case in cases.iter().filter(|case| case.name().contains(filter)) {
        let mut costs = Vec::new();
        for kind in kinds {
            if !case.is_for(*kind) {
                costs.push(None);
                continue;
            }
            let proxy = Proxy::start(*kind, &app.socket, app.upstream, "off", SPOOL, dir)?;
            let cost = block_on(measure(*case, &proxy, &app)).map_err(|error| {
                io::Error::other(format!("{}: {}: {error}", kind.name(), case.name()))
            })?;
            drop(proxy);
            // Nothing of this proxy is to be counted as the next one's.
            while app.open() > 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            eprintln!("{}: {}: {cost:?}", case.name(), kind.name());
            costs.push(Some(cost));
        }
        let mut row = |name: String, cell: &dyn Fn(&Cost) -> String| {
            let cells = costs.iter().map(|cost| cost.as_ref().map_or("–".into(), cell));
            rows.push([vec![name], cells.collect()].concat());
        };
        let kib = |bytes: u64| figure(bytes as f64 / 1024.0 / case.clients() as f64);
        row(case.name(), &|cost| kib(cost.memory));
        if matches!(case, Case::Reader(_) | Case::Upload(_)) {
            row("– in the kernel's queues to the client".into(), &|cost| kib(cost.queued));
            row("– on disk".into(), &|cost| kib(cost.disk));
            row("– workers held".into(), &|cost| cost.workers.to_string());
        }
        row("– MiB in all when they have left".into(), &|cost| {
            figure(cost.left as f64 / MEGABYTE as f64)
        });
    }
    Ok(markdown(&columns, &rows))
}

impl Case {
    fn name(self) -> String {
        match self {
            Case::Idle(clients) => format!("{clients} idle kept-alive clients"),
            Case::HalfHead(clients) => format!("{clients} half-sent heads"),
            Case::Reader(clients) => format!("{clients} stalled readers of 1 MiB"),
            Case::Upload(clients) => format!("{clients} uploads stalled after 1 MiB of 2"),
        }
    }

    fn clients(self) -> usize {
        match self {
            Case::Idle(clients)
            | Case::HalfHead(clients)
            | Case::Reader(clients)
            | Case::Upload(clients) => clients,
        }
    }

    /// What grows with the clients is seen in two; gigabytes in memory are not tried.
    fn is_for(self, kind: Kind) -> bool {
        self.clients() <= 1000 || matches!(kind, Kind::Bufproxy | Kind::Also(_) | Kind::Nginx)
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
            partial(proxy, app, clients, head[..head.len() / 2].to_vec()).await?
        }
        Case::Reader(clients) => partial(proxy, app, clients, load::get("/1048576")).await?,
        Case::Upload(clients) => {
            partial(proxy, app, clients, load::post("/100", 2 * MEGABYTE, MEGABYTE)).await?
        }
    };
    sleep(SETTLE).await;
    let mut cost = Cost {
        memory: proxy.process.allocated().saturating_sub(memory),
        queued: send_queues(proxy.address.port())?,
        disk: proxy.process.disk().saturating_sub(disk),
        workers: app.open(),
        left: 0,
    };
    drop(clients);
    sleep(SETTLE).await;
    cost.left = proxy.process.allocated().saturating_sub(memory);
    Ok(cost)
}

pub(crate) async fn idle(proxy: &Proxy, clients: usize) -> io::Result<Vec<TcpStream>> {
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
/// The next ones come when the app is done with these, if it ever is.
pub(crate) async fn partial(
    proxy: &Proxy,
    app: &App,
    clients: usize,
    bytes: Vec<u8>,
) -> io::Result<Vec<TcpStream>> {
    let bytes: Rc<[u8]> = bytes.into();
    let mut open = Vec::with_capacity(clients);
    while open.len() < clients {
        let batch = (0..BATCH.min(clients - open.len())).map(|_| {
            let (bytes, address) = (bytes.clone(), proxy.address);
            spawn_local(async move {
                let mut stream = load::connect_slow(address).await?;
                // A proxy that takes no more is measured as it is then.
                match timeout(Duration::from_secs(2), stream.write_all(&bytes)).await {
                    Ok(Err(error)) => Err(error),
                    Ok(Ok(())) | Err(_) => Ok(stream),
                }
            })
        });
        for stream in batch.collect::<Vec<_>>() {
            open.push(stream.await.map_err(io::Error::other)??);
        }
        let patience = Instant::now() + Duration::from_secs(2);
        while app.open() > 0 && Instant::now() < patience {
            sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(open)
}

/// Bytes that the sockets on `port` have taken and the clients have not acknowledged.
pub(crate) fn send_queues(port: u16) -> io::Result<u64> {
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
