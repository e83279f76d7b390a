//! One audio or video track of a stream: its ring, its clock, and the position at which the next source continues.

use std::time::{Duration, Instant};

use super::meter::{CaptureDelayStats, RateMeter};
use super::ring::PacketRing;
use super::vp8_rewriter::Vp8CounterTracker;
use crate::media::clock::{TrackClock, duration_to_ticks, ticks_to_duration};
use crate::media::packet::{TrackSeq, TrackTime};
use crate::media::payload_discard::PayloadDiscardCounts;
use crate::media::{Codec, CodecFormat, MediaKind};

/// A track of a stream. It outlives its sources: a [`IngestSeqAndTimestampRewriter`](super::source_rewriter::IngestSeqAndTimestampRewriter) per source rewrites their
/// sequence numbers and timestamps to one continuous numbering.
#[derive(Debug)]
pub struct Track {
    pub(super) kind: MediaKind,
    pub(super) ring: PacketRing,
    pub(super) clock: TrackClock,
    pub(super) vp8_counter_tracker: Vp8CounterTracker,
    format: Option<CodecFormat>,
    resolution: Option<(u16, u16)>,
    pub(super) rate_meter: RateMeter,
    pub(super) capture_delay_stats: CaptureDelayStats,
    /// The format changed since the last batch.
    format_changed: bool,
    /// Timestamp of the last key frame, and its distance from the one before in ticks.
    last_key_frame_timing: Option<(TrackTime, Option<u64>)>,
    /// When the first key frame of the source arrived.
    first_key_frame_arrival: Option<Instant>,
    b_frame_detector: TimestampBFrameDetector,
    lacks_idr_frames: bool,
    missing_media: Option<MissingPacketsOrKeyFrame>,
    discard_counts: PayloadDiscardCounts,
    arrival_timestamped_frame_count: u64,
    /// For a layer: a timestamp of the main stream and its expected arrival. Both streams share one timeline.
    timeline_anchor: Option<(TrackTime, Instant)>,
}

/// Copy of a track's properties, for work that must not hold the stream's lock.
#[derive(Clone, Copy, Debug)]
pub struct TrackFormatAndClock {
    /// Format found in the bitstream, or else the one in the publisher's offer.
    pub format: Option<CodecFormat>,
    /// Width and height in pixels; video only.
    pub resolution: Option<(u16, u16)>,
    /// Frames per second; video only.
    pub frame_rate: f64,
    /// Interval between the last two key frames; video only.
    pub key_frame_interval: Option<Duration>,
    pub clock: TrackClock,
}

/// What is known of the source of a track: for a track that is a copy of another one.
#[derive(Clone, Copy, Debug)]
pub struct TrackSourceProperties {
    pub format: Option<CodecFormat>,
    resolution: Option<(u16, u16)>,
    has_b_frames: bool,
    lacks_idr_frames: bool,
    pub clock: TrackClock,
    missing_media: Option<MissingPacketsOrKeyFrame>,
    discard_counts: PayloadDiscardCounts,
    arrival_timestamped_frame_count: u64,
}

/// What the source of a track negotiated and does not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingPacketsOrKeyFrame {
    /// No packet has come.
    Packets,
    /// Packets come, but no key frame.
    KeyFrame,
}

/// Detects whether frames are sent in another order than they are presented (B-frames).
#[derive(Clone, Copy, Debug, Default)]
struct TimestampBFrameDetector {
    last_time: TrackTime,
    window_frame_count: u32,
    backward_step_count: u32,
    has_b_frames: bool,
}

/// Number of backward timestamp steps within [`B_FRAME_DETECTION_WINDOW_FRAMES`] frames that indicates B-frames, not a clock correction.
const MIN_BACKWARD_TIMESTAMP_STEPS: u32 = 2;
const B_FRAME_DETECTION_WINDOW_FRAMES: u32 = 64;

/// First timestamp of a track, so that subtraction cannot underflow.
const FIRST_TRACK_TIME: TrackTime = 1 << 32;

