//! What transport-wide feedback says about the path to one viewer.

use super::delay::{DelayEstimator, DelaySample, SelfInflictedQueue};
use super::feedback::{PacketStatus, RECEIVE_DELTA_UNIT_US, REFERENCE_TIME_UNIT_US, TransportFeedback};
use super::overload::{OverloadDetector, OverloadReason, OverloadSignals, OverloadThresholds};
use super::received_bitrate_and_loss::{LossWindow, ReceivedBitrateMeter};
use super::sent::{Burst, FeedbackCoverage, FlushTimes, PacketFeedbackChange, SentBurstLog};

/// The estimator of a viewer that sends feedback; made with its first.
#[derive(Debug)]
pub(super) struct TwccEstimator {
    log: SentBurstLog,
    coverage: FeedbackCoverage,
    delay: DelayEstimator,
    received_bitrate_meter: ReceivedBitrateMeter,
    loss_window: LossWindow,
    overload_detector: OverloadDetector,
    self_inflicted_queue: SelfInflictedQueue,
    /// Number after the last burst that is in `own`.
    self_inflicted_queue_end: u16,
    clock: ReferenceTimeUnwrapper,
    /// Least age of the newest packet that a feedback covers, in the current and in the previous period.
    min_acknowledgement_age_by_period: [u64; 2],
    period_began: u64,
    last_feedback_at: u64,
    /// Smoothed time between two feedbacks.
    smoothed_feedback_interval: u64,
    received_bitrate: Option<u32>,
    /// The same of the time since a queue rises, if it does.
    queued_bitrate: Option<u32>,
}

/// What the path is taken for while feedback is evaluated.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathAssumptions {
    /// Bits per second that it carries.
    pub(super) capacity_bitrate: u32,
    /// Bits per second that are sent to it.
    pub(super) sent_bitrate: u32,
    pub(super) overload_thresholds: OverloadThresholds,
}

/// The part of a burst that one feedback covers for the first time.
#[derive(Clone, Copy, Debug)]
pub(super) struct AcknowledgedBurstPart {
    /// Number of the first packet of the burst.
    pub(super) burst_first_number: u16,
    pub(super) sent_at: u64,
    /// First and last arrival; `None` if all were lost.
    pub(super) arrivals: Option<(i64, i64)>,
    /// Estimated bytes that arrived, and those of them that arrived with the first.
    pub(super) received_bytes: u32,
    pub(super) first_packet_bytes: u32,
    /// Packets that were lost, and that arrived.
    pub(super) lost: u16,
    pub(super) arrived_packet_count: u32,
    /// Excess delay of the burst, if its first packet arrived.
    pub(super) excess_delay: Option<i32>,
}

/// Feedback that begins further before what is remembered is not read: skipping it costs time.
const MAX_FEEDBACK_PACKETS_BEFORE_LOG: u16 = 1_024;

const BASE_ACKNOWLEDGEMENT_AGE_PERIOD_US: u64 = 10_000_000;

/// What feedback has shown counts for nothing if nothing was sent for this long.
const IDLE_RESET_TIMEOUT_US: u64 = 1_000_000;

/// A queue that explains loss.
const MIN_QUEUE_FOR_LOW_LOSS_THRESHOLD_US: i32 = 15_000;

/// Our own queue drains if this share of what is sent arrives, in percent.
const MIN_RECEIVED_PERCENT_OF_SENT_WHILE_DRAINING: u64 = 140;

/// Bounds of the smoothed time between two feedbacks.
const FEEDBACK_INTERVAL_BOUNDS_US: (u64, u64) = (20_000, 150_000);

