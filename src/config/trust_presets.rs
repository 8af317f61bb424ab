//! Option `trust`: what each preset believes. Data, and the merge into `TrustConfig`; `crate::trust`
//! applies it.

use ipnet::IpNet;

use super::TrustConfig;
use super::value::{Bad, any_of};

struct Preset {
    name: &'static str,
    /// Only the platform's router reaches us, from addresses that it does not publish.
    any_peer: bool,
    ranges: &'static [&'static [&'static str]],
    /// Proxies that each append themselves to X-Forwarded-For.
    hops: Option<usize>,
    /// Unix-socket peers too.
    unix: bool,
}

const ROUTER: Preset = Preset { name: "", any_peer: true, ranges: &[], hops: None, unix: false };
const RANGES: Preset = Preset { any_peer: false, ..ROUTER };

/// RFC 1918, loopback, link-local, unique local, and the shared space that clouds number nodes from.
const PRIVATE: &[&str] = &[
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "100.64.0.0/10",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// Google's front ends, which load balancers and their health checks come from.
const GOOGLE: &[&str] = &["35.191.0.0/16", "130.211.0.0/22"];

/// https://www.cloudflare.com/ips/
const CLOUDFLARE: &[&str] = &[
    "173.245.48.0/20",
    "103.21.244.0/22",
    "103.22.200.0/22",
    "103.31.4.0/22",
    "141.101.64.0/18",
    "108.162.192.0/18",
    "190.93.240.0/20",
    "188.114.96.0/20",
    "197.234.240.0/22",
    "198.41.128.0/17",
    "162.158.0.0/15",
    "104.16.0.0/13",
    "104.24.0.0/14",
    "172.64.0.0/13",
    "131.0.72.0/22",
    "2400:cb00::/32",
    "2606:4700::/32",
    "2803:f800::/32",
    "2405:b500::/32",
    "2405:8100::/32",
    "2a06:98c0::/29",
    "2c0f:f248::/32",
];

const PRESETS: &[Preset] = &[
    Preset { name: "heroku", ..ROUTER },
    Preset { name: "alb", ranges: &[PRIVATE], ..RANGES },
    // X-Forwarded-For ends in the client and the load balancer's own address.
    Preset { name: "gcp", ranges: &[PRIVATE, GOOGLE], hops: Some(2), ..RANGES },
    Preset { name: "fly", ..ROUTER },
    Preset { name: "cloudflare", ranges: &[CLOUDFLARE], ..RANGES },
    // All of Render is behind Cloudflare, whose address X-Forwarded-For ends in.
    Preset { name: "render", ranges: &[CLOUDFLARE], ..ROUTER },
    Preset { name: "private", ranges: &[PRIVATE], unix: true, ..RANGES },
];

/// The ranges that Cloudflare publishes: `crate::trust` names the preset when a client lies in them.
pub fn cloudflare() -> Vec<IpNet> {
    parsed(CLOUDFLARE)
}

/// Adds one word of the option: a preset, a range, an address, or a number of hops.
pub(super) fn add(trust: &mut TrustConfig, word: &str) -> Result<(), Bad> {
    if let Some(preset) = PRESETS.iter().find(|preset| preset.name == word) {
        trust.any_peer |= preset.any_peer;
        trust.unix |= preset.unix;
        trust.hops = trust.hops.or(preset.hops);
        trust.ranges.extend(preset.ranges.iter().flat_map(|ranges| parsed(ranges)));
    } else if let Ok(hops) = word.parse::<usize>() {
        if !(1..=50).contains(&hops) {
            return Err(Bad::new("is not a number of proxies").write("1 to 50"));
        }
        trust.hops = Some(hops);
    } else if let Ok(range) = word.parse::<IpNet>() {
        if range.trunc() != range {
            return Err(Bad::new("has bits beyond its prefix").write(range.trunc().to_string()));
        }
        trust.ranges.push(range);
    } else if let Ok(address) = word.parse::<std::net::IpAddr>() {
        trust.ranges.push(IpNet::from(address));
    } else {
        let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        return Err(Bad::new("is not known").write(format!(
            "{}, a range as 10.0.0.0/8, an address or a number of proxies",
            any_of(&names).replace(" or ", ", ")
        )));
    }
    trust.presets.push(word.to_owned());
    Ok(())
}

fn parsed(ranges: &[&str]) -> Vec<IpNet> {
    ranges.iter().filter_map(|range| range.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(words: &[&str]) -> TrustConfig {
        let mut trust = TrustConfig::default();
        for word in words {
            add(&mut trust, word).unwrap();
        }
        trust
    }

    fn holds(trust: &TrustConfig, address: &str) -> bool {
        let address: std::net::IpAddr = address.parse().unwrap();
        trust.ranges.iter().any(|range| range.contains(&address))
    }

    #[test]
    fn every_range_of_every_preset_is_a_range() {
        for preset in PRESETS {
            let written: usize = preset.ranges.iter().map(|ranges| ranges.len()).sum();
            assert_eq!(trust(&[preset.name]).ranges.len(), written, "{}", preset.name);
            for range in trust(&[preset.name]).ranges {
                assert_eq!(range.trunc(), range, "{}", preset.name);
            }
        }
        assert_eq!(cloudflare().len(), CLOUDFLARE.len());
    }

    #[test]
    fn presets_believe_whom_they_name() {
        for name in ["heroku", "fly"] {
            let trust = trust(&[name]);
            assert!(trust.any_peer && trust.ranges.is_empty() && trust.hops.is_none());
        }
        let render = trust(&["render"]);
        assert!(render.any_peer && render.hops.is_none() && holds(&render, "104.22.17.40"));
        let private = trust(&["private"]);
        assert!(private.unix && !private.any_peer);
        for address in [
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "100.100.0.1",
            "::1",
            "fd00::1",
            "fe80::1",
        ] {
            assert!(holds(&private, address), "{address}");
        }
        assert!(!holds(&private, "8.8.8.8") && !holds(&private, "172.32.0.1"));
        let gcp = trust(&["gcp"]);
        assert!(holds(&gcp, "35.191.3.4") && holds(&gcp, "130.211.1.1") && gcp.hops == Some(2));
        assert!(holds(&trust(&["alb"]), "10.0.0.1") && trust(&["alb"]).hops.is_none());
        assert!(holds(&trust(&["cloudflare"]), "104.16.0.1"));
    }

    #[test]
    fn words_add_up() {
        let trust = trust(&["heroku", "cloudflare", "203.0.113.0/24", "2001:db8::1", "3"]);
        assert!(trust.any_peer && holds(&trust, "203.0.113.9") && holds(&trust, "2001:db8::1"));
        assert!(!holds(&trust, "2001:db8::2"));
        assert_eq!(trust.hops, Some(3));
        assert_eq!(trust.presets, ["heroku", "cloudflare", "203.0.113.0/24", "2001:db8::1", "3"]);
        // What is said outright wins over what a preset brings.
        assert_eq!(super::tests::trust(&["3", "gcp"]).hops, Some(3));
        assert_eq!(super::tests::trust(&["gcp", "3"]).hops, Some(3));
    }

    #[test]
    fn what_is_nearly_a_range_is_refused() {
        let mut trust = TrustConfig::default();
        for word in ["10.0.0.1/8", "10.0.0.0/33", "300.1.1.1", "0", "51", "aws", "", "Heroku"] {
            assert!(add(&mut trust, word).is_err(), "{word}");
        }
        assert_eq!(trust, TrustConfig::default());
    }
}
