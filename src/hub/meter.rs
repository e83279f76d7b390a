//! How fast a track runs: for the API, the metrics, and whoever has to choose.

use std::time::{Duration, Instant};

/// Measures bits and frames per second over windows of one second of arrivals.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    window: Option<Instant>,
    bytes: usize,
    frames: u32,
    rate: Rate,
    ended: Option<Instant>,
}

/// What a track carries per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Payload bits per second.
    pub bitrate: u64,
    /// Frames per second, of audio and video.
    pub frames: f64,
}

const WINDOW: Duration = Duration::from_secs(1);

/// A measurement older than this says nothing of the present.
const STALE: Duration = Duration::from_secs(5);

impl Meter {
    /// Notes a frame, or the rest of one that was noted already.
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

    /// The last measurement, however old.
    pub fn rate_or_last(&self) -> Rate {
        self.rate
    }

    /// The last measurement; nothing if it is too old.
    pub fn rate(&self, now: Instant) -> Rate {
        let fresh = self
            .ended
            .is_some_and(|ended| now.saturating_duration_since(ended) < STALE);
        if fresh { self.rate } else { Rate::default() }
    }
}

/// How long what comes was under way since it was captured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delays {
    /// How many were measured, and their sum. Both only rise.
    pub count: u64,
    pub sum: Duration,
    recent: Option<(f64, Instant)>,
}

/// Beyond this the clock of the source was set, or is none.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// One in so many parts of a delay is believed.
const SMOOTH: f64 = 16.0;

impl Delays {
    /// Notes one.
    pub fn record(&mut self, delay: Duration, now: Instant) {
        if delay > MAX_DELAY {
            return;
        }
        self.count += 1;
        self.sum += delay;
        let seconds = delay.as_secs_f64();
        let known = self.recent.filter(|(_, at)| now.saturating_duration_since(*at) < STALE);
        let mean = known.map_or(seconds, |(mean, _)| mean + (seconds - mean) / SMOOTH);
        self.recent = Some((mean, now));
    }

    /// What it is of late, in seconds; `None` if nothing came.
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
