//! The unbroken line of one viewer: maps the track's numbering to what the viewer sees, and back (invariant 3).

use std::collections::VecDeque;

use crate::media::packet::{TrackSeq, TrackTime};

/// Maps track positions to outgoing sequence numbers and timestamps.
///
/// Time is shifted by one number for the whole life of the viewer. Where a viewer begins with packets from the past,
/// their times are squeezed into the moment that their sending takes, so that the receiver sees a steady clock and ends
/// up at the live edge. The mapping of a packet never changes once it was used: a retransmission is byte for byte the
/// same (invariant 6).
#[derive(Debug)]
pub struct SequenceRewriter {
    segments: VecDeque<Segment>,
    next: u64,
    time_shift: u32,
}

/// Track positions that were sent one after the other.
#[derive(Debug)]
struct Segment {
    from: TrackSeq,
    /// Position after the last; [`u64::MAX`] while open.
    until: TrackSeq,
    /// Outgoing minus track sequence number, wrapping.
    shift: u64,
    squeeze: Option<TimestampCompression>,
}

/// Times from `from` on are pressed together to begin at `begin`; from `end` on nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampCompression {
    /// Track time of the first packet.
    pub from: TrackTime,
    /// Track time that it is sent as: the live edge at that moment.
    pub begin: TrackTime,
    /// Track time at which the viewer will have reached the live edge.
    pub end: TrackTime,
}

impl TimestampCompression {
    /// The squeezed time of a track time.
    pub fn apply(self, time: TrackTime) -> TrackTime {
        if time >= self.end {
            return time;
        }
        let (past, whole, room) = (
            time.saturating_sub(self.from),
            self.end - self.from,
            self.end.saturating_sub(self.begin),
        );
        let squeezed = u128::from(past) * u128::from(room) / u128::from(whole.max(1));
        self.begin + u64::try_from(squeezed).unwrap_or(0)
    }
}

/// Segments remembered for retransmissions and late packets.
const MAX_SEGMENTS: usize = 8;

impl SequenceRewriter {
    /// `first_seq` is the first outgoing sequence number: below 2^15, so that the loss of the first packets cannot
    /// put the receiver's roll-over counter out of step (RFC 3711 §3.3.1).
    pub fn new(first_seq: u16, time_shift: u32) -> Self {
        Self {
            segments: VecDeque::new(),
            next: u64::from(first_seq & 0x7fff),
            time_shift,
        }
    }

    /// Goes on at another track position; `until` is the position after the last that was sent.
    pub fn go_on(&mut self, until: TrackSeq, from: TrackSeq, squeeze: Option<TimestampCompression>) {
        if let Some(last) = self.segments.back_mut() {
            last.until = until.max(last.from);
            self.next = last.until.wrapping_add(last.shift);
        }
        self.segments.retain(|s| s.from < s.until);
        if self.segments.len() >= MAX_SEGMENTS {
            self.segments.pop_front();
        }
        self.segments.push_back(Segment {
            from,
            until: u64::MAX,
            shift: self.next.wrapping_sub(from),
            squeeze,
        });
    }

    /// Ends all segments: what follows is read from another track, whose positions mean something else. What was sent
    /// so far cannot be found again. `until` is as for [`Self::go_on`].
    pub fn leave(&mut self, until: TrackSeq) {
        self.go_on(until, until, None);
        self.segments.clear();
    }

    /// Extended sequence number and time on the line of a track position. `None` when it was skipped.
    pub fn map(&self, seq: TrackSeq, time: TrackTime) -> Option<(u64, TrackTime)> {
        let segment = self.segments.iter().rev().find(|s| s.from <= seq && seq < s.until)?;
        let time = segment.squeeze.map_or(time, |squeeze| squeeze.apply(time));
        Some((seq.wrapping_add(segment.shift), time))
    }

    /// As [`Self::map`] for a retransmission: from the outgoing sequence number back to the track, `time` being given
    /// by the packet there.
    pub fn stamp_of(&self, out: u64, time: TrackTime) -> Option<u32> {
        let segment = self.segment_of(out)?;
        Some(self.stamp(segment.squeeze.map_or(time, |squeeze| squeeze.apply(time))))
    }

