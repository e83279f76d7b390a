//! Who a peer is: credentials, certificate and style.

use super::*;

/// ICE username fragment and password of one side.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub ufrag: String,
    pub pwd: String,
}

impl Credentials {
    /// Made from a seed: the same seed gives the same credentials.
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut text = |n: usize| {
            (0..n)
                .map(|_| char::from(rng.sample(rand::distr::Alphanumeric)))
                .collect()
        };
        Self {
            ufrag: text(8),
            pwd: text(24),
        }
    }
}

/// The peer's role in the handshake; `Client` is what a browser is to an answer of `setup:passive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DtlsRole {
    Client,
    Server,
}

/// SRTP protection profiles that the peer offers or accepts, in its order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profiles {
    /// As Chromium offers: both, AES-CM first.
    CmThenGcm,
    GcmThenCm,
    /// As the WHIP muxer of FFmpeg.
    CmOnly,
}

/// How the peer sends its connectivity checks.
#[derive(Clone, Copy, Debug)]
pub struct IceStyle {
    /// Each check carries USE-CANDIDATE.
    pub nominate: bool,
    /// Each check carries PRIORITY and ICE-CONTROLLING.
    pub priority: bool,
    /// Checks go on after the handshake (FFmpeg sends none).
    pub keep_alive: bool,
    /// Whether checks of the gateway are answered, as a full ICE agent must.
    pub answers: bool,
}

impl IceStyle {
    pub const BROWSER: Self = Self {
        nominate: true,
        priority: true,
        keep_alive: true,
        answers: true,
    };
    /// The WHIP muxer of FFmpeg 8.0.
    pub const FFMPEG: Self = Self {
        nominate: false,
        priority: false,
        keep_alive: false,
        answers: true,
    };
}

/// Certificate and handshake configurations; expensive to make, shared by any number of peers.
pub struct PeerIdentity {
    pub(super) provider: Arc<dyn RTCCryptoProvider>,
    digest: [u8; 32],
    /// By role and profiles.
    configs: Vec<(DtlsRole, Profiles, Arc<HandshakeConfig>)>,
}

impl PeerIdentity {
    pub fn generate() -> Arc<Self> {
        let provider: Arc<dyn RTCCryptoProvider> = Arc::new(AwsLcRsProvider::new());
        let certificate = Certificate::generate_self_signed(vec!["peer".to_owned()], provider.crypto())
            .expect("the library can make P-256 keys");
        let der = certificate.certificate.first().expect("a certificate was made");
        let digest = sha2::Sha256::digest(der.as_ref()).into();
        let mut configs = Vec::new();
        for role in [DtlsRole::Client, DtlsRole::Server] {
            for profiles in [Profiles::CmThenGcm, Profiles::GcmThenCm, Profiles::CmOnly] {
                configs.push((role, profiles, config(&provider, &certificate, role, profiles)));
            }
        }
        Arc::new(Self {
            provider,
            digest,
            configs,
        })
    }

    /// Value of `a=fingerprint`: `sha-256 AB:CD:...`.
    pub fn fingerprint(&self) -> String {
        let mut text = "sha-256 ".to_owned();
        for (i, byte) in self.digest.iter().enumerate() {
            let separator = if i == 0 { "" } else { ":" };
            write!(text, "{separator}{byte:02X}").expect("writing to a string");
        }
        text
    }

    /// SHA-256 of the certificate.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

pub(super) fn config(
    provider: &Arc<dyn RTCCryptoProvider>,
    certificate: &Certificate,
    role: DtlsRole,
    profiles: Profiles,
) -> Arc<HandshakeConfig> {
    let gcm = SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm;
    let cm = SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80;
    let config = ConfigBuilder::default()
        .with_crypto_provider(provider.clone())
        .with_certificates(vec![certificate.clone()])
        .with_srtp_protection_profiles(match profiles {
            Profiles::CmThenGcm => vec![cm, gcm],
            Profiles::GcmThenCm => vec![gcm, cm],
            Profiles::CmOnly => vec![cm],
        })
        .with_client_auth(ClientAuthType::RequireAnyClientCert)
        .with_insecure_skip_verify(true)
        .with_extended_master_secret(ExtendedMasterSecretType::Require)
        .with_flight_interval(FLIGHT_INTERVAL)
        .build(role == DtlsRole::Client, None)
        .expect("the configuration is complete");
    Arc::new(config)
}

/// What a peer is made of.
#[derive(Clone)]
pub struct PeerConfig {
    pub identity: Arc<PeerIdentity>,
    pub local: Credentials,
    pub remote: Credentials,
    /// The gateway's candidate.
    pub server: SocketAddr,
    pub role: DtlsRole,
    pub profiles: Profiles,
    pub ice: IceStyle,
    /// Without, received SRTP and SRTCP come out as they are: their headers are readable, and a load tool saves the
    /// work.
    pub decrypt: bool,
    /// Of the transaction ids.
    pub seed: u64,
}

impl PeerIdentity {
    pub(super) fn config(&self, role: DtlsRole, profiles: Profiles) -> Arc<HandshakeConfig> {
        let found = self.configs.iter().find(|(r, p, _)| (*r, *p) == (role, profiles));
        found.expect("every combination was made").2.clone()
    }
}
