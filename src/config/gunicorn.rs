//! What the wrapped command says of itself, when it is gunicorn: its workers, for `concurrency auto`,
//! its socket, and the settings that `lint` looks at.
//!
//! Read as gunicorn reads it: command line, then GUNICORN_CMD_ARGS, then the configuration file, then
//! WEB_CONCURRENCY. Too few slots would idle workers and too many would only move the queue, so
//! whatever is not certain means off, with a reason that the boot line shows. Pure: the file comes
//! through `ReadFile`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Workers;
use super::platform::ReadFile;

/// What was found in the wrapped command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gunicorn {
    /// Of its workers, for `concurrency auto`. None: unknown, or async.
    pub(super) workers: Option<Workers>,
    /// Why, for the boot line: `gunicorn sync, 4 workers`.
    pub(super) reason: String,
    /// The Unix socket that it binds, if it names one by its full path.
    pub(super) socket: Option<PathBuf>,
    /// None: it is not gunicorn, or cannot be read.
    pub(super) settings: Option<Settings>,
}

/// gunicorn itself.
const PROGRAMS: &[&str] = &["gunicorn", "gunicorn.app.wsgiapp"];

/// Its settings that matter here.
const NAMES: &[&str] = &[
    "workers",
    "threads",
    "worker_class",
    "bind",
    "timeout",
    "graceful_timeout",
    "keepalive",
    "reuse_port",
    "preload_app",
    "accesslog",
    "forwarded_allow_ips",
    "config",
];

/// Programs that run the command that follows them.
const LAUNCHERS: &[&str] = &[
    "chamber",
    "conda",
    "ddtrace-run",
    "doppler",
    "dumb-init",
    "env",
    "exec",
    "hatch",
    "ionice",
    "mamba",
    "newrelic-admin",
    "nice",
    "nohup",
    "opentelemetry-instrument",
    "pdm",
    "pipenv",
    "poetry",
    "py-spy",
    "pypy3",
    "python",
    "python2",
    "python3",
    "rye",
    "start-nginx",
    "stdbuf",
    "tini",
    "uv",
    "uvx",
];

/// Words between a launcher and the command.
const LAUNCHER_WORDS: &[&str] = &["run", "run-program", "exec", "--"];

/// Options of launchers that take a value in the next word.
const LAUNCHER_OPTIONS: &[&str] = &[
    "-n",
    "-p",
    "-C",
    "--env-file",
    "--extra",
    "--group",
    "--package",
    "--project",
    "--python",
    "--with",
];

const SHELLS: &[&str] = &["sh", "bash", "dash", "ash", "zsh"];

/// Looks at the command; `env` is what it will be started with.
pub(super) fn inspect(
    command: &[OsString],
    env: &BTreeMap<String, String>,
    read: ReadFile<'_>,
) -> Gunicorn {
    let words: Vec<String> =
        command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    if words.is_empty() {
        return unknown("no wrapped command to learn it from");
    }
    let Some(arguments) = arguments_of(PROGRAMS, &words, env) else {
        return unknown("the command is not a gunicorn that can be read");
    };
    let mut settings = Settings::default();
    settings.take_arguments(&arguments, Place::CommandLine);
    if let Some(arguments) = env.get("GUNICORN_CMD_ARGS") {
        settings
            .take_arguments(&shell_words(arguments, &BTreeMap::new()).concat(), Place::Variable);
    }
    settings.take_file(read, env);
    settings.conclude(env)
}

fn unknown(reason: impl Into<String>) -> Gunicorn {
    Gunicorn { workers: None, reason: reason.into(), socket: None, settings: None }
}

/// One setting: the first source that has it wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// None: an expression, whose value only Python knows.
    pub(super) literal: Option<String>,
    /// As it is written.
    pub(super) text: String,
    pub(super) place: Place,
}

/// Where a setting stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    CommandLine,
    /// GUNICORN_CMD_ARGS
    Variable,
    File(String),
}

impl Setting {
    /// `--timeout 60`, `--timeout 60 in GUNICORN_CMD_ARGS`, `timeout = 60 in gunicorn.conf.py`.
    pub(super) fn show(&self, flag: &str, name: &str) -> String {
        let Setting { text, place, .. } = self;
        match place {
            Place::CommandLine => format!("{flag} {text}"),
            Place::Variable => format!("{flag} {text} in GUNICORN_CMD_ARGS"),
            Place::File(file) => format!("{name} = {text} in {file}"),
        }
    }

