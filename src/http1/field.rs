//! Field lines: their syntax, the names that the proxy itself must recognise, and the few values
//! that requests and responses read alike (Connection, lists, decimal numbers).
//!
//! `request` and `response` call `parse` for a head's field section, `chunked` calls `field_line`
//! for trailers. What is accepted here is what the app and the client get to see, so nothing passes
//! that two recipients could read in two ways: every line ends with CRLF, names are tokens, values
//! hold no control bytes.

use memchr::{memchr, memchr2_iter, memmem};

use super::{Span, Violation};
use crate::error::Reason;

/// One field line of a head, in the order received, bytes untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub id: FieldId,
    pub name: Span,
    /// Without optional whitespace at both ends.
    pub value: Span,
}

/// Names that some rule of ours looks at; everything else is `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FieldId {
    Other,
    /// A name with `_` in it (see `Config::allow_underscore`).
    Underscore,
    Accept,
    AcceptEncoding,
    AcceptRanges,
    Authorization,
    CacheControl,
    Connection,
    ContentEncoding,
    ContentLength,
    ContentType,
    Cookie,
    Date,
    Etag,
    Expect,
    Forwarded,
    FrontEndHttps,
    Host,
    Http2Settings,
    KeepAlive,
    MaxForwards,
    Proxy,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    Referer,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    Vary,
    Via,
    XAccelBuffering,
    XForwardedBy,
    XForwardedFor,
    XForwardedHost,
    XForwardedPort,
    XForwardedPrefix,
    XForwardedProto,
    XForwardedProtocol,
    XForwardedScheme,
    XForwardedServer,
    XForwardedSsl,
    XQueueStart,
    XRealIp,
    XRequestId,
    XRequestStart,
}

impl FieldId {
    /// Classifies a field name, a token, without regard to case.
    pub fn of(name: &[u8]) -> FieldId {
        use FieldId::*;
        let &[first, .., last] = name else { return FieldId::of_unknown(name) };
        // One candidate for each length, first and last letter.
        let (known, id): (&[u8], FieldId) = match (name.len(), first | 0x20, last | 0x20) {
            (2, b't', b'e') => (b"te", Te),
            (3, b'v', b'a') => (b"via", Via),
            (4, b'd', b'e') => (b"date", Date),
            (4, b'e', b'g') => (b"etag", Etag),
            (4, b'h', b't') => (b"host", Host),
            (4, b'v', b'y') => (b"vary", Vary),
            (5, b'p', b'y') => (b"proxy", Proxy),
            (6, b'a', b't') => (b"accept", Accept),
            (6, b'c', b'e') => (b"cookie", Cookie),
            (6, b'e', b't') => (b"expect", Expect),
            (7, b'r', b'r') => (b"referer", Referer),
            (7, b't', b'r') => (b"trailer", Trailer),
            (7, b'u', b'e') => (b"upgrade", Upgrade),
            (9, b'f', b'd') => (b"forwarded", Forwarded),
            (9, b'x', b'p') => (b"x-real-ip", XRealIp),
            (10, b'c', b'n') => (b"connection", Connection),
            (10, b'k', b'e') => (b"keep-alive", KeepAlive),
            (10, b'u', b't') => (b"user-agent", UserAgent),
            (12, b'c', b'e') => (b"content-type", ContentType),
            (12, b'm', b's') => (b"max-forwards", MaxForwards),
            (12, b'x', b'd') => (b"x-request-id", XRequestId),
            (13, b'a', b's') => (b"accept-ranges", AcceptRanges),
            (13, b'a', b'n') => (b"authorization", Authorization),
            (13, b'c', b'l') => (b"cache-control", CacheControl),
            (13, b'x', b't') => (b"x-queue-start", XQueueStart),
            (14, b'c', b'h') => (b"content-length", ContentLength),
            (14, b'h', b's') => (b"http2-settings", Http2Settings),
            (14, b'x', b'y') => (b"x-forwarded-by", XForwardedBy),
            (15, b'a', b'g') => (b"accept-encoding", AcceptEncoding),
            (15, b'f', b's') => (b"front-end-https", FrontEndHttps),
            (15, b'x', b'r') => (b"x-forwarded-for", XForwardedFor),
            (15, b'x', b'l') => (b"x-forwarded-ssl", XForwardedSsl),
            (15, b'x', b't') => (b"x-request-start", XRequestStart),
            (16, b'c', b'g') => (b"content-encoding", ContentEncoding),
            (16, b'p', b'n') => (b"proxy-connection", ProxyConnection),
            (16, b'x', b't') if name[12] | 0x20 == b'h' => (b"x-forwarded-host", XForwardedHost),
            (16, b'x', b't') => (b"x-forwarded-port", XForwardedPort),
            (17, b't', b'g') => (b"transfer-encoding", TransferEncoding),
            (17, b'x', b'g') => (b"x-accel-buffering", XAccelBuffering),
            (17, b'x', b'o') => (b"x-forwarded-proto", XForwardedProto),
            (18, b'p', b'e') => (b"proxy-authenticate", ProxyAuthenticate),
            (18, b'x', b'x') => (b"x-forwarded-prefix", XForwardedPrefix),
            (18, b'x', b'e') => (b"x-forwarded-scheme", XForwardedScheme),
            (18, b'x', b'r') => (b"x-forwarded-server", XForwardedServer),
            (19, b'p', b'n') => (b"proxy-authorization", ProxyAuthorization),
            (20, b'x', b'l') => (b"x-forwarded-protocol", XForwardedProtocol),
            _ => return FieldId::of_unknown(name),
        };
        // Without an early exit it is vector code. Of the bytes of a token, 0x20 changes only letters
        // and ^.
        let differs = |sum, (known, byte): (&u8, &u8)| sum | (known ^ (byte | 0x20));
        if known.iter().zip(name).fold(0, differs) == 0 { id } else { FieldId::of_unknown(name) }
    }

