//! The command's stderr on its way to ours: a pipe that one thread copies as it comes, so that what the
//! command said last is known when it ends before it has answered.
//!
//! Not at a terminal: there the command has our stderr itself, because programs ask whether it is one,
//! and its last words stand right above ours.
//!
//! What must stay true: what the command has written before its end is on our stderr before ours. A slow
//! reader of it holds this thread, and the command when the pipe is full, as it would without us, and
//! nobody else. Whoever holds the pipe after the command (orphans) is not waited for. When nobody reads
//! our stderr any more, the pipe is emptied all the same. (When we are killed it breaks, and with it
//! what is in it: the command gets its TERM then.)

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;

use crate::access_log::Stderr;

/// Of the command's output, for its last words: gunicorn may say three tracebacks of its own after the
/// one that tells.
const KEPT: usize = 8192;
/// For so long a line that has no end yet is kept together: `print` of an unbuffered Python writes the
/// end by itself.
const HELD: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// A line that is longer than this goes out in pieces.
const LONG: usize = 4096;
/// Between two looks whether everything has been copied.
const LOOK: Duration = Duration::from_millis(1);
/// Of a line that is quoted.
const QUOTED: usize = 200;

/// The pipe. One for all starts of the command.
#[derive(Debug)]
pub struct Pipe {
    /// For the next start; so it never ends for us.
    writer: PipeWriter,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    reader: PipeReader,
    state: Mutex<State>,
}

/// Bytes since the beginning.
#[derive(Debug, Default)]
struct State {
    read: u64,
    copied: u64,
    /// The last that were read.
    last: VecDeque<u8>,
}

impl Pipe {
    /// Starts the thread, which lives as long as the process.
    ///
    /// # Errors
    /// No descriptors or no thread can be had.
    pub fn new(stderr: Stderr) -> io::Result<Pipe> {
        let (reader, writer) = io::pipe()?;
        let shared = Arc::new(Shared { reader, state: Mutex::default() });
        let pipe = Pipe { writer, shared: shared.clone() };
        std::thread::Builder::new().name("stderr".into()).spawn(move || shared.copy(&stderr))?;
        Ok(pipe)
    }

    pub(super) fn for_child(&self) -> io::Result<Stdio> {
        Ok(self.writer.try_clone()?.into())
    }

    /// Waits, at most for `limit`, until what the command has written by now is on our stderr.
    pub async fn copied(&self, limit: Duration) {
        let began = Instant::now();
        let goal = {
            // Nothing is between the pipe and `read` while this is locked.
            let state = self.shared.lock();
            state.read + ioctl_fionread(&self.shared.reader).unwrap_or_default()
        };
        while self.shared.lock().copied < goal && began.elapsed() < limit {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What the command said last, for a diagnostic: `; its last words: "…"`. Empty: nothing, or that
    /// it cannot be run, which is our own word and stands above.
    pub fn last_words(&self) -> String {
        let last: Vec<u8> = self.shared.lock().last.iter().copied().collect();
        last_words(&String::from_utf8_lossy(&last))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self, stderr: &Stderr) {
        let mut held = Vec::new();
        let mut block = vec![0; 64 * 1024];
        loop {
            let limit = (!held.is_empty()).then_some(&HELD);
            let more = match poll(&mut [PollFd::new(&self.reader, PollFlags::IN)], limit) {
                Ok(ready) => ready > 0,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => true,
            };
            let mut end = held.len();
            if more {
                let mut state = self.lock();
                // It does not wait: there is no other reader.
                let n = match (&self.reader).read(&mut block) {
                    Ok(n @ 1..) => n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    // It cannot be: we hold the other end.
                    _ => return,
                };
                state.read += n as u64;
                state.last.extend(&block[..n]);
                let surplus = state.last.len().saturating_sub(KEPT);
                state.last.drain(..surplus);
                drop(state);
                held.extend_from_slice(&block[..n]);
                end = match memchr::memrchr(b'\n', &held) {
                    Some(newline) => newline + 1,
                    None if held.len() < LONG => 0,
                    None => held.len(),
                };
            }
            stderr.write(&held[..end]);
            held.drain(..end);
            self.lock().copied += end as u64;
        }
    }
}

/// The last line, and before it the one that tells more where a server has the last word (`Worker failed
/// to boot`): that names a Python exception, else that is not of gunicorn's log.
fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    let Some(last) = lines.last().filter(|last| !last.starts_with("bufproxy: error: cannot run"))
    else {
        return String::new();
    };
    // It follows its traceback, which is indented.
    let ends_traceback = |pair: &&[&str]| pair[0].starts_with(' ') && names_exception(pair[1]);
    let exception = lines.windows(2).rev().find(ends_traceback).map(|pair| &pair[1]);
    let is_log = |line: &str| line.starts_with('[') && line.contains("] [");
    let tells = exception.or_else(|| lines.iter().rev().find(|line| !is_log(line)));
    match tells.filter(|line| *line != last) {
        Some(line) => format!("; its last words: {} … {}", quoted(line), quoted(last)),
        None => format!("; its last words: {}", quoted(last)),
    }
}

/// `ValueError`, `django.core.exceptions.ImproperlyConfigured: …`, but not what gunicorn makes of it.
fn names_exception(line: &str) -> bool {
    let name = line.split(':').next().unwrap_or(line);
    name != "gunicorn.errors.HaltServer"
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_alphanumeric() || c == '.' || c == '_')
}

