//! The variables of the log templates: their names and, for a record, their values. Called by
//! `template` only. docs/log.md has the same table for people.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::Record;
use super::clock::{Clock, since_epoch};
use super::fields::{Fields, request_line};
use crate::config::{LogQuery, Peer};
use crate::error::Reason;
use crate::http1::{FieldId, Version};

/// What a `$name` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Variable {
    /// Known to nginx, never there here: `-`.
    Absent,
    Args,
    At,
    BodyBytesSent,
    BytesSent,
    Client,
    Completion,
    Connection,
    ConnectionRequests,
    End,
    Host,
    IsArgs,
    LocalAddr,
    LocalPort,
    Marks,
    Method,
    Msec,
    Paced,
    Peer,
    PeerPort,
    Phase(Phase),
    Protocol,
    /// As Heroku's router writes it: `http1.1`.
    ProtocolShort,
    Referer,
    RemoteUser,
    Request,
    /// `$http_NAME`: the field's number and name.
    RequestField(FieldId, Box<str>),
    RequestId,
    RequestLength,
    RequestUri,
    /// `$sent_http_NAME`, `$upstream_http_NAME`: the field's name.
    ResponseField(Box<str>),
    Retry,
    Scheme,
    Slow,
    Status,
    Stream,
    Tunnel,
    Time,
    TimeIso8601,
    TimeLocal,
    UpstreamAddr,
    UpstreamLength,
    UpstreamStatus,
    Uri,
    UserAgent,
}

/// A duration of the record. The first six are zero where they were not reached, as the design's
/// line has it; nginx's are missing then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Service,
    Receive,
    Queue,
    Connect,
    App,
    Send,
    FirstByte,
    NginxConnect,
    NginxHeader,
    NginxResponse,
}

/// Names with a fixed meaning; those that end in a field's name are in `lookup`.
static NAMES: &[(&str, Variable)] = &[
    // nginx's.
    ("args", Variable::Args),
    ("body_bytes_sent", Variable::BodyBytesSent),
    ("bytes_sent", Variable::BytesSent),
    ("connection", Variable::Connection),
    ("connection_requests", Variable::ConnectionRequests),
    ("gzip_ratio", Variable::Absent),
    ("host", Variable::Host),
    ("http2", Variable::Absent),
    ("http_referer", Variable::Referer),
    ("http_user_agent", Variable::UserAgent),
    ("is_args", Variable::IsArgs),
    ("msec", Variable::Msec),
    ("query_string", Variable::Args),
    ("realip_remote_addr", Variable::Peer),
    ("realip_remote_port", Variable::PeerPort),
    ("remote_addr", Variable::Client),
    ("remote_port", Variable::PeerPort),
    ("remote_user", Variable::RemoteUser),
    ("request", Variable::Request),
    ("request_completion", Variable::Completion),
    ("request_id", Variable::RequestId),
    ("request_length", Variable::RequestLength),
    ("request_method", Variable::Method),
    ("request_time", Variable::Phase(Phase::Service)),
    ("request_uri", Variable::RequestUri),
    ("scheme", Variable::Scheme),
    ("server_addr", Variable::LocalAddr),
    ("server_name", Variable::Absent),
    ("server_port", Variable::LocalPort),
    ("server_protocol", Variable::Protocol),
    ("ssl_cipher", Variable::Absent),
    ("ssl_protocol", Variable::Absent),
    ("status", Variable::Status),
    ("time_iso8601", Variable::TimeIso8601),
    ("time_local", Variable::TimeLocal),
    ("upstream_addr", Variable::UpstreamAddr),
    ("upstream_cache_status", Variable::Absent),
    ("upstream_connect_time", Variable::Phase(Phase::NginxConnect)),
    ("upstream_header_time", Variable::Phase(Phase::NginxHeader)),
    ("upstream_response_length", Variable::UpstreamLength),
    ("upstream_response_time", Variable::Phase(Phase::NginxResponse)),
    ("upstream_status", Variable::UpstreamStatus),
    ("uri", Variable::Uri),
    // Ours.
    ("app_time", Variable::Phase(Phase::App)),
    ("at", Variable::At),
    ("client", Variable::Client),
    ("connect_time", Variable::Phase(Phase::Connect)),
    ("end", Variable::End),
    ("first_byte_time", Variable::Phase(Phase::FirstByte)),
    ("marks", Variable::Marks),
    ("paced", Variable::Paced),
    ("protocol", Variable::ProtocolShort),
    ("queue_time", Variable::Phase(Phase::Queue)),
    ("receive_time", Variable::Phase(Phase::Receive)),
    ("retry", Variable::Retry),
    ("send_time", Variable::Phase(Phase::Send)),
    ("slow", Variable::Slow),
    ("stream", Variable::Stream),
    ("time", Variable::Time),
    ("tunnel", Variable::Tunnel),
];

