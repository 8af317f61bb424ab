//! Sockets on the event loop: one type for TCP and Unix, client and app, on tokio's readiness.
//!
//! Reads and writes are plain `recv` and `send` behind `AsyncFd`. A short read or write takes the
//! readiness back at once, which saves the call that would only have said EAGAIN.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime;

use crate::config::{Listen, Peer};
use crate::sys::{self, Number, Watched};

/// Unsent bytes above which a client socket is not writable (TCP_NOTSENT_LOWAT): what a slow client
/// does not take stays in our budget, not in kernel memory that nobody counts.
const CLIENT_NOTSENT_LOWAT: u32 = 64 * 1024;

/// Connections that may wait in the kernel to be accepted.
const BACKLOG: i32 = 2048;

/// A connected, non-blocking socket.
#[derive(Debug)]
pub(crate) struct Stream {
    watched: Watched,
    interest: Interest,
    /// The thread whose loop watches it.
    thread: usize,
}

/// Events of one turn: a table of 12 bytes each, of which only what is used is in memory.
const MIN_EVENTS: usize = 32 * 1024;
const MAX_EVENTS: usize = 1024 * 1024;

/// So many bytes are copied together sooner than the kernel reads a list of slices.
const JOIN: usize = 2048;

thread_local! {
    /// Its address stands for the thread.
    static HERE: Cell<u8> = const { Cell::new(0) };
    /// How often the loop of this thread has asked the kernel what has come.
    static TURN: Cell<u64> = const { Cell::new(0) };
    static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn this_thread() -> usize {
    HERE.with(|here| here.as_ptr().addr())
}

/// The loop of this thread has asked the kernel what has come: `on_thread_unpark` of its runtime.
pub(crate) fn turned() {
    TURN.set(TURN.get() + 1);
}

/// What the runtime of each loop begins with. It asks for all that may have come at once (a client and
/// an app's connection for each request): what is not told in one turn `is_quiet_since` would not know.
pub(crate) fn event_loop(max_connections: usize) -> runtime::Builder {
    let mut builder = runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .max_io_events_per_tick(max_connections.saturating_mul(2).clamp(MIN_EVENTS, MAX_EVENTS))
        .thread_keep_alive(Duration::MAX)
        .on_thread_unpark(turned);
    builder
}

/// How often that was.
pub(crate) fn turn() -> u64 {
    TURN.get()
}

impl Stream {
    /// Registers a socket for reading and writing.
    pub(crate) fn new(socket: Socket) -> io::Result<Stream> {
        let stream = Stream::unwatched(socket);
        stream.watch()?;
        Ok(stream)
    }

    /// One that this thread's loop watches from the first time that somebody has to wait for it.
    pub(crate) fn unwatched(socket: Socket) -> Stream {
        let interest = Interest::READABLE | Interest::WRITABLE;
        Stream { watched: Watched::not_yet(socket), interest, thread: this_thread() }
    }

    /// Registers it, if it is not yet.
    pub(crate) fn watch(&self) -> io::Result<()> {
        self.fd().map(|_| ())
    }

    fn fd(&self) -> io::Result<&AsyncFd<Number>> {
        self.watched.registered(self.interest)
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.watched.is_registered()
    }

    /// Whether it is to be waited for until it takes bytes, too. Where it is not, the loop is not
    /// woken each time that the app reads.
    pub(crate) fn will_write(&mut self, will: bool) {
        if will && !self.interest.is_writable() {
            self.watched.take_off();
            self.interest = Interest::READABLE | Interest::WRITABLE;
            self.thread = this_thread();
        } else if !will && !self.is_watched() {
            self.interest = Interest::READABLE;
        }
    }

    /// By the loop of this thread.
    pub(crate) fn is_watched_here(&self) -> bool {
        self.thread == this_thread()
    }

    pub(crate) fn socket(&self) -> &Socket {
        self.watched.socket()
    }

    /// The socket alone; no loop watches it any more.
    pub(crate) fn into_socket(self) -> Socket {
        self.watched.into_socket()
    }

    /// Reads what is there, without asking the loop.
    pub(crate) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self.socket(), buf, RecvFlags::empty())?.0)
    }

    /// Nothing is there to read, nor the end, of a stream that nobody has read since `turn`. What the
    /// loop was told in a later one need not be asked again: what comes after that may as well come
    /// after a look of ours. Of what comes in the same turn the loop does not know.
    /// None: who read it last knows of no turn of the loop that watches it.
    pub(crate) fn is_quiet_since(&self, turn: Option<u64>) -> bool {
        let told = turn.is_some_and(|turn| turn != self::turn());
        if !(told && self.is_watched_here()) {
            return self.is_quiet();
        }
        // Not by a poll, which is also pending when the task has had its share of this turn.
        let looked = self.fd().and_then(|fd| fd.try_io(Interest::READABLE, |_| self.peek()));
        looked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The same, asked of the kernel.
    pub(crate) fn is_quiet(&self) -> bool {
        self.peek().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    fn peek(&self) -> io::Result<()> {
        let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        Ok(rustix::net::recv(self.socket(), &mut [0], look).map(|_| ())?)
    }

    /// Reads what is there. `Ok(0)` is the end of the stream.
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let room = buf.len();
        self.poll_recv(cx, room, |socket| {
            Ok(rustix::net::recv(socket, &mut *buf, RecvFlags::empty())?.0)
        })
    }

    /// Reads what is there into the capacity that `buf` has left.
    pub(crate) fn poll_read_into(
        &self,
        cx: &mut Context<'_>,
        buf: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        let room = buf.capacity() - buf.len();
        self.poll_recv(cx, room, |socket| {
            Ok(rustix::net::recv(socket, spare_capacity(buf), RecvFlags::empty())?.0)
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        room: usize,
        mut recv: impl FnMut(&Socket) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd()?.poll_read_ready(cx))?;
            match recv(self.socket()) {
                Ok(n) => {
                    if n > 0 && n < room {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }

    /// Ready when there is something to read (or the end). Holds no buffer while it waits.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fd()?.poll_read_ready(cx).map_ok(|_| ())
    }

    /// Ready when the kernel takes bytes.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fd()?.poll_write_ready(cx).map_ok(|_| ())
    }

    /// Writes as much as the kernel takes now; at least one byte when ready.
    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd()?.poll_write_ready(cx))?;
            match send(self.socket(), bufs) {
                Ok(n) => {
                    if n < bufs.iter().map(|b| b.len()).sum() {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Ready when the peer has read all that was written (SIOCOUTQ is 0), or has closed.
    pub(crate) fn poll_all_read(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd()?.poll_write_ready(cx))?;
            // Not 0: the kernel (sock_wfree) tells of a freed buffer while it still counts one byte for
            // it, and no edge follows when that goes too. A buffer counts hundreds.
            if self.unsent() <= 1 {
                return Poll::Ready(Ok(()));
            }
            // Each buffer that the peer frees is a new edge, also where the socket was writable.
            guard.clear_ready();
        }
    }

    /// Both directions or one; errors do not matter (the peer may be gone).
    pub(crate) fn shutdown(&self, how: Shutdown) {
        let _ = self.socket().shutdown(how);
    }

    /// Bytes that the peer has not acknowledged (TCP) or not read (Unix, in whole kernel buffers).
    pub(crate) fn unsent(&self) -> u64 {
        sys::siocoutq(self.socket()).unwrap_or(0)
    }

    /// The connection is cut by a reset, so that an unfinished message cannot look complete.
    pub(crate) fn reset(&self) {
        let _ = self.socket().set_linger(Some(Duration::ZERO));
    }
}

/// One `send` of all slices; never raises SIGPIPE.
pub(crate) fn send(socket: &Socket, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    if let [one] = bufs {
        return Ok(rustix::net::send(socket, one, SendFlags::NOSIGNAL)?);
    }
    if bufs.iter().map(|buf| buf.len()).sum::<usize>() <= JOIN {
        return JOINED.with_borrow_mut(|joined| {
            joined.clear();
            bufs.iter().for_each(|buf| joined.extend_from_slice(buf));
            Ok(rustix::net::send(socket, joined, SendFlags::NOSIGNAL)?)
        });
    }
    let mut control = rustix::net::SendAncillaryBuffer::default();
    Ok(rustix::net::sendmsg(socket, bufs, &mut control, SendFlags::NOSIGNAL)?)
}

/// Connects to a Unix socket: at once or not at all (EAGAIN: its backlog is full).
pub(crate) fn connect_unix(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Begins to connect by TCP; the socket is connected when it is writable and has no error.
pub(crate) fn connect_tcp(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), None)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&addr.into()) {
        Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(e),
        _ => Ok(socket),
    }
}