    /// The same for a flag without a value: `--reuse-port`, `reuse_port = True in gunicorn.conf.py`.
    pub(super) fn show_flag(&self, flag: &str, name: &str) -> String {
        match self.place {
            Place::File(_) => self.show(flag, name),
            _ => self.show(flag, name).replacen(" True", "", 1),
        }
    }

    /// Switched on, be it under a condition.
    pub(super) fn is_on(&self) -> bool {
        self.text == "True"
    }

    /// As a number, where it is one.
    pub(super) fn number(&self) -> Option<u64> {
        self.literal.as_ref()?.parse().ok()
    }
}

/// Those that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) workers: Option<Setting>,
    pub(super) threads: Option<Setting>,
    pub(super) worker_class: Option<Setting>,
    /// All addresses, with commas between them.
    pub(super) bind: Option<Setting>,
    pub(super) timeout: Option<Setting>,
    pub(super) graceful_timeout: Option<Setting>,
    pub(super) keepalive: Option<Setting>,
    pub(super) reuse_port: Option<Setting>,
    pub(super) preload_app: Option<Setting>,
    pub(super) accesslog: Option<Setting>,
    pub(super) forwarded_allow_ips: Option<Setting>,
    config: Option<Setting>,
    /// The configuration file, as it is called in messages.
    pub(super) file: Option<String>,
    /// The file has workers that ignore TERM. None: it cannot be read.
    pub(super) ignores_term: Option<bool>,
}

impl Settings {
    fn slot(&mut self, name: &str) -> Option<&mut Option<Setting>> {
        Some(match name {
            "workers" => &mut self.workers,
            "threads" => &mut self.threads,
            "worker_class" => &mut self.worker_class,
            "bind" => &mut self.bind,
            "timeout" => &mut self.timeout,
            "graceful_timeout" => &mut self.graceful_timeout,
            "keepalive" => &mut self.keepalive,
            "reuse_port" => &mut self.reuse_port,
            "preload_app" => &mut self.preload_app,
            "accesslog" => &mut self.accesslog,
            "forwarded_allow_ips" => &mut self.forwarded_allow_ips,
            "config" => &mut self.config,
            _ => return None,
        })
    }

