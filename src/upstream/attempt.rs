//! One attempt: the request is written, the response head is read, both at once. An early response
//! wins over a write error, and what a failure proves is kept exactly (invariant 7).

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use socket2::Socket;

use super::Connected;
use crate::http1::{Limits, ResponseHead, Violation};
use crate::net::{self, Stream};
use crate::scratch::{self, Filled, Scratch};
use crate::spool::Spool;

/// The longest first write: gunicorn's `recv(8192)` takes such a write whole or not at all.
const PROVABLE: usize = 8192;
/// Slices of one vectored write.
const SLICES: usize = 16;
/// Bounds of a response head: twice what nginx's users set proxy_buffer_size to for large cookies.
pub(crate) const RESPONSE_LIMITS: Limits = Limits { head: 128 * 1024, fields: 1000 };
/// 1xx responses before the final one.
const MAX_INFORMATIONAL: u32 = 16;

/// Why an attempt has no response head.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Provably no worker has read any of the request: it may be sent again, whatever the method.
    Unread,
    /// The app closed before a complete head; it may have seen the request.
    Reset,
    /// Not HTTP, or a rule is broken.
    Invalid(Violation),
    /// The request's own spool could not be read.
    Spool(io::Error),
}

/// What came from the app.
pub(crate) enum Event {
    /// A 1xx head is in the response head; poll on for the final one.
    Informational,
    /// The final head; the bytes behind it that came with it.
    Head(Filled),
}

/// One request on one connection.
pub(crate) struct Attempt {
    stream: Stream,
    unix: bool,
    /// Bytes of head and body that the kernel took, and in how many writes.
    sent: u64,
    total: u64,
    writes: u32,
    /// Nothing more is to be written: all sent, or the app does not want it.
    done: bool,
    /// The first write of a long request waits to be read.
    holding: bool,
    /// A part of the response head.
    partial: Vec<u8>,
    /// What came behind a 1xx in one read with it.
    behind: Option<Filled>,
    informational: u32,
    /// Bytes of the response so far.
    pub(crate) received: u64,
}

impl Attempt {
    /// Makes the first write at once. `keep`: the connection may be used again.
    pub(crate) fn start(
        connected: Connected,
        unix: bool,
        keep: bool,
        head: &[u8],
        body: &mut Spool,
    ) -> io::Result<Attempt> {
        let total = head.len() as u64 + body.unread();
        let (stream, sent) = match connected {
            Connected::Fresh(socket) => {
                let sent = first_write(&socket, head, body)?;
                let read_only = sent == total && !keep;
                let stream =
                    if read_only { Stream::read_only(socket) } else { Stream::new(socket) }?;
                (stream, sent)
            }
            Connected::Registered(stream) => {
                let sent = first_write(stream.socket(), head, body)?;
                (stream, sent)
            }
        };
        Ok(Attempt {
            stream,
            unix,
            sent,
            total,
            writes: u32::from(sent > 0),
            done: sent == total,
            holding: unix && sent > 0 && sent < total,
            partial: Vec::new(),
            behind: None,
            informational: 0,
            received: 0,
        })
    }

    pub(crate) fn into_stream(self) -> Stream {
        self.stream
    }

    /// The request was written whole.
    pub(crate) fn complete(&self) -> bool {
        self.sent == self.total
    }

