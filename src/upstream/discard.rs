//! The end of a worker whose client has left, or was answered without it. Closing a connection does
//! not stop a sync worker: its slot ends when the response is whole or the worker closes, not
//! before (invariant 2).

use std::future::poll_fn;
use std::net::Shutdown;
use std::time::Duration;

use super::Slot;
use super::attempt::{Attempt, Event};
use super::body::Incoming;
use crate::config::UpstreamAddr;
use crate::http1::ResponseHead;
use crate::metrics::METRICS;
use crate::net::Stream;
use crate::scratch::Scratch;
use crate::spool::Spool;

/// The longest that a slot waits for its worker.
const LIMIT: Duration = Duration::from_secs(300);
/// A response of which more than this was read is not worth reading to its end.
const WORTH_READING: u64 = 1024 * 1024;
/// How often a connection that is no longer read is looked at for the worker's close.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A response that nobody waits for: what is left of it.
pub(crate) struct Rest {
    pub(crate) stream: Stream,
    pub(crate) incoming: Incoming,
    /// `text/event-stream` and the like: it does not end by itself.
    pub(crate) endless: bool,
    /// Payload bytes that were read so far.
    pub(crate) seen: u64,
}

/// A request that nobody waits for. It is still sent whole: gunicorn would run the app on the part
/// that came, as if it were all.
pub(crate) struct Unanswered {
    pub(crate) attempt: Attempt,
    pub(crate) head: Vec<u8>,
    pub(crate) body: Spool,
    pub(crate) method: Vec<u8>,
}

/// Lets a worker finish a request that has no response head yet.
pub(crate) async fn unanswered(mut request: Unanswered, slot: Slot) {
    let finished = tokio::time::timeout(LIMIT, async {
        let mut response = ResponseHead::default();
        let mut first = loop {
            let event = poll_fn(|cx| {
                let Unanswered { attempt, head, body, method } = &mut request;
                attempt.poll(cx, head, body, &mut response, method)
            });
            match event.await {
                Ok(Event::Head(first)) => break first,
                Ok(Event::Informational) => {}
                Err(_) => return,
            }
        };
        let mut incoming = Incoming::new(response.body);
        let Ok(taken) = incoming.take(first.bytes_mut()) else { return };
        drop(first);
        if !taken.done {
            let rest = Rest {
                stream: request.attempt.into_stream(),
                incoming,
                endless: response.stream,
                seen: taken.payload as u64,
            };
            read_to_end(rest, &slot).await;
        }
    });
    lost(finished.await);
}

/// Reads the rest of a response.
pub(crate) async fn rest(rest: Rest, slot: Slot) {
    lost(tokio::time::timeout(LIMIT, read_to_end(rest, &slot)).await);
}

fn lost(finished: Result<(), tokio::time::error::Elapsed>) {
    if finished.is_err() {
        METRICS.slot_lost.add(1);
    }
}

async fn read_to_end(mut rest: Rest, slot: &Slot) {
    loop {
        if rest.endless || rest.seen > WORTH_READING {
            return refuse(&rest.stream, slot).await;
        }
        let done = poll_fn(|cx| {
            let mut buf = Scratch::take();
            rest.stream.poll_read(cx, &mut buf).map(|read| match read {
                Ok(n) if n > 0 => match rest.incoming.take(&mut buf[..n]) {
                    Ok(taken) => {
                        rest.seen += taken.payload as u64;
                        taken.done
                    }
                    Err(_) => true,
                },
                _ => true,
            })
        })
        .await;
        if done {
            return;
        }
    }
}

/// On a Unix socket the worker's next write fails with EPIPE and its close is still seen; TCP has
/// nothing like it, there the connection is closed.
async fn refuse(stream: &Stream, slot: &Slot) {
    if matches!(slot.addr(), UpstreamAddr::Tcp(..)) {
        return;
    }
    stream.shutdown(Shutdown::Read);
    // From now on a read says 0 at once; the close is told by the hang-up alone.
    while !stream.hung_up() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
