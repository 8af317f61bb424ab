//! Lines of a running program, as they come.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::GUARD;

/// Collects the lines of one stream in a thread, so that the program never blocks on a full pipe.
pub(crate) struct Lines {
    coming: Receiver<String>,
    seen: RefCell<Vec<String>>,
}

impl Lines {
    pub(crate) fn of(stream: impl Read + Send + 'static) -> Lines {
        let (sender, coming) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { break };
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        Lines { coming, seen: RefCell::default() }
    }

    /// The first line, seen before or still to come, for which `wanted` is true.
    #[track_caller]
    pub(crate) fn wait_for(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_for_nth(1, wanted)
    }

    /// The `n`th such line (from 1).
    #[track_caller]
    pub(crate) fn wait_for_nth(&self, n: usize, wanted: impl Fn(&str) -> bool) -> String {
        self.find(n, GUARD, wanted).unwrap_or_else(|| panic!("no such line in {:#?}", self.seen()))
    }

    /// As `wait_for_nth`, with a limit of the caller's; None when the stream ended or time is up.
    pub(crate) fn find(
        &self,
        n: usize,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let deadline = Instant::now() + limit;
        loop {
            let found = self.seen().into_iter().filter(|line| wanted(line)).nth(n - 1);
            if found.is_some() {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.coming.recv_timeout(left) {
                Ok(line) => self.seen.borrow_mut().push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// All lines up to the end of the stream (the program has ended).
    pub(crate) fn to_end(&self) -> Vec<String> {
        while let Ok(line) = self.coming.recv_timeout(GUARD) {
            self.seen.borrow_mut().push(line);
        }
        self.seen()
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.borrow_mut().extend(self.coming.try_iter());
        self.seen.borrow().clone()
    }
}
