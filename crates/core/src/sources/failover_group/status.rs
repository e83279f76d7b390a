//! What a failover group tells of itself.

use std::time::Instant;

use crate::hub::name::SourceName;

/// State of a source of a failover group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailoverSourceState {
    /// It is not connected.
    #[default]
    Away,
    /// It is connected, and nothing that a viewer could begin with has come yet.
    Starting,
    /// Media arrives.
    Live,
    /// It is connected, and its media has stopped.
    Stalled,
}

impl FailoverSourceState {
    /// All states, for the metrics.
    pub const ALL: [Self; 4] = [Self::Away, Self::Starting, Self::Live, Self::Stalled];

    /// Returns the name used by the API and the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Starting => "starting",
            Self::Live => "live",
            Self::Stalled => "stalled",
        }
    }
}

/// Why a stream has another source than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SwitchReason {
    /// There was none, and this one became live.
    Available,
    /// The selected one ended.
    Ended,
    /// The media of the selected one stopped.
    Stalled,
    /// A higher one became live that has not failed before.
    Preferred,
    /// A higher one that had failed was live for the hold-off time.
    Recovered,
    /// It was chosen by hand.
    Chosen,
    /// The same source has a new session.
    NewSession,
}

impl SwitchReason {
    /// All reasons, for the metrics.
    pub const ALL: [Self; 7] = [
        Self::Available,
        Self::Ended,
        Self::Stalled,
        Self::Preferred,
        Self::Recovered,
        Self::Chosen,
        Self::NewSession,
    ];

    /// Returns the name used by the API, the logs and the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Ended => "ended",
            Self::Stalled => "stalled",
            Self::Preferred => "preferred",
            Self::Recovered => "recovered",
            Self::Chosen => "chosen",
            Self::NewSession => "new_session",
        }
    }
}

/// A change of the source that a stream shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSwitch {
    /// Counts the switches of the failover group, from 1.
    pub number: u64,
    pub at: Instant,
    pub from: Option<SourceName>,
    /// `None` if no source is left.
    pub to: Option<SourceName>,
    pub reason: SwitchReason,
}

/// One source of a failover group.
#[derive(Clone, Debug)]
pub struct FailoverSourceStatus {
    pub name: SourceName,
    pub state: FailoverSourceState,
    /// Since when it is in this state; `None` before the first look.
    pub since: Option<Instant>,
    /// Whether the stream shows it.
    pub is_selected: bool,
}

/// The sources of a stream, the highest first.
#[derive(Clone, Debug)]
pub struct FailoverStatus {
    pub sources: Vec<FailoverSourceStatus>,
    /// The source that was chosen by hand; `None` while the failover group selects by itself.
    pub chosen: Option<SourceName>,
    /// The most recent switches, the oldest first.
    pub recent_switches: Vec<SourceSwitch>,
    /// Number of switches by reason.
    pub switch_counts: Vec<(SwitchReason, u64)>,
}
