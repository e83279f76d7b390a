//! One peer: ICE-lite, DTLS and SRTP composed into one sans-IO machine.
//!
//! Bytes and time go in by `handle_*`; datagrams, events and the next deadline come out by `poll_*`. Nothing here reads a
//! clock or a socket. A session does not know whether its peer publishes or watches.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rtc_srtp::context::Context;
use rtc_srtp::option::{srtcp_replay_protection, srtp_no_replay_protection};
use rtc_srtp::protection_profile::ProtectionProfile;
use tracing::debug;

pub mod dtls;
pub mod egress;
mod error;
pub mod feedback;
pub mod guard;
pub mod ice;
pub mod identity;
pub mod outbox;
pub mod padding;
pub mod receiver;
pub mod srtp;
pub mod stun;

use dtls::{Dtls, DtlsError, Keys, Progress};
pub use error::SessionError;
use guard::{DropReason, Drops};
use ice::IceLite;
use identity::Identity;
use receiver::{Refused, RtpReceiver};
use srtp::{Profile, RtpCipher};

use crate::sdp::plan::{Fingerprint, IceCredentials, Transport};

/// One peer.
pub struct Session {
    ice: IceLite,
    dtls: Dtls,
    fingerprints: Vec<Fingerprint>,
    identity: Arc<Identity>,
    media: Option<Media>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    opened: Instant,
    /// When something authentic was heard last.
    heard: Instant,
    closed: bool,
}

/// Keys of both directions.
struct Media {
    cipher: RtpCipher,
    rtcp_out: Context,
    rtcp_in: Context,
    /// SSRCs from which authentic RTCP came; the context keeps state for each.
    rtcp_sources: Vec<u32>,
    rtcp_keys: (ProtectionProfile, Vec<u8>, Vec<u8>),
    rtp_in: RtpIn,
}

/// Viewers never send RTP: their receiver is made with the first packet.
enum RtpIn {
    Keys {
        profile: Profile,
        key: Vec<u8>,
        salt: Vec<u8>,
    },
    Receiver(Box<RtpReceiver>),
}

/// Nothing authentic for so long ends a session (RFC 7675 §5.1).
pub const SILENCE: Duration = Duration::from_secs(30);

/// From the offer to the end of the handshake.
pub const CONNECT_TIME: Duration = Duration::from_secs(15);

/// RTCP is rare: a second of it fits.
const SRTCP_REPLAY_WINDOW: usize = 1_024;

const SRTCP_INDEX_LEN: usize = 4;

/// SSRCs of one peer from which RTCP is taken; more make it forget them all.
const MAX_RTCP_SOURCES: usize = 64;

/// Decrypted packets that wait to be polled; the owner polls after each datagram.
const MAX_EVENTS: usize = 1_024;

impl Session {
    /// Makes a session whose peer has not been heard yet.
    pub fn new(now: Instant, identity: Arc<Identity>, local: IceCredentials, transport: Transport) -> Self {
        Self {
            ice: IceLite::new(local, transport.remote, identity.provider.clone()),
            dtls: Dtls::new(identity.clone(), transport.role),
            fingerprints: transport.fingerprints,
            identity,
            media: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            opened: now,
            heard: now,
            closed: false,
        }
    }

