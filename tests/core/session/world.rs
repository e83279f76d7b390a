//! One session, one peer, and the path between them in virtual time.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream_core::sdp::negotiation_result::{
    DataPeerRole, DtlsRole as OurRole, Fingerprint, FingerprintHashFunction, IceCredentials, NegotiatedDataChannels,
    RemoteTransport,
};
use millstream_core::session::data::DataEvent;
use millstream_core::session::dtls_filter::PacketDropReason;
use millstream_core::session::identity::DtlsIdentity;
use millstream_core::session::{CloseReason, DEFAULT_CONNECT_TIMEOUT, Session, TransportEvent};
use millstream_test_support::{
    Credentials, DtlsRole, IceStyle, LinkConfig, LossyLink, Peer, PeerConfig, PeerEvent, PeerIdentity, Profiles,
    Transmit,
};
use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};

/// Where the session is reached.
pub(super) const SERVER: SocketAddr = address([203, 0, 113, 1], 8189);
/// Where the peer begins.
pub(super) const PEER: SocketAddr = address([198, 51, 100, 1], 5_000);
/// Another network of the same peer.
pub(super) const ELSEWHERE: SocketAddr = address([198, 51, 100, 77], 7_000);
/// Somebody who knows both addresses and no password.
pub(super) const STRANGER: SocketAddr = address([192, 0, 2, 66], 6_666);

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// How a world differs from the usual one: a browser that connects as DTLS client over a path of 20 ms.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    pub role: DtlsRole,
    pub profiles: Profiles,
    pub ice: IceStyle,
    pub link: LinkConfig,
    pub seed: u64,
    /// The fingerprint that was signalled is another one than that of the peer's certificate.
    pub wrong_fingerprint: bool,
    /// Data channels were negotiated with a peer of this role.
    pub data_channels: Option<DataPeerRole>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            role: DtlsRole::Client,
            profiles: Profiles::CmThenGcm,
            ice: IceStyle::BROWSER,
            link: LinkConfig::delay(Duration::from_millis(20)),
            seed: 1,
            wrong_fingerprint: false,
            data_channels: None,
        }
    }
}

pub(super) struct World {
    pub now: Instant,
    pub session: Session,
    pub peer: Peer,
    pub peer_address: SocketAddr,
    pub up: LossyLink,
    pub down: LossyLink,
    pub events: Vec<TransportEvent>,
    pub peer_events: Vec<PeerEvent>,
    /// The peer sends all records of DTLS that it has at an instant in one datagram.
    pub joins_records: bool,
    /// The peer sends each record of its handshake in a datagram of its own, as GnuTLS does.
    pub one_record_each: bool,
    /// Content type of records of the peer that are all lost; only with `one_record_each`.
    pub lost_content: Option<u8>,
    /// Every datagram that one of both sent, with its receiver.
    pub wire: Vec<(SocketAddr, Bytes)>,
    rng: StdRng,
}

