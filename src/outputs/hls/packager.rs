//! All renditions of a stream on one timeline. The input is frames of the depacketizer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::cmaf::{CodecConfig, frame_to_mp4_sample};
use super::paused_video::PausedVideo;
use super::rendition::{Msn, RENDITION_ROLE_COUNT, Rendition, RenditionRole, TimedFrame};
use millstream_core::hub::track::TrackFormatAndClock;
use millstream_core::media::clock::{duration_to_ticks, ticks_to_duration};
use millstream_core::media::depacketizer::Frame;
use millstream_core::media::packet::TrackTime;
use millstream_core::media::{Codec, CodecFormat, MediaKind};

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

/// A frame whose duration is known once the next one arrives.
#[derive(Clone, Debug)]
struct PendingFrame {
    codec: Codec,
    /// Timestamp on the timeline, in ticks of the codec's clock rate.
    start_ticks: u64,
    key_frame: bool,
    bytes: bytes::Bytes,
    /// It repeats the frame before, because video pauses.
    is_repeated: bool,
}

/// Audio waits for video that is at most this far behind.
const MAX_VIDEO_LAG_TO_HOLD_AUDIO: Duration = Duration::from_secs(2);

/// Maximum duration of a frame; a longer one is followed by a gap, which players skip.
const MAX_FRAME_DURATION: Duration = Duration::from_secs(5);

impl PendingFrame {
    fn start_time(&self) -> Duration {
        ticks_to_duration(self.start_ticks, self.codec.clock_rate())
    }
}

/// Opus frames after which a pause is filled: a sender with DTX sends a frame each 400 ms (RFC 6716 §2.1.9).
const MAX_UNFILLED_OPUS_TICKS: u32 = 48_000 * 150 / 1_000;

/// Duration of a filling frame, in ticks.
const OPUS_FILLER_FRAME_TICKS: u32 = 960;

