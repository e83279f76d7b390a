//! The tool's end of a WebRTC transport: ICE (controlling, one candidate), DTLS client, SRTP. Sans-IO.
//!
//! Leaner than a test peer on purpose. It makes no receiver statistics and asks for nothing again, and its owner chooses
//! which packets are worth decrypting: with hundreds of viewers on the server's own machine every microsecond here is
//! taken from the server.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use rand::Rng as _;
use rtc_crypto::{RTCCryptoProvider, providers::AwsLcRsProvider};
use rtc_dtls::{
    config::{ClientAuthType, ConfigBuilder, ExtendedMasterSecretType, HandshakeConfig},
    crypto::Certificate,
    endpoint::{Endpoint as DtlsAssociation, EndpointEvent},
    extension::extension_use_srtp::SrtpProtectionProfile,
};
use rtc_shared::{
    TransportProtocol,
    marshal::{MarshalSize as _, Unmarshal as _},
};
use rtc_srtp::{config::LABEL_EXTRACTOR_DTLS_SRTP, context::Context, protection_profile::ProtectionProfile};
use rtc_stun::{
    attributes::{ATTR_ICE_CONTROLLING, ATTR_PRIORITY, ATTR_USE_CANDIDATE, ATTR_USERNAME},
    fingerprint::FINGERPRINT,
    integrity::MessageIntegrity,
    message::{BINDING_REQUEST, BINDING_SUCCESS, Message, Setter as _, TransactionId},
};
use sha2::Digest as _;

use crate::sdp::Answer;

/// A check is repeated after this time until the first one is answered (libwebrtc's interval on a weak connection).
const CHECK_RETRY: Duration = Duration::from_millis(50);

/// Checks of a connected peer, as browsers send them to keep consent (RFC 7675).
const CHECK_INTERVAL: Duration = Duration::from_millis(2500);

/// Priority of a peer-reflexive candidate (RFC 8445 §5.1.2.1).
const PRIORITY: u32 = 110 << 24 | 65_535 << 8 | 255;

/// First wait before a handshake flight is repeated, as in browsers.
const FLIGHT_INTERVAL: Duration = Duration::from_millis(50);

/// The library wants a remote address; ours is wherever the socket is connected to.
const PLACEHOLDER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

/// What this process shows to every gateway.
pub(crate) struct Identity {
    provider: Arc<dyn RTCCryptoProvider>,
    config: Arc<HandshakeConfig>,
    /// As in `a=fingerprint`, with the name of the hash.
    pub fingerprint: String,
}

impl Identity {
    /// The one identity, made at the first call.
    ///
    /// # Errors
    ///
    /// When the crypto library cannot make a key.
    pub(crate) fn shared() -> io::Result<&'static Self> {
        static SHARED: OnceLock<Identity> = OnceLock::new();
        if let Some(identity) = SHARED.get() {
            return Ok(identity);
        }
        let made = Self::generate()?;
        Ok(SHARED.get_or_init(|| made))
    }

    fn generate() -> io::Result<Self> {
        let provider: Arc<dyn RTCCryptoProvider> = Arc::new(AwsLcRsProvider::new());
        let certificate = Certificate::generate_self_signed(vec!["millstream-bench".to_owned()], provider.crypto())
            .map_err(io::Error::other)?;
        let der = certificate
            .certificate
            .first()
            .map(|der| der.as_ref().to_vec())
            .unwrap_or_default();
        let config = ConfigBuilder::default()
            .with_crypto_provider(Arc::clone(&provider))
            .with_certificates(vec![certificate])
            .with_srtp_protection_profiles(vec![
                SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm,
                SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80,
            ])
            .with_client_auth(ClientAuthType::RequireAnyClientCert)
            // There is no CA in WebRTC; the fingerprint is compared before a key is used (RFC 8827 §6.5).
            .with_insecure_skip_verify(true)
            .with_extended_master_secret(ExtendedMasterSecretType::Request)
            .with_flight_interval(FLIGHT_INTERVAL)
            .build(true, None)
            .map_err(io::Error::other)?;
        Ok(Self {
            provider,
            config: Arc::new(config),
            fingerprint: fingerprint(&der),
        })
    }
}

/// One transport.
pub(crate) struct Peer {
    identity: &'static Identity,
    answer: Answer,
    /// `remote:local` (RFC 8445 §7.2.2).
    username: String,
    tie_breaker: u64,
    check: TransactionId,
    check_at: Instant,
    checked: bool,
    dtls: DtlsAssociation,
    keys: Option<Keys>,
    outgoing: VecDeque<Bytes>,
}

