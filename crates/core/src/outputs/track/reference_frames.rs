//! A track of which the frames that nothing refers to are left out, whole frame by whole frame.

use std::time::{Duration, Instant};

use super::TrackSender;
use crate::congestion::ladder::FrameSelection;
use crate::hub::ring::PacketRing;
use crate::media::codec::FrameReference;
use crate::media::packet::TrackSeq;
use crate::outputs::reference_frame_selector::{PassedFrame, ReferenceFrameSelector};

/// How long packets that are missing beside a frame that is left out are waited for: only when they come they show which
/// frame they belong to.
const MAX_MISSING_PACKET_WAIT: Duration = Duration::from_millis(150);

impl TrackSender {
    /// Whether packets are read from the ring although they could leave at once: what a frame is may show only later.
    pub fn selects_frames_in_ring(&self) -> bool {
        self.frame_selection == FrameSelection::ReferenceFrames
    }

    /// From now on frames that nothing refers to are left out, but for the rest of one that was begun.
    pub(super) fn begin_reference_frames(&mut self, ring: &PacketRing) {
        let last = self.last_sent_position().and_then(|seq| ring.get(seq));
        self.reference_frames = ReferenceFrameSelector {
            passed_frame: last.map(|entry| PassedFrame {
                time: entry.packet.time,
                is_left_out: false,
            }),
            ends_at_key_frame_from: None,
        };
    }

    /// All frames are sent from the next key frame on. Returns whether that is new.
    pub(super) fn end_reference_frames_at_key_frame(&mut self) -> bool {
        let is_new = self.reference_frames.ends_at_key_frame_from.is_none();
        self.reference_frames
            .ends_at_key_frame_from
            .get_or_insert(self.sent_end_position);
        is_new
    }

    /// Frames that nothing refers to go on being left out.
    pub(super) fn continue_reference_frames(&mut self) {
        self.reference_frames.ends_at_key_frame_from = None;
    }

    /// Moves `cursor` over frames that nothing refers to: they take no sequence numbers. Returns whether it is known that what
    /// is there now comes next, be it a missing packet.
    pub(super) fn skip_non_reference_frames(&mut self, now: Instant, cursor: &mut TrackSeq, ring: &PacketRing) -> bool {
        while self.frame_selection == FrameSelection::ReferenceFrames && *cursor < ring.end_seq() {
            let Some(entry) = (*cursor..ring.end_seq()).find_map(|seq| ring.get(seq)) else {
                return false;
            };
            let (seq, time) = (entry.packet.seq, entry.packet.time);
            match self.reference_frames.is_left_out(time) {
                Some(true) => {}
                Some(false) => return true,
                None => {
                    let reference = ring.frame_reference(entry);
                    if seq > *cursor {
                        let is_beside_left_out = reference != FrameReference::Reference
                            || self
                                .reference_frames
                                .passed_frame
                                .is_some_and(|frame| frame.is_left_out);
                        let waited = now.saturating_duration_since(entry.packet.arrival);
                        // After that they are missing for the viewer too: what it needs may be among them.
                        return !is_beside_left_out || waited >= MAX_MISSING_PACKET_WAIT;
                    }
                    if reference == FrameReference::Unknown {
                        return false;
                    }
                    let is_left_out = reference == FrameReference::NonReference;
                    self.reference_frames.passed_frame = Some(PassedFrame { time, is_left_out });
                    if self.end_reference_frames_if_due(seq, ring) || !is_left_out {
                        return true;
                    }
                }
            }
            self.rtp_sequence_rewriter.leave_out_positions(*cursor, seq + 1);
            self.sent_end_position = seq + 1;
            *cursor = seq + 1;
        }
        true
    }

