//! Addresses as text, without `core::fmt` where they are IPv4's. For heads and log lines.

use std::io::Write as _;
use std::net::IpAddr;

/// Appends an address as `Display` writes it.
pub(crate) fn address(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            let (mut text, mut at) = ([0; 16], 0);
            for octet in ip.octets() {
                let (digits, length) = OCTETS[usize::from(octet)];
                text[at..at + 4].copy_from_slice(&digits);
                at += length;
            }
            let length = out.len() + at - 1;
            out.extend_from_slice(&text);
            out.truncate(length);
        }
        // Writing to memory cannot fail.
        IpAddr::V6(ip) => drop(write!(out, "{ip}")),
    }
}

/// Each octet with a dot behind it, and the length of both.
static OCTETS: [([u8; 4], usize); 256] = {
    let mut octets = [([0; 4], 0); 256];
    let mut octet = 0;
    while octet < octets.len() {
        let (hundreds, tens, ones) = (octet / 100, octet / 10 % 10, octet % 10);
        let (hundreds, tens, ones) = (b'0' + hundreds as u8, b'0' + tens as u8, b'0' + ones as u8);
        octets[octet] = match octet {
            0..10 => ([ones, b'.', 0, 0], 2),
            10..100 => ([tens, ones, b'.', 0], 3),
            _ => ([hundreds, tens, ones, b'.'], 4),
        };
        octet += 1;
    }
    octets
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_display_writes_them() {
        for octet in 0..=255 {
            for ip in [[octet, 1, 22, 133], [9, 10, 100, octet]].map(IpAddr::from) {
                let mut out = b"a ".to_vec();
                address(&mut out, ip);
                assert_eq!(out, format!("a {ip}").into_bytes());
            }
        }
        let mut out = Vec::new();
        address(&mut out, IpAddr::V6(std::net::Ipv6Addr::LOCALHOST));
        assert_eq!(out, b"::1");
    }
}
