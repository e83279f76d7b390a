//! Sequence number and timestamp rewriting for one viewer: maps positions of a track to what the viewer receives, and
//! back (invariant 3).

use std::collections::VecDeque;

use crate::media::packet::{TrackSeq, TrackTime};

/// Maps track positions to outgoing sequence numbers and timestamps.
///
/// Timestamps have one constant offset for the whole life of the viewer. Where a viewer starts with packets from the
/// past, their timestamps are compressed into the time that it takes to send them: the receiver sees a steady clock and
/// ends up at the live edge. The mapping of a packet never changes once it was used, so a retransmission is byte for
/// byte the same (invariant 6).
#[derive(Debug)]
pub struct SequenceRewriter {
    segments: VecDeque<OffsetRange>,
    next: u64,
    time_shift: u32,
}

/// A range of track positions with a constant sequence number offset.
#[derive(Debug)]
struct OffsetRange {
    from: TrackSeq,
    /// Position after the last one; [`u64::MAX`] while open.
    until: TrackSeq,
    /// Outgoing sequence number minus track position, wrapping.
    shift: u64,
    compression: Option<TimestampCompression>,
}

/// Compresses the times from `from` on, so that they start at `begin`; times from `end` on are unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampCompression {
    /// Track time of the first packet.
    pub from: TrackTime,
    /// Track time that it is mapped to: the live edge at the start.
    pub begin: TrackTime,
    /// Track time at which the viewer reaches the live edge.
    pub end: TrackTime,
}

impl TimestampCompression {
    /// Maps a track time.
    pub fn apply(self, time: TrackTime) -> TrackTime {
        if time >= self.end {
            return time;
        }
        let (past, whole, room) = (
            time.saturating_sub(self.from),
            self.end - self.from,
            self.end.saturating_sub(self.begin),
        );
        let compressed = u128::from(past) * u128::from(room) / u128::from(whole.max(1));
        self.begin + u64::try_from(compressed).unwrap_or(0)
    }
}

/// Number of segments kept for retransmissions and late packets.
const MAX_SEGMENTS: usize = 8;

impl SequenceRewriter {
    /// `first_seq` is the first outgoing sequence number. It is reduced to less than 2^15, so that the loss of the
    /// first packets cannot desynchronize the receiver's roll-over counter (RFC 3711 §3.3.1).
    pub fn new(first_seq: u16, time_shift: u32) -> Self {
        Self {
            segments: VecDeque::new(),
            next: u64::from(first_seq & 0x7fff),
            time_shift,
        }
    }

    /// Continues at track position `from`; `until` is the position after the last packet that was sent.
    pub fn continue_at(&mut self, until: TrackSeq, from: TrackSeq, compression: Option<TimestampCompression>) {
        if let Some(last) = self.segments.back_mut() {
            last.until = until.max(last.from);
            self.next = last.until.wrapping_add(last.shift);
        }
        self.segments.retain(|s| s.from < s.until);
        if self.segments.len() >= MAX_SEGMENTS {
            self.segments.pop_front();
        }
        self.segments.push_back(OffsetRange {
            from,
            until: u64::MAX,
            shift: self.next.wrapping_sub(from),
            compression,
        });
    }

    /// Ends all segments: what follows is read from another track with unrelated positions. Packets sent so far can no
    /// longer be found. `until` is as for [`Self::continue_at`].
    pub fn leave(&mut self, until: TrackSeq) {
        self.continue_at(until, until, None);
        self.segments.clear();
    }

    /// Returns the extended sequence number and the rewritten track time of a track position; `None` if it was skipped.
    pub fn map(&self, seq: TrackSeq, time: TrackTime) -> Option<(u64, TrackTime)> {
        let segment = self.segments.iter().rev().find(|s| s.from <= seq && seq < s.until)?;
        let time = segment.compression.map_or(time, |compression| compression.apply(time));
        Some((seq.wrapping_add(segment.shift), time))
    }

    /// Like [`Self::map`] for a retransmission: returns the RTP timestamp for an outgoing sequence number, with `time`
    /// from the packet in the ring.
    pub fn stamp_of(&self, out: u64, time: TrackTime) -> Option<u32> {
        let segment = self.segment_of(out)?;
        Some(self.stamp(segment.compression.map_or(time, |compression| compression.apply(time))))
    }

