//! Slots and the line in front of them. Pure: no socket, no clock, no waker; `upstream` wraps it in
//! a lock, passes the time in and wakes whom it names.
//!
//! A slot is the right to have one request at the app. A slot that becomes free goes to the next in
//! line; a request that leaves the line leaves no trace. Who is next: the one that has waited longest,
//! as long as that loses nobody; the newest once the line stands and clients leave it (`judge`).
//! Serving in order then would give each worker to clients that are about to leave, and nobody an
//! answer in time.
//!
//! An upstream that refuses connections is down: it gets one request at a time, which tries.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::histogram::Histogram;
use crate::config::QueueOrder;

/// Index of an upstream.
pub(crate) type Index = u16;

/// A request's place in the order of coming. It keeps it when it has to ask for another slot.
pub(crate) type Ticket = u64;

/// Waits below this are no standing line.
const TARGET: Duration = Duration::from_millis(100);
/// For this long all waits must have been above the target.
const INTERVAL: Duration = Duration::from_millis(200);
/// A standing line whose waits have grown by this, and by so many times what a request usually takes,
/// is an overload even if nobody has left it: below capacity chance does not make such a line.
const LONG: Duration = Duration::from_secs(3);
const LONG_SERVICES: u32 = 30;
/// A line that stands again so soon after it was served newest first is the same overload.
const SAME_OVERLOAD: Duration = Duration::from_secs(10);

/// First pause of an upstream that is down while others are up; it doubles if failing takes time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A connect that fails faster than this costs its request nothing.
const AT_ONCE: Duration = Duration::from_millis(100);

/// How often the median service time is worked out, and what it is made of.
const MEDIAN_EVERY: Duration = Duration::from_secs(1);
const HALF: Duration = Duration::from_secs(30);

/// What does not depend on the upstreams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Requests that may wait.
    pub(crate) max_waiting: usize,
    pub(crate) order: QueueOrder,
    /// Of them one client's, while others wait; None: all.
    pub(crate) max_of_client: Option<usize>,
}

/// Who asks for a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ask {
    /// None: it is not known who it is.
    pub(crate) client: Option<IpAddr>,
    /// May be the one that finds out whether an upstream is up again: GET or HEAD.
    pub(crate) safe: bool,
    /// It has had a slot already, by this ticket, and nothing came of it at this upstream, which is
    /// taken only when no other has a free slot.
    pub(crate) again: Option<(Ticket, Index)>,
}

/// What `enter` found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    /// A slot at this upstream is yours.
    Slot(Index, Ticket),
    Waiting(Ticket),
    Refused(Refusal),
}

/// Why there is no slot, nor a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The line has its full length.
    Full,
    /// A newer request has taken the place.
    Shed,
    /// This client has its share of the line.
    Share,
}

/// What became of a place in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Slot(Index),
    Refused(Refusal),
}

/// What the holder of a slot does whose connect has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// Nothing else is up: it is the one that tries again.
    TryAgain,
    /// Gives its slot back and asks again.
    Move,
}

/// The slots of all upstreams and one line in front of them. `W` is what a waiter is woken by.
#[derive(Debug)]
pub(crate) struct Queue<W> {
    /// One that was taken out stays, without slots: what is at it ends there.
    upstreams: Vec<Upstream>,
    rules: Rules,
    next: Ticket,
    /// Who waits, longest first.
    line: BTreeMap<Ticket, Waiter<W>>,
    /// Who does not wait any more and has not seen it yet.
    called: BTreeMap<Ticket, Turn>,
    /// To be woken by the caller.
    to_wake: Vec<W>,
    /// Places in line by client, where clients have a share.
    of_client: HashMap<IpAddr, usize>,
    /// Holds more than its share, as long as it waits alone.
    above_share: Option<IpAddr>,
    newest_first: bool,
    /// When newest first was given up last.
    in_order_since: Option<Instant>,
    /// None: the last wait was below the target.
    standing: Option<Standing>,
    /// Who came before this one came while nothing could be dispatched, or before that: the line that
    /// came of it says nothing about the load.
    after_stall: Ticket,
    service: Service,
    /// Waits for a slot since they were last taken, of those who have left, too.
    waits: Histogram,
}

/// A line in which all waits are above the target.
#[derive(Debug)]
struct Standing {
    since: Instant,
    first_wait: Duration,
    /// Somebody has left it, or was not let in.
    lost: bool,
}

