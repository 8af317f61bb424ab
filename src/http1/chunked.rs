//! Chunked transfer coding (RFC 9112, 7.1): a decoder that works in place, and the chunk head.
//!
//! The exchange decodes request and response bodies in the buffer that they were read into. Any
//! split of the input gives the same payload and the same verdict. Everything that costs us and
//! carries no payload is bounded: extensions and trailers.

use memchr::memchr;

use super::Violation;
use super::field::{BARE_CR, BARE_LF, Sender, field_line, is_tchar};
use crate::error::Reason;

/// Ends a chunked body that has no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Bytes of the extensions of one chunk.
const MAX_EXTENSION: u64 = 4 << 10;
/// Bytes by which all extensions of a body may exceed its payload.
const MAX_EXTENSIONS: u64 = 16 << 10;
/// Bytes and lines of the trailer section.
const MAX_TRAILERS: usize = 16 << 10;
const MAX_TRAILER_LINES: usize = 100;

/// Decoder of one chunked body.
#[derive(Debug)]
pub struct Chunked {
    state: State,
    /// Of a violation: `BadRequest`, or `InvalidResponse` for a body of the app.
    reason: Reason,
    /// Size of the chunk, while it is read; then what is left of its data.
    left: u64,
    /// Digits of the chunk size so far.
    digits: u8,
    /// Bytes of extensions: of this chunk, and of all.
    extension: u64,
    extensions: u64,
    /// Payload of the chunks so far.
    payload: u64,
    /// Trailer lines as received. Nothing is allocated where there are none.
    trailers: Vec<u8>,
    trailer_lines: usize,
    /// Offset in `trailers` of the line that is being read.
    line: usize,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    /// Behind `;`, before the name.
    Extension,
    Name,
    /// Whitespace behind a name: `=` or `;` must follow.
    NameSpace,
    /// Behind `=`.
    Value,
    Token,
    Quoted,
    /// Behind a backslash in a quoted string.
    Escaped,
    /// Behind a quoted string.
    QuotedEnd,
    /// Whitespace behind a size or a value: `;` must follow.
    Space,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line, or of the final CRLF.
    Line,
    Trailer,
    LastLf,
    Done,
}

/// What one call of `Chunked::decode` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Payload bytes, moved to the front of the buffer.
    pub payload: usize,
    /// Bytes of the input that were used up; less than the input only when `done`.
    pub consumed: usize,
    /// The last chunk and the trailer section are complete.
    pub done: bool,
}

impl Default for Chunked {
    /// A decoder for the body of a request.
    fn default() -> Chunked {
        Chunked::new(Reason::BadRequest)
    }
}

impl Chunked {
    /// A decoder whose violations have this reason.
    pub fn new(reason: Reason) -> Chunked {
        Chunked {
            state: State::Size,
            reason,
            left: 0,
            digits: 0,
            extension: 0,
            extensions: 0,
            payload: 0,
            trailers: Vec::new(),
            trailer_lines: 0,
            line: 0,
        }
    }

    /// Decodes `buf` in place. Any split of the input gives the same payload. After a violation
    /// the body is lost: nothing more is to be decoded.
    pub fn decode(&mut self, buf: &mut [u8]) -> Result<Decoded, Violation> {
        self.advance(buf).map_err(|rule| Violation { reason: self.reason, rule })
    }