/// Minimum step from the last frame of a source to the first frame of the next.
const MIN_TIMESTAMP_STEP_BETWEEN_SOURCES: Duration = Duration::from_millis(10);

impl Track {
    /// Creates an empty track.
    pub fn new(kind: MediaKind) -> Self {
        let rate = match kind {
            MediaKind::Audio => 48_000,
            MediaKind::Video => 90_000,
        };
        Self {
            kind,
            ring: PacketRing::default(),
            clock: TrackClock::new(rate),
            vp8_counter_tracker: Vp8CounterTracker::default(),
            format: None,
            resolution: None,
            rate_meter: RateMeter::default(),
            capture_delay_stats: CaptureDelayStats::default(),
            format_changed: false,
            last_key_frame_timing: None,
            first_key_frame_arrival: None,
            b_frame_detector: TimestampBFrameDetector::default(),
            lacks_idr_frames: false,
            missing_media: None,
            discard_counts: PayloadDiscardCounts::default(),
            arrival_timestamped_frame_count: 0,
            timeline_anchor: None,
        }
    }

    /// Returns whether this is audio or video.
    pub fn kind(&self) -> MediaKind {
        self.kind
    }

    /// Returns the recent packets.
    pub fn ring(&self) -> &PacketRing {
        &self.ring
    }

    /// Returns the relation between timestamps, arrival and capture.
    pub fn clock(&self) -> &TrackClock {
        &self.clock
    }

    /// Returns the format found in the bitstream, or else the one in the publisher's offer.
    pub fn format(&self) -> Option<CodecFormat> {
        self.format
    }

    /// Returns width and height in pixels; video only.
    pub fn resolution(&self) -> Option<(u16, u16)> {
        self.resolution
    }

    /// Returns the bitrate and the frame rate.
    pub fn rate_meter(&self) -> &RateMeter {
        &self.rate_meter
    }

    /// Returns the delays from capture to arrival, if the source reports capture times.
    pub fn capture_delay_stats(&self) -> &CaptureDelayStats {
        &self.capture_delay_stats
    }

    /// Returns a copy of the current properties.
    pub fn format_and_clock(&self) -> TrackFormatAndClock {
        TrackFormatAndClock {
            format: self.format,
            resolution: self.resolution,
            frame_rate: self.rate_meter.last_rate().frames_per_second,
            key_frame_interval: self.key_frame_interval(),
            clock: self.clock,
        }
    }

    /// Returns what is known of the source.
    pub(crate) fn source_properties(&self) -> TrackSourceProperties {
        TrackSourceProperties {
            format: self.format,
            resolution: self.resolution,
            has_b_frames: self.has_b_frames(),
            lacks_idr_frames: self.lacks_idr_frames,
            clock: self.clock,
            missing_media: self.missing_media,
            discard_counts: self.discard_counts,
            arrival_timestamped_frame_count: self.arrival_timestamped_frame_count,
        }
    }

    /// Takes over what is known of the source of another track, whose packets this one copies.
    pub(crate) fn copy_source_properties(&mut self, of: &TrackSourceProperties) {
        self.set_format_if_known(of.format);
        self.set_resolution_if_known(of.resolution);
        self.set_has_b_frames_if_found(of.has_b_frames);
        self.set_lacks_idr_frames_if_found(of.lacks_idr_frames);
        self.missing_media = of.missing_media;
        self.discard_counts = of.discard_counts;
        self.arrival_timestamped_frame_count = of.arrival_timestamped_frame_count;
    }

    /// Starts a new source.
    pub fn begin_source(&mut self, format: Option<CodecFormat>) {
        self.format = format;
        self.resolution = None;
        self.format_changed = true;
        self.b_frame_detector = TimestampBFrameDetector::default();
        self.lacks_idr_frames = false;
        self.discard_counts = PayloadDiscardCounts::default();
        self.arrival_timestamped_frame_count = 0;
        self.last_key_frame_timing = None;
        self.first_key_frame_arrival = None;
        self.rate_meter = RateMeter::default();
        self.missing_media = None;
        self.ring.forget_key_frames();
        if let Some(format) = format {
            self.clock.reset(format.codec().clock_rate());
        }
    }

