//! What becomes of a fetched source, for the API, the metrics and whoever waits for it.

use std::time::Instant;

/// What a source does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// Nobody watches.
    #[default]
    Idle,
    /// It is being connected or started.
    Starting,
    /// Its stream gets frames.
    Live,
    /// It failed and will be tried again.
    Failed,
    /// A publisher has its stream.
    StandingBack,
    /// It was stopped by the API.
    Stopped,
}

impl State {
    /// All of them, for the metrics.
    pub const ALL: [Self; 6] = [
        Self::Idle,
        Self::Starting,
        Self::Live,
        Self::Failed,
        Self::StandingBack,
        Self::Stopped,
    ];

    /// As in the API.
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
    /// When this state began.
    pub since: Option<Instant>,
    pub last_error: Option<String>,
    /// Failures so far, each of which was or will be followed by another start.
    pub restarts: u64,
}
