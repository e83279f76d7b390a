//! A gateway, its publishers and its viewers in virtual time: real shards without sockets, real peers, lossy links.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream_core::hub::Hub;
use millstream_core::hub::data_settings::DataSettings;
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::session_registry::{SessionLimits, SessionRegistry, SessionRequester, SessionState};
use millstream_core::hub::stream::{LayerSelection, SessionId, ShardIndex};
use millstream_core::sdp::{self, LocalTransport, Offer};
use millstream_core::session::CloseReason;
use millstream_core::session::identity::DtlsIdentity;
use millstream_core::session::outbox::{DatagramSink, GsoRun, Outbox};
use millstream_core::shard::counters::SharedMediaCounters;
use millstream_core::shard::message::{NegotiatedRole, NewSession, ShardMessage};
use millstream_core::shard::path_capacities::PathCapacities;
use millstream_core::shard::{ShardCore, SharedState, ufrag};
use millstream_core::sources::failover_group::map::SourceFailoverMap;
use millstream_core::sources::frame_source::FrameSource;
use millstream_test_support::{
    Answer, Credentials, DtlsRole, IceStyle, LinkConfig, LossyLink, OfferParameters, Peer, PeerConfig, PeerEvent,
    PeerIdentity, Profiles, ReceivedData, VideoCodec,
};
use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};

use crate::fanout::failover_group::stream_key;
use crate::fanout::measures::capture;
use crate::fanout::publisher::Publisher;
use crate::fanout::viewer::Viewer;

/// Where the shards listen.
pub(super) const GATEWAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 8189);

/// Steps between two looks at the sources of the failover groups, as in the gateway.
const FAILOVER_INTERVAL_STEPS: u64 = 50;

const STEP: Duration = Duration::from_millis(1);

/// Everything there is.
pub(super) struct World {
    pub now: Instant,
    pub shared: Arc<SharedState>,
    pub nodes: Vec<Node>,
    cores: Vec<ShardCore>,
    sent: Vec<Sent>,
    identity: Arc<PeerIdentity>,
    rng: StdRng,
    seed: u64,
    /// Datagrams of all kinds that were on the wire, of both directions.
    pub captured: Vec<Vec<u8>>,
    /// Shards that do not run: their mailboxes fill.
    pub frozen: Vec<usize>,
    /// Which shards know which addresses to belong to another one.
    pub routes: HashSet<(usize, SocketAddr)>,
    /// How often a shard learned of one.
    pub route_messages: usize,
    /// Bytes that the gateway sent to addresses at which there is no peer.
    pub astray: HashMap<SocketAddr, usize>,
    /// How often a shard did what was due by time.
    pub timeouts: usize,
    failover_steps: u64,
    /// Whether the gateway takes congestion feedback.
    pub congestion_control: bool,
    pub tick_times: super::delays::TickTimes,
}

/// What a shard has sent.
pub(super) type Sent = Arc<Mutex<Vec<(SocketAddr, Bytes)>>>;

/// A shard that a test runs by itself.
pub(super) struct Shard {
    pub core: ShardCore,
    pub sent: Sent,
}

/// One peer, its links, and what it is for.
pub(super) struct Node {
    pub peer: Peer,
    pub address: SocketAddr,
    pub session: SessionId,
    pub up: LossyLink,
    pub down: LossyLink,
    pub role: Role,
    pub closed: bool,
    /// When its handshake was over.
    pub connected_at: Option<Instant>,
    /// Bytes that the gateway sent to it.
    pub received_bytes: u64,
    /// Sealed RTP packets that the gateway sent to it, by SSRC and sequence number.
    sealed: HashMap<(u32, u16), Bytes>,
    /// How many were sent more than once.
    pub sealed_again: u64,
    /// Messages that arrived on its data channels.
    pub data: Vec<ReceivedData>,
}

pub(super) enum Role {
    Publisher(Box<Publisher>),
    Viewer(Box<Viewer>),
}

struct Recorder(Sent);

impl DatagramSink for Recorder {
    fn send_gso_runs(&mut self, buffer: &[u8], runs: &[GsoRun]) {
        let mut sent = self.0.lock().expect("not poisoned");
        for run in runs {
            for datagram in buffer[run.start..run.end].chunks(run.segment_size) {
                sent.push((run.destination.to, Bytes::copy_from_slice(datagram)));
            }
        }
    }
}

