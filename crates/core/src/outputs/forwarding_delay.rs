//! How long the packets of one viewer wait in the gateway.

use std::time::{Duration, Instant};

/// The smoothed time from the arrival of a packet to its sending.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ForwardingDelay {
    mean_and_time: Option<(Duration, Instant)>,
    ignored_before: Option<Instant>,
}

/// Each measurement contributes one of so many parts to the mean: half a second of video.
const SMOOTHING_DIVISOR: u32 = 16;

/// An older mean is outdated. A viewer who is sent key frames alone gets one every few seconds.
const MAX_AGE: Duration = Duration::from_secs(15);

impl ForwardingDelay {
    /// A burst starts: the packets of it that have arrived before are not late, but older.
    pub(crate) fn ignore_arrivals_before(&mut self, start: Instant) {
        self.ignored_before = Some(start);
    }

    /// Records that a packet is sent now.
    #[inline]
    pub(crate) fn record(&mut self, arrival: Instant, now: Instant) {
        if self.ignored_before.is_none_or(|start| arrival >= start) {
            self.record_delay(now.saturating_duration_since(arrival), now);
        }
    }

    /// Records the delay of a packet that was sent now.
    #[inline]
    pub(crate) fn record_delay(&mut self, delay: Duration, now: Instant) {
        let mean = match self.mean_and_time {
            Some((mean, _)) => mean - mean / SMOOTHING_DIVISOR + delay / SMOOTHING_DIVISOR,
            None => delay,
        };
        self.mean_and_time = Some((mean, now));
    }

    /// Returns the mean; `None` if nothing was sent for [`MAX_AGE`].
    pub(crate) fn recent_mean(&self, now: Instant) -> Option<Duration> {
        let (mean, at) = self.mean_and_time?;
        (now.saturating_duration_since(at) < MAX_AGE).then_some(mean)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_smoothed_and_forgotten_when_nothing_is_sent() {
        let (mut delay, t, ms) = (ForwardingDelay::default(), Instant::now(), Duration::from_millis);
        assert_eq!(delay.recent_mean(t), None);
        delay.record(t, t + ms(2));
        assert_eq!(delay.recent_mean(t + ms(2)), Some(ms(2)));
        delay.record(t, t + ms(162));
        assert_eq!(delay.recent_mean(t + ms(162)), Some(ms(12)), "one of sixteen");
        for n in 0..100 {
            delay.record(t + ms(n), t + ms(n + 40));
        }
        let mean = delay.recent_mean(t + ms(139)).expect("it was sent");
        assert!((ms(39)..ms(41)).contains(&mean), "{mean:?}");
        assert_eq!(delay.recent_mean(t + ms(139) + MAX_AGE), None);
    }

    #[test]
    fn what_a_burst_repeats_is_not_late_and_what_waits_for_its_end_is() {
        let (mut delay, t, ms) = (ForwardingDelay::default(), Instant::now(), Duration::from_millis);
        delay.ignore_arrivals_before(t + ms(1_000));
        delay.record(t, t + ms(1_010));
        assert_eq!(delay.recent_mean(t + ms(1_010)), None);
        delay.record(t + ms(1_005), t + ms(1_025));
        assert_eq!(delay.recent_mean(t + ms(1_025)), Some(ms(20)));
    }
}
