//! All renditions of a stream on one timeline. The input is frames of the depacketizer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use self::pending_frame::{PendingFrame, fill_opus_pause};
use super::cmaf::{CodecConfig, frame_to_mp4_sample};
use super::paused_video::PausedVideo;
use super::rendition::{Msn, RENDITION_ROLE_COUNT, Rendition, RenditionRole};
use millstream_core::hub::track::TrackFormatAndClock;
use millstream_core::media::clock::{duration_to_ticks, ticks_to_duration};
use millstream_core::media::depacketizer::Frame;
use millstream_core::media::packet::TrackTime;
use millstream_core::media::{Codec, CodecFormat, MediaKind};

mod pending_frame;
mod segment_alignment;

/// Packages the renditions of one stream.
#[derive(Debug, Default)]
pub struct Packager {
    renditions: [Option<Rendition>; RENDITION_ROLE_COUNT],
    /// Start of the current timeline; reset with each source.
    timeline_origin: Option<TimelineOrigin>,
    /// Total duration of the previous timelines.
    timeline_offset: Duration,
    pending_frames: [Option<PendingFrame>; RENDITION_ROLE_COUNT],
    /// Audio frames with their durations that wait for the video: its next segment boundary is not known yet.
    queued_audio: [VecDeque<(PendingFrame, u32)>; RENDITION_ROLE_COUNT],
    /// Lowest segment numbers that removed renditions have not used.
    first_unused_msn: [Msn; RENDITION_ROLE_COUNT],
    /// The next segment starts a discontinuity.
    needs_discontinuity: [bool; RENDITION_ROLE_COUNT],
    video_info: [ResolutionAndFrameRate; RENDITION_ROLE_COUNT],
    /// Interval of the key frames when the video rendition began, if it was known.
    key_frame_interval: Option<Duration>,
    paused_video: PausedVideo,
}

/// Resolution and frame rate of a video rendition, for playlists.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ResolutionAndFrameRate {
    /// Width and height in pixels.
    pub resolution: Option<(u16, u16)>,
    /// Frames per second.
    pub frame_rate: f64,
}

#[derive(Clone, Copy, Debug)]
struct TimelineOrigin {
    /// Capture time of the first frame.
    captured_at: Instant,
    /// Wall clock at that time, since 1970.
    wall_clock_time: Duration,
    /// Track timestamps at that time, by rendition; `None` until known.
    track_times: [Option<TrackTime>; RENDITION_ROLE_COUNT],
}

/// Audio waits for video that is at most this far behind.
const MAX_VIDEO_LAG_TO_HOLD_AUDIO: Duration = Duration::from_secs(2);

/// Maximum duration of a frame; a longer one is followed by a gap, which players skip.
const MAX_FRAME_DURATION: Duration = Duration::from_secs(5);

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicAndWallTime {
    pub monotonic_time: Instant,
    /// Time since 1970.
    pub wall_clock_time: Duration,
}

impl Packager {
    /// Returns the rendition of a role, if it exists.
    pub fn rendition(&self, role: RenditionRole) -> Option<&Rendition> {
        self.renditions[role.index()].as_ref()
    }

    /// Returns resolution and frame rate of a video rendition.
    pub fn resolution_and_frame_rate(&self, role: RenditionRole) -> ResolutionAndFrameRate {
        self.video_info[role.index()]
    }

    /// Removes a rendition that is no longer needed.
    pub fn remove_rendition(&mut self, role: RenditionRole) {
        let removed = self.renditions[role.index()].take();
        if let Some(removed) = removed.filter(|removed| removed.segments().len() > 0) {
            self.first_unused_msn[role.index()] = self.first_unused_msn[role.index()].max(removed.next_msn());
        }
        self.pending_frames[role.index()] = None;
        self.queued_audio[role.index()].clear();
        self.paused_video.reset_layer(role);
        if let Some(origin) = &mut self.timeline_origin {
            origin.track_times[role.index()] = None;
        }
    }

    /// Starts a new timeline, after a change of the source or its tracks.
    pub fn restart_timeline(&mut self) {
        self.flush_pending_frames();
        self.paused_video = PausedVideo::default();
        if self.timeline_origin.take().is_some() {
            let ends = self.renditions.iter().flatten().filter_map(|rendition| {
                let last = rendition.segments().next_back()?;
                Some(last.start_time + last.duration())
            });
            self.timeline_offset = ends.max().unwrap_or(self.timeline_offset);
        }
        self.needs_discontinuity = [true; RENDITION_ROLE_COUNT];
    }

    /// Whether a complete segment is available, so that players can start.
    pub fn has_complete_segment(&self) -> bool {
        let first = self
            .rendition(RenditionRole::Video)
            .or(self.rendition(RenditionRole::Audio));
        first.is_some_and(|rendition| rendition.segments().any(|segment| segment.is_complete))
    }

