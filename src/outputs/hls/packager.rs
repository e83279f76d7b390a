//! All renditions of a stream on one timeline. The input is frames of the depacketizer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::cmaf::{Header, sample_bytes};
use super::rendition::{Msn, ROLES, Rendition, Role, TimedFrame};
use millstream_core::hub::track::TrackView;
use millstream_core::media::clock::{duration, ticks};
use millstream_core::media::depacketizer::Frame;
use millstream_core::media::packet::TrackTime;
use millstream_core::media::{Codec, Format, Kind};

/// Packages the renditions of one stream.
#[derive(Debug, Default)]
pub struct Packager {
    renditions: [Option<Rendition>; ROLES],
    /// Start of the current timeline; reset with each source.
    origin: Option<Origin>,
    /// Total duration of the previous timelines.
    elapsed: Duration,
    pending: [Option<PendingFrame>; ROLES],
    /// Audio frames with their durations that wait for the video: its next segment boundary is not known yet.
    queued: [VecDeque<(PendingFrame, u32)>; ROLES],
    /// Lowest segment numbers that removed renditions have not used.
    unused: [Msn; ROLES],
    /// The next segment starts a discontinuity.
    discontinuity: [bool; ROLES],
    video_info: [VideoInfo; ROLES],
}

/// Resolution and frame rate of a video rendition, for playlists.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VideoInfo {
    /// Width and height in pixels.
    pub resolution: Option<(u16, u16)>,
    /// Frames per second.
    pub frame_rate: f64,
}

#[derive(Clone, Copy, Debug)]
struct Origin {
    /// Capture time of the first frame.
    at: Instant,
    /// Wall clock at that time, since 1970.
    wall: Duration,
    /// Track timestamps at that time, by rendition; `None` until known.
    times: [Option<TrackTime>; ROLES],
}

/// A frame whose duration is known once the next one arrives.
#[derive(Clone, Debug)]
struct PendingFrame {
    codec: Codec,
    /// Timestamp on the timeline, in ticks of the codec's clock rate.
    time: u64,
    key_frame: bool,
    bytes: bytes::Bytes,
}

/// Audio waits for video that is at most this far behind.
const MAX_AUDIO_AHEAD: Duration = Duration::from_secs(2);

/// Maximum duration of a frame; a longer one is followed by a gap, which players skip.
const MAX_FRAME: Duration = Duration::from_secs(5);

impl PendingFrame {
    fn begin(&self) -> Duration {
        duration(self.time, self.codec.clock_rate())
    }
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Instant,
    /// Time since 1970.
    pub wall: Duration,
}

impl Packager {
    /// Returns the rendition of a role, if it exists.
    pub fn rendition(&self, role: Role) -> Option<&Rendition> {
        self.renditions[index(role)].as_ref()
    }

    /// Returns resolution and frame rate of a video rendition.
    pub fn video_info(&self, role: Role) -> VideoInfo {
        self.video_info[index(role)]
    }

    /// Removes a rendition that is no longer needed.
    pub fn remove(&mut self, role: Role) {
        let removed = self.renditions[index(role)].take();
        if let Some(removed) = removed.filter(|removed| removed.segments().len() > 0) {
            self.unused[index(role)] = self.unused[index(role)].max(removed.next_msn());
        }
        self.pending[index(role)] = None;
        self.queued[index(role)].clear();
        if let Some(origin) = &mut self.origin {
            origin.times[index(role)] = None;
        }
    }

    /// Starts a new timeline, after a change of the source or its tracks.
    pub fn restart(&mut self) {
        self.flush();
        if self.origin.take().is_some() {
            let ends = self.renditions.iter().flatten().filter_map(|rendition| {
                let last = rendition.segments().next_back()?;
                Some(last.begin + last.duration())
            });
            self.elapsed = ends.max().unwrap_or(self.elapsed);
        }
        self.discontinuity = [true; ROLES];
    }

    /// Returns the last complete segment of a rendition if another rendition has not completed the corresponding
    /// segment yet. It is hidden from players that start, because they would start the renditions one segment apart. A
    /// rendition that is behind by more is not waited for.
    pub fn unsettled(&self, role: Role) -> Option<Msn> {
        let ends = |rendition: &Rendition| -> Vec<Duration> {
            let complete = rendition.segments().filter(|segment| segment.complete);
            complete.map(|segment| segment.begin + segment.duration()).collect()
        };
        let own = self.rendition(role)?;
        let [.., before, last] = ends(own)[..] else { return None };
        let others = self.renditions.iter().flatten().filter(|other| other.role != role);
        let settled = others.filter_map(|other| ends(other).last().copied()).all(|other| {
            let ends_at = |end: Duration| other.abs_diff(end) <= before.abs_diff(last) / 2;
            !ends_at(before)
        });
        let last = own.segments().rfind(|segment| segment.complete)?;
        (!settled).then_some(last.msn)
    }