/// A bound socket that may not listen yet.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Goes before the socket: as long as that is there, no other file has its number.
    _file: Option<SocketFile>,
    socket: Socket,
    tcp: bool,
}

impl Listener {
    /// Binds without listening: a busy port is known at once, clients are refused until `listen`.
    pub(crate) fn bind(addr: &Listen) -> io::Result<Listener> {
        match addr {
            Listen::Tcp(addr) => {
                let domain = Domain::for_address(*addr);
                let socket = match Socket::new(domain, Type::STREAM.nonblocking(), None) {
                    // A kernel without IPv6: every address is every address of IPv4.
                    Err(e)
                        if addr.is_ipv6() && addr.ip().is_unspecified() && no_such_family(&e) =>
                    {
                        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port()));
                        return Listener::bind(&Listen::Tcp(v4));
                    }
                    socket => socket?,
                };
                if addr.is_ipv6() {
                    socket.set_only_v6(!addr.ip().is_unspecified())?;
                }
                socket.set_reuse_address(true)?;
                set_client_options(&socket)?;
                socket.bind(&(*addr).into())?;
                Ok(Listener { socket, tcp: true, _file: None })
            }
            Listen::Unix(path) => {
                remove_dead_socket(path);
                let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
                socket.bind(&SockAddr::unix(path)?)?;
                Ok(Listener { socket, tcp: false, _file: Some(SocketFile::of(path)?) })
            }
        }
    }

    /// One that systemd has opened; it listens already, and its file is not ours.
    pub(crate) fn passed(fd: OwnedFd) -> io::Result<Listener> {
        let socket = Socket::from(fd);
        if !socket.is_listener().unwrap_or(false) || socket.r#type()? != Type::STREAM {
            return Err(io::Error::other(
                "LISTEN_FDS: a descriptor is not a listening stream socket",
            ));
        }
        let tcp = socket.domain()? != Domain::UNIX;
        socket.set_nonblocking(true)?;
        if tcp {
            set_client_options(&socket)?;
        }
        Ok(Listener { socket, tcp, _file: None })
    }

    pub(crate) fn listen(&self) -> io::Result<()> {
        self.socket.listen(BACKLOG)
    }

    /// The address as bound, for the boot line.
    pub(crate) fn local_addr(&self) -> String {
        let addr = self.socket.local_addr().ok();
        let socket = addr.as_ref().and_then(SockAddr::as_socket);
        let path = addr.as_ref().and_then(SockAddr::as_pathname);
        match (path, socket) {
            (Some(path), _) => format!("unix:{}", path.display()),
            (None, Some(addr)) => addr.to_string(),
            (None, None) => String::new(),
        }
    }

    /// A second descriptor of the same listener, registered with the current loop.
    pub(crate) fn register(&self) -> io::Result<Acceptor> {
        let fd = sys::watch(self.socket.try_clone()?, Interest::READABLE)?;
        Ok(Acceptor { fd, tcp: self.tcp })
    }
}