/// Names that a template can have beside these: their values are the process's, not the record's.
pub(super) const CONSTANTS: [&str; 4] = ["hostname", "log_name", "pid", "pipe"];

/// The variable of a name (lower case, without `$`).
pub(super) fn lookup(name: &str) -> Option<Variable> {
    if let Some((_, variable)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(variable.clone());
    }
    let field = |name: &str| name.replace('_', "-").into_boxed_str();
    let of_request = |name: &str| {
        let name = field(name);
        Variable::RequestField(FieldId::of(name.as_bytes()), name)
    };
    if matches!(name, "content_length" | "content_type") {
        return Some(of_request(name));
    }
    let (prefix, rest) = name.split_once("http_")?;
    match prefix {
        _ if rest.is_empty() => None,
        "" => Some(of_request(rest)),
        "sent_" | "upstream_" => Some(Variable::ResponseField(field(rest))),
        _ => None,
    }
}

/// The known name nearest to one that is not known, if any is near.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let names = NAMES.iter().map(|(known, _)| *known).chain(CONSTANTS);
    names
        .chain(["content_length", "content_type", "http_x_forwarded_for"])
        .map(|known| (distance(name, known), known))
        .min()
        .filter(|(distance, _)| *distance <= 1 + name.len() / 4)
        .map(|(_, known)| known)
}

