//! Why a session cannot be set up.

use thiserror::Error;

/// Why a session could not be made or went wrong.
#[derive(Debug, Error)]
pub enum SessionError {
    #[error("cannot make the DTLS identity: {0}")]
    Identity(#[source] rtc_shared::error::Error),
    #[error("cannot set up SRTP: {0}")]
    Srtp(String),
}
