//! Request heads as bytes on the wire, and what is made of each.

use super::*;
use crate::error::Reason::{
    BadRequest, ConnectMethod, Expectation, HeadTooLarge, TargetTooLong, UnknownCoding,
};

const LIMITS: Limits = Limits { head: 32 << 10, fields: 100 };

/// The verdict on bytes that come at once.
fn parse(input: impl AsRef<[u8]>) -> (RequestHead, Result<Option<usize>, Violation>) {
    let mut head = RequestHead::default();
    let result = head.parse(input.as_ref(), &LIMITS);
    (head, result)
}

/// A head that must be accepted whole.
fn accept(input: impl AsRef<[u8]>) -> RequestHead {
    let input = input.as_ref();
    let (head, result) = parse(input);
    assert_eq!(result, Ok(Some(input.len())), "{}", input.escape_ascii());
    head
}

/// The reason for which a head is refused.
fn refuse(input: impl AsRef<[u8]>) -> Reason {
    let input = input.as_ref();
    match parse(input).1 {
        Err(violation) => {
            assert!(violation.rule.contains("RFC 9"), "{}", violation.rule);
            violation.reason
        }
        other => panic!("{}: {other:?}", input.escape_ascii()),
    }
}

/// `GET / HTTP/1.1` with a Host and these field lines.
fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n")
}

fn post(lines: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n")
}

fn target(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n")
}

fn names(head: &RequestHead) -> Vec<&str> {
    let names = head.connection_names.iter();
    names.map(|name| std::str::from_utf8(name.of(&head.bytes)).unwrap()).collect()
}

#[test]
fn common_head_is_read_as_received() {
    let head =
        accept("GET /a?b=c HTTP/1.1\r\nHost: a.test:8080\r\nX-Empty:\r\nx-LIST:\t a, b \t\r\n\r\n");
    assert_eq!(head.method(), b"GET");
    assert_eq!(head.target(), b"/a?b=c");
    assert_eq!(head.path, head.target);
    assert_eq!(head.line.of(&head.bytes), b"GET /a?b=c HTTP/1.1");
    assert_eq!(head.version, Version::Http11);
    assert_eq!(head.authority, None);
    assert_eq!(head.body, RequestBody::None);
    assert!(head.keep_alive);
    assert!(!head.expect_continue && !head.te_trailers && !head.upgrade);
    let fields = head.fields.iter().map(|f| (f.name.of(&head.bytes), f.value.of(&head.bytes)));
    let expected: [(&[u8], &[u8]); 3] =
        [(b"Host", b"a.test:8080"), (b"X-Empty", b""), (b"x-LIST", b"a, b")];
    assert!(fields.eq(expected));
    assert_eq!(head.get(FieldId::Host), Some(&b"a.test:8080"[..]));
    assert_eq!(head.get(FieldId::Cookie), None);
}

#[test]
fn what_follows_a_head_is_left_alone() {
    let first = get("");
    for rest in ["GET /next HTTP/1.1\r\n", "\r\n\r\n", "body", "a\nb\0\r\r\n\r\n"] {
        let (head, result) = parse(format!("{first}{rest}"));
        assert_eq!(result, Ok(Some(first.len())), "{rest:?}");
        assert_eq!(head.bytes, first.as_bytes());
    }
}

#[test]
fn a_head_value_is_reused_without_traces_of_the_last() {
    let mut head = accept(post(
        "Content-Length: 5\r\nExpect: 100-continue\r\nTE: trailers\r\nConnection: x, close\r\n",
    ));
    let fresh = accept("OPTIONS * HTTP/1.0\r\n\r\n");
    head.parse(b"OPTIONS * HTTP/1.0\r\n\r\n", &LIMITS).unwrap();
    assert_eq!(format!("{head:?}"), format!("{fresh:?}"));
    head.parse(b"GET / HTTP/1.1\r\nHost:", &LIMITS).unwrap();
    assert_eq!(format!("{head:?}"), format!("{:?}", RequestHead::default()));
}

#[test]
fn every_prefix_of_a_valid_head_asks_for_more() {
    let heads = [
        get("User-Agent: x\r\nX: \t \r\n"),
        post("Transfer-Encoding: chunked\r\n"),
        format!("\r\n\r\n{}", get("")),
        "OPTIONS * HTTP/1.0\r\n\r\n".into(),
        target("http://b.test:80?q"),
    ];
    for head in &heads {
        for end in 0..head.len() {
            let (kept, result) = parse(&head[..end]);
            assert_eq!(result, Ok(None), "{:?}", &head[..end]);
            assert!(kept.bytes.is_empty());
        }
        accept(head);
    }
}

