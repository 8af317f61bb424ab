//! The one template language of all log formats. `Format::parse` compiles a template once, at
//! start; `Format::render` makes one line of one record, without allocation and `core::fmt`.
//!
//! A template is text with nginx's variables (`$status`, `${status}`), so that an nginx
//! `log_format` can be pasted. What must stay true: a line is one line, at most `max_line` bytes,
//! whatever the client sent.

use std::cell::RefCell;

use super::Record;
use super::clock::{Clock, digits};
use super::escape::{self, Escape};
use super::variable::{self, Source, Value, Variable};
use crate::config::{LogQuery, UpstreamAddr};
use crate::text::address;

/// The named formats. Ours have the same fields in the same order.
const L2MET: &str = "measure#$log_name.service=$request_time request=\"$request\" \
    status_code=$status request_id=$request_id remote_addr=\"$realip_remote_addr\" \
    forwarded_for=\"$http_x_forwarded_for\" forwarded_proto=\"$http_x_forwarded_proto\" \
    via=\"$http_via\" body_bytes_sent=$body_bytes_sent referer=\"$http_referer\" \
    user_agent=\"$http_user_agent\" client=\"$client\" receive=$receive_time queue=$queue_time \
    connect=$connect_time first_byte=$first_byte_time upstream=$app_time send=$send_time$marks \
    slow=$slow end=$end";
const LOGFMT: &str = "at=$at method=$request_method path=\"$request_uri\" host=$host \
    request_id=$request_id fwd=\"$http_x_forwarded_for\" dyno=$log_name connect=$connect_time \
    service=$request_time status=$status bytes=$body_bytes_sent protocol=$protocol \
    client=$client referer=\"$http_referer\" user_agent=\"$http_user_agent\" \
    receive=$receive_time queue=$queue_time first_byte=$first_byte_time upstream=$app_time \
    send=$send_time$marks slow=$slow end=$end";
const COMBINED: &str = "$remote_addr - $remote_user [$time_local] \"$request\" $status \
    $body_bytes_sent \"$http_referer\" \"$http_user_agent\"";
const JSON: &str = "{\"time\":$time,\"name\":\"$log_name\",\"service\":$request_time,\
    \"request\":$request,\"method\":$request_method,\"host\":$host,\"path\":$uri,\
    \"status_code\":$status,\"request_id\":$request_id,\"remote_addr\":$realip_remote_addr,\
    \"forwarded_for\":$http_x_forwarded_for,\"forwarded_proto\":$http_x_forwarded_proto,\
    \"via\":$http_via,\"body_bytes_sent\":$body_bytes_sent,\"referer\":$http_referer,\
    \"user_agent\":$http_user_agent,\"client\":$client,\"receive\":$receive_time,\
    \"queue\":$queue_time,\"connect\":$connect_time,\"first_byte\":$first_byte_time,\
    \"upstream\":$app_time,\"send\":$send_time,\"retry\":$retry,\"paced\":$paced,\
    \"stream\":$stream,\"tunnel\":$tunnel,\"slow\":$slow,\"end\":$end}";

/// A line always has room for this much of every value: more than any value of ours is long
/// (addresses, times, numbers), so that only what clients sent is ever cut.
const MIN_FIELD: usize = 48;
/// The shortest `max_line` of `render`: a pipe's.
const MIN_LINE: usize = 4095;

/// What a format needs beside its template.
#[derive(Clone, Copy, Debug, Default)]
pub struct FormatOptions<'a> {
    /// Option `log-name`.
    pub name: &'a str,
    /// Option `log-time`: l2met and logfmt begin with `time=`.
    pub time: bool,
    /// Option `log-query`.
    pub query: LogQuery,
    /// The upstreams that `Record::upstream_addr` counts.
    pub upstream: &'a [UpstreamAddr],
}

/// A compiled log format: each part is text and then a value, and text may follow the last.
#[derive(Debug)]
pub struct Format {
    parts: Vec<Part>,
    tail: Literal,
    query: LogQuery,
    upstream: Vec<Box<[u8]>>,
}

#[derive(Debug)]
struct Part {
    text: Literal,
    variable: Variable,
    escape: Escape,
    /// The template itself has this variable between quotes.
    quoted: bool,
}

