//! The gateway's side of the transport, as session descriptions state it.

use std::net::SocketAddr;

use super::plan::{Fingerprint, FingerprintHash, IceCredentials};

/// The gateway's side of the transport.
#[derive(Clone, Copy)]
pub struct Local<'a> {
    pub credentials: &'a IceCredentials,
    pub fingerprint: &'a Fingerprint,
    /// Addresses of the UDP port, best first. FFmpeg uses only the first. At most 16 are written.
    pub candidates: &'a [SocketAddr],
    /// Whether the same addresses also accept ICE-TCP (RFC 6544).
    pub tcp: bool,
    /// Random session id of the `o=` line (RFC 8829 §5.2.1). The highest bit is ignored.
    pub session_id: u64,
}

/// Keeps the answer below the 8 KiB that FFmpeg reads. A host with more addresses announces the best ones.
const MAX_CANDIDATES: usize = 16;

/// Returns the host candidates of component 1 in descending priority (RFC 8445 §5.1.2): UDP first, because FFmpeg uses
/// the first candidate, then TCP as the fallback (RFC 6544 §4.2). The foundation is a number, because FFmpeg searches
/// the line for the first `udp`.
pub(super) fn candidate_lines(local: &Local<'_>) -> impl Iterator<Item = String> {
    const HOST: u32 = 126;
    const TCP_HOST: u32 = 90;
    const COMPONENT: u32 = 1;
    let protocols = [("udp", HOST, ""), ("tcp", TCP_HOST, " tcptype passive")];
    let protocols = protocols.into_iter().take(if local.tcp { 2 } else { 1 });
    let each = protocols.flat_map(|protocol| {
        local
            .candidates
            .iter()
            .take(MAX_CANDIDATES)
            .map(move |address| (protocol, address))
    });
    let local_preferences = (0..=u32::from(u16::MAX)).rev();
    let numbered = each.zip(local_preferences).enumerate();
    numbered.map(
        |(index, (((protocol, preference, suffix), address), local_preference))| {
            let priority = (preference << 24) | (local_preference << 8) | (256 - COMPONENT);
            let (foundation, ip, port) = (index + 1, address.ip().to_canonical(), address.port());
            format!("{foundation} {COMPONENT} {protocol} {priority} {ip} {port} typ host{suffix}")
        },
    )
}

pub(super) fn fingerprint(fingerprint: &Fingerprint) -> String {
    let hash = match fingerprint.hash {
        FingerprintHash::Sha256 => "sha-256",
        FingerprintHash::Sha384 => "sha-384",
        FingerprintHash::Sha512 => "sha-512",
    };
    let digest: Vec<String> = fingerprint.digest.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("{hash} {}", digest.join(":"))
}