/// Edit distance (Levenshtein's).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The value of a variable, before escaping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Missing,
    Text(&'a [u8]),
    /// Text of ours that stands as it is.
    Plain(&'a [u8]),
    Address(IpAddr),
    Time(&'a [u8; 24]),
    Number(u64),
    Flag(bool),
    Millis(u64),
}

impl<'a> From<Option<&'a [u8]>> for Value<'a> {
    fn from(text: Option<&'a [u8]>) -> Value<'a> {
        text.map_or(Value::Missing, Value::Text)
    }
}

/// What the values of one line are taken from.
pub(super) struct Source<'a> {
    record: &'a Record,
    fields: Fields<'a>,
    phases: Phases,
    query: LogQuery,
    upstream: &'a [Box<[u8]>],
}

impl<'a> Source<'a> {
    /// `upstream` has the names that `Record::upstream_addr` counts.
    pub(super) fn new(
        record: &'a Record,
        query: LogQuery,
        upstream: &'a [Box<[u8]>],
    ) -> Source<'a> {
        let fields = Fields::new(&record.head, record.end != Reason::Ok);
        Source { record, fields, phases: Phases::of(record), query, upstream }
    }

    /// The value of `variable`; `scratch` (empty) holds it where the record has no such bytes.
    #[inline(always)]
    pub(super) fn value<'s>(
        &'s self,
        variable: &'s Variable,
        clock: &'s mut Clock,
        scratch: &'s mut Vec<u8>,
    ) -> Value<'s> {
        let record = self.record;
        let head = &record.head;
        match variable {
            Variable::Absent => Value::Missing,
            Variable::Args => {
                let query = split_query(self.uri()).1;
                match self.query {
                    LogQuery::On => query.into(),
                    LogQuery::Off => Value::Missing,
                    LogQuery::Redact => query.map(|query| redacted(query, scratch)).into(),
                }
            }
            Variable::At if record.end == Reason::Ok => Value::Plain(b"info"),
            Variable::At => Value::Plain(b"error"),
            Variable::BodyBytesSent => Value::Number(record.body_bytes_sent),
            Variable::BytesSent => Value::Number(record.bytes_sent),
            Variable::Client => match record.client {
                Some(ip) => Value::Address(ip),
                None => peer(record.peer),
            },
            Variable::Completion if record.end == Reason::Ok => Value::Plain(b"OK"),
            Variable::Completion => Value::Missing,
            Variable::Connection => Value::Number(record.connection),
            Variable::ConnectionRequests => {
                Value::Number(u64::from(record.connection_requests) + 1)
            }
            Variable::End => Value::Plain(record.end.name().as_bytes()),
            Variable::Host => self.host(scratch).into(),
            Variable::IsArgs => match split_query(self.uri()).1 {
                Some([_, ..]) if self.query != LogQuery::Off => Value::Plain(b"?"),
                _ => Value::Missing,
            },
            Variable::LocalAddr => match record.local {
                Some(local) => Value::Address(local.ip()),
                None => Value::Plain(b"unix:"),
            },
            Variable::LocalPort => match record.local {
                Some(local) => Value::Number(local.port().into()),
                None => Value::Missing,
            },
            Variable::Marks => marks(record, scratch),
            Variable::Method => non_empty(head.method.of(&head.bytes)),
            Variable::Msec => Value::Millis(since_epoch(self.written()).as_millis() as u64),
            Variable::Paced => Value::Flag(record.paced),
            Variable::Peer => peer(record.peer),
            Variable::PeerPort => match record.peer {
                Peer::Ip(addr) => Value::Number(addr.port().into()),
                Peer::Unix => Value::Missing,
            },
            Variable::Phase(phase) => self.phases.get(*phase).map_or(Value::Missing, Value::Millis),
            Variable::Protocol | Variable::ProtocolShort if head.method.is_empty() => {
                Value::Missing
            }
            Variable::Protocol => Value::Plain(match head.version {
                Version::Http10 => b"HTTP/1.0",
                Version::Http11 => b"HTTP/1.1",
            }),
            Variable::ProtocolShort => Value::Plain(match head.version {
                Version::Http10 => b"http1.0",
                Version::Http11 => b"http1.1",
            }),
            Variable::Referer => match self.fields.first(FieldId::Referer, "referer") {
                Some(url) => Value::Text(self.without_query(url, url.len(), scratch)),
                None => Value::Missing,
            },
            Variable::RemoteUser => self
                .fields
                .first(FieldId::Authorization, "authorization")
                .and_then(|credentials| basic_user(credentials, scratch))
                .into(),
            Variable::Request => {
                let line = request_line(head);
                // The query ends at the version. A malformed line may have none.
                let version = || line.windows(6).rposition(|w| w == b" HTTP/");
                let end = (self.query != LogQuery::On).then(version).flatten();
                let end = end.unwrap_or(line.len());
                non_empty(self.without_query(line, end, scratch))
            }
            Variable::RequestField(id, name) => self.joined(*id, name, scratch).into(),
            Variable::RequestId => non_empty(&record.request_id),
            Variable::RequestLength => Value::Number(record.request_length),
            Variable::RequestUri => {
                non_empty(self.without_query(self.uri(), self.uri().len(), scratch))
            }
            Variable::ResponseField(name) => response_field(&record.response_head, name).into(),
            Variable::Retry => Value::Number(record.retry.into()),
            Variable::Scheme => Value::Plain(record.scheme.as_bytes()),
            Variable::Slow => Value::Plain(self.phases.slow().as_bytes()),
            Variable::Status => Value::Number(record.status.into()),
            Variable::Stream => Value::Flag(record.stream),
            Variable::Tunnel => Value::Flag(record.tunnel),
            Variable::Time => Value::Time(clock.rfc3339(self.written())),
            Variable::TimeIso8601 => {
                scratch.extend_from_slice(clock.date_time(self.written()));
                scratch.extend_from_slice(b"+00:00");
                Value::Plain(scratch)
            }
            Variable::TimeLocal => Value::Plain(clock.local(self.written())),
            Variable::UpstreamAddr => {
                let name = record.upstream_addr.and_then(|i| self.upstream.get(usize::from(i)));
                name.map(|name| &**name).into()
            }
            Variable::UpstreamLength if self.phases.upstream_reached => {
                Value::Number(record.upstream_bytes_received)
            }
            Variable::UpstreamLength => Value::Missing,
            Variable::UpstreamStatus if record.upstream_status == 0 => Value::Missing,
            Variable::UpstreamStatus => Value::Number(record.upstream_status.into()),
            Variable::Uri => non_empty(split_query(self.uri()).0),
            Variable::UserAgent => self.fields.first(FieldId::UserAgent, "user-agent").into(),
        }
    }

    /// When the line is written: the end of the exchange, as nginx's times are.
    fn written(&self) -> SystemTime {
        self.record.time + self.record.service
    }

    /// The target without scheme and authority, as nginx's `$request_uri`; a target that could
    /// not be read as it is.
    fn uri(&self) -> &'a [u8] {
        let head = &self.record.head;
        match head.path.of(&head.bytes) {
            [] if head.authority.is_some() => b"/",
            [] => head.target.of(&head.bytes),
            path => path,
        }
    }

    /// Value of a request field; several lines are joined (RFC 9110, 5.3, and RFC 9113, 8.2.3).
    fn joined<'s>(&'s self, id: FieldId, name: &str, scratch: &'s mut Vec<u8>) -> Option<&'s [u8]> {
        let first = self.fields.first(id, name)?;
        if !self.fields.may_repeat(id) {
            return Some(first);
        }
        let separator = if id == FieldId::Cookie { b"; " } else { b", " };
        for (i, value) in self.fields.values(id, name).enumerate() {
            if i > 0 {
                scratch.extend_from_slice(separator);
            }
            scratch.extend_from_slice(value);
        }
        Some(scratch)
    }

    /// The authority's host in lower case, without its port.
    fn host<'s>(&self, scratch: &'s mut Vec<u8>) -> Option<&'s [u8]> {
        let head = &self.record.head;
        let authority = match head.authority {
            Some(span) => span.of(&head.bytes),
            None => self.fields.first(FieldId::Host, "host")?,
        };
        let end = match authority {
            [b'[', ..] => authority.iter().position(|&b| b == b']').map(|i| i + 1),
            _ => memchr::memchr(b':', authority),
        };
        scratch.extend_from_slice(&authority[..end.unwrap_or(authority.len())]);
        scratch.make_ascii_lowercase();
        Some(scratch)
    }

    /// `text`, whose query, if any, ends at `end`, as the option `log-query` wants it.
    fn without_query<'s>(&self, text: &'s [u8], end: usize, scratch: &'s mut Vec<u8>) -> &'s [u8] {
        if self.query == LogQuery::On {
            return text;
        }
        let Some(mark) = memchr::memchr(b'?', &text[..end]) else { return text };
        scratch.extend_from_slice(&text[..mark]);
        if self.query == LogQuery::Redact {
            scratch.push(b'?');
            redacted(&text[mark + 1..end], scratch);
        }
        scratch.extend_from_slice(&text[end..]);
        scratch
    }
}

