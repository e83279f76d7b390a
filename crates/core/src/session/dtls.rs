//! DTLS handshake of one session, as client or server, behind the guard (RFC 5764, RFC 8842).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rtc_dtls::endpoint::{Endpoint, EndpointEvent};
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;
use rtc_shared::TransportProtocol;
use rtc_srtp::config::{Config, LABEL_EXTRACTOR_DTLS_SRTP, SessionKeys};
use rtc_srtp::protection_profile::ProtectionProfile;

use super::guard::{self, DropReason, Drops, Guard, MAX_MESSAGE, fragments, is_plain_handshake};
use super::identity::{Identity, fingerprint_of};
use super::srtp::Profile;
use crate::sdp::plan::{DtlsRole, Fingerprint};

/// State of one DTLS handshake and of the association that it establishes.
pub struct Dtls {
    endpoint: Endpoint,
    identity: Arc<Identity>,
    role: DtlsRole,
    guard: Guard,
    state: State,
    /// Deadline of the whole handshake, counted from its first record.
    deadline: Option<Instant>,
    retransmission: Retransmission,
    /// Whether the peer's ChangeCipherSpec was read.
    has_changed_cipher: bool,
}

/// Retransmission of our flight, and the fragments that the peer has sent so far.
///
/// The DTLS stack stops its retransmission timer with every handshake message that it reads, even a repeated one. A
/// repeated message would therefore keep a lost flight from ever being sent again, so the stack must not see it. A
/// repeat indicates that our flight was lost; it is answered by sending the flight again (RFC 6347 §4.2.4).
#[derive(Default)]
struct Retransmission {
    /// Message sequence number, offset and length of the fragments read so far; bounded by the guard.
    seen: Vec<(u16, usize, usize)>,
    sent: Option<Instant>,
    count: u32,
}

enum State {
    /// The ClientHello is still incomplete; the protection profiles that it offers decide our configuration.
    ClientHello(Box<ClientHello>),
    /// We are the client and the ServerHello has not arrived yet. Holds the datagrams that overtook it: the stack accepts
    /// the rest of the server's flight in any order, but fails the handshake if it does not see the ServerHello first.
    ServerHello(Vec<Vec<u8>>),
    Handshake,
    Established,
    Closed,
}

/// A ClientHello being reassembled, and the datagrams that carried its fragments.
#[derive(Default)]
struct ClientHello {
    body: Vec<u8>,
    received: Vec<(usize, usize)>,
    buffered: Vec<Vec<u8>>,
}

/// Result of handling a datagram.
#[derive(Debug)]
pub enum Progress {
    Nothing,
    /// The handshake is complete and the peer's certificate matches its fingerprint.
    Established(Box<Keys>),
    /// The peer sent a close_notify alert.
    PeerClosed,
}

/// Master keys and salts of both directions.
#[derive(Debug)]
pub struct Keys {
    pub profile: Profile,
    pub session: SessionKeys,
}

