//! What forwarding costs: one shard without sockets sends a stream to many viewers in virtual time.
//!
//! Run by `make callgrind`, which counts the instructions of [`forward`] and divides them by the number of datagrams that
//! this program prints. With the argument `feedback` the viewers offer congestion feedback: their packets are numbered.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream_core::hub::Hub;
use millstream_core::hub::data_settings::DataSettings;
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::session_registry::{SessionLimits, SessionRegistry, SessionRequester};
use millstream_core::hub::stream::{SessionId, ShardIndex};
use millstream_core::media::Codec;
use millstream_core::outputs::whep::Viewer;
use millstream_core::sdp::{self, LocalTransport, Offer};
use millstream_core::session::identity::DtlsIdentity;
use millstream_core::session::outbox::{DatagramSink, GsoRun, Outbox};
use millstream_core::shard::counters::SharedMediaCounters;
use millstream_core::shard::message::{NegotiatedRole, NewSession, ShardMessage};
use millstream_core::shard::path_capacities::PathCapacities;
use millstream_core::shard::peers::Peer as ShardPeer;
use millstream_core::shard::{ShardCore, SharedState, ufrag};
use millstream_core::sources::failover_group::map::SourceFailoverMap;
use millstream_core::sources::frame_source::{FrameSource, NalFraming};
use millstream_test_support::{
    Answer, DtlsRole, IceStyle, OfferParameters, Peer, PeerConfig, PeerIdentity, Profiles, VideoCodec,
};

const VIEWER_COUNT: usize = 200;

/// Frames of video that are measured, at 30 per second; two in three come with a frame of audio.
const FRAME_COUNT: u64 = 120;

/// Bytes of a frame: 3 Mbit/s.
const FRAME_BYTES: usize = 12_500;

/// Frames between two key frames.
const KEY_FRAME_INTERVAL: u64 = 60;

const GATEWAY_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 8189);

type AddressedDatagrams = Arc<Mutex<Vec<(SocketAddr, Bytes)>>>;

/// Records the datagrams of handshakes, and counts the others.
struct DatagramCountingSink {
    handshakes: AddressedDatagrams,
    media: Arc<AtomicU64>,
}

impl DatagramSink for DatagramCountingSink {
    fn send_gso_runs(&mut self, buffer: &[u8], runs: &[GsoRun]) {
        for run in runs {
            let bytes = &buffer[run.start..run.end];
            if matches!(bytes.first(), Some(128..=191)) {
                let datagrams = bytes.len().div_ceil(run.segment_size) as u64;
                self.media.fetch_add(datagrams, Ordering::Relaxed);
            } else {
                let mut handshakes = self.handshakes.lock().expect("not poisoned");
                let datagrams = bytes.chunks(run.segment_size);
                handshakes.extend(datagrams.map(|datagram| (run.destination.to, Bytes::copy_from_slice(datagram))));
            }
        }
    }
}

struct ForwardingBench {
    shared: Arc<SharedState>,
    core: ShardCore,
    source: FrameSource,
    now: Instant,
    frame: u64,
}

fn main() {
    let handshakes = AddressedDatagrams::default();
    let media = Arc::new(AtomicU64::new(0));
    let sink = DatagramCountingSink {
        handshakes: handshakes.clone(),
        media: media.clone(),
    };
    let mut setup = ForwardingBench::new(sink);
    setup.advance_and_queue_frames();
    publish_and_forward_frames(&mut setup);
    let mut peers: Vec<(SocketAddr, Peer)> = (0..VIEWER_COUNT)
        .map(|index| setup.open_viewer_session(index))
        .collect();
    setup.connect_peers(&mut peers, &handshakes);
    let before = media.load(Ordering::Relaxed);
    for _ in 0..FRAME_COUNT {
        setup.advance_and_queue_frames();
        publish_and_forward_frames(&mut setup);
    }
    println!("viewers {VIEWER_COUNT}");
    println!("datagrams {}", media.load(Ordering::Relaxed) - before);
    println!("bytes_per_viewer {}", size_of::<ShardPeer>() + size_of::<Viewer>());
}

/// The measured part: one tick, from the frames of a source to the datagrams of all viewers.
#[inline(never)]
fn publish_and_forward_frames(setup: &mut ForwardingBench) {
    assert!(
        setup
            .shared
            .publish_frames_unless_displaced(setup.now, &mut setup.source)
    );
    let mut messages = VecDeque::new();
    setup.shared.mailboxes[0].take_all_messages(&mut messages);
    for message in messages {
        setup.core.handle_message(setup.now, message);
    }
    setup.core.finish_tick(setup.now);
}

