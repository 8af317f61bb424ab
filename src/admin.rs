//! The admin listener: `/healthz`, `/readyz`, `/metrics`, `/status`, `POST /drain`, and its clients
//! `bufproxy healthcheck` and `bufproxy drain`. Started by the lifecycle.
//!
//! It has a thread and a runtime of its own and reads atomics only, so that it answers at once
//! whatever the event loops and the workers do. Nothing of a client's or of the app's is in its
//! answers: it is safe on any address that only operators reach.

use std::convert::Infallible;
use std::fmt::Write;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{Empty, Full};
use hyper::client::conn::http1 as client;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ORIGIN};
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Builder;
use tokio::sync::{Notify, Semaphore};

use crate::config::{Config, Listen};
use crate::error::Reason;
use crate::metrics::METRICS;
use crate::net::SocketFile;
use crate::server::Server;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;

/// For a request head.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest life of a connection: who does not read has no place for ever.
const STAY: Duration = Duration::from_secs(60);

/// Between two looks of `drain --wait`.
const LOOK: Duration = Duration::from_millis(50);

/// Where the process is in its life, as `/readyz` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The port is closed: the app has not answered yet.
    Starting,
    Ready,
    Draining,
    /// The app ended by itself, or the last attempt did not reach it.
    AppDown,
}

impl State {
    const ALL: [State; 4] = [State::Starting, State::Ready, State::Draining, State::AppDown];

    fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Ready => "ready",
            State::Draining => "draining",
            State::AppDown => "app_down",
        }
    }
}

/// What the lifecycle and the admin thread tell each other: the state, and that a drain is asked for.
#[derive(Debug)]
pub struct Health {
    state: AtomicU8,
    drain: Notify,
}

impl Default for Health {
    fn default() -> Health {
        Health { state: AtomicU8::new(State::Starting as u8), drain: Notify::new() }
    }
}

impl Health {
    pub fn set(&self, state: State) {
        self.state.store(state as u8, Relaxed);
    }

    pub fn get(&self) -> State {
        State::ALL[usize::from(self.state.load(Relaxed))]
    }

    /// Waits for a `POST /drain`. One that came before the call counts. Cancel safe.
    pub async fn drain_asked(&self) {
        self.drain.notified().await;
    }
}

/// The running listener. Dropping it removes its socket file; its thread ends with the process.
#[derive(Debug)]
pub struct Admin {
    addr: String,
    _socket: Option<SocketFile>,
}

impl Admin {
    /// The address as bound (port 0 resolved): `127.0.0.1:9000`, `unix:/tmp/admin.sock`.
    pub fn addr(&self) -> &str {
        &self.addr
    }
}

/// Binds and serves. A socket file that nobody listens on any more is replaced.
///
/// # Errors
/// The address is in use, or may not be bound; the text says all.
pub fn start(
    listen: &Listen,
    server: Server,
    config: Arc<Config>,
    health: Arc<Health>,
) -> io::Result<Admin> {
    let named = |e: io::Error| io::Error::new(e.kind(), config.cannot_bind("admin", listen, &e));
    let facts = |config| Arc::new(Facts { server, config, health, started: Instant::now() });
    match listen {
        Listen::Tcp(addr) => {
            let socket = TcpListener::bind(addr).map_err(named)?;
            let facts = facts(config);
            socket.set_nonblocking(true)?;
            let addr = socket.local_addr()?.to_string();
            spawn(|| async move {
                let socket = tokio::net::TcpListener::from_std(socket)?;
                accept(async || Ok(socket.accept().await?.0), facts).await
            })?;
            Ok(Admin { addr, _socket: None })
        }
        Listen::Unix(path) => {
            let socket = bind_unix(path).map_err(named)?;
            let file = SocketFile::of(path).map_err(named)?;
            let facts = facts(config);
            socket.set_nonblocking(true)?;
            spawn(|| async move {
                let socket = tokio::net::UnixListener::from_std(socket)?;
                accept(async || Ok(socket.accept().await?.0), facts).await
            })?;
            Ok(Admin { addr: listen.to_string(), _socket: Some(file) })
        }
    }
}

