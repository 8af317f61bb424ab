//! The request head as the app gets it (design section 7). Pure: no I/O, no clock.
//!
//! The exchange calls `write` when the head is parsed and `finish` when the body is complete. What
//! must stay true: one request line, one Host, one body length, and nothing in it that a peer
//! without trust could have set to pass for another.
//!
//! | field | peer not trusted | trusted, `preserve` | trusted, `append` | trusted, `replace` |
//! |---|---|---|---|---|
//! | X-Forwarded-For | peer | as it came, else client | as it came, then peer | client |
//! | X-Real-Ip | peer | as it came, else client | client | client |
//! | Forwarded, only where it came | made anew | as it came | as it came, then peer | made anew |
//! | X-Forwarded-Proto | `http` | scheme | scheme | scheme |
//! | X-Forwarded-Host | Host | as it came | as it came | as it came |
//! | X-Forwarded-Port | of Host, or 80 | as it came | as it came | as it came |
//! | X-Forwarded-By, -Server, -Prefix | – | as it came | as it came | as it came |
//! | the field of `real-ip-header` | – | as it came | as it came | as it came |
//! | X-Request-Start, X-Queue-Start | our clock | theirs, in milliseconds | likewise | likewise |
//!
//! "Client" and "scheme" are what `trust` resolved; an empty field counts as one that did not come.
//! Always one X-Forwarded-Proto, lower case: gunicorn takes anything else for http. X-Queue-Start
//! becomes X-Request-Start, because agents that read it first would miss that the latter was moved
//! on. X-Forwarded-Ssl, -Protocol, -Scheme and Front-End-Https are never passed: gunicorn answers
//! 400 where they contradict X-Forwarded-Proto.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use crate::config::{Config, Forwarded, Peer};
use crate::http1::{Field, FieldId, Lines, RequestHead, Span, Version, all};
use crate::text::address;
use crate::trust::{Resolved, real_ip_header};

/// What `ForwardedHead::write` needs beside the head.
pub struct Forward<'a> {
    pub config: &'a Config,
    pub peer: Peer,
    /// The address that the client connected to, if TCP: the Host of an HTTP/1.0 request without.
    pub local: Option<SocketAddr>,
    pub resolved: Resolved,
    /// Milliseconds since 1970 of the first byte of the head.
    pub started_ms: u64,
    /// The app's connection may be used again (`upstream-keepalive`).
    pub keep_alive: bool,
}

/// A forwarded head: lines with their CRLF, without Content-Length and the empty line, which
/// `finish` adds when the body is complete. The value is reused: its capacity is kept.
#[derive(Debug, Default)]
pub struct ForwardedHead {
    pub bytes: Vec<u8>,
    /// The 13 digits of X-Request-Start in `bytes`.
    pub request_start: Span,
    /// X-Request-Id in `bytes`.
    pub request_id: Span,
    /// What the 13 digits say.
    start_ms: u64,
}

