//! Deadlines of connections: one coarse timer (100 ms) for each connection task, in a table of the
//! event loop. Moving a deadline is a store; the table is touched only when a deadline comes nearer
//! than the entry that is already there. (A tokio `Sleep` for each read would take the runtime's
//! timer lock twice for each request.)
//!
//! A timer does not carry a future: when it fires, the connection's task is woken, and whoever waits
//! in it looks at `expired`. The same table wakes all connections when the phase changes.
//!
//! It is also the loop's clock: read once for each time that a task runs, which is microseconds.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

const TICK: Duration = Duration::from_millis(100);
const OFF: u64 = u64::MAX;

/// The timers of one event loop.
pub(crate) struct Timers {
    origin: Instant,
    /// When the task that runs now began to.
    now: Cell<Instant>,
    /// The time of day at an instant not long ago.
    wall: Cell<(Instant, SystemTime)>,
    queue: RefCell<BTreeMap<(u64, u64), Rc<Entry>>>,
    /// Every connection, for `wake_all`.
    all: RefCell<BTreeMap<u64, Rc<Entry>>>,
    next_id: Cell<u64>,
    /// Told when the earliest entry has come nearer.
    nearer: Notify,
}

struct Entry {
    id: u64,
    /// Ticks since the origin; OFF: none.
    deadline: Cell<u64>,
    /// Key in the queue; OFF: not in it.
    queued: Cell<u64>,
    waker: RefCell<Option<Waker>>,
    /// It waits and holds memory: to be woken by `wake_holders`.
    holds: Cell<bool>,
}

impl Timers {
    pub(crate) fn new() -> Rc<Timers> {
        let origin = Instant::now();
        Rc::new(Timers {
            origin,
            now: Cell::new(origin),
            wall: Cell::new((origin, SystemTime::now())),
            queue: RefCell::default(),
            all: RefCell::default(),
            next_id: Cell::new(0),
            nearer: Notify::new(),
        })
    }

    fn ticks(&self, at: Instant) -> u64 {
        const PER_SECOND: u64 = 1000 / TICK.as_millis() as u64;
        let since = at.saturating_duration_since(self.origin);
        since.as_secs() * PER_SECOND + u64::from(since.subsec_nanos() / TICK.subsec_nanos())
    }

    /// When the task that runs now began to. Only tasks with a `Timer` may ask.
    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    /// The time of day then. A clock that was set is noticed within a tick.
    pub(crate) fn wall(&self) -> SystemTime {
        let now = self.now();
        let (at, wall) = self.wall.get();
        let since = now.saturating_duration_since(at);
        if since < TICK
            && let Some(wall) = wall.checked_add(since)
        {
            return wall;
        }
        let wall = SystemTime::now();
        self.wall.set((now, wall));
        wall
    }

    /// Reads the clock.
    pub(crate) fn refresh(&self) -> Instant {
        let now = Instant::now();
        self.now.set(now);
        now
    }

    /// Fires timers as they come due. Runs as a task of the loop for as long as the loop.
    pub(crate) async fn run(&self) {
        loop {
            let first = self.queue.borrow().first_key_value().map(|(&(tick, _), _)| tick);
            let Some(tick) = first else {
                self.nearer.notified().await;
                continue;
            };
            // One tick later than the entry: by then the deadline itself has passed.
            let at = self.origin + TICK * u32::try_from(tick + 1).unwrap_or(u32::MAX);
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => self.fire(),
                () = self.nearer.notified() => {}
            }
        }
    }

    fn fire(&self) {
        let now = self.ticks(self.refresh());
        loop {
            let mut queue = self.queue.borrow_mut();
            match queue.first_entry() {
                Some(first) if first.key().0 < now => {
                    let entry = first.remove();
                    entry.queued.set(OFF);
                    if entry.deadline.get() < now {
                        drop(queue);
                        entry.wake();
                    } else if entry.deadline.get() != OFF {
                        // It was moved on since: queue it where it belongs now.
                        entry.queued.set(entry.deadline.get());
                        queue.insert((entry.deadline.get(), entry.id), entry);
                    }
                }
                _ => return,
            }
        }
    }

    /// Wakes every connection of this loop.
    pub(crate) fn wake_all(&self) {
        let entries: Vec<Rc<Entry>> = self.all.borrow().values().cloned().collect();
        for entry in entries {
            entry.wake();
        }
    }

    /// Wakes the connections that have said since they were last woken that they hold memory.
    pub(crate) fn wake_holders(&self) {
        for entry in self.all.borrow().values().filter(|entry| entry.holds.take()) {
            entry.wake();
        }
    }
}

