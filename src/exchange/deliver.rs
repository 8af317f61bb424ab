//! Taking the response off the worker at once and giving it to the client at the client's pace, as
//! nginx's event pipe does it: the client first; what it does not take now goes into the spool; the
//! worker is never paced by the client below the disk budget.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::gzip::{self, Gzip};
use super::pace::Pace;
use super::{Answer, Client, Exchange, Next, Served, client_head, reply};
use crate::error::Reason;
use crate::http1::{LAST_CHUNK, ResponseBody, Version, chunk_head};
use crate::scratch::{Filled, SIZE, Scratch};
use crate::server::Gauge;
use crate::server::connection::Conn;
use crate::spool::{KEEP_WHEN_SHORT, MAX_PUSH, Spool, SpoolLimits};
use crate::upstream::Slot;
use crate::upstream::attempt::Attempt;
use crate::upstream::body::{Incoming, Taken};
use crate::upstream::discard::Rest;
use client_head::{ClientHead, Coding, Framing};

/// Reads of one response before other connections of the loop have their turn.
const TURN: u32 = 16;
/// Bytes of a file that are read for one write to the client.
const FILE_READ: usize = 64 * 1024;
/// A client that has taken nothing for so long gets the rest from a smaller task (`Slow`).
const SLOW: Duration = Duration::from_millis(200);

/// Delivers the response whose head has been parsed into `x.response`.
pub(super) fn deliver(
    c: &Client<'_>,
    x: &mut Exchange,
    answer: Answer,
) -> impl Future<Output = Result<Served, Reason>> {
    x.record.upstream_status = x.response.status;
    x.record.stream = x.response.stream;
    if answer.attempt.complete() {
        // There is no second try from here on.
        x.body.clear();
    }
    let mut pump = Pump::new(c, x, answer);
    // It takes the pump as it is: an async fn would have room for it twice.
    async move {
        let compressible =
            c.config().gzip.is_some() && gzip::compressible(&x.record.head, &x.response);
        let gzipped = if compressible {
            gzip::wanted(&x.record.head)
        } else {
            c.config().gzip.is_some() && gzip::is_of_compressed(&x.record.head, &x.response)
        };
        if gzipped && x.response.body == ResponseBody::None {
            // A body that is not sent would not have the app's length either (RFC 9110, 8.6).
            pump.framing = Framing::None(None);
        } else if gzipped {
            pump.gzip = c.config().gzip.map(Gzip::new);
            poll_fn(|cx| {
                pump.begin_compressed(c, x, cx);
                Poll::Ready(())
            })
            .await;
        }
        if pump.framing == Framing::Chunked && x.record.head.version == Version::Http10 {
            if x.response.stream {
                pump.framing = Framing::Close;
            } else {
                // An HTTP/1.0 client could not tell a cut from an end: the whole first, then its length.
                let collected = poll_fn(|cx| pump.poll_collect(c, x, cx)).await;
                if let Err(reason) = collected {
                    pump.leave(x);
                    return Err(reason);
                }
                pump.framing = Framing::Length(pump.spool.unread());
            }
        }
        // The sum of what the app sent is not that of what we made of it.
        pump.trailers &= pump.framing == Framing::Chunked && pump.gzip.is_none();
        let keep_alive = x.may_keep_alive(c) && pump.framing != Framing::Close;
        pump.head = std::mem::take(&mut x.out);
        pump.head.clear();
        // It stays there for an answer of our own, should the client get nothing of this one.
        pump.head.extend_from_slice(&x.interim);
        let start = pump.head.len();
        let with = ClientHead {
            version: x.record.head.version,
            framing: pump.framing,
            keep_alive,
            trailers: pump.trailers,
            date: &reply::date(x.lp.timers.wall()),
            coding: match (gzipped, compressible) {
                (true, _) => Coding::Gzip,
                (false, true) => Coding::Varies,
                (false, false) => Coding::AsItCame,
            },
        };
        client_head::write(&mut pump.head, &x.response, &with);
        if c.settings.format.wants_response_head() {
            x.record.response_head.extend_from_slice(&pump.head[start..]);
        }
        pump.keep_alive = keep_alive;
        match poll_fn(|cx| pump.poll_or_slow(c, x, cx)).await {
            Some(delivered) => pump.end(c, x, delivered).map(Served::Whole),
            None => Ok(Served::Slow(pump.slim(x))),
        }
    }
}

