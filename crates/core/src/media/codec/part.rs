//! What one RTP payload is of its access unit, by its contents alone.

use super::{vp8, vp9};
use crate::media::Codec;
use crate::media::odd::Odd;

/// What one RTP payload is of its access unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// A new picture starts with it, whatever its timestamp.
    pub starts_picture: bool,
    /// It has picture data. Parameter sets and SEI messages have none.
    pub has_slice: bool,
    /// It ends within a NAL unit or an OBU, so that the next packet continues it.
    pub is_open: bool,
}

/// A payload of any other codec is a whole frame.
const WHOLE: Part = Part {
    starts_picture: false,
    has_slice: true,
    is_open: false,
};

/// What a payload is of its access unit.
///
/// # Errors
///
/// The reason if no receiver makes anything of it.
pub fn part(codec: Codec, payload: &[u8]) -> Result<Part, Odd> {
    if payload.is_empty() {
        return Err(Odd::Empty);
    }
    match codec {
        Codec::H264 => h264(payload),
        Codec::H265 => h265(payload),
        Codec::Vp8 => match vp8::Vp8Descriptor::parse(payload) {
            Some(descriptor) if descriptor.len < payload.len() => Ok(Part {
                starts_picture: descriptor.starts_frame,
                ..WHOLE
            }),
            _ => Err(Odd::Truncated),
        },
        Codec::Vp9 => match vp9::Descriptor::parse(payload) {
            Some(descriptor) if descriptor.len < payload.len() => Ok(Part {
                starts_picture: descriptor.starts_frame && descriptor.spatial_layer == 0,
                is_open: !descriptor.ends_frame,
                ..WHOLE
            }),
            _ => Err(Odd::Truncated),
        },
        Codec::Av1 => match payload {
            [aggregation, _, ..] => Ok(Part {
                is_open: aggregation & 0x40 != 0,
                ..WHOLE
            }),
            _ => Err(Odd::Truncated),
        },
        Codec::Opus | Codec::Pcmu | Codec::Pcma | Codec::Aac | Codec::Jpeg => Ok(WHOLE),
    }
}

/// RFC 6184 §5.4, table 3. STAP-B, MTAP and FU-B belong to the interleaved mode.
fn h264(payload: &[u8]) -> Result<Part, Odd> {
    let (&header, rest) = payload.split_first().ok_or(Odd::Empty)?;
    if header & 0x80 != 0 {
        return Err(Odd::ForbiddenBit);
    }
    match header & 0x1f {
        1..=23 => h264_nal(payload),
        24 => aggregate(rest, h264_nal),
        28 => {
            let (&fu, body) = rest
                .split_first()
                .filter(|(_, body)| !body.is_empty())
                .ok_or(Odd::Truncated)?;
            let slice = h264_slice(fu & 0x1f, fu & 0x80 != 0, body);
            Ok(Part {
                is_open: fu & 0x40 == 0,
                ..slice
            })
        }
        25..=27 | 29 => Err(Odd::Interleaved),
        _ => Err(Odd::UndefinedType),
    }
}

/// One NAL unit of H.264.
pub(in crate::media) fn h264_nal(nal: &[u8]) -> Result<Part, Odd> {
    let (&header, body) = nal.split_first().ok_or(Odd::Empty)?;
    match (header & 0x80 == 0, header & 0x1f) {
        (false, _) => Err(Odd::ForbiddenBit),
        (true, nal_type @ 1..=23) => Ok(h264_slice(nal_type, true, body)),
        (true, _) => Err(Odd::UndefinedType),
    }
}

/// The slice header starts with `first_mb_in_slice`, which is 0 if its first bit is set (ITU-T H.264 §7.3.3). An access
/// unit delimiter starts an access unit (§7.4.1.2.3).
fn h264_slice(nal_type: u8, is_start: bool, body: &[u8]) -> Part {
    let has_slice = matches!(nal_type, 1..=5 | 19..=21);
    let is_first = matches!(nal_type, 1 | 2 | 5) && body.first().is_some_and(|first| first & 0x80 != 0);
    Part {
        starts_picture: is_start && (is_first || nal_type == 9),
        has_slice,
        is_open: false,
    }
}

/// RFC 7798 §4.4. A PACI packet (50) carries extensions that nobody negotiates.
fn h265(payload: &[u8]) -> Result<Part, Odd> {
    let (&[header, _], rest) = payload.split_first_chunk::<2>().ok_or(Odd::Truncated)?;
    if header & 0x80 != 0 {
        return Err(Odd::ForbiddenBit);
    }
    match header >> 1 & 0x3f {
        0..=47 => h265_nal(payload),
        48 => aggregate(rest, h265_nal),
        49 => {
            let (&fu, body) = rest
                .split_first()
                .filter(|(_, body)| !body.is_empty())
                .ok_or(Odd::Truncated)?;
            let slice = h265_slice(fu & 0x3f, fu & 0x80 != 0, body);
            Ok(Part {
                is_open: fu & 0x40 == 0,
                ..slice
            })
        }
        _ => Err(Odd::UndefinedType),
    }
}

