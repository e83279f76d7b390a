//! Recent retransmissions to one viewer, and their budget: a NACK costs a few bytes, its answer a packet each.

use std::time::{Duration, Instant};

/// Counters for sender reports; both wrap (RFC 3550 §6.4.1).
#[derive(Clone, Copy, Debug, Default)]
pub struct SendStats {
    pub packets: u32,
    pub octets: u32,
}

/// Recent retransmissions; created on the first NACK.
pub(crate) struct History {
    /// Indexed by outgoing sequence number modulo the length.
    entries: Vec<Entry>,
    /// Bytes that may be retransmitted now.
    budget: f64,
    refilled: Instant,
    /// [`SendStats::octets`] at the time of the last refill.
    octets: u32,
}

#[derive(Clone, Copy)]
struct Entry {
    out: u64,
    times: u8,
    last: Instant,
}

/// Maximum number of retransmissions of one packet.
const MAX_RETRANSMISSIONS: u8 = 3;

/// Retransmissions may use this fraction of the bytes sent.
const MAX_RETRANSMITTED_SHARE: f64 = 0.25;

/// Size of the budget in bytes, which covers a burst of loss at the start.
const BUDGET_BURST: f64 = 256_000.0;

/// Refill in bytes per second in addition to the share, for streams of very low bitrate.
const BUDGET_RATE: f64 = 4_000.0;

/// RTP header, original sequence number and authentication tag of a retransmission, in bytes.
const OVERHEAD: usize = 30;

/// A second NACK for a packet that may still be in flight is not answered.
const MIN_SPACING: Duration = Duration::from_millis(20);

/// Number of packets whose retransmissions are counted: more than one second of a high-bitrate stream.
const MAX_ENTRIES: usize = 1_024;

impl History {
    /// Creates an empty history with a full budget.
    pub(crate) fn new(now: Instant, sent: SendStats) -> Self {
        Self {
            entries: Vec::new(),
            budget: BUDGET_BURST,
            refilled: now,
            octets: sent.octets,
        }
    }

    /// Adds to the budget what was earned since the last call.
    pub(crate) fn refill(&mut self, now: Instant, sent: SendStats) {
        let elapsed = now.duration_since(self.refilled).as_secs_f64();
        let octets = f64::from(sent.octets.wrapping_sub(self.octets));
        let earned = octets * MAX_RETRANSMITTED_SHARE + elapsed * BUDGET_RATE;
        (self.refilled, self.octets) = (now, sent.octets);
        self.budget = (self.budget + earned).min(BUDGET_BURST);
    }

    /// Returns whether the packet with this outgoing sequence number and `bytes` of payload may be retransmitted now;
    /// if so, counts it.
    pub(crate) fn allows(&mut self, out: u64, bytes: usize, now: Instant, rtt: Duration) -> bool {
        let bytes = (bytes + OVERHEAD) as f64;
        let spacing = MIN_SPACING.max(rtt / 2);
        if self.entries.is_empty() {
            self.entries.resize(
                MAX_ENTRIES,
                Entry {
                    out: u64::MAX,
                    times: 0,
                    last: now,
                },
            );
        }
        let index = usize::try_from(out % MAX_ENTRIES as u64).unwrap_or(0);
        let Some(entry) = self.entries.get_mut(index) else {
            return false;
        };
        if entry.out != out {
            *entry = Entry {
                out,
                times: 0,
                last: now,
            };
        }
        let too_soon = entry.times > 0 && now.duration_since(entry.last) < spacing;
        if too_soon || entry.times >= MAX_RETRANSMISSIONS || self.budget < bytes {
            return false;
        }
        *entry = Entry {
            out,
            times: entry.times + 1,
            last: now,
        };
        self.budget -= bytes;
        true
    }
}