/// The record's durations in whole milliseconds, as every format prints them. The phases are the
/// distances of the rounded points in time between them, so that they add up to the service time
/// in the line as they do in the record.
struct Phases {
    service: u64,
    receive: u64,
    queue: u64,
    connect: u64,
    /// From the connection to the first byte.
    first_byte: Option<u64>,
    app: u64,
    send: u64,
    /// An attempt was made: nginx's `$upstream_*` have values.
    upstream_reached: bool,
    /// The app wrote at its client's pace.
    paced: bool,
}

impl Phases {
    fn of(record: &Record) -> Phases {
        let (mut at, mut shown) = (0, 0);
        let mut next = |phase: Duration| {
            let from = shown;
            at += nanos(phase);
            shown = millis(at);
            shown - from
        };
        let receive = next(record.receive);
        let queue = next(record.queue);
        let connect = next(record.connect);
        let app = next(record.upstream);
        let send = next(record.send);
        let connected = nanos(record.receive) + nanos(record.queue) + nanos(record.connect);
        let first_byte = |after| millis(connected + nanos(after)) - millis(connected);
        Phases {
            service: millis(nanos(record.service)),
            receive,
            queue,
            connect,
            first_byte: record.first_byte.map(first_byte),
            app,
            send,
            upstream_reached: record.upstream_addr.is_some()
                || !(record.connect + record.upstream).is_zero(),
            paced: record.paced,
        }
    }

    fn get(&self, phase: Phase) -> Option<u64> {
        match phase {
            Phase::Service => Some(self.service),
            Phase::Receive => Some(self.receive),
            Phase::Queue => Some(self.queue),
            Phase::Connect => Some(self.connect),
            Phase::App => Some(self.app),
            Phase::Send => Some(self.send),
            Phase::FirstByte => self.first_byte,
            Phase::NginxConnect => self.upstream_reached.then_some(self.connect),
            Phase::NginxHeader => self.first_byte.map(|first_byte| self.connect + first_byte),
            Phase::NginxResponse => self.upstream_reached.then_some(self.connect + self.app),
        }
    }

