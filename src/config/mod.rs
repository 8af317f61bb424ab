//! Configuration: what was typed (`settings`) becomes `Config`, in which nothing is optional that
//! must be there. Only this module reads flags, environment and files (invariant 12).
//!
//! `main` calls `parse_args` once. The options are a table in `settings`; `command_line`, the
//! environment and the file give texts, `resolve` picks the winner of each and parses it (`value`);
//! `platform`, `cgroup`, `gunicorn` and `trust_presets` know the surroundings; `lint` looks for what is right alone
//! and wrong together with the app; `check` shows the result.

mod app_server;
pub mod cgroup;
mod check;
mod command_line;
mod gunicorn;
mod lint;
pub mod platform;
#[cfg(test)]
mod reference;
mod resolve;
mod settings;
#[cfg(test)]
mod tests;
pub mod trust_presets;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use platform::ReadFile;
use resolve::{Flags, resolve};

/// Everything that a configuration is made of, so that tests can make it up.
pub struct Sources<'a> {
    /// Without the program's name.
    pub args: Vec<OsString>,
    pub env: BTreeMap<String, String>,
    /// Reads a file; relative paths are the working directory's.
    pub read: ReadFile<'a>,
    /// Whether files of a directory are kept in memory; an error when it cannot have files.
    pub in_memory: &'a dyn Fn(&Path) -> io::Result<bool>,
    /// What lies at a path where a socket should be, if it is something else: `a file`.
    pub no_socket: &'a dyn Fn(&Path) -> Option<&'static str>,
    /// Whether a log can be opened at this path, as far as that is known without opening it.
    pub takes_a_log: &'a dyn Fn(&Path) -> io::Result<()>,
    /// Open files that we may have, once the soft limit is raised.
    pub nofile: u64,
    /// Where the app's socket is made when nobody names one.
    pub private_socket: PathBuf,
}

impl Sources<'_> {
    /// Those of this process. What is not UTF-8 in the environment becomes U+FFFD, which no option
    /// accepts.
    pub fn of_process() -> Sources<'static> {
        let text = |text: OsString| text.to_string_lossy().into_owned();
        Sources {
            args: std::env::args_os().skip(1).collect(),
            env: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
            read: &|path| std::fs::read(path),
            in_memory: &platform::in_memory,
            no_socket: &platform::no_socket,
            takes_a_log: &platform::takes_a_log,
            nofile: platform::nofile(),
            private_socket: platform::private_socket(),
        }
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    Run(Box<Config>),
    /// `check`: the effective configuration, to be printed.
    Check(String),
    Demo,
    Healthcheck(Healthcheck),
    Drain(Drain),
    Probe(Probe),
    /// To be printed on stdout.
    Help(String),
    Version(String),
}

/// `healthcheck`: ask this admin listener, at most this long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Healthcheck {
    pub admin: Listen,
    pub timeout: Duration,
}

/// `drain`: ask the bufproxy with this admin listener to stop; with `wait`, until it has, at most
/// this long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    pub admin: Listen,
    pub wait: bool,
    pub timeout: Duration,
}

/// `probe`: this site, with so many slow clients of each kind; how long a fast one may wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub host: String,
    pub port: u16,
    /// With its query.
    pub path: String,
    pub clients: usize,
    pub timeout: Duration,
}

/// Exit code of a configuration that cannot be used; nothing was started.
pub const UNUSABLE: u8 = 2;

/// All that is wrong, one line each. The exit code for it is `UNUSABLE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problems.iter().try_for_each(|problem| writeln!(f, "bufproxy: error: {problem}"))
    }
}

impl std::error::Error for ConfigError {}

fn cannot_log(named: &str, error: &io::Error) -> String {
    format!("{named} cannot be opened ({error}): write a file that can be written to, - or off")
}

