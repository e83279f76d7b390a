//! Address of the client behind a reverse proxy: `Forwarded` (RFC 7239) and `X-Forwarded-For`.
//!
//! A header is read only if the connection comes from a trusted proxy (`http.trusted_proxies`), and from the right: each
//! proxy appends the address that it was called from, so everything left of the first untrusted address is whatever the
//! client has sent.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

use crate::header_list::split_outside_quotes;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Address of the client, as a request extension.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

/// Networks whose proxies are believed.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    pub fn new(networks: &[IpNet]) -> Self {
        Self(networks.into())
    }

    /// Whether an address is that of a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Returns the address of the client that has sent a request over a connection from `peer`.
    ///
    /// If both headers are present and disagree, the client may have sent one of them: the address of the proxy counts
    /// then, as without a header.
    pub fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.contains(peer) {
            return peer;
        }
        let forwarded = has_header(headers, &header::FORWARDED).then(|| {
            let elements = header_list_elements_from_right(headers, &header::FORWARDED, true);
            self.first_untrusted_address(peer, elements.map(parse_forwarded_for_parameter))
        });
        let appended = has_header(headers, &X_FORWARDED_FOR).then(|| {
            let elements = header_list_elements_from_right(headers, &X_FORWARDED_FOR, false);
            self.first_untrusted_address(peer, elements.map(parse_node_address))
        });
        match (forwarded, appended) {
            (Some(one), Some(other)) if one != other => peer,
            (Some(client), _) | (None, Some(client)) => client,
            (None, None) => peer,
        }
    }

    /// Returns the first address that is not trusted, given those from right to left. Behind an unknown address
    /// (`unknown`, `_hidden`) nothing is known: the proxy that has reported it counts.
    fn first_untrusted_address(&self, peer: IpAddr, addresses: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut last = peer;
        for address in addresses {
            match address {
                Some(address) if self.contains(address) => last = address,
                Some(address) => return address,
                None => return last,
            }
        }
        last
    }
}

fn has_header(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.contains_key(name)
}

/// Returns the elements of a list header from right to left; one that is not text is [`UNREADABLE_LIST_ELEMENT`].
fn header_list_elements_from_right<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    is_quoted: bool,
) -> impl Iterator<Item = &'a str> + use<'a> {
    let lines = headers.get_all(name).iter().map(axum::http::HeaderValue::as_bytes);
    let split = |line: &'a [u8]| match is_quoted {
        true => split_line(line, b','),
        false => line.split(|byte| *byte == b',').collect(),
    };
    let elements: Vec<&[u8]> = lines.flat_map(split).collect();
    let text = |element| std::str::from_utf8(element).map_or(UNREADABLE_LIST_ELEMENT, str::trim);
    elements.into_iter().rev().map(text)
}

/// An element that is no address.
const UNREADABLE_LIST_ELEMENT: &str = "?";

/// Returns the elements of a line. Where a quotation has no end, nobody knows what the client wrote and what a proxy
/// appended: all of it is one unknown element.
fn split_line(line: &[u8], separator: u8) -> Vec<&[u8]> {
    let split = split_outside_quotes(line, separator);
    if split.has_unterminated_quote {
        vec![UNREADABLE_LIST_ELEMENT.as_bytes()]
    } else {
        split.elements
    }
}

/// Returns the address of the parameter `for` (RFC 7239 §5.2).
fn parse_forwarded_for_parameter(element: &str) -> Option<IpAddr> {
    let pairs = split_line(element.as_bytes(), b';');
    let text = pairs.into_iter().filter_map(|pair| std::str::from_utf8(pair).ok());
    let mut pairs = text.filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let value = value.trim();
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    parse_node_address(quoted.unwrap_or(value))
}