impl ForwardingBench {
    fn new(sink: DatagramCountingSink) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let limits = SessionLimits {
            max_sessions: VIEWER_COUNT,
            max_half_open: VIEWER_COUNT,
            half_open_reserved_for_token_holders: 0,
            max_half_open_per_address: VIEWER_COUNT,
        };
        let shared = Arc::new(SharedState {
            hub: Hub::default(),
            failover_groups: SourceFailoverMap::default(),
            session_registry: SessionRegistry::new(limits, Arc::default(), Box::new(|_| {})),
            dtls_identity: Arc::new(DtlsIdentity::generate().expect("makes a key")),
            connect_timeout: millstream_core::session::DEFAULT_CONNECT_TIMEOUT,
            mailboxes: vec![Arc::new(Mailbox::new(1, || {}))],
            counters: SharedMediaCounters::default(),
            candidate_addresses: RwLock::new(Arc::new([])),
            path_capacities: PathCapacities::default(),
            tcp_connections: Arc::new(()),
            data_settings: DataSettings::default(),
            wall_clock_origin: (now, Duration::from_secs(1_800_000_000)),
        });
        let core = ShardCore::new(
            ShardIndex(0),
            shared.clone(),
            Outbox::new(Box::new(sink)),
            seeded_random_generator(1),
        );
        let tracks = [Codec::H264.into(), Codec::Opus.into()];
        let source =
            FrameSource::new(stream_name(), SessionId([0xff; 16]), &tracks).expect("codecs that can be packetized");
        Self {
            shared,
            core,
            source,
            now,
            frame: 0,
        }
    }

    /// Lets a frame interval pass and takes the next frames.
    fn advance_and_queue_frames(&mut self) {
        self.now += Duration::from_micros(33_333);
        let mut unit = Vec::new();
        let is_key_frame = self.frame.is_multiple_of(KEY_FRAME_INTERVAL);
        if is_key_frame {
            unit.extend_from_slice(&[0, 0, 0, 1, 0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4]);
            unit.extend_from_slice(&[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80]);
        }
        unit.extend_from_slice(&[0, 0, 0, 1, if is_key_frame { 0x65 } else { 0x41 }]);
        unit.resize(unit.len() + FRAME_BYTES, 0x5a);
        let time = self.frame * 3_000;
        self.source
            .packetize_and_queue_video(self.now, time, &unit.into(), NalFraming::AnnexB)
            .expect("an access unit");
        if !self.frame.is_multiple_of(3) {
            let audio = Bytes::from_static(&[0xfc; 160]);
            self.source
                .packetize_and_queue_audio(self.now, self.frame * 1_600, &audio)
                .expect("a frame of audio");
        }
        self.frame += 1;
    }

    fn open_viewer_session(&mut self, index: usize) -> (SocketAddr, Peer) {
        let identity = PeerIdentity::generate();
        let mut offer = OfferParameters::viewer(index as u64, identity.fingerprint(), &[VideoCodec::H264]);
        offer.transport_cc = std::env::args().any(|argument| argument == "feedback");
        let mut random = seeded_random_generator(index as u32 + 2);
        let local = ufrag::generate_ice_credentials(ShardIndex(0), &mut random);
        let parsed = Offer::parse(offer.whep().as_bytes()).expect("a good offer");
        let to_sign = LocalTransport {
            ice_credentials: &local,
            fingerprint: &self.shared.dtls_identity.fingerprint,
            candidate_addresses: &[GATEWAY_ADDRESS],
            accepts_ice_tcp: false,
            viewer_congestion_control: true,
            viewer_playout_delay: true,
            accepts_data_channels: true,
            sdp_session_id: 1,
        };
        let stream = self.shared.hub.find_stream(stream_name()).expect("attached");
        let available = stream.with_state(|state| state.tracks_offerable_to_viewers(|_| false));
        let formats = sdp::formats_sent_to_offerer(&parsed, &available.expect("it has a source"));
        let (playback, answer) = sdp::answer_whep_offer(&parsed, &formats, &to_sign, &mut random).expect("playable");
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(index as u64).to_be_bytes());
        let session = SessionId(id);
        let requester = SessionRequester {
            address: None,
            has_token: false,
        };
        let opened = self
            .shared
            .session_registry
            .open_session(self.now, session, ShardIndex(0), requester);
        assert_eq!(opened, Ok(None));
        let opening = NewSession {
            session_id: session,
            stream_key: stream_name().into(),
            local_credentials: local,
            role: NegotiatedRole::Play(playback),
        };
        self.core
            .handle_message(self.now, ShardMessage::OpenSession(Box::new(opening)));
        let peer = Peer::new(
            self.now,
            PeerConfig {
                identity,
                local: offer.credentials,
                remote: Answer::parse(&answer.sdp).credentials(),
                server: GATEWAY_ADDRESS,
                role: DtlsRole::Client,
                profiles: Profiles::CmThenGcm,
                ice: IceStyle::BROWSER,
                decrypt: false,
                seed: index as u64,
            },
        );
        (SocketAddr::from(([198, 51, 100, 1], 20_000 + index as u16)), peer)
    }

    /// Exchanges datagrams until all peers are connected and have what is in the ring.
    fn connect_peers(&mut self, peers: &mut [(SocketAddr, Peer)], handshakes: &AddressedDatagrams) {
        let end = self.now + Duration::from_secs(2);
        while self.now < end {
            self.now += Duration::from_millis(5);
            for (address, peer) in &mut *peers {
                if peer.poll_timeout().is_some_and(|at| at <= self.now) {
                    peer.handle_timeout(self.now);
                }
                while peer.poll_event().is_some() {}
                while let Some(transmit) = peer.poll_transmit() {
                    let mut bytes = transmit.payload.to_vec();
                    self.core.handle_datagram(self.now, *address, None, &mut bytes);
                }
            }
            self.core.handle_timeout(self.now);
            self.core.finish_tick(self.now);
            for (to, datagram) in std::mem::take(&mut *handshakes.lock().expect("not poisoned")) {
                let found = peers.iter_mut().find(|(address, _)| *address == to);
                let (_, peer) = found.expect("a peer at each address");
                peer.handle_datagram(self.now, GATEWAY_ADDRESS, &datagram);
            }
        }
        assert!(peers.iter().all(|(_, peer)| peer.is_connected()));
    }
}

fn stream_name() -> StreamName {
    StreamName::parse("live").expect("a stream name")
}

/// Numbers that differ, and are the same in each run.
fn seeded_random_generator(seed: u32) -> Box<dyn FnMut() -> u32 + Send> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    Box::new(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}
