//! Boot, serve, stop: the process from its first system call to its exit code. `main` calls `run`,
//! on the main thread, which becomes the thread of loop 0 and lives to the end.
//!
//! Signals, the end of the wrapped command, its readiness and `POST /drain` are its only input;
//! what they bring about is decided in `machine` and done here.

mod machine;
mod systemd;

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IsTerminal};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::runtime::LocalOptions;
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};
use tracing::{error, info, warn};

use crate::access_log::Stderr;
use crate::admin::{self, Health, State};
use crate::config::{self, Concurrency, Config, Invocation, OpenPort, Sources, UpstreamAddr};
use crate::net;
use crate::server::Server;
use crate::supervisor::handover::AppListener;
use crate::supervisor::notify::NotifySocket;
use crate::supervisor::probe::wait_until_ready;
use crate::supervisor::signals::Signals;
use crate::supervisor::stderr::Pipe;
use crate::supervisor::workers::{Look, Workers};
use crate::supervisor::{self, Child, Exit, Given};
use machine::{Action, Event, Machine, Outcome, Plan};
use systemd::Manager;
pub use systemd::Passed;

/// How often it is looked whether an app that was just started has taken the socket that it got.
const LOOK: Duration = Duration::from_millis(100);

/// After this it has.
const LOOK_FOR: Duration = Duration::from_secs(60);

/// When workers that cannot be counted are worth a line.
const LOST: Duration = Duration::from_secs(30);

/// What the end of a killed child may take.
const KILL: Duration = Duration::from_millis(500);

/// What the last words of a command that has ended may take to our stderr, before its end is said.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What the log writer may take at the end, and the rest of the command's output.
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
/// `passed` are the listeners that systemd has opened; `stderr` is where the command's goes.
pub fn run(config: Config, passed: Passed, stderr: Stderr) -> Result<u8, Failure> {
    let runtime = net::event_loop(config.max_connections)
        // A Heroku dyno has 256 threads in all.
        .max_blocking_threads(4)
        .build_local(LocalOptions::default())
        .map_err(|e| Failure::new(format!("cannot start an event loop: {e}")))?;
    let result = runtime.block_on(live(Arc::new(config), passed, stderr));
    // A read from a dead disk must not hold the exit.
    runtime.shutdown_background();
    result
}

async fn live(config: Arc<Config>, passed: Passed, stderr: Stderr) -> Result<u8, Failure> {
    let mut signals = Signals::install()
        .map_err(|e| Failure::new(format!("cannot install signal handlers: {e}")))?;
    let soft_limit = raise_descriptor_limit();
    let activated = !passed.0.is_empty();
    let server = Server::bind(config.clone(), passed.0).map_err(unusable)?;
    let health = Arc::new(Health::default());
    // Removes its socket when dropped.
    let _admin = match &config.admin {
        None => None,
        Some(listen) => Some(
            admin::start(listen, server.clone(), config.clone(), health.clone())
                .map_err(unusable)?,
        ),
    };
    let listening = server.local_addrs();
    let (machine, todo) = Machine::new(plan(&config), Instant::now());
    // Whoever reads "listening" may come at once, where nothing is to be waited for.
    let opens_now = todo.contains(&Action::Open);
    if !opens_now {
        introduce(&config, &listening);
    }
    let mut app = App::start(&config, soft_limit, stderr)?;
    let manager = Manager::of_process();
    let mut process =
        Process { server, manager, machine, health, loading: None, told_reloading: false };
    // Behind a listener of systemd's, clients wait for us already: that it answers proves nothing.
    let ours = if activated { &[] } else { listening.as_slice() };
    let ended = async {
        process.perform(todo, &mut app)?;
        if opens_now {
            introduce(&config, &listening);
        }
        serve(&mut process, &mut app, &mut signals, ours).await
    };
    let ended = ended.await;
    process.server.abort().await;
    if let (Err(_), Some(child)) = (&ended, &app.child) {
        child.signal(Signal::TERM);
    }
    if app.child.is_some() {
        // It has been killed, or told. If even that takes long, it is left to whoever reaps us.
        let reaped = async {
            while app.child.is_some() {
                if signals.next().await == Signal::CHILD {
                    supervisor::reap(&mut app.child);
                }
            }
        };
        let _ = tokio::time::timeout(KILL, reaped).await;
        // They have had as long as it.
        supervisor::signal_orphans(&config.upstream, Signal::KILL);
    }
    app.copied(LOG_FLUSH).await;
    finish(&process.server, ended?)
}