impl TwccEstimator {
    /// `next` is the number of the next packet: nothing before is known.
    pub(super) fn new(now: u64, next: u16) -> Self {
        Self {
            log: SentBurstLog::new(),
            coverage: FeedbackCoverage::new(next),
            delay: DelayEstimator::new(),
            received_bitrate_meter: ReceivedBitrateMeter::new(),
            loss_window: LossWindow::default(),
            overload_detector: OverloadDetector::default(),
            self_inflicted_queue: SelfInflictedQueue::default(),
            self_inflicted_queue_end: next,
            clock: ReferenceTimeUnwrapper::default(),
            min_acknowledgement_age_by_period: [u64::MAX; 2],
            period_began: now,
            last_feedback_at: now,
            smoothed_feedback_interval: 50_000,
            received_bitrate: None,
            queued_bitrate: None,
        }
    }

    #[inline]
    pub(super) fn on_packet_sent(&mut self, now: u64, batch: u32, number: u16, bytes: u32) {
        self.log.push(now, batch, number, bytes);
    }

    /// Number after the highest one that feedback has covered.
    pub(super) fn first_sequence_number_beyond_feedback(&self) -> u16 {
        self.coverage.first_sequence_number_beyond_feedback()
    }

    pub(super) fn excess_delay(&self) -> i32 {
        self.delay.recent_min_excess_delay()
    }

    pub(super) fn tolerated_cross_traffic_delay(&self) -> i32 {
        self.overload_detector.tolerated_cross_traffic_delay()
    }

    /// Since when others keep a queue, if they do.
    pub(super) fn competing_traffic_since(&self) -> Option<u64> {
        self.overload_detector.competing_traffic_since()
    }

    pub(super) fn received_bitrate(&self) -> Option<u32> {
        self.received_bitrate
    }

    /// What the path carries, as far as a rising queue shows that it carries less than it did.
    pub(super) fn min_recent_received_bitrate(&self) -> Option<u32> {
        let received = self.received_bitrate?;
        Some(self.queued_bitrate.map_or(received, |queued| received.min(queued)))
    }

    /// Microseconds that the newest packets waited in all queues of the path.
    pub(super) fn newest_delay_over_base(&self) -> i32 {
        self.delay.newest_delay_over_base()
    }

    pub(super) fn is_lossy(&self) -> bool {
        self.loss_window
            .is_loss_high(self.delay.recent_min_excess_delay() >= MIN_QUEUE_FOR_LOW_LOSS_THRESHOLD_US)
    }

    pub(super) fn loss_per_256(&self) -> u8 {
        self.loss_window.loss_per_256()
    }

    /// There is overload although less cannot be sent.
    pub(super) fn assume_competition_at_lowest_rung(&mut self, now: u64) {
        self.overload_detector
            .assume_competition_at_lowest_rung(now, self.delay.long_term_base_delay());
    }

    /// What the path showed so far was the fault of a probe.
    pub(super) fn discard_overload_evidence(&mut self) {
        self.overload_detector.reset_standing_queue_detection();
        self.delay.reset_rising_delay_detection();
        self.loss_window.clear();
    }

    /// Something else is sent from now on.
    pub(super) fn restart_loss_smoothing(&mut self, now: u64) {
        self.overload_detector.restart_loss_smoothing(now);
    }

    /// Forgets queue and loss if nothing was sent of late: no feedback will tell when they are gone.
    pub(super) fn forget_queue_and_loss_if_idle(&mut self, now: u64) {
        if now >= self.log.newest_burst_began_at() + IDLE_RESET_TIMEOUT_US {
            self.delay.forget_excess_and_rising_bursts();
            self.loss_window.clear();
        }
    }

    pub(super) fn clear_loss_window(&mut self) {
        self.loss_window.clear();
    }

    /// Less is sent from now on.
    pub(super) fn on_step_down(&mut self, now: u64) {
        self.overload_detector
            .on_step_down(now, self.delay.recent_min_excess_delay());
        self.delay.reset_rising_delay_detection();
        self.loss_window.clear();
    }

