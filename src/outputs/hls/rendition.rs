//! One track, cut into parts and segments (rfc8216bis §4.4.4). Pure: frames go in, what players may ask for is kept.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::cmaf::{self, CmafSample, Header};
use crate::media::Kind;
use crate::media::clock::duration;

/// Media sequence number: counts segments, never used again.
pub type Msn = u64;

/// How many there are.
pub const ROLES: usize = 5;

/// What a rendition is of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Video,
    /// Of a simulcast, the layers below the best one.
    Second,
    Third,
    /// The sound as it came, or Opus.
    Audio,
    /// The sound as AAC where it came as something else, for players that take nothing else.
    Aac,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; ROLES] = [Self::Video, Self::Second, Self::Third, Self::Audio, Self::Aac];

    /// The versions of the picture, the best first.
    pub const PICTURES: [Self; 3] = [Self::Video, Self::Second, Self::Third];

    /// As it stands in addresses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::Second => "video2",
            Self::Third => "video3",
            Self::Audio => "audio",
            Self::Aac => "aac",
        }
    }

    /// Picture or sound.
    pub fn kind(self) -> Kind {
        match self {
            Self::Video | Self::Second | Self::Third => Kind::Video,
            Self::Audio | Self::Aac => Kind::Audio,
        }
    }
}

/// What is kept of one track.
#[derive(Debug)]
pub struct Rendition {
    pub role: Role,
    rate: u32,
    header: Header,
    /// Initialization sections by number; the last is in force.
    inits: VecDeque<(u64, Bytes)>,
    /// Complete ones, and the one that grows at the end.
    segments: VecDeque<Segment>,
    next_msn: Msn,
    /// Discontinuities that have left the playlist.
    discontinuities: u64,
    sequence: u32,
    part: Vec<CmafSample>,
    part_time: u64,
    part_ticks: u64,
    /// What a part lasts at most; by the first frames.
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
    /// Since the beginning of the timeline.
    pub begin: Duration,
    /// Wall clock at its beginning, since 1970.
    pub wall: Duration,
    pub parts: Vec<Part>,
    pub complete: bool,
}

/// A part.
#[derive(Clone, Debug)]
pub struct Part {
    pub duration: Duration,
    /// It begins with a frame that a decoder can begin with.
    pub independent: bool,
    pub bytes: Bytes,
}

/// A frame on the timeline of its rendition.
#[derive(Clone, Debug)]
pub struct TimedFrame {
    /// In units of the track's clock, since the beginning of the timeline.
    pub time: u64,
    /// Until the next.
    pub ticks: u32,
    pub key_frame: bool,
    pub bytes: Bytes,
}

/// What a part should last.
const PART: Duration = Duration::from_millis(200);

/// Segments are cut at the first key frame after this time.
const MIN_SEGMENT: Duration = Duration::from_millis(1_000);

/// Complete segments that are kept, at least; those behind the playlist serve players that are late.
const KEPT: usize = 8;

/// All of one rendition, at most, in bytes. Beyond it the oldest segments go first.
const MAX_BYTES: usize = 48 << 20;

/// A segment without a key frame is given up as the source of a player's beginning, and cut anyhow.
const MAX_SEGMENT: Duration = Duration::from_secs(30);

impl Segment {
    pub fn duration(&self) -> Duration {
        self.parts.iter().map(|part| part.duration).sum()
    }

    /// All parts, one after the other.
    pub fn bytes(&self) -> Vec<Bytes> {
        self.parts.iter().map(|part| part.bytes.clone()).collect()
    }
}

