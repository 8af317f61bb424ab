//! Clients that have been idle for a second: no task, no timer, no registration with the runtime. Each
//! is an entry of its loop's table and of the loop's second epoll set, which the runtime watches as
//! one descriptor. A client that sends something is a task again, one that leaves is dropped.
//!
//! The table has them in the order in which they became idle. The first is the next one whose time is
//! over, and the one that makes room above 90 % of `max-connections`.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Dormant, Loop, Phase, connection};
use crate::metrics::METRICS;
use crate::sys;

/// A client that has been idle for so long is parked.
pub(super) const AFTER: Duration = Duration::from_secs(1);
/// Precision of the order; 32 bits of it are 13 years.
const TICK: Duration = Duration::from_millis(100);
/// Events that are taken in one call.
const EVENTS: usize = 64;
/// How often those who are idle and not parked yet are asked to make room.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Since when nobody is idle.
pub(super) const NOBODY: u64 = u64::MAX;

/// The parked connections of one loop.
pub(crate) struct Parked {
    /// Watched by the runtime: readable when something has come of one of them.
    epoll: AsyncFd<OwnedFd>,
    table: RefCell<Table<Dormant>>,
    asked: Cell<Option<Instant>>,
}

impl Parked {
    /// In the runtime of its loop.
    pub(super) fn new() -> io::Result<Parked> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Parked {
            epoll: sys::watch(epoll, Interest::READABLE)?,
            table: RefCell::default(),
            asked: Cell::new(None),
        })
    }

    pub(super) fn number(&self) -> usize {
        self.table.borrow().number
    }
}

/// Parks a connection that is idle since then.
pub(super) fn park(lp: &Rc<Loop>, connection: Dormant, since: Instant) {
    let ticks = since.saturating_duration_since(lp.shared.begun).as_millis() / TICK.as_millis();
    let mut table = lp.parked.table.borrow_mut();
    let place = table.insert(connection, ticks as u32);
    let watched = table.get(place).map_or(Ok(()), |connection| {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        let data = epoll::EventData::new_u64(place.into());
        epoll::add(lp.parked.epoll.get_ref(), &connection.socket, data, flags)
    });
    drop(table);
    publish(lp);
    if let Err(e) = watched {
        // The kernel has no memory for it, or the user no watches left. A task would be idle for
        // long enough at once, and try again, and again.
        lp.shared.say_not_watched(&e.into());
        drop(take(lp, place));
        return;
    }
    relieve(lp);
}

/// Serves those whose clients have sent something, for as long as the loop.
pub(super) async fn run(lp: Rc<Loop>) {
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        tokio::select! {
            readable = lp.parked.epoll.readable() => {
                let Ok(mut readable) = readable else { return };
                let at_once = Some(&Timespec { tv_sec: 0, tv_nsec: 0 });
                let epoll = lp.parked.epoll.get_ref();
                match epoll::wait(epoll, spare_capacity(&mut events), at_once) {
                    Ok(_) if events.is_empty() => readable.clear_ready(),
                    // EINTR: again.
                    _ => {}
                }
                // Nothing is parked meanwhile, so a place is still that of the event, or empty.
                for event in events.drain(..) {
                    sent(&lp, event.data.u64() as Place);
                }
            }
            () = lp.of_loop().crowded.notified() => {
                // Those who are idle and not parked yet do so, and make room then.
                if first(&lp).is_none() { lp.timers.wake_all() } else { relieve(&lp) }
            }
        }
    }
}

/// Something has come of this client, or its end.
fn sent(lp: &Rc<Loop>, place: Place) {
    let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let seen = match lp.parked.table.borrow().get(place) {
        Some(connection) => rustix::net::recv(&connection.socket, &mut [0u8; 1], look),
        None => return,
    };
    match seen {
        Ok((1.., _)) => wake(lp, place),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
        // It has left: no record, nothing to say.
        Ok((0, _)) | Err(_) => drop(take(lp, place)),
    }
}

/// Closes those whose `client-keepalive` is over.
pub(super) fn expire(lp: &Rc<Loop>) {
    let keepalive = lp.settings().config.client_keepalive;
    while let Some((place, ticks)) = first(lp)
        && instant(lp, ticks).elapsed() >= keepalive
    {
        wake(lp, place);
    }
}

