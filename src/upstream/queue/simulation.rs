//! A model of a site around the queue: clients that come whatever happens and leave when their
//! patience ends, workers of fixed or of very different speed, workers that die, an app that is away.
//! No thread, no clock: a heap of events, many seeds.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use super::*;

/// How long the app takes for a request.
#[derive(Clone, Copy, Debug)]
enum Work {
    Fixed(f64),
    /// Log-normal: the median, and the 99th percentile.
    Spread(f64, f64),
}

impl Work {
    fn mean(self) -> f64 {
        match self {
            Work::Fixed(time) => time,
            Work::Spread(median, p99) => median * (spread(median, p99).powi(2) / 2.0).exp(),
        }
    }

    fn one(self, random: &mut fastrand::Rng) -> f64 {
        match self {
            Work::Fixed(time) => time,
            Work::Spread(median, p99) => median * (spread(median, p99) * normal(random)).exp(),
        }
    }
}

/// Sigma of a log-normal distribution: 2.326 of them lie between its median and its p99.
fn spread(median: f64, p99: f64) -> f64 {
    (p99 / median).ln() / 2.326
}

fn normal(random: &mut fastrand::Rng) -> f64 {
    (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
}

#[derive(Clone, Copy, Debug)]
struct Site {
    workers: usize,
    work: Work,
    /// Arrivals, as a multiple of what the workers can do.
    load: f64,
    /// They come at even times, not by chance.
    even: bool,
    /// Seconds.
    patience: f64,
    order: QueueOrder,
    /// Of the requests, those whose worker dies halfway.
    dying: f64,
    /// The app is away from, and until.
    away: (f64, f64),
    /// The machine is busy: once in a while, of this mean, the proxy sees nothing for so long.
    stalls: (f64, f64),
    seconds: f64,
}

const SITE: Site = Site {
    workers: 4,
    work: Work::Fixed(0.1),
    load: 1.0,
    even: false,
    patience: 1.0,
    order: QueueOrder::Adaptive,
    dying: 0.0,
    away: (0.0, 0.0),
    stalls: (0.0, 0.0),
    seconds: 120.0,
};

impl Site {
    /// Answers in time that the workers could have given until the load ends.
    fn capacity(self) -> f64 {
        self.seconds * self.workers as f64 / self.work.mean()
    }

    /// The work of one request and the time to the next one: of one seed the same for all policies.
    fn next(self, random: &mut fastrand::Rng) -> (u64, u64) {
        let mean = self.work.mean() / (self.load * self.workers as f64);
        let times = if self.even { 1.0 } else { -(1.0 - random.f64()).ln() };
        (micros(self.work.one(random)), micros(mean * times).max(1))
    }
}

fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

/// When the proxy sees what happens.
struct Machine {
    random: fastrand::Rng,
    stalls: (f64, f64),
    stall: (u64, u64),
}

impl Machine {
    fn new(site: Site, seed: u64) -> Machine {
        let random = fastrand::Rng::with_seed(!seed);
        let never = (u64::MAX, u64::MAX);
        let mut machine = Machine { random, stalls: site.stalls, stall: never };
        if site.stalls.0 > 0.0 {
            machine.stall = (0, 0);
        }
        machine
    }

    fn sees(&mut self, now: u64) -> u64 {
        while now >= self.stall.1 {
            let begin = -(1.0 - self.random.f64()).ln() * self.stalls.0;
            let begin = self.stall.1 + micros(begin);
            self.stall = (begin, begin + micros(self.random.f64() * self.stalls.1));
        }
        if now >= self.stall.0 { self.stall.1 } else { now }
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    came: usize,
    /// Answers that their clients waited for, in seconds from arrival.
    in_time: Vec<f64>,
    /// Work that was done for clients who had left.
    in_vain: usize,
    left_the_line: usize,
    refused: usize,
    longest_wait: f64,
    /// Requests that went before one that had come earlier.
    overtook: usize,
    /// Answers in time while the load lasted, of what the workers could have done.
    goodput: f64,
}

impl Outcome {
    fn percentile(&self, part: f64) -> f64 {
        let mut times = self.in_time.clone();
        times.sort_by(f64::total_cmp);
        times[((times.len() - 1) as f64 * part) as usize]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Done(Index, Ticket),
    Retry(Index, Ticket),
    Leaves(Ticket),
    Arrives,
}

fn run(site: Site, seed: u64) -> Outcome {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut machine = Machine::new(site, seed);
    let start = Instant::now();
    let at = |micros: u64| start + Duration::from_micros(micros);
    let rules = Rules { max_waiting: 2048, order: site.order, max_of_client: None };
    let mut q: Queue<Ticket> = Queue::new(rules, start);
    q.configure(&[site.workers], rules, start);

    let mut out = Outcome::default();
    let mut events = BinaryHeap::from([Reverse((0, Event::Arrives))]);
    let (mut arrived, mut waiting) = (HashMap::new(), HashMap::new());
    let (mut works, mut begun) = (HashMap::new(), HashMap::new());
    let mut dying = fastrand::Rng::with_seed(seed + 1);
    let mut last_started = 0;
    let mut busy = 0;
    while let Some(Reverse((happened, event))) = events.pop() {
        let now = machine.sees(happened);
        let time = at(now);
        let mut started = Vec::new();
        match event {
            Event::Arrives => {
                let (work, gap) = site.next(&mut random);
                if happened < micros(site.seconds) {
                    events.push(Reverse((happened + gap, Event::Arrives)));
                }
                out.came += 1;
                let ticket = q.next;
                arrived.insert(ticket, happened);
                works.insert(ticket, work);
                let ask = Ask { safe: true, ..Ask::default() };
                let entered = match q.enter_at_once(None) {
                    Some((index, ticket)) => Entered::Slot(index, ticket),
                    None => q.enter(ask, time, || ticket),
                };
                match entered {
                    Entered::Slot(index, ticket) => started.push((index, ticket)),
                    Entered::Waiting(ticket) => {
                        waiting.insert(ticket, now);
                        let leaves = happened + micros(site.patience);
                        events.push(Reverse((leaves, Event::Leaves(ticket))));
                    }
                    Entered::Refused(_) => out.refused += 1,
                }
            }
            Event::Leaves(ticket) => {
                if waiting.remove(&ticket).is_some() {
                    out.left_the_line += 1;
                    q.leave(ticket, time);
                }
            }
            Event::Retry(index, ticket) => started.push((index, ticket)),
            Event::Done(index, ticket) => {
                busy -= 1;
                let took = (now - arrived[&ticket]) as f64 / 1e6;
                if took <= site.patience {
                    out.in_time.push(took);
                    out.goodput += f64::from(now <= micros(site.seconds)) / site.capacity();
                } else {
                    out.in_vain += 1;
                }
                let work = Duration::from_micros(happened - begun[&ticket]);
                q.release(index, ticket, Some((work, time)), || time);
            }
        }
        loop {
            for ticket in q.take_to_wake() {
                let Some(since) = waiting.remove(&ticket) else { continue };
                match q.turn(ticket) {
                    Some(Turn::Slot(index)) => {
                        let wait = (now - since) as f64 / 1e6;
                        assert!(wait <= site.patience + site.stalls.1, "served after leaving");
                        out.longest_wait = out.longest_wait.max(wait);
                        started.push((index, ticket));
                    }
                    Some(Turn::Refused(_)) => out.refused += 1,
                    None => panic!("woken for nothing"),
                }
            }
            if started.is_empty() {
                break;
            }
            let (index, ticket) = started.remove(0);
            let seconds = now as f64 / 1e6;
            if seconds >= site.away.0 && seconds < site.away.1 {
                match q.unreachable(index, ticket, Duration::ZERO, time) {
                    Unreachable::TryAgain => {
                        events.push(Reverse((now + 50_000, Event::Retry(index, ticket))));
                    }
                    Unreachable::Move => {
                        q.release(index, ticket, None, || time);
                        let ask =
                            Ask { safe: true, again: Some((ticket, index)), ..Ask::default() };
                        match q.enter(ask, time, || ticket) {
                            Entered::Waiting(ticket) => {
                                waiting.insert(ticket, arrived[&ticket]);
                                let left = arrived[&ticket] + micros(site.patience);
                                events.push(Reverse((left, Event::Leaves(ticket))));
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                }
                continue;
            }
            if q.is_down(index) {
                q.reachable(index, time);
            }
            out.overtook += usize::from(ticket < last_started);
            last_started = last_started.max(ticket);
            begun.insert(ticket, now);
            let dies = dying.f64() < site.dying;
            let work = if dies { works[&ticket] / 2 } else { works[&ticket] };
            busy += 1;
            assert!(busy <= site.workers);
            events.push(Reverse((now + work, Event::Done(index, ticket))));
        }
        let down = q.down_since().is_some();
        assert!(down || q.in_flight(0) == busy);
        assert!(down || waiting.is_empty() || busy == site.workers, "somebody waits for nothing");
        assert_eq!(q.waiting(), waiting.len());
    }
    assert_eq!(q.in_flight(0), 0, "a slot has leaked");
    let ended = out.in_time.len() + out.in_vain + out.left_the_line + out.refused;
    assert_eq!(ended, out.came, "a request was lost");
    out
}

/// Who is next, where a model of its own says what other policies would give.
#[derive(Clone, Copy, Debug)]
enum Policy {
    OldestFirst,
    NewestFirst,
    /// The oldest that has this much left of its patience, which no proxy knows; else the newest.
    InTime(f64),
    /// The same, and those that have less left are not served. Where all work takes this long, nobody
    /// can answer more of these clients in time: who comes first has to be begun first, and work begun
    /// later than that is lost.
    Best(f64),
}

/// The goodput of another policy at the same site: clients, a line, workers, nothing else.
fn goodput_of(policy: Policy, site: Site, seed: u64) -> f64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let patience = micros(site.patience);
    let mut next_arrival = 0;
    // When each came, and its work.
    let mut line = VecDeque::<(u64, u64)>::new();
    let mut free_at = BinaryHeap::from(vec![Reverse(0); site.workers]);
    let mut in_time = 0;
    // Each turn of this loop is one request begun by the worker that is free first.
    while let Some(Reverse(free)) = free_at.pop() {
        let mut now = free;
        while next_arrival <= now || line.is_empty() {
            now = now.max(next_arrival);
            let (work, gap) = site.next(&mut random);
            line.push_back((next_arrival, work));
            next_arrival += gap;
        }
        if now >= micros(site.seconds) {
            break;
        }
        while line.front().is_some_and(|(came, _)| came + patience < now) {
            line.pop_front();
        }
        let next = match policy {
            Policy::OldestFirst => line.pop_front(),
            Policy::NewestFirst => line.pop_back(),
            Policy::InTime(left) => {
                let next = line.partition_point(|(came, _)| came + patience < now + micros(left));
                line.remove(next).or_else(|| line.pop_back())
            }
            Policy::Best(left) => {
                let lost = line.partition_point(|(came, _)| came + patience < now + micros(left));
                line.drain(..lost);
                line.pop_front()
            }
        };
        let Some((came, work)) = next else {
            free_at.push(Reverse(now));
            continue;
        };
        let done = now + work;
        in_time += u32::from(done <= came + patience && done <= micros(site.seconds));
        free_at.push(Reverse(done));
    }
    f64::from(in_time) / site.capacity()
}

/// Other seeds than those that the constants were chosen with: those are below 100.
const SEEDS: std::ops::Range<u64> = 1000..1003;

#[test]
fn in_overload_nine_tenths_of_the_work_is_for_clients_that_still_wait() {
    for load in [1.2, 2.0, 3.0, 5.0, 10.0] {
        for patience in [0.5, 1.0, 2.0, 5.0, 10.0] {
            for seed in SEEDS {
                let site = Site { load, patience, seconds: 60.0, ..SITE };
                let out = run(site, seed);
                assert!(out.goodput >= 0.9, "{} {site:?} {seed}", out.goodput);
                assert!(load != 3.0 || out.percentile(0.5) < 0.5, "{site:?} {seed}");
            }
        }
    }
}

/// `cargo test --release --lib simulation -- --ignored`
///
/// With a single worker of 100 ms, or two and a patience of 0.5 s, the bound is not reached in each half
/// minute at 1.2 times the load: 300 requests are served meanwhile (600), and how many come is chance,
/// too. One worker and a patience of 0.5 s, 200 seeds that were used for nothing else: 87 below 0.90, the
/// least 0.83, the mean 0.904; patience of 1 s: 10, 0.87, 0.943. Newest first from the first to the last,
/// without a proxy, is the same (85, 0.83, 0.902; 7, 0.87, 0.947). Whoever knows the patience of all
/// clients and serves each as late as can be reaches 0.897 and 0.930 at the least, and answers nobody
/// soon. The oldest of those who came in the last 0.3 s, else the newest, would reach a mean of 0.94 with
/// one worker, and answer after 390 ms instead of 110 at three times the load of four.
#[test]
#[ignore = "a minute of release build; .ci/full runs it"]
fn in_overload_at_many_sites() {
    for workers in [1, 2, 4, 16, 64] {
        for time in [0.02, 0.1] {
            for load in [1.2, 3.0, 10.0] {
                for patience in [0.5, 1.0, 10.0] {
                    let work = Work::Fixed(time);
                    let site = Site { load, patience, workers, work, seconds: 30.0, ..SITE };
                    let few = (time, load) == (0.1, 1.2) && workers as f64 * patience <= 1.0;
                    let seeds = 1000..1000 + 400 / workers as u64;
                    let mut sum = 0.0;
                    for seed in seeds.clone() {
                        let ours = run(site, seed).goodput;
                        let best =
                            if few { goodput_of(Policy::Best(time), site, seed) } else { 1.0 };
                        assert!(ours >= 0.9 * best, "{ours} of {best}: {site:?} {seed}");
                        sum += ours;
                    }
                    let mean = sum / seeds.count() as f64;
                    assert!(mean >= 0.9, "{mean} {site:?}");
                }
            }
        }
    }
}

#[test]
fn a_busy_machine_does_not_bring_an_overload_back_into_order() {
    for load in [1.2, 3.0] {
        for stalls in [(1.0, 0.3), (0.3, 0.1), (3.0, 0.6)] {
            let site = Site { load, stalls, even: true, seconds: 60.0, ..SITE };
            for seed in SEEDS {
                let ours = run(site, seed);
                // What is missing is the time that the workers wait for the proxy.
                assert!(ours.goodput >= 0.6, "{} {site:?} {seed}", ours.goodput);
                let fifo = run(Site { order: QueueOrder::Fifo, ..site }, seed);
                assert!(fifo.goodput < 0.2, "{} {site:?} {seed}", fifo.goodput);
            }
        }
    }
}

#[test]
fn in_order_an_overload_answers_almost_nobody() {
    // What the order is for. If this does not hold, the test above shows nothing.
    let out = run(Site { load: 3.0, order: QueueOrder::Fifo, ..SITE }, 1);
    assert!(out.goodput < 0.2, "{}", out.goodput);
}

#[test]
fn work_of_very_different_length_is_served_nearly_as_well_as_by_the_best_policy() {
    for load in [1.05, 1.2, 3.0, 10.0] {
        for patience in [0.5, 1.0, 10.0] {
            let site = Site { load, patience, work: Work::Spread(0.05, 1.0), ..SITE };
            let mean = |of: &dyn Fn(u64) -> f64| SEEDS.map(of).sum::<f64>() / SEEDS.count() as f64;
            let ours = mean(&|seed| run(site, seed).goodput);
            for policy in [
                Policy::OldestFirst,
                Policy::NewestFirst,
                Policy::InTime(0.05),
                Policy::InTime(0.2),
                Policy::InTime(0.4),
            ] {
                let other = mean(&|seed| goodput_of(policy, site, seed));
                assert!(ours >= 0.95 * other, "{load} {patience}: {ours} {policy:?} {other}");
            }
        }
    }
}

#[test]
fn below_capacity_the_order_is_that_of_coming() {
    for workers in [1, 2, 4, 16, 64] {
        for load in [0.5, 0.8] {
            for seed in SEEDS {
                let seconds = 600.0 / workers as f64;
                let site = Site { load, workers, patience: 1e3, seconds, ..SITE };
                let ours = run(site, seed);
                let fifo = run(Site { order: QueueOrder::Fifo, ..site }, seed);
                assert_eq!(ours.overtook, 0, "{site:?} {seed}");
                assert_eq!(ours.in_time, fifo.in_time);
            }
        }
    }
}

#[test]
fn in_order_a_steady_client_waits_no_longer_than_the_line_is() {
    for seed in 0..20 {
        let site = Site { load: 0.9, patience: 1e3, order: QueueOrder::Fifo, ..SITE };
        let out = run(site, seed);
        assert_eq!((out.overtook, out.refused, out.in_vain), (0, 0, 0));
        assert!(out.longest_wait < 5.0, "{}", out.longest_wait);
    }
}

#[test]
fn slow_and_dying_workers_lose_no_slot() {
    for seed in 0..50 {
        let mut random = fastrand::Rng::with_seed(seed);
        let site = Site {
            workers: random.usize(1..8),
            work: Work::Spread(0.05, 2.0),
            load: random.f64() * 4.0 + 0.2,
            patience: random.f64() * 3.0 + 0.2,
            dying: 0.2,
            away: (5.0, 5.0 + random.f64() * 3.0),
            seconds: 20.0,
            ..SITE
        };
        run(site, seed);
    }
}

#[test]
fn nobody_is_refused_or_overtaken_when_the_app_comes_back() {
    for seed in 0..20 {
        let site = Site { load: 0.5, patience: 1e3, away: (10.0, 13.0), seconds: 60.0, ..SITE };
        let out = run(site, seed);
        assert_eq!((out.overtook, out.refused, out.in_vain), (0, 0, 0), "{seed}");
        assert!(out.longest_wait < 5.0, "{}", out.longest_wait);
    }
}

#[test]
fn an_overload_that_goes_on_after_a_restart_is_served() {
    let site = Site { load: 3.0, away: (40.0, 43.0), ..SITE };
    for seed in 0..5 {
        let out = run(site, seed);
        // 3 s of 120 nobody was served.
        assert!(out.goodput >= 0.85, "{}", out.goodput);
    }
}
