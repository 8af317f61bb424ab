//! From what was typed to `Config`: reads flags, environment and file as text, keeps where each text
//! came from, and runs the table's parsers over the winner (flag, environment, file, surroundings,
//! default). Called by `config::parse_args`. All problems are collected; nothing is half applied.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::gunicorn::{self, Gunicorn};
use super::platform::{self, Platform};
use super::settings::{Opt, table};
use super::value::{self, Bad};
use super::{Concurrency, Config, Listen, OpenPort, Sources, UpstreamAddr};

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
            true => text.split(',').map(|part| part.trim().to_owned()).collect(),
            false => vec![text.to_owned()],
        };
        Given { texts, source }
    }

    /// `--max-body "100mb" (from BUFPROXY_MAX_BODY)`
    fn name(&self, opt: &Opt, text: &str) -> String {
        let from = match &self.source {
            Source::Flag | Source::Default => String::new(),
            source => format!(" (from {source})"),
        };
        format!("--{} {text:?}{from}", opt.name)
    }
}

/// What defaults are made of.
pub(super) struct Here<'a> {
    pub(super) sources: &'a Sources<'a>,
    pub(super) platform: Option<Platform>,
    pub(super) memory_limit: Option<u64>,
    pub(super) nofile: u64,
    pub(super) gunicorn: Gunicorn,
}

impl Here<'_> {
    /// A variable that is set and not empty.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.sources.env.get(name).map(String::as_str).filter(|value| !value.is_empty())
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
        memory_limit: platform::memory_limit(sources.read),
        nofile: sources.nofile,
        gunicorn: gunicorn::inspect(&command, &sources.env, sources.read),
    };

    let mut config = Config::unset();
    config.command = command;
    config.heroku = here.platform == Some(Platform::Heroku);
    config.memory_limit = here.memory_limit;
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
        let value = if value.texts == [""] { Given { texts: vec![], ..value } } else { value };
        if let Err(bad) = (opt.set)(&mut config, &value, &here) {
            problems.push(complaint(opt, &value, bad));
        }
        given.insert(opt.name, value);
    }
    let given: Vec<(&Opt, Given)> =
        table().iter().filter_map(|opt| Some((opt, given.remove(opt.name)?))).collect();

    let mut resolved = Resolved { config, given };
    if problems.is_empty() {
        problems = resolved.contradictions();
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    resolved.warn(&here);
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
    let write = if bad.write.is_empty() { opt.example } else { &bad.write };
    format!("{} {}: write {write}", given.name(opt, &bad.value), bad.what)
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
            given.insert(opt.name, Given::new(opt, text, Source::Env(opt.variable())));
        }
    }
    let warnings = unknown_variables(&sources.env);

    let named = given.get("config").cloned();
    let file = match named {
        None => ["bufproxy.toml", "config/bufproxy.toml"].into_iter().find_map(|name| {
            match (sources.read)(Path::new(name)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
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
        Err(why) => problems.push(format!("--config {name:?} cannot be read ({why})")),
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
                let names = table().iter().map(|opt| opt.name);
                let hint = did_you_mean(name, names);
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
        DeValue::String(text) => Ok(Given::new(opt, text, Source::Default).texts),
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
    let known: BTreeSet<String> = table().iter().map(Opt::variable).collect();
    env.keys()
        .filter(|name| {
            name.strip_prefix("BUFPROXY_")
                .is_some_and(|rest| !rest.starts_with("PORT") && !rest.starts_with("SERVICE_"))
                && !known.contains(*name)
        })
        .map(|name| {
            let hint = did_you_mean(name, known.iter().map(String::as_str));
            format!("{name} in the environment is not an option{hint}")
        })
        .collect()
}

/// `: did you mean max-body?`, or nothing when no name is near.
pub(super) fn did_you_mean<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> String {
    let typed = typed.to_ascii_lowercase().replace('_', "-");
    names
        .map(|name| (strsim::jaro(&typed, &name.to_ascii_lowercase().replace('_', "-")), name))
        .filter(|(nearness, _)| *nearness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or(String::new(), |(_, name)| format!(": did you mean {name}?"))
}

impl Resolved {
    /// `--memory "32m"`, with where it came from.
    fn show(&self, name: &str) -> String {
        self.given
            .iter()
            .find(|(opt, _)| opt.name == name)
            .map_or(String::new(), |(opt, given)| given.name(opt, &given.texts.join(", ")))
    }

    /// Options that are right alone and wrong together.
    fn contradictions(&self) -> Vec<String> {
        let c = &self.config;
        let mut problems = Vec::new();
        let mut larger = |wrong: bool, one: &str, other: &str, why: &str| {
            if wrong {
                let (one, other) = (self.show(one), self.show(other));
                problems.push(format!("{one} is more than {other}: {why}"));
            }
        };
        larger(
            c.drain_delay >= c.drain_timeout,
            "drain-delay",
            "drain-timeout",
            "drain-timeout contains it, write less",
        );
        larger(
            c.idle_grace > c.drain_timeout,
            "idle-grace",
            "drain-timeout",
            "drain-timeout contains it, write less",
        );
        let memory = usize::try_from(c.memory).unwrap_or(usize::MAX);
        larger(
            c.body_memory > memory,
            "body-memory",
            "memory",
            "memory is for all bodies together",
        );
        larger(
            c.response_memory > memory,
            "response-memory",
            "memory",
            "memory is for all bodies together",
        );
        larger(
            c.response_spool_max > c.spool_max,
            "response-spool-max",
            "spool-max",
            "spool-max is for all bodies together",
        );
        larger(
            c.max_body > c.spool_max && c.spool_max > 0,
            "max-body",
            "spool-max",
            "such a body could not be kept",
        );
        if let Some(limit) = c.memory_limit.filter(|limit| c.memory > *limit) {
            problems.push(format!(
                "{} is more than the cgroup's limit: write less than {}",
                self.show("memory"),
                value::show_size(limit)
            ));
        }
        if c.upstream.is_empty() {
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
        if c.open_port == OpenPort::Ready && c.command.is_empty() {
            problems.push(format!(
                "{} needs a wrapped command, of which nothing follows --: write early",
                self.show("open-port")
            ));
        }
        problems
    }

    /// Options that are taken, but hardly as they were meant.
    fn warn(&mut self, here: &Here<'_>) {
        let mut warnings = Vec::new();
        let carried = platform::max_connections(here.nofile);
        if self.config.max_connections > carried.max(16) {
            warnings.push(format!(
                "{} is more than {} open files carry (3 each): {carried}",
                self.show("max-connections"),
                here.nofile
            ));
        }
        if self.config.command.is_empty() {
            for name in
                ["ready-path", "ready-file", "ready-host", "boot-timeout", "child-stop-signal"]
            {
                let given = self.given.iter().find(|(opt, _)| opt.name == name);
                if given.is_some_and(|(_, given)| {
                    !matches!(given.source, Source::Default | Source::Here(_))
                }) {
                    warnings.push(format!(
                        "{} does nothing without a wrapped command",
                        self.show(name)
                    ));
                }
            }
        }
        if let Concurrency::Slots(slots) = self.config.concurrency
            && slots > self.config.max_connections
        {
            warnings.push(format!(
                "concurrency {slots} is never reached with {}",
                self.show("max-connections")
            ));
        }
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
            let local = host == "localhost"
                || host.parse().is_ok_and(|ip: std::net::IpAddr| {
                    ip == ours.ip()
                        || ours.ip().is_unspecified() && (ip.is_loopback() || ip.is_unspecified())
                });
            ours.port() == *port && local
        }
        _ => false,
    }
}
