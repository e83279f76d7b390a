//! Congestion control for one viewer: chooses the simulcast layer that its path carries, and paces what is sent.
//!
//! A viewer's path shows its capacity only when it is exceeded. So the controller looks for the two cases apart:
//! *does the path take less than we send* (overload, found from feedback within a few round trips), and *would it
//! take more* (found by a probe alone). It computes no rate that would be true in between, because a simulcast layer
//! either fits or not.
//!
//! ```text
//!            on_packet_sent          on_feedback                               poll
//!               |                  |                                      |
//!   pacer    sent.rs  <---  feedback.rs                                   v
//!  (credit)  bursts,        TWCC, in place     prober.rs  ---->  allocator.rs ----> Action: switch, probe, quality
//!            coverage              |           train, sustained  rung of the ladder
//!               |                  v               ^                  ^
//!               +-----------> estimator.rs --------+---- overload ----+
//!                       delay.rs: excess            overload.rs    reports.rs: without feedback
//!                       rate.rs: received, loss
//! ```
//!
//! | file | contents |
//! |---|---|
//! | [`feedback`] | reader of transport-wide feedback, without allocation |
//! | [`sent`] | what was sent, by bursts, and what of it was acknowledged |
//! | `delay` | excess: delay of a burst over its minimum, less the queue of our own packets |
//! | `rate` | the rate received, and the lower bound of the loss |
//! | [`overload`] | the rules that find overload |
//! | `estimator` | feeds the four above with each feedback |
//! | `reports` | receiver reports, REMB and TCP queues, for viewers without transport-wide feedback |
//! | `prober` | a train and a sustained probe at the rate that is asked for |
//! | [`ladder`] | what a viewer can be sent: layers, and less than a layer |
//! | [`allocator`] | the choice on the ladder: down at once, up by probe, pauses after failures |
//! | [`pacer`], `pacing` | a credit for what may leave now, and the rate at which it grows |
//! | `switch` | where a viewer begins with a lower layer |
//! | `quality`, `status` | what a viewer gets, and what is known of its path |
//!
//! # Rules
//!
//! * *Excess* is the delay of a burst's first packet, less the least delay of 5 to 10 s, less the queue that our own
//!   packets make on a path that carries 1.15 times the layer (or what the last probe has proven). The last term is
//!   why a key frame does not look like congestion. What counts is the minimum of about 110 ms: jitter has gaps, a
//!   queue has none.
//! * *Overload* is delay that rises, over bursts or within one that the path stretches; a burst that is overdue; a
//!   queue that stands; or loss beyond chance; see [`overload`]. A queue that the viewer's own key frame makes is
//!   passed over while as much arrives as a layer costs.
//! * *After a step down* little is sent for a moment, since the queue may be full and would drop the frame that the
//!   viewer waits for; then that frame at the rate received; then half of it, until the queue has drained.
//! * *Of those who share a path*, the one that has stepped up of late yields first, then those at the top, then the
//!   others: their thresholds ascend in this order. If the overload is slight, each waits for a random time before it
//!   steps down, and looks again: one is mostly enough. A rung that is left within 15 s is paused for longer each
//!   time.
//! * *Competition*: if less is sent, and the queue neither halves nor drains, it is the queue of others who do not
//!   yield to delay, like TCP. Delay counts for nothing then. The next rung is tried after 5 s, and left if more than
//!   2 % are lost. It ends when there was no queue for 3 s.
//! * *Probes* are RTX of recent packets: the top first; after it has failed by a sustained probe, the next rung
//!   above, which also has more of the budget. After a failure the train must arrive faster. Sustained probes take at
//!   most 6 % of what is sent, trains about 3 %. What a failed probe did to the path is not the layer's fault. Loss
//!   at its end is a policer, which stays: the next one waits for 8 s to 2 min, and video is sent without bursts.
//! * *Acknowledged is final*, and numbers that no feedback covers are not judged: feedback may be lost, repeated or
//!   overlap without any effect.
//! * All values are integers; no path allocates, but for the first feedback, which makes the estimator (under 2 KiB).
//!
//! # Use
//!
//! The caller numbers packets by [`CongestionController::peek_next_transport_sequence_number`] and reports each by
//! [`CongestionController::on_packet_sent`]; hands over what the viewer sends (`on_feedback`, `on_receiver_report`, `on_remb`,
//! `on_tcp_queue_delay`); then calls [`CongestionController::poll`] until there is no action, and again at
//! [`CongestionController::poll_timeout`]. It reports by [`CongestionController::on_layer_switch_begun`] when a
//! switch has begun to be sent.
pub mod allocator;
mod delay;
mod estimator;
pub mod feedback;
pub mod ladder;
mod layer_switch;
mod non_twcc_evaluator;
pub mod overload;
pub mod pacer;
mod pacing;
mod path_status;
mod prober;
mod quality;
mod received_bitrate_and_loss;
pub mod sent;

