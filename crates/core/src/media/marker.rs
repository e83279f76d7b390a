//! Sets the marker bit of video packets right: on the last packet of an access unit and on no other (RFC 6184 §5.1, and
//! alike in the payload formats of the other codecs).
//!
//! Some senders set it on every NAL unit or on every slice, others never. A [`RtpMarkerCorrector`] believes a sender of H.264 or
//! H.265 once its first frames ended where the timestamp changed. Until then, and for a sender that was found wrong, it
//! holds a packet that may be the last of its frame until the next packet arrives, or for [`MARKER_HOLD_TIME`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Codec;
use super::codec::PayloadFraming;

/// The longest time for which a packet is held. The packets of one frame follow each other faster.
pub(crate) const MARKER_HOLD_TIME: Duration = Duration::from_millis(20);

/// The same while the frame has fewer slices with a marker than the one before it, and for the first frames as long as
/// they have none.
const MARKER_HOLD_TIME_IF_MORE_SLICES_EXPECTED: Duration = Duration::from_millis(200);

/// Number of frames that end right before a sender is believed.
const CORRECT_FRAMES_TO_TRUST_MARKERS: u8 = 2;

/// Frames in a row without any marker after which a sender is taken for one that sets none. A single one may be
/// parameter sets with a timestamp of their own.
const FRAMES_TO_INFER_NO_MARKERS: u8 = 2;

/// Frames in a row that end right with one marker, after which a wrong one before is forgiven.
const FRAMES_TO_FORGIVE_EARLY_MARKER: u8 = 64;

/// Maximum number of packets that wait, all but the first without payload.
const MAX_HELD_PACKETS: usize = 64;

/// Number of recent frames whose last packet is known.
const MAX_TRACKED_FRAME_ENDS: usize = 8;

/// One packet, as far as relevant here.
#[derive(Clone, Copy, Debug)]
pub struct RtpPacketMetadata {
    /// Extended sequence number.
    pub seq: u64,
    /// RTP timestamp.
    pub time: u64,
    pub marker: bool,
    /// `None` for a packet without payload, which is no part of a frame.
    pub payload_framing: Option<PayloadFraming>,
    pub arrival: Instant,
}