impl World {
    /// Makes a gateway with so many shards, whose mailboxes hold so many batches.
    pub(super) fn new(seed: u64, shards: usize, mailbox: usize) -> Self {
        Self::with_data_settings(seed, shards, mailbox, DataSettings::default())
    }

    /// The same with settings of data channels.
    pub(super) fn with_data_settings(seed: u64, shards: usize, mailbox: usize, data_settings: DataSettings) -> Self {
        println!("seed {seed}");
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let identity = Arc::new(DtlsIdentity::generate().expect("makes a key"));
        let mailboxes = (0..shards).map(|_| Arc::new(Mailbox::new(mailbox, || {}))).collect();
        let shared = Arc::new(SharedState {
            hub: Hub::default(),
            failover_groups: SourceFailoverMap::default(),
            session_registry: SessionRegistry::new(
                SessionLimits {
                    max_sessions: 10_000,
                    max_half_open: 10_000,
                    half_open_reserved_for_token_holders: 0,
                    max_half_open_per_address: 10_000,
                },
                Arc::default(),
                Box::new(|_| {}),
            ),
            dtls_identity: identity,
            connect_timeout: millstream_core::session::DEFAULT_CONNECT_TIMEOUT,
            mailboxes,
            counters: SharedMediaCounters::default(),
            candidate_addresses: std::sync::RwLock::new(Arc::new([])),
            path_capacities: PathCapacities::default(),
            tcp_connections: Arc::new(()),
            data_settings,
            wall_clock_origin: (now, Duration::from_secs(1_800_000_000)),
        });
        let sent: Vec<Sent> = (0..shards).map(|_| Sent::default()).collect();
        let cores = (0..shards)
            .map(|index| {
                let outbox = Outbox::new(Box::new(Recorder(sent[index].clone())));
                let mut rng = StdRng::seed_from_u64(seed ^ (index as u64 + 1));
                ShardCore::new(
                    ShardIndex(index as u16),
                    shared.clone(),
                    outbox,
                    Box::new(move || rng.next_u32()),
                )
            })
            .collect();
        Self {
            now,
            shared,
            nodes: Vec::new(),
            cores,
            sent,
            identity: PeerIdentity::generate(),
            rng: StdRng::seed_from_u64(seed),
            seed,
            captured: Vec::new(),
            frozen: Vec::new(),
            routes: HashSet::new(),
            route_messages: 0,
            astray: HashMap::new(),
            timeouts: 0,
            failover_steps: 0,
            congestion_control: true,
            tick_times: Default::default(),
        }
    }

    /// Adds a publisher of `stream` to a shard. Returns its index among the nodes.
    pub(super) fn publish(&mut self, stream: &str, shard: usize, link: LinkConfig, publisher: Publisher) -> usize {
        let offer = self.publisher_offer(&publisher);
        let text = publisher.offer_text(&offer);
        let role = Role::Publisher(Box::new(publisher));
        self.join(stream, shard, link, (&offer, text), role)
    }

    /// Parameters of a new publisher's offer.
    pub(super) fn publisher_offer(&mut self, publisher: &Publisher) -> OfferParameters {
        let mut offer = self.offer(publisher.video_ssrc(), publisher.audio_ssrc());
        offer.video = publisher.codecs();
        offer.rtx = publisher.offers_rtx();
        offer.layer_ssrcs = publisher.layer_ssrcs();
        offer
    }

    /// A viewer of `stream` on a shard.
    pub(super) fn watch(&mut self, stream: &str, shard: usize, link: LinkConfig) -> usize {
        let offer = self.offer(0, 0);
        self.watch_with(stream, shard, link, &offer)
    }

    /// A viewer that offers these video codecs.
    pub(super) fn watch_with_video(
        &mut self,
        stream: &str,
        shard: usize,
        link: LinkConfig,
        video: &'static [VideoCodec],
    ) -> usize {
        let mut offer = self.offer(0, 0);
        offer.video = video;
        self.watch_with(stream, shard, link, &offer)
    }

    /// A viewer with an offer of its own making.
    pub(super) fn watch_with(
        &mut self,
        stream: &str,
        shard: usize,
        link: LinkConfig,
        offer: &OfferParameters,
    ) -> usize {
        self.watch_with_text(stream, shard, link, (offer, offer.whep()))
    }

