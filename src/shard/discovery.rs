//! Finds the outer address of the host by STUN, and announces it (RFC 8489).
//!
//! The question does not come from the media port, so the answer tells the address alone: the router has to forward the
//! media port under its own number.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::RngCore as _;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::MediaPlane;
use millstream_core::session::stun::BindingRequest;

/// Between questions: an address at home changes once a day.
const AGAIN: Duration = Duration::from_secs(60);
/// How long an answer may take, and how often it is asked for.
const ANSWER: Duration = Duration::from_millis(500);
const TRIES: u32 = 4;

/// Asks and announces, to the end of the gateway.
pub async fn run(media: MediaPlane, server: String) {
    let mut known = None;
    let mut told = false;
    loop {
        match ask(&server).await {
            Some(address) if known != Some(address) => {
                info!(%address, server, "announcing the address that STUN has found");
                media.announce(address, known.replace(address));
                told = false;
            }
            Some(_) => told = false,
            None if !told => {
                warn!(
                    server,
                    "webrtc.announce_by_stun does not answer; what is announced stays"
                );
                told = true;
            }
            None => {}
        }
        sleep(AGAIN).await;
    }
}

/// The address of this host as the server sees it.
async fn ask(server: &str) -> Option<IpAddr> {
    let server = lookup_host(server).await.ok()?.find(SocketAddr::is_ipv4)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    let binding = BindingRequest::new(&mut || rand::rng().next_u32());
    for _ in 0..TRIES {
        let _ = socket.send(&binding.request).await;
        let answered = async {
            let mut buffer = [0; 1_500];
            loop {
                let length = socket.recv(&mut buffer).await.ok()?;
                let found = binding.answer(buffer.get(..length)?);
                if found.is_some() {
                    return found;
                }
            }
        };
        if let Ok(Some(address)) = timeout(ANSWER, answered).await {
            return Some(address);
        }
    }
    None
}
