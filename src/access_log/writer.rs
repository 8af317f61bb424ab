//! The log's own thread. Loops push lines into a buffer under a lock held for a memcpy; the thread
//! writes what has come together, so that a slow reader or disk never slows a client.
//!
//! What must stay true: `push` never waits for the destination; a pipe gets whole lines in writes
//! that the kernel does not mix with those of the app, which shares it; the descriptor's flags,
//! which are the app's too, are never changed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

use crate::config::LogDestination;
use crate::metrics::METRICS;

/// After the first line the thread waits this long for others: at most 100 wake-ups a second.
const GATHER: Duration = Duration::from_millis(10);
/// Largest write to a pipe that is whole or not at all (PIPE_BUF on Linux, pipe(7)).
const PIPE_WRITE: usize = 4096;
/// Largest write elsewhere.
const FILE_WRITE: usize = 64 * 1024;
/// Longest lines, without their ends.
const PIPE_MAX_LINE: usize = PIPE_WRITE - 1;
const FILE_MAX_LINE: usize = 9_899;
/// Each of the two buffers that an idle log keeps.
const KEEP: usize = 64 * 1024;

/// A log: cheap to clone, used from any thread. With the last clone its thread ends, when it has
/// written what is waiting.
#[derive(Clone, Debug)]
pub struct LogWriter {
    /// None: the log is off.
    handle: Option<Arc<Handle>>,
    max_line: usize,
}

/// What the thread does not have: its end is the thread's.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.notify_one();
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// Locked for a memcpy, never during a write.
    state: Mutex<State>,
    /// There is something for the thread to do.
    wake: Condvar,
    /// Everything is written, or the thread has ended.
    written: Condvar,
    /// Bytes that may wait, those of the write under way included.
    backlog: usize,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    /// Bytes that the thread is writing.
    writing: usize,
    /// Lines lost since the last report of it.
    lost: u64,
    /// The thread sleeps: the next line has to wake it.
    sleeping: bool,
    /// Somebody waits for `written`: no gathering.
    hurry: bool,
    /// Length of `lines` when `reopen` was called: what is before it goes to the old file.
    reopen: Option<usize>,
    closed: bool,
    /// Its thread has ended: nothing is left.
    ended: bool,
}

impl LogWriter {
    /// Opens the destination (a file is made with mode 0644 and appended to) and starts its thread.
    /// `backlog`: bytes that may wait for a slow reader (option `log-backlog`).
    pub fn open(destination: &LogDestination, backlog: usize) -> io::Result<LogWriter> {
        match destination {
            LogDestination::Off => Ok(LogWriter { handle: None, max_line: FILE_MAX_LINE }),
            LogDestination::Stdout => {
                let stdout = io::stdout().as_fd().try_clone_to_owned()?;
                LogWriter::start("access log", Sink::shared(stdout.into())?, None, backlog)
            }
            LogDestination::File(path) => {
                let sink = Sink::shared(open(path)?)?;
                LogWriter::start("access log", sink, Some(path.clone()), backlog)
            }
        }
    }

    /// The diagnostics' way to stderr.
    pub(super) fn stderr(stderr: &Stderr, backlog: usize) -> io::Result<LogWriter> {
        LogWriter::start("diagnostics", stderr.0.clone(), None, backlog)
    }

