//! Reads the packets of a track in sequence order, for readers that are not viewers. At a gap it waits briefly for a
//! retransmission, then skips the missing packets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ring::{Entry, Ring};
use crate::media::packet::TrackSeq;

/// Position of a reader.
#[derive(Debug)]
pub struct Reader {
    next: TrackSeq,
    /// Since when the next packet is missing.
    missing: Option<Instant>,
}

/// How long a gap is waited for: a retransmission by the publisher takes one or two round trips.
const GAP_TIMEOUT: Duration = Duration::from_millis(250);

impl Reader {
    /// Starts at the newest key frame; `None` without one.
    pub fn at_key_frame(ring: &Ring) -> Option<Self> {
        ring.key_frame().map(Self::at)
    }

    /// Starts at the oldest key frame in the ring; `None` without one.
    pub fn at_oldest_key_frame(ring: &Ring) -> Option<Self> {
        ring.oldest_key_frame().map(Self::at)
    }

    /// Starts at the oldest packet in the ring.
    pub fn at_start(ring: &Ring) -> Self {
        Self::at(ring.first())
    }

    /// Starts at the next packet to arrive.
    pub fn at_end(ring: &Ring) -> Self {
        Self::at(ring.end())
    }

    fn at(next: TrackSeq) -> Self {
        Self { next, missing: None }
    }

    /// Appends the packets since the last call. Returns when to call again even without new packets.
    pub fn read(&mut self, now: Instant, ring: &Ring, out: &mut Vec<Arc<Entry>>) -> Option<Instant> {
        self.next = self.next.max(ring.first());
        while self.next < ring.end() {
            if let Some(packet) = ring.get(self.next) {
                out.push(packet.clone());
                self.missing = None;
            } else {
                let due = *self.missing.get_or_insert(now) + GAP_TIMEOUT;
                if now < due {
                    return Some(due);
                }
            }
            self.next += 1;
        }
        self.missing = None;
        None
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;
    use crate::media::Codec;
    use crate::media::packet::Packet;
    use bytes::Bytes;

    fn insert(ring: &mut Ring, at: Instant, seq: u64) {
        let packet = Packet {
            seq,
            time: seq,
            codec: Codec::H264,
            marker: true,
            key_frame: seq == 10,
            arrival: at,
            payload: Bytes::from_static(b"x"),
        };
        ring.insert(packet, 0);
    }

    fn read(reader: &mut Reader, now: Instant, ring: &Ring) -> Vec<u64> {
        let mut out = Vec::new();
        reader.read(now, ring, &mut out);
        out.iter().map(|entry| entry.packet.seq).collect()
    }

    #[test]
    fn a_gap_is_waited_for_and_then_skipped() {
        let (mut ring, t) = (Ring::default(), Instant::now());
        assert!(Reader::at_key_frame(&ring).is_none());
        for seq in [10, 11, 13, 15] {
            insert(&mut ring, t, seq);
        }
        let mut reader = Reader::at_key_frame(&ring).expect("a key frame");
        assert_eq!(read(&mut reader, t, &ring), [10, 11]);
        insert(&mut ring, t, 12);
        assert_eq!(read(&mut reader, t + GAP_TIMEOUT / 2, &ring), [12, 13], "it came late");
        let due = reader.read(t + GAP_TIMEOUT / 2, &ring, &mut Vec::new()).expect("waits");
        assert_eq!(due, t + GAP_TIMEOUT / 2 + GAP_TIMEOUT);
        assert_eq!(read(&mut reader, due, &ring), [15]);
        assert_eq!(reader.read(due, &ring, &mut Vec::new()), None);
    }
}
