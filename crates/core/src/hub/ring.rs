//! Recent packets of one track, shared by all viewers: key frame cache and retransmission history in one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::media::packet::{Packet, TrackSeq, TrackTime};

/// A packet in a ring, shared by all viewers. Immutable: a retransmission must be byte-identical to the first transmission
/// (invariant 6).
#[derive(Debug)]
pub struct Entry {
    pub packet: Packet,
    /// Position in the order of insertion; distinguishes a late packet from one that was sent already.
    pub order: u64,
    /// RTP padding in bytes with which the packet is sent: see [`crate::session::padding`].
    pub padding: u8,
}

/// The entries of one tick, shared by all readers.
pub type Entries = Arc<[Arc<Entry>]>;

impl Entry {
    /// Length of payload and padding, i.e. of the encrypted part, in bytes.
    pub fn body_len(&self) -> usize {
        self.packet.payload.len() + usize::from(self.padding)
    }
}

/// Packets by track sequence number, from [`Ring::first`] to [`Ring::end`], with gaps where packets were lost.
///
/// Retains everything since the last key frame, so that new viewers can start there, and at least the last [`HISTORY`]
/// for retransmissions. [`MAX_BYTES`] and [`MAX_PACKETS`] bound both.
#[derive(Debug)]
pub struct Ring {
    slots: VecDeque<Option<Arc<Entry>>>,
    first: TrackSeq,
    bytes: usize,
    /// Payload bytes from the newest key frame on; part of `bytes`.
    bytes_since_key_frame: usize,
    order: u64,
    /// First packet of each frame that a decoder can start with, oldest first; all within the ring.
    key_frames: VecDeque<TrackSeq>,
    /// Timestamp and first packet of the newest frame.
    frame: Option<(TrackTime, TrackSeq)>,
    newest_time: TrackTime,
    newest_arrival: Option<Instant>,
}

/// Retransmission history: the longest time for which a receiver waits before it requests a key frame instead.
pub const HISTORY: Duration = Duration::from_secs(2);

/// Maximum payload bytes: fits a key frame interval of 10 s at 6 Mbit/s.
pub const MAX_BYTES: usize = 8 << 20;

/// Maximum number of packets; bounds the overhead of tiny packets.
pub const MAX_PACKETS: usize = 16_384;

/// A packet that is further than this behind the end is too late to be useful.
const MAX_LATENESS: u64 = 4_096;

/// Maximum number of packets of a frame before the one that identifies it as a key frame, e.g. parameter sets.
const MAX_PREFIX: u64 = 64;

/// First sequence number of a track, so that subtraction cannot underflow. An empty ring also ends here: a viewer that
/// joins before the first packet counts from this position.
const FIRST_SEQ: TrackSeq = 1 << 16;

impl Default for Ring {
    fn default() -> Self {
        Self {
            slots: VecDeque::new(),
            first: FIRST_SEQ,
            bytes: 0,
            bytes_since_key_frame: 0,
            order: 0,
            key_frames: VecDeque::new(),
            frame: None,
            newest_time: 0,
            newest_arrival: None,
        }
    }
}

