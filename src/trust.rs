//! Whose word counts: resolves the client's address and scheme of a request (invariant 13).
//!
//! The exchange calls `resolve` once for each head. A peer that is not trusted is the client itself,
//! whatever it says. What a trusted one says is read from the right, because each proxy adds its
//! peer there: the first address that is not itself a trusted proxy's is the client, and everything
//! to the left of it is what the client made up.

use std::net::IpAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ipnet::IpNet;

use crate::config::{Config, Peer, TrustConfig, trust_presets};
use crate::http1::{Field, FieldId, RequestHead};

/// What is believed of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The peer is trusted: its forwarded fields count.
    pub trusted: bool,
    /// The client's own address, never IPv4-mapped (None: a Unix-socket peer that says nothing).
    pub client: Option<IpAddr>,
    /// `http` or `https`.
    pub scheme: &'static str,
}

/// Resolves the client of one request. Says once for each kind of field that an untrusted peer's was
/// dropped, and once that a client is a CDN's address.
///
/// - The address: the field that `real-ip-header` names, where it came exactly once and is an
///   address (if that is a trusted proxy's, what X-Forwarded-For has beyond it); else X-Forwarded-For; without any, Forwarded (RFC 7239); else the peer.
/// - The scheme: X-Forwarded-Proto, without any that of the client's element of Forwarded, else
///   `http`: we end no TLS. Of a list in X-Forwarded-Proto the element at the client's place counts
///   if the list is as long as X-Forwarded-For, because then each proxy added to both; else the
///   left-most, which is nearest to the client (Django and Rack read it so).
pub fn resolve(config: &Config, peer: Peer, head: &RequestHead) -> Resolved {
    let peer = peer.ip().map(|ip| ip.to_canonical());
    if !is_trusted(&config.trust, peer) {
        for field in &head.fields {
            if is_claim(field.id) && first_time(1 << field.id as u8) {
                tracing::warn!("{}", dropped_claim(head, field, peer));
            }
        }
        return Resolved { trusted: false, client: peer, scheme: "http" };
    }

    let walk = walk(&config.trust, peer, head);
    let client = match real_ip(config, head) {
        Some(ip) => Some(beyond(&config.trust, ip, head)),
        None => walk.client,
    };
    let scheme = forwarded_proto(head, &walk).or(walk.proto).unwrap_or("http");
    if let Some(client) = client
        && SAID.load(Relaxed) & SAID_CDN == 0
        && is_untrusted_cdn(&config.trust, client)
        && first_time(SAID_CDN)
    {
        tracing::warn!("{}", cdn_client(client));
    }
    Resolved { trusted: true, client, scheme }
}

/// The field in which a trusted peer names the client: `real-ip-header`, else Fly's own, because the
/// X-Forwarded-For that Fly's proxy writes ends in the address of the app.
pub fn real_ip_header(config: &Config) -> Option<&str> {
    let fly = || config.trust.presets.iter().any(|preset| preset == "fly");
    config.real_ip_header.as_deref().or_else(|| fly().then_some("Fly-Client-IP"))
}

/// Loopback, private, shared and link-local addresses: what the preset `private` covers.
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

fn in_ranges(ranges: &[IpNet], ip: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&ip))
}

/// A hop count alone says that a proxy is in front, whatever its address; with ranges the peer has
/// to lie in them.
fn is_trusted(trust: &TrustConfig, peer: Option<IpAddr>) -> bool {
    trust.any_peer
        || trust.hops.is_some() && trust.ranges.is_empty()
        || match peer {
            Some(ip) => in_ranges(&trust.ranges, ip),
            None => trust.unix,
        }
}

/// Elements of a list that are looked at, from the right: nobody has more proxies in a row.
const MAX_HOPS: usize = 50;

/// What the chain of proxies says.
struct Walk {
    client: Option<IpAddr>,
    /// Place of the client's element, counted from the right.
    place: usize,
    /// Of the client's element of Forwarded.
    proto: Option<&'static str>,
}

/// Walks X-Forwarded-For, or without any Forwarded, from the right, beginning beyond the peer:
/// over `hops - 1` elements whatever they are, then over those in trusted ranges. An element that is
/// not an address ends the walk at the last one that was.
fn walk(trust: &TrustConfig, peer: Option<IpAddr>, head: &RequestHead) -> Walk {
    let mut walk = Walk { client: peer, place: 0, proto: None };
    let mut step = |place, ip: Option<IpAddr>, proto| {
        let Some(ip) = ip else { return false };
        walk = Walk { client: Some(ip), place, proto };
        place + 1 < trust.hops.unwrap_or(1) || in_ranges(&trust.ranges, ip)
    };
    let mut came = false;
    for (place, element) in elements(head, FieldId::XForwardedFor).take(MAX_HOPS).enumerate() {
        came = true;
        if !step(place, address(element), None) {
            break;
        }
    }
    if !came {
        for (place, element) in elements(head, FieldId::Forwarded).take(MAX_HOPS).enumerate() {
            let proto = parameter(element, b"proto").and_then(scheme);
            if !step(place, parameter(element, b"for").and_then(address), proto) {
                break;
            }
        }
    }
    walk
}

/// The client that a trusted peer names may itself be a trusted proxy (a CDN in front of Fly): then what
/// X-Forwarded-For has to the left of it, over those in trusted ranges.
fn beyond(trust: &TrustConfig, named: IpAddr, head: &RequestHead) -> IpAddr {
    let list = elements(head, FieldId::XForwardedFor).take(MAX_HOPS).map_while(address);
    let mut client = named;
    for ip in list.skip_while(|ip| *ip != named).skip(1) {
        if !in_ranges(&trust.ranges, client) {
            break;
        }
        client = ip;
    }
    client
}

