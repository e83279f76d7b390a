//! PacketContinuity counters of one PID (ISO/IEC 13818-1 §2.4.3.3): they tell duplicates and losses, where the writer counts.
//!
//! Some writers leave all counters at one value, set them at random, or count packets without payload. Players read such
//! streams. A [`ContinuityChecker`] ignores counters that are wrong too often.

use super::packet::TsPacket;

/// What a counter says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PacketContinuity {
    Continues,
    /// The packet is the last one again.
    Duplicate,
    /// Packets are missing before it.
    Lost,
}

/// Checks the counters of one PID.
#[derive(Debug, Default)]
pub(super) struct ContinuityChecker {
    last_counter: Option<u8>,
    last_payload: Vec<u8>,
    /// Rises with each wrong counter, and falls with each right one.
    fault_score: u8,
    ignores_counters: bool,
}

/// Points of a wrong counter. With a loss every few packets the score falls again.
const CONTINUITY_FAULT_PENALTY: u8 = 4;

/// Score from which on counters are ignored, until it is 0 again, and the highest one.
const MAX_TRUSTED_FAULT_SCORE: u8 = 16;
const MAX_FAULT_SCORE: u8 = 64;

impl ContinuityChecker {
    /// Checks a packet with payload. `may_jump` says that another counter than the next is no fault.
    pub(super) fn classify_continuity(&mut self, packet: &TsPacket<'_>, may_jump: bool) -> PacketContinuity {
        let last = self.last_counter.replace(packet.continuity_counter);
        let Some(last) = last.filter(|_| !may_jump) else {
            self.set_last_payload(packet.payload);
            return PacketContinuity::Continues;
        };
        if packet.continuity_counter == last && packet.payload == self.last_payload {
            return PacketContinuity::Duplicate;
        }
        self.set_last_payload(packet.payload);
        let is_next = packet.continuity_counter == (last + 1) & 0xf;
        self.fault_score = if is_next {
            self.fault_score.saturating_sub(1)
        } else {
            (self.fault_score + CONTINUITY_FAULT_PENALTY).min(MAX_FAULT_SCORE)
        };
        self.ignores_counters = if self.ignores_counters {
            self.fault_score > 0
        } else {
            self.fault_score >= MAX_TRUSTED_FAULT_SCORE
        };
        if is_next || self.ignores_counters {
            PacketContinuity::Continues
        } else {
            PacketContinuity::Lost
        }
    }

    /// Records a packet without payload. Its counter is that of the packet before, but some writers count it.
    pub(super) fn record_packet_without_payload(&mut self, counter: u8) {
        if self.last_counter.is_some_and(|last| counter == (last + 1) & 0xf) {
            self.last_counter = Some(counter);
        }
    }

    /// What follows is another stream.
    pub(super) fn reset_last_counter(&mut self) {
        self.last_counter = None;
    }

    fn set_last_payload(&mut self, payload: &[u8]) {
        self.last_payload.clear();
        self.last_payload.extend_from_slice(payload);
    }
}
