//! The clock of the shards, which know time as an argument.

use std::time::{Duration, Instant, SystemTime};

#[expect(clippy::disallowed_methods, reason = "the shell that gives time to the shards")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Returns the time by both clocks.
#[expect(
    clippy::disallowed_methods,
    reason = "read once: sender reports follow the monotonic clock from here on"
)]
pub(super) fn read_monotonic_and_wall_clock() -> (Instant, Duration) {
    (
        Instant::now(),
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    )
}
