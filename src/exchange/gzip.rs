//! Compression of responses for clients that ask for it (option `gzip`), under nginx's conditions
//! (ngx_http_gzip_module with `gzip_proxied any`) and for all text-like types. Pure.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::http1::{Field, FieldId, RequestHead, ResponseBody, ResponseHead, Version};

/// Shorter bodies gain less than the head costs (nginx's buildpack: 512, thruster: 1024).
const MIN_LENGTH: u64 = 1024;

/// One response body on its way through the compressor.
pub(super) struct Gzip(Box<GzEncoder<Vec<u8>>>);

impl Gzip {
    pub(super) fn new(level: u32) -> Gzip {
        Gzip(Box::new(GzEncoder::new(Vec::new(), Compression::new(level))))
    }

    /// Compresses `payload` and gives what is ready to be sent. `flush`: all of it is (an event of a
    /// stream must not wait for the next one); `done`: it was the last.
    pub(super) fn push(&mut self, payload: &[u8], flush: bool, done: bool) -> io::Result<Vec<u8>> {
        self.0.write_all(payload)?;
        if done {
            self.0.try_finish()?;
        } else if flush {
            self.0.flush()?;
        }
        Ok(std::mem::take(self.0.get_mut()))
    }
}

/// The response would be compressed for a client that takes it, so caches must be told
/// (`Vary: Accept-Encoding`), whether or not this client does.
pub(super) fn compressible(request: &RequestHead, response: &ResponseHead) -> bool {
    let length = match response.body {
        ResponseBody::None if request.is_head() => response.content_length,
        ResponseBody::None => return false,
        ResponseBody::Length(n) => Some(n),
        ResponseBody::Chunked | ResponseBody::Close => None,
    };
    // As nginx: not for a part of something (206), which has the whole's offsets.
    matches!(response.status, 200 | 403 | 404)
        && length.is_none_or(|n| n >= MIN_LENGTH)
        && response.get(FieldId::ContentEncoding).is_none()
        && response.get(FieldId::ContentType).is_some_and(is_text)
        && !forbids_transform(&response.fields, &response.bytes)
        && !response.fields.iter().any(|f| is_digest(f.name.of(&response.bytes)))
}

/// This client gets it compressed; to HEAD the same is said as to GET (RFC 9110, 9.3.2).
pub(super) fn wanted(request: &RequestHead) -> bool {
    request.version == Version::Http11
        && accepts_gzip(elements(&request.fields, &request.bytes, FieldId::AcceptEncoding))
        && !forbids_transform(&request.fields, &request.bytes)
}

/// This 304 is of what the client has compressed, which it knows by the weak form of the app's ETag:
/// our own doing (`client_head::write`).
pub(super) fn is_of_compressed(request: &RequestHead, response: &ResponseHead) -> bool {
    let strong = response.get(FieldId::Etag).filter(|tag| tag.starts_with(b"\""));
    let Some(tag) = strong.filter(|_| response.status == 304) else { return false };
    let mut asked = request.fields.iter().filter(|f| {
        f.id == FieldId::Other && f.name.of(&request.bytes).eq_ignore_ascii_case(b"if-none-match")
    });
    let weak = |known: &[u8]| known.strip_prefix(b"W/") == Some(tag);
    asked.any(|f| f.value.of(&request.bytes).split(|&b| b == b',').any(|e| weak(e.trim_ascii())))
}

fn forbids_transform(fields: &[Field], bytes: &[u8]) -> bool {
    elements(fields, bytes, FieldId::CacheControl).any(|e| e.eq_ignore_ascii_case(b"no-transform"))
}

/// Says something of the very bytes of the body (RFC 9530, 2 and 3, and what it replaces).
fn is_digest(name: &[u8]) -> bool {
    [&b"content-digest"[..], b"repr-digest", b"digest", b"content-md5"]
        .iter()
        .any(|digest| name.eq_ignore_ascii_case(digest))
}

/// The members of all lines of a list field.
pub(super) fn elements<'a>(
    fields: &'a [Field],
    bytes: &'a [u8],
    id: FieldId,
) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |f| f.id == id)
        .flat_map(|f| f.value.of(bytes).split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// `gzip` with a weight that is not 0, or `*` where gzip is not named (RFC 9110, 12.5.3).
fn accepts_gzip<'a>(elements: impl Iterator<Item = &'a [u8]>) -> bool {
    let mut any = false;
    for element in elements {
        let (coding, weight) = match element.iter().position(|&b| b == b';') {
            Some(at) => (element[..at].trim_ascii(), element[at + 1..].trim_ascii()),
            None => (element, &b""[..]),
        };
        let refused = weight.len() >= 3
            && weight[..2].eq_ignore_ascii_case(b"q=")
            && weight[2..].iter().all(|b| matches!(b, b'0' | b'.'));
        if coding.eq_ignore_ascii_case(b"gzip") || coding.eq_ignore_ascii_case(b"x-gzip") {
            return !refused;
        }
        any |= coding == b"*" && !refused;
    }
    any
}

