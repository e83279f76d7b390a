//! Sets the marker bit of video packets right: on the last packet of an access unit and on no other (RFC 6184 §5.1, and
//! alike in the payload formats of the other codecs).
//!
//! Some senders set it on every NAL unit or on every slice, others never. A [`MarkerFilter`] believes a sender of H.264 or
//! H.265 once its first frames ended where the timestamp changed. Until then, and for a sender that was found wrong, it
//! holds a packet that may be the last of its frame until the next packet arrives, or for [`HOLD`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Codec;
use super::codec::Part;

/// The longest time for which a packet is held. The packets of one frame follow each other faster.
pub const HOLD: Duration = Duration::from_millis(20);

/// The same while the frame has fewer slices with a marker than the one before it, and for the first frames as long as
/// they have none.
const LONG_HOLD: Duration = Duration::from_millis(200);

/// Number of frames that end right before a sender is believed.
const PROOFS: u8 = 2;

/// Frames in a row without any marker after which a sender is taken for one that sets none. A single one may be
/// parameter sets with a timestamp of their own.
const MIN_UNMARKED: u8 = 2;

/// Frames in a row that end right with one marker, after which a wrong one before is forgiven.
const FORGIVEN: u8 = 64;

/// Maximum number of packets that wait, all but the first without payload.
const MAX_HELD: usize = 64;

/// Number of recent frames whose last packet is known.
const MAX_FRAMES: usize = 8;

/// One packet, as far as relevant here.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Extended sequence number.
    pub seq: u64,
    /// RTP timestamp.
    pub time: u64,
    pub marker: bool,
    /// `None` for a packet without payload, which is no part of a frame.
    pub part: Option<Part>,
    pub arrival: Instant,
}

/// Sets the markers of one RTP stream. `T` is what belongs to a packet.
#[derive(Debug)]
pub struct MarkerFilter<T> {
    /// Number of frames that ended right so far, up to [`PROOFS`].
    proofs: u8,
    /// A marker was followed by more of the same frame.
    is_early: bool,
    /// Frames in a row since then that ended right with one marker.
    right: u8,
    /// Frames in a row that ended without marker.
    unmarked: u8,
    /// The newest packet with payload in sequence order.
    newest: Option<Newest>,
    /// Packets with picture data and marker in the frame before the newest one.
    usual: u32,
    /// The held packet, and packets without payload after it.
    held: VecDeque<(Mark, T)>,
    /// Timestamp and last sequence number of recent frames; only while packets are held.
    frames: VecDeque<(u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Newest {
    /// Sequence number of this packet or of packets without payload right after it.
    seq: u64,
    time: u64,
    marker: bool,
    is_open: bool,
    /// Its frame has picture data so far.
    has_slice: bool,
    /// Packets of its frame with picture data and marker so far.
    marked: u32,
}

impl Newest {
    /// Whether another picture starts with the next packet, although it may have the same timestamp.
    fn is_before(&self, next: Part) -> bool {
        self.has_slice && next.starts_picture
    }
}

impl<T> MarkerFilter<T> {
    /// Creates a filter for a sender that is not known yet. Only NAL units get wrong markers: senders of other codecs are
    /// believed until they prove wrong.
    pub fn new(codec: Codec) -> Self {
        let is_nal = matches!(codec, Codec::H264 | Codec::H265);
        Self {
            proofs: if is_nal { 0 } else { PROOFS },
            is_early: false,
            right: 0,
            unmarked: 0,
            newest: None,
            usual: 0,
            held: VecDeque::new(),
            frames: VecDeque::new(),
        }
    }

    /// Processes a packet; appends the packets whose marker is known now, with their marker.
    pub fn push(&mut self, mark: Mark, item: T, out: &mut Vec<(T, bool)>) {
        let Some(part) = mark.part else {
            return self.push_empty(mark, item, out);
        };
        if let Some(newest) = self.newest.filter(|newest| newest.seq >= mark.seq) {
            let marker = self.late_marker(mark, newest);
            out.push((item, marker));
            return;
        }
        self.compare(mark, part);
        self.release_before(mark, part, out);
        let same = self.newest.filter(|newest| newest.time == mark.time);
        if same.is_none() {
            self.usual = self.newest.map_or(0, |newest| newest.marked);
        }
        let has_slice = same.is_some_and(|newest| newest.has_slice) || part.has_slice;
        let marked = same.map_or(0, |newest| newest.marked) + u32::from(mark.marker && part.has_slice);
        self.newest = Some(Newest {
            seq: mark.seq,
            time: mark.time,
            marker: mark.marker,
            is_open: part.is_open,
            has_slice,
            marked,
        });
        self.record(mark);
        if self.holds(mark, part) {
            self.held.push_back((mark, item));
        } else {
            out.push((item, mark.marker));
        }
    }

    /// Releases the held packet if it was held long enough: nothing more of its frame seems to come.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<(T, bool)>) {
        if self.poll_timeout().is_some_and(|due| due <= now) {
            let has_no_markers = self.proofs == 0 || self.is_unmarked();
            let ends = has_no_markers && self.newest.is_some_and(|n| n.has_slice && !n.is_open);
            let marker = |mark: &Mark| mark.marker || ends;
            out.extend(self.held.drain(..).map(|(mark, item)| {
                let marker = mark.part.is_some() && marker(&mark);
                (item, marker)
            }));
        }
    }

    /// When [`Self::handle_timeout`] must be called; `None` while nothing is held.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (front, _) = self.held.front()?;
        let expects_more = self.is_early && self.newest.is_some_and(|newest| newest.marked < self.usual);
        // Of a sender that is not known, nobody knows whether the end of a frame has a marker.
        let is_unknown = self.proofs == 0 && !front.marker && !self.is_unmarked();
        let hold = if expects_more || is_unknown { LONG_HOLD } else { HOLD };
        Some(front.arrival + hold)
    }

