//! Status of a fetched source, for the API, the metrics and waiting viewers.

use std::time::Instant;

use crate::sources::rtsp::refusal::PassedOver;

/// State of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// An on-demand source without viewers.
    #[default]
    Idle,
    /// Connecting or starting.
    Starting,
    /// The stream receives frames.
    Live,
    /// Failed; will be retried.
    Failed,
    /// Paused because a publisher has the stream.
    StandingBack,
    /// Stopped by the API.
    Stopped,
}

impl State {
    /// All states, for the metrics.
    pub const ALL: [Self; 6] = [
        Self::Idle,
        Self::Starting,
        Self::Live,
        Self::Failed,
        Self::StandingBack,
        Self::Stopped,
    ];

    /// Returns the name used by the API and the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Starting => "starting",
            Self::Live => "live",
            Self::Failed => "failed",
            Self::StandingBack => "standing_back",
            Self::Stopped => "stopped",
        }
    }
}

/// State and history of a source.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub state: State,
    /// Start of this state.
    pub since: Option<Instant>,
    pub last_error: Option<String>,
    /// Number of failures, each followed by a restart.
    pub restarts: u64,
    /// Why a camera is read by a pipeline.
    pub fallback: Option<&'static str>,
    /// What the source sent and was passed over in this session.
    pub passed_over: PassedOver,
    /// Tracks of the source whose codec is not supported.
    pub left_out: Vec<String>,
}
