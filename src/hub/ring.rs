//! Recent packets of one track: key frame cache and retransmission history in one, shared by all viewers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::media::packet::{Packet, TrackSeq, TrackTime};

/// Packets on their line, from [`Ring::first`] to [`Ring::end`], with holes where the source lost some.
///
/// What is kept: everything since the last key frame, so that a viewer can begin there, and at least [`HISTORY`] before
/// the end for retransmissions. [`MAX_BYTES`] and [`MAX_PACKETS`] bound both.
#[derive(Debug)]
pub struct Ring {
    slots: VecDeque<Option<Arc<Packet>>>,
    first: TrackSeq,
    bytes: usize,
    /// Of these, those from the newest key frame on.
    bytes_since_key_frame: usize,
    order: u64,
    /// First packets of the frames that a decoder can begin with, oldest first; all within the ring.
    key_frames: VecDeque<TrackSeq>,
    /// Time and first packet of the newest frame.
    frame: Option<(TrackTime, TrackSeq)>,
    newest_time: TrackTime,
    newest_arrival: Option<Instant>,
}

/// How long packets are kept for retransmission: the longest wait of a receiver before it asks for a key frame instead.
pub const HISTORY: Duration = Duration::from_secs(2);

/// Payload bytes at most: a key frame interval of 10 s at 6 Mbit/s fits.
pub const MAX_BYTES: usize = 8 << 20;

/// Packets at most; bounds the bookkeeping for tiny packets.
pub const MAX_PACKETS: usize = 16_384;

/// A packet this far behind the end is too late for anybody.
const MAX_LATENESS: u64 = 4_096;

/// Packets of a frame that may stand before the one that proves it a key frame: parameter sets and their like.
const MAX_PREFIX: u64 = 64;

/// The first source begins here, so that nothing before it is ever negative. An empty ring ends here too: a viewer that
/// comes before the first packet counts from where that will be.
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
    /// Inserts a packet; `make` gets the insertion order. A duplicate, or one too late to be of use, is not inserted.
    ///
    /// `key_frame` in the packet marks the frame, which may have begun some packets earlier.
    pub fn insert(&mut self, seq: TrackSeq, make: impl FnOnce(u64) -> Packet) -> Option<Arc<Packet>> {
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
        let packet = Arc::new(make(self.order));
        while self.end() <= seq {
            self.slots.push_back(None);
        }
        let index = usize::try_from(seq - self.first).unwrap_or(usize::MAX);
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(packet.clone());
        }
        self.bytes += packet.payload.len();
        if self.key_frame().is_some_and(|start| start <= seq) {
            self.bytes_since_key_frame += packet.payload.len();
        }
        self.record_frame(&packet);
        self.evict(packet.arrival);
        Some(packet)
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

    /// First packet of the frame of a packet, as far as what stands before it tells: a key frame that is only proven when
    /// later frames are there begins with its parameter sets all the same.
    fn start_of(&self, packet: &Packet) -> TrackSeq {
        let earliest = packet.seq.saturating_sub(if packet.key_frame { MAX_PREFIX } else { 0 });
        let of_frame = |seq: &TrackSeq| self.get(*seq).is_some_and(|other| other.time == packet.time);
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
                    let old = now.saturating_duration_since(front.arrival) > HISTORY;
                    let expired = old && self.first < needed_from;
                    if !(over || expired) {
                        break;
                    }
                    self.bytes -= front.payload.len();
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

    /// The packet at a position, if it is there.
    pub fn get(&self, seq: TrackSeq) -> Option<&Arc<Packet>> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.slots.get(index)?.as_ref()
    }

    /// Position of the oldest packet.
    pub fn first(&self) -> TrackSeq {
        self.first
    }

    /// Position after the newest packet.
    pub fn end(&self) -> TrackSeq {
        self.first + self.slots.len() as u64
    }

    /// Number of insertions so far; the newest packet has this [`Packet::order`].
    pub fn order(&self) -> u64 {
        self.order
    }

    /// First packet of the newest frame that a decoder can begin with.
    pub fn key_frame(&self) -> Option<TrackSeq> {
        self.key_frames.back().copied()
    }

    /// Time of the newest frame on the line and when it arrived.
    pub fn newest(&self) -> Option<(TrackTime, Instant)> {
        self.newest_arrival.map(|arrival| (self.newest_time, arrival))
    }

    /// Payload bytes from the newest key frame to the end: what a viewer would begin with. 0 without a key frame.
    pub fn bytes_since_key_frame(&self) -> usize {
        self.key_frame().map_or(0, |_| self.bytes_since_key_frame)
    }

    fn sum_since(&self, seq: TrackSeq) -> usize {
        let skip = usize::try_from(seq.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.slots.iter().skip(skip).flatten().map(|p| p.payload.len()).sum()
    }

    /// Payload bytes of the frame that begins at a position.
    pub fn frame_bytes(&self, seq: TrackSeq) -> usize {
        let Some(time) = self.get(seq).map(|first| first.time) else {
            return 0;
        };
        let skip = usize::try_from(seq - self.first).unwrap_or(usize::MAX);
        let frame = self.slots.iter().skip(skip).flatten().take_while(|p| p.time == time);
        frame.map(|p| p.payload.len()).sum()
    }

    /// How much older than the newest packet the one at a position is, by arrival.
    pub fn age(&self, seq: TrackSeq) -> Option<Duration> {
        let (_, newest) = self.newest()?;
        Some(newest.saturating_duration_since(self.get(seq)?.arrival))
    }

    /// Another source follows: nobody begins with what an earlier one sent. It can still be sent again.
    pub fn forget_key_frames(&mut self) {
        self.key_frames.clear();
    }

    /// Forgets the packets. The count of insertions goes on.
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

    fn insert(ring: &mut Ring, at: Instant, seq: u64, time: u64, key_frame: bool) -> Option<Arc<Packet>> {
        ring.insert(seq, |order| Packet {
            seq,
            time,
            order,
            codec: Codec::H264,
            marker: false,
            key_frame,
            format_changed: false,
            padding: 0,
            arrival: at,
            payload: Bytes::from_static(&[0; 1000]),
        })
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
        // Parameter sets alone prove nothing; the start of the slice is lost.
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
        insert(&mut ring, t + Duration::from_secs(10), 300, 300, true);
        assert!(ring.first() > 200 && ring.first() < 260, "{}", ring.first());
        assert_eq!(ring.key_frame(), Some(300));
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
    fn a_late_packet_fills_its_hole_once() {
        let (mut ring, t) = (Ring::default(), Instant::now());
        insert(&mut ring, t, 5, 1, true);
        insert(&mut ring, t, 7, 1, false);
        assert!(ring.get(6).is_none());
        let late = insert(&mut ring, t, 6, 1, false).expect("fills the hole");
        assert_eq!(late.order, 3);
        assert!(insert(&mut ring, t, 6, 1, false).is_none());
        assert!(insert(&mut ring, t, 4, 1, false).is_none(), "before the first");
    }
}