/// Sets the markers of one RTP stream. `T` is what belongs to a packet.
#[derive(Debug)]
pub(crate) struct RtpMarkerCorrector<T> {
    /// Number of frames that ended right so far, up to [`CORRECT_FRAMES_TO_TRUST_MARKERS`].
    correct_frame_end_count: u8,
    /// A marker was followed by more of the same frame.
    sender_sets_early_markers: bool,
    /// Frames in a row since then that ended right with one marker.
    correct_frames_in_row: u8,
    /// Frames in a row that ended without marker.
    unmarked_frames_in_row: u8,
    /// The newest packet with payload in sequence order.
    newest_packet: Option<NewestPayloadPacket>,
    /// Packets with picture data and marker in the frame before the newest one.
    marked_packet_count_in_previous_frame: u32,
    /// The held packet, and packets without payload after it.
    held_packets: VecDeque<(RtpPacketMetadata, T)>,
    /// Timestamp and last sequence number of recent frames; only while packets are held.
    frame_ends: VecDeque<(u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct NewestPayloadPacket {
    /// Sequence number of this packet or of packets without payload right after it.
    seq: u64,
    time: u64,
    marker: bool,
    continues_in_next_packet: bool,
    /// Its frame has picture data so far.
    has_slice: bool,
    /// Packets of its frame with picture data and marker so far.
    marked_packet_count_in_frame: u32,
}

impl NewestPayloadPacket {
    /// Whether another picture starts with the next packet, although it may have the same timestamp.
    fn is_last_of_picture(&self, next: PayloadFraming) -> bool {
        self.has_slice && next.starts_picture
    }
}

impl<T> RtpMarkerCorrector<T> {
    /// Creates a filter for a sender that is not known yet. Only NAL units get wrong markers: senders of other codecs are
    /// believed until they prove wrong.
    pub(crate) fn new(codec: Codec) -> Self {
        let is_nal = matches!(codec, Codec::H264 | Codec::H265);
        Self {
            correct_frame_end_count: if is_nal { 0 } else { CORRECT_FRAMES_TO_TRUST_MARKERS },
            sender_sets_early_markers: false,
            correct_frames_in_row: 0,
            unmarked_frames_in_row: 0,
            newest_packet: None,
            marked_packet_count_in_previous_frame: 0,
            held_packets: VecDeque::new(),
            frame_ends: VecDeque::new(),
        }
    }

    /// Processes a packet; appends the packets whose marker is known now, with their marker.
    pub(crate) fn push(&mut self, mark: RtpPacketMetadata, item: T, out: &mut Vec<(T, bool)>) {
        let Some(part) = mark.payload_framing else {
            return self.push_packet_without_payload(mark, item, out);
        };
        if let Some(newest) = self.newest_packet.filter(|newest| newest.seq >= mark.seq) {
            let marker = self.marker_of_late_packet(mark, newest);
            out.push((item, marker));
            return;
        }
        self.record_previous_marker_correctness(mark, part);
        self.release_held_given_next_packet(mark, part, out);
        let same = self.newest_packet.filter(|newest| newest.time == mark.time);
        if same.is_none() {
            self.marked_packet_count_in_previous_frame = self
                .newest_packet
                .map_or(0, |newest| newest.marked_packet_count_in_frame);
        }
        let has_slice = same.is_some_and(|newest| newest.has_slice) || part.has_slice;
        let marked =
            same.map_or(0, |newest| newest.marked_packet_count_in_frame) + u32::from(mark.marker && part.has_slice);
        self.newest_packet = Some(NewestPayloadPacket {
            seq: mark.seq,
            time: mark.time,
            marker: mark.marker,
            continues_in_next_packet: part.continues_in_next_packet,
            has_slice,
            marked_packet_count_in_frame: marked,
        });
        self.record_last_seq_of_frame(mark);
        if self.must_hold_packet(mark, part) {
            self.held_packets.push_back((mark, item));
        } else {
            out.push((item, mark.marker));
        }
    }

    /// Releases the held packet if it was held long enough: nothing more of its frame seems to come.
    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut Vec<(T, bool)>) {
        if self.poll_timeout().is_some_and(|due| due <= now) {
            let has_no_markers = self.correct_frame_end_count == 0 || self.sender_sets_no_markers();
            let ends = has_no_markers
                && self
                    .newest_packet
                    .is_some_and(|n| n.has_slice && !n.continues_in_next_packet);
            let marker = |mark: &RtpPacketMetadata| mark.marker || ends;
            out.extend(self.held_packets.drain(..).map(|(mark, item)| {
                let marker = mark.payload_framing.is_some() && marker(&mark);
                (item, marker)
            }));
        }
    }

    /// When [`Self::handle_timeout`] must be called; `None` while nothing is held.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let (front, _) = self.held_packets.front()?;
        let expects_more = self.sender_sets_early_markers
            && self
                .newest_packet
                .is_some_and(|newest| newest.marked_packet_count_in_frame < self.marked_packet_count_in_previous_frame);
        // Of a sender that is not known, nobody knows whether the end of a frame has a marker.
        let is_unknown = self.correct_frame_end_count == 0 && !front.marker && !self.sender_sets_no_markers();
        let hold = if expects_more || is_unknown {
            MARKER_HOLD_TIME_IF_MORE_SLICES_EXPECTED
        } else {
            MARKER_HOLD_TIME
        };
        Some(front.arrival + hold)
    }

    /// Whether nothing is missing at the end of the newest frame, as far as its marker tells.
    pub(crate) fn is_newest_frame_complete(&self) -> bool {
        self.newest_packet.is_some_and(|newest| {
            newest.has_slice && !newest.continues_in_next_packet && (newest.marker || self.sender_sets_no_markers())
        })
    }

    /// What follows has other sequence numbers and timestamps, but comes from the same sender. Releases what is held.
    pub(crate) fn flush_on_seq_and_timestamp_discontinuity(&mut self, out: &mut Vec<(T, bool)>) {
        out.extend(self.held_packets.drain(..).map(|(mark, item)| (item, mark.marker)));
        self.newest_packet = None;
        self.frame_ends.clear();
    }