/// A listener on the event loop.
pub(crate) struct Acceptor {
    fd: AsyncFd<Socket>,
    tcp: bool,
}

impl Acceptor {
    /// The next connection, as a non-blocking socket that no loop has registered yet.
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Peer)>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            match self.try_accept() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                result => return Poll::Ready(result),
            }
        }
    }

    /// A connection that waits in the backlog, without asking the loop.
    pub(crate) fn try_accept(&self) -> io::Result<(Socket, Peer)> {
        // accept4 with SOCK_NONBLOCK | SOCK_CLOEXEC: one call.
        let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
        let (fd, addr) = rustix::net::acceptfrom_with(self.fd.get_ref(), flags)?;
        let peer = match addr.and_then(|a| SocketAddr::try_from(a).ok()) {
            Some(addr) if self.tcp => Peer::Ip(unmapped(addr)),
            _ => Peer::Unix,
        };
        Ok((Socket::from(fd), peer))
    }
}

fn no_such_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

/// What accepted sockets inherit: calls less for each connection.
fn set_client_options(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.set_tcp_notsent_lowat(CLIENT_NOTSENT_LOWAT)
}

/// An IPv4 client of a dual-stack socket is an IPv4 client.
pub(crate) fn unmapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), addr.port()),
            None => addr,
        },
        IpAddr::V4(_) => addr,
    }
}

