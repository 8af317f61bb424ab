//! How many workers the app has, for `concurrency auto`: looked at, because the number that is
//! configured changes (TTIN, TTOU), is not always reached (a worker has died), or is known to Python
//! alone. Driven by the lifecycle; `Count` decides (pure).

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Child;
use super::holders::Master;
use crate::config::{self, UpstreamAddr};

/// Between two looks: a file of /proc for the master and two for each worker.
const LOOK: Duration = Duration::from_millis(500);
/// Between two searches for the master, which read the kernel's table of sockets; doubled each time.
const LAST_SEARCH: Duration = Duration::from_secs(16);
/// For this long the workers have to be the same ones.
const STABLE: Duration = Duration::from_secs(1);

/// The workers of the wrapped command.
#[derive(Debug)]
pub struct Workers {
    upstream: UpstreamAddr,
    threads: usize,
    count: Count,
    master: Option<Master>,
    /// When to look again.
    due: Instant,
    /// The pause before the next search.
    pause: Duration,
    /// Since when nothing can be told. None: it can.
    lost: Option<Instant>,
}

/// What a look has found.
#[derive(Debug)]
pub enum Look {
    /// The same ones as before.
    Same,
    /// Other ones than before.
    Changed,
    /// Nothing that can be told, for so long, and why.
    Lost(Duration, io::Error),
}

impl Workers {
    pub fn new(workers: config::Workers, upstream: &UpstreamAddr, now: Instant) -> Workers {
        Workers {
            upstream: upstream.clone(),
            threads: workers.threads,
            count: Count::new(workers.number, now),
            master: None,
            due: now + LOOK,
            pause: LOOK,
            lost: None,
        }
    }

    /// The configuration was read again.
    pub fn reconfigure(&mut self, workers: config::Workers) {
        self.threads = workers.threads;
        self.count.limit = workers.number.or(self.count.limit);
    }

    /// When `look` is wanted.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Looks at the workers of the command.
    pub fn look(&mut self, command: &Child, now: Instant) -> Look {
        self.due = now + LOOK;
        match self.workers(command, now) {
            Ok(workers) => {
                self.lost = None;
                if self.count.saw(workers, now) { Look::Changed } else { Look::Same }
            }
            Err(error) => {
                self.count.known = false;
                Look::Lost(now - *self.lost.get_or_insert(now), error)
            }
        }
    }

    fn workers(&mut self, command: &Child, now: Instant) -> io::Result<Vec<Pid>> {
        if self.master.as_ref().is_some_and(|master| !master.is_there()) {
            self.forget(now);
        }
        if self.master.is_none() {
            self.master = Master::find(command.pid, &self.upstream);
        }
        if let Some(master) = &self.master {
            return master.workers();
        }
        self.due = now + self.pause;
        self.pause = (self.pause * 2).min(LAST_SEARCH);
        Err(io::Error::other("no process of the command is seen to listen"))
    }

    /// Some: other slots from now on. `older`: requests are at the app since before the workers changed
    /// last.
    pub fn settle(&mut self, older: bool, now: Instant) -> Option<usize> {
        self.count.settle(older, now).map(|workers| workers * self.threads)
    }

    /// Slots as they were last given.
    pub fn slots(&self) -> Option<usize> {
        Some(self.count.taken? * self.threads)
    }

    /// `4 workers`, `4 workers x 2 threads`
    pub fn describe(&self) -> String {
        let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let alive = self.count.seen.len().min(self.count.taken.unwrap_or_default());
        let workers = many(alive, "worker");
        match self.threads {
            1 => workers,
            threads => format!("{workers} x {}", many(threads, "thread")),
        }
    }

    /// Gives the master a signal that is meant for it: what may be between the command and it (`uv run`,
    /// a shell) would stop or end. False: it is not known.
    pub fn signal(&mut self, command: &Child, signal: Signal) -> bool {
        let master = self.master.take().filter(Master::is_there);
        self.master = master.or_else(|| Master::find(command.pid, &self.upstream));
        self.master.as_ref().is_some_and(|master| kill_process(master.pid, signal).is_ok())
    }

    /// The app was told to have one worker more (TTIN) or less (TTOU). Some: other slots from now on.
    pub fn told(&mut self, signal: Signal) -> Option<usize> {
        self.count.told(signal).map(|workers| workers * self.threads)
    }

    /// There is another master now, or will be soon.
    pub fn forget(&mut self, now: Instant) {
        (self.master, self.lost) = (None, None);
        (self.due, self.pause) = (now + LOOK, LOOK);
        self.count.known = false;
    }

    /// The master is known.
    pub fn found(&self) -> bool {
        self.master.is_some()
    }
}

/// Which of the numbers that were seen counts.
#[derive(Debug)]
struct Count {
    /// So many at most: as configured, moved by TTIN and TTOU. None: not known yet.
    limit: Option<usize>,
    /// What counts; None: not known yet.
    taken: Option<usize>,
    seen: Vec<Pid>,
    /// Since when these are the ones.
    since: Instant,
    /// When a request was seen at the app last that is older than these.
    older_at: Instant,
    /// The last look could tell.
    known: bool,
}

impl Count {
    fn new(configured: Option<usize>, now: Instant) -> Count {
        Count {
            limit: configured,
            taken: configured,
            seen: Vec::new(),
            since: now,
            older_at: now,
            known: false,
        }
    }

    /// True: they are others than before.
    fn saw(&mut self, workers: Vec<Pid>, now: Instant) -> bool {
        let changed = !self.known || self.seen != workers;
        if changed {
            (self.seen, self.since) = (workers, now);
        }
        self.known = true;
        changed
    }

