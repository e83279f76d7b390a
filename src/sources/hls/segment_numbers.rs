//! Numbers the segments of live playlists whose media sequence numbers cannot be believed.
//!
//! Some origins keep EXT-X-MEDIA-SEQUENCE at 0 while segments are removed, leave it out, or begin anew although the segments
//! go on. Their segments are known again by their names, or by their date and time: names that hold a token differ in each
//! playlist, and names of a ring come again.

use std::collections::HashSet;
use std::sync::Arc;

use super::playlist::{ByteRange, MediaPlaylist, OriginSegment};

/// Corrects the numbers of one rendition.
#[derive(Debug, Default)]
pub(super) struct SegmentNumberCorrector {
    /// The newest playlist, and the corrected number of its first segment.
    known: Vec<SegmentIdentity>,
    known_first: u64,
    /// What is added to the listed numbers. Wraps.
    offset: u64,
    has_corrected: bool,
}

/// What a segment is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SegmentIdentity {
    /// Its address without scheme and host, with and without its query, which may be a token.
    path_and_query: String,
    path_length: usize,
    byte_range: Option<ByteRange>,
    program_date_time: Option<i64>,
}

/// Whether the segments of two playlists are the same where they overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overlap {
    None,
    Same,
    Different,
}

/// Distance of dates up to which segments of one name are the same, and of those of different names, in milliseconds: some
/// origins derive the date of each playlist from their clock.
const MAX_DATE_DIFFERENCE_OF_ONE_NAME: u64 = 1_000;
const MAX_DATE_DIFFERENCE_OF_TWO_NAMES: u64 = 50;

/// Number of segments that have to be the same if the numbers went back: few names may be those of other segments, if the
/// origin was restarted.
const MIN_SAME_SEGMENTS_AFTER_RESTART: usize = 2;

impl SegmentNumberCorrector {
    /// Returns the playlist with numbers that continue those of the playlists before.
    pub(super) fn correct(&mut self, list: Arc<MediaPlaylist>) -> Arc<MediaPlaylist> {
        let listed: Vec<SegmentIdentity> = list.segments.iter().map(SegmentIdentity::of).collect();
        if let Some(first) = list.segments.first() {
            self.update_offset(first.media_sequence_number, &listed);
            self.remember(first.media_sequence_number.wrapping_add(self.offset), listed);
        }
        if self.offset == 0 {
            return list;
        }
        let mut corrected = MediaPlaylist::clone(&list);
        let of_all = corrected.segments.iter_mut().chain(&mut corrected.segment_in_progress);
        of_all.for_each(|segment| {
            segment.media_sequence_number = segment.media_sequence_number.wrapping_add(self.offset);
        });
        corrected.next_segment_number = corrected.next_segment_number.wrapping_add(self.offset);
        Arc::new(corrected)
    }

    /// Returns the number by which the origin knows a segment.
    pub(super) fn listed_number(&self, number: u64) -> u64 {
        number.wrapping_sub(self.offset)
    }

    /// Whether a number was corrected.
    pub(super) fn has_corrected(&self) -> bool {
        self.has_corrected
    }

    /// What follows are the segments of another playlist: only their numbers can be the same.
    pub(super) fn forget_names(&mut self) {
        self.known = Vec::new();
    }

    fn update_offset(&mut self, listed_first: u64, listed: &[SegmentIdentity]) {
        let shift = i128::from(listed_first.wrapping_add(self.offset)) - i128::from(self.known_first);
        let comparison = PlaylistComparison {
            known: &self.known,
            listed,
            by_path: are_paths_unique(&self.known) && are_paths_unique(listed),
        };
        let overlap = comparison.overlap(shift, 1);
        let goes_forward = overlap == Overlap::None && shift > 0;
        if self.known.is_empty() || overlap == Overlap::Same || goes_forward {
            return;
        }
        let at_least = match overlap {
            Overlap::None => MIN_SAME_SEGMENTS_AFTER_RESTART.min(self.known.len()),
            Overlap::Same | Overlap::Different => 1,
        };
        let behind_known = self.known.len() as i128;
        // Names that were of use before are those of other segments now.
        let is_all_new =
            self.has_corrected && overlap == Overlap::Different && shift + listed.len() as i128 <= behind_known;
        let found = comparison.find_shift(at_least);
        if let Some(found) = found.or(is_all_new.then_some(behind_known)) {
            let difference = i64::try_from(found - shift).unwrap_or_default();
            self.offset = self.offset.wrapping_add_signed(difference);
            self.has_corrected = true;
        }
    }