    /// Takes a datagram. Its bytes may be overwritten: media is decrypted in place.
    ///
    /// Kinds are told apart by the first byte (RFC 7983 §7). Only a connectivity check is believed from an address that
    /// ICE has not authenticated (invariant 7). `random` has to be unpredictable.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &mut [u8],
        random: &mut dyn FnMut() -> u32,
    ) {
        if self.closed {
            return;
        }
        match datagram.first() {
            Some(0..=3) if ice::is_check(datagram) => self.handle_check(now, from, datagram, random),
            Some(_) if !self.ice.is_valid(now, from) => self.dtls.drop(DropReason::UnknownAddress),
            Some(0..=3) => self.handle_response(now, from, datagram),
            Some(20..=63) => self.handle_dtls(now, from, datagram),
            Some(128..=191) => self.handle_media(now, from, datagram),
            Some(_) | None => self.dtls.drop(DropReason::Malformed),
        }
    }

    fn handle_check(&mut self, now: Instant, from: SocketAddr, datagram: &[u8], random: &mut dyn FnMut() -> u32) {
        let Ok(answered) = self.ice.handle_check(now, from, datagram, random) else {
            return self.dtls.drop(DropReason::Check);
        };
        self.heard = now;
        self.events.push_back(Event::AddressLearned(from));
        self.events.extend(answered.forgotten.map(Event::AddressForgotten));
        self.transmits.push_back(Transmit {
            to: from,
            payload: answered.response.into(),
        });
        if answered.moved {
            self.events.push_back(Event::Moved(from));
        }
        self.send_check(now);
        if let Err(error) = self.dtls.begin(now) {
            return self.fail(now, &error);
        }
        self.send_flights();
    }

    fn handle_response(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        if self.ice.handle_response(now, from, datagram).is_err() {
            return self.dtls.drop(DropReason::Check);
        }
        self.heard = now;
        self.events.push_back(Event::Moved(from));
    }

    fn send_check(&mut self, now: Instant) {
        self.transmits
            .extend(self.ice.poll_check(now).map(|(to, check)| Transmit {
                to,
                payload: check.into(),
            }));
    }

    fn handle_dtls(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        let progress = self.dtls.handle_datagram(now, datagram, &self.fingerprints);
        self.send_flights();
        match progress {
            Ok(Progress::Nothing) => {}
            Ok(Progress::Established(keys)) => match Media::new(&keys, &self.identity) {
                Ok(media) => {
                    self.heard = now;
                    self.ice.refresh(now, from);
                    self.ice.prove_destination();
                    self.media = Some(media);
                    self.events.push_back(Event::Connected);
                }
                Err(error) => {
                    debug!(%error, "cannot set up SRTP");
                    self.close(now, CloseReason::Internal);
                }
            },
            Ok(Progress::PeerClosed) => self.close(now, CloseReason::PeerClosed),
            Err(error) => self.fail(now, &error),
        }
    }

    fn fail(&mut self, now: Instant, error: &DtlsError) {
        debug!(%error, "handshake failed");
        let reason = match error {
            DtlsError::WrongCertificate => CloseReason::WrongCertificate,
            DtlsError::TooSlow => CloseReason::NoHandshake,
            DtlsError::Limit(_) | DtlsError::Handshake(_) | DtlsError::NoProfile => CloseReason::HandshakeFailed,
        };
        self.close(now, reason);
    }

    fn handle_media(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        let Some(media) = &mut self.media else {
            return self.dtls.drop(DropReason::Early);
        };
        // RFC 5761 §4: RTCP packet types are 192 to 223.
        let opened = match datagram.get(1) {
            Some(192..=223) => media.open_rtcp(datagram, &self.identity).map(Event::Rtcp),
            _ => media.open_rtp(datagram, &self.identity).map(Event::Rtp),
        };
        match opened {
            Ok(event) => {
                self.heard = now;
                self.ice.refresh(now, from);
                if self.events.len() < MAX_EVENTS {
                    self.events.push_back(event);
                }
            }
            Err(refused) => self.dtls.drop(match refused {
                Refused::Malformed => DropReason::Malformed,
                Refused::Forged => DropReason::Forged,
                Refused::Replayed => DropReason::Replayed,
            }),
        }
    }

    fn send_flights(&mut self) {
        while let Some(payload) = self.dtls.poll_transmit() {
            if let Some(to) = self.ice.destination() {
                self.ice.settle();
                self.transmits.push_back(Transmit { to, payload });
            }
        }
    }

    /// Begins a new ICE session beside the one that runs (RFC 9725 §4.3.3); see [`IceLite::restart`].
    pub fn restart_ice(&mut self, local: IceCredentials, remote: IceCredentials) -> Option<String> {
        self.ice.restart(local, remote)
    }

    /// The way to this address is gone: see [`IceLite::lose`].
    pub fn lose_address(&mut self, address: SocketAddr) {
        self.ice.lose(address);
    }

    /// Does what is due by time.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.closed {
            return;
        }
        if self.media.is_none() && now >= self.opened + CONNECT_TIME {
            return self.close(now, self.not_connected());
        }
        if now >= self.heard + SILENCE {
            return self.close(now, CloseReason::Silent);
        }
        self.send_check(now);
        if let Err(error) = self.dtls.handle_timeout(now) {
            return self.fail(now, &error);
        }
        self.send_flights();
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        let connect = self.media.is_none().then(|| self.opened + CONNECT_TIME);
        let timers = [self.ice.poll_timeout(), self.dtls.poll_timeout()];
        [Some(self.heard + SILENCE), connect]
            .into_iter()
            .chain(timers)
            .flatten()
            .min()
    }

    /// The next datagram to be sent.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing that the owner has to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Where media goes; `None` before the first check.
    pub fn destination(&self) -> Option<SocketAddr> {
        self.ice.destination()
    }

    /// Until when an address belongs to no other session; `None` if the peer was never heard there.
    pub fn held_until(&self, address: SocketAddr) -> Option<Instant> {
        self.ice.held_until(address)
    }

    /// Whether media may flow.
    pub fn is_connected(&self) -> bool {
        self.media.is_some() && !self.closed
    }

    /// What seals outgoing RTP; `None` before the handshake is over and after the end.
    pub fn sealer(&mut self) -> Option<&mut RtpCipher> {
        self.media
            .as_mut()
            .filter(|_| !self.closed)
            .map(|media| &mut media.cipher)
    }

    /// Seals a compound RTCP packet; `None` before the handshake is over and after the end.
    pub fn seal_rtcp(&mut self, compound: &[u8]) -> Option<Bytes> {
        let media = self.media.as_mut().filter(|_| !self.closed)?;
        media.rtcp_out.encrypt_rtcp(compound).ok().map(bytes::BytesMut::freeze)
    }

    /// Ends the session: says goodbye and sends nothing after that (RFC 7675 §5.2).
    ///
    /// A client that deletes a session before it is connected has usually given up: then the reason is what was missing.
    pub fn close(&mut self, now: Instant, reason: CloseReason) {
        if self.closed {
            return;
        }
        let reason = match reason {
            CloseReason::Deleted if self.media.is_none() => self.not_connected(),
            reason => reason,
        };
        self.dtls.close(now);
        self.send_flights();
        self.closed = true;
        self.events.push_back(Event::Closed(reason));
    }

    /// Why the session is not connected.
    fn not_connected(&self) -> CloseReason {
        match self.ice.has_heard() {
            false => CloseReason::NoChecks,
            true => CloseReason::NoHandshake,
        }
    }

    /// What was left out so far, by [`DropReason`].
    pub fn drops(&self) -> Drops {
        self.dtls.drops()
    }
}

