//! From what was typed to `Config`: reads flags, environment and file as text, keeps where each text
//! came from, and runs the table's parsers over the winner (flag, environment, file, surroundings,
//! default). Called by `config::parse_args`. All problems are collected; nothing is half applied.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::app_server;
use super::cgroup::{self, Limits};
use super::gunicorn::{self, Gunicorn};
use super::lint;
use super::platform::{self, Platform};
use super::settings::{Opt, table};
use super::value::{self, Bad};
use super::{
    Concurrency, Config, Listen, LogDestination, OpenPort, Sources, UpstreamAddr, cannot_log,
};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Flag,
    /// The variable's name.
    Env(String),
    /// File and line.
    File(String, usize),
    /// What of the surroundings made it.
    Here(&'static str),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag => f.write_str("flag"),
            Source::Env(name) => f.write_str(name),
            Source::File(file, line) => write!(f, "{file} line {line}"),
            Source::Here(what) => f.write_str(what),
            Source::Default => f.write_str("default"),
        }
    }
}

/// The text of an option, still unread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) texts: Vec<String>,
    pub(super) source: Source,
}

impl Given {
    /// The text of an option that has one value.
    pub(super) fn one(&self) -> Result<&str, Bad> {
        match self.texts.as_slice() {
            [text] => Ok(text),
            texts => {
                let what = format!("is given {} times", texts.len());
                Err(Bad::new(what).write("it once").of(&texts.join(", ")))
            }
        }
    }

    /// The elements of an option that has several; `off` alone is none.
    pub(super) fn list(&self) -> &[String] {
        match self.texts.as_slice() {
            [off] if off == "off" => &[],
            texts => texts,
        }
    }

    fn new(opt: &Opt, text: &str, source: Source) -> Given {
        let texts = match opt.list {
            // The default of an option that has none.
            _ if text.is_empty() && source == Source::Default => Vec::new(),
            true => text.split(',').map(|part| part.trim().to_owned()).collect(),
            false => vec![text.to_owned()],
        };
        Given { texts, source }
    }

    /// `--max-body "100mb" (from BUFPROXY_MAX_BODY)`
    fn name(&self, opt: &Opt, text: &str) -> String {
        format!("--{} {text:?}{}", opt.name, self.from())
    }

    /// ` (from BUFPROXY_MAX_BODY)`
    fn from(&self) -> String {
        match &self.source {
            Source::Flag => String::new(),
            Source::Default => " (default)".to_owned(),
            source => format!(" (from {source})"),
        }
    }
}

/// What defaults are made of.
pub(super) struct Here<'a> {
    pub(super) sources: &'a Sources<'a>,
    pub(super) platform: Option<Platform>,
    pub(super) cgroup: Limits,
    pub(super) nofile: u64,
    pub(super) gunicorn: Gunicorn,
}

impl Here<'_> {
    /// A variable that is set and not empty.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.sources.env.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn private_socket(&self) -> String {
        format!("unix:{}", self.sources.private_socket.display())
    }
}