/// The process stops: they are closed as all idle connections, or cut.
pub(super) fn phase_changed(lp: &Rc<Loop>) {
    let phase = lp.shared.phase();
    if phase >= Phase::Aborted as u8 {
        lp.parked.table.take();
        publish(lp);
    } else if phase >= Phase::ClosingIdle as u8 {
        while let Some((place, _)) = first(lp) {
            wake(lp, place);
        }
    }
}

/// Above 90 % of `max-connections` whoever has been idle longest makes room, on whatever loop.
pub(super) fn relieve(lp: &Rc<Loop>) {
    let max = lp.settings().config.max_connections;
    while lp.shared.is_crowded(max) {
        let loops = lp.shared.loops.iter().enumerate();
        let longest = loops.map(|(number, l)| (l.idle_since.load(Relaxed), number)).min();
        match (longest, first(lp)) {
            (Some((NOBODY, _)) | None, _) => return ask(lp),
            (Some((_, number)), Some((place, _))) if number == lp.number => {
                // Without lingering: nothing of a request has come, and what was answered the kernel
                // still delivers.
                drop(take(lp, place));
                METRICS.idle_reaped.add(1);
                lp.shared.say_reaped(max);
            }
            (Some((_, number)), _) => return lp.shared.loops[number].crowded.notify_one(),
        }
    }
}

/// Nobody is parked: asks those who are idle for less than a second. All tasks wake for it, so not
/// each time.
fn ask(lp: &Loop) {
    let recently = lp.parked.asked.get().is_some_and(|at| at.elapsed() < ASK_AGAIN);
    if recently {
        return;
    }
    lp.parked.asked.set(Some(Instant::now()));
    for of_loop in &lp.shared.loops {
        of_loop.crowded.notify_one();
    }
}

/// Makes a task of it.
fn wake(lp: &Rc<Loop>, place: Place) {
    if let Some((connection, ticks)) = take(lp, place) {
        // It was added; if that were not so, nothing would be left to take out.
        let _ = epoll::delete(lp.parked.epoll.get_ref(), &connection.socket);
        connection::spawn(lp, connection, instant(lp, ticks));
    }
}

/// Out of the table. Closing its socket takes it out of the epoll set.
fn take(lp: &Loop, place: Place) -> Option<(Dormant, u32)> {
    let taken = lp.parked.table.borrow_mut().remove(place);
    publish(lp);
    taken
}

fn first(lp: &Loop) -> Option<(Place, u32)> {
    lp.parked.table.borrow().first()
}

/// For the other loops.
fn publish(lp: &Loop) {
    let since = first(lp).map_or(NOBODY, |(_, ticks)| ticks.into());
    lp.of_loop().idle_since.store(since, Relaxed);
}

fn instant(lp: &Loop, ticks: u32) -> Instant {
    lp.shared.begun + TICK * ticks
}

/// Index into the table.
type Place = u32;
const NOWHERE: Place = Place::MAX;

/// Entries in one piece of memory, so that what the tasks of idle clients give back is not held in
/// between; linked in the order of their idleness.
struct Table<T> {
    entries: Vec<Entry<T>>,
    number: usize,
    longest: Place,
    shortest: Place,
    /// The first of the free entries, which are linked by `shorter`.
    free: Place,
}

struct Entry<T> {
    connection: Option<T>,
    /// Idle since then, in ticks since the start.
    since: u32,
    longer: Place,
    shorter: Place,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table { entries: Vec::new(), number: 0, longest: NOWHERE, shortest: NOWHERE, free: NOWHERE }
    }
}

impl<T> Table<T> {
    fn insert(&mut self, connection: T, since: u32) -> Place {
        self.number += 1;
        // They mostly come in order.
        let (mut longer, mut shorter) = (self.shortest, NOWHERE);
        while let Some(entry) = self.entries.get(longer as usize)
            && entry.since > since
        {
            (longer, shorter) = (entry.longer, longer);
        }
        let entry = Entry { connection: Some(connection), since, longer, shorter };
        let place = self.free;
        let place = match self.entries.get_mut(place as usize) {
            Some(free) => {
                self.free = std::mem::replace(free, entry).shorter;
                place
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as Place
            }
        };
        *self.shorter_of(longer) = place;
        *self.longer_of(shorter) = place;
        place
    }

