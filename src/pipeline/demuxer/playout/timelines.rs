//! Maps many timelines to one playout time: each discontinuity, and each jump without one, starts where the last ended.

use std::collections::VecDeque;
use std::time::Duration;

use millstream_core::media::MediaKind;
use millstream_core::media::container::DemuxedSample;

/// Positions of timelines in playout time.
#[derive(Debug, Default)]
pub(super) struct Timelines {
    /// Sorted by start; the latest is last.
    positions: VecDeque<TimelinePosition>,
    /// End of the last timeline.
    playout_end: Duration,
    /// What is added to the number of a timeline of the other rendition: the playlists of an origin may count
    /// discontinuities from different numbers. Wraps.
    other_rendition_offset: u64,
    /// The last segment of the other rendition whose number is unknown, but whose times would fit.
    unconfirmed: Option<UnconfirmedSegment>,
}

/// A segment of the other rendition that may be of the last timeline, or of one before or after it.
#[derive(Clone, Copy, Debug)]
struct UnconfirmedSegment {
    timeline_id: u64,
    first: Duration,
    /// What the leading rendition had reached.
    playout_end: Duration,
}

/// Which timeline samples of the other rendition are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtherRenditionTimeline {
    /// The one with this number in the leading rendition.
    Positioned(u64),
    /// One that the leading rendition has not reached yet.
    Awaited,
    /// One that the leading rendition has left.
    Passed,
}

#[derive(Clone, Copy, Debug)]
struct TimelinePosition {
    timeline_id: u64,
    /// A time of the timeline, and the playout time that it maps to.
    timeline_time: Duration,
    playout_time: Duration,
}

/// Playout time of the first frame: audio may start slightly before the video.
const FIRST_FRAME_PLAYOUT_TIME: Duration = Duration::from_secs(1);

/// Maximum number of remembered positions: renditions are never that far apart.
const MAX_TIMELINE_POSITIONS: usize = 8;

/// Timestamps that go back or forward by more than this have a new origin, even without a discontinuity tag.
const MAX_TIMESTAMP_BACKWARD_JUMP: Duration = Duration::from_secs(1);
const MAX_FORWARD_JUMP: Duration = Duration::from_secs(90);

/// How far audio may start before the video.
const MAX_AUDIO_LEAD_AT_TIMELINE_START: Duration = Duration::from_secs(10);

/// How far renditions are apart at most if they have one clock.
const MAX_RENDITION_DISTANCE: Duration = Duration::from_secs(60);

/// How far the leading rendition has to be ahead on a timeline until others, which wait for a later one, are taken to be
/// on it too.
const MIN_LEAD_OF_SAME_TIMELINE: Duration = Duration::from_secs(1);

/// Clocks that show less than this may be those of several advertisements: each begins near zero.
const MAX_CLOCK_OF_ADVERTISEMENT: Duration = Duration::from_secs(60);

/// Assumed duration of the last frame of a segment if it cannot be derived.
const DEFAULT_FRAME_DURATION: Duration = Duration::from_millis(40);

impl Timelines {
    /// Positions a timeline by the next segment of the leading rendition.
    pub(super) fn position_timeline_and_advance_end(&mut self, timeline: u64, samples: &[DemuxedSample]) {
        let times = || samples.iter().map(|sample| sample.decode_time);
        let (Some(first), Some(last)) = (times().min(), times().max()) else {
            return;
        };
        let at = self.to_playout_time(timeline, first);
        let is_continued = at.is_some_and(|at| {
            at + MAX_TIMESTAMP_BACKWARD_JUMP >= self.playout_end && at <= self.playout_end + MAX_FORWARD_JUMP
        });
        if !is_continued {
            let playout = self.playout_end.max(FIRST_FRAME_PLAYOUT_TIME);
            self.positions.push_back(TimelinePosition {
                timeline_id: timeline,
                timeline_time: first,
                playout_time: playout,
            });
            if self.positions.len() > MAX_TIMELINE_POSITIONS {
                self.positions.pop_front();
            }
        }
        if let Some(end) = self.to_playout_time(timeline, last) {
            self.playout_end = self.playout_end.max(end + frame_duration(samples));
        }
    }

