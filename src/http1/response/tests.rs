//! Response heads as bytes on the wire, and what is made of each.

use super::*;

const LIMITS: Limits = Limits { head: 64 << 10, fields: 100 };

fn parse(
    input: impl AsRef<[u8]>,
    method: &str,
) -> (ResponseHead, Result<Option<usize>, Violation>) {
    let mut head = ResponseHead::default();
    let result = head.parse(input.as_ref(), method.as_bytes(), &LIMITS);
    (head, result)
}

/// A whole head that must be accepted, in answer to this method.
fn accept_for(method: &str, input: impl AsRef<[u8]>) -> ResponseHead {
    let input = input.as_ref();
    let (head, result) = parse(input, method);
    assert_eq!(result, Ok(Some(input.len())), "{}", input.escape_ascii());
    head
}

fn accept(input: impl AsRef<[u8]>) -> ResponseHead {
    accept_for("GET", input)
}

fn assert_refused(input: impl AsRef<[u8]>) {
    let input = input.as_ref();
    let (head, result) = parse(input, "GET");
    let violation = result.expect_err(&input.escape_ascii().to_string());
    assert_eq!(violation.reason, Reason::InvalidResponse);
    assert!(violation.rule.contains("RFC 9"), "{}", violation.rule);
    assert!(head.bytes.is_empty() && head.fields.is_empty());
}

/// `HTTP/1.1 200 OK` with these field lines.
fn ok(lines: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n")
}

#[test]
fn common_head_is_read_as_received() {
    let head = accept(ok(
        "Server: gunicorn\r\nContent-Length: 5\r\nSet-Cookie: a=1; Path=/\r\nset-cookie: b=2, x\r\n",
    ));
    assert_eq!((head.version, head.status), (Version::Http11, 200));
    assert_eq!(head.reason.of(&head.bytes), b"OK");
    assert_eq!((head.body, head.content_length), (ResponseBody::Length(5), Some(5)));
    assert!(head.keep_alive && !head.stream && !head.is_informational());
    let cookies: Vec<_> = head.fields[2..].iter().map(|f| f.value.of(&head.bytes)).collect();
    assert_eq!(cookies, [&b"a=1; Path=/"[..], b"b=2, x"]);
    assert_eq!(head.get(FieldId::ContentLength), Some(&b"5"[..]));
}

#[test]
fn what_follows_a_head_is_left_alone() {
    let first = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let (head, result) = parse(format!("{first}{}", ok("")), "GET");
    assert_eq!(result, Ok(Some(first.len())));
    assert!(head.is_informational());
    assert_eq!(head.bytes, first.as_bytes());
}

#[test]
fn every_prefix_of_a_valid_head_asks_for_more() {
    for head in [ok("Content-Length: 5\r\nX:\r\n"), "HTTP/1.0 404\r\n\r\n".into()] {
        for end in 0..head.len() {
            assert_eq!(parse(&head[..end], "GET").1, Ok(None), "{:?}", &head[..end]);
        }
        accept(head);
    }
}

#[test]
fn status_line_is_strict() {
    for (line, version, status, reason) in [
        ("HTTP/1.1 200 OK", Version::Http11, 200, &b"OK"[..]),
        ("HTTP/1.0 200 OK", Version::Http10, 200, b"OK"),
        ("HTTP/1.2 200 OK", Version::Http11, 200, b"OK"),
        ("HTTP/1.1 200 ", Version::Http11, 200, b""),
        ("HTTP/1.1 200", Version::Http11, 200, b""),
        ("HTTP/1.1 404 Not  Found", Version::Http11, 404, b"Not  Found"),
        ("HTTP/1.1 299 Odd", Version::Http11, 299, b"Odd"),
        ("HTTP/1.1 999 Odd", Version::Http11, 999, b"Odd"),
        ("HTTP/1.1 200 \u{e9}\t", Version::Http11, 200, b"\xc3\xa9\t"),
    ] {
        let head = accept(format!("{line}\r\n\r\n"));
        assert_eq!((head.version, head.status), (version, status), "{line}");
        assert_eq!(head.reason.of(&head.bytes), reason, "{line}");
    }
    for line in [
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 099 OK",
        "HTTP/1.1 000 OK",
        "HTTP/1.1 abc OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1\t200 OK",
        "HTTP/1.1 200\tOK",
        "HTTP/1.1 200OK",
        "HTTP/1.1 -20 OK",
        "HTTP/1.1",
        "HTTP/1.10 200 OK",
        "HTTP/2.0 200 OK",
        "HTTP/9.9 200 OK",
        "http/1.1 200 OK",
        " HTTP/1.1 200 OK",
        "HTTP/1.1 200 O\0K",
        "HTTP/1.1 200 O\rK",
        "hello world",
        "",
    ] {
        assert_refused(format!("{line}\r\n"));
        assert_refused(format!("{line}\r\nContent-Length: 5\r\n\r\n"));
    }
    // Known before the line is complete.
    for start in ["hello", "HTTP/2", "\0", "HTTQ"] {
        assert_refused(start);
    }
}

