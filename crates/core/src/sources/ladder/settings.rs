//! Settings of a source ladder.

use std::time::Duration;

use crate::hub::name::{SourceName, StreamKey};

/// A source of a ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LadderSourceSettings {
    pub name: SourceName,
    /// The stream that it writes to: [`StreamName::ladder_source_key`](crate::hub::name::StreamName::ladder_source_key), or
    /// that of another ladder which has the same slate.
    pub key: StreamKey,
    /// It runs only while no higher source is live.
    pub runs_on_demand: bool,
}

/// The times of a ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LadderTimes {
    /// How long a higher source must be live before it is shown again.
    pub hold_off: Duration,
    /// How long nothing must have arrived from a source for it to count as stalled. Longer for sources with few frames.
    pub stall_timeout: Duration,
}
