//! The request head as the app gets it (design section 7). Pure: no I/O, no clock.

use crate::config::{Config, Peer};
use crate::http1::{RequestHead, Span};
use crate::trust::Resolved;

/// What `write_head` needs beside the head.
pub struct Forward<'a> {
    pub config: &'a Config,
    pub peer: Peer,
    pub local: Option<std::net::SocketAddr>,
    pub resolved: Resolved,
    /// Milliseconds since 1970 of the first byte of the head.
    pub started_ms: u64,
}

/// A forwarded head: lines with their CRLF, without Content-Length and the empty line, which
/// `finish_head` adds when the body is complete.
#[derive(Debug, Default)]
pub struct ForwardedHead {
    pub bytes: Vec<u8>,
    /// The 13 digits of X-Request-Start in `bytes`.
    pub request_start: Span,
    /// X-Request-Id in `bytes`.
    pub request_id: Span,
}

impl ForwardedHead {
    /// Writes the head for the app into `self` (cleared first, capacity kept).
    pub fn write(&mut self, head: &RequestHead, with: &Forward<'_>) {
        let _ = (head, with);
    }

    /// Ends the head: X-Request-Start is moved on by `receive_ms` (time that the client took to
    /// send its body), never beyond `now_ms`; `Content-Length` where the request has a body.
    pub fn finish(&mut self, receive_ms: u64, now_ms: u64, content_length: Option<u64>) {
        let _ = (receive_ms, now_ms, content_length);
    }
}
