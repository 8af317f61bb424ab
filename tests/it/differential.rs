//! The codec against independent readers of the same bytes: hyper, as server for requests and as
//! client for responses, and gunicorn's parser. Who takes a message that we take must have read the
//! same; where only one takes it, a table names it and says why that is right.

// In the helpers too a panic is the report.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::io::{Seek, Write};
use std::process::{Command, Stdio};
use std::rc::Rc;

use bufproxy::config::Peer;
use bufproxy::error::Reason;
use bufproxy::http1::{
    Chunked, Field, FieldId, Limits, RequestBody, RequestHead, ResponseBody, ResponseHead, Version,
};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fuzzing::harness::{configured, head_for_app};
use crate::support::{mutate, repository, venv};

const LIMITS: Limits = Limits { head: 32 << 10, fields: 100 };

/// Who takes a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// By both, and read the same.
    Both,
    Neither,
    /// By hyper alone: we are stricter, for this reason.
    Hyper(&'static str),
    /// By us alone, for this reason.
    Us(&'static str),
}
use Taken::{Both, Hyper, Neither, Us};

/// What a reader made of a message. `first`: of a request method, authority and target, of a
/// response the status. Fields are sorted by name; lines of one name keep their order.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    first: Vec<String>,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

const AMBIGUOUS: &str = "a length beside chunks has two readings";
const BARE_LF: &str = "a line feed alone ends no line";
const HOST: &str = "the app needs one valid Host";
const VERBATIM: &str = "browsers send such bytes; what they mean is up to the app";
const PERCENT: &str = "RFC 3986, 3.2.2: a name may hold percent-encodings";
const TARGET: &str = "the target has no form that a reverse proxy serves";

const REQUESTS: &[(&str, Taken)] = &[
    // Request lines and targets.
    ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Both),
    ("GET /a//b/../c%2F?x=%00&y=[1] HTTP/1.1\r\nHost: a\r\n\r\n", Both),
    ("GET /{\"a\"}?b HTTP/1.1\r\nHost: a\r\n\r\n", Both),
    ("GET /a|b?x={\"<y>\"}`^\\ HTTP/1.1\r\nHost: a\r\n\r\n", Us(VERBATIM)),
    ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Both),
    ("brew / HTTP/1.1\r\nHost: a\r\n\r\n", Both),
    ("GET http://b.test:80/x?y HTTP/1.1\r\nHost: a\r\n\r\n", Both),
    ("GET http://b.test HTTP/1.1\r\nHost: a\r\n\r\n", Both),
    ("GET http://b%41.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Us(PERCENT)),
    ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Both),
    ("GET / HTTP/1.0\r\n\r\n", Both),
    ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
    ("GET / x HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
    ("GET HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
    ("GET /\r\n\r\n", Neither),
    ("GET / HTTP/1.1x\r\nHost: a\r\n\r\n", Neither),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Neither),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Neither),
    ("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
    ("\x16\x03\x01\x02", Neither),
    ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Us("RFC 9110, 2.5: a higher minor version is 1.1")),
    ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
    ("GET /\u{c3}\u{a9} HTTP/1.1\r\nHost: a\r\n\r\n", Hyper("the app refuses 8-bit targets")),
    ("GET /#f HTTP/1.1\r\nHost: a\r\n\r\n", Hyper(TARGET)),
    ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Hyper(TARGET)),
    ("GET b.test:80 HTTP/1.1\r\nHost: a\r\n\r\n", Hyper(TARGET)),
    ("GET ftp://b.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Hyper(TARGET)),
    ("GET http://u@b.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Hyper(TARGET)),
    ("CONNECT b.test:443 HTTP/1.1\r\nHost: b.test\r\n\r\n", Hyper(TARGET)),
    ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Hyper(BARE_LF)),
    ("GET / HTTP/1.1\nHost: a\r\n\r\n", Hyper(BARE_LF)),
    // Field lines.
    ("GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY: \t b \t\r\nx: c,d\r\n\r\n", Both),
    ("GET / HTTP/1.1\r\nHost: a\r\nX_Y: 1\r\nX-O: caf\u{e9}\t\u{ff}\r\n\r\n", Both),
    ("GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n", Neither),
    ("GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", Neither),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", Neither),
    ("GET / HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n", Neither),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", Neither),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n", Neither),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n", Neither),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\0: y\r\n\r\n", Neither),
    ("GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", Neither),
    ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", Hyper(BARE_LF)),
    ("GET / HTTP/1.1\r\nHost: a\r\n\n", Hyper(BARE_LF)),
    ("GET / HTTP/1.1\r\n\r\n", Hyper(HOST)),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Hyper(HOST)),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Hyper(HOST)),
    ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Hyper(HOST)),
    ("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", Hyper("417 is ours to answer")),
    ("GET / HTTP/1.0\r\nExpect: tea\r\n\r\n", Both),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n\r\n",
        Hyper("gunicorn refuses a second Content-Type"),
    ),
    // Content-Length.
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", Both),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0005\r\n\r\nhelloGET /", Both),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET /", Both),
    ("POST / HTTP/1.1\r\nHost: a\r\n\r\nGET /", Both),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nhello", Neither),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", Neither),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", Neither),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -0\r\n\r\n", Neither),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", Neither),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nhello", Neither),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551621\r\n\r\nhello", Neither),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", Neither),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        Hyper("two lengths are refused, equal or not"),
    ),
    // Transfer-Encoding.
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        Both,
    ),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: cow\r\n\r\n", Neither),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n", Neither),
    ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Neither),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Hyper(AMBIGUOUS),
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        Hyper("the app could not decode gzip"),
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        Hyper("chunked twice is not allowed (RFC 9112, 6.1)"),
    ),
];

