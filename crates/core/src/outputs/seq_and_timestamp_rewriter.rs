//! Sequence number and timestamp rewriting for one viewer: maps positions of a track to what the viewer receives, and
//! back (invariant 3).

use std::collections::VecDeque;

use crate::media::clock::TimestampCompression;
use crate::media::packet::{TrackSeq, TrackTime};

/// Maps track positions to outgoing sequence numbers and timestamps.
///
/// Timestamps have one constant offset for the whole life of the viewer. Where a viewer starts with packets from the
/// past, their timestamps are compressed into the time that it takes to send them: the receiver sees a steady clock and
/// ends up at the live edge. The mapping of a packet never changes once it was used, so a retransmission is byte for
/// byte the same (invariant 6).
#[derive(Debug)]
pub struct RtpSeqAndTimestampRewriter {
    seq_offset_ranges: VecDeque<SeqOffsetRange>,
    next_out_seq: u64,
    timestamp_offset: u32,
}

/// A range of track positions with a constant sequence number offset.
#[derive(Debug)]
struct SeqOffsetRange {
    first_position: TrackSeq,
    /// Position after the last one; [`u64::MAX`] while open.
    end_position: TrackSeq,
    /// Outgoing sequence number minus track position, wrapping.
    seq_offset: u64,
    timestamp_compression: Option<TimestampCompression>,
}

/// Number of segments kept for retransmissions and late packets.
const MAX_SEQ_OFFSET_RANGES: usize = 8;

/// The same where frames are left out, each of which ends a segment: those of two seconds.
const MAX_SEQ_OFFSET_RANGES_BETWEEN_LEFT_OUT_FRAMES: usize = 64;

impl RtpSeqAndTimestampRewriter {
    /// `first_seq` is the first outgoing sequence number. It is reduced to less than 2^15, so that the loss of the
    /// first packets cannot desynchronize the receiver's roll-over counter (RFC 3711 §3.3.1).
    pub fn new(first_seq: u16, timestamp_offset: u32) -> Self {
        Self {
            seq_offset_ranges: VecDeque::new(),
            next_out_seq: u64::from(first_seq & 0x7fff),
            timestamp_offset,
        }
    }

    /// Continues at track position `from`; `end_position` is the position after the last packet that was sent.
    pub fn continue_from_track_position(
        &mut self,
        until: TrackSeq,
        from: TrackSeq,
        compression: Option<TimestampCompression>,
    ) {
        if let Some(last) = self.seq_offset_ranges.back_mut() {
            last.end_position = until.max(last.first_position);
            self.next_out_seq = last.end_position.wrapping_add(last.seq_offset);
        }
        self.seq_offset_ranges.retain(|s| s.first_position < s.end_position);
        if self.seq_offset_ranges.len() >= MAX_SEQ_OFFSET_RANGES {
            self.seq_offset_ranges.pop_front();
        }
        self.seq_offset_ranges.push_back(SeqOffsetRange {
            first_position: from,
            end_position: u64::MAX,
            seq_offset: self.next_out_seq.wrapping_sub(from),
            timestamp_compression: compression,
        });
    }

    /// Leaves out the positions from `from` to before `until`: what follows has the next sequence numbers, and timestamps by
    /// the same rule. All that is before `from` keeps its numbers, whether it was sent or is still missing.
    pub fn leave_out_positions(&mut self, from: TrackSeq, until: TrackSeq) {
        let Some(last) = self.seq_offset_ranges.back_mut() else {
            return;
        };
        let timestamp_compression = last.timestamp_compression;
        last.end_position = from.max(last.first_position);
        self.next_out_seq = last.end_position.wrapping_add(last.seq_offset);
        if last.first_position == last.end_position {
            self.seq_offset_ranges.pop_back();
        }
        if self.seq_offset_ranges.len() >= MAX_SEQ_OFFSET_RANGES_BETWEEN_LEFT_OUT_FRAMES {
            self.seq_offset_ranges.pop_front();
        }
        self.seq_offset_ranges.push_back(SeqOffsetRange {
            first_position: until,
            end_position: u64::MAX,
            seq_offset: self.next_out_seq.wrapping_sub(until),
            timestamp_compression,
        });
    }

    /// Ends all segments: what follows is read from another track with unrelated positions. Packets sent so far can no
    /// longer be found. `end_position` is as for [`Self::continue_from_track_position`].
    pub fn clear_seq_offset_ranges(&mut self, until: TrackSeq) {
        self.continue_from_track_position(until, until, None);
        self.seq_offset_ranges.clear();
    }

