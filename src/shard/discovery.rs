//! Discovers the public address of the host by STUN (RFC 8489) and announces it as a candidate.
//!
//! The request is not sent from the media port, so only the address of the response is used: the router must forward the
//! media port under the same number.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::RngCore as _;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::MediaPlane;
use millstream_core::session::stun::PendingBindingRequest;

/// Interval between discoveries. The address of a home connection changes about once a day.
const PUBLIC_ADDRESS_DISCOVERY_INTERVAL: Duration = Duration::from_secs(60);
/// Timeout of a request, and the number of requests per discovery.
const STUN_RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_STUN_REQUESTS: u32 = 4;

/// Discovers and announces the address until the gateway ends.
pub async fn track_and_announce_public_address(media: MediaPlane, server: String) {
    let mut announced = None;
    let mut is_failure_logged = false;
    loop {
        match discover_public_address(&server).await {
            Some(address) if announced != Some(address) => {
                info!(%address, server, "announcing the public address discovered by STUN as ICE candidate");
                media.announce_address(address, announced.replace(address));
                is_failure_logged = false;
            }
            Some(_) => is_failure_logged = false,
            None if !is_failure_logged => {
                warn!(
                    server,
                    "no response from the STUN server (webrtc.announce_by_stun); the gateway goes on announcing the same addresses"
                );
                is_failure_logged = true;
            }
            None => {}
        }
        sleep(PUBLIC_ADDRESS_DISCOVERY_INTERVAL).await;
    }
}

/// Returns the address of this host as the server sees it.
async fn discover_public_address(server: &str) -> Option<IpAddr> {
    let server = lookup_host(server).await.ok()?.find(SocketAddr::is_ipv4)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    let binding = PendingBindingRequest::new(&mut || rand::rng().next_u32());
    for _ in 0..MAX_STUN_REQUESTS {
        let _ = socket.send(&binding.encoded_message).await;
        let response = async {
            let mut buffer = [0; 1_500];
            loop {
                let length = socket.recv(&mut buffer).await.ok()?;
                let found = binding.parse_mapped_address(buffer.get(..length)?);
                if found.is_some() {
                    return found;
                }
            }
        };
        if let Ok(Some(address)) = timeout(STUN_RESPONSE_TIMEOUT, response).await {
            return Some(address);
        }
    }
    None
}
