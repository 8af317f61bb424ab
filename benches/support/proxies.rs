//! The proxies that are compared: how each is configured and started.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::app::Upstream;
use super::load::Client;
use super::process::Process;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bufproxy,
    /// Another build of it: the program.
    Also(&'static str),
    Nginx,
    /// nginx with buffers that take every body of the bench whole.
    NginxLarge,
    Haproxy,
    Caddy,
    /// benches/reference.rs
    Hyper,
    /// benches/relay.rs
    Relay,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::Bufproxy => "bufproxy",
            Kind::Also(program) => program,
            Kind::Nginx => "nginx",
            Kind::NginxLarge => "nginx, large buffers",
            Kind::Haproxy => "HAProxy",
            Kind::Caddy => "Caddy",
            Kind::Hyper => "hyper reference",
            Kind::Relay => "raw relay",
        }
    }

    /// The version; Err: that it is not here, and how to get it.
    pub(crate) fn version(self) -> Result<String, String> {
        let (program, argument, package) = match self {
            Kind::Bufproxy => (env!("CARGO_BIN_EXE_bufproxy"), "--version", ""),
            Kind::Also(program) => (program, "--version", ""),
            Kind::Nginx | Kind::NginxLarge => ("nginx", "-v", "nginx-light"),
            Kind::Haproxy => ("haproxy", "-v", "haproxy"),
            Kind::Caddy => ("caddy", "version", "caddy"),
            // Of this very build.
            Kind::Hyper | Kind::Relay => return Ok(env!("CARGO_PKG_VERSION").into()),
        };
        let Ok(output) = Command::new(program).arg(argument).output() else {
            return Err(format!("{} is not installed: apt-get install {package}", self.name()));
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let mut words = text.split(['/', ' ', '\n']).map(|word| word.trim_start_matches('v'));
        let version = words.find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
        version.map(String::from).ok_or_else(|| format!("{} says no version", self.name()))
    }
}

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
}

impl Proxy {
    /// Starts `kind` in front of `socket`, with its files in a new directory below `dir`; returns
    /// when it accepts connections. `concurrency` and `options` are bufproxy's.
    pub(crate) fn start(
        kind: Kind,
        socket: &Path,
        upstream: Upstream,
        concurrency: &str,
        options: &[&str],
        dir: &Path,
    ) -> io::Result<Proxy> {
        Proxy::launch(kind, socket, upstream, concurrency, options, 1, dir)
    }

    /// With so many threads; nginx with as many workers.
    pub(crate) fn with_threads(
        kind: Kind,
        socket: &Path,
        upstream: Upstream,
        threads: usize,
        dir: &Path,
    ) -> io::Result<Proxy> {
        let options = ["--threads", &threads.to_string()];
        Proxy::launch(kind, socket, upstream, "off", &options, threads, dir)
    }

