//! A token bucket in virtual time.

use std::time::{Duration, Instant};

/// Allows `per_second` units a second, and as many at once after a second of silence.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    per_second: u64,
    /// Units that may be taken now, in millionths.
    available_micros: u64,
    refilled_at: Option<Instant>,
}

const MICROS_PER_SECOND: u64 = 1_000_000;

impl TokenBucket {
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            per_second: u64::from(per_second),
            available_micros: u64::from(per_second) * MICROS_PER_SECOND,
            refilled_at: None,
        }
    }

    /// Takes units if they are there.
    pub(crate) fn try_take_tokens(&mut self, now: Instant, units: u64) -> bool {
        let elapsed = self
            .refilled_at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.refilled_at = Some(now);
        let elapsed = u64::try_from(elapsed.as_micros())
            .unwrap_or(u64::MAX)
            .min(MICROS_PER_SECOND);
        let limit = self.per_second * MICROS_PER_SECOND;
        self.available_micros = (self.available_micros + self.per_second * elapsed).min(limit);
        let is_allowed = self.available_micros >= units * MICROS_PER_SECOND;
        if is_allowed {
            self.available_micros -= units * MICROS_PER_SECOND;
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_units_is_there_at_once_and_refills_with_time() {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let mut limit = TokenBucket::new(10);
        assert_eq!((0..20).filter(|_| limit.try_take_tokens(now, 1)).count(), 10);
        let later = now + Duration::from_millis(300);
        assert_eq!((0..20).filter(|_| limit.try_take_tokens(later, 1)).count(), 3);
        assert!(limit.try_take_tokens(later + Duration::from_secs(9), 10));
        assert!(!limit.try_take_tokens(later + Duration::from_secs(9), 1));
    }
}
