//! One kind of media of a stream: its ring, its clock, and where its line goes on.

use std::time::{Duration, Instant};

use super::meter::{Delays, Meter};
use super::ring::Ring;
use super::vp8_rewriter::Vp8Rewriter;
use crate::media::clock::{TrackClock, duration, ticks};
use crate::media::packet::{TrackSeq, TrackTime};
use crate::media::{Codec, Format, Kind};

/// A track of a stream. It outlives its sources: their numbering is mapped onto its line by an
/// [`Intake`](super::intake::Intake) each.
#[derive(Debug)]
pub struct Track {
    pub kind: Kind,
    pub ring: Ring,
    pub clock: TrackClock,
    pub vp8: Vp8Rewriter,
    /// What the bitstream said last, or else what the publisher's offer said.
    pub format: Option<Format>,
    /// Width and height in pixels, of video.
    pub resolution: Option<(u16, u16)>,
    pub meter: Meter,
    /// From the capture of what comes to its arrival, where the source says when that was.
    pub delays: Delays,
    /// What the track says of itself has changed: the next packet tells.
    pub format_changed: bool,
    /// Time of the last key frame, and from the one before it.
    key_frames: Option<(TrackTime, Option<u64>)>,
    order: FrameOrder,
    /// A time on the line of the stream that this is a layer of, and when it arrives there: both lines have one time.
    pub anchor: Option<(TrackTime, Instant)>,
}

/// What a track is at one moment: a copy, for work that must not hold the lock of its stream.
#[derive(Clone, Copy, Debug)]
pub struct TrackView {
    /// What the bitstream said last, or else what the publisher's offer said.
    pub format: Option<Format>,
    /// Width and height in pixels, of video.
    pub resolution: Option<(u16, u16)>,
    /// Frames per second, of video.
    pub frame_rate: f64,
    pub clock: TrackClock,
}

/// Whether the pictures of a source come in another order than they are shown in.
#[derive(Clone, Copy, Debug, Default)]
struct FrameOrder {
    newest: TrackTime,
    frames: u32,
    reorders: u32,
    reordered: bool,
}

/// A time that goes back so often, within [`ORDER_WINDOW`] frames, is no correction of a clock but B-frames.
const MIN_REORDERS: u32 = 2;
const ORDER_WINDOW: u32 = 64;

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
            vp8: Vp8Rewriter::default(),
            format: None,
            resolution: None,
            meter: Meter::default(),
            delays: Delays::default(),
            format_changed: false,
            key_frames: None,
            order: FrameOrder::default(),
            anchor: None,
        }
    }

    /// What the track is now.
    pub fn view(&self) -> TrackView {
        TrackView {
            format: self.format,
            resolution: self.resolution,
            frame_rate: self.meter.rate_or_last().frames,
            clock: self.clock,
        }
    }

    /// Another source begins.
    pub fn begin(&mut self, format: Option<Format>) {
        self.format = format;
        self.resolution = None;
        self.format_changed = true;
        self.order = FrameOrder::default();
        self.key_frames = None;
        self.ring.forget_key_frames();
        if let Some(format) = format {
            self.clock.reset(format.codec().clock_rate());
        }
    }

    /// What the bitstream says of itself.
    pub fn set_format(&mut self, format: Option<Format>) {
        if format.is_some() && format != self.format {
            self.format = format;
            self.format_changed = true;
        }
    }

    /// Notes a packet of a key frame.
    pub(super) fn observe_key_frame(&mut self, time: TrackTime) {
        match self.key_frames {
            Some((last, _)) if last >= time => {}
            Some((last, _)) => self.key_frames = Some((time, Some(time - last))),
            None => self.key_frames = Some((time, None)),
        }
    }

    /// From the last but one key frame to the last; `None` while there were not two of them.
    pub fn key_frame_interval(&self) -> Option<Duration> {
        let (_, ticks) = self.key_frames?;
        Some(duration(ticks?, 90_000))
    }

    /// Whether the source has B-frames: its pictures come in another order than they are shown in.
    pub fn is_reordered(&self) -> bool {
        self.order.reordered
    }

    /// Notes the time of a frame that comes next on the line.
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

    /// Where the next source begins.
    pub fn next_seq(&self) -> TrackSeq {
        self.ring.end()
    }

    /// When the next source begins if its first packet arrives `now`; `rate` in Hz.
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