/// The value of `real_ip_header`, where it came exactly once and is an address.
fn real_ip(config: &Config, head: &RequestHead) -> Option<IpAddr> {
    let name = real_ip_header(config)?.as_bytes();
    let mut fields =
        head.fields.iter().filter(|f| f.name.of(&head.bytes).eq_ignore_ascii_case(name));
    match (fields.next(), fields.next()) {
        (Some(field), None) => address(field.value.of(&head.bytes)),
        _ => None,
    }
}

/// The scheme that X-Forwarded-Proto says.
fn forwarded_proto(head: &RequestHead, walk: &Walk) -> Option<&'static str> {
    let protos = || elements(head, FieldId::XForwardedProto).take(MAX_HOPS);
    let count = protos().count();
    let at_client = match count {
        0 | 1 => 0,
        _ if count == elements(head, FieldId::XForwardedFor).take(MAX_HOPS).count() => walk.place,
        _ => count - 1,
    };
    protos().nth(at_client).and_then(scheme)
}

/// The elements of a list field, all lines taken together, from the right; empty ones are none
/// (RFC 9110, 5.6.1). A comma inside a quoted string splits it too: an open quote that a client sent
/// must not swallow what a proxy added behind it.
fn elements(head: &RequestHead, id: FieldId) -> impl Iterator<Item = &[u8]> {
    head.fields
        .iter()
        .rev()
        .filter(move |f| f.id == id)
        .flat_map(|f| f.value.of(&head.bytes).rsplit(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// Value of one parameter of a Forwarded element.
fn parameter<'a>(element: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    element.split(|&b| b == b';').find_map(|pair| {
        let equals = memchr::memchr(b'=', pair)?;
        let (key, value) = (&pair[..equals], &pair[equals + 1..]);
        key.trim_ascii().eq_ignore_ascii_case(name).then(|| unquoted(value.trim_ascii()))
    })
}

fn unquoted(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\"").and_then(|t| t.strip_suffix(b"\"")).unwrap_or(text)
}

/// An address as proxies write it: bare, in quotes, with a port (`1.2.3.4:56`, `[2001:db8::1]:56`).
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(unquoted(text)).ok()?;
    let (ip, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (ip, port) = rest.split_once(']')?;
            (IpAddr::V6(ip.parse().ok()?), port)
        }
        None => match text.parse::<IpAddr>() {
            Ok(ip) => (ip, ""),
            Err(_) => {
                let (ip, _) = text.split_once(':')?;
                (IpAddr::V4(ip.parse().ok()?), &text[ip.len()..])
            }
        },
    };
    let port_is_valid = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    port_is_valid.then(|| ip.to_canonical())
}

/// WebSocket's names mean the same connection.
fn scheme(token: &[u8]) -> Option<&'static str> {
    let is = |name: &[u8]| token.eq_ignore_ascii_case(name);
    if is(b"https") || is(b"wss") {
        Some("https")
    } else if is(b"http") || is(b"ws") {
        Some("http")
    } else {
        None
    }
}

/// What was said already: a bit for each `FieldId`, and the last for the CDN.
static SAID: AtomicU64 = AtomicU64::new(0);
const SAID_CDN: u64 = 1 << 63;

fn first_time(bit: u64) -> bool {
    SAID.load(Relaxed) & bit == 0 && SAID.fetch_or(bit, Relaxed) & bit == 0
}

/// Cloudflare is the one that most platforms are behind, and its addresses are published.
/// Asked for each request until it was said: in order, so that a few comparisons tell.
fn is_cdn(ip: IpAddr) -> bool {
    static CLOUDFLARE: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
        let mut ranges = trust_presets::cloudflare();
        ranges.sort();
        ranges
    });
    // They do not overlap: only the last that begins at or before it can hold it.
    let before = CLOUDFLARE.partition_point(|range| range.network() <= ip);
    CLOUDFLARE[..before].last().is_some_and(|range| range.contains(&ip))
}

/// The client is an address of the CDN: then its X-Forwarded-For, with the visitor in it, was not
/// read on.
fn is_untrusted_cdn(trust: &TrustConfig, client: IpAddr) -> bool {
    is_cdn(client) && !in_ranges(&trust.ranges, client)
}

/// Fields by which a proxy says who the client is.
fn is_claim(id: FieldId) -> bool {
    matches!(
        id,
        FieldId::Forwarded
            | FieldId::XForwardedFor
            | FieldId::XForwardedHost
            | FieldId::XForwardedPort
            | FieldId::XForwardedProto
            | FieldId::XRealIp
            | FieldId::XRequestStart
    )
}

/// The value is the peer's: escaped, and cut where nobody reads on.
fn dropped_claim(head: &RequestHead, field: &Field, peer: Option<IpAddr>) -> String {
    let name = field.name.of(&head.bytes).escape_ascii();
    let value = field.value.of(&head.bytes);
    let value = value[..value.len().min(100)].escape_ascii();
    let (from, preset) = match peer {
        None => ("a Unix socket".to_string(), "private".to_string()),
        Some(ip) if is_private(ip) => (ip.to_string(), "private".to_string()),
        Some(ip) if is_cdn(ip) => (ip.to_string(), "cloudflare".to_string()),
        Some(ip) => (ip.to_string(), IpNet::from(ip).to_string()),
    };
    format!(
        "dropped {name}: {value} from {from} (not trusted); if that is your proxy: --trust {preset}"
    )
}

fn cdn_client(client: IpAddr) -> String {
    format!(
        "client {client} is an address of Cloudflare's: if that is your CDN, add cloudflare to --trust"
    )
}

#[cfg(test)]
pub(crate) mod tests;