/// Bodies of a chunked request.
const CHUNKS: &[(&str, Taken)] = &[
    ("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", Both),
    ("1A\r\nabcdefghijklmnopqrstuvwxyz\r\n0000\r\n\r\n", Both),
    ("5;a=b;c=\"q;r\"\r\nhello\r\n0;last\r\n\r\n", Both),
    ("5 ;a=b\r\nhello\r\n0\r\n\r\n", Both),
    ("5\r\nhello\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n", Both),
    ("5\r\nhello\r\n0\r\nHost: b\r\nContent-Length: 6\r\n\r\n", Both),
    ("", Neither),
    ("5\r\nhello\r\n0\r\n", Neither),
    ("5\r\nhello", Neither),
    ("0x5\r\nhello\r\n0\r\n\r\n", Neither),
    ("-5\r\nhello\r\n0\r\n\r\n", Neither),
    ("\r\nhello\r\n0\r\n\r\n", Neither),
    ("5g\r\nhello\r\n0\r\n\r\n", Neither),
    ("10000000000000005\r\nhello\r\n0\r\n\r\n", Neither),
    ("5\nhello\r\n0\r\n\r\n", Neither),
    ("5\r\nhello\n0\r\n\r\n", Neither),
    ("5\r\nhello0\r\n\r\n", Neither),
    ("5;a\nb\r\nhello\r\n0\r\n\r\n", Neither),
    ("5\r\nhello\r\n0\r\n\n", Neither),
    ("5\r\nhello\r\n0\r\nnonsense\r\n\r\n", Neither),
    ("5 \r\nhello\r\n0\r\n\r\n", Hyper("whitespace belongs before an extension only")),
    ("5;\0\r\nhello\r\n0\r\n\r\n", Hyper("control bytes are not in the grammar")),
    ("5;a=\r\nhello\r\n0\r\n\r\n", Hyper("an extension has a name, and a value behind =")),
    (
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        Hyper("a size has as many digits as a number of 64 bits"),
    ),
];

fn with_chunks(body: &[u8]) -> Vec<u8> {
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    [head, body].concat()
}

#[test]
fn requests_are_read_as_hyper_reads_them() {
    check(REQUESTS, our_request, hyper_request);
}

