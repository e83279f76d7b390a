//! The DTLS handshake of one session, in either role, behind the guard (RFC 5764, RFC 8842).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rtc_dtls::endpoint::{Endpoint, EndpointEvent};
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;
use rtc_shared::TransportProtocol;
use rtc_srtp::config::{Config, LABEL_EXTRACTOR_DTLS_SRTP, SessionKeys};
use rtc_srtp::protection_profile::ProtectionProfile;

use super::guard::{DropReason, Drops, Guard, MAX_MESSAGE, fragments, is_plain_handshake};
use super::identity::{Identity, fingerprint_of};
use super::srtp::Profile;
use crate::sdp::plan::{DtlsRole, Fingerprint};

/// One handshake and what is left of it.
pub struct Dtls {
    endpoint: Endpoint,
    identity: Arc<Identity>,
    role: DtlsRole,
    guard: Guard,
    state: State,
    /// Of the whole handshake; counts from its first record.
    deadline: Option<Instant>,
    repeats: Repeats,
}

/// When our flight is sent again, and what the peer has sent already.
///
/// The stack stops its timer with each handshake message it reads, a repeated one too, so that a flight that was lost
/// would never be sent again: it must not see a repeat. A repeat says that our flight was lost, so it is answered
/// with it (RFC 6347 §4.2.4).
#[derive(Default)]
struct Repeats {
    /// Message, offset and length of the fragments read so far; bounded by the guard.
    seen: Vec<(u16, usize, usize)>,
    sent: Option<Instant>,
    count: u32,
}

enum State {
    /// The ClientHello has not been seen whole: which protection profiles it offers decides our configuration.
    ClientHello(Box<ClientHello>),
    Handshake,
    Established,
    Over,
}

/// A ClientHello in parts, and the datagrams that brought them.
#[derive(Default)]
struct ClientHello {
    body: Vec<u8>,
    received: Vec<(usize, usize)>,
    held: Vec<Vec<u8>>,
}

/// What came of a datagram.
#[derive(Debug)]
pub enum Progress {
    Nothing,
    /// The handshake is over and the peer is who it said it was.
    Established(Box<Keys>),
    /// The peer said goodbye.
    PeerClosed,
}

/// Master keys and salts of both directions.
#[derive(Debug)]
pub struct Keys {
    pub profile: Profile,
    pub session: SessionKeys,
}

