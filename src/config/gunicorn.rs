//! `concurrency auto`: what the wrapped command says of its workers, when it is gunicorn.
//!
//! Read as gunicorn reads it: command line, then GUNICORN_CMD_ARGS, then the configuration file, then
//! WEB_CONCURRENCY. Too few slots would idle workers and too many would only move the queue, so
//! whatever is not certain means off, with a reason that the boot line shows. Pure: the file comes
//! through `ReadFile`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::platform::ReadFile;

/// What was found in the wrapped command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gunicorn {
    /// Requests that it serves at once. None: unknown, or async.
    pub(super) slots: Option<usize>,
    /// Why, for the boot line: `gunicorn sync, 4 workers`.
    pub(super) reason: String,
    /// The Unix socket that it binds, if it names one by its full path.
    pub(super) socket: Option<PathBuf>,
}

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
    let Some(arguments) = gunicorn_arguments(&words, env) else {
        return unknown("the command is not a gunicorn that can be read");
    };
    let mut settings = Settings::default();
    settings.take_arguments(&arguments);
    if let Some(arguments) = env.get("GUNICORN_CMD_ARGS") {
        settings.take_arguments(&shell_words(arguments, &BTreeMap::new()).concat());
    }
    settings.take_file(read);
    settings.conclude(env)
}

fn unknown(reason: impl Into<String>) -> Gunicorn {
    Gunicorn { slots: None, reason: reason.into(), socket: None }
}

/// One setting: the first source that has it wins.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Setting {
    Literal(String),
    /// An expression in this file, whose value only Python knows.
    Expression(String),
}

#[derive(Debug, Default)]
struct Settings {
    workers: Option<Setting>,
    threads: Option<Setting>,
    worker_class: Option<Setting>,
    bind: Option<Setting>,
    config: Option<Setting>,
}

impl Settings {
    fn slot(&mut self, name: &str) -> Option<&mut Option<Setting>> {
        match name {
            "workers" => Some(&mut self.workers),
            "threads" => Some(&mut self.threads),
            "worker_class" => Some(&mut self.worker_class),
            "bind" => Some(&mut self.bind),
            "config" => Some(&mut self.config),
            _ => None,
        }
    }

    /// gunicorn's command line. Within it the last one wins, but for `--bind`, where all of them are
    /// bound and the first is as good as any.
    fn take_arguments(&mut self, words: &[String]) {
        let mut found = Settings::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some((name, attached)) = known_flag(word) else { continue };
            let Some(value) = attached.or_else(|| words.next().cloned()) else { break };
            if let Some(slot) = found.slot(name)
                && (name != "bind" || slot.is_none())
            {
                *slot = Some(Setting::Literal(value));
            }
        }
        self.fill_from(found);
    }

    /// The configuration file: `--config`, or `./gunicorn.conf.py`, which gunicorn loads unasked.
    fn take_file(&mut self, read: ReadFile<'_>) {
        let named = match &self.config {
            Some(Setting::Literal(name)) => Some(name.as_str()),
            _ => None,
        };
        let path = named.unwrap_or("./gunicorn.conf.py");
        let path = path.strip_prefix("file:").unwrap_or(path);
        let shown = path.strip_prefix("./").unwrap_or(path).to_owned();
        let text = read(Path::new(path)).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let found = match text {
            Some(text) => assignments(&text, &shown),
            None if named.is_none() => return,
            // A module (`python:app.conf`), or a file that is not there yet.
            None => everything_is_in(&shown),
        };
        self.fill_from(found);
    }

    fn fill_from(&mut self, lower: Settings) {
        let Settings { workers, threads, worker_class, bind, config } = lower;
        self.workers = self.workers.take().or(workers);
        self.threads = self.threads.take().or(threads);
        self.worker_class = self.worker_class.take().or(worker_class);
        self.bind = self.bind.take().or(bind);
        self.config = self.config.take().or(config);
    }

    fn conclude(self, env: &BTreeMap<String, String>) -> Gunicorn {
        let socket = match &self.bind {
            Some(Setting::Literal(address)) => unix_socket(address),
            _ => None,
        };
        let (slots, reason) = match self.slots(env) {
            Ok((slots, reason)) => (Some(slots), reason),
            Err(reason) => (None, reason),
        };
        Gunicorn { slots, reason, socket }
    }

    fn slots(&self, env: &BTreeMap<String, String>) -> Result<(usize, String), String> {
        let class = match &self.worker_class {
            None => "sync",
            Some(Setting::Literal(class)) => class.strip_prefix("egg:gunicorn#").unwrap_or(class),
            Some(Setting::Expression(file)) => return Err(only_python_knows("worker_class", file)),
        };
        let threaded = match class {
            "sync" | "gunicorn.workers.sync.SyncWorker" => false,
            "gthread" | "gunicorn.workers.gthread.ThreadWorker" => true,
            _ => return Err(format!("gunicorn {class}, not a class of one request a thread")),
        };
        let threads = number(&self.threads, "threads")?.unwrap_or(1);
        let (workers, from) = match number(&self.workers, "workers")? {
            Some(workers) => (workers, ""),
            None => match env.get("WEB_CONCURRENCY") {
                None => (1, ""),
                Some(text) => (parse(text, "WEB_CONCURRENCY")?, " from WEB_CONCURRENCY"),
            },
        };
        let many = |count: usize, what: &str| {
            format!("{count} {what}{}", if count == 1 { "" } else { "s" })
        };
        // gunicorn itself makes gthread of sync when there are several threads.
        Ok(if threaded || threads > 1 {
            let (workers_text, threads_text) = (many(workers, "worker"), many(threads, "thread"));
            (workers * threads, format!("gunicorn gthread, {workers_text}{from} x {threads_text}"))
        } else {
            (workers, format!("gunicorn sync, {}{from}", many(workers, "worker")))
        })
    }
}

