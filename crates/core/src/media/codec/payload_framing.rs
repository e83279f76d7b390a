//! What one RTP payload is of its access unit, by its contents alone.

use super::{vp8, vp9};
use crate::media::Codec;
use crate::media::payload_discard::PayloadDiscardReason;

/// What one RTP payload is of its access unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PayloadFraming {
    /// A new picture starts with it, whatever its timestamp.
    pub starts_picture: bool,
    /// It has what comes before the picture data of an access unit: parameter sets, SEI messages, delimiters.
    pub precedes_picture: bool,
    /// It has picture data. Parameter sets and SEI messages have none.
    pub has_slice: bool,
    /// It ends within a NAL unit or an OBU, so that the next packet continues it.
    pub continues_in_next_packet: bool,
    /// H.264 and H.265: it begins within a NAL unit, which the packet before began.
    pub continues_previous_packet: bool,
}

impl PayloadFraming {
    /// Whether it is at the start of an access unit, by its contents.
    pub fn is_start_of_access_unit(self) -> bool {
        self.starts_picture || self.precedes_picture
    }

    /// Returns what NAL units are together, of which each is whole, or a payload alone.
    pub(in crate::media) fn merge(self, next: Self) -> Self {
        Self {
            starts_picture: self.starts_picture || next.starts_picture,
            precedes_picture: self.precedes_picture || next.precedes_picture,
            has_slice: self.has_slice || next.has_slice,
            continues_in_next_packet: false,
            continues_previous_packet: false,
        }
    }
}

/// A payload of any other codec is a whole frame.
const WHOLE_FRAME_PAYLOAD_FRAMING: PayloadFraming = PayloadFraming {
    starts_picture: false,
    precedes_picture: false,
    has_slice: true,
    continues_in_next_packet: false,
    continues_previous_packet: false,
};

/// What a payload is of its access unit.
///
/// # Errors
///
/// The reason if no receiver makes anything of it.
pub(crate) fn classify_payload(codec: Codec, payload: &[u8]) -> Result<PayloadFraming, PayloadDiscardReason> {
    if payload.is_empty() {
        return Err(PayloadDiscardReason::EmptyPayload);
    }
    match codec {
        Codec::H264 => classify_h264_payload(payload),
        Codec::H265 => classify_h265_payload(payload),
        Codec::Vp8 => match vp8::Vp8Descriptor::parse(payload) {
            Some(descriptor) if descriptor.descriptor_length < payload.len() => Ok(PayloadFraming {
                starts_picture: descriptor.starts_frame,
                ..WHOLE_FRAME_PAYLOAD_FRAMING
            }),
            _ => Err(PayloadDiscardReason::TruncatedPayload),
        },
        Codec::Vp9 => match vp9::Vp9Descriptor::parse(payload) {
            Some(descriptor) if descriptor.descriptor_length < payload.len() => Ok(PayloadFraming {
                starts_picture: descriptor.starts_frame && descriptor.spatial_layer == 0,
                continues_in_next_packet: !descriptor.ends_frame,
                ..WHOLE_FRAME_PAYLOAD_FRAMING
            }),
            _ => Err(PayloadDiscardReason::TruncatedPayload),
        },
        Codec::Av1 => match payload {
            [aggregation, _, ..] => Ok(PayloadFraming {
                continues_in_next_packet: aggregation & 0x40 != 0,
                ..WHOLE_FRAME_PAYLOAD_FRAMING
            }),
            _ => Err(PayloadDiscardReason::TruncatedPayload),
        },
        Codec::Opus | Codec::Pcmu | Codec::Pcma | Codec::Aac | Codec::Jpeg => Ok(WHOLE_FRAME_PAYLOAD_FRAMING),
    }
}

/// RFC 6184 §5.4, table 3. STAP-B, MTAP and FU-B belong to the interleaved mode.
fn classify_h264_payload(payload: &[u8]) -> Result<PayloadFraming, PayloadDiscardReason> {
    let (&header, rest) = payload.split_first().ok_or(PayloadDiscardReason::EmptyPayload)?;
    if header & 0x80 != 0 {
        return Err(PayloadDiscardReason::ForbiddenBit);
    }
    match header & 0x1f {
        1..=23 => classify_h264_nal(payload),
        24 => classify_aggregation_packet(rest, classify_h264_nal),
        28 => {
            let (&fu, body) = rest
                .split_first()
                .filter(|(_, body)| !body.is_empty())
                .ok_or(PayloadDiscardReason::TruncatedPayload)?;
            let slice = classify_h264_nal_body(fu & 0x1f, fu & 0x80 != 0, body);
            Ok(PayloadFraming {
                continues_in_next_packet: fu & 0x40 == 0,
                continues_previous_packet: fu & 0x80 == 0,
                ..slice
            })
        }
        25..=27 | 29 => Err(PayloadDiscardReason::InterleavedMode),
        _ => Err(PayloadDiscardReason::UndefinedNalType),
    }
}

