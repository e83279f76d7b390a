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
use rtc_srtp::option::{srtcp_no_replay_protection, srtp_no_replay_protection};
use rtc_srtp::protection_profile::ProtectionProfile;
use tracing::debug;

mod client_hello;
mod close_reason;
pub mod data;
pub mod dtls;
pub mod dtls_filter;
pub mod egress;
mod error;
pub mod feedback;
pub mod ice;
pub mod identity;
pub mod outbox;
pub mod padding;
mod replay;
pub mod srtp;
pub mod srtp_decryptor;
pub mod stun;

pub use close_reason::CloseReason;
use data::{DataEvent, DataSendError, DataTransport};
use dtls::{DtlsAssociation, DtlsError, DtlsProgress, SrtpKeys};
use dtls_filter::{PacketDropCounts, PacketDropReason};
pub use error::CryptoSetupError;
use ice::IceLite;
use identity::DtlsIdentity;
use replay::ReplayProtection;
use srtp::{RtpCipher, SrtpProfile};
use srtp_decryptor::{SrtpDecryptor, SrtpRejection};

use crate::media::Ssrc;
use crate::media::data_message::DataMessage;

use crate::sdp::negotiation_result::{Fingerprint, IceCredentials, RemoteTransport};

/// One peer.
pub struct Session {
    ice: IceLite,
    dtls: DtlsAssociation,
    peer_fingerprints: Vec<Fingerprint>,
    dtls_identity: Arc<DtlsIdentity>,
    srtp_contexts: Option<SrtpContexts>,
    /// `None` unless data channels were negotiated.
    data: Option<Box<DataTransport>>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<TransportEvent>,
    connect_deadline: Instant,
    /// When an authentic datagram arrived last.
    last_received_at: Instant,
    closed: bool,
}

/// Keys of both directions.
struct SrtpContexts {
    outgoing_rtp: RtpCipher,
    outgoing_rtcp: Context,
    incoming_rtcp: Context,
    /// SSRCs from which authentic RTCP came; the context keeps state for each.
    rtcp_sender_ssrcs: Vec<u32>,
    incoming_rtcp_keys: (ProtectionProfile, Vec<u8>, Vec<u8>),
    /// Which RTCP came: that of the context ends with it.
    rtcp_replay: ReplayProtection,
    incoming_rtp: LazySrtpDecryptor,
}

/// Viewers never send RTP: their receiver is made with the first packet.
enum LazySrtpDecryptor {
    Keys {
        profile: SrtpProfile,
        key: Vec<u8>,
        salt: Vec<u8>,
    },
    Receiver(Box<SrtpDecryptor>),
}

/// Nothing authentic for so long ends a session (RFC 7675 §5.1).
pub(crate) const PEER_SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// From the offer to the end of the handshake, unless configured.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

const SRTCP_INDEX_LEN: usize = 4;

/// SSRCs of one peer for which the context keeps state; it is made anew for more.
const MAX_SSRCS_PER_RTCP_CONTEXT: usize = 64;

/// Decrypted packets that wait to be polled; the owner polls after each datagram.
const MAX_PENDING_EVENTS_BEFORE_PACKET_DROP: usize = 1_024;

impl Session {
    /// Makes a session whose peer has sent nothing yet.
    ///
    /// It ends if it is not connected within `connect_timeout`.
    pub fn new(
        now: Instant,
        identity: Arc<DtlsIdentity>,
        local: IceCredentials,
        transport: RemoteTransport,
        connect_timeout: Duration,
    ) -> Self {
        Self {
            ice: IceLite::new(local, transport.remote_credentials, identity.crypto_provider.clone()),
            dtls: DtlsAssociation::new(identity.clone(), transport.gateway_dtls_role),
            peer_fingerprints: transport.fingerprints,
            dtls_identity: identity,
            srtp_contexts: None,
            data: transport
                .data_channels
                .map(|negotiated| Box::new(DataTransport::new(negotiated, transport.gateway_dtls_role))),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            connect_deadline: now + connect_timeout,
            last_received_at: now,
            closed: false,
        }
    }