/// Takes what happens until all is over.
async fn serve(
    process: &mut Process,
    app: &mut App,
    signals: &mut Signals,
    ours: &[String],
) -> Result<Outcome, Failure> {
    let config = app.config.clone();
    let mut probe = pin!(wait_until_ready(&config, ours));
    loop {
        let machine = &process.machine;
        let tick = machine.next_tick(Instant::now());
        let event = tokio::select! {
            biased;
            signal = signals.next() => match signal {
                Signal::CHILD => match app.reap(process.server.app_has_answered()).await {
                    Some(event) => event,
                    // Orphans may end all the time: no reason to stop looking at the clock.
                    None => Event::Tick,
                },
                signal => Event::Signal(signal),
            },
            ready = &mut probe, if machine.state() == State::Starting => match ready {
                Ok(seen) => {
                    app.answered();
                    Event::AppAnswered(seen)
                }
                // What it says on its way may tell why it does not get there.
                Err(missing) if app.since.elapsed() >= config.boot_timeout => {
                    Event::BootFailed(missing + &app.last_words())
                }
                Err(taken) => Event::BootFailed(taken),
            },
            () = ready_said(&app.notify) => {
                app.answered();
                Event::AppAnswered(format!(
                    "app said READY=1 after {:.1} s",
                    app.since.elapsed().as_secs_f64()
                ))
            }
            () = process.health.drain_asked() => Event::DrainAsked,
            () = tokio::time::sleep_until(tick.unwrap_or_else(Instant::now).into()),
                if tick.is_some() => Event::Tick,
            () = tokio::time::sleep(LOOK), if app.is_new(machine.state()) => {
                app.look_at_socket();
                continue;
            }
            loaded = loaded(&mut process.loading) => {
                process.loading = None;
                if let Some(config) = loaded {
                    app.reconfigure(&config, &process.server);
                }
                // After the end has begun it is not true.
                let told = std::mem::take(&mut process.told_reloading);
                if told && process.machine.state() == State::Ready {
                    process.manager.ready();
                }
                continue;
            }
            // Those that leave with the app when all is over are not missed.
            () = tokio::time::sleep_until(app.count_due().unwrap_or_else(Instant::now).into()),
                if app.count_due().is_some() && !machine.is_stopping() => {
                app.count_workers(&process.server);
                continue;
            }
        };
        if let Some(outcome) = process.take(event, app)? {
            return Ok(outcome);
        }
    }
}

/// The command has said that it is ready. Without a socket it never does.
async fn ready_said(notify: &Option<NotifySocket>) {
    match notify {
        Some(socket) => socket.ready().await,
        None => std::future::pending().await,
    }
}

/// The configuration was read again: Some, if it is to be used. Pending as long as none is being read.
async fn loaded(loading: &mut Option<JoinHandle<Option<Arc<Config>>>>) -> Option<Arc<Config>> {
    match loading {
        Some(loading) => loading.await.ok().flatten(),
        None => std::future::pending().await,
    }
}

/// What was asked for cannot be had here. Where somebody else has the address it may be had later.
fn unusable(error: io::Error) -> Failure {
    let passes = matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::Other);
    let message = error.to_string();
    if passes { Failure::new(message) } else { Failure { message, code: config::UNUSABLE } }
}

fn plan(config: &Config) -> Plan {
    let child = !config.command.is_empty();
    Plan {
        drain_timeout: config.drain_timeout,
        drain_delay: config.drain_delay,
        idle_grace: config.idle_grace,
        child_stop_signal: Signal::from_named_raw(config.child_stop_signal).unwrap_or(Signal::TERM),
        child,
        restart: config.restart,
        command: config.command.join(OsStr::new(" ")).to_string_lossy().into_owned(),
        open_when_ready: opens_when_ready(config),
        terminal: io::stdin().is_terminal(),
    }
}

