//! VP9 over RTP (RFC 9628): detects key frames.
//!
//! The payload descriptor alone is not sufficient: intra-only frames look like key frames there, and FFmpeg's payloader
//! never sets the P bit. So the uncompressed frame header is checked too (VP9 bitstream specification §6.2).

use bytes::{BufMut as _, BytesMut};

use super::bits::BitReader;
use super::finding::Finding;
use crate::media::Format;

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
pub struct Descriptor {
    /// This payload starts the frame of a spatial layer.
    pub starts_frame: bool,
    /// This payload ends the frame of a spatial layer.
    pub ends_frame: bool,
    pub spatial_layer: u8,
    /// Predicted from earlier pictures.
    is_inter: bool,
    /// Size of the highest spatial layer, if the scalability structure contains it.
    size: Option<(u16, u16)>,
    /// Length in bytes.
    pub len: usize,
}

impl Descriptor {
    /// Parses the descriptor; `None` if it is truncated.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader(payload);
        let first = reader.byte()?;
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
        if has_id && reader.byte()? & 0x80 != 0 {
            reader.byte()?;
        }
        let mut spatial_layer = 0;
        if layered {
            spatial_layer = reader.byte()? >> 1 & 7;
            if !flexible {
                reader.byte()?;
            }
        }
        if is_inter && flexible {
            // N: another one follows, at most three in total.
            let mut more = 3;
            while reader.byte()? & 1 == 1 && more > 1 {
                more -= 1;
            }
        }
        let size = if has_structure { reader.structure()? } else { None };
        Some(Self {
            starts_frame,
            ends_frame,
            spatial_layer,
            is_inter,
            size,
            len: payload.len() - reader.0.len(),
        })
    }

    /// Start of a picture without inter prediction, in the lowest spatial layer.
    fn starts_key_picture(&self) -> bool {
        !self.is_inter && self.starts_frame && self.spatial_layer == 0
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn word(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    /// Parses the scalability structure (RFC 9628 §4.2.1): `N_S|Y|G`, the sizes of the layers, the picture group.
    fn structure(&mut self) -> Option<Option<(u16, u16)>> {
        let first = self.byte()?;
        let mut size = None;
        if first & 0x10 != 0 {
            for _ in 0..=first >> 5 {
                size = Some((self.word()?, self.word()?));
            }
        }
        if first & 0x08 != 0 {
            for _ in 0..self.byte()? {
                let references = self.byte()? >> 2 & 3;
                for _ in 0..references {
                    self.byte()?;
                }
            }
        }
        Some(size.filter(|(width, height)| *width > 0 && *height > 0))
    }
}

/// Maximum number of frames in a superframe (VP9 bitstream specification, annex B).
const MAX_FRAMES: usize = 8;

/// Appends a superframe index to the frames of one picture, which start at these positions: decoders take the first frame
/// alone otherwise (VP9 bitstream specification, annex B). A single frame needs none.
pub fn put_superframe_index(starts: &[usize], picture: &mut BytesMut) {
    let ends = starts.iter().copied().skip(1).chain([picture.len()]);
    let sizes: Vec<u32> = starts
        .iter()
        .zip(ends)
        .filter_map(|(start, end)| u32::try_from(end.checked_sub(*start)?).ok())
        .filter(|size| *size > 0)
        .collect();
    if !(2..=MAX_FRAMES).contains(&sizes.len()) {
        return;
    }
    // Sizes of four bytes each: 0b110, the length of a size minus one, the number of frames minus one.
    let marker = 0b1101_1000 | (sizes.len() as u8 - 1);
    picture.put_u8(marker);
    sizes.iter().for_each(|size| picture.put_u32_le(*size));
    picture.put_u8(marker);
}

pub(super) fn inspect(payload: &[u8]) -> Finding {
    let descriptor = Descriptor::parse(payload).filter(Descriptor::starts_key_picture);
    let header = descriptor.and_then(|descriptor| {
        let header = KeyFrameHeader::parse(payload.get(descriptor.len..)?)?;
        Some((header, descriptor.size))
    });
    match header {
        Some((header, size)) => Finding {
            key_frame: true,
            format: Some(Format::Vp9 {
                profile: header.profile,
            }),
            resolution: size.or(header.size),
            ..Finding::default()
        },
        None => Finding::default(),
    }
}

/// The uncompressed header of a key frame.
struct KeyFrameHeader {
    profile: u8,
    size: Option<(u16, u16)>,
}

impl KeyFrameHeader {
    /// Returns `None` for any other frame.
    fn parse(frame: &[u8]) -> Option<Self> {
        let mut bits = BitReader::new(frame);
        if bits.bits(2)? != 2 {
            return None;
        }
        let (low, high) = (bits.byte(1)?, bits.byte(1)?);
        let profile = high << 1 | low;
        let reserved = profile == 3 && bits.flag()?;
        let show_existing = bits.flag()?;
        let non_key = bits.flag()?;
        bits.skip(2); // show_frame, error_resilient_mode
        if reserved || show_existing || non_key || bits.bits(24)? != 0x49_8342 {
            return None;
        }
        Some(Self {
            profile,
            size: size(&mut bits, profile),
        })
    }
}

/// Skips the color configuration (§6.2.2) and parses the size (§6.2.3).
fn size(bits: &mut BitReader<'_>, profile: u8) -> Option<(u16, u16)> {
    const RGB: u32 = 7;
    if profile >= 2 {
        bits.skip(1); // ten_or_twelve_bit
    }
    let rgb = bits.bits(3)? == RGB;
    if !rgb {
        bits.skip(1); // color_range
    }
    match (profile, rgb) {
        (1 | 3, false) => bits.skip(3), // subsampling_x, subsampling_y, reserved_zero
        (1 | 3, true) => bits.skip(1),  // reserved_zero
        _ => {}
    }
    let (width, height) = (bits.bits(16)? + 1, bits.bits(16)? + 1);
    Some((u16::try_from(width).ok()?, u16::try_from(height).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Profile 0 key frame of 322x182 as libvpx writes it.
    const KEY_FRAME: [u8; 10] = [0x82, 0x49, 0x83, 0x42, 0x00, 0x14, 0x10, 0x0b, 0x56, 0x06];

    fn with(descriptor: &[u8]) -> Finding {
        inspect(&[descriptor, &KEY_FRAME].concat())
    }

    #[test]
    fn only_the_start_of_the_lowest_layer_is_a_key_frame() {
        assert!(with(&[0x08]).key_frame);
        assert!(with(&[0x88, 0x80, 1]).key_frame, "15-bit picture id");
        assert!(with(&[0xa8, 5, 0x00, 3]).key_frame, "layer 0 with TL0PICIDX");
        assert!(!with(&[0xa8, 5, 0x02, 3]).key_frame, "layer 1");
        assert!(!with(&[0x00]).key_frame, "not the start");
        assert!(!with(&[0x48]).key_frame, "refers to others");
        assert!(!with(&[0x58, 0x03, 0x03, 0x02]).key_frame, "flexible, refers to others");
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
        assert_eq!(inspect(&frame), Finding::default());
    }
}
