use super::*;

const NONE: Counts =
    Counts { connections: 0, receiving: 0, queued: 0, in_flight: 0, delivering: 0, idle: 0 };
const IN_FLIGHT: Counts = Counts { connections: 1, in_flight: 1, ..NONE };
const DELIVERING: Counts = Counts { connections: 1, delivering: 1, ..NONE };
const IDLE: Counts = Counts { connections: 1, idle: 1, ..NONE };

/// A machine with its clock.
struct Run {
    machine: Machine,
    start: Instant,
}

impl Run {
    fn booting(change: impl FnOnce(&mut Plan)) -> Run {
        let mut plan = Plan {
            drain_timeout: Duration::from_secs(25),
            drain_delay: Duration::ZERO,
            idle_grace: Duration::from_secs(5),
            child_stop_signal: Signal::TERM,
            child: true,
            restart: false,
            command: "gunicorn app.wsgi".into(),
            open_when_ready: true,
            terminal: false,
        };
        change(&mut plan);
        let start = Instant::now();
        let (machine, todo) = Machine::new(plan.clone(), start);
        assert_eq!(todo.contains(&Action::Open), !plan.open_when_ready);
        Run { machine, start }
    }

    fn serving(change: impl FnOnce(&mut Plan)) -> Run {
        let mut run = Run::booting(change);
        run.at(0.0, Event::AppAnswered("app answered HEAD / after 0.0 s (200)".into()), NONE);
        assert_eq!(run.machine.state(), State::Ready);
        run
    }

    /// `event` at `seconds`; what is to be done, without the lines.
    fn at(&mut self, seconds: f64, event: Event, counts: Counts) -> Vec<Action> {
        let mut todo = self.all_at(seconds, event, counts);
        todo.retain(|action| !matches!(action, Action::Say(_)));
        todo
    }

    fn all_at(&mut self, seconds: f64, event: Event, counts: Counts) -> Vec<Action> {
        self.machine.on(event, counts, self.start + Duration::from_secs_f64(seconds))
    }

    fn tick(&mut self, seconds: f64, counts: Counts) -> Vec<Action> {
        self.at(seconds, Event::Tick, counts)
    }

    fn code(&self) -> Option<u8> {
        self.machine.outcome().map(|outcome| outcome.code)
    }
}

fn signal(signal: Signal) -> Event {
    Event::Signal(signal)
}

fn ended(code: i32) -> Event {
    Event::ChildEnded(Exit::Code(code), String::new())
}

fn say(line: &str) -> Action {
    Action::Say(line.into())
}

use Action::{AnnounceClose, AppGone, CloseIdle, SignalChild, StopAccepting};

#[test]
fn the_port_opens_when_the_app_has_answered() {
    let mut run = Run::booting(|_| {});
    assert_eq!(run.machine.state(), State::Starting);
    let todo =
        run.all_at(6.2, Event::AppAnswered("app answered HEAD / after 6.2 s (200)".into()), NONE);
    let line = say("app answered HEAD / after 6.2 s (200); port open");
    assert_eq!(todo, [Action::Open, Action::AppAnswered, line]);
    assert_eq!(run.machine.state(), State::Ready);
}

#[test]
fn the_app_is_told_when_nothing_needs_it_and_its_responses_are_still_delivered() {
    let mut run = Run::serving(|_| {});
    assert_eq!(run.at(0.0, signal(Signal::TERM), IN_FLIGHT), [AnnounceClose, StopAccepting]);
    assert_eq!(run.machine.state(), State::Draining);
    assert_eq!(run.tick(4.0, IN_FLIGHT), []);
    assert_eq!(run.tick(4.1, DELIVERING), [CloseIdle]);
    assert_eq!(run.tick(4.2, DELIVERING), [SignalChild(Signal::TERM)]);
    assert_eq!(run.tick(4.3, DELIVERING), []);
    assert_eq!(run.at(5.0, ended(0), DELIVERING), [AppGone]);
    assert_eq!(run.code(), None, "a response is still being delivered");
    assert_eq!(run.tick(9.0, NONE), []);
    assert_eq!(run.code(), Some(0));
}

