//! VP9 over RTP (RFC 9628): detects key frames.
//!
//! The payload descriptor alone is not sufficient: intra-only frames look like key frames there, and FFmpeg's payloader
//! never sets the P bit. So the uncompressed frame header is checked too (VP9 bitstream specification §6.2).

use bytes::{BufMut as _, BytesMut};

use super::bit_reader::BitReader;
use super::inspection_findings::KeyFrameAndFormatFindings;
use crate::media::CodecFormat;

/// The needed fields of the payload descriptor (RFC 9628 §4.2).
///
/// ```text
///  |I|P|L|F|B|E|V|Z|
///  |M| PICTURE ID  |  if I, a second byte if M
///  |TID|U| SID |D|    if L
///  |   TL0PICIDX   |  if L and not F
///  |  P_DIFF     |N|  if P and F, up to three times
///  |      SS       |  if V
/// ```
pub(crate) struct Vp9Descriptor {
    /// This payload starts the frame of a spatial layer.
    pub starts_frame: bool,
    /// This payload ends the frame of a spatial layer.
    pub ends_frame: bool,
    pub spatial_layer: u8,
    /// Frames refer to none of a higher temporal layer.
    pub temporal_layer: u8,
    /// Predicted from earlier pictures.
    is_inter: bool,
    /// Size of the highest spatial layer, if the scalability structure contains it.
    resolution: Option<(u16, u16)>,
    /// Length in bytes.
    pub descriptor_length: usize,
}

impl Vp9Descriptor {
    /// Parses the descriptor; `None` if it is truncated.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let mut reader = ByteReader(payload);
        let first = reader.read_u8()?;
        let [
            has_id,
            is_inter,
            layered,
            flexible,
            starts_frame,
            ends_frame,
            has_structure,
            _,
        ] = [7, 6, 5, 4, 3, 2, 1, 0].map(|bit| first >> bit & 1 == 1);
        if has_id && reader.read_u8()? & 0x80 != 0 {
            reader.read_u8()?;
        }
        let (mut temporal_layer, mut spatial_layer) = (0, 0);
        if layered {
            let layers = reader.read_u8()?;
            (temporal_layer, spatial_layer) = (layers >> 5, layers >> 1 & 7);
            if !flexible {
                reader.read_u8()?;
            }
        }
        if is_inter && flexible {
            // N: another one follows, at most three in total.
            let mut more = 3;
            while reader.read_u8()? & 1 == 1 && more > 1 {
                more -= 1;
            }
        }
        let size = if has_structure {
            reader.read_scalability_structure()?
        } else {
            None
        };
        Some(Self {
            starts_frame,
            ends_frame,
            spatial_layer,
            temporal_layer,
            is_inter,
            resolution: size,
            descriptor_length: payload.len() - reader.0.len(),
        })
    }

    /// Start of a picture without inter prediction, in the lowest spatial layer.
    fn starts_key_picture(&self) -> bool {
        !self.is_inter && self.starts_frame && self.spatial_layer == 0
    }
}

struct ByteReader<'a>(&'a [u8]);

impl ByteReader<'_> {
    fn read_u8(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn read_u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.read_u8()?, self.read_u8()?]))
    }

    /// Parses the scalability structure (RFC 9628 §4.2.1): `N_S|Y|G`, the sizes of the layers, the picture group.
    fn read_scalability_structure(&mut self) -> Option<Option<(u16, u16)>> {
        let first = self.read_u8()?;
        let mut size = None;
        if first & 0x10 != 0 {
            for _ in 0..=first >> 5 {
                size = Some((self.read_u16()?, self.read_u16()?));
            }
        }
        if first & 0x08 != 0 {
            for _ in 0..self.read_u8()? {
                let references = self.read_u8()? >> 2 & 3;
                for _ in 0..references {
                    self.read_u8()?;
                }
            }
        }
        Some(size.filter(|(width, height)| *width > 0 && *height > 0))
    }
}

/// Maximum number of frames in a superframe (VP9 bitstream specification, annex B).
const MAX_SUPERFRAME_FRAMES: usize = 8;

/// Appends a superframe index to the frames of one picture, which start at these positions: decoders take the first frame
/// alone otherwise (VP9 bitstream specification, annex B). A single frame needs none.
pub(crate) fn append_superframe_index(frame_starts: &[usize], picture: &mut BytesMut) {
    let ends = frame_starts.iter().copied().skip(1).chain([picture.len()]);
    let sizes: Vec<u32> = frame_starts
        .iter()
        .zip(ends)
        .filter_map(|(start, end)| u32::try_from(end.checked_sub(*start)?).ok())
        .filter(|size| *size > 0)
        .collect();
    if !(2..=MAX_SUPERFRAME_FRAMES).contains(&sizes.len()) {
        return;
    }
    // Sizes of four bytes each: 0b110, the length of a size minus one, the number of frames minus one.
    let marker = 0b1101_1000 | (sizes.len() as u8 - 1);
    picture.put_u8(marker);
    sizes.iter().for_each(|size| picture.put_u32_le(*size));
    picture.put_u8(marker);
}

/// Returns the frames of a superframe (VP9 bitstream specification, annex B), or the one frame.
pub(super) fn split_superframe(picture: &[u8]) -> Vec<&[u8]> {
    superframe_frames(picture).unwrap_or_else(|| vec![picture])
}

