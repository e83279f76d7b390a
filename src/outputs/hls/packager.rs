//! Both tracks of a stream on one timeline: frames of the depacketizer go in, renditions come out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::cmaf::{Header, sample_bytes};
use super::rendition::{Msn, ROLES, Rendition, Role, TimedFrame};
use crate::hub::track::TrackView;
use crate::media::clock::{duration, ticks};
use crate::media::depacketizer::Frame;
use crate::media::packet::TrackTime;
use crate::media::{Codec, Format, Kind};

/// Makes the renditions of one stream.
#[derive(Debug, Default)]
pub struct Packager {
    renditions: [Option<Rendition>; ROLES],
    /// Where the timeline began; anew with each source.
    origin: Option<Origin>,
    /// Time that the timelines before this one took.
    elapsed: Duration,
    pending: [Option<PendingFrame>; ROLES],
    /// Sound, and how long each frame lasts, that comes before the picture beside it: where that is cut is not known yet.
    waiting: [VecDeque<(PendingFrame, u32)>; ROLES],
    /// Numbers that were not used by a rendition that was forgotten.
    unused: [Msn; ROLES],
    /// The next segments begin a discontinuity.
    broken: [bool; ROLES],
    shown: [VideoInfo; ROLES],
}

/// What a picture looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VideoInfo {
    /// Width and height in pixels.
    pub resolution: Option<(u16, u16)>,
    /// Pictures per second.
    pub frame_rate: f64,
}

#[derive(Clone, Copy, Debug)]
struct Origin {
    /// When it was captured.
    at: Instant,
    /// Wall clock then, since 1970.
    wall: Duration,
    /// Times of the renditions then; `None` before it is known.
    times: [Option<TrackTime>; ROLES],
}

/// A frame whose length is known when the next one comes.
#[derive(Clone, Debug)]
struct PendingFrame {
    codec: Codec,
    /// On the timeline.
    time: u64,
    key_frame: bool,
    bytes: bytes::Bytes,
}

/// Sound waits no longer for a picture that is so far behind it.
const MAX_AHEAD: Duration = Duration::from_secs(2);

/// A frame that lasts longer than this is followed by a gap, which players jump over.
const MAX_FRAME: Duration = Duration::from_secs(5);

impl PendingFrame {
    fn begin(&self) -> Duration {
        duration(self.time, self.codec.clock_rate())
    }
}

impl Packager {
    /// What there is of a role.
    pub fn rendition(&self, role: Role) -> Option<&Rendition> {
        self.renditions[index(role)].as_ref()
    }

    /// What the picture of a role looks like.
    pub fn shown(&self, role: Role) -> VideoInfo {
        self.shown[index(role)]
    }

    /// Nobody wants a rendition any more.
    pub fn forget(&mut self, role: Role) {
        let gone = self.renditions[index(role)].take();
        if let Some(gone) = gone.filter(|gone| gone.segments().len() > 0) {
            self.unused[index(role)] = self.unused[index(role)].max(gone.next_msn());
        }
        self.pending[index(role)] = None;
        self.waiting[index(role)].clear();
        if let Some(origin) = &mut self.origin {
            origin.times[index(role)] = None;
        }
    }

    /// Another source, or another kind of the same: what comes begins a timeline of its own.
    pub fn restart(&mut self) {
        self.flush();
        if self.origin.take().is_some() {
            let ends = self.renditions.iter().flatten().filter_map(|rendition| {
                let last = rendition.segments().next_back()?;
                Some(last.begin + last.duration())
            });
            self.elapsed = ends.max().unwrap_or(self.elapsed);
        }
        self.broken = [true; ROLES];
    }

    /// The last whole segment of a rendition, if another one has not come to the end of its own beside it. A player that
    /// begins is not told of it yet: it would begin one rendition a segment later than the other. Nobody waits for a
    /// rendition that is behind by more.
    pub fn unsettled(&self, role: Role) -> Option<Msn> {
        let ends = |rendition: &Rendition| -> Vec<Duration> {
            let complete = rendition.segments().filter(|segment| segment.complete);
            complete.map(|segment| segment.begin + segment.duration()).collect()
        };
        let own = self.rendition(role)?;
        let [.., before, last] = ends(own)[..] else { return None };
        let others = self.renditions.iter().flatten().filter(|other| other.role != role);
        let settled = others.filter_map(|other| ends(other).last().copied()).all(|other| {
            let is_beside = |end: Duration| other.abs_diff(end) <= before.abs_diff(last) / 2;
            !is_beside(before)
        });
        let last = own.segments().rfind(|segment| segment.complete)?;
        (!settled).then_some(last.msn)
    }

    /// Whether players have a whole segment to begin with.
    pub fn has_segment(&self) -> bool {
        let first = self.rendition(Role::Video).or(self.rendition(Role::Audio));
        first.is_some_and(|rendition| rendition.segments().any(|segment| segment.complete))
    }

