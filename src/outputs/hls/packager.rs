//! Both tracks of a stream on one timeline: frames of the depacketizer go in, renditions come out.

use std::time::{Duration, Instant};

use super::cmaf::{Header, sample_bytes};
use super::rendition::{ROLES, Rendition, Role, TimedFrame};
use crate::hub::stream::StreamState;
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
    held: [Option<Held>; ROLES],
    /// The next segments begin a discontinuity.
    broken: [bool; ROLES],
    shown: [Shown; ROLES],
}

/// What a picture looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shown {
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
struct Held {
    codec: Codec,
    /// On the timeline.
    time: u64,
    key_frame: bool,
    bytes: bytes::Bytes,
}

/// A frame that lasts longer than this is followed by a gap, which players jump over.
const MAX_FRAME: Duration = Duration::from_secs(5);

impl Packager {
    /// What there is of a role.
    pub fn rendition(&self, role: Role) -> Option<&Rendition> {
        self.renditions[index(role)].as_ref()
    }

    /// What the picture of a role looks like.
    pub fn shown(&self, role: Role) -> Shown {
        self.shown[index(role)]
    }

    /// Nobody wants a rendition any more.
    pub fn forget(&mut self, role: Role) {
        self.renditions[index(role)] = None;
        self.held[index(role)] = None;
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

    /// Whether players have a whole segment to begin with.
    pub fn has_segment(&self) -> bool {
        let first = self.rendition(Role::Video).or(self.rendition(Role::Audio));
        first.is_some_and(|rendition| rendition.segments().any(|segment| segment.complete))
    }

    fn flush(&mut self) {
        for role in Role::ALL {
            if let Some(held) = self.held[index(role)].take() {
                // Its length is not known: as long as those before it, more or less.
                let ticks = held.codec.clock_rate() / 30;
                self.put(role, held, ticks);
            }
        }
    }

    /// Begins the timeline with a key frame of the video (or the first frame of audio alone), captured as the clock of
    /// its track says. `now` and the wall clock belong together.
    fn begin(&mut self, state: &mut StreamState, role: Role, time: TrackTime, now: Instant, wall: Duration) {
        let captured = |track: &crate::hub::track::Track, time: TrackTime| {
            let rate = track.format.map_or(90_000, |format| format.codec().clock_rate());
            let current = track.clock.time_at(now)?;
            let age = duration(current.saturating_sub(time), rate);
            now.checked_sub(age)
        };
        let at = captured(state.track(role.kind()), time).unwrap_or(now);
        let wall = wall.saturating_sub(now.saturating_duration_since(at));
        let mut times = [None; ROLES];
        times[index(role)] = Some(time);
        self.origin = Some(Origin { at, wall, times });
    }

    /// Takes a frame. Returns whether there is something new for players.
    pub fn push(
        &mut self,
        state: &mut StreamState,
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
            self.begin(state, role, frame.time, now, wall);
        }
        let Some(origin) = &mut self.origin else { return false };
        let rate = frame.codec.clock_rate();
        let begin = match origin.times[index(role)] {
            Some(begin) => begin,
            None => {
                let Some(begin) = state.track(kind).clock.time_at(origin.at) else {
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
            self.note_header(state, role, frame, wall);
        }
        if kind == Kind::Audio
            && let Some(header) = state.format(Kind::Audio).and_then(Header::of_audio)
        {
            self.set_header(role, rate, header, wall);
        }
        let next = Held {
            codec: frame.codec,
            time,
            key_frame: frame.key_frame,
            bytes,
        };
        let Some(held) = self.held[index(role)].replace(next) else {
            return false;
        };
        let lasts = time.saturating_sub(held.time);
        if lasts == 0 {
            return false;
        }
        let longest = ticks(MAX_FRAME, rate);
        let ticks = u32::try_from(lasts.min(longest)).unwrap_or(u32::MAX);
        self.put(role, held, ticks)
    }

    fn note_header(&mut self, state: &mut StreamState, role: Role, frame: &Frame, wall: Duration) {
        let (Some(format), Some(resolution)) = (state.format(Kind::Video), state.video.resolution) else {
            return;
        };
        self.shown[index(role)] = Shown {
            resolution: Some(resolution),
            frame_rate: state.video.meter.rate_or_last().frames,
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

    fn put(&mut self, role: Role, held: Held, lasts: u32) -> bool {
        let Some(origin) = self.origin else { return false };
        let rate = held.codec.clock_rate();
        let begin = duration(held.time, rate);
        let wall = origin.wall + begin.saturating_sub(self.elapsed);
        let broken = self.broken[index(role)];
        let last_video = self.rendition(Role::Video).and_then(|video| {
            let last = video.segments().next_back()?;
            Some((video.segments().len(), last.begin))
        });
        let kind = role.kind();
        let Some(rendition) = &mut self.renditions[index(role)] else {
            return false;
        };
        let is_first = rendition.segments().len() == 0;
        let cuts = match (kind, last_video) {
            _ if is_first || broken => kind == Kind::Audio || held.key_frame,
            (Kind::Video, _) => held.key_frame && rendition.may_cut() || rendition.is_overdue(),
            // Sound is cut where the picture was, so that the segments of both lie beside each other.
            (Kind::Audio, Some((_, video))) => {
                let own = rendition
                    .segments()
                    .next_back()
                    .map_or(Duration::ZERO, |segment| segment.begin);
                video > own + AUDIO_SLACK && begin + AUDIO_SLACK >= video || rendition.is_overdue()
            }
            (Kind::Audio, None) => rendition.may_cut(),
        };
        if cuts {
            rendition.cut(begin, wall, broken);
            self.broken[index(role)] = false;
        } else if broken {
            return false;
        }
        rendition.push(TimedFrame {
            time: held.time,
            ticks: lasts,
            key_frame: held.key_frame,
            bytes: held.bytes,
        }) || cuts
    }

    /// Whether players can be given a format as it is.
    pub fn expects(format: Format) -> bool {
        matches!(
            format.codec(),
            Codec::H264 | Codec::H265 | Codec::Vp9 | Codec::Av1 | Codec::Opus | Codec::Aac
        )
    }
}

/// Frames of audio are this long at most: a segment of it may begin so much before that of the video.
const AUDIO_SLACK: Duration = Duration::from_millis(30);

fn index(role: Role) -> usize {
    match role {
        Role::Video => 0,
        Role::Second => 1,
        Role::Third => 2,
        Role::Audio => 3,
        Role::Aac => 4,
    }
}
