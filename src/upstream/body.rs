//! How the body of a response ends, and which of the bytes that came are its payload.

use crate::error::Reason;
use crate::http1::{Chunked, ResponseBody, Violation};

/// The rest of one response body.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Bytes still to come.
    Length(u64),
    Chunked(Chunked),
    /// Ends when the app closes.
    Close,
}

/// What one buffer held.
pub(crate) struct Taken {
    /// Payload bytes, moved to the front of the buffer.
    pub(crate) payload: usize,
    /// Bytes that belong to this message.
    pub(crate) used: usize,
    /// The message is complete.
    pub(crate) done: bool,
}

impl Incoming {
    pub(crate) fn new(body: ResponseBody) -> Incoming {
        match body {
            ResponseBody::None => Incoming::Length(0),
            ResponseBody::Length(n) => Incoming::Length(n),
            ResponseBody::Chunked => Incoming::Chunked(Chunked::new(Reason::InvalidResponse)),
            ResponseBody::Close => Incoming::Close,
        }
    }

    pub(crate) fn take(&mut self, buf: &mut [u8]) -> Result<Taken, Violation> {
        match self {
            Incoming::Length(left) => {
                let n = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                Ok(Taken { payload: n, used: n, done: *left == 0 })
            }
            Incoming::Chunked(chunked) => {
                let d = chunked.decode(buf)?;
                Ok(Taken { payload: d.payload, used: d.consumed, done: d.done })
            }
            Incoming::Close => Ok(Taken { payload: buf.len(), used: buf.len(), done: false }),
        }
    }
}