    /// What is missing of the current source, as of the last second.
    pub fn missing_media(&self) -> Option<MissingPacketsOrKeyFrame> {
        self.missing_media
    }

    pub(crate) fn set_missing_media(&mut self, missing: Option<MissingPacketsOrKeyFrame>) {
        self.missing_media = missing;
    }

    /// Sets the clock rate of the codec that follows, in Hz.
    pub(super) fn reset_clock_if_rate_differs(&mut self, rate: u32) {
        if self.clock.clock_rate() != rate {
            self.clock.reset(rate);
        }
    }

    /// Updates the format from the bitstream.
    pub fn set_format_if_known(&mut self, format: Option<CodecFormat>) {
        if format.is_some() && format != self.format {
            self.format = format;
            self.format_changed = true;
        }
    }

    /// Sets width and height in pixels; `None` leaves them as they are.
    pub(crate) fn set_resolution_if_known(&mut self, resolution: Option<(u16, u16)>) {
        self.resolution = resolution.or(self.resolution);
    }

    /// Aligns the timestamps of the next source with those of another stream: its timestamp `time` arrived, or would have
    /// arrived, at `at`.
    pub(crate) fn align_next_source_with_main_stream(&mut self, time: TrackTime, at: Instant) {
        self.timeline_anchor = Some((time, at));
    }

    /// Records that the media with this timestamp was captured at `captured`, by the source's own report, and `standing_delay`
    /// earlier by the fastest of its reports.
    pub fn record_capture_time(&mut self, time: TrackTime, captured: Instant, standing_delay: Duration) {
        self.clock.on_sender_report(time, captured, standing_delay);
    }

    /// Records when the media with this timestamp would have arrived with the smallest observed delay; for a source that
    /// does not report capture times.
    pub(crate) fn align_clock_without_sender_reports(&mut self, time: TrackTime, at: Instant) {
        self.clock.align_without_sender_reports(time, at);
    }

    /// Returns whether the format changed since the last call.
    pub(super) fn take_format_change_flag(&mut self) -> bool {
        std::mem::take(&mut self.format_changed)
    }

    /// Records a packet of a key frame.
    pub(super) fn observe_key_frame(&mut self, time: TrackTime, arrival: Instant) {
        self.first_key_frame_arrival.get_or_insert(arrival);
        match self.last_key_frame_timing {
            Some((last, _)) if last >= time => {}
            Some((last, _)) => self.last_key_frame_timing = Some((time, Some(time - last))),
            None => self.last_key_frame_timing = Some((time, None)),
        }
    }

    /// When the first key frame of the source arrived; `None` before it.
    pub(crate) fn first_key_frame_arrival(&self) -> Option<Instant> {
        self.first_key_frame_arrival
    }

    /// Interval between the last two key frames; `None` before the second one.
    pub fn key_frame_interval(&self) -> Option<Duration> {
        let (_, ticks) = self.last_key_frame_timing?;
        Some(ticks_to_duration(ticks?, 90_000))
    }

    /// Whether the source has B-frames, i.e. its decode order differs from its presentation order.
    pub fn has_b_frames(&self) -> bool {
        self.b_frame_detector.has_b_frames
    }

    /// Sets that the bitstream has B-frames, whatever its timestamps say: OBS sends decoding times.
    pub(crate) fn set_has_b_frames_if_found(&mut self, reordered: bool) {
        if reordered && !self.b_frame_detector.has_b_frames {
            self.b_frame_detector.has_b_frames = true;
            self.format_changed = true;
        }
    }

    /// Whether the source has no IDR frames of H.264, but others that most decoders can start with.
    pub fn lacks_idr_frames(&self) -> bool {
        self.lacks_idr_frames
    }

