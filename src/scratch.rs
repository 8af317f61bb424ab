//! Read buffers of the event loop: taken for one read, given back at once. Whoever waits holds none
//! (invariant 8).

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// One read: what an app has written while its last bytes went out. Chosen by measurement
/// (benches/README.md, "Larger bodies").
pub(crate) const SIZE: usize = 128 * 1024;
/// What is read at once where a head is expected: the body behind it goes into its spool without
/// another copy.
pub(crate) const HEAD: usize = 16 * 1024;
/// Buffers that a thread keeps for the next reads.
const KEPT: usize = 4;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of `SIZE` bytes; goes back to its thread when dropped.
pub(crate) struct Scratch(Box<[u8]>);

impl Scratch {
    pub(crate) fn take() -> Scratch {
        let kept = POOL.with_borrow_mut(Vec::pop);
        Scratch(kept.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()))
    }
}

impl Deref for Scratch {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buf = std::mem::take(&mut self.0);
        // At the end of a thread the pool may be gone already; then the buffer just is freed.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(buf);
            }
        });
    }
}

/// Bytes of a scratch buffer that were read and not yet used.
pub(crate) struct Filled {
    buf: Scratch,
    start: usize,
    end: usize,
}

impl Filled {
    pub(crate) fn new(buf: Scratch, start: usize, end: usize) -> Filled {
        Filled { buf, start, end }
    }
    /// The first `n` bytes are used.
    pub(crate) fn skip(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buf[self.start..self.end]
    }
}
