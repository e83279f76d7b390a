//! Gaps in the media of an origin, such as advertisements that only some players can decrypt.
//!
//! As long as the playlist goes on with segments that have no media, the source waits: opened anew, it would find nothing
//! else to play. If another variant has media meanwhile, that is played.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::pipeline::expected_silence::ExpectedSilence;
use crate::sources::fetch::status::SourceGap;

/// The gap in the leading rendition of a source.
#[derive(Clone)]
pub(super) struct SharedGap {
    current: Arc<Mutex<Option<SourceGap>>>,
    expected_silence: ExpectedSilence,
    /// Notified when a gap begins or ends.
    changed: Arc<Notify>,
}

impl SharedGap {
    /// Makes the gap of a source whose worker need not send frames meanwhile.
    pub(super) fn new(expected_silence: ExpectedSilence) -> Self {
        Self {
            current: Arc::default(),
            expected_silence,
            changed: Arc::default(),
        }
    }

    /// Records one more segment without media. Returns how long the gap has lasted.
    pub(super) fn extend(&self, duration: Duration, reason: &str) -> Duration {
        self.expected_silence.extend(duration);
        let now = Instant::now().into_std();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let gap = current.get_or_insert_with(|| {
            self.changed.notify_one();
            SourceGap {
                since: now,
                reason: reason.to_owned(),
            }
        });
        now.saturating_duration_since(gap.since)
    }

    /// A segment has media again.
    pub(super) fn end(&self) {
        let ended = self.current.lock().unwrap_or_else(PoisonError::into_inner).take();
        if ended.is_some() {
            self.changed.notify_one();
        }
    }

    /// Returns the gap that the source is in.
    pub(super) fn get(&self) -> Option<SourceGap> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a gap begins or ends.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gap_lasts_until_there_is_media() {
        let gap = SharedGap::new(ExpectedSilence::default());
        for second in 0..3 {
            let lasted = gap.extend(Duration::from_secs(1), "it is missing");
            assert_eq!(lasted, Duration::from_secs(second));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        gap.changed().await;
        assert_eq!(gap.get().expect("a gap").reason, "it is missing");
        gap.end();
        gap.changed().await;
        assert_eq!(gap.get(), None);
        assert_eq!(gap.extend(Duration::from_secs(1), "another"), Duration::ZERO);
    }
}
