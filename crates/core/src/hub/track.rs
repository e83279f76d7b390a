//! One audio or video track of a stream: its ring, its clock, and the position at which the next source continues.

use std::time::{Duration, Instant};

use super::meter::{Delays, Meter};
use super::ring::Ring;
use super::vp8_rewriter::Vp8Rewriter;
use crate::media::clock::{TrackClock, duration, ticks};
use crate::media::odd::OddCounts;
use crate::media::packet::{TrackSeq, TrackTime};
use crate::media::{Codec, Format, Kind};

/// A track of a stream. It outlives its sources: an [`Intake`](super::intake::Intake) per source rewrites their
/// sequence numbers and timestamps to one continuous numbering.
#[derive(Debug)]
pub struct Track {
    pub(super) kind: Kind,
    pub(super) ring: Ring,
    pub(super) clock: TrackClock,
    pub(super) vp8: Vp8Rewriter,
    format: Option<Format>,
    resolution: Option<(u16, u16)>,
    pub(super) meter: Meter,
    pub(super) delays: Delays,
    /// The format changed since the last batch.
    format_changed: bool,
    /// Timestamp of the last key frame, and its distance from the one before in ticks.
    key_frames: Option<(TrackTime, Option<u64>)>,
    order: FrameOrder,
    missing: Option<Missing>,
    left_out: OddCounts,
    /// For a layer: a timestamp of the main stream and its expected arrival. Both streams share one timeline.
    anchor: Option<(TrackTime, Instant)>,
}

/// Copy of a track's properties, for work that must not hold the stream's lock.
#[derive(Clone, Copy, Debug)]
pub struct TrackView {
    /// Format found in the bitstream, or else the one in the publisher's offer.
    pub format: Option<Format>,
    /// Width and height in pixels; video only.
    pub resolution: Option<(u16, u16)>,
    /// Frames per second; video only.
    pub frame_rate: f64,
    pub clock: TrackClock,
}

/// What the source of a track negotiated and does not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No packet has come.
    Packets,
    /// Packets come, but no key frame.
    KeyFrame,
}

/// Detects whether frames are sent in another order than they are presented (B-frames).
#[derive(Clone, Copy, Debug, Default)]
struct FrameOrder {
    newest: TrackTime,
    frames: u32,
    reorders: u32,
    reordered: bool,
}

/// Number of backward timestamp steps within [`ORDER_WINDOW`] frames that indicates B-frames, not a clock correction.
const MIN_REORDERS: u32 = 2;
const ORDER_WINDOW: u32 = 64;

/// First timestamp of a track, so that subtraction cannot underflow.
const FIRST_TIME: TrackTime = 1 << 32;

/// Minimum step from the last frame of a source to the first frame of the next.
const MIN_STEP: Duration = Duration::from_millis(10);

impl Track {
    /// Creates an empty track.
    pub fn new(kind: Kind) -> Self {
        let rate = match kind {
            Kind::Audio => 48_000,
            Kind::Video => 90_000,
        };
        Self {
            kind,
            ring: Ring::default(),
            clock: TrackClock::new(rate),
            vp8: Vp8Rewriter::default(),
            format: None,
            resolution: None,
            meter: Meter::default(),
            delays: Delays::default(),
            format_changed: false,
            key_frames: None,
            order: FrameOrder::default(),
            missing: None,
            left_out: OddCounts::default(),
            anchor: None,
        }
    }

    /// Returns whether this is audio or video.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the recent packets.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Returns the relation between timestamps, arrival and capture.
    pub fn clock(&self) -> &TrackClock {
        &self.clock
    }

    /// Returns the format found in the bitstream, or else the one in the publisher's offer.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Returns width and height in pixels; video only.
    pub fn resolution(&self) -> Option<(u16, u16)> {
        self.resolution
    }

    /// Returns the bitrate and the frame rate.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Returns the delays from capture to arrival, if the source reports capture times.
    pub fn delays(&self) -> &Delays {
        &self.delays
    }

    /// Returns a copy of the current properties.
    pub fn view(&self) -> TrackView {
        TrackView {
            format: self.format,
            resolution: self.resolution,
            frame_rate: self.meter.rate_or_last().frames,
            clock: self.clock,
        }
    }

    /// Starts a new source.
    pub fn begin(&mut self, format: Option<Format>) {
        self.format = format;
        self.resolution = None;
        self.format_changed = true;
        self.order = FrameOrder::default();
        self.left_out = OddCounts::default();
        self.key_frames = None;
        self.missing = None;
        self.ring.forget_key_frames();
        if let Some(format) = format {
            self.clock.reset(format.codec().clock_rate());
        }
    }