    /// Finds the timeline of samples of the other rendition, which begin at `first`: by its number, or by its clock if the
    /// numbers of the renditions do not agree. `queued_end` is the playout time that the other rendition has reached.
    pub(super) fn find_timeline_of_other_rendition(
        &mut self,
        timeline: u64,
        first: Duration,
        queued_end: Option<Duration>,
    ) -> OtherRenditionTimeline {
        let offset = self.other_rendition_offset;
        let numbered = timeline.wrapping_add(offset);
        let is_known = self.has_timeline_position(numbered);
        if is_known && (offset == 0 || self.is_plausible(numbered, first, queued_end)) {
            return OtherRenditionTimeline::Positioned(numbered);
        }
        if is_known {
            // The number was derived from timelines that followed each other on one clock.
            self.other_rendition_offset = 0;
            if self.has_timeline_position(timeline) {
                return OtherRenditionTimeline::Positioned(timeline);
            }
        }
        let numbered = timeline.wrapping_add(self.other_rendition_offset);
        let Some(last) = self.positions.back().map(|last| last.timeline_id) else {
            return OtherRenditionTimeline::Awaited;
        };
        let is_later = numbered > last;
        let is_reached = self
            .to_playout_time(last, first)
            .is_some_and(|at| at + MIN_LEAD_OF_SAME_TIMELINE <= self.playout_end);
        let may_be_last = self.is_plausible(last, first, queued_end) && (is_reached || !is_later);
        if may_be_last && self.is_confirmed(timeline, first, is_later) {
            self.other_rendition_offset = last.wrapping_sub(timeline);
            return OtherRenditionTimeline::Positioned(last);
        }
        if is_later {
            OtherRenditionTimeline::Awaited
        } else {
            OtherRenditionTimeline::Passed
        }
    }

    /// Whether samples whose times fit the last timeline are of it, although they have another number: a source may begin
    /// among advertisements that all begin near zero, with renditions that are one segment apart. Then the number of the
    /// next segment is known: the leading rendition reaches the timeline, or the other one leaves it.
    fn is_confirmed(&mut self, timeline: u64, first: Duration, is_later: bool) -> bool {
        if first > MAX_CLOCK_OF_ADVERTISEMENT {
            return true;
        }
        let playout_end = self.playout_end;
        let before = self.unconfirmed.filter(|before| before.timeline_id == timeline);
        let Some(before) = before else {
            self.unconfirmed = Some(UnconfirmedSegment {
                timeline_id: timeline,
                first,
                playout_end,
            });
            return false;
        };
        if is_later {
            playout_end > before.playout_end
        } else {
            first > before.first
        }
    }

    /// Whether samples may be of a timeline: they go on where those before ended, close to the leading rendition.
    fn is_plausible(&self, timeline: u64, first: Duration, queued_end: Option<Duration>) -> bool {
        self.to_playout_time(timeline, first).is_some_and(|at| {
            at.abs_diff(self.playout_end) <= MAX_RENDITION_DISTANCE
                && queued_end.is_none_or(|end| at + MAX_TIMESTAMP_BACKWARD_JUMP >= end)
        })
    }

    /// Returns whether a timeline has a position.
    fn has_timeline_position(&self, timeline: u64) -> bool {
        self.positions.iter().any(|position| position.timeline_id == timeline)
    }

    /// Maps a time of a timeline to playout time; `None` if it is before the start of the timeline.
    pub(super) fn to_playout_time(&self, timeline: u64, time: Duration) -> Option<Duration> {
        let mut positions = self
            .positions
            .iter()
            .rev()
            .filter(|position| position.timeline_id == timeline);
        let position = positions.find(|position| time + MAX_AUDIO_LEAD_AT_TIMELINE_START >= position.timeline_time)?;
        (position.playout_time + time).checked_sub(position.timeline_time)
    }
}

/// Splits the samples of a segment where the timestamps of all its tracks jump, as after a restart of the encoder.
pub(super) fn split_at_timestamp_jumps(samples: Vec<DemuxedSample>) -> Vec<Vec<DemuxedSample>> {
    let jumps = |kind| {
        let times: Vec<Duration> = samples
            .iter()
            .filter(|sample| sample.codec.kind() == kind)
            .map(|sample| sample.decode_time)
            .collect();
        let is_jump = |pair: &&[Duration]| matches!(pair, [before, next] if is_timestamp_jump(*before, *next));
        (!times.is_empty()).then(|| times.windows(2).filter(is_jump).count())
    };
    let counts = [jumps(MediaKind::Video), jumps(MediaKind::Audio)];
    let mut known = counts.into_iter().flatten();
    let count = known.next().unwrap_or_default();
    // A track that jumps alone would lose its position relative to the other.
    if count == 0 || count > MAX_TIMESTAMP_JUMPS_PER_SEGMENT || known.any(|other| other != count) {
        return vec![samples];
    }
    let mut runs: Vec<Vec<DemuxedSample>> = (0..=count).map(|_| Vec::new()).collect();
    let mut positions: [(usize, Option<Duration>); 2] = [(0, None); 2];
    for sample in samples {
        let (run, last) = &mut positions[usize::from(sample.codec.kind() == MediaKind::Audio)];
        if let Some(last) = last.replace(sample.decode_time)
            && is_timestamp_jump(last, sample.decode_time)
        {
            *run += 1;
        }
        if let Some(run) = runs.get_mut(*run) {
            run.push(sample);
        }
    }
    runs
}

