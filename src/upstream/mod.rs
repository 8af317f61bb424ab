//! The app's side: slots with their line (`queue`), connecting, one attempt, the end of a worker
//! whose client has left.

pub(crate) mod attempt;
pub(crate) mod body;
mod connect;
pub(crate) mod discard;
mod histogram;
mod names;
mod prompt;
mod queue;

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::config::{Concurrency, Config, UpstreamAddr};
use crate::net::{self, Stream};
use histogram::Histogram;
use names::Names;
use queue::{Ask, Entered, Index, Queue, Rules, Ticket, Turn, Unreachable};

pub(crate) use connect::{Tried, connect};
pub(crate) use queue::{Refusal, client_key};

/// A free worker accepts long before this.
const ACCEPTED: Duration = Duration::from_secs(1);

/// All upstreams, their slots and the line. Shared by the event loops; the lock is held for
/// nanoseconds and never across an await (invariant 9).
#[derive(Debug)]
pub(crate) struct Upstreams {
    state: Mutex<State>,
    /// Connections that are kept in free slots (`upstream-keepalive`), newest last.
    kept: Mutex<Vec<Vec<Kept>>>,
    names: Names,
}

/// A connection that is kept, since a time and a turn of its loop.
#[derive(Debug)]
struct Kept {
    stream: Stream,
    since: Instant,
    /// Of the loop that watches it. None: it was kept by another one, which cannot tell.
    turn: Option<u64>,
}

#[derive(Debug)]
struct State {
    queue: Queue<Waker>,
    /// By the index of the queue. One that was taken out by a reload stays, without slots.
    addrs: Vec<Arc<UpstreamAddr>>,
    /// Concurrency is off: slots only bound the number, they say nothing of the app.
    unbounded: bool,
    /// The app is a gunicorn of sync or gthread workers, which read what comes in one write whole.
    takes_whole: bool,
    /// Slots that are held, and how many of them since before the last `mark`.
    held: usize,
    older: usize,
    marks: u64,
}

impl Upstreams {
    pub(crate) fn new(config: &Config) -> Arc<Upstreams> {
        let upstreams = Upstreams {
            state: Mutex::new(State {
                queue: Queue::new(rules(config), Instant::now()),
                addrs: Vec::new(),
                unbounded: false,
                takes_whole: false,
                held: 0,
                older: 0,
                marks: 0,
            }),
            kept: Mutex::default(),
            names: Names::default(),
        };
        upstreams.reconfigure(config);
        Arc::new(upstreams)
    }

    /// Takes addresses, slots and the queue's rules from a configuration. What is under way ends
    /// where it is.
    pub(crate) fn reconfigure(&self, config: &Config) {
        let (each, unbounded) = match config.concurrency {
            Concurrency::Slots(n) => (n, false),
            Concurrency::Off => (config.max_connections, true),
        };
        self.change(|state| {
            for addr in &config.upstream {
                if !state.addrs.iter().any(|known| **known == *addr) {
                    state.addrs.push(Arc::new(addr.clone()));
                }
            }
            let slots = |addr: &Arc<UpstreamAddr>| {
                if config.upstream.contains(addr) { each } else { 0 }
            };
            let slots: Vec<usize> = state.addrs.iter().map(slots).collect();
            state.unbounded = unbounded;
            state.takes_whole = config.workers.is_some();
            state.queue.configure(&slots, rules(config), Instant::now());
        });
    }

    /// Other slots from now on, as many at each upstream that has any. What is under way ends.
    pub(crate) fn set_slots(&self, slots: usize) {
        self.change(|state| {
            state.unbounded = false;
            state.queue.set_slots(slots, Instant::now());
        });
    }

    /// Whoever holds a slot now is counted by `older`.
    pub(crate) fn mark(&self) {
        let mut state = self.lock();
        state.marks += 1;
        state.older = state.held;
    }

    /// Requests that have been at the app since before the last `mark`.
    pub(crate) fn older(&self) -> usize {
        self.lock().older
    }

    pub(crate) fn only_one(&self) -> bool {
        self.lock().addrs.len() == 1
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not end the queue: its operations are whole or not at all.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the queue, and wakes whom it names once the lock is free.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let to_wake = state.queue.take_to_wake();
        drop(state);
        to_wake.into_iter().for_each(Waker::wake);
        result
    }

