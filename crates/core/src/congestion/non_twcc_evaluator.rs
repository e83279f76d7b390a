//! What remains without transport-wide feedback: receiver reports, the viewer's own estimate, the queue of a TCP
//! connection. All are coarse: nothing shows how much more the path carries, so a higher layer is tried, not probed.

use std::time::Duration;

/// Reports of one viewer. Times are in microseconds.
#[derive(Debug, Default)]
pub(super) struct NonTwccEvaluator {
    /// Consecutive reports with high loss.
    consecutive_lossy_reports: u8,
    /// Least round-trip time in the current and in the previous period.
    min_rtt_by_period: [Option<u32>; 2],
    rtt_period_began_at: u64,
    /// Of the last report that had one.
    last_rtt_micros: Option<u32>,
    /// Since when all was well.
    uncongested_since: Option<u64>,
    /// The viewer's estimate in bits per second, and when it came.
    remb_bitrate_and_time: Option<(u32, u64)>,
}

/// A receiver report, as far as it counts.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverReportSummary {
    /// Fraction lost since the last report, in 1/256.
    pub fraction_lost: u8,
    /// Share of the packets that the publisher's own loss left out, in 1/256: it is not the viewer's.
    pub publisher_fraction_lost: u8,
    /// `None` if the report does not tell: the first ones come before a sender report.
    pub rtt: Option<Duration>,
}

/// 10 % in 1/256; at most 2 % is calm.
const HIGH_FRACTION_LOST: u8 = 26;
const MAX_CALM_FRACTION_LOST: u8 = 5;

/// Reports in a row that must have high loss.
const MIN_CONSECUTIVE_LOSSY_REPORTS: u8 = 2;

/// Growth of the round-trip time that is a queue.
const MAX_RTT_GROWTH_US: u32 = 200_000;

/// The base is the minimum of one to two of these: a path that has become longer is overload for no longer.
const BASE_RTT_PERIOD_US: u64 = 15_000_000;

/// Queued time of a TCP connection that is too long.
const MAX_TCP_QUEUE_DELAY: Duration = Duration::from_millis(300);

/// An estimate of the viewer is forgotten after this time.
const REMB_LIFETIME_US: u64 = 5_000_000;

impl NonTwccEvaluator {
    /// Returns whether the report shows overload.
    pub(super) fn on_receiver_report(&mut self, now: u64, report: ReceiverReportSummary) -> bool {
        let lost = report.fraction_lost.saturating_sub(report.publisher_fraction_lost);
        let is_late = report
            .rtt
            .is_some_and(|rtt| self.record_rtt_and_detect_growth(now, rtt));
        self.consecutive_lossy_reports = if lost > HIGH_FRACTION_LOST {
            self.consecutive_lossy_reports.saturating_add(1)
        } else {
            0
        };
        self.start_or_clear_uncongested_period(now, lost <= MAX_CALM_FRACTION_LOST && !is_late);
        self.consecutive_lossy_reports >= MIN_CONSECUTIVE_LOSSY_REPORTS || is_late
    }

    /// Records a round-trip time. Returns whether it has grown by a queue.
    fn record_rtt_and_detect_growth(&mut self, now: u64, rtt: Duration) -> bool {
        let rtt = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
        self.last_rtt_micros = Some(rtt);
        if now.saturating_sub(self.rtt_period_began_at) >= BASE_RTT_PERIOD_US {
            self.min_rtt_by_period = [None, self.min_rtt_by_period[0]];
            self.rtt_period_began_at = now;
        }
        let current = &mut self.min_rtt_by_period[0];
        *current = Some(current.map_or(rtt, |least| least.min(rtt)));
        let base = self.min_rtt_by_period.iter().flatten().min();
        base.is_some_and(|base| rtt > base.saturating_add(MAX_RTT_GROWTH_US))
    }

    /// There is overload although less cannot be sent: if the round-trip time has grown, it is not by our queue.
    pub(super) fn on_overload_at_lowest_rung(&mut self) {
        self.min_rtt_by_period = [self.last_rtt_micros, None];
    }

    /// `queued` is how long the connection needs for what waits in it. Returns whether it is too long.
    pub(super) fn on_tcp_queue_delay(&mut self, now: u64, queued: Duration) -> bool {
        self.start_or_clear_uncongested_period(now, queued < MAX_TCP_QUEUE_DELAY / 4);
        queued > MAX_TCP_QUEUE_DELAY
    }

