//! The part of a body that is in memory: one contiguous range of it, in chunks.
//!
//! Chunks begin small and each is at least half of what is held, up to 64 KiB: a small body costs
//! about its size, a large one few allocations. Their capacity is on a lease of the memory budget.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::{Arc, Mutex, PoisonError};

use super::budget::{Lease, Owner, Pool};

/// Sizes of a chunk in bytes.
const SMALLEST: usize = 1024;
const LARGEST: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Memory {
    /// Position in the body of the first byte held.
    start: u64,
    /// Bytes of the first chunk that lie before `start`.
    skip: usize,
    /// Each holds something behind `skip`.
    chunks: VecDeque<Vec<u8>>,
    lease: Lease,
}

impl Memory {
    /// Holds nothing, at `start`. Allocates nothing.
    pub(super) fn new(pool: &Arc<Pool>, owner: Owner, start: u64) -> Memory {
        Memory { start, skip: 0, chunks: VecDeque::new(), lease: Lease::empty(pool, owner) }
    }

    /// What it will hold counts for `owner`. It holds nothing yet.
    pub(super) fn belongs_to(&mut self, owner: Owner) {
        self.lease.belongs_to(owner);
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes allocated.
    pub(super) fn held(&self) -> usize {
        self.lease.bytes() as usize
    }

    /// Takes a copy of `data` behind what is held.
    pub(super) fn push(&mut self, mut data: &[u8]) {
        loop {
            if let Some(last) = self.chunks.back_mut() {
                let (fits, rest) = data.split_at(data.len().min(last.capacity() - last.len()));
                last.extend_from_slice(fits);
                data = rest;
            }
            if data.is_empty() {
                return;
            }
            let size = data.len().max(self.held() / 2).clamp(SMALLEST, LARGEST);
            let chunk = chunk(size.next_multiple_of(SMALLEST));
            self.lease.grow(chunk.capacity() as u64);
            self.chunks.push_back(chunk);
        }
    }

    /// Takes over `piece`, or copies what is in it where that saves half of its memory or more.
    pub(super) fn push_piece(&mut self, piece: Vec<u8>) {
        let fits =
            self.chunks.back().is_some_and(|last| piece.len() <= last.capacity() - last.len());
        if fits || piece.len() <= piece.capacity() / 2 {
            self.push(&piece);
            keep(piece);
        } else {
            self.lease.grow(piece.capacity() as u64);
            self.chunks.push_back(piece);
        }
    }

    /// The bytes from position `at` on, to the end of their chunk.
    pub(super) fn at(&self, at: u64) -> &[u8] {
        self.slices(at).next().unwrap_or_default()
    }

    /// Fills `out` with the bytes from position `at` on; the number of slices and of bytes in them.
    pub(super) fn io_slices<'a>(
        &'a self,
        at: u64,
        limit: usize,
        out: &mut [IoSlice<'a>],
    ) -> (usize, u64) {
        let (mut slices, mut bytes) = (0, 0);
        for (slot, slice) in out.iter_mut().zip(self.slices(at)) {
            let slice = &slice[..slice.len().min(limit - bytes)];
            if slice.is_empty() {
                break;
            }
            *slot = IoSlice::new(slice);
            slices += 1;
            bytes += slice.len();
        }
        (slices, bytes as u64)
    }

    /// The bytes from position `at` on, in chunks.
    pub(super) fn slices(&self, at: u64) -> impl Iterator<Item = &[u8]> {
        debug_assert!(at >= self.start);
        let mut before = (at - self.start) as usize + self.skip;
        self.chunks.iter().filter_map(move |chunk| {
            let skip = before.min(chunk.len());
            before -= skip;
            Some(&chunk[skip..]).filter(|slice| !slice.is_empty())
        })
    }

    /// Gives up the first `bytes`.
    pub(super) fn release(&mut self, bytes: u64) {
        self.start += bytes;
        self.skip += bytes as usize;
        while let Some(first) = self.chunks.pop_front_if(|first| first.len() <= self.skip) {
            self.lease.give(first.capacity() as u64);
            self.skip -= first.len();
            keep(first);
        }
        debug_assert!(self.skip == 0 || !self.chunks.is_empty(), "released more than there was");
        // A short rest of a large chunk moves: a reader that stalls here would pin all of it.
        if let Some(first) = self.chunks.front_mut() {
            let (rest, held) = (first.len() - self.skip, first.capacity());
            if held >= LARGEST / 4 && rest <= held / 8 {
                let rest = first[self.skip..].to_vec();
                keep(std::mem::replace(first, rest));
                self.skip = 0;
                self.lease.give((held - first.capacity()) as u64);
            }
        }
    }

    /// Adds `next`, which begins where this ends.
    pub(super) fn append(&mut self, mut next: Memory) {
        debug_assert_eq!(next.skip, 0, "bytes are read in order");
        self.chunks.append(&mut next.chunks);
        self.lease.merge(&next.lease);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.chunks.drain(..).for_each(keep);
    }
}

/// Large chunks for the next bodies. Without them every upload takes them off the top of the heap,
/// which glibc then gives back to the kernel: a page fault for each 4 KiB. Of all threads, because
/// what a loop fills the blocking pool empties; locked to push or pop one.
static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// At most so many large chunks are kept: 2 MiB, until the heap of a burst is given back.
const MAX_KEPT: usize = 32;

/// An empty buffer for a read of what becomes a part of a body (`Spool::push_piece`).
pub(crate) fn piece() -> Vec<u8> {
    chunk(LARGEST)
}

/// An empty chunk of at least `size` bytes.
pub(super) fn chunk(size: usize) -> Vec<u8> {
    if size <= LARGEST / 2 || size > LARGEST {
        return Vec::with_capacity(size);
    }
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).pop();
    kept.unwrap_or_else(|| Vec::with_capacity(LARGEST))
}

/// Gives back the kept chunks: a burst is over.
pub(crate) fn drop_kept() {
    let kept = std::mem::take(&mut *KEPT.lock().unwrap_or_else(PoisonError::into_inner));
    drop(kept);
}

/// Gives back a chunk that is not used any more.
pub(crate) fn keep(mut chunk: Vec<u8>) {
    if chunk.capacity() == LARGEST {
        chunk.clear();
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MAX_KEPT {
            kept.push(chunk);
        }
    }
}