/// One NAL unit of H.264.
pub(in crate::media) fn classify_h264_nal(nal: &[u8]) -> Result<PayloadFraming, PayloadDiscardReason> {
    let (&header, body) = nal.split_first().ok_or(PayloadDiscardReason::EmptyPayload)?;
    match (header & 0x80 == 0, header & 0x1f) {
        (false, _) => Err(PayloadDiscardReason::ForbiddenBit),
        (true, nal_type @ 1..=23) => Ok(classify_h264_nal_body(nal_type, true, body)),
        (true, _) => Err(PayloadDiscardReason::UndefinedNalType),
    }
}

/// The slice header starts with `first_mb_in_slice`, which is 0 if its first bit is set (ITU-T H.264 §7.3.3). An access
/// unit delimiter starts an access unit (§7.4.1.2.3).
fn classify_h264_nal_body(nal_type: u8, is_start: bool, body: &[u8]) -> PayloadFraming {
    let has_slice = matches!(nal_type, 1..=5 | 19..=21);
    let is_first = matches!(nal_type, 1 | 2 | 5) && body.first().is_some_and(|first| first & 0x80 != 0);
    PayloadFraming {
        starts_picture: is_start && (is_first || nal_type == 9),
        // ITU-T H.264 §7.4.1.2.3.
        precedes_picture: is_start && matches!(nal_type, 6..=9 | 14..=18),
        has_slice,
        continues_in_next_packet: false,
        continues_previous_packet: false,
    }
}

/// RFC 7798 §4.4. A PACI packet (50) carries extensions that nobody negotiates.
fn classify_h265_payload(payload: &[u8]) -> Result<PayloadFraming, PayloadDiscardReason> {
    let (&[header, second], rest) = payload
        .split_first_chunk::<2>()
        .ok_or(PayloadDiscardReason::TruncatedPayload)?;
    if header & 0x80 != 0 {
        return Err(PayloadDiscardReason::ForbiddenBit);
    }
    match header >> 1 & 0x3f {
        // The NAL unit of fragments has the layer and the temporal ID of the payload header (RFC 7798 §4.4.3).
        49 if has_zero_temporal_id_plus1(second) => Err(PayloadDiscardReason::ZeroTemporalId),
        0..=47 => classify_h265_nal(payload),
        48 => classify_aggregation_packet(rest, classify_h265_nal),
        49 => {
            let (&fu, body) = rest
                .split_first()
                .filter(|(_, body)| !body.is_empty())
                .ok_or(PayloadDiscardReason::TruncatedPayload)?;
            let slice = classify_h265_nal_body(fu & 0x3f, fu & 0x80 != 0, body);
            Ok(PayloadFraming {
                continues_in_next_packet: fu & 0x40 == 0,
                continues_previous_packet: fu & 0x80 == 0,
                ..slice
            })
        }
        _ => Err(PayloadDiscardReason::UndefinedNalType),
    }
}

/// Whether the second byte of an H.265 NAL unit header has `nuh_temporal_id_plus1` 0, which is forbidden.
fn has_zero_temporal_id_plus1(second: u8) -> bool {
    second & 7 == 0
}

/// One NAL unit of H.265.
pub(in crate::media) fn classify_h265_nal(nal: &[u8]) -> Result<PayloadFraming, PayloadDiscardReason> {
    let (&[header, second], body) = nal
        .split_first_chunk::<2>()
        .ok_or(PayloadDiscardReason::TruncatedPayload)?;
    match (header & 0x80 == 0, header >> 1 & 0x3f) {
        (false, _) => Err(PayloadDiscardReason::ForbiddenBit),
        (true, 0..=47) if has_zero_temporal_id_plus1(second) => Err(PayloadDiscardReason::ZeroTemporalId),
        (true, nal_type @ 0..=47) => Ok(classify_h265_nal_body(nal_type, true, body)),
        (true, _) => Err(PayloadDiscardReason::UndefinedNalType),
    }
}

/// The slice header starts with `first_slice_segment_in_pic_flag` (ITU-T H.265 §7.3.6.1); 35 is the access unit delimiter.
fn classify_h265_nal_body(nal_type: u8, is_start: bool, body: &[u8]) -> PayloadFraming {
    let has_slice = nal_type < 32;
    let is_first = has_slice && body.first().is_some_and(|first| first & 0x80 != 0);
    PayloadFraming {
        starts_picture: is_start && (is_first || nal_type == 35),
        // ITU-T H.265 §7.4.2.4.4.
        precedes_picture: is_start && matches!(nal_type, 32..=35 | 39 | 41..=44),
        has_slice,
        continues_in_next_packet: false,
        continues_previous_packet: false,
    }
}