    /// Evaluates feedback. Calls `covered` for each burst of which packets are newly covered, and returns the
    /// overload that it shows.
    pub(super) fn on_feedback(
        &mut self,
        now: u64,
        feedback: &TransportFeedback<'_>,
        flushes: &FlushTimes,
        assumed: PathAssumptions,
        mut covered: impl FnMut(&AcknowledgedBurstPart),
    ) -> Option<OverloadReason> {
        let (first, len) = self.log.oldest_sequence_number_and_packet_count()?;
        let skipped = first.wrapping_sub(feedback.base_sequence_number);
        if feedback.base_sequence_number.wrapping_sub(first) >= len && skipped > MAX_FEEDBACK_PACKETS_BEFORE_LOG {
            return None;
        }
        self.loss_window.advance(now);
        let reference = self.clock.unwrap_reference_time_to_micros(feedback.reference_time);
        let mut walk: Option<BurstFeedbackCollector> = None;
        let is_sent = |status: &PacketStatus| status.transport_sequence_number.wrapping_sub(first) < len;
        for status in feedback
            .packet_statuses()
            .skip_while(|status| !is_sent(status))
            .take_while(is_sent)
        {
            if walk
                .as_ref()
                .is_none_or(|walk| !walk.contains_sequence_number(status.transport_sequence_number))
            {
                if let Some(fragment) = walk.take().and_then(BurstFeedbackCollector::into_acknowledged_part) {
                    covered(&fragment);
                }
                walk = self.start_burst_feedback_collector(
                    status.transport_sequence_number,
                    flushes,
                    assumed.capacity_bitrate,
                );
            }
            let Some(walk) = &mut walk else { continue };
            self.record_packet_status(status, reference, walk, assumed.overload_thresholds);
        }
        if let Some(fragment) = walk.and_then(BurstFeedbackCollector::into_acknowledged_part) {
            covered(&fragment);
        }
        self.received_bitrate = self.received_bitrate_meter.bits_per_second();
        let overload = self.detect_overload_after_feedback(now, flushes, assumed);
        let is_rising = overload == Some(OverloadReason::RisingDelay);
        self.queued_bitrate = is_rising
            .then(|| self.received_bitrate_meter.short_window_bits_per_second())
            .flatten();
        overload
    }

    fn record_packet_status(
        &mut self,
        status: PacketStatus,
        reference: i64,
        walk: &mut BurstFeedbackCollector,
        thresholds: OverloadThresholds,
    ) {
        let judgement = self
            .coverage
            .record_packet_feedback(status.transport_sequence_number, status.received);
        match judgement {
            PacketFeedbackChange::NewlyReceived => self.loss_window.record_packet(false),
            PacketFeedbackChange::NewlyLost => {
                self.loss_window.record_packet(true);
                walk.lost += 1;
            }
            PacketFeedbackChange::ReceivedAfterLost => self.loss_window.correct_false_loss(),
            PacketFeedbackChange::NothingNew => {}
        }
        let is_new = matches!(
            judgement,
            PacketFeedbackChange::NewlyReceived | PacketFeedbackChange::ReceivedAfterLost
        );
        let Some(ticks) = status.arrival_ticks.filter(|_| is_new) else {
            return;
        };
        let arrival = reference + ticks * RECEIVE_DELTA_UNIT_US;
        self.received_bitrate_meter.record_arrival(arrival, walk.packet_bytes);
        if judgement == PacketFeedbackChange::NewlyReceived
            && let Some(sent) = walk.sent_at
        {
            let offset = status
                .transport_sequence_number
                .wrapping_sub(walk.burst.first_sequence_number);
            let before = u64::from(walk.packet_bytes) * u64::from(offset) * 8_000_000 / u64::from(walk.capacity);
            let packet = DelaySample {
                sent_at: sent,
                arrival,
                self_inflicted_delay: walk.self_inflicted_delay.saturating_add(before as i32),
                cross_traffic_delay: self.overload_detector.tolerated_cross_traffic_delay(),
            };
            if offset == 0 {
                walk.excess_delay = Some(self.delay.on_burst(packet, thresholds));
            } else {
                self.delay.record_delay_of_later_burst_packet(packet, thresholds);
            }
        }
        walk.add_arrival(arrival);
    }

