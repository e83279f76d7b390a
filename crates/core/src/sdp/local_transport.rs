//! The gateway's side of the transport, as session descriptions state it.

use std::net::SocketAddr;

use super::negotiation_result::{Fingerprint, FingerprintHashFunction, IceCredentials};

/// The gateway's side of the transport.
#[derive(Clone, Copy)]
pub struct LocalTransport<'a> {
    pub ice_credentials: &'a IceCredentials,
    pub fingerprint: &'a Fingerprint,
    /// Addresses of the UDP port, best first. FFmpeg uses only the first. At most 16 are written.
    pub candidate_addresses: &'a [SocketAddr],
    /// Whether the same addresses also accept ICE-TCP (RFC 6544).
    pub accepts_ice_tcp: bool,
    /// Whether viewers are asked for transport-wide congestion feedback, where they offer it.
    pub viewer_congestion_control: bool,
    /// Whether viewers are sent the playout delay that they should have, where they offer its header extension.
    pub viewer_playout_delay: bool,
    /// Whether data channel sections are accepted, and offered to viewers.
    pub accepts_data_channels: bool,
    /// Random session id of the `o=` line (RFC 8829 §5.2.1). The highest bit is ignored.
    pub sdp_session_id: u64,
}

/// Keeps the answer below the 8 KiB that FFmpeg reads. A host with more addresses announces the best ones.
const MAX_CANDIDATE_ADDRESSES: usize = 16;

/// Returns the host candidates of component 1 in descending priority (RFC 8445 §5.1.2): UDP first, because FFmpeg uses
/// the first candidate, then TCP as the fallback (RFC 6544 §4.2). The foundation is a number, because FFmpeg searches
/// the line for the first `udp`.
pub(super) fn candidate_lines(local: &LocalTransport<'_>) -> impl Iterator<Item = String> {
    const UDP_HOST_TYPE_PREFERENCE: u32 = 126;
    const TCP_HOST_TYPE_PREFERENCE: u32 = 90;
    const RTP_COMPONENT_ID: u32 = 1;
    let protocols = [
        ("udp", UDP_HOST_TYPE_PREFERENCE, ""),
        ("tcp", TCP_HOST_TYPE_PREFERENCE, " tcptype passive"),
    ];
    let protocols = protocols.into_iter().take(if local.accepts_ice_tcp { 2 } else { 1 });
    let each = protocols.flat_map(|protocol| {
        local
            .candidate_addresses
            .iter()
            .take(MAX_CANDIDATE_ADDRESSES)
            .map(move |address| (protocol, address))
    });
    let local_preferences = (0..=u32::from(u16::MAX)).rev();
    let numbered = each.zip(local_preferences).enumerate();
    numbered.map(
        |(index, (((protocol, preference, suffix), address), local_preference))| {
            let priority = (preference << 24) | (local_preference << 8) | (256 - RTP_COMPONENT_ID);
            let (foundation, ip, port) = (index + 1, address.ip().to_canonical(), address.port());
            format!("{foundation} {RTP_COMPONENT_ID} {protocol} {priority} {ip} {port} typ host{suffix}")
        },
    )
}

pub(super) fn fingerprint_value(fingerprint: &Fingerprint) -> String {
    let hash = match fingerprint.hash_function {
        FingerprintHashFunction::Sha256 => "sha-256",
        FingerprintHashFunction::Sha384 => "sha-384",
        FingerprintHashFunction::Sha512 => "sha-512",
    };
    let digest: Vec<String> = fingerprint.digest.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("{hash} {}", digest.join(":"))
}