/// The rest of a response that its client takes slowly. The app is done.
pub(crate) struct Slow(Box<Pump>);

impl Slow {
    /// Delivers it.
    pub(crate) async fn finish(&mut self, conn: &Conn, x: &mut Exchange) -> Result<Next, Reason> {
        let settings = x.settings.clone();
        let c = &Client { conn, settings: &settings };
        let delivered = poll_fn(|cx| {
            // The loop has a waker for reads too: while it is the former task's, that is not freed.
            let _ = c.stream.poll_readable(cx);
            self.0.poll(c, x, cx)
        })
        .await;
        self.0.end(c, x, delivered)
    }
}

/// One response on its way from the worker to the client.
struct Pump {
    /// None: the worker is done.
    upstream: Option<(Attempt, Slot)>,
    incoming: Incoming,
    framing: Framing,
    gzip: Option<Gzip>,
    /// The client has asked for the trailers of the app's chunked body.
    trailers: bool,
    /// Ends a chunked body.
    last_chunk: Cow<'static, [u8]>,
    /// The head for the client, and how much of it the kernel took.
    head: Vec<u8>,
    head_sent: usize,
    /// What came from the app in one read with its head.
    rest: Option<Filled>,
    /// What the client has not taken, framed as it goes to the client.
    spool: Spool,
    /// Bytes of 1xx heads that went before.
    sent_before: u64,
    /// Bytes of the body that the kernel took for the client.
    sent: u64,
    /// Payload bytes from the app.
    received: u64,
    keep_upstream: bool,
    /// The client's connection goes on behind this response.
    keep_alive: bool,
    /// It may still become `Slow`.
    may_slow: bool,
    /// A stream: every part of it goes out as it comes.
    flush: bool,
    /// The response is not whole: why.
    cut: Option<Reason>,
    /// Nothing more can be sent to the client: why.
    failed: Option<Reason>,
    /// Since when the client takes nothing, and what it had not acknowledged then.
    client_stalled: Option<(Instant, u64)>,
    /// How fast the client takes what waits for it, where that has a limit.
    pace: Option<Pace>,
    /// Since when the app says nothing, though it could.
    app_silent: Option<Instant>,
}

impl Pump {
    fn new(c: &Client<'_>, x: &Exchange, answer: Answer) -> Pump {
        let config = c.config();
        let framing = match x.response.body {
            ResponseBody::None => Framing::None(x.response.content_length),
            ResponseBody::Length(n) => Framing::Length(n),
            ResponseBody::Chunked | ResponseBody::Close => Framing::Chunked,
        };
        let limits = SpoolLimits {
            memory: config.response_memory,
            // A stream is never put on disk: a slow reader of it paces the app.
            disk: if x.response.stream { 0 } else { config.response_spool_max },
            replay: false,
        };
        let mut spool = Spool::new(&x.lp.shared.budget, limits);
        spool.belongs_to(x.owner());
        Pump {
            upstream: Some((answer.attempt, answer.slot)),
            incoming: Incoming::new(x.response.body),
            framing,
            gzip: None,
            trailers: x.record.head.te_trailers && x.response.body == ResponseBody::Chunked,
            last_chunk: Cow::Borrowed(LAST_CHUNK),
            head: Vec::new(),
            head_sent: 0,
            rest: Some(answer.rest),
            spool,
            sent_before: x.record.bytes_sent,
            sent: 0,
            received: 0,
            keep_upstream: x.response.keep_alive && config.upstream_keepalive.is_some(),
            keep_alive: false,
            may_slow: true,
            flush: x.response.stream,
            cut: None,
            failed: None,
            client_stalled: None,
            pace: None,
            app_silent: None,
        }
    }