#[test]
fn queued_and_receiving_requests_keep_the_app() {
    for counts in [Counts { queued: 1, ..NONE }, Counts { receiving: 1, ..NONE }] {
        let mut run = Run::serving(|_| {});
        run.at(0.0, signal(Signal::TERM), counts);
        assert!(!run.tick(20.0, counts).contains(&SignalChild(Signal::TERM)), "{counts:?}");
    }
}

#[test]
fn idle_connections_are_kept_for_their_grace_and_the_app_with_them() {
    let mut run = Run::serving(|_| {});
    run.at(0.0, signal(Signal::TERM), IDLE);
    assert_eq!(run.tick(4.9, IDLE), []);
    assert_eq!(run.tick(5.0, IDLE), [CloseIdle]);
    // One that came just then is still served.
    assert_eq!(run.tick(5.1, IN_FLIGHT), []);
    assert_eq!(run.tick(5.2, NONE), [SignalChild(Signal::TERM)]);
}

#[test]
fn accepting_goes_on_for_the_drain_delay() {
    let mut run = Run::serving(|plan| plan.drain_delay = Duration::from_secs(5));
    assert_eq!(run.at(0.0, signal(Signal::TERM), NONE), [AnnounceClose]);
    assert_eq!(run.machine.state(), State::Draining);
    assert_eq!(run.tick(4.9, NONE), []);
    assert_eq!(run.tick(5.0, NONE), [StopAccepting]);
    assert_eq!(run.tick(5.1, NONE), [CloseIdle]);
    assert_eq!(run.tick(5.2, NONE), [SignalChild(Signal::TERM)]);
}

#[test]
fn what_waited_in_the_backlog_is_served() {
    let mut run = Run::serving(|plan| plan.idle_grace = Duration::ZERO);
    assert_eq!(run.at(0.0, signal(Signal::TERM), NONE), [AnnounceClose, StopAccepting]);
    assert_eq!(run.tick(0.1, IN_FLIGHT), [CloseIdle], "the app is needed still");
    assert_eq!(run.tick(0.2, NONE), [SignalChild(Signal::TERM)]);
}

#[test]
fn the_app_is_told_three_seconds_before_the_deadline_and_killed_at_it() {
    let mut run = Run::serving(|_| {});
    run.at(0.0, signal(Signal::TERM), IN_FLIGHT);
    // The idle grace has passed by then.
    assert_eq!(run.tick(21.9, IN_FLIGHT), [CloseIdle]);
    assert_eq!(run.tick(22.0, IN_FLIGHT), [SignalChild(Signal::TERM)]);
    assert_eq!(run.tick(24.9, IN_FLIGHT), []);
    assert_eq!(run.tick(25.0, IN_FLIGHT), [SignalChild(Signal::KILL)]);
    assert_eq!(run.code(), Some(0), "a drain that was asked for, also at its deadline");
}

#[test]
fn the_chosen_signal_stops_the_app() {
    let mut run = Run::serving(|plan| plan.child_stop_signal = Signal::QUIT);
    run.at(0.0, signal(Signal::TERM), NONE);
    assert_eq!(run.tick(0.1, NONE), [CloseIdle]);
    assert_eq!(run.tick(0.2, NONE), [SignalChild(Signal::QUIT)]);
}

#[test]
fn several_terms_are_one() {
    let mut run = Run::serving(|_| {});
    run.at(0.0, signal(Signal::TERM), IN_FLIGHT);
    assert_eq!(run.all_at(1.0, signal(Signal::TERM), IN_FLIGHT), []);
    assert_eq!(run.all_at(2.0, signal(Signal::INT), IN_FLIGHT), []);
    assert_eq!(run.code(), None);
}