    /// Who took longest, by the numbers that the line shows. Where nobody is ahead it is the app, or
    /// the client if the app was never asked.
    fn slow(&self) -> &'static str {
        let client_up = ("client_up", self.receive);
        let mut slowest = match (self.upstream_reached, self.paced) {
            (false, _) => client_up,
            (true, false) => ("app", self.connect + self.app),
            // It was done as soon as the client let it.
            (true, true) => ("client_down", self.connect + self.app),
        };
        for other in [("client_down", self.send), client_up, ("queue", self.queue)] {
            if other.1 > slowest.1 {
                slowest = other;
            }
        }
        slowest.0
    }
}

/// In 64 bits, which are quick to divide; 36 years at most, so that sums of phases stay in them, too.
fn nanos(time: Duration) -> u64 {
    time.as_nanos().min(1 << 60) as u64
}

/// Whole milliseconds, rounded.
fn millis(nanos: u64) -> u64 {
    (nanos + 500_000) / 1_000_000
}

fn non_empty(text: &[u8]) -> Value<'_> {
    if text.is_empty() { Value::Missing } else { Value::Text(text) }
}

/// Path and query of a target.
fn split_query(uri: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'?', uri) {
        Some(mark) => (&uri[..mark], Some(&uri[mark + 1..])),
        None => (uri, None),
    }
}

/// Appends `query` with its names, and `REDACTED` for its values; gives the whole of `scratch`.
fn redacted<'s>(query: &[u8], scratch: &'s mut Vec<u8>) -> &'s [u8] {
    for (i, pair) in query.split(|&b| b == b'&').enumerate() {
        if i > 0 {
            scratch.push(b'&');
        }
        // A pair without a name is all value.
        let name = memchr::memchr(b'=', pair).map_or(0, |equals| equals + 1);
        scratch.extend_from_slice(&pair[..name]);
        if !pair.is_empty() {
            scratch.extend_from_slice(b"REDACTED");
        }
    }
    scratch
}

fn peer(peer: Peer) -> Value<'static> {
    match peer {
        Peer::Ip(addr) => Value::Address(addr.ip()),
        Peer::Unix => Value::Plain(b"unix:"),
    }
}

/// ` retry=1`, ` paced=1`, ` stream=1`, ` tunnel=1` with the bytes of the other way: each only where
/// it is so.
fn marks<'s>(record: &Record, scratch: &'s mut Vec<u8>) -> Value<'s> {
    if record.retry > 0 {
        scratch.extend_from_slice(b" retry=");
        scratch.extend_from_slice(itoa::Buffer::new().format(record.retry).as_bytes());
    }
    if record.paced {
        scratch.extend_from_slice(b" paced=1");
    }
    if record.stream {
        scratch.extend_from_slice(b" stream=1");
    }
    if record.tunnel {
        scratch.extend_from_slice(b" tunnel=1 received=");
        scratch.extend_from_slice(itoa::Buffer::new().format(record.request_length).as_bytes());
    }
    Value::Plain(scratch)
}

/// Value of the first line of a response field in `head`, which is as it was sent.
fn response_field<'s>(head: &'s [u8], name: &str) -> Option<&'s [u8]> {
    head.split(|&b| b == b'\n').skip(1).find_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        let (found, value) = (&line[..colon], &line[colon + 1..]);
        found.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
    })
}