    fn start(
        name: &'static str,
        sink: Arc<Mutex<Sink>>,
        path: Option<PathBuf>,
        backlog: usize,
    ) -> io::Result<LogWriter> {
        let pipe = lock(&sink).is_pipe();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            written: Condvar::new(),
            backlog,
        });
        let mut thread = Thread { name, shared: shared.clone(), sink, path, failing: false };
        std::thread::Builder::new().name(name.to_owned()).spawn(move || thread.run())?;
        let max_line = if pipe { PIPE_MAX_LINE } else { FILE_MAX_LINE };
        Ok(LogWriter { handle: Some(Arc::new(Handle(shared))), max_line })
    }

    /// Nothing is written: lines need not be made.
    pub fn is_off(&self) -> bool {
        self.handle.is_none()
    }

    /// Longest line that this destination takes whole, without its line end: 4,095 bytes on a pipe,
    /// else 9,899 (Heroku cuts at 10,000).
    pub fn max_line(&self) -> usize {
        self.max_line
    }

    /// Adds a line (without its line end). Never waits; beyond the backlog the line is dropped and
    /// counted.
    pub fn push(&self, line: &[u8]) {
        let Some(Handle(shared)) = self.handle.as_deref() else { return };
        let mut state = shared.lock();
        let waiting = state.lines.len() + state.writing;
        if state.closed || waiting + line.len() + 1 > shared.backlog {
            state.lost += 1;
            METRICS.log_lines_dropped.add(1);
            return;
        }
        state.lines.extend_from_slice(line);
        state.lines.push(b'\n');
        if std::mem::take(&mut state.sleeping) {
            drop(state);
            shared.wake.notify_one();
        }
    }

    /// Opens the file again by its path (USR1, after a rotation). Lines pushed before this call go
    /// to the old file, lines after it to the new one. If it cannot be opened, the old one stays.
    pub fn reopen(&self) {
        let Some(Handle(shared)) = self.handle.as_deref() else { return };
        let mut state = shared.lock();
        state.reopen = Some(state.lines.len());
        drop(state);
        shared.wake.notify_one();
    }

    /// Writes what is waiting, at most for `limit`. False: something is left.
    pub fn flush(&self, limit: Duration) -> bool {
        self.handle.as_deref().is_none_or(|handle| handle.0.flush(limit))
    }

    /// To flush it by when it is not used any more, which does not keep it open.
    pub(crate) fn outlived(&self) -> Outlived {
        Outlived(self.handle.as_deref().map_or_else(Weak::new, |handle| Arc::downgrade(&handle.0)))
    }

    /// Takes no more lines, writes what is waiting, at most for `limit` (a stuck reader must not
    /// hang the exit), and ends the thread. False: something was left.
    pub fn close(&self, limit: Duration) -> bool {
        if let Some(Handle(shared)) = self.handle.as_deref() {
            shared.lock().closed = true;
        }
        self.flush(limit)
    }
}

/// A log that others may write to still, or its thread.
#[derive(Debug)]
pub(crate) struct Outlived(Weak<Shared>);

impl Outlived {
    /// Everything was written, and its thread has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// Writes what is waiting, at most for `limit`.
    pub(crate) fn flush(&self, limit: Duration) {
        if let Some(shared) = self.0.upgrade() {
            shared.flush(limit);
        }
    }
}

