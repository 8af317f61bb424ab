//! The state machine of boot, serving and stopping: events and time in, actions out. No clock, no
//! socket and no process in it, so that every order of events can be tested. `lifecycle` drives it.
//!
//! What must stay true: the app is told to stop only when nothing that was accepted needs it any
//! more, or when time runs out; and whatever happens, the machine stops at its deadline.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::admin::State;
use crate::server::Counts;
use crate::supervisor::{Exit, signals};

/// At the latest this long before the deadline the app is told to stop.
const LAST_CALL: Duration = Duration::from_secs(3);

/// What a fast stop (QUIT) may take: responses that are complete are still handed over.
const FAST: Duration = Duration::from_secs(2);

/// Between two looks at the counts while draining.
const TICK: Duration = Duration::from_millis(10);

/// Before the command is started again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// A command that has run this long begins with the first pause again.
const STABLE: Duration = Duration::from_secs(60);

/// What decides, besides events: options and circumstances.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) drain_timeout: Duration,
    pub(super) drain_delay: Duration,
    pub(super) idle_grace: Duration,
    pub(super) child_stop_signal: Signal,
    /// There is a wrapped command, and it runs.
    pub(super) child: bool,
    /// It is started again when it ends by itself, once it has answered.
    pub(super) restart: bool,
    /// As typed, for what is said about its end.
    pub(super) command: String,
    /// The port opens only when the app has answered.
    pub(super) open_when_ready: bool,
    /// stdin is a terminal: HUP means that it was closed.
    pub(super) terminal: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    /// Any handled signal but CHLD.
    Signal(Signal),
    /// It is ready; the text says by what.
    AppAnswered(String),
    /// It did not within boot-timeout; the text says what is missing.
    BootFailed(String),
    /// And what it said last, ready to be appended.
    ChildEnded(Exit, String),
    /// The command has ended, but a process that it has left takes its place.
    ChildReplaced(Exit),
    /// `POST /drain` on the admin listener.
    DrainAsked,
    /// Time has passed (asked for by `next_tick`).
    Tick,
}

/// To be done in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Listen and accept.
    Open,
    /// The app has answered (only after `Open`).
    AppAnswered,
    AnnounceClose,
    StopAccepting,
    CloseIdle,
    AppGone,
    ReopenLog,
    /// Read the configuration file again.
    Reload,
    SignalChild(Signal),
    /// Start the command again.
    StartChild,
    Say(String),
}

/// The end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) code: u8,
    /// Why this is a failure.
    pub(super) failure: Option<String>,
    /// When stopping began, if requests had been accepted.
    pub(super) since: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Machine {
    plan: Plan,
    phase: Phase,
    /// The wrapped command runs.
    child: bool,
    restart: Restart,
    interrupts: u32,
}

#[derive(Debug)]
struct Restart {
    /// When the running command was started.
    since: Instant,
    /// The pause before the next start.
    pause: Duration,
    /// Some while the command is away.
    due: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    Boot,
    Serving,
    Draining(Drain),
    Stopped(Outcome),
}

#[derive(Debug)]
struct Drain {
    cause: Cause,
    since: Instant,
    deadline: Instant,
    /// The port was open: there is something to finish, and something to sum up.
    was_open: bool,
    /// Some while accepting goes on (drain-delay).
    stop_accepting: Option<Instant>,
    /// Some while idle connections are kept (idle-grace).
    close_idle: Option<Instant>,
    /// The child was sent its stop signal.
    told: bool,
}

/// Why we stop, which gives the exit code.
#[derive(Clone, Debug)]
enum Cause {
    Asked,
    ChildEnded(Exit),
    BootFailed(String),
}

impl Machine {
    /// In its first state, with what to do at once.
    pub(super) fn new(plan: Plan, now: Instant) -> (Machine, Vec<Action>) {
        let child = plan.child;
        let (phase, actions) = if plan.open_when_ready {
            (Phase::Boot, vec![])
        } else {
            (Phase::Serving, vec![Action::Open])
        };
        let restart = Restart { since: now, pause: FIRST_PAUSE, due: None };
        (Machine { plan, phase, child, restart, interrupts: 0 }, actions)
    }

    /// As the admin listener tells it.
    pub(super) fn state(&self) -> State {
        match &self.phase {
            Phase::Boot => State::Starting,
            Phase::Serving => State::Ready,
            Phase::Draining(Drain { cause: Cause::ChildEnded(_), .. }) => State::AppDown,
            Phase::Draining(_) | Phase::Stopped(_) => State::Draining,
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Draining(_) | Phase::Stopped(_))
    }