    fn of_unknown(name: &[u8]) -> FieldId {
        if name.contains(&b'_') { FieldId::Underscore } else { FieldId::Other }
    }
}

/// Copies field lines as they came, those that follow each other all at once.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    /// The head that the fields are of.
    bytes: &'a [u8],
    /// Lines that were added and not yet copied.
    run: Span,
}

impl<'a> Lines<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Lines<'a> {
        Lines { bytes, run: Span::default() }
    }

    /// Adds the line of a field as `name: value CRLF`.
    pub(crate) fn add(&mut self, out: &mut Vec<u8>, field: &Field) {
        let (name, value) = (field.name, field.value);
        let between = &self.bytes[name.end as usize..value.start as usize];
        let line = Span { start: name.start, end: value.end + 2 };
        if between != b": "
            || self.bytes.get(value.end as usize..line.end as usize) != Some(b"\r\n")
        {
            self.copy(out);
            out.extend_from_slice(name.of(self.bytes));
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.of(self.bytes));
            out.extend_from_slice(b"\r\n");
        } else if line.start == self.run.end {
            self.run.end = line.end;
        } else {
            self.copy(out);
            self.run = line;
        }
    }

    /// Copies what was added. To be called before anything else is written.
    pub(crate) fn copy(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(std::mem::take(&mut self.run).of(self.bytes));
    }
}

/// Who sent the head: an app's whitespace before a colon is removed, a client's is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Client,
    App,
}

/// Tells whether the head in `message`, whose first line ends at `start`, has its empty line. The
/// common case, a read that brought exactly one head, is seen from the last four bytes.
fn is_complete(message: &[u8], start: usize) -> bool {
    const END: &[u8] = b"\r\n\r\n";
    let from = &message[start - 2..];
    from.ends_with(END) || memmem::find(from, END).is_some()
}

/// What can be refused in field lines that are not complete yet: line ends and the number of lines.
/// It is run again with every read of a slow client, so it does no more than look for line ends.
fn check_partial(lines: &[u8], max_fields: usize) -> Result<(), Violation> {
    let mut fields = 0;
    for at in memchr2_iter(b'\r', b'\n', lines) {
        match lines[at] {
            b'\n' if at == 0 || lines[at - 1] != b'\r' => return Err(bad(BARE_LF)),
            b'\n' => fields += 1,
            _ if lines.get(at + 1).is_some_and(|&next| next != b'\n') => return Err(bad(BARE_CR)),
            _ => {}
        }
    }
    if fields > max_fields { Err(too_many_fields()) } else { Ok(()) }
}

/// Parses the field section that begins at `start`, behind the CRLF of the first line, and appends
/// its lines to `fields`. Gives the offset behind the empty line; None: it has not come yet.
pub(super) fn parse(
    message: &[u8],
    start: usize,
    max_fields: usize,
    sender: Sender,
    fields: &mut Vec<Field>,
) -> Result<Option<usize>, Violation> {
    if !is_complete(message, start) {
        check_partial(&message[start..], max_fields)?;
        return Ok(None);
    }
    let end = match parse_fast(message, start, fields) {
        Some(end) => end,
        None => {
            // What the fast pass read before it gave up.
            fields.clear();
            walk(message, start, sender, fields)?
        }
    };
    if fields.len() > max_fields { Err(too_many_fields()) } else { Ok(Some(end)) }
}

