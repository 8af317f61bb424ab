//! Our own answers (design section 8): what a visitor sees when the app was not asked or did not
//! answer. Called by the exchange with a reason; the status and the sentence are the reason's.
//! Nothing of the request is said back but the request id, and that only in its strict form.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::Write;
use std::time::{Duration, SystemTime};

use crate::error::Reason;
use crate::exchange::client_head::connection;
use crate::exchange::forward::is_request_id;
use crate::http1::{FieldId, RequestHead};

/// What `write` needs.
pub struct Reply<'a> {
    /// One that has a status.
    pub reason: Reason,
    /// The request, as far as it could be read: HEAD gets no body, `Accept` chooses HTML or text.
    pub head: &'a RequestHead,
    /// Said in the body so that a visitor can quote it; may be empty.
    pub request_id: &'a [u8],
    pub keep_alive: bool,
    /// The file of `error-page`, read at start: UTF-8 HTML, the body of every 5xx whatever `Accept`
    /// says, as nginx's `error_page`. The status stays.
    pub error_page: Option<&'a [u8]>,
    pub date: &'a [u8; 29],
    /// Seconds for Retry-After with a 503.
    pub retry_after: u32,
}

/// Appends a whole response; gives the length of its head.
pub fn write(out: &mut Vec<u8>, reply: &Reply<'_>) -> usize {
    let status = reply.reason.status();
    let page = reply.error_page.filter(|_| status >= 500);
    let html = page.is_some() || accepts_html(reply.head);
    let body = page.map_or_else(|| Cow::Owned(body(reply, status, html)), Cow::Borrowed);

    let start = out.len();
    out.reserve(256 + body.len());
    begin(out, status, reply.date);
    out.extend_from_slice(if html {
        b"Content-Type: text/html; charset=utf-8\r\n"
    } else {
        b"Content-Type: text/plain; charset=utf-8\r\n"
    });
    out.extend_from_slice(b"Content-Length: ");
    out.extend_from_slice(itoa::Buffer::new().format(body.len()).as_bytes());
    // No cache may serve it when the trouble is over.
    out.extend_from_slice(b"\r\nCache-Control: no-store\r\n");
    if status == 503 {
        out.extend_from_slice(b"Retry-After: ");
        out.extend_from_slice(itoa::Buffer::new().format(reply.retry_after).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    connection(out, reply.head.version, reply.keep_alive);
    out.extend_from_slice(b"\r\n");
    let head_length = out.len() - start;
    if reply.head.method.of(&reply.head.bytes) != b"HEAD" {
        out.extend_from_slice(&body);
    }
    head_length
}

/// Appends the answer to a request that may not be forwarded (`forward::max_forwards_zero`), which
/// has no body, and gives its status. OPTIONS is answered 200 (RFC 9110, 9.3.7). TRACE is 501: we
/// do not reflect requests, whose cookies a script could then read.
pub fn write_max_forwards(
    out: &mut Vec<u8>,
    head: &RequestHead,
    keep_alive: bool,
    date: &[u8; 29],
) -> u16 {
    let status = if head.method.of(&head.bytes) == b"OPTIONS" { 200 } else { 501 };
    begin(out, status, date);
    out.extend_from_slice(b"Content-Length: 0\r\n");
    connection(out, head.version, keep_alive);
    out.extend_from_slice(b"\r\n");
    status
}

/// The time as the value of a Date line (RFC 9110, 5.6.7), made once a second in each thread.
pub fn date_now() -> [u8; 29] {
    thread_local! {
        static LAST: Cell<(u64, [u8; 29])> = const { Cell::new((0, *b"Thu, 01 Jan 1970 00:00:00 GMT")) };
    }
    // httpdate panics outside of 1970 to 9999: a clock that is lost shows one of the two.
    const END: u64 = 253_402_300_799;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let second = now.as_secs().min(END);
    let (last, mut date) = LAST.get();
    if last != second {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        write!(&mut date[..], "{}", httpdate::HttpDate::from(time)).expect("it is 29 bytes");
        LAST.set((second, date));
    }
    date
}

/// Reason phrase of a status: the registered one (RFC 9110, 15 and IANA), never empty.
pub fn phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a Teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "Unknown",
    }
}

/// Status line and Date.
fn begin(out: &mut Vec<u8>, status: u16, date: &[u8; 29]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(phrase(status).as_bytes());
    out.extend_from_slice(b"\r\nDate: ");
    out.extend_from_slice(date);
    out.extend_from_slice(b"\r\n");
}

/// The sentence and the request id, as HTML or plain text.
fn body(reply: &Reply<'_>, status: u16, html: bool) -> Vec<u8> {
    let phrase = phrase(status);
    let sentence = reply.reason.sentence();
    let id = Some(reply.request_id).filter(|id| is_request_id(id));
    let id = id.and_then(|id| str::from_utf8(id).ok());
    if !html {
        let id = id.map_or(String::new(), |id| format!("Request id: {id}\n"));
        return format!("{sentence}\n{id}").into_bytes();
    }
    let id = id.map_or(String::new(), |id| format!("<p>Request id: <code>{id}</code></p>\n"));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{status} {phrase}</title>\n<h1>{phrase}</h1>\n<p>{sentence}</p>\n{id}"
    )
    .into_bytes()
}

/// Accept names an HTML type: browsers do, curl and API clients (`*/*`) do not.
fn accepts_html(head: &RequestHead) -> bool {
    head.fields
        .iter()
        .filter(|f| f.id == FieldId::Accept)
        .flat_map(|f| f.value.of(&head.bytes).split(|&b| b == b','))
        .any(|range| {
            let mut parts = range.split(|&b| b == b';').map(<[u8]>::trim_ascii);
            let named = parts.next().is_some_and(|media| {
                media.eq_ignore_ascii_case(b"text/html")
                    || media.eq_ignore_ascii_case(b"application/xhtml+xml")
            });
            named && !parts.any(is_weight_zero)
        })
}

/// `q=0`, `q=0.000`: not acceptable (RFC 9110, 12.4.2).
fn is_weight_zero(parameter: &[u8]) -> bool {
    match parameter {
        [b'q' | b'Q', b'=', weight @ ..] => weight.iter().all(|b| matches!(b, b'0' | b'.')),
        _ => false,
    }
}