/// Everything that was resolved: the configuration and the text of each option behind it.
pub(super) struct Resolved {
    pub(super) config: Config,
    /// By option, in the table's order.
    pub(super) given: Vec<(&'static Opt, Given)>,
}

/// Flags by option's name, as the command line had them.
pub(super) type Flags = BTreeMap<&'static str, Vec<String>>;

/// Resolves every option.
pub(super) fn resolve(
    sources: &Sources<'_>,
    flags: &Flags,
    command: Vec<OsString>,
) -> Result<Resolved, Vec<String>> {
    let mut problems = Vec::new();
    let mut typed = typed(sources, flags, &mut problems);
    let here = Here {
        sources,
        platform: Platform::detect(&sources.env),
        cgroup: cgroup::limits(sources.read),
        nofile: sources.nofile,
        gunicorn: gunicorn::inspect(&command, &sources.env, sources.read),
    };

    let mut config = Config::unset();
    config.command = command;
    config.heroku = here.platform == Some(Platform::Heroku);
    config.cgroup = here.cgroup;
    config.config_file = typed.file.take().map(Into::into);
    config.warnings = typed.warnings;

    // Options whose default depends on others come after all that do not.
    let (dependent, plain): (Vec<&Opt>, Vec<&Opt>) =
        table().iter().partition(|opt| opt.here.is_some() && !typed.given.contains_key(opt.name));
    let mut given = BTreeMap::new();
    for opt in plain.into_iter().chain(dependent) {
        let value = typed.given.remove(opt.name).unwrap_or_else(|| {
            match opt.here.and_then(|here_default| here_default(&here, &config)) {
                Some((text, what)) => Given::new(opt, &text, Source::Here(what)),
                None => Given::new(opt, opt.default, Source::Default),
            }
        });
        let refused = (opt.set)(&mut config, &value, &here).err();
        given.insert(opt.name, (value, refused));
    }
    let mut in_order = Vec::new();
    for opt in table() {
        let Some((value, refused)) = given.remove(opt.name) else { continue };
        problems.extend(refused.map(|bad| complaint(opt, &value, bad)));
        in_order.push((opt, value));
    }

    if config.upstream.len() > 1 && config.workers.take().is_some_and(|w| w.number.is_none()) {
        config.concurrency_reason = "several upstreams: --concurrency N sets it".to_owned();
    }
    if config.pass_socket
        && let Some((server, _)) = app_server::recognise(&config.command)
    {
        config.command.extend(server.to_take_it().iter().map(OsString::from));
    }
    let mut resolved = Resolved { config, given: in_order };
    if problems.is_empty() {
        problems = resolved.contradictions();
        problems.extend(resolved.look_at_sockets(sources));
        problems.extend(resolved.look_at_spool_dir(sources).err());
        problems.extend(resolved.look_at_access_log(sources));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    resolved.warn(&here);
    for (opt, given) in &resolved.given {
        if ["listen", "admin", "access-log"].contains(&opt.name) {
            resolved.config.from.insert(opt.name, given.from());
        }
    }
    Ok(resolved)
}

/// The admin address alone, for `healthcheck`.
pub(super) fn admin(sources: &Sources<'_>, flags: &Flags) -> Result<Option<Listen>, Vec<String>> {
    let mut problems = Vec::new();
    let mut typed = typed(sources, flags, &mut problems);
    let mut admin = None;
    if let Some(opt) = table().iter().find(|opt| opt.name == "admin")
        && let Some(given) = typed.given.remove(opt.name)
    {
        let parse = |text| value::or_off(value::listen)(text).map_err(|bad| bad.of(text));
        match given.one().and_then(parse) {
            Ok(address) => admin = address,
            Err(bad) => problems.push(complaint(opt, &given, bad)),
        }
    }
    if problems.is_empty() { Ok(admin) } else { Err(problems) }
}

/// The line for a value that its parser refused.
fn complaint(opt: &Opt, given: &Given, bad: Bad) -> String {
    let named = given.name(opt, &bad.value);
    if bad.is_whole {
        return format!("{named} {}", bad.what);
    }
    let write = if bad.write.is_empty() { opt.example } else { &bad.write };
    format!("{named} {}: write {write}", bad.what)
}

/// What flags, environment and file say; only the winner of each option.
struct Typed {
    given: BTreeMap<&'static str, Given>,
    /// The file that was read.
    file: Option<String>,
    warnings: Vec<String>,
}

fn typed(sources: &Sources<'_>, flags: &Flags, problems: &mut Vec<String>) -> Typed {
    let mut given = BTreeMap::new();
    for opt in table() {
        if let Some(texts) = flags.get(opt.name) {
            let parts = texts.iter().flat_map(|text| Given::new(opt, text, Source::Flag).texts);
            given.insert(opt.name, Given { texts: parts.collect(), source: Source::Flag });
        } else if let Some(text) = sources.env.get(&opt.variable())
            && !text.is_empty()
        {
            if text.contains(char::REPLACEMENT_CHARACTER) {
                problems.push(format!("{} is not UTF-8", opt.variable()));
            }
            given.insert(opt.name, Given::new(opt, text, Source::Env(opt.variable())));
        }
    }
    let warnings = unknown_variables(&sources.env);

    use std::io::ErrorKind::{NotADirectory, NotFound};
    let named = given.get("config").cloned();
    let file = match named {
        None => ["bufproxy.toml", "config/bufproxy.toml"].into_iter().find_map(|name| {
            match (sources.read)(Path::new(name)) {
                Err(error) if matches!(error.kind(), NotFound | NotADirectory) => None,
                content => Some((name.to_owned(), content)),
            }
        }),
        Some(named) => {
            let name = named.texts.join(",");
            let content = (sources.read)(Path::new(&name));
            Some((name, content))
        }
    };
    let Some((name, content)) = file else { return Typed { given, file: None, warnings } };
    let text = content
        .map_err(|error| error.to_string())
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()));
    match text {
        Ok(text) => read_file(&name, &text, &mut given, problems),
        Err(why) => {
            let from = given.get("config").map_or_else(String::new, Given::from);
            problems.push(format!(
                "--config {name:?}{from} cannot be read ({why}): write a file as config/bufproxy.toml"
            ));
        }
    }
    Typed { given, file: Some(name), warnings }
}

