//! One line of times from many: each discontinuity, and each jump without one, begins where the last one ended.

use std::collections::VecDeque;
use std::time::Duration;

use crate::media::container::Sample;

/// Where timelines lie on the line.
#[derive(Debug, Default)]
pub(super) struct Timelines {
    /// The latest last.
    places: VecDeque<Position>,
    /// End of what has a place.
    end: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    timeline: u64,
    /// A time of it, and the same on the line.
    base: Duration,
    line: Duration,
}

/// Where the line begins: sound may begin a little before the picture.
const BEGIN: Duration = Duration::from_secs(1);

/// Places that are remembered: renditions are not that far apart.
const MAX_PLACES: usize = 8;

/// Times that go back by more, or ahead by more, belong to another origin though nobody said so.
const BACK: Duration = Duration::from_secs(1);
const FORTH: Duration = Duration::from_secs(90);

/// How far sound may begin before the picture.
const BEFORE: Duration = Duration::from_secs(10);

/// Lasts as long as the last frame of a segment, when nothing tells.
const FRAME: Duration = Duration::from_millis(40);

impl Timelines {
    /// Gives a place to a timeline from what its leading rendition has in its next segment.
    pub(super) fn lead(&mut self, timeline: u64, samples: &[Sample]) {
        let times = || samples.iter().map(|sample| sample.decode);
        let (Some(first), Some(last)) = (times().min(), times().max()) else {
            return;
        };
        let at = self.at(timeline, first);
        let is_continued = at.is_some_and(|at| at + BACK >= self.end && at <= self.end + FORTH);
        if !is_continued {
            let line = self.end.max(BEGIN);
            self.places.push_back(Position {
                timeline,
                base: first,
                line,
            });
            if self.places.len() > MAX_PLACES {
                self.places.pop_front();
            }
        }
        if let Some(end) = self.at(timeline, last) {
            self.end = self.end.max(end + frame(samples));
        }
    }

    /// Whether a timeline has a place.
    pub(super) fn knows(&self, timeline: u64) -> bool {
        self.places.iter().any(|place| place.timeline == timeline)
    }

    /// Whether it may still get one.
    pub(super) fn is_coming(&self, timeline: u64) -> bool {
        self.places.back().is_none_or(|last| last.timeline < timeline)
    }

    /// A time of a timeline on the line; `None` before its beginning.
    pub(super) fn at(&self, timeline: u64, time: Duration) -> Option<Duration> {
        let mut places = self.places.iter().rev().filter(|place| place.timeline == timeline);
        let place = places.find(|place| time + BEFORE >= place.base)?;
        (place.line + time).checked_sub(place.base)
    }
}

/// How long a frame of the picture lasts, or else of what there is.
fn frame(samples: &[Sample]) -> Duration {
    let kind = samples.iter().map(|sample| sample.content.kind()).max_by_key(|kind| {
        // Frames of pictures last longer than those of sound.
        u8::from(*kind == crate::media::Kind::Video)
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
    use crate::media::container::Content;

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
        timelines.lead(0, &samples((50_000..52_000).step_by(40)));
        assert_eq!(timelines.at(0, ms(50_000)), Some(BEGIN));
        timelines.lead(1, &samples((7_000..9_000).step_by(40)));
        assert_eq!(timelines.at(1, ms(7_000)), Some(BEGIN + ms(2_000)));
        // Sound of the timeline before is still on its way.
        assert_eq!(timelines.at(0, ms(51_990)), Some(BEGIN + ms(1_990)));
        // It may begin shortly before the picture.
        assert_eq!(timelines.at(1, ms(6_980)), Some(BEGIN + ms(1_980)));
    }

    #[test]
    fn a_missing_segment_is_a_gap_and_a_jump_that_nobody_announced_is_none() {
        let mut timelines = Timelines::default();
        timelines.lead(0, &samples((0..2_000).step_by(40)));
        timelines.lead(0, &samples((6_000..8_000).step_by(40)));
        assert_eq!(timelines.at(0, ms(6_000)), Some(BEGIN + ms(6_000)));
        // The encoder was started anew.
        timelines.lead(0, &samples((0..2_000).step_by(40)));
        assert_eq!(timelines.at(0, ms(0)), Some(BEGIN + ms(8_000)));
        timelines.lead(0, &samples((900_000..902_000).step_by(40)));
        assert_eq!(timelines.at(0, ms(900_000)), Some(BEGIN + ms(10_000)));
    }

    #[test]
    fn what_was_left_behind_is_told_from_what_comes() {
        let mut timelines = Timelines::default();
        assert!(timelines.is_coming(3) && !timelines.knows(3));
        timelines.lead(3, &samples([0, 40]));
        assert!(timelines.knows(3) && timelines.is_coming(4) && !timelines.is_coming(2));
        assert_eq!(timelines.at(2, ms(0)), None);
    }
}
