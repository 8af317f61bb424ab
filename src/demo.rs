//! `bufproxy demo`: shows the point on a machine that has nothing else. An embedded app, whose workers
//! block as gunicorn's sync workers do, is measured bare and behind bufproxy, while slow clients hold
//! on to it; then both ports stay open to be tried by hand. Called by `main`, on the main thread.
//!
//! The figures are measured here and now, by clients on a thread of their own; nothing is assumed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::config::{self, Config, Invocation, Sources};
use crate::lifecycle::Failure;
use crate::server::Server;

const WORKERS: usize = 4;
/// What a worker takes for a request.
const WORK: Duration = Duration::from_millis(20);
const LARGE: usize = 6_000_000;
const UPLOAD: usize = 60_000;
const SLOW_CLIENTS: usize = 50;
const FAST_CLIENTS: usize = 8;
/// Between two pieces of a slow client: 1 KB down, 1.5 KB up.
const BEAT: Duration = Duration::from_millis(100);

/// Where the ports are looked for: the first free one from here on.
const APP_PORT: u16 = 8000;
const PROXY_PORT: u16 = 8080;

/// How long each of the two is measured.
pub const WINDOW: Duration = Duration::from_secs(5);

/// Measures for `window` at each port, prints `bare 1/s, bufproxy 190/s`, serves until INT or TERM.
pub fn run(window: Duration) -> Result<u8, Failure> {
    let failure = |e: io::Error| Failure { message: format!("demo: {e}"), code: 1 };
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build_local(Default::default())
        .map_err(failure)?;
    let ended = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = show(window) => ended,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    });
    runtime.shutdown_background();
    ended.map(|()| 0).map_err(failure)
}

async fn show(window: Duration) -> io::Result<()> {
    let app = start_app()?;
    let half = SLOW_CLIENTS / 2;
    let mut out = io::stdout();
    writeln!(
        out,
        "An app with {WORKERS} workers, {} ms of work for a request, and {SLOW_CLIENTS} slow clients: \
         {half} read {} MB at 10 KB/s, {half} send {} KB over 4 s.",
        WORK.as_millis(),
        LARGE / 1_000_000,
        UPLOAD / 1000,
    )?;
    writeln!(
        out,
        "What {FAST_CLIENTS} fast clients get, measured for {} s each:",
        window.as_secs_f64()
    )?;
    let bare = measure(app, window).await?;
    // Its answer means that the workers have done with what the slow clients left.
    get(app).await?;

    // Thousands of log lines would bury the result.
    let (server, proxy) = serve(app, "off")?;
    let buffered = measure(proxy, window).await?;
    // Gives the port back.
    server.drain();
    server.abort().await;
    writeln!(out, "\n    bare {bare:.0}/s, bufproxy {buffered:.0}/s\n")?;

    let (_server, proxy) = serve(app, "-")?;
    writeln!(
        out,
        "Both go on: the app on {app}, bufproxy on {proxy}. Try, in another terminal:\n\n    \
         curl http://{proxy}/\n    \
         for i in 1 2 3 4; do curl -s --limit-rate 10k -o /dev/null http://{proxy}/large & done; \
         curl http://{proxy}/\n    \
         for i in 1 2 3 4; do curl -s --limit-rate 10k -o /dev/null http://{app}/large & done; \
         curl http://{app}/\n\n\
         The last one waits. The access log follows; Ctrl-C ends.\n"
    )?;
    std::future::pending().await
}

