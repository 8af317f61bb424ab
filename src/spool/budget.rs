//! What all spools share: one number of bytes in memory, one of bytes on disk (invariant 4).
//!
//! Every byte that a spool holds is on a `Lease`, which gives it back when it is dropped: with its
//! spool, or with the task on the blocking pool that has it in hand.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// The budgets that all spools share: bytes in memory, bytes on disk, and where disk is.
#[derive(Debug)]
pub struct Budget {
    pub(super) memory: Arc<Pool>,
    pub(super) disk: Arc<Pool>,
    files: AtomicU64,
    dir: PathBuf,
    /// Opens an unlinked file in a directory; tests put a failing disk here.
    open: fn(&Path) -> io::Result<File>,
}

/// How much of the memory budget is in use, and so what one spool may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// A quarter at most: every spool keeps up to its own limit.
    Plenty,
    /// A spool keeps 8 KiB.
    Short,
    /// Everything goes to disk. What is left, an eighth, is for bytes on their way there.
    Spent,
}

impl Budget {
    /// Budgets in bytes; spool files are made in `dir`, without names. `memory` under 64 KiB, the
    /// largest push, is taken but lets one spool write at a time.
    pub fn new(memory: u64, disk: u64, dir: PathBuf) -> Arc<Budget> {
        Budget::with_opener(memory, disk, dir, |dir| tempfile::tempfile_in(dir))
    }

    pub(super) fn with_opener(
        memory: u64,
        disk: u64,
        dir: PathBuf,
        open: fn(&Path) -> io::Result<File>,
    ) -> Arc<Budget> {
        let (memory, disk) = (Arc::new(Pool::new(memory)), Arc::new(Pool::new(disk)));
        Arc::new(Budget { memory, disk, files: AtomicU64::new(0), dir, open })
    }

    /// Bytes held in memory by all spools now: what is allocated, not what is filled.
    pub fn memory_used(&self) -> u64 {
        self.memory.used.load(Relaxed)
    }

    /// Bytes held on disk by all spools now, those on their way there included.
    pub fn disk_used(&self) -> u64 {
        self.disk.used.load(Relaxed)
    }

    /// Spool files open now.
    pub fn files_open(&self) -> u64 {
        self.files.load(Relaxed)
    }

    /// More than a quarter of the memory budget is in use: what waits should not wait in memory
    /// (`Spool::spill`).
    pub fn memory_pressure(&self) -> bool {
        self.level() != Level::Plenty
    }

    pub(super) fn level(&self) -> Level {
        let (used, limit) = (self.memory_used(), self.memory.limit);
        if used > limit - limit / 8 {
            Level::Spent
        } else if used > limit / 4 {
            Level::Short
        } else {
            Level::Plenty
        }
    }

    /// Opens a spool file. Blocks.
    pub(super) fn open_file(self: &Arc<Budget>) -> io::Result<(File, Counted)> {
        let file = (self.open)(&self.dir)?;
        self.files.fetch_add(1, Relaxed);
        Ok((file, Counted(self.clone())))
    }
}

/// One open spool file in `Budget::files_open`.
#[derive(Debug)]
pub(super) struct Counted(Arc<Budget>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.files.fetch_sub(1, Relaxed);
    }
}

/// A number of bytes that may be used, and who waits for some.
#[derive(Debug)]
pub(super) struct Pool {
    limit: u64,
    used: AtomicU64,
    /// Whether `waiters` may hold any: asked without the lock at every give-back.
    waited_for: AtomicBool,
    /// Held for an insertion, a removal or a swap only; wakers are woken after it.
    waiters: Mutex<BTreeMap<u64, Waker>>,
    next_waiter: AtomicU64,
}

impl Pool {
    fn new(limit: u64) -> Pool {
        Pool {
            limit,
            used: AtomicU64::new(0),
            waited_for: AtomicBool::new(false),
            waiters: Mutex::default(),
            next_waiter: AtomicU64::new(0),
        }
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.used.load(SeqCst).saturating_add(bytes.min(self.limit)) <= self.limit
    }

    /// `bytes` of this pool, if they are free.
    pub(super) fn lease(self: &Arc<Pool>, bytes: u64) -> Option<Lease> {
        self.used
            .fetch_update(SeqCst, SeqCst, |used| {
                used.checked_add(bytes).filter(|&sum| sum <= self.limit)
            })
            .ok()?;
        Some(Lease { pool: self.clone(), bytes: AtomicU64::new(bytes) })
    }

    /// Has `waker` woken at the next give-back. The caller asks for room once more afterwards:
    /// some may have come back just before.
    pub(super) fn wait(self: &Arc<Pool>, waker: &Waker) -> Wait {
        let key = self.next_waiter.fetch_add(1, Relaxed);
        self.waiters().insert(key, waker.clone());
        // With the SeqCst of `give` and of the next question: either that sees the room, or the
        // give-back sees the waiter.
        self.waited_for.store(true, SeqCst);
        Wait { pool: self.clone(), key }
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, SeqCst);
        if self.waited_for.load(SeqCst) {
            let waiters = {
                let mut waiters = self.waiters();
                self.waited_for.store(false, SeqCst);
                std::mem::take(&mut *waiters)
            };
            waiters.into_values().for_each(Waker::wake);
        }
    }

    fn waiters(&self) -> MutexGuard<'_, BTreeMap<u64, Waker>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a pool; given back on drop.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    bytes: AtomicU64,
}

impl Lease {
    pub(super) fn empty(pool: &Arc<Pool>) -> Lease {
        Lease { pool: pool.clone(), bytes: AtomicU64::new(0) }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Takes `bytes` more, beyond the limit if need be: whoever needs them has asked before.
    pub(super) fn grow(&self, bytes: u64) {
        self.pool.used.fetch_add(bytes, SeqCst);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Takes over what `other` holds.
    pub(super) fn merge(&self, other: &Lease) {
        debug_assert!(Arc::ptr_eq(&self.pool, &other.pool));
        self.bytes.fetch_add(other.bytes.swap(0, Relaxed), Relaxed);
    }

    /// Moves `bytes` to `other`.
    pub(super) fn hand_over(&self, bytes: u64, other: &Lease) {
        let before = self.bytes.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "handed over {bytes} of {before} bytes");
        other.bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn give(&self, bytes: u64) {
        let before = self.bytes.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "gave back {bytes} of {before} bytes");
        self.pool.give(bytes);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.pool.give(bytes);
        }
    }
}

/// A waker in a pool's list; taken out on drop.
#[derive(Debug)]
pub(super) struct Wait {
    pool: Arc<Pool>,
    key: u64,
}

impl Wait {
    /// Wakes the waiter now, for a reason of its own.
    pub(super) fn wake(self) {
        let waker = self.pool.waiters().remove(&self.key);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let waker = self.pool.waiters().remove(&self.key);
        drop(waker);
    }
}
