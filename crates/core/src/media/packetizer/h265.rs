//! H.265 (RFC 7798) without decoding order numbers: single NAL units, aggregation packets and fragments.

use bytes::Bytes;

use super::{NalPacketization, split_into_fragments};
use crate::media::codec::MAX_RTP_PAYLOAD_BYTES;

const AP_NAL_TYPE: u8 = 48;
const FU_NAL_TYPE: u8 = 49;

/// How a NAL unit is packetized (ITU-T H.265 table 7-1).
pub(super) fn classify_nal_for_packetization(nal: &[u8]) -> NalPacketization {
    let Some([header, _]) = nal.first_chunk::<2>() else {
        return NalPacketization::Dropped;
    };
    match header >> 1 & 0x3f {
        0..=31 => NalPacketization::Slice,
        // Parameter sets, end of sequence and bitstream, SEI.
        32..=34 | 36 | 37 | 39..=47 => NalPacketization::Aggregated,
        // Access unit delimiter and filler; types defined by RFC 7798.
        _ => NalPacketization::Dropped,
    }
}

/// RFC 7798 §4.4.2: the lowest layer and temporal ID, and the F bit of the aggregated NAL units.
pub(super) fn aggregation_header(nals: &[Bytes]) -> [u8; 2] {
    let headers = || nals.iter().filter_map(|nal| nal.first_chunk::<2>());
    let damaged = headers().fold(0, |all, [high, _]| all | high & 0x80);
    let layer = |[high, low]: &[u8; 2]| (high & 1) << 5 | low >> 3;
    let lowest = headers().map(layer).min().unwrap_or(0);
    let temporal = headers().map(|[_, low]| low & 7).min().unwrap_or(1);
    [damaged | AP_NAL_TYPE << 1 | lowest >> 5, lowest << 3 | temporal]
}

/// RFC 7798 §4.4.3: payload header, FU header, and a fragment of the NAL unit without its header.
pub(super) fn fu_payloads(nal: &[u8]) -> impl Iterator<Item = Bytes> {
    let (header, body) = nal
        .split_first_chunk::<2>()
        .map_or(([0, 1], nal), |(header, body)| (*header, body));
    let [high, low] = header;
    split_into_fragments(body, MAX_RTP_PAYLOAD_BYTES - 3, move |flags| {
        vec![high & 0x81 | FU_NAL_TYPE << 1, low, flags | high >> 1 & 0x3f]
    })
}
