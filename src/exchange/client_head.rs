//! The response head as the client gets it. Pure: no I/O, no clock.

use crate::http1::{ResponseHead, Version};

/// How the body goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body follows. `Some(n)`: a Content-Length is said all the same (HEAD, 304, or 0).
    None(Option<u64>),
    Length(u64),
    Chunked,
    /// HTTP/1.0 stream: ends with the connection.
    Close,
}

/// What `write` needs beside the app's head.
pub struct ClientHead<'a> {
    /// Version of the request.
    pub version: Version,
    pub framing: Framing,
    /// The connection stays open after this response.
    pub keep_alive: bool,
    /// `Date` line value, for responses of an app that sent none.
    pub date: &'a [u8; 29],
}

/// Appends the head, final empty line included.
pub fn write(out: &mut Vec<u8>, head: &ResponseHead, with: &ClientHead<'_>) {
    let _ = (out, head, with);
}

/// Appends a 1xx head (103 and the like) for an HTTP/1.1 client: status line, end-to-end fields,
/// empty line.
pub fn write_informational(out: &mut Vec<u8>, head: &ResponseHead) {
    let _ = (out, head);
}
