//! Addresses at which no source of media is, unless the operator says so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata service of Amazon EC2 by IPv6. It is an address of the local link by its use, not by its prefix.
const EC2_METADATA_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Returns whether an address reaches only the link of this host (RFC 3927, RFC 4291 §2.5.6). There cloud services answer
/// requests of this host with its credentials. An address that a router translates to such an IPv4 address is one too.
pub fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local()
                || address == EC2_METADATA_IPV6
                || embedded_ipv4(address).is_some_and(|embedded| embedded.is_link_local())
        }
    }
}

/// Returns the IPv4 address in one of NAT64 (RFC 6052 §2.1, RFC 8215), of 6to4 (RFC 3056 §2), or in a deprecated
/// IPv4-compatible one (RFC 4291 §2.5.5.1).
fn embedded_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let ipv4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => Some(ipv4(high, low)),
        [0x2002, high, low, ..] => Some(ipv4(high, low)),
        [0, 0, 0, 0, 0, 0, high, low] => Some(ipv4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_link_is_found_in_whatever_form() {
        let check = |text: &str| is_link_local(text.parse().expect("an address"));
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fd00:ec2::254",
            "fe80::1",
        ] {
            assert!(check(address), "{address}");
        }
        for address in [
            "127.0.0.1",
            "192.168.1.1",
            "::1",
            "fd00::1",
            "64:ff9b::c0a8:101",
            "2002:c0a8:101::1",
            "239.1.1.1",
        ] {
            assert!(!check(address), "{address}");
        }
    }
}
