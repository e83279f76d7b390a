//! Why the media plane does not start, or refuses a session.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use millstream_core::hub::session_registry::ReachedLimit;

/// Why the media plane did not start.
#[derive(Debug, Error)]
pub enum MediaPlaneStartError {
    #[error("cannot listen on UDP {address}: {source}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("cannot start a media thread (shard): {0}")]
    ShardSetup(#[source] io::Error),
    #[error("no address to announce as ICE candidate: this host has none, so set webrtc.announce")]
    NoCandidateAddress,
}

/// Why the media plane refuses a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SessionRefusal {
    #[error("the gateway has reached its maximum number of sessions")]
    TooManySessions,
    #[error("too many WebRTC sessions are being set up: retry later")]
    TooManyHalfOpenSessions,
    #[error("too many WebRTC sessions are being set up from this address: retry later")]
    TooManyHalfOpenSessionsFromAddress,
    #[error("the gateway is stopping and accepts no new sessions")]
    Stopping,
}

impl From<ReachedLimit> for SessionRefusal {
    fn from(full: ReachedLimit) -> Self {
        match full {
            ReachedLimit::Sessions => Self::TooManySessions,
            ReachedLimit::HalfOpen => Self::TooManyHalfOpenSessions,
            ReachedLimit::HalfOpenPerAddress => Self::TooManyHalfOpenSessionsFromAddress,
        }
    }
}
