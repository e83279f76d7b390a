//! Limits how often the same thing is logged, where clients can cause it at any rate.

use std::time::{Duration, Instant};

/// Allows one line per interval and counts the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogLimit {
    /// When the next line is allowed.
    next: Option<Instant>,
    suppressed: u64,
}

/// Interval of lines about the same thing.
pub const LOG_INTERVAL: Duration = Duration::from_secs(10);

impl LogLimit {
    /// Whether a line may be logged now: returns how many were suppressed since the last one.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            self.suppressed += 1;
            return None;
        }
        self.next = Some(now + LOG_INTERVAL);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_interval_tells_how_many_were_suppressed() {
        let (mut limit, t) = (LogLimit::default(), Instant::now());
        assert_eq!(limit.allow(t), Some(0));
        for n in 0..1_000 {
            assert_eq!(limit.allow(t + Duration::from_millis(n)), None);
        }
        assert_eq!(limit.allow(t + LOG_INTERVAL), Some(1_000));
        assert_eq!(limit.allow(t + LOG_INTERVAL), None);
        assert_eq!(limit.allow(t + 3 * LOG_INTERVAL), Some(1));
        assert_eq!(limit.allow(t + 4 * LOG_INTERVAL), Some(0));
    }
}
