//! The app's side: slots with their line (`queue`), connecting, one attempt, the end of a worker
//! whose client has left.

pub(crate) mod attempt;
pub(crate) mod body;
mod connect;
pub(crate) mod discard;
mod queue;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::config::{Concurrency, Config, UpstreamAddr};
use crate::net::Stream;
use queue::{Entered, Index, Queue, Ticket};

pub(crate) use connect::{Connected, connect};

/// All upstreams, their slots and the line. Shared by the event loops; the lock is held for
/// nanoseconds and never across an await (invariant 9).
#[derive(Debug)]
pub(crate) struct Upstreams {
    addrs: Vec<UpstreamAddr>,
    /// Concurrency is off: slots only bound the number, they say nothing of the app.
    pub(crate) unbounded: bool,
    queue: Mutex<Queue<Waker>>,
    /// Connections that are kept in free slots (`upstream-keepalive`), newest last.
    kept: Mutex<HashMap<Index, Vec<(Stream, Instant)>>>,
}

impl Upstreams {
    pub(crate) fn new(config: &Config) -> Arc<Upstreams> {
        let (slots, unbounded) = match config.concurrency {
            Concurrency::Slots(n) => (n, false),
            Concurrency::Off => (config.max_connections, true),
        };
        Arc::new(Upstreams {
            addrs: config.upstream.clone(),
            unbounded,
            queue: Mutex::new(Queue::new(config.upstream.len(), slots, config.queue)),
            kept: Mutex::default(),
        })
    }

    pub(crate) fn addr(&self, index: Index) -> &UpstreamAddr {
        &self.addrs[usize::from(index)]
    }

    pub(crate) fn only_one(&self) -> bool {
        self.addrs.len() == 1
    }

    fn lock(&self) -> MutexGuard<'_, Queue<Waker>> {
        // A panic elsewhere must not end the queue: its operations are whole or not at all.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a slot. The place in the line, or the slot, is given up when the value is dropped.
    pub(crate) fn enter(
        self: &Arc<Self>,
        avoid: Option<Index>,
        cx: &Context<'_>,
    ) -> Result<Place, QueueFull> {
        match self.lock().enter(avoid, || cx.waker().clone()) {
            Entered::Slot(index) => Ok(Place::Slot(Some(Slot { upstreams: self.clone(), index }))),
            Entered::Waiting(ticket) => {
                Ok(Place::Line(Waiting { upstreams: self.clone(), ticket: Some(ticket) }))
            }
            Entered::Full => Err(QueueFull),
        }
    }

    /// Wakes everyone in the line: the app will not come back, or it is time to end.
    pub(crate) fn wake_line(&self) {
        let wakers: Vec<Waker> = self.lock().waiters().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Address, requests in flight and slots of each upstream, for `/status`.
    pub(crate) fn status(&self) -> Vec<(String, usize, Option<usize>)> {
        let queue = self.lock();
        let slots = (!self.unbounded).then(|| queue.slots());
        self.addrs
            .iter()
            .enumerate()
            .map(|(i, addr)| (addr.to_string(), queue.in_flight(i as Index), slots))
            .collect()
    }

    fn lock_kept(&self) -> MutexGuard<'_, HashMap<Index, Vec<(Stream, Instant)>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes kept connections that have been idle longer than `limit`.
    pub(crate) fn close_stale(&self, limit: Duration) {
        for kept in self.lock_kept().values_mut() {
            kept.retain(|(_, since)| since.elapsed() < limit);
        }
    }
}

/// The line has its full length.
#[derive(Debug)]
pub(crate) struct QueueFull;

/// A slot, or a place in the line for one.
#[derive(Debug)]
pub(crate) enum Place {
    Slot(Option<Slot>),
    Line(Waiting),
}

impl Place {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Slot> {
        match self {
            Place::Slot(slot) => slot.take().map_or(Poll::Pending, Poll::Ready),
            Place::Line(waiting) => waiting.poll(cx),
        }
    }
}

/// A place in the line.
#[derive(Debug)]
pub(crate) struct Waiting {
    upstreams: Arc<Upstreams>,
    ticket: Option<Ticket>,
}

impl Waiting {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Slot> {
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let mut queue = self.upstreams.lock();
        if let Some(index) = queue.pick_up(ticket) {
            self.ticket = None;
            return Poll::Ready(Slot { upstreams: self.upstreams.clone(), index });
        }
        if let Some(waker) = queue.waiter_mut(ticket) {
            waker.clone_from(cx.waker());
        }
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let next = self.upstreams.lock().leave(ticket);
            next.into_iter().for_each(Waker::wake);
        }
    }
}

/// The right to have one request at the app. Dropping it hands it on (invariant 2: only when the
/// worker is done).
#[derive(Debug)]
pub(crate) struct Slot {
    upstreams: Arc<Upstreams>,
    index: Index,
}

impl Slot {
    pub(crate) fn index(&self) -> Index {
        self.index
    }

    pub(crate) fn addr(&self) -> &UpstreamAddr {
        self.upstreams.addr(self.index)
    }

    /// A connection that was kept in a slot of this upstream and is neither closed nor stale.
    pub(crate) fn take_kept(&self, limit: Duration) -> Option<Stream> {
        loop {
            let (stream, since) = self.upstreams.lock_kept().get_mut(&self.index)?.pop()?;
            let quiet = stream.poll_readable(&mut Context::from_waker(Waker::noop())).is_pending();
            if quiet && since.elapsed() < limit {
                return Some(stream);
            }
        }
    }

    /// Keeps the connection in this slot, which is given up.
    pub(crate) fn keep(self, stream: Stream) {
        self.upstreams.lock_kept().entry(self.index).or_default().push((stream, Instant::now()));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let next = self.upstreams.lock().release(self.index);
        if let Some(waker) = next {
            waker.wake();
        }
    }
}