/// Text of the template. Nearly always short: a copy of a fixed size is a few instructions.
#[derive(Debug)]
struct Literal {
    start: [u8; 32],
    /// What of `start` counts.
    length: usize,
    rest: Box<[u8]>,
}

impl Literal {
    fn new(text: &str) -> Literal {
        let mut start = [0; 32];
        let (begin, rest) = text.as_bytes().split_at(text.len().min(start.len()));
        start[..begin.len()].copy_from_slice(begin);
        Literal { start, length: begin.len(), rest: rest.into() }
    }

    fn len(&self) -> usize {
        self.length + self.rest.len()
    }

    fn append(&self, out: &mut Vec<u8>) {
        let length = out.len() + self.length;
        out.extend_from_slice(&self.start);
        out.truncate(length);
        if !self.rest.is_empty() {
            out.extend_from_slice(&self.rest);
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        const { RefCell::new(Scratch { clock: Clock::new(), value: Vec::new() }) };
}

/// Kept from line to line.
struct Scratch {
    clock: Clock,
    /// The value that is being made.
    value: Vec<u8>,
}

impl Format {
    /// Compiles a format: `l2met`, `logfmt`, `combined`, `json`, or a template. A text that begins
    /// with `'`, `escape=` or `log_format` is read as nginx.conf reads it: parts in quotes, put
    /// together without anything between them.
    ///
    /// The error says what is wrong and what would be right, without the option's name.
    pub fn parse(text: &str, options: FormatOptions<'_>) -> Result<Format, String> {
        if !options.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            let name = options.name;
            return Err(format!(
                "log-name {name:?} may have letters, digits, `.`, `_` and `-` only"
            ));
        }
        let timed = |template: &str| {
            if options.time { format!("time=$time {template}") } else { template.to_owned() }
        };
        let (template, escape) = match text.trim() {
            "l2met" => (timed(L2MET), Escape::Text),
            "logfmt" => (timed(LOGFMT), Escape::Logfmt),
            "combined" => (COMBINED.to_owned(), Escape::Text),
            "json" => (JSON.to_owned(), Escape::Json),
            name if !name.contains('$') => {
                return Err(format!(
                    "{name:?} is no log format: l2met, logfmt, combined, json, or a template with \
                     nginx's variables, such as '$remote_addr \"$request\" $status'"
                ));
            }
            template => nginx_conf(template)?,
        };
        let (parts, tail) = compile(&template, escape, &options)?;
        let name = |address: &UpstreamAddr| address.to_string().into_bytes().into();
        let upstream = options.upstream.iter().map(name).collect();
        Ok(Format { parts, tail, query: options.query, upstream })
    }

    /// The format names a field of the response: `Record::response_head` must be filled in.
    pub fn wants_response_head(&self) -> bool {
        self.parts.iter().any(|part| matches!(part.variable, Variable::ResponseField(_)))
    }

    /// Appends the line of `record` to `out`, without a line end, at most `max_line` bytes (which
    /// is 4,095 or more). Values that are too long for that end with `...`.
    pub fn render(&self, record: &Record, max_line: usize, out: &mut Vec<u8>) {
        let start = out.len();
        let source = Source::new(record, self.query, &self.upstream);
        SCRATCH.with_borrow_mut(|scratch| {
            self.fill(&source, max_line, scratch, out, |_| ());
            if out.len() - start > max_line {
                out.truncate(start);
                let cap = self.cap(&source, max_line, scratch);
                self.fill(&source, cap, scratch, out, |_| ());
            }
        });
    }

    /// Appends the line with values of at most `cap` bytes; tells `seen` the length of each.
    fn fill(
        &self,
        source: &Source<'_>,
        cap: usize,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
        mut seen: impl FnMut(usize),
    ) {
        for part in &self.parts {
            part.text.append(out);
            let start = out.len();
            part.value(source, cap, scratch, out);
            seen(out.len() - start);
        }
        self.tail.append(out);
    }

    /// The largest cap with which this line has at most `max_line` bytes.
    fn cap(&self, source: &Source<'_>, max_line: usize, scratch: &mut Scratch) -> usize {
        let mut lengths = Vec::with_capacity(self.parts.len());
        self.fill(source, max_line, scratch, &mut Vec::new(), |length| lengths.push(length));
        let text: usize = self.parts.iter().map(|part| part.text.len()).sum();
        let values = |cap: usize| -> usize { lengths.iter().map(|length| cap.min(*length)).sum() };
        // `compile` has made sure that the least cap fits.
        let (mut fits, mut too_long) = (MIN_FIELD, max_line);
        while too_long - fits > 1 {
            let middle = fits.midpoint(too_long);
            let length = text + self.tail.len() + values(middle);
            if length <= max_line { fits = middle } else { too_long = middle }
        }
        fits
    }
}

impl Part {
    /// Appends the value, at most `cap` bytes of it. All of it is inlined into `fill`: calls alone were
    /// a fifth of a line's cost.
    #[inline(always)]
    fn value(&self, source: &Source<'_>, cap: usize, scratch: &mut Scratch, out: &mut Vec<u8>) {
        scratch.value.clear();
        let value = source.value(&self.variable, &mut scratch.clock, &mut scratch.value);
        append(out, value, self.escape, self.quoted, cap);
    }
}

/// Appends one value.
#[inline(always)]
fn append(out: &mut Vec<u8>, value: Value<'_>, escape: Escape, quoted: bool, cap: usize) {
    match value {
        Value::Missing => match escape {
            Escape::Text => out.push(b'-'),
            Escape::Json if !quoted => out.extend_from_slice(b"null"),
            Escape::Json | Escape::Logfmt => {}
        },
        Value::Text(text) => {
            let quotes = !quoted
                && match escape {
                    Escape::Text => false,
                    Escape::Json => true,
                    Escape::Logfmt => escape::logfmt_needs_quotes(text),
                };
            let cap = if quotes { cap - 2 } else { cap };
            between(out, quotes, |out| escape::append(out, text, escape, cap));
        }
        Value::Plain(text) => {
            let quotes = escape == Escape::Json && !quoted;
            between(out, quotes, |out| out.extend_from_slice(text));
        }
        Value::Address(ip) => {
            let quotes = escape == Escape::Json && !quoted;
            between(out, quotes, |out| address(out, ip));
        }
        Value::Time(text) => {
            let quotes = escape == Escape::Json && !quoted;
            between(out, quotes, |out| out.extend_from_slice(text));
        }
        Value::Number(n) => out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes()),
        Value::Flag(set) if escape == Escape::Json => {
            out.extend_from_slice(if set { b"true" } else { b"false" });
        }
        Value::Flag(set) => out.push(if set { b'1' } else { b'0' }),
        Value::Millis(ms) if escape == Escape::Logfmt => {
            out.extend_from_slice(itoa::Buffer::new().format(ms).as_bytes());
            out.extend_from_slice(b"ms");
        }
        Value::Millis(ms) => {
            let (seconds, mut text) = (ms / 1000, *b"0.000");
            digits(&mut text[2..], ms % 1000);
            match seconds {
                // Most phases of most requests.
                0..10 => text[0] += seconds as u8,
                _ => {
                    out.extend_from_slice(itoa::Buffer::new().format(seconds).as_bytes());
                    return out.extend_from_slice(&text[1..]);
                }
            }
            out.extend_from_slice(&text);
        }
    }
}