    /// Some: the number that counts is another one now.
    fn settle(&mut self, older: bool, now: Instant) -> Option<usize> {
        if older {
            self.older_at = now;
        }
        if !self.known || now - self.since < STABLE {
            return None;
        }
        let alive = self.seen.len().max(1);
        let limit = self.limit.get_or_insert(alive);
        // Old workers beside new ones (HUP): those that are still there are at their last request and
        // take no other. Whoever is left a while after the end of what was in flight serves (TTIN): a
        // worker has answered before it ends.
        if alive > *limit && now - self.older_at >= STABLE {
            *limit = alive;
        }
        self.take(alive)
    }

    fn told(&mut self, signal: Signal) -> Option<usize> {
        let limit = self.limit.as_mut()?;
        match signal {
            Signal::TTIN => *limit += 1,
            Signal::TTOU => *limit = (*limit - 1).max(1),
            _ => {}
        }
        self.take(self.taken?)
    }

    fn take(&mut self, alive: usize) -> Option<usize> {
        let number = self.limit.map_or(alive, |limit| alive.min(limit));
        (self.taken.replace(number) != Some(number)).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A count with its clock; workers are small numbers.
    struct Run {
        count: Count,
        start: Instant,
    }

    impl Run {
        fn new(configured: Option<usize>) -> Run {
            let start = Instant::now();
            Run { count: Count::new(configured, start), start }
        }

        /// What a look at these workers brings about.
        fn at(&mut self, seconds: f64, workers: &[i32], older: bool) -> Option<usize> {
            let now = self.start + Duration::from_secs_f64(seconds);
            let workers = workers.iter().map(|&pid| Pid::from_raw(pid).unwrap()).collect();
            self.count.saw(workers, now);
            self.count.settle(older, now)
        }
    }

    #[test]
    fn workers_count_when_they_have_been_the_same_for_a_second() {
        let mut run = Run::new(Some(4));
        assert_eq!(run.at(0.5, &[1, 2], false), None);
        assert_eq!(run.at(1.0, &[1, 2, 3], false), None);
        assert_eq!(run.at(1.9, &[1, 2, 3], false), None);
        assert_eq!(run.at(2.0, &[1, 2, 3], false), Some(3));
        assert_eq!(run.at(2.5, &[1, 2, 3], false), None, "it is known");
        assert_eq!(run.at(3.0, &[1, 2, 3, 4], false), None);
        assert_eq!(run.at(4.0, &[1, 2, 3, 4], false), Some(4));
        // max-requests: one leaves, the next comes.
        for n in 5..100 {
            assert_eq!(run.at(n.into(), &[n, n + 1, n + 2][..2 + (n as usize % 2)], false), None);
        }
    }

    #[test]
    fn there_is_never_less_than_one() {
        let mut run = Run::new(Some(2));
        run.at(0.0, &[], false);
        assert_eq!(run.at(1.0, &[], false), Some(1));
    }

    #[test]
    fn old_workers_at_their_last_request_do_not_count_beside_the_new_ones() {
        let mut run = Run::new(Some(2));
        run.at(0.0, &[1, 2], false);
        assert_eq!(run.at(1.0, &[1, 2], false), None);
        // HUP; two new ones, and worker 1 has a long request.
        assert_eq!(run.at(2.0, &[1, 3, 4], true), None);
        assert_eq!(run.at(9.0, &[1, 3, 4], true), None);
        // It has answered, and is not gone yet.
        assert_eq!(run.at(9.1, &[1, 3, 4], false), None);
        assert_eq!(run.at(9.6, &[3, 4], false), None);
        assert_eq!(run.at(10.6, &[3, 4], false), None);
    }

    #[test]
    fn one_more_counts_when_no_old_request_is_left() {
        // TTIN that went to gunicorn itself.
        let mut run = Run::new(Some(1));
        run.at(0.0, &[1], false);
        assert_eq!(run.at(2.0, &[1, 2], true), None);
        assert_eq!(run.at(3.0, &[1, 2], true), None);
        assert_eq!(run.at(4.0, &[1, 2], false), Some(2));
        // TTOU.
        run.at(5.0, &[2], true);
        assert_eq!(run.at(6.0, &[2], true), Some(1));
    }

    #[test]
    fn ttin_and_ttou_move_the_most_that_there_can_be() {
        let mut run = Run::new(Some(2));
        run.at(0.0, &[1, 2], false);
        assert_eq!(run.count.told(Signal::TTIN), None, "it has to be seen");
        run.at(1.0, &[1, 2, 3], true);
        assert_eq!(run.at(2.0, &[1, 2, 3], true), Some(3));
        assert_eq!(run.count.told(Signal::TTOU), Some(2), "the one that goes takes no more");
        assert_eq!(run.count.told(Signal::TTOU), Some(1));
        assert_eq!(run.count.told(Signal::TTOU), None, "gunicorn keeps the last");
        assert_eq!(run.at(9.0, &[1, 2, 3], true), None);
    }

    #[test]
    fn a_number_that_only_python_knows_is_the_first_that_is_seen() {
        let mut run = Run::new(None);
        assert_eq!(run.count.told(Signal::TTIN), None);
        run.at(0.0, &[1, 2, 3], true);
        assert_eq!(run.at(1.0, &[1, 2, 3], true), Some(3));
        run.at(2.0, &[1, 2, 3, 4, 5, 6], true);
        assert_eq!(run.at(3.0, &[1, 2, 3, 4, 5, 6], true), None);
    }

    #[test]
    fn what_cannot_be_told_changes_nothing() {
        let mut run = Run::new(Some(2));
        run.at(0.0, &[1], false);
        run.count.known = false;
        assert_eq!(run.count.settle(false, run.start + STABLE), None);
        // It has to be the same for a second again.
        assert_eq!(run.at(2.0, &[1], false), None);
        assert_eq!(run.at(3.0, &[1], false), Some(1));
    }
}
