//! What a camera does that the client refuses, and what it passes over.

/// What retina refuses and another client accepts: see [`fallback`](super::fallback).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    Ssrc,
    Sequence,
    Answer,
    ServerRequest,
    Authentication,
    Keepalive,
    ShortSessions,
}

impl Refusal {
    /// Returns what the camera does, in a clause.
    pub fn text(self) -> &'static str {
        match self {
            Self::Ssrc => "the camera changes its SSRC during a session",
            Self::Sequence => "the camera's RTP sequence numbers jump back",
            Self::Answer => "the camera's answers deviate from RTSP or SDP",
            Self::ServerRequest => "the camera sends requests before it answers",
            Self::Authentication => "the camera authenticates each request anew, or with `auth-int`",
            Self::Keepalive => "the camera does not answer keepalive requests",
            Self::ShortSessions => "the camera ends its sessions after a short time",
        }
    }
}

/// Counts what was passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassedOver {
    pub count: u64,
    /// The first of them in this session.
    pub what: Option<String>,
}
