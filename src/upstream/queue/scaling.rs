//! A model of a site that is scaled by its queue: pods of workers, each with its line, a router that
//! takes them in turn, and the rules of Kubernetes' HorizontalPodAutoscaler. Here the metric and the
//! target of docs/capacity.md and config/kubernetes/autoscaling.yaml come from.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use super::*;

const WORKERS: usize = 4;
/// Of one request, microseconds.
const WORK: u64 = 100_000;
const SECOND: u64 = 1_000_000;
/// As the autoscaler has them by default: it looks every 15 s, ignores a tenth, adds at most 4 pods or as
/// many as there are in a look, and takes away what was too many for 5 minutes.
const LOOK: u64 = 15;
const TOLERANCE: f64 = 0.1;
const DOWN_AFTER: u64 = 300;
/// From its order to its first request.
const BOOT: u64 = 20;
/// `avg_over_time` of the adapter's rule.
const AVERAGE: usize = 60;
/// `minReplicas`, `maxReplicas`.
const PODS: [usize; 2] = [2, 20];
/// Seconds that clients wait.
const PATIENCE: u64 = 10;

/// What is averaged over the pods.
#[derive(Clone, Copy, Debug)]
enum Metric {
    Queued,
    /// With those at the app.
    UnderWay,
}

/// Workers that are needed at this second: night, day, night.
fn load(second: u64) -> f64 {
    if (600..2400).contains(&second) { 15.0 } else { 3.0 }
}
const SECONDS: u64 = 3600;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Done(usize, Ticket),
    Leaves(usize, Ticket),
    Arrives,
    Second,
}

#[derive(Debug, Default)]
struct Outcome {
    came: usize,
    lost: usize,
    /// Waits for a slot of the second half of the day, when the number of pods should stand.
    waits: Vec<u64>,
    /// The pods at each second.
    pods: Vec<usize>,
}

impl Outcome {
    fn p95(&mut self) -> f64 {
        self.waits.sort_unstable();
        self.waits.get(self.waits.len() * 95 / 100).map_or(0.0, |wait| *wait as f64 / 1e6)
    }

    /// Between these seconds: the fewest, the most, and how often it changed.
    fn pods(&self, from: usize, to: usize) -> (usize, usize, usize) {
        let pods = &self.pods[from..to];
        let changes = pods.windows(2).filter(|pair| pair[0] != pair[1]).count();
        let (least, most) = (pods.iter().min(), pods.iter().max());
        (least.copied().unwrap_or(0), most.copied().unwrap_or(0), changes)
    }
}

/// The autoscaler's number of pods.
struct Scaler {
    metric: Metric,
    target: f64,
    samples: VecDeque<f64>,
    wanted: VecDeque<(u64, usize)>,
}

impl Scaler {
    fn look(&mut self, second: u64, pods: usize) -> usize {
        let sum = self.samples.iter().sum::<f64>() / self.samples.len() as f64;
        let ratio = sum / pods as f64 / self.target;
        let close = (ratio - 1.0).abs() <= TOLERANCE;
        let wanted = if close { pods } else { (ratio * pods as f64).ceil() as usize };
        self.wanted.push_back((second, wanted));
        self.wanted.retain(|(at, _)| at + DOWN_AFTER >= second);
        let stable = self.wanted.iter().map(|(_, wanted)| *wanted).max().unwrap_or(pods);
        let wanted = if wanted < pods { stable.min(pods) } else { wanted };
        wanted.min(pods + pods.max(4)).clamp(PODS[0], PODS[1])
    }
}

