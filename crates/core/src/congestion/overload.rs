//! When the network takes less than we send.

/// Why a viewer gets less: the rule that found the overload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverloadReason {
    /// Two bursts in a row came late, each later than before.
    RisingDelay,
    /// A burst is not acknowledged for longer than any was, although later feedback came.
    OverdueFeedback,
    /// A queue stands.
    StandingQueue,
    /// Packets are lost beyond chance.
    Loss,
    /// Receiver reports say so, or the queue of a TCP connection.
    ReceiverReportOrTcpQueue,
    /// The viewer's own estimate (REMB) is lower.
    RembExceeded,
}

/// Overload that may pass when another one who shares the path steps down.
#[derive(Debug, Default)]
pub(super) struct SlightOverloadTimer {
    /// When it is acted upon, if it is found then; 0 if there was none.
    step_down_due_at: u64,
}

/// Overload is slight if this share of what is sent arrives, in percent. Those who share the path do not all step
/// down at once then: each waits for a random time, and looks again.
const SLIGHT_OVERLOAD_MIN_RECEIVED_PERCENT_OF_SENT: u64 = 75;
const MAX_SLIGHT_OVERLOAD_WAIT_US: u64 = 500_000;
const SLIGHT_OVERLOAD_EXPIRY_US: u64 = 400_000;

/// What arrives is enough if it is this multiple of what is sent, in percent.
const SUFFICIENT_RECEIVED_PERCENT_OF_SENT: u64 = 95;

/// Whether a path with this rate received carries what is sent: then the queue is that of a key frame.
pub(super) fn is_received_bitrate_sufficient(received: u32, sent: u32) -> bool {
    u64::from(received) * 100 >= u64::from(sent) * SUFFICIENT_RECEIVED_PERCENT_OF_SENT
}

/// Whether nearly as much arrives as is sent, both in bits per second.
pub(super) fn is_overload_at_most_slight(received: u32, sent: u32) -> bool {
    u64::from(received) * 100 >= u64::from(sent) * SLIGHT_OVERLOAD_MIN_RECEIVED_PERCENT_OF_SENT
}

impl SlightOverloadTimer {
    /// Slight overload was found. Returns whether it was there some time ago too; `random` is below 65,536.
    pub(super) fn is_due_or_start_wait(&mut self, now: u64, random: impl FnOnce() -> u64) -> bool {
        if now > self.step_down_due_at + SLIGHT_OVERLOAD_EXPIRY_US {
            self.step_down_due_at = now + MAX_SLIGHT_OVERLOAD_WAIT_US * random() / 65_536;
        }
        now >= self.step_down_due_at
    }
}

/// The state of the rules. Times and delays are in microseconds.
#[derive(Debug, Default)]
pub(super) struct OverloadDetector {
    /// Since when the excess is high.
    excess_high_since: Option<u64>,
    /// Smoothed loss in 1/65536, and when it was updated.
    smoothed_loss: u32,
    smoothed_loss_at: u64,
    competition: Option<CompetingTraffic>,
    last_step_down: Option<StepDownEvaluation>,
}

/// Others keep a queue whatever we send: delay says nothing then, and only loss is overload.
#[derive(Clone, Copy, Debug)]
struct CompetingTraffic {
    since: u64,
    /// Least delay without their queue, when it began.
    base: i64,
    /// Since when there is no queue.
    queue_low_since: Option<u64>,
}

/// A step down whose effect is not known yet.
#[derive(Clone, Copy, Debug)]
struct StepDownEvaluation {
    at: u64,
    /// Highest excess since.
    peak: i32,
    /// When the excess was last compared, and what it was.
    compared_at: u64,
    compared_excess: i32,
}

/// What the rules look at after each feedback.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OverloadSignals {
    pub(super) excess_delay: i32,
    pub(super) feedback_overdue_by: i32,
    pub(super) is_excess_rising: bool,
    pub(super) is_lossy: bool,
    /// Lost packets of the last second in 1/256.
    pub(super) loss_fraction: u8,
    /// Least delay of late, and of the last 30 to 60 s.
    pub(super) recent_delay: i64,
    pub(super) long_term_base_delay: Option<i64>,
    /// More arrives than is sent.
    pub(super) is_draining: bool,
}

/// What is taken for overload, in microseconds. Of those who share a path, the one with the best layer yields first.
#[derive(Clone, Copy, Debug)]
pub(super) struct OverloadThresholds {
    /// Excess of a burst, and its growth over the last 440 ms.
    pub(super) burst_excess: i32,
    pub(super) burst_excess_growth: i32,
    max_feedback_overdue: i32,
    /// Excess that stands, and for how long.
    standing_excess: i32,
    standing_duration: u64,
}

