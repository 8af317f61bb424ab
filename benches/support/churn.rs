//! Churn: connections of every kind that come and go, many of them badly. What must not happen: memory,
//! descriptors or spool that grow, or a request without its record. The random choices have a fixed
//! seed; times are the machine's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream as Probe};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::app::{App, Upstream};
use super::load::block_on;
use super::process::Process;
use super::proxies;
use super::table::{figure, markdown};

const SEED: u64 = 6;
/// Connections between two looks at what is left of them, and at once.
const ROUND: u64 = 20_000;
const AT_ONCE: usize = 512;
/// No client waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a proxy may take to be rid of the last client.
const SETTLE: Duration = Duration::from_secs(15);
/// What may be held more than after the first round: 2 MiB and a tenth.
const GROWTH: u64 = 2 * 1024 * 1024;

/// How a client behaves, and how often of a hundred.
const KINDS: [(Kind, u32); 12] = [
    (Kind::Kept, 22),
    (Kind::Pipelined, 12),
    (Kind::Upload, 12),
    (Kind::Malformed, 10),
    (Kind::Leaves, 10),
    (Kind::Resets, 10),
    (Kind::HalfHead, 6),
    (Kind::HalfBody, 6),
    (Kind::SlowReader, 5),
    (Kind::Silent, 3),
    (Kind::Idle, 2),
    (Kind::Stalls, 2),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// One to four requests, one after the other.
    Kept,
    /// Three requests in one write.
    Pipelined,
    /// A body of up to 200 KB, with its length or in chunks.
    Upload,
    /// No HTTP: 400.
    Malformed,
    /// Closes without having read anything.
    Leaves,
    /// Resets in the middle of a response.
    Resets,
    /// Closes in the middle of a head, of a body.
    HalfHead,
    HalfBody,
    /// Takes 300 KB in small pieces.
    SlowReader,
    /// Not a byte.
    Silent,
    /// A request, more than a second of nothing, another request.
    Idle,
    /// Stops in a head or a body and waits for the 408.
    Stalls,
}

impl Kind {
    /// As the targets have it.
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// Of one kind.
#[derive(Default)]
struct Count {
    connections: u64,
    requests: u64,
    records: u64,
    /// Records by their end.
    ends: BTreeMap<String, u64>,
}

type Counts = BTreeMap<String, Count>;

/// Runs until `connections` have come and gone, or for `limit`. Gives two tables.
///
/// # Errors
/// A promise was broken; the tables so far are in the message.
pub(crate) fn run(connections: u64, limit: Option<Duration>, dir: &Path) -> io::Result<String> {
    let dir = tempfile::Builder::new().prefix("churn").tempdir_in(dir)?;
    let app = App::start(dir.path(), Upstream::ConnectionPerRequest)?;
    let address = proxies::free_address()?;
    let log = dir.path().join("access.log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bufproxy"));
    command.arg("--listen").arg(address.to_string());
    command.arg("--upstream").arg(format!("unix:{}", app.socket.display()));
    command.arg("--access-log").arg(&log).args(["--log-format", "$end $request"]);
    command.args(["--memory", "16m", "--body-memory", "16k", "--response-memory", "32k"]);
    command.args(["--header-timeout", "2s", "--body-timeout", "3s", "--linger-timeout", "1s"]);
    command.arg("--spool-dir").arg(dir.path());
    let up = || Probe::connect(address).is_ok();
    let process = proxies::start(&command, File::create(&log)?, dir.path(), up)?;
    let mut records = BufReader::new(File::open(&log)?);

    let mut counts: Counts = KINDS.map(|(kind, _)| (kind.name(), Count::default())).into();
    let mut random = fastrand::Rng::with_seed(SEED);
    let begun = Instant::now();
    let descriptors = process.descriptors();
    let mut done = 0;
    let (mut first, mut rounds): (Option<u64>, Vec<Vec<String>>) = (None, Vec::new());
    while done < connections && limit.is_none_or(|limit| begun.elapsed() < limit) {
        let round = round(ROUND.min(connections - done), address, &mut random, &mut counts);
        let failed = block_on(round).err();
        done += ROUND.min(connections - done);
        let settled = settle(&process, descriptors);
        read_records(&mut records, &mut counts)?;
        let (memory, disk) = (process.allocated(), process.disk());
        let before = *first.get_or_insert(memory);
        rounds.push(vec![
            done.to_string(),
            counts.values().map(|count| count.requests).sum::<u64>().to_string(),
            counts.values().map(|count| count.records).sum::<u64>().to_string(),
            figure(memory as f64 / 1024.0 / 1024.0),
            process.descriptors().to_string(),
            disk.to_string(),
            figure(begun.elapsed().as_secs_f64()),
        ]);
        eprintln!("{}", rounds.last().map(|round| round.join("  ")).unwrap_or_default());
        let broken = counts.iter().find(|(_, count)| count.requests != count.records);
        let problem = if let Some(error) = failed {
            error.to_string()
        } else if let Some((kind, _)) = broken {
            format!("a request of {kind} has no record, or two")
        } else if !settled || disk > 0 {
            "descriptors or spooled bytes are left".to_owned()
        } else if memory > before + before / 10 + GROWTH {
            "memory grows".to_owned()
        } else {
            continue;
        };
        return Err(io::Error::other(format!("{problem}\n{}", tables(&counts, &rounds))));
    }
    Ok(tables(&counts, &rounds))
}

