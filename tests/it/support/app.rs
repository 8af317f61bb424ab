//! The app: a listener whose connections the test accepts, reads and answers one step at a time, or
//! that a closure serves in threads. Plain blocking sockets, so that it does exactly what it is
//! told and nothing else.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tempfile::TempDir;

use super::GUARD;
use super::message::{Message, Reader};

/// A scripted app on a Unix socket (or TCP). Listening from the start; stops with its drop.
pub(crate) struct App {
    listener: Arc<Socket>,
    /// As `--upstream` takes it.
    address: String,
    counts: Arc<Counts>,
    /// One message for each connection that `serve` has done with.
    served: Receiver<()>,
    serving: Sender<()>,
    _dir: TempDir,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicUsize,
    most: AtomicUsize,
    open: Mutex<Vec<Arc<Socket>>>,
    /// Targets of the requests that `serve` read, in order.
    targets: Mutex<VecDeque<String>>,
}

impl App {
    pub(crate) fn unix() -> App {
        let dir = tempfile::tempdir().unwrap();
        let path = unix_path(&dir);
        App::at(dir, &path, 1024)
    }

    /// With a backlog that holds one connection: the next connect gets EAGAIN.
    pub(crate) fn with_full_backlog() -> (App, Socket) {
        let dir = tempfile::tempdir().unwrap();
        let path = unix_path(&dir);
        let app = App::at(dir, &path, 0);
        let waiting = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        waiting.connect(&SockAddr::unix(&path).unwrap()).unwrap();
        (app, waiting)
    }

    /// At a path of the test's choice (for an app that comes late); `dir` lives as long as the app.
    pub(crate) fn at(dir: TempDir, path: &Path, backlog: i32) -> App {
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(path).unwrap()).unwrap();
        App::listening(listener, backlog, format!("unix:{}", path.display()), dir)
    }

    pub(crate) fn tcp() -> App {
        let (_, late) = App::tcp_later();
        late()
    }

    /// An address that refuses connections until the second value is called.
    pub(crate) fn tcp_later() -> (String, impl FnOnce() -> App) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap().to_string();
        let late = {
            let address = address.clone();
            || App::listening(listener, 1024, address, tempfile::tempdir().unwrap())
        };
        (address, late)
    }

    fn listening(listener: Socket, backlog: i32, address: String, dir: TempDir) -> App {
        listener.listen(backlog).unwrap();
        listener.set_read_timeout(Some(GUARD)).unwrap();
        let (serving, served) = channel();
        let listener = Arc::new(listener);
        App { listener, address, counts: Arc::default(), served, serving, _dir: dir }
    }

    /// An app that answers every request with the same bytes and closes, as a sync worker does.
    pub(crate) fn answering(response: impl Into<Vec<u8>>) -> App {
        let app = App::unix();
        let response = response.into();
        app.serve(move |conn, _| conn.send(&response));
        app
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The next connection. Fails the test when none comes.
    #[track_caller]
    pub(crate) fn accept(&self) -> AppConn {
        match self.listener.accept() {
            Ok((socket, _)) => AppConn::new(socket, self.counts.clone()),
            Err(e) => panic!("nothing connected to the app: {e}"),
        }
    }

    /// Accepts a connection and reads its request.
    #[track_caller]
    pub(crate) fn request(&self) -> (AppConn, Message) {
        let mut conn = self.accept();
        let request = conn.request();
        (conn, request)
    }

    /// No connection waits to be accepted. Says something only after an exchange that came later
    /// has ended (`Proxy::settle`).
    #[track_caller]
    pub(crate) fn assert_no_connection(&self) {
        self.listener.set_nonblocking(true).unwrap();
        let accepted = self.listener.accept();
        self.listener.set_nonblocking(false).unwrap();
        if let Ok((socket, _)) = accepted {
            let mut conn = AppConn::new(socket, self.counts.clone());
            panic!("the app was contacted: {:?}", conn.try_request());
        }
    }

    /// Serves every connection in a thread of its own: reads one request, calls `reply`, closes.
    pub(crate) fn serve(&self, reply: impl Fn(&mut AppConn, Message) + Send + Sync + 'static) {
        let (listener, counts) = (self.listener.clone(), self.counts.clone());
        let (reply, served) = (Arc::new(reply), self.serving.clone());
        listener.set_read_timeout(None).unwrap();
        thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let mut conn = AppConn::new(socket, counts.clone());
                let (reply, served) = (reply.clone(), served.clone());
                thread::spawn(move || {
                    if let Some(request) = conn.try_request() {
                        let target = request.target().to_string();
                        conn.counts.targets.lock().unwrap().push_back(target);
                        reply(&mut conn, request);
                    }
                    drop(conn);
                    let _ = served.send(());
                });
            }
        });
    }

    /// Waits until `serve` has done with one more connection: its response was taken.
    #[track_caller]
    pub(crate) fn wait_served(&self) {
        self.served.recv_timeout(GUARD).expect("the app is rid of a response");
    }

    /// Connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.counts.accepted.load(SeqCst)
    }

    /// The most connections that were ever open at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.counts.most.load(SeqCst)
    }

    /// Targets that `serve` has read, in order.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.counts.targets.lock().unwrap().iter().cloned().collect()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // Ends the accept of `serve`.
        let _ = self.listener.shutdown(std::net::Shutdown::Both);
    }
}

/// One connection of the app.
pub(crate) struct AppConn {
    socket: Arc<Socket>,
    buffer: Vec<u8>,
    counts: Arc<Counts>,
}

