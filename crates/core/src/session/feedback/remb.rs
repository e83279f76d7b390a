//! Receiver-side bandwidth estimate for publishers without transport-wide feedback (draft-alvestrand-rmcat-remb-03).
//!
//! It is simple on purpose: it applies the loss-based rules of draft-ietf-rmcat-gcc-02 §6 to the received bitrate and
//! ignores delay. It lets a publisher grow beyond its start bitrate and back off when a link is full.

use std::time::{Duration, Instant};

/// A bitrate in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BitsPerSecond(pub u64);

/// Time between two estimates, over which the received bitrate is measured.
const ESTIMATE_INTERVAL: Duration = Duration::from_secs(1);

/// Up to this fraction lost (2 % in 1/256) the link has spare capacity.
const LOW_LOSS_FRACTION: u8 = 5;

/// From this fraction lost (10 % in 1/256) the link is full.
const HIGH_LOSS_FRACTION: u8 = 26;

/// Estimates how much a publisher may send on one SSRC.
pub(crate) struct RembEstimator {
    floor: BitsPerSecond,
    ceiling: BitsPerSecond,
    estimate: BitsPerSecond,
    /// Highest reported fraction lost since the last estimate, in 1/256.
    highest_fraction_lost: u8,
    interval_bytes: u64,
    interval_start: Option<Instant>,
}

impl RembEstimator {
    /// Creates an estimator whose estimates stay between `floor` and `ceiling`.
    pub(crate) fn new(floor: BitsPerSecond, ceiling: BitsPerSecond) -> Self {
        Self {
            floor,
            ceiling: ceiling.max(floor),
            estimate: floor,
            highest_fraction_lost: 0,
            interval_bytes: 0,
            interval_start: None,
        }
    }

    /// Counts an arrived RTP packet of `interval_bytes` bytes.
    pub(crate) fn on_packet(&mut self, now: Instant, bytes: usize) {
        self.interval_start.get_or_insert(now);
        self.interval_bytes = self.interval_bytes.saturating_add(bytes as u64);
    }

    /// Records the fraction lost (in 1/256) of a receiver report.
    pub(crate) fn record_fraction_lost(&mut self, fraction_lost: u8) {
        self.highest_fraction_lost = self.highest_fraction_lost.max(fraction_lost);
    }

    /// Returns a new estimate about once a second while packets arrive.
    ///
    /// Below 2 % loss the estimate is at least 1.5 times the received bitrate and never falls, so that a publisher that
    /// sends little at the moment is not limited. Up to 10 % it stays. Above, it is the received bitrate less half the
    /// loss.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<BitsPerSecond> {
        let elapsed = now.saturating_duration_since(self.interval_start?);
        if elapsed < ESTIMATE_INTERVAL || self.interval_bytes == 0 {
            return None;
        }
        let bits = u128::from(std::mem::take(&mut self.interval_bytes)) * 8;
        let rate = u64::try_from(bits * 1_000_000 / elapsed.as_micros()).unwrap_or(u64::MAX);
        self.interval_start = Some(now);
        let loss = std::mem::take(&mut self.highest_fraction_lost);
        let wanted = if loss <= LOW_LOSS_FRACTION {
            self.estimate.0.max(rate.saturating_add(rate / 2))
        } else if loss < HIGH_LOSS_FRACTION {
            self.estimate.0
        } else {
            let reduction = rate / 512 * u64::from(loss);
            self.estimate.0.min(rate - reduction)
        };
        self.estimate = BitsPerSecond(wanted).clamp(self.floor, self.ceiling);
        Some(self.estimate)
    }

    /// When [`Self::poll`] must be called; `None` while nothing arrives.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        (self.interval_bytes > 0)
            .then(|| Some(self.interval_start? + ESTIMATE_INTERVAL))
            .flatten()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends `rate` bit/s for one second from `second` on and returns the estimate.
    fn next_estimate_from_last_second(
        estimate: &mut RembEstimator,
        start: Instant,
        second: u32,
        rate: u64,
        loss: u8,
    ) -> u64 {
        for step in 0..100 {
            let now = start + MS * (second * 1000 + step * 10);
            estimate.on_packet(now, (rate / 800) as usize);
        }
        estimate.record_fraction_lost(loss);
        let Some(BitsPerSecond(bits)) = estimate.poll(start + MS * (second + 1) * 1000) else {
            panic!("no estimate after a second");
        };
        bits
    }

    fn new_estimator() -> (RembEstimator, Instant) {
        let estimate = RembEstimator::new(BitsPerSecond(300_000), BitsPerSecond(10_000_000));
        (estimate, Instant::now())
    }

    #[test]
    fn a_clean_link_leads_the_rate_upwards_to_the_ceiling() {
        let (mut estimate, start) = new_estimator();
        assert_eq!(
            next_estimate_from_last_second(&mut estimate, start, 0, 1_000_000, 0),
            1_500_000
        );
        assert_eq!(
            next_estimate_from_last_second(&mut estimate, start, 1, 2_000_000, 5),
            3_000_000
        );
        assert_eq!(
            next_estimate_from_last_second(&mut estimate, start, 2, 8_000_000, 0),
            10_000_000
        );
    }

    #[test]
    fn a_publisher_that_sends_little_is_not_limited() {
        let (mut estimate, start) = new_estimator();
        next_estimate_from_last_second(&mut estimate, start, 0, 2_000_000, 0);
        assert_eq!(
            next_estimate_from_last_second(&mut estimate, start, 1, 100_000, 0),
            3_000_000
        );
    }

    #[test]
    fn some_loss_holds_and_much_loss_yields_down_to_the_floor() {
        let (mut estimate, start) = new_estimator();
        next_estimate_from_last_second(&mut estimate, start, 0, 2_000_000, 0);
        assert_eq!(
            next_estimate_from_last_second(&mut estimate, start, 1, 2_000_000, 13),
            3_000_000
        );
        let yielded = next_estimate_from_last_second(&mut estimate, start, 2, 2_000_000, 51);
        assert!((1_790_000..1_810_000).contains(&yielded), "{yielded}");
        assert_eq!(
            next_estimate_from_last_second(&mut estimate, start, 3, 100_000, 255),
            300_000
        );
    }

    #[test]
    fn silence_gives_no_estimate() {
        let (mut estimate, start) = new_estimator();
        assert_eq!(estimate.poll(start), None);
        assert_eq!(estimate.poll_timeout(), None);
        estimate.on_packet(start, 1000);
        assert_eq!(estimate.poll(start + 999 * MS), None);
        assert_eq!(estimate.poll_timeout(), Some(start + 1000 * MS));
        assert!(estimate.poll(start + 1000 * MS).is_some());
        assert_eq!(estimate.poll(start + 5000 * MS), None);
    }
}
