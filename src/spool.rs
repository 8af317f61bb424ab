//! One body: in memory first, then in an unlinked file; readable while it is written.
//!
//! The same type carries requests (kept whole until they are answered, so that an attempt can be
//! made again) and responses (given up as the client takes them). It is driven by one task, through
//! `poll_*`; file I/O happens on the blocking pool, never on the event loop (invariant 9).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The budgets that all spools share (invariant 4): bytes in memory, bytes on disk.
#[derive(Debug)]
pub struct Budget {
    _memory: u64,
    _disk: u64,
    _dir: PathBuf,
}

impl Budget {
    pub fn new(memory: u64, disk: u64, dir: PathBuf) -> Arc<Budget> {
        Arc::new(Budget { _memory: memory, _disk: disk, _dir: dir })
    }
    /// Bytes held in memory by all spools now.
    pub fn memory_used(&self) -> u64 {
        0
    }
    /// Bytes held on disk by all spools now.
    pub fn disk_used(&self) -> u64 {
        0
    }
}

/// Limits of one spool.
#[derive(Clone, Copy, Debug)]
pub struct SpoolLimits {
    /// Bytes in memory before it spills (`body-memory`, `response-memory`).
    pub memory: usize,
    /// Bytes on disk at most (`response-spool-max`; u64::MAX for requests).
    pub disk: u64,
    /// Keep what was read, so that `rewind` can replay it (requests).
    pub replay: bool,
}

#[derive(Debug)]
pub struct Spool {
    _budget: Arc<Budget>,
}

impl Spool {
    /// An empty spool. Allocates nothing.
    pub fn new(budget: &Arc<Budget>, limits: SpoolLimits) -> Spool {
        let _ = limits;
        Spool { _budget: budget.clone() }
    }

    /// Bytes pushed so far.
    pub fn len(&self) -> u64 {
        0
    }
    /// Bytes pushed and not yet consumed.
    pub fn unread(&self) -> u64 {
        0
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes on disk now.
    pub fn on_disk(&self) -> u64 {
        0
    }

    /// Takes a copy of `data`. Only to be called after `poll_ready` was `Ready(Ok)` since the last
    /// push; `data` is at most 64 KiB.
    pub fn push(&mut self, data: &[u8]) {
        let _ = data;
    }

    /// Ready when `push` may be called: there is room in memory, or what has to go to disk is under
    /// way and bounded. Drives the writes to disk. Pending with `blocked()` true: the disk budget is
    /// spent, and only `consume` makes room. Err: the disk failed or (replay) the budget is spent:
    /// the spool keeps what it has, the new body is to be refused (spool_full).
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = cx;
        Poll::Ready(Ok(()))
    }

    /// The disk budget (of this spool or of all) is spent: the writer has to wait for the reader.
    pub fn blocked(&self) -> bool {
        false
    }

    /// The next bytes at the read position, at most `max` where they come from disk; empty when all
    /// pushed bytes were consumed. Pending while they are read from disk.
    pub fn poll_data(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<&[u8]>> {
        let _ = (cx, max);
        Poll::Ready(Ok(&[]))
    }

    /// Moves the read position on by `n` bytes of what `poll_data` gave. Without `replay` they are
    /// given up.
    pub fn consume(&mut self, n: usize) {
        let _ = n;
    }

    /// Back to the first byte (only with `replay`).
    pub fn rewind(&mut self) {}

    /// All in memory: the bytes from the read position on as slices, for one vectored write. None
    /// when some of it is on disk.
    pub fn in_memory(&self) -> Option<&[u8]> {
        None
    }

    /// Gives back memory that only waits: what is in memory goes to disk (called by the owner when
    /// nothing has moved for 1 s and memory is short).
    pub fn spill(&mut self) {}
}