impl Media {
    fn new(keys: &Keys, identity: &Identity) -> Result<Self, SessionError> {
        let crypto = identity.provider.crypto();
        let (session, failed) = (&keys.session, |error: &dyn std::fmt::Display| {
            SessionError::Srtp(error.to_string())
        });
        let profile = match keys.profile {
            Profile::AeadAes128Gcm => ProtectionProfile::AeadAes128Gcm,
            Profile::Aes128CmSha1_80 => ProtectionProfile::Aes128CmHmacSha1_80,
        };
        let context = |key: &[u8], salt: &[u8]| context(key, salt, profile, identity).map_err(|e| failed(&e));
        let (key, salt) = (session.remote_master_key.clone(), session.remote_master_salt.clone());
        Ok(Self {
            cipher: RtpCipher::new(
                keys.profile,
                &session.local_master_key,
                &session.local_master_salt,
                crypto,
            )
            .map_err(|e| failed(&e))?,
            rtcp_out: context(&session.local_master_key, &session.local_master_salt)?,
            rtcp_in: context(&key, &salt)?,
            rtcp_sources: Vec::new(),
            rtcp_keys: (profile, key.clone(), salt.clone()),
            rtp_in: RtpIn::Keys {
                profile: keys.profile,
                key,
                salt,
            },
        })
    }