#[test]
fn chunked_bodies_are_read_as_hyper_reads_them() {
    check(CHUNKS, |body| our_request(&with_chunks(body)), |body| hyper_request(&with_chunks(body)));
}

/// Who refuses what we take, and why that is right; by the message and its head.
type Excuse = (&'static str, &'static str, fn(&[u8], &RequestHead) -> bool);
const EXCUSES: &[Excuse] = &[
    ("hyper", PERCENT, |_, head| {
        head.authority.is_some_and(|authority| authority.of(&head.bytes).contains(&b'%'))
    }),
    ("hyper", VERBATIM, |_, head| head.target().iter().any(|b| b"\"<>\\^`{|}".contains(b))),
    ("hyper", "RFC 9110, 2.5: a higher minor version is 1.1", |_, head| {
        !matches!(head.line.of(&head.bytes), [.., b'0' | b'1'])
    }),
    ("gunicorn", "skips one empty line; the app gets none from us", |input, _| {
        input.starts_with(b"\r\n\r\n")
    }),
    (
        "gunicorn",
        "its methods have 3 to 20 letters and no small ones; it answers 400 itself",
        |_, head| {
            let method = head.method();
            !(3..=20).contains(&method.len())
                || method.iter().any(|b| b"#".contains(b) || b.is_ascii_lowercase())
        },
    ),
    (
        "gunicorn",
        "an HTTP/1.0 client expects nothing; the app gets no Expect from us",
        |_, head| head.version == Version::Http10 && head.get(FieldId::Expect).is_some(),
    ),
    (
        "gunicorn",
        "trailers that would change the message are ignored; the app gets none from us",
        |input, head| {
            let names = "host content-length transfer-encoding trailer authorization te";
            let name = |line: &str| line.split_once(':').map(|(name, _)| name.to_lowercase());
            let body = String::from_utf8_lossy(&input[head.bytes.len()..]);
            body.lines().filter_map(name).any(|n| names.split(' ').any(|refused| refused == n))
        },
    ),
];

#[test]
fn whoever_takes_a_request_reads_it_as_we_do() {
    let inputs = generated();
    let compared = compare(&inputs);
    assert!(compared.hyper > 400, "{}", compared.hyper);
    if let Some(gunicorn) = compared.gunicorn {
        assert!(gunicorn > 300, "{gunicorn}");
        assert_eq!(compared.excuses.len(), EXCUSES.len(), "only needed: {:?}", compared.excuses);
    }
}

#[test]
fn app_reads_what_it_is_given_as_it_was_meant() {
    let config = configured(&[]).unwrap();
    let peer = Peer::Ip("192.0.2.1:1".parse().unwrap());
    let given = generated().into_iter().map(|input| {
        let meant = our_request(&input).unwrap();
        let mut head = RequestHead::default();
        head.parse(&input, &LIMITS).unwrap();
        let length = (head.body != RequestBody::None).then_some(meant.body.len() as u64);
        let given = [head_for_app(&head, &config, peer, length), meant.body.clone()].concat();
        let read = our_request(&given).unwrap();
        assert_eq!((&read.first[0], &read.body), (&meant.first[0], &meant.body));
        given
    });
    let compared = compare(&given.collect::<Vec<_>>());
    assert!(compared.hyper > 400, "{}", compared.hyper);
    assert!(compared.gunicorn.is_none_or(|gunicorn| gunicorn > 400), "{:?}", compared.gunicorn);
}

/// How many of the requests the others took, and the excuses that the rest needed.
struct Compared {
    hyper: usize,
    /// None: there is no Python for it.
    gunicorn: Option<usize>,
    excuses: BTreeSet<&'static str>,
}