/// `bufproxy healthcheck`: asks `/readyz` of the admin listener at `addr`, at most `limit`. Err is one
/// line that says what is wrong.
pub fn healthcheck(addr: &Listen, limit: Duration) -> Result<(), String> {
    within(addr, limit, async {
        match ask(addr, Method::GET, "/readyz").await? {
            (StatusCode::OK, _) => Ok(()),
            (status, word) => Err(unexpected(status, &word)),
        }
    })
}

/// `bufproxy drain`: asks the bufproxy whose admin listener is at `addr` to stop, as TERM does; with
/// `wait` it returns when that one has ended. At most `limit`. Err is one line that says what is
/// wrong, or what was still under way.
pub fn drain(addr: &Listen, wait: bool, limit: Duration) -> Result<(), String> {
    let left = std::cell::RefCell::default();
    let drained = within(addr, limit, async {
        match ask(addr, Method::POST, "/drain").await? {
            (StatusCode::ACCEPTED, _) => {}
            (status, word) => return Err(unexpected(status, &word)),
        }
        // Its end is the sign: before it a next request may come on a connection that is kept.
        while wait && let Ok((_, status)) = ask(addr, Method::GET, "/status").await {
            *left.borrow_mut() = status;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    });
    drained.map_err(|problem| match under_way(&left.borrow()) {
        Some(counts) => format!("{addr}: not drained within {} s: {counts}", limit.as_secs_f64()),
        None => problem,
    })
}

/// The counts of a `/status`, in words.
fn under_way(status: &str) -> Option<String> {
    let status: serde_json::Value = serde_json::from_str(status).ok()?;
    let counts = ["receiving", "queued", "in_flight", "delivering"];
    let counts = counts.map(|name| format!("{} {}", status[name], name.replace('_', " ")));
    Some(counts.join(", "))
}

fn unexpected(status: StatusCode, word: &str) -> io::Error {
    io::Error::other(format!("{word} ({})", status.as_u16()))
}

/// Runs a client of the listener at `addr`; what goes wrong is one line that names it.
fn within(
    addr: &Listen,
    limit: Duration,
    client: impl Future<Output = io::Result<()>>,
) -> Result<(), String> {
    let problem = |e: &dyn std::fmt::Display| format!("{addr}: {e}");
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|e| problem(&e))?;
    match runtime.block_on(async { tokio::time::timeout(limit, client).await }) {
        Err(_) => Err(problem(&format_args!("no answer within {} s", limit.as_secs_f64()))),
        Ok(done) => done.map_err(|e| problem(&e)),
    }
}

/// One request. Gives the status and the body.
async fn ask(addr: &Listen, method: Method, path: &str) -> io::Result<(StatusCode, String)> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    match addr {
        // An unspecified address, as one binds to, is the loopback to Linux.
        Listen::Tcp(addr) => exchange(tokio::net::TcpStream::connect(addr).await?, request).await,
        Listen::Unix(path) => exchange(tokio::net::UnixStream::connect(path).await?, request).await,
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> io::Result<(StatusCode, String)> {
    use http_body_util::BodyExt;

    let (mut sender, connection) =
        client::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).trim().to_owned()))
    };
    // The connection moves the bytes; it may end with or before the exchange.
    let (answer, _) = tokio::join!(exchange, connection);
    answer.map_err(|e: hyper::Error| io::Error::other(e))
}

/// What the answers are made of.
struct Facts {
    server: Server,
    config: Arc<Config>,
    health: Arc<Health>,
    started: Instant,
}

