//! One track, split into parts and segments (rfc8216bis §4.4.4). Sans-I/O: the input is frames, recent segments are
//! kept.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::cmaf::{self, CmafSample, CodecConfig};
use millstream_core::media::MediaKind;
use millstream_core::media::clock::ticks_to_duration;

/// Media sequence number of a segment; never reused.
pub type Msn = u64;

/// Number of roles.
pub const RENDITION_ROLE_COUNT: usize = 5;

/// Role of a rendition in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RenditionRole {
    Video,
    /// Lower simulcast layers.
    VideoLayer2,
    VideoLayer3,
    /// The original audio, or Opus.
    Audio,
    /// Audio transcoded to AAC, for players without support for the original.
    AacAudio,
}

impl RenditionRole {
    /// All roles.
    pub const ALL_ROLES: [Self; RENDITION_ROLE_COUNT] = [
        Self::Video,
        Self::VideoLayer2,
        Self::VideoLayer3,
        Self::Audio,
        Self::AacAudio,
    ];

    /// The video layers, best first.
    pub const VIDEO_LAYERS: [Self; 3] = [Self::Video, Self::VideoLayer2, Self::VideoLayer3];

    /// Position in [`Self::ALL_ROLES`].
    pub(super) fn index(self) -> usize {
        match self {
            Self::Video => 0,
            Self::VideoLayer2 => 1,
            Self::VideoLayer3 => 2,
            Self::Audio => 3,
            Self::AacAudio => 4,
        }
    }

    /// Name of the role in URLs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::VideoLayer2 => "video2",
            Self::VideoLayer3 => "video3",
            Self::Audio => "audio",
            Self::AacAudio => "aac",
        }
    }

    /// Returns the media kind.
    pub fn kind(self) -> MediaKind {
        match self {
            Self::Video | Self::VideoLayer2 | Self::VideoLayer3 => MediaKind::Video,
            Self::Audio | Self::AacAudio => MediaKind::Audio,
        }
    }
}

/// The recent segments of one track.
#[derive(Debug)]
pub struct Rendition {
    pub role: RenditionRole,
    clock_rate: u32,
    codec_config: CodecConfig,
    /// Initialization sections by number; the last one is current.
    init_sections: VecDeque<(u64, Bytes)>,
    /// Complete segments, and at the end the one in progress.
    segments: VecDeque<Segment>,
    next_msn: Msn,
    /// Number of discontinuities in evicted segments.
    evicted_discontinuity_count: u64,
    last_fragment_sequence_number: u32,
    pending_part_samples: Vec<CmafSample>,
    pending_part_start_ticks: u64,
    pending_part_duration_ticks: u64,
    /// Maximum duration of a part in ticks, from the duration of the first frame.
    part_target_ticks: Option<u64>,
    total_bytes: usize,
    /// In seconds (EXT-X-TARGETDURATION).
    target_duration_secs: u64,
}

/// A segment.
#[derive(Clone, Debug)]
pub struct Segment {
    pub msn: Msn,
    pub init_section_number: u64,
    pub follows_discontinuity: bool,
    /// Start on the timeline.
    pub start_time: Duration,
    /// Wall clock at the start, since 1970.
    pub program_date_time: Duration,
    pub parts: Vec<PartialSegment>,
    pub is_complete: bool,
    /// A part exceeds the Part Target Duration (rfc8216bis §4.4.3.7): the segment is listed as a whole, once it is
    /// complete.
    pub has_oversized_part: bool,
}

/// A part.
#[derive(Clone, Debug)]
pub struct PartialSegment {
    pub duration: Duration,
    /// Whether it starts with a frame that a decoder can start with.
    pub is_independent: bool,
    pub bytes: Bytes,
}

/// A frame on the timeline of its rendition.
#[derive(Clone, Debug)]
pub struct TimedFrame {
    /// Timestamp since the start of the timeline, in ticks of the track's clock rate.
    pub start_ticks: u64,
    /// Duration in ticks.
    pub duration_ticks: u32,
    pub key_frame: bool,
    pub bytes: Bytes,
}

/// Nominal duration of a part.
const NOMINAL_PART_DURATION: Duration = Duration::from_millis(200);

/// Parts in front of the one with which players start in the first segment. hls.js 1.7.4 that starts with the second part of
/// a segment takes the segment for loaded at its end, and stalls until its parts are not listed any more.
const MIN_PARTS_BEFORE_PLAYBACK_START: u32 = 2;

/// Minimum duration of a segment: it ends at the first key frame after this time.
const MIN_SEGMENT_DURATION: Duration = Duration::from_millis(1_000);

/// Maximum number of complete segments; those not in the playlist any more are for slow players.
const MAX_KEPT_COMPLETE_SEGMENTS: usize = 8;

