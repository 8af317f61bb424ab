//! The clients: closed loops over kept-alive connections on one thread of the bench.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{LocalSet, spawn_local};

/// What a Heroku router sends with a browser's request.
const FIELDS: &str = "Host: www.example.com\r\nConnection: keep-alive\r\n\
    User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-GB,en;q=0.9\r\n\
    Referer: https://www.example.com/orders?page=2\r\n\
    X-Request-Id: 8b6402de-d072-42c4-9854-0f71697b30e5\r\nX-Forwarded-For: 199.188.193.220\r\n\
    X-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\nVia: 1.1 vegur\r\n\
    X-Request-Start: 1763888400000\r\n";

pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\n{FIELDS}\r\n").into_bytes()
}

/// A POST of `declared` bytes, of which `sent` are there.
pub(crate) fn post(path: &str, declared: usize, sent: usize) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\n{FIELDS}Content-Type: application/octet-stream\r\n\
         Content-Length: {declared}\r\n\r\n"
    );
    let mut request = head.into_bytes();
    request.resize(request.len() + sent, b'x');
    request
}

/// One client: connects when it has to, and keeps the connection as long as the other side does.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    /// `Connection: close` is the app's, passed on by something that knows no HTTP.
    ignores_close: bool,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Client {
        Client { address, stream: None, buffer: vec![0; 64 * 1024], ignores_close: false }
    }

    /// A client of the relay.
    pub(crate) fn ignoring_close(address: SocketAddr) -> Client {
        Client { ignores_close: true, ..Client::new(address) }
    }

    /// Sends `request` and reads its response to the end. Err: no connection, a status other than
    /// 200, or a cut.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<()> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.address).await?,
        };
        stream.write_all(request).await?;
        let mut filled = 0;
        let (close, mut missing) = loop {
            let read = stream.read(&mut self.buffer[filled..]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += read;
            if let Some((head, close, body)) = parse(&self.buffer[..filled])? {
                break (close, (head + body).saturating_sub(filled));
            }
        };
        while missing > 0 {
            let read = stream.read(&mut self.buffer).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            missing = missing.saturating_sub(read);
        }
        if !close || self.ignores_close {
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// The connection, idle, without the client around it; None if it was closed.
    pub(crate) fn into_stream(self) -> Option<TcpStream> {
        self.stream
    }
}

pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection that takes in little before it is read: the kernel's least receive buffer.
pub(crate) async fn connect_slow(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    socket.connect(address).await
}

/// Length of the head, whether the connection closes after it, bytes of the body.
fn parse(bytes: &[u8]) -> io::Result<Option<(usize, bool, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(bytes).map_err(io::Error::other)? {
        httparse::Status::Partial => Ok(None),
        httparse::Status::Complete(_) if response.code != Some(200) => {
            Err(io::Error::other(format!("status {:?}", response.code)))
        }
        httparse::Status::Complete(head) => {
            let close = response.headers.iter().any(|field| {
                field.name.eq_ignore_ascii_case("connection")
                    && field.value.eq_ignore_ascii_case(b"close")
            });
            Ok(Some((head, close, content_length(response.headers))))
        }
    }
}

pub(crate) fn content_length(fields: &[httparse::Header<'_>]) -> usize {
    let field = fields.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    field.and_then(|field| str::from_utf8(field.value).ok()?.parse().ok()).unwrap_or(0)
}

/// `requests` requests in all over the clients, each sending its next one when it has the last
/// answer. Err: the first failure.
pub(crate) async fn closed_loop(
    clients: Vec<Client>,
    request: Rc<[u8]>,
    requests: usize,
) -> io::Result<Vec<Client>> {
    let left = Rc::new(Cell::new(requests));
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let (request, left) = (request.clone(), left.clone());
            spawn_local(async move {
                while left.get() > 0 {
                    left.set(left.get() - 1);
                    client.exchange(&request).await?;
                }
                io::Result::Ok(client)
            })
        })
        .collect();
    let mut clients = Vec::with_capacity(tasks.len());
    for task in tasks {
        clients.push(task.await.map_err(io::Error::other)??);
    }
    Ok(clients)
}

/// Runs `work` on this thread, with tasks of its own.
pub(crate) fn block_on<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}
