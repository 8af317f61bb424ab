//! The reference: a proxy on hyper's server and hyper's client, written as well as these allow. It
//! says in every run what our own HTTP/1 path is worth.
//!
//! It does less than bufproxy: the request is kept whole in memory, without a limit and without a
//! disk behind it; the response is passed on as the client takes it, so a slow reader holds the
//! worker; nothing has a time limit. Its figure is the least that hyper can cost. The upstream
//! connection is driven by the task of its exchange (no second task), and log lines go out 64 KiB
//! at a time.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{LocalSet, spawn_local};

/// `reference PORT SOCKET LOG keep|close`: runs until it is killed.
pub(crate) fn run(port: u16, socket: PathBuf, log: &Path, keep_alive: bool) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let log = io::BufWriter::with_capacity(64 * 1024, File::options().append(true).open(log)?);
    let proxy = Rc::new(Proxy { socket, keep_alive, kept: RefCell::default(), log: log.into() });
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        spawn_local(flush(proxy.clone()));
        loop {
            let (client, peer) = listener.accept().await?;
            client.set_nodelay(true)?;
            spawn_local(serve(client, peer, proxy.clone()));
        }
    })
}

struct Proxy {
    socket: PathBuf,
    keep_alive: bool,
    kept: RefCell<Vec<Upstream>>,
    log: RefCell<io::BufWriter<File>>,
}

/// A connection to the app: hyper's two halves of it, polled together.
struct Upstream {
    sender: SendRequest<Full<Bytes>>,
    connection: Pin<Box<Connection<TokioIo<UnixStream>, Full<Bytes>>>>,
    /// The connection's future is over and must not be polled again.
    ended: bool,
}

async fn serve(client: TcpStream, peer: SocketAddr, proxy: Rc<Proxy>) {
    let service = service_fn(|request| answer(request, peer, proxy.clone()));
    // What fails here is the client's connection; hyper has said to it what it has to say.
    let _ = hyper::server::conn::http1::Builder::new()
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(client), service)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    proxy: Rc<Proxy>,
) -> Result<Response<Relayed>, Infallible> {
    let mut record = Record::new(&request, peer, proxy.clone());
    let (head, body) = match forward(request, peer, &proxy, &mut record).await {
        Ok((response, upstream)) => {
            let (mut head, body) = response.into_parts();
            drop_hop_by_hop(&mut head.headers);
            (head, Some((body, upstream)))
        }
        Err(_) => {
            let (mut head, ()) = Response::new(()).into_parts();
            head.status = StatusCode::BAD_GATEWAY;
            (head, None)
        }
    };
    record.status = head.status;
    record.first_byte = record.start.elapsed();
    Ok(Response::from_parts(head, Relayed { from: body, record }))
}

