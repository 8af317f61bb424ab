//! Diagnostics: what the program says of itself, with `tracing`, on stderr. `main` calls `init`
//! once.
//!
//! One line each, in plain words: `bufproxy: text`, `bufproxy: warning: text`, `bufproxy: error:
//! text`. They go through a log thread of their own, since a loop must not wait for stderr either.

use std::fmt::{self, Write as _};
use std::io;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::writer::{LogWriter, Stderr};

/// Bytes that may wait for a slow reader of stderr.
const BACKLOG: usize = 1 << 20;

/// The way to stderr, kept to the end of the process.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    writer: LogWriter,
    stderr: Stderr,
}

/// Sends the events of `level` and above to stderr from here on; `color` is for a terminal.
pub fn init(level: Level, color: bool) -> io::Result<Diagnostics> {
    let stderr = Stderr::of_process()?;
    let writer = LogWriter::stderr(&stderr, BACKLOG)?;
    tracing::subscriber::set_global_default(subscriber(writer.clone(), level, color))
        .map_err(io::Error::other)?;
    Ok(Diagnostics { writer, stderr })
}

impl Diagnostics {
    /// Where they go, for others who write there.
    pub fn stderr(&self) -> &Stderr {
        &self.stderr
    }

    /// Writes what is waiting, at most for `limit`. False: something is left.
    pub fn flush(&self, limit: Duration) -> bool {
        self.writer.flush(limit)
    }
}

fn subscriber(writer: LogWriter, level: Level, color: bool) -> impl Subscriber + Send + Sync {
    tracing_subscriber::registry()
        .with(Lines { writer, color }.with_filter(LevelFilter::from_level(level)))
}

/// The layer that makes a line of an event.
struct Lines {
    writer: LogWriter,
    color: bool,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let mut line = String::new();
        // The boot line brings name and version itself.
        if !text.0.starts_with("bufproxy ") {
            line.push_str("bufproxy: ");
        }
        let (label, color) = match *event.metadata().level() {
            Level::ERROR => ("error: ", "\x1b[31m"),
            Level::WARN => ("warning: ", "\x1b[33m"),
            Level::INFO => ("", ""),
            Level::DEBUG => ("debug: ", "\x1b[2m"),
            Level::TRACE => ("trace: ", "\x1b[2m"),
        };
        if self.color && !label.is_empty() {
            line.extend([color, label.trim_end(), "\x1b[0m "]);
        } else {
            line.push_str(label);
        }
        for c in text.0.chars() {
            // Values may have come from clients: no second line, nothing that a terminal obeys.
            if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
        }
        let max_line = self.writer.max_line();
        if line.len() > max_line {
            line.truncate(line.floor_char_boundary(max_line - 3));
            line.push_str("...");
        }
        self.writer.push(line.as_bytes());
    }
}

/// The message, then the other fields as ` name=value`.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
        written.expect("a String takes every write");
    }
}

/// A subscriber for tests of what other modules say.
#[cfg(test)]
pub(super) fn lines(writer: LogWriter) -> impl Subscriber + Send + Sync {
    subscriber(writer, Level::INFO, false)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::LogDestination;

    /// What `emit` makes of the events.
    fn lines(level: Level, color: bool, emit: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let writer = LogWriter::open(&LogDestination::File(path.clone()), BACKLOG).unwrap();
        tracing::subscriber::with_default(subscriber(writer.clone(), level, color), emit);
        assert!(writer.close(Duration::from_secs(60)));
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn every_event_is_one_plain_line() {
        let text = lines(Level::INFO, false, || {
            tracing::info!("bufproxy 0.1.0 listening on [::]:5000");
            tracing::info!("app answered HEAD / after {} s (200); port open", 6.2);
            tracing::warn!(peer = 7, "dropped X-Forwarded-Proto: {}", "a\r\nb\x1b[2Jc");
            tracing::error!("--max-body \"100mb\" is not a size: write 100m");
            tracing::debug!("not at this level");
        });
        assert_eq!(
            text,
            "bufproxy 0.1.0 listening on [::]:5000\n\
             bufproxy: app answered HEAD / after 6.2 s (200); port open\n\
             bufproxy: warning: dropped X-Forwarded-Proto: a\\r\\nb\\u{1b}[2Jc peer=7\n\
             bufproxy: error: --max-body \"100mb\" is not a size: write 100m\n"
        );
    }

    #[test]
    fn colour_marks_the_level_only() {
        let text = lines(Level::INFO, true, || {
            tracing::info!("plain");
            tracing::error!("bad");
        });
        assert_eq!(text, "bufproxy: plain\nbufproxy: \x1b[31merror:\x1b[0m bad\n");
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let text = lines(Level::INFO, false, || tracing::info!("{}", "é".repeat(9_000)));
        assert!(text.ends_with("é...\n"));
        assert!((9_890..=9_900).contains(&text.len()), "{}", text.len());
    }
}
