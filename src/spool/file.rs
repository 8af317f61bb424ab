//! A spool's file: unlinked, sparse, the byte at position p of the body at offset p.
//!
//! `write`, `read` and what `SpillFile` sends away run on the blocking pool, never on the event
//! loop (invariant 9); closing too, because the last close frees the blocks.
//!
//! Page cache counts against a container's limit like any other memory (R14 on Heroku), so that all
//! spool files together may fill a few megabytes of it. A batch that finds no room there goes to the
//! device itself (O_DIRECT), and so does all that follows it in its file: `direct_from` is where that
//! begins, `uncached..direct_from` what the page cache may have. Twice a second `clean` makes room for
//! those who come: it forces the oldest files' part to disk and drops it. Where the file system does
//! not know O_DIRECT, or no limit of memory counts the page cache (`Budget::refuse_direct`), all is cached,
//! and `clean` begins as soon as that is too much: a slow device holds no worker then.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate, fcntl_setfl};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::aligned::{self, Aligned};
use super::budget::{Budget, Counted, Lease, Owner};
use super::memory::{self, Memory};
use crate::metrics::METRICS;
use crate::sys;

/// The smallest block of a file system: less than that is not lost.
const BLOCK: usize = 512;

/// `data`, which begins at position `at` of the file, cut where the file's blocks end; each piece with
/// its position.
fn pieces(at: u64, data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let first = (BLOCK - (at % BLOCK as u64) as usize).min(data.len());
    let (head, rest) = data.split_at(first);
    let from = at + first as u64;
    let rest = rest.chunks(BLOCK).zip((from..).step_by(BLOCK));
    std::iter::once((at, head)).chain(rest.map(|(piece, from)| (from, piece)))
}

fn is_zero(piece: &[u8]) -> bool {
    !piece.is_empty() && piece.iter().all(|&byte| byte == 0)
}

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
    /// Whether it has O_DIRECT, which holds for the whole file: locked for each call on it.
    direct: Mutex<bool>,
    lease: Lease,
    /// What of it may lie in the page cache: what was written from `uncached` to `direct_from`.
    cached: Lease,
    /// Up to here everything is on disk and was dropped from the page cache.
    uncached: AtomicU64,
    /// From here on everything went to the device; u64::MAX: nothing did.
    direct_from: AtomicU64,
    /// Position of the first byte.
    start: u64,
    /// Position behind the last byte written.
    written: AtomicU64,
    /// The kernel could not write what it had taken: what is read back need not be what was written.
    lost: AtomicBool,
    /// Held while the kernel is asked for that, which it tells once: whoever reads what it has forgotten
    /// must not miss that another is being told.
    asking: Mutex<()>,
    /// A block of nothing but zeros may have been written.
    zeros: AtomicBool,
    /// It is among the files to be cleaned.
    listed: AtomicBool,
    /// Cleared when the file system turns out not to know holes.
    punches: AtomicBool,
    counted: Counted,
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
    owner: Owner,
    file: Option<Arc<SpillFile>>,
    mut batch: Memory,
    lease: Lease,
) -> Written {
    let file = match file {
        Some(file) => file,
        None => match SpillFile::create(budget, owner, batch.start()) {
            Ok(file) => Arc::new(file),
            Err(error) => {
                METRICS.spool_errors.add(1);
                return Written { file: None, rest: batch, error: Some(error) };
            }
        },
    };
    let open = file.open();
    let mut direct = open.goes_direct(budget, lease.bytes());
    while !batch.is_empty() {
        let at = batch.start();
        let written = open.not_lost().and_then(|()| match direct {
            true => open.write_direct(&batch),
            false => open.write_cached(&batch),
        });
        let bytes = match written {
            Ok(bytes) => bytes,
            Err(error) if direct && is_refused(&error) => {
                budget.refuse_direct();
                direct = false;
                continue;
            }
            Err(error) => {
                METRICS.spool_errors.add(1);
                return Written { file: Some(file), rest: batch, error: Some(error) };
            }
        };
        lease.hand_over(bytes, &open.lease);
        if direct {
            open.direct_from.fetch_min(at, Relaxed);
        } else {
            open.cached.grow(bytes);
        }
        batch.release(bytes);
    }
    open.written.store(batch.start(), Relaxed);
    if open.cached.bytes() > 0 && !open.listed.swap(true, Relaxed) {
        budget.add_to_clean(&file);
    }
    if budget.cache.is_exceeded() {
        begin_cleaning(budget);
    }
    Written { file: Some(file), rest: batch, error: None }
}