fn opens_when_ready(config: &Config) -> bool {
    !config.command.is_empty() && config.open_port == OpenPort::Ready
}

/// The wrapped command, if there is one: its process, and the listener that was passed to it.
struct App {
    config: Arc<Config>,
    soft_limit: Option<u64>,
    child: Option<Child>,
    /// None: the app binds its socket itself.
    listener: Option<AppListener>,
    /// None: it has ours.
    stderr: Option<Pipe>,
    /// Where it may say that it is ready.
    notify: Option<NotifySocket>,
    /// When the command was started.
    since: Instant,
    /// Those that `concurrency auto` goes by.
    workers: Option<Workers>,
    /// That they cannot be counted was said.
    said_lost: bool,
}

impl App {
    /// With the command running, if there is one.
    fn start(
        config: &Arc<Config>,
        soft_limit: Option<u64>,
        stderr: Stderr,
    ) -> Result<App, Failure> {
        let mut app = App {
            config: config.clone(),
            soft_limit,
            child: None,
            listener: None,
            stderr: None,
            notify: None,
            since: Instant::now(),
            workers: workers_of(config),
            said_lost: false,
        };
        if config.command.is_empty() {
            return Ok(app);
        }
        if let ([UpstreamAddr::Unix(path)], true) = (&*config.upstream, config.pass_socket) {
            let listener = AppListener::bind(path, config.private_socket).map_err(|e| {
                let path = path.display();
                Failure::new(format!(
                    "pass-socket: cannot listen on {path}: {e} (--upstream unix:PATH names another \
                     place)"
                ))
            })?;
            app.listener = Some(listener);
        }
        if !io::stderr().is_terminal() {
            let pipe = Pipe::new(stderr).map_err(|e| {
                Failure::new(format!("cannot make a pipe for the command's stderr: {e}"))
            })?;
            app.stderr = Some(pipe);
        }
        // What the user has chosen to go by is what counts. Without a place for a socket its answer
        // does, too.
        let chosen = config.ready_path_set || config.ready_file.is_some();
        if opens_when_ready(config) && !chosen && !config.runs_gunicorn() {
            app.notify = NotifySocket::bind().ok();
        }
        supervisor::adopt_orphans();
        app.start_command()?;
        Ok(app)
    }

    fn start_command(&mut self) -> Result<(), Failure> {
        let config = &self.config;
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
        if self.listener.is_none() {
            for upstream in &config.upstream {
                if let UpstreamAddr::Unix(path) = upstream {
                    // Of the last run: not every server removes it before it binds.
                    net::remove_dead_socket(path);
                }
            }
        }
        let given = Given {
            soft_limit: self.soft_limit,
            listener: self.listener.as_ref(),
            stderr: self.stderr.as_ref(),
            notify: self.notify.as_ref(),
        };
        let started = Child::start(&config.command, given)
            .map_err(|e| Failure::new(format!("cannot start a process for the command: {e}")))?;
        self.child = Some(started);
        self.since = Instant::now();
        Ok(())
    }

    /// Waits until what the command has written stands on our stderr.
    async fn copied(&self, limit: Duration) {
        if let Some(stderr) = &self.stderr {
            stderr.copied(limit).await;
        }
    }

    /// For the end of a diagnostic; empty where its stderr is ours.
    fn last_words(&self) -> String {
        self.stderr.as_ref().map(Pipe::last_words).unwrap_or_default()
    }

    /// Takes what SIGCHLD announces. Some: the command has ended. `answered`: it had answered.
    async fn reap(&mut self, answered: bool) -> Option<Event> {
        let exit = supervisor::reap(&mut self.child)?;
        self.copied(LAST_WORDS).await;
        if let Some(workers) = &mut self.workers {
            workers.forget(Instant::now());
        }
        self.child = Child::successor(&self.config.upstream);
        Some(match self.child {
            Some(_) => Event::ChildReplaced(exit),
            None => {
                supervisor::signal_orphans(&self.config.upstream, Signal::TERM);
                let words = if answered { String::new() } else { self.last_words() };
                Event::ChildEnded(exit, words)
            }
        })
    }

