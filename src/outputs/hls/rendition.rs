//! One track, split into parts and segments (rfc8216bis §4.4.4). Sans-I/O: the input is frames, recent segments are
//! kept.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::cmaf::{self, CmafSample, Header};
use millstream_core::media::Kind;
use millstream_core::media::clock::duration;

/// Media sequence number of a segment; never reused.
pub type Msn = u64;

/// Number of roles.
pub const ROLES: usize = 5;

/// Role of a rendition in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Video,
    /// Lower simulcast layers.
    Layer2,
    Layer3,
    /// The original audio, or Opus.
    Audio,
    /// Audio transcoded to AAC, for players without support for the original.
    Aac,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; ROLES] = [Self::Video, Self::Layer2, Self::Layer3, Self::Audio, Self::Aac];

    /// The video layers, best first.
    pub const VIDEO: [Self; 3] = [Self::Video, Self::Layer2, Self::Layer3];

    /// Name of the role in URLs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::Layer2 => "video2",
            Self::Layer3 => "video3",
            Self::Audio => "audio",
            Self::Aac => "aac",
        }
    }

    /// Returns the media kind.
    pub fn kind(self) -> Kind {
        match self {
            Self::Video | Self::Layer2 | Self::Layer3 => Kind::Video,
            Self::Audio | Self::Aac => Kind::Audio,
        }
    }
}

/// The recent segments of one track.
#[derive(Debug)]
pub struct Rendition {
    pub role: Role,
    rate: u32,
    header: Header,
    /// Initialization sections by number; the last one is current.
    inits: VecDeque<(u64, Bytes)>,
    /// Complete segments, and at the end the one in progress.
    segments: VecDeque<Segment>,
    next_msn: Msn,
    /// Number of discontinuities in evicted segments.
    discontinuities: u64,
    sequence: u32,
    part: Vec<CmafSample>,
    part_time: u64,
    part_ticks: u64,
    /// Maximum duration of a part in ticks, from the duration of the first frame.
    target: Option<u64>,
    bytes: usize,
    longest: Duration,
}

/// A segment.
#[derive(Clone, Debug)]
pub struct Segment {
    pub msn: Msn,
    pub init: u64,
    pub discontinuity: bool,
    /// Start on the timeline.
    pub begin: Duration,
    /// Wall clock at the start, since 1970.
    pub wall: Duration,
    pub parts: Vec<Part>,
    pub complete: bool,
}

/// A part.
#[derive(Clone, Debug)]
pub struct Part {
    pub duration: Duration,
    /// Whether it starts with a frame that a decoder can start with.
    pub independent: bool,
    pub bytes: Bytes,
}

/// A frame on the timeline of its rendition.
#[derive(Clone, Debug)]
pub struct TimedFrame {
    /// Timestamp since the start of the timeline, in ticks of the track's clock rate.
    pub time: u64,
    /// Duration in ticks.
    pub ticks: u32,
    pub key_frame: bool,
    pub bytes: Bytes,
}

/// Nominal duration of a part.
const PART: Duration = Duration::from_millis(200);

/// Parts in front of the one with which players start in the first segment. hls.js 1.7.4 that starts with the second part of
/// a segment takes the segment for loaded at its end, and stalls until its parts are not listed any more.
const START_PARTS: u32 = 2;

/// Minimum duration of a segment: it ends at the first key frame after this time.
const MIN_SEGMENT: Duration = Duration::from_millis(1_000);

/// Minimum number of complete segments to keep; those not in the playlist any more are for slow players.
const MIN_SEGMENTS: usize = 8;

/// Maximum size of a rendition in bytes. The oldest segments are evicted first.
const MAX_BYTES: usize = 48 << 20;

/// Maximum duration of a segment without a key frame: it is then cut anyway, although players cannot start there.
const MAX_SEGMENT: Duration = Duration::from_secs(30);

impl Segment {
    pub fn duration(&self) -> Duration {
        self.parts.iter().map(|part| part.duration).sum()
    }

