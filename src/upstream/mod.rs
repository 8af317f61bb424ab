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
    state: Mutex<State>,
    /// Connections that are kept in free slots (`upstream-keepalive`), newest last.
    kept: Mutex<HashMap<Index, Vec<(Stream, Instant)>>>,
}

#[derive(Debug)]
struct State {
    queue: Queue<Waker>,
    /// By the index of the queue. One that was taken out by a reload stays, without slots.
    addrs: Vec<Arc<UpstreamAddr>>,
    /// Concurrency is off: slots only bound the number, they say nothing of the app.
    unbounded: bool,
}

impl Upstreams {
    pub(crate) fn new(config: &Config) -> Arc<Upstreams> {
        let upstreams = Upstreams {
            state: Mutex::new(State {
                queue: Queue::new(Vec::new(), 0),
                addrs: Vec::new(),
                unbounded: false,
            }),
            kept: Mutex::default(),
        };
        upstreams.reconfigure(config);
        Arc::new(upstreams)
    }

    /// Takes addresses, slots and the queue's length from a configuration. What is under way ends
    /// where it is.
    pub(crate) fn reconfigure(&self, config: &Config) {
        let (each, unbounded) = match config.concurrency {
            Concurrency::Slots(n) => (n, false),
            Concurrency::Off => (config.max_connections, true),
        };
        let mut state = self.lock();
        for addr in &config.upstream {
            if !state.addrs.iter().any(|known| **known == *addr) {
                state.addrs.push(Arc::new(addr.clone()));
            }
        }
        let slots = |addr: &Arc<UpstreamAddr>| {
            if config.upstream.contains(addr) { each } else { 0 }
        };
        let slots = state.addrs.iter().map(slots).collect();
        state.unbounded = unbounded;
        let wakers = state.queue.configure(slots, config.queue);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn only_one(&self) -> bool {
        self.lock().addrs.len() == 1
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not end the queue: its operations are whole or not at all.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(self: &Arc<Self>, state: &State, index: Index) -> Slot {
        let addr = state.addrs[usize::from(index)].clone();
        Slot { upstreams: self.clone(), index, addr }
    }

    /// Asks for a slot. The place in the line, or the slot, is given up when the value is dropped.
    pub(crate) fn enter(
        self: &Arc<Self>,
        avoid: Option<Index>,
        cx: &Context<'_>,
    ) -> Result<Place, QueueFull> {
        let mut state = self.lock();
        match state.queue.enter(avoid, || cx.waker().clone()) {
            Entered::Slot(index) => Ok(Place::Slot(Some(self.slot(&state, index)))),
            Entered::Waiting(ticket) => {
                Ok(Place::Line(Waiting { upstreams: self.clone(), ticket: Some(ticket) }))
            }
            Entered::Full => Err(QueueFull),
        }
    }

    /// Wakes everyone in the line: the app will not come back, or it is time to end.
    pub(crate) fn wake_line(&self) {
        let wakers: Vec<Waker> = self.lock().queue.waiters().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Address, requests in flight and slots of each upstream, for `/status`.
    pub(crate) fn status(&self) -> Vec<(String, usize, Option<usize>)> {
        let state = self.lock();
        let one = |(i, addr): (usize, &Arc<UpstreamAddr>)| {
            let index = i as Index;
            let slots = (!state.unbounded).then(|| state.queue.slots(index));
            (addr.to_string(), state.queue.in_flight(index), slots)
        };
        state.addrs.iter().enumerate().map(one).collect()
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
        let mut state = self.upstreams.lock();
        if let Some(index) = state.queue.pick_up(ticket) {
            self.ticket = None;
            return Poll::Ready(self.upstreams.slot(&state, index));
        }
        if let Some(waker) = state.queue.waiter_mut(ticket) {
            waker.clone_from(cx.waker());
        }
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let next = self.upstreams.lock().queue.leave(ticket);
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
    addr: Arc<UpstreamAddr>,
}

impl Slot {
    pub(crate) fn index(&self) -> Index {
        self.index
    }

    pub(crate) fn addr(&self) -> &UpstreamAddr {
        &self.addr
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
        let next = self.upstreams.lock().queue.release(self.index);
        if let Some(waker) = next {
            waker.wake();
        }
    }
}