    /// Takes a datagram. Its bytes may be overwritten: media is decrypted in place.
    ///
    /// The first byte distinguishes the kinds (RFC 7983 §7). Only a connectivity check is believed from an address that
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
            Some(0..=3) if ice::is_binding_request(datagram) => {
                self.handle_connectivity_check(now, from, datagram, random)
            }
            Some(_) if !self.ice.is_address_valid(now, from) => self.dtls.count_drop(PacketDropReason::UnknownAddress),
            Some(0..=3) => self.handle_check_response(now, from, datagram),
            Some(20..=63) => self.handle_dtls(now, from, datagram),
            Some(128..=191) => self.handle_srtp(now, from, datagram),
            Some(_) | None => self.dtls.count_drop(PacketDropReason::Malformed),
        }
    }

    fn handle_connectivity_check(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
        random: &mut dyn FnMut() -> u32,
    ) {
        let Ok(answered) = self.ice.handle_connectivity_check(now, from, datagram, random) else {
            return self.dtls.count_drop(PacketDropReason::InvalidConnectivityCheck);
        };
        self.last_received_at = now;
        self.events.push_back(TransportEvent::AddressLearned(from));
        self.events
            .extend(answered.evicted_address.map(TransportEvent::AddressForgotten));
        self.transmits.push_back(Transmit {
            to: from,
            payload: answered.response.into(),
        });
        if answered.destination_moved {
            self.events.push_back(TransportEvent::DestinationMoved(from));
        }
        self.queue_due_check(now);
        if let Err(error) = self.dtls.start_client_handshake(now) {
            return self.close_after_handshake_failure(now, &error);
        }
        self.queue_dtls_datagrams();
    }

    fn handle_check_response(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        if self.ice.handle_check_response(now, from, datagram).is_err() {
            return self.dtls.count_drop(PacketDropReason::InvalidConnectivityCheck);
        }
        self.last_received_at = now;
        self.events.push_back(TransportEvent::DestinationMoved(from));
    }

    fn queue_due_check(&mut self, now: Instant) {
        self.transmits
            .extend(self.ice.poll_connectivity_check(now).map(|(to, check)| Transmit {
                to,
                payload: check.into(),
            }));
    }

    fn handle_dtls(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        let mut application_data = Vec::new();
        let progress = self
            .dtls
            .handle_datagram(now, datagram, &self.peer_fingerprints, &mut application_data);
        self.queue_dtls_datagrams();
        match progress {
            Ok(DtlsProgress::Nothing) => {}
            Ok(DtlsProgress::Established(keys)) => match SrtpContexts::new(&keys, &self.dtls_identity) {
                Ok(media) => {
                    self.last_received_at = now;
                    self.ice.refresh_address_lifetime(now, from);
                    self.ice.mark_destination_validated();
                    self.srtp_contexts = Some(media);
                    self.events.push_back(TransportEvent::Connected);
                }
                Err(error) => {
                    debug!(%error, "SRTP setup failed: the session is being closed");
                    self.close(now, CloseReason::Internal);
                }
            },
            Ok(DtlsProgress::PeerClosed) => self.close(now, CloseReason::PeerClosed),
            Err(error) => self.close_after_handshake_failure(now, &error),
        }
        self.handle_application_data(now, from, application_data);
    }

    fn handle_application_data(&mut self, now: Instant, from: SocketAddr, packets: Vec<Bytes>) {
        if packets.is_empty() || !self.is_connected() {
            return;
        }
        let Some(data) = &mut self.data else { return };
        self.last_received_at = now;
        self.ice.refresh_address_lifetime(now, from);
        for packet in packets {
            data.handle_packet(now, packet);
        }
        self.drain_data_transport(now);
    }

    fn drain_data_transport(&mut self, now: Instant) {
        let Some(data) = &mut self.data else { return };
        while let Some(packet) = data.poll_packet() {
            self.dtls.send_application_data(now, &packet);
        }
        while let Some(event) = data.poll_event() {
            if self.events.len() < MAX_PENDING_EVENTS_BEFORE_PACKET_DROP {
                self.events.push_back(TransportEvent::Data(event));
            }
        }
        self.queue_dtls_datagrams();
    }

    /// Sends a message on the data channel with its label.
    ///
    /// # Errors
    ///
    /// A [`DataSendError`]; nothing is sent.
    pub fn send_data(&mut self, now: Instant, message: &DataMessage) -> Result<(), DataSendError> {
        let data = self.data.as_mut().filter(|_| !self.closed);
        data.ok_or(DataSendError::NotConnected)?.send(now, message)?;
        self.drain_data_transport(now);
        Ok(())
    }

    fn close_after_handshake_failure(&mut self, now: Instant, error: &DtlsError) {
        debug!(%error, "DTLS handshake failed: the session is being closed");
        let reason = match error {
            DtlsError::WrongCertificate => CloseReason::WrongCertificate,
            DtlsError::HandshakeTimeout => CloseReason::NoHandshake,
            DtlsError::LimitExceeded(_) | DtlsError::HandshakeFailed(_) | DtlsError::NoCommonSrtpProfile => {
                CloseReason::HandshakeFailed
            }
        };
        self.close(now, reason);
    }

    fn handle_srtp(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        let Some(media) = &mut self.srtp_contexts else {
            return self.dtls.count_drop(PacketDropReason::MediaBeforeHandshake);
        };
        // RFC 5761 §4: RTCP packet types are 192 to 223.
        let opened = match datagram.get(1) {
            Some(192..=223) => media
                .decrypt_rtcp(datagram, &self.dtls_identity)
                .map(TransportEvent::Rtcp),
            _ => media
                .decrypt_rtp(datagram, &self.dtls_identity)
                .map(TransportEvent::Rtp),
        };
        match opened {
            Ok(event) => {
                self.last_received_at = now;
                self.ice.refresh_address_lifetime(now, from);
                if self.data.is_none() {
                    self.dtls.schedule_handshake_release(now);
                }
                if self.events.len() < MAX_PENDING_EVENTS_BEFORE_PACKET_DROP {
                    self.events.push_back(event);
                }
            }
            Err(refused) => self.dtls.count_drop(match refused {
                SrtpRejection::Malformed => PacketDropReason::Malformed,
                SrtpRejection::Forged => PacketDropReason::Forged,
                SrtpRejection::Replayed => PacketDropReason::Replayed,
            }),
        }
    }

    fn queue_dtls_datagrams(&mut self) {
        while let Some(payload) = self.dtls.poll_transmit() {
            if let Some(to) = self.ice.remote_destination() {
                self.ice.require_validation_of_new_destination();
                self.transmits.push_back(Transmit { to, payload });
            }
        }
    }

    /// Begins a new ICE session beside the one that runs (RFC 9725 §4.3.3); see [`IceLite::restart`].
    pub fn restart_ice(&mut self, local: IceCredentials, remote: IceCredentials) -> Option<String> {
        self.ice.restart(local, remote)
    }

    /// The way to this address is gone: see [`IceLite::remove_address`].
    pub fn remove_address(&mut self, address: SocketAddr) {
        self.ice.remove_address(address);
    }

    /// Does what is due by time.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.closed {
            return;
        }
        if self.srtp_contexts.is_none() && now >= self.connect_deadline {
            return self.close(now, self.connect_failure_reason());
        }
        if now >= self.last_received_at + PEER_SILENCE_TIMEOUT {
            return self.close(now, CloseReason::PeerSilent);
        }
        self.queue_due_check(now);
        if let Err(error) = self.dtls.handle_timeout(now) {
            return self.close_after_handshake_failure(now, &error);
        }
        self.queue_dtls_datagrams();
        if let Some(data) = &mut self.data {
            data.handle_timeout(now);
            self.drain_data_transport(now);
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        let connect = self.srtp_contexts.is_none().then_some(self.connect_deadline);
        let data = self.data.as_ref().and_then(|data| data.poll_timeout());
        let timers = [
            self.ice.poll_connectivity_check_timeout(),
            self.dtls.poll_timeout(),
            data,
        ];
        [Some(self.last_received_at + PEER_SILENCE_TIMEOUT), connect]
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
    pub fn poll_event(&mut self) -> Option<TransportEvent> {
        self.events.pop_front()
    }

    /// Where media goes; `None` before the first check.
    pub fn remote_destination(&self) -> Option<SocketAddr> {
        self.ice.remote_destination()
    }

    /// Until when an address belongs to no other session; `None` if the peer never sent from there.
    pub(crate) fn address_reserved_until(&self, address: SocketAddr) -> Option<Instant> {
        self.ice.address_reserved_until(address)
    }

    /// Whether media may flow.
    pub fn is_connected(&self) -> bool {
        self.srtp_contexts.is_some() && !self.closed
    }

    /// What seals outgoing RTP; `None` before the handshake is over and after the end.
    pub fn outgoing_rtp_cipher(&mut self) -> Option<&mut RtpCipher> {
        self.srtp_contexts
            .as_mut()
            .filter(|_| !self.closed)
            .map(|media| &mut media.outgoing_rtp)
    }

    /// Seals a compound RTCP packet; `None` before the handshake is over and after the end.
    pub fn encrypt_rtcp(&mut self, compound: &[u8]) -> Option<Bytes> {
        let media = self.srtp_contexts.as_mut().filter(|_| !self.closed)?;
        media
            .outgoing_rtcp
            .encrypt_rtcp(compound)
            .ok()
            .map(bytes::BytesMut::freeze)
    }

    /// Ends the session: says goodbye and sends nothing after that (RFC 7675 §5.2).
    ///
    /// A client that deletes a session before it is connected has usually given up: then the reason is what was missing.
    pub fn close(&mut self, now: Instant, reason: CloseReason) {
        if self.closed {
            return;
        }
        let reason = match reason {
            CloseReason::Deleted if self.srtp_contexts.is_none() => self.connect_failure_reason(),
            reason => reason,
        };
        if let Some(data) = &mut self.data {
            data.end();
            self.drain_data_transport(now);
        }
        self.dtls.close(now);
        self.queue_dtls_datagrams();
        self.closed = true;
        self.events.push_back(TransportEvent::Closed(reason));
    }

    /// Why the session is not connected.
    fn connect_failure_reason(&self) -> CloseReason {
        match self.ice.has_received_check() {
            false => CloseReason::NoConnectivityChecks,
            true => CloseReason::NoHandshake,
        }
    }

    /// What was left out so far, by [`PacketDropReason`].
    pub fn drop_counts(&self) -> PacketDropCounts {
        self.dtls.drop_counts()
    }
}