/// Why the session must be closed.
#[derive(Debug, thiserror::Error)]
pub enum DtlsError {
    #[error(transparent)]
    Limit(#[from] super::guard::LimitBroken),
    #[error("the DTLS handshake failed: {0}")]
    Handshake(#[source] rtc_shared::error::Error),
    #[error("the handshake took longer than {HANDSHAKE_TIME:?}")]
    TooSlow,
    #[error("no SRTP protection profile in common")]
    NoProfile,
    #[error("the certificate does not match the fingerprint of the offer")]
    WrongCertificate,
}

/// The stack keys associations by address. This placeholder never changes, whichever path the datagrams take.
const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

/// Time limit from the first record to the last. FFmpeg gives up after 5 s, browsers after 30 s.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const HELLO_VERIFY_REQUEST: u8 = 3;

const CHANGE_CIPHER_SPEC: u8 = 20;
const CONTENT_TYPE_HANDSHAKE: u8 = 22;

/// A ChangeCipherSpec record of DTLS 1.2 (RFC 6347 §4.1, RFC 5246 §7.1), with a sequence number that no peer reaches.
const LOST_CHANGE_CIPHER_SPEC: [u8; 14] = [
    CHANGE_CIPHER_SPEC,
    0xfe,
    0xfd,
    0,
    0,
    0,
    0,
    0xff,
    0xff,
    0xff,
    0xff,
    0,
    1,
    1,
];

/// Wait before the first retransmission of a flight; doubled after each one.
const FLIGHT_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum number of doublings: the longest wait is 3.2 s.
const MAX_DOUBLINGS: u32 = 4;

/// A repeat from the peer is answered at once, unless our flight was sent less than this long ago.
const FLIGHT_SPACING: Duration = Duration::from_millis(50);

/// The stack gives up at the eighth retransmission; here the deadline decides when a handshake has taken too long.
const MAX_RETRANSMISSIONS: u32 = 7;

/// Maximum number of datagrams buffered for one ClientHello.
const MAX_BUFFERED: usize = 16;

impl Dtls {
    /// Creates a handshake that has not started.
    pub fn new(identity: Arc<Identity>, role: DtlsRole) -> Self {
        let state = match role {
            DtlsRole::Server => State::ClientHello(Box::default()),
            DtlsRole::Client => State::ServerHello(Vec::new()),
        };
        let endpoint = Endpoint::new(PEER, TransportProtocol::UDP, None);
        Self {
            endpoint,
            identity,
            role,
            guard: Guard::default(),
            state,
            deadline: None,
            retransmission: Retransmission::default(),
            has_changed_cipher: false,
        }
    }

    /// Starts the handshake if we are the client. Called once a destination is is_known; further calls do nothing.
    ///
    /// # Errors
    ///
    /// [`DtlsError::Handshake`] from the stack.
    pub fn begin(&mut self, now: Instant) -> Result<(), DtlsError> {
        if self.role == DtlsRole::Server || self.deadline.is_some() {
            return Ok(());
        }
        self.deadline = Some(now + HANDSHAKE_TIME);
        self.retransmission.sent = Some(now);
        self.endpoint
            .connect(now, PEER, self.identity.client.clone(), None)
            .map_err(DtlsError::Handshake)
    }

    /// Handles a datagram. `fingerprints` are those that the peer signalled.
    ///
    /// # Errors
    ///
    /// [`DtlsError`]: the session must be closed.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        datagram: &[u8],
        fingerprints: &[Fingerprint],
    ) -> Result<Progress, DtlsError> {
        let records = self.guard.admit(datagram)?;
        if records.is_empty() || matches!(self.state, State::Closed) {
            return Ok(Progress::Nothing);
        }
        self.deadline.get_or_insert(now + HANDSHAKE_TIME);
        let ready = match &mut self.state {
            State::ClientHello(hello) => match hello.add(records) {
                None => return Ok(Progress::Nothing),
                Some(offers_gcm) => {
                    let buffered = std::mem::take(&mut hello.buffered);
                    let identity = &self.identity;
                    let config = if offers_gcm {
                        &identity.server_gcm
                    } else {
                        &identity.server_cm
                    };
                    self.endpoint.set_server_config(Some(config.clone()));
                    self.state = State::Handshake;
                    buffered
                }
            },
            State::ServerHello(buffered) => {
                let begins = |kind| matches!(kind, SERVER_HELLO | HELLO_VERIFY_REQUEST);
                if is_plain_handshake(&records) && !fragments(&records).iter().any(|f| begins(f.kind)) {
                    if buffered.len() < MAX_BUFFERED {
                        buffered.push(records);
                    }
                    return Ok(Progress::Nothing);
                }
                let buffered = std::mem::take(buffered);
                self.state = State::Handshake;
                std::iter::once(records).chain(buffered).collect()
            }
            State::Handshake | State::Established | State::Closed => vec![records],
        };
        for datagram in ready {
            match self.read(now, &datagram, fingerprints)? {
                Progress::Nothing => {}
                progress => return Ok(progress),
            }
        }
        Ok(Progress::Nothing)
    }

    fn read(&mut self, now: Instant, records: &[u8], fingerprints: &[Fingerprint]) -> Result<Progress, DtlsError> {
        if matches!(self.state, State::Handshake) && self.retransmission.is_repeat(records, self.role) {
            if self.retransmission.sent.is_none_or(|sent| now >= sent + FLIGHT_SPACING) {
                self.retransmit_flight(now)?;
            }
            return Ok(Progress::Nothing);
        }
        let mut datagram = BytesMut::new();
        if self.misses_change_cipher(records) {
            datagram.extend_from_slice(&LOST_CHANGE_CIPHER_SPEC);
        }
        datagram.extend_from_slice(records);
        let before = self.endpoint.poll_timeout(&PEER);
        let result = self.endpoint.read(now, PEER, None, datagram);
        let after = self.endpoint.poll_timeout(&PEER);
        if after.is_some() && after != before {
            self.retransmission.sent = Some(now);
            self.retransmission.count = 0;
        }
        let events = match (result, &self.state) {
            (Ok(events), _) => events,
            // An established association survives records that the stack cannot read: anyone on the path can inject
            // them.
            (Err(_), State::Established) => {
                self.guard.drop(DropReason::Malformed);
                return Ok(Progress::Nothing);
            }
            (Err(error), _) => return Err(DtlsError::Handshake(error)),
        };
        for event in events {
            match event {
                EndpointEvent::HandshakeComplete => {
                    let keys = self.verify(fingerprints)?;
                    self.state = State::Established;
                    self.guard.establish();
                    return Ok(Progress::Established(Box::new(keys)));
                }
                EndpointEvent::PeerClosed => {
                    self.state = State::Closed;
                    return Ok(Progress::PeerClosed);
                }
                // There are no data channels.
                _ => {}
            }
        }
        Ok(Progress::Nothing)
    }

    /// Returns whether the server's Finished has arrived without its ChangeCipherSpec, which was lost or overtaken.
    ///
    /// FFmpeg 9.0.2 sends ChangeCipherSpec in a datagram of its own and never retransmits its last flight. The record is
    /// not authenticated and carries no information beyond the epoch of the records that follow it, so it can be supplied.
    fn misses_change_cipher(&mut self, records: &[u8]) -> bool {
        if self.role != DtlsRole::Client || !matches!(self.state, State::Handshake) {
            return false;
        }
        let kinds = guard::kinds(records);
        let changes = kinds.iter().any(|(content, _)| *content == CHANGE_CIPHER_SPEC);
        let is_missed = !changes && !self.has_changed_cipher && kinds.contains(&(CONTENT_TYPE_HANDSHAKE, 1));
        self.has_changed_cipher |= changes || is_missed;
        is_missed
    }

    /// The certificate has to match a signalled fingerprint before a key is used (RFC 8827 §6.5).
    fn verify(&self, fingerprints: &[Fingerprint]) -> Result<Keys, DtlsError> {
        let state = self
            .endpoint
            .get_connection_state(PEER)
            .ok_or(DtlsError::WrongCertificate)?;
        let certificate = state.peer_certificates.first().ok_or(DtlsError::WrongCertificate)?;
        if !fingerprints.iter().any(|f| fingerprint_of(certificate, f.hash) == *f) {
            return Err(DtlsError::WrongCertificate);
        }
        let (profile, stack_profile) = match state.srtp_protection_profile() {
            SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm => (Profile::AeadAes128Gcm, ProtectionProfile::AeadAes128Gcm),
            SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80 => {
                (Profile::Aes128CmSha1_80, ProtectionProfile::Aes128CmHmacSha1_80)
            }
            _ => return Err(DtlsError::NoProfile),
        };
        let mut config = Config {
            profile: stack_profile,
            ..Default::default()
        };
        let material = state
            .export_keying_material(LABEL_EXTRACTOR_DTLS_SRTP, &[], config.keying_material_len())
            .map_err(DtlsError::Handshake)?;
        config
            .set_session_keys_from_keying_material(material.as_ref(), self.role == DtlsRole::Client)
            .map_err(DtlsError::Handshake)?;
        Ok(Keys {
            profile,
            session: config.keys,
        })
    }

    /// Retransmits lost flights.
    ///
    /// # Errors
    ///
    /// [`DtlsError`]: the session must be closed.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsError> {
        if !self.is_handshaking() {
            return Ok(());
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(DtlsError::TooSlow);
        }
        if self.retransmit_at().is_some_and(|at| at <= now) {
            self.retransmit_flight(now)?;
        }
        Ok(())
    }

