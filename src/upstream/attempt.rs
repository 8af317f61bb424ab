//! One attempt: the request is written, the response head is read, both at once. An early response
//! wins over a write error, and what a failure proves is kept exactly (invariant 7).

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use socket2::Socket;

use super::prompt;
use crate::error::Reason;
use crate::http1::{Limits, ResponseHead, Violation};
use crate::net::{self, Stream};
use crate::scratch::{Filled, Scratch};
use crate::spool::Spool;

/// The longest first write: gunicorn's `recv(8192)` takes such a write whole or not at all.
const PROVABLE: usize = 8192;
/// Bytes of a spool file that are read for one write: a chunk that is kept for the next.
const FILE_READ: usize = 64 * 1024;
/// Slices of one vectored write.
const SLICES: usize = 16;
/// Bounds of a response head: twice what nginx's users set proxy_buffer_size to for large cookies.
pub(crate) const RESPONSE_LIMITS: Limits = Limits { head: 128 * 1024, fields: 1000 };
/// The last response on a connection that speaks another protocol from then on.
pub(crate) const SWITCHING: u16 = 101;
/// 1xx responses before the final one.
const MAX_INFORMATIONAL: u32 = 16;

/// What an app must not say before its answer.
pub(crate) const NOT_ASKED: Violation = Violation {
    reason: Reason::InvalidResponse,
    rule: "a 101 that nobody asked for, or a flood of 1xx (RFC 9110, 15.2)",
};

/// Why an attempt has no response head.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Provably no worker has read any of the request: it may be sent again, whatever the method.
    Unread,
    /// The app closed before a complete head; it may have seen the request.
    Reset,
    /// Not HTTP, or a rule is broken.
    Invalid(Violation),
    /// Not the app's doing: the request's spool cannot be read, or the loop cannot watch the
    /// connection. The app may be at work.
    Own(io::Error),
}

/// What came from the app.
pub(crate) enum Event {
    /// A 1xx head is in the response head; poll on for the final one.
    Informational,
    /// The final head; the bytes behind it that came with it.
    Head(Filled),
}

/// Whether the answer is looked for before the loop is asked to watch for it.
#[derive(Clone, Copy, Debug)]
enum Look {
    /// When the loop's other tasks have had their turn.
    Later,
    Now,
    No,
}

/// One request on one connection.
pub(crate) struct Attempt {
    stream: Stream,
    unix: bool,
    /// The request offers another protocol: a 101 is an answer to it.
    upgrade: bool,
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
    look: Look,
    /// Bytes of the response so far.
    pub(crate) received: u64,
}

impl Attempt {
    /// Makes the first write at once. `upgrade`: the connection may be used for another protocol, if
    /// the app agrees.
    pub(crate) fn start(
        mut stream: Stream,
        unix: bool,
        upgrade: bool,
        head: &[u8],
        body: &mut Spool,
    ) -> Attempt {
        let total = head.len() as u64 + body.unread();
        let sent = first_write(stream.socket(), head, body);
        let will_write = sent < total || upgrade;
        stream.will_write(will_write);
        let may_look = !will_write && !stream.is_watched();
        let look = if may_look && prompt::is_worth_a_look() { Look::Later } else { Look::No };
        Attempt {
            stream,
            unix,
            upgrade,
            sent,
            total,
            writes: u32::from(sent > 0),
            done: sent == total,
            holding: unix && sent > 0 && sent < total,
            partial: Vec::new(),
            behind: None,
            informational: 0,
            look,
            received: 0,
        }
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(crate) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Bytes of the request that the kernel took.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// The request was written whole.
    pub(crate) fn complete(&self) -> bool {
        self.sent == self.total
    }

    /// On a Unix socket: no worker has read anything of it yet.
    pub(crate) fn is_unread(&self) -> bool {
        // 1 is nothing: see `Stream::poll_all_read`.
        self.writes <= 1 && self.received == 0 && self.stream.unsent() > 1
    }

    /// The request was read whole, so that nothing of it comes before the next one. A single write
    /// is read whole or not at all, and it was answered.
    pub(crate) fn in_step(&self) -> bool {
        self.complete() && (self.writes == 1 || self.stream.unsent() == 0)
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
        if let Poll::Ready(Err(e)) = self.poll_sent(cx, head, body) {
            return Poll::Ready(Err(Failure::Own(e)));
        }
        self.poll_head(cx, body.unasked(), response, method)
    }

    /// Writes what can be written. Ready when there is nothing more to be written; Err: the spool
    /// failed. A socket that takes no more is no error here: what the app has to say about it is
    /// read. Polled on after the response head: the app may answer before it has read all.
    pub(crate) fn poll_sent(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        body: &mut Spool,
    ) -> Poll<io::Result<()>> {
        if !self.done {
            ready!(self.poll_send(cx, head, body))?;
            self.done = true;
        }
        Poll::Ready(Ok(()))
    }

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
                0 => match ready!(body.poll_data(cx, FILE_READ)) {
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
        most: usize,
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
            let read = match self.look(cx, &mut buf[..most]) {
                Some(read) => read,
                None => {
                    self.stream.watch().map_err(Failure::Own)?;
                    self.stream.poll_read(cx, &mut buf[..most])
                }
            };
            let n = match ready!(read) {
                Ok(0) => return Poll::Ready(Err(self.verdict(None))),
                Ok(n) => n,
                Err(e) => return Poll::Ready(Err(self.verdict(Some(e.kind())))),
            };
            self.received += n as u64;
            if let Some(event) = self.parse(Filled::new(buf, 0, n), response, method)? {
                return Poll::Ready(Ok(event));
            }
        }
    }