    /// Write what the client takes, read what the app has, until neither moves.
    fn poll(
        &mut self,
        c: &Client<'_>,
        x: &mut Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Reason>> {
        if let Some(mut rest) = self.rest.take() {
            // All of a small response goes out in this one write.
            self.feed(c, x, cx, rest.bytes_mut());
        }
        for _ in 0..TURN {
            if let Some(reason) = self.cut
                && self.head_sent == 0
            {
                // Nothing is with the client: it gets a clean answer (invariant 6).
                return Poll::Ready(Err(clean(reason)));
            }
            let moved = self.send(c, cx) | self.fetch(c, x, cx);
            self.note(c, x);
            if let Some(reason) = self.failed {
                return Poll::Ready(Err(reason));
            }
            if self.upstream.is_none() && self.all_sent() {
                return Poll::Ready(self.cut.map_or(Ok(()), Err));
            }
            if !moved {
                return self.wait(c, x, cx);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready with None: the app is done and the client is slow.
    fn poll_or_slow(
        &mut self,
        c: &Client<'_>,
        x: &mut Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(), Reason>>> {
        match self.poll(c, x, cx) {
            Poll::Ready(delivered) => Poll::Ready(Some(delivered)),
            Poll::Pending if self.slow_at().is_some_and(|at| c.timer.now() >= at) => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// When this becomes a slow delivery, if nothing moves until then.
    fn slow_at(&self) -> Option<Instant> {
        let (since, _) = self.client_stalled?;
        (self.may_slow && self.upstream.is_none()).then(|| since + SLOW)
    }

    fn slim(mut self, x: &mut Exchange) -> Slow {
        self.may_slow = false;
        x.slim();
        Slow(Box::new(self))
    }

    /// Everything into the spool, nothing to the client yet.
    fn poll_collect(
        &mut self,
        c: &Client<'_>,
        x: &mut Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Reason>> {
        self.framing = Framing::Length(0);
        if let Some(mut rest) = self.rest.take() {
            self.feed(c, x, cx, rest.bytes_mut());
        }
        for _ in 0..TURN {
            let moved = self.fetch(c, x, cx);
            if let Some(reason) = self.cut {
                return Poll::Ready(Err(clean(reason)));
            }
            if self.upstream.is_none() {
                return Poll::Ready(Ok(()));
            }
            if self.spool.blocked() {
                return Poll::Ready(Err(Reason::SpoolFull));
            }
            if !moved {
                return self.wait(c, x, cx);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn all_sent(&self) -> bool {
        self.head_sent == self.head.len() && self.spool.unread() == 0
    }

    /// The client has taken its head and all that came behind it.
    fn begun_and_sent(&self) -> bool {
        !self.head.is_empty() && self.all_sent()
    }

    /// Gives the client what waits for it. True: something moved.
    fn send(&mut self, c: &Client<'_>, cx: &mut Context<'_>) -> bool {
        if self.all_sent() || c.stream.poll_writable(cx).is_pending() {
            return false;
        }
        let data = match self.spool.poll_data(cx, FILE_READ) {
            Poll::Ready(Ok(data)) => data,
            Poll::Ready(Err(error)) => {
                tracing::error!("a response could not be read back: {error} (spool-dir)");
                self.failed = Some(Reason::Internal);
                return true;
            }
            Poll::Pending => return false,
        };
        let slices = [IoSlice::new(&self.head[self.head_sent..]), IoSlice::new(data)];
        let written = c.stream.poll_write(cx, &slices);
        self.took(written).is_some()
    }

    /// Counts what the kernel took of the head and of what comes behind it: bytes of the latter.
    fn took(&mut self, written: Poll<io::Result<usize>>) -> Option<usize> {
        match written {
            Poll::Ready(Ok(n)) => {
                let of_head = n.min(self.head.len() - self.head_sent);
                self.head_sent += of_head;
                let behind = n - of_head;
                self.sent += behind as u64;
                let from_spool = behind.min(usize::try_from(self.spool.unread()).unwrap_or(behind));
                self.spool.consume(from_spool);
                self.client_stalled = None;
                Some(behind)
            }
            Poll::Ready(Err(_)) => {
                self.failed = Some(Reason::ClientGone);
                None
            }
            Poll::Pending => None,
        }
    }

    /// Takes what the app has. True: something moved.
    fn fetch(&mut self, c: &Client<'_>, x: &mut Exchange, cx: &mut Context<'_>) -> bool {
        let Some((attempt, _)) = &mut self.upstream else { return false };
        // An app that answers before it has read its whole request gets the rest all the same.
        let before = attempt.sent();
        if let Poll::Ready(Err(error)) = attempt.poll_sent(cx, &x.forwarded.bytes, &mut x.body) {
            tracing::error!("a request body could not be read back: {error} (spool-dir)");
            self.give_up(x, Reason::Internal);
            return true;
        }
        if attempt.sent() > before {
            self.app_silent = None;
        }
        let most = match self.spool.poll_ready(cx) {
            Poll::Ready(Ok(())) => SIZE,
            Poll::Ready(Err(error)) => {
                tracing::error!("a response could not be kept: {error} (spool-dir, spool-max)");
                self.give_up(x, Reason::Internal);
                return true;
            }
            // What the client takes at once needs no room; others may hold all of it for long.
            Poll::Pending if self.begun_and_sent() && c.stream.poll_writable(cx).is_ready() => {
                KEEP_WHEN_SHORT
            }
            Poll::Pending => {
                if self.spool.blocked() && !x.record.stream && !x.record.paced {
                    x.record.paced = true;
                    x.lp.shared.say_paced(self.spool.disk_failed());
                }
                self.app_silent = None;
                return false;
            }
        };
        let mut buf = Scratch::take();
        let read = match &self.upstream {
            Some((attempt, _)) => attempt.stream().poll_read(cx, &mut buf[..most]),
            None => return false,
        };
        match read {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) if matches!(self.incoming, Incoming::Close) => {
                self.end_upstream(x, None);
                self.hand_on(c, cx, &[], true);
            }
            // ECONNRESET is a cut also where a close would have been the end (invariant 6).
            Poll::Ready(Ok(0) | Err(_)) => self.end_upstream(x, Some(Reason::Truncated)),
            Poll::Ready(Ok(n)) => self.feed(c, x, cx, &mut buf[..n]),
        }
        self.app_silent = None;
        true
    }

    /// Decodes what came from the app and passes it on.
    fn feed(&mut self, c: &Client<'_>, x: &mut Exchange, cx: &mut Context<'_>, buf: &mut [u8]) {
        if let Some((payload, done)) = self.decode(x, buf) {
            self.hand_on(c, cx, &buf[..payload], done);
        }
    }

    /// The first bytes of a compressed body, before its head is written: what came whole gets its
    /// exact length.
    fn begin_compressed(&mut self, c: &Client<'_>, x: &mut Exchange, cx: &mut Context<'_>) {
        let Some(mut rest) = self.rest.take() else { return };
        let Some((payload, done)) = self.decode(x, rest.bytes_mut()) else { return };
        let packed = self.compress(&rest.bytes()[..payload], done);
        self.framing = if done { Framing::Length(packed.len() as u64) } else { Framing::Chunked };
        self.frame(c, cx, &packed, done);
    }

    /// Payload bytes in front of `buf`, and whether they are the last. None: the response is cut.
    fn decode(&mut self, x: &mut Exchange, buf: &mut [u8]) -> Option<(usize, bool)> {
        let Taken { payload, used, done } = match self.incoming.take(buf) {
            Ok(taken) => taken,
            Err(violation) => {
                tracing::warn!("the app's response was cut: {}", violation.rule);
                let begun = self.head_sent > 0;
                self.give_up(x, if begun { Reason::Truncated } else { violation.reason });
                return None;
            }
        };
        self.received += payload as u64;
        // Bytes behind the end of the message are nobody's.
        self.keep_upstream &= used == buf.len();
        if done {
            if let (true, Incoming::Chunked(body)) = (self.trailers, &self.incoming) {
                self.last_chunk = client_head::last_chunk(&x.response, body.trailers());
            }
            // Before the client gets anything: gunicorn holds the worker until we close.
            self.end_upstream(x, None);
        }
        Some((payload, done))
    }

    fn hand_on(&mut self, c: &Client<'_>, cx: &mut Context<'_>, payload: &[u8], done: bool) {
        if self.gzip.is_none() {
            return self.frame(c, cx, payload, done);
        }
        let packed = self.compress(payload, done);
        self.frame(c, cx, &packed, done);
    }

    fn compress(&mut self, payload: &[u8], done: bool) -> Vec<u8> {
        let flush = self.flush;
        match self.gzip.as_mut().map(|gzip| gzip.push(payload, flush, done)) {
            Some(Ok(packed)) => packed,
            // Into memory it cannot fail; if it does, the end of the body is missing.
            Some(Err(_)) | None => {
                self.cut = Some(Reason::Internal);
                Vec::new()
            }
        }
    }

    /// Puts chunk heads around what goes to the client where its framing needs them.
    fn frame(&mut self, c: &Client<'_>, cx: &mut Context<'_>, payload: &[u8], done: bool) {
        if self.framing != Framing::Chunked {
            return self.pass(c, cx, &[payload]);
        }
        let mut size = [0; 18];
        let (size, crlf): (&[u8], &[u8]) = match payload.len() {
            0 => (&[], &[]),
            n => (chunk_head(n, &mut size), b"\r\n"),
        };
        // What was cut gets no end.
        let whole = done && self.cut.is_none();
        let last = if whole { std::mem::take(&mut self.last_chunk) } else { Cow::default() };
        self.pass(c, cx, &[size, payload, crlf, &last]);
    }

    /// To the client what it takes now, the rest into the spool.
    fn pass(&mut self, c: &Client<'_>, cx: &mut Context<'_>, parts: &[&[u8]]) {
        let mut taken = 0;
        // While an HTTP/1.0 response is collected there is no head yet, and nothing may go out.
        if self.spool.unread() == 0 && !self.head.is_empty() {
            let mut slices = [IoSlice::new(&[]); 5];
            slices[0] = IoSlice::new(&self.head[self.head_sent..]);
            for (slice, part) in slices[1..].iter_mut().zip(parts) {
                *slice = IoSlice::new(part);
            }
            if slices.iter().all(|s| s.is_empty()) {
                return;
            }
            let written = c.stream.poll_write(cx, &slices[..=parts.len()]);
            taken = self.took(written).unwrap_or(0);
        }
        for part in parts {
            let skip = taken.min(part.len());
            taken -= skip;
            // The compressor may give more at once than it was given.
            for piece in part[skip..].chunks(MAX_PUSH) {
                self.spool.push(piece);
            }
        }
    }

    /// The worker is done, or has closed. Closing at once is what sets it free.
    fn end_upstream(&mut self, x: &mut Exchange, cut: Option<Reason>) {
        self.cut = self.cut.or(cut);
        if let Some((attempt, slot)) = self.upstream.take() {
            match (self.keep_upstream && attempt.in_step(), self.cut) {
                (true, None) => slot.keep(attempt.into_stream(), x.lp.timers.now()),
                _ => drop(attempt),
            }
        }
        x.marks.app_done = Some(x.lp.timers.now());
        x.enter(Gauge::delivering(&x.lp));
    }

    /// The response cannot be had whole, though the worker has not closed: it goes on for nobody.
    fn give_up(&mut self, x: &mut Exchange, cut: Reason) {
        self.abandon(x, true);
        self.end_upstream(x, Some(cut));
    }

    /// A worker that is not done is left to a task of its own.
    fn abandon(&mut self, x: &mut Exchange, worthless: bool) {
        if let Some((attempt, slot)) = self.upstream.take() {
            let incoming = std::mem::replace(&mut self.incoming, Incoming::Close);
            let rest = Rest { incoming, worthless, seen: self.received };
            x.abandon(attempt, Some(rest), slot);
        }
    }

    /// Neither side moves: whose turn is it, and how long may it take?
    fn wait(
        &mut self,
        c: &Client<'_>,
        x: &mut Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Reason>> {
        let now = c.timer.now();
        let mut next: Option<Instant> = None;
        if self.upstream.is_none() {
            // A slow reader does not hold the compressor's 300 KiB.
            self.gzip = None;
        }
        if !self.all_sent() && !self.head.is_empty() {
            // The kernel takes megabytes at once, so what counts is what the client acknowledges.
            let (since, unsent) =
                *self.client_stalled.get_or_insert_with(|| (now, c.stream.unsent()));
            let mut due = since + c.config().send_timeout;
            if now >= due {
                let left = c.stream.unsent();
                if left == unsent {
                    return Poll::Ready(Err(Reason::SendTimeout));
                }
                self.client_stalled = Some((now, left));
                due = now + c.config().send_timeout;
            }
            if let Some(rate) = c.config().send_min_rate {
                let handed = self.head_sent as u64 + self.sent;
                let acknowledged = || handed.wrapping_sub(c.stream.unsent());
                let pace = self.pace.get_or_insert_with(|| Pace::new(now, acknowledged()));
                if now >= pace.due() && pace.is_too_slow(rate, acknowledged(), now) {
                    return Poll::Ready(Err(Reason::SendTimeout));
                }
                due = due.min(pace.due());
            }
            next = Some(self.slow_at().map_or(due, |at| at.min(due)));
        } else {
            // It waits for the app.
            self.pace = None;
        }
        if self.spool.relieve() {
            c.timer.hold();
        }
        if self.upstream.is_some() {
            if !self.spool.blocked() {
                let due = *self.app_silent.get_or_insert(now) + c.config().app_idle_timeout;
                if now >= due {
                    let reason = Reason::AppIdleTimeout;
                    let reason = if self.head_sent == 0 { clean(reason) } else { reason };
                    return Poll::Ready(Err(reason));
                }
                next = Some(next.map_or(due, |n| n.min(due)));
            }
            if let Poll::Ready(reason) = x.poll_client_left(c, cx) {
                return Poll::Ready(Err(reason));
            }
        }
        match next {
            Some(due) => c.timer.set_at(due),
            None => c.timer.clear(),
        }
        Poll::Pending
    }

    /// What the record says of it so far.
    fn note(&self, c: &Client<'_>, x: &mut Exchange) {
        if self.head_sent > 0 {
            x.record.status = x.response.status;
            c.unfinished.set(true);
        }
        x.record.bytes_sent = self.sent_before + self.head_sent as u64 + self.sent;
        x.record.body_bytes_sent = self.sent;
        x.record.upstream_bytes_received = self.received;
    }

    fn end(
        &mut self,
        c: &Client<'_>,
        x: &mut Exchange,
        delivered: Result<(), Reason>,
    ) -> Result<Next, Reason> {
        self.leave(x);
        delivered?;
        c.unfinished.set(false);
        Ok(if self.keep_alive { Next::KeepAlive } else { Next::Close })
    }

    /// Gives back what is the exchange's.
    fn leave(&mut self, x: &mut Exchange) {
        x.out = std::mem::take(&mut self.head);
        self.abandon(x, x.record.stream);
    }
}

/// The reason for a response that failed before the client got any of it.
fn clean(reason: Reason) -> Reason {
    match reason {
        Reason::AppIdleTimeout => Reason::AppTimeout,
        Reason::Internal | Reason::InvalidResponse => reason,
        _ => Reason::ResetBeforeResponse,
    }
}