    fn open_rtp(&mut self, packet: &mut [u8], identity: &Identity) -> Result<Bytes, Refused> {
        if let RtpIn::Keys { profile, key, salt } = &self.rtp_in {
            let cipher =
                RtpCipher::new(*profile, key, salt, identity.provider.crypto()).map_err(|_| Refused::Malformed)?;
            self.rtp_in = RtpIn::Receiver(Box::new(RtpReceiver::new(cipher)));
        }
        match &mut self.rtp_in {
            RtpIn::Receiver(receiver) => receiver.open(packet),
            RtpIn::Keys { .. } => Err(Refused::Malformed),
        }
    }

    fn open_rtcp(&mut self, packet: &[u8], identity: &Identity) -> Result<Bytes, Refused> {
        let (_, rest) = packet.split_first_chunk::<4>().ok_or(Refused::Malformed)?;
        let sender = u32::from_be_bytes(*rest.first_chunk::<4>().ok_or(Refused::Malformed)?);
        if !says_encrypted(packet, self.rtcp_keys.0) {
            return Err(Refused::Forged);
        }
        if !self.rtcp_sources.contains(&sender) {
            // The context keeps state for each sender it is shown, forged or not: a passing one looks first.
            let (profile, key, salt) = &self.rtcp_keys;
            Context::new(key, salt, *profile, None, None, identity.provider.crypto())
                .and_then(|mut passing| passing.decrypt_rtcp(packet))
                .map_err(|_| Refused::Forged)?;
            if self.rtcp_sources.len() >= MAX_RTCP_SOURCES {
                // The context cannot forget a single one of them.
                self.rtcp_in = context(key, salt, *profile, identity).map_err(|_| Refused::Forged)?;
                self.rtcp_sources.clear();
            }
            self.rtcp_sources.push(sender);
        }
        let opened = self.rtcp_in.decrypt_rtcp(packet).map(bytes::BytesMut::freeze);
        opened.map_err(|error| match error {
            rtc_shared::error::Error::SrtcpSsrcDuplicated(..) => Refused::Replayed,
            _ => Refused::Forged,
        })
    }
}

/// A context for RTP or RTCP in one direction.
fn context(
    key: &[u8],
    salt: &[u8],
    profile: ProtectionProfile,
    identity: &Identity,
) -> Result<Context, rtc_shared::error::Error> {
    let replay = Some(srtcp_replay_protection(SRTCP_REPLAY_WINDOW));
    let no_replay = Some(srtp_no_replay_protection());
    Context::new(key, salt, profile, no_replay, replay, identity.provider.crypto())
}

/// Whether the flag E before the index of an SRTCP packet is set (RFC 3711 §3.4), as it is on everything in WebRTC
/// (RFC 8827 §6.5). The stack gives back a packet without it as it is, not even authenticated.
fn says_encrypted(packet: &[u8], profile: ProtectionProfile) -> bool {
    let tail = SRTCP_INDEX_LEN + profile.rtcp_auth_tag_len();
    let flags = packet.len().checked_sub(tail).and_then(|at| packet.get(at));
    flags.is_some_and(|flags| flags & 0x80 != 0)
}

/// A datagram to be sent.
#[derive(Debug)]
pub struct Transmit {
    pub to: SocketAddr,
    pub payload: Bytes,
}

/// What a session tells its owner.
#[derive(Debug)]
pub enum Event {
    /// This address was authenticated by a connectivity check: datagrams from it belong to this session.
    AddressLearned(SocketAddr),
    /// Datagrams from this address no longer do: there are newer ones.
    AddressForgotten(SocketAddr),
    /// From now on datagrams go to this address.
    Moved(SocketAddr),
    /// The handshake is over, the fingerprint matched, media may flow.
    Connected,
    /// A decrypted RTP packet that passed authentication and replay check.
    Rtp(Bytes),
    /// A decrypted compound RTCP packet.
    Rtcp(Bytes),
    /// The session is over; nothing follows.
    Closed(CloseReason),
}

