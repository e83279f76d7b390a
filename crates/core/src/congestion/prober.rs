//! Probes whether the path carries more: a short train of packets first, then a quarter of a second at the rate that is
//! asked for. Nothing else shows it, because a path that is not full looks alike at every capacity.

use super::estimator::AcknowledgedBurstPart;
use super::pacer::PACING_INTERVAL_US;

/// The probe of one viewer. Times are in microseconds, rates in bits per second.
#[derive(Debug)]
pub(super) struct Prober {
    phase: ProbePhase,
    rate: u32,
    bounds: ExcessDelayBounds,
    min_packet_train_percent: u64,
    phase_began_at: u64,
    /// Number of the first packet of the phase, and the number after the last.
    phase_sequence_numbers: (u16, u16),
    /// Packets and bytes sent in the phase, media included.
    sent_packet_count: u16,
    sent_bytes: u32,
    /// What arrived of the train.
    arrivals: Option<(i64, i64)>,
    received_bytes: u32,
    first_packet_bytes: u32,
    /// Least excess at the end of the sustained probe.
    min_tail_excess_delay: Option<i32>,
    /// Consecutive bursts with high excess.
    late_burst_count: u8,
    lost: u16,
    /// Packets of the last part of the sustained probe that were lost, and that arrived.
    late_lost_and_arrived: (u32, u32),
    /// Bytes of sustained probes that may be sent; negative after a sustained probe that was worth more.
    sustained_probe_credit_bytes: i32,
    last_probe_ended_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProbePhase {
    Idle,
    SendingPacketTrain,
    /// The train was sent; its feedback has not come.
    AwaitingPacketTrainFeedback,
    SendingSustainedProbe,
    AwaitingSustainedProbeFeedback,
}

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProbeParameters {
    /// Bits per second.
    pub(super) probe_bitrate: u32,
    /// It is for the best rung.
    pub(super) is_for_top_rung: bool,
    /// Whether the sustained probe may be sent if the train just passes; if not, the train must arrive unhindered.
    pub(super) allows_sustained_probe: bool,
    /// A probe for it has failed: the train must arrive faster.
    pub(super) has_failed_before: bool,
}

/// Excess delays that end or fail a sustained probe, in microseconds.
#[derive(Clone, Copy, Debug)]
struct ExcessDelayBounds {
    /// Excess with which the sustained probe ends.
    abort_excess_delay: i32,
    /// The same for several bursts in a row: before those who share the path see overload.
    late_burst_excess_delay: i32,
    /// Excess at the end.
    tail_excess_delay: i32,
}

impl ExcessDelayBounds {
    /// For the best rung: who wants it gives way to all others.
    const TOP_RUNG_THRESHOLDS: Self = Self {
        abort_excess_delay: 40_000,
        late_burst_excess_delay: 30_000,
        tail_excess_delay: 25_000,
    };

    /// For lower rungs: those at the top give way.
    const LOWER_RUNG_THRESHOLDS: Self = Self {
        abort_excess_delay: 70_000,
        late_burst_excess_delay: 60_000,
        tail_excess_delay: 35_000,
    };
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    Passed,
    /// The train arrived too slowly: far too little capacity. It cost next to nothing.
    PacketTrainFailed,
    /// The fill made a queue.
    SustainedProbeFailed,
    /// The fill made loss without a queue: a policer, which stays.
    SustainedProbeLost,
}

/// What the path shows while the prober judges.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProbeInputs {
    /// Excess delay beyond what others cause.
    pub(super) excess_delay: i32,
    pub(super) is_lossy: bool,
    pub(super) is_overloaded: bool,
    /// Number after the highest one covered by feedback.
    pub(super) first_sequence_number_beyond_feedback: u16,
}

const MIN_PACKET_TRAIN_DURATION_US: u64 = 20_000;
const MIN_PACKET_TRAIN_PACKETS: u16 = 6;

/// The train must arrive at this share of the rate, in percent.
const MIN_PACKET_TRAIN_BITRATE_PERCENT: u64 = 60;

/// The same after a probe that has failed.
const MIN_REPEATED_PACKET_TRAIN_BITRATE_PERCENT: u64 = 80;

const SUSTAINED_PROBE_DURATION_US: u64 = 250_000;

/// Bursts in a row with high excess that end the sustained probe.
const MIN_CONSECUTIVE_LATE_BURSTS: u8 = 3;

