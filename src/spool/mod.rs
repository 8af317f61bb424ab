//! One body: in memory first, then in an unlinked file; readable while it is written.
//!
//! The same type carries requests (kept whole until they are answered, so that an attempt can be
//! made again) and responses (given up as the client takes them). Each belongs to one exchange and
//! is driven by its task, through `poll_*`. A write that fails loses nothing that was pushed; file
//! I/O happens on the blocking pool, never on the event loop (invariant 9); all spools together
//! stay inside the budgets (invariant 4).
//!
//! A body is one line of positions, cut in three, each part possibly empty:
//!
//! ```text
//! 0 ........ read ............. on_file .............. memory.start ............ pushed
//!   given up      in the file           being written               in memory
//! ```
//!
//! The byte at position p lies at offset p of the (sparse) file, so that nothing needs an index.
//! When more is in memory than this spool may keep, all of it becomes one batch for the pool, and
//! memory begins anew behind it. When the reader has caught up with the file, the file goes.

mod aligned;
mod budget;
mod file;
mod memory;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};

pub use budget::{Budget, Owner};
use budget::{Lease, Level, WORTH_A_FILE, Wait};
use file::{Buffer, SpillFile, Written};
use memory::Memory;
pub(crate) use memory::{drop_kept, keep, piece};

/// Largest `push` in bytes: one read.
pub const MAX_PUSH: usize = crate::scratch::SIZE;
/// What a spool keeps in memory when more than a quarter of the budget is in use, the most that
/// stays of a buffer read from disk when the reader stalls (less is not worth a read), and what a
/// reader gets from disk even where memory is spent.
pub(crate) const KEEP_WHEN_SHORT: usize = 8 * 1024;
/// What may gather behind a batch that is being written, while memory is plenty: fewer, larger
/// writes.
const GATHER: u64 = 192 * 1024;
/// A body that has not moved for this long only waits.
const STALLED: Duration = Duration::from_secs(1);
/// Steps in which the blocks behind the reader are given back.
const TRIM: u64 = 1024 * 1024;
/// Whole blocks and pages only are given back.
const BLOCK: u64 = 4096;

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

/// One body. Dropped at any moment, it gives back all that it holds; a write under way finishes
/// first.
#[derive(Debug)]
pub struct Spool {
    budget: Arc<Budget>,
    limits: SpoolLimits,
    owner: Owner,
    /// Position of the reader.
    read: u64,
    /// Position behind the last byte.
    pushed: u64,
    memory: Memory,
    writing: Option<Writing>,
    reading: Option<JoinHandle<io::Result<Buffer>>>,
    /// What was read from the file last.
    buffer: Option<Buffer>,
    file: Option<Arc<SpillFile>>,
    /// Up to here the file was given back; with `replay`, 0.
    trimmed: u64,
    /// The writer waits for room: in a budget, or for `consume`.
    blocked: Option<Wait>,
    /// With `replay`: why a write failed, for the next `poll_ready`.
    error: Option<io::Error>,
    /// Without `replay`: a write failed. The disk is asked again when all was read.
    disk_failed: bool,
    /// `read` and `pushed` together as `relieve` first saw them, and when.
    seen: Option<(u64, Instant)>,
}

/// A batch on its way to the file.
#[derive(Debug)]
struct Writing {
    /// Position of its first byte; its last lies before `memory.start`.
    from: u64,
    /// Bytes that it held in memory when it left.
    held: usize,
    task: JoinHandle<Written>,
}

impl Spool {
    /// An empty spool. Allocates nothing.
    pub fn new(budget: &Arc<Budget>, limits: SpoolLimits) -> Spool {
        Spool {
            budget: budget.clone(),
            limits,
            owner: Owner::UNKNOWN,
            read: 0,
            pushed: 0,
            memory: Memory::new(&budget.memory, Owner::UNKNOWN, 0),
            writing: None,
            reading: None,
            buffer: None,
            file: None,
            trimmed: 0,
            blocked: None,
            error: None,
            disk_failed: false,
            seen: None,
        }
    }

    /// Has this body, of which nothing is there yet, count for `owner`.
    pub fn belongs_to(&mut self, owner: Owner) {
        debug_assert!(self.is_empty());
        self.owner = owner;
        self.memory.belongs_to(owner);
    }