fn tables(counts: &Counts, rounds: &[Vec<String>]) -> String {
    let columns = ["churn", "connections", "requests", "records", "of these"].map(String::from);
    let of_kind = |(kind, count): (&String, &Count)| {
        let ends: Vec<_> = count.ends.iter().map(|(end, n)| format!("{end} {n}")).collect();
        let numbers = [count.connections, count.requests, count.records].map(|n| n.to_string());
        [vec![kind.clone()], numbers.into(), vec![ends.join(", ")]].concat()
    };
    let kinds: Vec<_> = counts.iter().map(of_kind).collect();
    let after = [
        "after connections",
        "requests",
        "records",
        "memory, MiB",
        "descriptors",
        "spooled, bytes",
        "s",
    ];
    // The first, the last and some between.
    let step = rounds.len().div_ceil(10).max(1);
    let some = rounds.iter().enumerate();
    let some = some.filter(|(n, _)| n % step == 0 || n + 1 == rounds.len());
    let some: Vec<_> = some.map(|(_, round)| round.clone()).collect();
    format!("{}\n{}", markdown(&columns, &kinds), markdown(&after.map(String::from), &some))
}

/// Until no client is left. False: some descriptors are.
fn settle(process: &Process, descriptors: usize) -> bool {
    let begun = Instant::now();
    while process.descriptors() > descriptors {
        if begun.elapsed() > SETTLE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // Longer than the log is kept back and the heap is looked at.
    std::thread::sleep(Duration::from_millis(1500));
    true
}

fn read_records(records: &mut impl BufRead, counts: &mut Counts) -> io::Result<()> {
    let mut line = String::new();
    while records.read_line(&mut line)? > 0 {
        let (end, request) = line.trim_end().split_once(' ').unwrap_or_default();
        let kind = request.split('?').nth(1).and_then(|kind| kind.split(' ').next());
        let Some(count) = counts.get_mut(kind.unwrap_or_default()) else {
            return Err(io::Error::other(format!("a record of nobody's: {line}")));
        };
        count.records += 1;
        *count.ends.entry(end.to_owned()).or_default() += 1;
        line.clear();
    }
    Ok(())
}

async fn round(
    connections: u64,
    address: SocketAddr,
    random: &mut fastrand::Rng,
    counts: &mut Counts,
) -> io::Result<()> {
    let plan: Vec<_> = (0..connections).map(|_| (kind(random), random.fork())).collect();
    let plan = Rc::new(RefCell::new(plan));
    let clients: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let plan = plan.clone();
            spawn_local(async move {
                let mut made = Vec::new();
                loop {
                    let Some((kind, random)) = plan.borrow_mut().pop() else { return Ok(made) };
                    let requests = timeout(PATIENCE, client(kind, random, address)).await;
                    let failed = |what: String| io::Error::other(format!("{kind:?}: {what}"));
                    let requests = requests.map_err(|_| failed("no answer".to_owned()))?;
                    made.push((kind, requests.map_err(|e| failed(e.to_string()))?));
                }
            })
        })
        .collect();
    for client in clients {
        let made: io::Result<Vec<_>> = client.await.map_err(io::Error::other)?;
        for (kind, requests) in made? {
            let count = counts.entry(kind.name()).or_default();
            count.connections += 1;
            count.requests += requests;
        }
    }
    Ok(())
}

fn kind(random: &mut fastrand::Rng) -> Kind {
    let shares: u32 = KINDS.iter().map(|(_, share)| share).sum();
    let mut left = random.u32(..shares);
    for (kind, share) in KINDS {
        if left < share {
            return kind;
        }
        left -= share;
    }
    Kind::Kept
}