    /// The same with another text of the offer.
    pub(super) fn watch_with_text(
        &mut self,
        stream: &str,
        shard: usize,
        link: LinkConfig,
        offer: (&OfferParameters, String),
    ) -> usize {
        let role = Role::Viewer(Box::new(Viewer::new(link.delay * 2)));
        self.join(stream, shard, link, offer, role)
    }

    /// Parameters of a new peer's offer.
    pub(super) fn offer(&mut self, video_ssrc: u32, audio_ssrc: u32) -> OfferParameters {
        OfferParameters {
            audio_ssrc,
            video_ssrc,
            ..OfferParameters::viewer(self.rng.next_u64(), self.identity.fingerprint(), &[VideoCodec::H264])
        }
    }

    pub(super) fn join(
        &mut self,
        stream: &str,
        shard: usize,
        link: LinkConfig,
        offer: (&OfferParameters, String),
        mut role: Role,
    ) -> usize {
        let (offer, text) = offer;
        let key = stream_key(stream);
        let local = ufrag::generate_ice_credentials(ShardIndex(shard as u16), &mut || self.rng.next_u32());
        let parsed = Offer::parse(text.as_bytes()).expect("a good offer");
        let fingerprint = &self.shared.dtls_identity.fingerprint;
        let to_sign = LocalTransport {
            ice_credentials: &local,
            fingerprint,
            candidate_addresses: &[GATEWAY],
            accepts_ice_tcp: false,
            viewer_congestion_control: self.congestion_control,
            viewer_playout_delay: true,
            accepts_data_channels: true,
            sdp_session_id: 1,
        };
        let (answer, opening) = match &mut role {
            Role::Publisher(_) => {
                let (publication, answer) = sdp::answer_whip_offer(&parsed, &to_sign).expect("publishable");
                (answer, NegotiatedRole::Publish(publication))
            }
            Role::Viewer(viewer) => {
                let hub = &self.shared.hub;
                let available_formats = hub.find_stream(&key).and_then(|s| {
                    s.with_state(|state| {
                        state.tracks_offerable_to_viewers(|codec| hub.can_transcode_codec_for_browsers(codec))
                    })
                });
                let formats = sdp::formats_sent_to_offerer(&parsed, &available_formats.expect("somebody publishes"));
                let (playback, answer) =
                    sdp::answer_whep_offer(&parsed, &formats, &to_sign, &mut || self.rng.next_u32()).expect("playable");
                viewer.tracks = playback.tracks.clone();
                (answer, NegotiatedRole::Play(playback))
            }
        };
        let answer = Answer::parse(&answer.sdp);
        let mut id = [0; 16];
        self.rng.fill_bytes(&mut id);
        let session = SessionId(id);
        let requester = SessionRequester {
            address: None,
            has_token: false,
        };
        let opened = self
            .shared
            .session_registry
            .open_session(self.now, session, ShardIndex(shard as u16), requester);
        assert_eq!(opened, Ok(None));
        let opening = NewSession {
            session_id: session,
            stream_key: key,
            local_credentials: local,
            role: opening,
        };
        assert!(
            self.shared.mailboxes[shard]
                .push_control(ShardMessage::OpenSession(Box::new(opening)))
                .is_ok()
        );
        self.add_node(session, link, (offer, answer.credentials()), role)
    }

    /// Adds the node of a session that was opened; `credentials` are those of its offer and of the answer.
    fn add_node(
        &mut self,
        session: SessionId,
        link: LinkConfig,
        (offer, remote): (&OfferParameters, Credentials),
        role: Role,
    ) -> usize {
        let index = self.nodes.len();
        let host = [198, 51, 100 + (index / 250) as u8, 1 + (index % 250) as u8];
        let address = SocketAddr::from((host, 20_000 + index as u16));
        let peer = Peer::new(
            self.now,
            PeerConfig {
                identity: self.identity.clone(),
                local: offer.credentials.clone(),
                remote,
                server: GATEWAY,
                role: DtlsRole::Client,
                profiles: Profiles::CmThenGcm,
                ice: IceStyle::BROWSER,
                decrypt: true,
                seed: self.rng.next_u64(),
            },
        );
        let seed = self.seed ^ (index as u64) << 20;
        self.nodes.push(Node {
            peer,
            address,
            session,
            up: LossyLink::new(link, seed ^ 1),
            down: LossyLink::new(link, seed ^ 2),
            role,
            closed: false,
            connected_at: None,
            received_bytes: 0,
            sealed: HashMap::new(),
            sealed_again: 0,
            data: Vec::new(),
        });
        index
    }

