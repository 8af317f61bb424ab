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
    if !reply.head.is_head() {
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
    let status = if head.method() == b"OPTIONS" { 200 } else { 501 };
    begin(out, status, date);
    out.extend_from_slice(b"Content-Length: 0\r\n");
    connection(out, head.version, keep_alive);
    out.extend_from_slice(b"\r\n");
    status
}

/// A time as the value of a Date line (RFC 9110, 5.6.7), made once a second in each thread.
pub fn date(at: SystemTime) -> [u8; 29] {
    thread_local! {
        static LAST: Cell<(u64, [u8; 29])> = const { Cell::new((0, *b"Thu, 01 Jan 1970 00:00:00 GMT")) };
    }
    // httpdate panics outside of 1970 to 9999: a clock that is lost shows one of the two.
    const END: u64 = 253_402_300_799;
    let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let second = since_epoch.as_secs().min(END);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::tests::request;

    const DATE: &[u8; 29] = b"Sun, 06 Nov 1994 08:49:37 GMT";
    const ID: &[u8] = b"8b6402de-d072-42c4-9854-0f71697b30e5";

    fn reply<'a>(reason: Reason, head: &'a RequestHead) -> Reply<'a> {
        let (request_id, date) = (ID, DATE);
        Reply {
            reason,
            head,
            request_id,
            keep_alive: false,
            error_page: None,
            date,
            retry_after: 2,
        }
    }

    /// The head and the body, with bare newlines; checks what `write` says of the head's length.
    fn written(reply: &Reply<'_>) -> (String, String) {
        let mut out = b"before".to_vec();
        let head_length = write(&mut out, reply);
        let body = String::from_utf8(out.split_off(6 + head_length)).unwrap();
        assert!(out.ends_with(b"\r\n\r\n"));
        (String::from_utf8(out.split_off(6)).unwrap().replace("\r\n", "\n"), body)
    }

    fn get(accept: &str) -> RequestHead {
        request(&format!("GET / HTTP/1.1\nHost: a\n{accept}"))
    }

    #[test]
    fn plain_text_says_one_sentence_and_the_request_id() {
        let (head, body) = written(&reply(Reason::QueueFull, &get("Accept: */*\n")));
        assert_eq!(
            head,
            "HTTP/1.1 503 Service Unavailable\nDate: Sun, 06 Nov 1994 08:49:37 GMT\n\
             Content-Type: text/plain; charset=utf-8\nContent-Length: 103\n\
             Cache-Control: no-store\nRetry-After: 2\nConnection: close\n\n"
        );
        assert_eq!(
            body,
            "This site is very busy. Please try again in a moment.\n\
             Request id: 8b6402de-d072-42c4-9854-0f71697b30e5\n"
        );
    }

    #[test]
    fn browsers_get_html() {
        let (head, body) = written(&reply(Reason::BodyTooLarge, &get("Accept: text/html\n")));
        assert!(head.contains("\nContent-Type: text/html; charset=utf-8\n"), "{head}");
        assert_eq!(
            body,
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n\
             <title>413 Content Too Large</title>\n<h1>Content Too Large</h1>\n\
             <p>The request body is larger than this site accepts.</p>\n\
             <p>Request id: <code>8b6402de-d072-42c4-9854-0f71697b30e5</code></p>\n"
        );
    }

    #[test]
    fn html_only_where_accept_names_it() {
        for (accept, html) in [
            ("", false),
            ("Accept: */*\n", false),
            ("Accept: text/*\n", false),
            ("Accept: application/json, text/plain\n", false),
            ("Accept: text/html;q=0\n", false),
            ("Accept: text/html; q=0.000, */*\n", false),
            ("Accept: text/htmlx\n", false),
            ("Accept: text/html\n", true),
            ("Accept: Text/HTML;q=0.1\n", true),
            ("Accept: application/json, application/xhtml+xml ;q=0.9,*/*;q=0.8\n", true),
            ("Accept: application/json\nAccept: text/html\n", true),
        ] {
            let (head, _) = written(&reply(Reason::AppTimeout, &get(accept)));
            assert_eq!(head.contains("text/html"), html, "{accept}");
            assert_eq!(head.contains("text/plain"), !html, "{accept}");
        }
    }

    #[test]
    fn every_reason_with_a_status_is_a_whole_response() {
        let head = get("");
        for reason in Reason::ALL {
            if matches!(reason.status(), 0 | 499) {
                continue;
            }
            let (head, body) = written(&reply(reason, &head));
            assert!(head.starts_with(&format!("HTTP/1.1 {} ", reason.status())), "{head}");
            assert!(!head.contains("Unknown"), "{head}");
            assert!(head.contains(&format!("\nContent-Length: {}\n", body.len())), "{head}");
            assert_eq!(head.contains("\nRetry-After: 2\n"), reason.status() == 503, "{head}");
            assert!(body.starts_with(reason.sentence()), "{body}");
        }
    }

    #[test]
    fn head_gets_the_length_of_the_body_and_no_body() {
        let asked = request("HEAD / HTTP/1.1\nHost: a\n");
        let (head, body) = written(&reply(Reason::QueueFull, &asked));
        assert!(head.contains("\nContent-Length: 103\n"), "{head}");
        assert_eq!(body, "");
    }

    #[test]
    fn connection_is_said_as_the_clients_version_needs_it() {
        let (http10, http11) = (request("GET / HTTP/1.0\n"), get(""));
        for (head, keep_alive, line) in [
            (&http11, true, None),
            (&http11, false, Some("Connection: close")),
            (&http10, true, Some("Connection: keep-alive")),
            (&http10, false, Some("Connection: close")),
        ] {
            let (head, _) = written(&Reply { keep_alive, ..reply(Reason::QueueFull, head) });
            assert_eq!(head.lines().find(|l| l.starts_with("Connection")), line);
        }
    }

    #[test]
    fn the_error_page_is_the_body_of_every_5xx_and_of_nothing_else() {
        let page = Some("<h1>caf\u{e9}</h1>".as_bytes());
        let asked = get("Accept: application/json\n");
        let (head, body) =
            written(&Reply { error_page: page, ..reply(Reason::AppUnavailable, &asked) });
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(head.contains("\nContent-Type: text/html; charset=utf-8\nContent-Length: 14\n"));
        assert_eq!(body, "<h1>caf\u{e9}</h1>");
        let (head, body) =
            written(&Reply { error_page: page, ..reply(Reason::BadRequest, &asked) });
        assert!(head.contains("\nContent-Type: text/plain; charset=utf-8\n"), "{head}");
        assert!(body.starts_with("The request is not valid HTTP."), "{body}");
    }

    #[test]
    fn a_request_that_could_not_be_read_is_answered_in_text_without_an_id() {
        let unread = RequestHead::default();
        let (head, body) =
            written(&Reply { request_id: b"", ..reply(Reason::BadRequest, &unread) });
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\n"), "{head}");
        assert_eq!(body, "The request is not valid HTTP.\n");
    }

    #[test]
    fn a_request_id_that_is_not_strict_is_not_said_back() {
        let asked = get("Accept: text/html\n");
        let request_id = b"<script>0123456789012345</script>";
        let (_, body) = written(&Reply { request_id, ..reply(Reason::BadRequest, &asked) });
        assert!(!body.contains("script") && !body.contains("Request id"), "{body}");
    }

    #[test]
    fn requests_that_may_not_be_forwarded_are_answered_here() {
        for (method, status, line) in
            [("OPTIONS", 200, "HTTP/1.1 200 OK"), ("TRACE", 501, "HTTP/1.1 501 Not Implemented")]
        {
            let head = request(&format!("{method} / HTTP/1.1\nHost: a\nMax-Forwards: 0\n"));
            let mut out = Vec::new();
            assert_eq!(write_max_forwards(&mut out, &head, true, DATE), status);
            let expected =
                format!("{line}\r\nDate: {}\r\nContent-Length: 0\r\n\r\n", DATE.escape_ascii());
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn a_date_is_that_of_its_second() {
        for second in [1_763_888_400, 1_763_888_401, 0] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(second * 1000 + 999);
            let text = date(at);
            let read = httpdate::parse_http_date(str::from_utf8(&text).unwrap()).unwrap();
            assert_eq!(read, SystemTime::UNIX_EPOCH + Duration::from_secs(second));
            assert_eq!(&text[26..], b"GMT");
        }
    }

    #[test]
    fn no_status_is_without_a_phrase() {
        assert!((100..=599).all(|status| !phrase(status).is_empty()));
        assert_eq!(phrase(431), "Request Header Fields Too Large");
    }
}