/// One connection. Gives the requests of which a record is due.
async fn client(kind: Kind, mut random: fastrand::Rng, address: SocketAddr) -> io::Result<u64> {
    let slow = kind == Kind::SlowReader && random.bool();
    let mut client = connect(address, slow, &mut random).await?;
    let name = kind.name();
    let get = |size: u64| format!("GET /{size}?{name} HTTP/1.1\r\nHost: a\r\n\r\n");
    match kind {
        Kind::Kept => {
            let requests = random.u64(1..=4);
            for _ in 0..requests {
                client.write_all(get(random.u64(..20_000)).as_bytes()).await?;
                answer(&mut client, 200).await?;
            }
            return Ok(requests);
        }
        Kind::Pipelined => {
            client.write_all(get(random.u64(..2_000)).repeat(3).as_bytes()).await?;
            for _ in 0..3 {
                answer(&mut client, 200).await?;
            }
            return Ok(3);
        }
        Kind::Upload => {
            let size = if random.u8(..10) == 0 { 200_000 } else { random.usize(..30_000) };
            client.write_all(&post(&name, size, random.bool())).await?;
            answer(&mut client, 200).await?;
        }
        Kind::Malformed => {
            let fields = ["Content-Length: x", "Host : b", "Transfer-Encoding: chunked, chunked"];
            let field = fields[random.usize(..fields.len())];
            let request = format!("GET /1?{name} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
            client.write_all(request.as_bytes()).await?;
            answer(&mut client, 400).await?;
        }
        Kind::Leaves => client.write_all(get(random.u64(..100_000)).as_bytes()).await?,
        Kind::Resets => {
            client.write_all(get(random.u64(100_000..400_000)).as_bytes()).await?;
            client.read_exact(&mut [0; 100]).await?;
            client.set_zero_linger()?;
        }
        Kind::HalfHead => {
            let head = get(1);
            let line = head.find('\r').unwrap_or_default() + 2;
            client.write_all(&head.as_bytes()[..random.usize(line..head.len() - 1)]).await?;
            sleep(Duration::from_millis(random.u64(..5))).await;
        }
        Kind::HalfBody => {
            let post = post(&name, 50_000, random.bool());
            client.write_all(&post[..random.usize(200..40_000)]).await?;
        }
        Kind::SlowReader => {
            client.write_all(get(300_000).as_bytes()).await?;
            let mut left = 300_000;
            while left > 0 {
                let mut piece = [0; 20_000];
                match client.read(&mut piece).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => left = usize::saturating_sub(left, n),
                }
                sleep(Duration::from_millis(random.u64(..10))).await;
            }
        }
        Kind::Silent => {
            sleep(Duration::from_millis(random.u64(..1500))).await;
            return Ok(0);
        }
        Kind::Idle => {
            client.write_all(get(100).as_bytes()).await?;
            answer(&mut client, 200).await?;
            sleep(Duration::from_millis(random.u64(900..2000))).await;
            client.write_all(get(100).as_bytes()).await?;
            answer(&mut client, 200).await?;
            return Ok(2);
        }
        Kind::Stalls => {
            let all = match random.bool() {
                true => get(1).into_bytes(),
                false => post(&name, 50_000, random.bool()),
            };
            client.write_all(&all[..all.len() - 10]).await?;
            answer(&mut client, 408).await?;
        }
    }
    Ok(1)
}

/// From one of 65,536 addresses of this machine: ports of one would run out.
async fn connect(
    address: SocketAddr,
    slow: bool,
    random: &mut fastrand::Rng,
) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if slow {
        socket.set_recv_buffer_size(4096)?;
    }
    let from = Ipv4Addr::from([127, 1, random.u8(..), random.u8(1..=254)]);
    socket.bind((from, 0).into())?;
    socket.connect(address).await
}

fn post(name: &str, size: usize, chunked: bool) -> Vec<u8> {
    let framing = match chunked {
        true => "Transfer-Encoding: chunked".to_owned(),
        false => format!("Content-Length: {size}"),
    };
    let mut request =
        format!("POST /10?{name} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n").into_bytes();
    if !chunked {
        request.resize(request.len() + size, b'x');
        return request;
    }
    for start in (0..size).step_by(4000) {
        let n = (size - start).min(4000);
        request.extend(format!("{n:x}\r\n").bytes());
        request.resize(request.len() + n, b'x');
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    request
}

/// Reads one response, byte for byte up to its body so that the next one stays.
async fn answer(client: &mut TcpStream, expected: u16) -> io::Result<()> {
    let mut head = Vec::new();
    let mut peeked = [0; 2048];
    let end = loop {
        let n = client.peek(&mut peeked).await?;
        let before = head.len();
        head.extend(&peeked[..n]);
        let end = head.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        let used = end.map_or(n, |end| end - before);
        client.read_exact(&mut peeked[..used]).await?;
        match end {
            Some(end) => break end,
            None if n == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => {}
        }
    };
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    response.parse(&head[..end]).map_err(io::Error::other)?;
    if response.code != Some(expected) {
        return Err(io::Error::other(format!("status {:?}, not {expected}", response.code)));
    }
    let mut left = super::load::content_length(response.headers);
    let mut body = [0; 16 * 1024];
    while left > 0 {
        let most = left.min(body.len());
        match client.read(&mut body[..most]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => left -= n,
        }
    }
    Ok(())
}
