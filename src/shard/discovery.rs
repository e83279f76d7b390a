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
use millstream_core::session::stun::BindingRequest;

/// Interval between discoveries. The address of a home connection changes about once a day.
const INTERVAL: Duration = Duration::from_secs(60);
/// Timeout of a request, and the number of requests per discovery.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_REQUESTS: u32 = 4;

/// Discovers and announces the address until the gateway ends.
pub async fn run(media: MediaPlane, server: String) {
    let mut announced = None;
    let mut is_failure_logged = false;
    loop {
        match discover(&server).await {
            Some(address) if announced != Some(address) => {
                info!(%address, server, "announcing the address discovered by STUN");
                media.announce(address, announced.replace(address));
                is_failure_logged = false;
            }
            Some(_) => is_failure_logged = false,
            None if !is_failure_logged => {
                warn!(
                    server,
                    "no response from the server of webrtc.announce_by_stun: the announced addresses stay"
                );
                is_failure_logged = true;
            }
            None => {}
        }
        sleep(INTERVAL).await;
    }
}

/// Returns the address of this host as the server sees it.
async fn discover(server: &str) -> Option<IpAddr> {
    let server = lookup_host(server).await.ok()?.find(SocketAddr::is_ipv4)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    let binding = BindingRequest::new(&mut || rand::rng().next_u32());
    for _ in 0..MAX_REQUESTS {
        let _ = socket.send(&binding.request).await;
        let response = async {
            let mut buffer = [0; 1_500];
            loop {
                let length = socket.recv(&mut buffer).await.ok()?;
                let found = binding.answer(buffer.get(..length)?);
                if found.is_some() {
                    return found;
                }
            }
        };
        if let Ok(Some(address)) = timeout(RESPONSE_TIMEOUT, response).await {
            return Some(address);
        }
    }
    None
}