/// `httparse` for the section that nearly every head has: at most 64 lines, nothing wrong with
/// them. For all others `None`, and `walk` says what is wrong or takes them.
fn parse_fast(message: &[u8], start: usize, fields: &mut Vec<Field>) -> Option<usize> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let httparse::Status::Complete((len, headers)) =
        httparse::parse_headers(&message[start..], &mut headers).ok()?
    else {
        return None;
    };
    let base = message.as_ptr() as usize;
    let span = |part: &[u8]| {
        let start = part.as_ptr() as usize - base;
        Span::new(start, start + part.len())
    };
    for header in headers {
        let name = span(header.name.as_bytes());
        // httparse takes a bare LF for a line end.
        if message[name.start as usize - 2] != b'\r' {
            return None;
        }
        let id = FieldId::of(header.name.as_bytes());
        fields.push(Field { id, name, value: span(header.value) });
    }
    let end = start + len;
    message[start - 2..end].ends_with(b"\r\n\r\n").then_some(end)
}

/// The reference for the syntax of a field section, line by line. Lines before a violation are in
/// `fields`, so that the record of a refused request can name its user agent.
pub(super) fn walk(
    message: &[u8],
    start: usize,
    sender: Sender,
    fields: &mut Vec<Field>,
) -> Result<usize, Violation> {
    let mut at = start;
    while let Some(len) = memchr(b'\n', &message[at..]) {
        let line = without_cr(&message[at..at + len])?;
        if line.is_empty() {
            return Ok(at + 2);
        }
        fields.push(field_line(line, at, sender).map_err(bad)?);
        at += len + 1;
    }
    Err(bad("field section without an end (RFC 9112, 2.1)"))
}

/// A line without its CR, of bytes up to its LF.
pub(super) fn without_cr(line: &[u8]) -> Result<&[u8], Violation> {
    line.strip_suffix(b"\r").ok_or(bad(BARE_LF))
}

/// Parses one field line, without its CRLF, that lies at offset `at` of its head. The error is the
/// rule that it broke.
pub(super) fn field_line(line: &[u8], at: usize, sender: Sender) -> Result<Field, &'static str> {
    if line.contains(&b'\r') {
        return Err(BARE_CR);
    }
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err("line folding or whitespace before a field name (RFC 9112, 2.2 and 5.2)");
    }
    let Some(colon) = memchr(b':', line) else {
        return Err("field line without a colon (RFC 9112, 5)");
    };
    let (mut name, value) = (&line[..colon], &line[colon + 1..]);
    if let [.., b' ' | b'\t'] = name {
        if sender == Sender::Client {
            return Err("whitespace between field name and colon (RFC 9112, 5.1)");
        }
        while let [shorter @ .., b' ' | b'\t'] = name {
            name = shorter;
        }
    }
    if !is_token(name) {
        return Err("field name is not a token (RFC 9110, 5.1)");
    }
    if !is_text(value) {
        return Err("control byte in a field value (RFC 9110, 5.5)");
    }
    // Control bytes are excluded above: what `trim_ascii` removes here is SP and HTAB.
    let value_start = at + line.len() - value.trim_ascii_start().len();
    let value_len = value.trim_ascii().len();
    Ok(Field {
        id: FieldId::of(name),
        name: Span::new(at, at + name.len()),
        value: Span::new(value_start, value_start + value_len),
    })
}

/// Names in the Connection fields of a head.
const MAX_NAMES: usize = 100;

/// What the Connection fields of a head say (RFC 9110, 7.6.1).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
}

impl Options {
    /// Adds one Connection field. Names of other fields go to `names`; what is no token names no
    /// field.
    pub(super) fn add(
        &mut self,
        bytes: &[u8],
        value: Span,
        names: &mut Vec<Span>,
    ) -> Result<(), Violation> {
        for member in members(bytes, value) {
            match member.of(bytes) {
                name if name.eq_ignore_ascii_case(b"close") => self.close = true,
                name if name.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                name if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
                name if name.eq_ignore_ascii_case(b"te") => {}
                name if is_token(name) => names.push(member),
                _ => {}
            }
        }
        // Each field of the head is compared with each name.
        if names.len() > MAX_NAMES {
            return Err(bad("Connection names more than 100 fields (RFC 9110, 7.6.1)"));
        }
        Ok(())
    }
}

