//! Selects the next segment to fetch, without IO or clock: maps a playlist to the next step.

use std::time::Duration;

use super::playlist::{Media, Segment};

/// The position in one rendition of a source.
#[derive(Debug, Default)]
pub struct Cursor {
    /// Media sequence number of the next segment; `None` before the first.
    next: Option<u64>,
    /// Index of its next part, if it is fetched in parts.
    part: usize,
    /// Whether a recorded source is repeated.
    repeats: bool,
    /// Number of restarts. Each starts a new timeline.
    generation: u32,
    /// Number of discontinuities since the last restart.
    timeline: u32,
    /// Discontinuity sequence number of the last segment.
    discontinuities: Option<u64>,
    /// Consecutive loads without a new segment.
    stale: u32,
    /// Consecutive loads whose playlist ended before `next`.
    behind: u32,
    /// The playlist was live, so it is not repeated when it ends.
    was_live: bool,
}

/// The next step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Fetch this segment or part of a segment, which belongs to this timeline.
    Fetch(Box<Segment>, u64),
    /// Reload the playlist, this long after the last load.
    Reload(Duration),
    /// The source has ended.
    Ended,
}

/// Consecutive older playlists after which the origin counts as restarted. A load-balanced origin may serve one once.
const MAX_BEHIND: u32 = 2;

/// Minimum interval between loads of a playlist.
const MIN_RELOAD_INTERVAL: Duration = Duration::from_millis(300);

impl Cursor {
    /// Makes a cursor that starts at the live edge, or at the beginning of a recording.
    pub fn new(repeats: bool) -> Self {
        Self {
            repeats,
            ..Self::default()
        }
    }

    /// Returns the media sequence number of the next segment.
    pub fn next_number(&self) -> Option<u64> {
        self.next
    }

    /// Returns the index of the next part of that segment.
    pub fn next_part(&self) -> usize {
        self.part
    }

    /// Continues with another server's playlist of the stream: where it is, if that is listed, or else on another
    /// timeline.
    pub fn moved(&mut self, playlist: &Media) {
        let first = playlist.segments.first().map(|segment| segment.number);
        let is_listed = self
            .next
            .zip(first)
            .is_some_and(|(next, first)| (first..=playlist.next).contains(&next));
        if self.next.is_some() && !is_listed {
            self.restart();
        }
    }

    /// Records that a playlist was loaded.
    pub fn loaded(&mut self, playlist: &Media) {
        let has_new_segment = self.next.is_none_or(|next| playlist.next > next);
        self.stale = if has_new_segment {
            0
        } else {
            self.stale.saturating_add(1)
        };
        if self.next.is_some_and(|next| playlist.next < next) {
            self.behind += 1;
        } else {
            self.behind = 0;
        }
        if self.behind >= MAX_BEHIND {
            self.restart();
        }
    }

    /// Returns the next step for the playlist that was loaded last.
    pub fn step(&mut self, playlist: &Media) -> Step {
        self.part_step(playlist).unwrap_or_else(|| self.segment_step(playlist))
    }

    /// Returns the next part of a low-latency playlist; `None` if whole segments are to be fetched.
    fn part_step(&mut self, playlist: &Media) -> Option<Step> {
        if !playlist.can_wait || playlist.part_target.is_none() || playlist.has_ended {
            return None;
        }
        let (mut next, mut part) = match self.next {
            Some(next) => (next, self.part),
            None => part_edge(playlist)?,
        };
        loop {
            let segment = segment_of(playlist, next)?;
            if let Some(found) = segment.parts.get(part).filter(|_| segment.key.is_none()) {
                (self.next, self.part) = (Some(next), part + 1);
                self.was_live = true;
                let part = Segment {
                    uri: found.uri.clone(),
                    range: found.range,
                    is_gap: found.is_gap,
                    begins: segment.begins && part == 0,
                    parts: Vec::new(),
                    ..segment.clone()
                };
                let timeline = self.timeline_of(&part);
                return Some(Step::Fetch(Box::new(part), timeline));
            }
            if segment.uri.is_empty() {
                return Some(Step::Reload(MIN_RELOAD_INTERVAL));
            }
            if part == 0 {
                return None;
            }
            (next, part) = (next.checked_add(1)?, 0);
            (self.next, self.part) = (Some(next), part);
        }
    }