    /// What is missing of the current source, as of the last second.
    pub fn missing(&self) -> Option<Missing> {
        self.missing
    }

    pub fn set_missing(&mut self, missing: Option<Missing>) {
        self.missing = missing;
    }

    /// Sets the clock rate of the codec that follows, in Hz.
    pub(super) fn set_clock_rate(&mut self, rate: u32) {
        if self.clock.rate() != rate {
            self.clock.reset(rate);
        }
    }

    /// Updates the format from the bitstream.
    pub fn set_format(&mut self, format: Option<Format>) {
        if format.is_some() && format != self.format {
            self.format = format;
            self.format_changed = true;
        }
    }

    /// Sets width and height in pixels; `None` leaves them as they are.
    pub fn set_resolution(&mut self, resolution: Option<(u16, u16)>) {
        self.resolution = resolution.or(self.resolution);
    }

    /// Aligns the timestamps of the next source with those of another stream: its timestamp `time` arrived, or would have
    /// arrived, at `at`.
    pub fn align(&mut self, time: TrackTime, at: Instant) {
        self.anchor = Some((time, at));
    }

    /// Records that the media with this timestamp was captured at `captured`, by the source's own report.
    pub fn record_capture(&mut self, time: TrackTime, captured: Instant) {
        self.clock.on_report(time, captured);
    }

    /// Records when the media with this timestamp would have arrived with the smallest observed delay; for a source that
    /// does not report capture times.
    pub fn record_alignment(&mut self, time: TrackTime, at: Instant) {
        self.clock.on_alignment(time, at);
    }

    /// Returns whether the format changed since the last call.
    pub(super) fn take_format_change(&mut self) -> bool {
        std::mem::take(&mut self.format_changed)
    }

    /// Records a packet of a key frame.
    pub(super) fn observe_key_frame(&mut self, time: TrackTime) {
        match self.key_frames {
            Some((last, _)) if last >= time => {}
            Some((last, _)) => self.key_frames = Some((time, Some(time - last))),
            None => self.key_frames = Some((time, None)),
        }
    }

    /// Interval between the last two key frames; `None` before the second one.
    pub fn key_frame_interval(&self) -> Option<Duration> {
        let (_, ticks) = self.key_frames?;
        Some(duration(ticks?, 90_000))
    }

    /// Whether the source has B-frames, i.e. its decode order differs from its presentation order.
    pub fn is_reordered(&self) -> bool {
        self.order.reordered
    }

    /// Sets that the bitstream has B-frames, whatever its timestamps say: OBS sends decoding times.
    pub fn set_reordered(&mut self, reordered: bool) {
        if reordered && !self.order.reordered {
            self.order.reordered = true;
            self.format_changed = true;
        }
    }

    /// Sets what of the source was left out, because no decoder makes anything of it.
    pub fn set_left_out(&mut self, counts: OddCounts) {
        self.left_out = counts;
    }

    /// Returns what of the source was left out, and how often.
    pub fn left_out(&self) -> &OddCounts {
        &self.left_out
    }

    /// Records the timestamp of the next frame in sequence order.
    pub(super) fn observe_order(&mut self, codec: Codec, time: TrackTime) {
        if !matches!(codec, Codec::H264 | Codec::H265) || self.order.reordered || time == self.order.newest {
            return;
        }
        self.order.frames += 1;
        if self.order.frames > ORDER_WINDOW {
            (self.order.frames, self.order.reorders) = (0, 0);
        }
        if time < self.order.newest {
            self.order.reorders += 1;
            if self.order.reorders >= MIN_REORDERS {
                self.order.reordered = true;
                self.format_changed = true;
            }
        } else {
            self.order.newest = time;
        }
    }

    /// First sequence number for the next source.
    pub fn next_seq(&self) -> TrackSeq {
        self.ring.end()
    }

    /// First timestamp of the next source if its first packet arrives at `now`; `rate` is the clock rate in Hz.
    pub fn next_time(&self, now: Instant, rate: u32) -> TrackTime {
        match (self.ring.newest(), self.anchor) {
            (_, Some((time, at))) => {
                let time = time + ticks(now.saturating_duration_since(at), rate);
                time.saturating_sub(ticks(at.saturating_duration_since(now), rate))
            }
            (None, None) => FIRST_TIME,
            (Some((time, arrival)), None) => time + ticks(now.saturating_duration_since(arrival).max(MIN_STEP), rate),
        }
    }
}