    fn slot(self: &Arc<Self>, state: &mut State, index: Index, ticket: Ticket) -> Slot {
        state.held += 1;
        let addr = state.addrs[usize::from(index)].clone();
        Slot {
            upstreams: self.clone(),
            index,
            ticket,
            tells: state.takes_whole && matches!(*addr, UpstreamAddr::Unix(_)),
            addr,
            trial: Cell::new(state.queue.is_down(index)),
            answered: Cell::new(None),
            unread: Cell::new(false),
            marks: state.marks,
        }
    }

    /// Asks for a slot for a request of this client, if it is known, that is a GET or HEAD (`safe`)
    /// or not. `failed`: the slot that it had and that nothing came of; the request keeps its place.
    /// The place in the line, or the slot, is given up when the value is dropped.
    pub(crate) fn enter(
        self: &Arc<Self>,
        client: Option<IpAddr>,
        safe: bool,
        failed: Option<Slot>,
        cx: &Context<'_>,
    ) -> Result<Place, Refusal> {
        let again = failed.as_ref().map(|slot| (slot.ticket, slot.index));
        drop(failed);
        let ask = Ask { client, safe, again };
        self.change(|state| {
            if let Some((index, ticket)) = state.queue.enter_at_once(again) {
                return Ok(Place::Slot(Some(self.slot(state, index, ticket))));
            }
            match state.queue.enter(ask, Instant::now(), || cx.waker().clone()) {
                Entered::Slot(index, ticket) => {
                    Ok(Place::Slot(Some(self.slot(state, index, ticket))))
                }
                Entered::Waiting(ticket) => {
                    Ok(Place::Line(Waiting { upstreams: self.clone(), ticket: Some(ticket) }))
                }
                Entered::Refused(refusal) => Err(refusal),
            }
        })
    }

    /// Wakes everyone in the line: the app will not come back, or it is time to end.
    pub(crate) fn wake_line(&self) {
        let wakers: Vec<Waker> = self.lock().queue.wakers().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Since when no upstream can be connected to.
    pub(crate) fn down_since(&self) -> Option<Instant> {
        self.lock().queue.down_since()
    }

    /// Median of the last minute's times from a connection to the first byte of the response.
    pub(crate) fn median_service(&self) -> Duration {
        self.lock().queue.median_service()
    }

    /// The waits for a slot since this was last asked.
    pub(crate) fn take_waits(&self) -> Histogram {
        self.lock().queue.take_waits()
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

    /// By the index of the upstream.
    fn lock_kept(&self) -> MutexGuard<'_, Vec<Vec<Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes kept connections that have been idle longer than `limit`.
    pub(crate) fn close_stale(&self, limit: Duration) {
        for kept in self.lock_kept().iter_mut() {
            kept.retain(|kept| kept.since.elapsed() < limit);
        }
    }
}

fn rules(config: &Config) -> Rules {
    let of_client = |share: f64| ((config.queue as f64 * share) as usize).max(1);
    Rules {
        max_waiting: config.queue,
        order: config.queue_order,
        max_of_client: config.queue_share.map(of_client),
    }
}

/// A slot, or a place in the line for one.
#[derive(Debug)]
pub(crate) enum Place {
    Slot(Option<Slot>),
    Line(Waiting),
}

impl Place {
    /// Err: somebody else was given the place.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Slot, Refusal>> {
        match self {
            Place::Slot(slot) => slot.take().map_or(Poll::Pending, |slot| Poll::Ready(Ok(slot))),
            Place::Line(waiting) => waiting.poll(cx),
        }
    }

    /// There was no slot at once.
    pub(crate) fn is_line(&self) -> bool {
        matches!(self, Place::Line(_))
    }
}

/// A place in the line.
#[derive(Debug)]
pub(crate) struct Waiting {
    upstreams: Arc<Upstreams>,
    ticket: Option<Ticket>,
}

impl Waiting {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Slot, Refusal>> {
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let mut state = self.upstreams.lock();
        let Some(turn) = state.queue.turn(ticket) else {
            if let Some(waker) = state.queue.waker_mut(ticket) {
                waker.clone_from(cx.waker());
            }
            return Poll::Pending;
        };
        self.ticket = None;
        Poll::Ready(match turn {
            Turn::Slot(index) => Ok(self.upstreams.slot(&mut state, index, ticket)),
            Turn::Refused(refusal) => Err(refusal),
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.upstreams.change(|state| state.queue.leave(ticket, Instant::now()));
        }
    }
}

/// The right to have one request at the app. Dropping it hands it on (invariant 2: only when the
/// worker is done).
#[derive(Debug)]
pub(crate) struct Slot {
    upstreams: Arc<Upstreams>,
    index: Index,
    ticket: Ticket,
    addr: Arc<UpstreamAddr>,
    /// The upstream was down when this was given: the request finds out whether it still is.
    trial: Cell<bool>,
    /// How long the app took to answer, if it did, and when that was.
    answered: Cell<Option<(Duration, Instant)>>,
    /// It can be known whether a worker has taken the request.
    tells: bool,
    /// No worker has taken the request for longer than a worker takes.
    unread: Cell<bool>,
    /// Marks at the time that it was given.
    marks: u64,
}

impl Slot {
    pub(crate) fn index(&self) -> Index {
        self.index
    }