use std::time::{Duration, Instant};

use allocator::{LayerAllocator, LayerChoiceInputs, LayerSwitchTarget, StepUpAction, StepUpMode};
use estimator::{PathAssumptions, TwccEstimator};
use feedback::TransportFeedback;
use ladder::{FrameSelection, QualityLadder};
pub use layer_switch::{NewLayerStartPoint, choose_new_layer_start_point};
use non_twcc_evaluator::NonTwccEvaluator;
pub use non_twcc_evaluator::ReceiverReportSummary;
use overload::{
    OverloadReason, OverloadThresholds, SlightOverloadTimer, is_overload_at_most_slight, is_received_bitrate_sufficient,
};
use pacer::{MIN_PACING_BITRATE, Pacer};
pub use pacing::SendTime;
pub use prober::ProbeResult;
use prober::{ProbeInputs, Prober};
pub use quality::{DeliveredQuality, LayerDecisionCause, QualityLimitationReason};
use sent::{FlushTimes, micros_since_origin};

/// Congestion control of one viewer.
#[derive(Debug)]
pub struct CongestionController {
    origin: Instant,
    estimator: Option<Box<TwccEstimator>>,
    report_evaluator: NonTwccEvaluator,
    prober: Prober,
    allocator: LayerAllocator,
    pacer: Pacer,
    /// Number of the next packet.
    next_transport_sequence_number: u16,
    /// When feedback last covered packets that none had covered, and the packets since.
    last_covering_feedback_at: u64,
    packets_since_feedback: u16,
    /// Overload that was found and not acted upon yet.
    pending_overload: Option<OverloadReason>,
    /// What the path was assumed to carry at the start, in bits per second.
    start_bitrate_hint: Option<u32>,
    /// Cost of what is sent, and what a probe has proven, in bits per second.
    sent_wire_bitrate: u32,
    probe_proven_bitrate: u32,
    /// Pacing rate in bits per second.
    pacing_bitrate: u32,
    /// That of a burst that is being sent; see [`CongestionController::set_burst_bitrate`].
    burst_bitrate: Option<u32>,
    /// The best rung is sent, and there are lower ones.
    is_top_rung_sent: bool,
    /// A better rung than the chosen one is there.
    is_below_top_rung: bool,
    last_probe_poll_at: u64,
    /// What a failed probe did to the path is not the layer's fault: nothing before this number counts.
    feedback_ignored_until: Option<u16>,
    /// The same of loss: a policer that the probe has emptied drops for longer.
    loss_ignored_until: u64,
    last_overload_at: u64,
    /// When the queue of the viewer's TCP connection was reported last.
    last_tcp_queue_at: Option<u64>,
    slight_overload: SlightOverloadTimer,
    /// A probe lost packets without a queue: the path drops bursts.
    is_policed: bool,
    last_reported_quality: Option<DeliveredQuality>,
    last_decision: Option<LayerDecisionCause>,
}

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerAction {
    /// Send something else from the next key frame on; see [`choose_new_layer_start_point`].
    Switch(LayerSwitchTarget),
    /// Send about this many bytes of recent packets once more, by RTX, and report them as [`PacketPurpose::Probe`].
    SendProbe { bytes: u32 },
    /// Tell who listens to the events of the stream.
    ReportQuality(DeliveredQuality),
}

/// What a packet is sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketPurpose {
    Media,
    Retransmission,
    Probe,
}

/// As the hint of [`CongestionController::new`]: no feedback is expected, so the best rung is sent unless reports speak
/// against it.
pub const UNLIMITED_START_BITRATE_HINT: u32 = u32::MAX;

/// A path carries this multiple of what is sent, as long as nothing shows the contrary, in percent.
const ASSUMED_CAPACITY_PERCENT_OF_SENT: u64 = 115;

