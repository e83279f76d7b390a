//! Numbers the segments of live playlists whose media sequence numbers cannot be believed.
//!
//! Some origins keep EXT-X-MEDIA-SEQUENCE at 0 while segments are removed, leave it out, or begin anew although the segments
//! go on. Their segments are known again by their names, or by their date and time: names that hold a token differ in each
//! playlist, and names of a ring come again.

use std::collections::HashSet;
use std::sync::Arc;

use super::cursor::PlaylistCursor;
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

/// Maximum number of segments that are compared to find the position of one playlist.
const MAX_COMPARED_SEGMENTS: usize = 1 << 20;

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

    /// Whether a playlist whose numbers were not corrected goes on where a cursor is.
    pub(super) fn can_continue_in_playlist(&self, cursor: &PlaylistCursor, listed: &MediaPlaylist) -> bool {
        !self.has_corrected && cursor.can_continue_in_playlist(listed)
    }

    /// Continues with another server's playlist, whose numbers were not corrected: those of the cursor may have been.
    pub(super) fn continue_on_other_server(&self, cursor: &mut PlaylistCursor, listed: &MediaPlaylist) {
        if self.has_corrected {
            cursor.restart();
        } else {
            cursor.continue_or_restart_on_other_server(listed);
        }
    }

    /// What follows are the segments of another playlist: only their numbers can be the same.
    pub(super) fn forget_names(&mut self) {
        self.known = Vec::new();
    }

    fn update_offset(&mut self, listed_first: u64, listed: &[SegmentIdentity]) {
        let shift = i128::from(listed_first.wrapping_add(self.offset)) - i128::from(self.known_first);
        let comparison = PlaylistComparison::new(&self.known, listed);
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
    /// Whether names tell which segments are the same: some origins date the same segments anew.
    names_decide: bool,
}

impl<'a> PlaylistComparison<'a> {
    fn new(known: &'a [SegmentIdentity], listed: &'a [SegmentIdentity]) -> Self {
        let are_unique = |by_path| Some((unique_names(known, by_path)?, unique_names(listed, by_path)?));
        let by_path = are_unique(true);
        let is_by_path = by_path.is_some();
        let names = by_path.or_else(|| are_unique(false));
        let is_any_same = names.is_some_and(|(known, listed)| !known.is_disjoint(&listed));
        // Names of a ring come again.
        let dates = |segments: &'a [SegmentIdentity]| segments.iter().filter_map(|segment| segment.program_date_time);
        let is_later = (dates(known).max().zip(dates(listed).min())).is_some_and(|(last, first)| first > last);
        Self {
            known,
            listed,
            by_path: is_by_path,
            names_decide: is_any_same && !is_later,
        }
    }

    /// Finds the position at which a playlist lists the known segments: the next one, or an older one.
    fn find_shift(self, at_least: usize) -> Option<i128> {
        let (known, listed) = (self.known.len() as i128, self.listed.len() as i128);
        let mut rest = MAX_COMPARED_SEGMENTS;
        for shift in (0..known).chain((1..listed).map(|back| -back)) {
            let (ours, theirs) = self.overlapping(shift);
            let length = ours.len().min(theirs.len());
            if length < at_least.max(1) {
                continue;
            }
            let same = self.count_same_at_begin(ours, theirs);
            if same == length {
                return Some(shift);
            }
            rest = rest.checked_sub(same + 1)?;
        }
        None
    }

    /// Compares the segments if the playlist begins `shift` segments after the first known one.
    fn overlap(self, shift: i128, at_least: usize) -> Overlap {
        let (ours, theirs) = self.overlapping(shift);
        let length = ours.len().min(theirs.len());
        if length < at_least.max(1) {
            Overlap::None
        } else if self.count_same_at_begin(ours, theirs) == length {
            Overlap::Same
        } else {
            Overlap::Different
        }
    }

    fn overlapping(self, shift: i128) -> (&'a [SegmentIdentity], &'a [SegmentIdentity]) {
        let skip = |count: i128| usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        let ours = self.known.get(skip(shift)..).unwrap_or_default();
        let theirs = self.listed.get(skip(-shift)..).unwrap_or_default();
        (ours, theirs)
    }

    fn count_same_at_begin(self, ours: &[SegmentIdentity], theirs: &[SegmentIdentity]) -> usize {
        let is_same = |(ours, theirs): &(&SegmentIdentity, &SegmentIdentity)| {
            if self.names_decide {
                ours.name(self.by_path) == theirs.name(self.by_path)
            } else {
                ours.is_same(theirs, self.by_path)
            }
        };
        ours.iter().zip(theirs).take_while(is_same).count()
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

    fn name(&self, by_path: bool) -> SegmentName<'_> {
        let range = self.byte_range.map(|range| (range.begin, range.length));
        let text = if by_path { self.path() } else { &self.path_and_query };
        (text, range)
    }

    fn is_same(&self, other: &Self, by_path: bool) -> bool {
        let dates = self.program_date_time.zip(other.program_date_time);
        let difference = dates.map(|(own, others)| own.abs_diff(others));
        if self.name(by_path) == other.name(by_path) {
            difference.is_none_or(|difference| difference <= MAX_DATE_DIFFERENCE_OF_ONE_NAME)
        } else {
            difference.is_some_and(|difference| difference <= MAX_DATE_DIFFERENCE_OF_TWO_NAMES)
        }
    }
}

/// Address of a segment, with or without its query, and its byte range.
type SegmentName<'a> = (&'a str, Option<(u64, u64)>);

/// Returns the names of segments if each has one of its own.
fn unique_names(segments: &[SegmentIdentity], by_path: bool) -> Option<HashSet<SegmentName<'_>>> {
    let mut seen = HashSet::new();
    let mut names = segments.iter().map(|segment| segment.name(by_path));
    names.all(|name| seen.insert(name)).then_some(seen)
}

#[cfg(test)]
mod tests;