#[test]
fn a_drain_that_is_asked_for_is_a_stop_as_by_term() {
    let mut run = Run::serving(|_| {});
    let todo = run.all_at(0.0, Event::DrainAsked, IN_FLIGHT);
    let line = "stopping (drain): 1 request in flight, 0 queued, 0 responses being delivered, \
                at most 25 s";
    assert_eq!(todo, [say(line), AnnounceClose, StopAccepting]);
    assert_eq!(run.all_at(1.0, Event::DrainAsked, IN_FLIGHT), []);
    assert_eq!(run.all_at(1.0, signal(Signal::TERM), IN_FLIGHT), []);
    run.at(2.0, ended(0), NONE);
    run.tick(8.0, NONE);
    assert_eq!(run.tick(8.1, NONE), []);
    assert_eq!(run.code(), Some(0));
}

#[test]
fn a_second_int_ends_at_once() {
    let mut run = Run::serving(|_| {});
    run.at(0.0, signal(Signal::INT), IN_FLIGHT);
    let todo = run.all_at(1.0, signal(Signal::INT), IN_FLIGHT);
    let killed = say("the app did not end in time: killed");
    assert_eq!(todo, [say("second INT: ending at once"), killed, SignalChild(Signal::KILL)]);
    assert_eq!(run.code(), Some(130));
}

#[test]
fn quit_tells_the_app_at_once_and_leaves_little_time() {
    let mut run = Run::serving(|_| {});
    let todo = run.at(0.0, signal(Signal::QUIT), IN_FLIGHT);
    assert_eq!(todo, [AnnounceClose, SignalChild(Signal::QUIT), StopAccepting]);
    assert_eq!(run.tick(0.1, IN_FLIGHT), [CloseIdle]);
    run.tick(1.9, DELIVERING);
    assert_eq!(run.code(), None);
    run.tick(2.0, DELIVERING);
    assert_eq!(run.code(), Some(0));
}

#[test]
fn quit_shortens_a_drain() {
    let mut run = Run::serving(|_| {});
    run.at(0.0, signal(Signal::TERM), IN_FLIGHT);
    let todo = run.at(1.0, signal(Signal::QUIT), IN_FLIGHT);
    assert_eq!(todo, [SignalChild(Signal::QUIT), CloseIdle]);
    run.tick(3.0, IN_FLIGHT);
    assert_eq!(run.code(), Some(0));
}

#[test]
fn an_app_that_ends_by_itself_ends_us_with_its_code_after_delivery() {
    let mut run = Run::serving(|_| {});
    let todo = run.all_at(0.0, ended(3), DELIVERING);
    let line = say("app ended: exit code 3");
    assert_eq!(todo, [line, AnnounceClose, AppGone, StopAccepting]);
    assert_eq!(run.tick(0.1, DELIVERING), [CloseIdle]);
    assert_eq!(run.machine.state(), State::AppDown);
    assert_eq!(run.code(), None);
    run.tick(2.0, NONE);
    assert_eq!(run.code(), Some(3));
}

#[test]
fn an_app_that_died_leaves_no_more_than_the_drain_timeout() {
    let mut run = Run::serving(|_| {});
    run.at(0.0, Event::ChildEnded(Exit::Signal(9), String::new()), DELIVERING);
    run.tick(0.1, DELIVERING);
    assert_eq!(run.tick(25.0, DELIVERING), [], "there is nobody to kill");
    assert_eq!(run.code(), Some(137));
}

#[test]
fn a_term_that_reached_the_app_first_is_a_stop_that_was_asked_for() {
    for (exit, code) in [
        (Exit::Signal(15), 0),
        (Exit::Code(143), 0),
        (Exit::Code(0), 0),
        (Exit::Code(1), 1),
        (Exit::Signal(9), 137),
    ] {
        let mut run = Run::serving(|_| {});
        run.at(0.0, Event::ChildEnded(exit, String::new()), DELIVERING);
        run.at(0.1, signal(Signal::TERM), DELIVERING);
        run.tick(1.0, NONE);
        assert_eq!(run.code(), Some(code), "{exit}");
    }
}

