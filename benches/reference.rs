//! The reference: a proxy on hyper's server and hyper's client that does with bodies what bufproxy
//! does, in bufproxy's spool, and writes bufproxy's log line. It says in every run what our own
//! HTTP/1 path is worth.
//!
//! What must stay true for that: the request is whole in a spool before the app is touched, the app
//! is read as fast as it writes (`delivery`), and the line is the same (`exchange`). There is
//! nothing else: no slots and no line, no second attempt, no time limit, no trust, no rule stricter
//! than hyper's. So its figure is the least that hyper can cost.
//!
//! One task serves a client: it polls hyper's server, then takes from the app what the server did
//! not ask for. hyper's connections to the app are polled by it, too.

use std::cell::RefCell;
use std::convert::Infallible;
use std::env;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bufproxy::access_log::{Format, FormatOptions, LogWriter};
use bufproxy::config::LogDestination;
use bufproxy::error::Reason;
use bufproxy::spool::{Budget, MAX_PUSH, Spool, SpoolLimits};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{LocalSet, spawn_local};

mod delivery;
mod exchange;

use delivery::{Current, Delivery, ToClient};
use exchange::Exchange;

// Bytes, as bufproxy's defaults have them.
const MEMORY: u64 = 32 << 20;
const DISK: u64 = 1 << 30;
const BODY: SpoolLimits = SpoolLimits { memory: 64 << 10, disk: u64::MAX, replay: true };
const LOG_BACKLOG: usize = 4 << 20;
/// What hyper may hold of a message, and the kernel unsent for a client.
const BUFFER: usize = 64 << 10;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// `reference PORT SOCKET LOG keep|close`: runs until it is killed.
pub(crate) fn run(port: u16, socket: PathBuf, log: &Path, keep_alive: bool) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let options = FormatOptions { name: "reference", ..FormatOptions::default() };
    let proxy = Rc::new(Proxy {
        socket,
        keep_alive,
        kept: RefCell::default(),
        budget: Budget::new(MEMORY, DISK, env::temp_dir()),
        format: Format::parse("l2met", options).map_err(io::Error::other)?,
        log: LogWriter::open(&LogDestination::File(log.into()), LOG_BACKLOG)?,
    });
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (client, peer) = listener.accept().await?;
            client.set_nodelay(true)?;
            socket2::SockRef::from(&client).set_tcp_notsent_lowat(BUFFER as u32)?;
            spawn_local(serve(client, peer, proxy.clone()));
        }
    })
}

struct Proxy {
    socket: PathBuf,
    keep_alive: bool,
    kept: RefCell<Vec<Upstream>>,
    budget: Arc<Budget>,
    format: Format,
    log: LogWriter,
}

async fn serve(client: TcpStream, peer: SocketAddr, proxy: Rc<Proxy>) {
    let current = Current::default();
    let service = service_fn(|request| answer(request, peer, proxy.clone(), current.clone()));
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(client), service)
    );
    poll_fn(|cx| {
        let over = connection.as_mut().poll(cx);
        if over.is_pending()
            && let Some(delivery) = &mut *current.borrow_mut()
        {
            delivery.spool_the_rest(cx);
        }
        // What fails here is the client's connection; hyper has said to it what it has to say.
        over.map(drop)
    })
    .await
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    proxy: Rc<Proxy>,
    current: Current,
) -> Result<Response<ToClient>, Infallible> {
    let mut exchange = Exchange::new(&request, peer, proxy);
    let head = match forward(request, peer, &mut exchange).await {
        Ok((response, upstream)) => {
            let (mut head, body) = response.into_parts();
            head.version = Version::HTTP_11;
            drop_hop_by_hop(&mut head.headers);
            exchange.record.status = head.status.as_u16();
            current.replace(Some(Delivery::new(body, upstream, exchange)));
            head
        }
        Err(reason) => {
            (exchange.record.end, exchange.record.status) = (reason, reason.status());
            let (mut head, ()) = Response::new(()).into_parts();
            head.status = StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::BAD_GATEWAY);
            head
        }
    };
    Ok(Response::from_parts(head, ToClient(current)))
}

