//! Removes the decoding order numbers of payloads: the interleaved mode of H.264 (RFC 6184 §6.4) and H.265 with
//! `sprop-max-don-diff` above 0 (RFC 7798 §4.4). Units stay in the order in which they are sent, as players read them: no
//! known encoder of live video sends them in another.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::Codec;
use super::aac_depacketizer::fmtp_parameter;

/// Whether the parameters of an `fmtp` attribute announce decoding order numbers.
pub fn announces_decoding_order_numbers(codec: Codec, fmtp: &str) -> bool {
    let number = |name| fmtp_parameter(fmtp, name).and_then(|value| value.parse::<u32>().ok());
    match codec {
        Codec::H264 => number("packetization-mode") == Some(2),
        Codec::H265 => number("sprop-max-don-diff").is_some_and(|difference| difference > 0),
        _ => false,
    }
}

/// Returns a payload without its decoding order numbers. One that is truncated stays as it is.
pub(super) fn remove_decoding_order_numbers(codec: Codec, payload: Bytes) -> Bytes {
    let removed = match codec {
        Codec::H264 => remove_from_h264(&payload),
        Codec::H265 => remove_from_h265(&payload),
        _ => None,
    };
    removed.unwrap_or(payload)
}

/// STAP-B becomes STAP-A, as do MTAPs without their timestamps; FU-B becomes FU-A (RFC 6184 §5.7, §5.8).
fn remove_from_h264(payload: &[u8]) -> Option<Bytes> {
    const STAP_A: u8 = 24;
    const FU_A: u8 = 28;
    let (&first, rest) = payload.split_first()?;
    let header = |nal_type: u8| first & 0xe0 | nal_type;
    let mut out = BytesMut::with_capacity(payload.len());
    match first & 0x1f {
        25 => {
            out.put_u8(header(STAP_A));
            out.put_slice(rest.get(DON_LENGTH..)?);
        }
        // A difference of one byte, and a timestamp of two or three.
        nal_type @ (26 | 27) => {
            out.put_u8(header(STAP_A));
            let skipped = usize::from(nal_type - 26) + 3;
            copy_aggregated_units(rest.get(DON_LENGTH..)?, skipped, skipped, &mut out)?;
        }
        29 => {
            let (&fu_header, body) = rest.split_first()?;
            out.put_slice(&[header(FU_A), fu_header]);
            out.put_slice(body.get(DON_LENGTH..)?);
        }
        _ => return None,
    }
    Some(out.freeze())
}

/// RFC 7798 §4.4.1 to §4.4.3.
fn remove_from_h265(payload: &[u8]) -> Option<Bytes> {
    let (header, rest) = payload.split_first_chunk::<2>()?;
    let mut out = BytesMut::with_capacity(payload.len());
    out.put_slice(header);
    match header[0] >> 1 & 0x3f {
        0..=47 => out.put_slice(rest.get(DON_LENGTH..)?),
        // The numbers of all units but the first are differences of one byte.
        48 => copy_aggregated_units(rest.get(DON_LENGTH..)?, 0, 1, &mut out)?,
        49 => {
            let (&fu_header, body) = rest.split_first()?;
            let is_start = fu_header & 0x80 != 0;
            out.put_u8(fu_header);
            out.put_slice(if is_start { body.get(DON_LENGTH..)? } else { body });
        }
        _ => return None,
    }
    Some(out.freeze())
}

const DON_LENGTH: usize = 2;

/// Copies units with their sizes. Of MTAPs, the skipped bytes come after the size; of H.265, before it.
fn copy_aggregated_units(mut rest: &[u8], after_first_size: usize, later: usize, out: &mut BytesMut) -> Option<()> {
    let is_after_size = after_first_size > 0;
    let mut is_first = true;
    while !rest.is_empty() {
        if !is_after_size && !std::mem::take(&mut is_first) {
            rest = rest.get(later..)?;
        }
        let (size, body) = rest.split_first_chunk::<2>()?;
        let body = if is_after_size { body.get(later..)? } else { body };
        let (unit, after) = body.split_at_checked(usize::from(u16::from_be_bytes(*size)))?;
        out.put_slice(size);
        out.put_slice(unit);
        rest = after;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_payload_loses_its_numbers() {
        for (codec, payload, wanted) in [
            (
                Codec::H264,
                &[0x79, 0, 7, 0, 2, 0x67, 1, 0, 1, 0x68][..],
                &[0x78, 0, 2, 0x67, 1, 0, 1, 0x68][..],
            ),
            (
                Codec::H264,
                &[0x7a, 0, 7, 0, 2, 9, 8, 8, 0x67, 1, 0, 1, 9, 8, 8, 0x68],
                &[0x78, 0, 2, 0x67, 1, 0, 1, 0x68],
            ),
            (
                Codec::H264,
                &[0x7b, 0, 7, 0, 2, 9, 8, 8, 8, 0x67, 1],
                &[0x78, 0, 2, 0x67, 1],
            ),
            (Codec::H264, &[0x7d, 0x85, 0, 7, 1, 2], &[0x7c, 0x85, 1, 2]),
            (Codec::H264, &[0x7c, 0x45, 1, 2], &[0x7c, 0x45, 1, 2]),
            (Codec::H264, &[0x41, 1, 2, 3], &[0x41, 1, 2, 3]),
            (Codec::H265, &[0x02, 1, 0, 7, 0xd0, 3], &[0x02, 1, 0xd0, 3]),
            (
                Codec::H265,
                &[0x60, 1, 0, 7, 0, 3, 0x40, 1, 9, 1, 0, 2, 0x42, 1],
                &[0x60, 1, 0, 3, 0x40, 1, 9, 0, 2, 0x42, 1],
            ),
            (Codec::H265, &[0x62, 1, 0x93, 0, 7, 1, 2], &[0x62, 1, 0x93, 1, 2]),
            (Codec::H265, &[0x62, 1, 0x53, 1, 2], &[0x62, 1, 0x53, 1, 2]),
        ] {
            let removed = remove_decoding_order_numbers(codec, Bytes::copy_from_slice(payload));
            assert_eq!(removed, wanted, "{payload:x?}");
        }
    }

    #[test]
    fn truncated_payloads_stay_as_they_are() {
        for first in [0x79, 0x7a, 0x7b, 0x7d, 0x02, 0x60, 0x62, 0x64] {
            for length in 0..8 {
                let payload: Vec<u8> = [first, 1, 0x80, 0, 9, 9, 9, 9].into_iter().take(length).collect();
                for codec in [Codec::H264, Codec::H265] {
                    remove_decoding_order_numbers(codec, payload.clone().into());
                }
            }
        }
        let cut = Bytes::from_static(&[0x79, 0]);
        assert_eq!(remove_decoding_order_numbers(Codec::H264, cut.clone()), cut);
    }

    #[test]
    fn only_the_parameters_of_the_payload_formats_announce_them() {
        for (codec, fmtp, wanted) in [
            (Codec::H264, "packetization-mode=2;sprop-interleaving-depth=1", true),
            (Codec::H264, "packetization-mode=1", false),
            (Codec::H265, "sprop-max-don-diff=2", true),
            (Codec::H265, "sprop-max-don-diff=0;sprop-depack-buf-nalus=0", false),
            (Codec::H265, "packetization-mode=2", false),
            (Codec::Vp8, "packetization-mode=2", false),
        ] {
            assert_eq!(announces_decoding_order_numbers(codec, fmtp), wanted, "{fmtp}");
        }
    }
}
