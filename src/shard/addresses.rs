//! The candidate addresses of the gateway.

use std::net::{IpAddr, SocketAddr};

use super::error::MediaPlaneStartError;

/// Returns the candidate addresses with the port: the configured ones, or else those of the host, public IPv4 first and
/// loopback last.
///
/// # Errors
///
/// [`MediaPlaneStartError::NoCandidateAddress`] if there is none.
pub(super) fn candidate_addresses(
    announce: &[IpAddr],
    local: SocketAddr,
) -> Result<Vec<SocketAddr>, MediaPlaneStartError> {
    let mut addresses: Vec<IpAddr> = match (announce, local.ip()) {
        ([], ip) if !ip.is_unspecified() => vec![ip],
        ([], _) => host_addresses_with_loopback_last(local.is_ipv6()),
        (announce, _) => announce.to_vec(),
    };
    addresses.dedup();
    if addresses.is_empty() {
        return Err(MediaPlaneStartError::NoCandidateAddress);
    }
    Ok(addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, local.port()))
        .collect())
}

/// Returns the addresses of this host by which peers may reach it, the best first.
pub fn host_addresses_with_loopback_last(with_v6: bool) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .map(|interface| interface.ip())
        .collect();
    addresses.retain(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        // A link-local IPv6 address cannot be used without its zone.
        IpAddr::V6(ip) => with_v6 && !ip.is_unicast_link_local(),
    });
    // FFmpeg uses only the first candidate. Most networks support IPv4; loopback serves this host only.
    addresses.sort_by_key(|ip| match ip {
        ip if ip.is_loopback() => 3,
        IpAddr::V4(ip) if ip.is_private() => 1,
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => 2,
    });
    addresses
}
