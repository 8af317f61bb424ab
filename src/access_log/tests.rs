use super::*;
use crate::http1::{Field, FieldId, RequestHead, Span, Version};

/// A head made by hand from well-formed text: `METHOD TARGET VERSION`, then fields.
pub(super) fn head(text: &[u8]) -> RequestHead {
    let mut head = RequestHead { bytes: text.to_vec(), ..RequestHead::default() };
    let span = |part: &[u8]| {
        let start = part.as_ptr() as usize - text.as_ptr() as usize;
        Span { start: start as u32, end: (start + part.len()) as u32 }
    };
    let mut lines =
        text.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let line = lines.next().unwrap();
    head.line = span(line);
    let mut words = line.split(|&b| b == b' ');
    head.method = span(words.next().unwrap());
    head.target = span(words.next().unwrap());
    head.path = head.target;
    if words.next() == Some(b"HTTP/1.0") {
        head.version = Version::Http10;
    }
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|&b| b == b':').unwrap();
        let (name, mut value) = (&line[..colon], &line[colon + 1..]);
        while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
            value = rest;
        }
        head.fields.push(Field { id: FieldId::of(name), name: span(name), value: span(value) });
    }
    head
}

#[test]
fn a_reset_record_is_a_new_one_of_the_same_connection() {
    let peer = Peer::Ip("10.0.0.1:1234".parse().unwrap());
    let mut record = Record::new(peer);
    record.connection = 7;
    record.head = head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    record.request_id.extend_from_slice(b"id");
    record.response_head.extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\n");
    record.status = 200;
    record.end = Reason::Truncated;
    record.client = Some("1.2.3.4".parse().unwrap());
    let capacity = record.head.bytes.capacity();
    record.reset();
    let fresh = Record { connection: 7, ..Record::new(peer) };
    assert_eq!(format!("{record:?}"), format!("{fresh:?}"));
    assert_eq!(record.head.bytes.capacity(), capacity);
}

#[test]
fn skip_compares_paths_without_query() {
    let skip = Skip::new(&["/health".to_owned(), "/static/*".to_owned()]);
    for (target, skipped) in [
        ("/health", true),
        ("/health?x=1", true),
        ("/healthz", false),
        ("/static/a.css", true),
        ("/static", false),
        ("/?/health", false),
    ] {
        let mut record = Record::new(Peer::Unix);
        record.head = head(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes());
        assert_eq!(skip.matches(&record), skipped, "{target}");
    }
    assert!(!Skip::default().matches(&Record::new(Peer::Unix)));
}
