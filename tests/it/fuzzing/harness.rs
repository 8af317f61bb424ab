//! What must be true of any input: one function for each reader of bytes that others wrote. Each
//! panics where a promise is broken.
//!
//! `fuzzing` runs them over `tests/corpus/` with every `cargo test`; libFuzzer calls them by the
//! targets of the package in fuzz/, whose library this file is. They use nothing that is not public.

// A panic is the report, and the library's items are public.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use bufproxy::access_log::{Format, FormatOptions, Record};
use bufproxy::config::{Config, Invocation, Peer, Sources, parse_args};
use bufproxy::error::Reason;
use bufproxy::exchange::client_head::{self, ClientHead, Coding, Framing};
use bufproxy::exchange::forward::{Forward, ForwardedHead};
use bufproxy::http1::{
    Chunked, Field, FieldId, LAST_CHUNK, Limits, RequestBody, RequestHead, ResponseBody,
    ResponseHead, Version, Violation, chunk_head,
};
use bufproxy::trust;

/// One harness function.
pub type Target = fn(&[u8]);

/// All of them, by the name of their target and of their directory in `tests/corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("request_head", request_head),
    ("response_head", response_head),
    ("chunked", chunked),
    ("log_template", log_template),
    ("forwarded", forwarded),
    ("option_values", option_values),
];

/// Small, so that inputs reach them.
const LIMITS: Limits = Limits { head: 1024, fields: 12 };
/// What we write has to be readable whatever it is made of.
const WIDE: Limits = Limits { head: 1 << 20, fields: 1000 };

/// A request head: the verdict does not depend on how the bytes come; what is accepted has the
/// syntax of RFC 9112, means the same when its parts are put together again, and so does what the
/// app is given.
pub fn request_head(data: &[u8]) {
    let mut head = RequestHead::default();
    let verdict = head.parse(data, &LIMITS);
    comes_in_pieces(data, verdict, |input| RequestHead::default().parse(input, &LIMITS));
    let Ok(Some(len)) = verdict else { return };

    assert!(data[..len].ends_with(&head.bytes) && head.bytes.ends_with(b"\r\n\r\n"));
    assert!(head.method().iter().all(|&b| is_tchar(b)) && !head.method.is_empty());
    assert!(head.target().iter().all(u8::is_ascii_graphic) && !head.target.is_empty());
    check_fields(&head.fields, &head.bytes, LIMITS.fields);
    let count = |id| head.fields.iter().filter(|field| field.id == id).count();
    let framing = (count(FieldId::ContentLength), count(FieldId::TransferEncoding));
    match head.body {
        RequestBody::None => assert_eq!(framing, (0, 0)),
        RequestBody::Length(_) => assert_eq!(framing, (1, 0)),
        RequestBody::Chunked => assert_eq!(framing, (0, 1)),
    }
    if head.version == Version::Http11 {
        assert_eq!(count(FieldId::Host), 1);
    }

    let version: &[u8] = if head.version == Version::Http10 { b"HTTP/1.0" } else { b"HTTP/1.1" };
    let line = [head.method(), b" ", head.target(), b" ", version].concat();
    let rebuilt = rebuild(&line, &head.fields, &head.bytes);
    let mut again = RequestHead::default();
    assert_eq!(again.parse(&rebuilt, &WIDE), Ok(Some(rebuilt.len())));
    assert_eq!((again.method(), again.target()), (head.method(), head.target()));
    assert_eq!(again.fields.len(), head.fields.len());
    assert_eq!(
        (again.body, again.keep_alive, again.expect_continue, again.te_trailers, again.upgrade),
        (head.body, head.keep_alive, head.expect_continue, head.te_trailers, head.upgrade)
    );

    for (config, peer) in PLACES.iter() {
        check_forwarded(&head, config, *peer);
    }
}

