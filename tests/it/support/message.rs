//! HTTP/1 messages as the tests see them: the bytes, and the few facts that a test asks for.
//! Deliberately not the project's own codec: this one must not share its mistakes.

use std::io;

/// One message as it came off a socket.
#[derive(Debug, Default)]
pub(crate) struct Message {
    /// The head as received, final empty line included.
    pub(crate) head: String,
    /// The body, chunks joined.
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// Request line or status line.
    pub(crate) fn line(&self) -> &str {
        self.head.split("\r\n").next().unwrap()
    }

    /// Status code of a response.
    #[track_caller]
    pub(crate) fn status(&self) -> u16 {
        let code = self.line().split(' ').nth(1);
        code.and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status: {self:?}"))
    }

    /// Target of a request.
    pub(crate) fn target(&self) -> &str {
        self.line().split(' ').nth(1).unwrap()
    }

    /// Every value of a field, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v).collect()
    }

    /// The value of a field that may be there once.
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let values = self.all(name);
        assert!(values.len() < 2, "{name} is there {} times:\n{}", values.len(), self.head);
        values.first().copied()
    }

    /// Names and values in the order of the wire.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.head.split("\r\n").skip(1).filter(|line| !line.is_empty());
        lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name, value.trim_matches([' ', '\t']))
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads messages off a byte stream: `more` appends what comes next and gives its length, 0 at the
/// end.
pub(crate) struct Reader<F> {
    pub(crate) buffer: Vec<u8>,
    pub(crate) more: F,
}

impl<F: FnMut(&mut Vec<u8>) -> io::Result<usize>> Reader<F> {
    /// One head, or None when the stream ended before its first byte.
    pub(crate) fn head(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return Ok(Some(head.iter().map(|&b| b as char).collect()));
            }
            if (self.more)(&mut self.buffer)? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(cut_short()) };
            }
        }
    }

    /// Exactly `n` bytes, appended to `body`; what came before a cut is appended all the same.
    pub(crate) fn exact(&mut self, n: usize, body: &mut Vec<u8>) -> io::Result<()> {
        let end = body.len() + n;
        loop {
            let take = (end - body.len()).min(self.buffer.len());
            body.extend(self.buffer.drain(..take));
            if body.len() == end {
                return Ok(());
            }
            if (self.more)(&mut self.buffer)? == 0 {
                return Err(cut_short());
            }
        }
    }

    /// A chunked body to its last chunk and trailer section.
    pub(crate) fn chunks(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let line = self.line()?;
            let size = line.split(|&b| b == b';').next().unwrap();
            let size = std::str::from_utf8(size).ok();
            let size = size.and_then(|size| usize::from_str_radix(size, 16).ok());
            let Some(size) = size else {
                return Err(io::Error::other(format!("chunk size {:?}", line.escape_ascii())));
            };
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(());
            }
            self.exact(size, body)?;
            if !self.line()?.is_empty() {
                return Err(io::Error::other("no CRLF after a chunk"));
            }
        }
    }

    /// All that comes until the end of the stream.
    pub(crate) fn rest(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            body.append(&mut self.buffer);
            if (self.more)(&mut self.buffer)? == 0 {
                return Ok(());
            }
        }
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line = self.buffer[..end].to_vec();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            if (self.more)(&mut self.buffer)? == 0 {
                return Err(cut_short());
            }
        }
    }
}

/// `body` in chunks of `size` bytes, last chunk included.
pub(crate) fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.chunks(size) {
        out.extend(format!("{:x}\r\n", chunk.len()).bytes());
        out.extend(chunk);
        out.extend(b"\r\n");
    }
    out.extend(b"0\r\n\r\n");
    out
}

/// `n` bytes in which every position is recognisable: a lost, doubled or moved block shows.
pub(crate) fn pattern(n: usize) -> Vec<u8> {
    (0..n as u64 / 8 + 1)
        .flat_map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        .take(n)
        .collect()
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ended inside a message")
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
