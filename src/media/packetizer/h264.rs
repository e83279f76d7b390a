//! H.264 (RFC 6184) in packetization mode 1: single NAL units, STAP-A and FU-A.

use bytes::Bytes;

use super::{Role, pieces};
use crate::media::codec::MAX_PAYLOAD;

const STAP_A: u8 = 24;
const FU_A: u8 = 28;

/// What becomes of a NAL unit (ITU-T H.264 table 7-1).
pub(super) fn role(nal: &[u8]) -> Role {
    match nal.first().map(|header| header & 0x1f) {
        Some(1..=5 | 14 | 19..=21) => Role::Slice,
        // Supplemental information, parameter sets, ends of sequence and stream.
        Some(6..=8 | 10 | 11 | 13 | 15..=18 | 22 | 23) => Role::Small,
        // Access unit delimiter and filler; what RFC 6184 gave a meaning of its own or left undefined.
        Some(_) | None => Role::Dropped,
    }
}

/// RFC 6184 §5.7: the highest NRI of what is in it, and whether anything in it is damaged.
pub(super) fn aggregation_header(nals: &[Bytes]) -> [u8; 1] {
    let headers = || nals.iter().filter_map(|nal| nal.first());
    let damaged = headers().fold(0, |all, header| all | header & 0x80);
    let nri = headers().map(|header| header & 0x60).max().unwrap_or(0);
    [damaged | nri | STAP_A]
}

/// RFC 6184 §5.8: indicator, FU header, and a piece of what follows the header of the NAL unit.
pub(super) fn fragments(nal: &[u8]) -> impl Iterator<Item = Bytes> {
    let (header, body) = nal.split_first().map_or((0, nal), |(header, body)| (*header, body));
    pieces(body, MAX_PAYLOAD - 2, move |flags| {
        vec![header & 0xe0 | FU_A, flags | header & 0x1f]
    })
}