/// A response head, behind a line with the method of its request: as `request_head`; and the client
/// is told of one end of the body.
pub fn response_head(data: &[u8]) {
    let (method, data) = split_line(data);
    let mut head = ResponseHead::default();
    let verdict = head.parse(data, method, &LIMITS);
    comes_in_pieces(data, verdict, |input| ResponseHead::default().parse(input, method, &LIMITS));
    let Ok(Some(len)) = verdict else { return };

    assert!(data[..len] == head.bytes && head.bytes.ends_with(b"\r\n\r\n"));
    assert!((100..1000).contains(&head.status));
    assert!(is_text(head.reason.of(&head.bytes)));
    check_fields(&head.fields, &head.bytes, LIMITS.fields);
    if head.is_informational() || matches!(head.status, 204 | 304) || method == b"HEAD" {
        assert_eq!(head.body, ResponseBody::None);
    }
    assert!(!(head.body == ResponseBody::Close && head.keep_alive));

    let mut out = Vec::new();
    if head.status == 101 {
        client_head::write_switching(&mut out, &head);
    } else if head.is_informational() {
        client_head::write_informational(&mut out, &head);
    } else {
        let framing = match head.body {
            ResponseBody::None => Framing::None(head.content_length),
            ResponseBody::Length(length) => Framing::Length(length),
            ResponseBody::Chunked | ResponseBody::Close => Framing::Chunked,
        };
        let date = b"Sun, 06 Nov 1994 08:49:37 GMT";
        let (version, coding) = (Version::Http11, Coding::AsItCame);
        let with = ClientHead { version, framing, keep_alive: true, trailers: false, date, coding };
        client_head::write(&mut out, &head, &with);
    }
    let mut again = ResponseHead::default();
    assert_eq!(again.parse(&out, method, &WIDE), Ok(Some(out.len())), "{}", out.escape_ascii());
    assert_eq!(again.status, head.status);
    let expected = if head.body == ResponseBody::Close { ResponseBody::Chunked } else { head.body };
    assert_eq!(again.body, expected);
    assert!(again.connection_names.is_empty());
}

/// A chunked body: any split gives the same payload, trailers and verdict; what was decoded, encoded
/// again, is the same body; its trailers end a body that has one end.
pub fn chunked(data: &[u8]) {
    let whole = dechunk(data, std::iter::repeat(data.len()));
    for size in [1, 2, 3, 7] {
        assert_eq!(dechunk(data, std::iter::repeat(size)), whole, "pieces of {size}");
    }
    let sizes = data.iter().map(|&b| usize::from(b % 9));
    assert_eq!(dechunk(data, sizes.chain(std::iter::repeat(1))), whole, "mixed pieces");
    let Ok((payload, trailers, consumed, done)) = whole else { return };
    assert_eq!(done, data[..consumed].ends_with(b"\r\n\r\n") && done);
    assert!(done || consumed == data.len(), "input left though the body has no end");
    for line in trailers.split_inclusive(|&b| b == b'\n').filter(|_| done) {
        assert!(line.ends_with(b"\r\n") && is_text(&line[..line.len() - 2]));
    }

    let mut encoded = Vec::new();
    for piece in payload.chunks(300) {
        encoded.extend_from_slice(chunk_head(piece.len(), &mut [0; 18]));
        encoded.extend_from_slice(piece);
        encoded.extend_from_slice(b"\r\n");
    }
    encoded.extend_from_slice(LAST_CHUNK);
    let again = dechunk(&encoded, std::iter::repeat(5));
    assert_eq!(again, Ok((payload, Vec::new(), encoded.len(), true)));

    // Whatever trailers come, the client gets an end, and none that would change the message.
    let last =
        client_head::last_chunk(&ResponseHead::default(), if done { &trailers } else { b"" });
    let (payload, passed, used, ended) = dechunk(&last, std::iter::repeat(5)).unwrap();
    assert!(payload.is_empty() && used == last.len() && ended);
    for line in passed.split_inclusive(|&b| b == b'\n') {
        let name = &line[..line.iter().position(|&b| b == b':').unwrap()];
        use FieldId::{
            Connection, ContentLength, Host, KeepAlive, Trailer, TransferEncoding, Upgrade,
        };
        let forbidden =
            [Connection, ContentLength, Host, KeepAlive, Trailer, TransferEncoding, Upgrade];
        assert!(!forbidden.contains(&FieldId::of(name)));
    }
}

