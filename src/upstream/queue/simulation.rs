//! A model of a site around the queue: clients that come whatever happens and leave when their
//! patience ends, workers of fixed or of very different speed, workers that die, an app that is away.
//! No thread, no clock: a heap of events, many seeds.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

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
    /// Seconds.
    patience: f64,
    order: QueueOrder,
    /// Of the requests, those whose worker dies halfway.
    dying: f64,
    /// The app is away from, and until.
    away: (f64, f64),
    seconds: f64,
}

const SITE: Site = Site {
    workers: 4,
    work: Work::Fixed(0.1),
    load: 1.0,
    patience: 1.0,
    order: QueueOrder::Adaptive,
    dying: 0.0,
    away: (0.0, 0.0),
    seconds: 120.0,
};

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
    /// Answers in time, of what the workers could have done.
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
    let start = Instant::now();
    let at = |micros: u64| start + Duration::from_micros(micros);
    let micros = |seconds: f64| (seconds * 1e6) as u64;
    let rules = Rules { max_waiting: 2048, order: site.order, max_of_client: None };
    let mut q: Queue<Ticket> = Queue::new(rules, start);
    q.configure(&[site.workers], rules, start);

    let rate = site.load * site.workers as f64 / site.work.mean();
    let mut out = Outcome::default();
    let mut events = BinaryHeap::from([Reverse((0, Event::Arrives))]);
    let (mut arrived, mut waiting) = (HashMap::new(), HashMap::new());
    let mut last_started = 0;
    let mut busy = 0;
    while let Some(Reverse((now, event))) = events.pop() {
        let time = at(now);
        let mut started = Vec::new();
        match event {
            Event::Arrives => {
                if now < micros(site.seconds) {
                    let gap = -(1.0 - random.f64()).ln() / rate;
                    events.push(Reverse((now + micros(gap).max(1), Event::Arrives)));
                }
                out.came += 1;
                let ticket = q.next;
                arrived.insert(ticket, now);
                match q.enter(Ask { safe: true, ..Ask::default() }, time, || ticket) {
                    Entered::Slot(index, ticket) => started.push((index, ticket)),
                    Entered::Waiting(ticket) => {
                        waiting.insert(ticket, now);
                        events.push(Reverse((now + micros(site.patience), Event::Leaves(ticket))));
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
                } else {
                    out.in_vain += 1;
                }
                let work = Duration::from_secs_f64(site.work.mean());
                q.release(index, ticket, Some(work), time);
            }
        }
        loop {
            for ticket in q.take_to_wake() {
                let Some(since) = waiting.remove(&ticket) else { continue };
                match q.turn(ticket) {
                    Some(Turn::Slot(index)) => {
                        let wait = (now - since) as f64 / 1e6;
                        assert!(wait <= site.patience, "served after leaving");
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
                        q.release(index, ticket, None, time);
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
            let dies = random.f64() < site.dying;
            let work = site.work.one(&mut random) * if dies { 0.5 } else { 1.0 };
            busy += 1;
            assert!(busy <= site.workers);
            events.push(Reverse((now + micros(work), Event::Done(index, ticket))));
        }
        let down = q.down_since().is_some();
        assert!(down || q.in_flight(0) == busy);
        assert!(down || waiting.is_empty() || busy == site.workers, "somebody waits for nothing");
        assert_eq!(q.waiting(), waiting.len());
    }
    assert_eq!(q.in_flight(0), 0, "a slot has leaked");
    let ended = out.in_time.len() + out.in_vain + out.left_the_line + out.refused;
    assert_eq!(ended, out.came, "a request was lost");
    let capacity = site.seconds * site.workers as f64 / site.work.mean();
    out.goodput = out.in_time.len() as f64 / capacity;
    out
}

#[test]
fn in_overload_nine_tenths_of_the_work_is_for_clients_that_still_wait() {
    for load in [1.2, 2.0, 3.0, 5.0, 10.0] {
        for patience in [0.5, 1.0, 2.0, 5.0, 10.0] {
            let site = Site { load, patience, ..SITE };
            for seed in 0..5 {
                let out = run(site, seed);
                assert!(out.goodput >= 0.9, "{load} {patience} {seed}: {}", out.goodput);
                assert!(load != 3.0 || out.percentile(0.5) < 0.5, "{patience} {seed}");
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
fn in_overload_work_of_very_different_length_is_no_worse_than_in_order() {
    for load in [1.2, 2.0, 3.0, 10.0] {
        for patience in [0.5, 1.0, 5.0] {
            let site = Site { load, patience, work: Work::Spread(0.05, 1.0), ..SITE };
            let goodput =
                |order| (0..5).map(|n| run(Site { order, ..site }, n).goodput).sum::<f64>();
            let (ours, fifo) = (goodput(QueueOrder::Adaptive), goodput(QueueOrder::Fifo));
            assert!(ours >= fifo, "{load} {patience}: {ours} {fifo}");
        }
    }
}

#[test]
fn below_capacity_the_order_is_that_of_coming() {
    for load in [0.3, 0.6] {
        for seed in 0..10 {
            let site = Site { load, patience: 1e3, ..SITE };
            let ours = run(site, seed);
            let fifo = run(Site { order: QueueOrder::Fifo, ..site }, seed);
            assert_eq!(ours.overtook, 0, "{load} {seed}");
            assert_eq!(ours.in_time, fifo.in_time);
        }
    }
    // Near it, a line stands now and then for as long as in an overload.
    let near = (0..10).map(|seed| run(Site { load: 0.8, patience: 1e3, ..SITE }, seed));
    let (overtook, came) =
        near.fold((0, 0), |(overtook, came), out| (overtook + out.overtook, came + out.came));
    assert!(overtook * 50 < came, "{overtook} of {came}");
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