#[test]
fn empty_lines_before_a_request_are_skipped_up_to_eight() {
    let head = get("");
    for (count, expected) in [(1, true), (8, true), (9, false)] {
        let input = format!("{}{head}", "\r\n".repeat(count));
        let (parsed, result) = parse(&input);
        assert_eq!(result.is_ok(), expected, "{count}");
        if expected {
            assert_eq!(result, Ok(Some(input.len())));
            assert_eq!(parsed.bytes, head.as_bytes());
        }
    }
    assert_eq!(refuse(format!("\n{head}")), BadRequest);
    assert_eq!(refuse(format!("\r{head}")), BadRequest);
    assert_eq!(refuse("\n"), BadRequest);
}

#[test]
fn request_line_is_strict() {
    for line in [
        "GET /  HTTP/1.1",
        "GET  / HTTP/1.1",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /\tHTTP/1.1",
        "GET / x HTTP/1.1",
        "GET HTTP/1.1",
        "GET /",
        "GET",
        "GET / ",
        "/ HTTP/1.1",
        "G(T / HTTP/1.1",
        "G\u{e9}T / HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1.10",
        "GET / HTTP/1.1.1",
        "GET / HTTP/01.1",
        "GET / HTTP/1.1x",
        "GET / HTTP/1.",
        "GET / HTTP/11",
        "GET / HTTP/a.1",
        "GET / HTP/1.1",
        "GET / HTTP 1.1",
        "hello",
    ] {
        // Known with the line, before the rest of the head.
        assert_eq!(refuse(format!("{line}\r\n")), BadRequest, "{line}");
        assert_eq!(refuse(format!("{line}\r\nHost: a.test\r\n\r\n")), BadRequest, "{line}");
    }
}

#[test]
fn bytes_that_are_no_request_line_are_refused_before_its_end() {
    let inputs: [&[u8]; 8] = [
        b"\x16\x03\x01\x00\xc8",
        b" ",
        b"GET /\0",
        b"GET /\x7f",
        b"GET /\xc3",
        b"GET /\r/",
        b"\r\r",
        &[b'M'; 33],
    ];
    for input in inputs {
        assert_eq!(refuse(input), BadRequest, "{}", input.escape_ascii());
    }
}

#[test]
fn methods_are_tokens_and_keep_their_case() {
    for method in ["get", "BREW", "M-SEARCH", "PRI", "!#$%&'*+-.^_`|~09", &"M".repeat(32)] {
        let head = accept(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(head.method(), method.as_bytes());
    }
    for len in [33, 65536] {
        let line = format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "M".repeat(len));
        assert_eq!(refuse(line), BadRequest);
    }
}

#[test]
fn methods_say_what_may_be_repeated() {
    let of = |method: &str| accept(format!("{method} / HTTP/1.0\r\n\r\n"));
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
        assert!(of(method).is_idempotent(), "{method}");
    }
    for method in ["POST", "PATCH", "get", "BREW"] {
        assert!(!of(method).is_idempotent(), "{method}");
    }
    assert!(of("HEAD").is_head());
    assert!(!of("GET").is_head() && !of("head").is_head());
}