    /// gunicorn's command line. Within it the last one wins, but for `--bind`, where all of them are
    /// bound.
    fn take_arguments(&mut self, words: &[String], place: Place) {
        let mut found = Settings::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some((name, attached)) = known_flag(word) else { continue };
            let value = match name {
                "reuse_port" | "preload_app" => Some("True".to_owned()),
                _ => attached.or_else(|| words.next().cloned()),
            };
            let Some(mut value) = value else { break };
            let Some(slot) = found.slot(name) else { continue };
            if let (Some(first), "bind") = (&slot, name) {
                value = format!("{},{value}", first.text);
            }
            *slot =
                Some(Setting { literal: Some(value.clone()), text: value, place: place.clone() });
        }
        self.fill_from(found);
    }

    /// The configuration file: `--config`, or `./gunicorn.conf.py`, which gunicorn loads unasked.
    fn take_file(&mut self, read: ReadFile<'_>, env: &BTreeMap<String, String>) {
        let named = self.config.as_ref().and_then(|config| config.literal.as_deref());
        let path = named.unwrap_or("./gunicorn.conf.py");
        let path = path.strip_prefix("file:").unwrap_or(path);
        let shown = path.strip_prefix("./").unwrap_or(path).to_owned();
        let text = read(Path::new(path)).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let found = match text {
            Some(text) => assignments(&text, &shown, env),
            None if named.is_none() => {
                Settings { ignores_term: Some(false), ..Settings::default() }
            }
            // A module (`python:app.conf`), or a file that is not there yet.
            None => everything_is_in(&shown),
        };
        self.fill_from(found);
    }

    fn fill_from(&mut self, mut lower: Settings) {
        for name in NAMES {
            let below = lower.slot(name).and_then(Option::take);
            if let Some(slot) = self.slot(name) {
                *slot = slot.take().or(below);
            }
        }
        self.file = self.file.take().or(lower.file);
        self.ignores_term = self.ignores_term.or(lower.ignores_term);
    }

    fn conclude(self, env: &BTreeMap<String, String>) -> Gunicorn {
        let bound = self.bind.as_ref().and_then(|bind| bind.literal.as_deref());
        let socket = bound.and_then(|bound| bound.split(',').find_map(unix_socket));
        let (workers, reason) = match self.serving(env) {
            Ok((workers, reason)) => (Some(workers), reason),
            Err(reason) => (None, reason),
        };
        Gunicorn { workers, reason, socket, settings: Some(self) }
    }

    /// The class of its workers by its short name, where it has one.
    pub(super) fn class(&self) -> Result<&str, String> {
        let Some(class) = &self.worker_class else { return Ok("sync") };
        let literal = class.literal.as_deref();
        let name = literal.ok_or_else(|| only_python_knows("worker_class", &class.place))?;
        Ok(match name.strip_prefix("egg:gunicorn#").unwrap_or(name) {
            "gunicorn.workers.sync.SyncWorker" => "sync",
            "gunicorn.workers.gthread.ThreadWorker" => "gthread",
            name => name,
        })
    }

    /// Workers, and where their number is from.
    pub(super) fn workers(
        &self,
        env: &BTreeMap<String, String>,
    ) -> Result<(usize, &'static str), String> {
        Ok(match number(&self.workers, "workers")? {
            Some(workers) => (workers, ""),
            None => match env.get("WEB_CONCURRENCY") {
                None => (1, ""),
                Some(text) => (parse(text, "WEB_CONCURRENCY")?, " from WEB_CONCURRENCY"),
            },
        })
    }

    /// Its workers, if each of them serves one request a thread.
    fn serving(&self, env: &BTreeMap<String, String>) -> Result<(Workers, String), String> {
        let threaded = match self.class()? {
            "sync" => false,
            "gthread" => true,
            class => return Err(format!("gunicorn {class}, not a class of one request a thread")),
        };
        let threads = number(&self.threads, "threads")?.unwrap_or(1);
        let many = |count: usize, what: &str| {
            format!("{count} {what}{}", if count == 1 { "" } else { "s" })
        };
        let (number, workers) = match &self.workers {
            // What only Python knows is seen when they run.
            Some(Setting { literal: None, .. }) => (None, "its workers counted".to_owned()),
            _ => {
                let (number, from) = self.workers(env)?;
                (Some(number), format!("{}{from}", many(number, "worker")))
            }
        };
        // gunicorn itself makes gthread of sync when there are several threads.
        let reason = if threaded || threads > 1 {
            format!("gunicorn gthread, {workers} x {}", many(threads, "thread"))
        } else {
            format!("gunicorn sync, {workers}")
        };
        Ok((Workers { number, threads }, reason))
    }
}

fn only_python_knows(name: &str, place: &Place) -> String {
    let file = if let Place::File(file) = place { file } else { "its arguments" };
    format!("{name} in {file} is not a literal: --concurrency N sets it")
}

fn number(setting: &Option<Setting>, name: &str) -> Result<Option<usize>, String> {
    let Some(Setting { literal, place, .. }) = setting else { return Ok(None) };
    match literal {
        Some(text) => parse(text, name).map(Some),
        None => Err(only_python_knows(name, place)),
    }
}

/// Between 1 and what is still plausible, so that a product of two cannot overflow.
fn parse(text: &str, name: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=10_000).contains(&number) => Ok(number),
        _ => Err(format!("gunicorn's {name} is {text:?}")),
    }
}

/// The name of a setting that matters here and the value that is part of the word.
fn known_flag(word: &str) -> Option<(&'static str, Option<String>)> {
    if let Some(long) = word.strip_prefix("--") {
        let (flag, value) = match long.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (long, None),
        };
        // argparse takes any unambiguous beginning; an ambiguous one does not start gunicorn.
        let names = [
            ("workers", "workers", 7),
            ("threads", "threads", 2),
            ("worker-class", "worker_class", 9),
            ("bind", "bind", 2),
            ("timeout", "timeout", 2),
            ("graceful-timeout", "graceful_timeout", 3),
            ("keep-alive", "keepalive", 3),
            ("reuse-port", "reuse_port", 3),
            ("preload", "preload_app", 3),
            ("access-logfile", "accesslog", 12),
            ("forwarded-allow-ips", "forwarded_allow_ips", 9),
            ("config", "config", 3),
        ];
        let found = names.iter().find(|(name, _, shortest)| {
            flag.len() >= (*shortest).min(name.len()) && name.starts_with(flag)
        });
        return found.map(|(_, name, _)| (*name, value));
    }
    let name = match word.get(..2)? {
        "-w" => "workers",
        "-k" => "worker_class",
        "-b" => "bind",
        "-c" => "config",
        "-t" => "timeout",
        _ => return None,
    };
    let value = word.get(2..).filter(|value| !value.is_empty());
    Some((name, value.map(|value| value.strip_prefix('=').unwrap_or(value).to_owned())))
}