    /// The trailer lines as received, each with its CRLF; their syntax was checked, their names
    /// were not. Complete when `decode` said `done`.
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    fn advance(&mut self, buf: &mut [u8]) -> Result<Decoded, &'static str> {
        let (mut at, mut payload) = (0, 0);
        while at < buf.len() && self.state != State::Done {
            match self.state {
                State::Data => {
                    let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len() - at);
                    if at != payload {
                        buf.copy_within(at..at + len, payload);
                    }
                    at += len;
                    payload += len;
                    self.left -= len as u64;
                    self.payload = self.payload.saturating_add(len as u64);
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                }
                State::Trailer => at += self.trailer(&buf[at..])?,
                State::Line if buf[at] != b'\r' => self.state = State::Trailer,
                _ => {
                    self.state = self.step(buf[at])?;
                    at += 1;
                }
            }
        }
        Ok(Decoded { payload, consumed: at, done: self.state == State::Done })
    }

    /// The state behind one byte of a size line or of a line end.
    fn step(&mut self, byte: u8) -> Result<State, &'static str> {
        use State::*;
        const NO_SIZE: &str = "chunk size is not a hexadecimal number (RFC 9112, 7.1)";
        const NO_EXTENSION: &str = "chunk extension is not valid (RFC 9112, 7.1.1)";
        if !matches!(self.state, Size | SizeLf | DataCr | DataLf | Line | LastLf) {
            self.extension += 1;
            self.extensions += 1;
            if self.extension > MAX_EXTENSION
                || self.extensions > self.payload.saturating_add(MAX_EXTENSIONS)
            {
                return Err("chunk extensions are too long (RFC 9112, 7.1.1)");
            }
        }
        if self.state == Size
            && let Some(digit) = (byte as char).to_digit(16)
        {
            if self.digits == 16 {
                return Err("chunk size has more than 16 digits (RFC 9112, 7.1)");
            }
            self.left = self.left << 4 | u64::from(digit);
            self.digits += 1;
            return Ok(Size);
        }
        Ok(match (self.state, byte) {
            (Size, _) if self.digits == 0 => return Err(NO_SIZE),

            (Size | Name | Token | QuotedEnd, b'\r') => SizeLf,
            (Size | Name | NameSpace | Token | QuotedEnd | Space, b';') => Extension,
            (Size | Token | QuotedEnd | Space, b' ' | b'\t') => Space,
            (Size, _) => return Err(NO_SIZE),
            (Space, _) => return Err("whitespace behind a chunk size (RFC 9112, 7.1)"),

            (Extension, b' ' | b'\t') => Extension,
            (Extension | Name, _) if is_tchar(byte) => Name,
            (Name | NameSpace, b' ' | b'\t') => NameSpace,
            (Name | NameSpace, b'=') => Value,
            (Value, b' ' | b'\t') => Value,
            (Value, b'"') => Quoted,
            (Value | Token, _) if is_tchar(byte) => Token,
            (Quoted, b'"') => QuotedEnd,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, b'\t' | b' '..=b'~' | 0x80..) => Quoted,
            (Extension | Name | NameSpace | Value | Token | Quoted | Escaped | QuotedEnd, _) => {
                return Err(NO_EXTENSION);
            }

            (SizeLf, b'\n') => {
                self.digits = 0;
                self.extension = 0;
                if self.left == 0 { Line } else { Data }
            }
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => Size,
            (Line, b'\r') => LastLf,
            (LastLf, b'\n') => Done,
            (DataCr, _) => return Err("chunk data without CRLF behind it (RFC 9112, 7.1)"),
            (SizeLf | DataLf | LastLf, _) => return Err(BARE_CR),
            (Line | Data | Trailer | Done, _) => unreachable!("`advance` handles these"),
        })
    }

    /// Takes trailer bytes up to the end of the line. Gives their number.
    fn trailer(&mut self, input: &[u8]) -> Result<usize, &'static str> {
        let end = memchr(b'\n', input).map(|lf| lf + 1);
        let taken = end.unwrap_or(input.len());
        if taken > MAX_TRAILERS - self.trailers.len() {
            return Err("trailer section is too long (RFC 9112, 7.1.2)");
        }
        self.trailers.extend_from_slice(&input[..taken]);
        if end.is_some() {
            let Some((b"\r\n", line)) =
                self.trailers[self.line..].split_last_chunk::<2>().map(|(line, end)| (end, line))
            else {
                return Err(BARE_LF);
            };
            field_line(line, 0, Sender::Client)?;
            self.trailer_lines += 1;
            if self.trailer_lines > MAX_TRAILER_LINES {
                return Err("too many trailer lines (RFC 9112, 7.1.2)");
            }
            self.line = self.trailers.len();
            self.state = State::Line;
        }
        Ok(taken)
    }
}

