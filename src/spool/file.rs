//! A spool's file: unlinked, sparse, the byte at position p of the body at offset p.
//!
//! `write`, `read` and what `SpillFile` sends away run on the blocking pool, never on the event
//! loop (invariant 9); closing too, because the last close frees the blocks.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::budget::{Budget, Counted, Lease};
use super::memory::Memory;
use crate::metrics::METRICS;

/// An open spool file.
#[derive(Debug)]
pub(super) struct SpillFile {
    /// None only while it is dropped.
    open: Option<Open>,
}

/// Fields in the order in which they go: the blocks are free before the budget says so.
#[derive(Debug)]
struct Open {
    file: File,
    lease: Lease,
    /// Cleared when the file system turns out not to know holes.
    punches: AtomicBool,
    _counted: Counted,
}

/// What became of a batch.
#[derive(Debug)]
pub(super) struct Written {
    /// None when it could not be made.
    pub(super) file: Option<Arc<SpillFile>>,
    /// What was not written; empty unless there is an error.
    pub(super) rest: Memory,
    pub(super) error: Option<io::Error>,
}

/// Writes `batch` to `file`, which is made if there is none. Memory is given back as it is written.
/// `lease` is on the disk budget and covers the batch.
pub(super) fn write(
    budget: &Arc<Budget>,
    file: Option<Arc<SpillFile>>,
    mut batch: Memory,
    lease: Lease,
) -> Written {
    let file = match file {
        Some(file) => file,
        None => match SpillFile::create(budget) {
            Ok(file) => Arc::new(file),
            Err(error) => {
                METRICS.spool_errors.add(1);
                return Written { file: None, rest: batch, error: Some(error) };
            }
        },
    };
    let open = file.open();
    loop {
        let chunk = batch.at(batch.start());
        if chunk.is_empty() {
            return Written { file: Some(file), rest: batch, error: None };
        }
        let bytes = chunk.len() as u64;
        if let Err(error) = open.file.write_all_at(chunk, batch.start()) {
            METRICS.spool_errors.add(1);
            return Written { file: Some(file), rest: batch, error: Some(error) };
        }
        lease.hand_over(bytes, &open.lease);
        batch.release(bytes);
    }
}

/// A piece of a body read back from its file.
#[derive(Debug)]
pub(super) struct Buffer {
    /// Position of its first byte.
    pub(super) at: u64,
    pub(super) data: Vec<u8>,
    lease: Lease,
}

/// Reads `size` bytes at position `at`. `lease` is an empty one on the memory budget.
pub(super) fn read(file: &SpillFile, at: u64, size: usize, lease: Lease) -> io::Result<Buffer> {
    let mut data = vec![0; size];
    lease.grow(size as u64);
    file.open().file.read_exact_at(&mut data, at).inspect_err(|_| METRICS.spool_errors.add(1))?;
    Ok(Buffer { at, data, lease })
}

impl Buffer {
    pub(super) fn held(&self) -> usize {
        self.lease.bytes() as usize
    }

    /// The bytes from position `at` on; empty when it does not have that one.
    pub(super) fn from(&self, at: u64) -> &[u8] {
        let skip = at.checked_sub(self.at).and_then(|skip| usize::try_from(skip).ok());
        skip.and_then(|skip| self.data.get(skip..)).unwrap_or_default()
    }

    /// Gives up all before position `at`, and the memory of it.
    pub(super) fn shrink_to(&mut self, at: u64) {
        self.data = self.from(at).to_vec();
        self.at = at;
        self.lease.give(self.lease.bytes() - self.data.len() as u64);
    }
}

impl SpillFile {
    fn create(budget: &Arc<Budget>) -> io::Result<SpillFile> {
        let (file, counted) = budget.open_file()?;
        let lease = Lease::empty(&budget.disk);
        let open = Open { file, lease, punches: AtomicBool::new(true), _counted: counted };
        Ok(SpillFile { open: Some(open) })
    }

    /// Frees the blocks and the cached pages of `range`, which is not read again.
    pub(super) fn punch(self: &Arc<SpillFile>, range: Range<u64>) {
        if !self.open().punches.load(Relaxed) {
            return;
        }
        let file = self.clone();
        spawn_blocking(move || {
            let Open { file, lease, punches, .. } = file.open();
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let bytes = range.end - range.start;
            match fallocate(file, flags, range.start, bytes) {
                Ok(()) => lease.give(bytes),
                // Then the close frees them, and until then they are counted.
                Err(_) => punches.store(false, Relaxed),
            }
        });
    }

    /// Takes `range` out of the page cache, as far as it is written back: R14 of Heroku counts it.
    pub(super) fn uncache(self: &Arc<SpillFile>, range: Range<u64>) {
        let file = self.clone();
        spawn_blocking(move || {
            let bytes = NonZeroU64::new(range.end - range.start);
            // Advice: a file system that does not take it keeps its cache.
            let _ = fadvise(&file.open().file, range.start, bytes, Advice::DontNeed);
        });
    }

    fn open(&self) -> &Open {
        self.open.as_ref().expect("taken by drop alone")
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        let open = self.open.take();
        // Whoever drops it last, a loop or a task whose spool has gone, only the pool closes it.
        // Without a runtime there is no loop to be held up.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn_blocking(move || drop(open));
        }
    }
}
