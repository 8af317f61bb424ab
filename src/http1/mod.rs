//! The HTTP/1 codec, sans I/O: bytes in, facts out. No socket, no clock, no tokio.
//!
//! `request` and `response` parse heads, `chunked` decodes and encodes bodies. What is ambiguous is
//! refused, never repaired (invariant 11).

mod chunked;
mod field;
mod request;
mod response;

pub use chunked::{Chunked, Decoded, LAST_CHUNK, chunk_head};
pub use field::{Field, FieldId};
pub(crate) use field::{Lines, all};
pub use request::{RequestBody, RequestHead};
pub use response::{ResponseBody, ResponseHead};

use crate::error::Reason;

/// A range of a head's bytes. Heads are far below 4 GiB: `max-head` is 1 MiB at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub(crate) fn new(start: usize, end: usize) -> Span {
        Span { start: start as u32, end: end as u32 }
    }
    /// The bytes of this range.
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// The minor versions that we speak. Anything else is 505 or 400.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Http10,
    #[default]
    Http11,
}

/// Bounds on a head (options `max-head`, `max-fields`).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the whole head, from empty lines before it to its final CRLF.
    pub head: usize,
    /// Number of field lines.
    pub fields: usize,
}

/// A message that broke a rule: the reason decides the status, the rule goes to the diagnostics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: Reason,
    /// The rule in words, with its RFC section.
    pub rule: &'static str,
}

#[cfg(test)]
mod tests;