    fn flush(&mut self) {
        for role in Role::ALL {
            if let Some(pending) = self.pending[index(role)].take() {
                // Its length is not known: as long as those before it, more or less.
                let ticks = pending.codec.clock_rate() / 30;
                self.waiting[index(role)].push_back((pending, ticks));
            }
            while let Some((pending, ticks)) = self.waiting[index(role)].pop_front() {
                self.put(role, pending, ticks);
            }
        }
    }

    /// Begins the timeline with a key frame of the video (or the first frame of audio alone), captured as the clock of
    /// its track says. `now` and the wall clock belong together.
    fn begin(&mut self, track: &TrackView, role: Role, time: TrackTime, now: Instant, wall: Duration) {
        let rate = track.format.map_or(90_000, |format| format.codec().clock_rate());
        let age = track
            .clock
            .time_at(now)
            .map(|current| duration(current.saturating_sub(time), rate));
        let at = age.and_then(|age| now.checked_sub(age)).unwrap_or(now);
        let wall = wall.saturating_sub(now.saturating_duration_since(at));
        let mut times = [None; ROLES];
        times[index(role)] = Some(time);
        self.origin = Some(Origin { at, wall, times });
    }

    /// Takes a frame of a track. Returns whether there is something new for players.
    pub fn push(
        &mut self,
        track: &TrackView,
        role: Role,
        has_video: bool,
        frame: &Frame,
        now: Instant,
        wall: Duration,
    ) -> bool {
        let kind = role.kind();
        if self.origin.is_none() {
            // What is made of the sound comes later than the sound.
            let leads = matches!(role, Role::Video | Role::Audio);
            if has_video && kind == Kind::Audio || !leads {
                return false;
            }
            self.begin(track, role, frame.time, now, wall);
        }
        let Some(origin) = &mut self.origin else { return false };
        let rate = frame.codec.clock_rate();
        let begin = match origin.times[index(role)] {
            Some(begin) => begin,
            None => {
                let Some(begin) = track.clock.time_at(origin.at) else {
                    return false;
                };
                origin.times[index(role)] = Some(begin);
                begin
            }
        };
        // Sound from before the picture is left out.
        let Some(time) = frame.time.checked_sub(begin) else {
            return false;
        };
        let time = time + ticks(self.elapsed, rate);
        let Some(bytes) = sample_bytes(frame.codec, &frame.bytes) else {
            return false;
        };
        if kind == Kind::Video && frame.key_frame {
            self.record_header(track, role, frame, wall);
        }
        if kind == Kind::Audio
            && let Some(header) = track.format.and_then(Header::of_audio)
        {
            self.set_header(role, rate, header, wall);
        }
        let next = PendingFrame {
            codec: frame.codec,
            time,
            key_frame: frame.key_frame,
            bytes,
        };
        let Some(pending) = self.pending[index(role)].replace(next) else {
            return false;
        };
        let lasts = time.saturating_sub(pending.time);
        if lasts == 0 {
            return false;
        }
        let longest = ticks(MAX_FRAME, rate);
        let ticks = u32::try_from(lasts.min(longest)).unwrap_or(u32::MAX);
        match kind {
            Kind::Video => self.put(role, pending, ticks) | self.release(),
            Kind::Audio => {
                self.waiting[index(role)].push_back((pending, ticks));
                self.release()
            }
        }
    }

    /// Sound goes on its way when the picture has passed it, or when that does not come.
    fn release(&mut self) -> bool {
        let mut format_changed = false;
        let picture = self.picture();
        for role in [Role::Audio, Role::Aac] {
            let waiting = &self.waiting[index(role)];
            let newest = waiting.back().map_or(Duration::ZERO, |(pending, _)| pending.begin());
            let until = match picture {
                Some(picture) if newest <= picture + MAX_AHEAD => picture,
                Some(_) | None => Duration::MAX,
            };
            let passed = |(pending, _): &(PendingFrame, u32)| pending.begin() + AUDIO_SLACK < until;
            while self.waiting[index(role)].front().is_some_and(passed) {
                let Some((pending, ticks)) = self.waiting[index(role)].pop_front() else {
                    break;
                };
                format_changed |= self.put(role, pending, ticks);
            }
        }
        format_changed
    }

    /// How far the picture has come; all before it is in its rendition.
    fn picture(&self) -> Option<Duration> {
        self.pending[index(Role::Video)].as_ref().map(PendingFrame::begin)
    }

    fn record_header(&mut self, track: &TrackView, role: Role, frame: &Frame, wall: Duration) {
        let (Some(format), Some(resolution)) = (track.format, track.resolution) else {
            return;
        };
        self.shown[index(role)] = VideoInfo {
            resolution: Some(resolution),
            frame_rate: track.frame_rate,
        };
        if let Some(header) = Header::of_video(format, resolution, &frame.bytes) {
            self.set_header(role, frame.codec.clock_rate(), header, wall);
        }
    }