#[test]
fn an_app_that_ends_during_the_drain_is_said_and_what_waits_for_it_is_refused() {
    let mut run = Run::serving(|_| {});
    run.at(0.0, signal(Signal::TERM), IDLE);
    let todo = run.all_at(0.1, ended(0), IDLE);
    assert_eq!(todo, [say("app ended: exit code 0"), AppGone]);
    // A next request on the idle connection is still answered.
    assert_eq!(run.tick(4.9, IDLE), []);
    assert_eq!(run.tick(5.0, IDLE), [CloseIdle]);
    run.tick(5.1, NONE);
    assert_eq!(run.code(), Some(0));
}

#[test]
fn an_app_that_dies_at_boot_is_a_failure_with_its_code() {
    let mut run = Run::booting(|_| {});
    assert_eq!(run.all_at(1.0, ended(4), NONE), []);
    let outcome = run.machine.outcome().unwrap();
    assert_eq!(outcome.code, 4);
    let why = "app ended before it answered: exit code 4 (gunicorn app.wsgi)";
    assert_eq!(outcome.failure.as_deref(), Some(why));
}

#[test]
fn a_boot_that_takes_too_long_stops_the_app_and_fails() {
    let mut run = Run::booting(|_| {});
    let todo = run.at(55.0, Event::BootFailed("upstream x did not answer".into()), NONE);
    assert_eq!(todo, [SignalChild(Signal::TERM)]);
    assert_eq!(run.tick(57.9, NONE), []);
    assert_eq!(run.tick(58.0, NONE), [SignalChild(Signal::KILL)]);
    let outcome = run.machine.outcome().unwrap();
    assert_eq!((outcome.code, outcome.failure.as_deref()), (1, Some("upstream x did not answer")));
}

#[test]
fn a_stop_at_boot_waits_for_the_app_alone() {
    let mut run = Run::booting(|_| {});
    let todo = run.all_at(1.0, signal(Signal::TERM), NONE);
    let line = say("stopping (TERM): the app has not answered yet");
    assert_eq!(todo, [line, SignalChild(Signal::TERM)]);
    run.at(1.5, Event::AppAnswered("late".into()), NONE);
    assert_eq!(run.machine.state(), State::Draining, "the port stays closed");
    run.at(2.0, ended(143), NONE);
    let outcome = run.machine.outcome().unwrap();
    assert_eq!((outcome.code, outcome.since), (0, None));
}

#[test]
fn a_sidecar_serves_at_once_and_stops_when_all_is_delivered() {
    let mut run = Run::booting(|plan| (plan.child, plan.open_when_ready) = (false, false));
    assert_eq!(run.machine.state(), State::Ready);
    assert_eq!(run.at(0.0, signal(Signal::TERM), IN_FLIGHT), [AnnounceClose, StopAccepting]);
    run.tick(1.0, DELIVERING);
    assert_eq!(run.code(), None);
    run.tick(2.0, NONE);
    assert_eq!(run.code(), Some(0));
}

#[test]
fn other_signals_are_the_apps() {
    let mut run = Run::serving(|_| {});
    for other in [Signal::HUP, Signal::USR2, Signal::TTIN, Signal::TTOU, Signal::WINCH] {
        let todo = run.all_at(0.0, signal(other), NONE);
        let reload = (other == Signal::HUP).then_some(Action::Reload);
        assert_eq!(todo, reload.into_iter().chain([SignalChild(other)]).collect::<Vec<_>>());
    }
    let todo = run.at(0.0, signal(Signal::USR1), NONE);
    assert_eq!(todo, [Action::ReopenLog, SignalChild(Signal::USR1)]);
}

#[test]
fn without_a_command_usr1_reopens_the_log_and_hup_reads_the_file_again() {
    let mut run = Run::booting(|plan| (plan.child, plan.open_when_ready) = (false, false));
    assert_eq!(run.all_at(0.0, signal(Signal::USR1), NONE), [Action::ReopenLog]);
    let todo = run.all_at(0.0, signal(Signal::HUP), NONE);
    assert_eq!(todo, [Action::Reload]);
    assert_eq!(run.all_at(0.0, signal(Signal::WINCH), NONE), []);
}