impl OverloadThresholds {
    /// For a rung that was stepped up to of late: it is to show that it takes nothing from others.
    pub(super) const TRIAL_RUNG_THRESHOLDS: Self = Self {
        burst_excess: 35_000,
        burst_excess_growth: 30_000,
        max_feedback_overdue: 80_000,
        standing_excess: 30_000,
        standing_duration: 400_000,
    };

    pub(super) const TOP_RUNG_THRESHOLDS: Self = Self {
        burst_excess: 60_000,
        burst_excess_growth: 55_000,
        max_feedback_overdue: 100_000,
        standing_excess: 50_000,
        standing_duration: 600_000,
    };

    pub(super) const LOWER_RUNG_THRESHOLDS: Self = Self {
        burst_excess: 130_000,
        burst_excess_growth: 110_000,
        max_feedback_overdue: 200_000,
        standing_excess: 70_000,
        standing_duration: 900_000,
    };
}

/// Time after which a step down must have halved the excess.
const STEP_DOWN_EVALUATION_TIME_US: u64 = 1_000_000;

/// Our own queue drains: its excess falls by [`MIN_DRAINED_EXCESS_US`] in each such time.
const DRAIN_COMPARISON_TIME_US: u64 = 500_000;
const MIN_DRAINED_EXCESS_US: i32 = 40_000;

/// A step down is not judged after this time.
const MAX_STEP_DOWN_EVALUATION_TIME_US: u64 = 4_000_000;

/// Less excess is not the queue of others.
const MIN_CROSS_TRAFFIC_DELAY_US: i32 = 40_000;

/// Delay is tolerated in competition.
const COMPETITION_TOLERATED_DELAY_US: i32 = 10_000_000;

/// The others are gone if the queue is shorter than this for some time.
const MAX_LOW_QUEUE_DELAY_US: i64 = 30_000;
const MIN_LOW_QUEUE_TIME_US: u64 = 3_000_000;

/// Clocks drift by 100 ppm at most: the base is taken for this much longer.
const MAX_CLOCK_DRIFT_DIVISOR: u64 = 10_000;

/// 2 % in 1/65536: a flow that takes no more than its share of a full queue loses less.
const OVERLOAD_LOSS_IN_COMPETITION_PER_65536: u32 = 1_311;
const LOSS_SMOOTHING_TIME_US: u64 = 4_000_000;

/// After a step up the others need some round trips to make room: what is lost until then does not count.
const LOSS_GRACE_TIME_AFTER_SWITCH_US: u64 = 1_500_000;

impl OverloadDetector {
    /// Excess that others cause.
    pub(super) fn tolerated_cross_traffic_delay(&self) -> i32 {
        match self.competition {
            Some(_) => COMPETITION_TOLERATED_DELAY_US,
            None => 0,
        }
    }

    /// Since when others keep a queue, if they do.
    pub(super) fn competing_traffic_since(&self) -> Option<u64> {
        self.competition.map(|competition| competition.since)
    }

    /// A step down was made.
    pub(super) fn on_step_down(&mut self, now: u64, excess: i32) {
        self.last_step_down = Some(StepDownEvaluation {
            at: now,
            peak: excess,
            compared_at: now,
            compared_excess: i32::MAX,
        });
        self.excess_high_since = None;
        self.restart_loss_smoothing(now);
    }

    /// Something else is sent from now on.
    pub(super) fn restart_loss_smoothing(&mut self, now: u64) {
        self.smoothed_loss = 0;
        self.smoothed_loss_at = now + LOSS_GRACE_TIME_AFTER_SWITCH_US;
    }

    /// Begins to watch anew.
    pub(super) fn reset_standing_queue_detection(&mut self) {
        self.excess_high_since = None;
    }

    fn smooth_loss(&mut self, now: u64, fraction: u8) {
        let elapsed = now.saturating_sub(self.smoothed_loss_at).min(LOSS_SMOOTHING_TIME_US);
        if elapsed > 0 {
            let (old, new) = (u64::from(self.smoothed_loss), u64::from(fraction) << 8);
            let sum = old * (LOSS_SMOOTHING_TIME_US - elapsed) + new * elapsed;
            self.smoothed_loss = (sum / LOSS_SMOOTHING_TIME_US) as u32;
            self.smoothed_loss_at = now;
        }
    }

    /// Less cannot be sent: what stands must be the queue of others.
    pub(super) fn assume_competition_at_lowest_rung(&mut self, now: u64, base: Option<i64>) {
        self.begin_cross_traffic_competition(now, base);
    }

    fn begin_cross_traffic_competition(&mut self, now: u64, base: Option<i64>) {
        if let (Some(base), None) = (base, self.competition) {
            self.competition = Some(CompetingTraffic {
                since: now,
                base,
                queue_low_since: None,
            });
        }
        self.excess_high_since = None;
    }

    fn end_cross_traffic_competition(&mut self) {
        self.competition = None;
        self.excess_high_since = None;
    }