    fn retransmit_at(&self) -> Option<Instant> {
        let waits = self.endpoint.poll_timeout(&PEER).is_some() && self.retransmission.count < MAX_RETRANSMISSIONS;
        let sent = self.retransmission.sent.filter(|_| waits)?;
        Some(sent + FLIGHT_INTERVAL * (1 << self.retransmission.count.min(MAX_DOUBLINGS)))
    }

    fn retransmit_flight(&mut self, now: Instant) -> Result<(), DtlsError> {
        let Some(at) = self.endpoint.poll_timeout(&PEER) else {
            return Ok(());
        };
        if self.retransmission.count >= MAX_RETRANSMISSIONS {
            return Ok(());
        }
        self.retransmission.count += 1;
        self.retransmission.sent = Some(now);
        // The stack only compares times: with the time of its own timer it sends.
        self.endpoint
            .handle_timeout(PEER, at.max(now))
            .map_err(DtlsError::Handshake)
    }

    /// When [`Self::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.is_handshaking() {
            return None;
        }
        [self.deadline, self.retransmit_at()].into_iter().flatten().min()
    }

    /// Returns the next datagram for the peer.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.endpoint.poll_transmit().map(|transmit| transmit.message.freeze())
    }

    /// Sends a close_notify alert if the handshake is complete.
    pub fn close(&mut self, now: Instant) {
        if matches!(self.state, State::Established) {
            self.endpoint.stop(now, PEER);
        }
        self.state = State::Closed;
    }

    /// Counts a dropped record or packet.
    pub fn drop(&mut self, reason: DropReason) {
        self.guard.drop(reason);
    }

    /// Returns the number of drops so far, by reason.
    pub fn drops(&self) -> Drops {
        self.guard.drops()
    }

    fn is_handshaking(&self) -> bool {
        matches!(
            self.state,
            State::ClientHello(_) | State::ServerHello(_) | State::Handshake
        )
    }
}

