//! What all spools share: one number of bytes in memory, one of bytes on disk (invariant 4).
//!
//! Every byte that a spool holds is on a `Lease`, which gives it back when it is dropped: with its
//! spool, or with the task on the blocking pool that has it in hand. A lease counts for an `Owner`,
//! so that no client takes a budget from the others.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use super::KEEP_WHEN_SHORT;
use super::file::{self, SpillFile};

/// Page cache that spool files may fill before they go to the device itself, or, without O_DIRECT, before
/// it is forced to disk and dropped: it counts against a container's limit like any other memory (R14 on
/// Heroku).
pub(super) const CACHE: u64 = 8 * 1024 * 1024;
/// What a file costs the kernel (descriptor, inode, one page): less is better kept in memory.
pub(super) const WORTH_A_FILE: usize = 4 * 1024;
/// Clients are told apart by a hash of their address: so many are.
const OWNERS: usize = 1024;

/// The budgets that all spools share: bytes in memory, bytes on disk, and where disk is.
#[derive(Debug)]
pub struct Budget {
    pub(super) memory: Arc<Pool>,
    pub(super) disk: Arc<Pool>,
    /// Bytes of spool files that may lie in the page cache.
    pub(super) cache: Arc<Pool>,
    /// The file system does not know O_DIRECT, or it is not wanted.
    direct_refused: AtomicBool,
    /// Odd and random: whose addresses share an `Owner` is not to be chosen from outside.
    hash: u64,
    files: AtomicU64,
    /// Files that have something in the page cache, the oldest first.
    to_clean: Mutex<VecDeque<Weak<SpillFile>>>,
    cleaning: AtomicBool,
    dir: PathBuf,
    /// Opens an unlinked file in a directory; tests put a failing disk here.
    open: fn(&Path) -> io::Result<File>,
}

/// Whom the bytes of a spool count for. Above a quarter of a budget, an owner gets only what leaves
/// as much free for the others as it has itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner(Option<u16>);

impl Owner {
    /// It is not known whose they are: no share is kept to.
    pub const UNKNOWN: Owner = Owner(None);
}

/// How much of the memory budget is in use, and so what one spool may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// A quarter at most: every spool keeps up to its own limit.
    Plenty,
    /// A spool keeps 8 KiB.
    Short,
    /// Everything goes to disk: all but an eighth is in use, which is for bytes on their way there,
    /// or the owner has a quarter.
    Spent,
}

impl Budget {
    /// Budgets in bytes; spool files are made in `dir`, without names. `memory` under 128 KiB, the
    /// largest push, is taken but lets one spool write at a time.
    pub fn new(memory: u64, disk: u64, dir: PathBuf) -> Arc<Budget> {
        Budget::with_opener(memory, disk, CACHE, dir, |dir| tempfile::tempfile_in(dir))
    }

    pub(super) fn with_opener(
        memory: u64,
        disk: u64,
        cache: u64,
        dir: PathBuf,
        open: fn(&Path) -> io::Result<File>,
    ) -> Arc<Budget> {
        let [memory, disk, cache] = [memory, disk, cache].map(|limit| Arc::new(Pool::new(limit)));
        Arc::new(Budget {
            memory,
            disk,
            cache,
            direct_refused: AtomicBool::new(false),
            hash: fastrand::u64(..) | 1,
            files: AtomicU64::new(0),
            to_clean: Mutex::default(),
            cleaning: AtomicBool::new(false),
            dir,
            open,
        })
    }