    /// Goes to the burst of a packet. Bursts in between, whose feedback was lost, join our own queue too.
    fn start_burst_feedback_collector(
        &mut self,
        number: u16,
        flushes: &FlushTimes,
        capacity: u32,
    ) -> Option<BurstFeedbackCollector> {
        let age = self.log.burst_index_from_newest(number)?;
        let burst = self.log.nth_newest_burst(age)?;
        let mut own = 0;
        // Distance that is not in the queue yet; a wrapped one means that the burst is in it.
        let ahead = burst
            .first_sequence_number
            .wrapping_add(burst.packet_count)
            .wrapping_sub(self.self_inflicted_queue_end);
        if ahead > 0 && ahead < u16::MAX / 2 {
            let oldest = self
                .log
                .burst_index_from_newest(self.self_inflicted_queue_end)
                .unwrap_or(age)
                .max(age);
            for age in (age..=oldest).rev() {
                let Some(passed) = self.log.nth_newest_burst(age) else {
                    continue;
                };
                if let Some(sent) = flushes.flush_time_of_batch(passed.first_batch_low_bits) {
                    own = self
                        .self_inflicted_queue
                        .push(sent, passed.approximate_bytes(), capacity);
                }
                self.self_inflicted_queue_end = passed.first_sequence_number.wrapping_add(passed.packet_count);
            }
        }
        Some(BurstFeedbackCollector {
            burst,
            sent_at: flushes.flush_time_of_batch(burst.first_batch_low_bits),
            self_inflicted_delay: own,
            packet_bytes: burst.approximate_bytes() / u32::from(burst.packet_count.max(1)),
            capacity: capacity.max(1),
            arrivals: None,
            arrived_packet_count: 0,
            lost: 0,
            excess_delay: None,
        })
    }

    fn detect_overload_after_feedback(
        &mut self,
        now: u64,
        flushes: &FlushTimes,
        assumed: PathAssumptions,
    ) -> Option<OverloadReason> {
        let gap = now.saturating_sub(self.last_feedback_at);
        self.last_feedback_at = now;
        self.smoothed_feedback_interval = ((self.smoothed_feedback_interval * 7 + gap) / 8)
            .clamp(FEEDBACK_INTERVAL_BOUNDS_US.0, FEEDBACK_INTERVAL_BOUNDS_US.1);
        let age_of = |burst: Burst| Some(now.saturating_sub(flushes.flush_time_of_batch(burst.first_batch_low_bits)?));
        let newest = self
            .log
            .burst_index_from_newest(self.coverage.first_sequence_number_beyond_feedback().wrapping_sub(1));
        if now.saturating_sub(self.period_began) >= BASE_ACKNOWLEDGEMENT_AGE_PERIOD_US {
            self.min_acknowledgement_age_by_period = [u64::MAX, self.min_acknowledgement_age_by_period[0]];
            self.period_began = now;
        }
        if let Some(age) = newest.and_then(|age| self.log.nth_newest_burst(age)).and_then(age_of) {
            self.min_acknowledgement_age_by_period[0] = self.min_acknowledgement_age_by_period[0].min(age);
        }
        // The oldest burst of which nothing is covered.
        let oldest = newest.and_then(|age| self.log.nth_newest_burst(age.checked_sub(1)?));
        let youngest = self.min_acknowledgement_age_by_period[0].min(self.min_acknowledgement_age_by_period[1]);
        let own = oldest.and_then(|burst| {
            Some(self.self_inflicted_queue.queuing_delay_at(
                flushes.flush_time_of_batch(burst.first_batch_low_bits)?,
                assumed.capacity_bitrate,
            ))
        });
        let overdue = oldest.and_then(age_of).map_or(0, |age| {
            let explained = youngest
                .saturating_add(self.smoothed_feedback_interval)
                .saturating_add(2 * own.unwrap_or(0));
            let beyond = age.saturating_sub(explained);
            i32::try_from(beyond).unwrap_or(i32::MAX)
        });
        let signals = OverloadSignals {
            excess_delay: self.delay.recent_min_excess_delay(),
            feedback_overdue_by: overdue,
            is_excess_rising: self.delay.has_consecutive_bursts_with_rising_delay(),
            is_lossy: self.is_lossy(),
            loss_fraction: self.loss_window.loss_per_256(),
            recent_delay: self.delay.recent_min_delay_without_own_queue(),
            long_term_base_delay: self.delay.long_term_base_delay(),
            is_draining: u64::from(self.received_bitrate.unwrap_or(0)) * 100
                > u64::from(assumed.sent_bitrate) * MIN_RECEIVED_PERCENT_OF_SENT_WHILE_DRAINING,
        };
        self.overload_detector
            .detect_overload(now, signals, assumed.overload_thresholds)
    }
}

