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
        let mut padded = [0; 24];
        if let Some(begin) = padded.get_mut(..name.len() + 1) {
            begin[..name.len()].copy_from_slice(name);
            begin[name.len()] = b':';
            if let Some(id) = FieldId::known(words_of(&padded)) {
                return id;
            }
        }
        if name.contains(&b'_') { FieldId::Underscore } else { FieldId::Other }
    }

    /// One of ours, by its name with the colon behind it.
    fn known(name: Words) -> Option<FieldId> {
        let &(known, id) = &KNOWN[usize::from(SLOTS[slot(name)])];
        // Only letters may differ, in their case.
        let differs = |i: usize| (name[i] ^ known[i]) & !((known[i] & (0x40 * ONES)) >> 1);
        (differs(0) | differs(1) | differs(2) == 0).then_some(id)
    }
}

/// A name and its colon, eight bytes in each, the first one lowest; the rest is zero.
type Words = [u64; 3];

const ONES: u64 = 0x0101_0101_0101_0101;

const fn words_of(padded: &[u8; 24]) -> Words {
    let (words, _) = padded.as_chunks();
    [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1]), u64::from_le_bytes(words[2])]
}

/// Names in lower case.
const KNOWN: [(Words, FieldId); 46] = {
    use FieldId::*;
    [
        known("accept", Accept),
        known("accept-encoding", AcceptEncoding),
        known("accept-ranges", AcceptRanges),
        known("authorization", Authorization),
        known("cache-control", CacheControl),
        known("connection", Connection),
        known("content-encoding", ContentEncoding),
        known("content-length", ContentLength),
        known("content-type", ContentType),
        known("cookie", Cookie),
        known("date", Date),
        known("etag", Etag),
        known("expect", Expect),
        known("forwarded", Forwarded),
        known("front-end-https", FrontEndHttps),
        known("host", Host),
        known("http2-settings", Http2Settings),
        known("keep-alive", KeepAlive),
        known("max-forwards", MaxForwards),
        known("proxy", Proxy),
        known("proxy-authenticate", ProxyAuthenticate),
        known("proxy-authorization", ProxyAuthorization),
        known("proxy-connection", ProxyConnection),
        known("referer", Referer),
        known("te", Te),
        known("trailer", Trailer),
        known("transfer-encoding", TransferEncoding),
        known("upgrade", Upgrade),
        known("user-agent", UserAgent),
        known("vary", Vary),
        known("via", Via),
        known("x-accel-buffering", XAccelBuffering),
        known("x-forwarded-by", XForwardedBy),
        known("x-forwarded-for", XForwardedFor),
        known("x-forwarded-host", XForwardedHost),
        known("x-forwarded-port", XForwardedPort),
        known("x-forwarded-prefix", XForwardedPrefix),
        known("x-forwarded-proto", XForwardedProto),
        known("x-forwarded-protocol", XForwardedProtocol),
        known("x-forwarded-scheme", XForwardedScheme),
        known("x-forwarded-server", XForwardedServer),
        known("x-forwarded-ssl", XForwardedSsl),
        known("x-queue-start", XQueueStart),
        known("x-real-ip", XRealIp),
        known("x-request-id", XRequestId),
        known("x-request-start", XRequestStart),
    ]
};

const fn known(name: &str, id: FieldId) -> (Words, FieldId) {
    let mut padded = [0; 24];
    padded.split_at_mut(name.len()).0.copy_from_slice(name.as_bytes());
    padded[name.len()] = b':';
    (words_of(&padded), id)
}

/// The place of a name in `SLOTS`, without regard to case. The factor is one with which no two of
/// `KNOWN` have the same: it was found by trying.
const fn slot([a, b, c]: Words) -> usize {
    const CASE: u64 = 0x20 * ONES;
    let sum = (a | CASE)
        .wrapping_add((b | CASE).wrapping_mul(3))
        .wrapping_add((c | CASE).wrapping_mul(5));
    (sum.wrapping_mul(0x5804_f922_8386_8a29) >> 56) as usize
}

