//! Recent packets of one track, shared by all viewers: key frame cache and retransmission history in one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::media::codec::FrameReference;
use crate::media::packet::{Packet, TrackSeq, TrackTime};

/// A packet in a ring, shared by all viewers. Immutable: a retransmission must be byte-identical to the first transmission
/// (invariant 6).
#[derive(Debug)]
pub struct RingEntry {
    pub packet: Packet,
    /// Position in the order of insertion; distinguishes a late packet from one that was sent already.
    pub insertion_order: u64,
    /// RTP padding in bytes with which the packet is sent: see [`crate::session::padding`].
    pub padding_length: u8,
    /// Whether other frames refer to the frame of the packet.
    pub frame_reference: FrameReference,
}

/// The entries of one tick, shared by all readers.
pub(crate) type RingEntries = Arc<[Arc<RingEntry>]>;

impl RingEntry {
    /// Length of payload and padding, i.e. of the encrypted part, in bytes.
    pub(crate) fn payload_and_padding_len(&self) -> usize {
        self.packet.payload.len() + usize::from(self.padding_length)
    }
}

/// Packets by track sequence number, from [`PacketRing::first_seq`] to [`PacketRing::end_seq`], with gaps where packets were lost.
///
/// Retains everything since the last key frame, so that new viewers can start there, and at least the last [`RETRANSMISSION_HISTORY_DURATION`]
/// for retransmissions. [`MAX_RING_BYTES`] and [`MAX_RING_PACKETS`] bound both.
#[derive(Debug)]
pub struct PacketRing {
    slots: VecDeque<Option<Arc<RingEntry>>>,
    first_seq: TrackSeq,
    payload_byte_count: usize,
    /// Payload bytes from the newest key frame on; part of `payload_byte_count`.
    byte_count_since_key_frame: usize,
    insertion_count: u64,
    /// First packet of each frame that a decoder can start with, oldest first; all within the ring.
    key_frame_starts: VecDeque<TrackSeq>,
    /// Timestamp and first packet of the newest frame.
    newest_frame: Option<(TrackTime, TrackSeq)>,
    newest_track_time: TrackTime,
    newest_arrival: Option<Instant>,
    /// Insertion order and sequence number of the newest packets that came after a later one, oldest first.
    late_insertions: VecDeque<(u64, TrackSeq)>,
}

/// Late packets that are remembered: those of a few ticks.
const MAX_LATE_INSERTIONS: usize = 64;

/// Retransmission history: the longest time for which a receiver waits before it requests a key frame instead.
pub(crate) const RETRANSMISSION_HISTORY_DURATION: Duration = Duration::from_secs(2);

/// Maximum payload bytes: fits a key frame interval of 10 s at 6 Mbit/s.
pub(crate) const MAX_RING_BYTES: usize = 8 << 20;

/// Maximum number of packets; bounds the overhead of tiny packets.
pub(crate) const MAX_RING_PACKETS: usize = 16_384;

/// A packet that is further than this behind the end is too late to be useful.
const MAX_LATE_PACKET_SEQ_DISTANCE: u64 = 4_096;

/// Maximum number of packets of a frame before the one that identifies it as a key frame, e.g. parameter sets.
const MAX_KEY_FRAME_PREFIX_PACKETS: u64 = 64;

/// First sequence number of a track, so that subtraction cannot underflow. An empty ring also ends here: a viewer that
/// joins before the first packet counts from this position.
const FIRST_TRACK_SEQ: TrackSeq = 1 << 16;

impl Default for PacketRing {
    fn default() -> Self {
        Self {
            slots: VecDeque::new(),
            first_seq: FIRST_TRACK_SEQ,
            payload_byte_count: 0,
            byte_count_since_key_frame: 0,
            insertion_count: 0,
            key_frame_starts: VecDeque::new(),
            newest_frame: None,
            newest_track_time: 0,
            newest_arrival: None,
            late_insertions: VecDeque::new(),
        }
    }
}

