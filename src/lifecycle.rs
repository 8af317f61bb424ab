//! Boot, serve, stop: the process from its first system call to its exit code. `main` calls `run`,
//! on the main thread, which becomes the thread of loop 0 and lives to the end.
//!
//! Signals, the end of the wrapped command, the readiness probe and `POST /drain` are its only input;
//! what they bring about is decided in `machine` and done here.

mod machine;

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IsTerminal};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::runtime::{Builder, LocalOptions};
use tracing::{error, info, warn};

use crate::admin::{self, Health, State};
use crate::config::{self, Config, Invocation, OpenPort, Sources};
use crate::server::Server;
use crate::supervisor::probe::wait_until_ready;
use crate::supervisor::signals::Signals;
use crate::supervisor::{self, Child};
use machine::{Action, Event, Machine, Outcome, Plan};

/// How often the counts are looked at while draining.
const TICK: Duration = Duration::from_millis(10);

/// What the end of a killed child may take.
const KILL: Duration = Duration::from_millis(500);

/// What the log writer may take at the end.
const LOG_FLUSH: Duration = Duration::from_secs(1);

/// Why the process ends otherwise than it was asked to: what to say, and the exit code.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub code: u8,
}

impl Failure {
    fn new(what: impl fmt::Display) -> Failure {
        Failure { message: what.to_string(), code: 1 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Runs the proxy, and the wrapped command if there is one, until both have ended. Gives the exit
/// code: 0 after a stop that was asked for, else the command's.
pub fn run(config: Config) -> Result<u8, Failure> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        // A Heroku dyno has 256 threads in all.
        .max_blocking_threads(4)
        .build_local(LocalOptions::default())
        .map_err(|e| Failure::new(format!("cannot start an event loop: {e}")))?;
    let result = runtime.block_on(live(Arc::new(config)));
    // A read from a dead disk must not hold the exit.
    runtime.shutdown_background();
    result
}

async fn live(config: Arc<Config>) -> Result<u8, Failure> {
    let mut signals = Signals::install()
        .map_err(|e| Failure::new(format!("cannot install signal handlers: {e}")))?;
    let soft_limit = raise_descriptor_limit();
    let server = Server::bind(config.clone()).map_err(|e| match e.kind() {
        io::ErrorKind::Other => Failure::new(e),
        _ => Failure::new(format!("cannot listen on {e} (option listen, else PORT)")),
    })?;
    let health = Arc::new(Health::default());
    // Removes its socket when dropped.
    let _admin = match &config.admin {
        None => None,
        Some(listen) => Some(
            admin::start(listen, server.clone(), config.clone(), health.clone())
                .map_err(|e| Failure::new(format!("admin: cannot listen on {e}")))?,
        ),
    };
    let listening = server.local_addrs();
    info!("{}", config.boot_line(&listening));
    for warning in &config.warnings {
        warn!("{warning}");
    }

    let mut child = start_command(&config, soft_limit)?;
    let open_when_ready = child.is_some() && config.open_port == OpenPort::Ready;
    let (mut machine, todo) = Machine::new(Plan {
        drain_timeout: config.drain_timeout,
        drain_delay: config.drain_delay,
        idle_grace: config.idle_grace,
        child_stop_signal: Signal::from_named_raw(config.child_stop_signal).unwrap_or(Signal::TERM),
        child: child.is_some(),
        command: config.command.join(OsStr::new(" ")).to_string_lossy().into_owned(),
        open_when_ready,
        terminal: io::stdin().is_terminal(),
    });
    perform(todo, &server, child.as_ref())?;

    let mut probe = pin!(wait_until_ready(&config, &listening));
    let outcome = loop {
        health.set(machine.state());
        let event = tokio::select! {
            biased;
            signal = signals.next() => match signal {
                Signal::CHILD => match supervisor::reap(&mut child) {
                    Some(exit) => Event::ChildEnded(exit),
                    None => continue,
                },
                signal => Event::Signal(signal),
            },
            ready = &mut probe, if machine.state() == State::Starting => match ready {
                Ok(seen) => Event::AppAnswered(seen),
                Err(missing) => Event::BootFailed(missing),
            },
            () = health.drain_asked() => Event::DrainAsked,
            () = tokio::time::sleep(TICK), if machine.ticking() => Event::Tick,
        };
        let todo = machine.on(event, server.counts(), Instant::now());
        perform(todo, &server, child.as_ref())?;
        if let Some(outcome) = machine.outcome() {
            break outcome.clone();
        }
    };
    server.abort().await;
    if child.is_some() {
        // It has been killed. If even that takes long, it is left to whoever reaps us.
        let reaped = async {
            while child.is_some() {
                if signals.next().await == Signal::CHILD {
                    supervisor::reap(&mut child);
                }
            }
        };
        let _ = tokio::time::timeout(KILL, reaped).await;
    }
    finish(&server, outcome)
}

/// Starts the wrapped command, if there is one.
fn start_command(config: &Config, soft_limit: Option<u64>) -> Result<Option<Child>, Failure> {
    if config.command.is_empty() {
        return Ok(None);
    }
    if let Some(file) = &config.ready_file {
        // Of the last run: it would be believed.
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let file = file.display();
                return Err(Failure::new(format!("cannot remove ready-file {file}: {e}")));
            }
            _ => {}
        }
    }
    supervisor::adopt_orphans();
    Child::start(&config.command, soft_limit)
        .map(Some)
        .map_err(|e| Failure::new(format!("cannot start a process for the command: {e}")))
}

