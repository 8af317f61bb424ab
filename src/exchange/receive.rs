//! Taking the request off the client: the head, then the whole body into the spool. Nothing of it
//! goes to the app before it is complete (invariant 1).

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::pace::Pace;
use super::{Client, Exchange};
use crate::error::Reason;
use crate::http1::{Chunked, Limits, RequestBody};
use crate::scratch::{self, Filled, Scratch};
use crate::spool::{self, MAX_PUSH};

/// Bytes of one body that are taken before other connections of the loop have their turn.
const TURN: usize = 1024 * 1024;
/// A disk may take so long at least, or others that hold all memory: `body-timeout` is about the client.
const ROOM: Duration = Duration::from_secs(5);

/// Receives and parses one head into the record. What came behind it stays in `x.input`. False: only
/// empty lines have come, which some clients send behind a body (RFC 9112, 2.2).
pub(super) async fn head(
    c: &Client<'_>,
    x: &mut Exchange,
    first: Option<Filled>,
) -> Result<bool, Reason> {
    let config = c.config();
    let limits = Limits { head: config.max_head, fields: config.max_fields };
    // The whole head has one deadline: a byte now and then does not move it.
    c.timer.set_at(x.marks.started + config.header_timeout);
    if let Some(first) = first {
        if x.input.is_empty() {
            // The usual case: the head is parsed where it was read.
            if let Some(used) = parse(x, first.bytes(), &limits)? {
                x.input.extend_from_slice(&first.bytes()[used..]);
                return Ok(true);
            }
        }
        x.input.extend_from_slice(first.bytes());
    }
    loop {
        if !x.input.is_empty() {
            let input = std::mem::take(&mut x.input);
            let parsed = parse(x, &input, &limits);
            x.input = input;
            if let Some(used) = parsed? {
                x.input.drain(..used);
                return Ok(true);
            }
            if x.input.chunks(2).all(|line| line == b"\r\n") {
                x.input.clear();
                return Ok(false);
            }
        }
        poll_fn(|cx| {
            let mut buf = Scratch::take();
            match c.stream.poll_read(cx, &mut buf[..scratch::HEAD]) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    x.input.extend_from_slice(&buf[..n]);
                    Poll::Ready(Ok(()))
                }
                Poll::Ready(_) => Poll::Ready(Err(client_gone(x))),
                Poll::Pending if c.timer.expired() => {
                    remember_partial(x);
                    Poll::Ready(Err(Reason::HeaderTimeout))
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await?;
    }
}

fn parse(x: &mut Exchange, input: &[u8], limits: &Limits) -> Result<Option<usize>, Reason> {
    match x.record.head.parse(input, limits) {
        Ok(Some(used)) => {
            x.record.request_length = used as u64;
            Ok(Some(used))
        }
        Ok(None) => Ok(None),
        Err(violation) => {
            x.record.request_length = input.len() as u64;
            tracing::debug!("refused a request: {}", violation.rule);
            Err(violation.reason)
        }
    }
}

fn client_gone(x: &mut Exchange) -> Reason {
    remember_partial(x);
    Reason::ClientGone
}

/// The record of a head that never became whole shows what came of it.
pub(super) fn remember_partial(x: &mut Exchange) {
    x.record.request_length = x.input.len() as u64;
    x.record.head.salvage(&x.input);
}

/// Receives the body into the spool, `100 Continue` first if it was asked for.
pub(super) async fn body(c: &Client<'_>, x: &mut Exchange) -> Result<(), Reason> {
    let framing = x.record.head.body;
    if framing != RequestBody::None {
        if x.record.head.expect_continue && x.input.is_empty() {
            c.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        receive(c, x, framing).await?;
    }
    c.timer.clear();
    let now = c.timer.now();
    x.marks.received = Some(now);
    let length = (framing != RequestBody::None).then(|| x.body.len());
    let receive_ms = now.duration_since(x.marks.started).as_millis() as u64;
    let started_ms = super::unix_ms(x.record.time);
    // A head without a body is received when it has come: nothing to move X-Request-Start by.
    let moved = if length.is_some() { receive_ms } else { 0 };
    x.forwarded.finish(moved, started_ms + receive_ms, length);
    Ok(())
}

async fn receive(c: &Client<'_>, x: &mut Exchange, framing: RequestBody) -> Result<(), Reason> {
    let mut decoder = match framing {
        RequestBody::Length(n) => Decoder::Length(n),
        RequestBody::Chunked => Decoder::Chunked(Chunked::default()),
        RequestBody::None => return Ok(()),
    };
    let config = c.config();
    x.body.belongs_to(x.owner());
    let mut pace = Pace::new(c.timer.now(), x.record.request_length);
    let mut waits_until = None;
    c.timer.set(config.body_timeout);
    // What came with the head.
    let mut input = std::mem::take(&mut x.input);
    let mut used = 0;
    let mut done = decoder.is_done();
    while !done && used < input.len() {
        if let Waited::Yes = poll_fn(|cx| poll_room(c, x, &mut waits_until, cx)).await? {
            pace = Pace::new(c.timer.now(), x.record.request_length);
        }
        let end = input.len().min(used + MAX_PUSH);
        let (payload, n, complete) = take(x, &mut decoder, &mut input[used..end], config.max_body)?;
        x.body.push(&input[used..used + payload]);
        used += n;
        done = complete;
    }
    input.drain(..used);
    // A body that came with its head has made it large, and the rest of it may be long in coming.
    if input.is_empty() {
        input = Vec::new();
    }
    x.input = input;
    while !done {
        done = poll_fn(|cx| {
            let mut turn = 0;
            loop {
                match ready!(poll_room(c, x, &mut waits_until, cx)) {
                    // Nothing was read of the client meanwhile: it is judged anew.
                    Ok(Waited::Yes) => pace = Pace::new(c.timer.now(), x.record.request_length),
                    Ok(Waited::No) => {}
                    Err(reason) => return Poll::Ready(Err(reason)),
                }
                // The spool keeps it as it is, if that is worth it.
                let mut piece = spool::piece();
                match c.stream.poll_read_into(cx, &mut piece) {
                    Poll::Ready(Ok(n)) if n > 0 => turn += n,
                    Poll::Ready(_) => return Poll::Ready(Err(Reason::ClientGone)),
                    Poll::Pending => {
                        spool::keep(piece);
                        if c.timer.expired() {
                            return Poll::Ready(Err(Reason::BodyTimeout));
                        }
                        x.relieve(c);
                        return Poll::Pending;
                    }
                };
                let taken = take(x, &mut decoder, &mut piece, config.max_body);
                let (payload, used, complete) = match taken {
                    Ok(taken) => taken,
                    Err(reason) => return Poll::Ready(Err(reason)),
                };
                x.input.extend_from_slice(&piece[used..]);
                piece.truncate(payload);
                x.body.push_piece(piece);
                if complete {
                    return Poll::Ready(Ok(true));
                }
                c.timer.set(config.body_timeout);
                let received = x.record.request_length;
                if let Some(rate) = config.body_min_rate
                    && pace.is_too_slow(rate, received, c.timer.now())
                {
                    return Poll::Ready(Err(Reason::BodyTimeout));
                }
                if turn >= TURN {
                    return Poll::Ready(Ok(false));
                }
            }
        })
        .await?;
        if !done {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// How the bytes of the connection become the bytes of the body.
enum Decoder {
    Length(u64),
    Chunked(Chunked),
}

impl Decoder {
    fn is_done(&self) -> bool {
        matches!(self, Decoder::Length(0))
    }
}

/// Counts the body's part of `buf`: payload bytes in front of it, bytes used, and whether the body is
/// complete.
fn take(
    x: &mut Exchange,
    decoder: &mut Decoder,
    buf: &mut [u8],
    max_body: u64,
) -> Result<(usize, usize, bool), Reason> {
    let (payload, used, done) = match decoder {
        Decoder::Length(left) => {
            let n = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= n as u64;
            (n, n, *left == 0)
        }
        Decoder::Chunked(chunked) => match chunked.decode(buf) {
            Ok(d) => (d.payload, d.consumed, d.done),
            Err(violation) => {
                tracing::debug!("refused a request body: {}", violation.rule);
                return Err(violation.reason);
            }
        },
    };
    x.record.request_length += used as u64;
    if x.body.len() + payload as u64 > max_body {
        return Err(Reason::BodyTooLarge);
    }
    Ok((payload, used, done))
}

/// Whether the client had to wait for us.
enum Waited {
    Yes,
    No,
}

/// Ready when the spool takes more. That others give up memory or that the disk gets something done
/// is not waited for for ever; the client's own time begins again after it.
fn poll_room(
    c: &Client<'_>,
    x: &mut Exchange,
    waits_until: &mut Option<Instant>,
    cx: &mut Context<'_>,
) -> Poll<Result<Waited, Reason>> {
    let timeout = c.config().body_timeout;
    match x.body.poll_ready(cx) {
        Poll::Ready(Err(e)) => Poll::Ready(Err(spool_failed(x, &e))),
        Poll::Ready(Ok(())) if waits_until.take().is_some() => {
            c.timer.set(timeout);
            Poll::Ready(Ok(Waited::Yes))
        }
        Poll::Ready(Ok(())) => Poll::Ready(Ok(Waited::No)),
        Poll::Pending => {
            let until = *waits_until.get_or_insert_with(|| c.timer.now() + timeout.max(ROOM));
            if c.timer.now() >= until {
                return Poll::Ready(Err(spool_failed(x, &io::ErrorKind::TimedOut.into())));
            }
            c.timer.set_at(until);
            Poll::Pending
        }
    }
}

fn spool_failed(x: &Exchange, error: &io::Error) -> Reason {
    x.lp.shared.say_not_kept(error);
    Reason::SpoolFull
}
