//! The rate at which packets arrive, and the share of them that does not.

/// Bytes that arrived, by intervals on the clock of the receiver.
#[derive(Debug)]
pub(super) struct ReceivedBitrateMeter {
    bytes_by_interval: [u16; RECEIVED_INTERVAL_COUNT],
    newest_interval: i64,
}

/// Microseconds.
const RECEIVED_INTERVAL_US: i64 = 5_000;
const RECEIVED_INTERVAL_COUNT: usize = 32;

/// The rate is that of the last 150 ms.
const BITRATE_WINDOW_INTERVALS: i64 = 30;

/// The rate of a path with a queue is that of the last 75 ms: what came before the queue does not count.
const SHORT_BITRATE_WINDOW_INTERVALS: i64 = 15;

/// Least time between two arrivals that a rate can be computed from, in intervals.
const MIN_BITRATE_SPAN_INTERVALS: i64 = 10;

impl ReceivedBitrateMeter {
    pub(super) fn new() -> Self {
        Self {
            bytes_by_interval: [0; RECEIVED_INTERVAL_COUNT],
            newest_interval: i64::MIN,
        }
    }

    /// Records an arrival, in microseconds.
    #[inline]
    pub(super) fn record_arrival(&mut self, arrival: i64, bytes: u32) {
        let interval = arrival.div_euclid(RECEIVED_INTERVAL_US);
        if interval > self.newest_interval {
            let first = (self.newest_interval + 1).max(interval - RECEIVED_INTERVAL_COUNT as i64 + 1);
            (first..=interval).for_each(|passed| *self.interval_bytes_mut(passed) = 0);
            self.newest_interval = interval;
        } else if interval.saturating_add(RECEIVED_INTERVAL_COUNT as i64) <= self.newest_interval {
            return;
        }
        let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
        let slot = self.interval_bytes_mut(interval);
        *slot = slot.saturating_add(bytes);
    }

    /// Bits per second of the last 150 ms; `None` if too little arrived. What arrived first in the window is not
    /// counted: the time before it is unknown.
    pub(super) fn bits_per_second(&mut self) -> Option<u32> {
        self.bits_per_second_over(BITRATE_WINDOW_INTERVALS)
    }

    /// Bits per second of the last 75 ms: enough on a path that has a queue, where packets arrive without a pause.
    pub(super) fn short_window_bits_per_second(&mut self) -> Option<u32> {
        self.bits_per_second_over(SHORT_BITRATE_WINDOW_INTERVALS)
    }

    fn bits_per_second_over(&mut self, intervals: i64) -> Option<u32> {
        let (first, newest) = (self.newest_interval.saturating_sub(intervals - 1), self.newest_interval);
        let oldest = (first..=newest).find(|interval| *self.interval_bytes_mut(*interval) > 0)?;
        if newest - oldest < MIN_BITRATE_SPAN_INTERVALS {
            return None;
        }
        let bytes: u64 = (oldest + 1..=newest)
            .map(|interval| u64::from(*self.interval_bytes_mut(interval)))
            .sum();
        let micros = u64::try_from((newest - oldest) * RECEIVED_INTERVAL_US).unwrap_or(1);
        u32::try_from(bytes * 8_000_000 / micros).ok()
    }

    fn interval_bytes_mut(&mut self, interval: i64) -> &mut u16 {
        &mut self.bytes_by_interval[interval.rem_euclid(RECEIVED_INTERVAL_COUNT as i64) as usize]
    }
}

/// Packets that feedback covered in the last second, and how many of them were lost.
#[derive(Debug, Default)]
pub(super) struct LossWindow {
    /// Covered and lost, the newest interval first.
    covered_and_lost_counts: [(u16, u16); LOSS_INTERVAL_COUNT],
    newest_interval: u64,
}

const LOSS_INTERVAL_US: u64 = 250_000;
const LOSS_INTERVAL_COUNT: usize = 4;

/// Intervals that must have loss.
const MIN_LOSSY_INTERVALS: usize = 3;

/// Fewer packets are not judged.
const MIN_PACKETS_TO_JUDGE_LOSS: u64 = 40;

impl LossWindow {
    /// Moves the window on to `now`, in microseconds.
    pub(super) fn advance(&mut self, now: u64) {
        let interval = now / LOSS_INTERVAL_US;
        let shift = interval
            .saturating_sub(self.newest_interval)
            .min(LOSS_INTERVAL_COUNT as u64) as usize;
        self.covered_and_lost_counts.rotate_right(shift);
        self.covered_and_lost_counts
            .iter_mut()
            .take(shift)
            .for_each(|count| *count = (0, 0));
        self.newest_interval = interval;
    }

    /// Records a packet that is covered for the first time.
    #[inline]
    pub(super) fn record_packet(&mut self, lost: bool) {
        let (covered, missing) = &mut self.covered_and_lost_counts[0];
        *covered = covered.saturating_add(1);
        *missing = missing.saturating_add(u16::from(lost));
    }

    /// A packet that was taken for lost has arrived.
    pub(super) fn correct_false_loss(&mut self) {
        if let Some((_, lost)) = self.covered_and_lost_counts.iter_mut().find(|(_, lost)| *lost > 0) {
            *lost -= 1;
        }
    }