fn perform(todo: Vec<Action>, server: &Server, child: Option<&Child>) -> Result<(), Failure> {
    for action in todo {
        match action {
            Action::Open => server.open().map_err(|e| {
                Failure::new(format!(
                    "cannot listen on {e}. Does the app bind the same port? (gunicorn binds \
                     0.0.0.0:$PORT unless --bind is given)"
                ))
            })?,
            Action::AppAnswered => server.app_answered(),
            Action::AnnounceClose => server.announce_close(),
            Action::StopAccepting => server.drain(),
            Action::CloseIdle => server.close_idle(),
            Action::AppGone => server.app_gone(),
            Action::ReopenLog => server.reopen_log(),
            Action::Reload => reload(server),
            Action::SignalChild(signal) => {
                if let Some(child) = child {
                    child.signal(signal);
                }
            }
            Action::Say(line) => info!("{line}"),
        }
    }
    Ok(())
}

/// Sums up, flushes the log.
fn finish(server: &Server, outcome: Outcome) -> Result<u8, Failure> {
    if let Some(since) = outcome.since {
        let totals = server.drain_totals();
        info!(
            "stopped after {:.1} s: {} finished, {} delivered after the app's end, {} refused, {} cut",
            since.elapsed().as_secs_f64(),
            totals.finished,
            totals.delivered_after_app_end,
            totals.refused,
            totals.cut
        );
    }
    server.close_log(LOG_FLUSH);
    match outcome.failure {
        Some(message) => Err(Failure { message, code: outcome.code }),
        None => Ok(outcome.code),
    }
}

/// HUP: the file is read again, flags and environment stay. A configuration that is not valid
/// changes nothing.
fn reload(server: &Server) {
    match config::parse_args(&Sources::of_process()) {
        Ok(Invocation::Run(config)) => match server.reload(Arc::new(*config)) {
            Ok(report) => info!("HUP: {report}"),
            Err(e) => error!("HUP: the configuration stays as it was: {e}"),
        },
        // What was a command to run at the start is one still.
        Ok(_) => {}
        Err(invalid) => {
            for problem in &invalid.problems {
                error!("HUP: the configuration stays as it was: {problem}");
            }
        }
    }
}

/// Raises the soft limit of descriptors to the hard one. Gives the soft limit that we got, for the
/// child: programs that use select(2) rely on a small one.
fn raise_descriptor_limit() -> Option<u64> {
    let got = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: got.maximum, maximum: got.maximum };
    if got == raised || setrlimit(Resource::Nofile, raised).is_err() {
        return None;
    }
    got.current
}
