//! VP8 over RTP (RFC 7741): detects key frames, and reads and writes the two counters of the payload descriptor. The
//! counters must stay continuous when a viewer switches layers.

use super::inspection_findings::KeyFrameAndFormatFindings;
use crate::media::CodecFormat;

/// Picture ID with the width chosen by the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PictureId {
    /// 7 bits.
    Short(u8),
    /// 15 bits.
    Long(u16),
}

impl PictureId {
    /// The number without its width.
    pub(crate) fn value(self) -> u16 {
        match self {
            PictureId::Short(value) => u16::from(value),
            PictureId::Long(value) => value,
        }
    }
}

/// The payload descriptor at the start of every VP8 payload (RFC 7741 §4.2).
///
/// ```text
///  |X|R|N|S|R| PID |
///  |I|L|T|K|  RSV  |  if X
///  |M| PictureID   |  if I, a second byte if M
///  |   TL0PICIDX   |  if L
///  |TID|Y| KEYIDX  |  if T or K
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vp8Descriptor {
    pub picture_id: Option<PictureId>,
    pub tl0_pic_idx: Option<u8>,
    /// This payload starts a frame: it is the start of partition 0.
    pub starts_frame: bool,
    /// N: no other frame refers to this one.
    pub is_non_reference: bool,
    /// TID: the temporal layer, 0 is the base layer.
    pub temporal_layer: Option<u8>,
    /// Length in bytes.
    pub descriptor_length: usize,
    picture_id_offset: usize,
    tl0_pic_idx_offset: usize,
}

impl Vp8Descriptor {
    /// Parses the descriptor; `None` if it is truncated.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let &first = payload.first()?;
        let mut descriptor = Self {
            picture_id: None,
            tl0_pic_idx: None,
            starts_frame: first & 0x17 == 0x10,
            is_non_reference: first & 0x20 != 0,
            temporal_layer: None,
            descriptor_length: 1,
            picture_id_offset: 0,
            tl0_pic_idx_offset: 0,
        };
        if first & 0x80 == 0 {
            return Some(descriptor);
        }
        let &flags = payload.get(1)?;
        let mut at = 2;
        if flags & 0x80 != 0 {
            let &high = payload.get(at)?;
            descriptor.picture_id_offset = at;
            at += 1;
            descriptor.picture_id = Some(if high & 0x80 == 0 {
                PictureId::Short(high)
            } else {
                let &low = payload.get(at)?;
                at += 1;
                PictureId::Long(u16::from_be_bytes([high & 0x7f, low]))
            });
        }
        if flags & 0x40 != 0 {
            descriptor.tl0_pic_idx = Some(*payload.get(at)?);
            descriptor.tl0_pic_idx_offset = at;
            at += 1;
        }
        if flags & 0x30 != 0 {
            let layer = payload.get(at)? >> 6;
            descriptor.temporal_layer = (flags & 0x20 != 0).then_some(layer);
            at += 1;
        }
        descriptor.descriptor_length = at;
        Some(descriptor)
    }

    /// Overwrites the counters, truncated to their existing width; absent ones stay absent. `payload` is the parsed
    /// payload or a copy of it.
    pub(crate) fn overwrite_picture_id_and_tl0picidx(&self, payload: &mut [u8], picture_id: u16, tl0_pic_idx: u8) {
        let at = self.picture_id_offset;
        match self.picture_id {
            Some(PictureId::Short(_)) => {
                if let Some(byte) = payload.get_mut(at) {
                    *byte = picture_id as u8 & 0x7f;
                }
            }
            Some(PictureId::Long(_)) => {
                if let Some(bytes) = payload.get_mut(at..at + 2) {
                    bytes.copy_from_slice(&(picture_id | 0x8000).to_be_bytes());
                }
            }
            None => {}
        }
        if let (Some(_), Some(byte)) = (self.tl0_pic_idx, payload.get_mut(self.tl0_pic_idx_offset)) {
            *byte = tl0_pic_idx;
        }
    }
}