/// Timers and datagrams of one instant; more of them would be a machine that never comes to rest.
const MAX_STEPS_AT_ONCE: u32 = 10_000;

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let (ours, theirs) = identities();
        let (local, remote) = (Credentials::from_seed(setup.seed), Credentials::from_seed(!setup.seed));
        let mut digest = theirs.digest().to_vec();
        digest[0] ^= u8::from(setup.wrong_fingerprint);
        let transport = RemoteTransport {
            remote_credentials: ice(&local),
            fingerprints: vec![Fingerprint {
                hash_function: FingerprintHashFunction::Sha256,
                digest,
            }],
            gateway_dtls_role: match setup.role {
                DtlsRole::Client => OurRole::Server,
                DtlsRole::Server => OurRole::Client,
            },
            data_channels: setup.data_channels.map(|peer_role| NegotiatedDataChannels {
                peer_role,
                max_sent_message_size: 64 << 10,
            }),
        };
        let session = Session::new(now, ours.clone(), ice(&remote), transport, DEFAULT_CONNECT_TIMEOUT);
        let config = PeerConfig {
            identity: theirs.clone(),
            local,
            remote,
            server: SERVER,
            role: setup.role,
            profiles: setup.profiles,
            ice: setup.ice,
            decrypt: true,
            seed: setup.seed,
        };
        Self {
            now,
            session,
            peer: Peer::new(now, config),
            peer_address: PEER,
            up: LossyLink::new(setup.link, setup.seed),
            down: LossyLink::new(setup.link, setup.seed ^ 1 << 32),
            events: Vec::new(),
            peer_events: Vec::new(),
            joins_records: false,
            one_record_each: false,
            lost_content: None,
            wire: Vec::new(),
            rng: StdRng::seed_from_u64(setup.seed),
        }
    }

    /// A world whose peer has connected.
    pub(super) fn connected(setup: Setup) -> Self {
        let mut world = Self::new(setup);
        world.run(2 * SECOND);
        assert!(world.both_connected(), "{:?}", world.events);
        world
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        let mut steps = 0;
        while let Some(at) = self.next().filter(|at| *at <= end) {
            steps = if at > self.now { 0 } else { steps + 1 };
            assert!(steps < MAX_STEPS_AT_ONCE, "time stands still");
            self.now = self.now.max(at);
            self.step();
        }
        self.now = end;
        self.step();
    }

    fn next(&mut self) -> Option<Instant> {
        self.collect();
        let times = [
            self.session.poll_timeout(),
            self.peer.poll_timeout(),
            self.up.poll_timeout(),
            self.down.poll_timeout(),
        ];
        times.into_iter().flatten().min()
    }

    fn step(&mut self) {
        while let Some(datagram) = self.up.poll(self.now) {
            self.inject(datagram.from, &datagram.payload);
        }
        while let Some(datagram) = self.down.poll(self.now) {
            // What goes to an address that the peer has left does not arrive.
            if datagram.to == self.peer_address {
                self.peer.handle_datagram(self.now, datagram.from, &datagram.payload);
                self.collect();
            }
        }
        self.session.handle_timeout(self.now);
        self.peer.handle_timeout(self.now);
        self.collect();
    }

    /// Hands a datagram to the session, whoever sent it.
    pub(super) fn inject(&mut self, from: SocketAddr, datagram: &[u8]) {
        let rng = &mut self.rng;
        self.session
            .handle_datagram(self.now, from, &mut datagram.to_vec(), &mut || rng.next_u32());
        self.collect();
    }

    /// Puts everything on the wire that is to be sent, and the events into the lists.
    pub(super) fn collect(&mut self) {
        let mut transmits: Vec<_> = std::iter::from_fn(|| self.peer.poll_transmit()).collect();
        if self.joins_records {
            join_records(&mut transmits);
        }
        for transmit in transmits {
            self.wire.push((transmit.to, transmit.payload.clone()));
            let is_dtls = matches!(transmit.payload.first(), Some(20..=63));
            let datagrams = match self.one_record_each && is_dtls {
                true => records(&transmit.payload),
                false => vec![transmit.payload],
            };
            let lost = |datagram: &Bytes| is_dtls && datagram.first().copied() == self.lost_content;
            for datagram in datagrams.into_iter().filter(|datagram| !lost(datagram)) {
                self.up.send(self.now, self.peer_address, transmit.to, datagram);
            }
        }
        while let Some(transmit) = self.session.poll_transmit() {
            self.wire.push((transmit.to, transmit.payload.clone()));
            self.down.send(self.now, SERVER, transmit.to, transmit.payload);
        }
        self.events.extend(std::iter::from_fn(|| self.session.poll_event()));
        self.peer_events.extend(std::iter::from_fn(|| self.peer.poll_event()));
    }

    pub(super) fn both_connected(&self) -> bool {
        self.session.is_connected() && self.peer.is_connected()
    }

    /// Why the session ended; `None` while it lives.
    pub(super) fn reason(&self) -> Option<CloseReason> {
        let mut reasons = self.events.iter().filter_map(|event| match event {
            TransportEvent::Closed(reason) => Some(*reason),
            _ => None,
        });
        let reason = reasons.next();
        assert_eq!(reasons.next(), None, "a session ends once");
        reason
    }

    /// What the session reported of its data channels, but for packets that were dropped.
    pub(super) fn data(&self) -> Vec<DataEvent> {
        let events = self.events.iter().filter_map(|event| match event {
            TransportEvent::Data(DataEvent::PacketDropped(_)) => None,
            TransportEvent::Data(event) => Some(event.clone()),
            _ => None,
        });
        events.collect()
    }

    /// Texts that arrived on the data channels of the peer, with their labels.
    pub(super) fn texts_at_peer(&self) -> Vec<(String, String)> {
        let events = self.peer_events.iter().filter_map(|event| match event {
            PeerEvent::Data(message) => Some(message),
            _ => None,
        });
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        events
            .map(|message| (message.label.clone(), text(&message.bytes)))
            .collect()
    }

    /// RTP packets that the session took.
    pub(super) fn rtp(&self) -> Vec<Bytes> {
        let packets = self.events.iter().filter_map(|event| match event {
            TransportEvent::Rtp(packet) => Some(packet.clone()),
            _ => None,
        });
        packets.collect()
    }

    /// Compound RTCP packets that the session took.
    pub(super) fn rtcp(&self) -> Vec<Bytes> {
        let compounds = self.events.iter().filter_map(|event| match event {
            TransportEvent::Rtcp(compound) => Some(compound.clone()),
            _ => None,
        });
        compounds.collect()
    }

    pub(super) fn dropped(&self, reason: PacketDropReason) -> u32 {
        self.session.drop_counts()[reason as usize]
    }

    /// Sends a small RTP packet of the peer.
    pub(super) fn send_rtp(&mut self, seq: u16) {
        assert!(self.peer.send_rtp(&rtp(seq)));
        self.collect();
    }

    /// Takes the datagrams that the peer has ready, before they are on their way.
    pub(super) fn intercept(&mut self) -> Vec<Bytes> {
        std::iter::from_fn(|| self.peer.poll_transmit())
            .map(|t| t.payload)
            .collect()
    }
}

