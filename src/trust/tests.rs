use super::*;
use crate::http1::{Limits, Violation};

/// The head of a request, written with bare newlines and without the empty line.
pub(crate) fn request(text: &str) -> RequestHead {
    try_request(text).unwrap_or_else(|violation| panic!("{} in {text}", violation.rule))
}

pub(crate) fn try_request(text: &str) -> Result<RequestHead, Violation> {
    let mut head = RequestHead::default();
    let input = text.replace('\n', "\r\n") + "\r\n";
    let length = head.parse(input.as_bytes(), &Limits { head: 1 << 20, fields: 100 })?;
    assert_eq!(length, Some(input.len()));
    Ok(head)
}

/// A configuration in which nothing is trusted.
pub(crate) fn config() -> Config {
    Config::for_tests()
}

/// What is believed of a request with these fields under `trust`, a list of ranges.
fn resolved(config: &Config, peer: &str, fields: &str) -> (bool, Option<String>, &'static str) {
    let peer = match peer {
        "unix" => Peer::Unix,
        ip => Peer::Ip(std::net::SocketAddr::new(ip.parse().unwrap(), 4321)),
    };
    let resolved = resolve(config, peer, &request(&format!("GET / HTTP/1.1\nHost: a\n{fields}")));
    (resolved.trusted, resolved.client.map(|ip| ip.to_string()), resolved.scheme)
}

fn client(config: &Config, peer: &str, fields: &str) -> String {
    resolved(config, peer, fields).1.unwrap_or_default()
}

fn ranges(ranges: &[&str]) -> Config {
    let mut config = config();
    config.trust.ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    config
}

/// As `--trust heroku`: only the router reaches us.
fn router() -> Config {
    let mut config = config();
    config.trust.any_peer = true;
    config
}

#[test]
fn nothing_is_read_from_a_peer_that_is_not_trusted() {
    let fields = "X-Forwarded-For: 6.6.6.6\nX-Forwarded-Proto: https\nX-Real-Ip: 6.6.6.6\n\
                  Forwarded: for=6.6.6.6;proto=https\nFly-Client-IP: 6.6.6.6\n";
    let config = Config {
        real_ip_header: Some("Fly-Client-IP".to_string()),
        ..ranges(&["10.0.0.0/8", "fd00::/8"])
    };
    for peer in ["203.0.113.9", "11.0.0.1", "2001:db8::1", "::1"] {
        assert_eq!(resolved(&config, peer, fields), (false, Some(peer.to_string()), "http"));
    }
    assert_eq!(resolved(&config, "unix", fields), (false, None, "http"));
}

#[test]
fn a_peer_is_trusted_by_range_preset_or_hop_count() {
    let unix = |config: &mut Config| config.trust.unix = true;
    let hops = |config: &mut Config| config.trust.hops = Some(1);
    let hops_in_range = |config: &mut Config| {
        config.trust.hops = Some(1);
        config.trust.ranges.push("10.0.0.0/8".parse().unwrap());
    };
    let any = |config: &mut Config| config.trust.any_peer = true;
    type Row<'a> = (&'a dyn Fn(&mut Config), [bool; 4]);
    let peers = ["10.1.2.3", "::ffff:10.1.2.3", "203.0.113.9", "unix"];
    let rows: [Row<'_>; 6] = [
        (&|_| (), [false; 4]),
        (&|c| c.trust = ranges(&["10.0.0.0/8"]).trust, [true, true, false, false]),
        (&unix, [false, false, false, true]),
        (&hops, [true; 4]),
        (&hops_in_range, [true, true, false, false]),
        (&any, [true; 4]),
    ];
    for (row, (set, expected)) in rows.into_iter().enumerate() {
        let mut config = config();
        set(&mut config);
        for (peer, trusted) in peers.into_iter().zip(expected) {
            assert_eq!(resolved(&config, peer, "").0, trusted, "row {row}, {peer}");
        }
    }
}