#[derive(Debug)]
struct Upstream {
    /// 0: nothing goes there any more.
    slots: usize,
    in_flight: usize,
    /// Of them, those that no worker has taken: so many slots are not a worker's.
    unread: usize,
    health: Health,
}

impl Upstream {
    fn has_free_slot(&self) -> bool {
        self.in_flight + self.unread < self.slots
    }
}

#[derive(Clone, Copy, Debug)]
enum Health {
    Up,
    Down { since: Instant, pause: Duration, again: Instant, trying: Option<Ticket> },
}

#[derive(Debug)]
struct Waiter<W> {
    wake: W,
    since: Instant,
    client: Option<IpAddr>,
    safe: bool,
}

impl<W> Queue<W> {
    /// Without upstreams.
    pub(crate) fn new(rules: Rules, now: Instant) -> Queue<W> {
        Queue {
            upstreams: Vec::new(),
            rules,
            next: 0,
            line: BTreeMap::new(),
            called: BTreeMap::new(),
            to_wake: Vec::new(),
            of_client: HashMap::new(),
            above_share: None,
            newest_first: false,
            in_order_since: None,
            standing: None,
            after_stall: 0,
            service: Service::new(now),
            waits: Histogram::default(),
        }
    }

    /// A slot, if nobody waits and all upstreams that have any are up. What most requests come through,
    /// without the time.
    pub(crate) fn enter_at_once(
        &mut self,
        again: Option<(Ticket, Index)>,
    ) -> Option<(Index, Ticket)> {
        let up = |upstream: &Upstream| upstream.slots == 0 || matches!(upstream.health, Health::Up);
        if !self.line.is_empty() || !self.upstreams.iter().all(up) {
            return None;
        }
        let index = self.least_in_flight(again.map(|(_, index)| index), |_| true)?;
        Some(self.take_at_once(index, again))
    }

    /// Nobody is overtaken: where a line stands, there is no free slot.
    fn take_at_once(&mut self, index: Index, again: Option<(Ticket, Index)>) -> (Index, Ticket) {
        let ticket = self.ticket(again);
        self.take(index, ticket);
        self.waits.add(Duration::ZERO);
        (index, ticket)
    }

