//! Gaps in the media of an origin, such as advertisements that only some players can decrypt.
//!
//! The source waits until a gap is over: opened anew, it would find nothing else to play.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

/// The gap that a source passes.
#[derive(Debug, Default)]
pub(super) struct Gap {
    began_at: Option<Instant>,
    /// When what is listed of it is over.
    expected_end: Option<Instant>,
}

pub(super) type SharedGap = Arc<Mutex<Gap>>;

/// Longest gap that is waited for.
const MAX_GAP_DURATION: Duration = Duration::from_secs(600);

impl Gap {
    /// Records one more segment without media.
    pub(super) fn extend(&mut self, now: Instant, duration: Duration) {
        let began_at = *self.began_at.get_or_insert(now);
        let end = self.expected_end.unwrap_or(now).max(now) + duration;
        self.expected_end = Some(end.min(began_at + MAX_GAP_DURATION));
    }

    /// Whether no frames are to be expected.
    pub(super) fn is_awaited(&self, now: Instant) -> bool {
        self.expected_end.is_some_and(|end| now < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gap_lasts_as_long_as_its_segments_and_ten_minutes_at_most() {
        let (begin, mut gap) = (Instant::now(), Gap::default());
        let at = |secs: u64| begin + Duration::from_secs(secs);
        assert!(!gap.is_awaited(begin));
        // Three at once, then one each time.
        for _ in 0..3 {
            gap.extend(at(0), Duration::from_secs(6));
        }
        assert!(gap.is_awaited(at(17)) && !gap.is_awaited(at(18)));
        gap.extend(at(20), Duration::from_secs(6));
        assert!(gap.is_awaited(at(25)) && !gap.is_awaited(at(26)));
        for second in 20..1_000 {
            gap.extend(at(second), Duration::from_secs(6));
        }
        assert!(gap.is_awaited(at(599)) && !gap.is_awaited(at(600)) && !gap.is_awaited(at(1_000)));
    }
}