    fn set_header(&mut self, role: Role, rate: u32, header: Header, wall: Duration) {
        let broken = &mut self.broken[index(role)];
        let rendition = &mut self.renditions[index(role)];
        match rendition {
            // Segments last a second at least: a rendition that begins later has larger numbers.
            None => *rendition = Rendition::new(role, rate, header, wall.as_secs()),
            Some(rendition) if !rendition.has_header(&header) => {
                rendition.set_header(header);
                *broken = true;
            }
            Some(_) => {}
        }
    }

    fn put(&mut self, role: Role, pending: PendingFrame, lasts: u32) -> bool {
        let Some(origin) = self.origin else { return false };
        let begin = pending.begin();
        let wall = origin.wall + begin.saturating_sub(self.elapsed);
        let broken = self.broken[index(role)];
        let beside = self.segment_beside(role, begin);
        let number = self.number_beside(role, begin);
        let goes_on = self.picture().is_some_and(|picture| begin <= picture);
        let kind = role.kind();
        let Some(rendition) = &mut self.renditions[index(role)] else {
            return false;
        };
        let is_first = rendition.segments().len() == 0;
        let cuts = match kind {
            _ if is_first || broken => kind == Kind::Audio || pending.key_frame,
            Kind::Video => pending.key_frame && rendition.may_cut() || rendition.is_overdue(),
            Kind::Audio => match beside {
                NextCut::Picture(next) => {
                    next.is_some_and(|next| begin + AUDIO_SLACK >= next) || rendition.is_overdue()
                }
                NextCut::Nothing => rendition.may_cut(),
            },
        };
        if cuts {
            if is_first && let Some(number) = number {
                let unused = self.unused[index(role)];
                if number + 1 == unused && goes_on {
                    // A part of it was given to others before; the next one is new to all, and comes soon.
                    return false;
                }
                rendition.number_from(number.max(unused));
            }
            rendition.cut(begin, wall, broken);
            self.broken[index(role)] = false;
        } else if broken {
            return false;
        }
        rendition.push(TimedFrame {
            time: pending.time,
            ticks: lasts,
            key_frame: pending.key_frame,
            bytes: pending.bytes,
        }) || cuts
    }

    /// Sound is cut where the picture was, so that the segments of both lie beside each other: plain players begin so many
    /// segments before the end of each. It may be behind the picture by more than a segment, or go on without it.
    fn segment_beside(&self, role: Role, begin: Duration) -> NextCut {
        let (Some(video), Some(own)) = (self.rendition(Role::Video), self.rendition(role)) else {
            return NextCut::Nothing;
        };
        if self.picture().is_some_and(|picture| begin > picture) {
            return NextCut::Nothing;
        }
        let begun = own.segments().next_back().map_or(Duration::ZERO, |last| last.begin);
        let mut begins = video.segments().map(|segment| segment.begin);
        NextCut::Picture(begins.find(|begin| *begin > begun + AUDIO_SLACK))
    }

    /// Number of the segment of the picture that is beside a segment of another rendition that begins here. Nothing says
    /// that equal numbers mean equal times (rfc8216bis §4.4.3.2), but players take it so, ffmpeg among them. They part where the
    /// sound goes on without the picture, for numbers cannot be left out.
    fn number_beside(&self, role: Role, begin: Duration) -> Option<Msn> {
        if role == Role::Video {
            return None;
        }
        let video = self.rendition(Role::Video)?;
        let pending = self.pending[index(Role::Video)].as_ref();
        let next = pending.filter(|pending| pending.key_frame && video.may_cut());
        let known = video.segments().map(|segment| (segment.begin, segment.msn));
        let begun = known.chain(next.map(|pending| (pending.begin(), video.next_msn())));
        let slack = match role.kind() {
            Kind::Audio => AUDIO_SLACK,
            Kind::Video => LAYER_SLACK,
        };
        begun
            .take_while(|(beside, _)| *beside <= begin + slack)
            .last()
            .map(|(_, msn)| msn)
    }

    /// Whether players can be given a format as it is.
    pub fn expects(format: Format) -> bool {
        matches!(
            format.codec(),
            Codec::H264 | Codec::H265 | Codec::Vp9 | Codec::Av1 | Codec::Opus | Codec::Aac
        )
    }
}

/// What stands beside the sound.
#[derive(Clone, Copy, Debug)]
enum NextCut {
    /// A picture, whose next segment after the current one of the sound begins here, if it has begun.
    Picture(Option<Duration>),
    Nothing,
}

/// Frames of audio are this long at most: a segment of it may begin so much before that of the video.
const AUDIO_SLACK: Duration = Duration::from_millis(30);

/// Layers answer one request for a key frame within this time.
const LAYER_SLACK: Duration = Duration::from_millis(150);

fn index(role: Role) -> usize {
    match role {
        Role::Video => 0,
        Role::Second => 1,
        Role::Third => 2,
        Role::Audio => 3,
        Role::Aac => 4,
    }
}