#[test]
fn the_client_is_the_first_address_from_the_right_that_is_no_proxys() {
    let config = ranges(&["10.0.0.0/8", "192.0.2.0/24", "fd00::/8"]);
    for (fields, expected) in [
        ("", "10.0.0.1"),
        ("X-Forwarded-For: 203.0.113.9\n", "203.0.113.9"),
        ("X-Forwarded-For: 6.6.6.6, 203.0.113.9\n", "203.0.113.9"),
        ("X-Forwarded-For: 6.6.6.6, 203.0.113.9, 192.0.2.7, 10.9.9.9\n", "203.0.113.9"),
        ("X-Forwarded-For: 6.6.6.6,203.0.113.9 ,\t192.0.2.7\n", "203.0.113.9"),
        // Lines are one list.
        ("X-Forwarded-For: 6.6.6.6\nA: 1\nX-Forwarded-For: 203.0.113.9\n", "203.0.113.9"),
        ("X-Forwarded-For: 203.0.113.9\nX-Forwarded-For: 10.9.9.9\n", "203.0.113.9"),
        // All are proxies: the farthest.
        ("X-Forwarded-For: 10.7.7.7, 10.9.9.9\n", "10.7.7.7"),
        // Empty elements are none.
        ("X-Forwarded-For:\n", "10.0.0.1"),
        ("X-Forwarded-For: 203.0.113.9, ,\n", "203.0.113.9"),
        ("X-Forwarded-For: 203.0.113.9\nX-Forwarded-For:\n", "203.0.113.9"),
        // What is not an address ends the walk at the last one that was.
        ("X-Forwarded-For: 203.0.113.9, unknown\n", "10.0.0.1"),
        ("X-Forwarded-For: 203.0.113.9, unknown, 10.9.9.9\n", "10.9.9.9"),
        ("X-Forwarded-For: 203.0.113.9, _hidden\n", "10.0.0.1"),
        ("X-Forwarded-For: 203.0.113.9; 10.9.9.9\n", "10.0.0.1"),
        // The other fields do not count beside it.
        (
            "X-Forwarded-For: 203.0.113.9\nForwarded: for=6.6.6.6\nX-Real-Ip: 6.6.6.6\n",
            "203.0.113.9",
        ),
        ("X-Forwarded-For: bad\nForwarded: for=6.6.6.6\n", "10.0.0.1"),
        ("X-Real-Ip: 6.6.6.6\nCF-Connecting-IP: 6.6.6.6\n", "10.0.0.1"),
    ] {
        assert_eq!(client(&config, "10.0.0.1", fields), expected, "{fields}");
    }
}