/// Takes the whole request, then has it answered.
async fn forward(
    request: Request<Incoming>,
    peer: SocketAddr,
    proxy: &Proxy,
    record: &mut Record,
) -> Result<(Response<Incoming>, Upstream), Box<dyn std::error::Error>> {
    let (mut head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    record.received = record.start.elapsed();
    rewrite(&mut head.headers, peer, proxy.keep_alive)?;
    let mut upstream = proxy.upstream().await?;
    record.connected = record.start.elapsed();
    let request = Request::from_parts(head, Full::new(body));
    let response = {
        let mut response = std::pin::pin!(upstream.sender.send_request(request));
        let (connection, ended) = (&mut upstream.connection, &mut upstream.ended);
        std::future::poll_fn(|cx| {
            drive(connection, ended, cx);
            response.as_mut().poll(cx)
        })
        .await?
    };
    Ok((response, upstream))
}

impl Proxy {
    /// A kept connection that is still good, else a new one.
    async fn upstream(&self) -> Result<Upstream, Box<dyn std::error::Error>> {
        loop {
            let Some(mut kept) = self.kept.borrow_mut().pop() else { break };
            let good = std::future::poll_fn(|cx| {
                drive(&mut kept.connection, &mut kept.ended, cx);
                if kept.ended {
                    return Poll::Ready(false);
                }
                kept.sender.poll_ready(cx).map(|ready| ready.is_ok())
            });
            if good.await {
                return Ok(kept);
            }
        }
        let stream = UnixStream::connect(&self.socket).await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        Ok(Upstream { sender, connection: Box::pin(connection), ended: false })
    }
}

fn drive(
    connection: &mut Pin<Box<Connection<TokioIo<UnixStream>, Full<Bytes>>>>,
    ended: &mut bool,
    cx: &mut Context<'_>,
) {
    // An error reaches the exchange by its response or its body.
    *ended = *ended || connection.as_mut().poll(cx).is_ready();
}

/// The head as the app is to see it; `Content-Length` is hyper's, from the body in hand.
fn rewrite(
    fields: &mut HeaderMap,
    peer: SocketAddr,
    keep_alive: bool,
) -> Result<(), header::InvalidHeaderValue> {
    drop_hop_by_hop(fields);
    fields.remove(header::EXPECT);
    if fields.keys().any(|name| name.as_str().contains('_')) {
        let names: Vec<_> =
            fields.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
        for name in names {
            fields.remove(name);
        }
    }
    if !keep_alive {
        fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let mut address = String::with_capacity(48);
    let _ = write!(address, "{}", peer.ip());
    fields.insert(FORWARDED_FOR, HeaderValue::try_from(address)?);
    fields.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    fields.append(header::VIA, HeaderValue::from_static("1.1 reference"));
    Ok(())
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

fn drop_hop_by_hop(fields: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        KEEP_ALIVE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        fields.remove(name);
    }
}

/// The response's body on its way from the app to the client.
struct Relayed {
    from: Option<(Incoming, Upstream)>,
    record: Record,
}

impl Relayed {
    /// The app's last byte is here: its connection is kept, or closed at once.
    fn finish(&mut self) {
        self.record.upstream = self.record.start.elapsed();
        self.record.complete = true;
        if let Some((_, upstream)) = self.from.take()
            && self.record.proxy.keep_alive
            && !upstream.ended
        {
            self.record.proxy.kept.borrow_mut().push(upstream);
        }
    }
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some((body, upstream)) = &mut this.from else { return Poll::Ready(None) };
        drive(&mut upstream.connection, &mut upstream.ended, cx);
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            this.record.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        if frame.is_none() || body.is_end_stream() {
            this.finish();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.from.as_ref().is_none_or(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.from.as_ref().map_or(SizeHint::with_exact(0), |(body, _)| body.size_hint())
    }
}

/// What the log line says; written when the exchange is over.
struct Record {
    proxy: Rc<Proxy>,
    start: Instant,
    received: Duration,
    connected: Duration,
    first_byte: Duration,
    upstream: Duration,
    request_line: String,
    fields: [Option<HeaderValue>; 6],
    peer: SocketAddr,
    status: StatusCode,
    bytes: u64,
    complete: bool,
}

impl Record {
    fn new(request: &Request<Incoming>, peer: SocketAddr, proxy: Rc<Proxy>) -> Record {
        let line = format!("{} {} {:?}", request.method(), request.uri(), request.version());
        let fields = [
            REQUEST_ID,
            FORWARDED_FOR,
            FORWARDED_PROTO,
            header::VIA,
            header::REFERER,
            header::USER_AGENT,
        ];
        Record {
            proxy,
            start: Instant::now(),
            received: Duration::ZERO,
            connected: Duration::ZERO,
            first_byte: Duration::ZERO,
            upstream: Duration::ZERO,
            request_line: line,
            fields: fields.map(|name| request.headers().get(name).cloned()),
            peer,
            status: StatusCode::BAD_GATEWAY,
            bytes: 0,
            complete: false,
        }
    }

    fn write(&self, log: &mut impl io::Write) -> io::Result<()> {
        let field = |index: usize| {
            let value = self.fields[index].as_ref().and_then(|value| value.to_str().ok());
            value.unwrap_or("-")
        };
        let seconds = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64();
        let service = self.start.elapsed();
        writeln!(
            log,
            "measure#reference.service={:.3} request=\"{}\" status_code={} request_id={} \
             remote_addr=\"{}\" forwarded_for=\"{}\" forwarded_proto=\"{}\" via=\"{}\" \
             body_bytes_sent={} referer=\"{}\" user_agent=\"{}\" client=\"{}\" receive={:.3} \
             queue=0.000 connect={:.3} first_byte={:.3} upstream={:.3} send={:.3} end={}",
            service.as_secs_f64(),
            self.request_line,
            self.status.as_u16(),
            field(0),
            self.peer.ip(),
            field(1),
            field(2),
            field(3),
            self.bytes,
            field(4),
            field(5),
            self.peer.ip(),
            self.received.as_secs_f64(),
            seconds(self.received, self.connected),
            seconds(self.connected, self.first_byte),
            seconds(self.connected, self.upstream),
            seconds(self.upstream, service),
            if self.complete { "ok" } else { "cut" },
        )
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let proxy = self.proxy.clone();
        // A full disk costs lines, not answers.
        let _ = self.write(&mut *proxy.log.borrow_mut());
    }
}

async fn flush(proxy: Rc<Proxy>) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let _ = proxy.log.borrow_mut().flush();
    }
}