/// The members of a comma-separated list, trimmed, empty ones left out (RFC 9110, 5.6.1). Not for
/// fields with quoted strings.
pub(super) fn members(bytes: &[u8], value: Span) -> impl Iterator<Item = Span> {
    let mut at = value.start as usize;
    value.of(bytes).split(|&b| b == b',').filter_map(move |member| {
        let start = at + member.len() - member.trim_ascii_start().len();
        at += member.len() + 1;
        let len = member.trim_ascii().len();
        (len > 0).then(|| Span::new(start, start + len))
    })
}

/// `1*DIGIT` that fits 64 bits (RFC 9110, 8.6).
pub(super) fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |sum, &b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// A token (RFC 9110, 5.6.2): not empty.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&b| is_tchar(b))
}

pub(super) fn is_tchar(byte: u8) -> bool {
    const TCHAR: [bool; 256] = {
        let mut table = [false; 256];
        let mut b = 0;
        while b < 128 {
            table[b] = (b as u8).is_ascii_alphanumeric();
            b += 1;
        }
        let marks = b"!#$%&'*+-.^_`|~";
        let mut i = 0;
        while i < marks.len() {
            table[marks[i] as usize] = true;
            i += 1;
        }
        table
    };
    TCHAR[byte as usize]
}

/// No control byte but HTAB (RFC 9110, 5.5). No early exit: so the compiler makes it vector code.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    !bytes.iter().fold(false, |bad, &b| bad | (b < b' ' && b != b'\t') | (b == 0x7f))
}

pub(super) const BARE_LF: &str = "line feed without carriage return (RFC 9112, 2.2)";
pub(super) const BARE_CR: &str = "carriage return without line feed (RFC 9112, 2.2)";

fn too_many_fields() -> Violation {
    Violation {
        reason: Reason::HeadTooLarge,
        rule: "more field lines than max-fields (RFC 9110, 5.4)",
    }
}