fn is_timestamp_jump(before: Duration, next: Duration) -> bool {
    next + MAX_TIMESTAMP_BACKWARD_JUMP < before || next > before + MAX_FORWARD_JUMP
}

/// Maximum number of jumps in a segment that are followed.
const MAX_TIMESTAMP_JUMPS_PER_SEGMENT: usize = 8;

/// Returns the duration of a video frame, or of an audio frame if there is no video.
fn frame_duration(samples: &[DemuxedSample]) -> Duration {
    let kind = samples.iter().map(|sample| sample.codec.kind()).max_by_key(|kind| {
        // Video frames last longer than audio frames.
        u8::from(*kind == MediaKind::Video)
    });
    let mut times: Vec<Duration> = samples
        .iter()
        .filter(|sample| Some(sample.codec.kind()) == kind)
        .map(|sample| sample.decode_time)
        .collect();
    times.sort();
    let mut steps = times.iter().zip(times.iter().skip(1)).map(|(a, b)| *b - *a);
    steps.rfind(|step| !step.is_zero()).unwrap_or(DEFAULT_FRAME_DURATION)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use millstream_core::media::container::SampleCodec;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn samples(times: impl IntoIterator<Item = u64>) -> Vec<DemuxedSample> {
        let sample = |time| DemuxedSample {
            codec: SampleCodec::H264,
            decode_time: ms(time),
            presentation_time: ms(time),
            bytes: Bytes::new(),
        };
        times.into_iter().map(sample).collect()
    }

    #[test]
    fn a_discontinuity_goes_on_where_the_last_segment_ended() {
        let mut timelines = Timelines::default();
        timelines.position_timeline_and_advance_end(0, &samples((50_000..52_000).step_by(40)));
        assert_eq!(timelines.to_playout_time(0, ms(50_000)), Some(FIRST_FRAME_PLAYOUT_TIME));
        timelines.position_timeline_and_advance_end(1, &samples((7_000..9_000).step_by(40)));
        assert_eq!(
            timelines.to_playout_time(1, ms(7_000)),
            Some(FIRST_FRAME_PLAYOUT_TIME + ms(2_000))
        );
        // Audio of the previous timeline may still arrive.
        assert_eq!(
            timelines.to_playout_time(0, ms(51_990)),
            Some(FIRST_FRAME_PLAYOUT_TIME + ms(1_990))
        );
        // It may start slightly before the video.
        assert_eq!(
            timelines.to_playout_time(1, ms(6_980)),
            Some(FIRST_FRAME_PLAYOUT_TIME + ms(1_980))
        );
    }

    #[test]
    fn a_missing_segment_is_a_gap_and_an_unannounced_jump_is_not() {
        let mut timelines = Timelines::default();
        timelines.position_timeline_and_advance_end(0, &samples((0..2_000).step_by(40)));
        timelines.position_timeline_and_advance_end(0, &samples((6_000..8_000).step_by(40)));
        assert_eq!(
            timelines.to_playout_time(0, ms(6_000)),
            Some(FIRST_FRAME_PLAYOUT_TIME + ms(6_000))
        );
        // The encoder restarted.
        timelines.position_timeline_and_advance_end(0, &samples((0..2_000).step_by(40)));
        assert_eq!(
            timelines.to_playout_time(0, ms(0)),
            Some(FIRST_FRAME_PLAYOUT_TIME + ms(8_000))
        );
        timelines.position_timeline_and_advance_end(0, &samples((900_000..902_000).step_by(40)));
        assert_eq!(
            timelines.to_playout_time(0, ms(900_000)),
            Some(FIRST_FRAME_PLAYOUT_TIME + ms(10_000))
        );
    }

    #[test]
    fn samples_are_split_where_all_tracks_jump() {
        let audio = |times: Vec<u64>| {
            let mut samples = samples(times);
            samples.iter_mut().for_each(|sample| sample.codec = SampleCodec::Opus);
            samples
        };
        let split = |video: &[u64], audio_times: &[u64]| -> Vec<Vec<u64>> {
            let all = [samples(video.to_vec()), audio(audio_times.to_vec())].concat();
            let runs = split_at_timestamp_jumps(all).into_iter();
            let times =
                |run: Vec<DemuxedSample>| run.iter().map(|sample| sample.decode_time.as_millis() as u64).collect();
            runs.map(times).collect()
        };
        let video = [900_000, 900_040, 0, 40, 500_000];
        assert_eq!(
            split(&video, &[900_010, 900_030, 10, 30, 500_010]),
            [
                vec![900_000, 900_040, 900_010, 900_030],
                vec![0, 40, 10, 30],
                vec![500_000, 500_010]
            ]
        );
        assert_eq!(split(&video, &[]).len(), 3);
        // One that jumps alone, and a missing second.
        assert_eq!(split(&video, &[900_010, 900_030]).len(), 1);
        assert_eq!(split(&[0, 40, 2_000], &[0, 2_000]).len(), 1);
        assert_eq!(split(&[], &[]).len(), 1);
    }

    #[test]
    fn past_timelines_are_distinguished_from_coming_ones() {
        use OtherRenditionTimeline::{Awaited, Passed, Positioned};
        let mut timelines = Timelines::default();
        let find = |timelines: &mut Timelines, id| timelines.find_timeline_of_other_rendition(id, ms(200_000), None);
        assert_eq!(find(&mut timelines, 3), Awaited);
        timelines.position_timeline_and_advance_end(3, &samples([0, 40]));
        assert_eq!(
            [2, 3, 4].map(|id| find(&mut timelines, id)),
            [Passed, Positioned(3), Awaited]
        );
        assert_eq!(timelines.to_playout_time(2, ms(0)), None);
    }

    /// Each advertisement begins at zero, and audio may come first.
    #[test]
    fn a_timeline_of_another_clock_is_waited_for() {
        use OtherRenditionTimeline::{Awaited, Positioned};
        let mut timelines = Timelines::default();
        for second in (0..30_000).step_by(6_000) {
            timelines.position_timeline_and_advance_end(7, &samples((second..second + 6_000).step_by(40)));
        }
        let end = timelines.to_playout_time(7, ms(30_000));
        assert_eq!(timelines.find_timeline_of_other_rendition(8, ms(0), end), Awaited);
        timelines.position_timeline_and_advance_end(8, &samples((0..6_000).step_by(40)));
        assert_eq!(timelines.find_timeline_of_other_rendition(8, ms(0), end), Positioned(8));
    }

    /// Renditions begin one segment apart among advertisements of one segment each.
    #[test]
    fn an_advertisement_is_not_taken_for_the_one_beside_it() {
        use OtherRenditionTimeline::{Awaited, Passed, Positioned};
        let ad = || samples((1_400..7_400).step_by(40));
        // Audio is ahead.
        let mut timelines = Timelines::default();
        timelines.position_timeline_and_advance_end(5, &ad());
        assert_eq!(timelines.find_timeline_of_other_rendition(6, ms(1_410), None), Awaited);
        assert_eq!(timelines.find_timeline_of_other_rendition(6, ms(1_410), None), Awaited);
        timelines.position_timeline_and_advance_end(6, &ad());
        let found = timelines.find_timeline_of_other_rendition(6, ms(1_410), None);
        assert_eq!(found, Positioned(6));
        // Audio is behind.
        let mut timelines = Timelines::default();
        timelines.position_timeline_and_advance_end(5, &ad());
        assert_eq!(timelines.find_timeline_of_other_rendition(4, ms(1_410), None), Passed);
        let found = timelines.find_timeline_of_other_rendition(5, ms(1_410), None);
        assert_eq!(found, Positioned(5));
        // The numbers differ.
        for audio in [4, 6] {
            let mut timelines = Timelines::default();
            timelines.position_timeline_and_advance_end(5, &ad());
            let found = timelines.find_timeline_of_other_rendition(audio, ms(1_410), None);
            assert_eq!(found, if audio < 5 { Passed } else { Awaited });
            timelines.position_timeline_and_advance_end(5, &samples((7_400..13_400).step_by(40)));
            let first = ms(if audio < 5 { 7_410 } else { 1_410 });
            let found = timelines.find_timeline_of_other_rendition(audio, first, None);
            assert_eq!(found, Positioned(5), "{audio}");
        }
    }

    #[test]
    fn numbers_that_differ_do_so_by_the_same_from_then_on() {
        use OtherRenditionTimeline::{Awaited, Positioned};
        for (video, audio) in [(5, 3), (3, 5), (1 << 32 | 2, 9)] {
            let mut timelines = Timelines::default();
            timelines.position_timeline_and_advance_end(video, &samples((100_000..106_000).step_by(40)));
            let end = timelines.to_playout_time(video, ms(106_000));
            let found = timelines.find_timeline_of_other_rendition(audio, ms(100_010), None);
            assert_eq!(found, Positioned(video));
            // Audio reaches the next one first.
            assert_eq!(
                timelines.find_timeline_of_other_rendition(audio + 1, ms(0), end),
                Awaited
            );
            timelines.position_timeline_and_advance_end(video + 1, &samples((0..6_000).step_by(40)));
            let found = timelines.find_timeline_of_other_rendition(audio + 1, ms(0), end);
            assert_eq!(found, Positioned(video + 1));
            let found = timelines.find_timeline_of_other_rendition(audio, ms(106_000), None);
            assert_eq!(found, Positioned(video), "{video} {audio}");
        }
    }
}
