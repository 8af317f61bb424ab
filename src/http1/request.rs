//! Request heads (RFC 9112, 3 and 6.3; RFC 9110 for the fields).
//!
//! The loop of a client connection calls `RequestHead::parse` with all bytes that it has until the
//! head is complete. A head is accepted only if there is one reading of it (invariant 11); whatever
//! the first line or a line end gives away is refused before the head is complete.

use memchr::{memchr, memchr2};

use super::field::{self, Options, Sender, bad};
use super::{Field, FieldId, Limits, Span, Version, Violation};
use crate::error::Reason;

/// The longest request line; a longer one is `TargetTooLong` (as is one that `Limits::head` cuts).
/// RFC 9112, 3 asks for 8000 at least.
const MAX_LINE: usize = 16 << 10;
/// The longest method. The registered ones have at most 17 letters.
const MAX_METHOD: usize = 32;
/// Empty lines that are skipped before a request line (RFC 9112, 2.2).
const MAX_EMPTY_LINES: usize = 8;
/// What is kept of a head that is refused, for the record.
const MAX_SALVAGE: usize = 8 << 10;

/// How the body of a request is delimited (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestBody {
    #[default]
    None,
    Length(u64),
    Chunked,
}

/// One request head. The value is reused: `parse` refills it and keeps the capacity of its vectors.
#[derive(Debug, Default)]
pub struct RequestHead {
    /// The head as received, request line to final CRLF (without empty lines before it). After a
    /// violation: what came, at most 8 KiB, so that the record can show it.
    pub bytes: Vec<u8>,
    /// The request line without its line end (after a violation: up to the first CR or LF).
    pub line: Span,
    pub method: Span,
    /// The request target as received.
    pub target: Span,
    /// What goes to the app as target, behind `path_prefix`: origin-form, or `*`. Of absolute-form
    /// only path and query, which may be empty or begin with `?`.
    pub path: Span,
    /// The authority of an absolute-form target, which wins over Host (RFC 9112, 3.2.2).
    pub authority: Option<Span>,
    pub version: Version,
    pub fields: Vec<Field>,
    pub body: RequestBody,
    /// The client allows another request on this connection (RFC 9112, 9.3).
    pub keep_alive: bool,
    /// `Expect: 100-continue` from an HTTP/1.1 client.
    pub expect_continue: bool,
    /// `TE: trailers` was sent.
    pub te_trailers: bool,
    /// Connection lists `upgrade`, an Upgrade field is there, HTTP/1.1, no body.
    pub upgrade: bool,
    /// Names that Connection lists (beyond close, keep-alive, upgrade, te), as spans of `bytes`.
    pub connection_names: Vec<Span>,
}

