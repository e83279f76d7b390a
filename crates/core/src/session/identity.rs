//! DTLS identity of the gateway: one ECDSA P-256 certificate per process, and the DTLS configurations built from it.

use std::sync::Arc;

use rtc_crypto::RTCCryptoProvider;
use rtc_crypto::providers::AwsLcRsProvider;
use rtc_dtls::config::{ClientAuthType, ConfigBuilder, ExtendedMasterSecretType, HandshakeConfig};
use rtc_dtls::crypto::Certificate;
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;
use sha2::Digest as _;

use super::error::CryptoSetupError;
use crate::sdp::negotiation_result::{Fingerprint, FingerprintHashFunction};

/// Certificate fingerprint and the handshake configurations that all sessions share.
pub struct DtlsIdentity {
    pub crypto_provider: Arc<dyn RTCCryptoProvider>,
    pub fingerprint: Fingerprint,
    /// Server role with AES-GCM, for peers that offer it. The stack follows the peer's order of preference, so the only
    /// way to prefer GCM is to offer nothing else.
    pub server_gcm_config: Arc<HandshakeConfig>,
    /// Server role with AES-CM, for peers that do not offer AES-GCM.
    pub server_cm_config: Arc<HandshakeConfig>,
    /// Client role: we send the ClientHello.
    pub client_config: Arc<HandshakeConfig>,
}

/// Wait before the first retransmission of a handshake flight. RFC 6347 §4.2.4.1 proposes 1 s and browsers use 50 ms.
/// A lost flight delays the first frame.
const DTLS_RETRANSMIT_AFTER: std::time::Duration = std::time::Duration::from_millis(200);

impl DtlsIdentity {
    /// Generates a new certificate.
    ///
    /// # Errors
    ///
    /// [`CryptoSetupError::DtlsIdentity`] when the crypto library cannot generate a key, which is not expected.
    pub fn generate() -> Result<Self, CryptoSetupError> {
        let provider: Arc<dyn RTCCryptoProvider> = Arc::new(AwsLcRsProvider::new());
        let certificate = Certificate::generate_self_signed(vec!["millstream".to_owned()], provider.crypto())
            .map_err(CryptoSetupError::DtlsIdentity)?;
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
                // WebRTC has no CA chain; the fingerprint is verified before a key is used (RFC 8827 §6.5).
                .with_insecure_skip_verify(true)
                .with_extended_master_secret(ExtendedMasterSecretType::Request)
                .with_flight_interval(DTLS_RETRANSMIT_AFTER)
                .build(is_client, None)
                .map(Arc::new)
                .map_err(CryptoSetupError::DtlsIdentity)
        };
        Ok(Self {
            fingerprint: compute_certificate_fingerprint(&der, FingerprintHashFunction::Sha256),
            server_gcm_config: config(vec![gcm], false)?,
            server_cm_config: config(vec![cm], false)?,
            client_config: config(vec![gcm, cm], true)?,
            crypto_provider: provider,
        })
    }
}

/// Computes the fingerprint of a certificate in DER form.
pub(crate) fn compute_certificate_fingerprint(der: &[u8], hash: FingerprintHashFunction) -> Fingerprint {
    let digest = match hash {
        FingerprintHashFunction::Sha256 => sha2::Sha256::digest(der).to_vec(),
        FingerprintHashFunction::Sha384 => sha2::Sha384::digest(der).to_vec(),
        FingerprintHashFunction::Sha512 => sha2::Sha512::digest(der).to_vec(),
    };
    Fingerprint {
        hash_function: hash,
        digest,
    }
}