/// Has requests that we take read by the others, too: who takes one has read the same, who does not
/// has an excuse.
fn compare(inputs: &[Vec<u8>]) -> Compared {
    let gunicorn = gunicorn_requests(inputs);
    let (mut hypers, mut gunicorns) = (0, 0);
    let (mut excuses, mut unexcused) = (BTreeSet::new(), Vec::new());
    for (i, input) in inputs.iter().enumerate() {
        let us = our_request(input).unwrap();
        let mut head = RequestHead::default();
        head.parse(input, &LIMITS).unwrap();
        let mut refused = |reader: &str, error: &str| {
            let excuse = EXCUSES.iter().find(|(who, _, is)| *who == reader && is(input, &head));
            match excuse {
                Some((_, why, _)) => drop(excuses.insert(*why)),
                None => {
                    let input = input.escape_ascii();
                    unexcused.push(format!("{reader} refuses \"{input}\": {error}"));
                }
            }
        };
        match hyper_request(input) {
            Some(hyper) => {
                assert_eq!(hyper, us, "{}", input.escape_ascii());
                hypers += 1;
            }
            None => refused("hyper", ""),
        }
        match gunicorn.as_ref().map(|readings| &readings[i]) {
            Some(Ok(gunicorn)) => {
                // It leaves the target as it came.
                let target = String::from_utf8_lossy(head.target()).into();
                let first = vec![us.first[0].clone(), target];
                assert_eq!(*gunicorn, Seen { first, ..us }, "{}", input.escape_ascii());
                gunicorns += 1;
            }
            Some(Err(error)) => refused("gunicorn", error),
            None => {}
        }
    }
    assert_eq!(unexcused, [""; 0], "{unexcused:#?}");
    println!("{} requests, taken by hyper {hypers}, by gunicorn {gunicorns}", inputs.len());
    Compared { hyper: hypers, gunicorn: gunicorn.map(|_| gunicorns), excuses }
}

/// Different requests that we take, the same in every run: those of the tables and of the fuzzer's
/// corpus, and mutants of them.
fn generated() -> Vec<Vec<u8>> {
    let latin = |(text, _): &(&str, Taken)| text.chars().map(|c| c as u8).collect::<Vec<u8>>();
    let chunks = CHUNKS.iter().map(|case| with_chunks(&latin(case)));
    let corpus = fs::read_dir(repository().join("tests/corpus/request_head")).unwrap();
    let corpus = corpus.map(|file| fs::read(file.unwrap().path()).unwrap());
    let mut seeds: Vec<Vec<u8>> = REQUESTS.iter().map(latin).chain(chunks).chain(corpus).collect();
    seeds.sort();
    seeds.retain(|seed| our_request(seed).is_some());
    let mut random = fastrand::Rng::with_seed(7);
    let mut inputs = BTreeSet::from_iter(seeds.clone());
    while inputs.len() < 500 {
        let mutant = mutate(random.choice(&seeds).unwrap(), &seeds, &mut random);
        if our_request(&mutant).is_some() {
            inputs.insert(mutant);
        }
    }
    inputs.into_iter().collect()
}

/// What gunicorn's parser makes of the requests; None where there is no Python for it.
fn gunicorn_requests(inputs: &[Vec<u8>]) -> Option<Vec<Result<Seen, String>>> {
    let venv = match std::panic::catch_unwind(venv) {
        Ok(venv) => venv,
        Err(_) => {
            eprintln!("skipped: gunicorn's parser, as its virtual environment cannot be made");
            return None;
        }
    };
    let latin = |bytes: &Vec<u8>| bytes.iter().map(|&b| b as char).collect::<String>();
    let texts: Vec<String> = inputs.iter().map(latin).collect();
    let mut stdin = tempfile::tempfile().unwrap();
    stdin.write_all(&serde_json::to_vec(&texts).unwrap()).unwrap();
    stdin.rewind().unwrap();
    let mut python = Command::new(venv.join("python"));
    python.arg(repository().join("tests/gunicorn_parser.py")).stdin(stdin);
    let output = python.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    let readings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    Some(readings.iter().map(gunicorn_reading).collect())
}

fn gunicorn_reading(reading: &Value) -> Result<Seen, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let bytes = |value: &Value| text(value).chars().map(|c| c as u8).collect::<Vec<u8>>();
    if let Some(error) = reading.get("refused") {
        return Err(text(error));
    }
    let fields = reading["fields"].as_array().unwrap().iter();
    Ok(Seen {
        first: vec![text(&reading["method"]), text(&reading["target"])],
        fields: sorted(fields.map(|field| (text(&field[0]), bytes(&field[1])))),
        body: bytes(&reading["body"]),
    })
}