    /// Whom a client's bodies count for. `None`: it is not known who the client is.
    pub fn owner(&self, client: Option<IpAddr>) -> Owner {
        Owner(client.map(|client| {
            let bits = match client {
                IpAddr::V4(v4) => u128::from(v4.to_bits()),
                IpAddr::V6(v6) => v6.to_bits(),
            };
            // Multiply-shift: the upper bits of the product depend on all of the address.
            let hash = (bits as u64 ^ (bits >> 64) as u64).wrapping_mul(self.hash);
            (hash >> (u64::BITS - OWNERS.ilog2())) as u16
        }))
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

    /// To be called now and then, on an event loop: whoever waits for room and has missed it is woken,
    /// and files that fill the page cache make room there.
    pub fn sweep(self: &Arc<Budget>) {
        self.memory.wake_fitting();
        self.disk.wake_fitting();
        file::begin_cleaning(self);
    }

    /// Enough memory is in use that what only waits should not wait there (`Spool::relieve`).
    pub fn should_relieve(&self) -> bool {
        self.worth_relieving(0) < usize::MAX
    }

    pub(super) fn memory_limit(&self) -> u64 {
        self.memory.limit
    }

    /// Bytes from which on a spool that only waits goes to disk; `least` where much is in use.
    pub(super) fn worth_relieving(&self, least: usize) -> usize {
        let (used, limit) = (self.memory_used(), self.memory.limit);
        if used > limit / 4 {
            least
        } else if used > limit / 16 {
            KEEP_WHEN_SHORT
        } else {
            usize::MAX
        }
    }

    pub(super) fn level(&self, owner: Owner) -> Level {
        let (used, limit) = (self.memory_used(), self.memory.limit);
        if used > limit - limit / 8 || self.memory.held_by(owner) > limit / 4 {
            Level::Spent
        } else if used > limit / 4 {
            Level::Short
        } else {
            Level::Plenty
        }
    }

    pub(super) fn add_to_clean(&self, file: &Arc<SpillFile>) {
        let mut files = self.to_clean();
        if files.len() > 64 + 2 * self.files_open() as usize {
            // Most of them were closed before there was too much in the page cache.
            files.retain(|file| file.strong_count() > 0);
        }
        files.push_back(Arc::downgrade(file));
    }

    /// Less than half of what may be in the page cache is free, and nobody is at it: the caller is to be
    /// from now on, until `next_to_clean` gives None.
    pub(super) fn begins_cleaning(&self) -> bool {
        self.cache.is_half_used() && !self.cleaning.swap(true, SeqCst)
    }

    pub(super) fn next_to_clean(&self) -> Option<Weak<SpillFile>> {
        let next = if self.cache.is_half_used() { self.to_clean().pop_front() } else { None };
        if next.is_none() {
            self.cleaning.store(false, SeqCst);
        }
        next
    }

    /// Files may be written with O_DIRECT, as far as is known.
    pub(super) fn takes_direct(&self) -> bool {
        !self.direct_refused.load(Relaxed)
    }

    /// From now on all files go by way of the page cache.
    pub(crate) fn refuse_direct(&self) {
        self.direct_refused.store(true, Relaxed);
    }

    #[cfg(test)]
    pub(super) fn files_listed(&self) -> usize {
        self.to_clean().len()
    }

    fn to_clean(&self) -> MutexGuard<'_, VecDeque<Weak<SpillFile>>> {
        self.to_clean.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Counted {
    pub(super) fn budget(&self) -> &Budget {
        &self.0
    }
}

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
    /// The part of each owner.
    held: Box<[AtomicU64]>,
    /// The least that a waiter wants; u64::MAX: nobody waits. Asked without the lock at every
    /// give-back.
    least_wanted: AtomicU64,
    /// Held for a look through it at most; wakers are woken after it.
    waiters: Mutex<BTreeMap<u64, Waiter>>,
    next_waiter: AtomicU64,
}

#[derive(Debug)]
struct Waiter {
    owner: Owner,
    bytes: u64,
    waker: Waker,
}

impl Pool {
    fn new(limit: u64) -> Pool {
        Pool {
            limit,
            used: AtomicU64::new(0),
            held: std::iter::repeat_with(AtomicU64::default).take(OWNERS).collect(),
            least_wanted: AtomicU64::new(u64::MAX),
            waiters: Mutex::default(),
            next_waiter: AtomicU64::new(0),
        }
    }

    /// Whether `owner` may have `bytes` more (all of the pool where they are more than that).
    pub(super) fn has_room(&self, owner: Owner, bytes: u64) -> bool {
        let bytes = bytes.min(self.limit);
        match self.free().checked_sub(bytes) {
            None => false,
            Some(left) => {
                let held = self.held_by(owner);
                held == 0 || held + bytes <= left.max(self.limit / 4)
            }
        }
    }

    /// `bytes` of this pool for `owner`, if it may have them.
    pub(super) fn lease(self: &Arc<Pool>, owner: Owner, bytes: u64) -> Option<Lease> {
        // Two loops may both pass this where there is room for one: then the share is exceeded, the
        // pool never.
        if !self.has_room(owner, bytes) {
            return None;
        }
        self.used
            .fetch_update(SeqCst, SeqCst, |used| {
                used.checked_add(bytes).filter(|&sum| sum <= self.limit)
            })
            .ok()?;
        self.part(owner).inspect(|held| _ = held.fetch_add(bytes, SeqCst));
        Some(Lease { pool: self.clone(), owner, bytes: AtomicU64::new(bytes) })
    }

    /// What is used is more than the limit.
    pub(super) fn is_exceeded(&self) -> bool {
        self.used.load(Relaxed) > self.limit
    }

    fn is_half_used(&self) -> bool {
        self.used.load(Relaxed) > self.limit / 2
    }