    fn remember(&mut self, first: u64, listed: Vec<SegmentIdentity>) {
        let end = |first: u64, count: usize| i128::from(first) + count as i128;
        let is_older = end(first, listed.len()) < end(self.known_first, self.known.len());
        let overlaps = end(first, listed.len()) > i128::from(self.known_first);
        // A server behind a load balancer may lag; one that was restarted lists other segments.
        if !is_older || !overlaps || self.known.is_empty() {
            (self.known, self.known_first) = (listed, first);
        }
    }
}

/// The segments of two playlists.
#[derive(Clone, Copy)]
struct PlaylistComparison<'a> {
    known: &'a [SegmentIdentity],
    listed: &'a [SegmentIdentity],
    /// Whether their paths tell the segments apart, so that their queries may be tokens.
    by_path: bool,
}

impl PlaylistComparison<'_> {
    /// Finds the position at which a playlist lists the known segments: the next one, or an older one.
    fn find_shift(self, at_least: usize) -> Option<i128> {
        let (known, listed) = (self.known.len() as i128, self.listed.len() as i128);
        let mut shifts = (0..known).chain((1..listed).map(|back| -back));
        shifts.find(|shift| self.overlap(*shift, at_least) == Overlap::Same)
    }

    /// Compares the segments if the playlist begins `shift` segments after the first known one.
    fn overlap(self, shift: i128, at_least: usize) -> Overlap {
        let skip = |count: i128| usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        let ours = self.known.get(skip(shift)..).unwrap_or_default();
        let theirs = self.listed.get(skip(-shift)..).unwrap_or_default();
        if ours.len().min(theirs.len()) < at_least.max(1) {
            return Overlap::None;
        }
        let mut pairs = ours.iter().zip(theirs);
        if pairs.all(|(ours, theirs)| ours.is_same(theirs, self.by_path)) {
            Overlap::Same
        } else {
            Overlap::Different
        }
    }
}

impl SegmentIdentity {
    fn of(segment: &OriginSegment) -> Self {
        let uri = segment.uri.as_str();
        let path = match uri.split_once("://") {
            Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
            None => uri,
        };
        Self {
            path_length: path.find('?').unwrap_or(path.len()),
            path_and_query: path.to_owned(),
            byte_range: segment.byte_range,
            program_date_time: segment.program_date_time,
        }
    }

    fn path(&self) -> &str {
        self.path_and_query.get(..self.path_length).unwrap_or_default()
    }

    fn is_same(&self, other: &Self, by_path: bool) -> bool {
        let names = if by_path {
            self.path() == other.path()
        } else {
            self.path_and_query == other.path_and_query
        };
        let dates = self.program_date_time.zip(other.program_date_time);
        let difference = dates.map(|(own, others)| own.abs_diff(others));
        if names && self.byte_range == other.byte_range {
            difference.is_none_or(|difference| difference <= MAX_DATE_DIFFERENCE_OF_ONE_NAME)
        } else {
            difference.is_some_and(|difference| difference <= MAX_DATE_DIFFERENCE_OF_TWO_NAMES)
        }
    }
}

/// Whether each segment has a path or a byte range of its own, so that the query need not tell them apart.
fn are_paths_unique(segments: &[SegmentIdentity]) -> bool {
    let mut seen = HashSet::new();
    let mut keys = segments.iter().map(|segment| {
        let range = segment.byte_range.map(|range| (range.begin, range.length));
        (segment.path(), range)
    });
    keys.all(|key| seen.insert(key))
}

#[cfg(test)]
mod tests;