impl ForwardedHead {
    /// Writes the head for the app into `self` (cleared first, capacity kept).
    pub fn write(&mut self, head: &RequestHead, with: &Forward<'_>) {
        let Forward { config, resolved, .. } = *with;
        let trusted = resolved.trusted;
        let preserve = trusted && config.forwarded == Forwarded::Preserve;
        let append = trusted && config.forwarded == Forwarded::Append;
        let host = host(head);

        let out = &mut self.bytes;
        out.clear();
        // Host may be written twice more (X-Forwarded-Host, Forwarded), the rest is bounded.
        out.reserve(head.bytes.len() + 2 * host.map_or(0, <[u8]>::len) + 512);
        if config.upstream_proxy_protocol {
            proxy_line(out, with);
        }
        request_line(out, head);
        match host {
            Some(host) => line(out, b"Host: ", host),
            None => local_host(out, with.local),
        }

        let mut forwarded_for_came = false;
        let mut real_ip_came = false;
        let mut forwarded_came = false;
        let mut via_came = false;
        let mut request_id = None;
        let mut request_start = None;
        let mut queue_start = None;
        let mut lines = Lines::of(&head.bytes);
        let real_ip = real_ip_header(config);
        // By no rule but these two: the field of `real-ip-header` counts from trusted peers alone, whose
        // Connection may be a client's; another one's Connection takes its own fields away.
        let is_passed = |field: &Field| match real_ip {
            Some(name) if field.name.of(&head.bytes).eq_ignore_ascii_case(name.as_bytes()) => {
                trusted
            }
            _ => !named_in_connection(head, field),
        };
        for field in &head.fields {
            let value = field.value.of(&head.bytes);
            let pass = match field.id {
                // Of this connection, not of the request (RFC 9110, 7.6.1), or written by us.
                FieldId::Connection
                | FieldId::ContentLength
                | FieldId::Expect
                | FieldId::Host
                | FieldId::Http2Settings
                | FieldId::KeepAlive
                | FieldId::ProxyAuthenticate
                | FieldId::ProxyAuthorization
                | FieldId::ProxyConnection
                | FieldId::Te
                | FieldId::Trailer
                | FieldId::TransferEncoding
                | FieldId::XForwardedProto => false,
                // The offer of another protocol, if it is one that can be taken up.
                FieldId::Upgrade => head.upgrade,
                // CGI and WSGI would make HTTP_PROXY of it, which HTTP clients in the app obey.
                FieldId::Proxy => false,
                FieldId::FrontEndHttps
                | FieldId::XForwardedProtocol
                | FieldId::XForwardedScheme
                | FieldId::XForwardedSsl => false,
                FieldId::XForwardedFor => {
                    forwarded_for_came |= !value.is_empty();
                    preserve && !value.is_empty()
                }
                FieldId::XRealIp => {
                    real_ip_came |= !value.is_empty();
                    preserve && !value.is_empty()
                }
                FieldId::Forwarded => {
                    forwarded_came |= !value.is_empty();
                    preserve && !value.is_empty()
                }
                FieldId::XForwardedBy
                | FieldId::XForwardedHost
                | FieldId::XForwardedPort
                | FieldId::XForwardedPrefix
                | FieldId::XForwardedServer => trusted && !value.is_empty(),
                FieldId::XRequestId => {
                    if request_id.is_none() && is_request_id(value) {
                        request_id = Some(value);
                    }
                    false
                }
                FieldId::XRequestStart => {
                    request_start = request_start.or_else(|| milliseconds(value));
                    false
                }
                FieldId::XQueueStart => {
                    queue_start = queue_start.or_else(|| milliseconds(value));
                    false
                }
                FieldId::MaxForwards if is_options_or_trace(head) => {
                    lines.copy(out);
                    max_forwards(out, field, head);
                    false
                }
                // A client that names these in Connection cannot take them away.
                FieldId::Authorization | FieldId::Cookie => true,
                // One line with ours.
                FieldId::Via => {
                    via_came |= !value.is_empty();
                    false
                }
                FieldId::Underscore => {
                    let name = field.name.of(&head.bytes);
                    config.allow_underscore.iter().any(|a| name.eq_ignore_ascii_case(a.as_bytes()))
                        && is_passed(field)
                }
                _ => is_passed(field),
            };
            if pass {
                lines.add(out, field);
            }
        }
        lines.copy(out);

        if head.upgrade {
            out.extend_from_slice(b"Connection: upgrade\r\n");
        } else if !with.keep_alive {
            out.extend_from_slice(b"Connection: close\r\n");
        }
        if append && forwarded_for_came {
            out.extend_from_slice(b"X-Forwarded-For: ");
            joined(out, head, FieldId::XForwardedFor);
            if let Some(ip) = with.peer.ip() {
                out.extend_from_slice(b", ");
                address(out, ip);
            }
            out.extend_from_slice(CRLF);
        } else if let Some(ip) = resolved.client
            && !(preserve && forwarded_for_came)
        {
            address_line(out, b"X-Forwarded-For: ", ip);
        }
        if let Some(ip) = resolved.client
            && !(preserve && real_ip_came)
        {
            address_line(out, b"X-Real-Ip: ", ip);
        }
        line(out, b"X-Forwarded-Proto: ", resolved.scheme.as_bytes());
        if !trusted && let Some(host) = host {
            line(out, b"X-Forwarded-Host: ", host);
            line(out, b"X-Forwarded-Port: ", port(host, resolved.scheme));
        }
        if forwarded_came && !preserve {
            out.extend_from_slice(b"Forwarded: ");
            if append {
                joined(out, head, FieldId::Forwarded);
                out.extend_from_slice(b", ");
            }
            let node = if append { with.peer.ip() } else { resolved.client };
            forwarded_element(out, node, host, resolved.scheme);
            out.extend_from_slice(CRLF);
        }

        out.extend_from_slice(b"X-Request-Id: ");
        let start = out.len();
        match request_id {
            Some(id) => out.extend_from_slice(id),
            None => out.extend_from_slice(&uuid()),
        }
        self.request_id = Span::new(start, out.len());

        // A front whose clock is ahead of ours would put the start into the future, which agents
        // throw away.
        let theirs = if trusted { request_start.or(queue_start) } else { None };
        self.start_ms = theirs.unwrap_or(u64::MAX).min(with.started_ms);
        out.extend_from_slice(b"\r\nX-Request-Start: ");
        let start = out.len();
        out.extend_from_slice(&thirteen_digits(self.start_ms));
        self.request_start = Span::new(start, out.len());

        out.extend_from_slice(b"\r\nVia: ");
        if via_came {
            joined(out, head, FieldId::Via);
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(match head.version {
            Version::Http10 => b"1.0 bufproxy\r\n",
            Version::Http11 => b"1.1 bufproxy\r\n",
        });
    }

    /// Ends the head, once: X-Request-Start is moved on by `receive_ms` (time that the client took
    /// to send its body, so that slow clients do not count as queueing), never beyond `now_ms`;
    /// `Content-Length` where the request has a body.
    pub fn finish(&mut self, receive_ms: u64, now_ms: u64, content_length: Option<u64>) {
        let start_ms = self.start_ms.saturating_add(receive_ms).min(now_ms);
        if start_ms != self.start_ms {
            self.bytes[self.request_start.start as usize..self.request_start.end as usize]
                .copy_from_slice(&thirteen_digits(start_ms));
        }
        if let Some(length) = content_length {
            line(
                &mut self.bytes,
                b"Content-Length: ",
                itoa::Buffer::new().format(length).as_bytes(),
            );
        }
        self.bytes.extend_from_slice(CRLF);
    }
}

/// OPTIONS or TRACE with `Max-Forwards: 0`: to be answered here, not forwarded (RFC 9110, 7.6.2);
/// see `reply::write_max_forwards`.
pub fn max_forwards_zero(head: &RequestHead) -> bool {
    is_options_or_trace(head) && head.get(FieldId::MaxForwards).and_then(number) == Some(0)
}

/// The form of X-Request-Id that is kept: Heroku's, 20 to 200 of `A-Za-z0-9+/=-`.
pub fn is_request_id(value: &[u8]) -> bool {
    (20..=200).contains(&value.len())
        && all(value, |b| {
            let is_letter = (b | 0x20).wrapping_sub(b'a') < 26;
            is_letter | b.is_ascii_digit() | (b == b'+') | (b == b'/') | (b == b'=') | (b == b'-')
        })
}

const CRLF: &[u8] = b"\r\n";

/// `name` ends with its colon and a space. Inlined, so that it is copied without a call.
#[inline(always)]
fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(value);
    out.extend_from_slice(CRLF);
}

