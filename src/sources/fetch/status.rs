//! Status of a fetched source, for the API, the metrics and waiting viewers.

use std::time::Instant;

use crate::sources::rtsp::incompatibility::IgnoredInputStats;

/// State of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SourceState {
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
    PausedForPublisher,
    /// Stopped by the API.
    Stopped,
}

impl SourceState {
    /// All states, for the metrics.
    pub const ALL_STATES: [Self; 6] = [
        Self::Idle,
        Self::Starting,
        Self::Live,
        Self::Failed,
        Self::PausedForPublisher,
        Self::Stopped,
    ];

    /// Returns the name used by the API and the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Starting => "starting",
            Self::Live => "live",
            Self::Failed => "failed",
            Self::PausedForPublisher => "standing_back",
            Self::Stopped => "stopped",
        }
    }
}

/// A time in which the playlist of a source goes on, but its segments have no media that can be played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceGap {
    pub since: Instant,
    /// Why the first segment is left out.
    pub reason: String,
}

/// State and history of a source.
#[derive(Clone, Debug, Default)]
pub struct SourceStatus {
    pub state: SourceState,
    /// Start of this state.
    pub state_since: Option<Instant>,
    pub last_error: Option<String>,
    /// Number of failures, each followed by a restart.
    pub restart_count: u64,
    /// Why a camera is read by a pipeline.
    pub fallback_reason: Option<&'static str>,
    /// What the source sent and was passed over in this session.
    pub ignored_input: IgnoredInputStats,
    /// The origin goes on, but has nothing to play.
    pub gap: Option<SourceGap>,
    /// The media sequence numbers of the playlist were wrong in this session.
    pub has_corrected_media_sequence: bool,
    /// Tracks of the source whose codec is not supported.
    pub unsupported_tracks: Vec<String>,
}