    /// Empty again, for another body of whomever, with the same limits. Allocates nothing.
    pub fn clear(&mut self) {
        if self.pushed == 0 && self.blocked.is_none() {
            self.seen = None;
            return self.belongs_to(Owner::UNKNOWN);
        }
        *self = Spool::new(&self.budget, self.limits);
    }

    /// The body, to be used elsewhere; what stays is empty.
    pub fn take(&mut self) -> Spool {
        let empty = Spool::new(&self.budget, self.limits);
        std::mem::replace(self, empty)
    }

    /// Bytes pushed so far.
    pub fn len(&self) -> u64 {
        self.pushed
    }

    /// Bytes pushed and not yet consumed.
    pub fn unread(&self) -> u64 {
        self.pushed - self.read
    }

    /// Nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.pushed == 0
    }

    /// Bytes on disk now, with those on their way there.
    pub fn on_disk(&self) -> u64 {
        match (&self.file, &self.writing) {
            (None, None) => 0,
            _ => self.memory.start() - self.trimmed,
        }
    }

    /// Bytes in memory now, with those on their way to disk.
    pub fn mem_bytes(&self) -> usize {
        self.memory.held()
            + self.writing.as_ref().map_or(0, |writing| writing.held)
            + self.buffer.as_ref().map_or(0, Buffer::held)
    }

    /// The writer has to wait for a reader, without `replay` only: the disk budget (of this spool, of
    /// its owner or of all) is spent, or the disk failed. As of the last `poll_ready`.
    pub fn blocked(&self) -> bool {
        self.blocked.as_ref().is_some_and(|wait| wait.is_for(&self.budget.disk))
    }

    /// A write of this response failed; it goes on in memory, paced by its reader.
    pub fn disk_failed(&self) -> bool {
        self.disk_failed
    }

    /// Takes a copy of `data`. Only to be called after `poll_ready` was `Ready(Ok)` since the last
    /// push; `data` is at most `MAX_PUSH`.
    pub fn push(&mut self, data: &[u8]) {
        debug_assert!(data.len() <= MAX_PUSH);
        self.memory.push(data);
        self.pushed(data.len() as u64);
    }

    fn pushed(&mut self, bytes: u64) {
        self.pushed += bytes;
        self.take_finished_write();
        if self.error.is_none() && self.writing.is_none() && self.in_memory() > self.keep() {
            // If it cannot start, or the one before has failed, the next `poll_ready` says so.
            self.start_write();
        }
    }

    /// As `push`, of a `piece`, which is kept as it is where a copy would not be much smaller.
    pub(crate) fn push_piece(&mut self, piece: Vec<u8>) {
        let bytes = piece.len() as u64;
        self.memory.push_piece(piece);
        self.pushed(bytes);
    }

    /// Ready when `push` may be called: there is room in memory, or what has to go to disk is under
    /// way and bounded. It reserves nothing: ask when there is something to read from the peer,
    /// just before reading it.
    ///
    /// Pending with `blocked()` true: only readers make room; the task is woken then, as it is where
    /// others hold all memory. Err, only with `replay`: the disk failed, or its budget is spent
    /// (`StorageFull`); the spool keeps what it has, the new body is to be refused (spool_full).
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.blocked = None;
        loop {
            let writing = self.poll_written(cx).is_pending();
            let (keep, held) = (self.keep(), self.in_memory());
            let gathers = writing && self.budget.level(self.owner) == Level::Plenty;
            let room = if gathers { keep.max(GATHER) } else { keep };
            if held <= room && self.budget.memory.has_room(self.owner, self.next_push()) {
                // A write that failed was of what may stay (`relieve`).
                self.error = None;
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = self.error.take() {
                return Poll::Ready(Err(error));
            }
            if writing {
                return Poll::Pending;
            }
            let (full, bytes) = if held == 0 {
                (&self.budget.memory, self.next_push())
            } else if self.start_write() {
                continue;
            } else if self.limits.replay {
                return Poll::Ready(Err(io::ErrorKind::StorageFull.into()));
            } else if self.has_disk_for(held) {
                (&self.budget.disk, held)
            } else {
                // Its own limit: only its own reader makes room.
                (&self.budget.disk, u64::MAX)
            };
            if self.blocked.is_some() {
                return Poll::Pending;
            }
            // Then once more: room may have come between the question and the registration.
            self.blocked = Some(full.wait(self.owner, bytes, cx.waker()));
        }
    }

    /// The next bytes at the read position, at most `max` where they come from disk; empty when all
    /// pushed bytes were consumed. Pending while they are read from disk. Of a larger piece, a rest
    /// of more than 8 KiB that `consume` leaves is read again: `max` is best what the peer takes at
    /// once.
    pub fn poll_data(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<&[u8]>> {
        while self.read < self.memory.start() && self.buffered().is_empty() {
            if self.read < self.on_file() {
                ready!(self.poll_buffer(cx, max))?;
            } else {
                // On its way: back from the file soon, or from memory if that fails.
                ready!(self.poll_written(cx));
            }
        }
        Poll::Ready(Ok(if self.read < self.memory.start() {
            self.buffered()
        } else {
            self.memory.at(self.read)
        }))
    }

    /// The bytes at the read position as slices, for a vectored write: as many as `out` takes,
    /// `limit` bytes at most, as long as they are in memory. Gives the number of slices and of bytes
    /// in them, which is `unread()` when that is all.
    pub fn memory_slices<'a>(&'a self, limit: usize, out: &mut [IoSlice<'a>]) -> (usize, u64) {
        if self.read < self.memory.start() {
            return (0, 0);
        }
        self.memory.io_slices(self.read, limit, out)
    }

    /// Moves the read position on by `n` bytes of what `poll_data` or `memory_slices` gave. Without
    /// `replay` they are given up.
    pub fn consume(&mut self, n: usize) {
        debug_assert!(n as u64 <= self.unread());
        self.read += n as u64;
        self.shrink_buffer();
        if !self.limits.replay && self.read > self.memory.start() {
            self.memory.release(self.read - self.memory.start());
        }
        self.trim();
        if self.unread() == 0 {
            self.disk_failed = false;
        }
        if let Some(blocked) = self.blocked.take() {
            blocked.wake();
        }
    }

    /// Back to the first byte (only with `replay`).
    pub fn rewind(&mut self) {
        debug_assert!(self.limits.replay);
        self.read = 0;
        self.buffer = None;
    }

    /// Bytes that may be read of a body before `poll_ready` was asked: with its head.
    pub fn unasked(&self) -> usize {
        match self.budget.level(Owner::UNKNOWN) {
            Level::Plenty => MAX_PUSH,
            Level::Short | Level::Spent => KEEP_WHEN_SHORT,
        }
    }

    /// What has not moved for a second goes to disk (invariant 4), unless little of the memory budget
    /// is in use. To be called by the owner whenever it finds itself waiting. True: this spool holds
    /// what may be worth that, so call again while it waits (`Budget::should_relieve`).
    pub fn relieve(&mut self) -> bool {
        self.take_finished_write();
        let least = if self.file.is_some() { 0 } else { WORTH_A_FILE };
        if self.mem_bytes() <= least {
            return false;
        }
        if self.mem_bytes() > self.budget.worth_relieving(least) && self.writing.is_none() {
            let at = self.read + self.pushed;
            match self.seen {
                Some((seen, since)) if seen == at => {
                    if since.elapsed() >= STALLED {
                        self.seen = None;
                        self.spill();
                    }
                }
                _ => self.seen = Some((at, Instant::now())),
            }
        }
        true
    }

    /// Gives back memory that only waits: what is in memory goes to disk, if that has room.
    fn spill(&mut self) {
        self.buffer = None;
        self.take_finished_write();
        if self.writing.is_none() && self.in_memory() > 0 {
            self.start_write();
        }
    }

    /// Bytes of the body in memory that are not on their way to disk.
    fn in_memory(&self) -> u64 {
        self.pushed - self.memory.start()
    }

    /// Room in memory that the next push wants. A response leaves an eighth of the budget to requests:
    /// where the disk is full, responses that nobody reads would hold all of it.
    fn next_push(&self) -> u64 {
        let left = if self.limits.replay { 0 } else { self.budget.memory_limit() / 8 };
        MAX_PUSH as u64 + left
    }

    /// How many of them may stay now.
    fn keep(&self) -> u64 {
        match self.budget.level(self.owner) {
            Level::Plenty => self.limits.memory as u64,
            Level::Short => KEEP_WHEN_SHORT.min(self.limits.memory) as u64,
            Level::Spent => 0,
        }
    }

    /// Position up to which the body was written.
    fn on_file(&self) -> u64 {
        self.writing.as_ref().map_or(self.memory.start(), |writing| writing.from)
    }

    /// Bytes at the read position that were read from the file.
    fn buffered(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| buffer.from(self.read))
    }

    /// Whether `bytes` more are inside the limits of this one spool.
    fn has_disk_for(&self, bytes: u64) -> bool {
        !self.disk_failed && self.on_disk().saturating_add(bytes) <= self.limits.disk
    }

    /// Sends all that is in memory to disk. False when there is no room there.
    fn start_write(&mut self) -> bool {
        let (from, bytes) = (self.memory.start(), self.in_memory());
        if !self.has_disk_for(bytes) {
            return false;
        }
        let Some(lease) = self.budget.disk.lease(self.owner, bytes) else { return false };
        if self.file.is_none() && !self.limits.replay {
            self.trimmed = from;
        }
        let next = Memory::new(&self.budget.memory, self.owner, self.pushed);
        let batch = std::mem::replace(&mut self.memory, next);
        let held = batch.held();
        let (budget, owner, file) = (self.budget.clone(), self.owner, self.file.clone());
        let task = spawn_blocking(move || file::write(&budget, owner, file, batch, lease));
        self.writing = Some(Writing { from, held, task });
        true
    }

    /// Ready when nothing is being written.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(writing) = &mut self.writing else { return Poll::Ready(()) };
        let written = ready!(Pin::new(&mut writing.task).poll(cx)).expect(POOL);
        self.writing = None;
        self.file = written.file;
        if let Some(error) = written.error {
            let later = std::mem::replace(&mut self.memory, written.rest);
            self.memory.append(later);
            if self.limits.replay {
                self.error = Some(error);
            } else {
                self.disk_failed = true;
            }
        }
        Poll::Ready(())
    }

    fn take_finished_write(&mut self) {
        if self.writing.as_ref().is_some_and(|writing| writing.task.is_finished()) {
            // Its end has woken the task already: no wake-up is lost to the waker that does
            // nothing.
            let _ = self.poll_written(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// Ready when the piece of the file that was asked for is in the buffer.
    fn poll_buffer(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<()>> {
        let (at, on_file, owner) = (self.read, self.on_file(), self.owner);
        let reading = self.reading.get_or_insert_with(|| {
            let file = self.file.clone().expect("what was written has a file");
            let memory = &self.budget.memory;
            let mut size = (on_file - at).min(max.max(1) as u64) as usize;
            if !memory.has_room(owner, size as u64) {
                // A reader gives memory back: it must not wait for it.
                size = size.min(KEEP_WHEN_SHORT);
            }
            let (lease, data) = (Lease::empty(memory, owner), memory::chunk(size));
            lease.grow(data.capacity() as u64);
            spawn_blocking(move || file::read(&file, at, size, data, lease))
        });
        let buffer = ready!(Pin::new(reading).poll(cx)).expect(POOL);
        self.reading = None;
        self.buffer = Some(buffer?);
        Poll::Ready(Ok(()))
    }

    /// Keeps of the buffer what is not worth another read: whoever left the rest of a larger one
    /// has stalled.
    fn shrink_buffer(&mut self) {
        let rest = self.buffered().len();
        if rest == 0 || rest > KEEP_WHEN_SHORT {
            self.buffer = None;
        } else if let Some(buffer) = self.buffer.as_mut().filter(|b| b.held() > KEEP_WHEN_SHORT) {
            buffer.shrink_to(self.read);
        }
    }

    /// Gives back what the file holds behind the reader.
    fn trim(&mut self) {
        let Some(file) = &self.file else { return };
        if !self.limits.replay && self.writing.is_none() && self.read >= self.memory.start() {
            self.file = None;
            return;
        }
        let done = self.read.min(self.on_file()) / BLOCK * BLOCK;
        if !self.limits.replay && done.saturating_sub(self.trimmed) >= TRIM {
            file.punch(self.trimmed..done);
            self.trimmed = done;
        }
    }
}

/// Why a task on the pool has a result.
const POOL: &str = "disk tasks do not panic and are never aborted";