/// An aggregation packet is what its NAL units are together. It is odd if none of them is valid.
fn classify_aggregation_packet(
    mut rest: &[u8],
    classify_nal: fn(&[u8]) -> Result<PayloadFraming, PayloadDiscardReason>,
) -> Result<PayloadFraming, PayloadDiscardReason> {
    let mut whole: Result<PayloadFraming, PayloadDiscardReason> = Err(PayloadDiscardReason::TruncatedPayload);
    while let Some((&length, body)) = rest.split_first_chunk::<2>() {
        let Some((nal, after)) = body.split_at_checked(usize::from(u16::from_be_bytes(length))) else {
            break;
        };
        rest = after;
        whole = match (whole, classify_nal(nal)) {
            (Ok(whole), Ok(next)) => Ok(whole.merge(next)),
            (Ok(whole), Err(_)) => Ok(whole),
            (Err(_), next) => next,
        };
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_receiver_takes_is_odd() {
        for (codec, payload, odd) in [
            (Codec::H264, &[][..], PayloadDiscardReason::EmptyPayload),
            (Codec::H264, &[0x00, 1], PayloadDiscardReason::UndefinedNalType),
            (Codec::H264, &[0x1e, 1], PayloadDiscardReason::UndefinedNalType),
            (Codec::H264, &[0x1f, 1], PayloadDiscardReason::UndefinedNalType),
            (
                Codec::H264,
                &[0x39, 0, 1, 0, 2, 0x41, 9],
                PayloadDiscardReason::InterleavedMode,
            ),
            (Codec::H264, &[0x3a, 0, 1, 0], PayloadDiscardReason::InterleavedMode),
            (Codec::H264, &[0x3d, 0x81, 0, 1], PayloadDiscardReason::InterleavedMode),
            (Codec::H264, &[0xe1, 0x88], PayloadDiscardReason::ForbiddenBit),
            (Codec::H264, &[0x7c, 0x85], PayloadDiscardReason::TruncatedPayload),
            (Codec::H264, &[0x78, 0, 9, 0x67], PayloadDiscardReason::TruncatedPayload),
            (Codec::H265, &[0x02], PayloadDiscardReason::TruncatedPayload),
            (Codec::H265, &[0x82, 1, 0x80], PayloadDiscardReason::ForbiddenBit),
            (Codec::H265, &[0x64, 1, 0, 0], PayloadDiscardReason::UndefinedNalType),
            (Codec::H265, &[0x7e, 1, 0, 0], PayloadDiscardReason::UndefinedNalType),
            (Codec::H265, &[0x62, 1, 0x93], PayloadDiscardReason::TruncatedPayload),
            (Codec::Vp8, &[0x90, 0x80], PayloadDiscardReason::TruncatedPayload),
            (Codec::Vp8, &[0x10], PayloadDiscardReason::TruncatedPayload),
            (Codec::Vp9, &[0x8c, 1], PayloadDiscardReason::TruncatedPayload),
            (Codec::Av1, &[0x10], PayloadDiscardReason::TruncatedPayload),
            (Codec::Opus, &[], PayloadDiscardReason::EmptyPayload),
        ] {
            assert_eq!(classify_payload(codec, payload), Err(odd), "{codec:?} {payload:x?}");
        }
    }

    #[test]
    fn a_picture_starts_with_its_first_slice() {
        let starts = |codec, payload: &[u8]| classify_payload(codec, payload).expect("valid").starts_picture;
        assert!(starts(Codec::H264, &[0x65, 0x88]) && !starts(Codec::H264, &[0x65, 0x42]));
        assert!(starts(Codec::H264, &[0x7c, 0x85, 0x88]) && !starts(Codec::H264, &[0x7c, 0x05, 0x88]));
        assert!(starts(Codec::H264, &[0x09, 0xf0]) && !starts(Codec::H264, &[0x67, 0x80]));
        assert!(starts(Codec::H265, &[0x26, 1, 0xaf]) && !starts(Codec::H265, &[0x26, 1, 0x2f]));
        assert!(!starts(Codec::H265, &[0x42, 1, 0x80]));
        assert!(starts(Codec::Vp8, &[0x10, 1]) && !starts(Codec::Vp8, &[0x00, 1]));
        assert!(starts(Codec::Vp9, &[0x08, 1]) && !starts(Codec::Vp9, &[0x28, 0x02, 0, 1]));
    }

    #[test]
    fn parameter_sets_are_no_picture_data_and_fragments_are_open() {
        let sets = classify_payload(Codec::H264, &[0x78, 0, 2, 0x67, 1, 0, 2, 0x68, 1]).expect("valid");
        let leads = PayloadFraming {
            precedes_picture: true,
            ..PayloadFraming::default()
        };
        assert_eq!(sets, leads);
        // Filler data and suffix SEI messages come after picture data.
        for (codec, payload) in [(Codec::H264, &[0x0c, 0xff, 0x80][..]), (Codec::H265, &[0x50, 1, 1])] {
            assert_eq!(classify_payload(codec, payload), Ok(PayloadFraming::default()));
        }
        let open = |codec, payload: &[u8]| {
            classify_payload(codec, payload)
                .expect("valid")
                .continues_in_next_packet
        };
        assert!(open(Codec::H264, &[0x7c, 0x85, 1]) && !open(Codec::H264, &[0x7c, 0x45, 1]));
        assert!(open(Codec::H265, &[0x62, 1, 0x93, 1]) && !open(Codec::H265, &[0x62, 1, 0x53, 1]));
        assert!(open(Codec::Vp9, &[0x08, 1]) && !open(Codec::Vp9, &[0x04, 1]));
        assert!(open(Codec::Av1, &[0x50, 1]) && !open(Codec::Av1, &[0x10, 1]));
    }
}
