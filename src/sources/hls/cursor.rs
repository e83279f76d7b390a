//! Selects the next segment to fetch, without IO or clock: maps a playlist to the next step.

use std::time::Duration;

use super::playlist::{MediaPlaylist, OriginSegment};

/// The position in one rendition of a source.
#[derive(Debug, Default)]
pub struct PlaylistCursor {
    /// Media sequence number of the next segment; `None` before the first.
    next_segment_number: Option<u64>,
    /// Index of its next part, if it is fetched in parts.
    next_part_index: usize,
    /// Whether a recorded source is repeated.
    repeats_recording: bool,
    /// Number of restarts. Each starts a new timeline.
    restart_count: u32,
    /// Number of discontinuities since the last restart.
    discontinuity_count: u32,
    /// Discontinuity sequence number of the last segment.
    last_discontinuity_sequence: Option<u64>,
    /// Consecutive loads without a new segment.
    unchanged_load_count: u32,
    /// Consecutive loads whose playlist ended before `next_segment_number`.
    older_playlist_count: u32,
    /// The playlist was live, so it is not repeated when it ends.
    was_live: bool,
    /// Date and time at which the last segment ended, in milliseconds since 1970.
    end_date_time: Option<i64>,
    /// Number of the last segment that was taken back.
    last_returned_segment: Option<u64>,
}

/// The next step.
#[derive(Clone, Debug, PartialEq)]
pub enum CursorStep {
    /// Fetch this segment or part of a segment, which belongs to this timeline.
    FetchSegment(Box<OriginSegment>, u64),
    /// Reload the playlist, this long after the last load.
    ReloadPlaylist(Duration),
    /// The source has ended.
    Ended,
}

/// Consecutive older playlists after which the origin counts as restarted, if they end so far back that none of their
/// segments can be the next one before long.
const FAR_OLDER_PLAYLISTS_BEFORE_RESTART: u32 = 2;

/// The same for playlists that end shortly before the next segment: a server behind a load balancer may lag for a while.
const OLDER_PLAYLISTS_BEFORE_RESTART: u32 = 12;

/// Minimum interval between loads of a playlist.
const MIN_RELOAD_INTERVAL: Duration = Duration::from_millis(300);

/// Maximum interval between loads of a playlist, whatever durations it states.
const MAX_RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// How far the dates of two playlists are apart until they decide where to go on.
const MAX_DATE_DIFFERENCE: Duration = Duration::from_millis(500);

impl PlaylistCursor {
    /// Makes a cursor that starts at the live edge, or at the beginning of a recording.
    pub fn new(repeats: bool) -> Self {
        Self {
            repeats_recording: repeats,
            ..Self::default()
        }
    }

    /// Returns the media sequence number of the next segment.
    pub fn next_segment_number(&self) -> Option<u64> {
        self.next_segment_number
    }

    /// Returns the index of the next part of that segment.
    pub fn next_part_index(&self) -> usize {
        self.next_part_index
    }

    /// Continues with another server's playlist of the stream: where it is, if that is listed, or else on another
    /// timeline.
    pub fn continue_or_restart_on_other_server(&mut self, playlist: &MediaPlaylist) {
        if let Some(number) = self.next_number_by_date(playlist) {
            (self.next_segment_number, self.next_part_index) = (Some(number), 0);
        } else if self.next_segment_number.is_some() && !self.can_continue_in_playlist(playlist) {
            self.restart();
        }
    }

    /// Returns where a playlist goes on by its dates, if its numbers say something else.
    fn next_number_by_date(&self, playlist: &MediaPlaylist) -> Option<u64> {
        let (next, end) = self.next_segment_number.zip(self.end_date_time)?;
        let begin = |segment: &OriginSegment| Some(segment.media_sequence_number).zip(segment.program_date_time);
        let mut begins = playlist.segments.iter().filter_map(begin);
        let is_close = |begin: i64| u128::from(begin.abs_diff(end)) <= MAX_DATE_DIFFERENCE.as_millis();
        if begins.clone().any(|(number, begin)| number == next && is_close(begin)) {
            return None;
        }
        begins.find(|(_, begin)| is_close(*begin)).map(|(number, _)| number)
    }

    /// Takes back the last segment, whose URI may have been cut off, so that the next playlist tells it again. Returns whether
    /// it is the first time.
    pub fn return_last_segment(&mut self) -> bool {
        let last = self.next_segment_number.and_then(|next| next.checked_sub(1));
        let is_returned = self.next_part_index == 0 && last.is_some() && self.last_returned_segment != last;
        if is_returned {
            (self.next_segment_number, self.last_returned_segment) = (last, last);
        }
        is_returned
    }