/// A rule of requests. Responses and chunks map the reason to their own.
pub(super) fn bad(rule: &'static str) -> Violation {
    Violation { reason: Reason::BadRequest, rule }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [(&str, FieldId); 46] = {
        use FieldId::*;
        [
            ("Accept", Accept),
            ("Accept-Encoding", AcceptEncoding),
            ("Accept-Ranges", AcceptRanges),
            ("Authorization", Authorization),
            ("Cache-Control", CacheControl),
            ("Connection", Connection),
            ("Content-Encoding", ContentEncoding),
            ("Content-Length", ContentLength),
            ("Content-Type", ContentType),
            ("Cookie", Cookie),
            ("Date", Date),
            ("ETag", Etag),
            ("Expect", Expect),
            ("Forwarded", Forwarded),
            ("Front-End-Https", FrontEndHttps),
            ("Host", Host),
            ("HTTP2-Settings", Http2Settings),
            ("Keep-Alive", KeepAlive),
            ("Max-Forwards", MaxForwards),
            ("Proxy", Proxy),
            ("Proxy-Authenticate", ProxyAuthenticate),
            ("Proxy-Authorization", ProxyAuthorization),
            ("Proxy-Connection", ProxyConnection),
            ("Referer", Referer),
            ("TE", Te),
            ("Trailer", Trailer),
            ("Transfer-Encoding", TransferEncoding),
            ("Upgrade", Upgrade),
            ("User-Agent", UserAgent),
            ("Vary", Vary),
            ("Via", Via),
            ("X-Accel-Buffering", XAccelBuffering),
            ("X-Forwarded-By", XForwardedBy),
            ("X-Forwarded-For", XForwardedFor),
            ("X-Forwarded-Host", XForwardedHost),
            ("X-Forwarded-Port", XForwardedPort),
            ("X-Forwarded-Prefix", XForwardedPrefix),
            ("X-Forwarded-Proto", XForwardedProto),
            ("X-Forwarded-Protocol", XForwardedProtocol),
            ("X-Forwarded-Scheme", XForwardedScheme),
            ("X-Forwarded-Server", XForwardedServer),
            ("X-Forwarded-Ssl", XForwardedSsl),
            ("X-Queue-Start", XQueueStart),
            ("X-Real-Ip", XRealIp),
            ("X-Request-Id", XRequestId),
            ("X-Request-Start", XRequestStart),
        ]
    };

    #[test]
    fn every_name_is_known_in_any_case() {
        for (i, (name, id)) in NAMES.iter().enumerate() {
            // The table is in the order of the enum, and whole.
            assert_eq!(*id as usize, i + 2);
            assert_eq!(FieldId::of(name.as_bytes()), *id);
            assert_eq!(FieldId::of(name.to_ascii_lowercase().as_bytes()), *id);
            assert_eq!(FieldId::of(name.to_ascii_uppercase().as_bytes()), *id);
            assert_eq!(FieldId::of(format!("{name}x").as_bytes()), FieldId::Other);
            assert_eq!(FieldId::of(&name.as_bytes()[1..]), FieldId::Other);
            for (i, byte) in name.bytes().enumerate() {
                let mut near = name.as_bytes().to_vec();
                for other in (0..=255).filter(|&b| is_tchar(b) && !b.eq_ignore_ascii_case(&byte)) {
                    near[i] = other;
                    let expected = if other == b'_' { FieldId::Underscore } else { FieldId::Other };
                    assert_eq!(FieldId::of(&near), expected, "{}", near.escape_ascii());
                }
            }
            let underscore = name.replace('-', "_");
            if underscore != *name {
                assert_eq!(FieldId::of(underscore.as_bytes()), FieldId::Underscore);
            }
        }
        assert_eq!(FieldId::XRequestStart as usize, NAMES.len() + 1);
        for (name, id) in [
            ("X", FieldId::Other),
            ("", FieldId::Other),
            ("_", FieldId::Underscore),
            ("\x14e", FieldId::Other),
        ] {
            assert_eq!(FieldId::of(name.as_bytes()), id, "{name:?}");
        }
    }

    #[test]
    fn httparse_and_the_reference_read_the_same() {
        let mut read = 0;
        for lines in [
            "",
            "A: b",
            "A:b",
            "A:",
            "A: ",
            "A:\t \t",
            "A: b \t",
            "A:  b  c ",
            "A: b\r\nC: d",
            "A:\r\n\t",
            "A\r\nB: c",
            "A: b\nC: d",
            "A:\nB: c",
            "A: b\n",
            "\nA: b",
            "A : b",
            " A: b",
            "A: \r",
            "A: b\rc",
            "A\0: b",
            "A: \x7f",
            "A: \u{e9}",
            "A\u{e9}: b",
            "a:b:c",
            ":a",
            "A!#$%&'*+-.^_`|~z09: x",
            "A\"B: x",
        ] {
            let message = format!(
                "GET / HTTP/1.1\r\n{lines}{}\r\n",
                if lines.is_empty() { "" } else { "\r\n" }
            );
            let (mut fast, mut reference) = (Vec::new(), Vec::new());
            let expected = walk(message.as_bytes(), 16, Sender::Client, &mut reference).ok();
            assert_eq!(parse_fast(message.as_bytes(), 16, &mut fast), expected, "{lines:?}");
            if expected.is_some() {
                assert_eq!(fast, reference, "{lines:?}");
                read += 1;
            }
        }
        assert!(read >= 9, "{read}");
    }

    #[test]
    fn a_refused_line_names_its_rule() {
        for (line, expected) in [
            ("A: b\rc", BARE_CR),
            (" A: b", "line folding or whitespace before a field name (RFC 9112, 2.2 and 5.2)"),
            ("\tb", "line folding or whitespace before a field name (RFC 9112, 2.2 and 5.2)"),
            ("A b", "field line without a colon (RFC 9112, 5)"),
            ("A : b", "whitespace between field name and colon (RFC 9112, 5.1)"),
            ("A b: c", "field name is not a token (RFC 9110, 5.1)"),
            (": b", "field name is not a token (RFC 9110, 5.1)"),
            ("A: \0", "control byte in a field value (RFC 9110, 5.5)"),
        ] {
            assert_eq!(field_line(line.as_bytes(), 0, Sender::Client), Err(expected), "{line:?}");
        }
        assert!(field_line(b"A : b", 0, Sender::App).is_ok());
    }

    #[test]
    fn members_are_trimmed_and_not_empty() {
        let bytes = b"Connection: a, b ,,\t,c d,";
        let found: Vec<_> =
            members(bytes, Span::new(12, bytes.len())).map(|m| m.of(bytes)).collect();
        assert_eq!(found, [&b"a"[..], b"b", b"c d"]);
        assert_eq!(members(b"", Span::default()).count(), 0);
    }
}
