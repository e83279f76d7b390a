//! Floods of offers without a connection: they do not lock out other clients.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use millstream::Gateway;
use millstream_test_support::{
    Answer, DtlsRole, IceStyle, OfferParameters, Peer, PeerConfig, PeerIdentity, Profiles, VideoCodec,
};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::http::client::{OBS, Request, VIEWER, gateway, make_live, metric};

/// Hosts of the attack.
const HOSTS: u8 = 5;
/// Offers of each in one wave: more than it may have half-open sessions.
const WAVE: usize = 30;

async fn small() -> Gateway {
    let gateway = gateway(&[
        ("MILLSTREAM_LIMITS__HALF_OPEN_SESSIONS", "48"),
        ("MILLSTREAM_LIMITS__HALF_OPEN_PER_ADDRESS", "8"),
        ("MILLSTREAM_LIMITS__HALF_OPEN_RESERVED", "4"),
        ("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "0"),
    ])
    .await;
    make_live(&gateway, "live");
    gateway
}

/// Every host POSTs an offer and never sends an ICE check. Returns the session URLs of the first host.
async fn wave(gateway: &Gateway) -> Vec<String> {
    let mut of_first = Vec::new();
    for _ in 0..WAVE {
        for host in 1..=HOSTS {
            let offer = Request::offer("/whep/live", VIEWER);
            let reply = offer.send_from(Ipv4Addr::new(127, 0, 1, host), gateway).await;
            // It is accepted, and evicted later.
            let session = reply.location();
            if host == 1 {
                of_first.push(session);
            }
        }
    }
    of_first
}

#[tokio::test]
async fn offers_without_a_check_keep_no_newcomer_out_and_displace_none() {
    let gateway = small().await;
    let mut honest = Vec::new();
    for _ in 0..5 {
        let strangers = wave(&gateway).await;
        let viewer = Request::offer("/whep/live", VIEWER);
        honest.push(viewer.send_from(Ipv4Addr::new(127, 0, 2, 1), &gateway).await.location());
        let publisher = Request::publish("/whip/other", OBS);
        honest.push(
            publisher
                .send_from(Ipv4Addr::new(127, 0, 2, 2), &gateway)
                .await
                .location(),
        );
        // Those of one host displace each other, the oldest first.
        let gone = Request::new("GET", &strangers[0]).send(&gateway).await;
        assert_eq!((gone.status, gone.problem().as_str()), (404, "evicted"));
        let newest = strangers.last().expect("a wave");
        assert_eq!(Request::new("GET", newest).send(&gateway).await.status, 204);
    }
    for session in &honest {
        assert_eq!(Request::new("GET", session).send(&gateway).await.status, 204);
    }
    let evicted = 5 * usize::from(HOSTS) * WAVE - usize::from(HOSTS) * 8;
    for (name, count) in [
        (
            "millstream_sessions_evicted_total{reason=\"half_open_address\"}",
            evicted,
        ),
        ("millstream_sessions_evicted_total{reason=\"half_open\"}", 0),
        ("millstream_half_open_sessions", usize::from(HOSTS) * 8 + honest.len()),
    ] {
        assert_eq!(metric(&gateway, name).await, count as u64, "{name}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn where_all_places_are_taken_the_oldest_gives_way_to_whoever_comes() {
    let gateway = small().await;
    let mut sessions = Vec::new();
    for host in 1..=60 {
        let offer = Request::offer("/whep/live", VIEWER);
        sessions.push(
            offer
                .send_from(Ipv4Addr::new(127, 0, 1, host), &gateway)
                .await
                .location(),
        );
    }
    for (index, session) in sessions.iter().enumerate() {
        let status = Request::new("GET", session).send(&gateway).await.status;
        assert_eq!(status, if index < 60 - 48 { 404 } else { 204 }, "{index}");
    }
    assert_eq!(gateway.media_plane().half_open_session_count(), 48);
    let name = "millstream_sessions_evicted_total{reason=\"half_open\"}";
    assert_eq!(metric(&gateway, name).await, 12);
    // With a token there are places of their own.
    for _ in 0..4 {
        Request::publish("/whip/other", OBS).send(&gateway).await.location();
    }
    assert_eq!(metric(&gateway, name).await, 12);
    gateway.stop().await;
}

/// A viewer sends checks until one is answered, and no handshake.
async fn check_only(gateway: &Gateway) -> String {
    let identity = PeerIdentity::generate();
    let offer = OfferParameters::viewer(1, identity.fingerprint(), &[VideoCodec::Vp8]);
    let reply = Request::offer("/whep/live", offer.whep()).send(gateway).await;
    let server = gateway.media_plane().local_addr();
    let config = PeerConfig {
        identity,
        local: offer.credentials,
        remote: Answer::parse(reply.text()).credentials(),
        server,
        role: DtlsRole::Server,
        profiles: Profiles::CmThenGcm,
        ice: IceStyle::BROWSER,
        decrypt: true,
        seed: 1,
    };
    let mut peer = Peer::new(now(), config);
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let mut datagram = [0; 2_048];
    while peer.answered_checks() == 0 {
        peer.handle_timeout(now());
        while let Some(transmit) = peer.poll_transmit() {
            socket.send_to(&transmit.payload, server).await.expect("sends");
        }
        if let Ok(Ok(length)) = timeout(Duration::from_millis(100), socket.recv(&mut datagram)).await {
            peer.handle_datagram(now(), server, &datagram[..length]);
        }
    }
    reply.location()
}

#[expect(clippy::disallowed_methods, reason = "the time of real sockets")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn a_session_whose_check_came_does_not_give_way() {
    let gateway = gateway(&[("MILLSTREAM_LIMITS__HALF_OPEN_PER_ADDRESS", "1")]).await;
    make_live(&gateway, "live");
    let silent = Request::offer("/whep/live", VIEWER).send(&gateway).await.location();
    let checked = check_only(&gateway).await;
    assert_eq!(Request::new("GET", &silent).send(&gateway).await.status, 404);
    let reply = Request::offer("/whep/live", VIEWER).send(&gateway).await;
    assert_eq!((reply.status, reply.problem().as_str()), (429, "half_open_address"));
    assert!(reply.header("retry-after").is_some());
    assert_eq!(Request::new("GET", &checked).send(&gateway).await.status, 204);
    let refused = "millstream_sessions_refused_total{reason=\"half_open_address\"}";
    assert_eq!(metric(&gateway, refused).await, 1);
    gateway.stop().await;
}
