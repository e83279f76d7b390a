//! Variants that failed, or had a gap.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::files::content_hash;

/// Variants that were left, by checksums of what identifies them, which may be long. They outlive a restart of the source.
#[derive(Clone, Debug, Default)]
pub struct FailedVariants(Arc<Mutex<Vec<FailedVariant>>>);

#[derive(Clone, Copy, Debug)]
struct FailedVariant {
    id: u64,
    failed_at: Instant,
    /// The source has not returned to it.
    is_left: bool,
    reason: LeaveReason,
    /// How often it failed soon after the source had returned to it.
    relapses: u32,
}

/// Why a variant was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaveReason {
    /// Its playlist marks segments as missing, or has DRM.
    Gap,
    /// Its files could not be fetched or played, whatever its playlist lists.
    Failure,
}

/// What is required of a variant that was left until the source returns to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReturnRequirement {
    /// For how long it must have media.
    pub(super) media: Duration,
    /// Why it was left: its playlist shows the end of a gap, but not that its segments can be fetched.
    pub(super) reason: LeaveReason,
}

/// How long a variant that failed is tried after the others.
const FAILED_VARIANT_DEMOTION_PERIOD: Duration = Duration::from_secs(300);

/// For how long a variant that was left must have media until the source returns to it. The time doubles with each failure that
/// follows soon.
const MEDIA_BEFORE_RETURN: Duration = Duration::from_secs(10);
const MAX_RELAPSES: u32 = 5;

/// A variant that fails after a longer time is no relapse.
const RELAPSE_PERIOD: Duration = Duration::from_secs(900);

/// Maximum number of variants that are remembered.
const MAX_FAILED_VARIANTS: usize = 64;

impl FailedVariants {
    /// Records that a variant failed or has a gap. One that is left for both reasons has failed.
    pub(super) fn add(&self, id: &str, reason: LeaveReason) {
        let id = content_hash(id.as_bytes());
        let now = Instant::now();
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = failed
            .iter()
            .position(|variant| variant.id == id)
            .map(|at| failed.remove(at));
        let relapses = known.map_or(0, |known| match (known.is_left, now - known.failed_at) {
            (true, _) => known.relapses,
            (false, since) if since <= RELAPSE_PERIOD => (known.relapses + 1).min(MAX_RELAPSES),
            (false, _) => 0,
        });
        let before = known.filter(|known| known.is_left && known.reason == LeaveReason::Failure);
        if failed.len() >= MAX_FAILED_VARIANTS {
            failed.remove(0);
        }
        failed.push(FailedVariant {
            id,
            failed_at: now,
            is_left: true,
            reason: before.map_or(reason, |before| before.reason),
            relapses,
        });
    }

    /// Whether a variant is tried after the others.
    pub(super) fn is_demoted(&self, id: &str) -> bool {
        self.find(id)
            .is_some_and(|variant| variant.is_left && variant.failed_at.elapsed() < FAILED_VARIANT_DEMOTION_PERIOD)
    }

    /// Returns what is required of a variant until the source returns to it; `None` if it was not left.
    pub(super) fn return_requirement(&self, id: &str) -> Option<ReturnRequirement> {
        let variant = self.find(id).filter(|variant| variant.is_left)?;
        Some(ReturnRequirement {
            media: MEDIA_BEFORE_RETURN * (1 << variant.relapses),
            reason: variant.reason,
        })
    }

    /// Whether any variant was left.
    pub(super) fn has_left_any(&self) -> bool {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.iter().any(|variant| variant.is_left)
    }

    /// Records that the source has returned to a variant.
    pub(super) fn record_return(&self, id: &str) {
        let id = content_hash(id.as_bytes());
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(variant) = failed.iter_mut().find(|variant| variant.id == id) {
            variant.is_left = false;
        }
    }

    fn find(&self, id: &str) -> Option<FailedVariant> {
        let id = content_hash(id.as_bytes());
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.iter().find(|variant| variant.id == id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_variant_that_fails_again_and_again_is_returned_to_later_each_time() {
        let (failed, second) = (FailedVariants::default(), Duration::from_secs(1));
        let media = || failed.return_requirement("a").map(|required| required.media);
        assert_eq!(media(), None);
        for expected in [10, 20, 40, 80, 160, 320, 320] {
            failed.add("a", LeaveReason::Gap);
            failed.add("a", LeaveReason::Gap);
            assert!(failed.is_demoted("a") && failed.has_left_any() && !failed.is_demoted("b"));
            assert_eq!(media(), Some(second * expected));
            failed.record_return("a");
            assert!(!failed.is_demoted("a") && !failed.has_left_any());
            assert_eq!(media(), None);
            tokio::time::advance(second * 400).await;
        }
        tokio::time::advance(RELAPSE_PERIOD).await;
        failed.add("a", LeaveReason::Gap);
        assert_eq!(media(), Some(second * 10));
        tokio::time::advance(FAILED_VARIANT_DEMOTION_PERIOD).await;
        assert!(!failed.is_demoted("a"));
        assert_eq!(media(), Some(second * 10), "it was not returned to");
    }

    #[test]
    fn the_reason_for_which_a_variant_was_left_is_remembered() {
        use LeaveReason::{Failure, Gap};
        let failed = FailedVariants::default();
        let reason = || failed.return_requirement("a").map(|required| required.reason);
        for (added, expected) in [(Gap, Gap), (Failure, Failure), (Gap, Failure)] {
            failed.add("a", added);
            assert_eq!(reason(), Some(expected));
        }
        failed.record_return("a");
        failed.add("a", Gap);
        assert_eq!(reason(), Some(Gap), "it was returned to in between");
    }

    #[test]
    fn only_the_last_failures_are_remembered() {
        let failed = FailedVariants::default();
        for number in 0..MAX_FAILED_VARIANTS + 1 {
            failed.add(&number.to_string(), LeaveReason::Failure);
        }
        assert!(!failed.is_demoted("0") && failed.is_demoted("1"));
    }
}
