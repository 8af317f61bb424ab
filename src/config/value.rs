//! Parsers of single values: text in, type out. Called by the table in `settings`, which adds the
//! option's name and where the value came from to an error. Pure; nothing is guessed: what is nearly
//! right is refused with what would be right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::{Listen, UpstreamAddr};

/// Why a value was refused. It completes the line `--option "value" …: write …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    /// The text that was refused: of a list, the element.
    pub(super) value: String,
    /// `is not a size`
    pub(super) what: String,
    /// What would be right here; empty: the option's own example.
    pub(super) write: String,
}

impl Bad {
    pub(super) fn new(what: impl Into<String>) -> Bad {
        Bad { value: String::new(), what: what.into(), write: String::new() }
    }

    pub(super) fn of(mut self, value: &str) -> Bad {
        self.value = value.to_owned();
        self
    }

    pub(super) fn write(mut self, what: impl Into<String>) -> Bad {
        self.write = what.into();
        self
    }
}

/// The longest duration that makes sense for any of the options: a week.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// `sun_path` less its terminating zero.
const LONGEST_SOCKET_PATH: usize = 107;

/// Bytes: `64k`, `100m`, `1g` are powers of 1024, as nginx's; a bare number is bytes.
pub(super) fn size<T: TryFrom<u64>>(text: &str) -> Result<T, Bad> {
    let (number, unit) = split_unit(text);
    let factor = match unit {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return Err(Bad::new("is not a size").write(nearest_size(number, unit))),
    };
    let Ok(number) = number.parse::<u64>() else {
        return Err(Bad::new("is not a size").write(nearest_size(number, unit)));
    };
    let bytes = number.checked_mul(factor).and_then(|bytes| T::try_from(bytes).ok());
    match bytes {
        _ if number == 0 => Err(zero()),
        Some(bytes) => Ok(bytes),
        None => Err(Bad::new("is too large")),
    }
}

/// `500ms`, `30s`, `5m`, `1h`. More than zero: where zero has a meaning it is written `off`.
pub(super) fn duration(text: &str) -> Result<Duration, Bad> {
    let (number, unit) = split_unit(text);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        "" if number == "0" => return Err(zero()),
        _ => return Err(Bad::new("is not a duration").write(nearest_duration(number, unit))),
    };
    let Ok(number) = number.parse::<u64>() else {
        return Err(Bad::new("is not a duration").write(nearest_duration(number, unit)));
    };
    if number == 0 {
        return Err(zero());
    }
    match number.checked_mul(millis).map(Duration::from_millis) {
        Some(duration) if duration <= LONGEST => Ok(duration),
        _ => Err(Bad::new("is too long").write("168h at most")),
    }
}

/// A whole number, at least 1.
pub(super) fn count(text: &str) -> Result<usize, Bad> {
    match text.parse() {
        Ok(0) => Err(zero()),
        Ok(number) => Ok(number),
        Err(_) => Err(Bad::new("is not a whole number")),
    }
}

/// `off`, or what `parse` reads.
pub(super) fn or_off<T>(
    parse: impl Fn(&str) -> Result<T, Bad>,
) -> impl Fn(&str) -> Result<Option<T>, Bad> {
    move |text| match text {
        "off" => Ok(None),
        "0" => Err(Bad::new("says too little (nginx's 0 means unlimited)").write("off")),
        "none" | "false" | "no" => Err(Bad::new("is not known").write("off")),
        _ => parse(text).map(Some),
    }
}

/// `off` is the type's zero, or what `parse` reads.
pub(super) fn or_zero<T: Default>(
    parse: impl Fn(&str) -> Result<T, Bad>,
) -> impl Fn(&str) -> Result<T, Bad> {
    let parse = or_off(parse);
    move |text| Ok(parse(text)?.unwrap_or_default())
}

/// One of a few words.
pub(super) fn word<T: Copy>(words: &[(&str, T)]) -> impl Fn(&str) -> Result<T, Bad> {
    move |text| {
        words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            Bad::new("is not known").write(any_of(&known))
        })
    }
}

