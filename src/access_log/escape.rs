//! How a client's bytes become part of a log line. Called by `template` for every text value.
//!
//! What must stay true: no byte below 0x20, no 0x7F and, but for JSON, none above it leaves here,
//! and no `"` unescaped, so that no client can end a field or a line.

use crate::http1::all;

/// The escaping of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escape {
    /// nginx's `escape=default`: `"`, `\`, control and 8-bit bytes as `\xHH`.
    Text,
    /// Strings of JSON, always valid UTF-8: invalid bytes become U+FFFD.
    Json,
    /// JSON's escapes in ASCII, quoted only where logfmt needs it.
    Logfmt,
}

/// What a cut value ends with.
const MARKER: &[u8] = b"...";

/// Appends `value`, at most `cap` bytes (3 or more): a longer one ends with the marker.
pub(super) fn append(out: &mut Vec<u8>, value: &[u8], escape: Escape, cap: usize) {
    // As nearly all are.
    if value.len() <= cap && all(value, |b| !is_special(b)) {
        return out.extend_from_slice(value);
    }
    append_escaped(out, value, escape, cap);
}

#[cold]
fn append_escaped(out: &mut Vec<u8>, value: &[u8], escape: Escape, cap: usize) {
    let start = out.len();
    // An escaped text is never shorter than the text: what lies beyond the cap need not be looked
    // at, but for the rest of a character of up to four bytes.
    let value = &value[..value.len().min(cap.saturating_add(4))];
    match escape {
        Escape::Text => append_text(out, value),
        Escape::Json => append_json(out, value, false),
        Escape::Logfmt => append_json(out, value, true),
    }
    if out.len() - start > cap {
        cut(out, start, cap);
    }
}

/// Whether logfmt needs quotes around this value (go-logfmt's rule).
pub(super) fn logfmt_needs_quotes(value: &[u8]) -> bool {
    value == b"null"
        || value.iter().any(|&b| b <= b' ' || matches!(b, b'=' | b'"' | b'\\' | 0x7F..))
}

/// nginx's `escape=default` replaces this byte. What it leaves is plain in JSON as well.
fn is_special(byte: u8) -> bool {
    !(b' '..=b'~').contains(&byte) | (byte == b'"') | (byte == b'\\')
}

fn append_text(out: &mut Vec<u8>, value: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in value {
        if is_special(byte) {
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
            out.extend_from_slice(&[b'\\', b'x', high, low]);
        } else {
            out.push(byte);
        }
    }
}

fn append_json(out: &mut Vec<u8>, value: &[u8], ascii: bool) {
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            append_char(out, c, ascii);
        }
        if !chunk.invalid().is_empty() {
            append_char(out, char::REPLACEMENT_CHARACTER, ascii);
        }
    }
}

fn append_char(out: &mut Vec<u8>, c: char, ascii: bool) {
    match c {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        // DEL and C1 are valid JSON, but terminals obey them.
        c if c.is_control() || (ascii && !c.is_ascii()) => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.extend_from_slice(b"\\u");
                for shift in [12, 8, 4, 0] {
                    out.push(HEX[usize::from(*unit >> shift & 15)]);
                }
            }
        }
        c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// Cuts the escaped value that begins at `start` to `cap` bytes, marker included, never inside an
/// escape or a character.
fn cut(out: &mut Vec<u8>, start: usize, cap: usize) {
    let limit = start + cap.saturating_sub(MARKER.len());
    let mut end = start;
    loop {
        let unit = match out[end..] {
            [b'\\', b'x', ..] => 4,
            // A surrogate pair is one character.
            [b'\\', b'u', b'd', b'8'..=b'9' | b'a'..=b'b', ..] => 12,
            [b'\\', b'u', ..] => 6,
            [b'\\', ..] => 2,
            [0xF0..=0xFF, ..] => 4,
            [0xE0..=0xFF, ..] => 3,
            [0xC0..=0xFF, ..] => 2,
            _ => 1,
        };
        if end + unit > limit {
            break;
        }
        end += unit;
    }
    out.truncate(end);
    out.extend_from_slice(MARKER);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(value: &[u8], escape: Escape, cap: usize) -> String {
        let mut out = Vec::new();
        append(&mut out, value, escape, cap);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_escapes_exactly_the_bytes_that_nginx_escapes() {
        for byte in 0..=255u8 {
            let special = !matches!(byte, b' '..=b'~') || byte == b'"' || byte == b'\\';
            let expected =
                if special { format!("a\\x{byte:02X}b") } else { format!("a{}b", byte as char) };
            assert_eq!(escaped(&[b'a', byte, b'b'], Escape::Text, 99), expected);
        }
    }

    #[test]
    fn json_keeps_characters_and_replaces_invalid_bytes() {
        let cases: [(&[u8], &str); 7] = [
            (b"plain", "plain"),
            (b"a\"b\\c", r#"a\"b\\c"#),
            (b"\n\r\t\x00\x1b\x7f", r"\n\r\t\u0000\u001b\u007f"),
            ("é\u{85}".as_bytes(), r"é\u0085"),
            (b"\xff", "\u{fffd}"),
            (b"a\xe2\x82b", "a\u{fffd}b"),
            ("😀".as_bytes(), "😀"),
        ];
        for (value, expected) in cases {
            assert_eq!(escaped(value, Escape::Json, 99), expected);
        }
        assert_eq!(escaped("é😀".as_bytes(), Escape::Logfmt, 99), r"\u00e9\ud83d\ude00");
    }

    #[test]
    fn a_cut_never_falls_into_an_escape_or_a_character() {
        assert_eq!(escaped(b"abcdefgh", Escape::Text, 8), "abcdefgh");
        assert_eq!(escaped(b"abcdefghi", Escape::Text, 8), "abcde...");
        assert_eq!(escaped(b"a\xff\xff\xff", Escape::Text, 12), r"a\xFF\xFF...");
        assert_eq!(escaped(b"a\xff\xff\xff", Escape::Text, 11), r"a\xFF...");
        assert_eq!(escaped("ééééé".as_bytes(), Escape::Json, 8), "éé...");
        assert_eq!(escaped("😀😀".as_bytes(), Escape::Json, 7), "😀...");
        assert_eq!(escaped("a😀😀".as_bytes(), Escape::Logfmt, 16), r"a\ud83d\ude00...");
        assert_eq!(escaped("a😀😀".as_bytes(), Escape::Logfmt, 15), "a...");
        assert_eq!(escaped(b"\"\"\"\"\"", Escape::Json, 8), r#"\"\"..."#);
    }
}
