//! DTLS handshake of one session, as client or server, behind the guard (RFC 5764, RFC 8842).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rtc_dtls::endpoint::{Endpoint, EndpointEvent};
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;
use rtc_dtls::state::State;
use rtc_shared::TransportProtocol;
use rtc_srtp::config::{Config, LABEL_EXTRACTOR_DTLS_SRTP, SessionKeys};
use rtc_srtp::protection_profile::ProtectionProfile;

use super::client_hello::{ClientHelloAssembler, MAX_DATAGRAMS_BUFFERED_FOR_HELLO};
use super::dtls_filter::{
    self, DtlsRecordFilter, PacketDropCounts, PacketDropReason, handshake_fragments, has_only_plain_handshake_records,
};
use super::identity::{DtlsIdentity, compute_certificate_fingerprint};
use super::srtp::SrtpProfile;
use crate::sdp::negotiation_result::{DtlsRole, Fingerprint};

/// State of one DTLS handshake and of the association that it establishes.
pub struct DtlsAssociation {
    endpoint: Endpoint,
    identity: Arc<DtlsIdentity>,
    role: DtlsRole,
    guard: DtlsRecordFilter,
    state: DtlsState,
    /// Deadline of the whole handshake, counted from its first record.
    handshake_deadline: Option<Instant>,
    flight_retransmission: HandshakeRetransmissionTracker,
    /// Whether the peer's ChangeCipherSpec was read.
    received_change_cipher_spec: bool,
    /// When the stack's memory of the handshake is released.
    release_at: Option<Instant>,
    /// It was: the stack can no longer read handshake records.
    is_handshake_released: bool,
}

/// Retransmission of our flight, and the fragments that the peer has sent so far.
///
/// The DTLS stack stops its retransmission timer with every handshake message that it reads, even a repeated one. A
/// repeated message would therefore keep a lost flight from ever being sent again, so the stack must not see it. A
/// repeat indicates that our flight was lost; it is answered by sending the flight again (RFC 6347 §4.2.4).
#[derive(Default)]
struct HandshakeRetransmissionTracker {
    /// Message sequence number, offset and length of the fragments read so far; bounded by the guard.
    received_fragments: Vec<(u16, usize, usize)>,
    flight_sent_at: Option<Instant>,
    retransmission_count: u32,
}

enum DtlsState {
    /// The ClientHello is still incomplete; the protection profiles that it offers decide our configuration.
    AwaitingClientHello(Box<ClientHelloAssembler>),
    /// We are the client and the ServerHello has not arrived yet. Holds the datagrams that overtook it: the stack accepts
    /// the rest of the server's flight in any order, but fails the handshake if it does not see the ServerHello first.
    AwaitingServerHello(Vec<Vec<u8>>),
    Handshake,
    Established,
    /// Established, without the stack: keys and sequence numbers as the stack serializes them, until it is needed again.
    Dormant(Vec<u8>),
    Closed,
}

/// Result of handling a datagram.
#[derive(Debug)]
pub enum DtlsProgress {
    Nothing,
    /// The handshake is complete and the peer's certificate matches its fingerprint.
    Established(Box<SrtpKeys>),
    /// The peer sent a close_notify alert.
    PeerClosed,
}

/// Master keys and salts of both directions.
#[derive(Debug)]
pub struct SrtpKeys {
    pub profile: SrtpProfile,
    pub master_keys: SessionKeys,
}