    /// What follows has other sequence numbers and timestamps, but comes from the same sender. Releases what is held.
    pub fn restart(&mut self, out: &mut Vec<(T, bool)>) {
        out.extend(self.held.drain(..).map(|(mark, item)| (item, mark.marker)));
        self.newest = None;
        self.frames.clear();
    }

    fn push_empty(&mut self, mark: Mark, item: T, out: &mut Vec<(T, bool)>) {
        if let Some(newest) = &mut self.newest
            && mark.seq == newest.seq + 1
        {
            newest.seq = mark.seq;
        }
        if self.held.len() >= MAX_HELD {
            // In their order: later ones must not overtake them.
            out.extend(
                self.held
                    .drain(..)
                    .map(|(mark, item)| (item, mark.part.is_some() && mark.marker)),
            );
        }
        if self.held.is_empty() {
            out.push((item, false));
        } else {
            self.held.push_back((mark, item));
        }
    }

    fn is_proven(&self) -> bool {
        self.proofs >= PROOFS
    }

    fn is_unmarked(&self) -> bool {
        self.unmarked >= MIN_UNMARKED
    }

    fn holds(&self, mark: Mark, part: Part) -> bool {
        let may_end = mark.marker || !part.is_open;
        may_end && (!self.is_proven() || self.is_unmarked() || (self.is_early && mark.marker))
    }

    /// Compares the marker of the previous packet with the start of the next one.
    fn compare(&mut self, next: Mark, part: Part) {
        let Some(previous) = self.newest.filter(|previous| previous.seq + 1 == next.seq) else {
            return;
        };
        let is_same = previous.time == next.time && !previous.is_before(part);
        match (is_same, previous.marker) {
            (true, true) => {
                (self.is_early, self.right) = (true, 0);
                self.unmarked = 0;
            }
            (true, false) => {}
            (false, true) => {
                self.proofs = (self.proofs + 1).min(PROOFS);
                self.right = if previous.marked <= 1 {
                    self.right.saturating_add(1)
                } else {
                    0
                };
                self.is_early &= self.right < FORGIVEN;
                self.unmarked = 0;
            }
            (false, false) if previous.has_slice && previous.time != next.time => {
                self.unmarked = self.unmarked.saturating_add(1);
            }
            (false, false) => {}
        }
    }