    fn push_packet_without_payload(&mut self, mark: RtpPacketMetadata, item: T, out: &mut Vec<(T, bool)>) {
        if let Some(newest) = &mut self.newest_packet
            && mark.seq == newest.seq + 1
        {
            newest.seq = mark.seq;
        }
        if self.held_packets.len() >= MAX_HELD_PACKETS {
            // In their order: later ones must not overtake them.
            out.extend(
                self.held_packets
                    .drain(..)
                    .map(|(mark, item)| (item, mark.payload_framing.is_some() && mark.marker)),
            );
        }
        if self.held_packets.is_empty() {
            out.push((item, false));
        } else {
            self.held_packets.push_back((mark, item));
        }
    }

    fn is_sender_trusted(&self) -> bool {
        self.correct_frame_end_count >= CORRECT_FRAMES_TO_TRUST_MARKERS
    }

    fn sender_sets_no_markers(&self) -> bool {
        self.unmarked_frames_in_row >= FRAMES_TO_INFER_NO_MARKERS
    }

    fn must_hold_packet(&self, mark: RtpPacketMetadata, part: PayloadFraming) -> bool {
        let may_end = mark.marker || !part.continues_in_next_packet;
        may_end
            && (!self.is_sender_trusted()
                || self.sender_sets_no_markers()
                || (self.sender_sets_early_markers && mark.marker))
    }

    /// Compares the marker of the previous packet with the start of the next one.
    fn record_previous_marker_correctness(&mut self, next: RtpPacketMetadata, part: PayloadFraming) {
        let Some(previous) = self.newest_packet.filter(|previous| previous.seq + 1 == next.seq) else {
            return;
        };
        let is_same = previous.time == next.time && !previous.is_last_of_picture(part);
        match (is_same, previous.marker) {
            (true, true) => {
                (self.sender_sets_early_markers, self.correct_frames_in_row) = (true, 0);
                self.unmarked_frames_in_row = 0;
            }
            (true, false) => {}
            (false, true) => {
                self.correct_frame_end_count = (self.correct_frame_end_count + 1).min(CORRECT_FRAMES_TO_TRUST_MARKERS);
                self.correct_frames_in_row = if previous.marked_packet_count_in_frame <= 1 {
                    self.correct_frames_in_row.saturating_add(1)
                } else {
                    0
                };
                self.sender_sets_early_markers &= self.correct_frames_in_row < FRAMES_TO_FORGIVE_EARLY_MARKER;
                self.unmarked_frames_in_row = 0;
            }
            (false, false) if previous.has_slice && previous.time != next.time => {
                self.unmarked_frames_in_row = self.unmarked_frames_in_row.saturating_add(1);
            }
            (false, false) => {}
        }
    }

    /// Releases the held packet: the next one tells whether its frame goes on.
    fn release_held_given_next_packet(
        &mut self,
        next: RtpPacketMetadata,
        part: PayloadFraming,
        out: &mut Vec<(T, bool)>,
    ) {
        let Some(previous) = self.newest_packet else { return };
        let is_next = previous.seq + 1 == next.seq;
        let is_same = previous.time == next.time;
        for (mark, item) in self.held_packets.drain(..) {
            let marker = match (is_next, is_same) {
                _ if mark.payload_framing.is_none() => false,
                (true, true) => mark.marker && previous.is_last_of_picture(part),
                (true, false) => mark.marker || (previous.has_slice && !previous.continues_in_next_packet),
                // What is missing in between may be the end of this frame or the start of the next.
                (false, same) => mark.marker && !same,
            };
            out.push((item, marker));
        }
    }

    /// Whether a late packet is the last of its frame, as far as known.
    fn marker_of_late_packet(&self, mark: RtpPacketMetadata, newest: NewestPayloadPacket) -> bool {
        let trusts = self.is_sender_trusted() && !self.sender_sets_early_markers;
        let last = self.frame_ends.iter().rev().find(|(time, _)| *time == mark.time);
        let is_last = last.map_or(newest.time != mark.time, |(_, last)| *last < mark.seq);
        mark.marker && (trusts || is_last)
    }

