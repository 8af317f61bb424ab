//! Slots and the line in front of them. Pure: no socket, no clock, no waker; `upstream` wraps it in
//! a lock and wakes whom it names.
//!
//! A slot is the right to have one request at the app. It is handed from the request that ends
//! directly to the one that has waited longest; a request that leaves the line leaves no trace.

use std::collections::BTreeMap;

/// Index of an upstream.
pub(crate) type Index = u16;

/// A place in the line.
pub(crate) type Ticket = u64;

/// What `enter` found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    /// A slot at this upstream is yours.
    Slot(Index),
    Waiting(Ticket),
    /// The line has its full length.
    Full,
}

/// The slots of all upstreams and one line in front of them. `W` is what a waiter is woken by.
#[derive(Debug)]
pub(crate) struct Queue<W> {
    /// Slots of each upstream; 0: nothing goes there any more.
    slots: Vec<usize>,
    /// Requests at each upstream.
    in_flight: Vec<usize>,
    max_waiting: usize,
    next: Ticket,
    /// Who waits, longest first.
    line: BTreeMap<Ticket, W>,
    /// Slots that were handed over and not yet picked up.
    granted: BTreeMap<Ticket, Index>,
}

impl<W> Queue<W> {
    /// `slots`: of each upstream.
    pub(crate) fn new(slots: Vec<usize>, max_waiting: usize) -> Queue<W> {
        Queue {
            in_flight: vec![0; slots.len()],
            slots,
            max_waiting,
            next: 0,
            line: BTreeMap::new(),
            granted: BTreeMap::new(),
        }
    }

    /// A slot, a place in the line, or neither. `avoid` is an upstream that has just failed: it is
    /// taken only when no other has a free slot.
    pub(crate) fn enter(&mut self, avoid: Option<Index>, waiter: impl FnOnce() -> W) -> Entered {
        // Nobody overtakes: where a line stands, there is no free slot.
        if let Some(index) = self.free(avoid) {
            self.in_flight[usize::from(index)] += 1;
            return Entered::Slot(index);
        }
        if self.line.len() >= self.max_waiting {
            return Entered::Full;
        }
        let ticket = self.next;
        self.next += 1;
        self.line.insert(ticket, waiter());
        Entered::Waiting(ticket)
    }

    /// The upstream with the fewest requests that has a free slot; chance breaks a tie.
    fn free(&self, avoid: Option<Index>) -> Option<Index> {
        if let [only] = self.in_flight[..] {
            return (only < self.slots[0]).then_some(0);
        }
        let mut best: Option<(bool, usize, u32, Index)> = None;
        for (i, &busy) in self.in_flight.iter().enumerate() {
            let index = i as Index;
            if busy < self.slots[i] {
                let key = (avoid == Some(index), busy, fastrand::u32(..), index);
                best = Some(best.map_or(key, |b| b.min(key)));
            }
        }
        best.map(|(_, _, _, index)| index)
    }

    /// A request has ended at its upstream. The one that has waited longest gets its slot; the
    /// caller wakes it.
    #[must_use]
    pub(crate) fn release(&mut self, index: Index) -> Option<W> {
        self.in_flight[usize::from(index)] -= 1;
        self.grant()
    }

    /// Hands a free slot to the one that has waited longest.
    fn grant(&mut self) -> Option<W> {
        if self.line.is_empty() {
            return None;
        }
        let index = self.free(None)?;
        let (ticket, waiter) = self.line.pop_first()?;
        self.in_flight[usize::from(index)] += 1;
        self.granted.insert(ticket, index);
        Some(waiter)
    }

    /// Other slots and another length from now on. An upstream keeps its index; what is at it ends
    /// there. The caller wakes those who have a slot now.
    #[must_use]
    pub(crate) fn configure(&mut self, slots: Vec<usize>, max_waiting: usize) -> Vec<W> {
        self.in_flight.resize(slots.len().max(self.in_flight.len()), 0);
        self.slots = slots;
        self.slots.resize(self.in_flight.len(), 0);
        self.max_waiting = max_waiting;
        std::iter::from_fn(|| self.grant()).collect()
    }

    /// The slot that was handed to this ticket, if its turn has come.
    pub(crate) fn pick_up(&mut self, ticket: Ticket) -> Option<Index> {
        self.granted.remove(&ticket)
    }

    /// The holder of this ticket has left: out of the line, or its slot goes to the next.
    #[must_use]
    pub(crate) fn leave(&mut self, ticket: Ticket) -> Option<W> {
        self.line.remove(&ticket);
        self.granted.remove(&ticket).and_then(|index| self.release(index))
    }

    /// A waiter is woken by something else from now on (its task has moved).
    pub(crate) fn waiter_mut(&mut self, ticket: Ticket) -> Option<&mut W> {
        self.line.get_mut(&ticket)
    }

