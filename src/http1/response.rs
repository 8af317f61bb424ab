//! Response heads of the app (RFC 9112, 4 and 6.3).
//!
//! An attempt calls `ResponseHead::parse` with all bytes that it has until the head is complete.
//! The client must never get what it could read in another way than we do, so the rules are those
//! of requests, but for what RFC 9112 tells or lets a proxy repair: whitespace before a colon, one
//! length said several times, a length beside chunks.

use memchr::memchr;

use super::field::{self, Options, Sender, bad};
use super::{Field, FieldId, Limits, Span, Version, Violation};
use crate::error::Reason;

/// How the body of a response is delimited (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResponseBody {
    /// HEAD, 1xx, 204, 304, or Content-Length: 0.
    #[default]
    None,
    Length(u64),
    Chunked,
    /// Ends when the app closes.
    Close,
}

/// One response head. Reused like `RequestHead`.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// The head as received.
    pub bytes: Vec<u8>,
    pub version: Version,
    pub status: u16,
    /// Reason phrase, may be empty.
    pub reason: Span,
    pub fields: Vec<Field>,
    pub body: ResponseBody,
    /// What Content-Length says, also where there is no body (HEAD, 304). None beside chunks, which
    /// decide, and with 1xx and 204, which must not have it.
    pub content_length: Option<u64>,
    /// The app allows another request on its connection.
    pub keep_alive: bool,
    /// Names that Connection lists (beyond close, keep-alive, upgrade, te), as spans of `bytes`.
    pub connection_names: Vec<Span>,
    /// `text/event-stream`, or `X-Accel-Buffering: no`: to be flushed as it comes.
    pub stream: bool,
}

impl ResponseHead {
    /// Forgets the last head, keeps the capacity.
    pub fn clear(&mut self) {
        *self = ResponseHead {
            bytes: std::mem::take(&mut self.bytes),
            fields: std::mem::take(&mut self.fields),
            connection_names: std::mem::take(&mut self.connection_names),
            ..ResponseHead::default()
        };
        self.bytes.clear();
        self.fields.clear();
        self.connection_names.clear();
    }

    /// Parses the head at the start of `input`; `method` is that of the request. As
    /// `RequestHead::parse`. A violation is always `InvalidResponse`.
    pub fn parse(
        &mut self,
        input: &[u8],
        method: &[u8],
        limits: &Limits,
    ) -> Result<Option<usize>, Violation> {
        self.clear();
        let window = &input[..input.len().min(limits.head)];
        let result = match self.read(window, method, limits) {
            Ok(None) if input.len() >= limits.head => {
                Err(bad("response head is longer than max-head (RFC 9110, 5.4)"))
            }
            result => result,
        };
        if !matches!(result, Ok(Some(_))) {
            self.clear();
        }
        result.map_err(|violation| Violation { reason: Reason::InvalidResponse, ..violation })
    }

    /// 1xx: another head follows.
    pub fn is_informational(&self) -> bool {
        self.status < 200
    }

    /// Value of the first field with this id.
    pub fn get(&self, id: FieldId) -> Option<&[u8]> {
        self.fields.iter().find(|f| f.id == id).map(|f| f.value.of(&self.bytes))
    }

    fn read(
        &mut self,
        message: &[u8],
        method: &[u8],
        limits: &Limits,
    ) -> Result<Option<usize>, Violation> {
        let Some(lf) = memchr(b'\n', message) else {
            let seen = message.len().min(PREFIX.len());
            let is_http = message[..seen] == PREFIX[..seen];
            return if is_http { Ok(None) } else { Err(bad(NO_STATUS_LINE)) };
        };
        self.read_line(field::without_cr(&message[..lf])?)?;
        let fields = &mut self.fields;
        let end = field::parse(message, lf + 1, limits.fields, Sender::App, fields)?;
        if let Some(end) = end {
            self.bytes.extend_from_slice(&message[..end]);
            self.interpret(method)?;
        }
        Ok(end)
    }