/// Why a session ended. Shown in the log, the API and the player; a label of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// DELETE on the session URL of a connected session.
    Deleted,
    /// The peer sent a DTLS close_notify.
    PeerClosed,
    /// Nothing authentic was heard for 30 s (RFC 7675 §5.1).
    Silent,
    /// No connectivity check arrived in time, or before the client gave up: it cannot reach the addresses that it was
    /// given.
    NoChecks,
    /// Checks arrived, and no handshake was complete in time, or before the client gave up.
    NoHandshake,
    /// The peer's certificate does not match its fingerprint.
    WrongCertificate,
    /// The handshake failed or broke a limit of the guard.
    HandshakeFailed,
    /// Another publisher took the stream over.
    TakenOver,
    /// The token that it was opened with has expired.
    TokenExpired,
    /// The configuration no longer gives what it was opened with.
    TokenRevoked,
    /// Ended by the API.
    Kicked,
    /// It had sent no check, and a newer session needed its place.
    Evicted,
    /// The gateway is stopping.
    Shutdown,
    /// Our own fault.
    Internal,
}

impl CloseReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 14] = [
        Self::Deleted,
        Self::PeerClosed,
        Self::Silent,
        Self::NoChecks,
        Self::NoHandshake,
        Self::WrongCertificate,
        Self::HandshakeFailed,
        Self::TakenOver,
        Self::TokenExpired,
        Self::TokenRevoked,
        Self::Kicked,
        Self::Evicted,
        Self::Shutdown,
        Self::Internal,
    ];

    /// What it means, and what can be done about it, where somebody can.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::Deleted => "the client ended it",
            Self::PeerClosed => "the client closed its connection",
            Self::Silent => "nothing came from the client for 30 s: its network was lost, or it has crashed",
            Self::NoChecks => {
                "no connectivity check arrived: unless it left at once, the client cannot reach the addresses that it was given; open the media \
                 port (UDP and TCP), announce the outer address (webrtc.announce), or give it a TURN server (ice.servers)"
            }
            Self::NoHandshake => {
                "connectivity checks arrived, and no DTLS handshake: something on the way lets only small packets \
                 through, or the client has given up"
            }
            Self::WrongCertificate => "the client's certificate is not the one of its fingerprint in the offer",
            Self::HandshakeFailed => "the DTLS handshake failed",
            Self::TakenOver => "another publisher took the stream over",
            Self::TokenExpired => "its token has expired",
            Self::TokenRevoked => "its token is no longer in force",
            Self::Kicked => "it was ended by the API",
            Self::Evicted => {
                "it had sent no connectivity check, and a newer session took its place: too many were being set up at the \
                 same time (limits.half_open_sessions, limits.half_open_per_address)"
            }
            Self::Shutdown => "the gateway is stopping",
            Self::Internal => "a bug of the gateway: please report it with its log",
        }
    }

    /// Whether an operator should look at it.
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Self::NoChecks | Self::NoHandshake | Self::WrongCertificate | Self::HandshakeFailed | Self::Internal
        )
    }

    /// Whether the connection was not established in time, or before the client gave up.
    pub fn is_not_connected(self) -> bool {
        matches!(self, Self::NoChecks | Self::NoHandshake)
    }

    /// Label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::PeerClosed => "peer_closed",
            Self::Silent => "silent",
            Self::NoChecks => "no_checks",
            Self::NoHandshake => "no_handshake",
            Self::WrongCertificate => "wrong_certificate",
            Self::HandshakeFailed => "handshake_failed",
            Self::TakenOver => "taken_over",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
            Self::Kicked => "kicked",
            Self::Evicted => "evicted",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
        }
    }
}