/// `host:port` (an IP address; no host, `*` and `[::]` are every address, IPv4 too), `unix:PATH`.
pub(super) fn listen(text: &str) -> Result<Listen, Bad> {
    if let Some(path) = unix_path(text) {
        return socket_path(path).map(Listen::Unix);
    }
    let bad = || Bad::new("is not an address to listen on");
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port),
        None if is_number(text) => ("", text),
        None if text.parse::<Ipv4Addr>().is_ok() => {
            return Err(bad().write(format!("{text}:8080")));
        }
        None => return Err(bad().write("127.0.0.1:8080, :8080 or unix:PATH")),
    };
    let ip = match host {
        "" | "*" | "[::]" => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        _ => match bracketed(host).map_or_else(|| host.parse().ok(), |v6| v6.parse().ok()) {
            Some(IpAddr::V6(_)) if bracketed(host).is_none() => None,
            ip => ip,
        }
        .ok_or_else(|| bad().write("127.0.0.1:8080, :8080 or unix:PATH"))?,
    };
    Ok(Listen::Tcp(SocketAddr::new(ip, port_number(port, true)?)))
}

/// `unix:PATH`, `unix:///PATH`, `/PATH`, `host:port`, `http://host:port`.
pub(super) fn upstream(text: &str) -> Result<UpstreamAddr, Bad> {
    if let Some(path) = unix_path(text) {
        return socket_path(path).map(UpstreamAddr::Unix);
    }
    if text.starts_with("https://") {
        return Err(Bad::new("asks for TLS to the app, which is not supported")
            .write(text.replacen("https", "http", 1)));
    }
    let address = text.strip_prefix("http://").unwrap_or(text);
    if address.starts_with("unix:") {
        return Err(Bad::new("is not an upstream").write(address));
    }
    let address = address.strip_suffix('/').unwrap_or(address);
    let bad = || Bad::new("is not an upstream");
    if address.contains('/') {
        return Err(bad().write("host:port or unix:PATH, without a path of the URL"));
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err(match address {
            _ if is_number(address) => bad().write(format!("127.0.0.1:{address}")),
            "" => bad(),
            _ => Bad::new("has no port").write(format!("{address}:8000")),
        });
    };
    let port = port_number(port, false)?;
    match bracketed(host) {
        Some(v6) if v6.parse::<Ipv6Addr>().is_ok() => Ok(UpstreamAddr::Tcp(v6.to_owned(), port)),
        None if host.is_empty() => Err(bad().write(format!("127.0.0.1:{port}"))),
        None if is_host(host) => Ok(UpstreamAddr::Tcp(host.to_owned(), port)),
        _ => Err(bad()),
    }
}

/// Path of a request target, as the client sends it.
pub(super) fn url_path(text: &str) -> Result<String, Bad> {
    let clean = text.bytes().all(|byte| byte.is_ascii_graphic());
    match text.strip_prefix('/') {
        Some(_) if clean => Ok(text.to_owned()),
        None if clean && !text.is_empty() => {
            Err(Bad::new("does not begin with /").write(format!("/{text}")))
        }
        _ => Err(Bad::new("is not a path")),
    }
}

/// Name of a field (RFC 9110 section 5.1).
pub(super) fn field_name(text: &str) -> Result<String, Bad> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || !text.bytes().all(token) {
        return Err(Bad::new("is not a field's name"));
    }
    Ok(text.to_owned())
}

/// Value of a Host field, with or without a port.
pub(super) fn host(text: &str) -> Result<String, Bad> {
    let name = match text.rsplit_once(':') {
        Some((name, port)) if is_number(port) => name,
        _ => text,
    };
    let v6 = bracketed(name).is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok());
    if v6 || is_host(name) { Ok(text.to_owned()) } else { Err(Bad::new("is not a host")) }
}