impl Ring {
    /// Inserts a packet, to be sent with this padding. Returns `None` for a duplicate or a packet that is too late.
    ///
    /// `key_frame` in the packet marks its whole frame, which may start some packets earlier.
    pub fn insert(&mut self, packet: Packet, padding: u8) -> Option<Arc<Entry>> {
        let seq = packet.seq;
        if self.slots.is_empty() {
            self.first = seq;
        }
        if seq < self.first || seq + MAX_LATENESS < self.end() || self.get(seq).is_some() {
            return None;
        }
        if seq >= self.end() + MAX_PACKETS as u64 {
            self.clear();
            self.first = seq;
        }
        self.order += 1;
        let entry = Arc::new(Entry {
            packet,
            order: self.order,
            padding,
        });
        let packet = &entry.packet;
        while self.end() <= seq {
            self.slots.push_back(None);
        }
        let index = usize::try_from(seq - self.first).unwrap_or(usize::MAX);
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(entry.clone());
        }
        self.bytes += packet.payload.len();
        if self.key_frame().is_some_and(|start| start <= seq) {
            self.bytes_since_key_frame += packet.payload.len();
        }
        self.record_frame(packet);
        self.evict(packet.arrival);
        Some(entry)
    }

    fn record_frame(&mut self, packet: &Packet) {
        let start = match self.frame {
            Some((time, start)) if time == packet.time => start.min(packet.seq),
            _ => self.start_of(packet),
        };
        if packet.time >= self.newest_time || self.newest_arrival.is_none() {
            self.frame = Some((packet.time, start));
            self.newest_time = packet.time;
            self.newest_arrival = Some(packet.arrival);
        }
        if packet.key_frame && self.key_frames.back().is_none_or(|last| *last < start) {
            self.key_frames.push_back(start);
            self.bytes_since_key_frame = self.sum_since(start);
        }
    }

    /// Returns the first packet of the packet's frame, found by walking back over packets with the same timestamp. A
    /// key frame that is identified only after later frames have arrived thus still starts at its parameter sets.
    fn start_of(&self, packet: &Packet) -> TrackSeq {
        let earliest = packet.seq.saturating_sub(if packet.key_frame { MAX_PREFIX } else { 0 });
        let of_frame = |seq: &TrackSeq| self.get(*seq).is_some_and(|other| other.packet.time == packet.time);
        (earliest..packet.seq)
            .rev()
            .take_while(of_frame)
            .last()
            .unwrap_or(packet.seq)
    }

    fn evict(&mut self, now: Instant) {
        loop {
            let over = self.bytes > MAX_BYTES || self.slots.len() > MAX_PACKETS;
            let needed_from = self.key_frames.back().copied().unwrap_or(self.end());
            match self.slots.front() {
                Some(Some(front)) => {
                    let old = now.saturating_duration_since(front.packet.arrival) > HISTORY;
                    let expired = old && self.first < needed_from;
                    if !(over || expired) {
                        break;
                    }
                    self.bytes -= front.packet.payload.len();
                }
                Some(None) => {}
                None => break,
            }
            self.slots.pop_front();
            self.first += 1;
        }
        while self.key_frames.front().is_some_and(|seq| *seq < self.first) {
            self.key_frames.pop_front();
        }
    }

    /// Returns the packet with this sequence number, if it was received and is still in the ring.
    pub fn get(&self, seq: TrackSeq) -> Option<&Arc<Entry>> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.slots.get(index)?.as_ref()
    }

    /// Sequence number of the oldest slot.
    pub fn first(&self) -> TrackSeq {
        self.first
    }

    /// Sequence number after the newest packet.
    pub fn end(&self) -> TrackSeq {
        self.first + self.slots.len() as u64
    }

    /// Number of insertions so far; the newest packet has this [`Entry::order`].
    pub fn order(&self) -> u64 {
        self.order
    }

    /// First packet of the newest frame that a decoder can start with.
    pub fn key_frame(&self) -> Option<TrackSeq> {
        self.key_frames.back().copied()
    }

    /// First packet of the oldest frame in the ring that a decoder can start with.
    pub fn oldest_key_frame(&self) -> Option<TrackSeq> {
        self.key_frames.front().copied()
    }

    /// Track timestamp of the newest frame, and its arrival.
    pub fn newest(&self) -> Option<(TrackTime, Instant)> {
        self.newest_arrival.map(|arrival| (self.newest_time, arrival))
    }

    /// Payload bytes from the newest key frame to the end, i.e. the initial burst for a new viewer. 0 without a key
    /// frame.
    pub fn bytes_since_key_frame(&self) -> usize {
        self.key_frame().map_or(0, |_| self.bytes_since_key_frame)
    }

    fn sum_since(&self, seq: TrackSeq) -> usize {
        let skip = usize::try_from(seq.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.slots
            .iter()
            .skip(skip)
            .flatten()
            .map(|entry| entry.packet.payload.len())
            .sum()
    }

    /// Payload bytes of the frame that starts at this sequence number.
    pub fn frame_bytes(&self, seq: TrackSeq) -> usize {
        let Some(time) = self.get(seq).map(|first| first.packet.time) else {
            return 0;
        };
        let skip = usize::try_from(seq - self.first).unwrap_or(usize::MAX);
        let frame = self
            .slots
            .iter()
            .skip(skip)
            .flatten()
            .take_while(|entry| entry.packet.time == time);
        frame.map(|entry| entry.packet.payload.len()).sum()
    }

    /// Age of a packet relative to the newest one, by arrival.
    pub fn age(&self, seq: TrackSeq) -> Option<Duration> {
        let (_, newest) = self.newest()?;
        Some(newest.saturating_duration_since(self.get(seq)?.packet.arrival))
    }

    /// Prevents new viewers from starting with packets of an earlier source. They remain available for retransmission.
    pub fn forget_key_frames(&mut self) {
        self.key_frames.clear();
    }

    /// Removes all packets. The insertion count continues.
    fn clear(&mut self) {
        self.slots.clear();
        self.key_frames.clear();
        self.bytes = 0;
        self.frame = None;
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;
    use crate::media::Codec;
    use bytes::Bytes;

    fn insert(ring: &mut Ring, at: Instant, seq: u64, time: u64, key_frame: bool) -> Option<Arc<Entry>> {
        let packet = Packet {
            seq,
            time,
            codec: Codec::H264,
            marker: false,
            key_frame,
            arrival: at,
            payload: Bytes::from_static(&[0; 1000]),
        };
        ring.insert(packet, 0)
    }

    #[test]
    fn a_key_frame_begins_at_the_first_packet_of_its_frame() {
        let (mut ring, t) = (Ring::default(), Instant::now());
        insert(&mut ring, t, 10, 1, false);
        insert(&mut ring, t, 11, 2, false);
        insert(&mut ring, t, 12, 2, true);
        insert(&mut ring, t, 13, 2, true);
        assert_eq!(ring.key_frame(), Some(11));
        assert_eq!(ring.bytes_since_key_frame(), 3_000);
        insert(&mut ring, t, 14, 3, false);
        assert_eq!(ring.bytes_since_key_frame(), ring.sum_since(11));
    }

    #[test]
    fn a_key_frame_that_is_proven_late_begins_at_its_parameter_sets() {
        let (mut ring, t) = (Ring::default(), Instant::now());
        insert(&mut ring, t, 9, 1, false);
        // Parameter sets alone do not identify a key frame; the start of the slice is lost.
        for seq in [10, 11, 13] {
            insert(&mut ring, t, seq, 2, false);
        }
        insert(&mut ring, t, 14, 3, false);
        insert(&mut ring, t, 12, 2, true);
        assert_eq!(ring.key_frame(), Some(10));
    }

    #[test]
    fn packets_since_the_last_key_frame_stay_however_old() {
        let (mut ring, t) = (Ring::default(), Instant::now());
        insert(&mut ring, t, 1, 1, true);
        for i in 2..300 {
            insert(&mut ring, t + Duration::from_millis(i * 33), i, i, false);
        }
        assert_eq!((ring.first(), ring.key_frame()), (1, Some(1)));
        assert_eq!(ring.oldest_key_frame(), Some(1));
        insert(&mut ring, t + Duration::from_secs(10), 300, 300, true);
        assert!(ring.first() > 200 && ring.first() < 260, "{}", ring.first());
        assert_eq!(ring.key_frame(), Some(300));
    }

    #[test]
    fn key_frames_within_the_history_are_known() {
        let (mut ring, t) = (Ring::default(), Instant::now());
        for i in 0..200 {
            insert(&mut ring, t + Duration::from_millis(i * 33), i, i, i % 30 == 0);
        }
        // The history reaches back to 139.
        assert_eq!((ring.oldest_key_frame(), ring.key_frame()), (Some(150), Some(180)));
        ring.forget_key_frames();
        assert_eq!(ring.oldest_key_frame(), None);
    }

    #[test]
    fn the_cache_is_bounded_in_bytes_and_then_offers_no_key_frame() {
        let (mut ring, t) = (Ring::default(), Instant::now());
        insert(&mut ring, t, 0, 0, true);
        for i in 1..20_000 {
            insert(&mut ring, t, i, i, false);
        }
        assert!(ring.bytes <= MAX_BYTES);
        assert_eq!(ring.key_frame(), None);
    }

    #[test]
    fn a_late_packet_fills_its_gap_once() {
        let (mut ring, t) = (Ring::default(), Instant::now());
        insert(&mut ring, t, 5, 1, true);
        insert(&mut ring, t, 7, 1, false);
        assert!(ring.get(6).is_none());
        let late = insert(&mut ring, t, 6, 1, false).expect("fills the gap");
        assert_eq!(late.order, 3);
        assert!(insert(&mut ring, t, 6, 1, false).is_none());
        assert!(insert(&mut ring, t, 4, 1, false).is_none(), "before the first");
    }
}