    /// Returns the extended sequence number and the rewritten track time of a track position; `None` if it was skipped.
    pub fn outgoing_seq_and_track_time(&self, seq: TrackSeq, time: TrackTime) -> Option<(u64, TrackTime)> {
        let segment = self
            .seq_offset_ranges
            .iter()
            .rev()
            .find(|s| s.first_position <= seq && seq < s.end_position)?;
        let time = segment
            .timestamp_compression
            .map_or(time, |compression| compression.compress_time(time));
        Some((seq.wrapping_add(segment.seq_offset), time))
    }

    /// Like [`Self::outgoing_seq_and_track_time`] for a retransmission: returns the RTP timestamp for an outgoing sequence number, with `time`
    /// from the packet in the ring.
    pub fn retransmission_timestamp(&self, out: u64, time: TrackTime) -> Option<u32> {
        let segment = self.seq_offset_range_of_out_seq(out)?;
        Some(
            self.rtp_timestamp(
                segment
                    .timestamp_compression
                    .map_or(time, |compression| compression.compress_time(time)),
            ),
        )
    }

    /// Returns the RTP timestamp of a track time at the live edge.
    pub fn rtp_timestamp(&self, time: TrackTime) -> u32 {
        (time as u32).wrapping_add(self.timestamp_offset)
    }

    /// Returns the extended outgoing sequence number and the track position of a 16-bit sequence number near the newest
    /// one, which was sent for track position `newest`.
    pub fn find_position_of_sent_seq(&self, seq: u16, newest: TrackSeq) -> Option<(u64, TrackSeq)> {
        let newest = newest.wrapping_add(self.seq_offset_ranges.back()?.seq_offset);
        let behind = (newest as u16).wrapping_sub(seq);
        let out = newest.checked_sub(u64::from(behind))?;
        let segment = self.seq_offset_range_of_out_seq(out)?;
        Some((out, out.wrapping_sub(segment.seq_offset)))
    }

