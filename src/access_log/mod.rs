//! The access log: what is known of one exchange (`Record`), the formats, the writer.
//!
//! A record is written once, when it is dropped (invariant 5). Every format is a template over the
//! same fields; the writer has its own thread, so that a slow log reader never slows a client.

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
    /// Index of the upstream that answered.
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
    /// How often this connection was used before: nginx's $connection_requests is this plus one.
    pub connection: u64,
    pub connection_requests: u32,
    /// Response head as sent to the client; filled only if the format names `$sent_http_*` or
    /// `$upstream_http_*` (see `Format::wants_response_head`).
    pub response_head: Vec<u8>,
    pub end: Reason,
}