/// A signal that a program may stop on: `TERM` or `SIGTERM`.
pub(super) fn signal(text: &str) -> Result<i32, Bad> {
    use rustix::process::Signal;
    let known = [
        ("TERM", Signal::TERM),
        ("QUIT", Signal::QUIT),
        ("INT", Signal::INT),
        ("HUP", Signal::HUP),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("KILL", Signal::KILL),
    ];
    let name = text.strip_prefix("SIG").unwrap_or(text);
    word(&known)(name).map(|signal| signal.as_raw())
}

/// A size as it is typed: the largest unit that keeps it whole.
pub(super) fn show_size(bytes: u64) -> String {
    match bytes {
        0 => "off".to_owned(),
        _ if bytes.is_multiple_of(1 << 30) => format!("{}g", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}m", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}k", bytes >> 10),
        _ => bytes.to_string(),
    }
}

/// A duration as it is typed.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") }
}

/// `a, b or c`
pub(super) fn any_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

fn zero() -> Bad {
    Bad::new("is not a limit (nginx's 0, unlimited, does not exist here)")
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// `100mb`, `100 MiB`, `1.5g`: what was meant, as it is written here; empty when nobody can know.
fn nearest_size(number: &str, unit: &str) -> String {
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" | "byte" | "bytes" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024.0 * 1024.0,
        "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return String::new(),
    };
    match number.parse::<f64>() {
        Ok(number) if number * factor >= 1.0 => show_size((number * factor) as u64),
        _ => String::new(),
    }
}

fn nearest_duration(number: &str, unit: &str) -> String {
    let (unit, millis) = match unit.trim().to_ascii_lowercase().as_str() {
        "ms" | "msec" | "milliseconds" => ("ms", 1.0),
        "" | "s" | "sec" | "secs" | "second" | "seconds" => ("s", 1000.0),
        "m" | "min" | "mins" | "minute" | "minutes" => ("m", 60_000.0),
        "h" | "hour" | "hours" => ("h", 3_600_000.0),
        "d" | "day" | "days" => ("d", 86_400_000.0),
        _ => return String::new(),
    };
    match number.parse::<f64>() {
        Ok(whole) if whole >= 1.0 && whole.fract() == 0.0 && unit != "d" => {
            format!("{whole}{unit}")
        }
        Ok(number) if number * millis >= 1.0 => {
            show_duration(Duration::from_millis((number * millis) as u64))
        }
        _ => String::new(),
    }
}

/// The path of `unix:PATH`, `unix://PATH` or `/PATH`.
fn unix_path(text: &str) -> Option<&str> {
    match text.strip_prefix("unix:") {
        Some(path) => Some(path.strip_prefix("//").unwrap_or(path)),
        None => text.starts_with('/').then_some(text),
    }
}

fn socket_path(path: &str) -> Result<PathBuf, Bad> {
    match path {
        "" | "/" => Err(Bad::new("names no socket")),
        _ if path.starts_with('@') => {
            Err(Bad::new("is an abstract socket, which is not supported").write("unix:PATH"))
        }
        _ if path.contains('\0') => Err(Bad::new("is not a path")),
        _ if path.len() > LONGEST_SOCKET_PATH => {
            let what = format!("is too long ({} bytes) for a Unix socket", path.len());
            Err(Bad::new(what).write(format!("a path of {LONGEST_SOCKET_PATH} bytes at most")))
        }
        _ => Ok(PathBuf::from(path)),
    }
}

fn port_number(port: &str, zero_is_any: bool) -> Result<u16, Bad> {
    match port.parse() {
        // "+80" is a number for std, but nobody means it.
        Ok(number) if is_number(port) && (number > 0 || zero_is_any) => Ok(number),
        _ => Err(Bad::new("has no valid port").write("a port of 1 to 65535")),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn bracketed(host: &str) -> Option<&str> {
    host.strip_prefix('[')?.strip_suffix(']')
}

/// A host name or an IPv4 address; `_` is common in the names that compose gives.
fn is_host(host: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !host.is_empty() && host.len() <= 253 && host.bytes().all(allowed)
}
