//! How fast video leaves.

use std::time::Instant;

use super::CongestionController;
use super::ladder::{FrameSelection, QualityLadder, QualityRung};
use super::pacer::{PACING_INTERVAL_US, Pacer};
use super::sent::micros_since_origin;

/// What has waited for too long leaves at this multiple of the pacing rate.
const BACKLOG_PACING_FACTOR: u64 = 2;

/// The time at which packets are sent; see [`CongestionController::send_time`].
#[derive(Clone, Copy, Debug)]
pub struct SendTime {
    /// Microseconds since the origin of the shard.
    pub(super) micros: u64,
}

impl CongestionController {
    /// Converts the time of a tick, once for all packets that are sent in it.
    #[inline]
    pub fn send_time(&self, now: Instant) -> SendTime {
        SendTime {
            micros: micros_since_origin(self.origin, now),
        }
    }

    /// Returns whether the pacer lets a packet of video leave now. If not, it stays in the ring for
    /// [`super::pacer::PACING_INTERVAL_US`].
    #[inline]
    pub fn may_send_video_now(&mut self, now: SendTime) -> bool {
        self.pacer
            .refill_credit_and_can_send(now.micros, self.burst_bitrate.unwrap_or(self.pacing_bitrate))
    }

    /// Returns the same as [`Self::may_send_video_now`] for the time of the last call of that: no credit comes without time.
    #[inline]
    pub fn may_send_more_video(&self) -> bool {
        self.pacer.has_credit()
    }

    /// Returns how many bytes of video the pacer lets leave now.
    #[inline]
    pub fn sendable_video_bytes(&mut self, now: Instant) -> u32 {
        let now = micros_since_origin(self.origin, now);
        self.pacer
            .refill_credit_and_can_send(now, self.burst_bitrate.unwrap_or(self.pacing_bitrate));
        self.pacer.available_credit_bytes()
    }

    /// Returns the rate for a rung in bits per second.
    pub(super) fn pacing_bitrate_for_rung(&self, rung: Option<QualityRung>, ladder: &QualityLadder) -> u32 {
        let payload = rung.map_or(0, |rung| rung.payload_bitrate);
        match rung.map(|rung| rung.frames) {
            Some(FrameSelection::KeyFrames) => {
                let (audio, capacity) = (ladder.audio_bitrate(), self.allocator.bitrate_at_step_down());
                Pacer::pacing_bitrate_for_key_frames(payload, audio, capacity)
            }
            _ => Pacer::pacing_bitrate_for_layer(payload),
        }
    }

    /// Returns how many bytes of video that has waited for too long leave in a slice; `None` where the path takes no more than
    /// what is sent now.
    pub fn sendable_bytes_of_backlog(&self, now: Instant) -> Option<u32> {
        let bits = u64::from(self.pacing_bitrate) * BACKLOG_PACING_FACTOR * PACING_INTERVAL_US / 1_000_000;
        (!self.is_path_at_capacity(now)).then(|| u32::try_from(bits / 8).unwrap_or(u32::MAX))
    }

    /// Paces a burst at this rate in bits per second until it is `None` again.
    pub fn set_burst_bitrate(&mut self, bitrate: Option<u32>) {
        self.burst_bitrate = bitrate;
    }

    /// Whether the path is known to take no more than what is sent now: a burst is not to be faster.
    pub fn is_path_at_capacity(&self, now: Instant) -> bool {
        let now = micros_since_origin(self.origin, now);
        let is_draining = self.allocator.pacing_bitrate_limit_after_step_down(now).is_some();
        is_draining || self.has_competing_traffic() || self.is_policed
    }

    /// Bits per second at which video leaves.
    pub fn pacing_bitrate(&self) -> u32 {
        self.pacing_bitrate
    }
}
