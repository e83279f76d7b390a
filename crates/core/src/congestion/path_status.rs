//! What is known of a viewer's path, for who decides and who reports.

use std::time::{Duration, Instant};

use super::estimator::TwccEstimator;
use super::quality::LayerDecisionCause;
use super::sent::micros_since_origin;
use super::{CongestionController, UNLIMITED_START_BITRATE_HINT};

/// Without feedback for this long, and this many packets, a viewer is judged by its reports.
const TWCC_SILENCE_BEFORE_REPORT_FALLBACK_US: u64 = 1_000_000;
const MIN_PACKETS_WITHOUT_TWCC_FEEDBACK: u16 = 50;

/// A viewer of whose TCP connection nothing was reported for this long is connected by UDP.
const MAX_TCP_QUEUE_REPORT_AGE_US: u64 = 3_000_000;

/// Without overload for this long the path carries what is sent.
const CALM_TIME_AFTER_OVERLOAD_US: u64 = 2_000_000;

impl CongestionController {
    /// Whether feedback tells what follows.
    pub fn is_twcc_feedback_usable(&self, now: Instant) -> bool {
        self.is_twcc_feedback_usable_at(micros_since_origin(self.origin, now))
    }

    pub(super) fn is_twcc_feedback_usable_at(&self, now: u64) -> bool {
        // TCP hides the queue of the path: what waits in the connection shows it.
        let is_over_tcp = self
            .last_tcp_queue_at
            .is_some_and(|at| now < at + MAX_TCP_QUEUE_REPORT_AGE_US);
        let is_silent = now.saturating_sub(self.last_covering_feedback_at) > TWCC_SILENCE_BEFORE_REPORT_FALLBACK_US;
        self.estimator.is_some()
            && !is_over_tcp
            && !(is_silent && self.packets_since_feedback >= MIN_PACKETS_WITHOUT_TWCC_FEEDBACK)
    }

    /// Bits per second that arrive, if feedback tells.
    pub fn received_bitrate(&self) -> Option<u32> {
        self.estimator.as_ref()?.min_recent_received_bitrate()
    }

    /// How long the newest packets of which is known waited in all queues of the path, our own packets included.
    pub fn newest_queue_delay(&self) -> Option<Duration> {
        let delay = self.estimator.as_ref()?.newest_delay_over_base().max(0);
        Some(Duration::from_micros(u64::from(delay.unsigned_abs())))
    }

    /// Excess delay; see the page of this module.
    pub fn excess_delay(&self) -> Duration {
        let excess = self.estimator.as_ref().map_or(0, |estimator| estimator.excess_delay());
        Duration::from_micros(u64::from(excess.unsigned_abs()))
    }

    /// Share of packets lost in the last second in 1/256, if feedback tells.
    pub fn loss_per_256(&self) -> Option<u8> {
        Some(self.estimator.as_ref()?.loss_per_256())
    }

    /// Whether others keep a queue on the path whatever is sent, so that only loss counts.
    pub fn has_competing_traffic(&self) -> bool {
        let estimator = self.estimator.as_ref();
        estimator.is_some_and(|estimator| estimator.competing_traffic_since().is_some())
    }

    /// Whether less than the best rung is sent because of overload, not only because a better one is not there.
    pub fn is_limited_by_overload(&self) -> bool {
        self.allocator.is_limited_by_overload()
    }

    /// What the layer was last decided by.
    pub fn last_layer_decision_cause(&self) -> Option<LayerDecisionCause> {
        self.last_decision
    }

    /// Bytes that this controller occupies, on the heap too.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.estimator.as_ref().map_or(0, |_| size_of::<TwccEstimator>())
    }

    /// Sets a capacity that was seen on this path recently, in bits per second. Before the first choice.
    pub fn set_start_bitrate_hint(&mut self, bitrate: u32) {
        self.start_bitrate_hint = Some(bitrate);
    }

    /// Returns a capacity, in bits per second, with which another session on this path begins with what is sent now; `None`
    /// without feedback, and while it is not clear whether the path carries that.
    pub fn proven_bitrate(&self, now: Instant) -> Option<u32> {
        let now = micros_since_origin(self.origin, now);
        let is_calm = self.pending_overload.is_none()
            && now >= self.last_overload_at + CALM_TIME_AFTER_OVERLOAD_US
            && !self.allocator.is_step_up_on_trial(now)
            && !self.prober.is_active();
        let bitrate = self.start_bitrate_for_same_rung().max(self.probe_proven_bitrate);
        (is_calm && self.sent_wire_bitrate > 0 && self.is_twcc_feedback_usable_at(now)).then_some(bitrate)
    }

    /// The capacity, in bits per second, of which what is sent now is the share that a first choice may cost.
    pub(super) fn start_bitrate_for_same_rung(&self) -> u32 {
        self.sent_wire_bitrate / 4 * 5
    }

    pub(super) fn expects_no_feedback(&self) -> bool {
        self.start_bitrate_hint == Some(UNLIMITED_START_BITRATE_HINT)
    }
}
