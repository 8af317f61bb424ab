//! The end of a worker whose client has left, or was answered without it. Closing a connection does
//! not stop a sync worker: its slot ends when the response is whole or the worker closes, not
//! before (invariant 2).

use std::future::poll_fn;
use std::io::IoSlice;
use std::net::Shutdown;
use std::task::{Poll, ready};
use std::time::Duration;

use super::Slot;
use super::attempt::{Attempt, Event, Failure};
use super::body::Incoming;
use crate::config::UpstreamAddr;
use crate::http1::ResponseHead;
use crate::metrics::METRICS;
use crate::net;
use crate::scratch::Scratch;
use crate::spool::Spool;

/// The longest that a slot waits for its worker.
const LIMIT: Duration = Duration::from_secs(300);
/// A response of which more than this was read is not worth reading to its end.
const WORTH_READING: u64 = 1024 * 1024;
/// How often a connection that is no longer read is looked at for the worker's close.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A request that nobody waits for. It is still sent whole: gunicorn would run the app on the part
/// that came, as if it were all.
pub(crate) struct Abandoned {
    pub(crate) attempt: Attempt,
    pub(crate) head: Vec<u8>,
    pub(crate) body: Spool,
    pub(crate) method: Vec<u8>,
    /// None: its response has no head yet.
    pub(crate) rest: Option<Rest>,
    /// The last to go: the connection is closed before another takes its place (invariant 3).
    pub(crate) slot: Slot,
}

/// What is left of its response.
pub(crate) struct Rest {
    pub(crate) incoming: Incoming,
    /// Not to be read to its end: it has none (`text/event-stream` and the like), or is not HTTP.
    pub(crate) worthless: bool,
    /// Payload bytes that were read so far.
    pub(crate) seen: u64,
}

impl Rest {
    pub(crate) fn worthless() -> Rest {
        Rest { incoming: Incoming::Close, worthless: true, seen: 0 }
    }

    /// Throws away what has come. True: that was the end.
    fn take(&mut self, buf: &mut [u8]) -> bool {
        match self.incoming.take(buf) {
            Ok(taken) => {
                self.seen += taken.payload as u64;
                taken.done
            }
            Err(_) => {
                self.worthless = true;
                false
            }
        }
    }
}

/// Lets the worker finish, then gives the slot back.
pub(crate) async fn finish(work: Abandoned) {
    finish_within(LIMIT, work).await;
}

async fn finish_within(limit: Duration, mut work: Abandoned) {
    if tokio::time::timeout(limit, work.run()).await.is_err() {
        METRICS.slot_lost.add(1);
    }
}

impl Abandoned {
    async fn run(&mut self) {
        let rest = match self.rest.take() {
            Some(rest) => Some(rest),
            None => self.head().await,
        };
        if let Some(rest) = rest
            && !self.read(rest).await
        {
            self.refuse().await;
        }
    }

    /// Waits for the head of the response. None: the end has come with it.
    async fn head(&mut self) -> Option<Rest> {
        let mut response = ResponseHead::default();
        while self.slot.is_unread() && self.attempt.is_unread() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.slot.set_unread(false);
        loop {
            let event = poll_fn(|cx| {
                let Abandoned { attempt, head, body, method, .. } = self;
                attempt.poll(cx, head, body, &mut response, method)
            });
            match event.await {
                Ok(Event::Informational) => {}
                Ok(Event::Head(mut first)) => {
                    let incoming = Incoming::new(response.body);
                    let mut rest = Rest { incoming, worthless: response.stream, seen: 0 };
                    return if rest.take(first.bytes_mut()) { None } else { Some(rest) };
                }
                Err(Failure::Unread | Failure::Reset) => return None,
                Err(Failure::Invalid(_) | Failure::Own(_)) => return Some(Rest::worthless()),
            }
        }
    }

    /// Reads as much of the response as is worth it. True: to its end.
    async fn read(&mut self, mut rest: Rest) -> bool {
        poll_fn(|cx| {
            let _ = self.attempt.poll_sent(cx, &self.head, &mut self.body);
            let mut buf = Scratch::take();
            while !rest.worthless && rest.seen <= WORTH_READING {
                let end = match ready!(self.attempt.stream().poll_read(cx, &mut buf)) {
                    Ok(n) if n > 0 => rest.take(&mut buf[..n]),
                    _ => true,
                };
                if end {
                    return Poll::Ready(true);
                }
            }
            Poll::Ready(false)
        })
        .await
    }

    /// On a Unix socket the worker's next write fails with EPIPE and its close is still seen; TCP has
    /// nothing like it, there the connection is closed.
    async fn refuse(&mut self) {
        if matches!(self.slot.addr(), UpstreamAddr::Tcp(..)) {
            return;
        }
        self.attempt.stream().shutdown(Shutdown::Read);
        {
            // A worker that waits until it can write (poll) is told only when there is room.
            let mut buf = Scratch::take();
            while self.attempt.stream().try_read(&mut buf).is_ok_and(|n| n > 0) {}
        }
        if poll_fn(|cx| self.attempt.poll_sent(cx, &self.head, &mut self.body)).await.is_err() {
            return;
        }
        // The rest of a request that is still read would take the canary with it.
        let stream = self.attempt.stream();
        while stream.unsent() > 0 {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        // From now on a read says 0 at once, and gunicorn, when it is done, lingers up to 2 s for our
        // close: neither tells. An empty line behind the request does (RFC 9112, 2.2 has it ignored):
        // a worker does not read it before it lingers, and its close takes it away.
        let canary = net::send(stream.socket(), &[IoSlice::new(b"\r\n")]);
        while canary.is_ok() && stream.unsent() > 0 {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::task::{Context, Waker};

    use super::*;
    use crate::config::{Concurrency, Config};
    use crate::net::Stream;
    use crate::spool::{Budget, SpoolLimits};
    use crate::upstream::{Place, Upstreams};

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn worker_that_does_not_end_has_its_slot_no_longer_than_the_limit() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let one = Config { concurrency: Concurrency::Slots(1), ..Config::for_tests() };
            let upstreams = Upstreams::new(&one);
            let enter = || {
                let cx = Context::from_waker(Waker::noop());
                match upstreams.enter(None, true, None, &cx) {
                    Ok(Place::Slot(slot)) => slot,
                    _ => None,
                }
            };
            let slot = enter().unwrap();
            let budget = Budget::new(1 << 20, 1 << 20, std::env::temp_dir());
            let limits = SpoolLimits { memory: 1 << 16, disk: 0, replay: true };
            let mut body = Spool::new(&budget, limits);
            let (ours, _worker) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let stream = Stream::new(ours.into()).unwrap();
            let attempt = Attempt::start(stream, true, false, GET, &mut body);
            let (head, method) = (GET.to_vec(), b"GET".to_vec());
            assert!(enter().is_none());
            let lost = METRICS.slot_lost.get();
            let work = Abandoned { attempt, head, body, method, rest: None, slot };
            finish_within(Duration::from_millis(20), work).await;
            assert_eq!(METRICS.slot_lost.get(), lost + 1);
            assert!(enter().is_some());
        });
    }
}
