//! How long the network holds our packets: delay of a burst over its minimum, less the queue that we make ourselves.

use super::overload::OverloadThresholds;

/// Delay of bursts. All times are in microseconds; arrivals are on the clock of the receiver.
#[derive(Debug)]
pub(super) struct DelayEstimator {
    /// Least delay in the current and in the previous period.
    min_delay_by_period: [i64; 2],
    /// Delay of the newest sample over the least delay: the queues of all, also of our own packets.
    newest_delay_over_base: i32,
    period_began: u64,
    /// The same of longer periods: what the path takes without the queue of others.
    min_delay_by_long_period: [i64; 2],
    long_period_began: u64,
    /// Least excess by intervals of [`EXCESS_DELAY_INTERVAL_US`] of arrival, the newest at [`Self::newest_interval`].
    min_excess_by_interval: [i32; EXCESS_DELAY_INTERVAL_COUNT],
    newest_interval: i64,
    /// Consecutive bursts with high and growing excess.
    rising_burst_count: u8,
    /// Arrival of the last packet that was compared.
    last_sample_arrival: i64,
}

/// A burst: when its first packet left and arrived, the queue of our own packets before it, and the excess that others
/// cause.
#[derive(Clone, Copy, Debug)]
pub(super) struct DelaySample {
    pub(super) sent_at: u64,
    pub(super) arrival: i64,
    pub(super) self_inflicted_delay: i32,
    pub(super) cross_traffic_delay: i32,
}

/// The base is the minimum of one to two of these: a clock that drifts by 100 ppm moves 1 ms in it.
const BASE_DELAY_PERIOD_US: u64 = 5_000_000;

/// Others may keep a queue for longer than [`BASE_DELAY_PERIOD_US`], so that it would join the base.
const LONG_BASE_DELAY_PERIOD_US: u64 = 30_000_000;

/// Packets within a burst are compared at this distance of arrival: a burst that the path stretches shows the queue
/// that it makes before the next one leaves.
const MIN_DELAY_SAMPLE_INTERVAL_US: i64 = 10_000;

const EXCESS_DELAY_INTERVAL_US: i64 = 55_000;
const EXCESS_DELAY_INTERVAL_COUNT: usize = 8;

/// Intervals whose minimum is the excess: 110 to 165 ms, longer than most jitter.
const RECENT_EXCESS_DELAY_INTERVAL_COUNT: usize = 3;

/// A step of the delay that no network makes: the receiver's clock was set, or it slept.
const MIN_RECEIVER_CLOCK_JUMP_US: i64 = 10_000_000;

const UNKNOWN_EXCESS_DELAY: i32 = i32::MAX;

impl DelayEstimator {
    pub(super) fn new() -> Self {
        Self {
            min_delay_by_period: [i64::MAX; 2],
            newest_delay_over_base: 0,
            period_began: 0,
            min_delay_by_long_period: [i64::MAX; 2],
            long_period_began: 0,
            min_excess_by_interval: [UNKNOWN_EXCESS_DELAY; EXCESS_DELAY_INTERVAL_COUNT],
            newest_interval: i64::MIN,
            rising_burst_count: 0,
            last_sample_arrival: i64::MIN,
        }
    }

    /// Records a burst. Returns its excess.
    pub(super) fn on_burst(&mut self, burst: DelaySample, thresholds: OverloadThresholds) -> i32 {
        let DelaySample {
            sent_at: sent,
            arrival,
            self_inflicted_delay: own,
            cross_traffic_delay: tolerated,
        } = burst;
        let delay = arrival.saturating_sub_unsigned(sent);
        let known = self.min_delay_by_period.iter().copied().min().unwrap_or(i64::MAX);
        if known != i64::MAX && (delay - known).abs() > MIN_RECEIVER_CLOCK_JUMP_US {
            *self = Self::new();
        }
        if sent.saturating_sub(self.period_began) >= BASE_DELAY_PERIOD_US {
            self.min_delay_by_period = [delay, self.min_delay_by_period[0]];
            self.period_began = sent;
        }
        self.min_delay_by_period[0] = self.min_delay_by_period[0].min(delay);
        if sent.saturating_sub(self.long_period_began) >= LONG_BASE_DELAY_PERIOD_US {
            self.min_delay_by_long_period = [delay, self.min_delay_by_long_period[0]];
            self.long_period_began = sent;
        }
        self.min_delay_by_long_period[0] = self.min_delay_by_long_period[0].min(delay);
        self.newest_delay_over_base = i32::try_from(delay - self.base_delay()).unwrap_or(i32::MAX);
        let excess = self.newest_delay_over_base.saturating_sub(own);
        self.rising_burst_count = if self.is_excess_delay_rising(excess, tolerated, thresholds) {
            self.rising_burst_count.saturating_add(1)
        } else {
            0
        };
        self.last_sample_arrival = arrival;
        self.record_excess_delay(arrival, excess);
        excess
    }