fn run(metric: Metric, target: f64, seed: u64) -> Outcome {
    let mut random = fastrand::Rng::with_seed(seed);
    let start = Instant::now();
    let at = |micros: u64| start + Duration::from_micros(micros);
    let rules = Rules { max_waiting: 2048, order: QueueOrder::Adaptive, max_of_client: None };
    let pod = || {
        let mut queue: Queue<Ticket> = Queue::new(rules, start);
        queue.configure(&[WORKERS], rules, start);
        queue
    };
    let mut queues: Vec<_> = (0..PODS[1]).map(|_| pod()).collect();
    // Since when each takes requests; those beyond `pods` get none and finish what they have.
    let mut ready = vec![0; PODS[1]];
    let (mut pods, mut next) = (PODS[0], 0);
    let mut scaler = Scaler { metric, target, samples: VecDeque::new(), wanted: VecDeque::new() };
    let mut out = Outcome::default();
    let mut waiting = HashMap::new();
    let mut events = BinaryHeap::from([Reverse((0, Event::Second)), Reverse((0, Event::Arrives))]);
    while let Some(Reverse((now, event))) = events.pop() {
        let (second, time) = (now / SECOND, at(now));
        let touched = match event {
            Event::Second if second < SECONDS => {
                events.push(Reverse((now + SECOND, Event::Second)));
                let of = |queue: &Queue<Ticket>| match scaler.metric {
                    Metric::Queued => queue.waiting(),
                    Metric::UnderWay => queue.waiting() + queue.in_flight(0),
                };
                scaler.samples.push_back(queues.iter().map(of).sum::<usize>() as f64);
                if scaler.samples.len() > AVERAGE {
                    scaler.samples.pop_front();
                }
                if second % LOOK == 0 {
                    let wanted = scaler.look(second, pods);
                    for ready in ready.iter_mut().take(wanted).skip(pods) {
                        *ready = now + BOOT * SECOND;
                    }
                    pods = wanted;
                }
                out.pods.push(pods);
                continue;
            }
            Event::Second => continue,
            Event::Arrives => {
                if second >= SECONDS {
                    continue;
                }
                let gap = WORK as f64 / load(second) * -(1.0 - random.f64()).ln();
                events.push(Reverse((now + (gap as u64).max(1), Event::Arrives)));
                let mut turn = || {
                    next = (next + 1) % pods;
                    next
                };
                let pod = (0..pods).map(|_| turn()).find(|pod| ready[*pod] <= now).unwrap_or(0);
                out.came += 1;
                let queue = &mut queues[pod];
                let ticket = queue.next;
                match queue.enter(Ask::default(), time, || ticket) {
                    Entered::Slot(_, ticket) => {
                        if (1500..2400).contains(&second) {
                            out.waits.push(0);
                        }
                        events.push(Reverse((now + WORK, Event::Done(pod, ticket))));
                    }
                    Entered::Waiting(ticket) => {
                        waiting.insert((pod, ticket), now);
                        events.push(Reverse((now + PATIENCE * SECOND, Event::Leaves(pod, ticket))));
                    }
                    Entered::Refused(_) => out.lost += 1,
                }
                pod
            }
            Event::Leaves(pod, ticket) => {
                if waiting.remove(&(pod, ticket)).is_some() {
                    out.lost += 1;
                    queues[pod].leave(ticket, time);
                }
                pod
            }
            Event::Done(pod, ticket) => {
                let work = Duration::from_micros(WORK);
                queues[pod].release(0, ticket, Some((work, time)), || time);
                pod
            }
        };
        let queue = &mut queues[touched];
        for ticket in queue.take_to_wake() {
            let Some(since) = waiting.remove(&(touched, ticket)) else { continue };
            match queue.turn(ticket) {
                Some(Turn::Slot(_)) => {
                    if (1500..2400).contains(&second) {
                        out.waits.push(now - since);
                    }
                    events.push(Reverse((now + WORK, Event::Done(touched, ticket))));
                }
                Some(Turn::Refused(_)) => out.lost += 1,
                None => panic!("woken for nothing"),
            }
        }
    }
    out
}

/// The target of the manifest: requests under way at each pod of four workers.
const TARGET: f64 = 3.0;

#[test]
fn a_site_that_is_scaled_by_requests_under_way_follows_its_load_and_stands_still() {
    for seed in 0..2 {
        let mut out = run(Metric::UnderWay, TARGET, seed);
        // At night two; in the day what 15 workers' work takes, and no more than a third above it.
        assert_eq!(out.pods(500, 600), (2, 2, 0), "seed {seed}");
        let (least, most, changes) = out.pods(1500, 2400);
        assert!(least >= 4 && most <= 7 && changes <= 3, "{:?}", (least, most, changes));
        assert!(out.p95() < 0.2, "seed {seed}: p95 {}", out.p95());
        assert_eq!(out.pods(3300, 3600), (2, 2, 0), "seed {seed}");
        assert!(out.lost * 50 < out.came, "seed {seed}: {} of {} lost", out.lost, out.came);
    }
}

#[test]
fn a_site_that_is_scaled_by_its_queue_alone_goes_up_and_down_all_day() {
    let out = run(Metric::Queued, WORKERS as f64 / 2.0, 1);
    let (least, most, changes) = out.pods(600, 2400);
    assert!(changes > 6 && most > 2 * least, "{:?}", (least, most, changes));
}

/// The table of docs/capacity.md.
#[test]
fn the_table_of_the_capacity_page_is_that_of_the_model() {
    let page = include_str!("../../../docs/capacity.md");
    let one = |name: &str, metric, target| {
        let mut out = run(metric, target, 1);
        let pods = match out.pods(1500, 2400) {
            (least, most, 0) if least == most => least.to_string(),
            (least, most, _) => format!("{least} to {most} and back, again and again"),
        };
        let hours = out.pods.iter().sum::<usize>() as f64 / 3600.0;
        let lost = out.lost as f64 / out.came as f64 * 100.0;
        let row = format!("| {name} | {pods} | {hours:.1} | {lost:.1} % | {:.2} s |", out.p95());
        assert!(page.contains(&row), "not on the page: {row}");
    };
    one("queued, 2", Metric::Queued, 2.0);
    one("under way, 2", Metric::UnderWay, 2.0);
    one("**under way, 3**", Metric::UnderWay, TARGET);
    one("under way, 3.5", Metric::UnderWay, 3.5);
}