    /// Ends the competition when the queue of the others is gone.
    fn end_competition_if_queue_is_low(&mut self, now: u64, recent_delay: i64) {
        let Some(competition) = &mut self.competition else {
            return;
        };
        competition.base = competition.base.min(recent_delay);
        let drift = ((now - competition.since) / MAX_CLOCK_DRIFT_DIVISOR).cast_signed();
        if recent_delay - competition.base - drift >= MAX_LOW_QUEUE_DELAY_US {
            competition.queue_low_since = None;
        } else if now >= *competition.queue_low_since.get_or_insert(now) + MIN_LOW_QUEUE_TIME_US {
            self.end_cross_traffic_competition();
        }
    }

    /// Applies the rules.
    pub(super) fn detect_overload(
        &mut self,
        now: u64,
        signals: OverloadSignals,
        thresholds: OverloadThresholds,
    ) -> Option<OverloadReason> {
        self.detect_competition_after_step_down(now, signals);
        self.end_competition_if_queue_is_low(now, signals.recent_delay);
        let tolerated = self.tolerated_cross_traffic_delay();
        if signals.excess_delay > thresholds.standing_excess.saturating_add(tolerated) {
            self.excess_high_since.get_or_insert(now);
        } else {
            self.excess_high_since = None;
        }
        self.smooth_loss(now, signals.loss_fraction);
        let has_competing_traffic = self.competition.is_some();
        let stands = self
            .excess_high_since
            .is_some_and(|since| now >= since + thresholds.standing_duration);
        if signals.is_excess_rising {
            Some(OverloadReason::RisingDelay)
        } else if signals.feedback_overdue_by > thresholds.max_feedback_overdue.saturating_add(tolerated) {
            Some(OverloadReason::OverdueFeedback)
        } else if stands {
            Some(OverloadReason::StandingQueue)
        } else {
            let is_lossy = match has_competing_traffic {
                true => self.smoothed_loss > OVERLOAD_LOSS_IN_COMPETITION_PER_65536,
                false => signals.is_lossy,
            };
            is_lossy.then_some(OverloadReason::Loss)
        }
    }

