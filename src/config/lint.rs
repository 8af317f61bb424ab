//! What is right alone and wrong together: settings of the wrapped gunicorn or uvicorn that cost
//! requests, memory or log lines behind bufproxy. Called by `resolve`; `check` shows what is found,
//! and the boot says it once.
//!
//! Each lint is a pure function of the scene that gives one line, with what to change in it. What is
//! not certain (an expression, a class that nobody knows) is passed over: a false alarm costs more
//! than a missed one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::gunicorn::{self, Setting, Settings};
use super::platform::Platform;
use super::value::{show_duration, show_size};
use super::{Concurrency, Config, Listen, LogDestination, UpstreamAddr};

/// What the lints look at.
pub(super) struct Scene<'a> {
    pub(super) config: &'a Config,
    /// What the wrapped command sets, if it is gunicorn.
    pub(super) gunicorn: Option<&'a Settings>,
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) platform: Option<Platform>,
}

/// All that is found.
pub(super) fn warnings(scene: &Scene<'_>) -> Vec<String> {
    let words = scene.config.command.iter().map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> = words.collect();
    let of_bufproxy = tmpfs_spool(scene);
    let of_app = if let Some(gunicorn) = scene.gunicorn {
        let lints: [fn(&Scene<'_>, &Settings) -> Option<String>; 11] = [
            gunicorn_bind,
            reuse_port,
            memory,
            timeout_beyond_router,
            graceful_timeout_beyond_stop,
            few_slots,
            proxy_fields_ignored,
            two_access_logs,
            keepalive_without_effect,
            term_ignored,
            quick_stop,
        ];
        lints.iter().filter_map(|lint| lint(scene, gunicorn)).collect()
    } else if let Some(words) = gunicorn::arguments_of(&["uvicorn"], &words, scene.env) {
        Uvicorn { words: &words, env: scene.env }.warnings(scene)
    } else {
        Vec::new()
    };
    of_bufproxy.into_iter().chain(of_app).collect()
}

impl Scene<'_> {
    fn variable(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn unix_upstream(&self) -> bool {
        self.config.upstream.iter().any(|upstream| matches!(upstream, UpstreamAddr::Unix(_)))
    }

    /// The app binds `place`, as `said` says: is that where bufproxy looks for it? `write` is what it
    /// should bind.
    fn bound(&self, place: &Place, said: &str, write: &str) -> Option<String> {
        let listens = |listen: &Listen| match (listen, place) {
            (Listen::Tcp(ours), Place::Port(theirs)) => ours.port() == *theirs,
            (Listen::Unix(ours), Place::Socket(theirs)) => ours == theirs,
            _ => false,
        };
        let expects = |upstream: &UpstreamAddr| match (upstream, place) {
            (UpstreamAddr::Tcp(_, ours), Place::Port(theirs)) => ours == theirs,
            (UpstreamAddr::Unix(ours), Place::Socket(theirs)) => ours == theirs,
            _ => false,
        };
        if self.config.upstream.iter().any(expects) {
            return None;
        }
        let where_ours = if self.config.listen.iter().any(listens) {
            "where bufproxy listens itself".to_owned()
        } else {
            format!("and bufproxy looks for it at {}", self.config.upstream.first()?)
        };
        Some(format!("{said}, {where_ours}: write {write}"))
    }
}

/// Where an app listens.
enum Place {
    Port(u16),
    Socket(PathBuf),
}

/// An address of gunicorn's `--bind`. None: a descriptor, a relative path, or nothing that is known.
fn place(address: &str) -> Option<Place> {
    if let Some(path) = gunicorn::unix_socket(address) {
        return Some(Place::Socket(path));
    }
    if address.starts_with("unix:") || address.starts_with("fd://") {
        return None;
    }
    let address = address.strip_prefix("tcp://").unwrap_or(address);
    let port = match address.rsplit_once(':') {
        // [::1] alone
        Some((_, port)) if !port.ends_with(']') => port.parse().ok()?,
        _ => 8000,
    };
    Some(Place::Port(port))
}

/// gunicorn has to bind the upstream, and without `--bind` takes $PORT.
fn gunicorn_bind(scene: &Scene<'_>, gunicorn: &Settings) -> Option<String> {
    if scene.config.pass_socket {
        // That socket wins.
        return None;
    }
    let write = format!("--bind {}", scene.config.upstream.first()?);
    let Some(bind) = &gunicorn.bind else {
        return match scene.variable("PORT") {
            Some(port) => scene.bound(
                &Place::Port(port.parse().ok()?),
                &format!("gunicorn has no --bind and so takes $PORT ({port})"),
                &write,
            ),
            None => scene.bound(
                &Place::Port(8000),
                "gunicorn has no --bind and so takes 127.0.0.1:8000",
                &write,
            ),
        };
    };
    let said = |shown: &str| format!("gunicorn has {shown}");
    let Some(addresses) = &bind.literal else {
        // `"[::]:" + os.environ["PORT"]`
        let port = scene.variable("PORT")?.parse().ok()?;
        let shown = bind.show("--bind", "bind");
        return bind
            .text
            .contains("PORT")
            .then(|| scene.bound(&Place::Port(port), &said(&shown), &write))?;
    };
    // Of an exec-form command, which no shell has read.
    let port = scene.variable("PORT").unwrap_or("$PORT");
    let addresses = addresses.replace("${PORT}", port).replace("$PORT", port);
    let found: Option<Vec<Place>> =
        addresses.split(',').map(|address| place(address.trim())).collect();
    let complaints: Option<Vec<String>> = found?
        .iter()
        .map(|place| scene.bound(place, &said(&bind.show("--bind", "bind")), &write))
        .collect();
    // One address that is right is enough.
    complaints?.into_iter().next()
}

/// Heroku's own template has it.
fn reuse_port(scene: &Scene<'_>, gunicorn: &Settings) -> Option<String> {
    let set = gunicorn.reuse_port.as_ref().filter(|set| set.is_on() && scene.unix_upstream())?;
    Some(format!(
        "gunicorn has {}, which a Unix socket does not have: its workers cannot listen and nothing is \
         ever served. Remove it",
        set.show_flag("--reuse-port", "reuse_port")
    ))
}

/// Workers times what one usually takes, against the limit.
fn memory(scene: &Scene<'_>, gunicorn: &Settings) -> Option<String> {
    /// Of a small Django app.
    const TYPICAL: u64 = 100 << 20;
    let limit = scene.config.cgroup.memory?;
    if gunicorn.preload_app.as_ref().is_some_and(|preload| preload.text != "False") {
        // How much they share nobody knows.
        return None;
    }
    let (workers, from) = gunicorn.workers(scene.env).ok()?;
    let (workers, ours) = (workers as u64, scene.config.memory);
    let sum = workers * TYPICAL + ours;
    let fitting = (limit.saturating_sub(ours) / TYPICAL).max(1);
    (sum > limit && workers > fitting).then(|| {
        format!(
            "{workers} gunicorn workers{from} x {} + memory {} = {}, and the cgroup's limit is {}: \
             write --workers {fitting}, or --preload so that they share the app's code",
            show_size(TYPICAL),
            show_size(ours),
            show_size(sum & !0xfffff),
            show_size(limit & !0xfffff)
        )
    })
}

/// Only a sync worker is killed at its timeout; to the others it is a heartbeat.
fn timeout_beyond_router(scene: &Scene<'_>, gunicorn: &Settings) -> Option<String> {
    const ROUTER: u64 = 30;
    let threads = gunicorn.threads.as_ref().map_or(Some(1), Setting::number);
    let set = gunicorn.timeout.as_ref()?;
    let seconds = set.number()?;
    let sync = gunicorn.class() == Ok("sync") && threads == Some(1);
    (scene.platform == Some(Platform::Heroku) && sync && (seconds == 0 || seconds >= ROUTER)).then(
        || {
            format!(
                "gunicorn has {}: the router gives up after 30 s (H12), and the worker goes on for \
                 nobody. Write --timeout 25",
                set.show("--timeout", "timeout")
            )
        },
    )
}

fn graceful_timeout_beyond_stop(scene: &Scene<'_>, gunicorn: &Settings) -> Option<String> {
    let set = gunicorn.graceful_timeout.as_ref()?;
    let drain = scene.config.drain_timeout;
    (Duration::from_secs(set.number()?) > drain).then(|| {
        format!(
            "gunicorn has {}, and is killed at drain-timeout {}: write --graceful-timeout {}, or a \
             longer --drain-timeout where the platform waits for it",
            set.show("--graceful-timeout", "graceful_timeout"),
            show_duration(drain),
            drain.as_secs().saturating_sub(5).max(1)
        )
    })
}

/// As many slots as workers is right for sync and starves the async classes.
fn few_slots(scene: &Scene<'_>, gunicorn: &Settings) -> Option<String> {
    let class = gunicorn.class().ok()?;
    let known = ["gevent", "eventlet", "tornado", "asgi", "uvicorn"];
    if !known.iter().any(|known| class.to_ascii_lowercase().contains(known)) {
        return None;
    }
    let (workers, _) = gunicorn.workers(scene.env).ok()?;
    too_few(scene, workers, &format!("{workers} gunicorn workers of class {class}"))
}

fn too_few(scene: &Scene<'_>, workers: usize, app: &str) -> Option<String> {
    let Concurrency::Slots(slots) = scene.config.concurrency else { return None };
    (slots <= 2 * workers).then(|| {
        format!(
            "--concurrency {slots} leaves {app} idle, which serve many requests at once: write \
             --concurrency {}, or off",
            100 * workers
        )
    })
}

/// gunicorn hands its own setting to a uvicorn worker.
fn proxy_fields_ignored(scene: &Scene<'_>, gunicorn: &Settings) -> Option<String> {
    if !gunicorn.class().ok()?.to_ascii_lowercase().contains("uvicorn") || !scene.unix_upstream() {
        return None;
    }
    let allowed = match &gunicorn.forwarded_allow_ips {
        Some(set) => set.literal.as_deref()?,
        None => scene.variable("FORWARDED_ALLOW_IPS").unwrap_or_default(),
    };
    (!everybody(allowed)).then(|| IGNORED.to_owned())
}

/// A peer on a Unix socket has no address that a list could name.
fn everybody(allowed: &str) -> bool {
    allowed.split(',').any(|allowed| allowed.trim() == "*")
}

const IGNORED: &str = "uvicorn ignores X-Forwarded-For and X-Forwarded-Proto on a Unix socket, so the \
                       app sees no client and the scheme http: set FORWARDED_ALLOW_IPS='*'";

/// Heroku's Python buildpack exports GUNICORN_CMD_ARGS="--access-logfile -".
fn two_access_logs(scene: &Scene<'_>, gunicorn: &Settings) -> Option<String> {
    let set = gunicorn.accesslog.as_ref()?;
    let stdout = matches!(set.literal.as_deref(), Some("-" | "/dev/stdout"));
    (stdout && scene.config.access_log == LogDestination::Stdout).then(|| {
        format!(
            "two access logs on stdout, gunicorn's by {} and bufproxy's: write --access-logfile \
             /dev/null for gunicorn, or --access-log off for bufproxy",
            set.show("--access-logfile", "accesslog")
        )
    })
}

fn keepalive_without_effect(scene: &Scene<'_>, gunicorn: &Settings) -> Option<String> {
    let set = gunicorn.keepalive.as_ref().filter(|set| !set.text.is_empty())?;
    scene.config.upstream_keepalive.is_none().then(|| {
        format!(
            "gunicorn has {}, which does nothing: its connections end with their response. Remove \
             it; client-keepalive {} is for those of clients",
            set.show("--keep-alive", "keepalive"),
            show_duration(scene.config.client_keepalive)
        )
    })
}

/// Workers that ignore TERM (drain first, docs/heroku.md).
fn term_ignored(scene: &Scene<'_>, gunicorn: &Settings) -> Option<String> {
    if gunicorn.ignores_term != Some(true) {
        return None;
    }
    let file = gunicorn.file.as_deref()?;
    if scene.config.child_stop_signal == rustix::process::Signal::TERM.as_raw() {
        return Some(format!(
            "{file} ignores TERM, which is child-stop-signal: write --child-stop-signal QUIT"
        ));
    }
    (scene.platform != Some(Platform::Heroku)).then(|| {
        format!(
            "{file} ignores TERM, by which gunicorn retires its old workers: after HUP or TTOU they \
             stay for graceful_timeout. Restart instead, or remove it where TERM comes to bufproxy \
             alone"
        )
    })
}

/// gunicorn's QUIT cuts what is in flight; only where TERM is ignored it is the way to stop it.
fn quick_stop(scene: &Scene<'_>, gunicorn: &Settings) -> Option<String> {
    let quit = [rustix::process::Signal::QUIT, rustix::process::Signal::INT];
    let quick = quit.iter().any(|signal| signal.as_raw() == scene.config.child_stop_signal);
    (quick && gunicorn.ignores_term == Some(false)).then(|| {
        "--child-stop-signal QUIT and INT cut what is in flight in gunicorn, which stops gracefully by \
         TERM: leave it out, or see \"Stop without loss\" in docs/heroku.md"
            .to_owned()
    })
}

/// What is spilled to memory counts against the limit that spilling is there to keep.
fn tmpfs_spool(scene: &Scene<'_>) -> Option<String> {
    let config = scene.config;
    // Cloud Run's whole file system is memory.
    let in_memory = config.spool_in_memory || scene.platform == Some(Platform::CloudRun);
    let limit = config.cgroup.memory.filter(|_| in_memory)?;
    (config.spool_max > limit / 4).then(|| {
        format!(
            "spool-dir {} is in memory, and spool-max {} of it may be used, of {} in all: write a \
             --spool-dir on disk, or --spool-max {}",
            config.spool_dir.display(),
            show_size(config.spool_max),
            show_size(limit & !0xfffff),
            show_size((limit / 4).max(1 << 20) & !0xfffff)
        )
    })
}

/// The words after uvicorn, and the variables that stand for them.
struct Uvicorn<'a> {
    words: &'a [String],
    env: &'a BTreeMap<String, String>,
}