#[test]
fn responses_are_read_as_hyper_reads_them() {
    let cases: &[(&str, Taken)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\nx: z\r\n\r\nhello", Both),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloEXTRA", Both),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", Both),
        ("HTTP/1.1 200 OK\r\n\r\nto the end", Both),
        ("HTTP/1.0 200 OK\r\nX: \t y\r\n\r\nto the end", Both),
        ("HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n", Both),
        ("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", Both),
        ("HTTP/1.1 299 caf\u{e9}\r\nX-O: \u{ff}\r\nContent-Length: 0\r\n\r\n", Both),
        ("HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", Both),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\n\r\n", Both),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            Both,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\nX: y\r\n\r\n",
            Both,
        ),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Neither),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Both,
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", Neither),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Neither),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 500 x\r\n\r\n", Neither),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", Neither),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello", Neither),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello", Neither),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nhello", Neither),
        ("HTTP/1.1 200 OK\r\nX: a\r\n  b\r\nContent-Length: 0\r\n\r\n", Neither),
        ("HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n", Neither),
        ("HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n", Neither),
        ("HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 0\r\n\r\n", Neither),
        ("HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", Neither),
        ("HTTP/1.1 099 x\r\nContent-Length: 0\r\n\r\n", Neither),
        ("HTTP/1.1 abc x\r\nContent-Length: 0\r\n\r\n", Neither),
        ("HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n", Neither),
        ("hello world\r\n\r\n", Neither),
        ("HTTP/1.1 200 OK\r\nContent-Type: te", Neither),
        ("", Neither),
        (
            "HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
            Us("RFC 9110, 2.5: a higher minor version is 1.1"),
        ),
        (
            "HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n",
            Us("RFC 9112, 5.1: a proxy removes whitespace before a colon"),
        ),
        ("\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Hyper("an app sends no empty lines")),
        ("HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", Hyper(BARE_LF)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n", Hyper(BARE_LF)),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            Hyper("the client did not ask for gzip"),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: cow\r\n\r\nto the end",
            Hyper("what we cannot decode we cannot frame"),
        ),
    ];
    check(cases, |input| our_response("GET", input), |input| hyper_response("GET", input));
}

#[test]
fn responses_to_head_are_read_as_hyper_reads_them() {
    let cases: &[(&str, Taken)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", Both),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Both),
        ("HTTP/1.1 200 OK\r\n\r\n", Both),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Both),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n", Neither),
    ];
    check(cases, |input| our_response("HEAD", input), |input| hyper_response("HEAD", input));
}

/// Reads every case with both. The texts of the tables are Latin-1, so that each char is a byte.
fn check(
    cases: &[(&str, Taken)],
    ours: impl Fn(&[u8]) -> Option<Seen>,
    hyper: impl Fn(&[u8]) -> Option<Seen>,
) {
    for (text, expected) in cases {
        let input: Vec<u8> = text.chars().map(|c| c as u8).collect();
        let (ours, hyper) = (ours(&input), hyper(&input));
        let found = match (&ours, &hyper) {
            (Some(ours), Some(hyper)) => {
                assert_eq!(ours, hyper, "{text:?}");
                Both
            }
            (None, None) => Neither,
            (None, Some(_)) => Hyper(""),
            (Some(_), None) => Us(""),
        };
        let as_expected = std::mem::discriminant(&found) == std::mem::discriminant(expected);
        assert!(as_expected, "{text:?}: {found:?}, but the table says {expected:?}");
    }
}

