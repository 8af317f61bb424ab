//! The client: writes and reads raw bytes, as slowly and as rudely as the test wants.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::GUARD;
use super::app::more;
use super::message::{Message, Reader};

/// A connection to the proxy.
pub(crate) struct Client {
    socket: Socket,
    buffer: Vec<u8>,
}

/// How a response ended that did not end as it should.
#[derive(Debug)]
pub(crate) struct Cut {
    /// What of it came.
    pub(crate) partial: Message,
    pub(crate) error: io::Error,
}

impl Client {
    pub(crate) fn connect(addr: SocketAddr) -> Client {
        Client::open(Domain::for_address(addr), &addr.into(), None)
    }

    /// With the smallest receive buffer that the kernel gives: what the client does not read stays
    /// at the proxy.
    pub(crate) fn slow(addr: SocketAddr) -> Client {
        Client::open(Domain::for_address(addr), &addr.into(), Some(1))
    }

    pub(crate) fn unix(path: &Path) -> Client {
        Client::open(Domain::UNIX, &SockAddr::unix(path).unwrap(), None)
    }

    fn open(domain: Domain, addr: &SockAddr, receive_buffer: Option<usize>) -> Client {
        let socket = Socket::new(domain, Type::STREAM, None).unwrap();
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        socket.connect(addr).unwrap_or_else(|e| panic!("connect {addr:?}: {e}"));
        socket.set_read_timeout(Some(GUARD)).unwrap();
        socket.set_write_timeout(Some(GUARD)).unwrap();
        Client { socket, buffer: Vec::new() }
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).expect("the proxy takes it");
    }

    /// Writes to a proxy that may have closed.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.socket.write_all(bytes.as_ref())
    }

    /// Sends a GET for `target` on HTTP/1.1.
    #[track_caller]
    pub(crate) fn get(&mut self, target: &str) {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
    }

    /// The next final response, whole.
    #[track_caller]
    pub(crate) fn response(&mut self) -> Message {
        match self.read_response(true, true) {
            Ok(response) => response,
            Err(cut) => panic!("no whole response ({}): {:?}", cut.error, cut.partial),
        }
    }

    /// The response to a HEAD request: a head and nothing else.
    #[track_caller]
    pub(crate) fn response_to_head(&mut self) -> Message {
        self.read_response(false, true).unwrap_or_else(|cut| panic!("no response: {cut:?}"))
    }

    /// The next head, 1xx included; its body stays unread.
    #[track_caller]
    pub(crate) fn head(&mut self) -> Message {
        self.read_response(false, false).unwrap_or_else(|cut| panic!("no head: {cut:?}"))
    }

    /// A response that must not look complete.
    #[track_caller]
    pub(crate) fn cut_response(&mut self) -> Cut {
        match self.read_response(true, true) {
            Err(cut) => {
                assert_ne!(cut.error.kind(), io::ErrorKind::WouldBlock, "left hanging, not cut");
                cut
            }
            Ok(response) => panic!("the cut response looks complete: {:?}", response.head),
        }
    }

    /// The next response, if its first byte has come already.
    #[track_caller]
    pub(crate) fn response_so_far(&mut self) -> Option<Message> {
        self.socket.set_nonblocking(true).unwrap();
        let peeked = self.socket.peek(&mut [MaybeUninit::uninit()]);
        self.socket.set_nonblocking(false).unwrap();
        peeked.is_ok().then(|| self.response())
    }

    fn read_response(&mut self, body: bool, final_only: bool) -> Result<Message, Cut> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut reader = Reader { buffer, more: more(&self.socket) };
        let mut response = Message::default();
        let read = (|| {
            loop {
                response.head = reader.head()?.ok_or(io::ErrorKind::UnexpectedEof)?;
                let status = response.status();
                if final_only && (100..200).contains(&status) {
                    continue;
                }
                if !body || status == 204 || status == 304 {
                    return Ok(());
                }
                let length = response.get("content-length").map(|v| v.parse::<usize>());
                let out = &mut response.body;
                return match (length, response.head.to_lowercase().contains("\ntransfer-encoding:"))
                {
                    (Some(Ok(n)), false) => reader.exact(n, out),
                    (None, true) => reader.chunks(out),
                    (None, false) => reader.rest(out),
                    other => Err(io::Error::other(format!("ambiguous framing {other:?}"))),
                };
            }
        })();
        self.buffer = reader.buffer;
        match read {
            Ok(()) => Ok(response),
            Err(error) => Err(Cut { partial: response, error }),
        }
    }

    /// Exactly `n` bytes.
    #[track_caller]
    pub(crate) fn exact(&mut self, n: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut reader =
            Reader { buffer: std::mem::take(&mut self.buffer), more: more(&self.socket) };
        reader
            .exact(n, &mut out)
            .unwrap_or_else(|e| panic!("{e} after {:?}", out.escape_ascii().to_string()));
        self.buffer = reader.buffer;
        out
    }

    /// The payload of the next chunk.
    #[track_caller]
    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let mut size = Vec::new();
        while !size.ends_with(b"\r\n") {
            size.extend(self.exact(1));
        }
        let size = String::from_utf8_lossy(&size);
        let payload = self.exact(usize::from_str_radix(size.trim_end(), 16).expect("a size"));
        assert_eq!(self.exact(2), b"\r\n");
        payload
    }

    /// What is left of a chunked body after its first chunks.
    #[track_caller]
    pub(crate) fn chunks(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut reader =
            Reader { buffer: std::mem::take(&mut self.buffer), more: more(&self.socket) };
        reader.chunks(&mut out).unwrap();
        self.buffer = reader.buffer;
        out
    }

    /// Reads until `n` bytes or the end have come, whatever the end is.
    pub(crate) fn read_some(&mut self, n: usize) {
        let mut reader =
            Reader { buffer: std::mem::take(&mut self.buffer), more: more(&self.socket) };
        let _ = reader.exact(n, &mut Vec::new());
        self.buffer = reader.buffer;
    }

    /// Everything up to the end of the connection, which must be a clean one.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.buffer);
        self.socket.read_to_end(&mut out).unwrap_or_else(|e| panic!("no clean end: {e}"));
        out
    }

    /// The proxy closes, and nothing more comes. How it closes does not matter.
    #[track_caller]
    pub(crate) fn wait_closed(&mut self) {
        let mut out = std::mem::take(&mut self.buffer);
        if let Err(e) = self.socket.read_to_end(&mut out) {
            assert_eq!(e.kind(), io::ErrorKind::ConnectionReset, "not closed: {e}");
        }
        assert_eq!(out.escape_ascii().to_string(), "", "surplus bytes");
    }

    /// The proxy cuts the connection by a reset, and nothing more comes.
    #[track_caller]
    pub(crate) fn wait_reset(&mut self) {
        let mut out = std::mem::take(&mut self.buffer);
        let end = self.socket.read_to_end(&mut out).map_err(|e| e.kind());
        assert_eq!((out.as_slice(), end), (&b""[..], Err(io::ErrorKind::ConnectionReset)));
    }

    /// Nothing has come so far.
    #[track_caller]
    pub(crate) fn assert_silent(&mut self) {
        self.socket.set_nonblocking(true).unwrap();
        let mut bytes = [0; 512];
        let got = self.socket.read(&mut bytes);
        self.socket.set_nonblocking(false).unwrap();
        match got {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok(n) => panic!("the client got {:?}", bytes[..n].escape_ascii().to_string()),
            Err(e) => panic!("the connection ended: {e}"),
        }
    }

    /// `shutdown(SHUT_WR)`: no more will be sent.
    pub(crate) fn half_close(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    /// Leaves with a RST.
    pub(crate) fn reset(self) {
        self.socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
}