fn superframe_frames(picture: &[u8]) -> Option<Vec<&[u8]>> {
    let marker = *picture.last().filter(|marker| **marker & 0xe0 == 0xc0)?;
    let (size_length, count) = (usize::from(marker >> 3 & 3) + 1, usize::from(marker & 7) + 1);
    let index_length = 2 + size_length * count;
    let (mut rest, index) = picture.split_at_checked(picture.len().checked_sub(index_length)?)?;
    let sizes = index
        .get(1..index_length - 1)
        .filter(|_| index.first() == Some(&marker))?;
    let mut frames = Vec::new();
    for size in sizes.chunks(size_length) {
        let size = size.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let (frame, after) = rest.split_at_checked(size)?;
        frames.extend((size > 0).then_some(frame));
        rest = after;
    }
    Some(frames)
}

pub(super) fn inspect_rtp_payload(payload: &[u8]) -> KeyFrameAndFormatFindings {
    let descriptor = Vp9Descriptor::parse(payload).filter(Vp9Descriptor::starts_key_picture);
    let header = descriptor.and_then(|descriptor| {
        let header = Vp9ProfileAndResolution::parse(payload.get(descriptor.descriptor_length..)?)?;
        Some((header, descriptor.resolution))
    });
    match header {
        Some((header, size)) => KeyFrameAndFormatFindings {
            identifies_key_frame: true,
            format: Some(CodecFormat::Vp9 {
                profile: header.profile,
            }),
            resolution: size.or(header.resolution),
            ..KeyFrameAndFormatFindings::default()
        },
        None => KeyFrameAndFormatFindings::default(),
    }
}

/// The uncompressed header of a key frame.
struct Vp9ProfileAndResolution {
    profile: u8,
    resolution: Option<(u16, u16)>,
}

impl Vp9ProfileAndResolution {
    /// Returns `None` for any other frame.
    fn parse(frame: &[u8]) -> Option<Self> {
        let mut bits = BitReader::new(frame);
        if bits.read_bits(2)? != 2 {
            return None;
        }
        let (low, high) = (bits.read_bits_u8(1)?, bits.read_bits_u8(1)?);
        let profile = high << 1 | low;
        let reserved = profile == 3 && bits.read_flag()?;
        let show_existing = bits.read_flag()?;
        let non_key = bits.read_flag()?;
        bits.skip(2); // show_frame, error_resilient_mode
        if reserved || show_existing || non_key || bits.read_bits(24)? != 0x49_8342 {
            return None;
        }
        Some(Self {
            profile,
            resolution: parse_resolution(&mut bits, profile),
        })
    }
}

/// Skips the color configuration (§6.2.2) and parses the size (§6.2.3).
fn parse_resolution(bits: &mut BitReader<'_>, profile: u8) -> Option<(u16, u16)> {
    skip_color_config(bits, profile)?;
    let (width, height) = (bits.read_bits(16)? + 1, bits.read_bits(16)? + 1);
    Some((u16::try_from(width).ok()?, u16::try_from(height).ok()?))
}

/// Skips the color configuration (§6.2.2).
pub(super) fn skip_color_config(bits: &mut BitReader<'_>, profile: u8) -> Option<()> {
    const COLOR_SPACE_RGB: u32 = 7;
    if profile >= 2 {
        bits.skip(1); // ten_or_twelve_bit
    }
    let rgb = bits.read_bits(3)? == COLOR_SPACE_RGB;
    if !rgb {
        bits.skip(1); // color_range
    }
    match (profile, rgb) {
        (1 | 3, false) => bits.skip(3), // subsampling_x, subsampling_y, reserved_zero
        (1 | 3, true) => bits.skip(1),  // reserved_zero
        _ => {}
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Profile 0 key frame of 322x182 as libvpx writes it.
    const KEY_FRAME: [u8; 10] = [0x82, 0x49, 0x83, 0x42, 0x00, 0x14, 0x10, 0x0b, 0x56, 0x06];

    fn with(descriptor: &[u8]) -> KeyFrameAndFormatFindings {
        inspect_rtp_payload(&[descriptor, &KEY_FRAME].concat())
    }

    #[test]
    fn only_the_start_of_the_lowest_layer_is_a_key_frame() {
        assert!(with(&[0x08]).identifies_key_frame);
        assert!(with(&[0x88, 0x80, 1]).identifies_key_frame, "15-bit picture id");
        assert!(with(&[0xa8, 5, 0x00, 3]).identifies_key_frame, "layer 0 with TL0PICIDX");
        assert!(!with(&[0xa8, 5, 0x02, 3]).identifies_key_frame, "layer 1");
        assert!(!with(&[0x00]).identifies_key_frame, "not the start");
        assert!(!with(&[0x48]).identifies_key_frame, "refers to others");
        assert!(
            !with(&[0x58, 0x03, 0x03, 0x02]).identifies_key_frame,
            "flexible, refers to others"
        );
    }

    #[test]
    fn the_highest_layer_has_the_resolution() {
        let structure = [0x0a, 0x38, 1, 0x40, 0, 0xb4, 2, 0x80, 1, 0x68, 2, 0x04, 1, 0x08, 1, 1];
        assert_eq!(with(&structure).resolution, Some((640, 360)));
        assert_eq!(with(&[0x08]).resolution, Some((322, 182)));
    }

    #[test]
    fn an_intra_only_frame_is_not_a_key_frame() {
        let mut frame = [&[0x08], &KEY_FRAME[..]].concat();
        frame[1] |= 0x04;
        assert_eq!(inspect_rtp_payload(&frame), KeyFrameAndFormatFindings::default());
    }
}