    pub(crate) fn addr(&self) -> &UpstreamAddr {
        &self.addr
    }

    fn names(&self) -> &Names {
        &self.upstreams.names
    }

    /// The app has answered now, this long after it was connected to.
    pub(crate) fn answered(&self, took: Duration, now: Instant) {
        self.answered.set(Some((took, now)));
    }

    /// When to look whether a worker has taken a request that is sent `now`. None: it cannot be known.
    pub(crate) fn look_at(&self, now: Instant) -> Option<Instant> {
        self.tells.then(|| now + ACCEPTED)
    }

    /// Whether the request waits for a worker, where there should be one: as long as it does, one slot
    /// less is given.
    pub(crate) fn set_unread(&self, unread: bool) {
        if self.unread.replace(unread) != unread {
            self.upstreams
                .change(|state| state.queue.set_unread(self.index, unread, Instant::now()));
        }
    }

    pub(crate) fn is_unread(&self) -> bool {
        self.unread.get()
    }

    /// Connecting has failed, which took this long to know.
    fn unreachable(&self, took: Duration) -> Unreachable {
        self.trial.set(true);
        let (was_down, todo) = self.upstreams.change(|state| {
            let was_down = state.queue.down_since().is_some();
            (was_down, state.queue.unreachable(self.index, self.ticket, took, Instant::now()))
        });
        if !was_down {
            // Those who wait now do so at most for connect-retry.
            self.upstreams.wake_line();
        }
        todo
    }

    /// Connecting has succeeded.
    fn reachable(&self) {
        if self.trial.take() {
            self.upstreams.change(|state| state.queue.reachable(self.index, Instant::now()));
        }
    }

    /// A connection that was kept in a slot of this upstream and is neither closed nor stale.
    pub(crate) fn take_kept(&self, limit: Duration, now: Instant) -> Option<Stream> {
        loop {
            let index = usize::from(self.index);
            let kept = {
                let mut all = self.upstreams.lock_kept();
                let kept = all.get_mut(index)?;
                // Another loop would have to wake this one for each answer.
                let own = |kept: &Kept| kept.stream.is_watched_here();
                // Of one that lies here since before this turn the loop knows whether it is quiet.
                let earlier = |turn| turn != net::turn();
                let known =
                    kept.iter().rposition(|kept| own(kept) && kept.turn.is_some_and(earlier));
                let newest = kept.len().checked_sub(1)?;
                kept.remove(known.or_else(|| kept.iter().rposition(own)).unwrap_or(newest))
            };
            if now - kept.since < limit && kept.stream.is_quiet_since(kept.turn) {
                return Some(kept.stream);
            }
        }
    }

    /// Keeps the connection in this slot, which is given up.
    pub(crate) fn keep(self, stream: Stream, now: Instant) {
        // Or it would not be seen that the app closes it.
        if stream.watch().is_err() {
            return;
        }
        let index = usize::from(self.index);
        let mut kept = self.upstreams.lock_kept();
        if kept.len() <= index {
            kept.resize_with(index + 1, Vec::new);
        }
        let turn = stream.is_watched_here().then(net::turn);
        kept[index].push(Kept { stream, since: now, turn });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.set_unread(false);
        let answered = self.answered.get();
        self.upstreams.change(|state| {
            state.held -= 1;
            state.older -= usize::from(self.marks < state.marks);
            state.queue.release(self.index, self.ticket, answered, Instant::now);
        });
    }
}
