use super::*;

/// A queue, and the time that it is told.
struct At {
    q: Queue<u32>,
    now: Instant,
    /// What `let_stand` leaves.
    held: (Index, Ticket),
    line: std::collections::VecDeque<Ticket>,
}

fn rules(max_waiting: usize) -> Rules {
    Rules { max_waiting, order: QueueOrder::Adaptive, max_of_client: None }
}

fn queue(upstreams: usize, slots: usize, waiting: usize) -> At {
    with_rules(upstreams, slots, rules(waiting))
}

fn with_rules(upstreams: usize, slots: usize, rules: Rules) -> At {
    let now = Instant::now();
    let mut q = Queue::new(rules, now);
    q.configure(&vec![slots; upstreams], rules, now);
    At { q, now, held: (0, 0), line: Default::default() }
}

const GET: Ask = Ask { client: None, safe: true, again: None };
const POST: Ask = Ask { client: None, safe: false, again: None };

fn from(last: u8) -> Ask {
    Ask { client: Some(IpAddr::from([192, 0, 2, last])), ..GET }
}

impl At {
    /// As `Upstreams::enter` does it.
    fn ask(&mut self, ask: Ask) -> Entered {
        match self.q.enter_at_once(ask.again) {
            Some((index, ticket)) => Entered::Slot(index, ticket),
            None => self.q.enter(ask, self.now, || 0),
        }
    }
    #[track_caller]
    fn slot(&mut self, ask: Ask) -> (Index, Ticket) {
        match self.ask(ask) {
            Entered::Slot(index, ticket) => (index, ticket),
            other => panic!("{other:?}"),
        }
    }
    #[track_caller]
    fn wait(&mut self, ask: Ask) -> Ticket {
        match self.ask(ask) {
            Entered::Waiting(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }
    fn release(&mut self, (index, ticket): (Index, Ticket)) {
        self.q.release(index, ticket, None, || self.now);
    }
    fn leave(&mut self, ticket: Ticket) {
        self.q.leave(ticket, self.now);
    }
    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }
    fn has_slot(&mut self, ticket: Ticket) -> bool {
        matches!(self.q.turn(ticket), Some(Turn::Slot(_)))
    }
    fn unreachable(&mut self, (index, ticket): (Index, Ticket)) -> Unreachable {
        self.q.unreachable(index, ticket, Duration::ZERO, self.now)
    }
    /// Asks again with the slot that nothing came of.
    fn moves(&mut self, (index, ticket): (Index, Ticket)) -> Entered {
        self.release((index, ticket));
        self.ask(Ask { again: Some((ticket, index)), ..GET })
    }
    /// One slot, and a line in which everyone waits for this long: each 50 ms one goes and one comes.
    fn let_stand(&mut self, wait: u64, for_millis: u64) {
        let mut held = self.slot(GET);
        let mut line = std::collections::VecDeque::new();
        for step in 0..(wait + for_millis) / 50 {
            line.push_back(self.wait(GET));
            self.pass(50);
            if step + 1 >= wait / 50 && !self.q.newest_first() {
                self.release(held);
                let next = line.pop_front().unwrap();
                assert!(self.has_slot(next));
                held = (0, next);
            }
        }
        self.held = held;
        self.line = line;
    }
    /// The longest waiter leaves, the next one goes.
    fn lose(&mut self) {
        let gone = self.line.pop_front().unwrap();
        self.leave(gone);
        let held = self.held;
        self.release(held);
        let next = self.line.pop_front().unwrap();
        assert!(self.has_slot(next));
        self.held = (0, next);
    }
}

#[test]
fn a_freed_slot_goes_to_the_one_that_has_waited_longest() {
    let mut at = queue(1, 1, 8);
    let held = at.slot(GET);
    let (first, second) = (at.wait(GET), at.wait(GET));
    at.release(held);
    assert_eq!(at.q.take_to_wake().len(), 1);
    assert_eq!(at.q.turn(second), None);
    assert_eq!(at.q.turn(first), Some(Turn::Slot(0)));
    assert_eq!(at.q.in_flight(0), 1);
}

#[test]
fn a_wait_counts_however_it_ends() {
    let mut at = with_rules(1, 1, Rules { max_of_client: Some(1), ..rules(2) });
    let held = at.slot(from(1));
    let (leaves, goes) = (at.wait(from(2)), at.wait(from(3)));
    at.pass(1000);
    at.leave(leaves);
    at.release(held);
    assert!(at.has_slot(goes));
    let waits = at.q.take_waits();
    assert_eq!(waits.total(), 3);
    assert_eq!(waits.percentile(33), Some(Duration::ZERO));
    assert!(waits.percentile(66).unwrap() > Duration::from_millis(800));
}

#[test]
fn who_came_while_the_app_was_away_is_no_evidence() {
    // One slot, an app that is away for a while: its line is long, and clients leave it.
    let mut at = queue(1, 1, 1000);
    let held = at.slot(GET);
    assert_eq!(at.unreachable(held), Unreachable::TryAgain);
    let line: Vec<Ticket> = (0..100).map(|_| at.wait(GET)).collect();
    at.pass(5000);
    at.q.reachable(0, at.now);
    let mut held = held;
    for pair in line.chunks(2) {
        at.leave(pair[0]);
        at.pass(100);
        at.release(held);
        assert!(at.has_slot(pair[1]));
        assert!(!at.q.newest_first());
        held = (0, pair[1]);
    }
}

#[test]
fn the_line_has_a_length() {
    let mut at = queue(1, 1, 1);
    at.slot(GET);
    at.wait(GET);
    assert_eq!(at.ask(GET), Entered::Refused(Refusal::Full));
}

#[test]
fn who_leaves_with_a_slot_in_hand_passes_it_on() {
    let mut at = queue(1, 1, 8);
    let held = at.slot(GET);
    let (first, second) = (at.wait(GET), at.wait(GET));
    at.release(held);
    at.leave(first);
    assert_eq!(at.q.turn(second), Some(Turn::Slot(0)));
    at.release((0, second));
    assert_eq!(at.q.in_flight(0), 0);
}

#[test]
fn the_upstream_with_the_fewest_requests_is_chosen() {
    let mut at = queue(3, 2, 8);
    let mut held = [0, 1, 2].map(|_| at.slot(GET));
    held.sort_unstable();
    assert_eq!(held.map(|(index, _)| index), [0, 1, 2]);
    at.release(held[1]);
    assert_eq!(at.slot(GET).0, 1);
}

#[test]
fn an_upstream_that_has_just_failed_is_the_last_choice() {
    let mut at = queue(2, 1, 8);
    let again = Ask { again: Some((77, 0)), ..GET };
    assert_eq!(at.slot(again), (1, 77));
    assert_eq!(at.slot(again), (0, 77));
}

#[test]
fn more_slots_are_handed_out_and_fewer_are_waited_for() {
    let mut at = queue(1, 1, 8);
    let held = at.slot(GET);
    let (first, second) = (at.wait(GET), at.wait(GET));
    at.q.configure(&[2], rules(8), at.now);
    assert!(at.has_slot(first));
    at.q.configure(&[1], rules(8), at.now);
    at.release(held);
    assert!(!at.has_slot(second), "two were in flight, one may be");
    at.release((0, first));
    assert!(at.has_slot(second));
}

#[test]
fn a_request_that_no_worker_takes_takes_one_slot_out_until_it_is_read() {
    let mut at = queue(1, 3, 8);
    let (worked_at, untaken) = (at.slot(GET), at.slot(GET));
    at.q.set_unread(0, true, at.now);
    assert_eq!(at.q.slots(0), 2);
    // There are two workers at most, and two requests for them.
    let next = at.wait(GET);
    at.release(worked_at);
    assert!(at.has_slot(next), "one slot is left beside it");
    let last = at.wait(GET);
    at.q.set_unread(0, false, at.now);
    assert!(at.has_slot(last));
    at.release(untaken);
    at.q.set_slots(1, at.now);
    assert_eq!((at.q.slots(0), at.q.in_flight(0)), (1, 2));
}

#[test]
fn an_upstream_that_was_taken_out_gets_nothing_more() {
    let mut at = queue(1, 1, 8);
    let held = at.slot(GET);
    let next = at.wait(GET);
    at.q.configure(&[0, 1], rules(8), at.now);
    assert_eq!(at.q.turn(next), Some(Turn::Slot(1)));
    at.release(held);
    assert_eq!((at.q.in_flight(0), at.q.in_flight(1)), (0, 1));
}

#[test]
fn a_line_that_stands_is_served_from_its_end_until_it_is_empty() {
    let mut at = queue(1, 1, 100);
    at.let_stand(300, 1200);
    assert!(!at.q.newest_first(), "nobody has left it");
    at.lose();
    assert!(at.q.newest_first());
    let (oldest, newest) = (at.wait(GET), at.wait(GET));
    at.release(at.held);
    assert!(at.has_slot(newest));
    assert!(!at.has_slot(oldest));
    // Everyone goes: the line has been empty.
    let mut held = newest;
    while at.q.waiting() > 0 {
        at.release((0, held));
        held = *at.q.called.first_key_value().unwrap().0;
        assert!(at.has_slot(held));
    }
    let (first, second) = (at.wait(GET), at.wait(GET));
    at.release((0, held));
    assert!(at.has_slot(first));
    assert!(!at.has_slot(second));
}

#[test]
fn who_leaves_at_once_says_nothing_of_the_line() {
    let mut at = queue(1, 1, 100);
    at.let_stand(300, 1200);
    let hasty = at.wait(GET);
    at.leave(hasty);
    at.release(at.held);
    assert!(at.has_slot(at.line[0]));
    assert!(!at.q.newest_first());
}

#[test]
fn a_line_that_stands_again_soon_is_the_same_overload() {
    let mut at = queue(1, 1, 100);
    at.let_stand(300, 1200);
    at.lose();
    let empty = |at: &mut At| {
        at.release(at.held);
        while at.q.waiting() > 0 {
            let next = *at.q.called.first_key_value().unwrap().0;
            assert!(at.has_slot(next));
            at.release((0, next));
        }
        let last = *at.q.called.first_key_value().unwrap().0;
        assert!(at.has_slot(last));
        at.release((0, last));
    };
    empty(&mut at);
    at.let_stand(300, 1200);
    assert!(at.q.newest_first(), "though nobody has left it");
}

#[test]
fn a_line_that_grows_and_grows_turns_round_before_anyone_has_left_it() {
    let mut at = queue(1, 1, 1000);
    let mut held = at.slot(GET);
    let mut line = std::collections::VecDeque::new();
    // Two come while one goes: the wait grows by a half of the time.
    for step in 0..100 {
        for _ in 0..2 {
            line.push_back(at.wait(GET));
        }
        at.pass(100);
        at.release(held);
        let next = line.pop_front().unwrap();
        assert!(at.has_slot(next));
        held = (0, next);
        if at.q.newest_first() {
            assert!((55..70).contains(&step), "{step}");
            return;
        }
    }
    panic!("in order for ever");
}

#[test]
fn fifo_stays_fifo_however_long_the_line_stands() {
    let mut at = with_rules(1, 1, Rules { order: QueueOrder::Fifo, ..rules(100) });
    at.let_stand(300, 5000);
    at.lose();
    assert!(!at.q.newest_first());
}

#[test]
fn waits_below_the_target_are_no_standing_line() {
    let mut at = queue(1, 1, 100);
    let mut held = at.slot(GET);
    for _ in 0..100 {
        let (next, leaves) = (at.wait(GET), at.wait(GET));
        at.pass(99);
        at.leave(leaves);
        let stays = at.wait(GET);
        at.release(held);
        assert!(at.has_slot(next));
        assert!(!at.q.newest_first());
        at.leave(stays);
        held = (0, next);
    }
}

#[test]
fn a_line_that_drains_is_served_in_order() {
    let mut at = queue(1, 1, 100);
    let held = at.slot(GET);
    let mut line: Vec<Ticket> = Vec::new();
    // The app hangs for 5 s, then it is twice as fast as requests come.
    for _ in 0..50 {
        line.push(at.wait(GET));
        at.pass(100);
    }
    let mut held = held;
    for step in 0.. {
        at.pass(50);
        if step % 2 == 0 {
            line.push(at.wait(GET));
        }
        at.release(held);
        let next = line.remove(0);
        assert!(at.has_slot(next), "step {step}");
        held = (0, next);
        if line.is_empty() {
            return;
        }
    }
}

#[test]
fn full_line_that_stands_refuses_the_oldest() {
    let mut at = queue(1, 1, 10);
    at.let_stand(300, 1200);
    at.lose();
    while at.q.waiting() < 10 {
        at.wait(GET);
    }
    let oldest = *at.q.line.first_key_value().unwrap().0;
    at.wait(GET);
    assert_eq!(at.q.turn(oldest), Some(Turn::Refused(Refusal::Shed)));
    assert_eq!(at.q.waiting(), 10);
}

#[test]
fn time_without_any_upstream_is_no_standing_line() {
    let mut at = queue(1, 2, 1000);
    let held = at.slot(GET);
    assert_eq!(at.unreachable(held), Unreachable::TryAgain);
    let mut line: Vec<Ticket> = Vec::new();
    for _ in 0..30 {
        line.push(at.wait(POST));
        at.pass(100);
    }
    at.q.reachable(0, at.now);
    assert!(at.has_slot(line.remove(0)));
    let mut held = held;
    // Waits rise for a while: the rest of the start.
    for step in 0..20 {
        at.pass(110);
        for _ in 0..2 {
            line.push(at.wait(POST));
        }
        at.release(held);
        let next = line.remove(0);
        assert!(at.has_slot(next), "step {step}");
        held = (0, next);
    }
    assert!(!at.q.newest_first());
}

#[test]
fn a_client_has_its_share_of_the_line_while_others_wait() {
    let mut at = with_rules(1, 1, Rules { max_of_client: Some(2), ..rules(8) });
    at.slot(from(1));
    let other = at.wait(from(2));
    at.wait(from(1));
    at.wait(from(1));
    assert_eq!(at.ask(from(1)), Entered::Refused(Refusal::Share));
    at.wait(from(3));
    // Unknown ones have no share to exceed.
    for _ in 0..3 {
        at.wait(GET);
    }
    at.leave(other);
    assert_eq!(at.q.waiting(), 6);
}

#[test]
fn a_client_alone_may_fill_the_line_until_another_comes() {
    let mut at = with_rules(1, 1, Rules { max_of_client: Some(2), ..rules(8) });
    at.slot(from(1));
    let line: Vec<Ticket> = (0..8).map(|_| at.wait(from(1))).collect();
    assert_eq!(at.ask(from(1)), Entered::Refused(Refusal::Full));
    let other = at.wait(from(2));
    let refused = line.iter().map(|&ticket| at.q.turn(ticket)).collect::<Vec<_>>();
    assert_eq!(refused[..2], [None; 2]);
    assert_eq!(refused[2..], [Some(Turn::Refused(Refusal::Share)); 6]);
    assert_eq!(at.q.waiting(), 3);
    assert_eq!(at.q.turn(other), None);
}

#[test]
fn a_network_of_ipv6_is_one_client() {
    let key = |text: &str| client_key(text.parse().unwrap());
    assert_eq!(key("2001:db8:1:2::3"), key("2001:db8:1:2:ffff::9"));
    assert_ne!(key("2001:db8:1:2::3"), key("2001:db8:1:3::3"));
    assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
}

#[test]
fn the_median_is_of_the_last_minute() {
    let mut at = queue(1, 1, 8);
    let mut serve = |millis: u64, seconds: u64| {
        for _ in 0..seconds {
            at.pass(1001);
            at.q.service.add(Duration::from_millis(millis), at.now);
        }
        at.q.median_service().as_millis()
    };
    assert!((80..=100).contains(&serve(100, 40)));
    assert!((80..=100).contains(&serve(1000, 15)), "15 of 55");
    assert!((800..=1000).contains(&serve(1000, 50)));
}

#[test]
fn of_all_requests_one_tries_an_upstream_that_is_down() {
    let mut at = queue(1, 3, 8);
    let (one, two) = (at.slot(GET), at.slot(GET));
    assert_eq!(at.unreachable(one), Unreachable::TryAgain);
    assert_eq!(at.unreachable(two), Unreachable::Move);
    let newcomer = at.wait(GET);
    // It was there before the newcomer, and keeps its place.
    assert_eq!(at.moves(two), Entered::Waiting(two.1));
    assert_eq!(at.unreachable(one), Unreachable::TryAgain);
    // The one that tries leaves: the next one tries.
    at.release(one);
    assert!(at.has_slot(two.1));
    assert!(!at.has_slot(newcomer));
    at.q.reachable(0, at.now);
    assert!(at.has_slot(newcomer));
    assert_eq!(at.q.down_since(), None);
}

#[test]
fn another_upstream_that_is_up_is_taken_at_once() {
    let mut at = queue(2, 2, 8);
    let (mut one, mut two) = (at.slot(GET), at.slot(GET));
    if one.0 == 1 {
        std::mem::swap(&mut one, &mut two);
    }
    assert_eq!(at.unreachable(one), Unreachable::Move);
    assert_eq!(at.moves(one), Entered::Slot(1, one.1));
    // Nothing goes there for a second.
    let waiting = at.wait(GET);
    at.pass(999);
    at.release(two);
    assert_eq!(at.q.turn(waiting), Some(Turn::Slot(1)));
}

#[test]
fn a_get_finds_out_whether_an_upstream_is_back() {
    let mut at = queue(2, 1, 8);
    let (mut one, mut two) = (at.slot(GET), at.slot(GET));
    if one.0 == 1 {
        std::mem::swap(&mut one, &mut two);
    }
    assert_eq!(at.unreachable(one), Unreachable::Move);
    assert_eq!(at.moves(one), Entered::Waiting(one.1));
    at.leave(one.1);
    at.pass(1000);
    let post = at.wait(POST);
    assert_eq!(at.q.turn(post), None);
    // The GET behind it goes: the POST must not be the one that finds out.
    let get = at.wait(GET);
    assert_eq!(at.q.turn(get), Some(Turn::Slot(0)));
    let second = at.wait(GET);
    assert_eq!(at.q.turn(second), None, "one at a time");
    at.q.reachable(0, at.now);
    at.release((0, get));
    assert_eq!(at.q.turn(post), Some(Turn::Slot(0)));
}

#[test]
fn pauses_grow_where_failing_takes_time() {
    let pauses = |took: Duration| {
        let mut at = queue(2, 1, 8);
        // The other one is up and busy.
        at.q.upstreams[1].in_flight = 1;
        let mut held = at.slot(GET);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert_eq!(at.q.unreachable(0, held.1, took, at.now), Unreachable::Move);
            at.release(held);
            let begun = at.now;
            held = loop {
                match at.ask(GET) {
                    Entered::Slot(0, ticket) => break (0, ticket),
                    Entered::Waiting(ticket) => {
                        if at.has_slot(ticket) {
                            break (0, ticket);
                        }
                        at.leave(ticket);
                    }
                    other => panic!("{other:?}"),
                }
                at.pass(500);
            };
            pauses.push((at.now - begun).as_secs());
        }
        pauses
    };
    assert_eq!(pauses(Duration::ZERO), [1; 7]);
    assert_eq!(pauses(Duration::from_secs(5)), [1, 2, 4, 8, 16, 30, 30]);
}

