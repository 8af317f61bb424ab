//! What the process says to its operator: one line each on stderr, in plain words, apart from the
//! access log. `main` starts it; everybody says things with `tracing`'s macros.
//!
//! A line is never more than one, whatever is quoted in it: control characters are escaped.

use std::fmt;
use std::io;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Lines of `level` and worse go to stderr from now on. To be called once.
pub fn start(level: Level) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .event_format(Line)
        .init();
}

/// `bufproxy: warning: …`
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        writer.write_str(prefix(*event.metadata().level(), &text))?;
        for c in text.chars() {
            match c.is_control() {
                true => write!(writer, "{}", c.escape_default())?,
                false => writer.write_char(c)?,
            }
        }
        writer.write_char('\n')
    }
}

fn prefix(level: Level, text: &str) -> &'static str {
    match level {
        Level::ERROR => "bufproxy: error: ",
        Level::WARN => "bufproxy: warning: ",
        // The boot line begins with our name and version.
        _ if text.starts_with("bufproxy ") => "",
        _ => "bufproxy: ",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_event_is_one_line_that_begins_with_our_name() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::INFO)
            .with_writer(move || writer.clone())
            .event_format(Line)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("bufproxy 0.1.0 listening on [::]:5000");
            tracing::info!("app answered HEAD / after 6.2 s (200); port open");
            tracing::warn!("dropped {:?} and a\nforged line\x1b[31m", "é");
            tracing::error!("x");
            tracing::debug!("not said");
        });
        let said = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            said,
            "bufproxy 0.1.0 listening on [::]:5000\n\
             bufproxy: app answered HEAD / after 6.2 s (200); port open\n\
             bufproxy: warning: dropped \"é\" and a\\nforged line\\u{1b}[31m\n\
             bufproxy: error: x\n"
        );
    }
}