impl Shared {
    fn flush(&self, limit: Duration) -> bool {
        let mut state = self.lock();
        state.hurry = !state.ended;
        self.wake.notify_one();
        let (state, _) = self
            .written
            .wait_timeout_while(state, limit, |state| state.hurry)
            .unwrap_or_else(PoisonError::into_inner);
        !state.hurry
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics under these locks, and a log is not worth a second panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Our stderr, for all threads that write to it: none of them cuts into a line of another.
#[derive(Clone, Debug)]
pub struct Stderr(Arc<Mutex<Sink>>);

impl Stderr {
    pub(super) fn of_process() -> io::Result<Stderr> {
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        Ok(Stderr(Sink::shared(stderr.into())?))
    }

    /// Writes `bytes` as they are, and waits for a slow reader. On a pipe each write is at most 4,096
    /// bytes, of whole lines where there are any. The end may lie inside a line: a diagnostic that
    /// comes then begins a new one.
    ///
    /// What cannot be written is lost: whoever reads stderr has gone.
    pub fn write(&self, bytes: &[u8]) {
        let mut sink = lock(&self.0);
        sink.write_pieces(bytes);
        // The diagnostics say what is wrong when they find it themselves.
        sink.error = None;
    }
}

/// The thread of one log.
struct Thread {
    name: &'static str,
    shared: Arc<Shared>,
    sink: Arc<Mutex<Sink>>,
    path: Option<PathBuf>,
    /// The last write failed, and it was said.
    failing: bool,
}

impl Thread {
    fn run(&mut self) {
        let shared = self.shared.clone();
        let mut batch = Vec::new();
        loop {
            batch.clear();
            let mut state = shared.lock();
            state.writing = 0;
            while state.lines.is_empty() && state.reopen.is_none() {
                // Not after each batch: new memory for the next one would be page faults on the loops.
                batch.shrink_to(KEEP);
                state.lines.shrink_to(KEEP);
                if std::mem::take(&mut state.hurry) {
                    shared.written.notify_all();
                }
                if state.closed {
                    state.ended = true;
                    return;
                }
                state.sleeping = true;
                state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.sleeping = false;
            (state, _) = shared
                .wake
                .wait_timeout_while(state, GATHER, |state| !state.hurry)
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut state.lines, &mut batch);
            state.writing = batch.len();
            let reopen = state.reopen.take();
            drop(state);
            self.write(&batch, reopen);
        }
    }

    /// Writes a batch; at `reopen` the file changes.
    fn write(&mut self, batch: &[u8], reopen: Option<usize>) {
        let (old, new) = batch.split_at(reopen.unwrap_or(0));
        let mut failed = lock(&self.sink).write_lines(old);
        if reopen.is_some() {
            self.reopen();
        }
        failed += lock(&self.sink).write_lines(new);
        if failed > 0 {
            METRICS.log_lines_dropped.add(failed);
            self.shared.lock().lost += failed;
            let error = lock(&self.sink).error.take();
            if let Some(error) = error.filter(|_| !self.failing) {
                self.failing = true;
                tracing::error!("{}: {error}; lines are lost until it can be written", self.name);
            }
        } else if !batch.is_empty() {
            self.failing = false;
            let lost = std::mem::take(&mut self.shared.lock().lost);
            if lost > 0 {
                tracing::warn!("{} is written again; {lost} lines were lost", self.name);
            }
        }
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match open(path) {
            Ok(file) => {
                let mut sink = lock(&self.sink);
                (sink.file, sink.torn) = (file, false);
            }
            Err(error) => tracing::error!(
                "{} {}: {error}; going on with the file that was open",
                self.name,
                path.display()
            ),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    // A named pipe that nobody reads yet would hold the open, and with it the start: for this moment we
    // are its reader. Later a pipe without one is an error of the write, which is said.
    let pipe = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    let at_once = OFlags::NONBLOCK.bits() as i32;
    let _reader = pipe.then(|| OpenOptions::new().read(true).custom_flags(at_once).open(path));
    OpenOptions::new().append(true).create(true).mode(0o644).open(path)
}

/// The descriptor and how to write to it.
#[derive(Debug)]
struct Sink {
    file: File,
    /// Largest write.
    write_size: usize,
    /// The last write ended inside a line.
    torn: bool,
    /// Why the last lines could not be written.
    error: Option<io::Error>,
}

impl Sink {
    fn shared(file: File) -> io::Result<Arc<Mutex<Sink>>> {
        let pipe = file.metadata()?.file_type().is_fifo();
        Ok(Arc::new(Mutex::new(Sink::new(file, pipe))))
    }

    fn new(file: File, pipe: bool) -> Sink {
        let write_size = if pipe { PIPE_WRITE } else { FILE_WRITE };
        Sink { file, write_size, torn: false, error: None }
    }

    fn is_pipe(&self) -> bool {
        self.write_size == PIPE_WRITE
    }

    /// Writes lines, the first one at the beginning of a line. Gives the number of those that could
    /// not be written.
    fn write_lines(&mut self, lines: &[u8]) -> u64 {
        if self.torn && !lines.is_empty() && self.write_all(b"\n").is_err() {
            return count(lines);
        }
        self.write_pieces(lines)
    }

    /// As many whole lines at once as `write_size` allows.
    fn write_pieces(&mut self, mut lines: &[u8]) -> u64 {
        while !lines.is_empty() {
            let limit = lines.len().min(self.write_size);
            // A line longer than a write (none of ours is) goes out in pieces, as does one without end.
            let end = memchr::memrchr(b'\n', &lines[..limit]).map_or(limit, |i| i + 1);
            if let Err(left) = self.write_all(&lines[..end]) {
                return count(&lines[end - left..]);
            }
            lines = &lines[end..];
        }
        0
    }

    /// Writes all of `bytes`; the error is how many were left.
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut left = bytes;
        while let [.., last] = left {
            match (&self.file).write(left) {
                Ok(n @ 1..) => {
                    self.torn = n < left.len() || *last != b'\n';
                    left = &left[n..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody else made the shared description non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
                    // Whatever it says, the next write tells.
                    let _ = poll(&mut fds, None);
                }
                // The reader has gone, the disk is full: these lines are lost, later ones perhaps
                // not.
                result => {
                    self.error = Some(result.err().unwrap_or(io::ErrorKind::WriteZero.into()));
                    return Err(left.len());
                }
            }
        }
        Ok(())
    }
}

fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests;