/// One NAL unit of H.265.
pub(in crate::media) fn h265_nal(nal: &[u8]) -> Result<Part, Odd> {
    let (&[header, _], body) = nal.split_first_chunk::<2>().ok_or(Odd::Truncated)?;
    match (header & 0x80 == 0, header >> 1 & 0x3f) {
        (false, _) => Err(Odd::ForbiddenBit),
        (true, nal_type @ 0..=47) => Ok(h265_slice(nal_type, true, body)),
        (true, _) => Err(Odd::UndefinedType),
    }
}

/// The slice header starts with `first_slice_segment_in_pic_flag` (ITU-T H.265 §7.3.6.1); 35 is the access unit delimiter.
fn h265_slice(nal_type: u8, is_start: bool, body: &[u8]) -> Part {
    let has_slice = nal_type < 32;
    let is_first = has_slice && body.first().is_some_and(|first| first & 0x80 != 0);
    Part {
        starts_picture: is_start && (is_first || nal_type == 35),
        has_slice,
        is_open: false,
    }
}

/// An aggregation packet is what its NAL units are together. It is odd if none of them is sound.
fn aggregate(mut rest: &[u8], nal_part: fn(&[u8]) -> Result<Part, Odd>) -> Result<Part, Odd> {
    let mut whole: Result<Part, Odd> = Err(Odd::Truncated);
    while let Some((&length, body)) = rest.split_first_chunk::<2>() {
        let Some((nal, after)) = body.split_at_checked(usize::from(u16::from_be_bytes(length))) else {
            break;
        };
        rest = after;
        whole = match (whole, nal_part(nal)) {
            (Ok(whole), Ok(next)) => Ok(Part {
                starts_picture: whole.starts_picture || next.starts_picture,
                has_slice: whole.has_slice || next.has_slice,
                is_open: false,
            }),
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
            (Codec::H264, &[][..], Odd::Empty),
            (Codec::H264, &[0x00, 1], Odd::UndefinedType),
            (Codec::H264, &[0x1e, 1], Odd::UndefinedType),
            (Codec::H264, &[0x1f, 1], Odd::UndefinedType),
            (Codec::H264, &[0x39, 0, 1, 0, 2, 0x41, 9], Odd::Interleaved),
            (Codec::H264, &[0x3a, 0, 1, 0], Odd::Interleaved),
            (Codec::H264, &[0x3d, 0x81, 0, 1], Odd::Interleaved),
            (Codec::H264, &[0xe1, 0x88], Odd::ForbiddenBit),
            (Codec::H264, &[0x7c, 0x85], Odd::Truncated),
            (Codec::H264, &[0x78, 0, 9, 0x67], Odd::Truncated),
            (Codec::H265, &[0x02], Odd::Truncated),
            (Codec::H265, &[0x82, 1, 0x80], Odd::ForbiddenBit),
            (Codec::H265, &[0x64, 1, 0, 0], Odd::UndefinedType),
            (Codec::H265, &[0x7e, 1, 0, 0], Odd::UndefinedType),
            (Codec::H265, &[0x62, 1, 0x93], Odd::Truncated),
            (Codec::Vp8, &[0x90, 0x80], Odd::Truncated),
            (Codec::Vp8, &[0x10], Odd::Truncated),
            (Codec::Vp9, &[0x8c, 1], Odd::Truncated),
            (Codec::Av1, &[0x10], Odd::Truncated),
            (Codec::Opus, &[], Odd::Empty),
        ] {
            assert_eq!(part(codec, payload), Err(odd), "{codec:?} {payload:x?}");
        }
    }

    #[test]
    fn a_picture_starts_with_its_first_slice() {
        let starts = |codec, payload: &[u8]| part(codec, payload).expect("sound").starts_picture;
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
        let sets = part(Codec::H264, &[0x78, 0, 2, 0x67, 1, 0, 2, 0x68, 1]).expect("sound");
        assert_eq!(sets, Part::default());
        let open = |codec, payload: &[u8]| part(codec, payload).expect("sound").is_open;
        assert!(open(Codec::H264, &[0x7c, 0x85, 1]) && !open(Codec::H264, &[0x7c, 0x45, 1]));
        assert!(open(Codec::H265, &[0x62, 1, 0x93, 1]) && !open(Codec::H265, &[0x62, 1, 0x53, 1]));
        assert!(open(Codec::Vp9, &[0x08, 1]) && !open(Codec::Vp9, &[0x04, 1]));
        assert!(open(Codec::Av1, &[0x50, 1]) && !open(Codec::Av1, &[0x10, 1]));
    }
}