/// Why the session must be closed.
#[derive(Debug, thiserror::Error)]
pub enum DtlsError {
    #[error(transparent)]
    LimitExceeded(#[from] super::dtls_filter::DtlsLimitExceeded),
    #[error("the DTLS handshake failed: {0}")]
    HandshakeFailed(#[source] rtc_shared::error::Error),
    #[error("the DTLS handshake took longer than {DTLS_HANDSHAKE_TIMEOUT:?}")]
    HandshakeTimeout,
    #[error("the gateway and the peer have no SRTP protection profile in common")]
    NoCommonSrtpProfile,
    #[error("the peer's DTLS certificate does not match the fingerprint in its SDP")]
    WrongCertificate,
}

/// The stack keys associations by address. This placeholder never changes, whichever path the datagrams take.
const PLACEHOLDER_PEER_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

/// Time limit from the first record to the last. FFmpeg gives up after 5 s, browsers after 30 s.
pub(crate) const DTLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

const SERVER_HELLO: u8 = 2;
const HELLO_VERIFY_REQUEST: u8 = 3;

const CONTENT_TYPE_CHANGE_CIPHER_SPEC: u8 = 20;
const CONTENT_TYPE_HANDSHAKE: u8 = 22;

/// A ChangeCipherSpec record of DTLS 1.2 (RFC 6347 §4.1, RFC 5246 §7.1), with a sequence number that no peer reaches.
const SYNTHETIC_CHANGE_CIPHER_SPEC: [u8; 14] = [
    CONTENT_TYPE_CHANGE_CIPHER_SPEC,
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

/// How long after the peer's first SRTP packet the stack's memory of the handshake is kept: repeats of its last flight may
/// still be on their way.
const HANDSHAKE_RETENTION: Duration = Duration::from_secs(3);

/// Wait before the first retransmission of a flight; doubled after each one.
const INITIAL_RETRANSMIT_DELAY: Duration = Duration::from_millis(200);

/// Maximum number of doublings: the longest wait is 3.2 s.
const MAX_RETRANSMIT_DOUBLINGS: u32 = 4;

/// A repeat from the peer is answered at once, unless our flight was sent less than this long ago.
const MIN_RETRANSMIT_SPACING: Duration = Duration::from_millis(50);

/// The stack gives up at the eighth retransmission; here the deadline decides when a handshake has taken too long.
const MAX_FLIGHT_RETRANSMISSIONS: u32 = 7;

impl DtlsAssociation {
    /// Creates a handshake that has not started.
    pub fn new(identity: Arc<DtlsIdentity>, role: DtlsRole) -> Self {
        let state = match role {
            DtlsRole::Server => DtlsState::AwaitingClientHello(Box::default()),
            DtlsRole::Client => DtlsState::AwaitingServerHello(Vec::new()),
        };
        Self {
            endpoint: Self::new_endpoint(),
            identity,
            role,
            guard: DtlsRecordFilter::default(),
            state,
            handshake_deadline: None,
            flight_retransmission: HandshakeRetransmissionTracker::default(),
            received_change_cipher_spec: false,
            release_at: None,
            is_handshake_released: false,
        }
    }

    fn new_endpoint() -> Endpoint {
        Endpoint::new(PLACEHOLDER_PEER_ADDRESS, TransportProtocol::UDP, None)
    }

    /// Starts the handshake if we are the client. Called once a destination is known; further calls do nothing.
    ///
    /// # Errors
    ///
    /// [`DtlsError::HandshakeFailed`] from the stack.
    pub(crate) fn start_client_handshake(&mut self, now: Instant) -> Result<(), DtlsError> {
        if self.role == DtlsRole::Server || self.handshake_deadline.is_some() {
            return Ok(());
        }
        self.handshake_deadline = Some(now + DTLS_HANDSHAKE_TIMEOUT);
        self.flight_retransmission.flight_sent_at = Some(now);
        self.endpoint
            .connect(now, PLACEHOLDER_PEER_ADDRESS, self.identity.client_config.clone(), None)
            .map_err(DtlsError::HandshakeFailed)
    }

    /// Handles a datagram. `fingerprints` are those that the peer signalled. Application data is appended to
    /// `application_data`, record by record; it may arrive together with the end of the handshake.
    ///
    /// # Errors
    ///
    /// [`DtlsError`]: the session must be closed.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        datagram: &[u8],
        fingerprints: &[Fingerprint],
        application_data: &mut Vec<Bytes>,
    ) -> Result<DtlsProgress, DtlsError> {
        let mut records = self.guard.filter_datagram(datagram)?;
        if self.is_handshake_released {
            records = dtls_filter::remove_handshake_records(&records);
        }
        if records.is_empty() || matches!(self.state, DtlsState::Closed) {
            return Ok(DtlsProgress::Nothing);
        }
        self.restore_stack(now);
        self.handshake_deadline.get_or_insert(now + DTLS_HANDSHAKE_TIMEOUT);
        let ready = match &mut self.state {
            DtlsState::AwaitingClientHello(hello) => match hello.add_records_and_check_gcm_offer(records) {
                None => return Ok(DtlsProgress::Nothing),
                Some(offers_gcm) => {
                    let buffered = std::mem::take(&mut hello.buffered_datagrams);
                    let identity = &self.identity;
                    let config = if offers_gcm {
                        &identity.server_gcm_config
                    } else {
                        &identity.server_cm_config
                    };
                    self.endpoint.set_server_config(Some(config.clone()));
                    self.state = DtlsState::Handshake;
                    buffered
                }
            },
            DtlsState::AwaitingServerHello(buffered) => {
                let begins = |kind| matches!(kind, SERVER_HELLO | HELLO_VERIFY_REQUEST);
                if has_only_plain_handshake_records(&records)
                    && !handshake_fragments(&records).iter().any(|f| begins(f.kind))
                {
                    if buffered.len() < MAX_DATAGRAMS_BUFFERED_FOR_HELLO {
                        buffered.push(records);
                    }
                    return Ok(DtlsProgress::Nothing);
                }
                let buffered = std::mem::take(buffered);
                self.state = DtlsState::Handshake;
                std::iter::once(records).chain(buffered).collect()
            }
            DtlsState::Handshake | DtlsState::Established | DtlsState::Dormant(_) | DtlsState::Closed => vec![records],
        };
        for datagram in ready {
            match self.pass_records_to_stack(now, &datagram, fingerprints, application_data)? {
                DtlsProgress::Nothing => {}
                progress => return Ok(progress),
            }
        }
        Ok(DtlsProgress::Nothing)
    }

    fn pass_records_to_stack(
        &mut self,
        now: Instant,
        records: &[u8],
        fingerprints: &[Fingerprint],
        application_data: &mut Vec<Bytes>,
    ) -> Result<DtlsProgress, DtlsError> {
        if matches!(self.state, DtlsState::Handshake)
            && self
                .flight_retransmission
                .record_and_detect_peer_retransmission(records, self.role)
        {
            if self
                .flight_retransmission
                .flight_sent_at
                .is_none_or(|sent| now >= sent + MIN_RETRANSMIT_SPACING)
            {
                self.retransmit_flight(now)?;
            }
            return Ok(DtlsProgress::Nothing);
        }
        let mut datagram = BytesMut::new();
        if self.detect_missed_change_cipher_spec(records) {
            datagram.extend_from_slice(&SYNTHETIC_CHANGE_CIPHER_SPEC);
        }
        datagram.extend_from_slice(records);
        let before = self.endpoint.poll_timeout(&PLACEHOLDER_PEER_ADDRESS);
        let result = self.endpoint.read(now, PLACEHOLDER_PEER_ADDRESS, None, datagram);
        let after = self.endpoint.poll_timeout(&PLACEHOLDER_PEER_ADDRESS);
        if after.is_some() && after != before {
            self.flight_retransmission.flight_sent_at = Some(now);
            self.flight_retransmission.retransmission_count = 0;
        }
        let events = match (result, &self.state) {
            (Ok(events), _) => events,
            // An established association survives records that the stack cannot read: anyone on the path can inject
            // them.
            (Err(_), DtlsState::Established) => {
                self.guard.count_drop(PacketDropReason::Malformed);
                return Ok(DtlsProgress::Nothing);
            }
            (Err(error), _) => return Err(DtlsError::HandshakeFailed(error)),
        };
        let mut progress = DtlsProgress::Nothing;
        for event in events {
            match event {
                EndpointEvent::HandshakeComplete => {
                    let keys = self.verify_and_export_keys(fingerprints)?;
                    self.state = DtlsState::Established;
                    self.guard.mark_established();
                    progress = DtlsProgress::Established(Box::new(keys));
                }
                EndpointEvent::PeerClosed => {
                    self.state = DtlsState::Closed;
                    return Ok(DtlsProgress::PeerClosed);
                }
                EndpointEvent::ApplicationData(data) => application_data.push(data.freeze()),
                _ => {}
            }
        }
        Ok(progress)
    }

    /// Sends application data in a record of its own, if the handshake is complete.
    pub(crate) fn send_application_data(&mut self, now: Instant, data: &[u8]) {
        if matches!(self.state, DtlsState::Established) {
            // It fails only if there is no association, and then there is nobody to tell.
            let _ = self.endpoint.write(now, PLACEHOLDER_PEER_ADDRESS, data);
        }
    }

    /// Returns whether the server's Finished has arrived without its ChangeCipherSpec, which was lost or overtaken.
    ///
    /// FFmpeg 9.0.2 sends ChangeCipherSpec in a datagram of its own and never retransmits its last flight. The record is
    /// not authenticated and carries no information beyond the epoch of the records that follow it, so it can be supplied.
    fn detect_missed_change_cipher_spec(&mut self, records: &[u8]) -> bool {
        if self.role != DtlsRole::Client || !matches!(self.state, DtlsState::Handshake) {
            return false;
        }
        let kinds = dtls_filter::dtls_record_types_and_epochs(records);
        let changes = kinds
            .iter()
            .any(|(content, _)| *content == CONTENT_TYPE_CHANGE_CIPHER_SPEC);
        let is_missed = !changes && !self.received_change_cipher_spec && kinds.contains(&(CONTENT_TYPE_HANDSHAKE, 1));
        self.received_change_cipher_spec |= changes || is_missed;
        is_missed
    }

    /// The certificate has to match a signalled fingerprint before a key is used (RFC 8827 §6.5).
    fn verify_and_export_keys(&self, fingerprints: &[Fingerprint]) -> Result<SrtpKeys, DtlsError> {
        let state = self
            .endpoint
            .get_connection_state(PLACEHOLDER_PEER_ADDRESS)
            .ok_or(DtlsError::WrongCertificate)?;
        let certificate = state.peer_certificates.first().ok_or(DtlsError::WrongCertificate)?;
        if !fingerprints
            .iter()
            .any(|f| compute_certificate_fingerprint(certificate, f.hash_function) == *f)
        {
            return Err(DtlsError::WrongCertificate);
        }
        let (profile, stack_profile) = match state.srtp_protection_profile() {
            SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm => {
                (SrtpProfile::AeadAes128Gcm, ProtectionProfile::AeadAes128Gcm)
            }
            SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80 => {
                (SrtpProfile::Aes128CmSha1_80, ProtectionProfile::Aes128CmHmacSha1_80)
            }
            _ => return Err(DtlsError::NoCommonSrtpProfile),
        };
        let mut config = Config {
            profile: stack_profile,
            ..Default::default()
        };
        let material = state
            .export_keying_material(LABEL_EXTRACTOR_DTLS_SRTP, &[], config.keying_material_len())
            .map_err(DtlsError::HandshakeFailed)?;
        config
            .set_session_keys_from_keying_material(material.as_ref(), self.role == DtlsRole::Client)
            .map_err(DtlsError::HandshakeFailed)?;
        Ok(SrtpKeys {
            profile,
            master_keys: config.keys,
        })
    }

    /// The peer has sent an authentic SRTP packet, so it has completed the handshake: what the stack keeps of it, three
    /// quarters of its memory, is released soon. Called only if no application data will be sent.
    pub(crate) fn schedule_handshake_release(&mut self, now: Instant) {
        if matches!(self.state, DtlsState::Established) {
            self.release_at.get_or_insert(now + HANDSHAKE_RETENTION);
        }
    }

    /// Replaces the stack by its serialized state.
    fn release_handshake(&mut self) {
        self.release_at = None;
        let state = self.endpoint.get_connection_state(PLACEHOLDER_PEER_ADDRESS);
        let Some(Ok(serialized)) = state.map(State::marshal_binary) else {
            return;
        };
        self.endpoint = Self::new_endpoint();
        self.flight_retransmission = HandshakeRetransmissionTracker::default();
        self.state = DtlsState::Dormant(serialized);
        self.is_handshake_released = true;
    }

    /// Makes the stack again from its serialized state.
    fn restore_stack(&mut self, now: Instant) {
        let DtlsState::Dormant(serialized) = &self.state else {
            return;
        };
        let mut state = State::new(self.identity.crypto_provider.clone(), self.role == DtlsRole::Client);
        // The stack wrote it, with a cipher suite that it has. The configuration is for handshakes alone.
        let restored = state.unmarshal_binary(serialized).and_then(|()| {
            let config = self.identity.client_config.clone();
            self.endpoint
                .connect(now, PLACEHOLDER_PEER_ADDRESS, config, Some(state))
        });
        self.state = if restored.is_ok() {
            DtlsState::Established
        } else {
            DtlsState::Closed
        };
    }

    /// Retransmits lost flights.
    ///
    /// # Errors
    ///
    /// [`DtlsError`]: the session must be closed.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsError> {
        if self.release_at.is_some_and(|at| at <= now) {
            self.release_handshake();
        }
        if !self.is_handshake_pending() {
            return Ok(());
        }
        if self.handshake_deadline.is_some_and(|deadline| deadline <= now) {
            return Err(DtlsError::HandshakeTimeout);
        }
        if self.next_retransmission_at().is_some_and(|at| at <= now) {
            self.retransmit_flight(now)?;
        }
        Ok(())
    }

    fn next_retransmission_at(&self) -> Option<Instant> {
        let waits = self.endpoint.poll_timeout(&PLACEHOLDER_PEER_ADDRESS).is_some()
            && self.flight_retransmission.retransmission_count < MAX_FLIGHT_RETRANSMISSIONS;
        let sent = self.flight_retransmission.flight_sent_at.filter(|_| waits)?;
        Some(
            sent + INITIAL_RETRANSMIT_DELAY
                * (1 << self
                    .flight_retransmission
                    .retransmission_count
                    .min(MAX_RETRANSMIT_DOUBLINGS)),
        )
    }

    fn retransmit_flight(&mut self, now: Instant) -> Result<(), DtlsError> {
        let Some(at) = self.endpoint.poll_timeout(&PLACEHOLDER_PEER_ADDRESS) else {
            return Ok(());
        };
        if self.flight_retransmission.retransmission_count >= MAX_FLIGHT_RETRANSMISSIONS {
            return Ok(());
        }
        self.flight_retransmission.retransmission_count += 1;
        self.flight_retransmission.flight_sent_at = Some(now);
        // The stack only compares times: with the time of its own timer it sends.
        self.endpoint
            .handle_timeout(PLACEHOLDER_PEER_ADDRESS, at.max(now))
            .map_err(DtlsError::HandshakeFailed)
    }

    /// When [`Self::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.is_handshake_pending() {
            return self.release_at;
        }
        [self.handshake_deadline, self.next_retransmission_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns the next datagram for the peer.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.endpoint.poll_transmit().map(|transmit| transmit.message.freeze())
    }