/// Method, target and version. Of the target only the form changes (RFC 9112, 3.2.1).
fn request_line(out: &mut Vec<u8>, head: &RequestHead) {
    match head.authority {
        // As it came.
        None => out.extend_from_slice(&head.bytes[..head.path.end as usize]),
        Some(_) => {
            out.extend_from_slice(head.method());
            out.extend_from_slice(b" ");
            out.extend_from_slice(head.path_prefix());
            out.extend_from_slice(head.path.of(&head.bytes));
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// What the client asked for: the authority of an absolute-form target wins over Host.
fn host(head: &RequestHead) -> Option<&[u8]> {
    match head.authority {
        Some(authority) => Some(authority.of(&head.bytes)),
        None => head.get(FieldId::Host),
    }
}

/// Host for an HTTP/1.0 client that sent none: what we send on is HTTP/1.1 and has to have one.
fn local_host(out: &mut Vec<u8>, local: Option<SocketAddr>) {
    out.extend_from_slice(b"Host: ");
    match local {
        Some(local) => {
            let local = SocketAddr::new(local.ip().to_canonical(), local.port());
            write!(out, "{local}").expect("writing to a Vec does not fail");
        }
        None => out.extend_from_slice(b"localhost"),
    }
    out.extend_from_slice(CRLF);
}

/// The port of a Host value, else the scheme's.
fn port<'a>(host: &'a [u8], scheme: &str) -> &'a [u8] {
    let digits = host.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let (name, port) = host.split_at(host.len() - digits);
    match name {
        [.., b':'] if digits > 0 => port,
        _ if scheme == "https" => b"443",
        _ => b"80",
    }
}

#[inline]
fn named_in_connection(head: &RequestHead, field: &Field) -> bool {
    if head.connection_names.is_empty() {
        return false;
    }
    let name = field.name.of(&head.bytes);
    head.connection_names.iter().any(|n| name.eq_ignore_ascii_case(n.of(&head.bytes)))
}

/// PROXY protocol, version 1 (proxy-protocol.txt, 2.1): the client that was resolved, so that the app
/// has its REMOTE_ADDR. Its port is known only where it is the peer itself.
fn proxy_line(out: &mut Vec<u8>, with: &Forward<'_>) {
    let Some(client) = with.resolved.client else {
        return out.extend_from_slice(b"PROXY UNKNOWN\r\n");
    };
    let port = match with.peer {
        Peer::Ip(peer) if peer.ip() == client => peer.port(),
        _ => 0,
    };
    // Both addresses are of one family; what a proxy in front connected to is not the client's.
    let (family, none) = match client {
        IpAddr::V4(_) => ("TCP4", IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
        IpAddr::V6(_) => ("TCP6", IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)),
    };
    let ours = with.local.filter(|local| local.is_ipv4() == client.is_ipv4());
    let (to, to_port) = ours.map_or((none, 0), |local| (local.ip(), local.port()));
    // Writing to memory cannot fail.
    let _ = write!(out, "PROXY {family} {client} {to} {port} {to_port}\r\n");
}

/// All values of one field as one list, in order.
fn joined(out: &mut Vec<u8>, head: &RequestHead, id: FieldId) {
    let mut separator: &[u8] = b"";
    for field in head.fields.iter().filter(|f| f.id == id && !f.value.is_empty()) {
        out.extend_from_slice(separator);
        out.extend_from_slice(field.value.of(&head.bytes));
        separator = b", ";
    }
}

fn address_line(out: &mut Vec<u8>, name: &[u8], ip: IpAddr) {
    out.extend_from_slice(name);
    address(out, ip);
    out.extend_from_slice(CRLF);
}

/// One element of Forwarded (RFC 7239, 4).
fn forwarded_element(out: &mut Vec<u8>, ip: Option<IpAddr>, host: Option<&[u8]>, scheme: &str) {
    out.extend_from_slice(b"for=");
    match ip {
        Some(ip @ IpAddr::V4(_)) => address(out, ip),
        Some(ip @ IpAddr::V6(_)) => {
            out.extend_from_slice(b"\"[");
            address(out, ip);
            out.extend_from_slice(b"]\"");
        }
        None => out.extend_from_slice(b"unknown"),
    }
    // Quoted for the colon of a port; a valid host holds nothing that would need an escape.
    if let Some(host) = host {
        out.extend_from_slice(b";host=\"");
        out.extend_from_slice(host);
        out.extend_from_slice(b"\"");
    }
    out.extend_from_slice(b";proto=");
    out.extend_from_slice(scheme.as_bytes());
}

fn is_options_or_trace(head: &RequestHead) -> bool {
    matches!(head.method(), b"OPTIONS" | b"TRACE")
}

/// Max-Forwards less one (RFC 9110, 7.6.2); what is not a number is passed as it came.
fn max_forwards(out: &mut Vec<u8>, field: &Field, head: &RequestHead) {
    let value = field.value.of(&head.bytes);
    let name = field.name.of(&head.bytes);
    out.extend_from_slice(name);
    match number(value) {
        Some(n) => line(out, b": ", itoa::Buffer::new().format(n.saturating_sub(1)).as_bytes()),
        None => line(out, b": ", value),
    }
}

/// A decimal number without sign; `u64::MAX` stands for what is larger.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |n: u64, b| n.saturating_mul(10).saturating_add((b - b'0').into())))
}