    /// `HTTP/1.x SP 3DIGIT [SP reason]` (RFC 9112, 4): apps leave out the SP of an empty reason.
    fn read_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        let Some(
            [
                minor @ b'0'..=b'9',
                b' ',
                a @ b'1'..=b'9',
                b @ b'0'..=b'9',
                c @ b'0'..=b'9',
                rest @ ..,
            ],
        ) = line.strip_prefix(PREFIX)
        else {
            return Err(bad(NO_STATUS_LINE));
        };
        let reason = match rest {
            [] => rest,
            [b' ', reason @ ..] if field::is_text(reason) => reason,
            _ => return Err(bad(NO_STATUS_LINE)),
        };
        self.version = if *minor == b'0' { Version::Http10 } else { Version::Http11 };
        self.status = [a, b, c].iter().fold(0, |sum, &digit| 10 * sum + u16::from(digit - b'0'));
        self.reason = Span::new(line.len() - reason.len(), line.len());
        Ok(())
    }

    /// What the fields say of framing, persistence and streaming.
    fn interpret(&mut self, method: &[u8]) -> Result<(), Violation> {
        let mut options = Options::default();
        let mut length = None;
        let mut is_chunked = false;
        let (mut is_event_stream, mut buffering) = (false, None);
        for field in &self.fields {
            let value = field.value.of(&self.bytes);
            match field.id {
                FieldId::ContentLength => length = Some(same_length(length, value)?),
                FieldId::TransferEncoding => {
                    if is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(bad("Transfer-Encoding is not chunked alone (RFC 9112, 6.1)"));
                    }
                    is_chunked = true;
                }
                FieldId::Connection => {
                    options.add(&self.bytes, field.value, &mut self.connection_names)?;
                }
                FieldId::ContentType => is_event_stream = is_type(value, b"text/event-stream"),
                FieldId::XAccelBuffering => buffering = Some(value),
                _ => {}
            }
        }
        if is_chunked && self.version == Version::Http10 {
            return Err(bad("Transfer-Encoding in an HTTP/1.0 response (RFC 9112, 6.1)"));
        }
        let has_no_content = self.is_informational() || self.status == 204;
        self.content_length = if is_chunked || has_no_content { None } else { length };
        self.body = match self.content_length {
            _ if has_no_content || self.status == 304 || method == b"HEAD" => ResponseBody::None,
            _ if is_chunked => ResponseBody::Chunked,
            Some(0) => ResponseBody::None,
            Some(length) => ResponseBody::Length(length),
            None => ResponseBody::Close,
        };
        self.stream = match buffering {
            Some(value) if value.eq_ignore_ascii_case(b"no") => true,
            Some(value) if value.eq_ignore_ascii_case(b"yes") => false,
            _ => is_event_stream,
        };
        self.keep_alive = !options.close
            && (self.version == Version::Http11 || options.keep_alive)
            && self.body != ResponseBody::Close
            // Whoever says both does not know where its message ends (RFC 9112, 6.3).
            && !(is_chunked && length.is_some());
        Ok(())
    }
}

/// A Content-Length field, which may say one length several times (RFC 9110, 8.6). `before`: what
/// the fields before it said.
fn same_length(before: Option<u64>, value: &[u8]) -> Result<u64, Violation> {
    const RULE: &str = "Content-Length is not one decimal number (RFC 9110, 8.6)";
    let mut length = before;
    for member in value.split(|&b| b == b',') {
        let number = field::decimal(member.trim_ascii()).ok_or(bad(RULE))?;
        if length.is_some_and(|length| length != number) {
            return Err(bad(RULE));
        }
        length = Some(number);
    }
    length.ok_or(bad(RULE))
}

/// A Content-Type of this media type, with or without parameters.
fn is_type(value: &[u8], media_type: &[u8]) -> bool {
    let end = memchr(b';', value).unwrap_or(value.len());
    value[..end].trim_ascii_end().eq_ignore_ascii_case(media_type)
}

const PREFIX: &[u8] = b"HTTP/1.";
const NO_STATUS_LINE: &str =
    "status line is not an HTTP/1 version, a status and a reason (RFC 9112, 4)";

#[cfg(test)]
mod tests;
