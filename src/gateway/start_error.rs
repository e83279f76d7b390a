//! Why the gateway did not start.

use thiserror::Error;

use crate::config::ConfigError;
use crate::doctor::ports::BindFailure;
use crate::http::tls::TlsError;
use crate::shard::MediaPlaneStartError;
use millstream_core::session::CryptoSetupError;

/// Why the gateway did not start. Each text contains the configuration key to change.
#[derive(Debug, Error)]
pub enum GatewayStartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bind(Box<BindFailure>),
    #[error("webrtc.listen: the media plane cannot be started: {0}")]
    Media(#[source] MediaPlaneStartError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    DtlsIdentity(#[from] CryptoSetupError),
}

impl From<BindFailure> for GatewayStartError {
    fn from(failure: BindFailure) -> Self {
        Self::Bind(Box::new(failure))
    }
}