impl Entry {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

/// The timer of one connection.
pub(crate) struct Timer {
    timers: Rc<Timers>,
    entry: Rc<Entry>,
    at: Cell<Option<Instant>>,
}

impl Timer {
    pub(crate) fn new(timers: &Rc<Timers>) -> Timer {
        let id = timers.next_id.get();
        timers.next_id.set(id + 1);
        let entry = Rc::new(Entry {
            id,
            deadline: Cell::new(OFF),
            queued: Cell::new(OFF),
            waker: RefCell::new(None),
            holds: Cell::new(false),
        });
        timers.all.borrow_mut().insert(id, entry.clone());
        Timer { timers: timers.clone(), entry, at: Cell::new(None) }
    }

    /// The task's waker; called whenever the task begins to run, before anything else of it.
    pub(crate) fn register(&self, waker: &Waker) {
        self.timers.refresh();
        let mut slot = self.entry.waker.borrow_mut();
        match &mut *slot {
            Some(old) => old.clone_from(waker),
            None => *slot = Some(waker.clone()),
        }
    }

    /// This connection waits and holds memory.
    pub(crate) fn hold(&self) {
        self.entry.holds.set(true);
    }

    /// The deadline is `after` from now. Fires at most two ticks late.
    pub(crate) fn set(&self, after: Duration) {
        self.set_at(self.now() + after);
    }

    /// When the task began to run.
    pub(crate) fn now(&self) -> Instant {
        self.timers.now()
    }

    pub(crate) fn set_at(&self, at: Instant) {
        self.at.set(Some(at));
        let tick = self.timers.ticks(at);
        self.entry.deadline.set(tick);
        let queued = self.entry.queued.get();
        if tick >= queued {
            return;
        }
        let mut queue = self.timers.queue.borrow_mut();
        if queued != OFF {
            queue.remove(&(queued, self.entry.id));
        }
        let first = queue.first_key_value().is_none_or(|(&(first, _), _)| tick < first);
        self.entry.queued.set(tick);
        queue.insert((tick, self.entry.id), self.entry.clone());
        drop(queue);
        if first {
            self.timers.nearer.notify_one();
        }
    }

    pub(crate) fn clear(&self) {
        self.at.set(None);
        self.entry.deadline.set(OFF);
    }

    /// The deadline has passed.
    pub(crate) fn expired(&self) -> bool {
        self.at.get().is_some_and(|at| self.now() >= at)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.timers.all.borrow_mut().remove(&self.entry.id);
        let queued = self.entry.queued.get();
        if queued != OFF {
            self.timers.queue.borrow_mut().remove(&(queued, self.entry.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Poll;

    async fn wait(timer: &Timer) {
        poll_fn(|cx| {
            timer.register(cx.waker());
            if timer.expired() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn local<F: Future>(f: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, f)
    }

    #[test]
    fn a_deadline_that_came_nearer_fires_at_the_nearer_time() {
        local(async {
            let timers = Timers::new();
            let driver = timers.clone();
            tokio::task::spawn_local(async move { driver.run().await });
            let timer = Timer::new(&timers);
            timer.set(Duration::from_secs(1000));
            tokio::task::yield_now().await;
            timer.set(Duration::from_millis(1));
            wait(&timer).await;
        });
    }

    #[test]
    fn a_deadline_that_was_moved_on_does_not_fire_at_the_old_time() {
        let timers = Timers::new();
        let timer = Timer::new(&timers);
        timer.set_at(timers.origin + Duration::from_millis(1));
        timers.refresh();
        timer.set(Duration::from_secs(1000));
        assert_eq!(timers.queue.borrow().len(), 1);
        while timers.ticks(Instant::now()) < 2 {
            std::thread::sleep(Duration::from_millis(10));
        }
        timers.fire();
        assert!(!timer.expired());
        let first = timers.queue.borrow().keys().next().copied();
        assert!(first.is_some_and(|(tick, _)| tick > 9000));
    }

    #[test]
    fn the_time_of_day_goes_with_the_clock_and_follows_one_that_was_set() {
        let timers = Timers::new();
        let start = timers.now();
        let day = Duration::from_secs(86_400);
        timers.wall.set((start, SystemTime::now() - day));
        timers.now.set(start + TICK / 2);
        assert_eq!(timers.wall(), timers.wall.get().1 + TICK / 2);
        timers.now.set(start + TICK);
        assert!(timers.wall() > SystemTime::now() - day / 2);
    }

    #[test]
    fn a_dropped_timer_leaves_nothing_behind() {
        let timers = Timers::new();
        let timer = Timer::new(&timers);
        timer.set(Duration::from_secs(5));
        timer.set(Duration::from_secs(2));
        drop(timer);
        assert!(timers.queue.borrow().is_empty());
        assert!(timers.all.borrow().is_empty());
    }
}
