//! The media TCP port: connections that are not peers are closed, and so are peers that do not read (RFC 6544, RFC
//! 4571).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use millstream::Gateway;
use millstream::shard::MediaPlane;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::SessionId;
use millstream_core::media::Codec;
use millstream_core::sources::frame_source::{FrameSink as _, FrameSource, NalFraming};
use millstream_test_support::{
    Answer, DtlsRole, IceStyle, OfferParameters, Peer, PeerConfig, PeerEvent, PeerIdentity, Profiles, VideoCodec,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::http::client::{OBS, Request, gateway, metric};

/// Longer than any timeout of the gateway, and than any pause of a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

async fn port(gateway: &Gateway) -> SocketAddr {
    let reply = Request::publish("/whip/live", OBS).send(gateway).await;
    let candidate = reply.text().lines().find(|line| line.contains(" tcp "));
    let parts: Vec<&str> = candidate.expect("a candidate of TCP").trim().split(' ').collect();
    assert_eq!(parts[6..], ["typ", "host", "tcptype", "passive"]);
    format!("{}:{}", parts[4], parts[5]).parse().expect("an address")
}

/// C-08, C-05.
#[tokio::test]
async fn the_number_is_that_of_udp_and_comes_after_it() {
    let gateway = gateway(&[]).await;
    assert_eq!(port(&gateway).await, gateway.media_plane().local_addr());
    let reply = Request::publish("/whip/live", OBS).send(&gateway).await;
    let first = reply.text().lines().find(|line| line.starts_with("a=candidate:"));
    assert!(first.expect("a candidate").contains(" udp "));
    gateway.stop().await;
    let without = crate::http::client::gateway(&[("MILLSTREAM_WEBRTC__TCP", "false")]).await;
    let reply = Request::publish("/whip/live", OBS).send(&without).await;
    assert!(!reply.text().contains(" tcp "));
    assert!(TcpStream::connect(without.media_plane().local_addr()).await.is_err());
    without.stop().await;
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// An unsigned ICE check for the session with this username fragment.
fn unsigned_check(ufrag: &str) -> Vec<u8> {
    let username = format!("{ufrag}:peer");
    let padding = vec![0; username.len().next_multiple_of(4) - username.len()];
    let mut check = vec![
        0,
        1,
        0,
        (4 + username.len() + padding.len()) as u8,
        0x21,
        0x12,
        0xa4,
        0x42,
    ];
    check.extend([7; 12]);
    check.extend([0, 6, 0, username.len() as u8]);
    check.extend(username.bytes());
    check.extend(padding);
    check
}

#[tokio::test]
async fn who_is_no_peer_is_let_go() {
    let gateway = gateway(&[]).await;
    let port = port(&gateway).await;
    let reply = Request::publish("/whip/live", OBS).send(&gateway).await;
    let ours = Answer::parse(reply.text()).ufrag;
    let cases = [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        ("an empty frame", frame(b"")),
        ("a frame that is too long", vec![0xff; 100]),
        ("junk", frame(&[0x7f; 100])),
        ("RTP before a check", frame(&[0x80; 100])),
        ("a check for no shard", frame(&unsigned_check("~nobody"))),
        ("a check for no session", frame(&unsigned_check("0nobody12345"))),
        ("a check that nobody signed", frame(&unsigned_check(&ours))),
        ("nothing within the deadline", Vec::new()),
        ("half a frame within the deadline", vec![0, 100, 0]),
    ];
    let each = cases.into_iter().map(async |(case, bytes)| {
        let mut stream = TcpStream::connect(port).await.expect("connects");
        let _ = stream.write_all(&bytes).await;
        let is_check = case.starts_with("a check");
        let closed = async {
            let (mut reader, mut writer) = stream.split();
            // It is never idle.
            let busy = async {
                while is_check && writer.write_all(&bytes).await.is_ok() {
                    sleep(Duration::from_secs(1)).await;
                }
                std::future::pending::<()>().await;
            };
            let ended = async {
                let mut rest = [0; 64];
                while matches!(reader.read(&mut rest).await, Ok(1..)) {}
            };
            tokio::select! { () = ended => {}, () = busy => {} }
        };
        assert!(timeout(PATIENCE, closed).await.is_ok(), "{case}");
    });
    futures_util::future::join_all(each).await;
    for (reason, count) in [("no_session", 5), ("malformed", 2), ("unauthenticated", 3)] {
        let name = format!("millstream_media_tcp_closed_total{{reason=\"{reason}\"}}");
        assert_eq!(metric(&gateway, &name).await, count, "{reason}");
    }
    gateway.stop().await;
}

/// A stream of 8 Mbit/s, until this is dropped.
struct Stream(tokio::task::JoinHandle<()>);

impl Stream {
    async fn start(gateway: &Gateway) -> Self {
        let media = gateway.media_plane().clone();
        let stream = Self(tokio::spawn(Self::run(media.clone())));
        let name = StreamName::parse("live").expect("a name");
        while media.available_tracks(&name).is_none() {
            sleep(Duration::from_millis(10)).await;
        }
        stream
    }

    async fn run(media: MediaPlane) {
        let name = StreamName::parse("live").expect("a name");
        let mut feed = FrameSource::new(name, SessionId([5; 16]), &[Codec::H264.into()]).expect("a codec");
        let sps = [0, 0, 0, 1, 0x67, 0x42, 0xc0, 0x1f, 0xda, 0x01, 0x40, 0x16, 0xe4];
        let pps = [0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80];
        for number in 0u64.. {
            let body = vec![0x55; 33_000];
            let unit = match number.is_multiple_of(30) {
                true => [&sps[..], &pps, &[0, 0, 0, 1, 0x65, 0x88], &body].concat(),
                false => [&[0, 0, 0, 1, 0x41, 0x88], &body[..]].concat(),
            };
            let now = now();
            feed.packetize_and_queue_video(now, number * 3_000, &unit.into(), NalFraming::AnnexB)
                .expect("a frame");
            media.publish_frames_unless_displaced(&mut feed);
            sleep(Duration::from_millis(33)).await;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[expect(clippy::disallowed_methods, reason = "the time of real sockets")]
fn now() -> Instant {
    Instant::now()
}

/// A viewer by TCP, whose socket takes little by itself.
struct Viewer {
    peer: Peer,
    stream: TcpStream,
    session: String,
    received: Vec<u8>,
    media: usize,
}

impl Viewer {
    /// Finishes its handshake.
    async fn connect(gateway: &Gateway) -> Self {
        let identity = PeerIdentity::generate();
        let offer = OfferParameters::viewer(1, identity.fingerprint(), &[VideoCodec::H264]);
        let reply = Request::offer("/whep/live", offer.whep()).send(gateway).await;
        let session = reply.location();
        let config = PeerConfig {
            identity,
            local: offer.credentials,
            remote: Answer::parse(reply.text()).credentials(),
            server: gateway.media_plane().local_addr(),
            role: DtlsRole::Client,
            profiles: Profiles::CmThenGcm,
            ice: IceStyle::BROWSER,
            decrypt: true,
            seed: 1,
        };
        let mut viewer = Self {
            peer: Peer::new(now(), config),
            stream: Self::dial(gateway).await,
            session,
            received: Vec::new(),
            media: 0,
        };
        viewer.take_until(|viewer| viewer.media > 100).await;
        viewer
    }

    async fn dial(gateway: &Gateway) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(16 * 1024).expect("smaller");
        socket
            .connect(gateway.media_plane().local_addr())
            .await
            .expect("connects")
    }

    /// Reconnects with another connection.
    async fn redial(&mut self, gateway: &Gateway) {
        self.stream = Self::dial(gateway).await;
        self.received.clear();
        self.peer.check_now(now());
    }

    /// Sends due packets and reads received ones, until `is_enough`.
    async fn take_until(&mut self, is_enough: impl Fn(&Self) -> bool) {
        let taking = async {
            while !is_enough(self) {
                self.send().await;
                self.take(64 * 1024).await;
            }
        };
        timeout(PATIENCE, taking).await.expect("it comes");
    }

    /// Sends due packets.
    async fn send(&mut self) {
        if self.peer.poll_timeout().is_some_and(|due| due <= now()) {
            self.peer.handle_timeout(now());
        }
        while let Some(transmit) = self.peer.poll_transmit() {
            // A connection that is gone is noticed elsewhere.
            let _ = self.stream.write_all(&frame(&transmit.payload)).await;
        }
    }

    /// Reads at most so many bytes, without waiting long.
    async fn take(&mut self, most: usize) {
        let mut buffer = vec![0; most];
        let read = timeout(Duration::from_millis(20), self.stream.read(&mut buffer)).await;
        let count = read.map_or(0, Result::unwrap_or_default);
        self.received.extend_from_slice(&buffer[..count]);
        while let Some((length, rest)) = self.received.split_first_chunk::<2>() {
            let Some((datagram, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length))) else {
                break;
            };
            let (datagram, rest) = (datagram.to_vec(), rest.to_vec());
            self.peer
                .handle_datagram(now(), self.stream.peer_addr().unwrap_or(self.server()), &datagram);
            self.received = rest;
        }
        while let Some(event) = self.peer.poll_event() {
            self.media += usize::from(matches!(event, PeerEvent::Rtp(_)));
        }
    }

    fn server(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 9))
    }
}

/// Most that may wait for one connection, in bytes.
const QUEUE: usize = 512 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_takes_nothing_is_let_go_and_may_come_back() {
    let gateway = gateway(&[]).await;
    let _stream = Stream::start(&gateway).await;
    let mut viewer = Viewer::connect(&gateway).await;
    assert_eq!(gateway.media_plane().tcp_connection_count(), 1);
    // It keeps sending checks, but reads nothing.
    let mut most = 0;
    let let_go = async {
        while gateway.media_plane().tcp_connection_count() > 0 {
            viewer.send().await;
            most = most.max(gateway.media_plane().tcp_queued_bytes());
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, let_go).await.expect("it is let go");
    assert!(most > QUEUE / 4 && most <= QUEUE, "{most} bytes waited");
    let stalled = "millstream_media_tcp_closed_total{reason=\"stalled\"}";
    assert_eq!(metric(&gateway, stalled).await, 1);
    assert!(metric(&gateway, "millstream_dropped_total{reason=\"tcp_queue_full\"}").await > 0);
    // The session is the same.
    let session = Request::new("GET", &viewer.session).send(&gateway).await;
    assert_eq!(session.status, 204);
    viewer.redial(&gateway).await;
    let before = viewer.media;
    viewer.take_until(|viewer| viewer.media > before + 100).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_takes_little_is_not_let_go() {
    let gateway = gateway(&[]).await;
    let _stream = Stream::start(&gateway).await;
    let mut viewer = Viewer::connect(&gateway).await;
    let begun = now();
    // Twice as long as one that takes nothing is there.
    while begun.elapsed() < Duration::from_secs(12) {
        viewer.send().await;
        viewer.take(8 * 1024).await;
        sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(gateway.media_plane().tcp_connection_count(), 1);
    assert!(metric(&gateway, "millstream_dropped_total{reason=\"tcp_queue_full\"}").await > 0);
    gateway.stop().await;
}

#[tokio::test]
async fn one_address_has_only_so_many_connections() {
    let gateway = gateway(&[("MILLSTREAM_LIMITS__CONNECTIONS_PER_ADDRESS", "50")]).await;
    let port = port(&gateway).await;
    let mut streams = Vec::new();
    for _ in 0..60 {
        streams.push(TcpStream::connect(port).await.expect("connects"));
    }
    let mut closed = 0;
    for stream in streams.iter_mut().skip(50) {
        let mut byte = [0];
        let read = tokio::time::timeout(std::time::Duration::from_secs(5), stream.read(&mut byte)).await;
        closed += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
    }
    assert_eq!(closed, 10);
    assert_eq!(Request::new("GET", "/healthz").send(&gateway).await.status, 200);
    gateway.stop().await;
}