    /// The one that it has, or the next.
    fn ticket(&mut self, again: Option<(Ticket, Index)>) -> Ticket {
        again.map(|(ticket, _)| ticket).unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// A slot, a place in the line, or neither.
    pub(crate) fn enter(&mut self, ask: Ask, now: Instant, wake: impl FnOnce() -> W) -> Entered {
        if self.line.is_empty() {
            if let Some(index) = self.free(ask.again.map(|(_, index)| index), ask.safe, now) {
                let (index, ticket) = self.take_at_once(index, ask.again);
                return Entered::Slot(index, ticket);
            }
            if std::mem::take(&mut self.newest_first) {
                self.in_order_since = Some(now);
            }
            self.standing = None;
        }
        if ask.again.is_none()
            && let Some(refusal) = self.make_room(ask.client, now)
        {
            return Entered::Refused(refusal);
        }
        let ticket = self.ticket(ask.again);
        let client = ask.client.filter(|_| self.rules.max_of_client.is_some());
        self.line.insert(ticket, Waiter { wake: wake(), since: now, client, safe: ask.safe });
        self.count(client);
        // A pause may be over, and nobody was there to see it.
        self.dispatch(now);
        Entered::Waiting(ticket)
    }

    /// Makes room for one more of this client in the line, or says why not.
    fn make_room(&mut self, client: Option<IpAddr>, now: Instant) -> Option<Refusal> {
        let waiting = self.line.len();
        if let (Some(client), Some(most)) = (client, self.rules.max_of_client) {
            let own = self.of_client.get(&client).copied().unwrap_or_default();
            if own >= most && own < waiting {
                return Some(Refusal::Share);
            }
        }
        if let Some(above) = self.above_share.filter(|&above| Some(above) != client) {
            self.cut_to_share(above, now);
        }
        if self.line.len() < self.rules.max_waiting {
            return None;
        }
        match self.line.first_key_value() {
            Some((&oldest, _)) if self.newest_first => {
                self.call(oldest, Turn::Refused(Refusal::Shed), now);
                None
            }
            _ => {
                self.loses();
                Some(Refusal::Full)
            }
        }
    }

    fn count(&mut self, client: Option<IpAddr>) {
        if let (Some(client), Some(most)) = (client, self.rules.max_of_client) {
            let own = self.of_client.entry(client).or_default();
            *own += 1;
            if *own > most {
                self.above_share = Some(client);
            }
        }
    }

    /// Others come now: this client keeps its share, and what it loses is what would go last.
    fn cut_to_share(&mut self, client: IpAddr, now: Instant) {
        self.above_share = None;
        let most = self.rules.max_of_client.unwrap_or(usize::MAX);
        let own = self.line.iter().filter(|(_, waiter)| waiter.client == Some(client));
        let mut own: Vec<Ticket> = own.map(|(&ticket, _)| ticket).collect();
        if self.newest_first {
            own.reverse();
        }
        for &ticket in own.iter().skip(most) {
            self.call(ticket, Turn::Refused(Refusal::Share), now);
        }
    }

    /// Takes one out of the line.
    fn remove(&mut self, ticket: Ticket) -> Option<Waiter<W>> {
        let waiter = self.line.remove(&ticket)?;
        if let Some(client) = waiter.client
            && let Some(own) = self.of_client.get_mut(&client)
        {
            *own -= 1;
            if *own == 0 {
                self.of_client.remove(&client);
            }
        }
        Some(waiter)
    }

    /// Ends a wait. Gives its length.
    fn call(&mut self, ticket: Ticket, turn: Turn, now: Instant) -> Duration {
        let Some(waiter) = self.remove(ticket) else { return Duration::ZERO };
        let waited = now - waiter.since;
        self.waits.add(waited);
        self.called.insert(ticket, turn);
        self.to_wake.push(waiter.wake);
        waited
    }

    /// The upstream with the fewest requests that has a free slot; chance breaks a tie. One that is
    /// due for a try comes first for a request that may be it.
    fn free(&self, avoid: Option<Index>, safe: bool, now: Instant) -> Option<Index> {
        let down = self.down_since().is_some();
        let may = |upstream: &Upstream| match upstream.health {
            Health::Up => true,
            Health::Down { trying: Some(_), .. } => false,
            Health::Down { again, .. } => down || safe && now >= again,
        };
        self.least_in_flight(avoid, may)
    }

    fn least_in_flight(
        &self,
        avoid: Option<Index>,
        may: impl Fn(&Upstream) -> bool,
    ) -> Option<Index> {
        let may = |upstream: &Upstream| upstream.has_free_slot() && may(upstream);
        if let [only] = &self.upstreams[..] {
            return may(only).then_some(0);
        }
        let candidates = self.upstreams.iter().zip(0..).filter(|(upstream, _)| may(upstream));
        candidates
            .min_by_key(|(upstream, index)| {
                let up = matches!(upstream.health, Health::Up);
                (avoid == Some(*index), up, upstream.in_flight, fastrand::u32(..))
            })
            .map(|(_, index)| index)
    }

    fn take(&mut self, index: Index, ticket: Ticket) {
        let upstream = &mut self.upstreams[usize::from(index)];
        upstream.in_flight += 1;
        if let Health::Down { trying, .. } = &mut upstream.health {
            *trying = Some(ticket);
        }
    }

    /// Hands free slots to those who are next.
    fn dispatch(&mut self, now: Instant) {
        while let Some((ticket, index)) = self.next_with_slot(now) {
            self.take(index, ticket);
            let waited = self.call(ticket, Turn::Slot(index), now);
            self.judge(ticket, waited, now);
        }
    }

    fn next_with_slot(&self, now: Instant) -> Option<(Ticket, Index)> {
        if let Some(index) = self.free(None, false, now) {
            let (&ticket, _) = match self.newest_first {
                true => self.line.last_key_value()?,
                false => self.line.first_key_value()?,
            };
            return Some((ticket, index));
        }
        let index = self.free(None, true, now)?;
        let mut safe = self.line.iter().filter(|(_, waiter)| waiter.safe);
        let next = if self.newest_first { safe.next_back() } else { safe.next() };
        next.map(|(&ticket, _)| (ticket, index))
    }

    /// CoDel's test of a standing queue (RFC 8289), on the wait of each who goes: for an interval all
    /// waited longer than the target. Chance makes such lines below capacity, too, and they drain:
    /// so that they keep their order, a line turns round only when it has lost somebody or grows
    /// beyond chance. As in CoDel, an overload that comes back soon is judged at once.
    fn judge(&mut self, ticket: Ticket, waited: Duration, now: Instant) {
        if self.newest_first || self.rules.order == QueueOrder::Fifo {
            return;
        }
        if waited < TARGET || ticket < self.after_stall || self.down_since().is_some() {
            self.standing = None;
            return;
        }
        let new = || Standing { since: now, first_wait: waited, lost: false };
        let standing = self.standing.get_or_insert_with(new);
        let grown = waited.saturating_sub(standing.first_wait);
        let long = grown >= LONG.max(self.service.median * LONG_SERVICES);
        let again = self.in_order_since.is_some_and(|since| now - since < SAME_OVERLOAD);
        let stands = now - standing.since >= INTERVAL;
        self.newest_first = stands && (standing.lost || long || again);
    }

    /// Somebody has left the line unserved, or was not let in.
    fn loses(&mut self) {
        if let Some(standing) = &mut self.standing {
            standing.lost = true;
        }
    }

    /// A request has ended at its upstream. `answered`: how long the app took, if it did, and when.
    /// `now` is asked only where somebody waits.
    pub(crate) fn release(
        &mut self,
        index: Index,
        ticket: Ticket,
        answered: Option<(Duration, Instant)>,
        now: impl FnOnce() -> Instant,
    ) {
        let upstream = &mut self.upstreams[usize::from(index)];
        upstream.in_flight -= 1;
        if let Health::Down { trying, .. } = &mut upstream.health
            && *trying == Some(ticket)
        {
            *trying = None;
            if answered.is_some() {
                // By a connection that was kept.
                self.is_up(index);
            }
        }
        if let Some((took, at)) = answered {
            self.service.add(took, at);
        }
        if !self.line.is_empty() {
            self.dispatch(now());
        }
    }

    /// The holder of this slot cannot connect; it took this long to know.
    pub(crate) fn unreachable(
        &mut self,
        index: Index,
        ticket: Ticket,
        took: Duration,
        now: Instant,
    ) -> Unreachable {
        let health = &mut self.upstreams[usize::from(index)].health;
        let again = now + FIRST_PAUSE;
        match health {
            Health::Up => {
                *health = Health::Down { since: now, pause: FIRST_PAUSE, again, trying: None };
            }
            Health::Down { pause, again, trying, .. } if *trying == Some(ticket) => {
                *pause = if took < AT_ONCE { FIRST_PAUSE } else { LAST_PAUSE.min(*pause * 2) };
                *again = now + *pause;
                *trying = None;
            }
            Health::Down { .. } => {}
        }
        if self.down_since().is_none() {
            return Unreachable::Move;
        }
        self.standing = None;
        match &mut self.upstreams[usize::from(index)].health {
            Health::Down { trying: trying @ None, .. } => {
                *trying = Some(ticket);
                Unreachable::TryAgain
            }
            _ => Unreachable::Move,
        }
    }

    /// A connect has succeeded where the upstream was down.
    pub(crate) fn reachable(&mut self, index: Index, now: Instant) {
        self.is_up(index);
        self.dispatch(now);
    }

    fn is_up(&mut self, index: Index) {
        if self.down_since().is_some() {
            self.after_stall = self.next;
        }
        self.upstreams[usize::from(index)].health = Health::Up;
    }

    pub(crate) fn is_down(&self, index: Index) -> bool {
        !matches!(self.upstreams[usize::from(index)].health, Health::Up)
    }

    /// Since when no upstream can be connected to.
    pub(crate) fn down_since(&self) -> Option<Instant> {
        let mut last = None;
        for upstream in self.upstreams.iter().filter(|upstream| upstream.slots > 0) {
            match upstream.health {
                Health::Up => return None,
                Health::Down { since, .. } => last = last.max(Some(since)),
            }
        }
        last
    }

    /// Other slots and rules from now on. An upstream keeps its index.
    pub(crate) fn configure(&mut self, slots: &[usize], rules: Rules, now: Instant) {
        self.rules = rules;
        let was_down = self.down_since().is_some();
        for (index, &slots) in slots.iter().enumerate() {
            match self.upstreams.get_mut(index) {
                Some(upstream) => upstream.slots = slots,
                None => {
                    let health = Health::Up;
                    self.upstreams.push(Upstream { slots, in_flight: 0, unread: 0, health });
                }
            }
        }
        if rules.order == QueueOrder::Fifo {
            self.newest_first = false;
        }
        if was_down && self.down_since().is_none() {
            self.after_stall = self.next;
        }
        self.dispatch(now);
    }

    /// Other slots from now on, at each upstream that has any.
    pub(crate) fn set_slots(&mut self, slots: usize, now: Instant) {
        for upstream in self.upstreams.iter_mut().filter(|upstream| upstream.slots > 0) {
            upstream.slots = slots;
        }
        self.dispatch(now);
    }

    /// A request that is at this upstream waits there for a worker, or not any more.
    pub(crate) fn set_unread(&mut self, index: Index, unread: bool, now: Instant) {
        let upstream = &mut self.upstreams[usize::from(index)];
        if unread {
            upstream.unread += 1;
        } else {
            upstream.unread -= 1;
            self.dispatch(now);
        }
    }

    /// What became of this ticket, if anything has.
    pub(crate) fn turn(&mut self, ticket: Ticket) -> Option<Turn> {
        self.called.remove(&ticket)
    }

    /// The holder of this ticket has left: out of the line, or its slot goes to the next.
    pub(crate) fn leave(&mut self, ticket: Ticket, now: Instant) {
        if let Some(waiter) = self.remove(ticket) {
            let waited = now - waiter.since;
            self.waits.add(waited);
            if waited >= TARGET && ticket >= self.after_stall {
                self.loses();
            }
        } else if let Some(Turn::Slot(index)) = self.called.remove(&ticket) {
            self.release(index, ticket, None, || now);
        }
    }

    /// A waiter is woken by something else from now on (its task has moved).
    pub(crate) fn waker_mut(&mut self, ticket: Ticket) -> Option<&mut W> {
        self.line.get_mut(&ticket).map(|waiter| &mut waiter.wake)
    }

    /// Whom to wake after what was just done.
    #[must_use]
    pub(crate) fn take_to_wake(&mut self) -> Vec<W> {
        std::mem::take(&mut self.to_wake)
    }

    /// Everyone who waits, for a change that all must see.
    pub(crate) fn wakers(&self) -> impl Iterator<Item = &W> {
        self.line.values().map(|waiter| &waiter.wake)
    }

    /// Median of the last minute's service times; zero: there were none.
    pub(crate) fn median_service(&self) -> Duration {
        self.service.median
    }

    /// The waits for a slot since this was last asked.
    pub(crate) fn take_waits(&mut self) -> Histogram {
        std::mem::take(&mut self.waits)
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.line.len()
    }

    /// The newest request is next.
    #[cfg(test)]
    pub(crate) fn newest_first(&self) -> bool {
        self.newest_first && !self.line.is_empty()
    }

    /// Requests at one upstream, or on their way to it.
    pub(crate) fn in_flight(&self, index: Index) -> usize {
        self.upstreams[usize::from(index)].in_flight
    }

    /// Slots of one upstream that stand for a worker.
    pub(crate) fn slots(&self, index: Index) -> usize {
        let upstream = &self.upstreams[usize::from(index)];
        upstream.slots.saturating_sub(upstream.unread)
    }
}

/// Who a client is to the line: one network has 2^64 addresses of IPv6.
pub(crate) fn client_key(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

/// Service times of the last minute: of the half minute that runs and of the one before.
#[derive(Debug)]
struct Service {
    halves: [Histogram; 2],
    begun: Instant,
    median: Duration,
    median_of: Instant,
}

impl Service {
    fn new(now: Instant) -> Service {
        Service { halves: Default::default(), begun: now, median: Duration::ZERO, median_of: now }
    }

    fn add(&mut self, time: Duration, now: Instant) {
        if now - self.begun >= HALF {
            self.halves.swap(0, 1);
            self.halves[0] = Histogram::default();
            if now - self.begun >= 2 * HALF {
                self.halves[1] = Histogram::default();
            }
            self.begun = now;
        }
        self.halves[0].add(time);
        if now - self.median_of >= MEDIAN_EVERY {
            self.median_of = now;
            let mut both = self.halves[0].clone();
            both.merge(&self.halves[1]);
            self.median = both.percentile(50).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod scaling;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
