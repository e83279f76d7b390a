//! Recent retransmissions to one viewer, and their budget: a NACK costs a few bytes, its answer a packet each.

use std::time::{Duration, Instant};

/// Counters for sender reports; both wrap (RFC 3550 §6.4.1).
#[derive(Clone, Copy, Debug, Default)]
pub struct SenderReportCounts {
    pub packet_count: u32,
    pub octet_count: u32,
}

/// Recent retransmissions; created on the first NACK.
pub(crate) struct RetransmissionLimiter {
    /// Indexed by outgoing sequence number modulo the length.
    retransmitted_packets: Vec<RetransmittedPacket>,
    /// Bytes that may be retransmitted now.
    remaining_budget_bytes: f64,
    budget_refilled_at: Instant,
    /// [`SenderReportCounts::octet_count`] at the time of the last refill.
    sent_octets_at_refill: u32,
}

#[derive(Clone, Copy)]
struct RetransmittedPacket {
    out_seq: u64,
    retransmission_count: u8,
    last_retransmitted_at: Instant,
}

/// Maximum number of retransmissions of one packet.
const MAX_RETRANSMISSIONS_PER_PACKET: u8 = 3;

/// Retransmissions may use this fraction of the bytes sent.
const MAX_RETRANSMITTED_BYTE_SHARE: f64 = 0.25;

/// Size of the budget in bytes, which covers a burst of loss at the start.
const MAX_RETRANSMISSION_BUDGET_BYTES: f64 = 256_000.0;

/// Refill in bytes per second in addition to the share, for streams of very low bitrate.
const BASE_REFILL_BYTES_PER_SECOND: f64 = 4_000.0;

/// RTP header, original sequence number and authentication tag of a retransmission, in bytes.
const RETRANSMISSION_OVERHEAD_BYTES: usize = 30;

/// A second NACK for a packet that may still be in flight is not answered.
const MIN_RETRANSMISSION_INTERVAL_PER_PACKET: Duration = Duration::from_millis(20);

/// Number of packets whose retransmissions are counted: more than one second of a high-bitrate stream.
const MAX_TRACKED_PACKETS: usize = 1_024;

impl RetransmissionLimiter {
    /// Creates an empty history with a full budget.
    pub(crate) fn new(now: Instant, sent: SenderReportCounts) -> Self {
        Self {
            retransmitted_packets: Vec::new(),
            remaining_budget_bytes: MAX_RETRANSMISSION_BUDGET_BYTES,
            budget_refilled_at: now,
            sent_octets_at_refill: sent.octet_count,
        }
    }

    /// Adds to the budget what was earned since the last call.
    pub(crate) fn refill_budget(&mut self, now: Instant, sent: SenderReportCounts) {
        let elapsed = now.duration_since(self.budget_refilled_at).as_secs_f64();
        let octets = f64::from(sent.octet_count.wrapping_sub(self.sent_octets_at_refill));
        let earned = octets * MAX_RETRANSMITTED_BYTE_SHARE + elapsed * BASE_REFILL_BYTES_PER_SECOND;
        (self.budget_refilled_at, self.sent_octets_at_refill) = (now, sent.octet_count);
        self.remaining_budget_bytes = (self.remaining_budget_bytes + earned).min(MAX_RETRANSMISSION_BUDGET_BYTES);
    }

    /// Whether the packet with this outgoing sequence number and `bytes` of payload may be retransmitted now. If so, counts it,
    /// and returns how many round trips it takes: 2 if the retransmission before was lost.
    pub(crate) fn admit_retransmission(
        &mut self,
        out_seq: u64,
        bytes: usize,
        now: Instant,
        rtt: Duration,
    ) -> Option<u8> {
        let bytes = (bytes + RETRANSMISSION_OVERHEAD_BYTES) as f64;
        let spacing = MIN_RETRANSMISSION_INTERVAL_PER_PACKET.max(rtt / 2);
        if self.retransmitted_packets.is_empty() {
            self.retransmitted_packets.resize(
                MAX_TRACKED_PACKETS,
                RetransmittedPacket {
                    out_seq: u64::MAX,
                    retransmission_count: 0,
                    last_retransmitted_at: now,
                },
            );
        }
        let index = usize::try_from(out_seq % MAX_TRACKED_PACKETS as u64).unwrap_or(0);
        let entry = self.retransmitted_packets.get_mut(index)?;
        if entry.out_seq != out_seq {
            *entry = RetransmittedPacket {
                out_seq,
                retransmission_count: 0,
                last_retransmitted_at: now,
            };
        }
        let elapsed = now.duration_since(entry.last_retransmitted_at);
        let too_soon = entry.retransmission_count > 0 && elapsed < spacing;
        // Receivers that do not know the round trip request a packet again while it is on its way.
        let was_lost = entry.retransmission_count > 0 && elapsed >= rtt * 3 / 4;
        if too_soon
            || entry.retransmission_count >= MAX_RETRANSMISSIONS_PER_PACKET
            || self.remaining_budget_bytes < bytes
        {
            return None;
        }
        *entry = RetransmittedPacket {
            out_seq,
            retransmission_count: entry.retransmission_count + 1,
            last_retransmitted_at: now,
        };
        self.remaining_budget_bytes -= bytes;
        Some(1 + u8::from(was_lost))
    }
}