    /// Returns the data of all parts in order.
    pub fn bytes(&self) -> Vec<Bytes> {
        self.parts.iter().map(|part| part.bytes.clone()).collect()
    }
}

impl Rendition {
    /// Creates a rendition; `None` if the header cannot be written. Segments are numbered after `first`, which must
    /// exceed all numbers used before under the same URLs, because of caches.
    pub fn new(role: Role, rate: u32, header: Header, first: u64) -> Option<Self> {
        let init = header.init()?;
        Some(Self {
            role,
            rate,
            header,
            inits: VecDeque::from([(first, init)]),
            segments: VecDeque::new(),
            // The first segment is preceded by a gap segment while it is the only one.
            next_msn: first + 1,
            discontinuities: 0,
            sequence: 0,
            part: Vec::new(),
            part_time: 0,
            part_ticks: 0,
            target: None,
            bytes: 0,
            longest: Duration::ZERO,
        })
    }

    /// Codec string for playlists (RFC 6381).
    pub fn codecs(&self) -> &str {
        &self.header.codecs
    }

    /// Sets the header for the next segments. The caller must start a discontinuity.
    pub fn set_header(&mut self, header: Header) {
        if header == self.header {
            return;
        }
        let number = self.inits.back().map_or(0, |(number, _)| number + 1);
        if let Some(init) = header.init() {
            self.header = header;
            self.inits.push_back((number, init));
            while self.inits.len() > 16 {
                self.inits.pop_front();
            }
        }
    }

