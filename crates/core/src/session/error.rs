//! Why a session cannot be set up.

use thiserror::Error;

/// Why a session could not be made or went wrong.
#[derive(Debug, Error)]
pub enum CryptoSetupError {
    #[error("cannot generate the DTLS certificate: {0}")]
    DtlsIdentity(#[source] rtc_shared::error::Error),
    #[error("cannot set up SRTP: {0}")]
    SrtpSetup(String),
}