/// Share of the packets of the sustained probe that may be lost, in percent.
const MAX_PROBE_LOSS_PERCENT: u32 = 15;

/// The same of its second half: a policer lets a burst pass before it drops.
const MAX_SECOND_HALF_LOSS_PERCENT: u32 = 20;

/// Lost packets of the second half that end the probe before its end.
const MIN_SECOND_HALF_LOST_PACKETS: u32 = 8;

/// A train with this share arrived unhindered, in percent.
const MIN_PACKET_TRAIN_BITRATE_PERCENT_WITHOUT_CREDIT: u64 = 90;

/// The end of the sustained probe that is judged. A longer one would let false ones through: the queue was short
/// before.
const JUDGED_SUSTAINED_PROBE_TAIL_US: u64 = 60_000;

/// Longest wait for the feedback of a phase.
const PROBE_FEEDBACK_TIMEOUT_US: u64 = 1_000_000;

/// A train that cannot be filled, because there is nothing to send, is given up.
const PACKET_TRAIN_SEND_TIMEOUT_US: u64 = 500_000;

/// Sustained probes may use this share of the bytes sent, in percent, saved up to [`MAX_PROBE_CREDIT_BYTES`]. Trains
/// are few.
const PROBE_CREDIT_PERCENT_OF_SENT: i32 = 6;
const MAX_PROBE_CREDIT_BYTES: i32 = 60_000;

/// Fewer bytes are not worth a packet.
const MIN_PROBE_BYTES_PER_SEND: u32 = 600;

