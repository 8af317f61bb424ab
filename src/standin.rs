//! Stand-ins of the supervisor branch until `config` is merged.
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::*;

impl Config {
    pub fn boot_line(&self, addrs: &[String]) -> String {
        format!("bufproxy 0.1.0 listening on {}", addrs.join(", "))
    }
}

pub fn defaults() -> Config {
    Config {
        listen: vec![Listen::Tcp(([127, 0, 0, 1], 0).into())],
        upstream: vec![],
        threads: 1,
        concurrency: Concurrency::Off,
        concurrency_reason: String::new(),
        queue: 2048,
        queue_timeout: Duration::from_secs(15),
        queue_order: QueueOrder::Adaptive,
        queue_share: 0.25,
        app_timeout: Duration::from_secs(60),
        app_idle_timeout: Duration::from_secs(60),
        connect_retry: Duration::from_secs(5),
        upstream_keepalive: None,
        header_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(30),
        body_min_rate: Some(256),
        send_timeout: Duration::from_secs(50),
        send_min_rate: None,
        client_keepalive: Duration::from_secs(75),
        max_body: 100 << 20,
        max_head: 32 << 10,
        max_fields: 100,
        max_connections: 1000,
        max_requests_per_client: None,
        max_tunnels: 1000,
        tunnel_idle_timeout: Duration::from_secs(600),
        linger_timeout: Duration::from_secs(5),
        log_backlog: 4 << 20,
        body_memory: 64 << 10,
        response_memory: 256 << 10,
        memory: 32 << 20,
        spool_dir: std::env::temp_dir(),
        spool_max: 1 << 30,
        response_spool_max: 256 << 20,
        trust: TrustConfig::default(),
        forwarded: Forwarded::Preserve,
        real_ip_header: None,
        allow_underscore: vec![],
        access_log: LogDestination::Stdout,
        log_format: "l2met".into(),
        log_skip: vec![],
        log_name: "bufproxy".into(),
        log_time: true,
        log_query: LogQuery::On,
        log_level: tracing::Level::INFO,
        retry: Retry::Idempotent,
        error_page: None,
        open_port: OpenPort::Ready,
        ready_path: "/".into(),
        ready_path_set: false,
        ready_file: None,
        ready_host: "localhost".into(),
        boot_timeout: Duration::from_secs(60),
        child_stop_signal: 15,
        drain_timeout: Duration::from_secs(8),
        drain_delay: Duration::ZERO,
        idle_grace: Duration::from_secs(2),
        admin: None,
        command: vec![],
        config_file: None,
        heroku: false,
        memory_limit: None,
    }
}

pub fn listen(text: &str) -> Listen {
    match text.strip_prefix("unix:") {
        Some(path) => Listen::Unix(path.into()),
        None => Listen::Tcp(text.parse().unwrap()),
    }
}

pub fn parse_args(args: impl IntoIterator<Item = OsString>) -> Config {
    let mut config = defaults();
    let mut args = args.into_iter();
    while let Some(flag) = args.next() {
        let flag = flag.into_string().unwrap();
        if flag == "--" {
            config.command = args.collect();
            break;
        }
        let value = args.next().unwrap().into_string().unwrap();
        match flag.as_str() {
            "--upstream" => config.upstream.push(match value.strip_prefix("unix:") {
                Some(path) => UpstreamAddr::Unix(path.into()),
                None => {
                    let (host, port) = value.rsplit_once(':').unwrap();
                    UpstreamAddr::Tcp(host.into(), port.parse().unwrap())
                }
            }),
            "--listen" => config.listen = vec![listen(&value)],
            "--admin" => config.admin = Some(listen(&value)),
            "--ready-path" => (config.ready_path, config.ready_path_set) = (value, true),
            "--ready-file" => config.ready_file = Some(PathBuf::from(value)),
            "--boot-timeout" => config.boot_timeout = seconds(&value),
            "--drain-timeout" => config.drain_timeout = seconds(&value),
            "--drain-delay" => config.drain_delay = seconds(&value),
            "--idle-grace" => config.idle_grace = seconds(&value),
            "--child-stop-signal" => config.child_stop_signal = value.parse().unwrap(),
            "--open-port" => config.open_port = OpenPort::Early,
            _ => panic!("{flag}"),
        }
    }
    config
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs_f64(text.trim_end_matches('s').parse().unwrap())
}