    /// Records a later packet of a burst: it counts only if it is late.
    pub(super) fn record_delay_of_later_burst_packet(&mut self, packet: DelaySample, thresholds: OverloadThresholds) {
        let is_base_known = self.base_delay() != i64::MAX;
        if !is_base_known || packet.arrival.saturating_sub(self.last_sample_arrival) < MIN_DELAY_SAMPLE_INTERVAL_US {
            return;
        }
        self.last_sample_arrival = packet.arrival;
        let delay = packet.arrival.saturating_sub_unsigned(packet.sent_at);
        let excess = i32::try_from(delay.saturating_sub(self.base_delay())).unwrap_or(i32::MAX);
        let excess = excess.saturating_sub(packet.self_inflicted_delay);
        if self.is_excess_delay_rising(excess, packet.cross_traffic_delay, thresholds) {
            self.rising_burst_count = self.rising_burst_count.saturating_add(1);
        }
    }

    fn is_excess_delay_rising(&self, excess: i32, tolerated: i32, thresholds: OverloadThresholds) -> bool {
        let floor = self.min_excess_delay_or_unknown();
        excess > thresholds.burst_excess.saturating_add(tolerated)
            && floor != UNKNOWN_EXCESS_DELAY
            && excess - floor.max(0) > thresholds.burst_excess_growth
    }

    pub(super) fn newest_delay_over_base(&self) -> i32 {
        self.newest_delay_over_base
    }

    fn base_delay(&self) -> i64 {
        self.min_delay_by_period[0].min(self.min_delay_by_period[1])
    }

    /// The least delay of 30 to 60 s, if any is known.
    pub(super) fn long_term_base_delay(&self) -> Option<i64> {
        let base = self.min_delay_by_long_period[0].min(self.min_delay_by_long_period[1]);
        (base != i64::MAX).then_some(base)
    }

    /// Least delay of about the last 110 ms, without our own queue.
    pub(super) fn recent_min_delay_without_own_queue(&self) -> i64 {
        self.base_delay()
            .saturating_add(i64::from(self.recent_min_excess_delay()))
    }

    fn record_excess_delay(&mut self, arrival: i64, excess: i32) {
        let interval = arrival.div_euclid(EXCESS_DELAY_INTERVAL_US);
        let ahead = interval.saturating_sub(self.newest_interval);
        if ahead > 0 {
            let shift = usize::try_from(ahead)
                .unwrap_or(EXCESS_DELAY_INTERVAL_COUNT)
                .min(EXCESS_DELAY_INTERVAL_COUNT);
            self.min_excess_by_interval.rotate_right(shift);
            self.min_excess_by_interval
                .iter_mut()
                .take(shift)
                .for_each(|minimum| *minimum = UNKNOWN_EXCESS_DELAY);
            self.newest_interval = interval;
        }
        // Packets are not reordered by more than an interval as a rule; older ones count for the newest.
        self.min_excess_by_interval[0] = self.min_excess_by_interval[0].min(excess);
    }

    /// Least excess of about the last 110 ms of arrivals, 0 or more; 0 if unknown.
    pub(super) fn recent_min_excess_delay(&self) -> i32 {
        let least = self
            .min_excess_by_interval
            .iter()
            .take(RECENT_EXCESS_DELAY_INTERVAL_COUNT)
            .copied()
            .min();
        least
            .filter(|excess| *excess != UNKNOWN_EXCESS_DELAY)
            .unwrap_or(0)
            .max(0)
    }

    fn min_excess_delay_or_unknown(&self) -> i32 {
        self.min_excess_by_interval
            .iter()
            .copied()
            .min()
            .unwrap_or(UNKNOWN_EXCESS_DELAY)
    }

    /// Whether two bursts in a row had high and growing excess.
    pub(super) fn has_consecutive_bursts_with_rising_delay(&self) -> bool {
        self.rising_burst_count >= 2
    }