    pub(super) fn on_remb(&mut self, now: u64, bits_per_second: u32) {
        self.remb_bitrate_and_time = Some((bits_per_second, now));
    }

    /// The viewer's own estimate in bits per second.
    pub(super) fn remb_bitrate(&self, now: u64) -> Option<u32> {
        self.remb_bitrate_and_time
            .filter(|(_, at)| now < at + REMB_LIFETIME_US)
            .map(|(limit, _)| limit)
    }

    /// Since when all reports were calm.
    pub(super) fn uncongested_since(&self) -> Option<u64> {
        self.uncongested_since
    }

    fn start_or_clear_uncongested_period(&mut self, now: u64, is_calm: bool) {
        self.uncongested_since = is_calm.then(|| self.uncongested_since.unwrap_or(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn report(percent: u32, publisher: u32, rtt: u64) -> ReceiverReportSummary {
        ReceiverReportSummary {
            fraction_lost: (percent * 256 / 100) as u8,
            publisher_fraction_lost: (publisher * 256 / 100) as u8,
            rtt: Some(Duration::from_millis(rtt)),
        }
    }

    #[test]
    fn two_lossy_reports_are_overload_and_the_publishers_loss_is_not_counted() {
        let mut reports = NonTwccEvaluator::default();
        assert!(!reports.on_receiver_report(0, report(15, 0, 40)));
        assert!(reports.on_receiver_report(SECOND, report(15, 0, 40)));
        let mut reports = NonTwccEvaluator::default();
        for second in 0..10 {
            assert!(!reports.on_receiver_report(second * SECOND, report(15, 14, 40)));
        }
        assert_eq!(reports.uncongested_since(), Some(0));
    }

    #[test]
    fn a_round_trip_that_grew_is_overload() {
        let mut reports = NonTwccEvaluator::default();
        assert!(!reports.on_receiver_report(0, report(0, 0, 40)));
        assert!(!reports.on_receiver_report(SECOND, report(0, 0, 240)));
        assert!(reports.on_receiver_report(2 * SECOND, report(0, 0, 241)));
        assert_eq!(reports.uncongested_since(), None);
    }

    #[test]
    fn a_report_without_a_round_trip_time_is_no_base() {
        let mut reports = NonTwccEvaluator::default();
        let first = ReceiverReportSummary {
            rtt: None,
            ..report(0, 0, 0)
        };
        assert!(!reports.on_receiver_report(0, first));
        assert!((1..100).all(|second| !reports.on_receiver_report(second * SECOND, report(0, 0, 700))));
        assert_eq!(reports.uncongested_since(), Some(0));
    }

    #[test]
    fn a_path_that_has_become_longer_is_the_base_after_half_a_minute_or_at_the_bottom() {
        let mut reports = NonTwccEvaluator::default();
        for second in 0..20 {
            assert!(!reports.on_receiver_report(second * SECOND, report(0, 0, 40)));
        }
        let late = (20..100).filter(|second| reports.on_receiver_report(second * SECOND, report(0, 0, 300)));
        assert_eq!(late.collect::<Vec<_>>(), (20..45).collect::<Vec<_>>());
        assert_eq!(reports.uncongested_since(), Some(45 * SECOND));
        assert!(reports.on_receiver_report(100 * SECOND, report(0, 0, 501)));
        reports.on_overload_at_lowest_rung();
        assert!(!reports.on_receiver_report(101 * SECOND, report(0, 0, 501)));
    }

    #[test]
    fn a_long_tcp_queue_is_overload() {
        let mut reports = NonTwccEvaluator::default();
        assert!(!reports.on_tcp_queue_delay(0, Duration::from_millis(20)));
        assert_eq!(reports.uncongested_since(), Some(0));
        assert!(!reports.on_tcp_queue_delay(SECOND, Duration::from_millis(200)));
        assert_eq!(reports.uncongested_since(), None);
        assert!(reports.on_tcp_queue_delay(SECOND, Duration::from_millis(301)));
    }

    #[test]
    fn the_viewers_estimate_is_forgotten() {
        let mut reports = NonTwccEvaluator::default();
        reports.on_remb(0, 800_000);
        assert_eq!(reports.remb_bitrate(4 * SECOND), Some(800_000));
        assert_eq!(reports.remb_bitrate(5 * SECOND), None);
    }
}