    fn seq_offset_range_of_out_seq(&self, out: u64) -> Option<&SeqOffsetRange> {
        self.seq_offset_ranges.iter().rev().find(|s| {
            let track = out.wrapping_sub(s.seq_offset);
            s.first_position <= track && track < s.end_position
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_track_leaves_no_gap_in_sequence_numbers() {
        let mut rewriter = RtpSeqAndTimestampRewriter::new(100, 7);
        rewriter.continue_from_track_position(0, 1_000, None);
        assert_eq!(rewriter.outgoing_seq_and_track_time(1_000, 50), Some((100, 50)));
        assert_eq!(rewriter.outgoing_seq_and_track_time(1_004, 60), Some((104, 60)));
        assert_eq!(rewriter.rtp_timestamp(60), 67);
        rewriter.continue_from_track_position(1_005, 2_000, None);
        assert_eq!(rewriter.outgoing_seq_and_track_time(2_000, 90), Some((105, 90)));
        assert_eq!(
            rewriter.outgoing_seq_and_track_time(1_003, 60),
            Some((103, 60)),
            "late packets keep their sequence number"
        );
        assert_eq!(rewriter.outgoing_seq_and_track_time(1_500, 70), None, "skipped");
        assert_eq!(rewriter.find_position_of_sent_seq(103, 2_000), Some((103, 1_003)));
        assert_eq!(rewriter.find_position_of_sent_seq(105, 2_003), Some((105, 2_000)));
    }

    #[test]
    fn a_replay_has_new_sequence_numbers() {
        let mut rewriter = RtpSeqAndTimestampRewriter::new(0, 0);
        rewriter.continue_from_track_position(0, 10, None);
        rewriter.continue_from_track_position(20, 12, None);
        assert_eq!(rewriter.outgoing_seq_and_track_time(12, 0).map(|m| m.0), Some(10));
        assert_eq!(
            rewriter.find_position_of_sent_seq(2, 12),
            Some((2, 12)),
            "first transmission"
        );
        assert_eq!(rewriter.find_position_of_sent_seq(10, 12), Some((10, 12)), "replay");
    }

    #[test]
    fn another_track_continues_with_the_next_sequence_number() {
        let mut rewriter = RtpSeqAndTimestampRewriter::new(100, 0);
        rewriter.continue_from_track_position(0, 5_000, None);
        rewriter.clear_seq_offset_ranges(5_003);
        assert_eq!(
            (
                rewriter.outgoing_seq_and_track_time(5_002, 0),
                rewriter.find_position_of_sent_seq(102, 5_002)
            ),
            (None, None)
        );
        rewriter.continue_from_track_position(0, 70, None);
        assert_eq!(rewriter.outgoing_seq_and_track_time(70, 9), Some((103, 9)));
        assert_eq!(
            rewriter.find_position_of_sent_seq(102, 71),
            None,
            "sent from the other track"
        );
        assert_eq!(rewriter.find_position_of_sent_seq(103, 71), Some((103, 70)));
    }

    #[test]
    fn what_is_left_out_takes_no_sequence_numbers_and_the_rest_keeps_its_own() {
        let mut rewriter = RtpSeqAndTimestampRewriter::new(100, 0);
        let compression = TimestampCompression {
            first_packet_time: 0,
            mapped_first_packet_time: 500,
            live_edge_time: 1_000,
        };
        rewriter.continue_from_track_position(0, 1_000, Some(compression));
        // 1,003 is missing and may still come; 1,004 to 1,006 are left out one by one, and then 1,010.
        for position in [1_004, 1_005, 1_006, 1_010] {
            rewriter.leave_out_positions(position, position + 1);
        }
        let out = |position| {
            let mapped = rewriter.outgoing_seq_and_track_time(position, 200);
            mapped.map(|(seq, time)| {
                assert_eq!(time, compression.compress_time(200));
                seq
            })
        };
        let mapped: Vec<Option<u64>> = [1_002, 1_003, 1_004, 1_006, 1_007, 1_009, 1_010, 1_011]
            .map(out)
            .to_vec();
        let expected = [Some(102), Some(103), None, None, Some(104), Some(106), None, Some(107)];
        assert_eq!(mapped, expected);
        for (seq, position) in [(103, 1_003), (104, 1_007), (106, 1_009), (107, 1_011)] {
            assert_eq!(
                rewriter.find_position_of_sent_seq(seq, 1_011),
                Some((u64::from(seq), position))
            );
        }
    }

    #[test]
    fn what_was_sent_before_too_many_frames_were_left_out_is_not_found() {
        let mut rewriter = RtpSeqAndTimestampRewriter::new(0, 0);
        rewriter.continue_from_track_position(0, 1_000, None);
        for frame in 0..100 {
            rewriter.leave_out_positions(1_003 + 6 * frame, 1_006 + 6 * frame);
        }
        assert_eq!(
            rewriter.seq_offset_ranges.len(),
            MAX_SEQ_OFFSET_RANGES_BETWEEN_LEFT_OUT_FRAMES
        );
        let newest = 1_006 + 6 * 99;
        assert_eq!(rewriter.find_position_of_sent_seq(300, newest), Some((300, newest)));
        assert_eq!(rewriter.find_position_of_sent_seq(299, newest), Some((299, newest - 4)));
        assert_eq!(rewriter.find_position_of_sent_seq(2, newest), None);
    }

    #[test]
    fn leaving_a_track_before_sending_uses_no_sequence_number() {
        let mut rewriter = RtpSeqAndTimestampRewriter::new(100, 0);
        rewriter.continue_from_track_position(0, 5_000, None);
        rewriter.clear_seq_offset_ranges(0);
        rewriter.continue_from_track_position(0, 70, None);
        assert_eq!(rewriter.outgoing_seq_and_track_time(70, 9), Some((100, 9)));
    }

    #[test]
    fn compressed_times_rise_steadily_from_the_live_edge_and_meet_it() {
        let compression = TimestampCompression {
            first_packet_time: 1_000,
            mapped_first_packet_time: 11_000,
            live_edge_time: 11_500,
        };
        assert_eq!(compression.compress_time(1_000), 11_000);
        assert_eq!(compression.compress_time(6_250), 11_250);
        assert_eq!(compression.compress_time(11_500), 11_500);
        let times: Vec<u64> = (1_000..12_000)
            .step_by(30)
            .map(|t| compression.compress_time(t))
            .collect();
        assert!(times.windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn sequence_numbers_are_found_after_the_wrap() {
        let mut rewriter = RtpSeqAndTimestampRewriter::new(0x7fff, 0);
        rewriter.continue_from_track_position(0, 0, None);
        for seq in [0u64, 40_000, 70_000, 200_000] {
            let (out, _) = rewriter.outgoing_seq_and_track_time(seq, 0).expect("open segment");
            assert_eq!(
                rewriter.find_position_of_sent_seq(out as u16, seq + 100),
                Some((out, seq))
            );
        }
    }
}