    /// Sends a close_notify alert if the handshake is complete.
    pub fn close(&mut self, now: Instant) {
        self.restore_stack(now);
        if matches!(self.state, DtlsState::Established) {
            self.endpoint.stop(now, PLACEHOLDER_PEER_ADDRESS);
        }
        (self.state, self.release_at) = (DtlsState::Closed, None);
    }

    /// Counts a dropped record or packet.
    pub(crate) fn count_drop(&mut self, reason: PacketDropReason) {
        self.guard.count_drop(reason);
    }

    /// Returns the number of drops so far, by reason.
    pub fn drop_counts(&self) -> PacketDropCounts {
        self.guard.drop_counts()
    }

    fn is_handshake_pending(&self) -> bool {
        matches!(
            self.state,
            DtlsState::AwaitingClientHello(_) | DtlsState::AwaitingServerHello(_) | DtlsState::Handshake
        )
    }
}

impl HandshakeRetransmissionTracker {
    /// Returns whether the records hold only fragments that were read before; remembers the new ones.
    fn record_and_detect_peer_retransmission(&mut self, records: &[u8], role: DtlsRole) -> bool {
        let mut all = has_only_plain_handshake_records(records);
        // A HelloVerifyRequest has no timer (RFC 6347 §4.2.1): until the second ClientHello the stack answers the
        // first.
        let answers_hello =
            role == DtlsRole::Server && self.received_fragments.iter().all(|(message, ..)| *message == 0);
        for fragment in handshake_fragments(records) {
            let key = (fragment.message_seq, fragment.offset, fragment.body.len());
            let is_known = self.received_fragments.contains(&key);
            if !is_known {
                self.received_fragments.push(key);
            }
            all &= is_known && !(answers_hello && fragment.message_seq == 0);
        }
        all
    }
}