    /// Releases the held packet: the next one tells whether its frame goes on.
    fn release_before(&mut self, next: Mark, part: Part, out: &mut Vec<(T, bool)>) {
        let Some(previous) = self.newest else { return };
        let is_next = previous.seq + 1 == next.seq;
        let is_same = previous.time == next.time;
        for (mark, item) in self.held.drain(..) {
            let marker = match (is_next, is_same) {
                _ if mark.part.is_none() => false,
                (true, true) => mark.marker && previous.is_before(part),
                (true, false) => mark.marker || (previous.has_slice && !previous.is_open),
                // What is missing in between may be the end of this frame or the start of the next.
                (false, same) => mark.marker && !same,
            };
            out.push((item, marker));
        }
    }

    /// Whether a late packet is the last of its frame, as far as known.
    fn late_marker(&self, mark: Mark, newest: Newest) -> bool {
        let trusts = self.is_proven() && !self.is_early;
        let last = self.frames.iter().rev().find(|(time, _)| *time == mark.time);
        let is_last = last.map_or(newest.time != mark.time, |(_, last)| *last < mark.seq);
        mark.marker && (trusts || is_last)
    }

    fn record(&mut self, mark: Mark) {
        if self.is_proven() && !self.is_early {
            return;
        }
        match self.frames.back_mut() {
            Some((time, last)) if *time == mark.time => *last = mark.seq,
            _ => {
                if self.frames.len() == MAX_FRAMES {
                    self.frames.pop_front();
                }
                self.frames.push_back((mark.time, mark.seq));
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SLICE: Part = Part {
        starts_picture: false,
        has_slice: true,
        is_open: false,
    };

    struct Sender {
        filter: MarkerFilter<u64>,
        start: Instant,
        seq: u64,
        out: Vec<(u64, bool)>,
    }

    impl Sender {
        fn new() -> Self {
            Self {
                filter: MarkerFilter::new(Codec::H264),
                start: Instant::now(),
                seq: 100,
                out: Vec::new(),
            }
        }

        fn send(&mut self, time: u64, marker: bool, part: Option<Part>) {
            self.send_at(self.start + time as u32 * MS, time, marker, part);
        }

        fn send_at(&mut self, arrival: Instant, time: u64, marker: bool, part: Option<Part>) {
            let mark = Mark {
                seq: self.seq,
                time,
                marker,
                part,
                arrival,
            };
            self.filter.push(mark, self.seq, &mut self.out);
            self.seq += 1;
        }

        /// Packets that were released, and which of them have the marker.
        fn released(&mut self) -> (usize, Vec<u64>) {
            let marked = self.out.iter().filter(|(_, marker)| *marker).map(|(seq, _)| seq - 100);
            let marked = marked.collect();
            let count = self.out.len();
            self.out.clear();
            (count, marked)
        }
    }

    #[test]
    fn markers_of_every_slice_become_one_for_each_frame() {
        let mut sender = Sender::new();
        for frame in 0..5 {
            sender.send(frame * 40, true, Some(Part::default()));
            for slice in 0..4 {
                let starts_picture = slice == 0;
                sender.send(
                    frame * 40,
                    true,
                    Some(Part {
                        starts_picture,
                        ..SLICE
                    }),
                );
            }
        }
        sender
            .filter
            .handle_timeout(sender.start + 160 * MS + HOLD, &mut sender.out);
        assert_eq!(sender.released(), (25, vec![4, 9, 14, 19, 24]));
    }

    #[test]
    fn frames_without_any_marker_get_theirs() {
        let mut sender = Sender::new();
        for frame in 0..5 {
            for _ in 0..3 {
                sender.send(frame * 40, false, Some(SLICE));
            }
        }
        sender
            .filter
            .handle_timeout(sender.start + 160 * MS + HOLD, &mut sender.out);
        assert_eq!(sender.released(), (15, vec![2, 5, 8, 11, 14]));
    }

    #[test]
    fn a_sender_that_proved_right_is_not_held() {
        let mut sender = Sender::new();
        for frame in 0..3 {
            sender.send(frame * 40, false, Some(SLICE));
            sender.send(frame * 40, true, Some(SLICE));
        }
        assert_eq!(sender.released(), (6, vec![1, 3, 5]));
        assert_eq!(sender.filter.poll_timeout(), None);
    }

    #[test]
    fn a_lone_frame_is_released_in_time() {
        let mut sender = Sender::new();
        sender.send(0, true, Some(SLICE));
        assert_eq!(sender.released().0, 0);
        assert_eq!(sender.filter.poll_timeout(), Some(sender.start + HOLD));
        sender.filter.handle_timeout(sender.start + HOLD, &mut sender.out);
        assert_eq!(sender.released(), (1, vec![0]));
    }

    #[test]
    fn slices_that_come_slowly_are_waited_for() {
        let mut sender = Sender::new();
        for frame in 0..5 {
            for slice in 0..3 {
                let at = sender.start + (frame * 120 + slice * 40) as u32 * MS;
                sender.filter.handle_timeout(at, &mut sender.out);
                let part = Part {
                    starts_picture: slice == 0,
                    ..SLICE
                };
                sender.send_at(at, frame * 120, true, Some(part));
            }
        }
        let (_, marked) = sender.released();
        // Before the second frame nobody knows how many there are.
        assert_eq!(
            marked.iter().filter(|seq| **seq >= 3).collect::<Vec<_>>(),
            [&5, &8, &11]
        );
    }

    #[test]
    fn one_wrong_marker_is_forgiven_after_many_right_ones() {
        let mut sender = Sender::new();
        for frame in 0..80 {
            if frame == 3 {
                sender.send(frame * 40, true, Some(SLICE));
            }
            sender.send(frame * 40, true, Some(SLICE));
            let is_held = sender.filter.poll_timeout().is_some();
            assert_eq!(is_held, frame < 2 || (4..68).contains(&frame) || frame == 3, "{frame}");
        }
    }

    #[test]
    fn packets_without_payload_are_no_part_of_a_frame() {
        let mut sender = Sender::new();
        for frame in 0..4 {
            sender.send(frame * 40, true, Some(SLICE));
            sender.send(frame * 40, false, None);
            sender.send(frame * 40, false, None);
        }
        assert_eq!(sender.released(), (12, vec![0, 3, 6, 9]));
        assert!(!sender.filter.is_early);
    }

    #[test]
    fn parameter_sets_with_their_own_time_are_no_frame() {
        let mut sender = Sender::new();
        for frame in 0..4 {
            sender.send(frame * 40, false, Some(Part::default()));
            sender.send(frame * 40 + 1, true, Some(SLICE));
        }
        assert_eq!(sender.released(), (8, vec![1, 3, 5, 7]));
    }

    #[test]
    fn two_pictures_with_one_time_keep_their_markers() {
        let first = Part {
            starts_picture: true,
            ..SLICE
        };
        let mut sender = Sender::new();
        for frame in 0..4 {
            sender.send(frame / 2 * 40, true, Some(first));
        }
        sender.send(80, true, Some(first));
        assert_eq!(sender.released(), (5, vec![0, 1, 2, 3, 4]));
    }

    #[test]
    fn a_late_slice_ends_a_frame_only_if_it_is_the_last() {
        let mut sender = Sender::new();
        for frame in 0..3 {
            (0..4).for_each(|_| sender.send(frame * 40, true, Some(SLICE)));
        }
        sender.seq += 1;
        sender.send(120, true, Some(SLICE));
        sender.send(160, true, Some(SLICE));
        sender.released();
        sender.seq = 112;
        sender.send(120, true, Some(SLICE));
        assert_eq!(sender.released(), (1, vec![]), "more of its frame came before it");
    }
}