#[test]
fn field_lines_are_strict() {
    for lines in [
        "nonsense\r\n",
        "Foo Bar: x\r\n",
        ": x\r\n",
        " X: y\r\n",
        "X-F: a\r\n  b\r\n",
        "X-A: a\rX-Inj: b\r\n",
        "X-A: a\0b\r\n",
        "X-A: a\x01b\r\n",
        "X-A: a\nX-Inj: b\r\n",
        "X-\0A: b\r\n",
        "X-A\x0c : b\r\n",
    ] {
        assert_refused(ok(lines));
    }
    assert_refused("HTTP/1.1 200 OK\nContent-Length: 0\n\n");
    assert_refused("HTTP/1.1 200 OK\r\nContent-Length: 0\n");
    let head = accept(b"HTTP/1.1 200 OK\r\nX-O: caf\xc3\xa9\xff\r\nX_Y: z\r\n\r\n");
    assert_eq!(head.fields[0].value.of(&head.bytes), b"caf\xc3\xa9\xff");
}

#[test]
fn whitespace_before_a_colon_is_removed() {
    let head = accept(ok("X-A : b\r\nContent-Length \t: 5\r\n"));
    assert_eq!(head.fields[0].name.of(&head.bytes), b"X-A");
    assert_eq!(head.body, ResponseBody::Length(5));
}

#[test]
fn content_length_is_one_number() {
    for (lines, expected) in [
        ("Content-Length: 5\r\n", 5),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 5),
        ("Content-Length: 5, 5,5\r\n", 5),
        ("Content-Length: 05\r\nContent-Length: 5\r\n", 5),
        ("Content-Length: 18446744073709551615\r\n", u64::MAX),
    ] {
        let head = accept(ok(lines));
        assert_eq!(head.body, ResponseBody::Length(expected), "{lines:?}");
        assert_eq!(head.content_length, Some(expected), "{lines:?}");
    }
    for value in
        ["abc", "", "0x5", "-1", "+5", "5,", ",5", "5, 6", "5 5", "99999999999999999999999"]
    {
        assert_refused(ok(&format!("Content-Length: {value}\r\n")));
        // Also where no body follows: it would go to the client.
        assert_refused(format!("HTTP/1.1 304 Not Modified\r\nContent-Length: {value}\r\n\r\n"));
    }
    assert_refused(ok("Content-Length: 5\r\nContent-Length: 6\r\n"));
}

