//! Whether other frames refer to the frame of an RTP payload, by its headers alone: what nothing refers to can be left out
//! without harm to the rest.

use super::parameter_sets::iter_aggregated_nals;
use super::{vp8, vp9};
use crate::media::Codec;

/// Whether other frames refer to a frame, as far as one of its packets tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrameReference {
    /// Parameter sets, SEI messages and delimiters: other packets of the frame tell.
    #[default]
    Unknown,
    /// Others may refer to it.
    Reference,
    /// No frame refers to it, or only others that are marked so: those of higher temporal layers. If all of them are left
    /// out, up to a key frame, the rest can be decoded.
    NonReference,
}

impl FrameReference {
    /// Reads the headers of an RTP payload. Frames of AV1, whose dependencies are in a header extension, and of other codecs
    /// count as referred to.
    pub(crate) fn of_rtp_payload(codec: Codec, payload: &[u8]) -> Self {
        match codec {
            Codec::H264 => of_h264_payload(payload),
            Codec::H265 => of_h265_payload(payload),
            Codec::Vp8 => Self::from_is_non_reference(vp8::Vp8Descriptor::parse(payload).is_some_and(|descriptor| {
                match descriptor.temporal_layer {
                    // Receivers follow the base layer by TL0PICIDX: all of it is kept.
                    Some(layer) => layer > 0,
                    None => descriptor.is_non_reference,
                }
            })),
            Codec::Vp9 => Self::from_is_non_reference(
                vp9::Vp9Descriptor::parse(payload).is_some_and(|descriptor| descriptor.temporal_layer > 0),
            ),
            Codec::Av1 | Codec::Opus | Codec::Pcmu | Codec::Pcma | Codec::Aac | Codec::Jpeg => Self::Reference,
        }
    }

    fn from_is_non_reference(is_non_reference: bool) -> Self {
        match is_non_reference {
            true => Self::NonReference,
            false => Self::Reference,
        }
    }

    /// What the NAL units of one packet are together.
    fn of_nals(nals: impl Iterator<Item = Self>) -> Self {
        nals.fold(Self::Unknown, |whole, nal| match (whole, nal) {
            (Self::Reference, _) | (_, Self::Reference) => Self::Reference,
            (Self::NonReference, _) | (_, Self::NonReference) => Self::NonReference,
            (Self::Unknown, Self::Unknown) => Self::Unknown,
        })
    }
}

/// `nal_ref_idc` of slices: it is 0 in all slices of a picture or in none (ITU-T H.264 §7.4.1, RFC 6184 §1.3). The FU
/// indicator has that of the NAL unit (§5.8).
fn of_h264_payload(payload: &[u8]) -> FrameReference {
    match payload {
        [header, rest @ ..] if header & 0x1f == 24 => FrameReference::of_nals(iter_aggregated_nals(rest).map(|nal| {
            nal.first()
                .map_or(FrameReference::Unknown, |header| of_h264_nal(header & 0x1f, *header))
        })),
        [indicator, fu_header, ..] if indicator & 0x1f == 28 => of_h264_nal(fu_header & 0x1f, *indicator),
        [header, ..] => of_h264_nal(header & 0x1f, *header),
        [] => FrameReference::Unknown,
    }
}

fn of_h264_nal(nal_type: u8, header: u8) -> FrameReference {
    match nal_type {
        1..=5 => FrameReference::from_is_non_reference(header & 0x60 == 0),
        _ => FrameReference::Unknown,
    }
}

/// Types and temporal layers of slices (ITU-T H.265 §7.4.2.2, RFC 7798 §1.1.4). The payload header of fragments has the
/// temporal layer of the NAL unit (§4.4.3).
fn of_h265_payload(payload: &[u8]) -> FrameReference {
    match payload {
        [header, _, rest @ ..] if header >> 1 & 0x3f == 48 => {
            FrameReference::of_nals(iter_aggregated_nals(rest).map(|nal| match nal {
                [header, second, ..] => of_h265_nal(header >> 1 & 0x3f, *second),
                _ => FrameReference::Unknown,
            }))
        }
        [header, second, fu_header, ..] if header >> 1 & 0x3f == 49 => of_h265_nal(fu_header & 0x3f, *second),
        [header, second, ..] => of_h265_nal(header >> 1 & 0x3f, *second),
        _ => FrameReference::Unknown,
    }
}

