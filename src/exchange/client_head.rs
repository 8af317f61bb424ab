//! The response head as the client gets it. Pure: no I/O, no clock.
//!
//! The exchange calls `write` once for the final head, `write_informational` for each 1xx before it
//! and `last_chunk` for the trailers behind its body. What must stay true: exactly one statement of
//! where the body ends, and it is ours.

use std::borrow::Cow;

use crate::exchange::reply::phrase;
use crate::http1::{Field, FieldId, LAST_CHUNK, Lines, ResponseHead, Span, Version};

/// How the body goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body follows. `Some(n)`: a Content-Length is said all the same (HEAD, 304, or 0).
    None(Option<u64>),
    Length(u64),
    Chunked,
    /// HTTP/1.0 stream: ends with the connection.
    Close,
}

/// What happens to the body's coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    AsItCame,
    /// As it came, but another client would get it compressed: caches are told.
    Varies,
    Gzip,
}

/// What `write` needs beside the app's head.
pub struct ClientHead<'a> {
    /// Version of the request.
    pub version: Version,
    pub framing: Framing,
    /// The connection stays open after this response.
    pub keep_alive: bool,
    /// The trailers will follow, so the Trailer field that announces them passes.
    pub trailers: bool,
    /// `Date` line value, for responses of an app that sent none.
    pub date: &'a [u8; 29],
    pub coding: Coding,
}

const NOT_MODIFIED: u16 = 304;
const UPGRADE_REQUIRED: u16 = 426;

