//! A packet of RTP as a client receives it.

use std::time::Instant;

use bytes::Bytes;

/// One received RTP packet.
#[derive(Clone, Debug)]
pub struct RtpPacket {
    /// Extended sequence number.
    pub seq: u64,
    /// Extended RTP timestamp, in units of the codec's clock rate.
    pub timestamp: u64,
    pub marker: bool,
    pub arrival: Instant,
    /// Without header and padding.
    pub payload: Bytes,
}