    /// Everyone who waits, for a phase change that all must see.
    pub(crate) fn waiters(&self) -> impl Iterator<Item = &W> {
        self.line.values()
    }

    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.line.len()
    }

    /// Requests at one upstream, or on their way to it.
    pub(crate) fn in_flight(&self, index: Index) -> usize {
        self.in_flight[usize::from(index)]
    }

    /// Slots of one upstream.
    pub(crate) fn slots(&self, index: Index) -> usize {
        self.slots[usize::from(index)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(upstreams: usize, slots: usize, waiting: usize) -> Queue<u32> {
        Queue::new(vec![slots; upstreams], waiting)
    }

    #[test]
    fn a_freed_slot_goes_to_the_one_that_has_waited_longest() {
        let mut q = queue(1, 1, 8);
        assert_eq!(q.enter(None, || 0), Entered::Slot(0));
        let Entered::Waiting(first) = q.enter(None, || 1) else { panic!() };
        let Entered::Waiting(second) = q.enter(None, || 2) else { panic!() };
        assert_eq!(q.release(0), Some(1));
        assert_eq!(q.pick_up(second), None);
        assert_eq!(q.pick_up(first), Some(0));
        assert_eq!(q.in_flight(0), 1);
    }

    #[test]
    fn the_line_has_a_length() {
        let mut q = queue(1, 1, 1);
        assert_eq!(q.enter(None, || 0), Entered::Slot(0));
        assert!(matches!(q.enter(None, || 1), Entered::Waiting(_)));
        assert_eq!(q.enter(None, || 2), Entered::Full);
    }

    #[test]
    fn who_leaves_with_a_slot_in_hand_passes_it_on() {
        let mut q = queue(1, 1, 8);
        assert_eq!(q.enter(None, || 0), Entered::Slot(0));
        let Entered::Waiting(first) = q.enter(None, || 1) else { panic!() };
        let Entered::Waiting(second) = q.enter(None, || 2) else { panic!() };
        assert_eq!(q.release(0), Some(1));
        assert_eq!(q.leave(first), Some(2));
        assert_eq!(q.pick_up(second), Some(0));
        assert_eq!(q.release(0), None);
        assert_eq!(q.in_flight(0), 0);
    }

    #[test]
    fn the_upstream_with_the_fewest_requests_is_chosen() {
        let mut q = queue(3, 2, 8);
        let mut seen = [0; 3];
        for _ in 0..3 {
            let Entered::Slot(i) = q.enter(None, || 0) else { panic!() };
            seen[usize::from(i)] += 1;
        }
        assert_eq!(seen, [1, 1, 1]);
        assert_eq!(q.release(1), None);
        assert_eq!(q.enter(None, || 0), Entered::Slot(1));
    }

    #[test]
    fn an_upstream_that_has_just_failed_is_the_last_choice() {
        let mut q = queue(2, 1, 8);
        assert_eq!(q.enter(Some(0), || 0), Entered::Slot(1));
        assert_eq!(q.enter(Some(0), || 0), Entered::Slot(0));
    }

    #[test]
    fn more_slots_are_handed_out_and_fewer_are_waited_for() {
        let mut q = queue(1, 1, 8);
        assert_eq!(q.enter(None, || 0), Entered::Slot(0));
        let Entered::Waiting(first) = q.enter(None, || 1) else { panic!() };
        let Entered::Waiting(second) = q.enter(None, || 2) else { panic!() };
        assert_eq!(q.configure(vec![2], 8), [1]);
        assert_eq!(q.pick_up(first), Some(0));
        assert_eq!(q.configure(vec![1], 8), [0; 0]);
        assert_eq!(q.release(0), None, "two were in flight, one may be");
        assert_eq!(q.release(0), Some(2));
        assert_eq!(q.pick_up(second), Some(0));
    }

    #[test]
    fn an_upstream_that_was_taken_out_gets_nothing_more() {
        let mut q = queue(1, 1, 8);
        assert_eq!(q.enter(None, || 0), Entered::Slot(0));
        assert!(matches!(q.enter(None, || 1), Entered::Waiting(_)));
        assert_eq!(q.configure(vec![0, 1], 8), [1]);
        assert_eq!(q.release(0), None);
        assert_eq!((q.in_flight(0), q.in_flight(1)), (0, 1));
    }

    /// Any interleaving: never more in flight than slots, nobody is forgotten, no slot leaks.
    #[test]
    fn no_slot_leaks_in_any_order_of_events() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (upstreams, slots) = (rng.usize(1..4), rng.usize(1..4));
            let mut q = queue(upstreams, slots, 6);
            let (mut held, mut waiting): (Vec<Index>, Vec<Ticket>) = (vec![], vec![]);
            for _ in 0..500 {
                match rng.u8(0..4) {
                    0 | 1 => match q.enter(None, || 0) {
                        Entered::Slot(i) => held.push(i),
                        Entered::Waiting(t) => waiting.push(t),
                        Entered::Full => assert_eq!(q.waiting(), 6),
                    },
                    2 if !held.is_empty() => {
                        let _ = q.release(held.swap_remove(rng.usize(..held.len())));
                    }
                    3 if !waiting.is_empty() => {
                        let _ = q.leave(waiting.swap_remove(rng.usize(..waiting.len())));
                    }
                    _ => {}
                }
                waiting.retain(|&t| match q.pick_up(t) {
                    Some(i) => {
                        held.push(i);
                        false
                    }
                    None => true,
                });
                let total: usize = (0..upstreams).map(|i| q.in_flight(i as Index)).sum();
                assert_eq!(total, held.len());
                assert!((0..upstreams).all(|i| q.in_flight(i as Index) <= slots));
                assert_eq!(q.waiting(), waiting.len());
                // Work-conserving: nobody waits while a slot is free.
                assert!(waiting.is_empty() || total == upstreams * slots);
            }
        }
    }
}
