//! Clients that have been idle for a second: no task, no timer, no registration with the runtime. Each
//! is an entry of its loop's table and of the loop's second epoll set, which the runtime watches as
//! one descriptor. A client that sends something is a task again, one that leaves is dropped.
//!
//! The table has them in the order in which they became idle. The first is the next one whose time is
//! over, and the one that makes room above 90 % of `max-connections`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
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

use super::{Dormant, Loop, Phase, Shared, connection};
use crate::metrics::METRICS;
use crate::sys;

/// A client that has been idle for so long is parked.
pub(super) const AFTER: Duration = Duration::from_secs(1);
/// Precision of the order.
const TICK: Duration = Duration::from_millis(100);
/// Events that are taken in one call.
const EVENTS: usize = 64;
/// How often those who are idle and not parked yet are asked to make room.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The key of nobody.
pub(super) const NOBODY: u64 = u64::MAX;

/// The parked connections of one loop.
pub(crate) struct Parked {
    /// Watched by the runtime: readable when something has come of one of them.
    epoll: AsyncFd<OwnedFd>,
    /// By the tick since which they are idle (upper half) and their id.
    table: RefCell<BTreeMap<u64, Dormant>>,
    asked: Cell<Option<Instant>>,
}

impl Parked {
    /// In the runtime of its loop.
    pub(super) fn new() -> io::Result<Parked> {
        Ok(Parked {
            epoll: sys::watch(epoll::create(epoll::CreateFlags::CLOEXEC)?, Interest::READABLE)?,
            table: RefCell::default(),
            asked: Cell::new(None),
        })
    }

    fn is_empty(&self) -> bool {
        self.table.borrow().is_empty()
    }
}

/// Parks a connection that is idle since then.
pub(super) fn park(lp: &Rc<Loop>, connection: Dormant, since: Instant) {
    let key = key(&lp.shared, since, connection.id);
    let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
    let data = epoll::EventData::new_u64(key);
    if epoll::add(lp.parked.epoll.get_ref(), &connection.socket, data, flags).is_err() {
        // The kernel has no memory for it. Then it stays a task, which tries again.
        return connection::spawn(lp, connection, since);
    }
    lp.parked.table.borrow_mut().insert(key, connection);
    publish_first(lp);
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
                match epoll::wait(lp.parked.epoll.get_ref(), spare_capacity(&mut events), at_once) {
                    Ok(_) if events.is_empty() => readable.clear_ready(),
                    // EINTR: again.
                    _ => {}
                }
                for event in events.drain(..) {
                    sent(&lp, event.data.u64());
                }
            }
            () = lp.of_loop().crowded.notified() => {
                // Those who are idle and not parked yet do so, and make room then.
                if lp.parked.is_empty() { lp.timers.wake_all() } else { relieve(&lp) }
            }
        }
    }
}

/// Something has come of this client, or its end.
fn sent(lp: &Rc<Loop>, key: u64) {
    let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let seen = match lp.parked.table.borrow().get(&key) {
        Some(connection) => rustix::net::recv(&connection.socket, &mut [0u8; 1], look),
        None => return,
    };
    match seen {
        Ok((1.., _)) => wake(lp, key),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
        // It has left: no record, nothing to say.
        Ok((0, _)) | Err(_) => drop(take(lp, key)),
    }
}

/// Closes those whose `client-keepalive` is over.
pub(super) fn expire(lp: &Rc<Loop>) {
    let keepalive = lp.settings().config.client_keepalive;
    while let Some(key) = first(lp)
        && since(&lp.shared, key).elapsed() >= keepalive
    {
        wake(lp, key);
    }
}

/// The process stops: they are closed as all idle connections, or cut.
pub(super) fn phase_changed(lp: &Rc<Loop>) {
    let phase = lp.shared.phase();
    if phase >= Phase::Aborted as u8 {
        lp.parked.table.take();
        publish_first(lp);
    } else if phase >= Phase::ClosingIdle as u8 {
        while let Some(key) = first(lp) {
            wake(lp, key);
        }
    }
}

/// Above 90 % of `max-connections` whoever has been idle longest makes room, on whatever loop.
pub(super) fn relieve(lp: &Rc<Loop>) {
    let max = lp.settings().config.max_connections;
    while lp.shared.is_crowded(max) {
        let oldest = |of_loop: &super::OfLoop| of_loop.longest_idle.load(Relaxed);
        let loops = lp.shared.loops.iter().enumerate();
        let Some((key, number)) = loops.map(|(number, l)| (oldest(l), number)).min() else {
            return;
        };
        if key == NOBODY {
            return ask(lp);
        }
        if number != lp.number {
            return lp.shared.loops[number].crowded.notify_one();
        }
        // Without lingering: nothing of a request has come, and what was answered the kernel still
        // delivers.
        if take(lp, key).is_none() {
            return;
        }
        METRICS.idle_reaped.add(1);
        lp.shared.say_reaped(max);
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
fn wake(lp: &Rc<Loop>, key: u64) {
    if let Some(connection) = take(lp, key) {
        let _ = epoll::delete(lp.parked.epoll.get_ref(), &connection.socket);
        connection::spawn(lp, connection, since(&lp.shared, key));
    }
}

/// Out of the table. Closing its socket takes it out of the epoll set.
fn take(lp: &Loop, key: u64) -> Option<Dormant> {
    let taken = lp.parked.table.borrow_mut().remove(&key);
    publish_first(lp);
    taken
}

fn first(lp: &Loop) -> Option<u64> {
    lp.parked.table.borrow().first_key_value().map(|(&key, _)| key)
}

/// For the other loops.
fn publish_first(lp: &Loop) {
    lp.of_loop().longest_idle.store(first(lp).unwrap_or(NOBODY), Relaxed);
}

fn key(shared: &Shared, since: Instant, id: u64) -> u64 {
    let ticks = since.saturating_duration_since(shared.begun).as_millis() / TICK.as_millis();
    // For 13 years; two of the same tick are not 2^32 connections apart.
    (ticks as u64) << 32 | id & u64::from(u32::MAX)
}

fn since(shared: &Shared, key: u64) -> Instant {
    shared.begun + TICK * (key >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_client_is_an_entry_below_100_bytes() {
        assert!(size_of::<Dormant>() <= 72, "{}", size_of::<Dormant>());
    }
}