fn only_python_knows(name: &str, file: &str) -> String {
    format!("{name} in {file} is not a literal: --concurrency N sets it")
}

fn number(setting: &Option<Setting>, name: &str) -> Result<Option<usize>, String> {
    match setting {
        None => Ok(None),
        Some(Setting::Literal(text)) => parse(text, name).map(Some),
        Some(Setting::Expression(file)) => Err(only_python_knows(name, file)),
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
        _ => return None,
    };
    let value = word.get(2..).filter(|value| !value.is_empty());
    Some((name, value.map(|value| value.strip_prefix('=').unwrap_or(value).to_owned())))
}

fn unix_socket(address: &str) -> Option<PathBuf> {
    let path = address.strip_prefix("unix:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// The words after gunicorn, if that is what the command runs.
fn gunicorn_arguments(words: &[String], env: &BTreeMap<String, String>) -> Option<Vec<String>> {
    let program = base_name(words.first()?);
    if SHELLS.contains(&program) {
        let script = words.iter().position(|word| word.starts_with('-') && word.ends_with('c'))?;
        let commands = shell_words(words.get(script + 1)?, env);
        // `pip install gunicorn && gunicorn app`: the last one is what stays.
        return commands.iter().rev().find_map(|command| gunicorn_arguments(command, env));
    }
    let place = words.iter().position(|word| is_gunicorn(word))?;
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

fn is_gunicorn(word: &str) -> bool {
    matches!(base_name(word), "gunicorn" | "gunicorn.app.wsgiapp")
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
    let unknown = || Some(Setting::Expression(file.to_owned()));
    Settings {
        workers: unknown(),
        threads: unknown(),
        worker_class: unknown(),
        bind: unknown(),
        config: None,
    }
}

/// Literal assignments of a gunicorn configuration file. An assignment that is indented, computed or
/// imported is an expression.
fn assignments(text: &str, file: &str) -> Settings {
    let mut found = Settings::default();
    for line in text.lines() {
        let statement = line.trim_start();
        if statement.starts_with("from ") && statement.trim_end().ends_with('*') {
            found = everything_is_in(file);
            continue;
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
            // `workers += 1`, `workers, threads = 2, 4`; anything else does not assign.
            _ if rest.contains('=') && !rest.starts_with("==") => "",
            _ => continue,
        };
        *slot = Some(match literal(value) {
            Some(value) if statement.len() == line.len() => Setting::Literal(value),
            _ => Setting::Expression(file.to_owned()),
        });
    }
    found
}

/// A number or a string, a comment after it allowed.
fn literal(value: &str) -> Option<String> {
    if let Some(quote) = value.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        let (text, rest) = value[1..].split_once(quote)?;
        let rest = rest.trim();
        return (!text.contains('\\') && (rest.is_empty() || rest.starts_with('#')))
            .then(|| text.to_owned());
    }
    let number = value.split('#').next().unwrap_or(value).trim();
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| number.to_owned())
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
        look(&words, &[], &[]).slots.unwrap_or(0)
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
        let shell =
            |text: &str| look(&["sh", "-c", text], &[("WEB_WORKERS", "5")], &[]).slots.unwrap_or(0);
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
            assert_eq!(shell(text), expected, "{text}");
        }
        assert_eq!(look(&["bash", "-lc", "gunicorn -w 4"], &[], &[]).slots, Some(4));
        assert_eq!(look(&["bash", "run.sh"], &[], &[]).slots, None);
    }

    #[test]
    fn command_line_wins_over_variable_over_file_over_web_concurrency() {
        let command = ["gunicorn", "app"];
        let with_flag = ["gunicorn", "-w", "2", "app"];
        let web = ("WEB_CONCURRENCY", "5");
        let arguments = ("GUNICORN_CMD_ARGS", "--access-logfile - --workers=3");
        let file = [("./gunicorn.conf.py", "workers = 4\n")];
        let slots = |command: &[&str], env: &[(&str, &str)], files: &[(&str, &str)]| {
            look(command, env, files).slots
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
            let found = look(command, &[], &[("conf/g.py", text)]);
            (found.slots.unwrap_or(0), found.reason)
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
            ("workers = int(os.environ.get('W', 4))", 0),
            ("workers += 1", 0),
            ("workers, threads = 2, 4", 0),
            ("if big:\n    workers = 4", 0),
            ("threads = cpu_count()\nworkers = 4", 0),
            ("worker_class = CLASS\nworkers = 4", 0),
            ("from base import *\nthreads = 2", 0),
            ("from base import x\nthreads = 2", 2),
        ] {
            assert_eq!(conf(text, &plain).0, expected, "{text}");
        }
        assert_eq!(
            conf("workers = f()", &plain).1,
            "workers in conf/g.py is not a literal: --concurrency N sets it"
        );
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
        assert_eq!(socket("gunicorn -b 127.0.0.1:8000 app"), None);
        // Relative to a directory that --chdir may change.
        assert_eq!(socket("gunicorn -b unix:a.sock app"), None);
        assert_eq!(socket("puma -b unix:/a.sock"), None);
    }
}