    pub(super) fn publisher(&mut self, index: usize) -> &mut Publisher {
        match &mut self.nodes[index].role {
            Role::Publisher(publisher) => publisher,
            Role::Viewer(_) => panic!("node {index} is a viewer"),
        }
    }

    pub(super) fn viewer(&mut self, index: usize) -> &mut Viewer {
        match &mut self.nodes[index].role {
            Role::Viewer(viewer) => viewer,
            Role::Publisher(_) => panic!("node {index} is a publisher"),
        }
    }

    /// Puts on the line what a feed has taken, as the handle on the shards does.
    pub(super) fn feed(&mut self, feed: &mut FrameSource) {
        assert!(
            self.shared.publish_frames_unless_displaced(self.now, feed),
            "the stream has no other source"
        );
    }

    /// Hands a datagram to a shard, whoever sent it.
    pub(super) fn inject(&mut self, shard: usize, from: SocketAddr, datagram: &[u8]) {
        self.cores[shard].handle_datagram(self.now, from, None, &mut datagram.to_vec());
    }

    /// What a shard does after a panic in the handling of a peer's datagram.
    pub(super) fn abandon(&mut self, shard: usize, index: usize) {
        let address = self.nodes[index].address;
        self.cores[shard].remove_peer_after_panic(self.now, address);
    }

    /// Why a session ended; `None` while it lives.
    pub(super) fn reason(&self, index: usize) -> Option<CloseReason> {
        match self
            .shared
            .session_registry
            .session_state_and_shard(self.nodes[index].session)
            .0
        {
            SessionState::Ended(reason) => Some(reason),
            _ => None,
        }
    }

    /// Ends a session as DELETE does.
    pub(super) fn delete(&mut self, index: usize) {
        let session = self.nodes[index].session;
        let reason = CloseReason::Deleted;
        self.send_to_shard_of(index, ShardMessage::CloseSession { session, reason });
    }

    /// A viewer wants a layer.
    pub(super) fn choose_layer(&mut self, index: usize, selection: LayerSelection) {
        let session = self.nodes[index].session;
        self.send_to_shard_of(index, ShardMessage::SelectLayer { session, selection });
    }

    fn send_to_shard_of(&mut self, index: usize, message: ShardMessage) {
        let session = self.nodes[index].session;
        let (_, shard) = self.shared.session_registry.session_state_and_shard(session);
        let shard = shard.expect("a session that was opened");
        let pushed = self.shared.mailboxes[usize::from(shard.0)].push_control(message);
        assert!(pushed.is_ok());
    }

    /// The address of a peer changes; it checks the new one at once.
    pub(super) fn move_to(&mut self, index: usize, address: SocketAddr) {
        self.nodes[index].address = address;
        let now = self.now;
        self.nodes[index].peer.check_now(now);
    }

    /// The shards alone, from here on without their peers.
    pub(super) fn into_shards(self) -> Vec<Shard> {
        let shards = self.cores.into_iter().zip(self.sent);
        shards.map(|(core, sent)| Shard { core, sent }).collect()
    }

