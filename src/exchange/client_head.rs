//! The response head as the client gets it. Pure: no I/O, no clock.
//!
//! The exchange calls `write` once for the final head and `write_informational` for each 1xx before
//! it. What must stay true: exactly one statement of where the body ends, and it is ours.

use crate::exchange::reply::phrase;
use crate::http1::{Field, FieldId, ResponseHead, Version};

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
    out.reserve(head.bytes.len() + 160);
    status_line(out, head);
    let mut date_came = false;
    for field in &head.fields {
        if passes(head, field) {
            date_came |= field.id == FieldId::Date;
            line(out, head, field);
        }
    }
    // RFC 9110, 6.6.1: a recipient with a clock adds it.
    if !date_came {
        out.extend_from_slice(b"Date: ");
        out.extend_from_slice(with.date);
        out.extend_from_slice(b"\r\n");
    }
    match with.framing {
        // RFC 9110, 8.6: never with a 204, whatever the app said.
        Framing::None(Some(length)) if head.status != 204 => content_length(out, length),
        Framing::None(_) | Framing::Close => {}
        Framing::Length(length) => content_length(out, length),
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    connection(out, with.version, with.keep_alive && with.framing != Framing::Close);
    out.extend_from_slice(b"\r\n");
}

/// Appends a 1xx head (103 and the like) for an HTTP/1.1 client: status line, end-to-end fields,
/// empty line.
pub fn write_informational(out: &mut Vec<u8>, head: &ResponseHead) {
    out.reserve(head.bytes.len() + 32);
    status_line(out, head);
    for field in head.fields.iter().filter(|f| passes(head, f)) {
        line(out, head, field);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the Connection line that the client's version needs (RFC 9112, 9.3).
pub(crate) fn connection(out: &mut Vec<u8>, version: Version, keep_alive: bool) {
    match (version, keep_alive) {
        (_, false) => out.extend_from_slice(b"Connection: close\r\n"),
        (Version::Http10, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (Version::Http11, true) => {}
    }
}

/// Our own version, also towards HTTP/1.0 clients (RFC 9110, 6.2). The reason phrase is never left
/// empty: Heroku's router answers 503 (H17) to a status line without.
fn status_line(out: &mut Vec<u8>, head: &ResponseHead) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(head.status).as_bytes());
    out.extend_from_slice(b" ");
    match head.reason.of(&head.bytes) {
        [] => out.extend_from_slice(phrase(head.status).as_bytes()),
        reason => out.extend_from_slice(reason),
    }
    out.extend_from_slice(b"\r\n");
}

/// End-to-end fields pass; those of the app's connection and its framing do not (RFC 9110, 7.6.1),
/// nor does what the app said to us.
fn passes(head: &ResponseHead, field: &Field) -> bool {
    match field.id {
        FieldId::Connection
        | FieldId::ContentLength
        | FieldId::KeepAlive
        | FieldId::ProxyConnection
        | FieldId::Te
        | FieldId::Trailer
        | FieldId::TransferEncoding
        | FieldId::Upgrade
        | FieldId::XAccelBuffering => false,
        _ => {
            let name = field.name.of(&head.bytes);
            !head.connection_names.iter().any(|n| name.eq_ignore_ascii_case(n.of(&head.bytes)))
        }
    }
}

fn line(out: &mut Vec<u8>, head: &ResponseHead, field: &Field) {
    out.extend_from_slice(field.name.of(&head.bytes));
    out.extend_from_slice(b": ");
    out.extend_from_slice(field.value.of(&head.bytes));
    out.extend_from_slice(b"\r\n");
}

fn content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}
