//! What the log knows of one exchange of the reference, by bufproxy's own record and format.

use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use bufproxy::access_log::{Record, Skip};
use bufproxy::config::Peer;
use bufproxy::error::Reason;
use bufproxy::http1::{Field, FieldId, RequestHead, Span};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header;

use super::{FORWARDED_FOR, FORWARDED_PROTO, Proxy, REQUEST_ID};

/// A request and its answer, for the log: the line is written when it is dropped.
pub(super) struct Exchange {
    pub(super) proxy: Rc<Proxy>,
    pub(super) record: Record,
    start: Instant,
    /// The end of the last phase.
    pub(super) mark: Instant,
}

impl Exchange {
    pub(super) fn new(request: &Request<Incoming>, peer: SocketAddr, proxy: Rc<Proxy>) -> Exchange {
        let mut record = Record::new(Peer::Ip(peer));
        write_head(&mut record.head, request);
        record.time = SystemTime::now();
        if let Some(id) = request.headers().get(REQUEST_ID) {
            record.request_id.extend_from_slice(id.as_bytes());
        }
        // Until something else is known.
        record.end = Reason::ClientGone;
        record.status = Reason::ClientGone.status();
        let start = Instant::now();
        Exchange { proxy, record, start, mark: start }
    }

    /// The time since the last phase.
    pub(super) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.mark, now)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.record.send = self.lap();
        self.record.service = self.mark - self.start;
        self.record.emit(&self.proxy.format, &Skip::default(), &self.proxy.log);
    }
}

/// The head as the log reads it, with the fields that the line names: hyper keeps no bytes.
fn write_head(head: &mut RequestHead, request: &Request<Incoming>) {
    let bytes = &mut head.bytes;
    bytes.reserve(512);
    // A Vec takes every write.
    let _ = write!(bytes, "{} {} {:?}", request.method(), request.uri(), request.version());
    let span = |start: usize, end: usize| Span { start: start as u32, end: end as u32 };
    head.line = span(0, bytes.len());
    bytes.extend_from_slice(b"\r\n");
    for name in [FORWARDED_FOR, FORWARDED_PROTO, header::VIA, header::REFERER, header::USER_AGENT] {
        for value in request.headers().get_all(&name) {
            let start = bytes.len();
            bytes.extend_from_slice(name.as_str().as_bytes());
            let name = span(start, bytes.len());
            bytes.extend_from_slice(b": ");
            let start = bytes.len();
            bytes.extend_from_slice(value.as_bytes());
            head.fields.push(Field { id: FieldId::Other, name, value: span(start, bytes.len()) });
            bytes.extend_from_slice(b"\r\n");
        }
    }
}
