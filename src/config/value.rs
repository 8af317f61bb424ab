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
    /// `what` says that itself.
    pub(super) is_whole: bool,
}

impl Bad {
    pub(super) fn new(what: impl Into<String>) -> Bad {
        Bad { value: String::new(), what: what.into(), write: String::new(), is_whole: false }
    }

    pub(super) fn of(mut self, value: &str) -> Bad {
        self.value = value.to_owned();
        self
    }

    pub(super) fn whole(mut self) -> Bad {
        self.is_whole = true;
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
    let number = match number.parse::<u64>() {
        Ok(number) => number,
        Err(_) if is_number(number) => return Err(Bad::new("is too large")),
        Err(_) => return Err(Bad::new("is not a size").write(nearest_size(number, unit))),
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
    let number = match number.parse::<u64>() {
        Ok(number) => number,
        Err(_) if is_number(number) => u64::MAX,
        Err(_) => return Err(Bad::new("is not a duration").write(nearest_duration(number, unit))),
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

/// A part of a whole: more than 0, at most 1.
pub(super) fn share(text: &str) -> Result<f64, Bad> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err(Bad::new("is not a share").write("a number up to 1, as 0.25")),
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
    let ip = match (host, bracketed(host)) {
        ("" | "*", _) => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        ("localhost", _) => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        (_, Some(v6)) => v6.parse().ok().map(IpAddr::V6),
        (v4, None) => v4.parse().ok().map(IpAddr::V4),
    };
    let ip = ip.ok_or_else(|| bad().write("127.0.0.1:8080, :8080 or unix:PATH"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `what: write write`, as the message has it.
    fn refusal<T: std::fmt::Debug>(result: Result<T, Bad>) -> String {
        let bad = result.unwrap_err();
        format!("{}: {}", bad.what, bad.write)
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("1", 1),
            ("256", 256),
            ("64k", 64 << 10),
            ("64K", 64 << 10),
            ("100m", 100 << 20),
            ("1g", 1 << 30),
            ("2G", 2 << 30),
        ] {
            assert_eq!(size::<u64>(text), Ok(bytes), "{text}");
        }
        for (text, write) in [
            ("100mb", "100m"),
            ("100MiB", "100m"),
            ("100 m", "100m"),
            ("64 KB", "64k"),
            ("1.5g", "1536m"),
            ("0.5k", "512"),
            ("10b", "10"),
            ("10t", ""),
            ("m", ""),
            ("", ""),
            ("-1", ""),
            ("+1", ""),
            ("1.2.3m", ""),
            ("ten", ""),
        ] {
            assert_eq!(refusal(size::<u64>(text)), format!("is not a size: {write}"), "{text}");
        }
        for text in ["0", "0k", "00"] {
            assert!(refusal(size::<u64>(text)).starts_with("is not a limit"), "{text}");
        }
        assert_eq!(refusal(size::<u64>("18446744073709551616")), "is too large: ");
        assert_eq!(refusal(size::<u64>("17179869184g")), "is too large: ");
        assert_eq!(refusal(size::<u8>("256")), "is too large: ");
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("168h", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for (text, write) in [
            ("30", "30s"),
            ("30 s", "30s"),
            ("30sec", "30s"),
            ("5min", "5m"),
            ("2 hours", "2h"),
            ("1.5s", "1500ms"),
            ("0.5h", "1800s"),
            ("1d", "86400s"),
            ("1m30s", ""),
            ("s", ""),
            ("", ""),
            ("-5s", ""),
            ("5M", "5m"),
        ] {
            assert_eq!(refusal(duration(text)), format!("is not a duration: {write}"), "{text}");
        }
        for text in ["0", "0s", "0ms"] {
            assert!(refusal(duration(text)).starts_with("is not a limit"), "{text}");
        }
        assert_eq!(refusal(duration("169h")), "is too long: 168h at most");
        assert_eq!(refusal(duration("99999999999999999999s")), "is too long: 168h at most");
        assert_eq!(refusal(duration("18446744073709551615h")), "is too long: 168h at most");
    }

    #[test]
    fn what_was_shown_can_be_typed_again() {
        for bytes in [1, 1023, 1024, 65_536, 1 << 20, 3 << 19, 1 << 30, (1 << 30) + 1] {
            assert_eq!(size::<u64>(&show_size(bytes)), Ok(bytes));
        }
        for millis in [1, 999, 1000, 1500, 90_000] {
            let time = Duration::from_millis(millis);
            assert_eq!(duration(&show_duration(time)), Ok(time));
        }
    }

    #[test]
    fn listen_takes_addresses_and_socket_paths() {
        let tcp = |text: &str| Listen::Tcp(text.parse().unwrap());
        for (text, expected) in [
            ("127.0.0.1:80", tcp("127.0.0.1:80")),
            ("0.0.0.0:8080", tcp("0.0.0.0:8080")),
            ("[::]:8080", tcp("[::]:8080")),
            (":8080", tcp("[::]:8080")),
            ("*:8080", tcp("[::]:8080")),
            ("8080", tcp("[::]:8080")),
            ("[::1]:0", tcp("[::1]:0")),
            ("localhost:80", tcp("127.0.0.1:80")),
            ("unix:/a/b.sock", Listen::Unix("/a/b.sock".into())),
            ("unix:///a/b.sock", Listen::Unix("/a/b.sock".into())),
            ("/a/b.sock", Listen::Unix("/a/b.sock".into())),
            ("unix:b.sock", Listen::Unix("b.sock".into())),
        ] {
            assert_eq!(listen(text), Ok(expected), "{text}");
        }
        let bad = "is not an address to listen on";
        for (text, refused) in [
            ("127.0.0.1", format!("{bad}: 127.0.0.1:8080")),
            ("example.com:80", format!("{bad}: 127.0.0.1:8080, :8080 or unix:PATH")),
            ("http://0.0.0.0:80", format!("{bad}: 127.0.0.1:8080, :8080 or unix:PATH")),
            ("::1:80", format!("{bad}: 127.0.0.1:8080, :8080 or unix:PATH")),
            ("[127.0.0.1]:80", format!("{bad}: 127.0.0.1:8080, :8080 or unix:PATH")),
            ("", format!("{bad}: 127.0.0.1:8080, :8080 or unix:PATH")),
            (":65536", "has no valid port: a port of 1 to 65535".to_owned()),
            (":+80", "has no valid port: a port of 1 to 65535".to_owned()),
            (":", "has no valid port: a port of 1 to 65535".to_owned()),
            ("unix:", "names no socket: ".to_owned()),
            ("unix:@app", "is an abstract socket, which is not supported: unix:PATH".to_owned()),
        ] {
            assert_eq!(refusal(listen(text)), refused, "{text}");
        }
        let long = format!("unix:/{}", "x".repeat(107));
        assert!(refusal(listen(&long)).starts_with("is too long (108 bytes) for a Unix socket"));
        assert!(listen(&long[..long.len() - 1]).is_ok());
    }

    #[test]
    fn upstream_takes_every_usual_form() {
        let unix = UpstreamAddr::Unix("/tmp/app.sock".into());
        let tcp = |host: &str, port| UpstreamAddr::Tcp(host.to_owned(), port);
        for (text, expected) in [
            ("unix:/tmp/app.sock", unix.clone()),
            ("unix:///tmp/app.sock", unix.clone()),
            ("/tmp/app.sock", unix.clone()),
            ("app:8000", tcp("app", 8000)),
            ("my_app.internal:8000", tcp("my_app.internal", 8000)),
            ("127.0.0.1:8000", tcp("127.0.0.1", 8000)),
            ("[::1]:8000", tcp("::1", 8000)),
            ("http://app:8000", tcp("app", 8000)),
            ("http://app:8000/", tcp("app", 8000)),
        ] {
            assert_eq!(upstream(text), Ok(expected), "{text}");
        }
        for (text, refused) in [
            ("https://app:443", "asks for TLS to the app, which is not supported: http://app:443"),
            ("http://unix:/tmp/app.sock", "is not an upstream: unix:/tmp/app.sock"),
            (
                "http://app:80/path",
                "is not an upstream: host:port or unix:PATH, without a path of the URL",
            ),
            ("8000", "is not an upstream: 127.0.0.1:8000"),
            (":8000", "is not an upstream: 127.0.0.1:8000"),
            ("app", "has no port: app:8000"),
            ("app:0", "has no valid port: a port of 1 to 65535"),
            ("app:http", "has no valid port: a port of 1 to 65535"),
            ("a b:80", "is not an upstream: "),
            ("::1:80", "is not an upstream: "),
            ("[x]:80", "is not an upstream: "),
            ("", "is not an upstream: "),
            ("unix:", "names no socket: "),
        ] {
            assert_eq!(refusal(upstream(text)), refused, "{text}");
        }
    }

    #[test]
    fn addresses_are_shown_as_they_are_typed() {
        for text in ["[::]:8080", "127.0.0.1:1", "unix:/a.sock"] {
            assert_eq!(listen(text).unwrap().to_string(), text);
        }
        for text in ["[::1]:8080", "app:1", "unix:/a.sock"] {
            assert_eq!(upstream(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn words_names_and_paths() {
        assert_eq!(count("12"), Ok(12));
        assert_eq!(refusal(count("1k")), "is not a whole number: ");
        assert_eq!(or_off(count)("off"), Ok(None));
        assert_eq!(or_zero(count)("off"), Ok(0));
        assert_eq!(refusal(or_off(count)("0")), "says too little (nginx's 0 means unlimited): off");
        assert_eq!(refusal(or_off(count)("none")), "is not known: off");
        assert_eq!(refusal(word(&[("a", 1), ("b", 2), ("c", 3)])("d")), "is not known: a, b or c");
        assert_eq!((signal("TERM"), signal("SIGQUIT")), (Ok(15), Ok(3)));
        assert_eq!(url_path("/up?x=1"), Ok("/up?x=1".to_owned()));
        assert_eq!(refusal(url_path("up")), "does not begin with /: /up");
        assert_eq!(refusal(url_path("/a b")), "is not a path: ");
        assert_eq!(field_name("X-Real-Ip"), Ok("X-Real-Ip".to_owned()));
        assert!(
            field_name("X Real").is_err() && field_name("").is_err() && field_name("a:").is_err()
        );
        for good in ["localhost", "www.example.com:8000", "[::1]", "[::1]:80"] {
            assert_eq!(host(good), Ok(good.to_owned()));
        }
        for bad in ["", "a b", "a\r\nb", "a/b", ":80", "[::1"] {
            assert!(host(bad).is_err(), "{bad:?}");
        }
    }
}