#[test]
fn a_closed_terminal_is_a_stop() {
    let mut run = Run::serving(|plan| plan.terminal = true);
    run.at(0.0, signal(Signal::HUP), IN_FLIGHT);
    assert_eq!(run.machine.state(), State::Draining);
}

#[test]
fn the_line_of_a_stop_counts_what_is_under_way() {
    let counts = Counts { in_flight: 3, queued: 2, delivering: 14, ..NONE };
    assert_eq!(
        stopping("TERM", counts, Duration::from_secs(25)),
        "stopping (TERM): 3 requests in flight, 2 queued, 14 responses being delivered, at most 25 s"
    );
    let counts = Counts { in_flight: 1, delivering: 1, ..NONE };
    assert_eq!(
        stopping("INT", counts, Duration::from_millis(1500)),
        "stopping (INT): 1 request in flight, 0 queued, 1 response being delivered, at most 1.5 s"
    );
}

/// The pause that is said, and when the next start is due.
fn pause(run: &mut Run, seconds: f64) -> u64 {
    let todo = run.all_at(seconds, ended(1), NONE);
    let [Action::Say(line)] = todo.as_slice() else { panic!("{todo:?}") };
    let pause = line.strip_prefix("app ended: exit code 1; restarting in ").unwrap();
    pause.strip_suffix(" s").unwrap().parse().unwrap()
}

#[test]
fn an_app_that_ends_by_itself_is_started_again_with_growing_pauses() {
    let mut run = Run::serving(|plan| plan.restart = true);
    let mut now = 100.0;
    for expected in [1, 2, 4, 8, 16, 30, 30] {
        assert_eq!(pause(&mut run, now), expected);
        assert_eq!(run.machine.state(), State::Ready, "requests wait for it");
        let due = now + expected as f64;
        let tick = run.machine.next_tick(run.start);
        assert_eq!(tick, Some(run.start + Duration::from_secs_f64(due)));
        assert_eq!(run.tick(due - 0.1, NONE), []);
        assert_eq!(run.tick(due, NONE), [Action::StartChild]);
        assert_eq!(run.machine.next_tick(run.start), None);
        now = due + 59.0;
    }
    // It has run for a minute: that it ends now has another cause.
    assert_eq!(pause(&mut run, now + 1.0), 1);
}

#[test]
fn a_stop_while_the_app_is_away_starts_it_no_more() {
    let mut run = Run::serving(|plan| plan.restart = true);
    pause(&mut run, 0.0);
    let todo = run.at(0.5, signal(Signal::TERM), Counts { queued: 1, ..NONE });
    assert_eq!(todo, [AnnounceClose, AppGone, StopAccepting]);
    run.tick(1.0, NONE);
    run.tick(1.5, NONE);
    assert_eq!(run.code(), Some(0));
}

#[test]
fn an_app_that_ends_while_draining_is_not_started_again() {
    let mut run = Run::serving(|plan| plan.restart = true);
    run.at(0.0, signal(Signal::TERM), IN_FLIGHT);
    assert_eq!(run.at(1.0, ended(0), IN_FLIGHT), [AppGone]);
    assert!(!run.tick(5.0, IN_FLIGHT).contains(&Action::StartChild));
}

#[test]
fn the_successor_of_an_app_that_was_told_to_stop_is_told_too() {
    let mut run = Run::serving(|_| {});
    let replaced = || Event::ChildReplaced(Exit::Code(0));
    assert_eq!(run.at(0.0, replaced(), NONE), []);
    run.at(1.0, signal(Signal::TERM), NONE);
    run.tick(1.1, NONE);
    assert_eq!(run.tick(1.2, NONE), [SignalChild(Signal::TERM)]);
    assert_eq!(run.at(1.3, replaced(), NONE), [SignalChild(Signal::TERM)]);
    assert_eq!(run.at(1.4, ended(0), NONE), [AppGone]);
    assert_eq!(run.code(), Some(0));
}