    /// Whether a playlist goes on where this one is.
    pub fn can_continue_in_playlist(&self, playlist: &MediaPlaylist) -> bool {
        let first = playlist.segments.first().map(|segment| segment.media_sequence_number);
        self.next_segment_number
            .zip(first)
            .is_some_and(|(next, first)| (first..=playlist.next_segment_number).contains(&next))
    }

    /// Records that a playlist was loaded.
    pub fn on_playlist_loaded(&mut self, playlist: &MediaPlaylist) {
        let has_new_segment = self
            .next_segment_number
            .is_none_or(|next| playlist.next_segment_number > next);
        self.unchanged_load_count = if has_new_segment {
            0
        } else {
            self.unchanged_load_count.saturating_add(1)
        };
        let missing = self
            .next_segment_number
            .map_or(0, |next| next.saturating_sub(playlist.next_segment_number));
        self.older_playlist_count = if missing > 0 { self.older_playlist_count + 1 } else { 0 };
        let older_before_restart = if missing > playlist.segments.len() as u64 {
            FAR_OLDER_PLAYLISTS_BEFORE_RESTART
        } else {
            OLDER_PLAYLISTS_BEFORE_RESTART
        };
        if self.older_playlist_count >= older_before_restart {
            self.restart();
        }
    }

    /// Returns the next step for the playlist that was loaded last.
    pub fn advance_to_next_step(&mut self, playlist: &MediaPlaylist) -> CursorStep {
        self.advance_by_part(playlist)
            .unwrap_or_else(|| self.advance_by_segment(playlist))
    }

    /// Returns the next part of a low-latency playlist; `None` if whole segments are to be fetched.
    fn advance_by_part(&mut self, playlist: &MediaPlaylist) -> Option<CursorStep> {
        if !playlist.can_block_reload || playlist.part_target.is_none() || playlist.has_ended {
            return None;
        }
        let (mut next, mut part) = match self.next_segment_number {
            Some(next) => (next, self.next_part_index),
            None => latest_independent_part(playlist)?,
        };
        loop {
            let segment = segment_by_number(playlist, next)?;
            if let Some(found) = segment.parts.get(part).filter(|_| segment.decryption_key.is_none()) {
                (self.next_segment_number, self.next_part_index) = (Some(next), part + 1);
                (self.was_live, self.end_date_time) = (true, None);
                let part = OriginSegment {
                    uri: found.uri.clone(),
                    byte_range: found.byte_range,
                    is_gap: found.is_gap || segment.is_gap,
                    duration: playlist.part_target.unwrap_or(segment.duration),
                    follows_discontinuity: segment.follows_discontinuity && part == 0,
                    parts: Vec::new(),
                    ..segment.clone()
                };
                let timeline = self.update_timeline_id_for_segment(&part);
                return Some(CursorStep::FetchSegment(Box::new(part), timeline));
            }
            if segment.uri.is_empty() {
                return Some(CursorStep::ReloadPlaylist(MIN_RELOAD_INTERVAL));
            }
            if part == 0 {
                return None;
            }
            (next, part) = (next.checked_add(1)?, 0);
            (self.next_segment_number, self.next_part_index) = (Some(next), part);
        }
    }

    fn advance_by_segment(&mut self, playlist: &MediaPlaylist) -> CursorStep {
        let (Some(first), Some(last)) = (playlist.segments.first(), playlist.segments.last()) else {
            return if playlist.has_ended {
                CursorStep::Ended
            } else {
                CursorStep::ReloadPlaylist(bound_reload_interval(playlist.target_duration / 2))
            };
        };
        self.was_live |= !playlist.has_ended;
        let next = match self.next_segment_number {
            Some(next) if next >= first.media_sequence_number => next,
            // The segment is no longer listed: skip to the edge and leave a gap.
            Some(_) => self.initial_segment_number(playlist),
            // The remaining segments of a live stream that has ended are not played.
            None if playlist.has_ended && !is_recording(playlist) => return CursorStep::Ended,
            None => self.initial_segment_number(playlist),
        };
        let index = usize::try_from(next.saturating_sub(first.media_sequence_number)).unwrap_or(usize::MAX);
        if let Some(segment) = playlist.segments.get(index) {
            (self.next_segment_number, self.next_part_index) = (Some(next.saturating_add(1)), 0);
            self.end_date_time = segment.program_date_time.and_then(|begin| {
                let milliseconds = i64::try_from(segment.duration.as_millis()).ok()?;
                begin.checked_add(milliseconds)
            });
            let segment = OriginSegment {
                parts: Vec::new(),
                ..segment.clone()
            };
            let timeline = self.update_timeline_id_for_segment(&segment);
            return CursorStep::FetchSegment(Box::new(segment), timeline);
        }
        if playlist.has_ended {
            if self.repeats_recording && !self.was_live {
                self.restart();
                return self.advance_to_next_step(playlist);
            }
            return CursorStep::Ended;
        }
        if self.next_segment_number.replace(next) != Some(next) {
            self.next_part_index = 0;
        }
        CursorStep::ReloadPlaylist(if self.unchanged_load_count == 0 {
            // One wrong EXTINF does not delay the next load.
            bound_reload_interval(last.duration.min(playlist.target_duration))
        } else {
            bound_reload_interval(playlist.target_duration / 2)
        })
    }

