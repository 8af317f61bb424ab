//! Mutated messages: whatever comes, no parser panics, and the verdict does not depend on how the
//! bytes were split into reads. The seeds are fixed: a failure repeats.

use super::field::{Sender, walk};
use super::*;
use mutate::mutate;

// What the tests against the binary use, too.
#[path = "../../tests/it/support/mutate.rs"]
mod mutate;

const LIMITS: Limits = Limits { head: 1 << 10, fields: 12 };

const REQUESTS: [&str; 7] = [
    "GET /a?b HTTP/1.1\r\nHost: a.test\r\nUser-Agent: x y\r\nAccept: */*\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.test:80\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n0\r\n\r\n",
    "\r\nGET http://b.test?q HTTP/1.0\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX_Y:\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n",
];

const RESPONSES: [&str; 4] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nConnection: close\r\nX : y\r\n\r\nhello",
    "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream; a\r\n\r\n",
    "HTTP/1.0 404 Not Found\r\nX-Accel-Buffering: no\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 304 x\r\nContent-Length: 9\r\n\r\n",
];

const BODIES: [&str; 4] = [
    "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    "1A;a=b;c=\"q\\\";r\"\r\nabcdefghijklmnopqrstuvwxyz\r\n0;x\r\nX-Sum: 1\r\nY: 2\r\n\r\nGET /",
    "1\r\na\r\n1\r\nb\r\n1 ;e\r\nc\r\n2\r\n\r\n\r\n0\r\n\r\n",
    "00ff\r\n0\r\n\r\n0\r\n\r\n0\r\n\r\n",
];

/// What is there at the first read after which a parser says anything, if the message comes in
/// pieces of random size.
fn in_pieces<T: PartialEq>(
    message: &[u8],
    rng: &mut fastrand::Rng,
    mut parse: impl FnMut(&[u8]) -> Result<Option<usize>, T>,
) -> Result<Option<usize>, T> {
    let mut end = 0;
    while end < message.len() {
        end = (end + rng.usize(1..20)).min(message.len());
        let verdict = parse(&message[..end]);
        if !matches!(verdict, Ok(None)) {
            return verdict;
        }
    }
    Ok(None)
}

#[test]
fn mutated_requests_have_one_reading() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut head = RequestHead::default();
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..6000 {
        let message = mutate(REQUESTS[round % REQUESTS.len()].as_bytes(), &REQUESTS, &mut rng);
        let shown = message.escape_ascii();
        let split = in_pieces(&message, &mut rng, |input| head.parse(input, &LIMITS));
        let whole = head.parse(&message, &LIMITS);
        // Only the rule may differ: a later read may show a violation that comes before.
        assert_eq!(split.is_err(), whole.is_err(), "{shown}");
        match whole {
            Ok(Some(len)) => {
                assert_eq!(split, whole, "{shown}");
                assert!(message[..len].ends_with(&head.bytes), "{shown}");
                assert_is_clean(&head.bytes, &head.fields, head.line.end as usize + 2);
                for span in head.connection_names.iter().chain(&head.authority) {
                    assert!(!span.of(&head.bytes).is_empty(), "{shown}");
                }
                assert!(head.path.of(&head.bytes).len() <= head.target().len());
                accepted += 1;
            }
            Ok(None) => assert_eq!(split, Ok(None), "{shown}"),
            Err(_) => {
                let _ = (head.method(), head.target(), head.line.of(&head.bytes));
                head.fields.iter().for_each(|f| assert!(!f.name.of(&head.bytes).is_empty()));
                refused += 1;
            }
        }
    }
    assert!(accepted > 1000 && refused > 1000, "{accepted} {refused}");
}

#[test]
fn mutated_responses_have_one_reading() {
    let mut rng = fastrand::Rng::with_seed(2);
    let mut head = ResponseHead::default();
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..6000 {
        let message = mutate(RESPONSES[round % RESPONSES.len()].as_bytes(), &RESPONSES, &mut rng);
        let shown = message.escape_ascii();
        let split = in_pieces(&message, &mut rng, |input| head.parse(input, b"GET", &LIMITS));
        let whole = head.parse(&message, b"GET", &LIMITS);
        assert_eq!(split.is_err(), whole.is_err(), "{shown}");
        if let Ok(Some(len)) = whole {
            assert_eq!(split, whole, "{shown}");
            assert_eq!(head.bytes, &message[..len]);
            let line = head.reason.end as usize;
            let fields = if head.bytes[line] == b' ' { line + 3 } else { line + 2 };
            assert_is_clean(&head.bytes, &head.fields, fields);
            accepted += 1;
        }
        refused += usize::from(whole.is_err());
    }
    assert!(accepted > 1000 && refused > 1000, "{accepted} {refused}");
}

/// What every accepted head keeps, and that the reference reads the same fields.
fn assert_is_clean(bytes: &[u8], fields: &[Field], start: usize) {
    let shown = bytes.escape_ascii();
    assert!(bytes.ends_with(b"\r\n\r\n"), "{shown}");
    let ends = bytes.windows(2).filter(|pair| pair == b"\r\n").count();
    let controls = bytes.iter().filter(|&&b| (b < b' ' && b != b'\t') || b == 0x7f).count();
    assert_eq!(controls, 2 * ends, "{shown}");
    assert_eq!(ends, fields.len() + 2, "{shown}");
    let mut reference = Vec::new();
    assert_eq!(walk(bytes, start, Sender::App, &mut reference), Ok(bytes.len()), "{shown}");
    assert_eq!(reference, fields, "{shown}");
}

#[test]
fn mutated_chunks_have_one_reading() {
    let mut rng = fastrand::Rng::with_seed(3);
    let (mut complete, mut refused) = (0, 0);
    for round in 0..6000 {
        let message = mutate(BODIES[round % BODIES.len()].as_bytes(), &BODIES, &mut rng);
        let whole = decode(&message, || usize::MAX);
        let split = decode(&message, || rng.usize(1..9));
        assert_eq!(whole, split, "{}", message.escape_ascii());
        complete += usize::from(matches!(whole, Ok(Body { done: true, .. })));
        refused += usize::from(whole.is_err());
    }
    assert!(complete > 500 && refused > 1000, "{complete} {refused}");
}

/// What came of a body up to its end, nothing up to a violation.
#[derive(Debug, Default, PartialEq, Eq)]
struct Body {
    payload: Vec<u8>,
    trailers: Vec<u8>,
    consumed: usize,
    done: bool,
}

fn decode(mut rest: &[u8], mut size: impl FnMut() -> usize) -> Result<Body, Violation> {
    let mut chunked = Chunked::default();
    let mut body = Body::default();
    while !rest.is_empty() && !body.done {
        let (piece, after) = rest.split_at(size().min(rest.len()));
        let mut piece = piece.to_vec();
        let decoded = chunked.decode(&mut piece)?;
        assert!(decoded.done || decoded.consumed == piece.len());
        body.payload.extend_from_slice(&piece[..decoded.payload]);
        body.consumed += decoded.consumed;
        body.done = decoded.done;
        rest = after;
    }
    body.trailers = chunked.trailers().to_vec();
    Ok(body)
}