    fn flush_pending_frames(&mut self) {
        for role in RenditionRole::ALL_ROLES {
            if let Some(pending) = self.pending_frames[role.index()].take() {
                // The duration of the last frame is unknown; assume 1/30 s.
                let ticks = pending.codec.clock_rate() / 30;
                self.queued_audio[role.index()].push_back((pending, ticks));
            }
            while let Some((pending, ticks)) = self.queued_audio[role.index()].pop_front() {
                self.append_to_rendition(role, pending, ticks);
            }
        }
    }

    /// Starts the timeline with a key frame of the video, or with the first audio frame if there is no video. Its
    /// capture time comes from the clock of its track.
    fn begin_timeline(
        &mut self,
        track: &TrackFormatAndClock,
        role: RenditionRole,
        time: TrackTime,
        moment: MonotonicAndWallTime,
    ) {
        let MonotonicAndWallTime {
            monotonic_time: now,
            wall_clock_time: wall,
        } = moment;
        let rate = track.format.map_or(90_000, |format| format.codec().clock_rate());
        let age = track
            .clock
            .track_time_for_capture_at(now)
            .map(|current| ticks_to_duration(current.saturating_sub(time), rate));
        let at = age.and_then(|age| now.checked_sub(age)).unwrap_or(now);
        let wall = wall.saturating_sub(now.saturating_duration_since(at));
        let mut times = [None; RENDITION_ROLE_COUNT];
        times[role.index()] = Some(time);
        self.timeline_origin = Some(TimelineOrigin {
            captured_at: at,
            wall_clock_time: wall,
            track_times: times,
        });
    }

    /// Packages a frame of a track. Returns whether new parts or segments are available.
    pub fn push_frame(
        &mut self,
        track: &TrackFormatAndClock,
        role: RenditionRole,
        has_video: bool,
        frame: &Frame,
        moment: MonotonicAndWallTime,
    ) -> bool {
        let kind = role.kind();
        if self.timeline_origin.is_none() {
            // Transcoded audio arrives later than the original: it must not start the timeline.
            let leads = matches!(role, RenditionRole::Video | RenditionRole::Audio);
            if has_video && kind == MediaKind::Audio || !leads {
                return false;
            }
            self.begin_timeline(track, role, frame.time, moment);
        }
        let Some(origin) = &mut self.timeline_origin else {
            return false;
        };
        let rate = frame.codec.clock_rate();
        let begin = match origin.track_times[role.index()] {
            Some(begin) => begin,
            None => {
                let Some(begin) = track.clock.track_time_for_capture_at(origin.captured_at) else {
                    return false;
                };
                origin.track_times[role.index()] = Some(begin);
                begin
            }
        };
        // Drop audio from before the first video frame.
        let Some(time) = frame.time.checked_sub(begin) else {
            return false;
        };
        let time = time + duration_to_ticks(self.timeline_offset, rate);
        let time = time.max(self.paused_video.repeated_until_ticks(role));
        let Some(bytes) = frame_to_mp4_sample(frame.codec, &frame.bytes) else {
            return false;
        };
        if kind == MediaKind::Video {
            self.fill_video_pause_and_record_frame(role, frame, ticks_to_duration(time, rate));
        }
        if kind == MediaKind::Video && frame.is_key_frame {
            self.set_video_info_and_codec_config(track, role, frame, moment.wall_clock_time);
        }
        if kind == MediaKind::Audio
            && let Some(header) = track.format.and_then(CodecConfig::for_audio)
        {
            self.create_rendition_or_set_codec_config(role, rate, header, moment.wall_clock_time);
        }
        let next = PendingFrame {
            codec: frame.codec,
            start_ticks: time,
            key_frame: frame.is_key_frame,
            bytes,
            is_repeated: false,
        };
        let Some(pending) = self.pending_frames[role.index()].replace(next) else {
            return false;
        };
        let frame_ticks = time.saturating_sub(pending.start_ticks);
        if frame_ticks == 0 {
            return false;
        }
        let longest = duration_to_ticks(MAX_FRAME_DURATION, rate);
        let ticks = u32::try_from(frame_ticks.min(longest)).unwrap_or(u32::MAX);
        match kind {
            MediaKind::Video => self.append_to_rendition(role, pending, ticks) | self.release_queued_audio(),
            MediaKind::Audio => {
                self.queued_audio[role.index()].extend(fill_opus_pause(pending, ticks));
                self.repeat_frames_of_paused_video() | self.release_queued_audio()
            }
        }
    }

    /// Packages queued audio up to the current video position, or all of it if the video has stalled.
    fn release_queued_audio(&mut self) -> bool {
        let mut updated = false;
        let video = self.pending_video_frame_start();
        for role in [RenditionRole::Audio, RenditionRole::AacAudio] {
            let queued = &self.queued_audio[role.index()];
            let newest = queued
                .back()
                .map_or(Duration::ZERO, |(pending, _)| pending.start_time());
            let until = match video {
                Some(video) if newest <= video + MAX_VIDEO_LAG_TO_HOLD_AUDIO => video,
                Some(_) | None => Duration::MAX,
            };
            let passed = |(pending, _): &(PendingFrame, u32)| pending.start_time() + AUDIO_ALIGN_TOLERANCE < until;
            while self.queued_audio[role.index()].front().is_some_and(passed) {
                let Some((pending, ticks)) = self.queued_audio[role.index()].pop_front() else {
                    break;
                };
                updated |= self.append_to_rendition(role, pending, ticks);
            }
        }
        updated
    }