/// Runs `serve` on a thread of its own, to the end of the process.
fn spawn<F>(serve: impl FnOnce() -> F + Send + 'static) -> io::Result<()>
where
    F: Future<Output = io::Result<()>>,
{
    let run = || {
        let runtime = Builder::new_current_thread().enable_all().build_local(Default::default())?;
        runtime.block_on(serve())
    };
    std::thread::Builder::new().name("admin".into()).spawn(move || {
        if let Err(e) = run() {
            tracing::error!("the admin listener ended: {e}");
        }
    })?;
    Ok(())
}

async fn accept<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    mut next: impl AsyncFnMut() -> io::Result<S>,
    facts: Arc<Facts>,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = room.clone().acquire_owned().await.map_err(io::Error::other)?;
        let stream = match next().await {
            Ok(stream) => stream,
            Err(_) => {
                // Out of descriptors, mostly: it passes.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let facts = facts.clone();
        tokio::task::spawn_local(async move {
            let answer = service_fn(move |request: Request<_>| {
                let response = facts.answer(&request);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = server::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), answer);
            let _ = tokio::time::timeout(STAY, connection).await;
            drop(permit);
        });
    }
}

impl Facts {
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        const TEXT: &str = "text/plain; charset=utf-8";
        let state = self.state();
        let ready = if state == State::Ready { 200 } else { 503 };
        let reads = request.method() == Method::GET || request.method() == Method::HEAD;
        let (status, kind, body) = match request.uri().path() {
            "/drain" if request.method() != Method::POST => (405, TEXT, "only POST\n".into()),
            // Some page in a browser on this machine; operators' programs send none.
            "/drain" if request.headers().contains_key(ORIGIN) => {
                (403, TEXT, "not from a page\n".into())
            }
            "/drain" => {
                self.health.drain.notify_one();
                (202, TEXT, "draining\n".into())
            }
            _ if !reads => (405, TEXT, "only GET and HEAD\n".into()),
            "/healthz" => (200, TEXT, "ok\n".into()),
            "/readyz" => (ready, TEXT, format!("{}\n", state.name())),
            "/metrics" => (200, "text/plain; version=0.0.4; charset=utf-8", self.metrics()),
            "/status" => (200, "application/json", self.status()),
            _ => (404, TEXT, "/healthz, /readyz, /metrics, /status, POST /drain\n".into()),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
        response
    }

    /// From what became of attempts, never from a connect: that would hold a sync worker.
    fn state(&self) -> State {
        match self.health.get() {
            State::Ready if !self.server.app_reachable() => State::AppDown,
            state => state,
        }
    }

    /// Prometheus text format 0.0.4.
    fn metrics(&self) -> String {
        let counts = self.server.counts();
        let mut text = Exposition(String::with_capacity(4096));
        let version = concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
        text.family("info", "gauge", "The running version.");
        text.sample("info", version, 1);
        text.family("uptime_seconds", "gauge", "Seconds since the start.");
        text.sample("uptime_seconds", "", self.started.elapsed().as_secs());
        text.family("ready", "gauge", "1 while /readyz answers 200.");
        text.sample("ready", "", u64::from(self.state() == State::Ready));

        text.family(
            "requests_total",
            "counter",
            "Requests ended, by reason (field end of the log).",
        );
        for reason in Reason::ALL {
            let label = format!("{{reason=\"{}\"}}", reason.name());
            text.sample("requests_total", &label, METRICS.ends[reason as usize].get());
        }
        text.family("responses_total", "counter", "Requests ended, by class of the status.");
        for class in 1..METRICS.status_class.len() {
            let label = format!("{{class=\"{class}xx\"}}");
            text.sample("responses_total", &label, METRICS.status_class[class].get());
        }
        let counters = [
            (
                "connections_accepted_total",
                "Client connections accepted.",
                &METRICS.connections_accepted,
            ),
            ("retries_total", "Attempts beyond the first of a request.", &METRICS.retries),
            (
                "slots_lost_total",
                "Slots whose worker did not close within 300 s after its client had left.",
                &METRICS.slot_lost,
            ),
            (
                "log_lines_dropped_total",
                "Lines of a log lost because its reader was too slow or a write failed.",
                &METRICS.log_lines_dropped,
            ),
            (
                "crossed_close_total",
                "Requests that crossed the close of an idle connection.",
                &METRICS.crossed_close,
            ),
            (
                "client_limited_total",
                "Requests refused by max-requests-per-client.",
                &METRICS.client_limited,
            ),
            (
                "idle_reaped_total",
                "Idle connections closed above 90 % of max-connections, to make room.",
                &METRICS.idle_reaped,
            ),
            (
                "spool_errors_total",
                "Spool files that could not be made, written or read back (spool-dir).",
                &METRICS.spool_errors,
            ),
        ];
        for (name, help, counter) in counters {
            text.family(name, "counter", help);
            text.sample(name, "", counter.get());
        }
        text.family("connections", "gauge", "Open client connections.");
        text.sample("connections", "", METRICS.connections.get());
        text.family(
            "connections_idle",
            "gauge",
            "Client connections kept alive without a request.",
        );
        text.sample("connections_idle", "", counts.idle as u64);
        text.family("requests", "gauge", "Requests under way, by phase.");
        let phases = [
            ("receiving", counts.receiving),
            ("queued", counts.queued),
            ("in_flight", counts.in_flight),
            ("delivering", counts.delivering),
        ];
        for (phase, n) in phases {
            text.sample("requests", &format!("{{phase=\"{phase}\"}}"), n as u64);
        }
        let saturation = self.server.saturation();
        text.family(
            "queue_wait_p95_milliseconds",
            "gauge",
            "What 95 % of the requests did not wait longer than, in the last period of saturation-log.",
        );
        let wait = saturation.queue_wait_p95.as_millis();
        text.sample("queue_wait_p95_milliseconds", "", u64::try_from(wait).unwrap_or(u64::MAX));
        text.family("shed", "gauge", "Requests refused by the queue in the last period.");
        text.sample("shed", "", saturation.shed);
        text.family("spooled_bytes", "gauge", "Bytes of bodies held by all spools, by place.");
        let budget = self.server.budget();
        for (place, bytes) in [("memory", budget.memory_used()), ("disk", budget.disk_used())] {
            text.sample("spooled_bytes", &format!("{{place=\"{place}\"}}"), bytes);
        }
        text.0
    }

    fn status(&self) -> String {
        let counts = self.server.counts();
        let drain = self.server.drain_totals();
        let saturation = self.server.saturation();
        let upstreams = self.server.upstreams().into_iter();
        let upstreams: Vec<_> = upstreams
            .map(|(address, in_flight, slots)| {
                json!({ "address": address, "in_flight": in_flight, "slots": slots })
            })
            .collect();
        let status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "state": self.state().name(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "connections": counts.connections,
            "idle": counts.idle,
            "receiving": counts.receiving,
            "queued": counts.queued,
            "in_flight": counts.in_flight,
            "delivering": counts.delivering,
            "queue_wait_p95": saturation.queue_wait_p95.as_secs_f64(),
            "shed": saturation.shed,
            "drain": {
                "finished": drain.finished,
                "delivered_after_app_end": drain.delivered_after_app_end,
                "refused": drain.refused,
                "cut": drain.cut,
            },
            "upstreams": upstreams,
            "spooled": {
                "memory": self.server.budget().memory_used(),
                "memory_max": self.config.memory,
                "disk": self.server.budget().disk_used(),
                "disk_max": self.config.spool_max,
            },
        });
        format!("{status:#}\n")
    }
}

/// A page of metrics, all of them named `bufproxy_…`.
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP bufproxy_{name} {help}\n# TYPE bufproxy_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "bufproxy_{name}{labels} {value}");
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_dead(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

/// The socket file of a process that has ended: nobody listens. Not another kind of file.
fn is_dead(path: &Path) -> bool {
    matches!(UnixStream::connect(path), Err(e) if e.kind() == io::ErrorKind::ConnectionRefused)
        && std::fs::symlink_metadata(path)
            .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()))
}

#[cfg(test)]
mod tests;