/// Splits an Opus frame that a pause follows into itself and frames without content, which the decoder conceals as it
/// does in a WebRTC client: no frame is longer than a part may be.
fn fill_opus_pause(pending: PendingFrame, ticks: u32) -> Vec<(PendingFrame, u32)> {
    let first_byte = pending.bytes.first().copied();
    let (Codec::Opus, Some(toc), true) = (pending.codec, first_byte, ticks > MAX_UNFILLED_OPUS_TICKS) else {
        return vec![(pending, ticks)];
    };
    // The bandwidth and the mode of the frame, one frame of 20 ms, and no content (RFC 6716 §3.1).
    let config = match toc >> 3 {
        silk @ 0..=11 => silk / 4 * 4 + 1,
        hybrid @ 12..=15 => hybrid / 2 * 2 + 1,
        celt => celt / 4 * 4 + 3,
    };
    let filling = bytes::Bytes::copy_from_slice(&[config << 3 | toc & 0b100]);
    let own_ticks = OPUS_FILLER_FRAME_TICKS * 3;
    let mut frames = Vec::new();
    let begin = pending.start_ticks;
    frames.push((pending, own_ticks));
    let mut at = own_ticks;
    while at < ticks {
        let rest = ticks - at;
        // The last one takes what is left, so that the next frame follows without a gap.
        let frame_ticks = if rest < OPUS_FILLER_FRAME_TICKS * 2 {
            rest
        } else {
            OPUS_FILLER_FRAME_TICKS
        };
        let frame = PendingFrame {
            codec: Codec::Opus,
            start_ticks: begin + u64::from(at),
            key_frame: true,
            bytes: filling.clone(),
            is_repeated: false,
        };
        frames.push((frame, frame_ticks));
        at += frame_ticks;
    }
    frames
}

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
        self.renditions[rendition_role_index(role)].as_ref()
    }

    /// Returns resolution and frame rate of a video rendition.
    pub fn resolution_and_frame_rate(&self, role: RenditionRole) -> ResolutionAndFrameRate {
        self.video_info[rendition_role_index(role)]
    }

    /// Removes a rendition that is no longer needed.
    pub fn remove_rendition(&mut self, role: RenditionRole) {
        let removed = self.renditions[rendition_role_index(role)].take();
        if let Some(removed) = removed.filter(|removed| removed.segments().len() > 0) {
            self.first_unused_msn[rendition_role_index(role)] =
                self.first_unused_msn[rendition_role_index(role)].max(removed.next_msn());
        }
        self.pending_frames[rendition_role_index(role)] = None;
        self.queued_audio[rendition_role_index(role)].clear();
        self.paused_video.reset_layer(role);
        if let Some(origin) = &mut self.timeline_origin {
            origin.track_times[rendition_role_index(role)] = None;
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

    /// Returns the last complete segment of a rendition if another rendition has not completed the corresponding
    /// segment yet. It is hidden from players that start, because they would start the renditions one segment apart. A
    /// rendition that is behind by more is not waited for.
    pub fn segment_without_counterpart(&self, role: RenditionRole) -> Option<Msn> {
        let ends = |rendition: &Rendition| -> Vec<Duration> {
            let complete = rendition.segments().filter(|segment| segment.is_complete);
            complete
                .map(|segment| segment.start_time + segment.duration())
                .collect()
        };
        let own = self.rendition(role)?;
        let [.., before, last] = ends(own)[..] else { return None };
        let others = self.renditions.iter().flatten().filter(|other| other.role != role);
        let settled = others.filter_map(|other| ends(other).last().copied()).all(|other| {
            let ends_at = |end: Duration| other.abs_diff(end) <= before.abs_diff(last) / 2;
            !ends_at(before)
        });
        let last = own.segments().rfind(|segment| segment.is_complete)?;
        (!settled).then_some(last.msn)
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
            if let Some(pending) = self.pending_frames[rendition_role_index(role)].take() {
                // The duration of the last frame is unknown; assume 1/30 s.
                let ticks = pending.codec.clock_rate() / 30;
                self.queued_audio[rendition_role_index(role)].push_back((pending, ticks));
            }
            while let Some((pending, ticks)) = self.queued_audio[rendition_role_index(role)].pop_front() {
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
        times[rendition_role_index(role)] = Some(time);
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
        let begin = match origin.track_times[rendition_role_index(role)] {
            Some(begin) => begin,
            None => {
                let Some(begin) = track.clock.track_time_for_capture_at(origin.captured_at) else {
                    return false;
                };
                origin.track_times[rendition_role_index(role)] = Some(begin);
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
        let Some(pending) = self.pending_frames[rendition_role_index(role)].replace(next) else {
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
                self.queued_audio[rendition_role_index(role)].extend(fill_opus_pause(pending, ticks));
                self.repeat_frames_of_paused_video() | self.release_queued_audio()
            }
        }
    }

    /// Packages queued audio up to the current video position, or all of it if the video has stalled.
    fn release_queued_audio(&mut self) -> bool {
        let mut updated = false;
        let video = self.pending_video_frame_start();
        for role in [RenditionRole::Audio, RenditionRole::AacAudio] {
            let queued = &self.queued_audio[rendition_role_index(role)];
            let newest = queued
                .back()
                .map_or(Duration::ZERO, |(pending, _)| pending.start_time());
            let until = match video {
                Some(video) if newest <= video + MAX_VIDEO_LAG_TO_HOLD_AUDIO => video,
                Some(_) | None => Duration::MAX,
            };
            let passed = |(pending, _): &(PendingFrame, u32)| pending.start_time() + AUDIO_ALIGN_TOLERANCE < until;
            while self.queued_audio[rendition_role_index(role)]
                .front()
                .is_some_and(passed)
            {
                let Some((pending, ticks)) = self.queued_audio[rendition_role_index(role)].pop_front() else {
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
        let index = rendition_role_index(role);
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
        let pending = self.pending_frames[rendition_role_index(role)].as_ref();
        if pending.is_some_and(|pending| pending.is_repeated) {
            self.repeat_last_frame(role, position);
        }
        let lag = self.newest_audio_position().map(|audio| audio.saturating_sub(position));
        self.paused_video.observe_frame(role, frame, lag.unwrap_or_default());
    }

    /// Position of the newest audio frame on the timeline.
    fn newest_audio_position(&self) -> Option<Duration> {
        self.pending_frames[rendition_role_index(RenditionRole::Audio)]
            .as_ref()
            .map(PendingFrame::start_time)
    }

    /// Position of the pending video frame on the timeline; all earlier ones are in the rendition.
    fn pending_video_frame_start(&self) -> Option<Duration> {
        self.pending_frames[rendition_role_index(RenditionRole::Video)]
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
        self.video_info[rendition_role_index(role)] = ResolutionAndFrameRate {
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
        let discontinuity = &mut self.needs_discontinuity[rendition_role_index(role)];
        let rendition = &mut self.renditions[rendition_role_index(role)];
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

    fn append_to_rendition(&mut self, role: RenditionRole, pending: PendingFrame, frame_ticks: u32) -> bool {
        let Some(origin) = self.timeline_origin else {
            return false;
        };
        let begin = pending.start_time();
        let wall = origin.wall_clock_time + begin.saturating_sub(self.timeline_offset);
        let discontinuity = self.needs_discontinuity[rendition_role_index(role)];
        let next_cut = self.next_audio_segment_start(role, begin);
        let number = self.corresponding_video_msn(role, begin);
        let video_is_ahead = self.pending_video_frame_start().is_some_and(|video| begin <= video);
        let kind = role.kind();
        let Some(rendition) = &mut self.renditions[rendition_role_index(role)] else {
            return false;
        };
        let is_first = rendition.segments().len() == 0;
        let cuts = match kind {
            _ if is_first || discontinuity => kind == MediaKind::Audio || pending.key_frame,
            _ if rendition.must_cut_segment_for_overlong_frame(frame_ticks) => true,
            MediaKind::Video => {
                pending.key_frame && rendition.has_segment_reached_min_duration()
                    || rendition.has_segment_reached_max_duration()
                    || pending.is_repeated && rendition.has_segment_reached_target_duration()
            }
            MediaKind::Audio => match next_cut {
                AudioSegmentStart::AtVideoSegment(next) => {
                    next.is_some_and(|next| begin + AUDIO_ALIGN_TOLERANCE >= next)
                        || rendition.has_segment_reached_max_duration()
                }
                AudioSegmentStart::Anywhere => rendition.has_segment_reached_min_duration(),
            },
        };
        if cuts {
            if is_first && let Some(number) = number {
                let unused = self.first_unused_msn[rendition_role_index(role)];
                if number + 1 == unused && video_is_ahead {
                    // A part of this segment was served before the rendition was removed. The next number is unused,
                    // and comes soon.
                    return false;
                }
                rendition.set_first_msn(number.max(unused));
            }
            rendition.start_segment(begin, wall, discontinuity);
            self.needs_discontinuity[rendition_role_index(role)] = false;
        } else if discontinuity {
            return false;
        }
        rendition.push_frame(TimedFrame {
            start_ticks: pending.start_ticks,
            duration_ticks: frame_ticks,
            key_frame: pending.key_frame,
            bytes: pending.bytes,
        }) || cuts
    }

    /// Returns where to cut audio: at the segment boundaries of the video, so that the segments of both are aligned.
    /// Plain players start a fixed number of segments before the end of each rendition. Audio may be behind the video
    /// by more than a segment, or continue without it.
    fn next_audio_segment_start(&self, role: RenditionRole, begin: Duration) -> AudioSegmentStart {
        let (Some(video), Some(own)) = (self.rendition(RenditionRole::Video), self.rendition(role)) else {
            return AudioSegmentStart::Anywhere;
        };
        if self.pending_video_frame_start().is_some_and(|video| begin > video) {
            return AudioSegmentStart::Anywhere;
        }
        let begun = own
            .segments()
            .next_back()
            .map_or(Duration::ZERO, |last| last.start_time);
        let mut begins = video.segments().map(|segment| segment.start_time);
        AudioSegmentStart::AtVideoSegment(begins.find(|begin| *begin > begun + AUDIO_ALIGN_TOLERANCE))
    }

    /// Returns the number of the video segment that corresponds to a segment of another rendition starting at `begin`.
    /// Equal numbers need not mean equal times (rfc8216bis §4.4.3.2), but some players, e.g. ffmpeg, assume it. The
    /// numbers diverge when audio continues without video, because numbers must not be skipped.
    fn corresponding_video_msn(&self, role: RenditionRole, begin: Duration) -> Option<Msn> {
        if role == RenditionRole::Video {
            return None;
        }
        let video = self.rendition(RenditionRole::Video)?;
        let pending = self.pending_frames[rendition_role_index(RenditionRole::Video)].as_ref();
        let next = pending.filter(|pending| pending.key_frame && video.has_segment_reached_min_duration());
        let numbered = video.segments().map(|segment| (segment.start_time, segment.msn));
        let begun = numbered.chain(next.map(|pending| (pending.start_time(), video.next_msn())));
        let slack = match role.kind() {
            MediaKind::Audio => AUDIO_ALIGN_TOLERANCE,
            MediaKind::Video => LAYER_ALIGN_TOLERANCE,
        };
        begun
            .take_while(|(video_begin, _)| *video_begin <= begin + slack)
            .last()
            .map(|(_, msn)| msn)
    }

    /// Whether HLS players support a format without transcoding.
    pub fn supports_format(format: CodecFormat) -> bool {
        matches!(
            format.codec(),
            Codec::H264 | Codec::H265 | Codec::Vp9 | Codec::Av1 | Codec::Opus | Codec::Aac
        )
    }
}

/// Where the next audio segment starts.
#[derive(Clone, Copy, Debug)]
enum AudioSegmentStart {
    /// With the video segment that follows the current audio segment; `None` if that has not started yet.
    AtVideoSegment(Option<Duration>),
    Anywhere,
}

/// Maximum duration of an audio frame: an audio segment may start this much before the video segment.
const AUDIO_ALIGN_TOLERANCE: Duration = Duration::from_millis(30);

/// Layers respond to the same key frame request within this time.
const LAYER_ALIGN_TOLERANCE: Duration = Duration::from_millis(150);

fn rendition_role_index(role: RenditionRole) -> usize {
    match role {
        RenditionRole::Video => 0,
        RenditionRole::VideoLayer2 => 1,
        RenditionRole::VideoLayer3 => 2,
        RenditionRole::Audio => 3,
        RenditionRole::AacAudio => 4,
    }
}
