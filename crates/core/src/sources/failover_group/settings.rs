//! Settings of a failover group.

use std::time::Duration;

use crate::hub::name::{SourceName, StreamKey};

/// A source of a failover group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverSourceSettings {
    pub name: SourceName,
    /// The stream that it writes to: [`StreamName::failover_source_key`](crate::hub::name::StreamName::failover_source_key), or
    /// that of another failover group which has the same slate.
    pub key: StreamKey,
    /// It runs only while no higher source is live.
    pub runs_on_demand: bool,
}

/// The sources of a failover group are layers: streams of one camera in several sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLayerSettings {
    /// None of them runs while nobody watches the stream.
    pub on_demand: bool,
}

/// The times of a failover group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailoverTimes {
    /// How long a higher source must be live before it is shown again.
    pub hold_off: Duration,
    /// How long nothing must have arrived from a source for it to count as stalled. Longer for sources with few frames.
    pub stall_timeout: Duration,
}
