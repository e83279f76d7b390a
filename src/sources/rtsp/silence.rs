//! When a camera that is connected is considered frozen. Some send a frame every few seconds only (long exposure, time
//! lapse), so the limit follows the intervals that were seen.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The intervals between the frames of a track.
#[derive(Debug)]
pub(super) struct Silence {
    /// `silence_timeout` of the configuration.
    fixed: Option<Duration>,
    /// When the last frame arrived, or the session began.
    last: Instant,
    frames: u32,
    time: Option<u64>,
    intervals: VecDeque<Duration>,
}

/// Limit of a track whose frames are close together.
const SHORTEST: Duration = Duration::from_secs(5);

/// Limit before two frames: their interval is not known yet.
const INITIAL: Duration = Duration::from_secs(30);

/// Limit before the first packet.
const FIRST_PACKET_TIMEOUT: Duration = Duration::from_secs(15);

/// Upper bound of the limit.
const LONGEST: Duration = Duration::from_secs(90);

/// Number of recent intervals, the longest of which counts.
const KEPT: usize = 16;

impl Silence {
    pub(super) fn new(fixed: Option<Duration>, now: Instant) -> Self {
        Self {
            fixed,
            last: now,
            frames: 0,
            time: None,
            intervals: VecDeque::new(),
        }
    }

    /// Notes a packet; those with the same RTP timestamp are one frame.
    pub(super) fn packet(&mut self, time: u64, now: Instant) {
        if self.time.replace(time) == Some(time) {
            self.last = now;
            return;
        }
        if self.frames > 0 {
            self.intervals.truncate(KEPT - 1);
            self.intervals.push_front(now.saturating_duration_since(self.last));
        }
        self.frames = self.frames.saturating_add(1);
        self.last = now;
    }

    /// When the track is considered frozen, unless another packet arrives.
    pub(super) fn deadline(&self) -> Instant {
        let seen = self
            .intervals
            .iter()
            .max()
            .map(|longest| (*longest * 3).clamp(SHORTEST, LONGEST));
        let limit = self.fixed.or(seen).unwrap_or(if self.frames == 0 {
            FIRST_PACKET_TIMEOUT
        } else {
            INITIAL
        });
        self.last + limit
    }

    /// Whether a packet arrived at all.
    pub(super) fn is_used(&self) -> bool {
        self.frames > 0
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    fn after(intervals: &[u64], fixed: Option<Duration>) -> Duration {
        let mut now = Instant::now();
        let mut silence = Silence::new(fixed, now);
        for (index, milliseconds) in intervals.iter().enumerate() {
            now += Duration::from_millis(*milliseconds);
            silence.packet(index as u64, now);
            silence.packet(index as u64, now);
        }
        silence.deadline() - now
    }

    #[test]
    fn the_limit_is_three_times_the_longest_recent_interval() {
        assert_eq!(after(&[], None), FIRST_PACKET_TIMEOUT);
        assert_eq!(after(&[0], None), INITIAL);
        assert_eq!(after(&[0, 40, 40], None), SHORTEST);
        assert_eq!(after(&[0, 8_000, 8_000], None), Duration::from_secs(24));
        assert_eq!(after(&[0, 80_000], None), LONGEST);
        // One stall does not count for ever.
        assert_eq!(after(&[&[0, 8_000][..], &[40; 16]].concat(), None), SHORTEST);
        assert_eq!(after(&[0, 8_000], Some(Duration::from_secs(3))), Duration::from_secs(3));
    }
}