impl RequestHead {
    /// Forgets the last head, keeps the capacity.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        self.connection_names.clear();
        self.line = Span::default();
        self.method = Span::default();
        self.target = Span::default();
        self.path = Span::default();
        self.authority = None;
        self.version = Version::Http11;
        self.body = RequestBody::None;
        self.keep_alive = false;
        self.expect_continue = false;
        self.te_trailers = false;
        self.upgrade = false;
    }

    pub(crate) fn shrink_to_fit(&mut self) {
        self.bytes.shrink_to_fit();
        self.fields.shrink_to_fit();
        self.connection_names.shrink_to_fit();
    }

    /// Parses the head at the start of `input`. `Ok(Some(n))`: complete, `n` bytes of `input`
    /// belong to it (empty lines before it included). `Ok(None)`: more bytes are needed; never
    /// said of `limits.head` bytes or more, so that a buffer of this size is enough.
    ///
    /// Every call begins at the start of the head; what it does with a head that is not complete
    /// costs no more than looking for line ends.
    pub fn parse(&mut self, input: &[u8], limits: &Limits) -> Result<Option<usize>, Violation> {
        self.clear();
        let window = &input[..input.len().min(limits.head)];
        let skipped = skip_empty_lines(window);
        let message = &window[skipped..];
        match self.read(message, limits) {
            Ok(Some(len)) => Ok(Some(skipped + len)),
            Ok(None) if input.len() < limits.head => {
                self.clear();
                Ok(None)
            }
            result => {
                let cut_in_line = self.line.is_empty();
                self.salvage(message);
                Err(result.err().unwrap_or(if cut_in_line { LINE_TOO_LONG } else { HEAD_TOO_LONG }))
            }
        }
    }

    /// Fills in what can be read of a head that is refused or did not come to its end, for the
    /// record: its first 8 KiB, the parts of the request line if that is valid, the fields up to
    /// the first that is not. `parse` does this after a violation; for a head that stayed
    /// incomplete (timeout, client gone) the caller does.
    pub fn salvage(&mut self, input: &[u8]) {
        self.clear();
        let message = &input[skip_empty_lines(input)..];
        self.bytes.extend_from_slice(&message[..message.len().min(MAX_SALVAGE)]);
        let bytes = std::mem::take(&mut self.bytes);
        let end = memchr2(b'\r', b'\n', &bytes).unwrap_or(bytes.len());
        // The spans stay also where the target or the version is what was refused.
        let _ = self.read_line(&bytes[..end]);
        self.line = Span::new(0, end);
        if bytes[end..].starts_with(b"\r\n") {
            let _ = field::walk(&bytes, end + 2, Sender::Client, &mut self.fields);
        }
        self.bytes = bytes;
    }

    pub fn method(&self) -> &[u8] {
        self.method.of(&self.bytes)
    }

    /// The request target as received.
    pub fn target(&self) -> &[u8] {
        self.target.of(&self.bytes)
    }

    /// What is written before `path`: `*` for OPTIONS and `/` else where absolute-form had no path
    /// (RFC 9112, 3.2.1 and 3.2.4); otherwise nothing.
    pub fn path_prefix(&self) -> &'static [u8] {
        match self.path.of(&self.bytes).first() {
            None if self.method() == b"OPTIONS" => b"*",
            None | Some(b'?') => b"/",
            Some(_) => b"",
        }
    }

    pub fn is_head(&self) -> bool {
        self.method() == b"HEAD"
    }

    /// Sending it twice is as good as once (RFC 9110, 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method(), b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
    }

    /// Value of the first field with this id.
    pub fn get(&self, id: FieldId) -> Option<&[u8]> {
        self.fields.iter().find(|f| f.id == id).map(|f| f.value.of(&self.bytes))
    }

    /// Parses `message`, which has no empty lines before it, as far as it came. Gives the length
    /// of the head; `line` is empty as long as the request line has no end.
    fn read(&mut self, message: &[u8], limits: &Limits) -> Result<Option<usize>, Violation> {
        let window = &message[..message.len().min(MAX_LINE + 2)];
        let Some(lf) = memchr(b'\n', window) else {
            check_partial_line(window)?;
            return if message.len() > MAX_LINE + 1 { Err(LINE_TOO_LONG) } else { Ok(None) };
        };
        self.read_line(field::without_cr(&message[..lf])?)?;
        let fields = &mut self.fields;
        let end = field::parse(message, lf + 1, limits.fields, Sender::Client, fields)?;
        if let Some(end) = end {
            self.bytes.extend_from_slice(&message[..end]);
            self.interpret()?;
        }
        Ok(end)
    }

    /// Request line without its CRLF: `method SP target SP version`, nothing else (RFC 9112, 3).
    fn read_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        let (method, rest) = split_at_space(line).ok_or(bad(NO_REQUEST_LINE))?;
        if !is_method(method) {
            return Err(bad(NO_METHOD));
        }
        // A line without a version is HTTP/0.9.
        let (target, version) = split_at_space(rest).ok_or(bad(NO_REQUEST_LINE))?;
        if target.is_empty() {
            return Err(bad(NO_REQUEST_LINE));
        }
        if !is_visible(target) {
            return Err(bad(NOT_VISIBLE));
        }
        let [b'H', b'T', b'T', b'P', b'/', major @ b'0'..=b'9', b'.', minor @ b'0'..=b'9'] =
            version
        else {
            return Err(bad("HTTP version is not valid (RFC 9112, 2.3)"));
        };
        let target_start = method.len() + 1;
        self.line = Span::new(0, line.len());
        self.method = Span::new(0, method.len());
        self.target = Span::new(target_start, target_start + target.len());
        if *major != b'1' {
            return Err(Violation {
                reason: Reason::Version,
                rule: "HTTP version is not 1.0 or 1.1 (RFC 9110, 15.6.6)",
            });
        }
        // A higher minor version is spoken to as the highest known (RFC 9110, 2.5).
        self.version = if *minor == b'0' { Version::Http10 } else { Version::Http11 };
        self.read_target(method, target, target_start)
    }

    /// The four forms of a target (RFC 9112, 3.2). `at`: its offset in the head.
    fn read_target(&mut self, method: &[u8], target: &[u8], at: usize) -> Result<(), Violation> {
        if method == b"CONNECT" {
            return Err(Violation {
                reason: Reason::ConnectMethod,
                rule: "CONNECT to a reverse proxy (RFC 9110, 9.3.6)",
            });
        }
        if memchr(b'#', target).is_some() {
            return Err(bad("fragment in the request target (RFC 9112, 3.2)"));
        }
        let mut path_start = 0;
        if target[0] != b'/' && (target != b"*" || method != b"OPTIONS") {
            let after_scheme = match target {
                _ if starts_with(target, b"http://") => 7,
                _ if starts_with(target, b"https://") => 8,
                _ => return Err(bad("request target has no form of RFC 9112, 3.2")),
            };
            let rest = &target[after_scheme..];
            let len = memchr2(b'/', b'?', rest).unwrap_or(rest.len());
            if !is_host(&rest[..len]) {
                return Err(bad("authority of the request target is not valid (RFC 9112, 3.2.2)"));
            }
            path_start = after_scheme + len;
            self.authority = Some(Span::new(at + after_scheme, at + path_start));
        }
        self.path = Span::new(at + path_start, at + target.len());
        Ok(())
    }

    /// What the fields say of framing, persistence and expectations.
    fn interpret(&mut self) -> Result<(), Violation> {
        let RequestHead { bytes, fields, connection_names, version, .. } = self;
        let is_http11 = *version == Version::Http11;
        let mut options = Options::default();
        let (mut host, mut length, mut coding, mut content_type) = (None, None, None, None);
        let (mut upgrade, mut is_h2c) = (false, false);
        let mut expects = 0;
        for field in fields.iter() {
            let value = field.value.of(bytes);
            match field.id {
                FieldId::Host => once(&mut host, value, TWO_HOSTS)?,
                FieldId::ContentLength => once(&mut length, value, TWO_LENGTHS)?,
                FieldId::TransferEncoding => once(&mut coding, value, TWO_CODINGS)?,
                FieldId::ContentType => once(&mut content_type, value, TWO_TYPES)?,
                FieldId::Connection => options.add(bytes, field.value, connection_names)?,
                FieldId::Te => {
                    self.te_trailers |= field::members(bytes, field.value)
                        .any(|coding| coding.of(bytes).eq_ignore_ascii_case(b"trailers"));
                }
                FieldId::Upgrade => {
                    upgrade |= !value.is_empty();
                    is_h2c |= field::members(bytes, field.value)
                        .any(|protocol| starts_with(protocol.of(bytes), b"h2c"));
                }
                FieldId::Expect if is_http11 => {
                    expects += 1;
                    if expects > 1 || !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(Violation {
                            reason: Reason::Expectation,
                            rule: "expectation other than 100-continue (RFC 9110, 10.1.1)",
                        });
                    }
                }
                _ => {}
            }
        }
        match host {
            Some(host) if is_host(host) => {}
            Some(_) => return Err(bad("Host is not valid (RFC 9112, 3.2)")),
            None if is_http11 => return Err(bad("HTTP/1.1 request without Host (RFC 9112, 3.2)")),
            None => {}
        }
        self.body = body(length, coding, *version)?;
        let has_body = !matches!(self.body, RequestBody::None | RequestBody::Length(0));
        self.keep_alive = !options.close && (is_http11 || options.keep_alive);
        self.expect_continue = expects == 1 && has_body;
        self.upgrade = is_http11 && options.upgrade && upgrade && !is_h2c && !has_body;
        Ok(())
    }
}

