//! Bitrate, frame rate and delay of a track, for the API, the metrics and layer selection.

use std::time::{Duration, Instant};

/// Measures bitrate and frame rate over windows of one second, by arrival.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    window: Option<Instant>,
    bytes: usize,
    frames: u32,
    rate: Rate,
    ended: Option<Instant>,
}

/// Measured rate of a track.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Payload bitrate in bits per second.
    pub bitrate: u64,
    /// Frames per second; audio and video.
    pub frames: f64,
}

const WINDOW: Duration = Duration::from_secs(1);

/// An older measurement is considered outdated.
const STALE: Duration = Duration::from_secs(5);

impl Meter {
    /// Records a packet, which may belong to a frame that was counted already.
    pub fn on_packets(&mut self, arrival: Instant, bytes: usize, is_new_frame: bool) {
        let window = *self.window.get_or_insert(arrival);
        let elapsed = arrival.saturating_duration_since(window);
        if elapsed >= WINDOW {
            let seconds = elapsed.as_secs_f64();
            self.rate = Rate {
                bitrate: (self.bytes as f64 * 8.0 / seconds) as u64,
                frames: f64::from(self.frames) / seconds,
            };
            (self.window, self.bytes, self.frames) = (Some(arrival), 0, 0);
            self.ended = Some(arrival);
        }
        self.bytes += bytes;
        self.frames += u32::from(is_new_frame);
    }

    /// Returns the last measurement regardless of its age.
    pub fn rate_or_last(&self) -> Rate {
        self.rate
    }

    /// Returns the last measurement, or zero if it is outdated.
    pub fn rate(&self, now: Instant) -> Rate {
        let fresh = self
            .ended
            .is_some_and(|ended| now.saturating_duration_since(ended) < STALE);
        if fresh { self.rate } else { Rate::default() }
    }
}

/// Delays from capture to arrival.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delays {
    /// Number of measurements, and their sum. Monotonic counters.
    pub count: u64,
    pub sum: Duration,
    recent: Option<(f64, Instant)>,
}

/// Larger delays are ignored: the clock of the source was changed or is not synchronized.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// Smoothing factor: each measurement contributes 1/16 to the mean.
const SMOOTH: f64 = 16.0;

impl Delays {
    /// Records a measurement.
    pub fn record(&mut self, delay: Duration, now: Instant) {
        if delay > MAX_DELAY {
            return;
        }
        self.count += 1;
        self.sum += delay;
        let seconds = delay.as_secs_f64();
        let recent = self.recent.filter(|(_, at)| now.saturating_duration_since(*at) < STALE);
        let mean = recent.map_or(seconds, |(mean, _)| mean + (seconds - mean) / SMOOTH);
        self.recent = Some((mean, now));
    }

    /// Returns the recent mean in seconds; `None` without recent measurements.
    pub fn recent(&self, now: Instant) -> Option<f64> {
        let (mean, at) = self.recent?;
        (now.saturating_duration_since(at) < STALE).then_some(mean)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    #[test]
    fn bits_and_frames_are_counted_per_second_and_forgotten_when_nothing_comes() {
        let (mut meter, t) = (Meter::default(), Instant::now());
        for frame in 0..=50 {
            meter.on_packets(t + Duration::from_millis(frame * 40), 600, true);
            meter.on_packets(t + Duration::from_millis(frame * 40), 400, false);
        }
        let rate = meter.rate(t + Duration::from_secs(2));
        assert_eq!((rate.bitrate, rate.frames), (200_000, 25.0));
        assert_eq!(meter.rate(t + Duration::from_secs(7)), Rate::default());
    }
}