/// Why the session has to be closed.
#[derive(Debug, thiserror::Error)]
pub enum DtlsError {
    #[error(transparent)]
    Limit(#[from] super::guard::LimitBroken),
    #[error("handshake: {0}")]
    Handshake(#[source] rtc_shared::error::Error),
    #[error("the handshake took longer than {HANDSHAKE_TIME:?}")]
    TooSlow,
    #[error("no SRTP protection profile in common")]
    NoProfile,
    #[error("the certificate does not match the fingerprint of the offer")]
    WrongCertificate,
}

/// The stack keeps associations by address; this one never changes, whatever path the datagrams take.
const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

/// From the first record to the last. FFmpeg gives up after 5 s, browsers after 30.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

const CLIENT_HELLO: u8 = 1;

/// First wait before a flight is sent again; doubled each time.
const FLIGHT_INTERVAL: Duration = Duration::from_millis(200);

/// The longest wait, as a power of two of the first: 3.2 s.
const MAX_DOUBLINGS: u32 = 4;

/// A repeat of the peer is answered at once unless our flight was sent this shortly before.
const FLIGHT_SPACING: Duration = Duration::from_millis(50);

/// The stack gives up at the eighth; whether the handshake is too slow is for the deadline to say.
const MAX_REPEATS: u32 = 7;

/// Datagrams of one ClientHello.
const MAX_HELD: usize = 16;

impl Dtls {
    /// Makes a handshake that has not begun.
    pub fn new(identity: Arc<Identity>, role: DtlsRole) -> Self {
        let state = match role {
            DtlsRole::Server => State::ClientHello(Box::default()),
            DtlsRole::Client => State::Handshake,
        };
        let endpoint = Endpoint::new(PEER, TransportProtocol::UDP, None);
        Self {
            endpoint,
            identity,
            role,
            guard: Guard::default(),
            state,
            deadline: None,
            repeats: Repeats::default(),
        }
    }

    /// Begins the handshake where that is for us to do. Called when there is an address to send to; again is harmless.
    ///
    /// # Errors
    ///
    /// [`DtlsError::Handshake`] from the stack.
    pub fn begin(&mut self, now: Instant) -> Result<(), DtlsError> {
        if self.role == DtlsRole::Server || self.deadline.is_some() {
            return Ok(());
        }
        self.deadline = Some(now + HANDSHAKE_TIME);
        self.repeats.sent = Some(now);
        self.endpoint
            .connect(now, PEER, self.identity.client.clone(), None)
            .map_err(DtlsError::Handshake)
    }

    /// Takes a datagram. `fingerprints` are those that the peer signalled.
    ///
    /// # Errors
    ///
    /// [`DtlsError`]: the session has to be closed.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        datagram: &[u8],
        fingerprints: &[Fingerprint],
    ) -> Result<Progress, DtlsError> {
        let records = self.guard.admit(datagram)?;
        if records.is_empty() || matches!(self.state, State::Over) {
            return Ok(Progress::Nothing);
        }
        self.deadline.get_or_insert(now + HANDSHAKE_TIME);
        let ready = match &mut self.state {
            State::ClientHello(hello) => match hello.take(records) {
                None => return Ok(Progress::Nothing),
                Some(offers_gcm) => {
                    let held = std::mem::take(&mut hello.held);
                    let identity = &self.identity;
                    let config = if offers_gcm {
                        &identity.server_gcm
                    } else {
                        &identity.server_cm
                    };
                    self.endpoint.set_server_config(Some(config.clone()));
                    self.state = State::Handshake;
                    held
                }
            },
            State::Handshake | State::Established | State::Over => vec![records],
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
        if matches!(self.state, State::Handshake) && self.repeats.is_repeat(records, self.role) {
            if self.repeats.sent.is_none_or(|sent| now >= sent + FLIGHT_SPACING) {
                self.repeat_flight(now)?;
            }
            return Ok(Progress::Nothing);
        }
        let before = self.endpoint.poll_timeout(&PEER);
        let result = self.endpoint.read(now, PEER, None, BytesMut::from(records));
        let after = self.endpoint.poll_timeout(&PEER);
        if after.is_some() && after != before {
            self.repeats.sent = Some(now);
            self.repeats.count = 0;
        }
        let events = match (result, &self.state) {
            (Ok(events), _) => events,
            // An established association survives what the stack cannot read: anybody on the path could have sent it.
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
                    self.state = State::Over;
                    return Ok(Progress::PeerClosed);
                }
                // There are no data channels.
                _ => {}
            }
        }
        Ok(Progress::Nothing)
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
        let (profile, their_profile) = match state.srtp_protection_profile() {
            SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm => (Profile::AeadAes128Gcm, ProtectionProfile::AeadAes128Gcm),
            SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80 => {
                (Profile::Aes128CmSha1_80, ProtectionProfile::Aes128CmHmacSha1_80)
            }
            _ => return Err(DtlsError::NoProfile),
        };
        let mut config = Config {
            profile: their_profile,
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

    /// Repeats lost flights.
    ///
    /// # Errors
    ///
    /// [`DtlsError`]: the session has to be closed.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsError> {
        if !self.is_handshaking() {
            return Ok(());
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(DtlsError::TooSlow);
        }
        if self.repeat_at().is_some_and(|at| at <= now) {
            self.repeat_flight(now)?;
        }
        Ok(())
    }

    fn repeat_at(&self) -> Option<Instant> {
        let waits = self.endpoint.poll_timeout(&PEER).is_some() && self.repeats.count < MAX_REPEATS;
        let sent = self.repeats.sent.filter(|_| waits)?;
        Some(sent + FLIGHT_INTERVAL * (1 << self.repeats.count.min(MAX_DOUBLINGS)))
    }

    fn repeat_flight(&mut self, now: Instant) -> Result<(), DtlsError> {
        let Some(at) = self.endpoint.poll_timeout(&PEER) else {
            return Ok(());
        };
        if self.repeats.count >= MAX_REPEATS {
            return Ok(());
        }
        self.repeats.count += 1;
        self.repeats.sent = Some(now);
        // The stack only compares: the time of its own timer makes it send.
        self.endpoint
            .handle_timeout(PEER, at.max(now))
            .map_err(DtlsError::Handshake)
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.is_handshaking() {
            return None;
        }
        [self.deadline, self.repeat_at()].into_iter().flatten().min()
    }

    /// The next datagram for the peer.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.endpoint.poll_transmit().map(|transmit| transmit.message.freeze())
    }