/// Reads the command line, and for what is to run everything else.
pub fn parse_args(sources: &Sources<'_>) -> Result<Invocation, ConfigError> {
    use command_line::Typed;
    let failed = |problems| ConfigError { problems };
    let typed = command_line::read(&sources.args).map_err(|problem| failed(vec![problem]))?;
    Ok(match typed {
        Typed::Help(text) => Invocation::Help(text),
        Typed::Version => Invocation::Version(format!("{NAME_AND_VERSION}\n")),
        Typed::Demo => Invocation::Demo,
        Typed::Run(flags, command) => {
            let resolved = resolve(sources, &flags, command).map_err(failed)?;
            Invocation::Run(Box::new(resolved.config))
        }
        Typed::Check(flags, command) => {
            let resolved = resolve(sources, &flags, command).map_err(failed)?;
            Invocation::Check(check::text(&resolved))
        }
        Typed::Healthcheck(flags, timeout) => {
            let (admin, timeout) =
                asked(sources, &flags, "healthcheck", &timeout).map_err(failed)?;
            Invocation::Healthcheck(Healthcheck { admin, timeout })
        }
        Typed::Drain(flags, timeout, wait) => {
            let (admin, timeout) = asked(sources, &flags, "drain", &timeout).map_err(failed)?;
            Invocation::Drain(Drain { admin, wait, timeout })
        }
        Typed::Probe(url, clients, timeout) => {
            Invocation::Probe(probe(&url, &clients, &timeout).map_err(|bad| failed(vec![bad]))?)
        }
    })
}

/// The admin listener that a subcommand asks, and `--timeout`.
fn asked(
    sources: &Sources<'_>,
    flags: &Flags,
    subcommand: &str,
    timeout: &str,
) -> Result<(Listen, Duration), Vec<String>> {
    let timeout =
        value::duration(timeout).map_err(|bad| vec![complaint("timeout", timeout, bad, "2s")])?;
    let admin = resolve::admin(sources, flags)?.ok_or_else(|| {
        vec![format!(
            "{subcommand} asks the admin listener: write --admin, or set BUFPROXY_ADMIN for both"
        )]
    })?;
    Ok((admin, timeout))
}

/// An option of a subcommand that is none of the table's.
fn complaint(option: &str, given: &str, bad: value::Bad, example: &str) -> String {
    let write = if bad.write.is_empty() { example } else { &bad.write };
    format!("--{option} {given:?} {}: write {write}", bad.what)
}

fn probe(url: &str, clients: &str, timeout: &str) -> Result<Probe, String> {
    let bad = |is: &str| format!("{url:?} {is}: write the site's URL, as http://localhost:8080/");
    let site = url.strip_prefix("http://").ok_or_else(|| match url.starts_with("https://") {
        true => bad("asks for TLS, which probe does not speak"),
        false => bad("is not a URL"),
    })?;
    let (authority, path) = site.split_at(site.find('/').unwrap_or(site.len()));
    let named = [authority.to_owned(), format!("{authority}:80")];
    let found = named.iter().find_map(|named| match value::upstream(named) {
        Ok(UpstreamAddr::Tcp(host, port)) => Some((host, port)),
        _ => None,
    });
    let (host, port) = found.ok_or_else(|| bad("names no host"))?;
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(bad("has a path with other than visible ASCII"));
    }
    let path = if path.is_empty() { "/" } else { path }.to_owned();
    let clients = match value::count(clients) {
        Ok(number @ 1..=1000) => number,
        Ok(_) => {
            return Err(complaint(
                "clients",
                clients,
                value::Bad::new("is too many"),
                "1000 at most",
            ));
        }
        Err(bad) => return Err(complaint("clients", clients, bad, "50")),
    };
    let timeout =
        value::duration(timeout).map_err(|bad| complaint("timeout", timeout, bad, "5s"))?;
    Ok(Probe { host, port, path, clients, timeout })
}

const NAME_AND_VERSION: &str = concat!("bufproxy ", env!("CARGO_PKG_VERSION"));

/// A place to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `[::]` is dual-stack.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddr {
    Unix(PathBuf),
    /// Host name or address, port.
    Tcp(String, u16),
}

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UpstreamAddr::Unix(path) => write!(f, "unix:{}", path.display()),
            UpstreamAddr::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            UpstreamAddr::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concurrency {
    /// Slots of each upstream.
    Slots(usize),
    /// As many as `max-connections`.
    Off,
}

/// The workers of a wrapped server that serves one request a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workers {
    /// As configured. None: only the app knows.
    pub number: Option<usize>,
    /// Of each of them.
    pub threads: usize,
}