impl Rendition {
    /// Begins with a header; `None` if it cannot be written. Segments are numbered after `first`, which has to be beyond
    /// all numbers of the same address before: caches keep what they have.
    pub fn new(role: Role, rate: u32, header: Header, first: u64) -> Option<Self> {
        let init = header.init()?;
        Some(Self {
            role,
            rate,
            header,
            inits: VecDeque::from([(first, init)]),
            segments: VecDeque::new(),
            // Before the first there is a gap, as long as it stands alone.
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

    /// How playlists name the codec.
    pub fn codecs(&self) -> &str {
        &self.header.codecs
    }

    /// Another header from the next segment on. It begins a discontinuity by itself.
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

    /// Whether this header is the one in force.
    pub fn has_header(&self, header: &Header) -> bool {
        *header == self.header
    }

    /// The number of the segment after the last.
    pub fn next_msn(&self) -> Msn {
        self.next_msn
    }

    /// Numbers the segments, of which there is none yet, from here.
    pub fn number_from(&mut self, msn: Msn) {
        debug_assert!(self.segments.is_empty());
        self.next_msn = msn;
    }

    /// Whether a segment may begin with a frame: for audio, where the video has begun one.
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

    /// Begins a segment with the next frame, whose place on the timeline and wall clock these are.
    pub fn cut(&mut self, begin: Duration, wall: Duration, discontinuity: bool) {
        self.close_part();
        if let Some(open) = self.segments.back_mut() {
            open.complete = true;
            self.longest = self.longest.max(open.duration());
        }
        // One that holds nothing is none.
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

    /// Takes a frame; the first one needs a [`Self::cut`] before it. Returns whether there is something new for players.
    pub fn push(&mut self, frame: TimedFrame) -> bool {
        if self.open().is_none() {
            return false;
        }
        let ticks = u64::from(frame.ticks);
        let target = *self.target.get_or_insert_with(|| target(ticks, self.rate));
        let mut format_changed = false;
        if !self.part.is_empty()
            && (self.part_ticks + ticks > target || frame.key_frame && self.role.kind() == Kind::Video)
        {
            format_changed = self.close_part();
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
            format_changed |= self.close_part();
        }
        format_changed
    }

    /// Whether the segment that grows has grown too long to wait for a key frame.
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
        while self.segments.len() > KEPT + 1 || (self.bytes > MAX_BYTES && self.segments.len() > 1) {
            let Some(gone) = self.segments.pop_front() else { return };
            self.bytes -= gone.parts.iter().map(|part| part.bytes.len()).sum::<usize>();
            // What leaves takes its mark along; the count goes on.
            self.discontinuities += u64::from(gone.discontinuity);
        }
    }

    /// Discontinuities before the first segment that is kept.
    pub fn discontinuity_sequence(&self) -> u64 {
        self.discontinuities
    }

    /// Segments that are kept, the one that grows last.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> + ExactSizeIterator {
        self.segments.iter()
    }

    /// The segment of a number.
    pub fn segment(&self, msn: Msn) -> Option<&Segment> {
        let first = self.segments.front()?.msn;
        self.segments.get(usize::try_from(msn.checked_sub(first)?).ok()?)
    }

    /// An initialization section.
    pub fn init(&self, number: u64) -> Option<Bytes> {
        let found = self.inits.iter().find(|(known, _)| *known == number);
        found.map(|(_, bytes)| bytes.clone())
    }

    /// Number of the segment and of the part in it that come next.
    pub fn next(&self) -> (Msn, usize) {
        match self.open() {
            Some(open) => (open.msn, open.parts.len()),
            None => (self.next_msn, 0),
        }
    }

    /// Whether a part has come. One behind the last of its segment is the first of the next segment (rfc8216bis §6.2.5.2).
    pub fn has_part(&self, msn: Msn, part: usize) -> bool {
        let next = self.next();
        match self.segment(msn) {
            Some(segment) if segment.complete && part >= segment.parts.len() => next > (msn + 1, 0),
            _ => next > (msn, part),
        }
    }

    /// What a part lasts at most.
    pub fn part_target(&self) -> Duration {
        let target = self.target.map_or(PART, |target| duration(target, self.rate));
        // A frame may be a tick longer than those before it.
        target + Duration::from_millis(5)
    }

    /// What a segment lasts at most, in whole seconds.
    pub fn target_duration(&self) -> u64 {
        let open = self.open().map_or(Duration::ZERO, Segment::duration);
        let longest = self.longest.max(open).as_secs_f64().round() as u64;
        longest.max(2)
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bits per second of what is kept.
    pub fn bitrate(&self) -> u64 {
        let lasts: Duration = self.segments.iter().map(Segment::duration).sum();
        (self.bytes as f64 * 8.0 / lasts.as_secs_f64().max(0.2)) as u64
    }
}

/// The number of frames that comes nearest to [`PART`], in ticks.
fn target(frame: u64, rate: u32) -> u64 {
    let wanted = PART.as_secs_f64() * f64::from(rate);
    let frames = (wanted / frame.max(1) as f64).round().max(1.0) as u64;
    (frames * frame).min(u64::from(rate))
}
