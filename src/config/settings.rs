//! Every option, once: its name (flag, `BUFPROXY_` variable and key of the file are made of it), its
//! group, its words for `--help` and `docs/options.md`, its default and its parser. `resolve` reads
//! this table; nothing else knows an option's name but the checks that compare two of them.
//!
//! A default is text and goes through the same parser as a value that was given, so that what the
//! documentation says is what happens.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::access_log::{Format, FormatOptions};

use super::app_server;
use super::platform::{self, Platform};
use super::resolve::{Given, Here, Source};
use super::value::{
    Bad, count, duration, field_name, host, listen, or_off, or_zero, share, show_duration,
    show_size, signal, size, upstream, url_path, word,
};
use super::{
    Concurrency, Config, Forwarded, LogDestination, LogQuery, OpenPort, QueueOrder, Retry, Workers,
    trust_presets,
};

/// One option.
pub(super) struct Opt {
    /// Flag and key of the file.
    pub(super) name: &'static str,
    /// A second flag.
    pub(super) alias: Option<&'static str>,
    /// What the value is, for the help.
    pub(super) value: &'static str,
    pub(super) group: &'static str,
    /// The value where nothing is given and `here` knows nothing better. Empty: none.
    pub(super) default: &'static str,
    /// When `here` knows better, in words.
    pub(super) note: &'static str,
    /// A value that is not the default, for messages, documentation and tests.
    pub(super) example: &'static str,
    /// One line.
    pub(super) short: &'static str,
    /// Sentences: what exactly, and why this default.
    pub(super) long: &'static str,
    /// Takes several values.
    pub(super) list: bool,
    /// A better default: the value and where it comes from. Made of the surroundings and of options
    /// that are set by then: those that were given or have no `here`, and those above.
    pub(super) here: Option<HereDefault>,
    /// Parses the value into its place.
    pub(super) set: fn(&mut Config, &Given, &Here<'_>) -> Result<(), Bad>,
}

type HereDefault = fn(&Here<'_>, &Config) -> Option<(String, &'static str)>;

impl Opt {
    /// The name of its environment variable.
    pub(super) fn variable(&self) -> String {
        format!("BUFPROXY_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    /// The default in words.
    pub(super) fn default_text(&self) -> String {
        match (self.default, self.note) {
            ("", note) => note.to_owned(),
            (default, "") => default.to_owned(),
            (default, note) => format!("{default}; {note}"),
        }
    }
}

const ADDRESSES: &str = "Addresses";
const QUEUE: &str = "The app and its queue";
const CLIENTS: &str = "Slow clients";
const LIMITS: &str = "Limits";
const BUFFERS: &str = "Memory and disk";
const HEADS: &str = "Trust and forwarded fields";
const LOGS: &str = "Logs";
const LIFECYCLE: &str = "Start and stop";
const ADMIN: &str = "Administration";

const PLAIN: Opt = Opt {
    name: "",
    alias: None,
    value: "",
    group: "",
    default: "",
    note: "",
    example: "",
    short: "",
    long: "",
    list: false,
    here: None,
    set: |_, _, _| Ok(()),
};

/// The table, in the order of the help.
pub(super) fn table() -> &'static [Opt] {
    TABLE
}

const TABLE: &[Opt] = &[
    Opt {
        name: "listen",
        alias: Some("bind"),
        value: "ADDRESS",
        group: ADDRESSES,
        default: "[::]:8080",
        note: "[::]:$PORT if PORT is set",
        example: "127.0.0.1:8000",
        short: "Where clients come in: host:port, :port or unix:PATH",
        long: "[::] and no host are every address, IPv4 and IPv6 on one socket, because Heroku's Fir \
               needs IPv6; IPv4 alone where the kernel has no IPv6. Port 0 takes a free port; the boot \
               line says which.",
        list: true,
        here: Some(|here, _| Some((format!("[::]:{}", here.variable("PORT")?), "PORT"))),
        set: |c, v, _| put_list(&mut c.listen, v, listen),
    },
    Opt {
        name: "upstream",
        value: "ADDRESS",
        group: ADDRESSES,
        note: "the Unix socket that a wrapped gunicorn, puma or uvicorn names, else a private one \
               that is passed to it; required without such a command",
        example: "unix:/tmp/app.sock",
        short: "Where the app listens: unix:PATH or host:port",
        long: "unix:PATH, unix:///PATH, /PATH, host:port or http://host:port. With several, a request \
               goes to the one with the fewest in flight. May be left out when the wrapped command is \
               gunicorn, puma or uvicorn: the Unix socket that its command line names, else \
               pass-socket with a private one.",
        list: true,
        here: Some(|here, config| {
            if let Some(socket) = &here.gunicorn.socket {
                return Some((format!("unix:{}", socket.display()), "gunicorn's bind"));
            }
            let (server, arguments) = app_server::recognise(&config.command)?;
            Some(match server.bound_socket(arguments) {
                Some(socket) => (format!("unix:{}", socket.display()), "the command"),
                None => (here.private_socket(), PRIVATE),
            })
        }),
        set: |c, v, _| {
            c.private_socket = v.source == Source::Here(PRIVATE);
            put_list(&mut c.upstream, v, upstream)
        },
        ..PLAIN
    },
    Opt {
        name: "threads",
        value: "N",
        group: ADDRESSES,
        default: "1",
        example: "2",
        short: "Event loops",
        long: "One is enough for what Python can answer; the other cores are the app's. More than the \
               cgroup's limit of CPUs is taken, with a warning.",
        set: |c, v, _| {
            put(&mut c.threads, v, |text| match count(text)? {
                threads @ 1..=64 => Ok(threads),
                _ => Err(Bad::new("is too many").write("64 at most")),
            })
        },
        ..PLAIN
    },
    Opt {
        name: "concurrency",
        value: "auto|N|off",
        group: QUEUE,
        default: "auto",
        example: "4",
        short: "Requests at the app at once, for each upstream",
        long: "The others wait in the queue, not in the app's. auto: workers times threads of a \
               wrapped gunicorn of class sync or gthread, read from its command line, \
               GUNICORN_CMD_ARGS, its configuration file and WEB_CONCURRENCY, then as many workers \
               as are seen to run (TTIN, TTOU, one that has died); off where class or threads are \
               not certain. off: as many as max-connections.",
        set: |c, v, here| {
            let slots = match v.one()? {
                "auto" => {
                    c.concurrency_reason = here.gunicorn.reason.clone();
                    c.workers = here.gunicorn.workers;
                    here.gunicorn.workers.and_then(Workers::slots)
                }
                text => or_off(count)(text).map_err(|bad| bad.of(text))?,
            };
            c.concurrency = slots.map_or(Concurrency::Off, Concurrency::Slots);
            Ok(())
        },
        ..PLAIN
    },
    Opt {
        name: "queue",
        value: "N",
        group: QUEUE,
        default: "2048",
        example: "500",
        short: "Complete requests that may wait for a slot; beyond it 503",
        long: "Long enough to bridge a restart of the app under load: deadlines bound the wait, not \
               this number. off: nothing waits.",
        set: |c, v, _| put(&mut c.queue, v, or_zero(count)),
        ..PLAIN
    },
    Opt {
        name: "queue-timeout",
        value: "TIME",
        group: QUEUE,
        default: "15s",
        example: "10s",
        short: "Longest wait in the queue; then 503",
        long: "Nobody waits longer for a page; an answer in half of the router's 30 s still arrives.",
        set: |c, v, _| put(&mut c.queue_timeout, v, duration),
        ..PLAIN
    },
    Opt {
        name: "queue-order",
        value: "ORDER",
        group: QUEUE,
        default: "adaptive",
        example: "fifo",
        short: "Who is next: adaptive or fifo",
        long: "fifo: the one that has waited longest. adaptive: the same, but the newest first once \
               the queue stands (for 200 ms all have waited for more than 100 ms) and loses somebody: \
               a client leaves it or finds it full, or its waits have grown by 3 s and by 30 times \
               what a request usually takes; until it is empty. Then most clients are answered at \
               once; in order, each worker would work for a client that is about to leave. Also \
               decides who is refused when the queue is full: the newcomer, or with the newest first \
               the oldest.",
        set: |c, v, _| {
            put(
                &mut c.queue_order,
                v,
                word(&[("adaptive", QueueOrder::Adaptive), ("fifo", QueueOrder::Fifo)]),
            )
        },
        ..PLAIN
    },
    Opt {
        name: "queue-share",
        value: "SHARE",
        group: QUEUE,
        default: "0.25",
        example: "0.5",
        short: "Of the queue, the most that one client may hold while others wait",
        long: "Then 503. By the client's address as trust resolves it, a network of IPv6 being one; \
               not of peers on this machine or in private networks that trust does not cover: all \
               clients may be behind them. off: no limit.",
        set: |c, v, _| put(&mut c.queue_share, v, or_off(share)),
        ..PLAIN
    },
    Opt {
        name: "app-timeout",
        value: "TIME",
        group: QUEUE,
        default: "60s",
        note: "29s on Heroku",
        example: "20s",
        short: "From a complete request to the first byte of its response; then 504",
        long: "The wait in the queue counts. On Heroku just below the router's 30 s (H12), so that the \
               answer and the log line are ours.",
        here: Some(|here, _| on(here, Platform::Heroku, "29s")),
        set: |c, v, _| put(&mut c.app_timeout, v, duration),
        ..PLAIN
    },
    Opt {
        name: "app-idle-timeout",
        value: "TIME",
        group: QUEUE,
        default: "60s",
        example: "90s",
        short: "Longest pause of the app within a response; then it is cut",
        long: "As nginx's proxy_read_timeout between two reads.",
        set: |c, v, _| put(&mut c.app_idle_timeout, v, duration),
        ..PLAIN
    },
    Opt {
        name: "connect-retry",
        value: "TIME",
        group: QUEUE,
        default: "5s",
        example: "10s",
        short: "How long a request waits for an app that refuses connections",
        long: "Bridges the recycling of a worker or a restart of the app: its socket is absent, \
               refuses, or its listen queue is full. off: 503 at once.",
        set: |c, v, _| put(&mut c.connect_retry, v, or_zero(duration)),
        ..PLAIN
    },
    Opt {
        name: "upstream-keepalive",
        value: "TIME",
        group: QUEUE,
        default: "off",
        example: "1s",
        short: "Keep connections to the app this long when idle",
        long: "Off, because gunicorn's sync workers close anyway and its gthread after 2 s: choose \
               less than the app's own time. A connection that was idle for longer is closed, not \
               used.",
        set: |c, v, _| put(&mut c.upstream_keepalive, v, or_off(duration)),
        ..PLAIN
    },
    Opt {
        name: "upstream-proxy-protocol",
        value: "on|off",
        group: QUEUE,
        default: "off",
        example: "on",
        short: "Tell the app the client's address by a PROXY line",
        long: "Version 1, before each request: a true REMOTE_ADDR also over a Unix socket, without \
               any change of the app. gunicorn takes it with --proxy-protocol auto (before \
               version 23 without a word).",
        set: |c, v, _| {
            put(&mut c.upstream_proxy_protocol, v, word(&[("on", true), ("off", false)]))
        },
        ..PLAIN
    },
    Opt {
        name: "retry",
        value: "WHAT",
        group: QUEUE,
        default: "idempotent",
        example: "proven",
        short: "What is sent again after a failure: proven, idempotent, connect or off",
        long: "connect: where the connection itself failed. proven: also where no worker has read a \
               byte, POST too. idempotent: also GET, HEAD, OPTIONS, PUT and DELETE of which a worker \
               died within 1 s, before its response began.",
        set: |c, v, _| {
            put(
                &mut c.retry,
                v,
                word(&[
                    ("proven", Retry::Proven),
                    ("idempotent", Retry::Idempotent),
                    ("connect", Retry::Connect),
                    ("off", Retry::Off),
                ]),
            )
        },
        ..PLAIN
    },
    Opt {
        name: "error-page",
        value: "FILE",
        group: QUEUE,
        default: "off",
        example: "config/error.html",
        short: "HTML for the errors that bufproxy answers itself",
        long: "Read once, at start; 1m at most. Without it one sentence and the request's id.",
        set: |c, v, here| put(&mut c.error_page, v, or_off(|text| error_page(text, here))),
        ..PLAIN
    },
    Opt {
        name: "gzip",
        value: "LEVEL",
        group: QUEUE,
        default: "off",
        example: "2",
        short: "Compress text-like responses: 1 (fast) to 9 (small)",
        long: "From 1 KiB, for clients that ask for it, never what is encoded already, has a digest or \
               says no-transform. A body that comes whole gets its exact length, a stream is flushed at \
               each part. Heroku's router compresses nothing; its nginx buildpack has level 2.",
        set: |c, v, _| put(&mut c.gzip, v, or_off(gzip_level)),
        ..PLAIN
    },
    Opt {
        name: "header-timeout",
        value: "TIME",
        group: CLIENTS,
        default: "10s",
        example: "5s",
        short: "For the whole head of a request; then 408",
        long: "From its first byte. Cannot be stretched by trickling.",
        set: |c, v, _| put(&mut c.header_timeout, v, duration),
        ..PLAIN
    },
    Opt {
        name: "body-timeout",
        value: "TIME",
        group: CLIENTS,
        default: "30s",
        example: "40s",
        short: "Longest pause within the body of a request; then 408",
        long: "Below the 55 s of Heroku's router, so that the client is told why.",
        set: |c, v, _| put(&mut c.body_timeout, v, duration),
        ..PLAIN
    },
    Opt {
        name: "body-min-rate",
        value: "SIZE",
        group: CLIENTS,
        default: "256",
        example: "1k",
        short: "Bytes a second that a body must make, over each 30 s; else 408",
        long: "Any real client is faster; one that trickles to hold a connection is not, whatever it \
               sent before.",
        set: |c, v, _| put(&mut c.body_min_rate, v, or_off(size)),
        ..PLAIN
    },
    Opt {
        name: "send-timeout",
        value: "TIME",
        group: CLIENTS,
        default: "50s",
        example: "40s",
        short: "Longest time without a byte acknowledged by the client; then it is cut",
        long: "By the socket's unsent count: a client that reads anything at all is not cut. Below the \
               55 s of Heroku's router.",
        set: |c, v, _| put(&mut c.send_timeout, v, duration),
        ..PLAIN
    },
    Opt {
        name: "send-min-rate",
        value: "SIZE",
        group: CLIENTS,
        default: "off",
        example: "256",
        short: "Bytes a second that a client must take, over each 30 s; else it is cut",
        long: "What it has acknowledged counts, and only while something waits for it. Off, because a \
               reader that is slow holds no worker, only its part of memory or disk.",
        set: |c, v, _| put(&mut c.send_min_rate, v, or_off(size)),
        ..PLAIN
    },
    Opt {
        name: "client-keepalive",
        value: "TIME",
        group: CLIENTS,
        default: "75s",
        note: "95s on Heroku, 620s on Cloud Run or with trust gcp, 150s on Render",
        example: "100s",
        short: "Keep idle connections of clients this long",
        long: "Longer than the front keeps them, or it sends a request into a connection that is just \
               being closed (H13, H18, 502). An idle connection holds no buffers.",
        here: Some(|here, config| {
            if config.trust.presets.iter().any(|preset| preset == "gcp") {
                return Some(("620s".to_owned(), "trust gcp"));
            }
            let platform = here.platform?;
            Some((show_duration(platform.client_keepalive()?), platform.variable()))
        }),
        set: |c, v, _| put(&mut c.client_keepalive, v, duration),
        ..PLAIN
    },
    Opt {
        name: "tunnel-idle-timeout",
        value: "TIME",
        group: CLIENTS,
        default: "10m",
        example: "1h",
        short: "Close an upgraded connection on which nothing has moved for this long",
        long: "Either way counts. Heroku's router closes them after 55 s.",
        set: |c, v, _| put(&mut c.tunnel_idle_timeout, v, duration),
        ..PLAIN
    },
    Opt {
        name: "linger-timeout",
        value: "TIME",
        group: CLIENTS,
        default: "5s",
        example: "2s",
        short: "Read on after a refusal, so that the client can read why",
        long: "Closing a socket with unread bytes resets it, and the reset overtakes the answer.",
        set: |c, v, _| put(&mut c.linger_timeout, v, duration),
        ..PLAIN
    },
    Opt {
        name: "max-body",
        value: "SIZE",
        group: LIMITS,
        default: "100m",
        example: "10m",
        short: "Largest body of a request; beyond it 413",
        long: "nginx's 1m refuses the photograph of a telephone.",
        set: |c, v, _| put(&mut c.max_body, v, size),
        ..PLAIN
    },
    Opt {
        name: "max-head",
        value: "SIZE",
        group: LIMITS,
        default: "32k",
        example: "16k",
        short: "Largest head of a request; beyond it 431, or 414 for the target alone",
        long: "As nginx's four buffers of 8k. gunicorn refuses a request line beyond 4094 bytes by \
               itself: --limit-request-line 8190. 1m at most: heads are not part of memory.",
        set: |c, v, _| {
            put(&mut c.max_head, v, |text| match at_least(1024, size(text)?)? {
                bytes @ ..=MAX_HEAD => Ok(bytes),
                _ => Err(Bad::new("is too large").write(show_size(MAX_HEAD as u64) + " at most")),
            })
        },
        ..PLAIN
    },
    Opt {
        name: "max-fields",
        value: "N",
        group: LIMITS,
        default: "100",
        example: "50",
        short: "Most fields in a head; beyond it 431",
        long: "gunicorn's own limit.",
        set: |c, v, _| put(&mut c.max_fields, v, count),
        ..PLAIN
    },
    Opt {
        name: "max-tunnels",
        value: "N",
        group: LIMITS,
        default: "1000",
        example: "100",
        short: "WebSockets and other upgraded connections at once; beyond it 503",
        long: "Each holds a slot of the app for as long as it lives.",
        set: |c, v, _| put(&mut c.max_tunnels, v, count),
        ..PLAIN
    },
    Opt {
        name: "max-connections",
        value: "N",
        group: LIMITS,
        default: "10000",
        note: "at most (descriptors - 64) / 3",
        example: "500",
        short: "Connections of clients; beyond it 503",
        long: "Above 90 % of it those that have been idle longest are closed to make room. Each may need \
               three descriptors: the client, the app, a file. The soft limit of descriptors is raised \
               to the hard one first. A larger number is taken, with a warning.",
        here: Some(|here, _| {
            let carried = platform::max_connections(here.nofile);
            (carried < 10_000).then(|| (carried.max(16).to_string(), "RLIMIT_NOFILE"))
        }),
        set: |c, v, _| put(&mut c.max_connections, v, count),
        ..PLAIN
    },
    Opt {
        name: "max-requests-per-client",
        value: "N",
        group: LIMITS,
        default: "off",
        example: "50",
        short: "Requests of one client at once; beyond it 503",
        long: "From the end of the head to the end of the response, and of the app's work where a client \
               leaves before. By the client's address as trust resolves it, a network of IPv6 being \
               one; not of peers on this machine or in private networks that trust does not cover: all \
               clients may be behind them.",
        set: |c, v, _| put(&mut c.max_requests_per_client, v, or_off(count)),
        ..PLAIN
    },
    Opt {
        name: "memory",
        value: "SIZE",
        group: BUFFERS,
        default: "32m",
        note: "at most 1/16 of the cgroup's limit",
        example: "64m",
        short: "For all bodies together; beyond it they go to disk",
        long: "The app needs the memory more, and holds none of it for slow clients any longer.",
        here: Some(|here, _| {
            let share = (here.cgroup.memory? / 16).max(1 << 20);
            // To the next lower 64k, so that it can be typed.
            (share < 32 << 20).then(|| (show_size(share & !0xffff), "cgroup"))
        }),
        set: |c, v, _| put(&mut c.memory, v, size),
        ..PLAIN
    },
    Opt {
        name: "body-memory",
        value: "SIZE",
        group: BUFFERS,
        default: "64k",
        example: "32k",
        short: "Of one request's body in memory; the rest goes to disk",
        long: "Forms fit; uploads go to disk, where they wait for nothing but their client.",
        set: |c, v, _| put(&mut c.body_memory, v, size),
        ..PLAIN
    },
    Opt {
        name: "response-memory",
        value: "SIZE",
        group: BUFFERS,
        default: "256k",
        example: "128k",
        short: "Of one response's body in memory; the rest goes to disk",
        long: "Pages fit. Only what the client did not take at once is kept at all.",
        set: |c, v, _| put(&mut c.response_memory, v, size),
        ..PLAIN
    },
    Opt {
        name: "spool-dir",
        value: "DIR",
        group: BUFFERS,
        default: "/tmp",
        note: "$TMPDIR if set",
        example: "/var/tmp",
        short: "Where bodies go that do not fit into memory",
        long: "The files have no name: nothing is left behind, whatever happens. Where the default cannot \
               be written to, bodies beyond memory are refused, and that is said at start.",
        here: Some(|here, _| Some((here.variable("TMPDIR")?.to_owned(), "TMPDIR"))),
        set: |c, v, _| put(&mut c.spool_dir, v, path),
        ..PLAIN
    },
    Opt {
        name: "spool-max",
        value: "SIZE",
        group: BUFFERS,
        default: "1g",
        example: "2g",
        short: "Disk for all bodies together",
        long: "Beyond it a request is refused (503) and a response is read only as fast as its client \
               takes it. off: no disk.",
        set: |c, v, _| put(&mut c.spool_max, v, or_zero(size)),
        ..PLAIN
    },
    Opt {
        name: "response-spool-max",
        value: "SIZE",
        group: BUFFERS,
        default: "256m",
        note: "at most a quarter of spool-max",
        example: "512m",
        short: "Disk for one response",
        long: "A larger download holds its worker, as it would without us. off: no disk.",
        here: Some(|_, config| {
            let quarter = config.spool_max / 4;
            (quarter < 256 << 20).then(|| (show_size(quarter), "spool-max"))
        }),
        set: |c, v, _| put(&mut c.response_spool_max, v, or_zero(size)),
        ..PLAIN
    },
    Opt {
        name: "trust",
        value: "WHO",
        group: HEADS,
        default: "off",
        note: "heroku on Heroku",
        example: "private",
        short: "Whose X-Forwarded fields count: a preset, a range, a number of proxies",
        long: "Presets: heroku, fly, render (only the platform's router reaches us), alb, gcp, \
               cloudflare, private; several together. A range as 10.0.0.0/8, or an address. A number: \
               that many proxies in front, counted from the right of X-Forwarded-For. From all others \
               these fields are dropped and made anew.",
        list: true,
        here: Some(|here, _| on(here, Platform::Heroku, "heroku")),
        set: |c, v, _| {
            v.list().iter().try_for_each(|text| {
                trust_presets::add(&mut c.trust, text).map_err(|bad| bad.of(text))
            })
        },
        ..PLAIN
    },
    Opt {
        name: "forwarded",
        value: "MODE",
        group: HEADS,
        default: "preserve",
        example: "replace",
        short: "X-Forwarded-For for the app: preserve, append or replace",
        long: "preserve: as a trusted peer sent it, so the app sees what it would see without us. \
               append: with the peer's address at its end, as nginx's $proxy_add_x_forwarded_for. \
               replace: the one address of the client, right for apps that read the left-most.",
        set: |c, v, _| {
            put(
                &mut c.forwarded,
                v,
                word(&[
                    ("preserve", Forwarded::Preserve),
                    ("append", Forwarded::Append),
                    ("replace", Forwarded::Replace),
                ]),
            )
        },
        ..PLAIN
    },
    Opt {
        name: "real-ip-header",
        value: "NAME",
        group: HEADS,
        default: "off",
        example: "CF-Connecting-IP",
        short: "Field in which a trusted peer names the client",
        long: "Read before X-Forwarded-For, as CF-Connecting-IP or Fly-Client-IP.",
        set: |c, v, _| put(&mut c.real_ip_header, v, or_off(field_name)),
        ..PLAIN
    },
    Opt {
        name: "allow-underscore",
        value: "NAME",
        group: HEADS,
        default: "off",
        example: "x_api_key",
        short: "Fields with _ in their name that are passed on",
        long: "All others are dropped: over a Unix socket gunicorn would believe a client's \
               SCRIPT_NAME, and X_Real_Ip reaches the app under the name of X-Real-Ip.",
        list: true,
        set: |c, v, _| {
            put_list(&mut c.allow_underscore, v, |text| match field_name(text)? {
                name if name.contains('_') => Ok(name.to_ascii_lowercase()),
                _ => Err(Bad::new("has no _ and passes anyway").write("x_api_key")),
            })
        },
        ..PLAIN
    },
    Opt {
        name: "access-log",
        value: "WHERE",
        group: LOGS,
        default: "-",
        example: "/var/log/bufproxy.log",
        short: "One line for each request: - (stdout), a file or off",
        long: "A file is opened again on USR1. A slow reader never slows a client: beyond log-backlog \
               lines are dropped and counted.",
        set: |c, v, _| {
            put(&mut c.access_log, v, |text| match text {
                "-" => Ok(LogDestination::Stdout),
                "off" => Ok(LogDestination::Off),
                _ => path(text).map(LogDestination::File),
            })
        },
        ..PLAIN
    },
    Opt {
        name: "log-format",
        value: "FORMAT",
        group: LOGS,
        default: "l2met",
        example: "combined",
        short: "l2met, logfmt, combined, json or a template",
        long: "A template has nginx's variables, so that a log_format can be pasted: \
               '$remote_addr \"$request\" $status $request_time'. combined is nginx's, byte for byte.",
        set: |c, v, _| {
            put(&mut c.log_format, v, |text| {
                let known = matches!(text, "l2met" | "logfmt" | "combined" | "json");
                if !known && !text.contains('$') {
                    let write = "l2met, logfmt, combined, json or a template as '$request $status'";
                    return Err(Bad::new("is not a format").write(write));
                }
                match Format::parse(text, FormatOptions::default()) {
                    Ok(_) => Ok(text.to_owned()),
                    Err(what) => Err(Bad::new(format!("is not a format: {what}")).whole()),
                }
            })
        },
        ..PLAIN
    },
    Opt {
        name: "log-skip",
        value: "PATH",
        group: LOGS,
        default: "off",
        example: "/healthz",
        short: "Paths that are not logged",
        long: "Compared with the target up to its query, byte for byte; a * at the end stands for any \
               rest.",
        list: true,
        set: |c, v, _| put_list(&mut c.log_skip, v, url_path),
        ..PLAIN
    },
    Opt {
        name: "log-name",
        value: "NAME",
        group: LOGS,
        default: "bufproxy",
        example: "web",
        short: "Name of the measures in the log: measure#NAME.service",
        long: "Two proxies with one log want two names.",
        set: |c, v, _| {
            put(&mut c.log_name, v, |text| {
                let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                if !text.is_empty() && text.len() <= 64 && text.bytes().all(allowed) {
                    return Ok(text.to_owned());
                }
                Err(Bad::new("is not a name of letters, digits, - . _"))
            })
        },
        ..PLAIN
    },
    Opt {
        name: "log-time",
        value: "auto|on|off",
        group: LOGS,
        default: "auto",
        example: "off",
        short: "Begin the lines of l2met and logfmt with the time",
        long: "auto: on, but off on Heroku, whose log has the time already.",
        set: |c, v, _| {
            let auto = !c.heroku;
            put(&mut c.log_time, v, word(&[("auto", auto), ("on", true), ("off", false)]))
        },
        ..PLAIN
    },
    Opt {
        name: "log-query",
        value: "on|off|redact",
        group: LOGS,
        default: "on",
        example: "redact",
        short: "Queries in the log",
        long: "off: the target ends before its ?. redact: the names are logged, the values are not.",
        set: |c, v, _| {
            put(
                &mut c.log_query,
                v,
                word(&[("on", LogQuery::On), ("off", LogQuery::Off), ("redact", LogQuery::Redact)]),
            )
        },
        ..PLAIN
    },
    Opt {
        name: "saturation-log",
        value: "TIME",
        group: LOGS,
        default: "20s",
        example: "1m",
        short: "How often a line says whether the app keeps up",
        long: "Requests at the app, in the queue, their waits and what was refused, as l2met reads it; \
               in the access log if its format is l2met, else in the diagnostics. None without \
               traffic. off: never.",
        set: |c, v, _| put(&mut c.saturation_log, v, or_off(duration)),
        ..PLAIN
    },
    Opt {
        name: "log-level",
        value: "LEVEL",
        group: LOGS,
        default: "info",
        example: "debug",
        short: "Diagnostics on stderr: error, warn, info, debug or trace",
        long: "Apart from the access log, one line each.",
        set: |c, v, _| {
            use tracing::Level;
            put(
                &mut c.log_level,
                v,
                word(&[
                    ("error", Level::ERROR),
                    ("warn", Level::WARN),
                    ("info", Level::INFO),
                    ("debug", Level::DEBUG),
                    ("trace", Level::TRACE),
                ]),
            )
        },
        ..PLAIN
    },
    Opt {
        name: "log-backlog",
        value: "SIZE",
        group: LOGS,
        default: "4m",
        example: "1m",
        short: "Lines that wait for a slow reader of the log; beyond it they are dropped",
        long: "Dropped lines are counted, and said.",
        set: |c, v, _| put(&mut c.log_backlog, v, |text| at_least(64 << 10, size(text)?)),
        ..PLAIN
    },
    Opt {
        name: "open-port",
        value: "ready|early",
        group: LIFECYCLE,
        default: "early",
        note: "ready with a wrapped command",
        example: "early",
        short: "Accept when the app has answered (ready) or at once (early)",
        long: "early: 503 app_starting until the app answers. A sidecar must not depend on who starts \
               first; in front of its own app the platform is better told by a closed port.",
        here: Some(|_, config| {
            (!config.command.is_empty()).then(|| ("ready".to_owned(), "wrapped command"))
        }),
        set: |c, v, _| {
            put(
                &mut c.open_port,
                v,
                word(&[("ready", OpenPort::Ready), ("early", OpenPort::Early)]),
            )
        },
        ..PLAIN
    },
    Opt {
        name: "ready-path",
        value: "PATH",
        group: LIFECYCLE,
        default: "/",
        example: "/up",
        short: "What a wrapped app is asked (HEAD) to see whether it is there",
        long: "Any final answer to / counts; of a path that was set only 2xx and 3xx. One question at \
               a time, not given up while it is pending: gunicorn would execute each. Where neither \
               this nor ready-file is set, READY=1 of sd_notify counts too: the command gets a \
               NOTIFY_SOCKET for it. Not gunicorn, which says so before it has a worker.",
        set: |c, v, _| {
            c.ready_path_set = v.source != Source::Default;
            put(&mut c.ready_path, v, url_path)
        },
        ..PLAIN
    },
    Opt {
        name: "ready-file",
        value: "FILE",
        group: LIFECYCLE,
        default: "off",
        example: "/tmp/app-initialized",
        short: "A file that the app creates when it is there",
        long: "Instead of the question; /tmp/app-initialized is what apps for Heroku's nginx \
               buildpack create. Removed at start.",
        set: |c, v, _| put(&mut c.ready_file, v, or_off(path)),
        ..PLAIN
    },
    Opt {
        name: "ready-host",
        value: "HOST",
        group: LIFECYCLE,
        default: "localhost",
        example: "www.example.com",
        short: "Host of that question",
        long: "For apps that answer only to their own names, and with ready-path.",
        set: |c, v, _| put(&mut c.ready_host, v, host),
        ..PLAIN
    },
    Opt {
        name: "boot-timeout",
        value: "TIME",
        group: LIFECYCLE,
        default: "60s",
        note: "55s on Heroku",
        example: "120s",
        short: "For a wrapped app to answer; then it is stopped and the exit code is 1",
        long: "On Heroku before the 60 s of R10, so that the log says what was missing.",
        here: Some(|here, _| on(here, Platform::Heroku, "55s")),
        set: |c, v, _| put(&mut c.boot_timeout, v, duration),
        ..PLAIN
    },
    Opt {
        name: "pass-socket",
        value: "on|off",
        group: LIFECYCLE,
        default: "off",
        note: "on with a wrapped gunicorn, puma or uvicorn that names no Unix socket",
        example: "on",
        short: "Make the app's Unix socket here and pass it to the wrapped command",
        long: "What waits in it outlives a crash of the app: with restart the next process serves it, \
               else it is known to be unread. No socket is ever stale. Passed as descriptor 3 by \
               LISTEN_FDS and LISTEN_PID, which win over gunicorn's --bind, its file and PORT; puma \
               and uvicorn get --bind-to-activated-sockets=only and --fd 3 on their command line. \
               gunicorn's USR2 needs `os.dup2(server.LISTENERS[0].fileno(), 3)` in the hook \
               `pre_exec(server)`: its new master looks for a descriptor that the old one has closed.",
        here: Some(|_, config| config.private_socket.then(|| ("on".to_owned(), PRIVATE))),
        set: |c, v, _| put(&mut c.pass_socket, v, word(&[("off", false), ("on", true)])),
        ..PLAIN
    },
    Opt {
        name: "restart",
        value: "on|off",
        group: LIFECYCLE,
        default: "off",
        example: "on",
        short: "Start the wrapped command again when it ends by itself",
        long: "After 1 s, 2 s, 4 s and so on to 30 s; from 1 s again when it has run for 60 s. Requests \
               wait meanwhile. Off, because a platform starts the whole again and sees why; a command \
               that ends before the port is open ends us in any case.",
        set: |c, v, _| put(&mut c.restart, v, word(&[("off", false), ("on", true)])),
        ..PLAIN
    },
    Opt {
        name: "child-stop-signal",
        value: "SIGNAL",
        group: LIFECYCLE,
        default: "TERM",
        example: "QUIT",
        short: "Signal that stops the wrapped command",
        long: "TERM, QUIT, INT, HUP, USR1, USR2 or KILL. unicorn stops gracefully on QUIT.",
        set: |c, v, _| put(&mut c.child_stop_signal, v, signal),
        ..PLAIN
    },
    Opt {
        name: "drain-timeout",
        value: "TIME",
        group: LIFECYCLE,
        default: "8s",
        note: "25s on Heroku, Kubernetes, Render and ECS, 4s on Fly",
        example: "20s",
        short: "From the stop signal to the end, whatever is left",
        long: "Contains drain-delay, idle-grace and the stop of the wrapped command, which is told at \
               the latest 3 s before it ends. A little less than the platform's own time to SIGKILL: \
               10 s in Docker (docker stop -t 30 gives more).",
        here: Some(|here, _| {
            let platform = here.platform?;
            Some((show_duration(platform.drain_timeout()), platform.variable()))
        }),
        set: |c, v, _| put(&mut c.drain_timeout, v, duration),
        ..PLAIN
    },
    Opt {
        name: "drain-delay",
        value: "TIME",
        group: LIFECYCLE,
        default: "off",
        note: "5s on Kubernetes, at most a quarter of drain-timeout",
        example: "2s",
        short: "Accept this long after the stop signal",
        long: "Kubernetes takes a pod out of its services while it stops, not before. On Heroku a \
               refused connection goes to another dyno at once.",
        here: Some(|here, config| {
            let delay = quarter_or_5s(config.drain_timeout);
            on(here, Platform::Kubernetes, &show_duration(delay))
        }),
        set: |c, v, _| put(&mut c.drain_delay, v, or_zero(duration)),
        ..PLAIN
    },
    Opt {
        name: "idle-grace",
        value: "TIME",
        group: LIFECYCLE,
        default: "5s",
        note: "at most a quarter of drain-timeout",
        example: "1s",
        short: "Keep idle connections this long when stopping",
        long: "The next request on such a connection is answered with Connection: close; closing it at \
               once would lose the request that is already on its way.",
        here: Some(|_, config| {
            let grace = quarter_or_5s(config.drain_timeout);
            (grace < FIVE_SECONDS).then(|| (show_duration(grace), "drain-timeout"))
        }),
        set: |c, v, _| put(&mut c.idle_grace, v, or_zero(duration)),
        ..PLAIN
    },
    Opt {
        name: "admin",
        value: "ADDRESS",
        group: ADMIN,
        default: "off",
        example: "127.0.0.1:9090",
        short: "Serve /healthz, /readyz, /metrics, /status and POST /drain here",
        long: "host:port or unix:PATH. Not for the public: it has no password, and drain stops \
               bufproxy.",
        set: |c, v, _| put(&mut c.admin, v, or_off(listen)),
        ..PLAIN
    },
    Opt {
        name: "config",
        value: "FILE",
        group: ADMIN,
        note: "bufproxy.toml or config/bufproxy.toml if it exists",
        example: "bufproxy.toml",
        short: "File with any of these options, name = \"value\"",
        long: "TOML, flat: keys are the options' names. Not possible within the file itself.",
        // Read before all others, by `resolve`.
        ..PLAIN
    },
];

/// Where a private socket comes from.
const PRIVATE: &str = "no socket is named";

const FIVE_SECONDS: Duration = Duration::from_secs(5);

fn quarter_or_5s(drain_timeout: Duration) -> Duration {
    FIVE_SECONDS.min(drain_timeout / 4)
}

fn on(here: &Here<'_>, platform: Platform, value: &str) -> Option<(String, &'static str)> {
    (here.platform == Some(platform)).then(|| (value.to_owned(), platform.variable()))
}

fn put<T>(place: &mut T, given: &Given, parse: impl Fn(&str) -> Result<T, Bad>) -> Result<(), Bad> {
    let text = given.one()?;
    *place = parse(text).map_err(|bad| bad.of(text))?;
    Ok(())
}

fn put_list<T>(
    place: &mut Vec<T>,
    given: &Given,
    parse: impl Fn(&str) -> Result<T, Bad>,
) -> Result<(), Bad> {
    for text in given.list() {
        place.push(parse(text).map_err(|bad| bad.of(text))?);
    }
    Ok(())
}

/// More than gunicorn takes in its default fields (100 of 8190 bytes). A head is looked through again
/// with every read, and heads are outside of every budget.
const MAX_HEAD: usize = 1 << 20;

fn at_least(least: usize, size: usize) -> Result<usize, Bad> {
    if size >= least {
        return Ok(size);
    }
    Err(Bad::new("is too small").write(format!("{} at least", show_size(least as u64))))
}

fn path(text: &str) -> Result<PathBuf, Bad> {
    if text.is_empty() || text.contains('\0') {
        return Err(Bad::new("is not a path"));
    }
    Ok(PathBuf::from(text))
}

fn gzip_level(text: &str) -> Result<u32, Bad> {
    match text.parse() {
        Ok(level @ 1..=9) => Ok(level),
        _ => Err(Bad::new("is not a level").write("1 to 9, or off")),
    }
}

fn error_page(text: &str, here: &Here<'_>) -> Result<Vec<u8>, Bad> {
    let bad = |why: String| Bad::new(format!("cannot be used ({why})")).write("a readable file");
    match (here.sources.read)(Path::new(text)) {
        Ok(page) if page.len() > 1 << 20 => Err(bad("it is larger than 1m".to_owned())),
        Ok(page) => Ok(page),
        Err(error) => Err(bad(error.to_string())),
    }
}
