//! Reads the packets of a track in sequence order, for readers that are not viewers. At a gap it waits briefly for a
//! retransmission, then skips the missing packets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ring::{PacketRing, RingEntry};
use crate::media::packet::TrackSeq;

/// Position of a reader.
#[derive(Debug)]
pub struct RingReader {
    next_seq: TrackSeq,
    /// Since when the next packet is missing.
    next_packet_missing_since: Option<Instant>,
}

/// How long a gap is waited for: a retransmission by the publisher takes one or two round trips.
const MISSING_PACKET_TIMEOUT: Duration = Duration::from_millis(250);

impl RingReader {
    /// Starts at the newest key frame; `None` without one.
    pub fn starting_at_newest_key_frame(ring: &PacketRing) -> Option<Self> {
        ring.newest_key_frame_seq().map(Self::at_seq)
    }

    /// Starts at the oldest key frame in the ring; `None` without one.
    pub fn starting_at_oldest_key_frame(ring: &PacketRing) -> Option<Self> {
        ring.oldest_key_frame_seq().map(Self::at_seq)
    }

    /// Starts at the oldest packet in the ring.
    pub fn starting_at_oldest_packet(ring: &PacketRing) -> Self {
        Self::at_seq(ring.first_seq())
    }

    /// Starts at the next packet to arrive.
    pub fn starting_at_ring_end(ring: &PacketRing) -> Self {
        Self::at_seq(ring.end_seq())
    }

    fn at_seq(next: TrackSeq) -> Self {
        Self {
            next_seq: next,
            next_packet_missing_since: None,
        }
    }

    /// Appends the packets since the last call. Returns when to call again even without new packets.
    pub fn append_available_packets(
        &mut self,
        now: Instant,
        ring: &PacketRing,
        out: &mut Vec<Arc<RingEntry>>,
    ) -> Option<Instant> {
        self.next_seq = self.next_seq.max(ring.first_seq());
        while self.next_seq < ring.end_seq() {
            if let Some(packet) = ring.get(self.next_seq) {
                out.push(packet.clone());
                self.next_packet_missing_since = None;
            } else {
                let due = *self.next_packet_missing_since.get_or_insert(now) + MISSING_PACKET_TIMEOUT;
                if now < due {
                    return Some(due);
                }
            }
            self.next_seq += 1;
        }
        self.next_packet_missing_since = None;
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

    fn insert_packet(ring: &mut PacketRing, at: Instant, seq: u64) {
        let packet = Packet {
            seq,
            time: seq,
            codec: Codec::H264,
            marker: true,
            identifies_key_frame: seq == 10,
            arrival: at,
            payload: Bytes::from_static(b"x"),
        };
        ring.insert(packet, 0);
    }

    fn read_seqs(reader: &mut RingReader, now: Instant, ring: &PacketRing) -> Vec<u64> {
        let mut out = Vec::new();
        reader.append_available_packets(now, ring, &mut out);
        out.iter().map(|entry| entry.packet.seq).collect()
    }

    #[test]
    fn a_gap_is_waited_for_and_then_skipped() {
        let (mut ring, t) = (PacketRing::default(), Instant::now());
        assert!(RingReader::starting_at_newest_key_frame(&ring).is_none());
        for seq in [10, 11, 13, 15] {
            insert_packet(&mut ring, t, seq);
        }
        let mut reader = RingReader::starting_at_newest_key_frame(&ring).expect("a key frame");
        assert_eq!(read_seqs(&mut reader, t, &ring), [10, 11]);
        insert_packet(&mut ring, t, 12);
        assert_eq!(
            read_seqs(&mut reader, t + MISSING_PACKET_TIMEOUT / 2, &ring),
            [12, 13],
            "it came late"
        );
        let due = reader
            .append_available_packets(t + MISSING_PACKET_TIMEOUT / 2, &ring, &mut Vec::new())
            .expect("waits");
        assert_eq!(due, t + MISSING_PACKET_TIMEOUT / 2 + MISSING_PACKET_TIMEOUT);
        assert_eq!(read_seqs(&mut reader, due, &ring), [15]);
        assert_eq!(reader.append_available_packets(due, &ring, &mut Vec::new()), None);
    }
}