/// Identifies a key frame by its first packet, which contains the whole frame header (RFC 7741 §4.3, RFC 6386 §9.1).
pub(super) fn inspect_rtp_payload(payload: &[u8]) -> KeyFrameAndFormatFindings {
    let descriptor = Vp8Descriptor::parse(payload).filter(|descriptor| descriptor.starts_frame);
    let frame = descriptor.and_then(|descriptor| payload.get(descriptor.descriptor_length..));
    match frame.and_then(key_frame_resolution) {
        Some(size) => KeyFrameAndFormatFindings {
            identifies_key_frame: true,
            format: Some(CodecFormat::Vp8),
            resolution: Some(size).filter(|(width, height)| *width > 0 && *height > 0),
            ..KeyFrameAndFormatFindings::default()
        },
        None => KeyFrameAndFormatFindings::default(),
    }
}

/// Width and height of a key frame; `None` for inter frames, which have the lowest bit of the frame tag set.
fn key_frame_resolution(frame: &[u8]) -> Option<(u16, u16)> {
    let &[tag, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1] = frame.first_chunk::<10>()? else {
        return None;
    };
    // The upper two bits of each are an upscaling hint that does not change the coded size.
    let size = |low, high| u16::from_le_bytes([low, high]) & 0x3fff;
    (tag & 1 == 0).then(|| (size(w0, w1), size(h0, h1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// X, S; I L T; 15-bit picture id 0x1234, TL0PICIDX 9, TID 1.
    const LONG: [u8; 8] = [0x90, 0xe0, 0x92, 0x34, 9, 0x40, 0xaa, 0xbb];

    #[test]
    fn the_descriptor_is_read_in_both_widths() {
        let long = Vp8Descriptor::parse(&LONG).expect("valid");
        assert_eq!(
            (long.picture_id, long.tl0_pic_idx),
            (Some(PictureId::Long(0x1234)), Some(9))
        );
        assert_eq!((long.starts_frame, long.descriptor_length), (true, 6));
        let short = Vp8Descriptor::parse(&[0x80, 0x80, 0x7f, 1]).expect("valid");
        assert_eq!(
            (short.picture_id, short.tl0_pic_idx),
            (Some(PictureId::Short(0x7f)), None)
        );
        assert_eq!((short.starts_frame, short.descriptor_length), (false, 3));
        let bare = Vp8Descriptor::parse(&[0x10, 0xff]).expect("valid");
        assert_eq!(
            (bare.picture_id, bare.starts_frame, bare.descriptor_length),
            (None, true, 1)
        );
        assert!(
            !Vp8Descriptor::parse(&[0x11]).expect("valid").starts_frame,
            "partition 1"
        );
    }

    #[test]
    fn patching_keeps_the_width_and_everything_else() {
        let mut payload = LONG;
        let descriptor = Vp8Descriptor::parse(&LONG).expect("valid");
        descriptor.overwrite_picture_id_and_tl0picidx(&mut payload, 0xffff, 200);
        assert_eq!(payload, [0x90, 0xe0, 0xff, 0xff, 200, 0x40, 0xaa, 0xbb]);
        descriptor.overwrite_picture_id_and_tl0picidx(&mut payload, 5, 0);
        assert_eq!(payload, [0x90, 0xe0, 0x80, 0x05, 0, 0x40, 0xaa, 0xbb]);
        let mut short = [0x80, 0x80, 0x7f, 1];
        Vp8Descriptor::parse(&short)
            .expect("valid")
            .overwrite_picture_id_and_tl0picidx(&mut short, 0x1ff, 7);
        assert_eq!(short, [0x80, 0x80, 0x7f, 1]);
        let mut bare = [0x10, 0xff];
        Vp8Descriptor::parse(&bare)
            .expect("valid")
            .overwrite_picture_id_and_tl0picidx(&mut bare, 1, 2);
        assert_eq!(bare, [0x10, 0xff]);
    }

    #[test]
    fn an_inter_frame_with_a_key_frame_start_code_is_not_a_key_frame() {
        let key_frame = [0x10, 0x30, 0, 0, 0x9d, 0x01, 0x2a, 0x40, 0x41, 0xf0, 0x80];
        assert_eq!(
            inspect_rtp_payload(&key_frame).resolution,
            Some((320, 240)),
            "without the scaling bits"
        );
        let mut inter_frame = key_frame;
        inter_frame[1] |= 1;
        assert_eq!(inspect_rtp_payload(&inter_frame), KeyFrameAndFormatFindings::default());
    }

    #[test]
    fn a_truncated_descriptor_is_rejected() {
        for length in 0..6 {
            assert_eq!(Vp8Descriptor::parse(&LONG[..length]), None);
        }
    }
}