/// Any interleaving: never more in flight than slots, nobody is forgotten, no slot leaks.
#[test]
fn no_slot_leaks_in_any_order_of_events() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (upstreams, slots) = (rng.usize(1..4), rng.usize(1..4));
        let share = rng.bool().then_some(2);
        let mut at = with_rules(upstreams, slots, Rules { max_of_client: share, ..rules(6) });
        let (mut held, mut waiting): (Vec<(Index, Ticket)>, Vec<Ticket>) = (vec![], vec![]);
        for _ in 0..500 {
            at.pass(rng.u64(0..100));
            let entered = match rng.u8(0..6) {
                0 | 1 => Some(at.ask(Ask { safe: rng.bool(), ..from(rng.u8(0..4)) })),
                2 if !held.is_empty() => {
                    at.release(held.swap_remove(rng.usize(..held.len())));
                    None
                }
                3 if !waiting.is_empty() => {
                    at.leave(waiting.swap_remove(rng.usize(..waiting.len())));
                    None
                }
                4 if !held.is_empty() => {
                    let which = rng.usize(..held.len());
                    match at.unreachable(held[which]) {
                        Unreachable::TryAgain => None,
                        Unreachable::Move => {
                            let failed = held.swap_remove(which);
                            Some(at.moves(failed))
                        }
                    }
                }
                5 if !held.is_empty() => {
                    at.q.reachable(held[rng.usize(..held.len())].0, at.now);
                    None
                }
                _ => None,
            };
            match entered {
                Some(Entered::Slot(index, ticket)) => held.push((index, ticket)),
                Some(Entered::Waiting(ticket)) => waiting.push(ticket),
                _ => {}
            }
            waiting.retain(|&ticket| match at.q.turn(ticket) {
                Some(Turn::Slot(index)) => {
                    held.push((index, ticket));
                    false
                }
                Some(Turn::Refused(_)) => false,
                None => true,
            });
            let busy = |q: &Queue<u32>| (0..upstreams).map(|i| q.in_flight(i as Index)).sum();
            let total: usize = busy(&at.q);
            assert_eq!(total, held.len());
            assert!((0..upstreams).all(|i| at.q.in_flight(i as Index) <= slots));
            assert_eq!(at.q.waiting(), waiting.len());
            // Work-conserving: nobody waits while an upstream that is up has a free slot.
            let free = |u: &Upstream| u.in_flight < u.slots && matches!(u.health, Health::Up);
            assert!(waiting.is_empty() || !at.q.upstreams.iter().any(free));
            assert!(at.q.called.is_empty());
        }
        for ticket in waiting {
            at.leave(ticket);
        }
        for slot in held {
            at.release(slot);
        }
        assert!((0..upstreams).all(|i| at.q.in_flight(i as Index) == 0));
        assert!(at.q.line.is_empty() && at.q.called.is_empty() && at.q.of_client.is_empty());
    }
}

#[test]
fn upstream_that_was_taken_out_while_it_was_down_does_not_stand_in_the_way() {
    let mut at = queue(2, 1, 9);
    let (index, ticket) = at.slot(GET);
    assert_eq!(at.q.unreachable(index, ticket, Duration::ZERO, at.now), Unreachable::Move);
    at.release((index, ticket));
    assert_eq!(at.q.enter_at_once(None), None, "it may be time to try it");
    let slots = if index == 0 { [0, 1] } else { [1, 0] };
    at.q.configure(&slots, at.q.rules, at.now);
    assert!(at.q.enter_at_once(None).is_some());
}
