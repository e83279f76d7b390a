//! When each packet left the publisher and what was in it: written by the sending thread, read by the receiving one.
//!
//! The gateway rewrites sequence numbers by a constant per viewer and track. Once a viewer knows its constant, every
//! packet's header leads to its entry here, without decryption.

use std::sync::atomic::{AtomicU64, Ordering};

/// One of the two tracks of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Track {
    Video,
    Audio,
}

impl Track {
    pub(crate) const ALL: [Self; 2] = [Self::Video, Self::Audio];

    /// Place in an array of both.
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Video => 0,
            Self::Audio => 1,
        }
    }
}

/// The whole stream.
pub(crate) struct Timeline {
    tracks: [Line; 2],
}

/// One track: a ring over the space of RTP sequence numbers, so that the sequence number is the index.
struct Line {
    /// Packets sent so far: the extended sequence number of the next.
    next: AtomicU64,
    entries: Box<[Entry]>,
}

#[derive(Default)]
struct Entry {
    sent_ns: AtomicU64,
    digest: AtomicU64,
}

impl Timeline {
    pub(crate) fn new() -> Self {
        let line = || Line {
            next: AtomicU64::new(0),
            entries: (0..=u16::MAX).map(|_| Entry::default()).collect(),
        };
        Self {
            tracks: [line(), line()],
        }
    }

    /// Enters the next packet of a track, before it is sent at `now_ns` of the real-time clock. The sequence numbers of
    /// a track begin at zero and have no gaps.
    pub(crate) fn record(&self, track: Track, digest: u64, now_ns: u64) {
        let line = &self.tracks[track.index()];
        let seq = line.next.load(Ordering::Relaxed);
        let entry = &line.entries[usize::from(seq as u16)];
        entry.digest.store(digest, Ordering::Relaxed);
        entry.sent_ns.store(now_ns, Ordering::Relaxed);
        line.next.store(seq + 1, Ordering::Release);
    }

    /// Packets of both tracks sent so far.
    pub(crate) fn position(&self) -> [u64; 2] {
        Track::ALL.map(|track| self.tracks[track.index()].next.load(Ordering::Acquire))
    }

    /// When the packet with this sequence number of the publisher left, and the digest of its payload.
    pub(crate) fn entry(&self, track: Track, seq: u16) -> (u64, u64) {
        let entry = &self.tracks[track.index()].entries[usize::from(seq)];
        (
            entry.sent_ns.load(Ordering::Relaxed),
            entry.digest.load(Ordering::Relaxed),
        )
    }

    /// The publisher's sequence number of the newest packet with this payload.
    pub(crate) fn find(&self, track: Track, digest: u64) -> Option<u16> {
        let line = &self.tracks[track.index()];
        let next = line.next.load(Ordering::Acquire);
        let oldest = next.saturating_sub(line.entries.len() as u64);
        (oldest..next)
            .rev()
            .map(|seq| seq as u16)
            .find(|&seq| line.entries[usize::from(seq)].digest.load(Ordering::Relaxed) == digest)
    }
}

/// A digest of a payload, FNV-1a over words of eight bytes. Against mistakes, not against malice.
pub(crate) fn digest(payload: &[u8]) -> u64 {
    let (words, rest) = payload.as_chunks::<8>();
    let tail = rest
        .iter()
        .fold(rest.len() as u64, |tail, &byte| tail << 8 | u64::from(byte));
    let mut hash = words
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .fold(0xcbf2_9ce4_8422_2325, step);
    hash = step(hash, tail);
    hash ^ (hash >> 32)
}

fn step(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_leads_to_the_newest_packet_that_had_it() {
        let timeline = Timeline::new();
        for seq in 0..70_000u64 {
            timeline.record(Track::Video, digest(&(seq % 40_000).to_be_bytes()), seq);
        }
        assert_eq!(timeline.position(), [70_000, 0]);
        let seq = timeline.find(Track::Video, digest(&29_999u64.to_be_bytes())).unwrap();
        assert_eq!(seq, 69_999u64 as u16);
        assert_eq!(timeline.entry(Track::Video, seq).0, 69_999);
        assert_eq!(timeline.find(Track::Audio, digest(b"x")), None);
    }

    #[test]
    fn one_changed_bit_changes_the_digest() {
        let payload = [0x5a; 61];
        for bit in 0..payload.len() * 8 {
            let mut changed = payload;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(digest(&changed), digest(&payload), "bit {bit}");
        }
        assert_ne!(digest(&payload[..60]), digest(&payload));
    }
}
