//! Repeats the last frame of video that pauses while audio goes on, such as of a camera that is switched off: players stop
//! where one of the two ends. Most H.264 and H.265, VP9 and AV1 can be repeated; other video ends there.

use std::time::Duration;

use bytes::Bytes;

use super::rendition::RenditionRole;
use millstream_core::media::clock::{duration_to_ticks, ticks_to_duration};
use millstream_core::media::codec::frame_repeater::FrameRepeater;
use millstream_core::media::depacketizer::Frame;

/// The video layers of one stream, each with its last frame.
#[derive(Debug, Default)]
pub(super) struct PausedVideo {
    layers: [PausedLayer; RenditionRole::VIDEO_LAYERS.len()],
    /// How far video was behind the audio when it arrived, at most.
    longest_lag: Duration,
}

#[derive(Debug, Default)]
struct PausedLayer {
    repeater: FrameRepeater,
    repeated_until_ticks: u64,
}

/// Video pauses if it stays behind the audio by this much more than usual.
const MIN_VIDEO_PAUSE: Duration = Duration::from_secs(1);

/// Distance of repeated frames.
const REPETITION_INTERVAL: Duration = Duration::from_millis(100);

/// Longest pause that is filled at once. Audio that jumps ahead is no pause.
const MAX_FILLED_AT_ONCE: Duration = Duration::from_secs(10);

/// Clock rate of video, in Hz.
const VIDEO_CLOCK_RATE: u32 = 90_000;

impl PausedVideo {
    /// Records a frame, and by how much it is behind the newest audio.
    pub(super) fn observe_frame(&mut self, role: RenditionRole, frame: &Frame, lag: Duration) {
        self.longest_lag = self.longest_lag.max(lag);
        if let Some(layer) = self.layer_mut(role) {
            layer.repeater.observe_frame(frame);
        }
    }

    /// Forgets a layer.
    pub(super) fn reset_layer(&mut self, role: RenditionRole) {
        if let Some(layer) = self.layer_mut(role) {
            *layer = PausedLayer::default();
        }
    }

    /// Returns up to where video is repeated if the newest audio is at `audio`.
    pub(super) fn repetition_end(&self, audio: Duration) -> Option<Duration> {
        audio.checked_sub(self.longest_lag + MIN_VIDEO_PAUSE)
    }

    /// Returns position and bytes of the next repeated frame, as a sample of MP4; `None` if there is none before `until`.
    pub(super) fn next_repeated_frame(
        &mut self,
        role: RenditionRole,
        last_ticks: u64,
        until: Duration,
    ) -> Option<(u64, Bytes)> {
        let behind = until.checked_sub(ticks_to_duration(last_ticks, VIDEO_CLOCK_RATE))?;
        if !(REPETITION_INTERVAL..=MAX_FILLED_AT_ONCE).contains(&behind) {
            return None;
        }
        let layer = self.layer_mut(role)?;
        let sample = layer.repeater.build_repeated_sample()?;
        let next_ticks = last_ticks + duration_to_ticks(REPETITION_INTERVAL, VIDEO_CLOCK_RATE);
        layer.repeated_until_ticks = next_ticks;
        Some((next_ticks, sample))
    }

    /// Returns the earliest position of the next frame of a role.
    pub(super) fn repeated_until_ticks(&self, role: RenditionRole) -> u64 {
        layer_index(role)
            .and_then(|index| self.layers.get(index))
            .map_or(0, |layer| layer.repeated_until_ticks)
    }

    fn layer_mut(&mut self, role: RenditionRole) -> Option<&mut PausedLayer> {
        layer_index(role).and_then(|index| self.layers.get_mut(index))
    }
}

fn layer_index(role: RenditionRole) -> Option<usize> {
    RenditionRole::VIDEO_LAYERS.iter().position(|layer| *layer == role)
}