    fn record_last_seq_of_frame(&mut self, mark: RtpPacketMetadata) {
        if self.is_sender_trusted() && !self.sender_sets_early_markers {
            return;
        }
        match self.frame_ends.back_mut() {
            Some((time, last)) if *time == mark.time => *last = mark.seq,
            _ => {
                if self.frame_ends.len() == MAX_TRACKED_FRAME_ENDS {
                    self.frame_ends.pop_front();
                }
                self.frame_ends.push_back((mark.time, mark.seq));
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LATER_SLICE_FRAMING: PayloadFraming = PayloadFraming {
        starts_picture: false,
        precedes_picture: false,
        has_slice: true,
        continues_in_next_packet: false,
        continues_previous_packet: false,
    };

    struct SimulatedRtpSender {
        filter: RtpMarkerCorrector<u64>,
        start: Instant,
        seq: u64,
        out: Vec<(u64, bool)>,
    }

    impl SimulatedRtpSender {
        fn new() -> Self {
            Self {
                filter: RtpMarkerCorrector::new(Codec::H264),
                start: Instant::now(),
                seq: 100,
                out: Vec::new(),
            }
        }

        fn send(&mut self, time: u64, marker: bool, part: Option<PayloadFraming>) {
            self.send_at(self.start + time as u32 * MS, time, marker, part);
        }

        fn send_at(&mut self, arrival: Instant, time: u64, marker: bool, part: Option<PayloadFraming>) {
            let mark = RtpPacketMetadata {
                seq: self.seq,
                time,
                marker,
                payload_framing: part,
                arrival,
            };
            self.filter.push(mark, self.seq, &mut self.out);
            self.seq += 1;
        }

        /// Packets that were released, and which of them have the marker.
        fn take_released_count_and_marked_seqs(&mut self) -> (usize, Vec<u64>) {
            let marked = self.out.iter().filter(|(_, marker)| *marker).map(|(seq, _)| seq - 100);
            let marked = marked.collect();
            let count = self.out.len();
            self.out.clear();
            (count, marked)
        }
    }

    #[test]
    fn markers_of_every_slice_become_one_for_each_frame() {
        let mut sender = SimulatedRtpSender::new();
        for frame in 0..5 {
            sender.send(frame * 40, true, Some(PayloadFraming::default()));
            for slice in 0..4 {
                let starts_picture = slice == 0;
                sender.send(
                    frame * 40,
                    true,
                    Some(PayloadFraming {
                        starts_picture,
                        ..LATER_SLICE_FRAMING
                    }),
                );
            }
        }
        sender
            .filter
            .handle_timeout(sender.start + 160 * MS + MARKER_HOLD_TIME, &mut sender.out);
        assert_eq!(
            sender.take_released_count_and_marked_seqs(),
            (25, vec![4, 9, 14, 19, 24])
        );
    }

    #[test]
    fn missing_frame_markers_are_added() {
        let mut sender = SimulatedRtpSender::new();
        for frame in 0..5 {
            for _ in 0..3 {
                sender.send(frame * 40, false, Some(LATER_SLICE_FRAMING));
            }
        }
        sender
            .filter
            .handle_timeout(sender.start + 160 * MS + MARKER_HOLD_TIME, &mut sender.out);
        assert_eq!(
            sender.take_released_count_and_marked_seqs(),
            (15, vec![2, 5, 8, 11, 14])
        );
    }

    #[test]
    fn packets_of_a_trusted_sender_are_not_held() {
        let mut sender = SimulatedRtpSender::new();
        for frame in 0..3 {
            sender.send(frame * 40, false, Some(LATER_SLICE_FRAMING));
            sender.send(frame * 40, true, Some(LATER_SLICE_FRAMING));
        }
        assert_eq!(sender.take_released_count_and_marked_seqs(), (6, vec![1, 3, 5]));
        assert_eq!(sender.filter.poll_timeout(), None);
    }

    #[test]
    fn a_lone_frame_is_released_in_time() {
        let mut sender = SimulatedRtpSender::new();
        sender.send(0, true, Some(LATER_SLICE_FRAMING));
        assert_eq!(sender.take_released_count_and_marked_seqs().0, 0);
        assert_eq!(sender.filter.poll_timeout(), Some(sender.start + MARKER_HOLD_TIME));
        sender
            .filter
            .handle_timeout(sender.start + MARKER_HOLD_TIME, &mut sender.out);
        assert_eq!(sender.take_released_count_and_marked_seqs(), (1, vec![0]));
    }

    #[test]
    fn slices_that_come_slowly_are_waited_for() {
        let mut sender = SimulatedRtpSender::new();
        for frame in 0..5 {
            for slice in 0..3 {
                let at = sender.start + (frame * 120 + slice * 40) as u32 * MS;
                sender.filter.handle_timeout(at, &mut sender.out);
                let part = PayloadFraming {
                    starts_picture: slice == 0,
                    ..LATER_SLICE_FRAMING
                };
                sender.send_at(at, frame * 120, true, Some(part));
            }
        }
        let (_, marked) = sender.take_released_count_and_marked_seqs();
        // Before the second frame nobody knows how many there are.
        assert_eq!(
            marked.iter().filter(|seq| **seq >= 3).collect::<Vec<_>>(),
            [&5, &8, &11]
        );
    }

    #[test]
    fn sender_trusted_again_after_many_right_markers() {
        let mut sender = SimulatedRtpSender::new();
        for frame in 0..80 {
            if frame == 3 {
                sender.send(frame * 40, true, Some(LATER_SLICE_FRAMING));
            }
            sender.send(frame * 40, true, Some(LATER_SLICE_FRAMING));
            let is_held = sender.filter.poll_timeout().is_some();
            assert_eq!(is_held, frame < 2 || (4..68).contains(&frame) || frame == 3, "{frame}");
        }
    }

    #[test]
    fn packets_without_payload_are_no_part_of_a_frame() {
        let mut sender = SimulatedRtpSender::new();
        for frame in 0..4 {
            sender.send(frame * 40, true, Some(LATER_SLICE_FRAMING));
            sender.send(frame * 40, false, None);
            sender.send(frame * 40, false, None);
        }
        assert_eq!(sender.take_released_count_and_marked_seqs(), (12, vec![0, 3, 6, 9]));
        assert!(!sender.filter.sender_sets_early_markers);
    }

    #[test]
    fn parameter_sets_with_their_own_time_are_no_frame() {
        let mut sender = SimulatedRtpSender::new();
        for frame in 0..4 {
            sender.send(frame * 40, false, Some(PayloadFraming::default()));
            sender.send(frame * 40 + 1, true, Some(LATER_SLICE_FRAMING));
        }
        assert_eq!(sender.take_released_count_and_marked_seqs(), (8, vec![1, 3, 5, 7]));
    }

    #[test]
    fn two_pictures_with_one_time_keep_their_markers() {
        let first = PayloadFraming {
            starts_picture: true,
            ..LATER_SLICE_FRAMING
        };
        let mut sender = SimulatedRtpSender::new();
        for frame in 0..4 {
            sender.send(frame / 2 * 40, true, Some(first));
        }
        sender.send(80, true, Some(first));
        assert_eq!(sender.take_released_count_and_marked_seqs(), (5, vec![0, 1, 2, 3, 4]));
    }

    #[test]
    fn a_late_slice_ends_a_frame_only_if_it_is_the_last() {
        let mut sender = SimulatedRtpSender::new();
        for frame in 0..3 {
            (0..4).for_each(|_| sender.send(frame * 40, true, Some(LATER_SLICE_FRAMING)));
        }
        sender.seq += 1;
        sender.send(120, true, Some(LATER_SLICE_FRAMING));
        sender.send(160, true, Some(LATER_SLICE_FRAMING));
        sender.take_released_count_and_marked_seqs();
        sender.seq = 112;
        sender.send(120, true, Some(LATER_SLICE_FRAMING));
        assert_eq!(
            sender.take_released_count_and_marked_seqs(),
            (1, vec![]),
            "more of its frame came before it"
        );
    }
}