/// Appends what `value` appends, between quotes if asked.
fn between(out: &mut Vec<u8>, quotes: bool, value: impl FnOnce(&mut Vec<u8>)) {
    if quotes {
        out.push(b'"');
    }
    value(out);
    if quotes {
        out.push(b'"');
    }
}

/// Cuts a template into its parts and what follows the last.
fn compile(
    template: &str,
    escape: Escape,
    options: &FormatOptions<'_>,
) -> Result<(Vec<Part>, Literal), String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut quoted = false;
    let mut rest = template;
    let mut least = 0;
    loop {
        let (text, after) = match rest.split_once('$') {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        if let Some(c) = text.chars().find(|c| c.is_control() && *c != '\t') {
            return Err(format!("a template is one line: {c:?} cannot be in it"));
        }
        quoted ^= text.matches('"').count() % 2 == 1;
        literal.push_str(text);
        let Some(after) = after else { break };
        let name;
        (name, rest) = variable_name(after)?;
        match constant(&name, options) {
            Some(text) => literal.push_str(&text),
            None => {
                let variable = variable::lookup(&name).ok_or_else(|| unknown(&name))?;
                least += literal.len() + MIN_FIELD;
                parts.push(Part { text: Literal::new(&literal), variable, escape, quoted });
                literal.clear();
            }
        }
    }
    least += literal.len();
    if least > MIN_LINE {
        return Err(format!(
            "a line must stay under {} bytes on a pipe, and this template could need {least} \
             ({MIN_FIELD} for each variable): make it shorter",
            MIN_LINE + 1
        ));
    }
    Ok((parts, Literal::new(&literal)))
}

