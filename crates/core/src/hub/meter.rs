//! Bitrate, frame rate and delay of a track, for the API, the metrics and layer selection.

use std::time::{Duration, Instant};

use super::viewer_quality::CaptureDelay;
use crate::media::clock::CaptureTimeSource;

/// Measures bitrate and frame rate over windows of one second, by arrival.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateMeter {
    window_start: Option<Instant>,
    window_byte_count: usize,
    window_frame_count: u32,
    window_non_reference_byte_count: usize,
    last_rate: BitrateAndFrameRate,
    measured_at: Option<Instant>,
}

/// Measured rate of a track.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BitrateAndFrameRate {
    /// Payload bitrate in bits per second.
    pub bitrate: u64,
    /// Frames per second; audio and video.
    pub frames_per_second: f64,
    /// Mean payload bitrate of the last seconds in bits per second, and that of the frames that nothing refers to.
    pub mean_bitrate: u64,
    pub mean_non_reference_bitrate: u64,
}

const MEASUREMENT_WINDOW: Duration = Duration::from_secs(1);

/// Each window contributes one of so many parts to the mean: key frames are in some windows and not in others.
const BITRATE_MEAN_WINDOWS: u64 = 4;

/// An older measurement is considered outdated.
const MAX_MEASUREMENT_AGE: Duration = Duration::from_secs(5);

impl RateMeter {
    /// Records a packet, which may belong to a frame that was counted already.
    pub fn on_packet(&mut self, arrival: Instant, bytes: usize, is_new_frame: bool) {
        let window = *self.window_start.get_or_insert(arrival);
        let elapsed = arrival.saturating_duration_since(window);
        if elapsed >= MEASUREMENT_WINDOW {
            let seconds = elapsed.as_secs_f64();
            let bitrate = |bytes: usize| (bytes as f64 * 8.0 / seconds) as u64;
            let (before, is_first) = (self.last_rate, self.measured_at.is_none());
            let mean = |before: u64, bytes: usize| match is_first {
                true => bitrate(bytes),
                false => (before * (BITRATE_MEAN_WINDOWS - 1) + bitrate(bytes)) / BITRATE_MEAN_WINDOWS,
            };
            self.last_rate = BitrateAndFrameRate {
                bitrate: bitrate(self.window_byte_count),
                frames_per_second: f64::from(self.window_frame_count) / seconds,
                mean_bitrate: mean(before.mean_bitrate, self.window_byte_count),
                mean_non_reference_bitrate: mean(
                    before.mean_non_reference_bitrate,
                    self.window_non_reference_byte_count,
                ),
            };
            (self.window_start, self.window_byte_count, self.window_frame_count) = (Some(arrival), 0, 0);
            self.window_non_reference_byte_count = 0;
            self.measured_at = Some(arrival);
        }
        self.window_byte_count += bytes;
        self.window_frame_count += u32::from(is_new_frame);
    }

    /// The last packet belongs to a frame that nothing refers to.
    pub fn on_non_reference_packet(&mut self, bytes: usize) {
        self.window_non_reference_byte_count += bytes;
    }

    /// Returns the last measurement regardless of its age.
    pub(crate) fn last_rate(&self) -> BitrateAndFrameRate {
        self.last_rate
    }

    /// Returns the last measurement, or zero if it is outdated.
    pub fn current_rate(&self, now: Instant) -> BitrateAndFrameRate {
        let fresh = self
            .measured_at
            .is_some_and(|ended| now.saturating_duration_since(ended) < MAX_MEASUREMENT_AGE);
        if fresh {
            self.last_rate
        } else {
            BitrateAndFrameRate::default()
        }
    }
}

/// Delays from capture to arrival.
#[derive(Clone, Copy, Debug, Default)]
pub struct CaptureDelayStats {
    /// Number of measurements, and their sum. Monotonic counters.
    pub measurement_count: u64,
    pub delay_sum: Duration,
    recent_mean: Option<(f64, Instant)>,
    /// Where the capture time of the last measurement came from.
    source: Option<CaptureTimeSource>,
}

/// Larger delays are ignored: the clock of the source was changed or is not synchronized.
const MAX_CAPTURE_DELAY: Duration = Duration::from_secs(60);

/// Smoothing factor: each measurement contributes 1/16 to the mean.
const CAPTURE_DELAY_SMOOTHING_DIVISOR: f64 = 16.0;

impl CaptureDelayStats {
    /// Records a measurement.
    pub fn record(&mut self, delay: Duration, source: CaptureTimeSource, now: Instant) {
        if delay > MAX_CAPTURE_DELAY {
            return;
        }
        self.source = Some(source);
        self.measurement_count += 1;
        self.delay_sum += delay;
        let seconds = delay.as_secs_f64();
        let recent = self
            .recent_mean
            .filter(|(_, at)| now.saturating_duration_since(*at) < MAX_MEASUREMENT_AGE);
        let mean = recent.map_or(seconds, |(mean, _)| {
            mean + (seconds - mean) / CAPTURE_DELAY_SMOOTHING_DIVISOR
        });
        self.recent_mean = Some((mean, now));
    }

    /// Returns the recent mean in seconds; `None` without recent measurements.
    pub fn recent_mean_capture_delay_seconds(&self, now: Instant) -> Option<f64> {
        let (mean, at) = self.recent_mean?;
        (now.saturating_duration_since(at) < MAX_MEASUREMENT_AGE).then_some(mean)
    }

    /// Returns the recent mean, and where the capture times come from; `None` without recent measurements.
    pub fn recent_capture_delay(&self, now: Instant) -> Option<CaptureDelay> {
        Some(CaptureDelay {
            delay: Duration::from_secs_f64(self.recent_mean_capture_delay_seconds(now)?),
            source: self.source?,
        })
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    #[test]
    fn bits_and_frames_are_counted_per_second_and_forgotten_when_nothing_comes() {
        let (mut meter, t) = (RateMeter::default(), Instant::now());
        for frame in 0..=50 {
            meter.on_packet(t + Duration::from_millis(frame * 40), 600, true);
            meter.on_packet(t + Duration::from_millis(frame * 40), 400, false);
            meter.on_non_reference_packet(if frame % 5 == 0 { 400 } else { 0 });
        }
        let rate = meter.current_rate(t + Duration::from_secs(2));
        assert_eq!((rate.bitrate, rate.frames_per_second), (200_000, 25.0));
        assert_eq!((rate.mean_bitrate, rate.mean_non_reference_bitrate), (200_000, 16_000));
        assert_eq!(
            meter.current_rate(t + Duration::from_secs(7)),
            BitrateAndFrameRate::default()
        );
    }
}
