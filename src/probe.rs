//! `bufproxy probe URL`: how a site serves fast clients while slow ones hold on to it. gunicorn's
//! documentation asks for this to be verified, and the usual load testers have fast clients only. For
//! one's own site; called by `main`.
//!
//! Three kinds of slow clients, one after the other: those that send half a head, half a body, or
//! read nothing. A site with a buffering proxy in front answers the fast ones as if they were alone.

use std::cell::Cell;
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Builder;

use crate::config::Probe;

/// Requests of which the median counts.
const REQUESTS: usize = 5;
/// Between two bytes of a slow client: none of the usual timeouts between bytes ends it.
const BEAT: Duration = Duration::from_secs(1);
/// Of a body that never comes whole.
const BODY: usize = 60_000;

#[derive(Clone, Copy)]
enum Slow {
    Head,
    Body,
    Reader,
}

/// Prints a line for each kind of slow client. False: while some of them held on, a fast client was not
/// answered in time.
///
/// # Errors
/// One line: the site does not answer even when it is left alone.
pub fn run(probe: &Probe) -> Result<bool, String> {
    let url = format!("http://{}:{}{}", probe.host, probe.port, probe.path);
    let addresses = (probe.host.as_str(), probe.port).to_socket_addrs();
    let found = addresses.and_then(|mut found| found.next().ok_or(io::ErrorKind::NotFound.into()));
    let addr = found.map_err(|e| format!("probe {url}: {e}"))?;
    let runtime = Builder::new_current_thread().enable_all().build_local(Default::default());
    let runtime = runtime.map_err(|e| format!("probe {url}: {e}"))?;
    let site = Rc::new(Site { probe: probe.clone(), addr });
    runtime.block_on(async {
        // Whatever reads the lines may have gone: the exit code says it, too.
        let say = |line: String| drop(writeln!(io::stdout(), "{line}"));
        let alone = site.measure().await.map_err(|e| format!("probe {url}: {e}"))?;
        say(format!("{url} alone: {}", shown(alone)));
        let mut all = true;
        for (slow, what) in [
            (Slow::Head, "send half a head"),
            (Slow::Body, "send half a body"),
            (Slow::Reader, "read nothing"),
        ] {
            let held = site.hold(slow).await;
            let seen = match site.measure().await {
                Ok(time) => shown(time),
                Err(e) => {
                    all = false;
                    format!("not served: {e}")
                }
            };
            say(format!("beside {} clients that {what}: {seen}", held.number()));
            drop(held);
            // What these have left behind is nothing of the next ones.
            let _ = tokio::time::timeout(site.probe.timeout, site.get()).await;
        }
        Ok(all)
    })
}

fn shown(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

struct Site {
    probe: Probe,
    addr: SocketAddr,
}

/// Slow clients; they leave when it is dropped.
struct Held {
    tasks: tokio::task::JoinSet<io::Result<()>>,
    connected: Rc<Cell<usize>>,
}

impl Held {
    fn number(&self) -> usize {
        self.connected.get()
    }
}

impl Site {
    /// The median of a few requests, one after the other. Err: one was not answered in time.
    async fn measure(&self) -> io::Result<Duration> {
        let mut times = Vec::new();
        for _ in 0..REQUESTS {
            let begun = Instant::now();
            let got = tokio::time::timeout(self.probe.timeout, self.get()).await;
            let late = || format!("no answer within {} s", self.probe.timeout.as_secs_f64());
            got.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, late()))??;
            times.push(begun.elapsed());
        }
        times.sort();
        Ok(times[REQUESTS / 2])
    }

    /// One request. Any status is an answer.
    async fn get(&self) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.addr).await?;
        stream.write_all(self.head("GET", "Connection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        match answer.starts_with(b"HTTP/1.") {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "no answer in HTTP/1")),
        }
    }

    /// Starts slow clients, and waits until they are connected, or cannot be in time.
    async fn hold(self: &Rc<Site>, slow: Slow) -> Held {
        let mut held = Held { tasks: tokio::task::JoinSet::new(), connected: Rc::default() };
        for _ in 0..self.probe.clients {
            let (site, connected) = (self.clone(), held.connected.clone());
            held.tasks.spawn_local(async move { site.be(slow, &connected).await });
        }
        let all = async {
            while held.connected.get() < self.probe.clients {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(self.probe.timeout, all).await;
        // They are at the workers by then.
        tokio::time::sleep(Duration::from_millis(200)).await;
        held
    }

    /// A slow client, until the site ends it.
    async fn be(&self, slow: Slow, connected: &Cell<usize>) -> io::Result<()> {
        let socket = match self.addr {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // The kernel shall not take the response instead.
        socket.set_recv_buffer_size(4096)?;
        let mut stream = socket.connect(self.addr).await?;
        let (head, piece) = match slow {
            Slow::Head => (self.head("GET", ""), "X-Slow: 1\r\n"),
            Slow::Body => (self.head("POST", &format!("Content-Length: {BODY}\r\n\r\n")), "."),
            Slow::Reader => (self.head("GET", "\r\n"), ""),
        };
        stream.write_all(head.as_bytes()).await?;
        connected.set(connected.get() + 1);
        loop {
            tokio::time::sleep(BEAT).await;
            stream.write_all(piece.as_bytes()).await?;
        }
    }

    /// The beginning of a request, and the rest of its head.
    fn head(&self, method: &str, rest: &str) -> String {
        let Probe { host, port, path, .. } = &self.probe;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: bufproxy-probe\r\n{rest}"
        )
    }
}