    /// Ends it at the frame that starts here, if that is wanted, and a key frame starts here or was passed since. That was not
    /// known yet when it was passed if its first packet came late.
    fn end_reference_frames_if_due(&mut self, seq: TrackSeq, ring: &PacketRing) -> bool {
        let Some(from) = self.reference_frames.ends_at_key_frame_from else {
            return false;
        };
        let has_passed = |key_frame: TrackSeq| (from..=seq).contains(&key_frame);
        let is_due = ring.is_key_frame_start(seq) || ring.newest_key_frame_seq().is_some_and(has_passed);
        if is_due {
            self.set_frame_selection_before_start(FrameSelection::All);
        }
        is_due
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::hub::ring::RingEntry;
    use crate::media::Codec;
    use crate::media::packet::Packet;
    use crate::outputs::track::tests::track;

    const MS: Duration = Duration::from_millis(1);
    const DELIMITER: &[u8] = &[0x09, 0xf0];
    const KEY: &[u8] = &[0x65, 0x88];
    const KEY_SECOND_SLICE: &[u8] = &[0x65, 0x08];
    const REFERENCE: &[u8] = &[0x41, 0x9a];
    const NON_REFERENCE: &[u8] = &[0x01, 0x9a];
    const FIRST: TrackSeq = 100;

    struct Line {
        ring: PacketRing,
        track: TrackSender,
        start: Instant,
        now: Instant,
        /// Position and outgoing sequence number of what was sent.
        sent: Vec<(TrackSeq, u64)>,
    }

    impl Line {
        /// A viewer that began with a key frame at the first position, and is sent this selection.
        fn begin(selection: FrameSelection) -> Self {
            let start = Instant::now();
            let mut line = Self {
                ring: PacketRing::default(),
                track: track(),
                start,
                now: start,
                sent: Vec::new(),
            };
            line.track.set_frame_selection_before_start(selection);
            line.insert(0, 0, KEY);
            line.track.start_at_cached_key_frame(start, &line.ring);
            line.read(0);
            line
        }

        fn insert(&mut self, position: u64, frame: u64, payload: &'static [u8]) -> Arc<RingEntry> {
            let packet = Packet {
                seq: FIRST + position,
                time: 1_000_000 + frame * 3_000,
                codec: Codec::H264,
                marker: false,
                identifies_key_frame: payload == KEY,
                arrival: self.now,
                payload: Bytes::from_static(payload),
            };
            self.ring.insert(packet, 0).expect("new")
        }

        /// A packet arrives after so many milliseconds since the start.
        fn arrive(&mut self, at: u32, position: u64, frame: u64, payload: &'static [u8]) {
            self.now = self.start + at * MS;
            let entry = self.insert(position, frame, payload);
            if self.track.mark_handled_and_check_if_sendable(&entry) {
                let is_deferred =
                    self.track.selects_frames_in_ring() && self.track.defer_packet_to_ring(self.now, self.now, &entry);
                if !is_deferred {
                    self.send(&entry);
                }
            }
            self.read(at);
        }

        fn read(&mut self, at: u32) {
            let mut due = Vec::new();
            self.track
                .collect_due_packets(self.start + at * MS, &self.ring, None, &mut due);
            due.iter().for_each(|entry| self.send(entry));
        }

        fn send(&mut self, entry: &RingEntry) {
            let (seq, time) = (entry.packet.seq, entry.packet.time);
            let mapped = self.track.rtp_sequence_rewriter.outgoing_seq_and_track_time(seq, time);
            if let Some((out, _)) = mapped {
                self.track.sent_end_position = self.track.sent_end_position.max(seq + 1);
                self.track.sender_report_counts.packet_count += 1;
                self.sent.push((seq - FIRST, out));
            }
        }

        /// Positions that were sent, which have consecutive numbers.
        fn positions(&self) -> Vec<u64> {
            let is_consecutive = self.sent.windows(2).all(|pair| pair[1].1 == pair[0].1 + 1);
            assert!(is_consecutive, "{:?}", self.sent);
            self.sent.iter().map(|(position, _)| *position).collect()
        }
    }

    #[test]
    fn frames_that_nothing_refers_to_are_left_out_whole_and_leave_no_gap() {
        let mut line = Line::begin(FrameSelection::ReferenceFrames);
        line.arrive(33, 1, 1, DELIMITER);
        assert_eq!(line.positions(), [0], "not known yet what it belongs to");
        line.arrive(33, 2, 1, NON_REFERENCE);
        line.arrive(34, 3, 1, NON_REFERENCE);
        line.arrive(66, 4, 2, DELIMITER);
        line.arrive(66, 5, 2, REFERENCE);
        line.arrive(100, 6, 3, NON_REFERENCE);
        line.arrive(133, 7, 4, REFERENCE);
        line.arrive(134, 8, 4, REFERENCE);
        assert_eq!(line.positions(), [0, 4, 5, 7, 8]);
        for (position, out) in &line.sent {
            let newest = line.track.sent_end_position - 1;
            let found = line
                .track
                .rtp_sequence_rewriter
                .find_position_of_sent_seq(*out as u16, newest);
            assert_eq!(found, Some((*out, FIRST + position)), "a request finds what was sent");
        }
    }

    #[test]
    fn a_frame_that_was_begun_is_sent_whole() {
        let mut line = Line::begin(FrameSelection::All);
        line.arrive(33, 1, 1, NON_REFERENCE);
        assert!(
            !line
                .track
                .change_frame_selection(FrameSelection::ReferenceFrames, &line.ring)
        );
        line.arrive(34, 2, 1, NON_REFERENCE);
        line.arrive(66, 3, 2, NON_REFERENCE);
        line.arrive(100, 4, 3, REFERENCE);
        assert_eq!(line.positions(), [0, 1, 2, 4]);
    }

    #[test]
    fn all_frames_are_sent_again_from_the_next_key_frame_on() {
        let mut line = Line::begin(FrameSelection::ReferenceFrames);
        line.arrive(33, 1, 1, NON_REFERENCE);
        assert!(line.track.change_frame_selection(FrameSelection::All, &line.ring));
        assert!(
            !line.track.change_frame_selection(FrameSelection::All, &line.ring),
            "once"
        );
        line.arrive(66, 2, 2, REFERENCE);
        line.arrive(100, 3, 3, NON_REFERENCE);
        assert_eq!(line.track.frame_selection(), FrameSelection::ReferenceFrames);
        line.arrive(133, 4, 4, KEY);
        assert_eq!(line.track.frame_selection(), FrameSelection::All);
        line.arrive(166, 5, 5, NON_REFERENCE);
        line.arrive(200, 6, 6, REFERENCE);
        assert_eq!(line.positions(), [0, 2, 4, 5, 6]);
    }

    /// The viewer is past the key frame when its first packet, which tells that it is one, comes.
    #[test]
    fn all_frames_are_sent_again_after_a_key_frame_whose_first_packet_came_late() {
        let mut line = Line::begin(FrameSelection::ReferenceFrames);
        line.arrive(33, 1, 1, REFERENCE);
        assert!(line.track.change_frame_selection(FrameSelection::All, &line.ring));
        line.arrive(66, 3, 2, KEY_SECOND_SLICE);
        line.arrive(100, 4, 3, NON_REFERENCE);
        assert_eq!(
            line.sent.iter().map(|(position, _)| *position).collect::<Vec<_>>(),
            [0, 1, 3]
        );
        line.arrive(120, 2, 2, KEY);
        assert_eq!(line.track.frame_selection(), FrameSelection::ReferenceFrames);
        line.arrive(133, 5, 4, NON_REFERENCE);
        assert_eq!(line.track.frame_selection(), FrameSelection::All);
        line.arrive(166, 6, 5, NON_REFERENCE);
        line.sent.sort_unstable();
        assert_eq!(line.positions(), [0, 1, 2, 3, 5, 6]);
    }

    #[test]
    fn a_key_frame_from_before_does_not_bring_all_frames_back() {
        let mut line = Line::begin(FrameSelection::ReferenceFrames);
        line.arrive(33, 1, 1, NON_REFERENCE);
        line.track.change_frame_selection(FrameSelection::All, &line.ring);
        line.arrive(66, 2, 2, NON_REFERENCE);
        line.arrive(100, 3, 3, REFERENCE);
        assert_eq!(line.track.frame_selection(), FrameSelection::ReferenceFrames);
        assert_eq!(line.positions(), [0, 3]);
    }

    #[test]
    fn a_return_to_all_frames_is_taken_back() {
        let mut line = Line::begin(FrameSelection::ReferenceFrames);
        line.track.change_frame_selection(FrameSelection::All, &line.ring);
        line.track
            .change_frame_selection(FrameSelection::ReferenceFrames, &line.ring);
        line.arrive(33, 1, 1, KEY);
        line.arrive(66, 2, 2, NON_REFERENCE);
        assert_eq!(line.track.frame_selection(), FrameSelection::ReferenceFrames);
        assert_eq!(line.positions(), [0, 1]);
    }

    /// Only when it comes a packet shows whether it is of a frame that is left out.
    #[test]
    fn packets_that_are_missing_beside_a_frame_that_is_left_out_are_waited_for() {
        let mut line = Line::begin(FrameSelection::ReferenceFrames);
        line.arrive(33, 1, 1, REFERENCE);
        // 2 is the end of that frame.
        line.arrive(66, 3, 2, NON_REFERENCE);
        line.arrive(100, 4, 3, REFERENCE);
        assert_eq!(line.positions(), [0, 1]);
        line.arrive(120, 2, 1, REFERENCE);
        assert_eq!(line.positions(), [0, 1, 2, 4]);
        // 6 is the end of the frame that is left out.
        line.arrive(133, 5, 4, NON_REFERENCE);
        line.arrive(166, 7, 5, REFERENCE);
        assert_eq!(line.positions(), [0, 1, 2, 4]);
        line.arrive(180, 6, 4, NON_REFERENCE);
        assert_eq!(line.positions(), [0, 1, 2, 4, 7]);
        // 8 does not come: it may be what the viewer needs, so it is missing for the viewer too.
        line.arrive(200, 9, 6, NON_REFERENCE);
        line.arrive(233, 10, 7, REFERENCE);
        line.read(349);
        assert_eq!(line.positions(), [0, 1, 2, 4, 7]);
        line.read(350);
        let last: Vec<(u64, u64)> = line.sent.iter().rev().take(2).copied().collect();
        assert_eq!((last[0].0, last[1].0, last[0].1 - last[1].1), (10, 7, 2));
    }

    #[test]
    fn packets_that_are_missing_between_other_frames_hold_nothing_up() {
        let mut line = Line::begin(FrameSelection::ReferenceFrames);
        line.arrive(33, 1, 1, REFERENCE);
        line.arrive(66, 3, 2, REFERENCE);
        assert_eq!(line.sent.len(), 3);
        line.arrive(80, 2, 1, REFERENCE);
        line.sent.sort_unstable();
        assert_eq!(line.positions(), [0, 1, 2, 3]);
    }
}