/// In quotes, without anything that a terminal obeys, and not too long.
fn quoted(line: &str) -> String {
    let line = line.trim_start();
    match line.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{:?}...", &line[..end]),
        None => format!("{line:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_tells_is_quoted_and_the_last_one() {
        let gunicorn = "\
[2026-11-23 15:00:00 +0000] [7] [ERROR] Exception in worker process
Traceback (most recent call last):
  File \"/app/arbiter.py\", line 608, in spawn_worker
    worker.init_process()
  File \"<frozen importlib._bootstrap>\", line 1140, in _find_and_load_unlocked
ModuleNotFoundError: No module named 'nope'
[2026-11-23 15:00:00 +0000] [7] [INFO] Worker exiting (pid: 7)
[2026-11-23 15:00:00 +0000] [6] [ERROR] Reason: Worker failed to boot.
";
        for (said, words) in [
            (
                gunicorn,
                r#"; its last words: "ModuleNotFoundError: No module named 'nope'" … "[2026-11-23 15:00:00 +0000] [6] [ERROR] Reason: Worker failed to boot.""#,
            ),
            (
                "  x\nOSError: a\n  x\ngunicorn.errors.HaltServer: <HaltServer 'b' 3>\n",
                r#"; its last words: "OSError: a" … "gunicorn.errors.HaltServer: <HaltServer 'b' 3>""#,
            ),
            ("  x = 1\nKeyError: 'A'\n\n", r#"; its last words: "KeyError: 'A'""#),
            (
                "No 'b' in 'a'.\n[2026-11-23] [7] [INFO] Worker exiting\n[2026-11-23] [6] [ERROR] Reason\n",
                r#"; its last words: "No 'b' in 'a'." … "[2026-11-23] [6] [ERROR] Reason""#,
            ),
            ("starting\nno database\n", r#"; its last words: "no database""#),
            ("starting\nno end", r#"; its last words: "no end""#),
            (
                "\x1b[31mr\u{e9}d\x1b[0m\ta \"b\"\r\n",
                r#"; its last words: "\u{1b}[31mréd\u{1b}[0m\ta \"b\"""#,
            ),
            // Not of an exception, but indented above.
            ("  help\nsee the manual: page 3\n  end\n", r#"; its last words: "end""#),
            ("\n \n", ""),
            ("", ""),
            ("bufproxy: error: cannot run \"x\": not found in PATH\n", ""),
        ] {
            assert_eq!(last_words(said), words, "{said:?}");
        }
        let long = last_words(&"é".repeat(1000));
        assert_eq!(long, format!("; its last words: \"{}\"...", "é".repeat(QUOTED)));
    }
}