/// Appends the head, final empty line included.
pub fn write(out: &mut Vec<u8>, head: &ResponseHead, with: &ClientHead<'_>) {
    out.reserve(head.bytes.len() + 160);
    status_line(out, head);
    let (mut date_came, mut vary_came) = (false, false);
    let gzip = with.coding == Coding::Gzip;
    let mut lines = Lines::of(&head.bytes);
    let mut names_protocol = false;
    let is_announced = |field: &Field| match field.id {
        FieldId::Trailer => with.trailers,
        // It must say what the client would have to speak (RFC 9110, 15.5.22).
        FieldId::Upgrade => head.status == UPGRADE_REQUIRED,
        _ => false,
    };
    for field in head.fields.iter().filter(|f| passes(head, f) || is_announced(f)) {
        match field.id {
            FieldId::Upgrade => names_protocol = true,
            // Offsets into the compressed body mean nothing to the app.
            FieldId::AcceptRanges if gzip => continue,
            // Another representation is only weakly the same (RFC 9110, 8.8.1), as nginx has it.
            FieldId::Etag if gzip && field.value.of(&head.bytes).starts_with(b"\"") => {
                lines.copy(out);
                out.extend_from_slice(b"ETag: W/");
                out.extend_from_slice(field.value.of(&head.bytes));
                out.extend_from_slice(b"\r\n");
                continue;
            }
            FieldId::Date => date_came = true,
            FieldId::Vary => vary_came |= names_accept_encoding(field.value.of(&head.bytes)),
            _ => {}
        }
        lines.add(out, field);
    }
    lines.copy(out);
    if with.coding != Coding::AsItCame && !vary_came {
        out.extend_from_slice(b"Vary: Accept-Encoding\r\n");
    }
    // Of a 304 the client has it already.
    if gzip && head.status != NOT_MODIFIED {
        out.extend_from_slice(b"Content-Encoding: gzip\r\n");
    }
    // RFC 9110, 6.6.1: a recipient with a clock adds it.
    if !date_came {
        out.extend_from_slice(b"Date: ");
        out.extend_from_slice(with.date);
        out.extend_from_slice(b"\r\n");
    }
    match with.framing {
        // RFC 9110, 8.6: never with a 204, whatever the app said.
        Framing::None(Some(length)) if head.status != 204 => content_length(out, length),
        Framing::None(_) | Framing::Close => {}
        Framing::Length(length) => content_length(out, length),
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    connection(out, with.version, with.keep_alive && with.framing != Framing::Close);
    if names_protocol {
        out.extend_from_slice(b"Connection: upgrade\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a 1xx head (103 and the like) for an HTTP/1.1 client: status line, end-to-end fields,
/// empty line.
pub fn write_informational(out: &mut Vec<u8>, head: &ResponseHead) {
    out.reserve(head.bytes.len() + 32);
    status_line(out, head);
    let mut lines = Lines::of(&head.bytes);
    head.fields.iter().filter(|f| passes(head, f)).for_each(|field| lines.add(out, field));
    lines.copy(out);
    out.extend_from_slice(b"\r\n");
}

/// Appends the app's 101, with the protocol that it has chosen.
pub fn write_switching(out: &mut Vec<u8>, head: &ResponseHead) {
    out.reserve(head.bytes.len() + 32);
    status_line(out, head);
    let mut lines = Lines::of(&head.bytes);
    let chosen = |f: &&Field| f.id == FieldId::Upgrade || passes(head, f);
    head.fields.iter().filter(chosen).for_each(|field| lines.add(out, field));
    lines.copy(out);
    out.extend_from_slice(b"Connection: upgrade\r\n\r\n");
}

/// The end of a chunked body: the app's trailer lines (`Chunked::trailers`) but for those that must
/// not come so late (RFC 9110, 6.5.1) or are of the app's connection.
pub fn last_chunk(head: &ResponseHead, lines: &[u8]) -> Cow<'static, [u8]> {
    let mut out = Vec::new();
    for line in lines.split_inclusive(|&b| b == b'\n') {
        let name = &line[..memchr::memchr(b':', line).unwrap_or(0)];
        let is_named = |n: &Span| name.eq_ignore_ascii_case(n.of(&head.bytes));
        if is_trailer(name) && !head.connection_names.iter().any(is_named) {
            out.extend_from_slice(line);
        }
    }
    match out.as_slice() {
        [] => Cow::Borrowed(LAST_CHUNK),
        lines => Cow::Owned([b"0\r\n", lines, b"\r\n"].concat()),
    }
}

/// Whether a field may come behind the body: not if framing, routing, authentication, caching or the
/// content's format depend on it (RFC 9110, 6.5.1). Content-Digest is made for it (RFC 9530, 2).
fn is_trailer(name: &[u8]) -> bool {
    const FORBIDDEN: &[&str] = &[
        "age",
        "authentication-info",
        "authorization",
        "cache-control",
        "connection",
        "cookie",
        "date",
        "expires",
        "forwarded",
        "host",
        "keep-alive",
        "location",
        "max-forwards",
        "pragma",
        "range",
        "retry-after",
        "set-cookie",
        "strict-transport-security",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vary",
        "via",
        "warning",
        "www-authenticate",
    ];
    const PREFIXES: &[&str] = &["access-control-", "content-", "proxy-", "x-accel-"];
    let begins = |prefix: &&str| {
        name.get(..prefix.len()).is_some_and(|n| n.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    is("content-digest") || !FORBIDDEN.iter().any(|n| is(n)) && !PREFIXES.iter().any(begins)
}

/// Appends the Connection line that the client's version needs (RFC 9112, 9.3).
pub(crate) fn connection(out: &mut Vec<u8>, version: Version, keep_alive: bool) {
    match (version, keep_alive) {
        (_, false) => out.extend_from_slice(b"Connection: close\r\n"),
        (Version::Http10, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (Version::Http11, true) => {}
    }
}

/// Our own version, also towards HTTP/1.0 clients (RFC 9110, 6.2). The reason phrase is never left
/// empty: Heroku's router answers 503 (H17) to a status line without.
fn status_line(out: &mut Vec<u8>, head: &ResponseHead) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(head.status).as_bytes());
    out.extend_from_slice(b" ");
    match head.reason.of(&head.bytes) {
        [] => out.extend_from_slice(phrase(head.status).as_bytes()),
        reason => out.extend_from_slice(reason),
    }
    out.extend_from_slice(b"\r\n");
}

/// End-to-end fields pass; those of the app's connection and its framing do not (RFC 9110, 7.6.1),
/// nor does what the app said to us.
fn passes(head: &ResponseHead, field: &Field) -> bool {
    match field.id {
        FieldId::Connection
        | FieldId::ContentLength
        | FieldId::KeepAlive
        | FieldId::ProxyConnection
        | FieldId::Te
        | FieldId::Trailer
        | FieldId::TransferEncoding
        | FieldId::Upgrade
        | FieldId::XAccelBuffering => false,
        _ => {
            let name = field.name.of(&head.bytes);
            !head.connection_names.iter().any(|n| name.eq_ignore_ascii_case(n.of(&head.bytes)))
        }
    }
}

fn names_accept_encoding(vary: &[u8]) -> bool {
    vary.split(|&b| b == b',')
        .map(<[u8]>::trim_ascii)
        .any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"))
}

fn content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::Limits;

    const DATE: &[u8; 29] = b"Sun, 06 Nov 1994 08:49:37 GMT";

    fn response(text: &str) -> ResponseHead {
        let mut head = ResponseHead::default();
        let input = text.replace('\n', "\r\n") + "\r\n";
        let limits = Limits { head: 1 << 20, fields: 100 };
        assert_eq!(head.parse(input.as_bytes(), b"GET", &limits), Ok(Some(input.len())), "{text}");
        head
    }

    fn written(text: &str, version: Version, framing: Framing, keep_alive: bool) -> String {
        let mut out = Vec::new();
        write(
            &mut out,
            &response(text),
            &ClientHead {
                version,
                framing,
                keep_alive,
                trailers: false,
                date: DATE,
                coding: Coding::AsItCame,
            },
        );
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let parsed = httparse::Response::new(&mut fields).parse(&out);
        assert_eq!(parsed, Ok(httparse::Status::Complete(out.len())));
        String::from_utf8(out).unwrap().replace("\r\n", "\n")
    }

    #[test]
    fn end_to_end_fields_keep_their_order_bytes_and_case() {
        let fields = "Server: gunicorn\ndate: Mon, 07 Nov 1994 08:49:37 GMT\nSet-Cookie: a=1; Path=/\n\
                      X-Powered_By: t\nset-cookie: b=2, x\nX-O: caf\u{e9}\nX-Empty: \n\
                      Server-Timing: db;dur=1.5\nFly-Replay: region=sjc\nVia: 1.1 inner\n";
        let text = format!("HTTP/1.1 200 OK\n{fields}Content-Length: 5\n");
        let head = written(&text, Version::Http11, Framing::Length(5), true);
        assert_eq!(head, format!("HTTP/1.1 200 OK\n{fields}Content-Length: 5\n\n"));
    }

    #[test]
    fn fields_of_the_apps_connection_and_framing_end_here() {
        let head = written(
            "HTTP/1.1 200 OK\nConnection: keep-alive, X-Hop\nX-Hop: 1\nX-Hop2: 1\n\
             Keep-Alive: max=777\nProxy-Connection: keep-alive\nTransfer-Encoding: chunked\n\
             Upgrade: h2c\nTE: a\nTrailer: X-T\nX-Accel-Buffering: no\n",
            Version::Http11,
            Framing::Chunked,
            true,
        );
        let expected =
            "X-Hop2: 1\nDate: Sun, 06 Nov 1994 08:49:37 GMT\nTransfer-Encoding: chunked\n\n";
        assert_eq!(head, format!("HTTP/1.1 200 OK\n{expected}"));
    }

    #[test]
    fn a_426_names_the_protocol_that_it_wants() {
        let text = "HTTP/1.1 426 x\nUpgrade: websocket\nConnection: Upgrade\nDate: d\n";
        let head = written(text, Version::Http11, Framing::Length(0), true);
        let upgrade = "Upgrade: websocket\nDate: d\nContent-Length: 0\nConnection: upgrade\n\n";
        assert_eq!(head, format!("HTTP/1.1 426 x\n{upgrade}"));
        // Nothing was named.
        let head = written("HTTP/1.1 426 x\nDate: d\n", Version::Http11, Framing::None(None), true);
        assert_eq!(head, "HTTP/1.1 426 x\nDate: d\n\n");
    }

    #[test]
    fn the_body_ends_where_one_line_says() {
        let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\n";
        for (status, framing, line) in [
            ("200 OK", Framing::Length(5), "Content-Length: 5\n"),
            ("200 OK", Framing::Length(u64::MAX), "Content-Length: 18446744073709551615\n"),
            ("200 OK", Framing::Chunked, "Transfer-Encoding: chunked\n"),
            ("200 OK", Framing::Close, "Connection: close\n"),
            ("200 OK", Framing::None(Some(1234)), "Content-Length: 1234\n"),
            ("200 OK", Framing::None(None), ""),
            ("304 Not Modified", Framing::None(Some(1234)), "Content-Length: 1234\n"),
            ("204 No Content", Framing::None(Some(0)), ""),
        ] {
            let text = format!("HTTP/1.1 {status}\nContent-Length: 7\n");
            let head = written(&text, Version::Http11, framing, true);
            assert_eq!(head, format!("HTTP/1.1 {status}\n{date}{line}\n"), "{framing:?}");
        }
    }

    #[test]
    fn connection_is_said_as_the_clients_version_needs_it() {
        for (version, keep_alive, framing, line) in [
            (Version::Http11, true, Framing::Length(5), ""),
            (Version::Http11, false, Framing::Length(5), "Connection: close\n"),
            (Version::Http10, true, Framing::Length(5), "Connection: keep-alive\n"),
            (Version::Http10, false, Framing::Length(5), "Connection: close\n"),
            (Version::Http10, true, Framing::Close, "Connection: close\n"),
        ] {
            let head =
                written("HTTP/1.1 200 OK\nConnection: close\n", version, framing, keep_alive);
            assert!(head.starts_with("HTTP/1.1 200 OK\n"), "{head}");
            let lines: String =
                head.split_inclusive('\n').filter(|l| l.starts_with("Connection")).collect();
            assert_eq!(lines, line, "{version:?} {keep_alive}");
        }
    }

    #[test]
    fn the_status_line_always_has_a_reason_phrase() {
        for (line, expected) in [
            ("HTTP/1.1 200 Fine", "HTTP/1.1 200 Fine"),
            ("HTTP/1.0 404 NOT FOUND", "HTTP/1.1 404 NOT FOUND"),
            ("HTTP/1.1 404 ", "HTTP/1.1 404 Not Found"),
            ("HTTP/1.1 404", "HTTP/1.1 404 Not Found"),
            ("HTTP/1.1 299 ", "HTTP/1.1 299 Unknown"),
            ("HTTP/1.1 599", "HTTP/1.1 599 Unknown"),
        ] {
            let text = format!("{line}\nContent-Length: 0\n");
            let head = written(&text, Version::Http11, Framing::Length(0), true);
            assert_eq!(head.lines().next(), Some(expected));
        }
    }

    #[test]
    fn an_informational_head_has_fields_but_no_framing() {
        let mut out = b"before".to_vec();
        let head = response(
            "HTTP/1.1 103 Early Hints\nLink: </a>; rel=preload\nConnection: keep-alive\n\
             Content-Length: 5\n",
        );
        write_informational(&mut out, &head);
        let expected = b"beforeHTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn trailers_that_would_change_the_message_are_dropped() {
        let head = response("HTTP/1.1 200 OK\nConnection: X-Hop\n");
        for name in [
            "Content-Length",
            "transfer-encoding",
            "Host",
            "SET-COOKIE",
            "Authorization",
            "WWW-Authenticate",
            "Proxy-Authenticate",
            "Content-Type",
            "Content-Encoding",
            "Content-Range",
            "Trailer",
            "TE",
            "Cache-Control",
            "Location",
            "Vary",
            "Date",
            "Connection",
            "x-hop",
            "Access-Control-Allow-Origin",
        ] {
            let lines = format!("{name}: 1\r\n");
            assert_eq!(&*last_chunk(&head, lines.as_bytes()), LAST_CHUNK, "{name}");
        }
        let lines = b"X-Sum: 1\r\nSet-Cookie: a\r\ngrpc-status:0\r\nContent-Digest: c\r\n";
        let kept = b"0\r\nX-Sum: 1\r\ngrpc-status:0\r\nContent-Digest: c\r\n\r\n";
        assert_eq!(&*last_chunk(&head, lines), kept);
        assert_eq!(&*last_chunk(&head, b""), LAST_CHUNK);
    }

    #[test]
    fn whatever_the_app_says_the_client_gets_one_framing() {
        let names = "Connection Content-Length Transfer-Encoding Keep-Alive Trailer TE Upgrade \
                     X-Accel-Buffering Date X-Hop Set-Cookie Proxy-Connection Content-Type X_Y";
        let names: Vec<&str> = names.split(' ').collect();
        let values =
            ["", "5", "chunked", "close, x-hop, date", "keep-alive", "no", "a b\t\u{e9}", "x: y"];
        let framings = [
            Framing::None(None),
            Framing::None(Some(3)),
            Framing::Length(3),
            Framing::Chunked,
            Framing::Close,
        ];
        let mut random = fastrand::Rng::with_seed(3);
        let mut accepted = 0;
        for _ in 0..20_000 {
            let status = random.choice([200, 204, 304, 404, 599]).unwrap();
            let mut text = format!("HTTP/1.1 {status} \r\n");
            for _ in 0..random.usize(..8) {
                let (name, value) =
                    (random.choice(&names).unwrap(), random.choice(values).unwrap());
                text += &format!("{name}: {value}\r\n");
            }
            text += "\r\n";
            let mut head = ResponseHead::default();
            let limits = Limits { head: 1 << 20, fields: 100 };
            let Ok(Some(_)) = head.parse(text.as_bytes(), b"GET", &limits) else { continue };
            accepted += 1;
            let framing = random.choice(framings).unwrap();
            let version = random.choice([Version::Http10, Version::Http11]).unwrap();
            let mut out = Vec::new();
            let with = ClientHead {
                version,
                framing,
                keep_alive: random.bool(),
                trailers: false,
                date: DATE,
                coding: Coding::AsItCame,
            };
            write(&mut out, &head, &with);

            let mut fields = [httparse::EMPTY_HEADER; 100];
            let mut parsed = httparse::Response::new(&mut fields);
            assert_eq!(parsed.parse(&out), Ok(httparse::Status::Complete(out.len())), "{text}");
            let count = |name: &str| {
                parsed.headers.iter().filter(|f| f.name.eq_ignore_ascii_case(name)).count()
            };
            let said = (count("Content-Length"), count("Transfer-Encoding"));
            let expected = match framing {
                Framing::None(Some(_)) if status == 204 => (0, 0),
                Framing::None(Some(_)) | Framing::Length(_) => (1, 0),
                Framing::Chunked => (0, 1),
                Framing::None(None) | Framing::Close => (0, 0),
            };
            assert_eq!(said, expected, "{text}");
            assert!(count("Date") >= 1 && count("Connection") <= 1, "{text}");
            for name in ["Keep-Alive", "Trailer", "TE", "Upgrade", "X-Accel-Buffering"] {
                assert_eq!(count(name), 0, "{name} for {text}");
            }
        }
        assert!(accepted > 2_000, "{accepted}");
    }
}