/// `text/*`, JSON, JavaScript, XML, and what is built on them.
fn is_text(content_type: &[u8]) -> bool {
    let media = content_type.split(|&b| b == b';').next().unwrap_or_default().trim_ascii();
    let media = media.to_ascii_lowercase();
    media.starts_with(b"text/")
        || media.ends_with(b"+json")
        || media.ends_with(b"+xml")
        || matches!(
            &media[..],
            b"application/json"
                | b"application/javascript"
                | b"application/x-javascript"
                | b"application/xml"
                | b"application/wasm"
                | b"application/manifest+json"
                | b"application/x-ndjson"
                | b"application/vnd.ms-fontobject"
                | b"font/ttf"
                | b"font/otf"
                | b"image/bmp"
                | b"image/x-icon"
        )
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::http1::Limits;

    const LIMITS: Limits = Limits { head: 4096, fields: 50 };

    fn request(fields: &str) -> RequestHead {
        let mut head = RequestHead::default();
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        head.parse(text.as_bytes(), &LIMITS).expect("valid");
        head
    }

    fn response(status: u16, fields: &str) -> ResponseHead {
        let mut head = ResponseHead::default();
        let text = format!("HTTP/1.1 {status} X\r\n{fields}\r\n");
        head.parse(text.as_bytes(), b"GET", &LIMITS).expect("valid");
        head
    }

    #[test]
    fn text_that_is_long_enough_and_not_encoded_is_compressed() {
        let html = "Content-Type: text/html; charset=utf-8\r\n";
        let rows = [
            (200, format!("{html}Content-Length: 1024\r\n"), true),
            (200, format!("{html}Content-Length: 1023\r\n"), false),
            (200, format!("{html}Transfer-Encoding: chunked\r\n"), true),
            (404, format!("{html}Content-Length: 5000\r\n"), true),
            (206, format!("{html}Content-Length: 5000\r\n"), false),
            (304, html.into(), false),
            (200, format!("{html}Content-Encoding: br\r\nContent-Length: 5000\r\n"), false),
            (200, format!("{html}Cache-Control: private, No-Transform\r\n"), false),
            (200, format!("{html}Content-Digest: sha-256=:YQ==:\r\n"), false),
            (200, format!("{html}repr-digest: sha-256=:YQ==:\r\n"), false),
            (200, format!("{html}Digest: sha-256=YQ==\r\n"), false),
            (200, format!("{html}Content-MD5: YQ==\r\n"), false),
            (200, format!("{html}X-Digest: a\r\n"), true),
            (200, "Content-Length: 5000\r\n".into(), false),
            (200, "Content-Type: image/png\r\nContent-Length: 5000\r\n".into(), false),
            (200, "Content-Type: application/json\r\nContent-Length: 5000\r\n".into(), true),
            (
                200,
                "Content-Type: application/problem+json\r\nContent-Length: 5000\r\n".into(),
                true,
            ),
            (200, "Content-Type: image/svg+xml\r\nContent-Length: 5000\r\n".into(), true),
            (200, "Content-Type: TEXT/CSS\r\nContent-Length: 5000\r\n".into(), true),
        ];
        for (status, fields, expected) in rows {
            assert_eq!(
                compressible(&request(""), &response(status, &fields)),
                expected,
                "{fields}"
            );
        }
    }

    #[test]
    fn only_a_client_that_asks_gets_it() {
        let rows = [
            ("Accept-Encoding: gzip, deflate, br\r\n", true),
            ("Accept-Encoding: br\r\nAccept-Encoding: GZIP\r\n", true),
            ("Accept-Encoding: gzip;q=0.5\r\n", true),
            ("Accept-Encoding: gzip;q=0\r\n", false),
            ("Accept-Encoding: gzip; q=0.000, *\r\n", false),
            ("Accept-Encoding: *\r\n", true),
            ("Accept-Encoding: *;q=0\r\n", false),
            ("Accept-Encoding: identity\r\n", false),
            ("Accept-Encoding: gzipped\r\n", false),
            ("Accept-Encoding: identity;q=1, *;q=0\r\n", false),
            ("Accept-Encoding: gzip\r\nCache-Control: no-transform\r\n", false),
            ("Accept-Encoding:\r\n", false),
            ("", false),
        ];
        for (fields, expected) in rows {
            assert_eq!(wanted(&request(fields)), expected, "{fields}");
        }
    }

    #[test]
    fn what_was_flushed_can_be_read_before_the_end() {
        let mut gzip = Gzip::new(2);
        let first = gzip.push(b"data: 1\n\n", true, false).unwrap();
        let mut reader = flate2::read::MultiGzDecoder::new(&first[..]);
        let mut text = [0; 9];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"data: 1\n\n");

        let mut all = first;
        all.extend(gzip.push(b"data: 2\n\n", true, false).unwrap());
        all.extend(gzip.push(b"", false, true).unwrap());
        let mut text = String::new();
        flate2::read::GzDecoder::new(&all[..]).read_to_string(&mut text).unwrap();
        assert_eq!(text, "data: 1\n\ndata: 2\n\n");
    }
}
