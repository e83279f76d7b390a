//! Who we are to every peer: one ECDSA P-256 certificate per process, and the DTLS configurations made of it.

use std::sync::Arc;

use rtc_crypto::RTCCryptoProvider;
use rtc_crypto::providers::AwsLcRsProvider;
use rtc_dtls::config::{ClientAuthType, ConfigBuilder, ExtendedMasterSecretType, HandshakeConfig};
use rtc_dtls::crypto::Certificate;
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;
use sha2::Digest as _;

use super::SessionError;
use crate::sdp::plan::{Fingerprint, FingerprintHash};

/// Certificate, its fingerprint, and the handshake configurations that all sessions share.
pub struct Identity {
    pub provider: Arc<dyn RTCCryptoProvider>,
    pub fingerprint: Fingerprint,
    /// We wait for the ClientHello and it offered AES-GCM: the stack follows the peer's order of preference, so the only
    /// way to prefer GCM is to offer nothing else.
    pub server_gcm: Arc<HandshakeConfig>,
    /// We wait for the ClientHello and it offered only AES-CM.
    pub server_cm: Arc<HandshakeConfig>,
    /// We send the ClientHello.
    pub client: Arc<HandshakeConfig>,
}

/// First wait before a handshake flight is repeated. RFC 6347 §4.2.4.1 proposes 1 s; browsers use 50 ms, and a lost
/// flight is time without a picture.
const FLIGHT_INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);

impl Identity {
    /// Makes a new certificate.
    ///
    /// # Errors
    ///
    /// [`SessionError::Identity`] when the crypto library cannot make a key, which is not expected.
    pub fn generate() -> Result<Self, SessionError> {
        let provider: Arc<dyn RTCCryptoProvider> = Arc::new(AwsLcRsProvider::new());
        let certificate = Certificate::generate_self_signed(vec!["millstream".to_owned()], provider.crypto())
            .map_err(SessionError::Identity)?;
        let der = certificate
            .certificate
            .first()
            .map(|der| der.as_ref().to_vec())
            .unwrap_or_default();
        let gcm = SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm;
        let cm = SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80;
        let config = |profiles: Vec<SrtpProtectionProfile>, is_client: bool| {
            ConfigBuilder::default()
                .with_crypto_provider(provider.clone())
                .with_certificates(vec![certificate.clone()])
                .with_srtp_protection_profiles(profiles)
                .with_client_auth(ClientAuthType::RequireAnyClientCert)
                // There is no CA chain in WebRTC; the fingerprint is compared before a key is used (RFC 8827 §6.5).
                .with_insecure_skip_verify(true)
                .with_extended_master_secret(ExtendedMasterSecretType::Request)
                .with_flight_interval(FLIGHT_INTERVAL)
                .build(is_client, None)
                .map(Arc::new)
                .map_err(SessionError::Identity)
        };
        Ok(Self {
            fingerprint: fingerprint_of(&der, FingerprintHash::Sha256),
            server_gcm: config(vec![gcm], false)?,
            server_cm: config(vec![cm], false)?,
            client: config(vec![gcm, cm], true)?,
            provider,
        })
    }
}

/// Digest of a certificate in DER form.
pub fn fingerprint_of(der: &[u8], hash: FingerprintHash) -> Fingerprint {
    let digest = match hash {
        FingerprintHash::Sha256 => sha2::Sha256::digest(der).to_vec(),
        FingerprintHash::Sha384 => sha2::Sha384::digest(der).to_vec(),
        FingerprintHash::Sha512 => sha2::Sha512::digest(der).to_vec(),
    };
    Fingerprint { hash, digest }
}