/// Writes `SIZE CRLF` (lower-case hex) and gives the used part of `out`.
pub fn chunk_head(size: usize, out: &mut [u8; 18]) -> &[u8] {
    out[16..].copy_from_slice(b"\r\n");
    let mut start = 16;
    let mut rest = size;
    loop {
        start -= 1;
        out[start] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 {
            return &out[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input` that comes in pieces of this size: payload, trailers, bytes used.
    fn decode(input: &[u8], piece: usize) -> Result<(Vec<u8>, Vec<u8>, usize, bool), Violation> {
        let mut chunked = Chunked::default();
        let (mut payload, mut consumed, mut done) = (Vec::new(), 0, false);
        for piece in input.chunks(piece) {
            let mut piece = piece.to_vec();
            let decoded = chunked.decode(&mut piece)?;
            payload.extend_from_slice(&piece[..decoded.payload]);
            consumed += decoded.consumed;
            done = decoded.done;
            if decoded.consumed < piece.len() {
                assert!(done, "input left though the body has no end");
                break;
            }
        }
        Ok((payload, chunked.trailers().to_vec(), consumed, done))
    }

    /// A whole body, at once and byte by byte.
    fn payload(input: impl AsRef<[u8]>) -> Vec<u8> {
        let input = input.as_ref();
        let whole = decode(input, input.len()).unwrap();
        assert!(whole.3, "{}", input.escape_ascii());
        assert_eq!(whole.2, input.len());
        for piece in 1..input.len().min(40) {
            assert_eq!(decode(input, piece), Ok(whole.clone()), "pieces of {piece}");
        }
        whole.0
    }

    fn rule(input: impl AsRef<[u8]>) -> &'static str {
        let input = input.as_ref();
        let violation = decode(input, input.len()).expect_err(&input.escape_ascii().to_string());
        assert_eq!(violation.reason, Reason::BadRequest);
        for piece in 1..input.len().min(40) {
            assert_eq!(decode(input, piece), Err(violation), "pieces of {piece}");
        }
        violation.rule
    }

    #[test]
    fn chunks_are_joined() {
        assert_eq!(payload("2\r\nhe\r\n3\r\nllo\r\n6\r\n world\r\n0\r\n\r\n"), b"hello world");
        assert_eq!(payload("0\r\n\r\n"), b"");
        assert_eq!(payload("000\r\n\r\n"), b"");
        assert_eq!(
            payload(format!("1A\r\n{0}\r\n1a\r\n{0}\r\n0\r\n\r\n", "a".repeat(26))),
            [b'a'; 52]
        );
        assert_eq!(payload("0000000000000005\r\n\r\n\r\n\r\r\n0\r\n\r\n"), b"\r\n\r\n\r");
    }

    #[test]
    fn nothing_behind_the_body_is_touched() {
        let mut buf = *b"5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n";
        let decoded = Chunked::default().decode(&mut buf).unwrap();
        assert_eq!(decoded, Decoded { payload: 5, consumed: 15, done: true });
        assert_eq!(&buf[..5], b"hello");
        assert_eq!(&buf[15..], b"GET / HTTP/1.1\r\n");
    }

    #[test]
    fn a_decoder_that_is_done_takes_nothing() {
        let mut chunked = Chunked::default();
        assert!(chunked.decode(&mut LAST_CHUNK.to_vec()).unwrap().done);
        let more = chunked.decode(&mut [b'x']).unwrap();
        assert_eq!(more, Decoded { payload: 0, consumed: 0, done: true });
        assert!(chunked.decode(&mut []).unwrap().done);
    }

    #[test]
    fn a_body_without_its_end_is_not_done() {
        let body = b"5;a=\"b\"\r\nhello\r\n0\r\nX: y\r\n\r\n";
        for end in 0..body.len() {
            assert!(!decode(&body[..end], 99).unwrap().3, "{}", body[..end].escape_ascii());
        }
        // The request behind `0 CRLF` is a trailer at most.
        assert_eq!(rule("0\r\nGET /smug HTTP/1.1\r\n"), "field line without a colon (RFC 9112, 5)");
    }

    #[test]
    fn the_reason_is_the_callers() {
        let violation = Chunked::new(Reason::InvalidResponse).decode(b"x".to_vec().as_mut_slice());
        assert_eq!(violation.unwrap_err().reason, Reason::InvalidResponse);
    }

    #[test]
    fn sizes_are_hexadecimal_and_nothing_else() {
        for input in [
            "x\r\n",
            "\r\n",
            ";a\r\n",
            " 5\r\n",
            "0x5\r\n",
            "-5\r\n",
            "+5\r\n",
            "5g\r\n",
            "5.\r\n",
            "5\0\r\n",
            "HTTP/1.1 500 Internal Server Error\r\n",
        ] {
            assert_eq!(
                rule(input),
                "chunk size is not a hexadecimal number (RFC 9112, 7.1)",
                "{input:?}"
            );
        }
        for input in ["5 \r\n", "5\t\r\n", "5 5\r\n"] {
            assert_eq!(rule(input), "whitespace behind a chunk size (RFC 9112, 7.1)", "{input:?}");
        }
        for input in ["10000000000000005\r\n", "00000000000000005\r\n", "fffffffffffffffff"] {
            assert_eq!(
                rule(input),
                "chunk size has more than 16 digits (RFC 9112, 7.1)",
                "{input:?}"
            );
        }
        // The largest size counts down without wrapping.
        assert_eq!(decode(b"ffffffffffffffff\r\nhello", 99).unwrap().0, b"hello");
    }

    #[test]
    fn line_ends_are_crlf() {
        for input in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello!\r\n0\r\n\r\n",
            "5\r\nhello\rX0\r\n\r\n",
            "5\rhello\r\n0\r\n\r\n",
            "5\r\r\nhello\r\n0\r\n\r\n",
            "0\n\r\n",
            "0\r\n\n",
            "0\r\n\rX",
            "0\r\nX: y\n\r\n",
            "0\r\nX: y\r\n\n",
            "0\r\nX: a\rb\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
        ] {
            rule(input);
        }
    }

    #[test]
    fn extensions_are_checked_and_dropped() {
        for extension in [
            ";a",
            ";a=b",
            ";a=b;c=\"q;r\"",
            ";a=\"\\\"\\\\\t\u{e9}\"",
            ";a=\"\"",
            " ;a",
            "\t ; a = b ;c",
            ";a=\"b\" ;c",
        ] {
            let body = format!("5{extension}\r\nhello\r\n0{extension}\r\n\r\n");
            assert_eq!(payload(body), b"hello", "{extension:?}");
        }
        for extension in [
            ";",
            ";;",
            ";=b",
            ";a=",
            ";a==b",
            ";a b",
            ";a=b c",
            ";a=\"b",
            ";a=\"b\"c",
            ";a=\"b\0\"",
            ";\0",
            ";a\0",
            ";a=\x01",
            ";a\x7f",
            ";a=\"\\\r\n",
            ";a ",
            ";a=b ",
            ";a=b,c",
            ";(a)",
            ";\u{e9}",
        ] {
            rule(format!("5{extension}\r\nhello\r\n0\r\n\r\n"));
        }
    }

    #[test]
    fn extensions_are_bounded() {
        let of = |len: u64| format!("5;{}\r\nhello\r\n", "b".repeat(len as usize - 1));
        payload(of(MAX_EXTENSION) + "0\r\n\r\n");
        assert_eq!(rule(of(MAX_EXTENSION + 1)), "chunk extensions are too long (RFC 9112, 7.1.1)");
        assert_eq!(rule("1;aaaaaaaaaaaaaaaaaaa\r\nx\r\n".repeat(20000)), rule(of(65536)));
        // Beside much payload they are not out of proportion.
        let body = format!("400;{}\r\n{}\r\n", "b".repeat(500), "x".repeat(1024)).repeat(200);
        assert_eq!(decode(body.as_bytes(), 777).unwrap().0.len(), 200 << 10);
    }

    #[test]
    fn trailers_are_kept_apart() {
        let body = b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nContent-Length: 50\r\n\r\n";
        for piece in 1..body.len() {
            let (payload, trailers, _, done) = decode(body, piece).unwrap();
            assert_eq!((payload, done), (b"hello".to_vec(), true));
            assert_eq!(trailers, b"X-Sum: 1\r\nContent-Length: 50\r\n");
        }
    }

    #[test]
    fn trailers_are_fields_and_bounded() {
        for lines in
            ["nonsense\r\n", "X : y\r\n", " X: y\r\n", "X: y\r\n z\r\n", "X: \0\r\n", ": y\r\n"]
        {
            rule(format!("0\r\n{lines}\r\n"));
        }
        let lines = |count| "X: y\r\n".repeat(count);
        payload(format!("0\r\n{}\r\n", lines(MAX_TRAILER_LINES)));
        rule(format!("0\r\n{}\r\n", lines(MAX_TRAILER_LINES + 1)));
        rule(format!("0\r\nX: {}", "y".repeat(MAX_TRAILERS)));
    }

    #[test]
    fn chunk_heads_are_lower_case_hexadecimal() {
        let mut out = [0; 18];
        for (size, expected) in
            [(0, "0\r\n"), (10, "a\r\n"), (4096, "1000\r\n"), (usize::MAX, "ffffffffffffffff\r\n")]
        {
            assert_eq!(chunk_head(size, &mut out), expected.as_bytes());
        }
    }
}