    /// Sets that the bitstream has no IDR frames.
    pub(crate) fn set_lacks_idr_frames_if_found(&mut self, lacks: bool) {
        if lacks && !self.lacks_idr_frames {
            self.lacks_idr_frames = true;
            self.format_changed = true;
        }
    }

    /// Sets what of the source was left out, because no decoder makes anything of it.
    pub(crate) fn set_discard_counts(&mut self, counts: PayloadDiscardCounts) {
        self.discard_counts = counts;
    }

    /// Returns what of the source was left out, and how often.
    pub fn discard_counts(&self) -> &PayloadDiscardCounts {
        &self.discard_counts
    }

    /// Sets how many frames of the source got the time of their arrival, because its timestamps stood still.
    pub fn set_arrival_timed_frame_count(&mut self, count: u64) {
        self.arrival_timestamped_frame_count = count;
    }

    /// Returns how many frames of the source got the time of their arrival.
    pub fn arrival_timestamped_frame_count(&self) -> u64 {
        self.arrival_timestamped_frame_count
    }

    /// Records the timestamp of the next frame in sequence order.
    pub(super) fn observe_frame_order(&mut self, codec: Codec, time: TrackTime) {
        if !matches!(codec, Codec::H264 | Codec::H265)
            || self.b_frame_detector.has_b_frames
            || time == self.b_frame_detector.last_time
        {
            return;
        }
        self.b_frame_detector.window_frame_count += 1;
        if self.b_frame_detector.window_frame_count > B_FRAME_DETECTION_WINDOW_FRAMES {
            (
                self.b_frame_detector.window_frame_count,
                self.b_frame_detector.backward_step_count,
            ) = (0, 0);
        }
        // Frames that follow a clock that went back once are no steps back.
        if time < self.b_frame_detector.last_time {
            self.b_frame_detector.backward_step_count += 1;
            if self.b_frame_detector.backward_step_count >= MIN_BACKWARD_TIMESTAMP_STEPS {
                self.b_frame_detector.has_b_frames = true;
                self.format_changed = true;
            }
        }
        self.b_frame_detector.last_time = time;
    }

    /// First sequence number for the next source.
    pub(crate) fn first_seq_of_next_source(&self) -> TrackSeq {
        self.ring.end_seq()
    }

    /// First timestamp of the next source if its first packet arrives at `now`; `rate` is the clock rate in Hz.
    pub(crate) fn first_timestamp_of_next_source(&self, now: Instant, rate: u32) -> TrackTime {
        match (self.ring.newest_track_time_and_arrival(), self.timeline_anchor) {
            (_, Some((time, at))) => {
                let time = time + duration_to_ticks(now.saturating_duration_since(at), rate);
                time.saturating_sub(duration_to_ticks(at.saturating_duration_since(now), rate))
            }
            (None, None) => FIRST_TRACK_TIME,
            (Some((time, arrival)), None) => {
                time + duration_to_ticks(
                    now.saturating_duration_since(arrival)
                        .max(MIN_TIMESTAMP_STEP_BETWEEN_SOURCES),
                    rate,
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_b_frames(times: impl IntoIterator<Item = u64>) -> bool {
        let mut track = Track::new(MediaKind::Video);
        for time in times {
            // Several packets each.
            track.observe_frame_order(Codec::H264, 1_000 + time);
            track.observe_frame_order(Codec::H264, 1_000 + time);
        }
        track.has_b_frames()
    }

    #[test]
    fn b_frames_step_back_again_and_again_and_a_clock_once() {
        assert!(has_b_frames([0, 3, 1, 2, 6, 4, 5, 9, 7, 8]));
        assert!(has_b_frames([0, 2, 1, 4, 3]));
        assert!(!has_b_frames(0..200));
        // The encoder of a camera restarts: its clock goes back by five frames.
        assert!(!has_b_frames((0..60).chain(55..130)));
        assert!(!has_b_frames([0, 2, 1].into_iter().chain(3..100)), "one frame alone");
    }
}