    /// Whether this is the current header.
    pub fn has_header(&self, header: &Header) -> bool {
        *header == self.header
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
    pub fn may_cut(&self) -> bool {
        self.open()
            .is_none_or(|open| open.duration() + self.pending() >= MIN_SEGMENT)
    }

    fn pending(&self) -> Duration {
        duration(self.part_ticks, self.rate)
    }

    fn open(&self) -> Option<&Segment> {
        self.segments.back().filter(|segment| !segment.complete)
    }

    /// Starts a segment with the next frame, at this position on the timeline and this wall clock.
    pub fn cut(&mut self, begin: Duration, wall: Duration, discontinuity: bool) {
        self.close_part();
        if let Some(open) = self.segments.back_mut() {
            open.complete = true;
            self.longest = self.longest.max(open.duration());
        }
        // Remove an empty segment.
        if self.segments.back().is_some_and(|segment| segment.parts.is_empty()) {
            self.segments.pop_back();
            self.next_msn -= 1;
        }
        let init = self.inits.back().map_or(0, |(number, _)| *number);
        let is_first = self.segments.is_empty();
        self.segments.push_back(Segment {
            msn: self.next_msn,
            init,
            discontinuity: discontinuity && !is_first,
            begin,
            wall,
            parts: Vec::new(),
            complete: false,
        });
        self.next_msn += 1;
        self.evict();
    }

    /// Adds a frame; the first one must be preceded by [`Self::cut`]. Returns whether a part was completed.
    pub fn push(&mut self, frame: TimedFrame) -> bool {
        if self.open().is_none() {
            return false;
        }
        let ticks = u64::from(frame.ticks);
        let target = *self.target.get_or_insert_with(|| target(ticks, self.rate));
        let mut completed = false;
        if !self.part.is_empty()
            && (self.part_ticks + ticks > target || frame.key_frame && self.role.kind() == Kind::Video)
        {
            completed = self.close_part();
        }
        if self.part.is_empty() {
            self.part_time = frame.time;
        }
        self.part_ticks += ticks;
        self.part.push(CmafSample {
            duration: frame.ticks,
            key_frame: frame.key_frame,
            bytes: frame.bytes,
        });
        if self.part_ticks >= target {
            completed |= self.close_part();
        }
        completed
    }

    /// Whether the segment in progress has reached its maximum duration without a key frame.
    pub fn is_overdue(&self) -> bool {
        self.open().is_some_and(|open| open.duration() >= MAX_SEGMENT)
    }

    fn close_part(&mut self) -> bool {
        let samples = std::mem::take(&mut self.part);
        let ticks = std::mem::take(&mut self.part_ticks);
        let Some(first) = samples.first() else { return false };
        let independent = first.key_frame;
        self.sequence = self.sequence.wrapping_add(1);
        let (Some(bytes), Some(open)) = (
            cmaf::fragment(self.sequence, self.part_time, &samples),
            self.segments.back_mut().filter(|segment| !segment.complete),
        ) else {
            return false;
        };
        self.bytes += bytes.len();
        open.parts.push(Part {
            duration: duration(ticks, self.rate),
            independent,
            bytes,
        });
        true
    }

    fn evict(&mut self) {
        while self.segments.len() > MIN_SEGMENTS + 1 || (self.bytes > MAX_BYTES && self.segments.len() > 1) {
            let Some(evicted) = self.segments.pop_front() else {
                return;
            };
            self.bytes -= evicted.parts.iter().map(|part| part.bytes.len()).sum::<usize>();
            // The discontinuity tag leaves the playlist, so its sequence number increases.
            self.discontinuities += u64::from(evicted.discontinuity);
        }
    }

    /// Number of discontinuities before the first available segment.
    pub fn discontinuity_sequence(&self) -> u64 {
        self.discontinuities
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
    pub fn init(&self, number: u64) -> Option<Bytes> {
        let found = self.inits.iter().find(|(init, _)| *init == number);
        found.map(|(_, bytes)| bytes.clone())
    }

    /// Numbers of the next segment and of the next part in it.
    pub fn next(&self) -> (Msn, usize) {
        match self.open() {
            Some(open) => (open.msn, open.parts.len()),
            None => (self.next_msn, 0),
        }
    }

    /// Whether a part is available. A part number after the last part of a segment refers to the first part of the next
    /// segment (rfc8216bis §6.2.5.2).
    pub fn has_part(&self, msn: Msn, part: usize) -> bool {
        let next = self.next();
        match self.segment(msn) {
            Some(segment) if segment.complete && part >= segment.parts.len() => next > (msn + 1, 0),
            _ => next > (msn, part),
        }
    }

    /// Maximum duration of a part (EXT-X-PART-INF).
    pub fn part_target(&self) -> Duration {
        let target = self.target.map_or(PART, |target| duration(target, self.rate));
        // A frame may be one tick longer than the first one. Whole milliseconds, as the playlist lists it.
        Duration::from_millis(u64::try_from(target.as_millis()).unwrap_or(u64::MAX).saturating_add(5))
    }

    /// How far behind the end players start (PART-HOLD-BACK): the least that rfc8216bis §4.4.3.8 permits. A player that
    /// starts here stays as much further behind as it takes to load and decode, which is its buffer against jitter.
    pub fn hold_back(&self) -> Duration {
        self.part_target() * 2
    }

    /// Whether players that start here start with media, and not with the gap in front of the first segment.
    pub fn is_startable(&self) -> bool {
        let available: Duration = self.segments.iter().map(Segment::duration).sum();
        let has_complete = self.segments.front().is_some_and(|first| first.complete);
        has_complete || available >= self.hold_back() + self.part_target() * START_PARTS
    }

    /// Maximum duration of a segment in seconds (EXT-X-TARGETDURATION).
    pub fn target_duration(&self) -> u64 {
        let open = self.open().map_or(Duration::ZERO, Segment::duration);
        let longest = self.longest.max(open).as_secs_f64().round() as u64;
        longest.max(2)
    }

    /// Size of the available segments in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Average bitrate of the available segments in bits per second.
    pub fn bitrate(&self) -> u64 {
        let total: Duration = self.segments.iter().map(Segment::duration).sum();
        (self.bytes as f64 * 8.0 / total.as_secs_f64().max(0.2)) as u64
    }
}

/// Duration of the whole number of frames closest to [`PART`], in ticks.
fn target(frame: u64, rate: u32) -> u64 {
    let ticks = PART.as_secs_f64() * f64::from(rate);
    let frames = (ticks / frame.max(1) as f64).round().max(1.0) as u64;
    (frames * frame).min(u64::from(rate))
}
