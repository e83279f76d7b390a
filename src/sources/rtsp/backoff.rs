//! How long to wait before a camera is tried again. Chance is an argument.

use std::time::Duration;

/// Waits that grow while a camera fails.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(15);

/// Cameras lock an account, or an address, after a few wrong passwords in a row.
const CREDENTIALS: Duration = Duration::from_secs(60);

impl Backoff {
    /// The wait after one more failure: 0.5, 1, 2, 4, 8 and then 15 s, and up to a quarter more so that many cameras
    /// behind one switch do not come back at once. `random` is any number.
    pub(super) fn after_failure(&mut self, random: u32) -> Duration {
        let wait = FIRST * 2u32.pow(self.failures.min(5));
        self.failures = self.failures.saturating_add(1);
        spread(wait.min(LONGEST), random)
    }

    /// The wait after the credentials were refused.
    pub(super) fn after_refused_credentials(&mut self, random: u32) -> Duration {
        spread(CREDENTIALS, random)
    }

    /// The camera played for a while.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
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
        let waits: Vec<u128> = (0..7).map(|_| backoff.after_failure(0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
        backoff.reset();
        assert_eq!(backoff.after_failure(u32::MAX), Duration::from_millis(625));
    }

    #[test]
    fn refused_credentials_are_not_tried_again_within_a_minute() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.after_refused_credentials(0), Duration::from_secs(60));
        assert_eq!(backoff.after_refused_credentials(u32::MAX), Duration::from_secs(75));
    }
}
