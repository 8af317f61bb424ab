//! Memory as O_DIRECT wants it: addresses, positions and lengths in whole blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// No device of today has larger blocks.
pub(super) const BLOCK: usize = 4096;

/// Up to so many bytes go to the device at once: each call costs its latency. More than a spool of the
/// default sizes sends away together.
pub(super) const LARGEST: usize = 512 * 1024;

/// `position`, or the end of the block before it.
pub(super) fn floor(position: u64) -> u64 {
    position / BLOCK as u64 * BLOCK as u64
}

/// Bytes that begin at an address that is a multiple of `BLOCK`.
#[derive(Debug)]
pub(super) struct Aligned {
    bytes: Vec<u8>,
    /// Those before that address.
    skip: usize,
}

impl Aligned {
    /// Empty, with room for `most` bytes.
    pub(super) fn new(most: usize) -> Aligned {
        let most = most.next_multiple_of(BLOCK);
        let mut bytes = Vec::<u8>::with_capacity(most + BLOCK);
        let skip = bytes.as_ptr().addr().wrapping_neg() % BLOCK;
        bytes.resize(skip, 0);
        Aligned { bytes, skip }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.skip
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.skip..]
    }

    /// Appends `data`, for which there is room.
    pub(super) fn push(&mut self, data: &[u8]) {
        debug_assert!(data.len() <= self.bytes.capacity() - self.bytes.len(), "it would move");
        self.bytes.extend_from_slice(data);
    }

    /// Zeros up to the end of the block.
    pub(super) fn pad(&mut self) {
        let whole = self.len().next_multiple_of(BLOCK);
        self.bytes.resize(self.skip + whole, 0);
    }

    /// `size` bytes of `file` from `from` on, the beginning of a block. Of the file's last block there
    /// need be no more than that.
    pub(super) fn read(file: &File, from: u64, size: usize) -> io::Result<Aligned> {
        let mut read = Aligned::new(size);
        read.bytes.resize(read.skip + size.next_multiple_of(BLOCK), 0);
        let mut got = 0;
        while got < size {
            match file.read_at(&mut read.bytes[read.skip + got..], from + got as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        read.bytes.truncate(read.skip + size);
        Ok(read)
    }
}