    fn get(&self, place: Place) -> Option<&T> {
        self.entries.get(place as usize)?.connection.as_ref()
    }

    /// The one that has been idle longest, and since when.
    fn first(&self) -> Option<(Place, u32)> {
        self.entries.get(self.longest as usize).map(|entry| (self.longest, entry.since))
    }

    fn remove(&mut self, place: Place) -> Option<(T, u32)> {
        let entry = self.entries.get_mut(place as usize)?;
        let connection = entry.connection.take()?;
        self.number -= 1;
        let (since, longer, shorter) = (entry.since, entry.longer, entry.shorter);
        entry.shorter = std::mem::replace(&mut self.free, place);
        *self.shorter_of(longer) = shorter;
        *self.longer_of(shorter) = longer;
        if self.longest == NOWHERE {
            *self = Table::default();
        }
        Some((connection, since))
    }

    /// What follows `place`, or begins the order.
    fn shorter_of(&mut self, place: Place) -> &mut Place {
        self.entries.get_mut(place as usize).map_or(&mut self.longest, |entry| &mut entry.shorter)
    }

    /// What precedes `place`, or ends the order.
    fn longer_of(&mut self, place: Place) -> &mut Place {
        self.entries.get_mut(place as usize).map_or(&mut self.shortest, |entry| &mut entry.longer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use socket2::{Domain, Socket, Type};
    use tokio::sync::watch;

    use super::super::{Counted, shared, start_loop};
    use super::*;
    use crate::config::{Config, LogDestination, Peer};

    #[test]
    fn a_client_that_cannot_be_watched_is_closed() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default())
            .unwrap();
        runtime.block_on(async {
            let config = Config { access_log: LogDestination::Off, ..Config::for_tests() };
            let (_control, phase) = watch::channel(Phase::Open);
            let lp = start_loop(Arc::new(shared(&Arc::new(config)).unwrap()), 0, phase).unwrap();
            let (socket, mut client) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // What is in the set already epoll refuses, as it refuses what it has no memory for.
            let nobody = epoll::EventData::new_u64(NOWHERE.into());
            epoll::add(lp.parked.epoll.get_ref(), &socket, nobody, epoll::EventFlags::ET).unwrap();
            let counted = Counted::new(&lp.shared, 0, 1);
            let connection = Dormant { socket, peer: Peer::Unix, id: 1, requests: 1, counted };
            park(&lp, connection, Instant::now());
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            let connections = lp.of_loop().connections.load(Relaxed);
            assert_eq!((lp.parked.number(), connections), (0, 0));
        });
    }

    #[test]
    fn an_idle_client_is_an_entry_below_100_bytes() {
        assert!(size_of::<Entry<Dormant>>() <= 80, "{}", size_of::<Entry<Dormant>>());
    }

    #[test]
    fn the_table_is_in_the_order_of_idleness_whatever_comes_and_goes() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut table = Table::default();
        let mut model: Vec<(u32, u32, Place)> = Vec::new();
        for n in 0..20_000 {
            match random.usize(..if n % 2000 < 1000 { 5 } else { 2 }) {
                0 if !model.is_empty() => {
                    let (since, id, place) = model.remove(random.usize(..model.len()));
                    assert_eq!(table.remove(place), Some((id, since)));
                    assert!(table.get(place).is_none() && table.remove(place).is_none());
                }
                1 if !model.is_empty() => {
                    let (since, id, place) = model.remove(0);
                    assert_eq!(table.first(), Some((place, since)));
                    assert_eq!(table.remove(place), Some((id, since)));
                }
                _ => {
                    let since = n / 10 + random.u32(..10);
                    let place = table.insert(n, since);
                    assert_eq!(table.get(place), Some(&n));
                    let behind = model.partition_point(|(other, ..)| *other <= since);
                    model.insert(behind, (since, n, place));
                }
            }
            assert_eq!(table.first(), model.first().map(|&(since, _, place)| (place, since)));
        }
        for (since, id, place) in model {
            assert_eq!(table.remove(place), Some((id, since)));
        }
        assert_eq!((table.first(), table.entries.capacity()), (None, 0));
    }
}
