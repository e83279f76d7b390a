//! The 33-bit clock of MPEG-TS (ISO/IEC 13818-1 §2.4.3.7), which wraps every 26.5 hours.

use std::time::Duration;

use super::sample::ticks_to_duration;

pub(super) const MPEG_TS_CLOCK_RATE: u32 = 90_000;

/// Timestamps have 33 bits.
pub(super) const MPEG_TIMESTAMP_MASK: u64 = (1 << 33) - 1;

/// Unwraps 33-bit timestamps.
#[derive(Debug, Default)]
pub(super) struct MpegTimestampUnwrapper {
    last_unwrapped: Option<u64>,
}

impl MpegTimestampUnwrapper {
    /// Returns the unwrapped timestamp nearest to the last one.
    pub(super) fn unwrap_to_duration(&mut self, ticks: u64) -> Duration {
        let ticks = ticks & MPEG_TIMESTAMP_MASK;
        let unwrapped = match self.last_unwrapped {
            // Leaves room for timestamps shortly before the first one.
            None => ticks + MPEG_TIMESTAMP_MASK + 1,
            Some(last) => {
                let ahead = ticks.wrapping_sub(last) & MPEG_TIMESTAMP_MASK;
                if ahead <= MPEG_TIMESTAMP_MASK / 2 {
                    last + ahead
                } else {
                    last.saturating_sub(MPEG_TIMESTAMP_MASK + 1 - ahead)
                }
            }
        };
        self.last_unwrapped = Some(unwrapped);
        ticks_to_duration(unwrapped, MPEG_TS_CLOCK_RATE)
    }
}
