//! One kind of media of a stream: its ring, its clock, and where its line goes on.

use std::time::{Duration, Instant};

use super::ring::Ring;
use super::vp8_line::Vp8Line;
use crate::media::clock::{TrackClock, ticks};
use crate::media::packet::{TrackSeq, TrackTime};
use crate::media::{Format, Kind};

/// A track of a stream. It outlives its sources: their numbering is mapped onto its line by an
/// [`Intake`](super::intake::Intake) each.
#[derive(Debug)]
pub struct Track {
    pub kind: Kind,
    pub ring: Ring,
    pub clock: TrackClock,
    pub vp8: Vp8Line,
    /// What the bitstream said last, or else what the publisher's offer said.
    pub format: Option<Format>,
    /// Width and height in pixels, of video.
    pub resolution: Option<(u16, u16)>,
}

/// The first source begins here, so that nothing before it is ever negative.
const FIRST_TIME: TrackTime = 1 << 32;

/// Least step between the last frame of a source and the first of the next.
const MIN_STEP: Duration = Duration::from_millis(10);

impl Track {
    /// A track on which nothing was sent yet.
    pub fn new(kind: Kind) -> Self {
        let rate = match kind {
            Kind::Audio => 48_000,
            Kind::Video => 90_000,
        };
        Self {
            kind,
            ring: Ring::default(),
            clock: TrackClock::new(rate),
            vp8: Vp8Line::default(),
            format: None,
            resolution: None,
        }
    }

    /// Where the next source begins.
    pub fn next_seq(&self) -> TrackSeq {
        self.ring.end()
    }

    /// When the next source begins if its first packet arrives `now`; `rate` in Hz.
    pub fn next_time(&self, now: Instant, rate: u32) -> TrackTime {
        match self.ring.newest() {
            None => FIRST_TIME,
            Some((time, arrival)) => time + ticks(now.saturating_duration_since(arrival).max(MIN_STEP), rate),
        }
    }
}
