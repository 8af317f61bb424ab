//! The access log: what is known of one exchange (`Record`), the formats, the writer.
//!
//! A record is written once, when it is dropped (invariant 5). Every format is a template over the
//! same fields (`template`); the writer has its own thread, so that a slow log reader never slows a
//! client (`writer`). Diagnostics take the same way to stderr (`diagnostics`).

mod clock;
pub mod diagnostics;
mod escape;
mod fields;
mod template;
mod variable;
mod writer;

pub use template::{Format, FormatOptions};
pub(crate) use writer::Outlived;
pub use writer::{LogWriter, Stderr};

use std::cell::RefCell;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::config::Peer;
use crate::error::Reason;
use crate::http1::RequestHead;

/// What the access log knows of one exchange. The exchange fills it in as it goes; dropping it
/// writes the line (see `exchange`, which owns the drop).
#[derive(Debug)]
pub struct Record {
    /// The request as received; after a violation its first bytes.
    pub head: RequestHead,
    /// Wall clock at the first byte of the head.
    pub time: SystemTime,
    pub peer: Peer,
    /// The address and port that the client connected to, if TCP.
    pub local: Option<std::net::SocketAddr>,
    /// The resolved client: the peer, or what trusted peers say.
    pub client: Option<IpAddr>,
    /// `http` or `https`, as the app is told.
    pub scheme: &'static str,
    /// X-Request-Id that the app was given. Empty when none was made.
    pub request_id: Vec<u8>,
    /// Status sent to the client (499 when it left before; 0 never).
    pub status: u16,
    /// Status line of the app, 0 when there was none.
    pub upstream_status: u16,
    /// Index of the upstream of the last attempt.
    pub upstream_addr: Option<u16>,
    /// Bytes of head and body received for this request.
    pub request_length: u64,
    /// Bytes handed to the kernel for the client, all and without the head.
    pub bytes_sent: u64,
    pub body_bytes_sent: u64,
    /// Payload bytes received from the app.
    pub upstream_bytes_received: u64,
    /// Phases (design section 10). A phase that was not reached is zero.
    pub receive: Duration,
    pub queue: Duration,
    pub connect: Duration,
    /// Lies inside `upstream`. None: no byte came.
    pub first_byte: Option<Duration>,
    pub upstream: Duration,
    pub send: Duration,
    /// First byte of the head to the last byte handed to the kernel.
    pub service: Duration,
    /// Attempts beyond the first.
    pub retry: u8,
    /// The app was paced by the client (disk budget spent).
    pub paced: bool,
    /// A stream: flushed as it came.
    pub stream: bool,
    /// A tunnel after a 101: `body_bytes_sent` and `request_length` count both ways.
    pub tunnel: bool,
    /// Number of the connection in this process.
    pub connection: u64,
    /// How often this connection was used before: nginx's $connection_requests is this plus one.
    pub connection_requests: u32,
    /// Response head as sent to the client; filled only if the format names `$sent_http_*` or
    /// `$upstream_http_*` (see `Format::wants_response_head`).
    pub response_head: Vec<u8>,
    pub end: Reason,
}

impl Record {
    /// An empty record of a client at `peer`.
    pub fn new(peer: Peer) -> Record {
        Record {
            head: RequestHead::default(),
            time: SystemTime::UNIX_EPOCH,
            peer,
            local: None,
            client: peer.ip(),
            scheme: "http",
            request_id: Vec::new(),
            status: 0,
            upstream_status: 0,
            upstream_addr: None,
            request_length: 0,
            bytes_sent: 0,
            body_bytes_sent: 0,
            upstream_bytes_received: 0,
            receive: Duration::ZERO,
            queue: Duration::ZERO,
            connect: Duration::ZERO,
            first_byte: None,
            upstream: Duration::ZERO,
            send: Duration::ZERO,
            service: Duration::ZERO,
            retry: 0,
            paced: false,
            stream: false,
            tunnel: false,
            connection: 0,
            connection_requests: 0,
            response_head: Vec::new(),
            end: Reason::Ok,
        }
    }

    /// Forgets the exchange. What belongs to the connection stays (`peer`, `local`, `connection`,
    /// `connection_requests`), and so does the capacity of the buffers.
    pub fn reset(&mut self) {
        let mut head = std::mem::take(&mut self.head);
        let mut request_id = std::mem::take(&mut self.request_id);
        let mut response_head = std::mem::take(&mut self.response_head);
        head.clear();
        request_id.clear();
        response_head.clear();
        *self = Record {
            head,
            request_id,
            response_head,
            local: self.local,
            connection: self.connection,
            connection_requests: self.connection_requests,
            ..Record::new(self.peer)
        };
    }

    /// Gives up the capacity that is not used: this record is open for long.
    pub(crate) fn shrink_to_fit(&mut self) {
        self.head.shrink_to_fit();
        self.request_id.shrink_to_fit();
        self.response_head.shrink_to_fit();
    }

    /// Writes the line, unless `skip` names the path.
    pub fn emit(&self, format: &Format, skip: &Skip, writer: &LogWriter) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        if writer.is_off() || skip.matches(self) {
            return;
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            format.render(self, writer.max_line(), line);
            writer.push(line);
        });
    }
}

/// Requests that are not logged (option `log-skip`): paths without their query, compared byte for
/// byte; a `*` at the end stands for any rest.
#[derive(Clone, Debug, Default)]
pub struct Skip(Vec<String>);

impl Skip {
    pub fn new(paths: &[String]) -> Skip {
        Skip(paths.to_vec())
    }

    pub fn matches(&self, record: &Record) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let uri = record.head.path.of(&record.head.bytes);
        let path = &uri[..memchr::memchr(b'?', uri).unwrap_or(uri.len())];
        self.0.iter().any(|skip| match skip.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix.as_bytes()),
            None => path == skip.as_bytes(),
        })
    }
}

/// `time=` as l2met lines begin with it, for lines that are no record.
pub(crate) fn write_time(time: SystemTime, out: &mut Vec<u8>) {
    out.extend_from_slice(b"time=");
    out.extend_from_slice(clock::Clock::new().date_time(time));
    out.extend_from_slice(b"Z ");
}

#[cfg(test)]
mod tests;