/// For each `slot` the only one of `KNOWN` that it can be.
static SLOTS: [u8; 256] = {
    let mut slots = [u8::MAX; 256];
    let mut i = 0;
    while i < KNOWN.len() {
        let slot = slot(KNOWN[i].0);
        assert!(slots[slot] == u8::MAX, "two names in one slot: another factor");
        slots[slot] = i as u8;
        i += 1;
    }
    let mut slot = 0;
    while slot < slots.len() {
        if slots[slot] == u8::MAX {
            slots[slot] = 0;
        }
        slot += 1;
    }
    slots
};

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
    #[inline]
    pub(crate) fn add(&mut self, out: &mut Vec<u8>, field: &Field) {
        let line = Span { start: field.name.start, end: field.value.end + 2 };
        let is = |start, what| {
            let start = start as usize;
            self.bytes.get(start..start + 2) == Some(what)
        };
        let is_so = field.value.start == field.name.end + 2
            && is(field.name.end, b": ")
            && is(field.value.end, b"\r\n");
        if is_so && line.start == self.run.end {
            self.run.end = line.end;
            return;
        }
        self.copy(out);
        if is_so {
            self.run = line;
        } else {
            let parts = [field.name.of(self.bytes), b": ", field.value.of(self.bytes), b"\r\n"];
            parts.iter().for_each(|part| out.extend_from_slice(part));
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
    // Of an app nearly every read brings a whole head, and what is behind it need not be searched.
    let read = match sender {
        Sender::Client if !is_complete(message, start) => None,
        Sender::Client | Sender::App => Some(read(message, start, sender, fields)),
    };
    match read {
        Some(Ok(_)) if fields.len() > max_fields => Err(too_many_fields()),
        Some(Ok(end)) => Ok(Some(end)),
        Some(Err(violation)) if is_complete(message, start) => Err(violation),
        _ => check_partial(&message[start..], max_fields).map(|()| None),
    }
}

/// Reads the lines of a section that is complete.
fn read(
    message: &[u8],
    start: usize,
    sender: Sender,
    fields: &mut Vec<Field>,
) -> Result<usize, Violation> {
    lines(start, fields, |at| match quick_line(message, at) {
        None => next_line(message, at, sender),
        quick => Ok(quick),
    })
}

/// The reference for the syntax of a field section, line by line. Lines before a violation are in
/// `fields`, so that the record of a refused request can name its user agent.
pub(super) fn walk(
    message: &[u8],
    start: usize,
    sender: Sender,
    fields: &mut Vec<Field>,
) -> Result<usize, Violation> {
    lines(start, fields, |at| next_line(message, at, sender))
}

/// What `next` gives from `start` on, up to the empty line, and the offset behind that.
#[inline(always)]
fn lines(
    start: usize,
    fields: &mut Vec<Field>,
    next: impl Fn(usize) -> Result<Option<(Field, usize)>, Violation>,
) -> Result<usize, Violation> {
    let mut at = start;
    while let Some((field, behind)) = next(at)? {
        fields.push(field);
        at = behind;
    }
    Ok(at + 2)
}

/// The field line at `at` and the offset behind it; None: the empty line.
fn next_line(
    message: &[u8],
    at: usize,
    sender: Sender,
) -> Result<Option<(Field, usize)>, Violation> {
    let Some(len) = memchr(b'\n', &message[at..]) else {
        return Err(bad("field section without an end (RFC 9112, 2.1)"));
    };
    let line = without_cr(&message[at..at + len])?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some((field_line(line, at, sender).map_err(bad)?, at + len + 1)))
}

/// `next_line` for what nearly every line is: right, and with a name of at most 23 bytes. None: it
/// is not, or perhaps not.
#[inline]
fn quick_line(message: &[u8], at: usize) -> Option<(Field, usize)> {
    let line = message.get(at..)?;
    let (name_len, words) = name_of(line)?;
    let (name, mut rest) = line.split_at_checked(name_len)?;
    let id = match FieldId::known(words) {
        Some(id) => id,
        None => match class(name) {
            _ if name.is_empty() => return None,
            0 => FieldId::Other,
            UNDERSCORE => FieldId::Underscore,
            _ => return None,
        },
    };
    // Its colon, and what is blank behind it.
    rest = &rest[1..];
    while let [b' ' | b'\t', behind @ ..] = rest {
        rest = behind;
    }
    let (mut value, end) = rest.split_at_checked(text_len(rest))?;
    let start = message.len() - rest.len();
    let [b'\r', b'\n', behind @ ..] = end else { return None };
    while let [shorter @ .., b' ' | b'\t'] = value {
        value = shorter;
    }
    let value = Span::new(start, start + value.len());
    Some((Field { id, name: Span::new(at, at + name_len), value }, message.len() - behind.len()))
}

/// Length of the name at the start of `line`, and it as `Words`. None: it is longer than those.
#[inline]
fn name_of(line: &[u8]) -> Option<(usize, Words)> {
    let mut words = [0; 3];
    let mut rest = line;
    for (i, place) in words.iter_mut().enumerate() {
        let (word, behind) = rest.split_first_chunk()?;
        let word = u64::from_le_bytes(*word);
        // The lowest bit that is set is that of the first colon.
        let other = word ^ (b':' as u64 * ONES);
        let colons = other.wrapping_sub(ONES) & !other & (0x80 * ONES);
        if colons != 0 {
            let bit = colons.trailing_zeros();
            *place = word & (u64::MAX >> (63 - bit));
            return Some((8 * i + bit as usize / 8, words));
        }
        *place = word;
        rest = behind;
    }
    None
}