#[test]
fn versions() {
    for (version, expected) in [
        ("HTTP/1.0", Ok(Version::Http10)),
        ("HTTP/1.1", Ok(Version::Http11)),
        ("HTTP/1.2", Ok(Version::Http11)),
        ("HTTP/1.9", Ok(Version::Http11)),
        ("HTTP/0.9", Err(Reason::Version)),
        ("HTTP/2.0", Err(Reason::Version)),
        ("HTTP/9.9", Err(Reason::Version)),
    ] {
        let (head, result) = parse(format!("GET / {version}\r\nHost: a\r\n\r\n"));
        let result = result.map(|_| head.version).map_err(|violation| violation.reason);
        assert_eq!(result, expected, "{version}");
    }
    assert_eq!(refuse("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Reason::Version);
}

#[test]
fn target_bytes_are_kept_verbatim() {
    for path in [
        "/",
        "//a%2Fb?x=%00",
        "/%0d%0aX-Inj:%201/%2e%2e/z",
        "/a\"<>\\^`{|}b",
        "/?",
        "/http://x",
        "/*",
        "/a:b@c",
    ] {
        let head = accept(target(path));
        assert_eq!(head.target(), path.as_bytes());
        assert_eq!(head.path.of(&head.bytes), path.as_bytes());
        assert_eq!(head.path_prefix(), b"");
    }
    for path in ["/a#b", "/\x01", "/\x7f", "/\u{e9}", "/\0", "/a\x0bb"] {
        assert_eq!(refuse(target(path)), BadRequest, "{path:?}");
    }
}

#[test]
fn absolute_form_is_cut_to_authority_and_path() {
    for (method, uri, authority, prefix, path) in [
        ("GET", "http://b.test/x?y", "b.test", "", "/x?y"),
        ("GET", "HTTPS://b.test:8443/", "b.test:8443", "", "/"),
        ("GET", "http://b.test", "b.test", "/", ""),
        ("GET", "http://b.test?x/y", "b.test", "/", "?x/y"),
        ("GET", "http://[::1]:80/x", "[::1]:80", "", "/x"),
        ("OPTIONS", "http://b.test", "b.test", "*", ""),
        ("OPTIONS", "http://b.test/", "b.test", "", "/"),
        ("OPTIONS", "http://b.test?x", "b.test", "/", "?x"),
    ] {
        let head = accept(format!("{method} {uri} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        assert_eq!(head.target(), uri.as_bytes());
        let found = head.authority.map(|span| span.of(&head.bytes));
        assert_eq!(found, Some(authority.as_bytes()), "{uri}");
        assert_eq!(head.path_prefix(), prefix.as_bytes(), "{uri}");
        assert_eq!(head.path.of(&head.bytes), path.as_bytes(), "{uri}");
    }
    for uri in [
        "http://",
        "http:///x",
        "http://?x",
        "http://:80/x",
        "http://user@b.test/",
        "http://user:pass@b.test/",
        "http://b.test:80:90/",
        "http://b.test:x/",
        "http://b.test:65536/",
        "http://[::1/",
        "http:/b.test/",
        "ftp://b.test/",
        "ws://b.test/",
        "https:b.test",
        "http://b.test/#f",
    ] {
        assert_eq!(refuse(target(uri)), BadRequest, "{uri}");
    }
}

#[test]
fn other_target_forms_belong_to_their_methods() {
    assert_eq!(accept("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").path_prefix(), b"");
    for uri in ["*", "example.test:80", "example.test", "x/y", "?q", "*x"] {
        assert_eq!(refuse(target(uri)), BadRequest, "{uri}");
    }
    for uri in ["example.test:443", "/", "*"] {
        let line = format!("CONNECT {uri} HTTP/1.1\r\n");
        assert_eq!(refuse(line), ConnectMethod, "{uri}");
    }
    assert_eq!(refuse("OPTIONS ** HTTP/1.1\r\n"), BadRequest);
}

#[test]
fn host_is_there_once_and_valid() {
    for host in [
        "a",
        "a.test:80",
        "a.test:",
        "a.test:65535",
        "a.test:00080",
        "A-b_c~1.test",
        "127.0.0.1:8000",
        "[::1]",
        "[::1]:8080",
        "[::ffff:1.2.3.4]",
        "xn--bcher-kva.test",
        "a%2Db",
        "\t a.test \t",
    ] {
        accept(format!("GET / HTTP/1.1\r\nHost:{host}\r\n\r\n"));
        accept(format!("GET / HTTP/1.0\r\nHost:{host}\r\n\r\n"));
    }
    for host in [
        "",
        " ",
        ":80",
        "a b.test",
        "user@host.test",
        "a.test:80:90",
        "a.test:8o",
        "a.test:65536",
        "a.test:99999999999999999999",
        "[::1]:65536",
        "a.test#x",
        "a<b>.test",
        "a.test/x",
        "a.test?x",
        "a.test\\x",
        "a.test,b.test",
        "a.test, b.test",
        "\"a\"",
        "::1",
        "[::1",
        "[::1]x",
        "[::1]:x",
        "[]",
        "[a]",
        "[fe80::1%25eth0]",
        "[v1.a]",
        "a%",
        "a%2",
        "a%zz",
        "b\u{fc}cher.test",
        "http://a.test",
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(refuse(head), BadRequest, "{host:?}");
        // A valid authority in the target does not excuse it.
        let head = format!("GET http://b.test/ HTTP/1.0\r\nHost: {host}\r\n\r\n");
        assert_eq!(refuse(head), BadRequest, "{host:?}");
    }
    accept("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(refuse("GET / HTTP/1.1\r\n\r\n"), BadRequest);
    assert_eq!(refuse("GET http://b.test/ HTTP/1.1\r\n\r\n"), BadRequest);
    assert_eq!(refuse(get("Host: a.test\r\n")), BadRequest);
    assert_eq!(refuse(get("host: evil.test\r\n")), BadRequest);
    assert_eq!(refuse("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"), BadRequest);
}

#[test]
fn field_lines_are_strict() {
    for lines in [
        "X-A : b\r\n",
        "X-A\t: b\r\n",
        "Foo Bar: x\r\n",
        "nonsense\r\n",
        ": x\r\n",
        " : x\r\n",
        "X-F: a\r\n b\r\n",
        "X-F: a\r\n\tb: c\r\n",
        "X-N: a\0b\r\n",
        "X-N: a\x01b\r\n",
        "X-N: a\x7fb\r\n",
        "X-N: a\x0bb\r\n",
        "X-\0A: x\r\n",
        "X(: x\r\n",
        "X\u{e9}: x\r\n",
        "\"X\": x\r\n",
        "X: a\rb\r\n",
        "X: a\r\r\n",
        "X\r: a\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "X: y\n",
        "X:\nY: z\r\n",
        "\n",
        "\nX: y\r\n",
    ] {
        assert_eq!(refuse(get(lines)), BadRequest, "{lines:?}");
    }
    assert_eq!(refuse("GET / HTTP/1.1\r\n X: 1\r\nHost: a\r\n\r\n"), BadRequest);
    assert_eq!(refuse("GET / HTTP/1.1\r\n\r\nX"), BadRequest);
    let head = accept(b"GET / HTTP/1.1\r\nHost: a\r\nX-O: caf\xc3\xa9\xff\tx\r\n\r\n");
    assert_eq!(head.fields[1].value.of(&head.bytes), b"caf\xc3\xa9\xff\tx");
}

#[test]
fn wrong_line_ends_are_refused_before_the_head_is_complete() {
    for (input, rule) in [
        ("GET / HTTP/1.1\n", field::BARE_LF),
        ("GET / HTTP/1.1\r\nHost: a\n", field::BARE_LF),
        ("GET / HTTP/1.1\r\n\n", field::BARE_LF),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", field::BARE_LF),
        ("GET / HTTP/1.1\r\nHost: a\rX", field::BARE_CR),
        ("GET / HTTP/1.1\r\nHost: a\r\n\rX", field::BARE_CR),
        ("GET / HTTP/1.1\r\nHost: a\r\r", field::BARE_CR),
    ] {
        assert_eq!(parse(input).1.unwrap_err().rule, rule, "{input:?}");
    }
    assert_eq!(refuse("GET / HTTP/1.1\rHost: a"), BadRequest);
}

#[test]
fn lines_of_one_field_keep_their_order() {
    let head = accept(get("X-L: one\r\nX-M: -\r\nX-L: two\r\nx-l: one\r\n"));
    let values: Vec<_> = head.fields[1..].iter().map(|f| f.value.of(&head.bytes)).collect();
    assert_eq!(values, [&b"one"[..], b"-", b"two", b"one"]);
}

#[test]
fn content_length_is_one_decimal_number() {
    for (value, expected) in [
        ("0", 0),
        ("5", 5),
        ("\t 5 \t", 5),
        ("0000000005", 5),
        ("9223372036854775808", 1 << 63),
        ("18446744073709551615", u64::MAX),
    ] {
        let head = accept(post(&format!("Content-Length:{value}\r\n")));
        assert_eq!(head.body, RequestBody::Length(expected), "{value:?}");
    }
    for value in [
        "",
        "+5",
        "-5",
        "-0",
        "5 5",
        "5e0",
        "5.0",
        "five",
        "0x5",
        "5;",
        "5,",
        "5, 5",
        "5,6",
        "5\0",
        "5\x0b",
        "\u{a0}5",
        "\"5\"",
        "5_0",
        "18446744073709551616",
        "18446744073709551621",
        "99999999999999999999999999999999999999999",
    ] {
        assert_eq!(refuse(post(&format!("Content-Length: {value}\r\n"))), BadRequest, "{value:?}");
    }
    assert_eq!(refuse(post("Content-Length: 5\r\nContent-Length: 5\r\n")), BadRequest);
    assert_eq!(refuse(post("Content-Length: 5\r\ncontent-length: 10\r\n")), BadRequest);
    // Not a request without a body but one with it, whatever the method.
    assert_eq!(accept(get("Content-Length: 5\r\n")).body, RequestBody::Length(5));
}

#[test]
fn transfer_encoding_is_chunked_or_refused() {
    for value in ["chunked", "ChUnKeD", " chunked ", "\tchunked\t"] {
        let head = accept(post(&format!("Transfer-Encoding:{value}\r\n")));
        assert_eq!(head.body, RequestBody::Chunked, "{value:?}");
    }
    for value in ["cow", "gzip, chunked", "gzip", "identity", "xchunked", "chunkedchunked", "a,b"] {
        assert_eq!(
            refuse(post(&format!("Transfer-Encoding: {value}\r\n"))),
            UnknownCoding,
            "{value}"
        );
    }
    for value in [
        "",
        ",",
        "chunked,",
        ",chunked",
        "chunked, chunked",
        "chunked, identity",
        "chunked, gzip",
        "\"chunked\"",
        "chunked;q=1",
        "gzip;q=1, chunked",
        "chunked x",
        "\x0bchunked",
        "chunked\0",
        "chunked\u{a0}",
        "'chunked",
        "[chunked]",
        "gzip,, chunked",
    ] {
        let expected = if value == "'chunked" { UnknownCoding } else { BadRequest };
        assert_eq!(refuse(post(&format!("Transfer-Encoding: {value}\r\n"))), expected, "{value:?}");
    }
    for lines in [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length:\r\n",
        "Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding : chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
    ] {
        assert_eq!(refuse(post(lines)), BadRequest, "{lines:?}");
    }
    let http10 = "POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(refuse(http10), BadRequest);
}

#[test]
fn names_with_an_underscore_do_not_frame() {
    let head = accept(post("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n"));
    assert_eq!(head.body, RequestBody::Length(5));
    assert_eq!(head.fields[1].id, FieldId::Underscore);
}

#[test]
fn content_type_is_there_once() {
    accept(post("Content-Type: text/plain\r\n"));
    assert_eq!(refuse(post("Content-Type: a/b\r\nContent-Type: a/b\r\n")), BadRequest);
}

#[test]
fn persistence_follows_version_and_connection() {
    for (version, connection, expected) in [
        ("HTTP/1.1", "X: y", true),
        ("HTTP/1.1", "Connection: keep-alive", true),
        ("HTTP/1.1", "Connection: close", false),
        ("HTTP/1.1", "Connection: x, CLOSE", false),
        ("HTTP/1.1", "Connection: keep-alive, close", false),
        ("HTTP/1.1", "Connection: keep-alive\r\nConnection: close", false),
        ("HTTP/1.1", "Proxy-Connection: close", true),
        ("HTTP/1.1", "Connection: closed", true),
        ("HTTP/1.0", "X: y", false),
        ("HTTP/1.0", "Connection: Keep-Alive", true),
        ("HTTP/1.0", "Connection: keep-alive, close", false),
        ("HTTP/1.0", "Proxy-Connection: keep-alive", false),
    ] {
        let head = accept(format!("GET / {version}\r\nHost: a\r\n{connection}\r\n\r\n"));
        assert_eq!(head.keep_alive, expected, "{version} {connection}");
    }
}

#[test]
fn connection_names_are_listed_beyond_the_options() {
    let head = accept(get(
        "Connection: close, X-Hop,,te ,\tUpgrade\r\nConnection: keep-alive, Host, a b, \"q\"\r\n",
    ));
    assert_eq!(names(&head), ["X-Hop", "Host"]);
    // Naming a field does not take its meaning away.
    let head = accept(post("Connection: Content-Length, Host\r\nContent-Length: 5\r\n"));
    assert_eq!(head.body, RequestBody::Length(5));
    assert_eq!(names(&head), ["Content-Length", "Host"]);
}

#[test]
fn connection_names_are_bounded() {
    let lines = |count: usize| format!("Connection: close{}\r\n", ",x".repeat(count));
    assert_eq!(accept(get(&lines(100))).connection_names.len(), 100);
    assert_eq!(refuse(get(&lines(101))), BadRequest);
    assert_eq!(refuse(get(&lines(60).repeat(2))), BadRequest);
}

#[test]
fn expectation_is_100_continue_or_417() {
    for (input, expected) in [
        (post("Expect: 100-continue\r\nContent-Length: 5\r\n"), Ok(true)),
        (post("Expect: 100-Continue\r\nTransfer-Encoding: chunked\r\n"), Ok(true)),
        (post("Expect: 100-continue\r\n"), Ok(false)),
        (post("Expect: 100-continue\r\nContent-Length: 0\r\n"), Ok(false)),
        (post("Expect: tea\r\n"), Err(Expectation)),
        (post("Expect:\r\n"), Err(Expectation)),
        (post("Expect: 100-continue, tea\r\n"), Err(Expectation)),
        (post("Expect: 100-continue\r\nExpect: 100-continue\r\n"), Err(Expectation)),
        ("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n".into(), Ok(false)),
        ("POST / HTTP/1.0\r\nExpect: tea\r\n\r\n".into(), Ok(false)),
    ] {
        let (head, result) = parse(&input);
        let result = result.map(|_| head.expect_continue).map_err(|violation| violation.reason);
        assert_eq!(result, expected, "{input:?}");
    }
}

#[test]
fn upgrade_needs_both_fields_and_http_11_and_no_body() {
    const BOTH: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (input, expected) in [
        (get(BOTH), true),
        (get("Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\n"), true),
        (post(&format!("{BOTH}Content-Length: 0\r\n")), true),
        (get("Upgrade: websocket\r\n"), false),
        (get("Connection: Upgrade\r\nUpgrade:\r\n"), false),
        (get("Connection: Upgrade\r\n"), false),
        (post(&format!("{BOTH}Content-Length: 5\r\n")), false),
        (post(&format!("{BOTH}Transfer-Encoding: chunked\r\n")), false),
        (get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"), false),
        (get("Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n"), false),
        (format!("GET / HTTP/1.0\r\n{BOTH}\r\n"), false),
    ] {
        assert_eq!(accept(&input).upgrade, expected, "{input:?}");
    }
}

#[test]
fn te_trailers_is_a_list_member() {
    for (value, expected) in
        [("trailers", true), ("gzip;q=0.5, Trailers", true), ("gzip", false), ("xtrailers", false)]
    {
        assert_eq!(accept(get(&format!("TE: {value}\r\n"))).te_trailers, expected, "{value}");
    }
}

#[test]
fn long_heads_pass_up_to_the_limits() {
    let fields = |count: usize| (0..count).map(|i| format!("X-F{i:03}: v\r\n")).collect::<String>();
    assert_eq!(accept(get(&fields(99))).fields.len(), 100);
    accept(get(&format!("Cookie: s={}\r\n", "c".repeat(7500))));
    accept(target(&format!("/{}", "q".repeat(8000))));
    let line_end = "GET / HTTP/1.1".len();
    accept(target(&format!("/{}", "q".repeat(MAX_LINE - line_end))));
    let exact = LIMITS.head - get("X: \r\n").len();
    accept(get(&format!("X: {}\r\n", "v".repeat(exact))));
}

#[test]
fn what_exceeds_a_limit_is_refused_before_its_end() {
    let many: String = (0..101).map(|i| format!("X-F{i:03}: v\r\n")).collect();
    let long = "v".repeat(40 << 10);
    for (input, expected) in [
        (get(&many[..many.len() - "X-F100: v\r\n".len()]), HeadTooLarge),
        (format!("GET / HTTP/1.1\r\n{many}"), HeadTooLarge),
        (get(&format!("X: {long}\r\n")), HeadTooLarge),
        (format!("GET / HTTP/1.1\r\nX: {long}"), HeadTooLarge),
        (format!("GET / HTTP/1.1\r\n{long}"), HeadTooLarge),
        (target(&format!("/{long}")), TargetTooLong),
        (format!("GET /{}", "v".repeat(MAX_LINE - 3)), TargetTooLong),
        (target(&format!("/{}", "q".repeat(MAX_LINE - 13))), TargetTooLong),
    ] {
        assert_eq!(refuse(&input), expected, "{} bytes", input.len());
    }
    // A line that the smaller limit of the head cuts.
    let small = Limits { head: 100, fields: 100 };
    let mut head = RequestHead::default();
    let long_line = format!("GET /{long}");
    assert_eq!(head.parse(&long_line.as_bytes()[..99], &small), Ok(None));
    assert_eq!(head.parse(&long_line.as_bytes()[..100], &small), Err(LINE_TOO_LONG));
    // 100 bytes that are whole pass, 100 that are not do not wait for more.
    let exact = get(&format!("X: {}\r\n", "v".repeat(100 - get("X: \r\n").len())));
    assert_eq!(head.parse(exact.as_bytes(), &small), Ok(Some(100)));
    let longer = get(&format!("X: {}\r\n", "v".repeat(101 - get("X: \r\n").len())));
    assert_eq!(head.parse(&longer.as_bytes()[..100], &small), Err(HEAD_TOO_LONG));
    assert_eq!(head.parse(longer.as_bytes(), &small), Err(HEAD_TOO_LONG));
}

#[test]
fn a_refused_head_is_kept_for_the_record() {
    let (head, result) =
        parse("\r\nGET /x HTTP/1.1\r\nHost: a b\r\nUser-Agent: ua\r\nReferer: r\r\n\r\n");
    assert!(result.is_err());
    assert_eq!(head.line.of(&head.bytes), b"GET /x HTTP/1.1");
    assert_eq!((head.method(), head.target()), (&b"GET"[..], &b"/x"[..]));
    assert_eq!(head.get(FieldId::UserAgent), Some(&b"ua"[..]));
    assert_eq!(head.get(FieldId::Referer), Some(&b"r"[..]));
    assert!(head.bytes.starts_with(b"GET"));

    // Fields before the one that is not valid.
    let (head, _) = parse("GET /x HTTP/1.1\r\nUser-Agent: ua\r\nX : y\r\nReferer: r\r\n\r\n");
    assert_eq!(head.get(FieldId::UserAgent), Some(&b"ua"[..]));
    assert_eq!(head.get(FieldId::Referer), None);

    // A line that is not valid has no parts; one that we do not serve has.
    let (head, _) = parse("\x16\x03\x01\x02\rx");
    assert_eq!(head.line.of(&head.bytes), b"\x16\x03\x01\x02");
    assert!(head.method.is_empty() && head.target.is_empty() && head.fields.is_empty());
    let (head, _) = parse("GET /y HTTP/3.0\r\n");
    assert_eq!(head.target(), b"/y");
    let (head, _) = parse("CONNECT a.test:443 HTTP/1.1\r\n");
    assert_eq!((head.method(), head.target()), (&b"CONNECT"[..], &b"a.test:443"[..]));
}

#[test]
fn at_most_8_kib_of_a_refused_head_are_kept() {
    let long = "v".repeat(20 << 10);
    for input in [
        target(&format!("/{long}")),
        target(&format!("/{}\x01", &long[..9000])),
        format!("GET /{} HTTP/1.1\r\nHost: a b\r\n\r\n", &long[..9000]),
        get(&format!("X: {long}\r\nY : z\r\n")),
        get(&format!("X: {long}{long}\r\n")),
    ] {
        let (head, result) = parse(&input);
        assert!(result.is_err());
        assert_eq!(head.bytes, &input.as_bytes()[..MAX_SALVAGE]);
        assert!(head.line.end as usize <= MAX_SALVAGE && !head.line.is_empty());
        assert!(head.target.end as usize <= MAX_SALVAGE);
        assert!(head.fields.iter().all(|f| f.value.end as usize <= MAX_SALVAGE));
    }
}

#[test]
fn what_came_of_a_head_can_be_salvaged() {
    let mut head = RequestHead::default();
    head.salvage(b"GET /x HTTP/1.1\r\nHost: a\r\nUser-Agent: u\r\nX-Cut: a");
    assert_eq!(head.line.of(&head.bytes), b"GET /x HTTP/1.1");
    assert_eq!(head.get(FieldId::UserAgent), Some(&b"u"[..]));
    assert_eq!(head.fields.len(), 2);
    head.salvage(b"\r\nGET /x HT");
    assert_eq!(head.line.of(&head.bytes), b"GET /x HT");
    assert!(head.target.is_empty() && head.fields.is_empty());
    head.salvage(b"");
    assert!(head.line.is_empty());
}