impl Workers {
    /// Requests that they serve at once.
    fn slots(self) -> Option<usize> {
        Some(self.number? * self.threads)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueOrder {
    /// The one that has waited longest; in overload the newest.
    Adaptive,
    /// The one that has waited longest.
    Fifo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    Proven,
    Idempotent,
    Connect,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    Preserve,
    Append,
    Replace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenPort {
    Ready,
    Early,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogDestination {
    Stdout,
    File(PathBuf),
    Off,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogQuery {
    #[default]
    On,
    Off,
    Redact,
}

/// Who may be believed (option `trust`): presets and ranges merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustConfig {
    /// What was given, word for word, for the boot line: names of presets, ranges, hops.
    pub presets: Vec<String>,
    /// Peers (and elements of X-Forwarded-For) whose word counts.
    pub ranges: Vec<ipnet::IpNet>,
    /// The peer is trusted whatever its address (heroku, fly, render: only the router reaches us).
    pub any_peer: bool,
    /// Number of trusted proxies in front, counted from the right of X-Forwarded-For.
    pub hops: Option<usize>,
    /// A Unix-socket peer is trusted.
    pub unix: bool,
}

/// Everything that runs. One field for each option of the design's section 9 that the code needs;
/// names are the option's with `_`.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: Vec<Listen>,
    pub upstream: Vec<UpstreamAddr>,
    pub threads: usize,
    pub concurrency: Concurrency,
    /// Why `concurrency` is what it is, for the boot line: `gunicorn sync, 4 workers`.
    pub concurrency_reason: String,
    /// `concurrency` is auto and goes by how many of these are alive.
    pub workers: Option<Workers>,
    /// 0: nothing waits.
    pub queue: usize,
    pub queue_timeout: Duration,
    pub queue_order: QueueOrder,
    /// Of the queue, the part that one client may hold while others wait.
    pub queue_share: Option<f64>,
    pub app_timeout: Duration,
    pub app_idle_timeout: Duration,
    /// Zero: no second try.
    pub connect_retry: Duration,
    /// Keep upstream connections at most this long idle.
    pub upstream_keepalive: Option<Duration>,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    /// Bytes a second, over each 30 s of a body.
    pub body_min_rate: Option<u64>,
    pub send_timeout: Duration,
    /// Bytes a second, over each 30 s in which a response waits for its client.
    pub send_min_rate: Option<u64>,
    pub client_keepalive: Duration,
    pub max_body: u64,
    pub max_head: usize,
    pub max_fields: usize,
    pub max_connections: usize,
    /// In flight.
    pub max_requests_per_client: Option<usize>,
    pub max_tunnels: usize,
    pub tunnel_idle_timeout: Duration,
    pub linger_timeout: Duration,
    pub log_backlog: usize,
    pub body_memory: usize,
    pub response_memory: usize,
    pub memory: u64,
    pub spool_dir: PathBuf,
    /// `spool_dir` is a tmpfs or the like: what is spilled there is memory all the same.
    pub spool_in_memory: bool,
    /// 0: no disk.
    pub spool_max: u64,
    pub response_spool_max: u64,
    pub trust: TrustConfig,
    pub forwarded: Forwarded,
    pub real_ip_header: Option<String>,
    /// Names with `_` that are passed on all the same (option `allow-underscore`, lower case).
    pub allow_underscore: Vec<String>,
    pub access_log: LogDestination,
    /// A format's name (`l2met`, `logfmt`, `combined`, `json`) or a template.
    pub log_format: String,
    pub log_skip: Vec<String>,
    pub log_name: String,
    /// The text formats begin with `time=`.
    pub log_time: bool,
    pub log_query: LogQuery,
    /// How often a line says whether the app keeps up.
    pub saturation_log: Option<Duration>,
    pub log_level: tracing::Level,
    pub retry: Retry,
    /// Content of the file of `error-page`, read at start.
    pub error_page: Option<Vec<u8>>,
    /// Compression level of responses, 1 to 9.
    pub gzip: Option<u32>,
    /// A PROXY protocol line (version 1) before each request to the app.
    pub upstream_proxy_protocol: bool,
    pub open_port: OpenPort,
    /// Path of the readiness probe, and whether it was set (then only 2xx and 3xx count).
    pub ready_path: String,
    pub ready_path_set: bool,
    pub ready_file: Option<PathBuf>,
    pub ready_host: String,
    pub boot_timeout: Duration,
    /// The child is started again when it ends by itself.
    pub restart: bool,
    /// The one upstream's listener is made here and passed to the child.
    pub pass_socket: bool,
    /// Nobody has named that socket: its directory is made, too.
    pub private_socket: bool,
    /// Signal number that stops the child.
    pub child_stop_signal: i32,
    pub drain_timeout: Duration,
    pub drain_delay: Duration,
    pub idle_grace: Duration,
    pub admin: Option<Listen>,
    /// The wrapped command, empty for a sidecar.
    pub command: Vec<OsString>,
    /// The file that was read, for the boot line.
    pub config_file: Option<PathBuf>,
    /// `DYNO` is set.
    pub heroku: bool,
    /// What it may use, for the boot line.
    pub cgroup: cgroup::Limits,
    /// What is odd but no error, one line each, to be said at start.
    pub warnings: Vec<String>,
    /// Where the values are from that only their use proves wrong, by option: ` (from PORT)`.
    pub from: BTreeMap<&'static str, String>,
}

impl Config {
    /// The first line that is said: where it listens (as bound), in front of what, and why so.
    pub fn boot_line(&self, listening: &[String]) -> String {
        let upstream: Vec<String> = self.upstream.iter().map(ToString::to_string).collect();
        let mut line = format!(
            "{NAME_AND_VERSION} listening on {} in front of {}, concurrency {}",
            listening.join(" and "),
            upstream.join(" and "),
            check::concurrency(self)
        );
        if self.pass_socket {
            line += ", socket passed to the app";
        }
        line += &match self.trust.presets.as_slice() {
            [] => ", trust none".to_owned(),
            presets => format!(", trust {}", presets.join(" and ")),
        };
        line += &format!(", memory {}", value::show_size(self.memory));
        if let Some(limit) = self.cgroup.memory {
            line += &format!(" of {}", cgroup::show_memory(limit));
        }
        if let Some(limit) = self.cgroup.cpu {
            line += &format!(", cpu {}", cgroup::show_cpu(limit));
        }
        let medium = if self.spool_in_memory { "memory" } else { "disk" };
        line += &match self.spool_max {
            0 => ", spool off".to_owned(),
            max => {
                let max = value::show_size(max);
                format!(", spool {} ({medium}, {max})", self.spool_dir.display())
            }
        };
        if let Some(file) = &self.config_file {
            line += &format!(", config {}", file.display());
        }
        line
    }

    /// `--access-log "/var/log/a" (from BUFPROXY_ACCESS_LOG)`, of listen, admin and access-log.
    pub fn named(&self, option: &str, value: &dyn fmt::Display) -> String {
        let from = self.from.get(option).map_or("", String::as_str);
        format!("--{option} {:?}{from}", value.to_string())
    }

    /// The line for an address of listen or admin that cannot be bound, with what would be right.
    pub fn cannot_bind(&self, option: &str, address: &Listen, error: &io::Error) -> String {
        use io::ErrorKind::{
            AddrInUse, AddrNotAvailable, NotADirectory, NotFound, PermissionDenied,
        };
        let write = match (error.kind(), address) {
            (AddrInUse, _) => "end what listens there, or write another address",
            (AddrNotAvailable, _) => "write an address of this machine, or :PORT for all of them",
            (PermissionDenied, Listen::Tcp(_)) => "write a port above 1023",
            (PermissionDenied, _) => "write a path in a directory that can be written to",
            (NotFound | NotADirectory, _) => "write a path in a directory that exists",
            _ => "write another address",
        };
        format!("{} cannot be bound ({error}): {write}", self.named(option, address))
    }

    /// The line for an access log that cannot be opened.
    pub fn cannot_log(&self, error: &io::Error) -> String {
        let path = match &self.access_log {
            LogDestination::File(path) => path.display().to_string(),
            LogDestination::Stdout | LogDestination::Off => "-".to_owned(),
        };
        cannot_log(&self.named("access-log", &path), error)
    }

    /// The command is gunicorn, as far as can be seen.
    pub fn runs_gunicorn(&self) -> bool {
        matches!(app_server::recognise(&self.command), Some((app_server::AppServer::Gunicorn, _)))
    }

    /// Keeps what a reload cannot change as it is in `running`: what was bound, started or allocated
    /// with it goes on. Gives the options that were to be changed.
    pub fn keep_fixed(&mut self, running: &Config) -> Vec<&'static str> {
        fn keep<T: Clone + PartialEq>(value: &mut T, running: &T) -> bool {
            let differs = value != running;
            value.clone_from(running);
            differs
        }
        let kept = [
            ("listen", keep(&mut self.listen, &running.listen)),
            // The command has the socket, or was told which to bind.
            ("upstream", !self.command.is_empty() && keep(&mut self.upstream, &running.upstream)),
            ("threads", keep(&mut self.threads, &running.threads)),
            ("memory", keep(&mut self.memory, &running.memory)),
            ("spool-dir", keep(&mut self.spool_dir, &running.spool_dir)),
            ("spool-max", keep(&mut self.spool_max, &running.spool_max)),
            ("admin", keep(&mut self.admin, &running.admin)),
            ("log-level", keep(&mut self.log_level, &running.log_level)),
            ("log-backlog", keep(&mut self.log_backlog, &running.log_backlog)),
            ("drain-timeout", keep(&mut self.drain_timeout, &running.drain_timeout)),
            ("drain-delay", keep(&mut self.drain_delay, &running.drain_delay)),
            ("idle-grace", keep(&mut self.idle_grace, &running.idle_grace)),
            ("restart", keep(&mut self.restart, &running.restart)),
            ("pass-socket", keep(&mut self.pass_socket, &running.pass_socket)),
            ("child-stop-signal", keep(&mut self.child_stop_signal, &running.child_stop_signal)),
        ];
        kept.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }

    /// All defaults, in front of `unix:/tmp/app.sock`: what other modules' tests begin with.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Config {
        tests::run(&["--upstream", "unix:/tmp/app.sock"])
    }

    /// Nothing set yet: the table's setters give every field that is an option its value, default or
    /// not.
    fn unset() -> Config {
        Config {
            listen: Vec::new(),
            upstream: Vec::new(),
            threads: 0,
            concurrency: Concurrency::Off,
            concurrency_reason: String::new(),
            workers: None,
            queue: 0,
            queue_timeout: Duration::ZERO,
            queue_order: QueueOrder::Fifo,
            queue_share: None,
            app_timeout: Duration::ZERO,
            app_idle_timeout: Duration::ZERO,
            connect_retry: Duration::ZERO,
            upstream_keepalive: None,
            header_timeout: Duration::ZERO,
            body_timeout: Duration::ZERO,
            body_min_rate: None,
            send_min_rate: None,
            max_requests_per_client: None,
            send_timeout: Duration::ZERO,
            client_keepalive: Duration::ZERO,
            max_body: 0,
            max_head: 0,
            max_fields: 0,
            max_connections: 0,
            max_tunnels: 0,
            tunnel_idle_timeout: Duration::ZERO,
            linger_timeout: Duration::ZERO,
            log_backlog: 0,
            body_memory: 0,
            response_memory: 0,
            memory: 0,
            spool_dir: PathBuf::new(),
            spool_in_memory: false,
            spool_max: 0,
            response_spool_max: 0,
            trust: TrustConfig::default(),
            forwarded: Forwarded::Preserve,
            real_ip_header: None,
            allow_underscore: Vec::new(),
            access_log: LogDestination::Off,
            log_format: String::new(),
            log_skip: Vec::new(),
            log_name: String::new(),
            log_time: false,
            log_query: LogQuery::Off,
            saturation_log: None,
            log_level: tracing::Level::INFO,
            retry: Retry::Off,
            error_page: None,
            gzip: None,
            upstream_proxy_protocol: false,
            open_port: OpenPort::Early,
            ready_path: String::new(),
            ready_path_set: false,
            ready_file: None,
            ready_host: String::new(),
            boot_timeout: Duration::ZERO,
            restart: false,
            pass_socket: false,
            private_socket: false,
            child_stop_signal: 0,
            drain_timeout: Duration::ZERO,
            drain_delay: Duration::ZERO,
            idle_grace: Duration::ZERO,
            admin: None,
            command: Vec::new(),
            config_file: None,
            heroku: false,
            cgroup: cgroup::Limits::default(),
            warnings: Vec::new(),
            from: BTreeMap::new(),
        }
    }
}

/// The peer of a client connection, IPv4-mapped addresses unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Ip(SocketAddr),
    Unix,
}

impl Peer {
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Peer::Ip(addr) => Some(addr.ip()),
            Peer::Unix => None,
        }
    }
}