    /// If we send less, and the queue is as long as before and does not drain, it is the queue of others (RFC 8867
    /// §5.6).
    fn detect_competition_after_step_down(&mut self, now: u64, signals: OverloadSignals) {
        let Some(step) = &mut self.last_step_down else {
            return;
        };
        let excess = signals.excess_delay;
        step.peak = excess.max(step.peak);
        if now < step.compared_at + DRAIN_COMPARISON_TIME_US {
            return;
        }
        let drains = signals.is_draining || excess < step.compared_excess.saturating_sub(MIN_DRAINED_EXCESS_US);
        (step.compared_at, step.compared_excess) = (now, excess);
        let step = *step;
        if now < step.at + STEP_DOWN_EVALUATION_TIME_US {
            return;
        }
        let is_others = excess > MIN_CROSS_TRAFFIC_DELAY_US && excess > step.peak / 2;
        if !is_others || now >= step.at + MAX_STEP_DOWN_EVALUATION_TIME_US {
            self.last_step_down = None;
        } else if !drains {
            self.last_step_down = None;
            self.begin_cross_traffic_competition(now, signals.long_term_base_delay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    fn excess(excess: i32) -> OverloadSignals {
        OverloadSignals {
            excess_delay: excess * 1_000,
            ..OverloadSignals::default()
        }
    }

    #[test]
    fn each_rule_alone_finds_overload() {
        let check =
            |signals| OverloadDetector::default().detect_overload(0, signals, OverloadThresholds::TOP_RUNG_THRESHOLDS);
        let calm = OverloadSignals::default();
        assert_eq!(check(calm), None);
        assert_eq!(
            check(OverloadSignals {
                is_excess_rising: true,
                ..calm
            }),
            Some(OverloadReason::RisingDelay)
        );
        let overdue = |overdue| OverloadSignals {
            feedback_overdue_by: overdue,
            ..calm
        };
        assert_eq!(check(overdue(100_000)), None);
        assert_eq!(check(overdue(100_001)), Some(OverloadReason::OverdueFeedback));
        assert_eq!(
            check(OverloadSignals { is_lossy: true, ..calm }),
            Some(OverloadReason::Loss)
        );
    }

    #[test]
    fn slight_overload_is_acted_upon_if_it_is_still_there() {
        assert!(is_overload_at_most_slight(750, 1_000));
        assert!(!is_overload_at_most_slight(749, 1_000));
        let mut slight = SlightOverloadTimer::default();
        assert!(!slight.is_due_or_start_wait(10_000 * MS, || 32_768));
        assert!(!slight.is_due_or_start_wait(10_249 * MS, || 0));
        assert!(slight.is_due_or_start_wait(10_250 * MS, || 0));
        assert!(
            !slight.is_due_or_start_wait(10_651 * MS, || 32_768),
            "it was gone for a while"
        );
    }

    #[test]
    fn a_queue_counts_when_it_stands_for_some_time() {
        let mut rules = OverloadDetector::default();
        let mut check =
            |at, delay| rules.detect_overload(at * MS, excess(delay), OverloadThresholds::TOP_RUNG_THRESHOLDS);
        assert_eq!(check(0, 60), None);
        assert_eq!(check(599, 60), None);
        assert_eq!(check(600, 60), Some(OverloadReason::StandingQueue));
        assert_eq!(check(700, 49), None);
        assert_eq!(check(1_300, 60), None, "counted from the last low value on");
    }

    #[test]
    fn a_rung_on_trial_yields_before_one_that_is_held_and_that_before_a_lower_one() {
        let first = |thresholds: OverloadThresholds| {
            let mut rules = OverloadDetector::default();
            (0..3_000).find(|at| rules.detect_overload(at * MS, excess(100), thresholds).is_some())
        };
        assert_eq!(first(OverloadThresholds::TRIAL_RUNG_THRESHOLDS), Some(400));
        assert_eq!(first(OverloadThresholds::TOP_RUNG_THRESHOLDS), Some(600));
        assert_eq!(first(OverloadThresholds::LOWER_RUNG_THRESHOLDS), Some(900));
    }

    /// What is seen with this queue in milliseconds, of others or ours.
    fn queue(delay: i32) -> OverloadSignals {
        OverloadSignals {
            recent_delay: i64::from(delay) * 1_000,
            long_term_base_delay: Some(0),
            ..excess(delay)
        }
    }

    /// A detector that has found competition one second after a step.
    fn competing() -> OverloadDetector {
        let mut rules = OverloadDetector::default();
        rules.on_step_down(0, 200_000);
        for at in [500, 1_000] {
            assert_eq!(rules.competing_traffic_since(), None);
            assert_eq!(
                rules.detect_overload(at * MS, queue(190), OverloadThresholds::TOP_RUNG_THRESHOLDS),
                None
            );
        }
        assert_eq!(rules.competing_traffic_since(), Some(1_000 * MS));
        rules
    }

    #[test]
    fn the_queue_of_others_is_tolerated_until_it_is_gone() {
        let mut rules = competing();
        let mut check = |at: u64, delay| {
            let overload = rules.detect_overload(at * MS, queue(delay), OverloadThresholds::TOP_RUNG_THRESHOLDS);
            (overload, rules.competing_traffic_since().is_some())
        };
        for at in 2..60 {
            assert_eq!(check(at * 1_000, 250), (None, true));
        }
        assert_eq!(check(60_000, 20), (None, true));
        assert_eq!(check(62_000, 60), (None, true), "it was short for too short a time");
        assert_eq!(check(63_000, 20), (None, true));
        assert_eq!(check(66_000, 20), (None, false));
        assert_eq!(check(67_000, 250), (None, false));
        assert_eq!(check(67_600, 250), (Some(OverloadReason::StandingQueue), false));
    }

    #[test]
    fn in_competition_only_lasting_loss_is_overload() {
        let lossy = |fraction| OverloadSignals {
            is_lossy: true,
            loss_fraction: fraction,
            ..queue(190)
        };
        let mut rules = competing();
        rules.restart_loss_smoothing(2_000 * MS);
        let mut first = |from: u64, until: u64, fraction| {
            (from..until).find(|at| {
                let overload = rules.detect_overload(at * MS, lossy(fraction), OverloadThresholds::TOP_RUNG_THRESHOLDS);
                overload == Some(OverloadReason::Loss)
            })
        };
        assert_eq!(first(2_000, 3_400, 128), None, "the others make room");
        assert_eq!(first(3_400, 33_000, 5), None, "2 % are lost by a full queue");
        assert!(first(33_000, 36_000, 26).is_some_and(|at| at < 34_500));
    }

    #[test]
    fn a_queue_that_halved_after_a_step_or_drains_was_ours() {
        let judge = |signals: [OverloadSignals; 3]| {
            let mut rules = OverloadDetector::default();
            rules.on_step_down(0, 200_000);
            for (at, signals) in [500, 1_000, 1_500].into_iter().zip(signals) {
                rules.detect_overload(at * MS, signals, OverloadThresholds::TOP_RUNG_THRESHOLDS);
            }
            rules.competing_traffic_since().is_some()
        };
        assert!(judge([queue(200), queue(195), queue(190)]));
        assert!(!judge([queue(200), queue(90), queue(90)]));
        assert!(!judge([queue(400), queue(330), queue(260)]));
        let drains = OverloadSignals {
            is_draining: true,
            ..queue(195)
        };
        assert!(!judge([drains; 3]));
    }
}