    pub(super) fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(SeqCst))
    }

    fn part(&self, owner: Owner) -> Option<&AtomicU64> {
        self.held.get(usize::from(owner.0?))
    }

    /// Bytes of `owner`; 0 for one that is not known.
    fn held_by(&self, owner: Owner) -> u64 {
        self.part(owner).map_or(0, |held| held.load(SeqCst))
    }

    /// Has `waker` woken when `owner` may have `bytes`. The caller asks for room once more
    /// afterwards: some may have come back just before.
    pub(super) fn wait(self: &Arc<Pool>, owner: Owner, bytes: u64, waker: &Waker) -> Wait {
        let (key, bytes) = (self.next_waiter.fetch_add(1, Relaxed), bytes.min(self.limit));
        let mut waiters = self.waiters();
        waiters.insert(key, Waiter { owner, bytes, waker: waker.clone() });
        // With the SeqCst of `give` and of the next question: either that sees the room, or the
        // give-back sees the waiter.
        self.least_wanted.fetch_min(bytes, SeqCst);
        drop(waiters);
        Wait { pool: self.clone(), key }
    }

    fn take(&self, owner: Owner, bytes: u64) {
        self.used.fetch_add(bytes, SeqCst);
        self.part(owner).inspect(|held| _ = held.fetch_add(bytes, SeqCst));
    }

    fn give(&self, owner: Owner, bytes: u64) {
        self.part(owner).inspect(|held| _ = held.fetch_sub(bytes, SeqCst));
        self.used.fetch_sub(bytes, SeqCst);
        self.wake_fitting();
    }

    /// Wakes as many waiters, the first first, as what is free is enough for. Not all: thousands
    /// may wait for a budget that is spent, and each give-back would have them all ask in vain.
    fn wake_fitting(&self) {
        if self.free() < self.least_wanted.load(SeqCst) {
            return;
        }
        let fitting: Vec<Waiter> = {
            let mut waiters = self.waiters();
            let (mut free, mut keys) = (self.free(), Vec::new());
            for (&key, waiter) in waiters.iter() {
                if waiter.bytes <= free && self.has_room(waiter.owner, waiter.bytes) {
                    free -= waiter.bytes;
                    keys.push(key);
                }
            }
            let fitting = keys.iter().filter_map(|key| waiters.remove(key)).collect();
            let least = waiters.values().map(|waiter| waiter.bytes).min();
            self.least_wanted.store(least.unwrap_or(u64::MAX), SeqCst);
            fitting
        };
        fitting.into_iter().for_each(|waiter| waiter.waker.wake());
    }

    fn waiters(&self) -> MutexGuard<'_, BTreeMap<u64, Waiter>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a pool that one owner has; given back on drop.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    owner: Owner,
    bytes: AtomicU64,
}

impl Lease {
    pub(super) fn empty(pool: &Arc<Pool>, owner: Owner) -> Lease {
        Lease { pool: pool.clone(), owner, bytes: AtomicU64::new(0) }
    }

    pub(super) fn belongs_to(&mut self, owner: Owner) {
        debug_assert_eq!(self.bytes(), 0, "bytes do not change hands");
        self.owner = owner;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Takes `bytes` more, beyond the limit if need be: whoever needs them has asked before.
    pub(super) fn grow(&self, bytes: u64) {
        self.pool.take(self.owner, bytes);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Takes over what `other`, of the same owner, holds.
    pub(super) fn merge(&self, other: &Lease) {
        self.debug_assert_same(other);
        self.bytes.fetch_add(other.bytes.swap(0, Relaxed), Relaxed);
    }

    /// Moves `bytes` to `other`, of the same owner.
    pub(super) fn hand_over(&self, bytes: u64, other: &Lease) {
        self.debug_assert_same(other);
        let before = self.bytes.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "handed over {bytes} of {before} bytes");
        other.bytes.fetch_add(bytes, Relaxed);
    }

    fn debug_assert_same(&self, other: &Lease) {
        debug_assert!(Arc::ptr_eq(&self.pool, &other.pool) && self.owner == other.owner);
    }

    pub(super) fn give(&self, bytes: u64) {
        let before = self.bytes.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "gave back {bytes} of {before} bytes");
        self.pool.give(self.owner, bytes);
    }

    /// Gives back `bytes`, or what there is.
    pub(super) fn give_up_to(&self, bytes: u64) {
        let less = |before: u64| Some(before.saturating_sub(bytes));
        let before = self.bytes.fetch_update(Relaxed, Relaxed, less).unwrap_or(0);
        if before.min(bytes) > 0 {
            self.pool.give(self.owner, before.min(bytes));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.give_up_to(u64::MAX);
    }
}

/// A waker in a pool's list; taken out on drop.
#[derive(Debug)]
pub(super) struct Wait {
    pool: Arc<Pool>,
    key: u64,
}

impl Wait {
    /// Whether it is for room in `pool`.
    pub(super) fn is_for(&self, pool: &Arc<Pool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    /// Wakes the waiter now, for a reason of its own.
    pub(super) fn wake(self) {
        let waiter = self.pool.waiters().remove(&self.key);
        if let Some(waiter) = waiter {
            waiter.waker.wake();
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let waiter = self.pool.waiters().remove(&self.key);
        drop(waiter);
    }
}
