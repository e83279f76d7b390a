//! When a camera that is connected is considered frozen. Some send a frame every few seconds only (long exposure, time
//! lapse), so the limit follows the intervals that were seen.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The intervals between the frames of a track.
#[derive(Debug)]
pub(super) struct PacketSilenceDetector {
    /// `silence_timeout` of the configuration.
    configured_timeout: Option<Duration>,
    /// When the last frame arrived, or the session began.
    last_packet_at: Instant,
    frame_count: u32,
    last_rtp_time: Option<u64>,
    frame_intervals: VecDeque<Duration>,
}

/// Limit of a track whose frames are close together.
const MIN_PACKET_SILENCE_LIMIT: Duration = Duration::from_secs(5);

/// Limit before two frames: their interval is not known yet.
const INITIAL_PACKET_SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// Limit before the first packet.
const FIRST_PACKET_TIMEOUT: Duration = Duration::from_secs(15);

/// Upper bound of the limit.
const MAX_PACKET_SILENCE_LIMIT: Duration = Duration::from_secs(90);

/// Number of recent intervals, the longest of which counts.
const MAX_KEPT_FRAME_INTERVALS: usize = 16;

impl PacketSilenceDetector {
    pub(super) fn new(fixed: Option<Duration>, now: Instant) -> Self {
        Self {
            configured_timeout: fixed,
            last_packet_at: now,
            frame_count: 0,
            last_rtp_time: None,
            frame_intervals: VecDeque::new(),
        }
    }

    /// Notes a packet; those with the same RTP timestamp are one frame.
    pub(super) fn on_packet(&mut self, time: u64, now: Instant) {
        if self.last_rtp_time.replace(time) == Some(time) {
            self.last_packet_at = now;
            return;
        }
        if self.frame_count > 0 {
            self.frame_intervals.truncate(MAX_KEPT_FRAME_INTERVALS - 1);
            self.frame_intervals
                .push_front(now.saturating_duration_since(self.last_packet_at));
        }
        self.frame_count = self.frame_count.saturating_add(1);
        self.last_packet_at = now;
    }

    /// When the track is considered frozen, unless another packet arrives.
    pub(super) fn deadline(&self) -> Instant {
        let seen = self
            .frame_intervals
            .iter()
            .max()
            .map(|longest| (*longest * 3).clamp(MIN_PACKET_SILENCE_LIMIT, MAX_PACKET_SILENCE_LIMIT));
        let limit = self.configured_timeout.or(seen).unwrap_or(if self.frame_count == 0 {
            FIRST_PACKET_TIMEOUT
        } else {
            INITIAL_PACKET_SILENCE_LIMIT
        });
        self.last_packet_at + limit
    }

    /// Whether a packet arrived at all.
    pub(super) fn has_received_packet(&self) -> bool {
        self.frame_count > 0
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    fn silence_limit_after(intervals: &[u64], fixed: Option<Duration>) -> Duration {
        let mut now = Instant::now();
        let mut silence = PacketSilenceDetector::new(fixed, now);
        for (index, milliseconds) in intervals.iter().enumerate() {
            now += Duration::from_millis(*milliseconds);
            silence.on_packet(index as u64, now);
            silence.on_packet(index as u64, now);
        }
        silence.deadline() - now
    }

    #[test]
    fn the_limit_is_three_times_the_longest_recent_interval() {
        assert_eq!(silence_limit_after(&[], None), FIRST_PACKET_TIMEOUT);
        assert_eq!(silence_limit_after(&[0], None), INITIAL_PACKET_SILENCE_LIMIT);
        assert_eq!(silence_limit_after(&[0, 40, 40], None), MIN_PACKET_SILENCE_LIMIT);
        assert_eq!(silence_limit_after(&[0, 8_000, 8_000], None), Duration::from_secs(24));
        assert_eq!(silence_limit_after(&[0, 80_000], None), MAX_PACKET_SILENCE_LIMIT);
        // One stall does not count for ever.
        assert_eq!(
            silence_limit_after(&[&[0, 8_000][..], &[40; 16]].concat(), None),
            MIN_PACKET_SILENCE_LIMIT
        );
        assert_eq!(
            silence_limit_after(&[0, 8_000], Some(Duration::from_secs(3))),
            Duration::from_secs(3)
        );
    }
}