/// Maximum size of a rendition in bytes. The oldest segments are evicted first.
const MAX_RENDITION_BYTES: usize = 48 << 20;

/// Maximum duration of a segment without a key frame: it is then cut anyway, although players cannot start there.
const MAX_SEGMENT_DURATION: Duration = Duration::from_secs(30);

/// Target duration of segments in seconds, unless the key frames of the source are further apart, and the longest.
const MIN_TARGET_DURATION_SECS: u64 = 2;
const MAX_TARGET_DURATION_SECS: u64 = 32;

/// Key frames may come this much later than the last one did, in per cent of the interval.
const KEY_FRAME_INTERVAL_TOLERANCE_PERCENT: u32 = 10;

impl Segment {
    pub fn duration(&self) -> Duration {
        self.parts.iter().map(|part| part.duration).sum()
    }

    /// Returns the data of all parts in order.
    pub fn part_bodies(&self) -> Vec<Bytes> {
        self.parts.iter().map(|part| part.bytes.clone()).collect()
    }
}

/// A complete segment that is shorter ended early. Audio segments end up to a packet before those of the video that they
/// are aligned with, and are not taken for short because of that.
const MAX_SHORT_SEGMENT_DURATION: Duration = MIN_SEGMENT_DURATION.saturating_sub(Duration::from_millis(250));

/// Returns how many of the newest segments are in a window of `max` segments. Those that are shorter than usual, such as
/// before a frame that stays away, do not count: the window would become short. There are at most twice as many.
pub fn window_segment_count<'a>(segments: impl DoubleEndedIterator<Item = &'a Segment>, max: usize) -> usize {
    let mut counted = 0;
    let in_window = segments.rev().take(2 * max).take_while(|segment| {
        let is_short = segment.is_complete && segment.duration() < MAX_SHORT_SEGMENT_DURATION;
        counted += usize::from(!is_short);
        counted <= max
    });
    in_window.count()
}

impl Rendition {
    /// Creates a rendition; `None` if the header cannot be written. Segments are numbered after `first`, which must
    /// exceed all numbers used before under the same URLs, because of caches.
    pub fn new(role: RenditionRole, rate: u32, header: CodecConfig, first: u64) -> Option<Self> {
        let init = header.write_init_section()?;
        Some(Self {
            role,
            clock_rate: rate,
            codec_config: header,
            init_sections: VecDeque::from([(first, init)]),
            segments: VecDeque::new(),
            // The first segment is preceded by a gap segment while it is the only one.
            next_msn: first + 1,
            evicted_discontinuity_count: 0,
            last_fragment_sequence_number: 0,
            pending_part_samples: Vec::new(),
            pending_part_start_ticks: 0,
            pending_part_duration_ticks: 0,
            part_target_ticks: None,
            total_bytes: 0,
            target_duration_secs: MIN_TARGET_DURATION_SECS,
        })
    }

    /// Sets the target duration for key frames at this interval. There must be no segment yet: rfc8216bis §4.4.3.1 does not
    /// permit the target duration to change.
    pub fn set_expected_key_frame_interval(&mut self, interval: Duration) {
        debug_assert!(self.segments.is_empty());
        let longest = interval * (100 + KEY_FRAME_INTERVAL_TOLERANCE_PERCENT) / 100;
        let secs = longest.as_secs_f64().round() as u64;
        self.target_duration_secs = secs.clamp(MIN_TARGET_DURATION_SECS, MAX_TARGET_DURATION_SECS);
    }

    /// Doubles the target duration when a segment exceeds it, against rfc8216bis §4.4.3.1: the source sends fewer key
    /// frames than expected. Segments that begin without a key frame would be worse for players.
    fn raise_target_duration_to_longest_segment(&mut self) {
        let open = self.segment_in_progress().map_or(Duration::ZERO, Segment::duration);
        let needed = open.as_secs_f64().round() as u64;
        while self.target_duration_secs < needed {
            self.target_duration_secs *= 2;
        }
    }

    /// Codec string for playlists (RFC 6381).
    pub fn codecs(&self) -> &str {
        &self.codec_config.codec_string
    }

    /// Sets the header for the next segments. The caller must start a discontinuity.
    pub fn set_codec_config(&mut self, header: CodecConfig) {
        if header == self.codec_config {
            return;
        }
        let number = self.init_sections.back().map_or(0, |(number, _)| number + 1);
        if let Some(init) = header.write_init_section() {
            self.codec_config = header;
            self.init_sections.push_back((number, init));
            while self.init_sections.len() > 16 {
                self.init_sections.pop_front();
            }
        }
    }

    /// Whether this is the current header.
    pub fn uses_codec_config(&self, header: &CodecConfig) -> bool {
        *header == self.codec_config
    }

    /// Number of the next segment.
    pub fn next_msn(&self) -> Msn {
        self.next_msn
    }

