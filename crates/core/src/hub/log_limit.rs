//! Limits how often the same thing is logged, where clients can cause it at any rate.

use std::time::{Duration, Instant};

/// Allows one line per interval and counts the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogRateLimiter {
    /// When the next line is allowed.
    next_allowed_at: Option<Instant>,
    suppressed_line_count: u64,
}

/// Interval of lines about the same thing.
pub(crate) const MIN_LOG_INTERVAL: Duration = Duration::from_secs(10);

impl LogRateLimiter {
    /// Whether a line may be logged now: returns how many were suppressed since the last one.
    pub fn allow_log_line(&mut self, now: Instant) -> Option<u64> {
        if self.next_allowed_at.is_some_and(|next| now < next) {
            self.suppressed_line_count += 1;
            return None;
        }
        self.next_allowed_at = Some(now + MIN_LOG_INTERVAL);
        Some(std::mem::take(&mut self.suppressed_line_count))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    #[test]
    fn one_log_line_per_interval_counts_suppressed() {
        let (mut limit, t) = (LogRateLimiter::default(), Instant::now());
        assert_eq!(limit.allow_log_line(t), Some(0));
        for n in 0..1_000 {
            assert_eq!(limit.allow_log_line(t + Duration::from_millis(n)), None);
        }
        assert_eq!(limit.allow_log_line(t + MIN_LOG_INTERVAL), Some(1_000));
        assert_eq!(limit.allow_log_line(t + MIN_LOG_INTERVAL), None);
        assert_eq!(limit.allow_log_line(t + 3 * MIN_LOG_INTERVAL), Some(1));
        assert_eq!(limit.allow_log_line(t + 4 * MIN_LOG_INTERVAL), Some(0));
    }
}
