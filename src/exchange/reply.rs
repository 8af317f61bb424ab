//! Our own answers (design section 8).

use crate::error::Reason;
use crate::http1::RequestHead;

/// What `write` needs beside the reason.
pub struct Reply<'a> {
    pub reason: Reason,
    /// The request, as far as it could be read: HEAD gets no body, `Accept` chooses HTML or text.
    pub head: &'a RequestHead,
    /// Said in the body so that a visitor can quote it; may be empty.
    pub request_id: &'a [u8],
    pub keep_alive: bool,
    /// The file of `error-page`, read at start.
    pub error_page: Option<&'a [u8]>,
    pub date: &'a [u8; 29],
    /// Seconds for Retry-After with a 503.
    pub retry_after: u32,
}

/// Appends a whole response; gives the length of its head.
pub fn write(out: &mut Vec<u8>, reply: &Reply<'_>) -> usize {
    let _ = (out, reply);
    0
}

/// Reason phrase of a status that we send.
pub fn phrase(status: u16) -> &'static str {
    let _ = status;
    ""
}
