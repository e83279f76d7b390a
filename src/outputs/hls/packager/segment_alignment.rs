//! Where segments start: video at its key frames, audio and lower layers at the boundaries of the video, with its numbers.

use std::time::Duration;

use super::super::rendition::{Msn, Rendition, RenditionRole, TimedFrame};
use super::pending_frame::PendingFrame;
use super::{AUDIO_ALIGN_TOLERANCE, Packager};
use millstream_core::media::MediaKind;

/// Where the next audio segment starts.
#[derive(Clone, Copy, Debug)]
enum AudioSegmentStart {
    /// With the video segment that follows the current audio segment; `None` if that has not started yet.
    AtVideoSegment(Option<Duration>),
    Anywhere,
}

/// Layers respond to the same key frame request within this time.
const LAYER_ALIGN_TOLERANCE: Duration = Duration::from_millis(150);

impl Packager {
    /// Appends a frame to its rendition, and starts a segment before it where one is due.
    pub(super) fn append_to_rendition(&mut self, role: RenditionRole, pending: PendingFrame, frame_ticks: u32) -> bool {
        let Some(origin) = self.timeline_origin else {
            return false;
        };
        let begin = pending.start_time();
        let wall = origin.wall_clock_time + begin.saturating_sub(self.timeline_offset);
        let discontinuity = self.needs_discontinuity[role.index()];
        let next_cut = self.next_audio_segment_start(role, begin);
        let number = self.corresponding_video_msn(role, begin);
        let video_is_ahead = self.pending_video_frame_start().is_some_and(|video| begin <= video);
        let kind = role.kind();
        let Some(rendition) = &mut self.renditions[role.index()] else {
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
                let unused = self.first_unused_msn[role.index()];
                if number + 1 == unused && video_is_ahead {
                    // A part of this segment was served before the rendition was removed. The next number is unused,
                    // and comes soon.
                    return false;
                }
                rendition.set_first_msn(number.max(unused));
            }
            rendition.start_segment(begin, wall, discontinuity);
            self.needs_discontinuity[role.index()] = false;
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
        let pending = self.pending_frames[RenditionRole::Video.index()].as_ref();
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
}
