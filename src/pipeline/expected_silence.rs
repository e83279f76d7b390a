//! Pauses in the input of a worker that are known in advance: no frame is due until they are over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Until when a worker need not send frames. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct ExpectedSilence(Arc<Mutex<Option<Instant>>>);

/// Longest pause ahead: a live source announces its pauses as they come, and what announces a longer one is likely to be
/// wrong. A source that stands still afterwards is noticed so much later at most.
const MAX_SILENCE_AHEAD: Duration = Duration::from_secs(90);

impl ExpectedSilence {
    /// Adds a pause that begins when those before it are over, at the earliest now.
    pub fn extend(&self, duration: Duration) {
        let now = Instant::now();
        let mut end = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let after = end.map_or(now, |end| end.max(now)) + duration.min(MAX_SILENCE_AHEAD);
        *end = Some(after.min(now + MAX_SILENCE_AHEAD));
    }

    /// When a timeout for frames begins that would begin at `start` without pauses.
    pub(super) fn delay_timeout_start(&self, start: Instant) -> Instant {
        let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        end.map_or(start, |end| end.max(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_follow_each_other_and_are_bounded() {
        let (begin, silence) = (Instant::now(), ExpectedSilence::default());
        let at = |secs: u64| begin + Duration::from_secs(secs);
        assert_eq!(silence.delay_timeout_start(begin), begin);
        // Three at once, then one that comes late.
        for _ in 0..3 {
            silence.extend(Duration::from_secs(6));
        }
        assert_eq!(silence.clone().delay_timeout_start(begin), at(18));
        assert_eq!(silence.delay_timeout_start(at(19)), at(19));
        tokio::time::advance(Duration::from_secs(20)).await;
        silence.extend(Duration::from_secs(6));
        assert_eq!(silence.delay_timeout_start(begin), at(26));
        for _ in 0..1_000 {
            silence.extend(Duration::MAX);
        }
        assert_eq!(silence.delay_timeout_start(begin), at(110));
    }
}