/// Adds the keys of a file to those that flags and environment have not set.
fn read_file(
    file: &str,
    text: &str,
    given: &mut BTreeMap<&'static str, Given>,
    problems: &mut Vec<String>,
) {
    let line_of = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
    let parsed = match DeTable::parse(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            let line = line_of(error.span().map_or(0, |span| span.start));
            let why = error.message().lines().collect::<Vec<_>>().join(", ");
            problems.push(format!("{file} line {line} is not TOML: {why}"));
            return;
        }
    };
    let mut found: Vec<_> = parsed.get_ref().iter().collect();
    found.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in found {
        let line = line_of(key.span().start);
        let name = key.get_ref().as_ref();
        let opt = match table().iter().find(|opt| opt.name == name) {
            Some(opt) if opt.name != "config" => opt,
            Some(_) => {
                problems.push(format!("{file} line {line}: config cannot be set in the file"));
                continue;
            }
            None => {
                let near = nearest(name, table().iter().map(|opt| opt.name));
                let hint = near.map_or(String::new(), |near| format!(": did you mean {near}?"));
                problems.push(format!("{file} line {line}: {name:?} is not an option{hint}"));
                continue;
            }
        };
        match texts_of(opt, value.get_ref()) {
            Ok(texts) => {
                let source = Source::File(file.to_owned(), line);
                given.entry(opt.name).or_insert(Given { texts, source });
            }
            Err(kind) => problems.push(format!(
                "{file} line {line}: {name} is {kind}: write {name} = {:?}",
                opt.example
            )),
        }
    }
}