/// Length of the text (see `is_text`) at the start of `bytes`.
#[inline]
fn text_len(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some((block, behind)) = rest.split_first_chunk::<16>()
        && block.iter().fold(true, |all, &b| all & is_text_byte(b))
    {
        rest = behind;
    }
    while let Some((word, behind)) = rest.split_first_chunk() {
        let word = u64::from_le_bytes(*word);
        // The lowest bit that is set is that of the first control byte. HTAB is one here, and
        // a byte behind one or behind 0xff may be taken for one.
        let low = word.wrapping_sub(b' ' as u64 * ONES);
        let delete = word.wrapping_add(ONES);
        let controls = (low | delete) & !word & (0x80 * ONES);
        if controls != 0 {
            rest = &rest[controls.trailing_zeros() as usize / 8..];
            break;
        }
        rest = behind;
    }
    while let [first, behind @ ..] = rest
        && is_text_byte(*first)
    {
        rest = behind;
    }
    bytes.len() - rest.len()
}

/// A line without its CR, of bytes up to its LF.
pub(super) fn without_cr(line: &[u8]) -> Result<&[u8], Violation> {
    line.strip_suffix(b"\r").ok_or(bad(BARE_LF))
}

/// Parses one field line, without its CRLF, that lies at offset `at` of its head. The error is the
/// rule that it broke.
pub(super) fn field_line(line: &[u8], at: usize, sender: Sender) -> Result<Field, &'static str> {
    if memchr(b'\r', line).is_some() {
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
        // As nearly everybody writes it.
        match value.of(bytes) {
            b"keep-alive" | b"Keep-Alive" => {
                self.keep_alive = true;
                return Ok(());
            }
            b"close" => {
                self.close = true;
                return Ok(());
            }
            _ => {}
        }
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
    !bytes.is_empty() && class(bytes) & NO_TOKEN == 0
}

pub(super) fn is_tchar(byte: u8) -> bool {
    CLASS[usize::from(byte)] & NO_TOKEN == 0
}

/// What is among the bytes: an underscore, something that no token has.
fn class(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |class, &b| class | CLASS[usize::from(b)])
}

const UNDERSCORE: u8 = 1;
const NO_TOKEN: u8 = 2;

static CLASS: [u8; 256] = {
    let mut class = [NO_TOKEN; 256];
    let mut b = 0;
    while b < 128 {
        if (b as u8).is_ascii_alphanumeric() {
            class[b] = 0;
        }
        b += 1;
    }
    let marks = b"!#$%&'*+-.^`|~";
    let mut i = 0;
    while i < marks.len() {
        class[marks[i] as usize] = 0;
        i += 1;
    }
    class[b'_' as usize] = UNDERSCORE;
    class
};

/// No control byte but HTAB (RFC 9110, 5.5).
pub(super) fn is_text(bytes: &[u8]) -> bool {
    all(bytes, is_text_byte)
}

fn is_text_byte(byte: u8) -> bool {
    !((byte < b' ') & (byte != b'\t')) & (byte != 0x7f)
}

/// Whether all bytes are so. Blocks of a fixed size, without an early exit, become vector code.
pub(crate) fn all(bytes: &[u8], is: impl Fn(u8) -> bool) -> bool {
    let are = |block: &[u8]| block.iter().fold(true, |all, &b| all & is(b));
    if let Some(last) = bytes.last_chunk::<16>() {
        // It may overlap the one before.
        bytes.as_chunks::<16>().0.iter().all(|block| are(block)) && are(last)
    } else if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        are(first) & are(last)
    } else {
        bytes.iter().all(|&b| is(b))
    }
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
    fn the_quick_way_and_the_reference_read_the_same() {
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
            "A: b\tc",
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
            "te\0: b",
            "A: \x7f",
            "A: \u{e9}",
            "A\u{e9}: b",
            "a:b:c",
            ":a",
            "::::::::::::::::::::::::",
            "A!#$%&'*+-.^_`|~z09: x",
            "A\"B: x",
            "Upgrade-Insecure-Requests: 1\r\nX_Y: z",
            "X-Forwarded-For: 199.188.193.220\t, 10.0.0.1\r\nContent-Length: 12345678901234567890",
        ] {
            let end = if lines.is_empty() { "" } else { "\r\n" };
            // The blocks that are looked at may reach into what is behind the head.
            for behind in ["", "GET", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
                let message = format!("GET / HTTP/1.1\r\n{lines}{end}\r\n{behind}").into_bytes();
                let mut look = |message: &[u8]| {
                    let (mut fields, mut expected) = (Vec::new(), Vec::new());
                    let reference = walk(message, 16, Sender::Client, &mut expected);
                    let quick = super::read(message, 16, Sender::Client, &mut fields);
                    assert_eq!(quick, reference, "{}", message.escape_ascii());
                    assert_eq!(fields, expected, "{}", message.escape_ascii());
                    read += usize::from(reference.is_ok());
                };
                look(&message);
                for at in 16..message.len() {
                    let mut changed = message.clone();
                    for byte in 0..=255 {
                        changed[at] = byte;
                        look(&changed);
                    }
                }
            }
        }
        assert!(read >= 10_000, "{read}");
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
