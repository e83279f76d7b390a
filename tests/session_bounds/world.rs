//! One session and one peer in virtual time, and everything that either of them sent.
//!
//! Links and peers are seeded; keys and certificates are not, so that the same seed gives the same datagrams by number and
//! kind, but not by content.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream::media::Ssrc;
use millstream::sdp::plan::{self, Fingerprint, FingerprintHash, IceCredentials, Transport};
use millstream::session::guard::DropReason;
use millstream::session::identity::Identity;
use millstream::session::{CloseReason, Event, Session};
use millstream_test_support::{
    Credentials, DtlsRole, IceStyle, LinkConfig, LossyLink, Peer, PeerConfig, PeerEvent, PeerIdentity, Profiles,
};

/// Where the session's shard listens.
pub const GATEWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1)), 8189);

pub const SECOND: Duration = Duration::from_secs(1);

/// Certificates are dear; all tests share them.
static OURS: LazyLock<Arc<Identity>> = LazyLock::new(|| Arc::new(Identity::generate().expect("keys can be made")));
static THEIRS: LazyLock<Arc<PeerIdentity>> = LazyLock::new(PeerIdentity::generate);

/// What a world is made of; by default a browser at 20 ms.
#[derive(Clone)]
pub struct Setup {
    /// The peer's role; ours is the other one.
    pub role: DtlsRole,
    pub profiles: Profiles,
    pub ice: IceStyle,
    pub link: LinkConfig,
    pub seed: u64,
    /// What the offer said of the peer's certificate.
    pub digest: [u8; 32],
    /// Our role, where it is not the other one.
    pub our_role: Option<plan::DtlsRole>,
}

pub struct World {
    pub now: Instant,
    pub start: Instant,
    pub session: Session,
    pub peer: Peer,
    pub peer_address: SocketAddr,
    pub up: LossyLink,
    pub down: LossyLink,
    /// All that the session told, but for what [`World::take_rtp`] took.
    pub events: Vec<Event>,
    pub peer_events: Vec<PeerEvent>,
    /// All that the session sent.
    pub sent: Vec<(SocketAddr, Bytes)>,
    /// All that the peer sent, lost or not.
    pub peer_sent: Vec<Bytes>,
    /// When the last datagram of the peer arrived.
    pub arrived: Instant,
    setup: Setup,
    /// Steps without any time passing.
    idle: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            role: DtlsRole::Client,
            profiles: Profiles::CmThenGcm,
            ice: IceStyle::BROWSER,
            link: LinkConfig::delay(Duration::from_millis(10)),
            seed: 1,
            digest: THEIRS.digest(),
            our_role: None,
        }
    }
}

impl Setup {
    pub fn world(self) -> World {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        let now = Instant::now();
        let our_role = self.our_role.unwrap_or(match self.role {
            DtlsRole::Client => plan::DtlsRole::Server,
            DtlsRole::Server => plan::DtlsRole::Client,
        });
        let transport = Transport {
            remote: ice(&theirs()),
            fingerprints: vec![Fingerprint {
                hash: FingerprintHash::Sha256,
                digest: self.digest.to_vec(),
            }],
            role: our_role,
            reduced_size_rtcp: true,
        };
        World {
            now,
            start: now,
            session: Session::new(now, OURS.clone(), ice(&ours()), transport),
            peer: Peer::new(now, self.peer_config(ours())),
            peer_address: address(1),
            up: LossyLink::new(self.link, self.seed),
            down: LossyLink::new(self.link, self.seed ^ 1 << 40),
            events: Vec::new(),
            peer_events: Vec::new(),
            sent: Vec::new(),
            peer_sent: Vec::new(),
            arrived: now,
            setup: self,
            idle: 0,
        }
    }

    /// A world whose session and peer are connected.
    pub fn connected(self) -> World {
        let mut world = self.world();
        assert!(world.connect(5 * SECOND), "{}", world.describe());
        // What is still under way arrives: the last flight, answers of checks.
        world.run(Duration::from_millis(50));
        world
    }