/// How the body is delimited. Where the RFC lets a recipient choose between repairing and refusing
/// (RFC 9112, 6.1 and 6.3), it is refused.
fn body(
    length: Option<&[u8]>,
    coding: Option<&[u8]>,
    version: Version,
) -> Result<RequestBody, Violation> {
    match (length, coding) {
        (None, None) => Ok(RequestBody::None),
        (Some(length), None) => field::decimal(length)
            .map(RequestBody::Length)
            .ok_or(bad("Content-Length is not a decimal number below 2^64 (RFC 9110, 8.6)")),
        (Some(_), Some(_)) => {
            Err(bad("Content-Length beside Transfer-Encoding (RFC 9112, 6.1 and 6.3)"))
        }
        (None, Some(_)) if version == Version::Http10 => {
            Err(bad("Transfer-Encoding in an HTTP/1.0 request (RFC 9112, 6.1)"))
        }
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(RequestBody::Chunked),
        (None, Some(coding)) if is_unknown_coding(coding) => Err(Violation {
            reason: Reason::UnknownCoding,
            rule: "transfer coding other than chunked (RFC 9112, 6.1)",
        }),
        (None, Some(_)) => Err(bad("Transfer-Encoding does not frame the body (RFC 9112, 6.3)")),
    }
}

/// A well-formed Transfer-Encoding that we do not know: tokens, with chunked at most once, last.
fn is_unknown_coding(value: &[u8]) -> bool {
    let mut codings = value.split(|&b| b == b',').map(<[u8]>::trim_ascii);
    let last = codings.next_back().unwrap_or_default();
    field::is_token(last)
        && codings.all(|c| field::is_token(c) && !c.eq_ignore_ascii_case(b"chunked"))
}