    /// Sets the number of the first segment. There must be none yet.
    pub fn set_first_msn(&mut self, msn: Msn) {
        debug_assert!(self.segments.is_empty());
        self.next_msn = msn;
    }

    /// Whether the current segment has reached its minimum duration.
    pub fn has_segment_reached_min_duration(&self) -> bool {
        self.segment_in_progress()
            .is_none_or(|open| open.duration() + self.pending_part_duration() >= MIN_SEGMENT_DURATION)
    }

    /// Whether a segment must end before a frame of this duration: the frame is longer than a part may be, and the
    /// parts of the current segment are listed already; or a segment of such frames is long enough.
    pub fn must_cut_segment_for_overlong_frame(&self, frame_ticks: u32) -> bool {
        let Some(open) = self.segment_in_progress() else {
            return false;
        };
        if open.has_oversized_part {
            return self.has_segment_reached_min_duration();
        }
        let is_empty = open.parts.is_empty() && self.pending_part_samples.is_empty();
        !is_empty && self.exceeds_part_target(u64::from(frame_ticks))
    }

    fn exceeds_part_target(&self, ticks: u64) -> bool {
        ticks_to_duration(ticks, self.clock_rate) > self.part_target()
    }

    fn pending_part_duration(&self) -> Duration {
        ticks_to_duration(self.pending_part_duration_ticks, self.clock_rate)
    }

    fn segment_in_progress(&self) -> Option<&Segment> {
        self.segments.back().filter(|segment| !segment.is_complete)
    }

    /// Starts a segment with the next frame, at this position on the timeline and this wall clock.
    pub fn start_segment(&mut self, begin: Duration, wall: Duration, discontinuity: bool) {
        self.close_part();
        if let Some(open) = self.segments.back_mut() {
            open.is_complete = true;
        }
        // Remove an empty segment.
        if self.segments.back().is_some_and(|segment| segment.parts.is_empty()) {
            self.segments.pop_back();
            self.next_msn -= 1;
        }
        let init = self.init_sections.back().map_or(0, |(number, _)| *number);
        let is_first = self.segments.is_empty();
        self.segments.push_back(Segment {
            msn: self.next_msn,
            init_section_number: init,
            follows_discontinuity: discontinuity && !is_first,
            start_time: begin,
            program_date_time: wall,
            parts: Vec::new(),
            is_complete: false,
            has_oversized_part: false,
        });
        self.next_msn += 1;
        self.evict_old_segments();
    }

    /// Adds a frame; the first one must be preceded by [`Self::start_segment`]. Returns whether a part was completed.
    pub fn push_frame(&mut self, frame: TimedFrame) -> bool {
        if self.segment_in_progress().is_none() {
            return false;
        }
        let ticks = u64::from(frame.duration_ticks);
        let target = *self
            .part_target_ticks
            .get_or_insert_with(|| part_target_ticks(ticks, self.clock_rate));
        let mut completed = false;
        if !self.pending_part_samples.is_empty()
            && (self.pending_part_duration_ticks + ticks > target
                || frame.key_frame && self.role.kind() == MediaKind::Video)
        {
            completed = self.close_part();
        }
        if self.pending_part_samples.is_empty() {
            self.pending_part_start_ticks = frame.start_ticks;
        }
        self.pending_part_duration_ticks += ticks;
        self.pending_part_samples.push(CmafSample {
            duration_ticks: frame.duration_ticks,
            is_key_frame: frame.key_frame,
            bytes: frame.bytes,
        });
        if self.pending_part_duration_ticks >= target {
            completed |= self.close_part();
        }
        completed
    }

    /// Whether the segment in progress has reached its maximum duration without a key frame.
    pub fn has_segment_reached_max_duration(&self) -> bool {
        self.segment_in_progress()
            .is_some_and(|open| open.duration() >= MAX_SEGMENT_DURATION)
    }

    /// Whether the segment in progress has reached the target duration.
    pub fn has_segment_reached_target_duration(&self) -> bool {
        let target = Duration::from_secs(self.target_duration_secs);
        self.segment_in_progress()
            .is_some_and(|open| open.duration() + self.pending_part_duration() >= target)
    }

    fn close_part(&mut self) -> bool {
        let samples = std::mem::take(&mut self.pending_part_samples);
        let ticks = std::mem::take(&mut self.pending_part_duration_ticks);
        let Some(first) = samples.first() else { return false };
        let independent = first.is_key_frame;
        let is_oversized = self.exceeds_part_target(ticks);
        self.last_fragment_sequence_number = self.last_fragment_sequence_number.wrapping_add(1);
        let (Some(bytes), Some(open)) = (
            cmaf::write_fragment(
                self.last_fragment_sequence_number,
                self.pending_part_start_ticks,
                &samples,
            ),
            self.segments.back_mut().filter(|segment| !segment.is_complete),
        ) else {
            return false;
        };
        self.total_bytes += bytes.len();
        open.has_oversized_part |= is_oversized;
        open.parts.push(PartialSegment {
            duration: ticks_to_duration(ticks, self.clock_rate),
            is_independent: independent,
            bytes,
        });
        self.raise_target_duration_to_longest_segment();
        true
    }