    /// Returns the RTP timestamp of a track time at the live edge.
    pub fn stamp(&self, time: TrackTime) -> u32 {
        (time as u32).wrapping_add(self.time_shift)
    }

    /// Returns the extended outgoing sequence number and the track position of a 16-bit sequence number near the newest
    /// one, which was sent for track position `newest`.
    pub fn find(&self, seq: u16, newest: TrackSeq) -> Option<(u64, TrackSeq)> {
        let newest = newest.wrapping_add(self.segments.back()?.shift);
        let behind = (newest as u16).wrapping_sub(seq);
        let out = newest.checked_sub(u64::from(behind))?;
        let segment = self.segment_of(out)?;
        Some((out, out.wrapping_sub(segment.shift)))
    }

    fn segment_of(&self, out: u64) -> Option<&OffsetRange> {
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
    fn a_jump_of_the_track_leaves_no_gap_in_sequence_numbers() {
        let mut rewriter = SequenceRewriter::new(100, 7);
        rewriter.continue_at(0, 1_000, None);
        assert_eq!(rewriter.map(1_000, 50), Some((100, 50)));
        assert_eq!(rewriter.map(1_004, 60), Some((104, 60)));
        assert_eq!(rewriter.stamp(60), 67);
        rewriter.continue_at(1_005, 2_000, None);
        assert_eq!(rewriter.map(2_000, 90), Some((105, 90)));
        assert_eq!(
            rewriter.map(1_003, 60),
            Some((103, 60)),
            "late packets keep their sequence number"
        );
        assert_eq!(rewriter.map(1_500, 70), None, "skipped");
        assert_eq!(rewriter.find(103, 2_000), Some((103, 1_003)));
        assert_eq!(rewriter.find(105, 2_003), Some((105, 2_000)));
    }

    #[test]
    fn a_replay_has_new_sequence_numbers() {
        let mut rewriter = SequenceRewriter::new(0, 0);
        rewriter.continue_at(0, 10, None);
        rewriter.continue_at(20, 12, None);
        assert_eq!(rewriter.map(12, 0).map(|m| m.0), Some(10));
        assert_eq!(rewriter.find(2, 12), Some((2, 12)), "first transmission");
        assert_eq!(rewriter.find(10, 12), Some((10, 12)), "replay");
    }

    #[test]
    fn another_track_continues_with_the_next_sequence_number() {
        let mut rewriter = SequenceRewriter::new(100, 0);
        rewriter.continue_at(0, 5_000, None);
        rewriter.leave(5_003);
        assert_eq!((rewriter.map(5_002, 0), rewriter.find(102, 5_002)), (None, None));
        rewriter.continue_at(0, 70, None);
        assert_eq!(rewriter.map(70, 9), Some((103, 9)));
        assert_eq!(rewriter.find(102, 71), None, "sent from the other track");
        assert_eq!(rewriter.find(103, 71), Some((103, 70)));
    }

    #[test]
    fn leaving_a_track_before_sending_uses_no_sequence_number() {
        let mut rewriter = SequenceRewriter::new(100, 0);
        rewriter.continue_at(0, 5_000, None);
        rewriter.leave(0);
        rewriter.continue_at(0, 70, None);
        assert_eq!(rewriter.map(70, 9), Some((100, 9)));
    }

    #[test]
    fn compressed_times_rise_steadily_from_the_live_edge_and_meet_it() {
        let compression = TimestampCompression {
            from: 1_000,
            begin: 11_000,
            end: 11_500,
        };
        assert_eq!(compression.apply(1_000), 11_000);
        assert_eq!(compression.apply(6_250), 11_250);
        assert_eq!(compression.apply(11_500), 11_500);
        let times: Vec<u64> = (1_000..12_000).step_by(30).map(|t| compression.apply(t)).collect();
        assert!(times.windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn sequence_numbers_are_found_after_the_wrap() {
        let mut rewriter = SequenceRewriter::new(0x7fff, 0);
        rewriter.continue_at(0, 0, None);
        for seq in [0u64, 40_000, 70_000, 200_000] {
            let (out, _) = rewriter.map(seq, 0).expect("open segment");
            assert_eq!(rewriter.find(out as u16, seq + 100), Some((out, seq)));
        }
    }
}