fn our_request(input: &[u8]) -> Option<Seen> {
    let mut head = RequestHead::default();
    let len = head.parse(input, &LIMITS).ok()??;
    let rest = &input[len..];
    let body = match head.body {
        RequestBody::None => Vec::new(),
        RequestBody::Length(length) => rest.get(..usize::try_from(length).ok()?)?.to_vec(),
        RequestBody::Chunked => dechunk(rest, Reason::BadRequest)?,
    };
    let authority = head.authority.map_or(&b""[..], |span| span.of(&head.bytes));
    // Without a path hyper says `/` for OPTIONS, too (and not `*`, as RFC 9112, 3.2.4 has it).
    let path = head.path.of(&head.bytes);
    let prefix: &[u8] = if matches!(path, [] | [b'?', ..]) { b"/" } else { b"" };
    let target = [prefix, path].concat();
    let first =
        [head.method(), authority, &target].map(|part| String::from_utf8_lossy(part).into());
    Some(Seen { first: first.into(), fields: our_fields(&head.fields, &head.bytes), body })
}

fn our_response(method: &str, input: &[u8]) -> Option<Seen> {
    let mut head = ResponseHead::default();
    let mut rest = input;
    loop {
        let len = head.parse(rest, method.as_bytes(), &LIMITS).ok()??;
        rest = &rest[len..];
        if !head.is_informational() {
            break;
        }
    }
    let body = match head.body {
        ResponseBody::None => Vec::new(),
        ResponseBody::Length(length) => rest.get(..usize::try_from(length).ok()?)?.to_vec(),
        ResponseBody::Chunked => dechunk(rest, Reason::InvalidResponse)?,
        ResponseBody::Close => rest.to_vec(),
    };
    let fields = our_fields(&head.fields, &head.bytes);
    Some(Seen { first: vec![head.status.to_string()], fields, body })
}

fn dechunk(input: &[u8], reason: Reason) -> Option<Vec<u8>> {
    let mut buf = input.to_vec();
    let decoded = Chunked::new(reason).decode(&mut buf).ok()?;
    buf.truncate(decoded.payload);
    decoded.done.then_some(buf)
}

fn our_fields(fields: &[Field], bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let fields = fields.iter().map(|field| (field.name.of(bytes), field.value.of(bytes)));
    sorted(
        fields.map(|(name, value)| {
            (String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec())
        }),
    )
}

fn hyper_fields(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    sorted(headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())))
}

fn sorted(fields: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = fields.collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

/// What a hyper server hands to its service, if the whole request arrives there.
fn hyper_request(input: &[u8]) -> Option<Seen> {
    let seen = Rc::new(RefCell::new(None));
    let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                let authority = head.uri.authority().map_or("", |authority| authority.as_str());
                let query = head.uri.query().map(|query| format!("?{query}"));
                let target = head.uri.path().to_owned() + &query.unwrap_or_default();
                *seen.borrow_mut() = Some(Seen {
                    first: vec![head.method.to_string(), authority.into(), target],
                    fields: hyper_fields(&head.headers),
                    body: body.to_bytes().into(),
                });
            }
            Ok::<_, Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
        }
    });
    block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        client.write_all(input).await.unwrap();
        client.shutdown().await.unwrap();
        // One request is enough; what hyper thinks of bytes behind it is not asked.
        let _ = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .keep_alive(false)
            .serve_connection(TokioIo::new(server), service)
            .await;
    });
    seen.take()
}

/// What a hyper client makes of the response, if it is whole.
fn hyper_response(method: &str, input: &[u8]) -> Option<Seen> {
    block_on(async {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(client)).await.ok()?;
        let request = hyper::Request::builder().method(method).uri("/").header("host", "a");
        let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap());
        let app = async {
            let mut request = [0; 1024];
            let _ = server.read(&mut request).await;
            let _ = server.write_all(input).await;
            let _ = server.shutdown().await;
        };
        let client = async {
            let (head, body) = response.await.ok()?.into_parts();
            let body = body.collect().await.ok()?.to_bytes().into();
            let first = vec![head.status.as_u16().to_string()];
            Some(Seen { first, fields: hyper_fields(&head.headers), body })
        };
        let (_, (), seen) = tokio::join!(connection, app, client);
        seen
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