    /// Reads without the loop, where that has paid lately. None: the loop has to watch.
    fn look(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Option<Poll<io::Result<usize>>> {
        match self.look {
            Look::No => return None,
            Look::Later => {
                // After all that this loop has to do now.
                self.look = Look::Now;
                cx.waker().wake_by_ref();
                return Some(Poll::Pending);
            }
            Look::Now => self.look = Look::No,
        }
        let read = self.stream.try_read(buf);
        let found = !read.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        prompt::looked(found);
        found.then_some(Poll::Ready(read))
    }

    /// What the end of the connection proves, without a response byte. Of what was never sent,
    /// nothing was read. And on a Unix socket ECONNRESET means that the peer closed with unread
    /// bytes in its queue; where all that was ever sent is one write that its one `recv` takes whole,
    /// nothing of it was read.
    fn verdict(&self, error: Option<io::ErrorKind>) -> Failure {
        let reset = error == Some(io::ErrorKind::ConnectionReset);
        let one_write = self.writes <= 1 && self.sent <= PROVABLE as u64;
        let unread = self.sent == 0 || self.unix && reset && one_write;
        if unread && self.received == 0 { Failure::Unread } else { Failure::Reset }
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
        let switches = response.status == SWITCHING && self.upgrade;
        if switches || !response.is_informational() {
            return Ok(Event::Head(rest));
        }
        self.informational += 1;
        if response.status == SWITCHING || self.informational > MAX_INFORMATIONAL {
            return Err(Failure::Invalid(NOT_ASKED));
        }
        self.behind = Some(rest).filter(|rest| !rest.bytes().is_empty());
        Ok(Event::Informational)
    }
}

/// The first write, without asking the loop: a socket that has just connected takes it. Where it
/// does not, the next write or the read finds out why.
fn first_write(socket: &Socket, head: &[u8], body: &mut Spool) -> u64 {
    let written = {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let n = gather(head, body, PROVABLE, &mut slices);
        net::send(socket, &slices[..n]).unwrap_or(0)
    };
    body.consume(written.saturating_sub(head.len()));
    written as u64
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::spool::{Budget, SpoolLimits};

    const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    const ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

    fn empty_body() -> Spool {
        let budget = Budget::new(1 << 20, 1 << 20, std::env::temp_dir());
        Spool::new(&budget, SpoolLimits { memory: 1 << 16, disk: 0, replay: true })
    }

    /// How an attempt on a kept connection ends whose other end does this before and after the
    /// request is written.
    fn failure(
        before: impl FnOnce(UnixStream) -> Option<UnixStream>,
        after: impl FnOnce(UnixStream),
    ) -> Failure {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let mut body = empty_body();
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let kept = Stream::new(ours.into()).unwrap();
            let worker = before(theirs);
            let mut attempt = Attempt::start(kept, true, false, POST, &mut body);
            worker.map(after);
            let mut response = ResponseHead::default();
            let event = poll_fn(|cx| attempt.poll(cx, POST, &mut body, &mut response, b"POST"));
            match event.await {
                Err(failure) => failure,
                Ok(_) => panic!("no failure"),
            }
        })
    }

    #[test]
    fn a_worker_that_closed_before_the_first_byte_has_read_nothing() {
        let failure = failure(|_closes| None, drop);
        assert!(matches!(failure, Failure::Unread), "{failure:?}");
    }

    #[test]
    fn a_worker_that_closes_on_unread_bytes_has_read_nothing() {
        let failure = failure(Some, drop);
        assert!(matches!(failure, Failure::Unread), "{failure:?}");
    }

    #[test]
    fn a_worker_that_has_read_may_have_acted() {
        let read = |mut worker: UnixStream| assert!(worker.read(&mut [0; 8192]).unwrap() > 0);
        let failure = failure(Some, read);
        assert!(matches!(failure, Failure::Reset), "{failure:?}");
    }

    #[test]
    fn a_worker_that_has_begun_to_answer_may_have_acted() {
        let failure = failure(Some, |mut worker| worker.write_all(b"HTTP/1.1 2").unwrap());
        assert!(matches!(failure, Failure::Reset), "{failure:?}");
    }

    /// Whether the loop has watched a new connection to an app that does this at once, and answers
    /// when it was looked at in vain.
    fn is_watched_for(app: impl FnOnce(&UnixStream)) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let mut body = empty_body();
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let stream = Stream::unwatched(ours.into());
            let mut attempt = Attempt::start(stream, true, false, POST, &mut body);
            app(&theirs);
            let mut response = ResponseHead::default();
            let mut polls = 0;
            let event = poll_fn(|cx| {
                polls += 1;
                let event = attempt.poll(cx, POST, &mut body, &mut response, b"POST");
                if polls == 2 && event.is_pending() {
                    theirs.write_all(ANSWER).unwrap();
                }
                event
            });
            assert!(matches!(event.await, Ok(Event::Head(_))));
            attempt.stream().is_watched()
        })
    }

    #[test]
    fn an_answer_that_is_there_when_the_others_had_their_turn_needs_no_watching() {
        assert!(!is_watched_for(|mut app| app.write_all(ANSWER).unwrap()));
    }

    #[test]
    fn an_answer_that_comes_later_is_watched_for() {
        assert!(is_watched_for(|_| {}));
    }
}