/// A socket file that nobody listens on is in the way of our own; anything else stays.
pub(crate) fn remove_dead_socket(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket && connect_unix(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    {
        let _ = std::fs::remove_file(path);
    }
}

/// The file of a Unix socket of ours, which is to live as long as the socket. Removed when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Another one at the path is not ours.
    identity: (u64, u64),
}

impl SocketFile {
    pub(crate) fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Tells a file from another one that was put in its place.
pub(crate) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = std::fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_has_just_come_is_seen_before_the_loop_turns() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            for comes in ["a second answer", ""] {
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                let stream = Stream::new(ours.into()).unwrap();
                assert!(stream.is_quiet_since(Some(turn())));
                theirs.write_all(comes.as_bytes()).unwrap();
                drop(theirs);
                assert!(!stream.is_quiet_since(Some(turn())), "{comes:?}");
            }
        });
    }

    #[test]
    fn what_has_come_by_the_next_turn_is_known_without_asking_the_kernel() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .on_thread_unpark(turned)
            .build()
            .unwrap();
        for comes in ["a second answer", ""] {
            runtime.block_on(async {
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                let (quiet, stream) = (turn(), Stream::new(ours.into()).unwrap());
                let (other, wakes) = UnixStream::pair().unwrap();
                other.set_nonblocking(true).unwrap();
                let other = Stream::new(other.into()).unwrap();
                drop(wakes);
                std::future::poll_fn(|cx| other.poll_readable(cx)).await.unwrap();
                assert!(turn() > quiet && stream.is_quiet_since(Some(quiet)));

                let before = turn();
                theirs.write_all(comes.as_bytes()).unwrap();
                drop(theirs);
                // In this turn the loop still believes it; who cannot tell the turn asks the kernel.
                assert!(stream.is_quiet_since(Some(quiet)));
                assert!(!stream.is_quiet_since(Some(before)) && !stream.is_quiet_since(None));
                std::future::poll_fn(|cx| stream.poll_readable(cx)).await.unwrap();
                // Also to a task that has had its share.
                std::future::poll_fn(|cx| {
                    while other.poll_readable(cx).is_ready() {}
                    std::task::Poll::Ready(())
                })
                .await;
                assert!(turn() > before && !stream.is_quiet_since(Some(quiet)), "{comes:?}");
            });
        }
    }

    #[test]
    fn what_has_come_behind_much_else_is_known_after_one_turn() {
        const MUCH: usize = 3000;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
        let runtime = event_loop(MUCH).build().unwrap();
        runtime.block_on(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let stream = Stream::new(ours.into()).unwrap();
            // Until the loop has told that it can be written to.
            std::future::poll_fn(|cx| stream.poll_writable(cx)).await.unwrap();
            let (other, wakes) = UnixStream::pair().unwrap();
            other.set_nonblocking(true).unwrap();
            drop(wakes);
            let others: Vec<Stream> = (0..MUCH)
                .map(|_| Stream::new(other.try_clone().unwrap().into()).unwrap())
                .collect();
            let quiet = turn();
            assert!(stream.is_quiet_since(Some(quiet)));
            theirs.write_all(b"a second answer").unwrap();
            std::future::poll_fn(|cx| others[0].poll_readable(cx)).await.unwrap();
            assert!(turn() > quiet && !stream.is_quiet_since(Some(quiet)));
        });
    }
}