/// In competition a rung that failed is the more trouble for the viewer: it waits for this much longer.
const EXTRA_STEP_UP_PAUSE_IN_COMPETITION_US: u64 = 60_000_000;

/// Loss within this time after a failed probe is its fault.
const LOSS_IGNORED_AFTER_FAILED_PROBE_US: u64 = 500_000;

/// Below the best rung an attempt to go up is made at least this often.
const STEP_UP_RETRY_INTERVAL_US: u64 = 1_000_000;

/// Least capacity that is assumed, in bits per second.
const MIN_ASSUMED_CAPACITY_BITRATE: u32 = 300_000;

impl CongestionController {
    /// `origin` is that of the shard's [`FlushTimes`]. `hint` is a capacity that was seen on this path recently, in
    /// bits per second. `random` spreads probes and begins the numbers of packets.
    pub fn new(origin: Instant, now: Instant, hint: Option<u32>, random: u32) -> Self {
        let now = micros_since_origin(origin, now);
        Self {
            origin,
            estimator: None,
            report_evaluator: NonTwccEvaluator::default(),
            prober: Prober::new(),
            allocator: LayerAllocator::new(random),
            pacer: Pacer::new(now),
            next_transport_sequence_number: (random >> 16) as u16,
            last_covering_feedback_at: 0,
            packets_since_feedback: 0,
            pending_overload: None,
            start_bitrate_hint: hint,
            sent_wire_bitrate: 0,
            probe_proven_bitrate: hint.unwrap_or(0),
            pacing_bitrate: Pacer::pacing_bitrate_for_layer(0),
            burst_bitrate: None,
            is_top_rung_sent: false,
            is_below_top_rung: false,
            last_probe_poll_at: u64::MAX,
            feedback_ignored_until: None,
            loss_ignored_until: 0,
            last_overload_at: 0,
            last_tcp_queue_at: None,
            slight_overload: SlightOverloadTimer::default(),
            is_policed: false,
            last_reported_quality: None,
            last_decision: None,
        }
    }

    /// Returns the transport-wide sequence number of the packet that [`Self::on_packet_sent`] will report next.
    #[inline]
    pub fn peek_next_transport_sequence_number(&self) -> u16 {
        self.next_transport_sequence_number
    }

    /// A packet with [`Self::peek_next_transport_sequence_number`] joined this batch of the outbox. `bytes` is its size on
    /// the wire, with headers of UDP and IP.
    #[inline]
    pub fn on_packet_sent(&mut self, now: SendTime, batch: u32, bytes: u32, kind: PacketPurpose) {
        let number = self.next_transport_sequence_number;
        self.next_transport_sequence_number = number.wrapping_add(1);
        self.packets_since_feedback = self.packets_since_feedback.saturating_add(1);
        self.prober.on_packet_sent(number, bytes, kind == PacketPurpose::Probe);
        self.pacer.spend_credit(bytes);
        if let Some(estimator) = &mut self.estimator {
            estimator.on_packet_sent(now.micros, batch, number, bytes);
        }
    }

    /// The layers have other numbers from now on: what is known of the path stays, and the next choice is what costs about
    /// as much as what is sent, if that `is_measured`.
    pub fn reset_layer_allocation(&mut self, now: Instant, is_measured: bool) {
        self.prober.cancel(micros_since_origin(self.origin, now));
        self.allocator = LayerAllocator::new(u32::from(self.next_transport_sequence_number) << 16 | 1);
        if !self.expects_no_feedback() && is_measured {
            self.start_bitrate_hint = Some(self.start_bitrate_for_same_rung());
        }
        self.pending_overload = None;
        self.last_reported_quality = None;
    }

