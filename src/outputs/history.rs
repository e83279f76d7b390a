//! What one viewer was sent again lately, and how much more it may be: NACKs cost a few bytes and answers a packet each.

use std::time::{Duration, Instant};

use super::track::SendStats;

/// What was retransmitted lately; made on the first NACK.
pub struct History {
    /// By outgoing sequence number modulo its length.
    answered: Vec<Answered>,
    /// Bytes that may be retransmitted now.
    budget: f64,
    refilled: Instant,
    /// [`SendStats::octets`] at that moment.
    octets: u32,
}

#[derive(Clone, Copy)]
struct Answered {
    out: u64,
    times: u8,
    last: Instant,
}

/// Answers to NACKs for one packet.
const MAX_TIMES: u8 = 3;

/// Retransmissions may take this part of what was sent.
const BUDGET_SHARE: f64 = 0.25;

/// Retransmitted bytes that are always allowed: a burst of loss at the start.
const BUDGET_BURST: f64 = 256_000.0;

/// Refill in bytes per second besides the share, for streams of very low rate.
const BUDGET_RATE: f64 = 4_000.0;

/// RTP header, original sequence number and tag of a retransmission, in bytes.
const OVERHEAD: usize = 30;

/// A second NACK for a packet that is still on its way is not answered.
const MIN_SPACING: Duration = Duration::from_millis(20);

/// Packets whose answers are counted: more than a second of a fast stream.
const MAX_ANSWERED: usize = 1_024;

impl History {
    /// Nothing was answered yet.
    pub fn new(now: Instant, sent: SendStats) -> Self {
        Self {
            answered: Vec::new(),
            budget: BUDGET_BURST,
            refilled: now,
            octets: sent.octets,
        }
    }

    /// Adds what sending has earned since the last call.
    pub fn refill(&mut self, now: Instant, sent: SendStats) {
        let elapsed = now.duration_since(self.refilled).as_secs_f64();
        let octets = f64::from(sent.octets.wrapping_sub(self.octets));
        let earned = octets * BUDGET_SHARE + elapsed * BUDGET_RATE;
        (self.refilled, self.octets) = (now, sent.octets);
        self.budget = (self.budget + earned).min(BUDGET_BURST);
    }

    /// Whether the packet with this outgoing number may be sent again now, `bytes` being its payload; if so, it is counted.
    pub fn allows(&mut self, out: u64, bytes: usize, now: Instant, rtt: Duration) -> bool {
        let bytes = (bytes + OVERHEAD) as f64;
        let spacing = MIN_SPACING.max(rtt / 2);
        if self.answered.is_empty() {
            self.answered.resize(
                MAX_ANSWERED,
                Answered {
                    out: u64::MAX,
                    times: 0,
                    last: now,
                },
            );
        }
        let index = usize::try_from(out % MAX_ANSWERED as u64).unwrap_or(0);
        let Some(entry) = self.answered.get_mut(index) else {
            return false;
        };
        if entry.out != out {
            *entry = Answered {
                out,
                times: 0,
                last: now,
            };
        }
        let too_soon = entry.times > 0 && now.duration_since(entry.last) < spacing;
        if too_soon || entry.times >= MAX_TIMES || self.budget < bytes {
            return false;
        }
        *entry = Answered {
            out,
            times: entry.times + 1,
            last: now,
        };
        self.budget -= bytes;
        true
    }
}