/// The burst that is being read.
struct BurstFeedbackCollector {
    burst: Burst,
    /// When it was sent; `None` if that is forgotten.
    sent_at: Option<u64>,
    /// Our own queue before it.
    self_inflicted_delay: i32,
    packet_bytes: u32,
    /// Bits per second that the path is assumed to carry.
    capacity: u32,
    arrivals: Option<(i64, i64)>,
    arrived_packet_count: u32,
    lost: u16,
    excess_delay: Option<i32>,
}

impl BurstFeedbackCollector {
    fn contains_sequence_number(&self, number: u16) -> bool {
        number.wrapping_sub(self.burst.first_sequence_number) < self.burst.packet_count
    }

    fn add_arrival(&mut self, arrival: i64) {
        let (first, last) = self.arrivals.unwrap_or((arrival, arrival));
        self.arrivals = Some((first.min(arrival), last.max(arrival)));
        self.arrived_packet_count += 1;
    }

    fn into_acknowledged_part(self) -> Option<AcknowledgedBurstPart> {
        Some(AcknowledgedBurstPart {
            burst_first_number: self.burst.first_sequence_number,
            sent_at: self.sent_at?,
            arrivals: self.arrivals,
            received_bytes: self.arrived_packet_count * self.packet_bytes,
            lost: self.lost,
            arrived_packet_count: self.arrived_packet_count,
            first_packet_bytes: self.packet_bytes,
            excess_delay: self.excess_delay,
        })
    }
}

/// Unwraps the reference time, which wraps after 12 days.
#[derive(Debug, Default)]
struct ReferenceTimeUnwrapper {
    last_wrapped_and_unwrapped: Option<(u32, i64)>,
}

const REFERENCE_TIME_BITS: u32 = 24;

impl ReferenceTimeUnwrapper {
    /// Returns microseconds on the clock of the receiver.
    fn unwrap_reference_time_to_micros(&mut self, reference: u32) -> i64 {
        let (before, total) = self
            .last_wrapped_and_unwrapped
            .unwrap_or((reference, i64::from(reference)));
        let unused = 32 - REFERENCE_TIME_BITS;
        let step = (reference.wrapping_sub(before) << unused).cast_signed() >> unused;
        let total = total + i64::from(step);
        self.last_wrapped_and_unwrapped = Some((reference, total));
        total * REFERENCE_TIME_UNIT_US
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_time_wraps_in_both_directions() {
        let mut clock = ReferenceTimeUnwrapper::default();
        let seconds = |reference: i64| reference * REFERENCE_TIME_UNIT_US;
        assert_eq!(clock.unwrap_reference_time_to_micros(0xff_fffe), seconds(0xff_fffe));
        assert_eq!(clock.unwrap_reference_time_to_micros(1), seconds(0x100_0001));
        assert_eq!(
            clock.unwrap_reference_time_to_micros(0xff_ffff),
            seconds(0xff_ffff),
            "an older feedback"
        );
        assert_eq!(clock.unwrap_reference_time_to_micros(5), seconds(0x100_0005));
    }
}