    fn peer_config(&self, remote: Credentials) -> PeerConfig {
        PeerConfig {
            identity: THEIRS.clone(),
            local: theirs(),
            remote,
            server: GATEWAY,
            role: self.role,
            profiles: self.profiles,
            ice: self.ice,
            decrypt: true,
            seed: self.seed,
        }
    }
}

impl World {
    /// Runs until both sides are connected; false if they are not within `limit`.
    pub fn connect(&mut self, limit: Duration) -> bool {
        let end = self.now + limit;
        while !self.is_connected() && self.step(end) {}
        self.is_connected()
    }

    pub fn is_connected(&self) -> bool {
        self.session.is_connected() && self.peer.is_connected()
    }

    /// Lets time pass.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
    }

    /// Goes to the next moment at which something happens; false if that is not before `end`.
    pub fn step(&mut self, end: Instant) -> bool {
        self.pump();
        let timeouts = [
            self.session.poll_timeout(),
            self.peer.poll_timeout(),
            self.up.poll_timeout(),
            self.down.poll_timeout(),
        ];
        let Some(at) = timeouts.into_iter().flatten().min().filter(|at| *at <= end) else {
            self.now = self.now.max(end);
            return false;
        };
        self.idle = if at > self.now { 0 } else { self.idle + 1 };
        assert!(self.idle < 1_000, "time stands still: {}", self.describe());
        self.now = self.now.max(at);
        while let Some(datagram) = self.up.poll(self.now) {
            self.arrived = self.now;
            self.inject(datagram.from, &datagram.payload);
        }
        while let Some(datagram) = self.down.poll(self.now) {
            self.peer.handle_datagram(self.now, datagram.from, &datagram.payload);
            self.pump();
        }
        self.session.handle_timeout(self.now);
        self.peer.handle_timeout(self.now);
        self.pump();
        true
    }

    /// The session receives a datagram now, whoever sent it.
    pub fn inject(&mut self, from: SocketAddr, datagram: &[u8]) {
        self.session.handle_datagram(self.now, from, &mut datagram.to_vec());
        self.pump();
    }

    /// Moves what was sent to the links and what was told to the records.
    pub fn pump(&mut self) {
        while let Some(transmit) = self.peer.poll_transmit() {
            self.peer_sent.push(transmit.payload.clone());
            self.up.send(self.now, self.peer_address, transmit.to, transmit.payload);
        }
        while let Some(transmit) = self.session.poll_transmit() {
            self.sent.push((transmit.to, transmit.payload.clone()));
            if transmit.to == self.peer_address {
                self.down.send(self.now, GATEWAY, transmit.to, transmit.payload);
            }
        }
        self.events.extend(std::iter::from_fn(|| self.session.poll_event()));
        self.peer_events.extend(std::iter::from_fn(|| self.peer.poll_event()));
    }

    /// Changes both directions for what is sent from now on.
    pub fn set_links(&mut self, config: LinkConfig) {
        self.up.set_config(config);
        self.down.set_config(config);
    }

    /// From now on everything is lost.
    pub fn cut(&mut self) {
        self.set_links(LinkConfig {
            loss: 1.0,
            ..self.setup.link
        });
    }

    /// Undoes [`World::cut`].
    pub fn mend(&mut self) {
        self.set_links(self.setup.link);
    }

    /// Sends an RTP packet from the session to the peer.
    pub fn send_down(&mut self, ssrc: u32, seq: u64) {
        let mut packet = rtp(ssrc, seq as u16);
        let sealer = self.session.sealer().expect("connected");
        packet.resize(packet.len() + sealer.tag_len(), 0);
        sealer.seal(&mut packet, 12, Ssrc(ssrc), seq).expect("seals");
        let to = self.session.destination().expect("connected");
        if to == self.peer_address {
            self.down.send(self.now, GATEWAY, to, packet.into());
        }
    }

    /// Asserts that one packet each way still arrives. `seq` is new to both directions.
    pub fn assert_media_flows(&mut self, seq: u16) {
        let (up, down) = (rtp(0x5eed, seq), rtp(0xfeed, seq));
        self.take_rtp();
        assert!(self.peer.send_rtp(&up), "{}", self.describe());
        self.send_down(0xfeed, seq.into());
        self.run(SECOND);
        assert_eq!(self.take_rtp(), [up], "{}", self.describe());
        assert!(
            self.peer_events.contains(&PeerEvent::Rtp(down.into())),
            "{}",
            self.describe()
        );
    }

    /// The RTP packets that the session delivered since the last call.
    pub fn take_rtp(&mut self) -> Vec<Bytes> {
        let mut taken = Vec::new();
        self.events.retain(|event| match event {
            Event::Rtp(packet) => {
                taken.push(packet.clone());
                false
            }
            _ => true,
        });
        taken
    }

    /// The RTCP packets that the session delivered.
    pub fn rtcp(&self) -> Vec<Bytes> {
        let packets = self.events.iter().filter_map(|event| match event {
            Event::Rtcp(packet) => Some(packet.clone()),
            _ => None,
        });
        packets.collect()
    }

    /// Why the session ended, if it did.
    pub fn closed(&self) -> Option<CloseReason> {
        self.events.iter().find_map(|event| match event {
            Event::Closed(reason) => Some(*reason),
            _ => None,
        })
    }

    pub fn dropped(&self, reason: DropReason) -> u32 {
        self.session.drops()[reason as usize]
    }

    /// For the messages of assertions.
    pub fn describe(&self) -> String {
        format!(
            "seed {}, peer is {:?}, {:?}, after {:?}: closed {:?}, session connected {}, peer connected {}, drops {:?}",
            self.setup.seed,
            self.setup.role,
            self.setup.profiles,
            self.now - self.start,
            self.closed(),
            self.session.is_connected(),
            self.peer.is_connected(),
            self.session.drops()
        )
    }
}