pub(super) fn unix_socket(address: &str) -> Option<PathBuf> {
    let path = address.strip_prefix("unix:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// The words after one of `programs`, if that is what the command runs.
pub(super) fn arguments_of(
    programs: &[&str],
    words: &[String],
    env: &BTreeMap<String, String>,
) -> Option<Vec<String>> {
    let program = base_name(words.first()?);
    if SHELLS.contains(&program) {
        let script = words.iter().position(|word| word.starts_with('-') && word.ends_with('c'))?;
        let commands = shell_words(words.get(script + 1)?, env);
        // `pip install gunicorn && gunicorn app`: the last one is what stays.
        return commands.iter().rev().find_map(|command| arguments_of(programs, command, env));
    }
    let place = words.iter().position(|word| programs.contains(&base_name(word)))?;
    let before = &words[..place];
    let launched = before.iter().enumerate().all(|(index, word)| {
        let previous = index.checked_sub(1).map(|previous| before[previous].as_str());
        is_launcher(word)
            || word.starts_with('-')
            || LAUNCHER_WORDS.contains(&word.as_str())
            || is_assignment(word)
            || previous.is_some_and(|previous| LAUNCHER_OPTIONS.contains(&previous))
    });
    // Anything else decides itself what it does with the words (`datasette gunicorn my.db -w 4`
    // runs an async class).
    launched.then(|| words[place + 1..].to_vec())
}

fn is_launcher(word: &str) -> bool {
    let name = base_name(word);
    let versioned = name.strip_prefix("python3.").or_else(|| name.strip_prefix("python2."));
    LAUNCHERS.contains(&name) || versioned.is_some()
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

fn base_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// Splits a shell's text into its simple commands and their words: quotes, `$NAME`, `${NAME}` and
/// `${NAME:-default}`. Not a shell: what it cannot know stays as it is, and is then no number.
fn shell_words(text: &str, env: &BTreeMap<String, String>) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ';' | '&' | '|' | '\n') => {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (None | Some('"'), '$') => {
                let braced = chars.next_if_eq(&'{').is_some();
                let mut name = String::new();
                while let Some(c) = chars.next_if(|c| {
                    if braced { *c != '}' } else { c.is_ascii_alphanumeric() || *c == '_' }
                }) {
                    name.push(c);
                }
                if braced {
                    chars.next();
                }
                let (name, default) = name
                    .split_once(":-")
                    .or_else(|| name.split_once('-'))
                    .unwrap_or((name.as_str(), ""));
                let value = env.get(name).map_or(default, String::as_str);
                word.get_or_insert_default().push_str(value);
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    commands.push(words);
    commands
}

/// Everything of a file that cannot be read here.
fn everything_is_in(file: &str) -> Settings {
    let place = Place::File(file.to_owned());
    let unknown = Setting { literal: None, text: String::new(), place };
    let mut settings = Settings { file: Some(file.to_owned()), ..Settings::default() };
    for name in NAMES.iter().filter(|name| **name != "config") {
        if let Some(slot) = settings.slot(name) {
            *slot = Some(unknown.clone());
        }
    }
    settings
}

/// Literal assignments of a gunicorn configuration file. An assignment that is indented, computed,
/// imported or behind a colon is an expression.
fn assignments(text: &str, file: &str, env: &BTreeMap<String, String>) -> Settings {
    let mut found = Settings { file: Some(file.to_owned()), ..Settings::default() };
    found.ignores_term = Some(false);
    let mut open_text = None;
    for line in text.lines() {
        if ends_inside_text(line, &mut open_text) {
            continue;
        }
        let statement = line.trim_start();
        if !statement.starts_with('#') && ["SIGTERM", "SIG_IGN"].iter().all(|s| line.contains(s)) {
            found.ignores_term = Some(true);
        }
        let import = ["from ", "import "].iter().any(|keyword| statement.starts_with(keyword));
        let anything = statement.contains("globals()") || statement.starts_with("exec(");
        if import && statement.trim_end().ends_with('*') || anything {
            found = everything_is_in(file);
            continue;
        }
        for name in NAMES.iter().filter(|name| import || sets_on_the_way(statement, name)) {
            let mut words = statement.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            if let (true, Some(slot)) = (words.any(|word| word == *name), found.slot(name)) {
                let place = Place::File(file.to_owned());
                *slot = Some(Setting { literal: None, text: String::new(), place });
            }
        }
        let end = statement
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(statement.len());
        let (name, rest) = statement.split_at(end);
        if name == "config" {
            continue;
        }
        let Some(slot) = found.slot(name) else { continue };
        let rest = rest.trim_start();
        // `workers: int = 4`
        let rest = match rest.strip_prefix(':') {
            Some(annotation) => annotation.find('=').map_or("", |equals| &annotation[equals..]),
            None => rest,
        };
        let value = match rest.strip_prefix('=') {
            Some(value) if !value.starts_with('=') => value.trim(),
            // `workers += 1`, `workers, threads = 2, 4`, and a line of an import in brackets; anything
            // else does not assign.
            _ if rest.contains('=') && !rest.starts_with("==") || rest.starts_with(',') => "",
            _ => continue,
        };
        let unconditional = statement.len() == line.len();
        *slot = Some(Setting {
            literal: literal(value).or_else(|| variable(value, env)).filter(|_| unconditional),
            text: value.split(" #").next().unwrap_or(value).trim().to_owned(),
            place: Place::File(file.to_owned()),
        });
    }
    found
}

/// `if X: workers = 4`, `a = 1; workers = 4`.
fn sets_on_the_way(statement: &str, name: &str) -> bool {
    statement.split([':', ';']).skip(1).any(|part| {
        let rest = part.trim_start().strip_prefix(name).map(str::trim_start);
        rest.is_some_and(|rest| rest.starts_with('=') && !rest.starts_with("=="))
    })
}

/// Whether this line begins or ends inside a text of several lines, which begins with `open`.
fn ends_inside_text(line: &str, open: &mut Option<&'static str>) -> bool {
    let began = open.is_some();
    let mut rest = line;
    loop {
        let next = match *open {
            Some(quotes) => rest.find(quotes).map(|at| (at, None)),
            None => ["\"\"\"", "'''"]
                .iter()
                .filter_map(|quotes| Some((rest.find(quotes)?, Some(*quotes))))
                .min_by_key(|(at, _)| *at)
                .filter(|(at, _)| !rest[..*at].contains('#')),
        };
        let Some((at, now)) = next else { return began || open.is_some() };
        *open = now;
        rest = &rest[at + 3..];
    }
}

/// A variable of the environment: `os.environ["N"]`, `os.environ.get("N", 4)`, `os.getenv("N", "4")`,
/// an `int()` around it allowed.
fn variable(value: &str, env: &BTreeMap<String, String>) -> Option<String> {
    let value = value.split(" #").next().unwrap_or(value).trim();
    let int = value.strip_prefix("int(").and_then(|value| value.strip_suffix(')'));
    let value = int.unwrap_or(value).trim();
    let value = value.strip_prefix("os.").unwrap_or(value);
    if let Some(name) = value.strip_prefix("environ[") {
        return env.get(&literal(name.strip_suffix(']')?)?).cloned();
    }
    let call = value.strip_prefix("environ.get(").or(value.strip_prefix("getenv("))?;
    let call = call.strip_suffix(')')?;
    let (name, default) = call.split_once(',').map_or((call, None), |(n, d)| (n, Some(d.trim())));
    env.get(&literal(name)?).cloned().or_else(|| literal(default?))
}

/// A number, a string or a list of strings, a comment after it allowed; True, False and None.
fn literal(value: &str) -> Option<String> {
    if let Some(list) = value.strip_prefix('[') {
        let (list, rest) = list.rsplit_once(']')?;
        if !matches!(rest.trim().chars().next(), None | Some('#')) {
            return None;
        }
        let list = list.trim().trim_end_matches(',');
        let list: Option<Vec<_>> = list.split(',').map(|element| literal(element.trim())).collect();
        return list.map(|list| list.join(","));
    }
    if let Some(quote) = value.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        let (text, rest) = value[1..].split_once(quote)?;
        let rest = rest.trim();
        return (!text.contains('\\') && (rest.is_empty() || rest.starts_with('#')))
            .then(|| text.to_owned());
    }
    let word = value.split('#').next().unwrap_or(value).trim();
    let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    (is_number || ["True", "False", "None"].contains(&word)).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slots (0: off), reason and socket of a command, split at spaces.
    fn look(command: &[&str], env: &[(&str, &str)], files: &[(&str, &str)]) -> Gunicorn {
        let command: Vec<OsString> = command.iter().map(OsString::from).collect();
        let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        inspect(&command, &env, &|path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            let text = found.map(|(_, text)| text.as_bytes().to_vec());
            text.ok_or(std::io::ErrorKind::NotFound.into())
        })
    }

    fn slots(line: &str) -> usize {
        let words: Vec<&str> = line.split(' ').collect();
        slots_of(&look(&words, &[], &[])).unwrap_or(0)
    }

    fn slots_of(gunicorn: &Gunicorn) -> Option<usize> {
        gunicorn.workers.and_then(Workers::slots)
    }

    #[test]
    fn slots_are_workers_times_threads() {
        for (line, expected) in [
            ("gunicorn app", 1),
            ("gunicorn -w 4 app", 4),
            ("gunicorn -w4 app", 4),
            ("gunicorn -w=4 app", 4),
            ("gunicorn --workers 4 app", 4),
            ("gunicorn --workers=4 app", 4),
            ("gunicorn app:app -w 2 --threads 4", 8),
            ("gunicorn --thread 4 app", 4),
            ("gunicorn -k gthread --threads=4 -w 2 app", 8),
            ("gunicorn -k gthread app", 1),
            ("gunicorn -k sync -w 3 app", 3),
            ("gunicorn -k egg:gunicorn#sync -w 3 app", 3),
            ("gunicorn --worker-class gunicorn.workers.gthread.ThreadWorker --threads 3 app", 3),
            ("gunicorn -w 2 -w 3 app", 3),
            ("gunicorn -n gunicorn -w 3 app", 3),
            ("/app/.venv/bin/gunicorn -w 3 app", 3),
            // Launchers.
            ("newrelic-admin run-program gunicorn -w 3 app", 3),
            ("ddtrace-run gunicorn -w 3 app", 3),
            ("uv run gunicorn -w 3 app", 3),
            ("uv run --frozen gunicorn -w 3 app", 3),
            ("uv run --with gunicorn gunicorn -w 3 app", 3),
            ("uv run -- gunicorn -w 3 app", 3),
            ("poetry run gunicorn -w 3 app", 3),
            ("conda run -n web gunicorn -w 3 app", 3),
            ("python -m gunicorn -w 3 app", 3),
            ("python3.12 -u -m gunicorn.app.wsgiapp -w 3 app", 3),
            ("env DJANGO=1 gunicorn -w 3 app", 3),
            (
                "bin/start-nginx newrelic-admin run-program gunicorn hc.wsgi --preload --workers 4",
                4,
            ),
            // Async classes serve many at once.
            ("gunicorn -k gevent -w 4 app", 0),
            ("gunicorn -k uvicorn.workers.UvicornWorker -w 4 app", 0),
            ("gunicorn --worker-class=eventlet app", 0),
            ("gunicorn -k tornado app", 0),
            ("gunicorn -k my.Worker app", 0),
            // Not numbers.
            ("gunicorn -w four app", 0),
            ("gunicorn -w 0 app", 0),
            ("gunicorn -w 99999999999999999999 app", 0),
            // Not gunicorn, or not as it seems.
            ("uvicorn app:app --workers 4", 0),
            ("datasette gunicorn my.db -p 8001 -w 4", 0),
            ("uv run datasette gunicorn my.db -w 4", 0),
            ("uv run --frozen datasette gunicorn my.db -w 4", 0),
            ("./start.sh gunicorn -w 4", 0),
            ("puma -w 4", 0),
        ] {
            assert_eq!(slots(line), expected, "{line}");
        }
    }

    #[test]
    fn shell_commands_are_read() {
        let shell = |text: &str| slots_of(&look(&["sh", "-c", text], &[("WEB_WORKERS", "5")], &[]));
        for (text, expected) in [
            ("gunicorn -w 4 app", 4),
            ("exec gunicorn -w 4 app", 4),
            ("python manage.py migrate && exec gunicorn -w '4' \"app:app\"", 4),
            ("pip install gunicorn; gunicorn -w 4 app", 4),
            ("gunicorn -w 4 app | tee log", 4),
            ("gunicorn -w $WEB_WORKERS app", 5),
            ("gunicorn -w ${WEB_WORKERS} app", 5),
            ("gunicorn -w \"${WEB_WORKERS:-2}\" app", 5),
            ("gunicorn -w ${OTHER:-2} app", 2),
            ("gunicorn -w ${OTHER-2} app", 2),
            ("gunicorn -w '$WEB_WORKERS' app", 0),
            ("gunicorn -w $(nproc) app", 0),
            ("A=1 gunicorn -w\\\n4 app", 0),
            ("honcho start", 0),
            ("echo gunicorn", 0),
        ] {
            assert_eq!(shell(text).unwrap_or(0), expected, "{text}");
        }
        assert_eq!(slots_of(&look(&["bash", "-lc", "gunicorn -w 4"], &[], &[])), Some(4));
        assert_eq!(look(&["bash", "run.sh"], &[], &[]).workers, None);
    }

    #[test]
    fn command_line_wins_over_variable_over_file_over_web_concurrency() {
        let command = ["gunicorn", "app"];
        let with_flag = ["gunicorn", "-w", "2", "app"];
        let web = ("WEB_CONCURRENCY", "5");
        let arguments = ("GUNICORN_CMD_ARGS", "--access-logfile - --workers=3");
        let file = [("./gunicorn.conf.py", "workers = 4\n")];
        let slots = |command: &[&str], env: &[(&str, &str)], files: &[(&str, &str)]| {
            slots_of(&look(command, env, files))
        };
        assert_eq!(slots(&with_flag, &[web, arguments], &file), Some(2));
        assert_eq!(slots(&command, &[web, arguments], &file), Some(3));
        assert_eq!(slots(&command, &[web], &file), Some(4));
        assert_eq!(slots(&command, &[web], &[]), Some(5));
        assert_eq!(slots(&command, &[], &[]), Some(1));
        // WEB_CONCURRENCY says nothing of other programs and of async classes.
        assert_eq!(slots(&["puma"], &[web], &[]), None);
        assert_eq!(slots(&["gunicorn", "-k", "gevent"], &[web], &[]), None);
        assert_eq!(slots(&command, &[("WEB_CONCURRENCY", "many")], &[]), None);
    }

    #[test]
    fn configuration_files_are_read_as_far_as_they_are_literal() {
        let conf = |text: &str, command: &[&str]| {
            let found = look(command, &[("THREE", "3")], &[("conf/g.py", text)]);
            (slots_of(&found).unwrap_or(0), found.reason)
        };
        let plain = ["gunicorn", "-c", "conf/g.py", "app"];
        for (text, expected) in [
            ("workers = 4", 4),
            ("workers=4 # four\nthreads  =  2", 8),
            ("workers: int = 4", 4),
            ("workers = 4\nworkers = 3", 3),
            ("worker_class = 'gthread'\nthreads = 3", 3),
            ("worker_class = \"gevent\"\nworkers = 3", 0),
            ("# workers = 4", 1),
            ("workers_max = 4", 1),
            ("def f():\n    return workers == 4\n", 1),
            ("workers = 2 * 4", 0),
            ("workers += 1", 0),
            ("workers, threads = 2, 4", 0),
            ("if big:\n    workers = 4", 0),
            ("threads = cpu_count()\nworkers = 4", 0),
            ("worker_class = CLASS\nworkers = 4", 0),
            ("from base import *\nthreads = 2", 0),
            ("from base import x\nthreads = 2", 2),
            ("from base import workers", 0),
            ("from base import (\n    threads,\n    worker_class,\n)", 0),
            ("import threads", 0),
            ("if big: workers = 4", 0),
            ("a = 1; workers = 4", 0),
            ("globals()['workers'] = 4", 0),
            ("exec(open('base.py').read())", 0),
            ("def pre_exec(server):\n    pass\nworkers = 4", 4),
            ("if workers == 4: print(workers)", 1),
            // In a text.
            ("\"\"\"Settings.\nworkers = 4\n\"\"\"", 1),
            ("a = '''one line'''\nworkers = 4", 4),
            ("# \"\"\" in a comment\nworkers = 4", 4),
            // Variables of the environment.
            ("workers = int(os.environ.get('THREE', 4))", 3),
            ("workers = os.environ.get(\"THREE\", 1)", 3),
            ("workers = os.environ.get('NONE', '4')  # four", 4),
            ("workers = int(os.getenv('NONE', '4'))", 4),
            ("workers = int(getenv('NONE', default()))", 0),
            ("workers = int(os.environ['THREE'])", 3),
            ("workers = int(os.environ['NONE'])", 0),
            ("workers = os.environ.get('NONE')", 0),
            ("workers = int(os.environ.get('THREE', 4)) * 2", 0),
            ("workers = int(os.environ.get('THREE', 4) or 2)", 0),
        ] {
            assert_eq!(conf(text, &plain).0, expected, "{text}");
        }
        assert_eq!(
            conf("threads = f()", &plain).1,
            "threads in conf/g.py is not a literal: --concurrency N sets it"
        );
        // The workers can be counted when they run.
        let computed = |text: &str| {
            let found = look(&plain, &[], &[("conf/g.py", text)]);
            (found.workers.map(|workers| (workers.number, workers.threads)), found.reason)
        };
        for (text, threads, reason) in [
            ("workers = f()", 1, "gunicorn sync, its workers counted"),
            ("if big:\n    workers = 4", 1, "gunicorn sync, its workers counted"),
            ("workers = f()\nthreads = 2", 2, "gunicorn gthread, its workers counted x 2 threads"),
        ] {
            assert_eq!(computed(text), (Some((None, threads)), reason.to_owned()), "{text}");
        }
        assert_eq!(computed("workers = f()\nworker_class = C").0, None);
        // What the command line says, the file need not.
        assert_eq!(conf("workers = f()", &["gunicorn", "-w", "2", "--config=conf/g.py"]).0, 2);
        assert_eq!(conf("workers = 3", &["gunicorn", "-cfile:conf/g.py", "app"]).0, 3);
        assert_eq!(conf("workers = 3", &["gunicorn", "-c", "python:app.conf"]).0, 0);
    }

    #[test]
    fn the_reason_says_what_was_found() {
        let reason = |line: &str, env: &[(&str, &str)]| {
            look(&line.split(' ').collect::<Vec<_>>(), env, &[]).reason
        };
        assert_eq!(reason("gunicorn -w 4", &[]), "gunicorn sync, 4 workers");
        assert_eq!(reason("gunicorn", &[]), "gunicorn sync, 1 worker");
        assert_eq!(
            reason("gunicorn", &[("WEB_CONCURRENCY", "2")]),
            "gunicorn sync, 2 workers from WEB_CONCURRENCY"
        );
        assert_eq!(
            reason("gunicorn -w 2 --threads 4", &[]),
            "gunicorn gthread, 2 workers x 4 threads"
        );
        assert_eq!(
            reason("gunicorn -k gevent", &[]),
            "gunicorn gevent, not a class of one request a thread"
        );
        assert_eq!(reason("gunicorn -w x", &[]), "gunicorn's workers is \"x\"");
        assert_eq!(reason("node app.js", &[]), "the command is not a gunicorn that can be read");
        assert_eq!(look(&[], &[], &[]).reason, "no wrapped command to learn it from");
    }

    #[test]
    fn the_socket_is_the_one_that_is_bound() {
        let socket = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            look(&words, &[], &[("./gunicorn.conf.py", "bind = 'unix:/conf.sock'")]).socket
        };
        let some = |path: &str| Some(PathBuf::from(path));
        assert_eq!(socket("gunicorn --bind unix:/tmp/a.sock app"), some("/tmp/a.sock"));
        assert_eq!(socket("gunicorn -b unix:///tmp/a.sock app"), some("/tmp/a.sock"));
        assert_eq!(socket("gunicorn --bind=unix:/tmp/a.sock -k gevent app"), some("/tmp/a.sock"));
        assert_eq!(socket("gunicorn -b unix:/a -b 127.0.0.1:1 app"), some("/a"));
        assert_eq!(socket("gunicorn app"), some("/conf.sock"));
        let list = ("./gunicorn.conf.py", "bind = ['127.0.0.1:1', \"unix:/b.sock\"]  # both");
        assert_eq!(look(&["gunicorn", "app"], &[], &[list]).socket, some("/b.sock"));
        assert_eq!(socket("gunicorn -b 127.0.0.1:8000 app"), None);
        // Relative to a directory that --chdir may change.
        assert_eq!(socket("gunicorn -b unix:a.sock app"), None);
        assert_eq!(socket("puma -b unix:/a.sock"), None);
    }
}