    /// Says goodbye.
    pub fn close(&mut self, now: Instant) {
        if matches!(self.state, State::Established) {
            self.endpoint.stop(now, PEER);
        }
        self.state = State::Over;
    }

    /// Counts something that was left out.
    pub fn drop(&mut self, reason: DropReason) {
        self.guard.drop(reason);
    }

    /// What was left out so far.
    pub fn drops(&self) -> Drops {
        self.guard.drops()
    }

    fn is_handshaking(&self) -> bool {
        matches!(self.state, State::ClientHello(_) | State::Handshake)
    }
}

impl Repeats {
    /// Whether the records hold nothing but fragments that were read before; remembers those that were not.
    fn is_repeat(&mut self, records: &[u8], role: DtlsRole) -> bool {
        let mut all = is_plain_handshake(records);
        // A HelloVerifyRequest has no timer (RFC 6347 §4.2.1): until the second ClientHello the stack answers the first.
        let answers_hello = role == DtlsRole::Server && self.seen.iter().all(|(message, ..)| *message == 0);
        for fragment in fragments(records) {
            let key = (fragment.message, fragment.offset, fragment.body.len());
            let known = self.seen.contains(&key);
            if !known {
                self.seen.push(key);
            }
            all &= known && !(answers_hello && fragment.message == 0);
        }
        all
    }
}

impl ClientHello {
    /// Takes the records of a datagram. Once the ClientHello is whole, tells whether it offers AES-GCM.
    fn take(&mut self, records: Vec<u8>) -> Option<bool> {
        for fragment in fragments(&records).into_iter().filter(|f| f.kind == CLIENT_HELLO) {
            let end = fragment.offset + fragment.body.len();
            if fragment.total > MAX_MESSAGE || end > fragment.total {
                continue;
            }
            self.body.resize(fragment.total, 0);
            if let Some(place) = self.body.get_mut(fragment.offset..end) {
                place.copy_from_slice(fragment.body);
                self.received.push((fragment.offset, end));
            }
        }
        if self.held.len() < MAX_HELD {
            self.held.push(records);
        }
        self.is_whole().then(|| offers_gcm(&self.body))
    }

    fn is_whole(&mut self) -> bool {
        self.received.sort_unstable();
        let reached = self.received.iter().fold(
            0,
            |reached, (from, to)| if *from <= reached { reached.max(*to) } else { reached },
        );
        !self.body.is_empty() && reached == self.body.len()
    }
}

/// Reads the use_srtp extension (14) of a ClientHello (RFC 5246 §7.4.1.2, RFC 5764 §4.1.1). Anything unreadable offers
/// nothing; the stack will refuse it with an alert.
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

/// Splits off a vector whose length stands in its first `N` bytes.
fn skip_vector<const N: usize>(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<N>()?;
    rest.split_at_checked(length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}