    /// Passes a signal on. What is not meant to end the command goes to the server that it runs.
    fn signal(&mut self, signal: Signal, server: &Server) {
        let Some(child) = &self.child else { return };
        let ends = [Signal::TERM, Signal::INT, Signal::QUIT, Signal::KILL].contains(&signal);
        let known = !ends && self.workers.as_mut().is_some_and(|w| w.signal(child, signal));
        if !known {
            child.signal(signal);
        }
        if let Some(workers) = &mut self.workers
            && let Some(slots) = workers.told(signal)
        {
            set_slots(server, workers, slots);
        }
    }

    /// Now it listens, for sure.
    fn answered(&mut self) {
        if let Some(workers) = self.workers.as_mut().filter(|workers| !workers.found()) {
            workers.forget(Instant::now());
        }
    }

    /// When the app's workers are to be looked at, if they are.
    fn count_due(&self) -> Option<Instant> {
        self.child.as_ref().and(self.workers.as_ref()).map(Workers::due)
    }

    fn count_workers(&mut self, server: &Server) {
        let (Some(child), Some(workers)) = (&self.child, &mut self.workers) else { return };
        let now = Instant::now();
        match workers.look(child, now) {
            Look::Same => {}
            Look::Changed => server.mark(),
            Look::Lost(since, why) => {
                if since >= LOST
                    && server.app_has_answered()
                    && !std::mem::replace(&mut self.said_lost, true)
                {
                    warn!("the app's workers cannot be counted ({why}): {}", stays(&self.config));
                }
            }
        }
        // While it boots it has none yet.
        if server.app_has_answered()
            && let Some(slots) = workers.settle(server.older_at_the_app(), now)
        {
            set_slots(server, workers, slots);
        }
    }

    /// Goes by a configuration that was read again, as far as the command does.
    fn reconfigure(&mut self, config: &Config, server: &Server) {
        self.workers = match (self.workers.take(), config.workers) {
            (Some(mut workers), Some(now)) => {
                workers.reconfigure(now);
                Some(workers)
            }
            _ => workers_of(config),
        };
        // As many as are alive, whatever is configured now.
        if let Some(slots) = self.workers.as_ref().and_then(Workers::slots) {
            server.set_slots(slots);
        }
    }

    /// It may still show that it does not take the socket that was passed.
    fn is_new(&self, state: State) -> bool {
        let new = state == State::Starting || self.since.elapsed() < LOOK_FOR;
        self.listener.is_some() && self.child.is_some() && new
    }

    fn look_at_socket(&mut self) {
        if self.listener.as_ref().is_some_and(AppListener::is_replaced) {
            warn!(
                "the app has bound {} itself: the socket that was passed to it is not used (its \
                 process is not the one that was started?)",
                self.config.upstream[0]
            );
            // What has connected to it by now is told so, even if the app holds a copy.
            self.gone();
        }
    }

    /// Nobody will serve the listener any more.
    fn gone(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.refuse();
        }
    }
}

fn workers_of(config: &Config) -> Option<Workers> {
    let [upstream] = &*config.upstream else { return None };
    Some(Workers::new(config.workers?, upstream, Instant::now()))
}

/// What holds where the workers cannot be counted.
fn stays(config: &Config) -> String {
    match config.concurrency {
        Concurrency::Slots(slots) => format!("concurrency stays {slots}, as configured"),
        Concurrency::Off => "concurrency stays off, --concurrency N sets it".to_owned(),
    }
}

fn set_slots(server: &Server, workers: &Workers, slots: usize) {
    server.set_slots(slots);
    info!("concurrency {slots}: the app has {}", workers.describe());
}

/// What events act on.
struct Process {
    server: Server,
    manager: Manager,
    machine: Machine,
    health: Arc<Health>,
    /// The configuration, while it is read again.
    loading: Option<JoinHandle<Option<Arc<Config>>>>,
    /// The manager was told so, and waits for READY=1.
    told_reloading: bool,
}

