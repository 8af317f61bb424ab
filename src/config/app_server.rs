//! Which app servers take a listener that is passed to them (`pass-socket`), and how each is told.
//! Called by `resolve`; pure.
//!
//! LISTEN_PID has to be the server's own process id, so it counts only what the command becomes by
//! exec: behind a launcher that starts it as its child (`uv run`) the socket would not be taken.

use std::ffi::OsString;
use std::path::PathBuf;

/// A server that takes a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AppServer {
    Gunicorn,
    Puma,
    Uvicorn,
}

/// Programs that become the command that follows them.
const LAUNCHERS: &[&str] = &[
    "bundle",
    "chamber",
    "ddtrace-run",
    "env",
    "ionice",
    "newrelic-admin",
    "nice",
    "nohup",
    "opentelemetry-instrument",
    "pipenv",
    "poetry",
    "pypy3",
    "python",
    "python3",
    "stdbuf",
];

/// Words between a launcher and the command.
const LAUNCHER_WORDS: &[&str] = &["exec", "run", "run-program", "--"];

/// The server that `command` becomes, and its arguments.
pub(super) fn recognise(command: &[OsString]) -> Option<(AppServer, &[OsString])> {
    for (index, word) in command.iter().enumerate() {
        let word = word.to_str()?;
        let name = word.rsplit('/').next()?;
        let server = match name {
            "gunicorn" => Some(AppServer::Gunicorn),
            "puma" => Some(AppServer::Puma),
            "uvicorn" => Some(AppServer::Uvicorn),
            _ => None,
        };
        if let Some(server) = server {
            return Some((server, &command[index + 1..]));
        }
        let launcher = LAUNCHERS.contains(&name) || name.starts_with("python3.");
        let between = word.starts_with('-') || word.contains('=') || LAUNCHER_WORDS.contains(&word);
        if !launcher && (index == 0 || !between) {
            return None;
        }
    }
    None
}

impl AppServer {
    /// What has to be on its command line for it to take descriptor 3. gunicorn goes by LISTEN_FDS
    /// alone, which wins over its `--bind`, its configuration file and PORT.
    pub(super) fn to_take_it(self) -> &'static [&'static str] {
        match self {
            AppServer::Gunicorn => &[],
            // LISTEN_FDS too, but it closes what none of its binds names.
            AppServer::Puma => &["--bind-to-activated-sockets=only"],
            AppServer::Uvicorn => &["--fd", "3"],
        }
    }

    /// The Unix socket that `arguments` tell it to bind, by its full path. (gunicorn's has more
    /// places to be in: `gunicorn` reads them.)
    pub(super) fn bound_socket(self, arguments: &[OsString]) -> Option<PathBuf> {
        let flags: &[&str] = match self {
            AppServer::Gunicorn => return None,
            AppServer::Puma => &["-b", "--bind"],
            AppServer::Uvicorn => &["--uds"],
        };
        let mut words = arguments.iter().map_while(|word| word.to_str());
        while let Some(word) = words.next() {
            let (flag, attached) = match word.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (word, None),
            };
            if !flags.contains(&flag) {
                continue;
            }
            let address = attached.or_else(|| words.next())?;
            let path = address.strip_prefix("unix://").unwrap_or(address);
            let path = path.split_once('?').map_or(path, |(path, _)| path);
            return path.starts_with('/').then(|| path.into());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn only_what_the_command_becomes_counts() {
        use AppServer::{Gunicorn, Puma, Uvicorn};
        for (line, server) in [
            ("gunicorn app.wsgi", Some(Gunicorn)),
            ("/venv/bin/gunicorn app.wsgi", Some(Gunicorn)),
            ("python3.13 -m gunicorn app.wsgi", Some(Gunicorn)),
            ("newrelic-admin run-program gunicorn app.wsgi", Some(Gunicorn)),
            ("env -u X A=1 nice gunicorn app", None),
            ("env A=1 nice gunicorn app", Some(Gunicorn)),
            ("poetry run uvicorn app:app", Some(Uvicorn)),
            ("bundle exec puma -C config/puma.rb", Some(Puma)),
            ("uv run gunicorn app", None),
            ("tini -- gunicorn app", None),
            ("sh -c gunicorn", None),
            ("-m gunicorn", None),
            ("echo gunicorn", None),
            ("python3 manage.py runserver", None),
            ("python3", None),
            ("", None),
        ] {
            let found = words(line);
            assert_eq!(recognise(&found).map(|(server, _)| server), server, "{line}");
        }
    }

    #[test]
    fn a_socket_that_is_named_is_found() {
        for (line, socket) in [
            ("uvicorn --uds /tmp/a.sock app:app", Some("/tmp/a.sock")),
            ("uvicorn --uds=/tmp/a.sock app:app", Some("/tmp/a.sock")),
            ("uvicorn --uds a.sock app:app", None),
            ("uvicorn --port 8000 app:app", None),
            ("uvicorn app:app --uds", None),
            ("puma -b unix:///tmp/a.sock?umask=0111", Some("/tmp/a.sock")),
            ("puma --bind=unix:///tmp/a.sock", Some("/tmp/a.sock")),
            ("puma -b tcp://127.0.0.1:9292", None),
        ] {
            let line_words = words(line);
            let (server, arguments) = recognise(&line_words).unwrap();
            assert_eq!(server.bound_socket(arguments), socket.map(PathBuf::from), "{line}");
        }
    }
}
