//! The packet that the whole fan-out shares: one RTP payload on the unbroken line of its track.

use std::time::Instant;

use bytes::Bytes;

use super::Codec;

/// Position on a track's line: counts packets, never wraps, goes on across sources.
pub type TrackSeq = u64;

/// Time on a track's line in units of the codec's clock rate, never wraps, goes on across sources.
pub type TrackTime = u64;

/// One RTP packet as it stands in a track's ring. Immutable once it is there: a retransmission has to come out byte for
/// byte like the first transmission (invariant 6).
#[derive(Clone, Debug)]
pub struct Packet {
    pub seq: TrackSeq,
    pub time: TrackTime,
    /// Counts insertions into the ring, so that a late packet can be told from one that was sent already.
    pub order: u64,
    pub codec: Codec,
    pub marker: bool,
    /// This packet proves that its frame is one that a decoder can begin with; the frame may have begun earlier.
    pub key_frame: bool,
    /// What the stream says of itself has changed with this packet: viewers look whether they can still take it.
    pub format_changed: bool,
    /// RTP padding in bytes (RFC 3550 §5.1) that makes neighbours equally long: GSO allows only the last segment of a
    /// run to be shorter.
    pub padding: u8,
    pub arrival: Instant,
    /// Without header and without padding.
    pub payload: Bytes,
}

impl Packet {
    /// Payload and padding: what is sealed, in bytes.
    pub fn body_len(&self) -> usize {
        self.payload.len() + usize::from(self.padding)
    }
}

/// Differences in length up to this many bytes are padded away. libwebrtc splits a frame into parts that differ by one
/// byte, the longer ones last; everything else that differs is a last, short packet.
const PADDED_DIFFERENCE: usize = 8;

/// Chooses the padding for packets of one frame that are sent in one go: each but the last is brought to the length of
/// the longest, if it is nearly that long.
pub fn choose_padding(lengths: &[usize]) -> impl Iterator<Item = u8> + '_ {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let last = lengths.len().saturating_sub(1);
    lengths.iter().enumerate().map(move |(index, length)| {
        let missing = longest - length;
        if index != last && missing <= PADDED_DIFFERENCE {
            u8::try_from(missing).unwrap_or(0)
        } else {
            0
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_equal_packets_become_equal_and_the_last_stays_short() {
        let padding: Vec<u8> = choose_padding(&[1078, 1078, 1079, 1079, 400]).collect();
        assert_eq!(padding, [1, 1, 0, 0, 0]);
    }

    #[test]
    fn very_different_packets_are_left_alone() {
        let padding: Vec<u8> = choose_padding(&[30, 1100, 1100]).collect();
        assert_eq!(padding, [0, 0, 0]);
    }
}