    fn evict_old_segments(&mut self) {
        while self.segments.len() > window_segment_count(self.segments.iter(), MAX_KEPT_COMPLETE_SEGMENTS + 1)
            || (self.total_bytes > MAX_RENDITION_BYTES && self.segments.len() > 1)
        {
            let Some(evicted) = self.segments.pop_front() else {
                return;
            };
            self.total_bytes -= evicted.parts.iter().map(|part| part.bytes.len()).sum::<usize>();
            // The discontinuity tag leaves the playlist, so its sequence number increases.
            self.evicted_discontinuity_count += u64::from(evicted.follows_discontinuity);
        }
    }

    /// Number of discontinuities before the first available segment.
    pub fn discontinuity_sequence(&self) -> u64 {
        self.evicted_discontinuity_count
    }

    /// The available segments, ending with the one in progress.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> + ExactSizeIterator {
        self.segments.iter()
    }

    /// Returns the segment with this number.
    pub fn segment(&self, msn: Msn) -> Option<&Segment> {
        let first = self.segments.front()?.msn;
        self.segments.get(usize::try_from(msn.checked_sub(first)?).ok()?)
    }

    /// Returns the initialization section with this number.
    pub fn init_section(&self, number: u64) -> Option<Bytes> {
        let found = self.init_sections.iter().find(|(init, _)| *init == number);
        found.map(|(_, bytes)| bytes.clone())
    }

    /// Numbers of the next segment and of the next part in it that will be listed.
    pub fn next_part_position(&self) -> (Msn, usize) {
        match self.segment_in_progress() {
            Some(open) if open.has_oversized_part => (open.msn, 0),
            Some(open) => (open.msn, open.parts.len()),
            None => (self.next_msn, 0),
        }
    }

    /// Whether a part is available. A part number after the last part of a segment refers to the first part of the next
    /// segment (rfc8216bis §6.2.5.2).
    pub fn has_part(&self, msn: Msn, part: usize) -> bool {
        let next = self.next_part_position();
        match self.segment(msn) {
            Some(segment) if segment.is_complete && part >= segment.parts.len() => next > (msn + 1, 0),
            _ => next > (msn, part),
        }
    }

    /// Maximum duration of a part (EXT-X-PART-INF).
    pub fn part_target(&self) -> Duration {
        let target = self.part_target_ticks.map_or(NOMINAL_PART_DURATION, |target| {
            ticks_to_duration(target, self.clock_rate)
        });
        // A frame may be one tick longer than the first one. Whole milliseconds, as the playlist lists it.
        Duration::from_millis(u64::try_from(target.as_millis()).unwrap_or(u64::MAX).saturating_add(5))
    }

    /// How far behind the end players start (PART-HOLD-BACK): the least that rfc8216bis §4.4.3.8 permits. A player that
    /// starts here stays as much further behind as it takes to load and decode, which is its buffer against jitter.
    pub fn part_hold_back(&self) -> Duration {
        self.part_target() * 2
    }

    /// Whether players that start here start with media, and not with the gap in front of the first segment.
    pub fn is_ready_for_playback(&self) -> bool {
        let available: Duration = self.segments.iter().map(Segment::duration).sum();
        let has_complete = self.segments.front().is_some_and(|first| first.is_complete);
        has_complete || available >= self.part_hold_back() + self.part_target() * MIN_PARTS_BEFORE_PLAYBACK_START
    }

    /// Maximum duration of a segment in seconds (EXT-X-TARGETDURATION).
    pub fn target_duration_secs(&self) -> u64 {
        self.target_duration_secs
    }

    /// Size of the available segments in bytes.
    pub fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// Average bitrate of the available segments in bits per second.
    pub fn average_bitrate(&self) -> u64 {
        let total: Duration = self.segments.iter().map(Segment::duration).sum();
        (self.total_bytes as f64 * 8.0 / total.as_secs_f64().max(0.2)) as u64
    }
}

/// Duration of the whole number of frames closest to [`NOMINAL_PART_DURATION`], in ticks.
fn part_target_ticks(frame: u64, rate: u32) -> u64 {
    let ticks = NOMINAL_PART_DURATION.as_secs_f64() * f64::from(rate);
    let frames = (ticks / frame.max(1) as f64).round().max(1.0) as u64;
    (frames * frame).min(u64::from(rate))
}