impl SrtpContexts {
    fn new(keys: &SrtpKeys, identity: &DtlsIdentity) -> Result<Self, CryptoSetupError> {
        let crypto = identity.crypto_provider.crypto();
        let (session, failed) = (&keys.master_keys, |error: &dyn std::fmt::Display| {
            CryptoSetupError::SrtpSetup(error.to_string())
        });
        let profile = match keys.profile {
            SrtpProfile::AeadAes128Gcm => ProtectionProfile::AeadAes128Gcm,
            SrtpProfile::Aes128CmSha1_80 => ProtectionProfile::Aes128CmHmacSha1_80,
        };
        let context = |key: &[u8], salt: &[u8]| new_srtcp_context(key, salt, profile, identity).map_err(|e| failed(&e));
        let (key, salt) = (session.remote_master_key.clone(), session.remote_master_salt.clone());
        Ok(Self {
            outgoing_rtp: RtpCipher::new(
                keys.profile,
                &session.local_master_key,
                &session.local_master_salt,
                crypto,
            )
            .map_err(|e| failed(&e))?,
            outgoing_rtcp: context(&session.local_master_key, &session.local_master_salt)?,
            incoming_rtcp: context(&key, &salt)?,
            rtcp_sender_ssrcs: Vec::new(),
            incoming_rtcp_keys: (profile, key.clone(), salt.clone()),
            rtcp_replay: ReplayProtection::default(),
            incoming_rtp: LazySrtpDecryptor::Keys {
                profile: keys.profile,
                key,
                salt,
            },
        })
    }

