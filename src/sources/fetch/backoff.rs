//! Delays before a failed source is retried. Randomness is an argument.

use std::time::Duration;

/// Delays that grow while a source fails.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    /// Consecutive rejections of the credentials.
    rejections: u32,
}

const FIRST: Duration = Duration::from_millis(250);

/// Short, so that a stream resumes soon after its source is back. An attempt is cheap.
const LONGEST: Duration = Duration::from_millis(1_500);

/// Consecutive rejections of the credentials before delays become long: cameras lock an account or an address after a
/// few.
const SAFE_TRIES: u32 = 2;
const SOON: Duration = Duration::from_secs(2);
const LOCKED: Duration = Duration::from_secs(60);

impl Backoff {
    /// Returns the delay after another failure: 0.25, 0.5, 1 and then 1.5 s, plus up to a quarter of it so that many
    /// cameras behind one switch do not reconnect at once. `random` is uniformly distributed.
    pub fn after_failure(&mut self, random: u32) -> Duration {
        let wait = FIRST * 2u32.pow(self.failures.min(5));
        self.failures = self.failures.saturating_add(1);
        self.rejections = 0;
        spread(wait.min(LONGEST), random)
    }

    /// Returns the delay after the credentials were rejected.
    pub fn after_refused_credentials(&mut self, random: u32) -> Duration {
        self.rejections = self.rejections.saturating_add(1);
        spread(if self.rejections > SAFE_TRIES { LOCKED } else { SOON }, random)
    }

    /// Resets the delays after the source was live for a while.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

fn spread(wait: Duration, random: u32) -> Duration {
    wait + wait.mul_f64(f64::from(random) / f64::from(u32::MAX) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_longest_and_begin_again_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..5).map(|_| backoff.after_failure(0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 1500, 1500]);
        assert_eq!(backoff.after_failure(u32::MAX), Duration::from_millis(1875));
        backoff.reset();
        assert_eq!(backoff.after_failure(0), Duration::from_millis(250));
    }

    #[test]
    fn refused_credentials_are_not_tried_again_often() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..4).map(|_| backoff.after_refused_credentials(0).as_secs()).collect();
        assert_eq!(waits, [2, 2, 60, 60]);
        // Another failure resets the count of rejections.
        backoff.after_failure(0);
        assert_eq!(backoff.after_refused_credentials(u32::MAX), Duration::from_millis(2500));
    }
}