/// `uri-host [":" port]` (RFC 3986, 3.2), not empty. A comma, though a reg-name may hold it, is
/// refused: it is what two joined Host fields look like.
fn is_host(authority: &[u8]) -> bool {
    let (host_is_valid, rest) = if let Some(literal) = authority.strip_prefix(b"[") {
        let Some(end) = memchr(b']', literal) else { return false };
        let address = std::str::from_utf8(&literal[..end]).unwrap_or_default();
        (address.parse::<std::net::Ipv6Addr>().is_ok(), &literal[end + 1..])
    } else {
        let (name, rest) = authority.split_at(memchr(b':', authority).unwrap_or(authority.len()));
        (is_reg_name(name), rest)
    };
    let port_is_valid = match rest {
        [] | [b':'] => true,
        [b':', port @ ..] => field::decimal(port).is_some_and(|port| port <= u16::MAX.into()),
        _ => false,
    };
    host_is_valid && port_is_valid
}

fn is_reg_name(name: &[u8]) -> bool {
    // As nearly all are.
    let is_letter = |b: u8| (b | 0x20).wrapping_sub(b'a') < 26;
    if field::all(name, |b| is_letter(b) | b.is_ascii_digit() | (b == b'.') | (b == b'-')) {
        return !name.is_empty();
    }
    let mut rest = name;
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~', _) => tail,
            (b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=', _) => tail,
            (b'%', [high, low, tail @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                tail
            }
            _ => return false,
        };
    }
    !name.is_empty()
}

/// Length of the empty lines before a request line.
fn skip_empty_lines(input: &[u8]) -> usize {
    let lines = input.chunks(2).take(MAX_EMPTY_LINES).take_while(|line| line == b"\r\n");
    2 * lines.count()
}

/// What can be refused in a request line that has no end yet.
fn check_partial_line(line: &[u8]) -> Result<(), Violation> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let method = &line[..memchr(b' ', line).unwrap_or(line.len())];
    if !line.is_empty() && !is_method(method) {
        return Err(bad(NO_METHOD));
    }
    if !line.iter().fold(true, |ok, &b| ok & matches!(b, b' '..=b'~')) {
        return Err(bad(NOT_VISIBLE));
    }
    Ok(())
}

fn is_method(method: &[u8]) -> bool {
    method.len() <= MAX_METHOD && field::is_token(method)
}

/// Only visible ASCII.
fn is_visible(bytes: &[u8]) -> bool {
    field::all(bytes, |b| matches!(b, b'!'..=b'~'))
}

fn split_at_space(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr(b' ', bytes)?;
    Some((&bytes[..space], &bytes[space + 1..]))
}

/// Without regard to case; `prefix` is lower-case.
fn starts_with(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn once<'a>(
    slot: &mut Option<&'a [u8]>,
    value: &'a [u8],
    rule: &'static str,
) -> Result<(), Violation> {
    if slot.replace(value).is_some() { Err(bad(rule)) } else { Ok(()) }
}

const NO_REQUEST_LINE: &str = "request line is not method, target and version (RFC 9112, 3)";
const NO_METHOD: &str = "method is not a token of at most 32 bytes (RFC 9112, 3.1)";
const NOT_VISIBLE: &str = "byte other than visible ASCII in the request line (RFC 9112, 3)";
const TWO_HOSTS: &str = "more than one Host (RFC 9112, 3.2)";
const TWO_LENGTHS: &str = "more than one Content-Length (RFC 9112, 6.3)";
const TWO_CODINGS: &str = "more than one Transfer-Encoding (RFC 9112, 6.1)";
const TWO_TYPES: &str = "more than one Content-Type (RFC 9110, 8.3)";
const LINE_TOO_LONG: Violation = Violation {
    reason: Reason::TargetTooLong,
    rule: "request line is longer than 16 KiB or max-head (RFC 9112, 3)",
};
const HEAD_TOO_LONG: Violation = Violation {
    reason: Reason::HeadTooLarge,
    rule: "head is longer than max-head (RFC 9110, 5.4)",
};

#[cfg(test)]
mod tests;