struct Keys {
    outgoing: Context,
    incoming: Context,
}

impl Peer {
    /// A peer that connects to where the answer says. `ufrag` is the one of the offer.
    ///
    /// # Errors
    ///
    /// When the process has no identity.
    pub(crate) fn new(now: Instant, ufrag: &str, answer: Answer) -> io::Result<Self> {
        Ok(Self {
            identity: Identity::shared()?,
            username: format!("{}:{ufrag}", answer.ufrag),
            answer,
            tie_breaker: rand::rng().random(),
            check: TransactionId::default(),
            check_at: now,
            checked: false,
            dtls: DtlsAssociation::new(PLACEHOLDER, TransportProtocol::UDP, None),
            keys: None,
            outgoing: VecDeque::new(),
        })
    }

    /// Whether the handshake is over and media may flow.
    pub(crate) fn connected(&self) -> bool {
        self.keys.is_some()
    }

    /// When [`Self::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Instant {
        let handshake = self.dtls.poll_timeout(&PLACEHOLDER).filter(|_| !self.connected());
        handshake.map_or(self.check_at, |at| at.min(self.check_at))
    }

    /// A datagram to be sent.
    pub(crate) fn poll_transmit(&mut self) -> Option<Bytes> {
        self.outgoing.pop_front()
    }

    /// Sends the checks and handshake flights that are due.
    ///
    /// # Errors
    ///
    /// When the handshake has been repeated too often.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> io::Result<()> {
        if now >= self.check_at {
            self.check_at = now + if self.checked { CHECK_INTERVAL } else { CHECK_RETRY };
            let check = self.binding_request()?;
            self.outgoing.push_back(check);
        }
        if self.checked && !self.connected() {
            self.dtls.handle_timeout(PLACEHOLDER, now).map_err(io::Error::other)?;
            self.flush_dtls();
        }
        Ok(())
    }

    /// Takes STUN and DTLS. Anything else, and anything that is not for us, is passed over.
    ///
    /// # Errors
    ///
    /// When the handshake fails, or the gateway's certificate is not the one of its answer.
    pub(crate) fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) -> io::Result<()> {
        match datagram.first() {
            Some(0..=3) => self.handle_stun(now, datagram),
            Some(20..=63) if self.checked => {
                let events = self.dtls.read(now, PLACEHOLDER, None, BytesMut::from(datagram));
                self.flush_dtls();
                // After the handshake a record that cannot be read is no reason to stop watching.
                let events = if self.connected() {
                    events.unwrap_or_default()
                } else {
                    events.map_err(io::Error::other)?
                };
                if events
                    .iter()
                    .any(|event| matches!(event, EndpointEvent::HandshakeComplete))
                {
                    self.keys = Some(self.export_keys()?);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Decrypts an SRTP packet; `None` when it is not authentic.
    pub(crate) fn open_rtp(&mut self, datagram: &[u8]) -> Option<Bytes> {
        let keys = self.keys.as_mut()?;
        keys.incoming.decrypt_rtp(datagram).ok().map(BytesMut::freeze)
    }

    /// Decrypts a compound SRTCP packet; `None` when it is none (RFC 5761 §4) or not authentic.
    pub(crate) fn open_rtcp(&mut self, datagram: &[u8]) -> Option<Bytes> {
        let keys = self.keys.as_mut()?;
        let [first, second, ..] = *datagram else { return None };
        if !(128..=191).contains(&first) || !(192..=223).contains(&second) {
            return None;
        }
        keys.incoming.decrypt_rtcp(datagram).ok().map(BytesMut::freeze)
    }

    /// Seals an RTP packet.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] when it is not one, or no keys are there yet.
    pub(crate) fn seal_rtp(&mut self, packet: &[u8]) -> io::Result<Bytes> {
        let keys = self.keys.as_mut().ok_or(io::ErrorKind::InvalidInput)?;
        let header = rtc_rtp::Header::unmarshal(&mut &packet[..]).map_err(invalid)?;
        // `rtc-srtp` 0.21.1 panics on a header that says it is longer than its packet.
        if header.marshal_size() > packet.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sealed = keys.outgoing.encrypt_rtp_with_header(packet, &header);
        sealed.map(BytesMut::freeze).map_err(invalid)
    }

    /// Seals a compound RTCP packet.
    ///
    /// # Errors
    ///
    /// As [`Self::seal_rtp`].
    pub(crate) fn seal_rtcp(&mut self, packet: &[u8]) -> io::Result<Bytes> {
        let keys = self.keys.as_mut().ok_or(io::ErrorKind::InvalidInput)?;
        keys.outgoing
            .encrypt_rtcp(packet)
            .map(BytesMut::freeze)
            .map_err(invalid)
    }

    /// A check that nominates at once: there is one pair, and the gateway is lite.
    fn binding_request(&mut self) -> io::Result<Bytes> {
        self.check = TransactionId(rand::rng().random());
        let mut request = Message::new();
        request.set_type(BINDING_REQUEST);
        request.transaction_id = self.check;
        request.write_header();
        request.add(ATTR_USERNAME, self.username.as_bytes());
        request.add(ATTR_PRIORITY, &PRIORITY.to_be_bytes());
        request.add(ATTR_ICE_CONTROLLING, &self.tie_breaker.to_be_bytes());
        request.add(ATTR_USE_CANDIDATE, &[]);
        let crypto = self.identity.provider.crypto();
        MessageIntegrity::new_short_term_integrity_with_provider(self.answer.pwd.clone(), crypto)
            .add_to(&mut request)
            .and_then(|()| FINGERPRINT.add_to(&mut request))
            .map_err(io::Error::other)?;
        Ok(request.raw.into())
    }

    /// The answer to our own check starts the handshake; a full agent's check would be answered here, too, but the
    /// gateway is lite.
    fn handle_stun(&mut self, now: Instant, datagram: &[u8]) -> io::Result<()> {
        let mut response = Message::new();
        response.raw = datagram.to_vec();
        let ours = response.decode().is_ok()
            && response.typ == BINDING_SUCCESS
            && response.transaction_id == self.check
            && MessageIntegrity::check(
                &mut response,
                self.answer.pwd.as_bytes(),
                self.identity.provider.crypto(),
            )
            .is_ok();
        if ours && !self.checked {
            self.checked = true;
            self.check_at = now + CHECK_INTERVAL;
            let config = Arc::clone(&self.identity.config);
            self.dtls
                .connect(now, PLACEHOLDER, config, None)
                .map_err(io::Error::other)?;
            self.flush_dtls();
        }
        Ok(())
    }

    fn flush_dtls(&mut self) {
        while let Some(transmit) = self.dtls.poll_transmit() {
            self.outgoing.push_back(transmit.message.freeze());
        }
    }

    fn export_keys(&self) -> io::Result<Keys> {
        let state = self
            .dtls
            .get_connection_state(PLACEHOLDER)
            .ok_or_else(|| io::Error::other("no DTLS connection"))?;
        let shown = state
            .peer_certificates
            .first()
            .map(|der| fingerprint(der))
            .unwrap_or_default();
        if !shown.eq_ignore_ascii_case(&self.answer.fingerprint) {
            return Err(io::Error::other(
                "the gateway's certificate is not the one of its answer",
            ));
        }
        let profile = match state.srtp_protection_profile() {
            SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm => ProtectionProfile::AeadAes128Gcm,
            SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80 => ProtectionProfile::Aes128CmHmacSha1_80,
            other => return Err(io::Error::other(format!("SRTP profile {other:?} was not offered"))),
        };
        let mut config = rtc_srtp::config::Config {
            profile,
            ..Default::default()
        };
        let material = state
            .export_keying_material(LABEL_EXTRACTOR_DTLS_SRTP, &[], config.keying_material_len())
            .map_err(io::Error::other)?;
        config
            .set_session_keys_from_keying_material(material.as_ref(), true)
            .map_err(io::Error::other)?;
        let keys = &config.keys;
        let context = |key: &[u8], salt: &[u8]| {
            Context::new(key, salt, profile, None, None, self.identity.provider.crypto()).map_err(io::Error::other)
        };
        Ok(Keys {
            outgoing: context(&keys.local_master_key, &keys.local_master_salt)?,
            incoming: context(&keys.remote_master_key, &keys.remote_master_salt)?,
        })
    }
}

fn invalid(error: rtc_shared::error::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// `sha-256 AA:BB:..` of a certificate (RFC 8122 §5).
pub(crate) fn fingerprint(der: &[u8]) -> String {
    let digest: Vec<String> = sha2::Sha256::digest(der)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    format!("sha-256 {}", digest.join(":"))
}