/// Puts all datagrams of DTLS into the first one.
fn join_records(transmits: &mut Vec<Transmit>) {
    let is_dtls = |transmit: &Transmit| matches!(transmit.payload.first(), Some(20..=63));
    let (dtls, rest): (Vec<_>, Vec<_>) = std::mem::take(transmits).into_iter().partition(is_dtls);
    let joined: Vec<u8> = dtls
        .iter()
        .flat_map(|transmit| transmit.payload.iter().copied())
        .collect();
    transmits.extend(dtls.into_iter().next().map(|first| Transmit {
        to: first.to,
        payload: joined.into(),
    }));
    transmits.extend(rest);
}

/// The records of a datagram of DTLS (RFC 6347 §4.1).
fn records(datagram: &Bytes) -> Vec<Bytes> {
    let (mut records, mut rest) = (Vec::new(), datagram.clone());
    while rest.len() >= 13 {
        let length = 13 + usize::from(u16::from_be_bytes([rest[11], rest[12]]));
        records.push(rest.split_to(length.min(rest.len())));
    }
    records
}

/// An RTP packet of 100 bytes.
pub(super) fn rtp(seq: u16) -> Vec<u8> {
    let mut packet = vec![0x80, 96];
    packet.extend(seq.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 7]);
    packet.resize(100, seq as u8);
    packet
}

/// A DTLS 1.2 record (RFC 6347 §4.1).
pub(super) fn record(content: u8, epoch: u16, number: u32, body: &[u8]) -> Vec<u8> {
    let mut record = vec![content, 0xfe, 0xfd];
    record.extend(epoch.to_be_bytes());
    record.extend([0, 0]);
    record.extend(number.to_be_bytes());
    record.extend((body.len() as u16).to_be_bytes());
    record.extend(body);
    record
}

fn ice(credentials: &Credentials) -> IceCredentials {
    IceCredentials {
        ufrag: credentials.ufrag.clone(),
        pwd: credentials.pwd.clone(),
    }
}

/// Keys are expensive to make; one of each serves all tests.
fn identities() -> &'static (Arc<DtlsIdentity>, Arc<PeerIdentity>) {
    static IDENTITIES: OnceLock<(Arc<DtlsIdentity>, Arc<PeerIdentity>)> = OnceLock::new();
    IDENTITIES.get_or_init(|| {
        let ours = DtlsIdentity::generate().expect("makes a key");
        (Arc::new(ours), PeerIdentity::generate())
    })
}

const fn address(ip: [u8; 4], port: u16) -> SocketAddr {
    let [a, b, c, d] = ip;
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d)), port)
}