#[test]
fn elements_may_have_ports_brackets_and_quotes() {
    for (element, expected) in [
        ("1.2.3.4:5678", "1.2.3.4"),
        ("\"1.2.3.4\"", "1.2.3.4"),
        ("\"1.2.3.4:5678\"", "1.2.3.4"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:5678", "2001:db8::1"),
        ("\"[2001:DB8::1]:5678\"", "2001:db8::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("[::ffff:1.2.3.4]:5678", "1.2.3.4"),
        // Not addresses: the peer remains.
        ("1.2.3.4:", "10.0.0.1"),
        ("1.2.3.4:x", "10.0.0.1"),
        ("1.2.3.4:+5", "10.0.0.1"),
        ("1.2.3.4:99999", "10.0.0.1"),
        ("01.2.3.4", "10.0.0.1"),
        ("1.2.3", "10.0.0.1"),
        ("1.2.3.4.5", "10.0.0.1"),
        ("[1.2.3.4]", "10.0.0.1"),
        ("[2001:db8::1", "10.0.0.1"),
        ("[2001:db8::1]x", "10.0.0.1"),
        ("fe80::1%eth0", "10.0.0.1"),
        ("\"1.2.3.4", "10.0.0.1"),
        ("a.test", "10.0.0.1"),
        ("caf\u{e9}", "10.0.0.1"),
    ] {
        let fields = format!("X-Forwarded-For: {element}\n");
        assert_eq!(client(&router(), "10.0.0.1", &fields), expected, "{element}");
    }
}

#[test]
fn a_platforms_router_is_believed_for_one_element_and_its_cdn_for_one_more() {
    let fields = "X-Forwarded-For: 6.6.6.6, 199.188.193.220, 108.162.219.160\n";
    assert_eq!(client(&router(), "10.16.227.159", fields), "108.162.219.160");
    let mut with_cdn = router();
    with_cdn.trust.ranges = trust_presets::cloudflare();
    assert_eq!(client(&with_cdn, "10.16.227.159", fields), "199.188.193.220");
    // Past the CDN, to the router: what the visitor wrote stays to the left of the visitor.
    let direct = "X-Forwarded-For: 108.162.219.160, 203.0.113.9\n";
    assert_eq!(client(&with_cdn, "10.16.227.159", direct), "203.0.113.9");
}

#[test]
fn hops_count_from_the_right_with_the_peer_as_the_first() {
    let fields = "X-Forwarded-For: 6.6.6.6, 203.0.113.9, 198.51.100.1\n";
    for (hops, expected) in
        [(1, "198.51.100.1"), (2, "203.0.113.9"), (3, "6.6.6.6"), (4, "6.6.6.6"), (50, "6.6.6.6")]
    {
        let mut config = config();
        config.trust.hops = Some(hops);
        assert_eq!(client(&config, "203.0.113.200", fields), expected, "{hops}");
    }
}

#[test]
fn a_chain_without_end_is_not_walked() {
    let config = ranges(&["10.0.0.0/8"]);
    let mut elements = vec!["203.0.113.9".to_string()];
    elements.extend((0..60).map(|n| format!("10.0.1.{n}")));
    let fields = format!("X-Forwarded-For: {}\n", elements.join(","));
    assert_eq!(client(&config, "10.0.0.1", &fields), "10.0.1.10");
}

#[test]
fn forwarded_is_read_where_there_is_no_x_forwarded_for() {
    let config = ranges(&["10.0.0.0/8"]);
    for (value, expected, scheme) in [
        ("for=203.0.113.9", "203.0.113.9", "http"),
        ("for=203.0.113.9;proto=https;by=10.0.0.1", "203.0.113.9", "https"),
        ("By=_a ; Proto=HTTPS ; For=\"[2001:db8::9]:4711\"", "2001:db8::9", "https"),
        (
            "for=6.6.6.6;proto=http, for=203.0.113.9;proto=https, for=10.9.9.9;proto=http",
            "203.0.113.9",
            "https",
        ),
        ("for=203.0.113.9;proto=https, proto=http", "10.0.0.1", "http"),
        ("for=_hidden;proto=https", "10.0.0.1", "http"),
        ("for=unknown", "10.0.0.1", "http"),
        // A quote that the visitor left open.
        ("for=\"6.6.6.6, for=203.0.113.9;proto=https", "203.0.113.9", "https"),
        ("for=203.0.113.9;proto=gopher", "203.0.113.9", "http"),
    ] {
        let fields = format!("Forwarded: {value}\n");
        let expected = (true, Some(expected.to_string()), scheme);
        assert_eq!(resolved(&config, "10.0.0.1", &fields), expected, "{value}");
    }
    let fields = "Forwarded: for=203.0.113.9;proto=https\nX-Forwarded-Proto: http\n";
    assert_eq!(resolved(&config, "10.0.0.1", fields).2, "http");
}

#[test]
fn the_real_ip_header_wins_where_it_came_once_and_is_an_address() {
    let config = Config { real_ip_header: Some("Fly-Client-IP".to_string()), ..router() };
    for (fields, expected) in [
        ("Fly-Client-IP: 203.0.113.9\nX-Forwarded-For: 6.6.6.6\n", "203.0.113.9"),
        ("FLY-CLIENT-IP: ::ffff:203.0.113.9\n", "203.0.113.9"),
        ("X-Forwarded-For: 203.0.113.9\n", "203.0.113.9"),
        ("Fly-Client-IP: nobody\nX-Forwarded-For: 203.0.113.9\n", "203.0.113.9"),
        (
            "Fly-Client-IP: 6.6.6.6\nFly-Client-IP: 7.7.7.7\nX-Forwarded-For: 203.0.113.9\n",
            "203.0.113.9",
        ),
        ("Fly-Client-IP: 6.6.6.6, 7.7.7.7\n", "10.0.0.1"),
    ] {
        assert_eq!(client(&config, "10.0.0.1", fields), expected, "{fields}");
    }
    // nginx's users write the usual field: it is a list and stays one.
    let config = Config { real_ip_header: Some("X-Forwarded-For".to_string()), ..router() };
    let fields = "X-Forwarded-For: 6.6.6.6, 203.0.113.9\n";
    assert_eq!(client(&config, "10.0.0.1", fields), "203.0.113.9");
}

#[test]
fn fly_names_the_client_in_its_own_field() {
    let mut config = router();
    config.trust.presets.push("fly".to_string());
    let fields = "X-Forwarded-For: 203.0.113.9, 66.241.124.1\nFly-Client-IP: 203.0.113.9\n";
    assert_eq!(client(&config, "172.16.0.9", fields), "203.0.113.9");
    assert_eq!(client(&router(), "172.16.0.9", fields), "66.241.124.1");
}

#[test]
fn a_trusted_cdn_in_front_of_fly_is_not_the_client() {
    let mut config = router();
    config.trust.presets.push("fly".to_string());
    let client = |config: &Config, list: &str| {
        let fields = format!("X-Forwarded-For: {list}\nFly-Client-IP: 104.16.0.9\n");
        self::client(config, "172.16.0.9", &fields)
    };
    // What the visitor made up, the visitor, Cloudflare, Fly.
    let list = "6.6.6.6, 203.0.113.9, 104.16.0.9, 66.241.124.1";
    assert_eq!(client(&config, list), "104.16.0.9", "nobody trusts Cloudflare");
    config.trust.ranges = trust_presets::cloudflare();
    assert_eq!(client(&config, list), "203.0.113.9");
    assert_eq!(client(&config, "203.0.113.9, 104.17.0.1, 104.16.0.9, 66.241.124.1"), "203.0.113.9");
    assert_eq!(client(&config, "nobody, 104.16.0.9, 66.241.124.1"), "104.16.0.9");
    assert_eq!(client(&config, "66.241.124.1"), "104.16.0.9");
}

#[test]
fn the_scheme_is_one_of_two_words() {
    for (fields, scheme) in [
        ("", "http"),
        ("X-Forwarded-Proto: https\n", "https"),
        ("X-Forwarded-Proto: http\n", "http"),
        ("X-Forwarded-Proto: HTTPS\n", "https"),
        ("X-Forwarded-Proto: wss\n", "https"),
        ("X-Forwarded-Proto: ws\n", "http"),
        ("X-Forwarded-Proto: ftp\n", "http"),
        ("X-Forwarded-Proto:\n", "http"),
        // Lists of another length than X-Forwarded-For: the left-most.
        ("X-Forwarded-Proto: https,http\n", "https"),
        ("X-Forwarded-Proto: https\nX-Forwarded-Proto: http\n", "https"),
        ("X-Forwarded-For: 203.0.113.9\nX-Forwarded-Proto: https, http\n", "https"),
        // Of the same length: the client's place.
        ("X-Forwarded-For: 6.6.6.6, 203.0.113.9\nX-Forwarded-Proto: https, http\n", "http"),
        ("X-Forwarded-For: 6.6.6.6, 203.0.113.9\nX-Forwarded-Proto: http, https\n", "https"),
        ("X-Forwarded-For: 203.0.113.9, 192.0.2.7\nX-Forwarded-Proto: https, http\n", "https"),
    ] {
        let mut config = router();
        config.trust.ranges.push("192.0.2.0/24".parse().unwrap());
        assert_eq!(resolved(&config, "10.0.0.1", fields).2, scheme, "{fields}");
    }
}

#[test]
fn ipv4_mapped_addresses_are_the_ipv4_addresses() {
    assert_eq!(client(&config(), "::ffff:203.0.113.9", ""), "203.0.113.9");
    assert_eq!(client(&ranges(&["10.0.0.0/8"]), "::ffff:10.0.0.1", ""), "10.0.0.1");
}

#[test]
fn a_unix_peer_that_is_trusted_is_heard() {
    let mut config = config();
    config.trust.unix = true;
    let fields = "X-Forwarded-For: 203.0.113.9\nX-Forwarded-Proto: https\n";
    assert_eq!(resolved(&config, "unix", fields), (true, Some("203.0.113.9".to_string()), "https"));
    assert_eq!(resolved(&config, "unix", ""), (true, None, "http"));
}

#[test]
fn a_dropped_field_names_the_option_that_would_keep_it() {
    for (field, peer, expected) in [
        (
            "X-Forwarded-Proto: https",
            Some("172.18.0.3"),
            "dropped X-Forwarded-Proto: https from 172.18.0.3 (not trusted); \
             if that is your proxy: --trust private",
        ),
        (
            "X-Forwarded-For: 6.6.6.6",
            Some("203.0.113.9"),
            "dropped X-Forwarded-For: 6.6.6.6 from 203.0.113.9 (not trusted); \
             if that is your proxy: --trust 203.0.113.9/32",
        ),
        (
            "x-real-ip: caf\u{e9}\t\"x",
            Some("2001:db8::9"),
            "dropped x-real-ip: caf\\xc3\\xa9\\t\\\"x from 2001:db8::9 (not trusted); \
             if that is your proxy: --trust 2001:db8::9/128",
        ),
        (
            "Forwarded: for=a",
            Some("173.245.48.9"),
            "dropped Forwarded: for=a from 173.245.48.9 (not trusted); \
             if that is your proxy: --trust cloudflare",
        ),
        (
            "Forwarded: for=a",
            None,
            "dropped Forwarded: for=a from a Unix socket (not trusted); \
             if that is your proxy: --trust private",
        ),
    ] {
        let head = request(&format!("GET / HTTP/1.0\n{field}\n"));
        let peer = peer.map(|ip| ip.parse().unwrap());
        assert_eq!(dropped_claim(&head, &head.fields[0], peer), expected);
    }
    let head = request(&format!("GET / HTTP/1.0\nX-Forwarded-For: {}\n", "x".repeat(5000)));
    assert!(dropped_claim(&head, &head.fields[0], None).len() < 300);
}

#[test]
fn the_cdns_addresses_are_those_of_its_ranges() {
    let ranges = trust_presets::cloudflare();
    for range in &ranges {
        for edge in [range.network(), range.broadcast()] {
            assert!(is_cdn(edge), "{edge}");
            for near in beside(edge) {
                assert_eq!(is_cdn(near), in_ranges(&ranges, near), "{near}");
            }
        }
    }
    for ip in ["0.0.0.0", "255.255.255.255", "::", "ffff::", "8.8.8.8", "2001:db8::1"] {
        assert!(!is_cdn(ip.parse().unwrap()), "{ip}");
    }
}

/// The addresses before and after it.
fn beside(ip: IpAddr) -> [IpAddr; 2] {
    match ip {
        IpAddr::V4(ip) => [u32::from(ip) - 1, u32::from(ip) + 1].map(|ip| IpAddr::V4(ip.into())),
        IpAddr::V6(ip) => [u128::from(ip) - 1, u128::from(ip) + 1].map(|ip| IpAddr::V6(ip.into())),
    }
}

#[test]
fn a_client_that_is_a_cdn_without_trust_names_the_preset() {
    let cdn: IpAddr = "108.162.219.160".parse().unwrap();
    assert!(is_untrusted_cdn(&router().trust, cdn));
    assert!(!is_untrusted_cdn(&ranges(&["108.162.192.0/18"]).trust, cdn));
    assert!(!is_untrusted_cdn(&router().trust, "199.188.193.220".parse().unwrap()));
    assert_eq!(
        cdn_client(cdn),
        "client 108.162.219.160 is an address of Cloudflare's: \
         if that is your CDN, add cloudflare to --trust"
    );
}

#[test]
fn each_thing_is_said_once() {
    let bit = 1 << 62;
    assert!(first_time(bit));
    assert!(!first_time(bit));
}

#[test]
fn private_addresses_are_those_of_the_preset() {
    for ip in [
        "127.0.0.1",
        "10.255.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "169.254.1.1",
        "100.64.0.1",
        "100.127.255.255",
        "::1",
        "fc00::1",
        "fdff::1",
        "fe80::1",
        "::ffff:10.0.0.1",
    ] {
        assert!(is_private(ip.parse().unwrap()), "{ip}");
    }
    for ip in ["172.32.0.1", "100.63.0.1", "100.128.0.1", "1.1.1.1", "2001:db8::1", "fec0::1"] {
        assert!(!is_private(ip.parse().unwrap()), "{ip}");
    }
}
