//! How often the adaptation of a viewer may compute: feedback comes as often as the viewer likes.

use std::time::{Duration, Instant};

use crate::congestion::ladder::QualityLadder;

/// Limits how many feedback packets of a viewer are evaluated: what is above is as good as lost on the way.
#[derive(Debug)]
pub(super) struct FeedbackLimiter {
    /// Time that was saved up for evaluations.
    credit: Duration,
    refilled_at: Instant,
}

/// Time between two evaluations on average. Receivers give feedback each 20 to 250 ms.
const MIN_FEEDBACK_EVALUATION_INTERVAL: Duration = Duration::from_millis(5);

/// Evaluations at once: one feedback covers as many packets as fit into a datagram, so several may come together.
const MAX_FEEDBACK_EVALUATION_BURST: u32 = 8;

impl FeedbackLimiter {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            credit: MIN_FEEDBACK_EVALUATION_INTERVAL * MAX_FEEDBACK_EVALUATION_BURST,
            refilled_at: now,
        }
    }

    /// Takes one evaluation, if there is one.
    pub(super) fn take_feedback_credit(&mut self, now: Instant) -> bool {
        let saved = self.credit + now.saturating_duration_since(self.refilled_at);
        self.refilled_at = now;
        let saved = saved.min(MIN_FEEDBACK_EVALUATION_INTERVAL * MAX_FEEDBACK_EVALUATION_BURST);
        let rest = saved.checked_sub(MIN_FEEDBACK_EVALUATION_INTERVAL);
        self.credit = rest.unwrap_or(saved);
        rest.is_some()
    }
}

/// The ladder of a viewer, which is made under the lock of its stream: one serves for some feedback packets.
#[derive(Debug, Default)]
pub(super) struct QualityLadderCache(Option<(Instant, QualityLadder)>);

const QUALITY_LADDER_CACHE_LIFETIME: Duration = Duration::from_millis(100);

impl QualityLadderCache {
    /// Returns the ladder, unless it is too old.
    pub(super) fn get(&self, now: Instant) -> Option<QualityLadder> {
        let (made_at, ladder) = self.0.as_ref()?;
        (now.saturating_duration_since(*made_at) < QUALITY_LADDER_CACHE_LIFETIME).then_some(*ladder)
    }

    pub(super) fn put(&mut self, now: Instant, ladder: QualityLadder) {
        self.0 = Some((now, ladder));
    }

    /// What it was made from has changed.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn feedback_is_evaluated_at_most_200_times_a_second_and_none_of_a_browser_is_left_out() {
        let start = Instant::now();
        let mut limiter = FeedbackLimiter::new(start);
        // Four in each of 100 datagrams per millisecond, for a second.
        let flood = (0..400_000_u32).filter(|index| limiter.take_feedback_credit(start + MS * (index / 400)));
        assert_eq!(flood.count(), 207);
        let mut limiter = FeedbackLimiter::new(start);
        assert!((0..1_000).all(|index| limiter.take_feedback_credit(start + 20 * MS * index)));
        let mut limiter = FeedbackLimiter::new(start);
        let together = |index: u32| start + 50 * MS * (index / 8);
        assert!((0..1_000).all(|index| limiter.take_feedback_credit(together(index))));
    }

    #[test]
    fn a_ladder_serves_for_a_tenth_of_a_second_unless_something_changes() {
        let start = Instant::now();
        let mut cache = QualityLadderCache::default();
        assert!(cache.get(start).is_none());
        cache.put(start, QualityLadder::new(64_000));
        assert!(cache.get(start + 99 * MS).is_some());
        assert!(cache.get(start + 100 * MS).is_none());
        cache.clear();
        assert!(cache.get(start).is_none());
    }
}