    /// Timestamp of a track time at the live edge.
    pub fn stamp(&self, time: TrackTime) -> u32 {
        (time as u32).wrapping_add(self.time_shift)
    }

    /// Extended outgoing sequence number and track position of a 16-bit sequence number near the newest one, which was
    /// sent for track position `newest`.
    pub fn find(&self, seq: u16, newest: TrackSeq) -> Option<(u64, TrackSeq)> {
        let newest = newest.wrapping_add(self.segments.back()?.shift);
        let behind = (newest as u16).wrapping_sub(seq);
        let out = newest.checked_sub(u64::from(behind))?;
        let segment = self.segment_of(out)?;
        Some((out, out.wrapping_sub(segment.shift)))
    }

    fn segment_of(&self, out: u64) -> Option<&Segment> {
        self.segments.iter().rev().find(|s| {
            let track = out.wrapping_sub(s.shift);
            s.from <= track && track < s.until
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_track_is_no_jump_of_the_line() {
        let mut line = SequenceRewriter::new(100, 7);
        line.go_on(0, 1_000, None);
        assert_eq!(line.map(1_000, 50), Some((100, 50)));
        assert_eq!(line.map(1_004, 60), Some((104, 60)));
        assert_eq!(line.stamp(60), 67);
        line.go_on(1_005, 2_000, None);
        assert_eq!(line.map(2_000, 90), Some((105, 90)));
        assert_eq!(line.map(1_003, 60), Some((103, 60)), "late packets keep their place");
        assert_eq!(line.map(1_500, 70), None, "skipped");
        assert_eq!(line.find(103, 2_000), Some((103, 1_003)));
        assert_eq!(line.find(105, 2_003), Some((105, 2_000)));
    }

    #[test]
    fn a_replay_has_numbers_of_its_own() {
        let mut line = SequenceRewriter::new(0, 0);
        line.go_on(0, 10, None);
        line.go_on(20, 12, None);
        assert_eq!(line.map(12, 0).map(|m| m.0), Some(10));
        assert_eq!(line.find(2, 12), Some((2, 12)), "first transmission");
        assert_eq!(line.find(10, 12), Some((10, 12)), "replay");
    }

    #[test]
    fn another_track_goes_on_with_the_next_number_and_nothing_old_is_found() {
        let mut line = SequenceRewriter::new(100, 0);
        line.go_on(0, 5_000, None);
        line.leave(5_003);
        assert_eq!((line.map(5_002, 0), line.find(102, 5_002)), (None, None));
        line.go_on(0, 70, None);
        assert_eq!(line.map(70, 9), Some((103, 9)));
        assert_eq!(line.find(102, 71), None, "sent from the other track");
        assert_eq!(line.find(103, 71), Some((103, 70)));
    }

    #[test]
    fn a_track_that_was_left_before_anything_was_sent_takes_no_number() {
        let mut line = SequenceRewriter::new(100, 0);
        line.go_on(0, 5_000, None);
        line.leave(0);
        line.go_on(0, 70, None);
        assert_eq!(line.map(70, 9), Some((100, 9)));
    }

    #[test]
    fn squeezed_times_rise_steadily_from_the_live_edge_and_meet_it() {
        let squeeze = TimestampCompression {
            from: 1_000,
            begin: 11_000,
            end: 11_500,
        };
        assert_eq!(squeeze.apply(1_000), 11_000);
        assert_eq!(squeeze.apply(6_250), 11_250);
        assert_eq!(squeeze.apply(11_500), 11_500);
        let times: Vec<u64> = (1_000..12_000).step_by(30).map(|t| squeeze.apply(t)).collect();
        assert!(times.windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn numbers_are_found_again_after_the_wrap() {
        let mut line = SequenceRewriter::new(0x7fff, 0);
        line.go_on(0, 0, None);
        for seq in [0u64, 40_000, 70_000, 200_000] {
            let (out, _) = line.map(seq, 0).expect("open segment");
            assert_eq!(line.find(out as u16, seq + 100), Some((out, seq)));
        }
    }
}
