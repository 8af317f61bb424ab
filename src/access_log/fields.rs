//! Request fields for the log. Called by `variable`.
//!
//! A line of `combined` must be nginx's also for requests that are refused. nginx logs the fields
//! that it has read when it refuses, and it reads in another order and by other rules than
//! `http1`, which reads all or nothing: so a refused head is read here once more, for the log only.

use crate::http1::{FieldId, RequestHead, Span};

/// Where the fields of one head are.
pub(super) struct Fields<'s> {
    head: &'s RequestHead,
    /// The exchange failed, and the head may not be valid: it is read once more.
    refused: bool,
    /// By `FieldId`, the first line of each; only where its bit is in `seen`.
    first: [u32; IDS],
    seen: u64,
    /// Came in several lines.
    repeated: u64,
}

/// More than there are.
const IDS: usize = 64;
const _: () = assert!((FieldId::XRequestStart as usize) < IDS);

impl<'s> Fields<'s> {
    pub(super) fn new(head: &'s RequestHead, refused: bool) -> Fields<'s> {
        let mut fields = Fields { head, refused, first: [0; IDS], seen: 0, repeated: 0 };
        if !refused {
            for (index, field) in head.fields.iter().enumerate().rev() {
                let bit = 1u64 << field.id as u8;
                fields.repeated |= fields.seen & bit;
                fields.seen |= bit;
                fields.first[field.id as usize] = index as u32;
            }
        }
        fields
    }

    /// The value of the first line of a field: its number, and its name in lower case.
    pub(super) fn first(&self, id: FieldId, name: &str) -> Option<&'s [u8]> {
        if self.refused || id == FieldId::Other {
            return self.values(id, name).next();
        }
        let there = self.seen >> id as u8 & 1 == 1;
        there.then(|| {
            let field = self.head.fields[self.first[id as usize] as usize];
            spaced(self.head, field.value)
        })
    }

    /// It may have come in several lines: `first` is not all.
    pub(super) fn may_repeat(&self, id: FieldId) -> bool {
        self.refused || self.repeated >> id as u8 & 1 == 1
    }

    /// The values of all lines of a field, in the order received.
    pub(super) fn values<'n>(
        &self,
        id: FieldId,
        name: &'n str,
    ) -> impl Iterator<Item = &'s [u8]> + use<'s, 'n> {
        let head = self.head;
        let is_named = move |found: &[u8]| found.eq_ignore_ascii_case(name.as_bytes());
        let parsed = if self.refused { &[] } else { head.fields.as_slice() };
        let parsed = parsed.iter().filter(move |field| {
            field.id == id && (id != FieldId::Other || is_named(field.name.of(&head.bytes)))
        });
        let read = self.refused.then(|| Reader::new(&head.bytes)).into_iter().flatten();
        parsed
            .map(|field| spaced(head, field.value))
            .chain(read.filter(move |(found, _)| is_named(found)).map(|(_, value)| value))
    }
}

/// The request line. Of a refused head it is what comes before the first CR or LF that is not at
/// its very beginning.
pub(super) fn request_line(head: &RequestHead) -> &[u8] {
    if !head.line.is_empty() {
        return head.line.of(&head.bytes);
    }
    let bytes = skip_line_ends(&head.bytes);
    &bytes[..memchr::memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len())]
}

/// A field's value with the tabs around it, which nginx does not take for white space.
fn spaced(head: &RequestHead, value: Span) -> &[u8] {
    let bytes = &head.bytes;
    let (mut start, mut end) = (value.start as usize, value.end as usize);
    // As nearly everybody writes it.
    if bytes[..start].ends_with(b": ") && bytes[end..].starts_with(b"\r") {
        return &bytes[start..end];
    }
    while start > 0 && matches!(bytes[start - 1], b' ' | b'\t') {
        start -= 1;
    }
    while bytes.get(end).is_some_and(|b| matches!(b, b' ' | b'\t')) {
        end += 1;
    }
    trim_spaces(&bytes[start..end])
}

/// Reads field lines as nginx does, up to the first that makes it refuse.
struct Reader<'s> {
    rest: &'s [u8],
    host_seen: bool,
    length_seen: bool,
}

impl<'s> Reader<'s> {
    fn new(head: &'s [u8]) -> Reader<'s> {
        let (line, rest) = next_line(skip_line_ends(head)).unwrap_or_default();
        let rest = if is_readable(line) { rest } else { &[] };
        Reader { rest, host_seen: false, length_seen: false }
    }
}

impl<'s> Iterator for Reader<'s> {
    type Item = (&'s [u8], &'s [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (line, rest) = next_line(self.rest)?;
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let (name, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default());
        if name.is_empty() || name.iter().any(|&b| is_control_or_space(b)) {
            return None;
        }
        if memchr::memchr2(b'\0', b'\r', value).is_some() {
            return None;
        }
        let value = trim_spaces(value);
        let seen_before = match name {
            _ if name.eq_ignore_ascii_case(b"host") => {
                if value.is_empty() || value.iter().any(|&b| b == b'/' || is_control_or_space(b)) {
                    return None;
                }
                std::mem::replace(&mut self.host_seen, true)
            }
            _ if name.eq_ignore_ascii_case(b"content-length") => {
                std::mem::replace(&mut self.length_seen, true)
            }
            _ => false,
        };
        if seen_before {
            return None;
        }
        self.rest = rest;
        Some((name, value))
    }
}

/// nginx reads fields after this request line. It does not after one that it refuses, nor after
/// one without a version, which is HTTP/0.9.
fn is_readable(line: &[u8]) -> bool {
    let mut words = line.split(|&b| b == b' ').filter(|word| !word.is_empty());
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return false;
    };
    let is_host = |host: &[u8]| {
        !host.is_empty() && host.iter().all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(b))
    };
    let has_path = target[0] == b'/'
        || target.windows(3).position(|w| w == b"://").is_some_and(|scheme| {
            let rest = &target[scheme + 3..];
            let host = rest.split(|b| b"/?".contains(b)).next().unwrap_or_default();
            target[..scheme].iter().all(u8::is_ascii_alphabetic) && is_host(host)
        });
    has_path
        && line[0] != b' '
        && method.iter().all(|b| b.is_ascii_uppercase() || matches!(b, b'_' | b'-'))
        && !target.iter().any(|&b| is_control_or_space(b))
        && version.strip_prefix(b"HTTP/1.").is_some_and(|minor| {
            matches!(minor.len(), 1..=3) && minor.iter().all(u8::is_ascii_digit)
        })
}

/// The first line, without its end, and what follows it; None where there is no whole line or it
/// is the empty one that ends a head.
fn next_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    let mut line = &bytes[..end];
    while let [shorter @ .., b'\r'] = line {
        line = shorter;
    }
    if line.is_empty() { None } else { Some((line, &bytes[end + 1..])) }
}

fn skip_line_ends(mut bytes: &[u8]) -> &[u8] {
    while let [b'\r' | b'\n', rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}

fn trim_spaces(mut value: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = value {
        value = rest;
    }
    value
}

fn is_control_or_space(byte: u8) -> bool {
    byte <= b' ' || byte == 0x7F
}
