//! The packet shared by the whole fan-out: one RTP payload with the sequence number and timestamp of its track.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::Codec;

/// Sequence number of a packet on a track: 64 bits, never wraps, continuous across sources.
pub type TrackSeq = u64;

/// Timestamp on a track in units of the codec's clock rate: 64 bits, never wraps, continuous across sources.
pub type TrackTime = u64;

/// One RTP packet in the ring of a track. Immutable once inserted: a retransmission must be byte-identical to the first
/// transmission (invariant 6).
#[derive(Clone, Debug)]
pub struct Packet {
    pub seq: TrackSeq,
    pub time: TrackTime,
    /// Insertion order in the ring; distinguishes a late packet from one that was sent already.
    pub order: u64,
    pub codec: Codec,
    pub marker: bool,
    /// This packet identifies its frame as a key frame; the frame may have started earlier.
    pub key_frame: bool,
    /// Format, resolution or layers change with this packet: viewers check whether they can still receive the track.
    pub format_changed: bool,
    /// RTP padding in bytes (RFC 3550 §5.1). It makes consecutive packets equally long, because GSO allows only the
    /// last segment of a batch to be shorter.
    pub padding: u8,
    pub arrival: Instant,
    /// RTP payload without header and padding.
    pub payload: Bytes,
}

/// The packets of a track that arrived in one tick, shared by all readers.
pub type Packets = Arc<[Arc<Packet>]>;

impl Packet {
    /// Length of payload and padding, i.e. of the encrypted part, in bytes.
    pub fn body_len(&self) -> usize {
        self.payload.len() + usize::from(self.padding)
    }
}

/// Length differences up to this many bytes are padded. libwebrtc splits a frame into packets that differ by one byte,
/// the longer ones last; a larger difference occurs only at a short last packet.
const PADDED_DIFFERENCE: usize = 8;

/// Chooses the padding for the packets of one frame that are sent as a batch: each packet but the last is padded to the
/// length of the longest if it is nearly that long.
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