    /// Evaluates the body of a transport-wide feedback packet (type 205, format 15). Returns whether it could be read.
    pub fn on_twcc_feedback(&mut self, now: Instant, body: &[u8], flushes: &FlushTimes) -> bool {
        let now = micros_since_origin(self.origin, now);
        let Some(feedback) = TransportFeedback::parse(body) else {
            return false;
        };
        let thresholds = match self.is_top_rung_sent {
            true if self.allocator.is_step_up_on_trial(now) => OverloadThresholds::TRIAL_RUNG_THRESHOLDS,
            true => OverloadThresholds::TOP_RUNG_THRESHOLDS,
            false => OverloadThresholds::LOWER_RUNG_THRESHOLDS,
        };
        let assumed = PathAssumptions {
            capacity_bitrate: self.assumed_capacity_bitrate(),
            sent_bitrate: self.sent_wire_bitrate,
            overload_thresholds: thresholds,
        };
        let next = self.next_transport_sequence_number;
        let Some(estimator) = &mut self.estimator else {
            self.estimator = Some(Box::new(TwccEstimator::new(now, next)));
            (self.packets_since_feedback, self.last_covering_feedback_at) = (0, now);
            return true;
        };
        let covered_before = estimator.first_sequence_number_beyond_feedback();
        let (prober, tolerated) = (&mut self.prober, estimator.tolerated_cross_traffic_delay());
        let overload = estimator.on_feedback(now, &feedback, flushes, assumed, |fragment| {
            prober.on_burst_acknowledged(fragment, tolerated)
        });
        if estimator.first_sequence_number_beyond_feedback() != covered_before {
            (self.packets_since_feedback, self.last_covering_feedback_at) = (0, now);
        }
        if let Some(until) = self.feedback_ignored_until {
            if estimator.first_sequence_number_beyond_feedback().wrapping_sub(until) > u16::MAX / 2 {
                estimator.discard_overload_evidence();
                return true;
            }
            self.feedback_ignored_until = None;
        }
        if now < self.loss_ignored_until {
            estimator.clear_loss_window();
        }
        let overload = overload.filter(|overload| *overload != OverloadReason::Loss || now >= self.loss_ignored_until);
        self.pending_overload = overload.or(self.pending_overload);
        true
    }

    /// Evaluates a receiver report.
    pub fn on_receiver_report(&mut self, now: Instant, report: ReceiverReportSummary) {
        let now = micros_since_origin(self.origin, now);
        let is_overload = self.report_evaluator.on_receiver_report(now, report);
        self.note_overload_without_twcc(now, is_overload);
    }

    /// The viewer's own estimate in bits per second (REMB).
    pub fn on_remb(&mut self, now: Instant, bits_per_second: u32) {
        let now = micros_since_origin(self.origin, now);
        self.report_evaluator.on_remb(now, bits_per_second);
        if !self.is_twcc_feedback_usable_at(now) && self.sent_wire_bitrate > bits_per_second {
            self.pending_overload = Some(OverloadReason::RembExceeded);
        }
    }

    /// `queued` is how long what waits in the viewer's TCP connection needs to leave.
    pub fn on_tcp_queue_delay(&mut self, now: Instant, queued: Duration) {
        let now = micros_since_origin(self.origin, now);
        self.last_tcp_queue_at = Some(now);
        let is_overload = self.report_evaluator.on_tcp_queue_delay(now, queued);
        self.note_overload_without_twcc(now, is_overload);
    }

    fn note_overload_without_twcc(&mut self, now: u64, is_overload: bool) {
        if is_overload && !self.is_twcc_feedback_usable_at(now) {
            self.pending_overload = Some(OverloadReason::ReceiverReportOrTcpQueue);
        }
    }

    /// The layer of the last [`ControllerAction::Switch`] is being sent.
    pub fn on_layer_switch_begun(&mut self, now: Instant, layer: u8, frames: FrameSelection) {
        let now = micros_since_origin(self.origin, now);
        let ascent = self.step_up_mode(now);
        self.allocator.on_layer_switch_begun(now, layer, frames, ascent);
        if self.allocator.pacing_bitrate_limit_after_step_down(now).is_some() {
            self.pacer.reset_credit_to_zero();
        }
        if let Some(estimator) = &mut self.estimator {
            estimator.restart_loss_smoothing(now);
        }
    }

    /// Returns the next thing to do. Call until there is none.
    pub fn poll(&mut self, now: Instant, ladder: &QualityLadder) -> Option<ControllerAction> {
        let now = micros_since_origin(self.origin, now);
        if self.allocator.target_choice().is_none() {
            let switch = self.allocator.choose_first_rung(ladder, self.start_bitrate_hint)?;
            return self.cancel_probe_and_switch_layer(now, ladder, switch);
        }
        if let Some(estimator) = &mut self.estimator {
            estimator.forget_queue_and_loss_if_idle(now);
        }
        self.update_wire_and_pacing_bitrates(now, ladder);
        let switch = self.allocator.replace_unusable_target_rung(ladder);
        let switch = switch
            .or_else(|| self.step_down_if_overloaded(now, ladder))
            .or_else(|| self.poll_probe_result(now, ladder))
            .or_else(|| self.return_to_top_rung(now, ladder));
        if let Some(switch) = switch {
            return self.cancel_probe_and_switch_layer(now, ladder, switch);
        }
        if self.last_probe_poll_at != now
            && let Some(bytes) = self.prober.due_probe_bytes(now)
        {
            self.last_probe_poll_at = now;
            return Some(ControllerAction::SendProbe { bytes });
        }
        if let Some(switch) = self.start_probe_or_step_up(now, ladder) {
            return self.cancel_probe_and_switch_layer(now, ladder, switch);
        }
        self.take_changed_delivered_quality(ladder)
    }