/// The file system, or the device, does not know O_DIRECT, or not as we use it.
fn is_refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error())
}

/// Makes room in the page cache, on the pool, if less than half of what spool files may have there is
/// free and nobody is at it.
pub(super) fn begin_cleaning(budget: &Arc<Budget>) {
    if budget.begins_cleaning() {
        let budget = budget.clone();
        spawn_blocking(move || clean(&budget));
    }
}

/// One at a time.
fn clean(budget: &Budget) {
    while let Some(file) = budget.next_to_clean() {
        if let Some(file) = file.upgrade() {
            let open = file.open();
            open.listed.store(false, Relaxed);
            let (from, end) = (open.uncached.load(Relaxed), open.written.load(Relaxed));
            if open.noticed(|file| sys::write_back(file, from..end)).is_ok() {
                open.uncache();
            }
            let before = open.uncached.fetch_max(end, Relaxed);
            open.cached.give_up_to(end.saturating_sub(before));
        }
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

/// Reads `size` bytes at position `at`, or less, into `data`, which is empty and has room for them.
/// `lease` is on the memory budget and covers that.
pub(super) fn read(
    file: &SpillFile,
    at: u64,
    size: usize,
    mut data: Vec<u8>,
    lease: Lease,
) -> io::Result<Buffer> {
    let open = file.open();
    let budget = open.counted.budget();
    let direct_from = open.direct_from.load(Relaxed);
    let cached = open.uncached.load(Relaxed)..direct_from;
    let mut done = false;
    if !cached.contains(&at) && budget.takes_direct() {
        let read = open.read_direct(at, size, &mut data);
        done = read.is_ok();
        if read.is_err_and(|error| is_refused(&error)) {
            budget.refuse_direct();
        }
    }
    if !done {
        // Where an error of its own ended the file system (ext4's journal), O_DIRECT reads nothing more,
        // and this does.
        data.resize(if at < direct_from { size.min((direct_from - at) as usize) } else { size }, 0);
        let read = open.with(false, |file| file.read_exact_at(&mut data, at));
        if !cached.contains(&at) {
            // It is in the cache by our reading.
            open.uncache();
        }
        read.inspect_err(|_| METRICS.spool_errors.add(1))?;
    }
    open.check(at, &data)?;
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
        let rest = self.from(at).to_vec();
        memory::keep(std::mem::replace(&mut self.data, rest));
        self.at = at;
        self.lease.give(self.lease.bytes() - self.data.len() as u64);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        memory::keep(std::mem::take(&mut self.data));
    }
}

impl Open {
    /// Whether `bytes` more go to the device itself.
    fn goes_direct(&self, budget: &Budget, bytes: u64) -> bool {
        let begun = self.direct_from.load(Relaxed) < u64::MAX;
        budget.takes_direct() && (begun || bytes > budget.cache.free())
    }

    /// Calls `io` with O_DIRECT, or without.
    fn with<T>(&self, direct: bool, io: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let mut is = self.direct.lock().unwrap_or_else(PoisonError::into_inner);
        if *is != direct {
            fcntl_setfl(&self.file, if direct { OFlags::DIRECT } else { OFlags::empty() })?;
            *is = direct;
        }
        io(&self.file)
    }

    /// Writes the first chunk of `batch`; its bytes.
    fn write_cached(&self, batch: &Memory) -> io::Result<u64> {
        let (at, chunk) = (batch.start(), batch.at(batch.start()));
        self.note_zeros(at, chunk);
        self.with(false, |file| file.write_all_at(chunk, at))?;
        Ok(chunk.len() as u64)
    }

    /// Writes the first bytes of `batch`; how many.
    fn write_direct(&self, batch: &Memory) -> io::Result<u64> {
        let at = batch.start();
        let from = aligned::floor(at);
        let before = (at - from) as usize;
        let mut piece = Aligned::new(aligned::LARGEST.min(before + batch.held()));
        if at > self.start && before > 0 {
            // The batch before it ended in this block.
            let read = self.with(true, |file| Aligned::read(file, from, before))?;
            self.check(from, read.as_slice())?;
            piece.push(read.as_slice());
        } else {
            piece.push(&[0; aligned::BLOCK][..before]);
        }
        for slice in batch.slices(at) {
            let room = aligned::LARGEST - piece.len();
            piece.push(&slice[..slice.len().min(room)]);
        }
        let bytes = piece.len() - before;
        self.note_zeros(at, &piece.as_slice()[before..]);
        piece.pad();
        self.with(true, |file| file.write_all_at(piece.as_slice(), from))?;
        Ok(bytes as u64)
    }

    /// Reads `size` bytes at position `at` into `data`.
    fn read_direct(&self, at: u64, size: usize, data: &mut Vec<u8>) -> io::Result<()> {
        let from = aligned::floor(at);
        let before = (at - from) as usize;
        let read = self.with(true, |file| Aligned::read(file, from, before + size))?;
        data.extend_from_slice(&read.as_slice()[before..]);
        Ok(())
    }

    fn note_zeros(&self, at: u64, data: &[u8]) {
        if pieces(at, data).any(|(_, piece)| is_zero(piece)) {
            self.zeros.store(true, Relaxed);
        }
    }

    /// Err: what is in the file cannot be trusted.
    fn not_lost(&self) -> io::Result<()> {
        if self.lost.load(Relaxed) { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
    }

    /// Err: `ask`, now or before, has found that something could not be written.
    fn noticed(&self, ask: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if ask(&self.file).is_err() && !self.lost.swap(true, Relaxed) {
            METRICS.spool_errors.add(1);
        }
        self.not_lost()
    }

    /// Err: `data`, which was read at position `at`, need not be what was written there.
    fn check(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.noticed(|file| sys::written(file).and_then(|()| self.looks_whole(at, data)))
    }

    /// Err: there are zeros where none were written. A file system that gives up (ext4, when its journal
    /// has ended) drops what it has not written without an error, and the hole is read as zeros. So is what
    /// a loop device could not put into its file, of a request of which it could put a part there: it calls
    /// that written, with O_DIRECT too.
    fn looks_whole(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let end = self.written.load(Relaxed);
        // Of a block that was read in part nothing can be said, but of the last one of the file.
        let whole = |&(from, piece): &(u64, &[u8])| {
            from.is_multiple_of(BLOCK as u64)
                && (piece.len() == BLOCK || from + piece.len() as u64 == end)
        };
        let lost = !self.zeros.load(Relaxed)
            && pieces(at, data).filter(whole).any(|(_, piece)| is_zero(piece));
        if lost { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
    }

    /// Drops what is on disk from the page cache. All of it: the kernel keeps pages that reach beyond
    /// the range that it is given, and they may be large.
    fn uncache(&self) {
        // Advice: a file system that does not take it keeps its cache.
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
    }
}

impl SpillFile {
    /// A file whose first byte will be at position `start`.
    fn create(budget: &Arc<Budget>, owner: Owner, start: u64) -> io::Result<SpillFile> {
        let (file, counted) = budget.open_file()?;
        // No reading ahead: what a reader that stalls does not come to would stay cached.
        let _ = fadvise(&file, 0, None, Advice::Random);
        let open = Open {
            file,
            direct: Mutex::new(false),
            lease: Lease::empty(&budget.disk, owner),
            cached: Lease::empty(&budget.cache, Owner::UNKNOWN),
            uncached: AtomicU64::new(start),
            direct_from: AtomicU64::new(u64::MAX),
            start,
            written: AtomicU64::new(start),
            lost: AtomicBool::new(false),
            asking: Mutex::default(),
            zeros: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            punches: AtomicBool::new(true),
            counted,
        };
        Ok(SpillFile { open: Some(open) })
    }

    /// Frees the blocks and the cached pages of `range`, which is not read again.
    pub(super) fn punch(self: &Arc<SpillFile>, range: Range<u64>) {
        if !self.open().punches.load(Relaxed) {
            return;
        }
        let file = self.clone();
        spawn_blocking(move || {
            let Open { file, lease, cached, uncached, punches, .. } = file.open();
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let bytes = range.end - range.start;
            match fallocate(file, flags, range.start, bytes) {
                Ok(()) => {
                    lease.give(bytes);
                    let from = uncached.fetch_max(range.end, Relaxed).max(range.start);
                    cached.give_up_to(range.end.saturating_sub(from));
                }
                // Then the close frees them, and until then they are counted.
                Err(_) => punches.store(false, Relaxed),
            }
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

#[cfg(test)]
mod tests {
    use super::super::budget::CACHE;
    use super::*;

    /// Two blocks of a page and the beginning of a third.
    const LEN: usize = 2 * 4096 + 100;

    /// What is read back at `at`, `len` bytes of it, of a body that was written in two batches, when the
    /// file system has forgotten `lost`, with room for so many bytes in the page cache.
    fn read_back(
        body: &[u8],
        lost: Range<u64>,
        at: usize,
        len: usize,
        cache: u64,
    ) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir()?;
        let open = |dir: &std::path::Path| tempfile::tempfile_in(dir);
        let budget = Budget::with_opener(1 << 20, 1 << 20, cache, dir.path().into(), open);
        let mut file = None;
        for batch in [0..5000, 5000..LEN] {
            let mut memory = Memory::new(&budget.memory, Owner::UNKNOWN, batch.start as u64);
            let lease = Lease::empty(&budget.disk, Owner::UNKNOWN);
            lease.grow(batch.len() as u64);
            memory.push(&body[batch]);
            file = write(&budget, Owner::UNKNOWN, file, memory, lease).file;
        }
        let file = file.expect("it was made");
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if !lost.is_empty() {
            fallocate(&file.open().file, flags, lost.start, lost.end - lost.start)?;
        }
        let mut got = Vec::new();
        while got.len() < len {
            let lease = Lease::empty(&budget.memory, Owner::UNKNOWN);
            let at = (at + got.len()) as u64;
            got.extend_from_slice(&read(&file, at, len - got.len(), Vec::new(), lease)?.data);
        }
        Ok(got)
    }

    #[test]
    fn what_the_file_system_forgot_is_no_part_of_a_body() {
        let body: Vec<u8> = (0..LEN).map(|n| (n % 251) as u8 + u8::from(n % 251 == 0)).collect();
        assert_eq!(read_back(&body, 0..0, 0, LEN, CACHE).unwrap(), body);
        for (lost, at, len) in [
            (0..4096, 0, LEN),
            (0..4096, 1000, 2000),
            (4096..8192, 3000, 3000),
            // The rest of the last page.
            (8192..8192 + 4096, 8192, 100),
            (8192..8192 + 4096, 5000, LEN - 5000),
        ] {
            let error = read_back(&body, lost.clone(), at, len, CACHE).unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(rustix::io::Errno::IO.raw_os_error()),
                "{lost:?}"
            );
        }
        // What was not lost can be read until then.
        assert_eq!(read_back(&body, 4096..8192, 0, 4096, CACHE).unwrap(), body[..4096]);
    }

    #[test]
    fn what_a_spool_sends_away_at_once_is_one_write_of_the_device() {
        let budget = Budget::new(1 << 20, 1 << 20, std::env::temp_dir());
        let file = SpillFile::create(&budget, Owner::UNKNOWN, 100).unwrap();
        let mut memory = Memory::new(&budget.memory, Owner::UNKNOWN, 100);
        // `response-memory`, and the read that was too much.
        let most = 256 * 1024 + super::super::MAX_PUSH;
        memory.push(&vec![1; most]);
        match file.open().write_direct(&memory) {
            Ok(bytes) => assert_eq!(bytes, most as u64),
            Err(error) => assert!(is_refused(&error), "{error}"),
        }
    }

    #[test]
    fn zeros_that_were_written_are_read() {
        for zeros in [0..LEN, 0..512, 4900..5100, 4608..5120, 8192..LEN, LEN - 1..LEN] {
            let mut body = vec![1; LEN];
            body[zeros].fill(0);
            for (at, len) in [(0, LEN), (4608, 512), (4999, 600), (8192, 100)] {
                for cache in [0, 5000, CACHE] {
                    let read = read_back(&body, 0..0, at, len, cache);
                    assert_eq!(read.unwrap(), body[at..at + len], "{cache} bytes of page cache");
                }
            }
        }
    }
}