impl PacketRing {
    /// Inserts a packet, to be sent with this padding. Returns `None` for a duplicate or a packet that is too late.
    ///
    /// `newest_key_frame_seq` in the packet marks its whole frame, which may start some packets earlier.
    pub fn insert(&mut self, packet: Packet, padding: u8) -> Option<Arc<RingEntry>> {
        let seq = packet.seq;
        if self.slots.is_empty() {
            self.first_seq = seq;
        }
        if seq < self.first_seq || seq + MAX_LATE_PACKET_SEQ_DISTANCE < self.end_seq() || self.get(seq).is_some() {
            return None;
        }
        if seq >= self.end_seq() + MAX_RING_PACKETS as u64 {
            self.clear();
            self.first_seq = seq;
        }
        self.insertion_count += 1;
        let entry = Arc::new(RingEntry {
            frame_reference: FrameReference::of_rtp_payload(packet.codec, &packet.payload),
            packet,
            insertion_order: self.insertion_count,
            padding_length: padding,
        });
        if seq < self.end_seq() {
            if self.late_insertions.len() >= MAX_LATE_INSERTIONS {
                self.late_insertions.pop_front();
            }
            self.late_insertions.push_back((self.insertion_count, seq));
        }
        let packet = &entry.packet;
        while self.end_seq() <= seq {
            self.slots.push_back(None);
        }
        let index = usize::try_from(seq - self.first_seq).unwrap_or(usize::MAX);
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(entry.clone());
        }
        self.payload_byte_count += packet.payload.len();
        if self.newest_key_frame_seq().is_some_and(|start| start <= seq) {
            self.byte_count_since_key_frame += packet.payload.len();
        }
        self.record_frame(packet);
        self.evict_old_packets(packet.arrival);
        Some(entry)
    }

    fn record_frame(&mut self, packet: &Packet) {
        let start = match self.newest_frame {
            Some((time, start)) if time == packet.time => start.min(packet.seq),
            _ => self.first_seq_of_frame(packet),
        };
        if packet.time >= self.newest_track_time || self.newest_arrival.is_none() {
            self.newest_frame = Some((packet.time, start));
            self.newest_track_time = packet.time;
            self.newest_arrival = Some(packet.arrival);
        }
        if packet.identifies_key_frame && self.key_frame_starts.back().is_none_or(|last| *last < start) {
            self.key_frame_starts.push_back(start);
            self.byte_count_since_key_frame = self.payload_byte_count_since(start);
        }
    }

    /// Returns the first packet of the packet's frame, found by walking back over packets with the same timestamp. A
    /// key frame that is identified only after later frames have arrived thus still starts at its parameter sets.
    fn first_seq_of_frame(&self, packet: &Packet) -> TrackSeq {
        let earliest = packet.seq.saturating_sub(if packet.identifies_key_frame {
            MAX_KEY_FRAME_PREFIX_PACKETS
        } else {
            0
        });
        let of_frame = |seq: &TrackSeq| self.get(*seq).is_some_and(|other| other.packet.time == packet.time);
        (earliest..packet.seq)
            .rev()
            .take_while(of_frame)
            .last()
            .unwrap_or(packet.seq)
    }

    fn evict_old_packets(&mut self, now: Instant) {
        loop {
            let exceeds_limit = self.payload_byte_count > MAX_RING_BYTES || self.slots.len() > MAX_RING_PACKETS;
            let needed_from = self.key_frame_starts.back().copied().unwrap_or(self.end_seq());
            match self.slots.front() {
                Some(Some(front)) => {
                    let old = now.saturating_duration_since(front.packet.arrival) > RETRANSMISSION_HISTORY_DURATION;
                    let expired = old && self.first_seq < needed_from;
                    if !(exceeds_limit || expired) {
                        break;
                    }
                    self.payload_byte_count -= front.packet.payload.len();
                }
                Some(None) => {}
                None => break,
            }
            self.slots.pop_front();
            self.first_seq += 1;
        }
        while self.key_frame_starts.front().is_some_and(|seq| *seq < self.first_seq) {
            self.key_frame_starts.pop_front();
        }
    }

    /// Returns the packet with this sequence number, if it was received and is still in the ring.
    pub fn get(&self, seq: TrackSeq) -> Option<&Arc<RingEntry>> {
        let index = usize::try_from(seq.checked_sub(self.first_seq)?).ok()?;
        self.slots.get(index)?.as_ref()
    }

    /// Packets that came after a later one and were inserted after this many others, the newest first. Of many at once only
    /// the newest are found.
    pub(crate) fn late_packets_since(&self, insertion_count: u64) -> impl Iterator<Item = &Arc<RingEntry>> {
        let late = self.late_insertions.iter().rev();
        late.take_while(move |(order, _)| *order > insertion_count)
            .filter_map(|(order, seq)| self.get(*seq).filter(|entry| entry.insertion_order == *order))
    }

    /// Sequence number of the oldest slot.
    pub fn first_seq(&self) -> TrackSeq {
        self.first_seq
    }

    /// Sequence number after the newest packet.
    pub fn end_seq(&self) -> TrackSeq {
        self.first_seq + self.slots.len() as u64
    }

    /// Number of insertions so far; the newest packet has this [`RingEntry::insertion_order`].
    pub(crate) fn insertion_count(&self) -> u64 {
        self.insertion_count
    }

    /// First packet of the newest frame that a decoder can start with.
    pub fn newest_key_frame_seq(&self) -> Option<TrackSeq> {
        self.key_frame_starts.back().copied()
    }

    /// First packet of the oldest frame in the ring that a decoder can start with.
    pub(crate) fn oldest_key_frame_seq(&self) -> Option<TrackSeq> {
        self.key_frame_starts.front().copied()
    }

    /// Track timestamp of the newest frame, and its arrival.
    pub fn newest_track_time_and_arrival(&self) -> Option<(TrackTime, Instant)> {
        self.newest_arrival.map(|arrival| (self.newest_track_time, arrival))
    }

    /// Payload bytes from the newest key frame to the end, i.e. the initial burst for a new viewer. 0 without a key
    /// frame.
    pub(crate) fn byte_count_since_key_frame(&self) -> usize {
        self.newest_key_frame_seq()
            .map_or(0, |_| self.byte_count_since_key_frame)
    }

    fn payload_byte_count_since(&self, seq: TrackSeq) -> usize {
        let skip = usize::try_from(seq.saturating_sub(self.first_seq)).unwrap_or(usize::MAX);
        self.slots
            .iter()
            .skip(skip)
            .flatten()
            .map(|entry| entry.packet.payload.len())
            .sum()
    }

    /// Whether a frame that a decoder can start with begins at this position.
    pub(crate) fn is_key_frame_start(&self, seq: TrackSeq) -> bool {
        self.key_frame_starts.binary_search(&seq).is_ok()
    }

    /// Whether other frames refer to the frame of a packet in the ring, by it and the packets after it; unknown until one of
    /// them tells, or the next frame shows that none will.
    pub(crate) fn frame_reference(&self, entry: &RingEntry) -> FrameReference {
        let behind = entry.packet.seq + 1..self.end_seq();
        let rest = behind.filter_map(|seq| self.get(seq));
        for packet in std::iter::once(entry).chain(rest.map(Arc::as_ref)) {
            if packet.packet.time != entry.packet.time {
                return FrameReference::Reference;
            }
            if packet.frame_reference != FrameReference::Unknown {
                return packet.frame_reference;
            }
        }
        FrameReference::Unknown
    }

    /// Payload bytes of the frame that starts at this sequence number.
    pub(crate) fn frame_byte_count(&self, seq: TrackSeq) -> usize {
        let Some(time) = self.get(seq).map(|first| first.packet.time) else {
            return 0;
        };
        let skip = usize::try_from(seq - self.first_seq).unwrap_or(usize::MAX);
        let frame = self
            .slots
            .iter()
            .skip(skip)
            .flatten()
            .take_while(|entry| entry.packet.time == time);
        frame.map(|entry| entry.packet.payload.len()).sum()
    }

    /// Age of a packet relative to the newest one, by arrival.
    pub fn packet_age_behind_newest(&self, seq: TrackSeq) -> Option<Duration> {
        let (_, newest) = self.newest_track_time_and_arrival()?;
        Some(newest.saturating_duration_since(self.get(seq)?.packet.arrival))
    }

    /// Prevents new viewers from starting with packets of an earlier source. They remain available for retransmission.
    pub(crate) fn forget_key_frames(&mut self) {
        self.key_frame_starts.clear();
    }

    /// Removes all packets. The insertion count continues.
    fn clear(&mut self) {
        self.slots.clear();
        self.key_frame_starts.clear();
        self.payload_byte_count = 0;
        self.newest_frame = None;
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;
    use crate::media::Codec;
    use bytes::Bytes;

    fn insert_packet(
        ring: &mut PacketRing,
        at: Instant,
        seq: u64,
        time: u64,
        key_frame: bool,
    ) -> Option<Arc<RingEntry>> {
        let packet = Packet {
            seq,
            time,
            codec: Codec::H264,
            marker: false,
            identifies_key_frame: key_frame,
            arrival: at,
            payload: Bytes::from_static(&[0; 1000]),
        };
        ring.insert(packet, 0)
    }

    #[test]
    fn a_key_frame_begins_at_the_first_packet_of_its_frame() {
        let (mut ring, t) = (PacketRing::default(), Instant::now());
        insert_packet(&mut ring, t, 10, 1, false);
        insert_packet(&mut ring, t, 11, 2, false);
        insert_packet(&mut ring, t, 12, 2, true);
        insert_packet(&mut ring, t, 13, 2, true);
        assert_eq!(ring.newest_key_frame_seq(), Some(11));
        assert_eq!(ring.byte_count_since_key_frame(), 3_000);
        insert_packet(&mut ring, t, 14, 3, false);
        assert_eq!(ring.byte_count_since_key_frame(), ring.payload_byte_count_since(11));
    }

    #[test]
    fn a_key_frame_identified_late_begins_at_its_parameter_sets() {
        let (mut ring, t) = (PacketRing::default(), Instant::now());
        insert_packet(&mut ring, t, 9, 1, false);
        // Parameter sets alone do not identify a key frame; the start of the slice is lost.
        for seq in [10, 11, 13] {
            insert_packet(&mut ring, t, seq, 2, false);
        }
        insert_packet(&mut ring, t, 14, 3, false);
        insert_packet(&mut ring, t, 12, 2, true);
        assert_eq!(ring.newest_key_frame_seq(), Some(10));
    }

    #[test]
    fn packets_since_the_last_key_frame_stay_however_old() {
        let (mut ring, t) = (PacketRing::default(), Instant::now());
        insert_packet(&mut ring, t, 1, 1, true);
        for i in 2..300 {
            insert_packet(&mut ring, t + Duration::from_millis(i * 33), i, i, false);
        }
        assert_eq!((ring.first_seq(), ring.newest_key_frame_seq()), (1, Some(1)));
        assert_eq!(ring.oldest_key_frame_seq(), Some(1));
        insert_packet(&mut ring, t + Duration::from_secs(10), 300, 300, true);
        assert!(ring.first_seq() > 200 && ring.first_seq() < 260, "{}", ring.first_seq());
        assert_eq!(ring.newest_key_frame_seq(), Some(300));
    }

    #[test]
    fn key_frames_within_the_history_are_known() {
        let (mut ring, t) = (PacketRing::default(), Instant::now());
        for i in 0..200 {
            insert_packet(&mut ring, t + Duration::from_millis(i * 33), i, i, i % 30 == 0);
        }
        // The history reaches back to 139.
        assert_eq!(
            (ring.oldest_key_frame_seq(), ring.newest_key_frame_seq()),
            (Some(150), Some(180))
        );
        ring.forget_key_frames();
        assert_eq!(ring.oldest_key_frame_seq(), None);
    }

    #[test]
    fn the_cache_is_bounded_in_bytes_and_then_offers_no_key_frame() {
        let (mut ring, t) = (PacketRing::default(), Instant::now());
        insert_packet(&mut ring, t, 0, 0, true);
        for i in 1..20_000 {
            insert_packet(&mut ring, t, i, i, false);
        }
        assert!(ring.payload_byte_count <= MAX_RING_BYTES);
        assert_eq!(ring.newest_key_frame_seq(), None);
    }

    #[test]
    fn a_late_packet_fills_its_gap_once() {
        let (mut ring, t) = (PacketRing::default(), Instant::now());
        insert_packet(&mut ring, t, 5, 1, true);
        insert_packet(&mut ring, t, 7, 1, false);
        assert!(ring.get(6).is_none());
        let late = insert_packet(&mut ring, t, 6, 1, false).expect("fills the gap");
        assert_eq!(late.insertion_order, 3);
        assert!(insert_packet(&mut ring, t, 6, 1, false).is_none());
        assert!(insert_packet(&mut ring, t, 4, 1, false).is_none(), "before the first");
    }
}