    fn segment_step(&mut self, playlist: &Media) -> Step {
        let (Some(first), Some(last)) = (playlist.segments.first(), playlist.segments.last()) else {
            return if playlist.has_ended {
                Step::Ended
            } else {
                Step::Reload(wait(playlist.target_duration / 2))
            };
        };
        self.was_live |= !playlist.has_ended;
        let next = match self.next {
            Some(next) if next >= first.number => next,
            // The segment is no longer listed: skip to the edge and leave a gap.
            Some(_) => self.edge(playlist),
            // A sliding playlist that has ended was live. Its remaining segments are not played.
            None if playlist.has_ended && !playlist.is_recorded && first.number > 0 => return Step::Ended,
            None => self.edge(playlist),
        };
        let index = usize::try_from(next.saturating_sub(first.number)).unwrap_or(usize::MAX);
        if let Some(segment) = playlist.segments.get(index) {
            (self.next, self.part) = (Some(next.saturating_add(1)), 0);
            let segment = Segment {
                parts: Vec::new(),
                ..segment.clone()
            };
            let timeline = self.timeline_of(&segment);
            return Step::Fetch(Box::new(segment), timeline);
        }
        if playlist.has_ended {
            if self.repeats && !self.was_live {
                self.restart();
                return self.step(playlist);
            }
            return Step::Ended;
        }
        Step::Reload(if self.stale == 0 {
            wait(last.duration)
        } else {
            wait(playlist.target_duration / 2)
        })
    }

    /// Returns the media sequence number to start at.
    fn edge(&self, playlist: &Media) -> u64 {
        let segment = if playlist.has_ended {
            playlist.segments.first()
        } else {
            playlist.segments.iter().rev().find(|segment| !segment.is_gap)
        };
        segment.map_or(playlist.next, |segment| segment.number)
    }

    fn restart(&mut self) {
        let generation = self.generation.wrapping_add(1);
        *self = Self {
            generation,
            was_live: self.was_live,
            ..Self::new(self.repeats)
        };
    }

    /// Returns the timeline of a segment, from the playlist's discontinuity sequence number if it has one, or else by
    /// counting discontinuities.
    fn timeline_of(&mut self, segment: &Segment) -> u64 {
        let last = self.discontinuities.replace(segment.discontinuities);
        match last {
            None if segment.is_counted => {
                self.timeline = u32::try_from(segment.discontinuities & 0xffff_ffff).unwrap_or_default();
            }
            None => {}
            Some(last) if segment.is_counted => {
                let step = segment.discontinuities.wrapping_sub(last) & 0xffff_ffff;
                self.timeline = self.timeline.wrapping_add(u32::try_from(step).unwrap_or_default());
            }
            Some(_) => self.timeline = self.timeline.wrapping_add(u32::from(segment.begins)),
        }
        u64::from(self.generation) << 32 | u64::from(self.timeline)
    }
}

/// The segment with this number, which may be in progress.
fn segment_of(playlist: &Media, number: u64) -> Option<&Segment> {
    let first = playlist
        .segments
        .first()
        .map_or(playlist.next, |segment| segment.number);
    let index = usize::try_from(number.checked_sub(first)?).ok()?;
    let open = playlist.open.as_ref().filter(|open| open.number == number);
    playlist.segments.get(index).or(open)
}

/// The last part that a decoder can start with.
fn part_edge(playlist: &Media) -> Option<(u64, usize)> {
    let newest = playlist.open.iter().chain(playlist.segments.iter().rev());
    newest.take(3).find_map(|segment| {
        let part = segment
            .parts
            .iter()
            .rposition(|part| part.is_independent && !part.is_gap)?;
        Some((segment.number, part))
    })
}

