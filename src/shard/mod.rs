//! The media plane: one thread per shard, all on one UDP port. [`MediaPlane`] is the handle that the control plane holds.

use std::net::SocketAddr;

use crate::hub::name::StreamName;
use crate::sdp::plan::{Fingerprint, IceCredentials, Playback, Publication};
use crate::session::CloseReason;

pub use crate::sdp::plan::SourceFormats;

/// Unguessable identifier of a session (RFC 9725 §5): 128 random bits, 22 characters of base64url in a URL.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 16]);

/// A place for a session on a shard: its local ICE credentials tell the shard.
#[derive(Clone, Debug)]
pub struct Placement {
    pub shard: usize,
    pub credentials: IceCredentials,
}

/// The media plane refuses a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the gateway holds as many sessions as it may")]
    Full,
    #[error("the gateway is stopping")]
    Stopping,
}

/// What became of a session URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// ICE and DTLS are not complete.
    Connecting,
    Connected,
    /// Ended within the last minute.
    Ended(CloseReason),
    /// Never existed, or ended long ago.
    Unknown,
}

/// Handle on the running shards. Cheap to clone; every call returns at once.
#[derive(Clone)]
pub struct MediaPlane {}

impl MediaPlane {
    /// Addresses for the answer, the best first.
    pub fn candidates(&self) -> &[SocketAddr] {
        &[]
    }

    /// Fingerprint of our certificate, for the answer.
    pub fn fingerprint(&self) -> &Fingerprint {
        unimplemented!()
    }

    /// Chooses a shard and makes ICE credentials for a new session. Nothing is held yet.
    pub fn place(&self) -> Placement {
        unimplemented!()
    }

    /// What a viewer would get now; `None` while nobody publishes.
    pub fn source_formats(&self, _stream: &StreamName) -> Option<SourceFormats> {
        None
    }

    /// Opens the session of a publisher. It takes the stream over when its first packet arrives.
    ///
    /// # Errors
    ///
    /// A [`Refusal`]; nothing was opened.
    pub fn publish(
        &self,
        _stream: StreamName,
        _placement: Placement,
        _publication: Publication,
    ) -> Result<SessionId, Refusal> {
        Err(Refusal::Stopping)
    }

    /// Opens the session of a viewer.
    ///
    /// # Errors
    ///
    /// A [`Refusal`]; nothing was opened.
    pub fn play(&self, _stream: StreamName, _placement: Placement, _playback: Playback) -> Result<SessionId, Refusal> {
        Err(Refusal::Stopping)
    }

    /// What became of a session.
    pub fn state(&self, _id: SessionId) -> SessionState {
        SessionState::Unknown
    }

    /// Ends a session: sends close_notify, frees everything. Returns its state before.
    pub fn close(&self, _id: SessionId) -> SessionState {
        SessionState::Unknown
    }

    /// Ends all sessions and stops the shards; returns when their threads have ended.
    pub fn stop(&self) {}
}