    /// Forgets the excess: nothing of late shows it.
    pub(super) fn forget_excess_and_rising_bursts(&mut self) {
        self.min_excess_by_interval = [UNKNOWN_EXCESS_DELAY; EXCESS_DELAY_INTERVAL_COUNT];
        self.rising_burst_count = 0;
    }

    /// Begins to compare growth anew: what was sent has changed.
    pub(super) fn reset_rising_delay_detection(&mut self) {
        self.rising_burst_count = 0;
    }
}

/// The queue that our own packets make on a link of known capacity. Without it every key frame looks like congestion.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SelfInflictedQueue {
    bytes: u64,
    updated_at: u64,
}

/// A longer queue is never explained by ourselves, in microseconds.
const MAX_SELF_INFLICTED_DELAY_US: u64 = 300_000;

impl SelfInflictedQueue {
    /// How long a packet that is sent then waits behind what was sent before, in microseconds.
    pub(super) fn queuing_delay_at(&self, sent: u64, bits_per_second: u32) -> u64 {
        let rate = u64::from(bits_per_second.max(1));
        let drained = sent.saturating_sub(self.updated_at).min(10_000_000) * rate / 8_000_000;
        (self.bytes.saturating_sub(drained) * 8_000_000 / rate).min(MAX_SELF_INFLICTED_DELAY_US)
    }