impl AppConn {
    fn new(socket: Socket, counts: Arc<Counts>) -> AppConn {
        socket.set_read_timeout(Some(GUARD)).unwrap();
        socket.set_write_timeout(Some(GUARD)).unwrap();
        let socket = Arc::new(socket);
        counts.accepted.fetch_add(1, SeqCst);
        let mut open = counts.open.lock().unwrap();
        open.push(socket.clone());
        // Counted as the proxy sees them: what it has closed is not open, though we still hold it.
        let most = open.iter().filter(|socket| !is_closed(socket)).count();
        counts.most.fetch_max(most, SeqCst);
        drop(open);
        AppConn { socket, buffer: Vec::new(), counts }
    }

    /// The next request, whole. The proxy's framing is part of what every test asserts: an exact
    /// Content-Length or no body, never chunked.
    #[track_caller]
    pub(crate) fn request(&mut self) -> Message {
        match self.read_request() {
            Ok(Some(request)) => request,
            Ok(None) => panic!("connection without a request"),
            Err(e) => {
                panic!("incomplete request ({e}): {:?}", self.buffer.escape_ascii().to_string())
            }
        }
    }

    /// The next request, None when the proxy closed or cut it.
    pub(crate) fn try_request(&mut self) -> Option<Message> {
        self.read_request().ok().flatten()
    }

    fn read_request(&mut self) -> io::Result<Option<Message>> {
        let mut reader =
            Reader { buffer: std::mem::take(&mut self.buffer), more: more(&self.socket) };
        let Some(head) = reader.head()? else { return Ok(None) };
        let mut request = Message { head, body: Vec::new() };
        assert_eq!(request.get("transfer-encoding"), None, "chunked towards the app");
        let length = request.get("content-length").map_or(0, |v| v.parse().expect("a length"));
        reader.exact(length, &mut request.body)?;
        self.buffer = reader.buffer;
        Ok(Some(request))
    }

    /// Reads up to `n` bytes as they come, without asking for more.
    pub(crate) fn read_some(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        let got = (&*self.socket).read(&mut bytes).unwrap();
        bytes.truncate(got);
        bytes
    }

    /// Writes; a proxy that has closed is not this function's business.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = (&*self.socket).write_all(bytes.as_ref());
    }

    /// Closes with the request unread, as an app that stops leaves its backlog: on a Unix socket the
    /// proxy's read gives ECONNRESET.
    pub(crate) fn close_unread(self) {
        self.socket.peek(&mut [MaybeUninit::uninit()]).expect("the request has come");
    }

    /// Writes `bytes` again and again until the proxy refuses them, and gives the error.
    pub(crate) fn send_until_refused(&mut self, bytes: impl AsRef<[u8]>) -> io::ErrorKind {
        let deadline = Instant::now() + GUARD;
        while Instant::now() < deadline {
            if let Err(e) = (&*self.socket).write_all(bytes.as_ref()) {
                return e.kind();
            }
        }
        panic!("everything is taken");
    }

    /// Writes and tells what became of it.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        (&*self.socket).write_all(bytes.as_ref())
    }

    pub(crate) fn set_write_timeout(&self, limit: Duration) {
        self.socket.set_write_timeout(Some(limit)).unwrap();
    }

    /// Waits, as workers do that wait for several clients at once, until a write is worth it.
    #[track_caller]
    pub(crate) fn wait_writable(&self) {
        let guard = Timespec::try_from(GUARD).unwrap();
        let mut writable = [PollFd::new(&*self.socket, PollFlags::OUT)];
        assert_eq!(poll(&mut writable, Some(&guard)).unwrap(), 1, "never writable");
    }

    /// Answers 200 with this body, and closes.
    pub(crate) fn reply(mut self, body: impl AsRef<[u8]>) {
        self.send(ok(body));
    }

    /// Waits until the proxy has closed, which is what ends a worker's work.
    #[track_caller]
    pub(crate) fn wait_closed(&mut self) {
        let mut rest = Vec::new();
        match (&*self.socket).read_to_end(&mut rest) {
            Ok(_) => assert_eq!(rest.escape_ascii().to_string(), "", "surplus bytes to the app"),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset, "not closed: {e}"),
        }
    }

    /// The proxy holds this connection open. Like `App::assert_no_connection`, only
    /// of value after something that came later has ended.
    #[track_caller]
    pub(crate) fn assert_open(&self) {
        assert!(!is_closed(&self.socket), "the proxy has closed");
    }

    /// Cuts with a reset (TCP only; on a Unix socket, unread bytes do the same at the close).
    pub(crate) fn reset(self) {
        SockRef::from(&*self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

impl Drop for AppConn {
    fn drop(&mut self) {
        self.counts.open.lock().unwrap().retain(|socket| !Arc::ptr_eq(socket, &self.socket));
    }
}

/// The peer has closed or reset, and all that it sent was read.
fn is_closed(socket: &Socket) -> bool {
    let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    !matches!(rustix::net::recv(socket, &mut [0; 1], look), Err(Errno::AGAIN) | Ok((1, _)))
}

/// A whole response with a Content-Length.
pub(crate) fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut out = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    out.extend(body);
    out
}

/// Where a Unix socket goes in a temporary directory.
pub(crate) fn unix_path(dir: &TempDir) -> PathBuf {
    dir.path().join("app.sock")
}

/// Appends what the socket gives next.
pub(super) fn more(mut socket: &Socket) -> impl FnMut(&mut Vec<u8>) -> io::Result<usize> {
    move |buffer| {
        let mut chunk = [0; 64 * 1024];
        let n = socket.read(&mut chunk)?;
        buffer.extend(&chunk[..n]);
        Ok(n)
    }
}
