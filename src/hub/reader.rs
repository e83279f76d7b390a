//! Reads a track in line order as it is written, for readers that are no viewers: a hole is waited for a little while,
//! as a retransmission may fill it, and then passed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ring::Ring;
use crate::media::packet::{Packet, TrackSeq};

/// Where a reader stands.
#[derive(Debug)]
pub struct Reader {
    next: TrackSeq,
    /// Since when what comes next is missing.
    missing: Option<Instant>,
}

/// How long a hole is waited for: a publisher's retransmission takes a round trip or two.
const PATIENCE: Duration = Duration::from_millis(250);

impl Reader {
    /// Begins at the newest key frame; `None` if there is none.
    pub fn at_key_frame(ring: &Ring) -> Option<Self> {
        ring.key_frame().map(Self::at)
    }

    /// Begins with the oldest that is kept.
    pub fn at_start(ring: &Ring) -> Self {
        Self::at(ring.first())
    }

    /// Begins with what comes next.
    pub fn at_end(ring: &Ring) -> Self {
        Self::at(ring.end())
    }

    fn at(next: TrackSeq) -> Self {
        Self { next, missing: None }
    }

    /// Appends what has come since the last call. Returns when to call again even if nothing more comes.
    pub fn read(&mut self, now: Instant, ring: &Ring, out: &mut Vec<Arc<Packet>>) -> Option<Instant> {
        self.next = self.next.max(ring.first());
        while self.next < ring.end() {
            if let Some(packet) = ring.get(self.next) {
                out.push(packet.clone());
                self.missing = None;
            } else {
                let due = *self.missing.get_or_insert(now) + PATIENCE;
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
    use bytes::Bytes;

    fn insert(ring: &mut Ring, at: Instant, seq: u64) {
        ring.insert(seq, |order| Packet {
            seq,
            time: seq,
            order,
            codec: Codec::H264,
            marker: true,
            key_frame: seq == 10,
            format_changed: false,
            padding: 0,
            arrival: at,
            payload: Bytes::from_static(b"x"),
        });
    }

    fn read(reader: &mut Reader, now: Instant, ring: &Ring) -> Vec<u64> {
        let mut out = Vec::new();
        reader.read(now, ring, &mut out);
        out.iter().map(|packet| packet.seq).collect()
    }

    #[test]
    fn a_hole_is_waited_for_and_then_passed() {
        let (mut ring, t) = (Ring::default(), Instant::now());
        assert!(Reader::at_key_frame(&ring).is_none());
        for seq in [10, 11, 13, 15] {
            insert(&mut ring, t, seq);
        }
        let mut reader = Reader::at_key_frame(&ring).expect("a key frame");
        assert_eq!(read(&mut reader, t, &ring), [10, 11]);
        insert(&mut ring, t, 12);
        assert_eq!(read(&mut reader, t + PATIENCE / 2, &ring), [12, 13], "it came late");
        let due = reader.read(t + PATIENCE / 2, &ring, &mut Vec::new()).expect("waits");
        assert_eq!(due, t + PATIENCE / 2 + PATIENCE);
        assert_eq!(read(&mut reader, due, &ring), [15]);
        assert_eq!(reader.read(due, &ring, &mut Vec::new()), None);
    }
}