/// The proxy on the first free port, as its own command line would make it.
fn serve(app: SocketAddr, access_log: &str) -> io::Result<(Server, SocketAddr)> {
    let mut port = PROXY_PORT;
    loop {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let config = configure(&[
            ("--listen", &addr.to_string()),
            ("--upstream", &app.to_string()),
            ("--concurrency", &WORKERS.to_string()),
            ("--access-log", access_log),
        ])?;
        match Server::bind(Arc::new(config), Vec::new())
            .and_then(|server| server.open().map(|()| server))
        {
            Ok(server) => {
                server.app_answered();
                return Ok((server, addr));
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && port < PROXY_PORT + 100 => port += 1,
            Err(e) => return Err(e),
        }
    }
}

/// These flags, and neither environment nor file.
fn configure(flags: &[(&str, &str)]) -> io::Result<Config> {
    let sources = Sources {
        args: flags.iter().flat_map(|(flag, value)| [flag.into(), value.into()]).collect(),
        env: BTreeMap::new(),
        read: &|_| Err(io::ErrorKind::NotFound.into()),
        ..Sources::of_process()
    };
    match config::parse_args(&sources) {
        Ok(Invocation::Run(config)) => Ok(*config),
        Ok(_) => Err(io::ErrorKind::InvalidInput.into()),
        Err(e) => Err(io::Error::other(e)),
    }
}

// The app.

/// Starts the workers, on the first free port.
fn start_app() -> io::Result<SocketAddr> {
    let mut port = APP_PORT;
    let listener = loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && port < APP_PORT + 80 => port += 1,
            result => break result?,
        }
    };
    // On the loopback the kernel would take megabytes of a response at once, and the worker would not
    // wait; over a real path it takes about this much. Accepted sockets inherit it.
    socket2::SockRef::from(&listener).set_send_buffer_size(64 << 10)?;
    for number in 1..=WORKERS {
        let listener = listener.try_clone()?;
        thread::Builder::new().name(format!("worker {number}")).spawn(move || {
            if let Err(e) = work(number, &listener) {
                tracing::error!("demo: worker {number} ended: {e}");
            }
        })?;
    }
    listener.local_addr()
}

/// One worker: one connection after the other, each to its end. As in gunicorn's sync worker, a
/// client that sends or reads slowly has the worker for as long as it takes.
fn work(number: usize, listener: &TcpListener) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        let _ = runtime.block_on(async {
            let stream = TokioIo::new(TcpStream::from_std(stream)?);
            let answer = service_fn(|request| answer(number, request));
            let connection =
                http1::Builder::new().keep_alive(false).serve_connection(stream, answer);
            // A client that has gone is no reason to end.
            let _ = connection.await;
            io::Result::Ok(())
        });
    }
}

async fn answer(
    number: usize,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let received = body.collect().await.map_or(0, |body| body.to_bytes().len());
    // Blocks the thread, as Python would.
    thread::sleep(WORK);
    let body = match (head.method, head.uri.path()) {
        (Method::GET, "/large") => vec![b'.'; LARGE].into(),
        (Method::POST, _) => format!("worker {number} received {received} bytes\n").into(),
        _ => format!("hello from worker {number}\n").into(),
    };
    Ok(Response::new(Full::new(body)))
}

// The clients.

/// Requests a second that fast clients get from `addr` within `window`, while slow ones hold on.
async fn measure(addr: SocketAddr, window: Duration) -> io::Result<f64> {
    let (done, rate) = oneshot::channel();
    thread::Builder::new().name("clients".into()).spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build_local(Default::default());
        // Dropping the runtime drops the clients, and closes their connections.
        let _ = done.send(runtime.map(|runtime| runtime.block_on(drive(addr, window))));
    })?;
    rate.await.map_err(io::Error::other)?
}

async fn drive(addr: SocketAddr, window: Duration) -> f64 {
    for n in 0..SLOW_CLIENTS {
        tokio::task::spawn_local(async move {
            loop {
                let ended =
                    if n % 2 == 0 { read_slowly(addr).await } else { send_slowly(addr).await };
                if ended.is_err() {
                    tokio::time::sleep(BEAT).await;
                }
            }
        });
    }
    // They are at the workers by then.
    tokio::time::sleep(2 * BEAT).await;
    let served = Rc::new(Cell::new(0u32));
    for _ in 0..FAST_CLIENTS {
        let served = served.clone();
        tokio::task::spawn_local(async move {
            loop {
                match get(addr).await {
                    Ok(()) => served.set(served.get() + 1),
                    Err(_) => tokio::time::sleep(BEAT).await,
                }
            }
        });
    }
    let began = Instant::now();
    tokio::time::sleep(window).await;
    f64::from(served.get()) / began.elapsed().as_secs_f64()
}