/// The name at the start of `text`, which is after a `$`, and what follows it.
fn variable_name(text: &str) -> Result<(String, &str), String> {
    let end = |text: &str| {
        text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
    };
    let (name, rest) = match text.strip_prefix('{') {
        Some(inner) => {
            let (name, rest) = inner.split_at(end(inner));
            let rest = rest
                .strip_prefix('}')
                .ok_or_else(|| format!("\"${{{name}\" is not closed: write \"${{{name}}}\""))?;
            (name, rest)
        }
        None => text.split_at(end(text)),
    };
    if name.is_empty() {
        return Err("a `$` has no variable after it, such as $status".to_owned());
    }
    Ok((name.to_ascii_lowercase(), rest))
}

/// Values that are the same in every line.
fn constant(name: &str, options: &FormatOptions<'_>) -> Option<String> {
    match name {
        "hostname" => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            Some(host.replace(|c: char| !c.is_ascii_graphic() || c == '"' || c == '\\', "-"))
        }
        "log_name" => Some(options.name.to_owned()),
        "pid" => Some(std::process::id().to_string()),
        // nginx: `p` for a pipelined request.
        "pipe" => Some(".".to_owned()),
        _ => None,
    }
}

fn unknown(name: &str) -> String {
    match variable::nearest(name) {
        Some(near) => format!("there is no variable ${name}; did you mean ${near}?"),
        None => format!("there is no variable ${name} (docs/log.md has the list)"),
    }
}

/// Reads a template as nginx.conf has it, if it looks so: `log_format NAME escape=json 'a' 'b';`,
/// in whole or from `escape=` or from the first `'` on. Anything else is a template as it stands.
fn nginx_conf(text: &str) -> Result<(String, Escape), String> {
    let mut rest = text;
    if let Some(after) = rest.strip_prefix("log_format").filter(|r| r.starts_with([' ', '\t'])) {
        let after = after.trim_start();
        rest = after.split_once(char::is_whitespace).map_or("", |(_name, rest)| rest).trim_start();
    }
    let mut escape = Escape::Text;
    if let Some(after) = rest.strip_prefix("escape=") {
        let (kind, after) = after.split_once(char::is_whitespace).unwrap_or((after, ""));
        escape = match kind {
            "default" => Escape::Text,
            "json" => Escape::Json,
            _ => {
                return Err(format!(
                    "escape={kind} is not offered: a client could forge lines. Write \
                     escape=default (or nothing) or escape=json"
                ));
            }
        };
        rest = after.trim_start();
    }
    if rest.len() == text.len() && !rest.starts_with('\'') {
        return Ok((text.to_owned(), escape));
    }
    let mut template = String::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() || rest.starts_with(';') {
            return Ok((template, escape));
        }
        rest = nginx_word(rest, &mut template)?;
    }
}

/// Appends one word of nginx.conf without its quotes and backslashes; gives what follows.
fn nginx_word<'t>(text: &'t str, out: &mut String) -> Result<&'t str, String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'));
    let mut chars = text.char_indices().skip(usize::from(quote.is_some()));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, 't')) => out.push('\t'),
                Some((_, 'r')) => out.push('\r'),
                Some((_, 'n')) => out.push('\n'),
                Some((_, c @ ('"' | '\'' | '\\'))) => out.push(c),
                Some((_, c)) => out.extend(['\\', c]),
                None => out.push('\\'),
            },
            c if Some(c) == quote => return Ok(&text[at + 1..]),
            c if quote.is_none() && (c.is_whitespace() || c == ';') => return Ok(&text[at..]),
            c => out.push(c),
        }
    }
    match quote {
        Some(quote) => Err(format!("a {quote} is not closed in the log_format")),
        None => Ok(""),
    }
}

#[cfg(test)]
mod tests;