    /// Returns the media sequence number to start at. While the live edge is a gap, that is the segment after it: what was
    /// before has been shown already, or is older than a viewer of a live stream expects.
    fn initial_segment_number(&self, playlist: &MediaPlaylist) -> u64 {
        let segment = if playlist.has_ended {
            playlist.segments.first()
        } else {
            playlist.segments.last().filter(|segment| !segment.is_gap)
        };
        segment.map_or(playlist.next_segment_number, |segment| segment.media_sequence_number)
    }

    /// Begins again at the live edge, on another timeline.
    pub fn restart(&mut self) {
        let generation = self.restart_count.wrapping_add(1);
        *self = Self {
            restart_count: generation,
            was_live: self.was_live,
            ..Self::new(self.repeats_recording)
        };
    }

    /// Returns the timeline of a segment, from the playlist's discontinuity sequence number if it has one, or else by
    /// counting discontinuities.
    fn update_timeline_id_for_segment(&mut self, segment: &OriginSegment) -> u64 {
        let last = self.last_discontinuity_sequence.replace(segment.discontinuity_sequence);
        match last {
            None if segment.has_discontinuity_sequence => {
                self.discontinuity_count =
                    u32::try_from(segment.discontinuity_sequence & 0xffff_ffff).unwrap_or_default();
            }
            None => {}
            Some(last) if segment.has_discontinuity_sequence && segment.discontinuity_sequence > last => {
                let step = (segment.discontinuity_sequence - last) & 0xffff_ffff;
                self.discontinuity_count = self
                    .discontinuity_count
                    .wrapping_add(u32::try_from(step).unwrap_or_default());
            }
            // Without a number, or with one that is not advanced as the tags slide out of the playlist.
            Some(_) => {
                self.discontinuity_count = self
                    .discontinuity_count
                    .wrapping_add(u32::from(segment.follows_discontinuity))
            }
        }
        u64::from(self.restart_count) << 32 | u64::from(self.discontinuity_count)
    }
}

/// Whether a playlist that has ended is a recording, and not the end of a live stream whose first segments have slid out.
fn is_recording(playlist: &MediaPlaylist) -> bool {
    // Some packagers count from 1.
    let is_whole = playlist
        .segments
        .first()
        .is_some_and(|first| first.media_sequence_number <= 1);
    playlist.keeps_all_segments || is_whole
}

/// The segment with this number, which may be in progress.
fn segment_by_number(playlist: &MediaPlaylist, number: u64) -> Option<&OriginSegment> {
    let first = playlist
        .segments
        .first()
        .map_or(playlist.next_segment_number, |segment| segment.media_sequence_number);
    let index = usize::try_from(number.checked_sub(first)?).ok()?;
    let open = playlist
        .segment_in_progress
        .as_ref()
        .filter(|open| open.media_sequence_number == number);
    playlist.segments.get(index).or(open)
}

/// The last part that a decoder can start with.
fn latest_independent_part(playlist: &MediaPlaylist) -> Option<(u64, usize)> {
    let newest = playlist
        .segment_in_progress
        .iter()
        .chain(playlist.segments.iter().rev());
    let mut newest = newest.take(3).take_while(|segment| !segment.is_gap);
    newest.find_map(|segment| {
        let part = segment
            .parts
            .iter()
            .rposition(|part| part.is_independent && !part.is_gap)?;
        Some((segment.media_sequence_number, part))
    })
}

fn bound_reload_interval(time: Duration) -> Duration {
    time.clamp(MIN_RELOAD_INTERVAL, MAX_RELOAD_INTERVAL)
}

#[cfg(test)]
mod tests;