/// One request of a fast client. Err: no answer, or not 200.
async fn get(addr: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request("GET / HTTP/1.1", addr, 0).as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let ok = answer.starts_with(b"HTTP/1.1 200 ");
    if ok { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// `LARGE` bytes at 10 KB/s, with a small receive buffer: the kernel shall not take them instead.
async fn read_slowly(addr: SocketAddr) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(addr).await?;
    stream.write_all(request("GET /large HTTP/1.1", addr, 0).as_bytes()).await?;
    let mut piece = [0; 1000];
    while stream.read(&mut piece).await? > 0 {
        tokio::time::sleep(BEAT).await;
    }
    Ok(())
}

/// `UPLOAD` bytes over 4 s.
async fn send_slowly(addr: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request("POST / HTTP/1.1", addr, UPLOAD).as_bytes()).await?;
    for _ in 0..40 {
        stream.write_all(&[b'.'; UPLOAD / 40]).await?;
        tokio::time::sleep(BEAT).await;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map(drop)
}

fn request(line: &str, addr: SocketAddr, length: usize) -> String {
    format!("{line}\r\nHost: {addr}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An upload of which the last byte is still to come.
    async fn half_sent(addr: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request("POST / HTTP/1.1", addr, UPLOAD).as_bytes()).await.unwrap();
        stream.write_all(&[b'.'; UPLOAD - 1]).await.unwrap();
        stream
    }

    /// A large response of which nothing but the first byte is read.
    async fn half_read(addr: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request("GET /large HTTP/1.1", addr, 0).as_bytes()).await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        stream
    }

    /// The answer up to its end.
    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// The worker that has answered.
    fn worker(answer: &str) -> &str {
        let (_, after) = answer.split_once("worker ").expect(answer);
        after.split_whitespace().next().unwrap()
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = Builder::new_current_thread().enable_all().build_local(Default::default());
        runtime.unwrap().block_on(test);
    }

    #[test]
    fn visitor_of_the_bare_app_waits_until_a_slow_client_leaves() {
        run(async {
            let app = start_app().unwrap();
            let _readers = [half_read(app).await, half_read(app).await];
            let (mut leaving, _stays) = (half_sent(app).await, half_sent(app).await);
            let mut visitor = TcpStream::connect(app).await.unwrap();
            visitor.write_all(request("GET / HTTP/1.1", app, 0).as_bytes()).await.unwrap();
            leaving.write_all(b".").await.unwrap();
            let freed = rest(leaving).await;
            let answer = rest(visitor).await;
            // Any other worker would have come from nowhere.
            assert_eq!(worker(&answer), worker(&freed), "{answer}");
        });
    }

    #[test]
    fn visitors_behind_the_proxy_are_answered_while_all_slow_clients_are_there() {
        run(async {
            let app = start_app().unwrap();
            let (server, proxy) = serve(app, "off").unwrap();
            let (mut readers, mut senders) = (Vec::new(), Vec::new());
            // Each kind alone would hold all workers.
            for _ in 0..WORKERS {
                senders.push(half_sent(proxy).await);
                readers.push(half_read(proxy).await);
            }
            for _ in 0..WORKERS {
                get(proxy).await.unwrap();
            }
            for mut sender in senders {
                sender.write_all(b".").await.unwrap();
                let answer = rest(sender).await;
                assert!(answer.contains(&format!("received {UPLOAD} bytes")), "{answer}");
            }
            for reader in readers {
                assert!(rest(reader).await.len() > LARGE);
            }
            server.abort().await;
        });
    }
}