/// A value of the file as text; an error names a kind that no option has.
fn texts_of(opt: &Opt, value: &DeValue<'_>) -> Result<Vec<String>, &'static str> {
    match value {
        DeValue::String(text) => Ok(Given::new(opt, text, Source::Flag).texts),
        DeValue::Integer(number) if number.radix() == 10 => Ok(vec![number.as_str().to_owned()]),
        DeValue::Array(elements) if opt.list => elements
            .iter()
            .map(|element| match element.get_ref() {
                DeValue::String(text) => Ok(text.to_string()),
                DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
                _ => Err("a list with something else than texts"),
            })
            .collect(),
        DeValue::Boolean(value) => Ok(vec![if *value { "on" } else { "off" }.to_owned()]),
        DeValue::Integer(_) => Err("not a decimal number"),
        DeValue::Float(_) => Err("a number with a point"),
        DeValue::Datetime(_) => Err("a date"),
        DeValue::Array(_) => Err("a list"),
        DeValue::Table(_) => Err("a table"),
    }
}

/// `BUFPROXY_` names that are no option's. Kubernetes makes such names for a service called bufproxy.
fn unknown_variables(env: &BTreeMap<String, String>) -> Vec<String> {
    let unknown = env.keys().filter_map(|name| Some((name, name.strip_prefix("BUFPROXY_")?)));
    unknown
        .filter(|(_, rest)| !rest.starts_with("PORT") && !rest.starts_with("SERVICE_"))
        .filter(|(name, _)| !table().iter().any(|opt| opt.variable() == **name))
        .map(|(name, rest)| {
            let near = nearest(rest, table().iter().map(|opt| opt.name));
            let near = near.and_then(|near| table().iter().find(|opt| opt.name == near));
            let hint = near.map(|opt| format!(": did you mean {}?", opt.variable()));
            format!("{name} in the environment is not an option{}", hint.unwrap_or_default())
        })
        .collect()
}

/// The name that was probably meant.
pub(super) fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_ascii_lowercase().replace('_', "-");
    names
        .map(|name| (strsim::jaro(&typed, name), name))
        .filter(|(nearness, _)| *nearness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

impl Resolved {
    /// `--memory "32m"`, with where it came from.
    fn show(&self, name: &str) -> String {
        self.given
            .iter()
            .find(|(opt, _)| opt.name == name)
            .map_or(String::new(), |(opt, given)| given.name(opt, &given.texts.join(", ")))
    }

    /// Whether somebody typed it.
    fn asked_for(&self, name: &str) -> bool {
        let given = self.given.iter().find(|(opt, _)| opt.name == name);
        given.is_some_and(|(_, given)| !matches!(given.source, Source::Default | Source::Here(_)))
    }

    /// Options that are right alone and wrong together.
    fn contradictions(&self) -> Vec<String> {
        let c = &self.config;
        let mut problems = Vec::new();
        let mut larger = |wrong: bool, one: &str, other: &str, why: &str| {
            if wrong {
                let (less, of) = (self.show(one), self.show(other));
                problems.push(format!(
                    "{less} is too much for {of}, {why}: write less, or more for --{other}"
                ));
            }
        };
        larger(
            c.drain_delay >= c.drain_timeout,
            "drain-delay",
            "drain-timeout",
            "which contains it",
        );
        larger(c.idle_grace > c.drain_timeout, "idle-grace", "drain-timeout", "which contains it");
        let memory = usize::try_from(c.memory).unwrap_or(usize::MAX);
        larger(c.body_memory > memory, "body-memory", "memory", "which is for all bodies together");
        larger(
            c.response_memory > memory,
            "response-memory",
            "memory",
            "which is for all bodies together",
        );
        larger(
            c.response_spool_max > c.spool_max,
            "response-spool-max",
            "spool-max",
            "which is for all bodies together",
        );
        larger(
            c.max_body > c.spool_max && c.spool_max > 0,
            "max-body",
            "spool-max",
            "where such a body is kept",
        );
        if c.upstream_proxy_protocol && c.upstream_keepalive.is_some() {
            problems.push(
                "upstream-proxy-protocol and upstream-keepalive exclude each other: the PROXY \
                 line counts for a whole connection, which belongs to one client"
                    .to_owned(),
            );
        }
        if let Some(limit) = c.cgroup.memory.filter(|limit| c.memory > *limit) {
            problems.push(format!(
                "{} is more than the cgroup's limit: write less than {}",
                self.show("memory"),
                cgroup::show_memory(limit)
            ));
        }
        if c.upstream.is_empty() || c.private_socket && !c.pass_socket {
            problems.push(
                "--upstream is missing: write --upstream unix:/tmp/app.sock, or the host:port on \
                 which the app listens"
                    .to_owned(),
            );
        }
        if c.listen.is_empty() {
            problems.push(format!("{} is nowhere: write :8080", self.show("listen")));
        }
        for (index, listen) in c.listen.iter().enumerate() {
            let text = listen.to_string();
            if c.listen[..index].contains(listen) && !any_port(listen) {
                problems.push(format!("--listen {text:?} is there twice: write it once"));
            }
            if c.admin.as_ref() == Some(listen) && !any_port(listen) {
                problems.push(format!("{} is --listen, too: write another", self.show("admin")));
            }
            if let Some(upstream) = c.upstream.iter().find(|upstream| is_same(listen, upstream)) {
                problems.push(format!(
                    "--upstream {:?} is --listen {text:?}, bufproxy itself: write the address on \
                     which the app listens",
                    upstream.to_string()
                ));
            }
        }
        for (index, upstream) in c.upstream.iter().enumerate() {
            if c.upstream[..index].contains(upstream) {
                let text = upstream.to_string();
                problems.push(format!("--upstream {text:?} is there twice: write it once"));
            }
        }
        if c.pass_socket && c.command.is_empty() {
            problems.push(format!(
                "{} needs a wrapped command, of which nothing follows --: write off",
                self.show("pass-socket")
            ));
        }
        if c.pass_socket && !matches!(c.upstream.as_slice(), [UpstreamAddr::Unix(_)]) {
            problems.push(format!(
                "{} needs one --upstream that is a Unix socket: write unix:/tmp/app.sock, or leave it \
                 out",
                self.show("pass-socket")
            ));
        }
        if c.open_port == OpenPort::Ready && c.command.is_empty() {
            problems.push(format!(
                "{} needs a wrapped command, of which nothing follows --: write early",
                self.show("open-port")
            ));
        }
        problems
    }

    /// A path that is something else will never be a socket: nobody replaces it.
    fn look_at_sockets(&self, sources: &Sources<'_>) -> Vec<String> {
        let config = &self.config;
        let upstreams = config.upstream.iter().filter_map(|upstream| match upstream {
            UpstreamAddr::Unix(path) => Some(("upstream", path)),
            UpstreamAddr::Tcp(..) => None,
        });
        let listens = config.listen.iter().map(|listen| ("listen", listen));
        let listens = listens.chain(config.admin.iter().map(|listen| ("admin", listen)));
        let listens = listens.filter_map(|(name, listen)| match listen {
            Listen::Unix(path) => Some((name, path)),
            Listen::Tcp(_) => None,
        });
        upstreams
            .chain(listens)
            .filter_map(|(name, path)| {
                let is = (sources.no_socket)(path)?;
                let (opt, given) = self.given.iter().find(|(opt, _)| opt.name == name)?;
                let shown = given.name(opt, &format!("unix:{}", path.display()));
                Some(format!("{shown} is {is}, not a socket: write another path"))
            })
            .collect()
    }

    /// What is found now is no surprise at the first upload. A directory that was asked for must be
    /// there; an image without a /tmp is served from memory alone.
    fn look_at_spool_dir(&mut self, sources: &Sources<'_>) -> Result<(), String> {
        if self.config.spool_max == 0 {
            return Ok(());
        }
        match (sources.in_memory)(&self.config.spool_dir) {
            Ok(in_memory) => self.config.spool_in_memory = in_memory,
            Err(error) => {
                let problem = format!("{} cannot be used ({error})", self.show("spool-dir"));
                let write = "a directory that can be written to, or --spool-max off";
                if self.asked_for("spool-dir") {
                    return Err(format!("{problem}: write {write}"));
                }
                let warning =
                    format!("{problem}: bodies beyond memory will be refused. Write {write}");
                self.config.warnings.push(warning);
                (self.config.spool_max, self.config.response_spool_max) = (0, 0);
            }
        }
        Ok(())
    }

    /// So that `check` says what the start would; whether it can be opened is seen then.
    fn look_at_access_log(&self, sources: &Sources<'_>) -> Option<String> {
        let LogDestination::File(path) = &self.config.access_log else { return None };
        let error = (sources.takes_a_log)(path).err()?;
        Some(cannot_log(&self.show("access-log"), &error))
    }

    /// Options that are taken, but hardly as they were meant.
    fn warn(&mut self, here: &Here<'_>) {
        let mut warnings = Vec::new();
        let trust = &self.config.trust;
        if self.config.real_ip_header.is_some() && *trust == super::TrustConfig::default() {
            warnings.push(format!("{} does nothing without --trust", self.show("real-ip-header")));
        }
        let carried = platform::max_connections(here.nofile);
        if self.config.max_connections > carried.max(16) {
            warnings.push(format!(
                "{} is more than {} open files carry (3 each): {carried}",
                self.show("max-connections"),
                here.nofile
            ));
        }
        if let Some(cpu) = self.config.cgroup.cpu.map(|cpu| cpu.ceil().max(1.0) as usize)
            && self.config.threads > cpu
        {
            warnings.push(format!(
                "{} is more than the cgroup's limit of {} CPUs: they would wait for each other, write \
                 {cpu}",
                self.show("threads"),
                cgroup::show_cpu(self.config.cgroup.cpu.unwrap_or_default())
            ));
        }
        if self.config.command.is_empty() {
            for name in [
                "ready-path",
                "ready-file",
                "ready-host",
                "boot-timeout",
                "restart",
                "child-stop-signal",
            ] {
                if self.asked_for(name) {
                    warnings.push(format!(
                        "{} does nothing without a wrapped command",
                        self.show(name)
                    ));
                }
            }
        }
        if self.config.queue_timeout > self.config.app_timeout && self.asked_for("queue-timeout") {
            warnings.push(format!(
                "{} is never reached: the queue counts in {}",
                self.show("queue-timeout"),
                self.show("app-timeout")
            ));
        }
        if let Concurrency::Slots(slots) = self.config.concurrency
            && slots > self.config.max_connections
        {
            warnings.push(format!(
                "concurrency {slots} is never reached with {}",
                self.show("max-connections")
            ));
        }
        let scene = lint::Scene {
            config: &self.config,
            gunicorn: here.gunicorn.settings.as_ref(),
            env: &here.sources.env,
            platform: here.platform,
        };
        warnings.extend(lint::warnings(&scene));
        self.config.warnings.extend(warnings);
    }
}

fn any_port(listen: &Listen) -> bool {
    matches!(listen, Listen::Tcp(address) if address.port() == 0)
}

/// Whether requests to this upstream would come back to us.
fn is_same(listen: &Listen, upstream: &UpstreamAddr) -> bool {
    match (listen, upstream) {
        (Listen::Unix(ours), UpstreamAddr::Unix(theirs)) => ours == theirs,
        (Listen::Tcp(ours), UpstreamAddr::Tcp(host, port)) => {
            let host = if host == "localhost" { "127.0.0.1" } else { host };
            let local = host.parse().is_ok_and(|theirs: IpAddr| {
                let every = ours.ip().is_unspecified();
                theirs == ours.ip() || every && (theirs.is_loopback() || theirs.is_unspecified())
            });
            ours.port() == *port && local
        }
        _ => false,
    }
}