    pub(super) fn clear(&mut self) {
        self.covered_and_lost_counts = Default::default();
    }

    /// Whether at least 8 % are lost, beyond chance: `p - 2.5 * sqrt(p * (1 - p) / n) > 0.08` for at least 40
    /// packets, in three of four intervals at least: a burst is not congestion. Without a queue it must be 16 %:
    /// several bursts are not congestion either, and a policer drops more.
    pub(super) fn is_loss_high(&self, has_queue: bool) -> bool {
        let bound = if has_queue { 2 } else { 4 };
        let (covered, lost) = self.total_covered_and_lost_packets();
        let intervals = self
            .covered_and_lost_counts
            .iter()
            .filter(|(_, lost)| *lost > 0)
            .count();
        let over = (25 * lost).saturating_sub(bound * covered);
        covered >= MIN_PACKETS_TO_JUDGE_LOSS
            && intervals >= MIN_LOSSY_INTERVALS
            && over > 0
            && 4 * covered * over * over > 15_625 * lost * (covered - lost)
    }

    /// Lost packets in 1/256.
    pub(super) fn loss_per_256(&self) -> u8 {
        let (covered, lost) = self.total_covered_and_lost_packets();
        (lost * 255).checked_div(covered).unwrap_or(0) as u8
    }

    fn total_covered_and_lost_packets(&self) -> (u64, u64) {
        let sum = |(covered, lost), (c, l): &(u16, u16)| (covered + u64::from(*c), lost + u64::from(*l));
        let (covered, lost) = self.covered_and_lost_counts.iter().fold((0, 0), sum);
        (covered, lost.min(covered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_steady_rate_give_that_rate() {
        let mut rate = ReceivedBitrateMeter::new();
        assert_eq!(rate.bits_per_second(), None);
        for frame in 0..100 {
            // 30 frames of 12,500 bytes per second, across zero of the receiver's clock.
            for packet in 0..10 {
                rate.record_arrival(-1_000_000 + frame * 33_333 + packet * 300, 1_250);
            }
            if frame > 4 {
                let measured = rate.bits_per_second().expect("measured");
                assert!((2_500_000..3_600_000).contains(&measured), "{measured}");
            }
        }
    }

    #[test]
    fn a_pause_empties_the_window() {
        let mut rate = ReceivedBitrateMeter::new();
        (0..30).for_each(|index| rate.record_arrival(index * 10_000, 1_000));
        assert_eq!(rate.bits_per_second(), Some(800_000));
        rate.record_arrival(5_000_000, 1_000);
        assert_eq!(rate.bits_per_second(), None);
    }

    #[test]
    fn loss_is_high_only_beyond_chance() {
        let high = |covered: u16, lost: u16| {
            let mut window = LossWindow::default();
            for (index, count) in (0..).zip(&mut window.covered_and_lost_counts) {
                let part = |total: u16| total / 4 + u16::from(index < total % 4);
                *count = (part(covered), part(lost));
            }
            window.is_loss_high(true)
        };
        for (covered, bound) in [(40_u16, 11_u16), (100, 19), (300, 39), (1_000, 105)] {
            // The bound by the formula in floating point.
            let is_over = |lost: u16| {
                let (n, p) = (f64::from(covered), f64::from(lost) / f64::from(covered));
                p - 2.5 * (p * (1.0 - p) / n).sqrt() > 0.08
            };
            for lost in 0..=covered {
                assert_eq!(high(covered, lost), is_over(lost), "{lost} of {covered}");
            }
            assert!(high(covered, bound), "{bound} of {covered}");
        }
        assert!(!high(39, 39));
    }

    #[test]
    fn a_short_burst_of_loss_is_not_high() {
        let mut window = LossWindow {
            covered_and_lost_counts: [(50, 0), (50, 40), (50, 0), (50, 0)],
            newest_interval: 0,
        };
        assert!(!window.is_loss_high(true));
        window.covered_and_lost_counts[3].1 = 1;
        assert!(!window.is_loss_high(true));
        window.covered_and_lost_counts[0].1 = 1;
        assert!(window.is_loss_high(true));
    }

    #[test]
    fn without_a_queue_loss_must_be_twice_as_high() {
        let window = |lost| LossWindow {
            covered_and_lost_counts: [(75, lost); 4],
            newest_interval: 0,
        };
        assert!(window(14).is_loss_high(true));
        assert!(!window(14).is_loss_high(false));
        assert!(window(18).is_loss_high(false));
    }

    #[test]
    fn loss_is_forgotten_after_a_second_and_late_packets_are_none() {
        let mut window = LossWindow::default();
        for interval in 0..4 {
            window.advance(10_000_000 + interval * LOSS_INTERVAL_US);
            (0..25).for_each(|index| window.record_packet(index % 2 == 0));
        }
        assert!(window.is_loss_high(true));
        (0..45).for_each(|_| window.correct_false_loss());
        assert!(!window.is_loss_high(true));
        assert_eq!(window.loss_per_256(), 17);
        window.advance(11_800_000);
        assert_eq!(window.loss_per_256(), 0);
    }
}
