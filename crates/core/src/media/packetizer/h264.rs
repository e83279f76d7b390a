//! H.264 (RFC 6184) in packetization mode 1: single NAL units, STAP-A and FU-A.

use bytes::Bytes;

use super::{NalPacketization, split_into_fragments};
use crate::media::codec::MAX_RTP_PAYLOAD_BYTES;

const STAP_A: u8 = 24;
const FU_A: u8 = 28;

/// How a NAL unit is packetized (ITU-T H.264 table 7-1).
pub(super) fn classify_nal_for_packetization(nal: &[u8]) -> NalPacketization {
    match nal.first().map(|header| header & 0x1f) {
        Some(1..=5 | 14 | 19..=21) => NalPacketization::Slice,
        // SEI, parameter sets, end of sequence and stream.
        Some(6..=8 | 10 | 11 | 13 | 15..=18 | 22 | 23) => NalPacketization::Aggregated,
        // Access unit delimiter and filler; types defined by RFC 6184 or undefined.
        Some(_) | None => NalPacketization::Dropped,
    }
}

/// RFC 6184 §5.7: the highest NRI and the F bit of the aggregated NAL units.
pub(super) fn aggregation_header(nals: &[Bytes]) -> [u8; 1] {
    let headers = || nals.iter().filter_map(|nal| nal.first());
    let damaged = headers().fold(0, |all, header| all | header & 0x80);
    let nri = headers().map(|header| header & 0x60).max().unwrap_or(0);
    [damaged | nri | STAP_A]
}

/// RFC 6184 §5.8: FU indicator, FU header, and a fragment of the NAL unit without its header.
pub(super) fn fu_a_payloads(nal: &[u8]) -> impl Iterator<Item = Bytes> {
    let (header, body) = nal.split_first().map_or((0, nal), |(header, body)| (*header, body));
    split_into_fragments(body, MAX_RTP_PAYLOAD_BYTES - 2, move |flags| {
        vec![header & 0xe0 | FU_A, flags | header & 0x1f]
    })
}