    fn decrypt_rtp(&mut self, packet: &mut [u8], identity: &DtlsIdentity) -> Result<Bytes, SrtpRejection> {
        if let LazySrtpDecryptor::Keys { profile, key, salt } = &self.incoming_rtp {
            let cipher = RtpCipher::new(*profile, key, salt, identity.crypto_provider.crypto())
                .map_err(|_| SrtpRejection::Malformed)?;
            self.incoming_rtp = LazySrtpDecryptor::Receiver(Box::new(SrtpDecryptor::new(cipher)));
        }
        match &mut self.incoming_rtp {
            LazySrtpDecryptor::Receiver(receiver) => receiver.decrypt_in_place_and_copy(packet),
            LazySrtpDecryptor::Keys { .. } => Err(SrtpRejection::Malformed),
        }
    }

    fn decrypt_rtcp(&mut self, packet: &[u8], identity: &DtlsIdentity) -> Result<Bytes, SrtpRejection> {
        let (_, rest) = packet.split_first_chunk::<4>().ok_or(SrtpRejection::Malformed)?;
        let sender = u32::from_be_bytes(*rest.first_chunk::<4>().ok_or(SrtpRejection::Malformed)?);
        let (is_encrypted, index) =
            srtcp_e_flag_and_index(packet, self.incoming_rtcp_keys.0).ok_or(SrtpRejection::Forged)?;
        if !is_encrypted {
            return Err(SrtpRejection::Forged);
        }
        if !self.rtcp_replay.is_new_packet(Ssrc(sender), index) {
            return Err(SrtpRejection::Replayed);
        }
        if !self.rtcp_sender_ssrcs.contains(&sender) {
            // The context keeps state for each sender it is shown, forged or not: a passing one looks first.
            let (profile, key, salt) = &self.incoming_rtcp_keys;
            Context::new(key, salt, *profile, None, None, identity.crypto_provider.crypto())
                .and_then(|mut passing| passing.decrypt_rtcp(packet))
                .map_err(|_| SrtpRejection::Forged)?;
            if self.rtcp_sender_ssrcs.len() >= MAX_SSRCS_PER_RTCP_CONTEXT {
                // The context cannot forget a single one of them.
                self.incoming_rtcp =
                    new_srtcp_context(key, salt, *profile, identity).map_err(|_| SrtpRejection::Forged)?;
                self.rtcp_sender_ssrcs.clear();
            }
            self.rtcp_sender_ssrcs.push(sender);
        }
        let opened = self
            .incoming_rtcp
            .decrypt_rtcp(packet)
            .map_err(|_| SrtpRejection::Forged)?;
        self.rtcp_replay.mark_received(Ssrc(sender), index);
        Ok(opened.freeze())
    }
}