/// X-Request-Start in any of the forms that routers write: seconds with or without a fraction
/// (nginx's `t=${msec}`), milliseconds (Heroku), microseconds (Apache), nanoseconds (Render), with
/// or without `t=`. The magnitude tells the unit; a time outside of 2001 to 2286 is none.
fn milliseconds(value: &[u8]) -> Option<u64> {
    // Heroku's.
    if let Some(digits) = value.as_array::<13>()
        && all(digits, |b| b.is_ascii_digit())
    {
        return Some(digits.iter().fold(0, |n, b| 10 * n + u64::from(b - b'0')));
    }
    let value = value.strip_prefix(b"t=").unwrap_or(value);
    let (whole, fraction) = match memchr::memchr(b'.', value) {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = number(whole)?;
    let thousandths = || {
        let mut digits = fraction.iter().map(|b| u64::from(b - b'0'));
        (0..3).fold(0, |n, _| n * 10 + digits.next().unwrap_or(0))
    };
    match whole.len() {
        10 => Some(n * 1000 + thousandths()),
        13 => Some(n),
        16 => Some(n / 1000),
        19 => Some(n / 1_000_000),
        _ => None,
    }
}

/// A time as 13 digits, so that `finish` can write another in its place.
fn thirteen_digits(ms: u64) -> [u8; 13] {
    let mut digits = [b'0'; 13];
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(ms % 10_000_000_000_000).as_bytes();
    digits[13 - text.len()..].copy_from_slice(text);
    digits
}

/// A random UUID (version 4) as text. Distinct, not secret.
fn uuid() -> [u8; 36] {
    let bits = fastrand::u128(..);
    let bits = bits & !(0xf << 76) | 4 << 76;
    let bits = bits & !(0b11 << 62) | 0b10 << 62;
    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (i, digit) in text.iter_mut().enumerate() {
        if !matches!(i, 8 | 13 | 18 | 23) {
            shift -= 4;
            *digit = b"0123456789abcdef"[(bits >> shift) as usize & 0xf];
        }
    }
    text
}

#[cfg(test)]
mod tests;