    /// Repeats the last video frame up to where audio is, if video stays behind.
    fn repeat_frames_of_paused_video(&mut self) -> bool {
        let Some(until) = self
            .newest_audio_position()
            .and_then(|audio| self.paused_video.repetition_end(audio))
        else {
            return false;
        };
        let layers = RenditionRole::VIDEO_LAYERS.into_iter();
        layers.fold(false, |updated, role| updated | self.repeat_last_frame(role, until))
    }

    /// Repeats the last frame of a video layer up to a position on the timeline.
    fn repeat_last_frame(&mut self, role: RenditionRole, until: Duration) -> bool {
        let index = role.index();
        let mut updated = false;
        while let Some(pending) = self.pending_frames[index].clone()
            && self.renditions[index].is_some()
            && let Some((next_ticks, bytes)) = self.paused_video.next_repeated_frame(role, pending.start_ticks, until)
        {
            let next = PendingFrame {
                codec: pending.codec,
                start_ticks: next_ticks,
                key_frame: false,
                bytes,
                is_repeated: true,
            };
            let ticks = u32::try_from(next_ticks - pending.start_ticks).unwrap_or(u32::MAX);
            self.pending_frames[index] = Some(next);
            updated |= self.append_to_rendition(role, pending, ticks);
        }
        updated
    }

    /// Fills a pause of the video up to the next frame, which is at `position`.
    fn fill_video_pause_and_record_frame(&mut self, role: RenditionRole, frame: &Frame, position: Duration) {
        let pending = self.pending_frames[role.index()].as_ref();
        if pending.is_some_and(|pending| pending.is_repeated) {
            self.repeat_last_frame(role, position);
        }
        let lag = self.newest_audio_position().map(|audio| audio.saturating_sub(position));
        self.paused_video.observe_frame(role, frame, lag.unwrap_or_default());
    }

    /// Position of the newest audio frame on the timeline.
    fn newest_audio_position(&self) -> Option<Duration> {
        self.pending_frames[RenditionRole::Audio.index()]
            .as_ref()
            .map(PendingFrame::start_time)
    }

    /// Position of the pending video frame on the timeline; all earlier ones are in the rendition.
    fn pending_video_frame_start(&self) -> Option<Duration> {
        self.pending_frames[RenditionRole::Video.index()]
            .as_ref()
            .map(PendingFrame::start_time)
    }

    fn set_video_info_and_codec_config(
        &mut self,
        track: &TrackFormatAndClock,
        role: RenditionRole,
        frame: &Frame,
        wall: Duration,
    ) {
        let (Some(format), Some(resolution)) = (track.format, track.resolution) else {
            return;
        };
        self.video_info[role.index()] = ResolutionAndFrameRate {
            resolution: Some(resolution),
            frame_rate: track.frame_rate,
        };
        if role == RenditionRole::Video && self.rendition(role).is_none() {
            self.key_frame_interval = track.key_frame_interval;
        }
        if let Some(header) = CodecConfig::from_video_key_frame(format, resolution, &frame.bytes) {
            self.create_rendition_or_set_codec_config(role, frame.codec.clock_rate(), header, wall);
        }
    }

    fn create_rendition_or_set_codec_config(
        &mut self,
        role: RenditionRole,
        rate: u32,
        header: CodecConfig,
        wall: Duration,
    ) {
        let discontinuity = &mut self.needs_discontinuity[role.index()];
        let rendition = &mut self.renditions[role.index()];
        match rendition {
            // Segments last at least one second, so a rendition that starts later gets higher numbers from the wall
            // clock. Those of all renditions are cut at the key frames of the video.
            None => {
                *rendition = Rendition::new(role, rate, header, wall.as_secs());
                if let (Some(rendition), Some(interval)) = (rendition.as_mut(), self.key_frame_interval) {
                    rendition.set_expected_key_frame_interval(interval);
                }
            }
            Some(rendition) if !rendition.uses_codec_config(&header) => {
                rendition.set_codec_config(header);
                *discontinuity = true;
            }
            Some(_) => {}
        }
    }

    /// Whether HLS players support a format without transcoding.
    pub fn supports_format(format: CodecFormat) -> bool {
        matches!(
            format.codec(),
            Codec::H264 | Codec::H265 | Codec::Vp9 | Codec::Av1 | Codec::Opus | Codec::Aac
        )
    }
}

/// Maximum duration of an audio frame: an audio segment may start this much before the video segment.
const AUDIO_ALIGN_TOLERANCE: Duration = Duration::from_millis(30);
