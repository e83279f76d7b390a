//! Types of values that several keys or other folders use.

use super::secret::Secret;

/// Origins of web pages that may do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigins {
    Any,
    /// In the form that browsers send: `https://example.org`, without a path or trailing slash.
    Listed(Vec<String>),
}

/// A user of a TURN server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnUser {
    pub username: String,
    pub password: Secret,
}

/// What a token may do by the control API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ApiScope {
    /// Nothing.
    #[default]
    None,
    /// Read, and read the metrics.
    Read,
    /// Everything, also to issue tokens.
    Full,
}

impl ApiScope {
    /// Name of the scope that only reads.
    pub const READ_SCOPE_NAME: &'static str = "read";

    /// Returns all of the API, or nothing.
    pub fn full_or_none(is_all: bool) -> Self {
        if is_all { Self::Full } else { Self::None }
    }
}

/// An event that webhooks are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WebhookEventType {
    /// A stream got a source: a publisher, or one that the gateway pulls.
    StreamLive,
    /// A stream has no source any more.
    StreamEnded,
    /// The configured source of a stream delivers media.
    SourceLive,
    /// The configured source of a stream has failed. It is retried.
    SourceFailed,
    /// A publisher or viewer is connected.
    SessionStarted,
    /// The session of a publisher, or of a viewer that was connected, has ended.
    SessionEnded,
}

impl WebhookEventType {
    /// All events.
    pub const ALL_EVENT_TYPES: [Self; 6] = [
        Self::StreamLive,
        Self::StreamEnded,
        Self::SourceLive,
        Self::SourceFailed,
        Self::SessionStarted,
        Self::SessionEnded,
    ];

    /// Returns the name in the configuration and in what is sent.
    pub fn name(self) -> &'static str {
        match self {
            Self::StreamLive => "stream.live",
            Self::StreamEnded => "stream.ended",
            Self::SourceLive => "source.live",
            Self::SourceFailed => "source.failed",
            Self::SessionStarted => "session.started",
            Self::SessionEnded => "session.ended",
        }
    }

    /// Whether it is about a session. Viewers decide how many of these there are.
    pub fn is_session_event(self) -> bool {
        match self {
            Self::SessionStarted | Self::SessionEnded => true,
            Self::StreamLive | Self::StreamEnded | Self::SourceLive | Self::SourceFailed => false,
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL_EVENT_TYPES.into_iter().find(|event| event.name() == name)
    }
}