    /// Writes what can be written, reads what is there.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        body: &mut Spool,
        response: &mut ResponseHead,
        method: &[u8],
    ) -> Poll<Result<Event, Failure>> {
        if !self.done {
            match self.poll_send(cx, head, body) {
                Poll::Ready(Ok(())) => self.done = true,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Failure::Spool(e))),
                Poll::Pending => {}
            }
        }
        self.poll_head(cx, response, method)
    }

    /// Err: the spool failed. A socket that takes no more is no error here: what the app has to say
    /// about it is read.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        body: &mut Spool,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.total {
            if self.holding {
                if ready!(self.stream.poll_all_read(cx)).is_err() {
                    return Poll::Ready(Ok(()));
                }
                self.holding = false;
            }
            let head_rest = head.get(self.sent as usize..).unwrap_or_default();
            let provable = self.unix && self.writes == 0;
            let limit = if provable { PROVABLE } else { usize::MAX };
            let mut slices = [IoSlice::new(&[]); SLICES];
            let written = match gather(head_rest, body, limit, &mut slices) {
                0 => match ready!(body.poll_data(cx, scratch::SIZE)) {
                    Ok(data) => {
                        let data = &data[..data.len().min(limit)];
                        ready!(self.stream.poll_write(cx, &[IoSlice::new(data)]))
                    }
                    Err(e) => return Poll::Ready(Err(e)),
                },
                n => ready!(self.stream.poll_write(cx, &slices[..n])),
            };
            match written {
                Ok(n) => {
                    body.consume(n.saturating_sub(head_rest.len()));
                    self.sent += n as u64;
                    self.writes += 1;
                    self.holding = provable && self.sent < self.total;
                }
                Err(_) => return Poll::Ready(Ok(())),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut ResponseHead,
        method: &[u8],
    ) -> Poll<Result<Event, Failure>> {
        if let Some(behind) = self.behind.take()
            && let Some(event) = self.parse(behind, response, method)?
        {
            return Poll::Ready(Ok(event));
        }
        loop {
            let mut buf = Scratch::take();
            let n = match ready!(self.stream.poll_read(cx, &mut buf)) {
                Ok(0) => return Poll::Ready(Err(Failure::Reset)),
                Ok(n) => n,
                Err(e) => return Poll::Ready(Err(self.verdict(&e))),
            };
            self.received += n as u64;
            if let Some(event) = self.parse(Filled::new(buf, 0, n), response, method)? {
                return Poll::Ready(Ok(event));
            }
        }
    }

    /// What a read error proves. On a Unix socket ECONNRESET without a response byte means that the
    /// peer closed with unread bytes in its queue; where all that was ever sent is one write that
    /// its one `recv` takes whole, nothing of it was read.
    fn verdict(&self, error: &io::Error) -> Failure {
        let reset = error.kind() == io::ErrorKind::ConnectionReset;
        let one_write = self.writes <= 1 && self.sent <= PROVABLE as u64;
        if self.unix && reset && self.received == 0 && one_write {
            Failure::Unread
        } else {
            Failure::Reset
        }
    }

    /// Looks for a head in the part that came before and what has come now.
    fn parse(
        &mut self,
        mut came: Filled,
        response: &mut ResponseHead,
        method: &[u8],
    ) -> Result<Option<Event>, Failure> {
        let before = self.partial.len();
        let parsed = if before == 0 {
            response.parse(came.bytes(), method, &RESPONSE_LIMITS)
        } else {
            self.partial.extend_from_slice(came.bytes());
            response.parse(&self.partial, method, &RESPONSE_LIMITS)
        };
        match parsed {
            Ok(Some(used)) => {
                self.partial.clear();
                // The head ends in what has come now, or it would have been found before.
                came.skip(used.saturating_sub(before));
                self.found(came, response).map(Some)
            }
            Ok(None) => {
                if before == 0 {
                    self.partial.extend_from_slice(came.bytes());
                }
                Ok(None)
            }
            Err(violation) => Err(Failure::Invalid(violation)),
        }
    }

    fn found(&mut self, rest: Filled, response: &ResponseHead) -> Result<Event, Failure> {
        const SWITCHING: u16 = 101;
        if !(100..200).contains(&response.status) {
            return Ok(Event::Head(rest));
        }
        self.informational += 1;
        if response.status == SWITCHING || self.informational > MAX_INFORMATIONAL {
            return Err(Failure::Invalid(Violation {
                reason: crate::error::Reason::InvalidResponse,
                rule: "a 101 that nobody asked for, or a flood of 1xx (RFC 9110, 15.2)",
            }));
        }
        self.behind = Some(rest).filter(|rest| !rest.bytes().is_empty());
        Ok(Event::Informational)
    }
}

/// The first write, without asking the loop: a socket that has just connected takes it.
fn first_write(socket: &Socket, head: &[u8], body: &mut Spool) -> io::Result<u64> {
    let written = {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let n = gather(head, body, PROVABLE, &mut slices);
        net::send(socket, &slices[..n])
    };
    match written {
        Ok(n) => {
            body.consume(n.saturating_sub(head.len()));
            Ok(n as u64)
        }
        // A peer that closed at once is found by the read, with what it proves.
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::BrokenPipe) => {
            Ok(0)
        }
        Err(e) => Err(e),
    }
}

/// Slices of the rest of the head and of the body in memory, `limit` bytes at most. 0: nothing is
/// in memory.
fn gather<'a>(
    head: &'a [u8],
    body: &'a Spool,
    limit: usize,
    slices: &mut [IoSlice<'a>; SLICES],
) -> usize {
    let head = &head[..head.len().min(limit)];
    slices[0] = IoSlice::new(head);
    let from = usize::from(!head.is_empty());
    from + body.memory_slices(limit - head.len(), &mut slices[from..]).0
}