/// A context for RTP or RTCP in one direction. Replayed packets are found by [`ReplayProtection`].
fn new_srtcp_context(
    key: &[u8],
    salt: &[u8],
    profile: ProtectionProfile,
    identity: &DtlsIdentity,
) -> Result<Context, rtc_shared::error::Error> {
    let (srtp, srtcp) = (srtp_no_replay_protection(), srtcp_no_replay_protection());
    Context::new(
        key,
        salt,
        profile,
        Some(srtp),
        Some(srtcp),
        identity.crypto_provider.crypto(),
    )
}

/// Returns the flag E of an SRTCP packet, and its index (RFC 3711 §3.4); `None` if it is too short. The flag is set on
/// everything in WebRTC (RFC 8827 §6.5). The stack returns a packet without it unchanged, not even authenticated.
fn srtcp_e_flag_and_index(packet: &[u8], profile: ProtectionProfile) -> Option<(bool, u64)> {
    let tail = SRTCP_INDEX_LEN + profile.rtcp_auth_tag_len();
    let word = packet
        .get(packet.len().checked_sub(tail)?..)?
        .first_chunk::<SRTCP_INDEX_LEN>()?;
    let word = u32::from_be_bytes(*word);
    Some((word >> 31 == 1, u64::from(word & 0x7fff_ffff)))
}

/// A datagram to be sent.
#[derive(Debug)]
pub struct Transmit {
    pub to: SocketAddr,
    pub payload: Bytes,
}

/// What a session tells its owner.
#[derive(Debug)]
pub enum TransportEvent {
    /// This address was authenticated by a connectivity check: datagrams from it belong to this session.
    AddressLearned(SocketAddr),
    /// Datagrams from this address no longer do: there are newer ones.
    AddressForgotten(SocketAddr),
    /// From now on datagrams go to this address.
    DestinationMoved(SocketAddr),
    /// The handshake is over, the fingerprint matched, media may flow.
    Connected,
    /// A decrypted RTP packet that passed authentication and replay check.
    Rtp(Bytes),
    /// A decrypted compound RTCP packet.
    Rtcp(Bytes),
    /// Something happened on the data channels.
    Data(DataEvent),
    /// The session is over; nothing follows.
    Closed(CloseReason),
}