/// Parses an address, with or without a port; an IPv6 address with a port is in brackets (RFC 7239 §6).
fn parse_node_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = bracketed
        .and_then(|inner| inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6))
        .or_else(|| text.parse().ok())
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn client(peer: &str, lines: &[(&HeaderName, &str)]) -> String {
        let networks = ["10.0.0.0/8", "2001:db8:ffff::/48"].map(|network| network.parse().expect("a network"));
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a header"));
        }
        let proxies = TrustedProxies::new(&networks);
        proxies
            .client_address(peer.parse().expect("an address"), &headers)
            .to_string()
    }

    #[test]
    fn the_rightmost_untrusted_address_counts() {
        let (appended, forwarded) = (X_FORWARDED_FOR, header::FORWARDED);
        let (x, f) = (&appended, &forwarded);
        for (peer, lines, wanted) in [
            // Only a trusted proxy is believed.
            ("192.0.2.9", &[(x, "198.51.100.1")][..], "192.0.2.9"),
            ("192.0.2.9", &[(f, "for=198.51.100.1")], "192.0.2.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[(x, "198.51.100.1")], "198.51.100.1"),
            ("::ffff:10.0.0.1", &[(x, "198.51.100.1")], "198.51.100.1"),
            ("10.0.0.1", &[(x, "203.0.113.5, 198.51.100.1")], "198.51.100.1"),
            ("10.0.0.1", &[(x, "198.51.100.1, 10.0.0.2,10.0.0.3")], "198.51.100.1"),
            ("10.0.0.1", &[(x, "198.51.100.1"), (x, "10.0.0.2")], "198.51.100.1"),
            ("10.0.0.1", &[(x, "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
            ("10.0.0.1", &[(x, "198.51.100.1:4711")], "198.51.100.1"),
            ("10.0.0.1", &[(x, "2001:db8::1")], "2001:db8::1"),
            ("10.0.0.1", &[(x, "[2001:db8::1]:4711")], "2001:db8::1"),
            ("10.0.0.1", &[(x, "[2001:db8::1]")], "2001:db8::1"),
            ("2001:db8:ffff::1", &[(x, "2001:db8:ffff::2")], "2001:db8:ffff::2"),
            // What is no address hides everything left of it.
            ("10.0.0.1", &[(x, "198.51.100.1, unknown")], "10.0.0.1"),
            ("10.0.0.1", &[(x, "198.51.100.1, , 10.0.0.2")], "10.0.0.2"),
            ("10.0.0.1", &[(x, "198.51.100.1, \u{e9}")], "10.0.0.1"),
            ("10.0.0.1", &[(x, "")], "10.0.0.1"),
            ("10.0.0.1", &[(f, "for=198.51.100.1")], "198.51.100.1"),
            (
                "10.0.0.1",
                &[(f, "For=\"198.51.100.1:80\";proto=https;by=10.0.0.1")],
                "198.51.100.1",
            ),
            (
                "10.0.0.1",
                &[(f, "proto=https; for=\"[2001:db8::1]:4711\"")],
                "2001:db8::1",
            ),
            (
                "10.0.0.1",
                &[(f, "for=203.0.113.5, for=198.51.100.1, for=10.0.0.2")],
                "198.51.100.1",
            ),
            (
                "10.0.0.1",
                &[(f, "for=198.51.100.1;host=\"a,for=203.0.113.5\"")],
                "198.51.100.1",
            ),
            ("10.0.0.1", &[(f, "for=198.51.100.1, for=_hidden")], "10.0.0.1"),
            ("10.0.0.1", &[(f, "for=198.51.100.1, proto=http")], "10.0.0.1"),
            // A client cannot hide what the proxy appends.
            ("10.0.0.1", &[(f, "for=6.6.6.6;x=\", for=198.51.100.1")], "10.0.0.1"),
            (
                "10.0.0.1",
                &[(f, "for=6.6.6.6;x=\", for=\"[2001:db8::1]:1\"")],
                "10.0.0.1",
            ),
            (
                "10.0.0.1",
                &[(f, "for=6.6.6.6;x=\"\\, for=\"198.51.100.1\"")],
                "10.0.0.1",
            ),
            ("10.0.0.1", &[(f, "x=\""), (f, "for=198.51.100.1")], "198.51.100.1"),
            ("10.0.0.1", &[(x, "\u{e9}, 198.51.100.1")], "198.51.100.1"),
            ("10.0.0.1", &[(f, "\u{e9}, for=198.51.100.1")], "198.51.100.1"),
            // One of them may be from the client.
            ("10.0.0.1", &[(f, "for=203.0.113.5"), (x, "198.51.100.1")], "10.0.0.1"),
            (
                "10.0.0.1",
                &[(f, "for=198.51.100.1"), (x, "198.51.100.1")],
                "198.51.100.1",
            ),
        ] {
            assert_eq!(client(peer, lines), wanted, "{peer} {lines:?}");
        }
    }
}