impl Process {
    /// Takes one event. Some: all is over.
    fn take(&mut self, event: Event, app: &mut App) -> Result<Option<Outcome>, Failure> {
        let todo = self.machine.on(event, self.server.counts(), Instant::now());
        self.perform(todo, app)?;
        Ok(self.machine.outcome().cloned())
    }

    fn perform(&mut self, todo: Vec<Action>, app: &mut App) -> Result<(), Failure> {
        let before = self.health.get();
        let now = self.machine.state();
        self.health.set(now);
        if now != before && matches!(now, State::Draining | State::AppDown) {
            self.manager.stopping();
        }
        let server = &self.server;
        for action in todo {
            match action {
                Action::Open => {
                    server.open().map_err(|e| {
                        Failure::new(format!(
                            "cannot listen on {e}. Does the app bind the same port? (gunicorn binds \
                             0.0.0.0:$PORT unless --bind is given)"
                        ))
                    })?;
                    self.manager.ready();
                }
                Action::AppAnswered => server.app_answered(),
                Action::AnnounceClose => server.announce_close(),
                Action::StopAccepting => server.drain(),
                Action::CloseIdle => server.close_idle(),
                Action::AppGone => {
                    server.app_gone();
                    app.gone();
                }
                Action::ReopenLog => server.reopen_log(),
                Action::Reload => {
                    // While the app boots, READY=1 is still to come, and once.
                    if now == State::Ready {
                        self.manager.reloading();
                        self.told_reloading = true;
                    }
                    // Files are read on the pool (invariant 9), one HUP after the other.
                    let (server, running) = (server.clone(), app.config.clone());
                    let earlier = self.loading.take();
                    self.loading = Some(spawn_local(async move {
                        let earlier = match earlier {
                            Some(earlier) => earlier.await.ok().flatten(),
                            None => None,
                        };
                        let read = spawn_blocking(move || reload(&server, &running)).await;
                        read.ok().flatten().or(earlier)
                    }));
                }
                Action::SignalChild(signal) => app.signal(signal, server),
                Action::StartChild => {
                    if let Err(failure) = app.start_command() {
                        error!("{failure}");
                        // As a shell says that it cannot be run; the next try comes.
                        let ended = Event::ChildEnded(Exit::Code(126), String::new());
                        return self.take(ended, app).map(|_| ());
                    }
                }
                Action::Say(line) => {
                    self.manager.status(&line);
                    info!("{line}");
                }
            }
        }
        Ok(())
    }
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

fn introduce(config: &Config, listening: &[String]) {
    info!("{}", config.boot_line(listening));
    for warning in &config.warnings {
        warn!("{warning}");
    }
}

/// HUP: the file is read again, flags and environment stay. None: what was read is not valid, and
/// changes nothing. `running` is what we were started with.
fn reload(server: &Server, running: &Config) -> Option<Arc<Config>> {
    let mut config = match config::parse_args(&Sources::of_process()) {
        Ok(Invocation::Run(config)) => *config,
        // What was a command to run at the start is one still.
        Ok(_) => return None,
        Err(invalid) => {
            for problem in &invalid.problems {
                error!("HUP: the configuration stays as it was: {problem}");
            }
            return None;
        }
    };
    // A file that is found by its name may be missing for a moment, while it is replaced: that is not
    // a wish for the defaults.
    if let (Some(file), None) = (&running.config_file, &config.config_file) {
        error!(
            "HUP: the configuration stays as it was: {} is not there any more: write it again, or \
             restart without it",
            file.display()
        );
        return None;
    }
    let fixed = config.keep_fixed(running);
    let config = Arc::new(config);
    if let Err(e) = server.reload(config.clone()) {
        error!("HUP: the configuration stays as it was: {e}");
        return None;
    }
    let mut report = match &config.config_file {
        Some(file) => format!("read {} again", file.display()),
        None => "there is no configuration file to read again".to_owned(),
    };
    if !fixed.is_empty() {
        report += &format!("; needs a restart: {}", fixed.join(", "));
    }
    info!("HUP: {report}");
    for warning in config.warnings.iter().filter(|warning| !running.warnings.contains(warning)) {
        warn!("{warning}");
    }
    Some(config)
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
