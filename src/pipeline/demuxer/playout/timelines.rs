//! Maps many timelines to one playout time: each discontinuity, and each jump without one, starts where the last ended.

use std::collections::VecDeque;
use std::time::Duration;

use millstream_core::media::container::Sample;

/// Positions of timelines in playout time.
#[derive(Debug, Default)]
pub(super) struct Timelines {
    /// Sorted by start; the latest is last.
    positions: VecDeque<Position>,
    /// End of the last timeline.
    end: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    timeline: u64,
    /// A time of the timeline, and the playout time that it maps to.
    base: Duration,
    playout: Duration,
}

/// Playout time of the first frame: audio may start slightly before the video.
const BEGIN: Duration = Duration::from_secs(1);

/// Maximum number of remembered positions: renditions are never that far apart.
const MAX_POSITIONS: usize = 8;

/// Timestamps that go back or forward by more than this have a new origin, even without a discontinuity tag.
const MAX_BACK: Duration = Duration::from_secs(1);
const MAX_FORWARD: Duration = Duration::from_secs(90);

/// How far audio may start before the video.
const MAX_EARLY: Duration = Duration::from_secs(10);

/// Assumed duration of the last frame of a segment if it cannot be derived.
const FRAME: Duration = Duration::from_millis(40);

impl Timelines {
    /// Positions a timeline by the next segment of the leading rendition.
    pub(super) fn position_by_leader(&mut self, timeline: u64, samples: &[Sample]) {
        let times = || samples.iter().map(|sample| sample.decode);
        let (Some(first), Some(last)) = (times().min(), times().max()) else {
            return;
        };
        let at = self.at(timeline, first);
        let is_continued = at.is_some_and(|at| at + MAX_BACK >= self.end && at <= self.end + MAX_FORWARD);
        if !is_continued {
            let playout = self.end.max(BEGIN);
            self.positions.push_back(Position {
                timeline,
                base: first,
                playout,
            });
            if self.positions.len() > MAX_POSITIONS {
                self.positions.pop_front();
            }
        }
        if let Some(end) = self.at(timeline, last) {
            self.end = self.end.max(end + frame(samples));
        }
    }

    /// Returns whether a timeline has a position.
    pub(super) fn contains(&self, timeline: u64) -> bool {
        self.positions.iter().any(|position| position.timeline == timeline)
    }

    /// Returns whether a timeline may still get a position.
    pub(super) fn is_coming(&self, timeline: u64) -> bool {
        self.positions.back().is_none_or(|last| last.timeline < timeline)
    }

    /// Maps a time of a timeline to playout time; `None` if it is before the start of the timeline.
    pub(super) fn at(&self, timeline: u64, time: Duration) -> Option<Duration> {
        let mut positions = self
            .positions
            .iter()
            .rev()
            .filter(|position| position.timeline == timeline);
        let position = positions.find(|position| time + MAX_EARLY >= position.base)?;
        (position.playout + time).checked_sub(position.base)
    }
}

/// Returns the duration of a video frame, or of an audio frame if there is no video.
fn frame(samples: &[Sample]) -> Duration {
    let kind = samples.iter().map(|sample| sample.content.kind()).max_by_key(|kind| {
        // Video frames last longer than audio frames.
        u8::from(*kind == millstream_core::media::Kind::Video)
    });
    let mut times: Vec<Duration> = samples
        .iter()
        .filter(|sample| Some(sample.content.kind()) == kind)
        .map(|sample| sample.decode)
        .collect();
    times.sort();
    let mut steps = times.iter().zip(times.iter().skip(1)).map(|(a, b)| *b - *a);
    steps.rfind(|step| !step.is_zero()).unwrap_or(FRAME)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use millstream_core::media::container::Content;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn samples(times: impl IntoIterator<Item = u64>) -> Vec<Sample> {
        let sample = |time| Sample {
            content: Content::H264,
            decode: ms(time),
            present: ms(time),
            bytes: Bytes::new(),
        };
        times.into_iter().map(sample).collect()
    }

    #[test]
    fn a_discontinuity_goes_on_where_the_last_segment_ended() {
        let mut timelines = Timelines::default();
        timelines.position_by_leader(0, &samples((50_000..52_000).step_by(40)));
        assert_eq!(timelines.at(0, ms(50_000)), Some(BEGIN));
        timelines.position_by_leader(1, &samples((7_000..9_000).step_by(40)));
        assert_eq!(timelines.at(1, ms(7_000)), Some(BEGIN + ms(2_000)));
        // Audio of the previous timeline may still arrive.
        assert_eq!(timelines.at(0, ms(51_990)), Some(BEGIN + ms(1_990)));
        // It may start slightly before the video.
        assert_eq!(timelines.at(1, ms(6_980)), Some(BEGIN + ms(1_980)));
    }

    #[test]
    fn a_missing_segment_is_a_gap_and_an_unannounced_jump_is_not() {
        let mut timelines = Timelines::default();
        timelines.position_by_leader(0, &samples((0..2_000).step_by(40)));
        timelines.position_by_leader(0, &samples((6_000..8_000).step_by(40)));
        assert_eq!(timelines.at(0, ms(6_000)), Some(BEGIN + ms(6_000)));
        // The encoder restarted.
        timelines.position_by_leader(0, &samples((0..2_000).step_by(40)));
        assert_eq!(timelines.at(0, ms(0)), Some(BEGIN + ms(8_000)));
        timelines.position_by_leader(0, &samples((900_000..902_000).step_by(40)));
        assert_eq!(timelines.at(0, ms(900_000)), Some(BEGIN + ms(10_000)));
    }

    #[test]
    fn past_timelines_are_distinguished_from_coming_ones() {
        let mut timelines = Timelines::default();
        assert!(timelines.is_coming(3) && !timelines.contains(3));
        timelines.position_by_leader(3, &samples([0, 40]));
        assert!(timelines.contains(3) && timelines.is_coming(4) && !timelines.is_coming(2));
        assert_eq!(timelines.at(2, ms(0)), None);
    }
}