    /// When a `Tick` is wanted, if no other event comes before. While draining that is soon, after
    /// what was to be done has had its effect.
    pub(super) fn next_tick(&self, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::Draining(_) => Some(now + TICK),
            _ => self.restart.due,
        }
    }

    /// Some when all is over.
    pub(super) fn outcome(&self) -> Option<&Outcome> {
        match &self.phase {
            Phase::Stopped(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Takes one event. `counts` are the server's at `now`.
    pub(super) fn on(&mut self, event: Event, counts: Counts, now: Instant) -> Vec<Action> {
        let mut todo = Vec::new();
        match event {
            Event::Signal(signal) => self.signal(signal, counts, now, &mut todo),
            Event::AppAnswered(seen) => {
                if let Phase::Boot = self.phase {
                    self.phase = Phase::Serving;
                    todo.extend([Action::Open, Action::AppAnswered]);
                    todo.push(Action::Say(format!("{seen}; port open")));
                }
            }
            Event::BootFailed(why) => {
                if let Phase::Boot = self.phase {
                    self.begin(Cause::BootFailed(why), LAST_CALL, now, &mut todo);
                }
            }
            Event::ChildEnded(exit, words) => self.child_ended(exit, &words, now, &mut todo),
            Event::ChildReplaced(exit) => self.child_replaced(exit, &mut todo),
            Event::DrainAsked => self.stop("drain", counts, now, &mut todo),
            Event::Tick => self.start_again(now, &mut todo),
        }
        self.advance(counts, now, &mut todo);
        todo
    }

    fn signal(&mut self, signal: Signal, counts: Counts, now: Instant, todo: &mut Vec<Action>) {
        match signal {
            Signal::INT if self.interrupts > 0 => {
                todo.push(Action::Say("second INT: ending at once".into()));
                self.end(Some(128 + Signal::INT.as_raw() as u8), todo);
            }
            Signal::TERM | Signal::INT => self.stop(signals::name(signal), counts, now, todo),
            Signal::HUP if self.plan.terminal => self.stop("HUP", counts, now, todo),
            Signal::QUIT => self.stop_fast(counts, now, todo),
            // The app reads its own configuration again: it gets the signal too.
            Signal::HUP => todo.push(Action::Reload),
            Signal::USR1 => todo.push(Action::ReopenLog),
            _ => {}
        }
        self.interrupts += u32::from(signal == Signal::INT);
        let forwarded = [Signal::USR1, Signal::USR2, Signal::TTIN, Signal::TTOU, Signal::WINCH];
        let passed_on = forwarded.contains(&signal) || signal == Signal::HUP && !self.plan.terminal;
        if self.child && passed_on {
            todo.push(Action::SignalChild(signal));
        }
    }

    /// TERM, INT, a closed terminal or `bufproxy drain`. Platforms send several: only the first
    /// counts.
    fn stop(&mut self, asked_by: &str, counts: Counts, now: Instant, todo: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Boot => todo
                .push(Action::Say(format!("stopping ({asked_by}): the app has not answered yet"))),
            Phase::Serving => {
                todo.push(Action::Say(stopping(asked_by, counts, self.plan.drain_timeout)));
            }
            // The same stop may have reached the app first.
            Phase::Draining(drain) => {
                if matches!(drain.cause, Cause::ChildEnded(exit) if ended_by_a_stop(exit)) {
                    drain.cause = Cause::Asked;
                }
                return;
            }
            Phase::Stopped(_) => return,
        }
        self.begin(Cause::Asked, self.plan.drain_timeout, now, todo);
    }

    /// QUIT: the app is told at once, by the same signal; little time is left for the rest.
    fn stop_fast(&mut self, counts: Counts, now: Instant, todo: &mut Vec<Action>) {
        if let Phase::Boot | Phase::Serving = self.phase {
            todo.push(Action::Say(stopping("QUIT", counts, FAST)));
            self.begin(Cause::Asked, FAST, now, todo);
        }
        if let Phase::Draining(drain) = &mut self.phase {
            drain.deadline = drain.deadline.min(now + FAST);
            drain.stop_accepting = drain.stop_accepting.map(|_| now);
            drain.close_idle = drain.close_idle.map(|_| now);
            if self.child {
                todo.push(Action::SignalChild(Signal::QUIT));
                drain.told = true;
            }
        }
    }

    fn child_ended(&mut self, exit: Exit, words: &str, now: Instant, todo: &mut Vec<Action>) {
        self.child = false;
        match &mut self.phase {
            Phase::Boot => {
                let mut why =
                    format!("app ended before it answered: {exit} ({})", self.plan.command);
                if exit == Exit::Code(0) {
                    why += ". Did it go to the background? It has to stay in the foreground";
                }
                why += words;
                self.phase =
                    Phase::Stopped(Outcome { code: exit.code(), failure: Some(why), since: None });
            }
            Phase::Serving if self.plan.restart => {
                let restart = &mut self.restart;
                if now - restart.since >= STABLE {
                    restart.pause = FIRST_PAUSE;
                }
                let pause = restart.pause.as_secs();
                todo.push(Action::Say(format!(
                    "app ended: {exit}; restarting in {pause} s{words}"
                )));
                restart.due = Some(now + restart.pause);
                restart.pause = (restart.pause * 2).min(LAST_PAUSE);
            }
            Phase::Serving => {
                todo.push(Action::Say(format!("app ended: {exit}{words}")));
                self.begin(Cause::ChildEnded(exit), self.plan.drain_timeout, now, todo);
                todo.push(Action::AppGone);
            }
            Phase::Draining(drain) => {
                if !drain.told {
                    todo.push(Action::Say(format!("app ended: {exit}")));
                }
                // Who comes now would only be told 503.
                drain.stop_accepting = drain.stop_accepting.map(|_| now);
                todo.push(Action::AppGone);
            }
            Phase::Stopped(_) => {}
        }
    }

    fn start_again(&mut self, now: Instant, todo: &mut Vec<Action>) {
        if self.restart.due.is_some_and(|due| now >= due) {
            self.restart.due = None;
            self.restart.since = now;
            self.child = true;
            todo.push(Action::StartChild);
        }
    }

    fn child_replaced(&self, exit: Exit, todo: &mut Vec<Action>) {
        todo.push(Action::Say(format!("app ended: {exit}; the process that it has left goes on")));
        if let Phase::Draining(Drain { told: true, .. }) = self.phase {
            todo.push(Action::SignalChild(self.plan.child_stop_signal));
        }
    }

    /// Boot or Serving → Draining.
    fn begin(&mut self, cause: Cause, limit: Duration, now: Instant, todo: &mut Vec<Action>) {
        let was_open = matches!(self.phase, Phase::Serving);
        let (delay, grace) = match cause {
            Cause::Asked if was_open => (self.plan.drain_delay, self.plan.idle_grace),
            _ => (Duration::ZERO, Duration::ZERO),
        };
        if was_open {
            todo.push(Action::AnnounceClose);
        }
        if self.restart.due.take().is_some() {
            // It will not be started any more.
            todo.push(Action::AppGone);
        }
        self.phase = Phase::Draining(Drain {
            cause,
            since: now,
            deadline: now + limit,
            was_open,
            stop_accepting: was_open.then_some(now + delay),
            close_idle: was_open.then_some(now + delay + grace),
            told: false,
        });
    }

    /// What time and counts bring about while draining.
    fn advance(&mut self, counts: Counts, now: Instant, todo: &mut Vec<Action>) {
        let Phase::Draining(drain) = &mut self.phase else { return };
        let needs_app = counts.receiving + counts.queued + counts.in_flight > 0;
        if drain.stop_accepting.is_some_and(|at| now >= at) {
            drain.stop_accepting = None;
            todo.push(Action::StopAccepting);
            // What waits in the backlog was accepted by the kernel: it is in the next counts.
            return;
        }
        let accepting = drain.stop_accepting.is_some();
        // A next request may come on an idle connection as long as it is kept.
        let nobody_left = counts.idle == 0 && !needs_app && !accepting;
        if drain.close_idle.is_some_and(|at| now >= at || nobody_left) {
            drain.close_idle = None;
            todo.push(Action::CloseIdle);
            // A request that had come, unread, is in the next counts.
            return;
        }
        let app_done = !accepting && !needs_app && drain.close_idle.is_none();
        if self.child && !drain.told && (app_done || now + LAST_CALL >= drain.deadline) {
            drain.told = true;
            todo.push(Action::SignalChild(self.plan.child_stop_signal));
        }
        let all_done = app_done && counts.delivering == 0 && !self.child;
        if all_done || now >= drain.deadline {
            self.end(None, todo);
        }
    }

    /// Draining → Stopped, whatever is left.
    fn end(&mut self, code: Option<u8>, todo: &mut Vec<Action>) {
        if self.child {
            todo.push(Action::Say("the app did not end in time: killed".into()));
            todo.push(Action::SignalChild(Signal::KILL));
        }
        let (since, cause) = match &self.phase {
            Phase::Draining(drain) => (drain.was_open.then_some(drain.since), drain.cause.clone()),
            _ => (None, Cause::Asked),
        };
        let (by_cause, failure) = match cause {
            Cause::Asked => (0, None),
            Cause::ChildEnded(exit) => (exit.code(), None),
            Cause::BootFailed(why) => (1, Some(why)),
        };
        self.phase = Phase::Stopped(Outcome { code: code.unwrap_or(by_cause), failure, since });
    }
}

/// The end of an app that was told to stop by whoever stops us.
fn ended_by_a_stop(exit: Exit) -> bool {
    let stops = [Signal::TERM, Signal::INT].map(Signal::as_raw);
    matches!(exit, Exit::Signal(signal) if stops.contains(&signal))
        || matches!(exit, Exit::Code(code) if stops.contains(&(code - 128)))
}

fn stopping(asked_by: &str, counts: Counts, limit: Duration) -> String {
    format!(
        "stopping ({asked_by}): {} in flight, {} queued, {} being delivered, at most {} s",
        number(counts.in_flight, "request"),
        counts.queued,
        number(counts.delivering, "response"),
        limit.as_secs_f64(),
    )
}

/// `1 request`, `3 requests`.
fn number(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
