//! One RTP packet of a track: a payload with the sequence number and timestamp of its track.

use std::time::Instant;

use bytes::Bytes;

use super::Codec;

/// Sequence number of a packet on a track: 64 bits, never wraps, continuous across sources.
pub(crate) type TrackSeq = u64;

/// Timestamp on a track in units of the codec's clock rate: 64 bits, never wraps, continuous across sources.
pub type TrackTime = u64;

/// One RTP packet of a track.
#[derive(Clone, Debug)]
pub struct Packet {
    pub seq: TrackSeq,
    pub time: TrackTime,
    pub codec: Codec,
    pub marker: bool,
    /// This packet identifies its frame as a key frame; the frame may have started earlier.
    pub identifies_key_frame: bool,
    pub arrival: Instant,
    /// RTP payload without header and padding.
    pub payload: Bytes,
}
