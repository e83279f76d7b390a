//! Both tracks of a stream on one timeline: frames of the depacketizer go in, renditions come out.

use std::time::{Duration, Instant};

use super::cmaf::{Header, sample_bytes};
use super::rendition::{Rendition, TimedFrame};
use crate::hub::stream::StreamState;
use crate::media::clock::{duration, ticks};
use crate::media::depacketizer::Frame;
use crate::media::packet::TrackTime;
use crate::media::{Codec, Format, Kind};

/// Makes the renditions of one stream.
#[derive(Debug, Default)]
pub struct Packager {
    pub video: Option<Rendition>,
    pub audio: Option<Rendition>,
    /// Where the timeline began; anew with each source.
    origin: Option<Origin>,
    /// Time that the timelines before this one took.
    elapsed: Duration,
    held: [Option<Held>; 2],
    /// The next segments begin a discontinuity.
    broken: [bool; 2],
    pub resolution: Option<(u16, u16)>,
    pub frame_rate: f64,
}

#[derive(Clone, Copy, Debug)]
struct Origin {
    /// When it was captured.
    at: Instant,
    /// Wall clock then, since 1970.
    wall: Duration,
    /// Times of the tracks then; `None` before it is known.
    times: [Option<TrackTime>; 2],
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
    /// Another source, or another kind of the same: what comes begins a timeline of its own.
    pub fn restart(&mut self) {
        self.flush();
        if self.origin.take().is_some() {
            let ends = [&self.video, &self.audio]
                .into_iter()
                .flatten()
                .filter_map(|rendition| {
                    let last = rendition.segments().next_back()?;
                    Some(last.begin + last.duration())
                });
            self.elapsed = ends.max().unwrap_or(self.elapsed);
        }
        self.broken = [true; 2];
    }

    /// Whether players have a whole segment to begin with.
    pub fn has_segment(&self) -> bool {
        let first = self.video.as_ref().or(self.audio.as_ref());
        first.is_some_and(|rendition| rendition.segments().any(|segment| segment.complete))
    }

    fn flush(&mut self) {
        for kind in [Kind::Video, Kind::Audio] {
            if let Some(held) = self.held[index(kind)].take() {
                // Its length is not known: as long as those before it, more or less.
                let ticks = held.codec.clock_rate() / 30;
                self.put(kind, held, ticks);
            }
        }
    }

    /// Begins the timeline with a key frame of the video (or the first frame of audio alone), captured as the clock of
    /// its track says. `now` and the wall clock belong together.
    fn begin(&mut self, state: &mut StreamState, kind: Kind, time: TrackTime, now: Instant, wall: Duration) {
        let captured = |track: &crate::hub::track::Track, time: TrackTime| {
            let rate = track.format.map_or(90_000, |format| format.codec().clock_rate());
            let current = track.clock.time_at(now)?;
            let age = duration(current.saturating_sub(time), rate);
            now.checked_sub(age)
        };
        let at = captured(state.track(kind), time).unwrap_or(now);
        let wall = wall.saturating_sub(now.saturating_duration_since(at));
        let mut times = [None; 2];
        times[index(kind)] = Some(time);
        self.origin = Some(Origin { at, wall, times });
    }

    /// Takes a frame. Returns whether there is something new for players.
    pub fn push(
        &mut self,
        state: &mut StreamState,
        has_video: bool,
        frame: &Frame,
        now: Instant,
        wall: Duration,
    ) -> bool {
        let kind = frame.codec.kind();
        if self.origin.is_none() {
            if has_video && kind == Kind::Audio {
                return false;
            }
            self.begin(state, kind, frame.time, now, wall);
        }
        let Some(origin) = &mut self.origin else { return false };
        let rate = frame.codec.clock_rate();
        let begin = match origin.times[index(kind)] {
            Some(begin) => begin,
            None => {
                let Some(begin) = state.track(kind).clock.time_at(origin.at) else {
                    return false;
                };
                origin.times[index(kind)] = Some(begin);
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
            self.note_header(state, frame);
        }
        if kind == Kind::Audio
            && let Some(header) = state.format(Kind::Audio).and_then(Header::of_audio)
        {
            self.set_header(Kind::Audio, rate, header);
        }
        let next = Held {
            codec: frame.codec,
            time,
            key_frame: frame.key_frame,
            bytes,
        };
        let Some(held) = self.held[index(kind)].replace(next) else {
            return false;
        };
        let lasts = time.saturating_sub(held.time);
        if lasts == 0 {
            return false;
        }
        let longest = ticks(MAX_FRAME, rate);
        let ticks = u32::try_from(lasts.min(longest)).unwrap_or(u32::MAX);
        self.put(kind, held, ticks)
    }

    fn note_header(&mut self, state: &mut StreamState, frame: &Frame) {
        let (Some(format), Some(resolution)) = (state.format(Kind::Video), state.video.resolution) else {
            return;
        };
        self.resolution = Some(resolution);
        self.frame_rate = state.video.meter.rate_or_last().frames;
        if let Some(header) = Header::of_video(format, resolution, &frame.bytes) {
            self.set_header(Kind::Video, frame.codec.clock_rate(), header);
        }
    }

    fn set_header(&mut self, kind: Kind, rate: u32, header: Header) {
        let broken = &mut self.broken[index(kind)];
        let rendition = match kind {
            Kind::Video => &mut self.video,
            Kind::Audio => &mut self.audio,
        };
        match rendition {
            None => *rendition = Rendition::new(kind, rate, header),
            Some(rendition) if !rendition.has_header(&header) => {
                rendition.set_header(header);
                *broken = true;
            }
            Some(_) => {}
        }
    }

    fn put(&mut self, kind: Kind, held: Held, lasts: u32) -> bool {
        let Some(origin) = self.origin else { return false };
        let rate = held.codec.clock_rate();
        let begin = duration(held.time, rate);
        let wall = origin.wall + begin.saturating_sub(self.elapsed);
        let broken = self.broken[index(kind)];
        let last_video = self.video.as_ref().and_then(|video| {
            let last = video.segments().next_back()?;
            Some((video.segments().len(), last.begin))
        });
        let rendition = match kind {
            Kind::Video => &mut self.video,
            Kind::Audio => &mut self.audio,
        };
        let Some(rendition) = rendition else { return false };
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
            self.broken[index(kind)] = false;
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
            Codec::H264 | Codec::H265 | Codec::Vp9 | Codec::Opus | Codec::Aac
        )
    }
}

/// Frames of audio are this long at most: a segment of it may begin so much before that of the video.
const AUDIO_SLACK: Duration = Duration::from_millis(30);

fn index(kind: Kind) -> usize {
    match kind {
        Kind::Video => 0,
        Kind::Audio => 1,
    }
}