    /// Returns when [`Self::poll`] must be called, if nothing arrives before.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let now = micros_since_origin(self.origin, now);
        let next = self.allocator.next_step_up_at(self.prober.last_probe_ended_at());
        let due = self.prober.next_poll_at(now).or((next > now).then_some(next));
        // What the path carries may be seen only by an attempt, although nothing arrives.
        let retry = self.is_below_top_rung.then_some(now + STEP_UP_RETRY_INTERVAL_US);
        let due = due.into_iter().chain(retry).min()?;
        Some(self.origin + Duration::from_micros(due))
    }

    fn step_down_if_overloaded(&mut self, now: u64, ladder: &QualityLadder) -> Option<LayerSwitchTarget> {
        self.pending_overload?;
        let conditions = self.layer_choice_inputs(now);
        let is_probed = self.step_up_mode(now) == StepUpMode::ProbeFirst;
        self.last_overload_at = now;
        if self.prober.is_active() {
            // The probe is what the path does not take; what was sent before it did.
            return None;
        }
        let overload = self.pending_overload.take()?;
        self.last_decision = Some(LayerDecisionCause::Overload(overload));
        let is_fast = matches!(overload, OverloadReason::RisingDelay | OverloadReason::OverdueFeedback);
        if is_fast
            && self
                .estimator
                .as_ref()
                .and_then(|estimator| estimator.received_bitrate())
                .is_some_and(|received| is_received_bitrate_sufficient(received, self.sent_wire_bitrate))
        {
            return None;
        }
        let received = self.received_bitrate().unwrap_or(0);
        let is_slight =
            overload != OverloadReason::Loss && is_overload_at_most_slight(received, self.sent_wire_bitrate);
        if is_slight
            && !self
                .slight_overload
                .is_due_or_start_wait(now, || self.allocator.next_random())
        {
            return None;
        }
        self.slight_overload = SlightOverloadTimer::default();
        self.probe_proven_bitrate = self.probe_proven_bitrate.min(conditions.received_bitrate.unwrap_or(0));
        let switch = self.allocator.step_down_on_overload(now, ladder, conditions, is_probed);
        let is_at_bottom = switch.is_none() && self.allocator.is_settled_on_lowest_rung(now, ladder);
        if is_at_bottom {
            self.report_evaluator.on_overload_at_lowest_rung();
        }
        if let Some(estimator) = &mut self.estimator {
            match switch {
                Some(_) => estimator.on_step_down(now),
                None if is_at_bottom => estimator.assume_competition_at_lowest_rung(now),
                None => {}
            }
        }
        switch
    }

    fn poll_probe_result(&mut self, now: u64, ladder: &QualityLadder) -> Option<LayerSwitchTarget> {
        let path = self.probe_inputs();
        let tolerated = self
            .estimator
            .as_ref()
            .map_or(0, |estimator| estimator.tolerated_cross_traffic_delay());
        let rate = self.prober.active_probe_bitrate()?;
        if self.step_up_mode(now) != StepUpMode::ProbeFirst {
            self.prober.cancel(now);
            self.allocator.forget_probe_goal();
            return None;
        }
        let result = self
            .prober
            .poll(now, self.next_transport_sequence_number, path, tolerated)?;
        self.pending_overload = None;
        self.last_decision = Some(LayerDecisionCause::Probe(result));
        if matches!(result, ProbeResult::Passed | ProbeResult::SustainedProbeLost) {
            self.is_policed = result == ProbeResult::SustainedProbeLost;
        }
        match result {
            ProbeResult::Passed => self.probe_proven_bitrate = rate,
            ProbeResult::SustainedProbeFailed | ProbeResult::SustainedProbeLost | ProbeResult::PacketTrainFailed => {
                self.feedback_ignored_until = Some(self.next_transport_sequence_number);
                self.loss_ignored_until = now + LOSS_IGNORED_AFTER_FAILED_PROBE_US;
            }
        }
        self.allocator.on_probe_result(now, ladder, result)
    }

    /// Where no feedback is expected, a better rung that is there again is sent at once.
    fn return_to_top_rung(&mut self, now: u64, ladder: &QualityLadder) -> Option<LayerSwitchTarget> {
        self.expects_no_feedback()
            .then(|| self.allocator.return_to_top_rung_unless_overloaded(now, ladder))?
    }

    fn start_probe_or_step_up(&mut self, now: u64, ladder: &QualityLadder) -> Option<LayerSwitchTarget> {
        if self.prober.is_active() {
            return None;
        }
        let ascent = self.step_up_mode(now);
        let conditions = self.layer_choice_inputs(now);
        match self.allocator.choose_step_up_action(now, ladder, conditions, ascent)? {
            StepUpAction::Switch(switch) => Some(switch),
            StepUpAction::Probe(plan) => {
                self.prober
                    .start_with_packet_train(now, plan, self.next_transport_sequence_number);
                None
            }
        }
    }

    fn take_changed_delivered_quality(&mut self, ladder: &QualityLadder) -> Option<ControllerAction> {
        let quality = DeliveredQuality::from_layer_choice(self.allocator.current_or_target_choice()?, ladder);
        let is_new = self.last_reported_quality.replace(quality) != Some(quality);
        is_new.then_some(ControllerAction::ReportQuality(quality))
    }

    fn cancel_probe_and_switch_layer(
        &mut self,
        now: u64,
        ladder: &QualityLadder,
        switch: LayerSwitchTarget,
    ) -> Option<ControllerAction> {
        self.prober.cancel(now);
        self.update_wire_and_pacing_bitrates(now, ladder);
        Some(ControllerAction::Switch(switch))
    }

    /// The cost of what is sent, or will be if that is more: a key frame of the next layer is not to look like
    /// overload.
    fn update_wire_and_pacing_bitrates(&mut self, now: u64, ladder: &QualityLadder) {
        let index = |choice: Option<(u8, FrameSelection)>| {
            choice.and_then(|(layer, frames)| ladder.rung_index_of(layer, frames))
        };
        let cost = |choice| index(choice).map_or(0, |index| ladder.wire_bitrate_with_audio(index));
        let (current, target) = (
            self.allocator.current_or_target_choice(),
            self.allocator.target_choice(),
        );
        self.sent_wire_bitrate = cost(current).max(cost(target));
        let top = ladder.top_usable_index();
        self.is_top_rung_sent =
            index(current) == top && top.is_some_and(|top| ladder.next_usable_index_below(top).is_some());
        self.is_below_top_rung = index(target) < top;
        let rung = index(target).and_then(|index| ladder.get(index));
        let pace = match self.has_competing_traffic() || self.is_policed {
            // A burst into a queue that is full, or through a policer, is lost.
            true => self.sent_wire_bitrate / 4 * 5,
            false => self.pacing_bitrate_for_rung(rung, ladder),
        };
        let sends_no_other_frames = rung.is_some_and(|rung| rung.frames <= FrameSelection::KeyFrames);
        self.pacer.set_evenly_paced(sends_no_other_frames);
        // Video goes along with a probe, but for key frames alone: they would fill the queue of a path that is too small, and
        // the audio with them.
        let pace = pace.max(
            self.prober
                .active_probe_bitrate()
                .filter(|_| !sends_no_other_frames)
                .unwrap_or(0),
        );
        // After a step down the queue has to drain.
        let drained = self.allocator.pacing_bitrate_limit_after_step_down(now);
        self.pacing_bitrate = drained.map_or(pace, |drained| pace.min(drained.max(MIN_PACING_BITRATE)));
    }

    fn step_up_mode(&self, now: u64) -> StepUpMode {
        match self.is_twcc_feedback_usable_at(now) {
            true => match self
                .estimator
                .as_ref()
                .and_then(|estimator| estimator.competing_traffic_since())
            {
                None => StepUpMode::ProbeFirst,
                // A probe would find the queue of the others.
                Some(since) => StepUpMode::TryWithoutProbe {
                    uncongested_since: Some(since.max(self.last_overload_at)),
                    limit: None,
                    longer_pause: EXTRA_STEP_UP_PAUSE_IN_COMPETITION_US,
                },
            },
            false => StepUpMode::TryWithoutProbe {
                uncongested_since: self.report_evaluator.uncongested_since(),
                limit: self.report_evaluator.remb_bitrate(now),
                longer_pause: 0,
            },
        }
    }

    fn layer_choice_inputs(&self, now: u64) -> LayerChoiceInputs {
        let estimator = self.estimator.as_ref().filter(|_| self.is_twcc_feedback_usable_at(now));
        let limit = self.report_evaluator.remb_bitrate(now).filter(|_| estimator.is_none());
        LayerChoiceInputs {
            received_bitrate: estimator
                .and_then(|estimator| estimator.min_recent_received_bitrate())
                .or(limit),
            excess_delay: estimator.map_or(0, |estimator| {
                estimator.excess_delay() - estimator.tolerated_cross_traffic_delay()
            }),
            last_probe_ended_at: self.prober.last_probe_ended_at(),
            sustained_probe_credit_bytes: self.prober.remaining_sustained_probe_credit_bytes(),
        }
    }

    fn probe_inputs(&self) -> ProbeInputs {
        let estimator = self.estimator.as_ref();
        ProbeInputs {
            excess_delay: estimator.map_or(0, |estimator| {
                estimator.excess_delay() - estimator.tolerated_cross_traffic_delay()
            }),
            is_lossy: estimator.is_some_and(|estimator| estimator.is_lossy()),
            is_overloaded: self.pending_overload.is_some(),
            first_sequence_number_beyond_feedback: estimator.map_or(self.next_transport_sequence_number, |estimator| {
                estimator.first_sequence_number_beyond_feedback()
            }),
        }
    }

    /// What the path is assumed to carry.
    fn assumed_capacity_bitrate(&self) -> u32 {
        let assumed = u64::from(self.sent_wire_bitrate) * ASSUMED_CAPACITY_PERCENT_OF_SENT / 100;
        let assumed = u32::try_from(assumed).unwrap_or(u32::MAX);
        match self.prober.active_probe_bitrate() {
            Some(rate) => rate,
            None => assumed.max(self.probe_proven_bitrate).max(MIN_ASSUMED_CAPACITY_BITRATE),
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::ladder::QualityRung;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn ladder() -> QualityLadder {
        let mut ladder = QualityLadder::new(50_000);
        for (layer, rate) in [(0, 300_000), (1, 1_000_000)] {
            ladder.push(QualityRung {
                layer,
                frames: FrameSelection::All,
                payload_bitrate: rate,
                usable: true,
            });
        }
        ladder
    }

    struct Viewer {
        controller: CongestionController,
        now: Instant,
        layer: Option<u8>,
        qualities: Vec<(u8, QualityLimitationReason)>,
    }

    impl Viewer {
        fn new() -> Self {
            let now = Instant::now();
            let mut viewer = Self {
                controller: CongestionController::new(now, now, None, 7),
                now,
                layer: None,
                qualities: Vec::new(),
            };
            viewer.apply_controller_actions();
            viewer
        }

        fn apply_controller_actions(&mut self) {
            while let Some(action) = self.controller.poll(self.now, &ladder()) {
                match action {
                    ControllerAction::Switch(switch) => {
                        self.layer = Some(switch.layer);
                        self.controller
                            .on_layer_switch_begun(self.now, switch.layer, switch.frames);
                    }
                    ControllerAction::ReportQuality(quality) => {
                        self.qualities.push((quality.layer, quality.limitation_reason))
                    }
                    ControllerAction::SendProbe { .. } => panic!("there is no feedback"),
                }
            }
        }

        /// Reports of this loss in percent each second.
        fn send_receiver_reports(&mut self, seconds: u64, percent: u32) {
            for _ in 0..seconds {
                self.now += 1_000 * MS;
                let report = ReceiverReportSummary {
                    fraction_lost: (percent * 256 / 100) as u8,
                    publisher_fraction_lost: 0,
                    rtt: Some(40 * MS),
                };
                self.controller.on_receiver_report(self.now, report);
                self.apply_controller_actions();
            }
        }
    }

    #[test]
    fn a_viewer_with_reports_alone_is_tried_up_and_taken_down() {
        let mut viewer = Viewer::new();
        assert_eq!(viewer.layer, Some(0));
        viewer.send_receiver_reports(5, 0);
        assert_eq!(viewer.layer, Some(0));
        viewer.send_receiver_reports(1, 0);
        assert_eq!(viewer.layer, Some(1));
        viewer.send_receiver_reports(1, 20);
        assert_eq!(viewer.layer, Some(1), "one report is none");
        viewer.send_receiver_reports(1, 20);
        assert_eq!(viewer.layer, Some(0));
        // On trial it failed: the next attempt waits for ten seconds, more or less.
        viewer.send_receiver_reports(8, 0);
        assert_eq!(viewer.layer, Some(0));
        viewer.send_receiver_reports(5, 0);
        assert_eq!(viewer.layer, Some(1));
        let told = [
            (0, QualityLimitationReason::Bandwidth),
            (1, QualityLimitationReason::None),
            (0, QualityLimitationReason::Bandwidth),
            (1, QualityLimitationReason::None),
        ];
        assert_eq!(viewer.qualities, told);
    }

    /// The same feedback again and again is none.
    #[test]
    fn feedback_that_covers_nothing_new_does_not_keep_reports_from_counting() {
        let mut viewer = Viewer::new();
        let flushes = FlushTimes::new(viewer.now);
        let feed = |viewer: &mut Viewer, base: u16| {
            let [high, low] = base.to_be_bytes();
            let body = [0, 0, 0, 1, 0, 0, 0, 2, high, low, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0];
            assert!(viewer.controller.on_twcc_feedback(viewer.now, &body, &flushes));
        };
        let next = viewer.controller.peek_next_transport_sequence_number();
        feed(&mut viewer, next);
        for number in 0..300_u16 {
            viewer.now += 10 * MS;
            viewer
                .controller
                .on_packet_sent(viewer.controller.send_time(viewer.now), 0, 1_200, PacketPurpose::Media);
            feed(&mut viewer, next.wrapping_add(number.min(99)));
            let is_recent = viewer.controller.is_twcc_feedback_usable(viewer.now);
            assert_eq!(is_recent, number < 200, "{number}");
        }
    }

    #[test]
    fn remb_estimate_caps_layer() {
        let mut viewer = Viewer::new();
        viewer.controller.on_remb(viewer.now, 700_000);
        viewer.send_receiver_reports(4, 0);
        viewer.controller.on_remb(viewer.now, 700_000);
        viewer.send_receiver_reports(4, 0);
        assert_eq!(viewer.layer, Some(0));
        viewer.controller.on_remb(viewer.now, 2_000_000);
        viewer.send_receiver_reports(1, 0);
        assert_eq!(viewer.layer, Some(1));
        viewer.controller.on_remb(viewer.now, 700_000);
        viewer.apply_controller_actions();
        assert_eq!(viewer.layer, Some(0));
    }

    /// A probe over TCP would only make its queue longer.
    #[test]
    fn over_tcp_nothing_is_probed_although_there_is_feedback() {
        let mut viewer = Viewer::new();
        let flushes = FlushTimes::new(viewer.now);
        let mut has_stepped_up = false;
        for tick in 0..700_u32 {
            viewer.now += 10 * MS;
            if tick % 10 == 0 {
                viewer.controller.on_tcp_queue_delay(viewer.now, MS);
            }
            let [high, low] = viewer.controller.peek_next_transport_sequence_number().to_be_bytes();
            viewer
                .controller
                .on_packet_sent(viewer.controller.send_time(viewer.now), 0, 1_200, PacketPurpose::Media);
            let body = [0, 0, 0, 1, 0, 0, 0, 2, high, low, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0];
            assert!(viewer.controller.on_twcc_feedback(viewer.now, &body, &flushes));
            // It panics at a probe.
            viewer.apply_controller_actions();
            has_stepped_up |= viewer.layer == Some(1);
        }
        assert!(has_stepped_up, "the step itself is the attempt");
    }

    #[test]
    fn a_tcp_queue_that_grows_takes_a_viewer_down() {
        let mut viewer = Viewer::new();
        viewer.send_receiver_reports(6, 0);
        assert_eq!(viewer.layer, Some(1));
        viewer.controller.on_tcp_queue_delay(viewer.now, 301 * MS);
        viewer.apply_controller_actions();
        assert_eq!(viewer.layer, Some(0));
    }
}