/// A log template, and behind its line a request: a line is one line, has an end, and holds nothing
/// that a reader of the format could take for another field.
pub fn log_template(data: &[u8]) {
    let (template, request) = split_line(data);
    let record = record(request);
    for name in ["l2met", "logfmt", "combined", "json"] {
        let format = Format::parse(name, FormatOptions { time: true, ..options() }).unwrap();
        let line = render(&format, &record);
        assert!(!line.iter().any(u8::is_ascii_control), "{}", line.escape_ascii());
        if name == "json" {
            serde_json::from_slice::<serde_json::Value>(&line).unwrap();
        } else {
            assert!(line.is_ascii());
        }
    }
    let Ok(template) = str::from_utf8(template) else { return };
    let Ok(format) = Format::parse(template, options()) else { return };
    let line = render(&format, &record);
    // A template may have tabs.
    assert!(!line.iter().any(|&b| b.is_ascii_control() && b != b'\t'), "{}", line.escape_ascii());
    str::from_utf8(&line).unwrap();
}

/// Fields by which proxies say who the client is: a peer that is not trusted is not heard, the
/// client that is found cannot be moved by what it wrote itself, and the app is told one thing.
pub fn forwarded(data: &[u8]) {
    let input = [b"GET / HTTP/1.1\r\nHost: a\r\n", data, b"\r\n\r\n"].concat();
    let mut head = RequestHead::default();
    let Ok(Some(_)) = head.parse(&input, &WIDE) else { return };
    let is_list = |value: &[u8]| !value.iter().all(|b| b", \t".contains(b));
    let mut lists = head.fields.iter().filter(|field| field.id == FieldId::XForwardedFor);
    let has_list = lists.any(|field| is_list(field.value.of(&head.bytes)));
    for (config, peer) in PLACES.iter() {
        let resolved = trust::resolve(config, *peer, &head);
        assert!(matches!(resolved.scheme, "http" | "https"));
        assert!(!matches!(resolved.client, Some(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some()));
        if !resolved.trusted {
            assert_eq!((resolved.client, resolved.scheme), (peer.ip(), "http"));
        }
        // A chain ends at the first address that is no proxy's: whatever is to the left of it is
        // what the client made up.
        let trust = &config.trust;
        let is_proxy = |ip: IpAddr| trust.ranges.iter().any(|range| range.contains(&ip));
        let is_walked = trust.hops.is_none() && trust::real_ip_header(config).is_none();
        if is_walked && has_list && resolved.client.is_some_and(|ip| !is_proxy(ip)) {
            let spoofed =
                [b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n", data, b"\r\n\r\n"];
            let mut more = RequestHead::default();
            assert!(matches!(more.parse(&spoofed.concat(), &WIDE), Ok(Some(_))));
            let found = trust::resolve(config, *peer, &more).client;
            assert_eq!(found, resolved.client);
        }
        check_forwarded(&head, config, *peer);
    }
}

/// A size, a duration and an address, as they are typed: what is taken is within its bounds, and
/// what the message says to write instead is taken.
pub fn option_values(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    // The options' own parser splits at these.
    if text.contains('\0') {
        return;
    }
    for option in ["max-body", "send-timeout", "upstream-keepalive", "spool-max"] {
        match configured(&[&format!("--{option}={text}")]) {
            Ok(config) => {
                assert!(config.max_body > 0);
                let week = Duration::from_secs(7 * 24 * 3600);
                assert!((Duration::from_millis(1)..=week).contains(&config.send_timeout));
            }
            Err(problems) => {
                assert!(!problems.is_empty());
                for problem in &problems {
                    assert!(!problem.contains('\n'), "{problem:?}");
                    // The example of an option and the nearest value are words without a space.
                    let write = problem.rsplit_once(": write ").map(|(_, write)| write);
                    if let Some(write) = write.filter(|write| is_value(write)) {
                        let fixed = configured(&[&format!("--{option}={write}")]);
                        // It may be out of the option's bounds, or contradict another option.
                        let again = |problem: &String| problem.contains("is not a ");
                        let problems = fixed.err().unwrap_or_default();
                        assert!(!problems.iter().any(again), "{problem:?}: {problems:?}");
                    }
                }
            }
        }
    }
    for option in ["upstream", "listen"] {
        let _ = configured(&[&format!("--{option}={text}")]);
    }
}

/// A prefix gets the verdict of the whole, or none yet; and a full window always gets one.
fn comes_in_pieces(
    data: &[u8],
    whole: Result<Option<usize>, Violation>,
    parse: impl Fn(&[u8]) -> Result<Option<usize>, Violation>,
) {
    assert!(whole != Ok(None) || data.len() < LIMITS.head);
    let mut refused = false;
    for end in (0..data.len()).step_by(data.len() / 100 + 1) {
        let verdict = parse(&data[..end]);
        match (whole, verdict) {
            (Ok(Some(len)), verdict) if end >= len => assert_eq!(verdict, whole),
            (Err(_), Err(_)) => refused = true,
            (_, verdict) => assert_eq!(verdict, Ok(None), "{end} bytes; all: {whole:?}"),
        }
        assert!(!refused || verdict.is_err(), "{end} bytes are no longer refused");
    }
}

fn check_fields(fields: &[Field], bytes: &[u8], limit: usize) {
    assert!(fields.len() <= limit);
    for field in fields {
        let (name, value) = (field.name.of(bytes), field.value.of(bytes));
        assert!(!name.is_empty() && name.iter().all(|&b| is_tchar(b)));
        assert!(is_text(value) && value.trim_ascii() == value);
        assert_eq!(field.id, FieldId::of(name));
    }
}

fn rebuild(line: &[u8], fields: &[Field], bytes: &[u8]) -> Vec<u8> {
    let mut out = [line, b"\r\n"].concat();
    for field in fields {
        out.extend([field.name.of(bytes), b": ", field.value.of(bytes), b"\r\n"].concat());
    }
    out.extend(b"\r\n");
    out
}

/// What the app gets of this request has one reading, and it is ours.
fn check_forwarded(head: &RequestHead, config: &Config, peer: Peer) {
    let body = match head.body {
        RequestBody::None => RequestBody::None,
        RequestBody::Length(_) | RequestBody::Chunked => RequestBody::Length(5),
    };
    let bytes = &head_for_app(head, config, peer, (body != RequestBody::None).then_some(5));
    let mut app = RequestHead::default();
    assert_eq!(app.parse(bytes, &WIDE), Ok(Some(bytes.len())), "{}", bytes.escape_ascii());
    let resolved = trust::resolve(config, peer, head);
    let target = [head.path_prefix(), head.path.of(&head.bytes)].concat();
    assert_eq!((app.method(), app.target()), (head.method(), target.as_slice()));
    assert_eq!((app.body, app.upgrade, app.expect_continue), (body, head.upgrade, false));
    assert_eq!(app.get(FieldId::XForwardedProto), Some(resolved.scheme.as_bytes()));
    let once = |id| assert_eq!(app.fields.iter().filter(|field| field.id == id).count(), 1);
    for id in [FieldId::Host, FieldId::Via, FieldId::XForwardedProto, FieldId::XRequestId] {
        once(id);
    }
    if let (false, Some(client)) = (resolved.trusted, resolved.client) {
        once(FieldId::XForwardedFor);
        assert_eq!(app.get(FieldId::XForwardedFor), Some(client.to_string().as_bytes()));
    }
}

/// What the app gets as head of this request, with a body of this length.
pub fn head_for_app(
    head: &RequestHead,
    config: &Config,
    peer: Peer,
    length: Option<u64>,
) -> Vec<u8> {
    let resolved = trust::resolve(config, peer, head);
    let (local, started_ms) = (None, 1_700_000_000_000);
    let with = Forward { config, peer, local, resolved, started_ms, keep_alive: false };
    let mut forwarded = ForwardedHead::default();
    forwarded.write(head, &with);
    forwarded.finish(3, started_ms, length);
    forwarded.bytes
}

type Dechunked = (Vec<u8>, Vec<u8>, usize, bool);

/// Payload, trailers, bytes used and whether it was all; of pieces that have these sizes.
fn dechunk(
    mut input: &[u8],
    mut sizes: impl Iterator<Item = usize>,
) -> Result<Dechunked, Violation> {
    let mut chunked = Chunked::new(Reason::InvalidResponse);
    let (mut payload, mut consumed, mut done) = (Vec::new(), 0, false);
    while !input.is_empty() && !done {
        let mut piece = input[..sizes.next().unwrap().min(input.len())].to_vec();
        let decoded = chunked.decode(&mut piece)?;
        payload.extend_from_slice(&piece[..decoded.payload]);
        consumed += decoded.consumed;
        done = decoded.done;
        input = &input[decoded.consumed..];
    }
    Ok((payload, chunked.trailers().to_vec(), consumed, done))
}

fn options() -> FormatOptions<'static> {
    FormatOptions { name: "fuzz", ..FormatOptions::default() }
}

fn render(format: &Format, record: &Record) -> Vec<u8> {
    let mut line = Vec::new();
    format.render(record, 4095, &mut line);
    assert!(line.len() <= 4095, "{} bytes", line.len());
    line
}

/// A record of this request, whole or not; its numbers are made of the request's last bytes.
fn record(request: &[u8]) -> Record {
    let mut record = Record::new(Peer::Ip("[2001:db8::1]:443".parse().unwrap()));
    if !matches!(record.head.parse(request, &WIDE), Ok(Some(_))) {
        record.head.salvage(request);
    }
    let number = request.iter().rev().take(8).fold(0, |sum, &b| sum << 8 | u64::from(b));
    record.time += Duration::from_secs(number >> 28);
    record.status = (number % 1000) as u16;
    record.upstream_status = record.status;
    record.upstream_addr = (number & 1 == 1).then_some(0);
    record.request_id.extend(request.iter().filter(|b| b.is_ascii_alphanumeric()).take(200));
    record.response_head.extend_from_slice(request);
    record.service = Duration::from_millis(number);
    record.first_byte = (number & 2 == 2).then_some(record.service);
    record.bytes_sent = number;
    record.stream = number & 4 == 4;
    record.tunnel = number & 8 == 8;
    record
}

/// Configurations and peers that differ in whom they believe.
static PLACES: LazyLock<Vec<(Config, Peer)>> = LazyLock::new(|| {
    let ip = |ip: &str| Peer::Ip(format!("{ip}:4321").parse().unwrap());
    [
        (&[][..], ip("203.0.113.9")),
        (&["--trust=10.0.0.0/8"], ip("203.0.113.9")),
        (&["--trust=10.0.0.0/8", "--trust=fd00::/8"], ip("[::ffff:10.1.2.3]")),
        (&["--trust=heroku", "--forwarded=append"], ip("10.1.2.3")),
        (&["--trust=2", "--forwarded=replace"], ip("192.0.2.1")),
        (&["--trust=private", "--real-ip-header=X-Real-Ip"], Peer::Unix),
    ]
    .map(|(args, peer)| (configured(args).unwrap(), peer))
    .into()
});

/// The configuration of this command line, where nothing else is known.
pub fn configured(args: &[&str]) -> Result<Config, Vec<String>> {
    let upstream = ["--upstream=unix:/tmp/app.sock"];
    let invocation = parse_args(&Sources {
        args: upstream.iter().chain(args).map(OsString::from).collect(),
        env: BTreeMap::new(),
        read: &|_: &Path| Err(io::ErrorKind::NotFound.into()),
        in_memory: &|_| Ok(false),
        no_socket: &|_| None,
        takes_a_log: &|_| Ok(()),
        nofile: 1 << 20,
        private_socket: "/run/bufproxy-1/app.sock".into(),
    });
    match invocation {
        Ok(Invocation::Run(config)) => Ok(*config),
        Ok(other) => panic!("{args:?}: {other:?}"),
        Err(error) => Err(error.problems),
    }
}

/// Digits and a unit.
fn is_value(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn split_line(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|&b| b == b'\n').unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}

fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == b'\t' || !b.is_ascii_control())
}
