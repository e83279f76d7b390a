//! The 33-bit clock of MPEG-TS (ISO/IEC 13818-1 §2.4.3.7), which wraps every 26.5 hours.

use std::time::Duration;

use super::sample::time;

pub(super) const RATE: u32 = 90_000;

/// Timestamps have 33 bits.
pub(super) const MASK: u64 = (1 << 33) - 1;

/// Unwraps 33-bit timestamps.
#[derive(Debug, Default)]
pub(super) struct Clock {
    last: Option<u64>,
}

impl Clock {
    /// Returns the unwrapped timestamp nearest to the last one.
    pub(super) fn time(&mut self, ticks: u64) -> Duration {
        let ticks = ticks & MASK;
        let whole = match self.last {
            // Leaves room for timestamps shortly before the first one.
            None => ticks + MASK + 1,
            Some(last) => {
                let ahead = ticks.wrapping_sub(last) & MASK;
                if ahead <= MASK / 2 {
                    last + ahead
                } else {
                    last.saturating_sub(MASK + 1 - ahead)
                }
            }
        };
        self.last = Some(whole);
        time(whole, RATE)
    }
}
