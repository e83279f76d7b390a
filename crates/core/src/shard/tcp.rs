//! Media over TCP (RFC 6544) from the point of view of a shard: addresses that are marked as TCP, and the trait that tells
//! the owner of the connections what became of them.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

/// The TCP connections of peers. Called by the shards; never calls back.
pub trait TcpConnectionControl: fmt::Debug + Send + Sync {
    /// ICE authenticated a message from this address.
    fn mark_authenticated(&self, address: SocketAddr);
    /// The first message from this address belongs to no session.
    fn close_for_unknown_session(&self, address: SocketAddr);
    /// The session of this address has ended, or no longer uses the address.
    fn close_after_session_end(&self, address: SocketAddr);
    /// For how long the oldest datagram for this address has waited to be written.
    fn queue_delay(&self, now: Instant, address: SocketAddr) -> Duration;
}

/// A gateway without media over TCP.
impl TcpConnectionControl for () {
    fn mark_authenticated(&self, _: SocketAddr) {}
    fn close_for_unknown_session(&self, _: SocketAddr) {}
    fn close_after_session_end(&self, _: SocketAddr) {}
    fn queue_delay(&self, _: Instant, _: SocketAddr) -> Duration {
        Duration::ZERO
    }
}

/// Scope id that marks an address as TCP; no interface has this index.
const TCP_SCOPE_ID: u32 = u32::MAX;

/// Returns the address by which sessions know a TCP peer.
pub fn to_tcp_marked_address(peer: SocketAddr) -> SocketAddr {
    let ip = match peer.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        std::net::IpAddr::V6(ip) => ip,
    };
    SocketAddrV6::new(ip, peer.port(), 0, TCP_SCOPE_ID).into()
}

/// Whether an address is marked as TCP.
pub fn is_tcp_address(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(address) if address.scope_id() == TCP_SCOPE_ID)
}

/// Displays an address in logs.
pub(crate) struct AddressDisplay(pub SocketAddr);

impl fmt::Display for AddressDisplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = SocketAddr::new(self.0.ip().to_canonical(), self.0.port());
        let protocol = if is_tcp_address(self.0) { "tcp " } else { "" };
        write!(f, "{protocol}{plain}")
    }
}

/// Why a connection was closed. A label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpCloseReason {
    /// Closed or reset by the peer or the network.
    ByPeer,
    /// Its session has ended, or no longer uses its address.
    SessionOver,
    /// Its first frame was not a connectivity check for a session.
    NoSession,
    /// No authenticated connectivity check arrived in time.
    Unauthenticated,
    /// The peer did not read or acknowledge.
    PeerNotReading,
    /// The peer sent nothing.
    PeerSentNothing,
    /// A frame was too long.
    FrameTooLong,
}

impl TcpCloseReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::ByPeer,
        Self::SessionOver,
        Self::NoSession,
        Self::Unauthenticated,
        Self::PeerNotReading,
        Self::PeerSentNothing,
        Self::FrameTooLong,
    ];

    /// Returns the label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::ByPeer => "by_peer",
            Self::SessionOver => "session_over",
            Self::NoSession => "no_session",
            Self::Unauthenticated => "unauthenticated",
            Self::PeerNotReading => "stalled",
            Self::PeerSentNothing => "idle",
            Self::FrameTooLong => "malformed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_tcp_is_no_address_of_udp() {
        let udp: SocketAddr = "192.0.2.1:9".parse().expect("an address");
        let tcp = to_tcp_marked_address(udp);
        assert!(is_tcp_address(tcp) && !is_tcp_address(udp));
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:9".parse().expect("an address");
        assert_ne!(tcp, mapped);
        assert_eq!(AddressDisplay(tcp).to_string(), "tcp 192.0.2.1:9");
        assert_eq!(AddressDisplay(udp).to_string(), "192.0.2.1:9");
    }
}