impl Prober {
    pub(super) fn new() -> Self {
        Self {
            phase: ProbePhase::Idle,
            rate: 0,
            bounds: ExcessDelayBounds::TOP_RUNG_THRESHOLDS,
            min_packet_train_percent: MIN_PACKET_TRAIN_BITRATE_PERCENT,
            phase_began_at: 0,
            phase_sequence_numbers: (0, 0),
            sent_packet_count: 0,
            sent_bytes: 0,
            arrivals: None,
            received_bytes: 0,
            first_packet_bytes: 0,
            min_tail_excess_delay: None,
            late_burst_count: 0,
            lost: 0,
            late_lost_and_arrived: (0, 0),
            sustained_probe_credit_bytes: MAX_PROBE_CREDIT_BYTES,
            last_probe_ended_at: 0,
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.phase != ProbePhase::Idle
    }

    /// The rate that is being probed, if any.
    pub(super) fn active_probe_bitrate(&self) -> Option<u32> {
        self.is_active().then_some(self.rate)
    }

    /// When the last probe ended.
    pub(super) fn last_probe_ended_at(&self) -> u64 {
        self.last_probe_ended_at
    }

    /// Bytes that sustained probes may have.
    pub(super) fn remaining_sustained_probe_credit_bytes(&self) -> i32 {
        self.sustained_probe_credit_bytes
    }

    /// Begins a probe; `next` is the number of the next packet.
    pub(super) fn start_with_packet_train(&mut self, now: u64, plan: ProbeParameters, next: u16) {
        self.rate = plan.probe_bitrate;
        self.min_packet_train_percent = match (plan.allows_sustained_probe, plan.has_failed_before) {
            (false, _) => MIN_PACKET_TRAIN_BITRATE_PERCENT_WITHOUT_CREDIT,
            (true, true) => MIN_REPEATED_PACKET_TRAIN_BITRATE_PERCENT,
            (true, false) => MIN_PACKET_TRAIN_BITRATE_PERCENT,
        };
        self.bounds = if plan.is_for_top_rung {
            ExcessDelayBounds::TOP_RUNG_THRESHOLDS
        } else {
            ExcessDelayBounds::LOWER_RUNG_THRESHOLDS
        };
        self.begin_probe_phase(ProbePhase::SendingPacketTrain, now, next);
    }

    fn begin_probe_phase(&mut self, phase: ProbePhase, now: u64, next: u16) {
        self.phase = phase;
        self.phase_began_at = now;
        self.phase_sequence_numbers = (next, next);
        (
            self.sent_packet_count,
            self.sent_bytes,
            self.received_bytes,
            self.first_packet_bytes,
        ) = (0, 0, 0, 0);
        (
            self.arrivals,
            self.min_tail_excess_delay,
            self.late_burst_count,
            self.lost,
        ) = (None, None, 0, 0);
        self.late_lost_and_arrived = (0, 0);
    }

    /// Ends the probe without a result.
    pub(super) fn cancel(&mut self, now: u64) {
        if self.is_active() {
            self.phase = ProbePhase::Idle;
            self.last_probe_ended_at = now;
        }
    }

    /// Records a packet of any kind.
    #[inline]
    pub(super) fn on_packet_sent(&mut self, number: u16, bytes: u32, is_probe: bool) {
        let signed = bytes.min(u32::from(u16::MAX)).cast_signed();
        if !is_probe && self.sustained_probe_credit_bytes < MAX_PROBE_CREDIT_BYTES {
            self.sustained_probe_credit_bytes = (self.sustained_probe_credit_bytes
                + signed * PROBE_CREDIT_PERCENT_OF_SENT / 100)
                .min(MAX_PROBE_CREDIT_BYTES);
        } else if is_probe && self.phase == ProbePhase::SendingSustainedProbe {
            self.sustained_probe_credit_bytes = self.sustained_probe_credit_bytes.saturating_sub(signed);
        }
        if matches!(
            self.phase,
            ProbePhase::SendingPacketTrain | ProbePhase::SendingSustainedProbe
        ) {
            self.sent_packet_count = self.sent_packet_count.saturating_add(1);
            self.sent_bytes += bytes;
            self.phase_sequence_numbers.1 = number.wrapping_add(1);
        }
    }

    /// Records what feedback covers.
    pub(super) fn on_burst_acknowledged(&mut self, fragment: &AcknowledgedBurstPart, tolerated: i32) {
        let (first, end) = self.phase_sequence_numbers;
        // A burst that merged packets from before the phase begins before it.
        let is_ours = fragment.burst_first_number.wrapping_sub(first) < end.wrapping_sub(first);
        if !self.is_active() || !is_ours {
            return;
        }
        if let Some((first, last)) = fragment.arrivals {
            let (earliest, latest) = self.arrivals.unwrap_or((first, last));
            if self.arrivals.is_none() {
                self.first_packet_bytes = fragment.first_packet_bytes;
            }
            self.arrivals = Some((earliest.min(first), latest.max(last)));
        }
        self.lost = self.lost.saturating_add(fragment.lost);
        self.received_bytes = self.received_bytes.saturating_add(fragment.received_bytes);
        if self.phase == ProbePhase::SendingSustainedProbe || self.phase == ProbePhase::AwaitingSustainedProbeFeedback {
            if let Some(excess) = fragment.excess_delay {
                self.late_burst_count = if excess - tolerated > self.bounds.late_burst_excess_delay {
                    self.late_burst_count + 1
                } else {
                    0
                };
            }
            if fragment.sent_at >= self.phase_began_at + SUSTAINED_PROBE_DURATION_US / 2 {
                self.late_lost_and_arrived.0 += u32::from(fragment.lost);
                self.late_lost_and_arrived.1 += fragment.arrived_packet_count;
            }
            let is_tail =
                fragment.sent_at + JUDGED_SUSTAINED_PROBE_TAIL_US >= self.phase_began_at + SUSTAINED_PROBE_DURATION_US;
            if let Some(excess) = fragment.excess_delay.filter(|_| is_tail) {
                self.min_tail_excess_delay = Some(self.min_tail_excess_delay.map_or(excess, |least| least.min(excess)));
            }
        }
    }

    /// Moves the probe on. Returns its result when it is known; `tolerated` is the excess that others cause.
    pub(super) fn poll(&mut self, now: u64, next: u16, path: ProbeInputs, tolerated: i32) -> Option<ProbeResult> {
        let elapsed = now.saturating_sub(self.phase_began_at);
        let is_covered = path
            .first_sequence_number_beyond_feedback
            .wrapping_sub(self.phase_sequence_numbers.1)
            < u16::MAX / 2;
        let is_bad = path.is_overloaded
            || path.excess_delay > self.bounds.abort_excess_delay
            || self.late_burst_count >= MIN_CONSECUTIVE_LATE_BURSTS;
        let has_late_loss = self.has_high_second_half_loss(MIN_SECOND_HALF_LOST_PACKETS);
        match self.phase {
            ProbePhase::Idle => None,
            ProbePhase::SendingPacketTrain | ProbePhase::AwaitingPacketTrainFeedback if path.is_overloaded => {
                self.end_probe_with_result(now, ProbeResult::PacketTrainFailed)
            }
            ProbePhase::SendingPacketTrain
                if elapsed >= MIN_PACKET_TRAIN_DURATION_US && self.sent_packet_count >= MIN_PACKET_TRAIN_PACKETS =>
            {
                self.phase = ProbePhase::AwaitingPacketTrainFeedback;
                self.phase_began_at = now;
                None
            }
            ProbePhase::SendingPacketTrain if elapsed >= PACKET_TRAIN_SEND_TIMEOUT_US => {
                self.end_probe_with_result(now, ProbeResult::PacketTrainFailed)
            }
            ProbePhase::AwaitingPacketTrainFeedback if is_covered && self.has_packet_train_succeeded() => {
                self.begin_probe_phase(ProbePhase::SendingSustainedProbe, now, next);
                None
            }
            ProbePhase::AwaitingPacketTrainFeedback if is_covered || elapsed >= PROBE_FEEDBACK_TIMEOUT_US => {
                self.end_probe_with_result(now, ProbeResult::PacketTrainFailed)
            }
            ProbePhase::SendingSustainedProbe | ProbePhase::AwaitingSustainedProbeFeedback if is_bad => {
                self.end_probe_with_result(now, ProbeResult::SustainedProbeFailed)
            }
            ProbePhase::SendingSustainedProbe | ProbePhase::AwaitingSustainedProbeFeedback if has_late_loss => {
                self.end_probe_with_result(now, ProbeResult::SustainedProbeLost)
            }
            ProbePhase::SendingSustainedProbe if elapsed >= SUSTAINED_PROBE_DURATION_US => {
                self.phase = ProbePhase::AwaitingSustainedProbeFeedback;
                None
            }
            ProbePhase::AwaitingSustainedProbeFeedback
                if is_covered || elapsed >= SUSTAINED_PROBE_DURATION_US + PROBE_FEEDBACK_TIMEOUT_US =>
            {
                let is_short = self
                    .min_tail_excess_delay
                    .is_some_and(|tail| tail - tolerated < self.bounds.tail_excess_delay);
                let has_arrived =
                    u32::from(self.lost) * 100 <= u32::from(self.sent_packet_count) * MAX_PROBE_LOSS_PERCENT;
                let passed = is_covered && is_short && has_arrived && !path.is_lossy;
                let result = if is_short && self.has_high_second_half_loss(1) {
                    ProbeResult::SustainedProbeLost
                } else if passed {
                    ProbeResult::Passed
                } else {
                    ProbeResult::SustainedProbeFailed
                };
                self.end_probe_with_result(now, result)
            }
            _ => None,
        }
    }

    /// Returns the bytes of probes that are due now.
    pub(super) fn due_probe_bytes(&self, now: u64) -> Option<u32> {
        let elapsed = match self.phase {
            ProbePhase::SendingPacketTrain => now.saturating_sub(self.phase_began_at),
            ProbePhase::SendingSustainedProbe => {
                now.saturating_sub(self.phase_began_at).min(SUSTAINED_PROBE_DURATION_US)
            }
            _ => return None,
        };
        let planned = u64::from(self.rate) * (elapsed + PACING_INTERVAL_US) / 8_000_000;
        let due = u32::try_from(planned)
            .unwrap_or(u32::MAX)
            .saturating_sub(self.sent_bytes);
        (due >= MIN_PROBE_BYTES_PER_SEND).then_some(due)
    }

    /// When [`Self::due_probe_bytes`] and [`Self::poll`] must be called.
    pub(super) fn next_poll_at(&self, now: u64) -> Option<u64> {
        match self.phase {
            ProbePhase::Idle => None,
            ProbePhase::SendingPacketTrain | ProbePhase::SendingSustainedProbe => Some(now + PACING_INTERVAL_US),
            ProbePhase::AwaitingPacketTrainFeedback | ProbePhase::AwaitingSustainedProbeFeedback => {
                Some(self.phase_began_at + SUSTAINED_PROBE_DURATION_US + PROBE_FEEDBACK_TIMEOUT_US)
            }
        }
    }

    /// Whether too much of the second half was lost, and at least this many packets.
    fn has_high_second_half_loss(&self, least: u32) -> bool {
        let (lost, arrived) = self.late_lost_and_arrived;
        lost >= least && lost * 100 > (lost + arrived) * MAX_SECOND_HALF_LOSS_PERCENT
    }

    fn has_packet_train_succeeded(&self) -> bool {
        let Some((first, last)) = self.arrivals else {
            return false;
        };
        let micros = u64::try_from(last - first).unwrap_or(0);
        let bits = u64::from(self.received_bytes.saturating_sub(self.first_packet_bytes)) * 8;
        let is_enough = u64::from(self.received_bytes) * 2 >= u64::from(self.sent_bytes);
        // The times are the viewer's: they may be anything.
        let least = micros.saturating_mul(u64::from(self.rate) * self.min_packet_train_percent);
        is_enough && bits * 100_000_000 >= least
    }

    fn end_probe_with_result(&mut self, now: u64, result: ProbeResult) -> Option<ProbeResult> {
        self.cancel(now);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 3_000_000;

    const PLAN: ProbeParameters = ProbeParameters {
        probe_bitrate: RATE,
        is_for_top_rung: true,
        allows_sustained_probe: true,
        has_failed_before: false,
    };

    fn path(covered_until: u16) -> ProbeInputs {
        ProbeInputs {
            excess_delay: 0,
            is_lossy: false,
            is_overloaded: false,
            first_sequence_number_beyond_feedback: covered_until,
        }
    }

    /// A path of this capacity in bits per second without jitter: covers each slice 60 ms after it was sent.
    struct World {
        prober: Prober,
        now: u64,
        next: u16,
        free: u64,
        sent: Vec<(u64, AcknowledgedBurstPart)>,
    }

    impl World {
        fn new() -> Self {
            let mut prober = Prober::new();
            prober.start_with_packet_train(1_000_000, PLAN, 100);
            Self {
                prober,
                now: 1_000_000,
                next: 100,
                free: 0,
                sent: Vec::new(),
            }
        }

        /// Runs to the end of the probe. Returns its result and the bytes that it sent.
        fn run(mut self, capacity: u64) -> (Option<ProbeResult>, u32) {
            let mut bytes = 0;
            while self.now < 4_000_000 {
                let due = self.prober.due_probe_bytes(self.now).unwrap_or(0);
                if due > 0 {
                    bytes += self.send(due, capacity);
                }
                let now = self.now;
                while let Some((_, fragment)) = self.sent.first().filter(|(at, _)| *at <= now).copied() {
                    self.prober.on_burst_acknowledged(&fragment, 0);
                    self.sent.remove(0);
                }
                let covered = self
                    .sent
                    .first()
                    .map_or(self.next, |(_, fragment)| fragment.burst_first_number);
                if let Some(result) = self.prober.poll(self.now, self.next, path(covered), 0) {
                    return (Some(result), bytes);
                }
                self.now += PACING_INTERVAL_US;
            }
            (None, bytes)
        }

        fn send(&mut self, due: u32, capacity: u64) -> u32 {
            let packets = due.div_ceil(1_200);
            let begin = self.free.max(self.now);
            self.free = begin + u64::from(packets) * 1_200 * 8_000_000 / capacity;
            let fragment = AcknowledgedBurstPart {
                burst_first_number: self.next,
                sent_at: self.now,
                arrivals: Some((begin.cast_signed() + 1_000, self.free.cast_signed())),
                lost: 0,
                arrived_packet_count: packets,
                received_bytes: packets * 1_200,
                first_packet_bytes: 1_200,
                excess_delay: Some((begin - self.now) as i32),
            };
            for _ in 0..packets {
                self.prober.on_packet_sent(self.next, 1_200, true);
                self.next += 1;
            }
            self.sent.push((self.free + 60_000, fragment));
            packets * 1_200
        }
    }

    #[test]
    fn a_path_with_capacity_passes_for_a_quarter_of_a_second_of_the_rate() {
        let (result, bytes) = World::new().run(6_000_000);
        assert_eq!(result, Some(ProbeResult::Passed));
        let most = RATE / 8 / 4 + RATE / 8 / 20;
        assert!((most * 8 / 10..most).contains(&bytes), "{bytes}");
    }

    #[test]
    fn far_too_little_capacity_costs_a_train_only() {
        let (result, bytes) = World::new().run(800_000);
        assert_eq!(result, Some(ProbeResult::PacketTrainFailed));
        assert!(bytes <= 13_000, "{bytes}");
    }

    #[test]
    fn a_queue_at_the_end_of_the_fill_fails() {
        assert_eq!(World::new().run(2_500_000).0, Some(ProbeResult::SustainedProbeFailed));
    }

    #[test]
    fn loss_in_the_second_half_fails_and_loss_in_the_first_does_not() {
        let run = |lost_from: u64, lost_until: u64| {
            let mut prober = Prober::new();
            prober.start_with_packet_train(0, PLAN, 0);
            prober.begin_probe_phase(ProbePhase::SendingSustainedProbe, 0, 0);
            for slice in 0..50_u16 {
                let sent_at = u64::from(slice) * PACING_INTERVAL_US;
                prober.on_packet_sent(slice, 1_200, true);
                let is_lost = (lost_from..lost_until).contains(&sent_at);
                let fragment = AcknowledgedBurstPart {
                    burst_first_number: slice,
                    sent_at,
                    arrivals: (!is_lost).then_some((0, 0)),
                    lost: u16::from(is_lost),
                    arrived_packet_count: u32::from(!is_lost),
                    received_bytes: 1_200,
                    first_packet_bytes: 1_200,
                    excess_delay: Some(0),
                };
                prober.on_burst_acknowledged(&fragment, 0);
            }
            assert_eq!(prober.poll(SUSTAINED_PROBE_DURATION_US - 1, 50, path(49), 0), None);
            assert_eq!(prober.poll(SUSTAINED_PROBE_DURATION_US, 50, path(49), 0), None);
            prober.poll(SUSTAINED_PROBE_DURATION_US + 50_000, 50, path(50), 0)
        };
        assert_eq!(run(0, 0), Some(ProbeResult::Passed));
        assert_eq!(run(50_000, 80_000), Some(ProbeResult::Passed));
        assert_eq!(run(200_000, 230_000), Some(ProbeResult::SustainedProbeLost));
    }

    #[test]
    fn overload_ends_a_probe() {
        let mut prober = Prober::new();
        prober.start_with_packet_train(0, PLAN, 0);
        let overloaded = ProbeInputs {
            is_overloaded: true,
            ..path(0)
        };
        assert_eq!(
            prober.poll(5_000, 1, overloaded, 0),
            Some(ProbeResult::PacketTrainFailed)
        );
        assert!(!prober.is_active());
    }

    #[test]
    fn a_probe_without_feedback_or_without_packets_ends() {
        let mut prober = Prober::new();
        prober.start_with_packet_train(0, PLAN, 0);
        assert_eq!(
            prober.poll(PACKET_TRAIN_SEND_TIMEOUT_US, 0, path(0), 0),
            Some(ProbeResult::PacketTrainFailed)
        );
        prober.start_with_packet_train(0, PLAN, 0);
        (0..6).for_each(|number| prober.on_packet_sent(number, 1_200, true));
        assert_eq!(prober.poll(MIN_PACKET_TRAIN_DURATION_US, 6, path(0), 0), None);
        assert_eq!(
            prober.poll(MIN_PACKET_TRAIN_DURATION_US + PROBE_FEEDBACK_TIMEOUT_US, 6, path(0), 0),
            Some(ProbeResult::PacketTrainFailed)
        );
    }

    #[test]
    fn fills_are_six_percent_of_what_is_sent() {
        let mut prober = Prober::new();
        prober.start_with_packet_train(0, PLAN, 0);
        (0..100).for_each(|number| prober.on_packet_sent(number, 1_200, true));
        assert!(
            prober.remaining_sustained_probe_credit_bytes() > 0,
            "a train is not counted"
        );
        prober.begin_probe_phase(ProbePhase::SendingSustainedProbe, 0, 100);
        (100..200).for_each(|number| prober.on_packet_sent(number, 1_200, true));
        assert!(prober.remaining_sustained_probe_credit_bytes() < 0);
        (200..1_000).for_each(|number| prober.on_packet_sent(number, 1_200, false));
        assert!(prober.remaining_sustained_probe_credit_bytes() < 0);
        (1_000..1_040).for_each(|number| prober.on_packet_sent(number, 1_200, false));
        assert!(prober.remaining_sustained_probe_credit_bytes() > 0);
    }
}