    fn launch(
        kind: Kind,
        socket: &Path,
        upstream: Upstream,
        concurrency: &str,
        options: &[&str],
        workers: usize,
        dir: &Path,
    ) -> io::Result<Proxy> {
        let dir = tempfile::Builder::new().prefix("proxy").tempdir_in(dir)?.keep();
        let address = free_address()?;
        let port = address.port().to_string();
        let log = dir.join("access.log");
        File::create(&log)?;
        let keep_alive = upstream == Upstream::KeepAlive;
        let mode = if keep_alive { "keep" } else { "close" };
        let configure = |template: &str, names: &[(&str, &str)]| -> io::Result<_> {
            let mut text = template
                .replace("@PORT@", &port)
                .replace("@SOCKET@", &socket.to_string_lossy())
                .replace("@LOG@", &log.to_string_lossy())
                .replace("@DIR@", &dir.to_string_lossy());
            for (name, value) in names {
                text = text.replace(name, value);
            }
            let path = dir.join("config");
            fs::write(&path, text)?;
            Ok(path)
        };
        let mut command;
        match kind {
            Kind::Bufproxy | Kind::Also(_) => {
                command = Command::new(match kind {
                    Kind::Also(program) => program,
                    _ => env!("CARGO_BIN_EXE_bufproxy"),
                });
                command.arg("--listen").arg(address.to_string());
                command.arg("--upstream").arg(format!("unix:{}", socket.display()));
                command.arg("--concurrency").arg(concurrency);
                command.arg("--access-log").arg(&log);
                command.args(options);
                if keep_alive {
                    command.args(["--upstream-keepalive", "5s"]);
                }
            }
            Kind::Nginx | Kind::NginxLarge => {
                let keep = "keepalive 1024; keepalive_requests 100000000;";
                let reuse = "proxy_http_version 1.1; proxy_set_header Connection \"\";";
                let large = "client_body_buffer_size 2m; proxy_buffers 20 64k; \
                             proxy_buffer_size 64k; proxy_busy_buffers_size 128k;";
                let config = configure(
                    include_str!("../conf/nginx.conf"),
                    &[
                        ("@WORKERS@", &workers.to_string()),
                        ("@KEEPALIVE@", if keep_alive { keep } else { "" }),
                        ("@REUSE@", if keep_alive { reuse } else { "" }),
                        ("@BUFFERS@", if kind == Kind::NginxLarge { large } else { "" }),
                    ],
                )?;
                command = Command::new("nginx");
                command.arg("-c").arg(config);
            }
            Kind::Haproxy => {
                let reuse = if keep_alive { "http-reuse always" } else { "http-reuse never" };
                // As bufproxy is told how many workers there are, so is HAProxy.
                let limit = match concurrency.parse::<usize>() {
                    Ok(workers) => format!("maxconn {workers}"),
                    Err(_) => String::new(),
                };
                let config = configure(
                    include_str!("../conf/haproxy.cfg"),
                    &[("@REUSE@", reuse), ("@LIMIT@", &limit)],
                )?;
                command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(config);
            }
            Kind::Caddy => {
                // Debian 12's is the last version with the old names.
                let old = kind.version().is_ok_and(|version| version == "2.6.2");
                let buffers = if old {
                    "buffer_requests\n\t\tbuffer_responses"
                } else {
                    "request_buffers 64MB\n\t\tresponse_buffers 64MB"
                };
                let config =
                    configure(include_str!("../conf/Caddyfile"), &[("@BUFFERS@", buffers)])?;
                command = Command::new("caddy");
                command.args(["run", "--adapter", "caddyfile", "--config"]).arg(config);
            }
            Kind::Hyper => {
                command = Command::new("/proc/self/exe");
                command.args(["reference", &port]).arg(socket).arg(&log).arg(mode);
            }
            Kind::Relay => {
                command = Command::new("/proc/self/exe");
                command.args(["relay", &port]).arg(socket).arg(mode);
            }
        }
        let log = File::options().append(true).open(log)?;
        let process = start(&command, log, &dir, || TcpStream::connect(address).is_ok())?;
        Ok(Proxy { kind, address, process })
    }

    pub(crate) fn client(&self) -> Client {
        match self.kind {
            Kind::Relay => Client::ignoring_close(self.address),
            _ => Client::new(self.address),
        }
    }
}

/// Starts `command` with its standard output in `log` and its errors in `dir`; returns when `is_up`.
pub(crate) fn start(
    command: &Command,
    log: File,
    dir: &Path,
    is_up: impl Fn() -> bool,
) -> io::Result<Process> {
    let errors = dir.join("errors");
    let mut process = Process::start(command, log, File::create(&errors)?)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_up() {
        if process.has_ended() || Instant::now() > deadline {
            let said = fs::read_to_string(errors)?;
            return Err(io::Error::other(format!("{command:?} did not come up: {said}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(process)
}

/// An address on 127.0.0.1 that nobody listens on now.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
