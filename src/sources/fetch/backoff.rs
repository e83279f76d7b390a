//! Delays before a failed source is retried. Randomness is an argument.

use std::time::Duration;

/// Delays that grow while a source fails.
#[derive(Debug, Default)]
pub struct Backoff {
    failure_count: u32,
    /// Consecutive rejections of the credentials.
    credential_rejection_count: u32,
}

const FIRST_RETRY_DELAY: Duration = Duration::from_millis(250);

/// Short, so that a stream resumes soon after its source is back. An attempt is cheap.
const MAX_RETRY_DELAY: Duration = Duration::from_millis(1_500);

/// Consecutive rejections of the credentials before delays become long: cameras lock an account or an address after a
/// few.
const QUICK_CREDENTIAL_RETRIES: u32 = 2;
const CREDENTIAL_RETRY_DELAY: Duration = Duration::from_secs(2);
const LOCKOUT_AVOIDANCE_DELAY: Duration = Duration::from_secs(60);

impl Backoff {
    /// Returns the delay after another failure: 0.25, 0.5, 1 and then 1.5 s, plus up to a quarter of it so that many
    /// cameras behind one switch do not reconnect at once. `random` is uniformly distributed.
    pub fn next_delay_after_failure(&mut self, random: u32) -> Duration {
        let wait = FIRST_RETRY_DELAY * 2u32.pow(self.failure_count.min(5));
        self.failure_count = self.failure_count.saturating_add(1);
        self.credential_rejection_count = 0;
        add_jitter(wait.min(MAX_RETRY_DELAY), random)
    }

    /// Returns the delay after the credentials were rejected.
    pub fn next_delay_after_credential_rejection(&mut self, random: u32) -> Duration {
        self.credential_rejection_count = self.credential_rejection_count.saturating_add(1);
        add_jitter(
            if self.credential_rejection_count > QUICK_CREDENTIAL_RETRIES {
                LOCKOUT_AVOIDANCE_DELAY
            } else {
                CREDENTIAL_RETRY_DELAY
            },
            random,
        )
    }

    /// Resets the delays after the source was live for a while.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

fn add_jitter(wait: Duration, random: u32) -> Duration {
    wait + wait.mul_f64(f64::from(random) / f64::from(u32::MAX) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_longest_and_begin_again_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..5)
            .map(|_| backoff.next_delay_after_failure(0).as_millis())
            .collect();
        assert_eq!(waits, [250, 500, 1000, 1500, 1500]);
        assert_eq!(backoff.next_delay_after_failure(u32::MAX), Duration::from_millis(1875));
        backoff.reset();
        assert_eq!(backoff.next_delay_after_failure(0), Duration::from_millis(250));
    }

    #[test]
    fn refused_credentials_are_not_tried_again_often() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..4)
            .map(|_| backoff.next_delay_after_credential_rejection(0).as_secs())
            .collect();
        assert_eq!(waits, [2, 2, 60, 60]);
        // Another failure resets the count of rejections.
        backoff.next_delay_after_failure(0);
        assert_eq!(
            backoff.next_delay_after_credential_rejection(u32::MAX),
            Duration::from_millis(2500)
        );
    }
}