/// The user of Basic credentials (RFC 7617), as nginx reads them: nothing where the scheme is
/// another, the base64 is broken, or a name or the colon is missing.
fn basic_user<'s>(credentials: &[u8], scratch: &'s mut Vec<u8>) -> Option<&'s [u8]> {
    let (scheme, encoded) = credentials.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    // Four letters make three bytes; what is after the first `=` does not count.
    let letters = encoded.trim_ascii_start().split(|&b| b == b'=').next()?;
    if letters.len() % 4 == 1 {
        return None;
    }
    for group in letters.chunks(4) {
        let mut bits = 0u32;
        for &letter in group {
            let value = match letter {
                b'A'..=b'Z' => letter - b'A',
                b'a'..=b'z' => letter - b'a' + 26,
                b'0'..=b'9' => letter - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        scratch.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    let colon = memchr::memchr(b':', scratch)?;
    if colon == 0 { None } else { Some(&scratch[..colon]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_users_are_read_as_nginx_reads_them() {
        let cases: [(&[u8], Option<&str>); 11] = [
            (b"Basic YWxpY2U6c2VjcmV0", Some("alice")),
            (b"bAsIc   YWxpY2U6", Some("alice")),
            (b"Basic YTpi", Some("a")),
            (b"Basic YTo=", Some("a")),
            (b"Basic YTo", Some("a")),
            (b"Basic YTo=trailing", Some("a")),
            (b"Basic OnBhc3M=", None),
            (b"Basic YWxpY2U=", None),
            (b"Basic YWxpY2U6!", None),
            (b"Basic YWxpY", None),
            (b"Bearer YWxpY2U6", None),
        ];
        for (credentials, user) in cases {
            let mut scratch = Vec::new();
            let found = basic_user(credentials, &mut scratch);
            assert_eq!(found, user.map(str::as_bytes), "{}", credentials.escape_ascii());
        }
    }

    #[test]
    fn values_of_a_query_are_redacted_and_names_stay() {
        for (query, expected) in [
            ("a=1&token=x=y", "a=REDACTED&token=REDACTED"),
            ("secret", "REDACTED"),
            ("a=&&b", "a=REDACTED&&REDACTED"),
            ("", ""),
        ] {
            assert_eq!(redacted(query.as_bytes(), &mut Vec::new()), expected.as_bytes());
        }
    }

    #[test]
    fn phases_add_up_whatever_their_fractions() {
        let mut record = Record::new(Peer::Unix);
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..10_000 {
            let mut phase = || Duration::from_nanos(random.u64(0..3_000_000));
            record.receive = phase();
            record.queue = phase();
            record.connect = phase();
            record.upstream = phase();
            record.send = phase();
            record.first_byte = Some(record.upstream / 2);
            record.service =
                record.receive + record.queue + record.connect + record.upstream + record.send;
            let p = Phases::of(&record);
            assert_eq!(p.service, p.receive + p.queue + p.connect + p.app + p.send);
            assert!(p.first_byte.is_some_and(|first_byte| first_byte <= p.app));
            assert!(p.app.abs_diff(record.upstream.as_millis() as u64) <= 1);
        }
    }

    #[test]
    fn slow_names_the_longest_phase_and_the_app_in_a_tie() {
        let mut record = Record::new(Peer::Unix);
        let slow = |record: &Record| Phases::of(record).slow();
        assert_eq!(slow(&record), "client_up", "refused before the app was asked");
        record.upstream_addr = Some(0);
        assert_eq!(slow(&record), "app");
        record.send = Duration::from_millis(20);
        assert_eq!(slow(&record), "client_down");
        record.upstream = Duration::from_millis(15);
        record.connect = Duration::from_millis(5);
        assert_eq!(slow(&record), "app");
        record.paced = true;
        assert_eq!(slow(&record), "client_down");
        record.receive = Duration::from_millis(21);
        assert_eq!(slow(&record), "client_up");
        record.queue = Duration::from_millis(22);
        assert_eq!(slow(&record), "queue");
    }

    #[test]
    fn every_name_is_in_the_docs() {
        let docs = include_str!("../../docs/log.md");
        for name in NAMES.iter().map(|(name, _)| *name).chain(CONSTANTS) {
            assert!(docs.contains(&format!("`${name}`")), "{name}");
        }
        for reason in Reason::ALL {
            assert!(docs.contains(&format!("`{}`", reason.name())), "{}", reason.name());
        }
    }

    #[test]
    fn every_name_is_found_and_a_near_one_is_suggested() {
        for (name, variable) in NAMES {
            assert_eq!(lookup(name).as_ref(), Some(variable));
        }
        assert_eq!(
            lookup("http_x_b3_id"),
            Some(Variable::RequestField(FieldId::Other, "x-b3-id".into()))
        );
        assert_eq!(lookup("sent_http_etag"), Some(Variable::ResponseField("etag".into())));
        assert_eq!(lookup("http_"), None);
        assert_eq!(nearest("remote_adr"), Some("remote_addr"));
        assert_eq!(nearest("htp_user_agent"), Some("http_user_agent"));
        assert_eq!(nearest("quux"), None);
    }
}