/// Addresses of peers and of strangers.
pub fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], port))
}

/// An RTP packet of a known content.
pub fn rtp(ssrc: u32, seq: u16) -> Vec<u8> {
    let mut packet = vec![0x80, 102];
    packet.extend_from_slice(&seq.to_be_bytes());
    packet.extend_from_slice(&u32::from(seq).to_be_bytes());
    packet.extend_from_slice(&ssrc.to_be_bytes());
    packet.extend((0..100u8).map(|i| i ^ seq as u8));
    packet
}

/// An empty receiver report (RFC 3550 §6.4.2).
pub fn receiver_report(ssrc: u32) -> Vec<u8> {
    let mut packet = vec![0x80, 201, 0, 1];
    packet.extend_from_slice(&ssrc.to_be_bytes());
    packet
}

/// A DTLS record (RFC 6347 §4.1).
pub fn record(content: u8, epoch: u16, body: &[u8]) -> Vec<u8> {
    let mut record = vec![content, 0xfe, 0xfd];
    record.extend_from_slice(&epoch.to_be_bytes());
    record.extend_from_slice(&[0, 0, 0, 0, 1, 0]);
    record.extend_from_slice(&(body.len() as u16).to_be_bytes());
    record.extend_from_slice(body);
    record
}

pub fn is_dtls(datagram: &[u8]) -> bool {
    matches!(datagram.first(), Some(20..=63))
}

fn ours() -> Credentials {
    Credentials::from_seed(1)
}

fn theirs() -> Credentials {
    Credentials::from_seed(2)
}

fn ice(credentials: &Credentials) -> IceCredentials {
    IceCredentials {
        ufrag: credentials.ufrag.clone(),
        pwd: credentials.pwd.clone(),
    }
}