/// Below 16, even types are pictures to which no other one of their temporal layer refers.
fn of_h265_nal(nal_type: u8, second: u8) -> FrameReference {
    let temporal_layer = (second & 7).saturating_sub(1);
    match nal_type {
        0..=31 => {
            FrameReference::from_is_non_reference(temporal_layer > 0 || (nal_type < 16 && nal_type.is_multiple_of(2)))
        }
        _ => FrameReference::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::FrameReference::{NonReference, Reference, Unknown};
    use super::*;

    fn check(codec: Codec, expected: FrameReference, payloads: &[&[u8]]) {
        for payload in payloads {
            let found = FrameReference::of_rtp_payload(codec, payload);
            assert_eq!(found, expected, "{codec:?} {payload:02x?}");
        }
    }

    #[test]
    fn slices_of_h264_tell_by_nal_ref_idc() {
        // A single NAL unit, fragments, and the second of two units, after an SEI message.
        let aggregated = |slice: u8| [0x18, 0, 2, 0x06, 1, 0, 2, slice, 0x9a];
        check(
            Codec::H264,
            NonReference,
            &[&[0x01, 0x9a], &[0x1c, 0x81, 0x9a], &[0x1c, 0x41, 7]],
        );
        check(Codec::H264, NonReference, &[&aggregated(0x01)]);
        check(
            Codec::H264,
            Reference,
            &[&[0x21, 0x9a], &[0x65, 0x88], &[0x7c, 0x85, 0x88], &aggregated(0x41)],
        );
        check(
            Codec::H264,
            Unknown,
            &[
                &[0x09, 0xf0],
                &[0x06, 5],
                &[0x67, 0x42],
                &[0x68, 0xce],
                &[],
                &[0x1c],
                &[0x18, 0],
            ],
        );
    }

    #[test]
    fn slices_of_h265_tell_by_type_and_temporal_layer() {
        let nal = |nal_type: u8, temporal_layer: u8| [nal_type << 1, temporal_layer + 1, 0x80];
        let fragment = |nal_type: u8, temporal_layer: u8| [49 << 1, temporal_layer + 1, 0x80 | nal_type, 0];
        // TRAIL_N, RASL_N, and TRAIL_R of a higher temporal layer.
        check(
            Codec::H265,
            NonReference,
            &[&nal(0, 0), &nal(8, 0), &nal(1, 1), &fragment(0, 0), &fragment(1, 2)],
        );
        // TRAIL_R, IDR_N_LP, whose number is even, and CRA.
        check(
            Codec::H265,
            Reference,
            &[&nal(1, 0), &nal(20, 0), &nal(21, 0), &fragment(1, 0), &fragment(19, 0)],
        );
        check(
            Codec::H265,
            NonReference,
            &[&[48 << 1, 1, 0, 2, 39 << 1, 1, 0, 3, 0, 1, 0x80]],
        );
        check(Codec::H265, Unknown, &[&nal(32, 0), &nal(39, 0), &[], &[0x02], &[98]]);
    }

    #[test]
    fn vp8_tells_by_its_temporal_layer_or_else_by_the_n_bit() {
        check(Codec::Vp8, NonReference, &[&[0x30, 0xaa], &[0xb0, 0x80, 5, 0xaa]]);
        check(Codec::Vp8, Reference, &[&[0x10, 0xaa], &[0x90, 0x80, 5, 0xaa], &[0x90]]);
        // I, L and T; layers 1, 2 and 0.
        check(
            Codec::Vp8,
            NonReference,
            &[&[0x90, 0xe0, 5, 9, 0x40, 0xaa], &[0x90, 0xe0, 5, 9, 0xa0, 0xaa]],
        );
        check(Codec::Vp8, Reference, &[&[0xb0, 0xe0, 5, 9, 0x20, 0xaa]]);
        // K alone: the bits of the layer mean nothing.
        check(Codec::Vp8, Reference, &[&[0x90, 0x10, 0x40, 0xaa]]);
    }

    #[test]
    fn vp9_tells_by_its_temporal_layer() {
        // I, P and L; the layer, then TL0PICIDX.
        check(Codec::Vp9, NonReference, &[&[0xec, 5, 0x20, 9, 0xaa]]);
        check(
            Codec::Vp9,
            Reference,
            &[&[0xec, 5, 0x00, 9, 0xaa], &[0xcc, 5, 0xaa], &[0xac]],
        );
    }

    #[test]
    fn other_codecs_leave_nothing_out() {
        check(Codec::Av1, Reference, &[&[0x10, 0x32, 0]]);
        check(Codec::Opus, Reference, &[&[0xf8]]);
    }
}