impl Retransmission {
    /// Returns whether the records hold only fragments that were read before; remembers the new ones.
    fn is_repeat(&mut self, records: &[u8], role: DtlsRole) -> bool {
        let mut all = is_plain_handshake(records);
        // A HelloVerifyRequest has no timer (RFC 6347 §4.2.1): until the second ClientHello the stack answers the
        // first.
        let answers_hello = role == DtlsRole::Server && self.seen.iter().all(|(message, ..)| *message == 0);
        for fragment in fragments(records) {
            let key = (fragment.message, fragment.offset, fragment.body.len());
            let is_known = self.seen.contains(&key);
            if !is_known {
                self.seen.push(key);
            }
            all &= is_known && !(answers_hello && fragment.message == 0);
        }
        all
    }
}

impl ClientHello {
    /// Adds the records of a datagram. Once the ClientHello is complete, returns whether it offers AES-GCM.
    fn add(&mut self, records: Vec<u8>) -> Option<bool> {
        for fragment in fragments(&records).into_iter().filter(|f| f.kind == CLIENT_HELLO) {
            let end = fragment.offset + fragment.body.len();
            if fragment.total > MAX_MESSAGE || end > fragment.total {
                continue;
            }
            self.body.resize(fragment.total, 0);
            if let Some(target) = self.body.get_mut(fragment.offset..end) {
                target.copy_from_slice(fragment.body);
                self.received.push((fragment.offset, end));
            }
        }
        if self.buffered.len() < MAX_BUFFERED {
            self.buffered.push(records);
        }
        self.is_complete().then(|| offers_gcm(&self.body))
    }

    fn is_complete(&mut self) -> bool {
        self.received.sort_unstable();
        let reached = self.received.iter().fold(
            0,
            |reached, (from, to)| if *from <= reached { reached.max(*to) } else { reached },
        );
        !self.body.is_empty() && reached == self.body.len()
    }
}

/// Reads the use_srtp extension (14) of a ClientHello (RFC 5246 §7.4.1.2, RFC 5764 §4.1.1). A ClientHello that cannot
/// be read offers nothing; the stack rejects it with an alert.
fn offers_gcm(hello: &[u8]) -> bool {
    profiles(hello)
        .unwrap_or_default()
        .chunks_exact(2)
        .any(|p| p == [0x00, 0x07])
}

fn profiles(hello: &[u8]) -> Option<&[u8]> {
    // Version and random, session id, cookie, cipher suites, compression methods.
    let rest = hello.get(34..)?;
    let rest = skip_vector::<1>(rest)?.1;
    let rest = skip_vector::<1>(rest)?.1;
    let rest = skip_vector::<2>(rest)?.1;
    let rest = skip_vector::<1>(rest)?.1;
    let mut extensions = skip_vector::<2>(rest)?.0;
    while let Some((kind, rest)) = extensions.split_first_chunk::<2>() {
        let (body, rest) = skip_vector::<2>(rest)?;
        if *kind == [0, 14] {
            return Some(skip_vector::<2>(body)?.0);
        }
        extensions = rest;
    }
    None
}

/// Splits off a vector whose length is in its first `N` bytes.
fn skip_vector<const N: usize>(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<N>()?;
    rest.split_at_checked(length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}