/// Takes the whole request, then has it answered.
async fn forward(
    request: Request<Incoming>,
    peer: SocketAddr,
    exchange: &mut Exchange,
) -> Result<(Response<Incoming>, Upstream), Reason> {
    let proxy = exchange.proxy.clone();
    let (mut head, mut body) = request.into_parts();
    let mut spool = Spool::new(&proxy.budget, BODY);
    while let Some(frame) = body.frame().await {
        let data = frame.map_err(|_| Reason::ClientGone)?.into_data();
        let mut data = data.unwrap_or_default();
        while !data.is_empty() {
            let ready = poll_fn(|cx| spool.poll_ready(cx)).await;
            ready.map_err(|_| Reason::SpoolFull)?;
            spool.push(&data.split_to(data.len().min(MAX_PUSH)));
        }
    }
    exchange.record.receive = exchange.lap();
    rewrite(&mut head.headers, peer, proxy.keep_alive);
    let mut upstream = proxy.upstream().await.map_err(|_| Reason::AppUnavailable)?;
    exchange.record.connect = exchange.lap();
    let request = Request::from_parts(head, ToApp(spool));
    let mut response = pin!(upstream.sender.send_request(request));
    let response = poll_fn(|cx| {
        upstream.drive(cx);
        response.as_mut().poll(cx)
    });
    let response = response.await.map_err(|_| Reason::ResetBeforeResponse)?;
    exchange.record.first_byte = Some(exchange.mark.elapsed());
    Ok((response, upstream))
}

/// A connection to the app: hyper's two halves of it, polled together.
struct Upstream {
    sender: SendRequest<ToApp>,
    connection: Pin<Box<Connection<TokioIo<UnixStream>, ToApp>>>,
    /// The connection's future is over and must not be polled again.
    ended: bool,
}

impl Upstream {
    fn drive(&mut self, cx: &mut Context<'_>) {
        // An error reaches the exchange by its response or its body.
        self.ended = self.ended || self.connection.as_mut().poll(cx).is_ready();
    }
}

impl Proxy {
    /// A kept connection that is still good, else a new one.
    async fn upstream(&self) -> Result<Upstream, Error> {
        loop {
            let Some(mut kept) = self.kept.borrow_mut().pop() else { break };
            let good = poll_fn(|cx| {
                kept.drive(cx);
                kept.sender.poll_ready(cx).map(|ready| ready.is_ok() && !kept.ended)
            });
            if good.await {
                return Ok(kept);
            }
        }
        let stream = TokioIo::new(UnixStream::connect(&self.socket).await?);
        let (sender, connection) = Builder::new().max_buf_size(BUFFER).handshake(stream).await?;
        Ok(Upstream { sender, connection: Box::pin(connection), ended: false })
    }
}

/// The request's body, whole.
struct ToApp(Spool);

impl Body for ToApp {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(ready!(take(&mut self.0, cx)).map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.unread() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.unread())
    }
}

/// The next bytes of `spool`, in a copy: hyper writes only what it owns.
fn take(spool: &mut Spool, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    let data = Bytes::copy_from_slice(ready!(spool.poll_data(cx, MAX_PUSH))?);
    spool.consume(data.len());
    Poll::Ready(Ok(data))
}

/// The head as the app is to see it; `Content-Length` is hyper's, from the spool.
fn rewrite(fields: &mut HeaderMap, peer: SocketAddr, keep_alive: bool) {
    drop_hop_by_hop(fields);
    fields.remove(header::EXPECT);
    let odd = |name: &&HeaderName| name.as_str().contains('_');
    for name in fields.keys().filter(odd).cloned().collect::<Vec<_>>() {
        fields.remove(name);
    }
    if !keep_alive {
        fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(address) = HeaderValue::try_from(peer.ip().to_string()) {
        fields.insert(FORWARDED_FOR, address);
    }
    fields.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    fields.append(header::VIA, HeaderValue::from_static("1.1 reference"));
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn drop_hop_by_hop(fields: &mut HeaderMap) {
    use header::{CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    for name in [CONNECTION, KEEP_ALIVE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE] {
        fields.remove(name);
    }
}