fn wait(time: Duration) -> Duration {
    time.max(MIN_RELOAD_INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::super::playlist::Playlist;
    use super::*;

    fn live(first: u64, count: u64) -> Media {
        let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{first}\n");
        for number in first..first + count {
            text += &format!("#EXTINF:4,\n{number}.ts\n");
        }
        media(&text)
    }

    fn media(text: &str) -> Media {
        match Playlist::parse(text) {
            Ok(Playlist::Media(media)) => media,
            other => panic!("{other:?}"),
        }
    }

    fn fetched(step: Step) -> (u64, u64) {
        match step {
            Step::Fetch(segment, timeline) => (segment.number, timeline),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn live_begins_with_the_newest_segment_and_follows() {
        let mut cursor = Cursor::new(true);
        let list = live(10, 5);
        cursor.loaded(&list);
        assert_eq!(fetched(cursor.step(&list)), (14, 0));
        assert_eq!(cursor.step(&list), Step::Reload(Duration::from_secs(4)));
        cursor.loaded(&list);
        assert_eq!(cursor.step(&list), Step::Reload(Duration::from_secs(2)), "nothing new");
        let list = live(12, 5);
        cursor.loaded(&list);
        assert_eq!(fetched(cursor.step(&list)).0, 15);
        assert_eq!(fetched(cursor.step(&list)).0, 16);
    }

    const PARTS: &str = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=3\n\
        #EXT-X-PART-INF:PART-TARGET=1\n#EXT-X-MEDIA-SEQUENCE:7\n#EXTINF:4,\n7.mp4\n\
        #EXT-X-PART:DURATION=1,URI=\"8.0\",INDEPENDENT=YES\n#EXT-X-PART:DURATION=1,URI=\"8.1\"\n";

    fn uri(step: Step) -> String {
        match step {
            Step::Fetch(segment, _) => segment.uri,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn parts_are_fetched_one_by_one_and_no_segment_twice() {
        let mut cursor = Cursor::new(true);
        let list = media(PARTS);
        cursor.loaded(&list);
        assert_eq!([uri(cursor.step(&list)), uri(cursor.step(&list))], ["8.0", "8.1"]);
        assert_eq!(cursor.step(&list), Step::Reload(MIN_RELOAD_INTERVAL));
        assert_eq!((cursor.next_number(), cursor.next_part()), (Some(8), 2));
        // The segment is complete, and the next one begins.
        let more = "#EXT-X-PART:DURATION=1,URI=\"8.2\"\n#EXTINF:3,\n8.mp4\n\
            #EXT-X-DISCONTINUITY\n#EXT-X-PART:DURATION=1,URI=\"9.0\"\n#EXT-X-PART:DURATION=1,URI=\"9.1\",BYTERANGE=\"5@2\"\n";
        let list = media(&(PARTS.to_owned() + more));
        cursor.loaded(&list);
        assert_eq!(uri(cursor.step(&list)), "8.2");
        let Step::Fetch(first, timeline) = cursor.step(&list) else {
            panic!()
        };
        let Step::Fetch(second, same) = cursor.step(&list) else {
            panic!()
        };
        assert_eq!(
            (first.uri.as_str(), timeline, same),
            ("9.0", 1, 1),
            "the discontinuity counts once"
        );
        assert_eq!(second.range.map(|range| (range.begin, range.length)), Some((2, 5)));
        // Its parts are not listed any more: what was missed is a gap.
        let list = media(&PARTS.replace("SEQUENCE:7", "SEQUENCE:9").replace("\"8.", "\"10."));
        cursor.loaded(&list);
        assert_eq!(uri(cursor.step(&list)), "10.0");
    }

    #[test]
    fn segments_without_parts_among_those_with_parts_are_fetched_whole() {
        let mut cursor = Cursor::new(true);
        let list = media(&PARTS.replace("INDEPENDENT=YES", "X=Y"));
        cursor.loaded(&list);
        assert_eq!(uri(cursor.step(&list)), "7.mp4", "no part can be started with");
        assert_eq!([uri(cursor.step(&list)), uri(cursor.step(&list))], ["8.0", "8.1"]);
    }

    #[test]
    fn a_twin_is_followed_where_the_other_stopped() {
        let mut cursor = Cursor::new(true);
        let list = live(10, 5);
        cursor.loaded(&list);
        assert_eq!(fetched(cursor.step(&list)), (14, 0));
        let twin = live(12, 4);
        cursor.moved(&twin);
        assert_eq!(fetched(cursor.step(&twin)), (15, 0));
        let other = live(900, 4);
        cursor.moved(&other);
        assert_eq!(fetched(cursor.step(&other)), (903, 1 << 32), "numbered otherwise");
    }

    #[test]
    fn after_an_outage_it_goes_on_at_the_live_edge() {
        let mut cursor = Cursor::new(true);
        let list = live(0, 3);
        cursor.loaded(&list);
        assert_eq!(fetched(cursor.step(&list)).0, 2);
        let list = live(20, 3);
        cursor.loaded(&list);
        assert_eq!(fetched(cursor.step(&list)), (22, 0), "a gap on the same timeline");
    }

    #[test]
    fn an_origin_that_was_restarted_begins_another_timeline() {
        let mut cursor = Cursor::new(true);
        let list = live(100, 3);
        cursor.loaded(&list);
        assert_eq!(fetched(cursor.step(&list)), (102, 0));
        let restarted = live(0, 2);
        cursor.loaded(&restarted);
        assert!(matches!(cursor.step(&restarted), Step::Fetch(..) | Step::Reload(_)));
        cursor.loaded(&restarted);
        assert_eq!(fetched(cursor.step(&restarted)), (1, 1 << 32));
    }

    #[test]
    fn an_older_list_of_another_server_is_waited_out() {
        let mut cursor = Cursor::new(true);
        let (old, new) = (live(9, 3), live(10, 3));
        cursor.loaded(&new);
        assert_eq!(fetched(cursor.step(&new)), (12, 0));
        cursor.loaded(&old);
        assert!(matches!(cursor.step(&old), Step::Reload(_)));
        let newer = live(11, 3);
        cursor.loaded(&newer);
        assert_eq!(fetched(cursor.step(&newer)), (13, 0));
    }

    #[test]
    fn a_film_plays_from_its_beginning_and_again() {
        let text =
            "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\na\n#EXT-X-DISCONTINUITY\n#EXTINF:4,\nb\n#EXT-X-ENDLIST\n";
        let list = media(text);
        let mut cursor = Cursor::new(true);
        cursor.loaded(&list);
        let steps: Vec<_> = (0..4).map(|_| fetched(cursor.step(&list))).collect();
        assert_eq!(steps, [(0, 0), (1, 1), (0, 1 << 32), (1, 1 << 32 | 1)]);
        let mut once = Cursor::new(false);
        once.loaded(&list);
        once.step(&list);
        once.step(&list);
        assert_eq!(once.step(&list), Step::Ended);
    }

    #[test]
    fn a_live_stream_that_has_ended_is_not_shown_again() {
        let text = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:7\n#EXTINF:4,\na\n#EXT-X-ENDLIST\n";
        let ended = media(text);
        let mut cursor = Cursor::new(true);
        cursor.loaded(&ended);
        assert_eq!(cursor.step(&ended), Step::Ended);
        let mut watched = Cursor::new(true);
        let list = live(6, 1);
        watched.loaded(&list);
        assert_eq!(fetched(watched.step(&list)).0, 6);
        watched.loaded(&ended);
        assert_eq!(fetched(watched.step(&ended)).0, 7);
        assert_eq!(watched.step(&ended), Step::Ended);
    }

    #[test]
    fn discontinuities_count_whether_the_list_counts_them_or_not() {
        let list = |counted: &str, first: u64, marks: [bool; 2]| {
            let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{first}\n{counted}");
            for mark in marks {
                text += if mark { "#EXT-X-DISCONTINUITY\n" } else { "" };
                text += "#EXTINF:4,\nx\n";
            }
            media(&text)
        };
        for counted in [true, false] {
            let count = |number: u64| match counted {
                true => format!("#EXT-X-DISCONTINUITY-SEQUENCE:{number}\n"),
                false => String::new(),
            };
            let mut cursor = Cursor::new(true);
            let lists = [
                list(&count(5), 0, [false, false]),
                list(&count(5), 1, [false, true]),
                // The mark has slid out.
                list(&count(6), 2, [false, false]),
            ];
            let mut timelines = Vec::new();
            for list in &lists {
                cursor.loaded(list);
                timelines.push(fetched(cursor.step(list)).1);
            }
            let first = if counted { 5 } else { 0 };
            assert_eq!(timelines, [first, first + 1, first + 1], "counted: {counted}");
        }
    }
}