    /// Adds a burst; returns how long its first packet waits behind what we sent before, in microseconds.
    pub(super) fn push(&mut self, sent: u64, bytes: u32, bits_per_second: u32) -> i32 {
        let rate = u64::from(bits_per_second.max(1));
        let drained = sent.saturating_sub(self.updated_at).min(10_000_000) * rate / 8_000_000;
        self.bytes = self.bytes.saturating_sub(drained);
        self.updated_at = sent;
        let wait = (self.bytes * 8_000_000 / rate).min(MAX_SELF_INFLICTED_DELAY_US);
        self.bytes =
            (self.bytes + u64::from(bytes)).min(MAX_SELF_INFLICTED_DELAY_US * rate / 8_000_000 + u64::from(bytes));
        wait as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    /// Sends a burst each 20 ms with these delays in ms. Returns excess in ms and whether it rises, after each.
    fn run(delays: impl IntoIterator<Item = i64>) -> Vec<(i32, bool)> {
        let mut estimator = DelayEstimator::new();
        let bursts = delays.into_iter().enumerate().map(|(index, delay)| {
            let sent = 7_000_000 + index as u64 * 20 * MS;
            // The clock of the receiver is another one.
            let arrival = sent as i64 - 99_000_000 + delay * 1_000;
            let burst = DelaySample {
                sent_at: sent,
                arrival,
                self_inflicted_delay: 0,
                cross_traffic_delay: 0,
            };
            estimator.on_burst(burst, OverloadThresholds::TOP_RUNG_THRESHOLDS);
            (
                estimator.recent_min_excess_delay() / 1_000,
                estimator.has_consecutive_bursts_with_rising_delay(),
            )
        });
        bursts.collect()
    }

    #[test]
    fn excess_is_the_delay_over_its_minimum() {
        let states = run(std::iter::repeat_n(20, 50).chain(std::iter::repeat_n(90, 50)));
        assert_eq!(states[49], (0, false));
        assert_eq!(states[99].0, 70);
    }

    #[test]
    fn a_forgotten_excess_is_none() {
        let mut estimator = DelayEstimator::new();
        for burst in 0..20_u64 {
            let sent_at = 7_000_000 + burst * 20 * MS;
            let arrival = sent_at.cast_signed() + if burst < 10 { 20_000 } else { 150_000 };
            let burst = DelaySample {
                sent_at,
                arrival,
                self_inflicted_delay: 0,
                cross_traffic_delay: 0,
            };
            estimator.on_burst(burst, OverloadThresholds::TOP_RUNG_THRESHOLDS);
        }
        assert_eq!(estimator.recent_min_excess_delay(), 130_000);
        estimator.forget_excess_and_rising_bursts();
        assert_eq!(estimator.recent_min_excess_delay(), 0);
    }

    #[test]
    fn two_late_bursts_rise_and_one_does_not() {
        let states = run([20, 20, 20, 20, 90, 20, 20, 90, 92]);
        assert_eq!(states.iter().position(|(_, rising)| *rising), Some(8));
    }

    #[test]
    fn a_burst_that_the_path_stretches_rises_before_the_next_one() {
        let mut estimator = DelayEstimator::new();
        let packet = |sent: u64, delay: i64| DelaySample {
            sent_at: sent,
            arrival: sent.cast_signed() + delay,
            self_inflicted_delay: 0,
            cross_traffic_delay: 0,
        };
        let thresholds = OverloadThresholds::TOP_RUNG_THRESHOLDS;
        for burst in 0..10 {
            estimator.on_burst(packet(burst * 30 * MS, 20_000), thresholds);
        }
        let mut rises = |delays: &[i64]| {
            estimator.reset_rising_delay_detection();
            estimator.on_burst(packet(300 * MS, 20_000), thresholds);
            let burst = delays.iter().map(|delay| packet(300 * MS, delay * 1_000));
            burst.for_each(|packet| estimator.record_delay_of_later_burst_packet(packet, thresholds));
            estimator.has_consecutive_bursts_with_rising_delay()
        };
        assert!(rises(&[60, 80, 100, 120]));
        assert!(!rises(&[25, 30, 40, 50]));
        assert!(!rises(&[82, 84, 86, 88]), "together after a gap");
    }

    #[test]
    fn a_later_packet_of_a_burst_whose_first_is_lost_is_compared_with_nothing() {
        let mut estimator = DelayEstimator::new();
        let packet = DelaySample {
            sent_at: 5_000_000,
            arrival: 0,
            self_inflicted_delay: 0,
            cross_traffic_delay: 0,
        };
        estimator.record_delay_of_later_burst_packet(packet, OverloadThresholds::TOP_RUNG_THRESHOLDS);
        assert!(!estimator.has_consecutive_bursts_with_rising_delay());
    }

    #[test]
    fn the_long_term_base_outlives_a_queue_that_joins_the_base() {
        let delays = std::iter::repeat_n(20, 50).chain(std::iter::repeat_n(220, 1_000));
        let mut estimator = DelayEstimator::new();
        for (index, delay) in delays.enumerate() {
            let sent = 7_000_000 + index as u64 * 20 * MS;
            let burst = DelaySample {
                sent_at: sent,
                arrival: sent.cast_signed() + delay * 1_000,
                self_inflicted_delay: 0,
                cross_traffic_delay: 0,
            };
            estimator.on_burst(burst, OverloadThresholds::TOP_RUNG_THRESHOLDS);
        }
        assert_eq!(estimator.recent_min_excess_delay(), 0);
        assert_eq!(estimator.recent_min_delay_without_own_queue(), 220_000);
        assert_eq!(estimator.long_term_base_delay(), Some(20_000));
    }

    #[test]
    fn a_queue_that_stands_does_not_rise_again() {
        let states = run(std::iter::repeat_n(20, 10).chain(std::iter::repeat_n(100, 100)));
        assert!(states[12].1);
        assert!(!states[40].1, "{states:?}");
    }

    #[test]
    fn jitter_below_thirty_milliseconds_never_rises() {
        let states = run((0..500).map(|index| 20 + (index * 7_907) % 30));
        assert!(states.iter().all(|(excess, rising)| *excess < 15 && !rising));
    }

    #[test]
    fn a_step_of_the_clock_starts_over() {
        let states = run([20, 20, 20, 30_020, 30_020, 30_020, 20, 20, 20]);
        assert!(states.iter().all(|state| *state == (0, false)), "{states:?}");
    }

    #[test]
    fn a_drifting_clock_is_no_queue() {
        let states = run((0..5_000).map(|index| 20 + index * 20 / 10_000));
        assert!(states.iter().all(|(excess, _)| *excess <= 2));
    }

    #[test]
    fn own_packets_queue_and_drain() {
        let mut queue = SelfInflictedQueue::default();
        assert_eq!(queue.push(1_000_000, 12_500, 1_000_000), 0);
        assert_eq!(queue.push(1_050_000, 12_500, 1_000_000), 50_000);
        assert_eq!(queue.push(1_200_000, 12_500, 1_000_000), 0);
        // Never more than 300 ms.
        let waits: Vec<i32> = (0..100).map(|_| queue.push(1_200_000, 12_500, 1_000_000)).collect();
        assert_eq!(waits.last(), Some(&300_000));
        assert_eq!(queue.push(1_600_000, 1, 1_000_000), 0);
    }
}