impl Uvicorn<'_> {
    fn warnings(&self, scene: &Scene<'_>) -> Vec<String> {
        [self.bind(scene), self.few_slots(scene), self.proxy_fields(scene), self.access_log(scene)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The value of `--name`, or of UVICORN_NAME.
    fn option(&self, name: &str) -> Option<&str> {
        let flag = format!("--{name}");
        let variable = format!("UVICORN_{}", name.to_ascii_uppercase().replace('-', "_"));
        let mut found = None;
        for (index, word) in self.words.iter().enumerate() {
            match word.strip_prefix(&flag) {
                Some("") => found = self.words.get(index + 1).map(String::as_str),
                Some(attached) if attached.starts_with('=') => found = attached.get(1..),
                _ => {}
            }
        }
        found.or_else(|| self.env.get(&variable).map(String::as_str))
    }

    fn has(&self, flag: &str) -> bool {
        self.words.iter().any(|word| word == flag)
    }

    fn bind(&self, scene: &Scene<'_>) -> Option<String> {
        if self.option("fd").is_some() {
            return None;
        }
        let write = match scene.config.upstream.first()? {
            UpstreamAddr::Unix(path) => format!("--uds {}", path.display()),
            UpstreamAddr::Tcp(host, port) => format!("--host {host} --port {port}"),
        };
        match (self.option("uds"), self.option("port")) {
            (Some(path), _) if path.starts_with('/') => {
                let said = format!("uvicorn has --uds {path}");
                scene.bound(&Place::Socket(path.into()), &said, &write)
            }
            (Some(_), _) => None,
            (None, Some(port)) => {
                let number = if port == "$PORT" { scene.variable("PORT")? } else { port };
                let said = format!("uvicorn has --port {port}");
                scene.bound(&Place::Port(number.parse().ok()?), &said, &write)
            }
            (None, None) => scene.bound(
                &Place::Port(8000),
                "uvicorn has neither --uds nor --port and so takes 127.0.0.1:8000",
                &write,
            ),
        }
    }

    fn few_slots(&self, scene: &Scene<'_>) -> Option<String> {
        let workers = self.option("workers").or_else(|| scene.variable("WEB_CONCURRENCY"));
        let workers = workers.map_or(Some(1), |text| text.parse().ok())?;
        let many = if workers == 1 { "worker" } else { "workers" };
        too_few(scene, workers, &format!("{workers} uvicorn {many}"))
    }

    fn proxy_fields(&self, scene: &Scene<'_>) -> Option<String> {
        let allowed = self.option("forwarded-allow-ips");
        let allowed = allowed.or_else(|| scene.variable("FORWARDED_ALLOW_IPS"));
        let ignored = scene.unix_upstream() && !everybody(allowed.unwrap_or_default());
        (ignored && !self.has("--no-proxy-headers")).then(|| IGNORED.to_owned())
    }

    fn access_log(&self, scene: &Scene<'_>) -> Option<String> {
        let off = ["--no-access-log", "--log-config"].iter().any(|flag| self.has(flag))
            || self
                .option("log-level")
                .is_some_and(|level| !["info", "debug", "trace"].contains(&level));
        (!off && scene.config.access_log == LogDestination::Stdout).then(|| {
            "two access logs on stdout, uvicorn's and bufproxy's: write --no-access-log for uvicorn, or \
             --access-log off for bufproxy"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests;
