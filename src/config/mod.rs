//! Configuration: what was typed (`settings`) becomes `Config`, in which nothing is optional that
//! must be there. Only this module reads flags, environment and files (invariant 12).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A place to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `[::]` is dual-stack.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// An address of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddr {
    Unix(PathBuf),
    /// Host name or address, port.
    Tcp(String, u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concurrency {
    /// Slots of each upstream.
    Slots(usize),
    /// As many as `max-connections`.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueOrder {
    Adaptive,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogQuery {
    On,
    Off,
    Redact,
}

/// Who may be believed (option `trust`): presets and ranges merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustConfig {
    /// Names of the presets that were given, for the boot line.
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
    pub queue: usize,
    pub queue_timeout: Duration,
    pub queue_order: QueueOrder,
    pub queue_share: f64,
    pub app_timeout: Duration,
    pub app_idle_timeout: Duration,
    pub connect_retry: Duration,
    /// Keep upstream connections at most this long idle.
    pub upstream_keepalive: Option<Duration>,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    /// Bytes a second, checked after the first 30 s of a body.
    pub body_min_rate: Option<u64>,
    pub send_timeout: Duration,
    pub send_min_rate: Option<u64>,
    pub client_keepalive: Duration,
    pub max_body: u64,
    pub max_head: usize,
    pub max_fields: usize,
    pub max_connections: usize,
    pub max_requests_per_client: Option<usize>,
    pub max_tunnels: usize,
    pub tunnel_idle_timeout: Duration,
    pub linger_timeout: Duration,
    pub log_backlog: usize,
    pub body_memory: usize,
    pub response_memory: usize,
    pub memory: u64,
    pub spool_dir: PathBuf,
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
    pub log_level: tracing::Level,
    pub retry: Retry,
    pub error_page: Option<PathBuf>,
    pub open_port: OpenPort,
    /// Path of the readiness probe, and whether it was set (then only 2xx and 3xx count).
    pub ready_path: String,
    pub ready_path_set: bool,
    pub ready_file: Option<PathBuf>,
    pub ready_host: String,
    pub boot_timeout: Duration,
    /// Signal number that stops the child.
    pub child_stop_signal: i32,
    pub drain_timeout: Duration,
    pub drain_delay: Duration,
    pub idle_grace: Duration,
    pub admin: Option<Listen>,
    /// The wrapped command, empty for a sidecar.
    pub command: Vec<std::ffi::OsString>,
    /// The file that was read, for the boot line.
    pub config_file: Option<PathBuf>,
    /// `DYNO` is set.
    pub heroku: bool,
    /// Memory limit of the cgroup, if there is one, for the boot line.
    pub memory_limit: Option<u64>,
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