#[test]
fn transfer_encoding_is_chunked_or_refused() {
    for value in ["chunked", "Chunked", "\tchunked "] {
        let head = accept(ok(&format!("Transfer-Encoding:{value}\r\n")));
        assert_eq!(head.body, ResponseBody::Chunked, "{value:?}");
        assert!(head.keep_alive);
    }
    for value in ["", "gzip", "gzip, chunked", "chunked, chunked", "identity", "chunked;q=1", "cow"]
    {
        assert_refused(ok(&format!("Transfer-Encoding: {value}\r\n")));
    }
    assert_refused(ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"));
    assert_refused("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
}

#[test]
fn chunks_decide_beside_a_length_and_end_the_connection() {
    for lines in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    ] {
        let head = accept(ok(lines));
        assert_eq!((head.body, head.content_length), (ResponseBody::Chunked, None));
        assert!(!head.keep_alive);
    }
    assert_refused(ok("Transfer-Encoding: chunked\r\nContent-Length: x\r\n"));
}

#[test]
fn status_and_method_decide_whether_a_body_follows() {
    const LENGTH: &str = "Content-Length: 1234\r\n";
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
    for (method, status, lines, body, length) in [
        ("GET", 200, "", ResponseBody::Close, None),
        ("GET", 200, "Content-Length: 0\r\n", ResponseBody::None, Some(0)),
        ("HEAD", 200, "", ResponseBody::None, None),
        ("HEAD", 200, LENGTH, ResponseBody::None, Some(1234)),
        ("HEAD", 200, CHUNKED, ResponseBody::None, None),
        ("head", 200, LENGTH, ResponseBody::Length(1234), Some(1234)),
        ("GET", 304, LENGTH, ResponseBody::None, Some(1234)),
        ("GET", 304, "", ResponseBody::None, None),
        ("GET", 204, LENGTH, ResponseBody::None, None),
        ("GET", 204, CHUNKED, ResponseBody::None, None),
        ("GET", 103, LENGTH, ResponseBody::None, None),
        ("GET", 101, "", ResponseBody::None, None),
        ("GET", 205, LENGTH, ResponseBody::Length(1234), Some(1234)),
        ("POST", 500, LENGTH, ResponseBody::Length(1234), Some(1234)),
    ] {
        let head = accept_for(method, format!("HTTP/1.1 {status} x\r\n{lines}\r\n"));
        assert_eq!((head.body, head.content_length), (body, length), "{method} {status} {lines}");
    }
}

#[test]
fn persistence_follows_version_and_connection_and_framing() {
    for (version, lines, expected) in [
        ("HTTP/1.1", "Content-Length: 5\r\n", true),
        ("HTTP/1.1", "Content-Length: 5\r\nConnection: close\r\n", false),
        ("HTTP/1.1", "Content-Length: 5\r\nConnection: x\r\nConnection: Close\r\n", false),
        ("HTTP/1.1", "", false),
        ("HTTP/1.0", "Content-Length: 5\r\n", false),
        ("HTTP/1.0", "Content-Length: 5\r\nConnection: Keep-Alive\r\n", true),
        ("HTTP/1.0", "Connection: Keep-Alive\r\n", false),
    ] {
        let head = accept(format!("{version} 200 OK\r\n{lines}\r\n"));
        assert_eq!(head.keep_alive, expected, "{version} {lines:?}");
    }
}

#[test]
fn connection_names_are_listed() {
    let head = accept(ok("Connection: X-Hop, keep-alive, Upgrade, Set-Cookie\r\n"));
    let names: Vec<_> = head.connection_names.iter().map(|name| name.of(&head.bytes)).collect();
    assert_eq!(names, [&b"X-Hop"[..], b"Set-Cookie"]);
    assert_refused(ok(&format!("Connection: {}\r\n", "x,".repeat(101))));
}

#[test]
fn streams_are_known_by_type_or_by_order_of_the_app() {
    for (lines, expected) in [
        ("Content-Type: text/event-stream\r\n", true),
        ("Content-Type: Text/Event-Stream; charset=utf-8\r\n", true),
        ("Content-Type: text/event-stream ;x\r\n", true),
        ("Content-Type: text/event-streams\r\n", false),
        ("Content-Type: text/html; x=text/event-stream\r\n", false),
        ("X-Accel-Buffering: no\r\n", true),
        ("X-Accel-Buffering: NO\r\n", true),
        ("X-Accel-Buffering: yes\r\n", false),
        ("X-Accel-Buffering: maybe\r\n", false),
        ("Content-Type: text/event-stream\r\nX-Accel-Buffering: yes\r\n", false),
        ("X-Accel-Buffering: yes\r\nContent-Type: text/event-stream\r\n", false),
    ] {
        assert_eq!(accept(ok(lines)).stream, expected, "{lines:?}");
    }
}

#[test]
fn large_heads_pass_up_to_the_limits() {
    accept(ok(&format!("X: {}\r\nY: {}\r\n", "v".repeat(8000), "w".repeat(8000))));
    let many: String = (0..100).map(|i| format!("X-{i}: v\r\n")).collect();
    assert_eq!(accept(ok(&many)).fields.len(), 100);
    assert_refused(ok(&format!("{many}X: y\r\n")));
    assert_refused(format!("HTTP/1.1 200 OK\r\n{many}X: y\r\n"));
    assert_refused(ok(&format!("X: {}\r\n", "v".repeat(LIMITS.head))));
    assert_refused(format!("HTTP/1.1 200 OK\r\nX: {}", "v".repeat(LIMITS.head)));
    assert_refused(format!("HTTP/1.1 200 {}", "v".repeat(LIMITS.head)));
    let line = format!("HTTP/1.1 200 {}", "v".repeat(LIMITS.head));
    assert_eq!(parse(&line[..LIMITS.head - 1], "GET").1, Ok(None));
    assert_refused(&line[..LIMITS.head]);
}

#[test]
fn a_head_value_is_reused_without_traces_of_the_last() {
    let mut head = accept(ok("Content-Type: text/event-stream\r\nConnection: x\r\n"));
    let second = b"HTTP/1.0 204\r\n\r\n";
    head.parse(second, b"GET", &LIMITS).unwrap();
    assert_eq!(format!("{head:?}"), format!("{:?}", accept(second)));
}