    /// Whether a complete segment is available, so that players can start.
    pub fn has_segment(&self) -> bool {
        let first = self.rendition(Role::Video).or(self.rendition(Role::Audio));
        first.is_some_and(|rendition| rendition.segments().any(|segment| segment.complete))
    }

    fn flush(&mut self) {
        for role in Role::ALL {
            if let Some(pending) = self.pending[index(role)].take() {
                // The duration of the last frame is unknown; assume 1/30 s.
                let ticks = pending.codec.clock_rate() / 30;
                self.queued[index(role)].push_back((pending, ticks));
            }
            while let Some((pending, ticks)) = self.queued[index(role)].pop_front() {
                self.append(role, pending, ticks);
            }
        }
    }

    /// Starts the timeline with a key frame of the video, or with the first audio frame if there is no video. Its
    /// capture time comes from the clock of its track.
    fn begin(&mut self, track: &TrackView, role: Role, time: TrackTime, moment: Moment) {
        let Moment { now, wall } = moment;
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

    /// Packages a frame of a track. Returns whether new parts or segments are available.
    pub fn push(&mut self, track: &TrackView, role: Role, has_video: bool, frame: &Frame, moment: Moment) -> bool {
        let kind = role.kind();
        if self.origin.is_none() {
            // Transcoded audio arrives later than the original: it must not start the timeline.
            let leads = matches!(role, Role::Video | Role::Audio);
            if has_video && kind == Kind::Audio || !leads {
                return false;
            }
            self.begin(track, role, frame.time, moment);
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
        // Drop audio from before the first video frame.
        let Some(time) = frame.time.checked_sub(begin) else {
            return false;
        };
        let time = time + ticks(self.elapsed, rate);
        let Some(bytes) = sample_bytes(frame.codec, &frame.bytes) else {
            return false;
        };
        if kind == Kind::Video && frame.key_frame {
            self.record_header(track, role, frame, moment.wall);
        }
        if kind == Kind::Audio
            && let Some(header) = track.format.and_then(Header::of_audio)
        {
            self.set_header(role, rate, header, moment.wall);
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
        let frame_ticks = time.saturating_sub(pending.time);
        if frame_ticks == 0 {
            return false;
        }
        let longest = ticks(MAX_FRAME, rate);
        let ticks = u32::try_from(frame_ticks.min(longest)).unwrap_or(u32::MAX);
        match kind {
            Kind::Video => self.append(role, pending, ticks) | self.release(),
            Kind::Audio => {
                self.queued[index(role)].push_back((pending, ticks));
                self.release()
            }
        }
    }

    /// Packages queued audio up to the current video position, or all of it if the video has stalled.
    fn release(&mut self) -> bool {
        let mut updated = false;
        let video = self.video_position();
        for role in [Role::Audio, Role::Aac] {
            let queued = &self.queued[index(role)];
            let newest = queued.back().map_or(Duration::ZERO, |(pending, _)| pending.begin());
            let until = match video {
                Some(video) if newest <= video + MAX_AUDIO_AHEAD => video,
                Some(_) | None => Duration::MAX,
            };
            let passed = |(pending, _): &(PendingFrame, u32)| pending.begin() + AUDIO_SLACK < until;
            while self.queued[index(role)].front().is_some_and(passed) {
                let Some((pending, ticks)) = self.queued[index(role)].pop_front() else {
                    break;
                };
                updated |= self.append(role, pending, ticks);
            }
        }
        updated
    }

    /// Position of the pending video frame on the timeline; all earlier ones are in the rendition.
    fn video_position(&self) -> Option<Duration> {
        self.pending[index(Role::Video)].as_ref().map(PendingFrame::begin)
    }

    fn record_header(&mut self, track: &TrackView, role: Role, frame: &Frame, wall: Duration) {
        let (Some(format), Some(resolution)) = (track.format, track.resolution) else {
            return;
        };
        self.video_info[index(role)] = VideoInfo {
            resolution: Some(resolution),
            frame_rate: track.frame_rate,
        };
        if let Some(header) = Header::of_video(format, resolution, &frame.bytes) {
            self.set_header(role, frame.codec.clock_rate(), header, wall);
        }
    }

    fn set_header(&mut self, role: Role, rate: u32, header: Header, wall: Duration) {
        let discontinuity = &mut self.discontinuity[index(role)];
        let rendition = &mut self.renditions[index(role)];
        match rendition {
            // Segments last at least one second, so a rendition that starts later gets higher numbers from the wall
            // clock.
            None => *rendition = Rendition::new(role, rate, header, wall.as_secs()),
            Some(rendition) if !rendition.has_header(&header) => {
                rendition.set_header(header);
                *discontinuity = true;
            }
            Some(_) => {}
        }
    }

    fn append(&mut self, role: Role, pending: PendingFrame, frame_ticks: u32) -> bool {
        let Some(origin) = self.origin else { return false };
        let begin = pending.begin();
        let wall = origin.wall + begin.saturating_sub(self.elapsed);
        let discontinuity = self.discontinuity[index(role)];
        let next_cut = self.next_cut(role, begin);
        let number = self.aligned_number(role, begin);
        let video_is_ahead = self.video_position().is_some_and(|video| begin <= video);
        let kind = role.kind();
        let Some(rendition) = &mut self.renditions[index(role)] else {
            return false;
        };
        let is_first = rendition.segments().len() == 0;
        let cuts = match kind {
            _ if is_first || discontinuity => kind == Kind::Audio || pending.key_frame,
            Kind::Video => pending.key_frame && rendition.may_cut() || rendition.is_overdue(),
            Kind::Audio => match next_cut {
                NextCut::AtVideo(next) => {
                    next.is_some_and(|next| begin + AUDIO_SLACK >= next) || rendition.is_overdue()
                }
                NextCut::Free => rendition.may_cut(),
            },
        };
        if cuts {
            if is_first && let Some(number) = number {
                let unused = self.unused[index(role)];
                if number + 1 == unused && video_is_ahead {
                    // A part of this segment was served before the rendition was removed. The next number is unused,
                    // and comes soon.
                    return false;
                }
                rendition.set_first_msn(number.max(unused));
            }
            rendition.cut(begin, wall, discontinuity);
            self.discontinuity[index(role)] = false;
        } else if discontinuity {
            return false;
        }
        rendition.push(TimedFrame {
            time: pending.time,
            ticks: frame_ticks,
            key_frame: pending.key_frame,
            bytes: pending.bytes,
        }) || cuts
    }

    /// Returns where to cut audio: at the segment boundaries of the video, so that the segments of both are aligned.
    /// Plain players start a fixed number of segments before the end of each rendition. Audio may be behind the video
    /// by more than a segment, or continue without it.
    fn next_cut(&self, role: Role, begin: Duration) -> NextCut {
        let (Some(video), Some(own)) = (self.rendition(Role::Video), self.rendition(role)) else {
            return NextCut::Free;
        };
        if self.video_position().is_some_and(|video| begin > video) {
            return NextCut::Free;
        }
        let begun = own.segments().next_back().map_or(Duration::ZERO, |last| last.begin);
        let mut begins = video.segments().map(|segment| segment.begin);
        NextCut::AtVideo(begins.find(|begin| *begin > begun + AUDIO_SLACK))
    }

    /// Returns the number of the video segment that corresponds to a segment of another rendition starting at `begin`.
    /// Equal numbers need not mean equal times (rfc8216bis §4.4.3.2), but some players, e.g. ffmpeg, assume it. The
    /// numbers diverge when audio continues without video, because numbers must not be skipped.
    fn aligned_number(&self, role: Role, begin: Duration) -> Option<Msn> {
        if role == Role::Video {
            return None;
        }
        let video = self.rendition(Role::Video)?;
        let pending = self.pending[index(Role::Video)].as_ref();
        let next = pending.filter(|pending| pending.key_frame && video.may_cut());
        let numbered = video.segments().map(|segment| (segment.begin, segment.msn));
        let begun = numbered.chain(next.map(|pending| (pending.begin(), video.next_msn())));
        let slack = match role.kind() {
            Kind::Audio => AUDIO_SLACK,
            Kind::Video => LAYER_SLACK,
        };
        begun
            .take_while(|(video_begin, _)| *video_begin <= begin + slack)
            .last()
            .map(|(_, msn)| msn)
    }

    /// Whether HLS players support a format without transcoding.
    pub fn supports(format: Format) -> bool {
        matches!(
            format.codec(),
            Codec::H264 | Codec::H265 | Codec::Vp9 | Codec::Av1 | Codec::Opus | Codec::Aac
        )
    }
}

/// Where the next audio segment starts.
#[derive(Clone, Copy, Debug)]
enum NextCut {
    /// With the video segment that follows the current audio segment; `None` if that has not started yet.
    AtVideo(Option<Duration>),
    Free,
}

/// Maximum duration of an audio frame: an audio segment may start this much before the video segment.
const AUDIO_SLACK: Duration = Duration::from_millis(30);

/// Layers respond to the same key frame request within this time.
const LAYER_SLACK: Duration = Duration::from_millis(150);

fn index(role: Role) -> usize {
    match role {
        Role::Video => 0,
        Role::Layer2 => 1,
        Role::Layer3 => 2,
        Role::Audio => 3,
        Role::Aac => 4,
    }
}