    /// Advances the virtual time.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now += STEP;
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now;
        for node in &mut self.nodes {
            node.act(now);
        }
        self.deliver_up();
        for (index, core) in self.cores.iter_mut().enumerate() {
            if self.frozen.contains(&index) {
                continue;
            }
            let mut messages = std::collections::VecDeque::new();
            self.shared.mailboxes[index].take_all_messages(&mut messages);
            for message in messages {
                match &message {
                    ShardMessage::AnnounceRoute { address, .. } => {
                        self.route_messages += 1;
                        self.routes.insert((index, *address));
                    }
                    ShardMessage::WithdrawRoute { address, .. } => {
                        self.routes.remove(&(index, *address));
                    }
                    _ => {}
                }
                core.handle_message(now, message);
            }
            if self.shared.mailboxes[index].take_overflow_flag() {
                core.catch_up_viewers_after_mailbox_overflow(now);
            }
            if core.poll_timeout().is_some_and(|at| at <= now) {
                self.timeouts += 1;
                core.handle_timeout(now);
            }
            self.tick_times.finish_tick(core, now);
        }
        self.failover_steps += 1;
        if self.failover_steps.is_multiple_of(FAILOVER_INTERVAL_STEPS) {
            self.shared.run_due_failover_switches(now);
        }
        self.send_down();
        self.deliver_down();
    }

    fn deliver_up(&mut self) {
        let shards = self.cores.len();
        for node in &mut self.nodes {
            while let Some(datagram) = node.up.poll(self.now) {
                // As the kernel spreads peers over sockets that share a port: by address, whatever the session's shard.
                let shard = usize::from(datagram.from.port()) % shards;
                if !self.frozen.contains(&shard) {
                    let mut bytes = datagram.payload.to_vec();
                    capture(&mut self.captured, &bytes);
                    self.cores[shard].handle_datagram(self.now, datagram.from, None, &mut bytes);
                }
            }
        }
    }

    fn send_down(&mut self) {
        for sent in &self.sent {
            for (to, payload) in std::mem::take(&mut *sent.lock().expect("not poisoned")) {
                if let Some(node) = self.nodes.iter_mut().find(|n| n.address == to) {
                    node.received_bytes += payload.len() as u64;
                    node.assert_sealed_once(&payload);
                    capture(&mut self.captured, &payload);
                    node.down.send(self.now, GATEWAY, to, payload);
                } else {
                    *self.astray.entry(to).or_default() += payload.len();
                }
            }
        }
    }

    fn deliver_down(&mut self) {
        for node in &mut self.nodes {
            while let Some(datagram) = node.down.poll(self.now) {
                node.peer.handle_datagram(self.now, datagram.from, &datagram.payload);
                node.handle_events(self.now);
            }
        }
    }
}

impl Node {
    /// Invariant 6, in every test: the same SSRC and index never comes with other bytes. No test sends so much that the
    /// 16 bits come round.
    fn assert_sealed_once(&mut self, datagram: &Bytes) {
        let rtp = matches!(datagram.first(), Some(128..=191)) && !matches!(datagram.get(1), Some(192..=223));
        if !rtp {
            return;
        }
        let seq = u16::from_be_bytes([datagram[2], datagram[3]]);
        let ssrc = u32::from_be_bytes([datagram[8], datagram[9], datagram[10], datagram[11]]);
        if let Some(before) = self.sealed.insert((ssrc, seq), datagram.clone()) {
            assert_eq!(before, datagram, "sealed twice with different bytes: {ssrc} {seq}");
            self.sealed_again += 1;
        }
    }

    /// Sealed RTP packets that the gateway sent to it.
    pub(super) fn sealed_packets(&self) -> impl Iterator<Item = &Bytes> {
        self.sealed.values()
    }

    fn act(&mut self, now: Instant) {
        if self.closed {
            return;
        }
        if self.peer.poll_timeout().is_some_and(|at| at <= now) {
            self.peer.handle_timeout(now);
        }
        self.handle_events(now);
        if self.peer.is_connected() {
            let (rtp, rtcp) = match &mut self.role {
                Role::Publisher(publisher) => publisher.poll(now),
                Role::Viewer(viewer) => (Vec::new(), viewer.poll(now)),
            };
            for packet in rtp {
                self.peer.send_rtp(&packet);
            }
            for compound in rtcp {
                self.peer.send_rtcp(&compound);
            }
        }
        while let Some(transmit) = self.peer.poll_transmit() {
            self.up.send(now, self.address, transmit.to, transmit.payload);
        }
    }

    fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.peer.poll_event() {
            match (event, &mut self.role) {
                (PeerEvent::Rtp(packet), Role::Viewer(viewer)) => viewer.handle_rtp(now, &packet),
                (PeerEvent::Rtcp(compound), Role::Viewer(viewer)) => viewer.handle_rtcp(now, &compound),
                (PeerEvent::Rtcp(compound), Role::Publisher(publisher)) => publisher.handle_rtcp(now, &compound),
                (PeerEvent::Data(message), _) => self.data.push(message),
                (PeerEvent::Closed, _) => self.closed = true,
                (PeerEvent::Connected { .. }, _) => self.connected_at = Some(now),
                _ => {}
            }
        }
    }
}
