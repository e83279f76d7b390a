//! Repeats a frame of AV1: a frame header with `show_existing_frame`, by which decoders show a stored frame once more (AV1
//! §5.9.2, §7.21). What follows is decoded as without it. A key frame cannot be shown twice (§6.8.2).

use bytes::Bytes;

use super::av1::{Av1FrameHeaderParams, iter_sized_obus};
use super::bit_reader::BitReader;

/// Repeats the frames of one stream.
#[derive(Debug, Default)]
pub(super) struct Av1FrameRepeater {
    sequence: Option<Av1FrameHeaderParams>,
    /// Slots of the decoder that hold the newest shown frame, and those that hold key frames, a bit each.
    shown_slots: u8,
    key_frame_slots: u8,
}

/// What a frame header says of the slots of the decoder.
struct FrameSlots {
    is_key_frame: bool,
    is_shown: bool,
    /// `refresh_frame_flags`.
    refreshed: u8,
    /// The slot that is shown, of a frame that repeats another one.
    repeated: Option<u8>,
}

const OBU_SEQUENCE_HEADER: u8 = 1;
const OBU_FRAME_HEADER: u8 = 3;
const OBU_FRAME: u8 = 6;

const FRAME_TYPE_KEY: u8 = 0;
const FRAME_TYPE_INTRA_ONLY: u8 = 2;
const FRAME_TYPE_SWITCH: u8 = 3;

impl Av1FrameRepeater {
    /// Records a temporal unit, whose OBUs have size fields.
    pub(super) fn observe_frame(&mut self, unit: &[u8]) {
        for (obu_type, content) in iter_sized_obus(unit) {
            match obu_type {
                OBU_SEQUENCE_HEADER => self.sequence = Av1FrameHeaderParams::parse(content),
                OBU_FRAME_HEADER | OBU_FRAME => self.observe_frame_header(content),
                _ => {}
            }
        }
    }

    fn observe_frame_header(&mut self, content: &[u8]) {
        let Some(frame) = self.sequence.and_then(|sequence| FrameSlots::parse(content, sequence)) else {
            self.shown_slots = 0;
            return;
        };
        if let Some(slot) = frame.repeated {
            // A key frame that is shown late replaces all others.
            let is_key_frame = self.key_frame_slots >> slot & 1 == 1;
            self.shown_slots = if is_key_frame { 0 } else { 1 << slot };
            if is_key_frame {
                self.key_frame_slots = u8::MAX;
            }
            return;
        }
        self.key_frame_slots &= !frame.refreshed;
        if frame.is_key_frame {
            self.key_frame_slots |= frame.refreshed;
        }
        self.shown_slots = match (frame.is_shown, frame.is_key_frame) {
            (true, true) => 0,
            // A frame that is not stored cannot be shown again: the one before can.
            (true, false) if frame.refreshed != 0 => frame.refreshed,
            _ => self.shown_slots & !frame.refreshed,
        };
    }

    /// Returns a temporal unit that shows the last frame again; `None` if that is not stored, or a key frame.
    pub(super) fn build_repeated_frame(&self) -> Option<Bytes> {
        let slot = (self.shown_slots != 0).then(|| self.shown_slots.trailing_zeros() as u8)?;
        // A frame header with a size field: show_existing_frame, the slot, and the trailing bit.
        let header = 0x88 | slot << 4;
        Some(Bytes::copy_from_slice(&[OBU_FRAME_HEADER << 3 | 0x02, 1, header]))
    }
}

impl FrameSlots {
    /// Reads a frame header up to the slots (AV1 §5.9.2).
    fn parse(content: &[u8], sequence: Av1FrameHeaderParams) -> Option<Self> {
        let mut bits = BitReader::new(content);
        if bits.read_flag()? {
            return Some(Self {
                is_key_frame: false,
                is_shown: true,
                refreshed: 0,
                repeated: Some(bits.read_bits_u8(3)?),
            });
        }
        let (frame_type, is_shown) = (bits.read_bits_u8(2)?, bits.read_flag()?);
        let is_key_frame = frame_type == FRAME_TYPE_KEY;
        if !is_shown {
            bits.skip(1); // showable_frame
        }
        let starts_anew = frame_type == FRAME_TYPE_SWITCH || (is_key_frame && is_shown);
        let is_error_resilient = starts_anew || bits.read_flag()?;
        bits.skip(1); // disable_cdf_update
        let allows_screen_content = match sequence.forced_screen_content_tools {
            Some(forced) => forced,
            None => bits.read_flag()?,
        };
        if allows_screen_content && sequence.selects_integer_motion_vectors {
            bits.skip(1); // force_integer_mv
        }
        if frame_type != FRAME_TYPE_SWITCH {
            bits.skip(1); // frame_size_override_flag
        }
        bits.skip(sequence.order_hint_bits as usize);
        let is_intra = is_key_frame || frame_type == FRAME_TYPE_INTRA_ONLY;
        if !is_intra && !is_error_resilient {
            bits.skip(3); // primary_ref_frame
        }
        let refreshed = if starts_anew { u8::MAX } else { bits.read_bits_u8(8)? };
        Some(Self {
            is_key_frame,
            is_shown,
            refreshed,
            repeated: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame_repeater::tests::{decode_ivf, encode_ivf};
    use super::*;

    /// Decoders show the frame before again, and what follows as without. A key frame is not repeated.
    #[test]
    fn a_repeated_frame_is_that_before() {
        const DELIMITER: [u8; 2] = [0x12, 0x00];
        for (name, options) in [
            (
                "realtime",
                &[
                    "-c:v",
                    "libaom-av1",
                    "-usage",
                    "realtime",
                    "-cpu-used",
                    "8",
                    "-lag-in-frames",
                    "0",
                ][..],
            ),
            (
                "hidden",
                &["-c:v", "libaom-av1", "-cpu-used", "8", "-lag-in-frames", "16"],
            ),
            ("svt", &["-c:v", "libsvtav1", "-preset", "12"]),
            (
                "svt-low-delay",
                &[
                    "-c:v",
                    "libsvtav1",
                    "-preset",
                    "12",
                    "-svtav1-params",
                    "pred-struct=1:scm=1",
                ],
            ),
        ] {
            let hierarchy = if name.starts_with("svt") { 4 } else { 0 };
            let options = [&["-g", "30"], options].concat();
            let frames = encode_ivf(&format!("av1-{name}"), &options);
            let (mut repeater, mut with, mut repeats) = (Av1FrameRepeater::default(), Vec::new(), Vec::new());
            for (index, frame) in frames.iter().enumerate() {
                repeater.observe_frame(frame);
                with.push(frame.clone());
                let count = if index % 7 == 3 { 5 } else { 0 };
                let repeated = (0..count).filter_map(|_| repeater.build_repeated_frame());
                let before = with.len();
                with.extend(repeated.map(|bytes| [&DELIMITER[..], &bytes].concat()));
                repeats.push(with.len() - before + 1);
            }
            let repeated: usize = repeats.iter().sum();
            assert!(repeated >= frames.len() + 20, "{name}: {repeats:?}");
            let once = decode_ivf(&format!("av1-{name}"), *b"AV01", &frames);
            let mut found = decode_ivf(&format!("av1-{name}"), *b"AV01", &with).into_iter();
            for (index, (sum, count)) in once.iter().zip(&repeats).enumerate() {
                assert_eq!(found.next().as_ref(), Some(sum), "{name} {index}");
                // Of a hierarchy of frames, the newest may not be stored: then it is one before.
                let shown = once.get(index.saturating_sub(hierarchy)..=index).expect("in order");
                for repeated in found.by_ref().take(count - 1) {
                    assert!(shown.contains(&repeated), "{name} {index}: {repeated}");
                }
            }
            assert_eq!(found.next(), None, "{name}");
        }
    }

    #[test]
    fn nothing_is_repeated_without_a_sequence_header() {
        let mut repeater = Av1FrameRepeater::default();
        for unit in [&[][..], &[0x32], &[0x32, 1, 0x30], &[0x0a, 0], &[0xff; 20]] {
            repeater.observe_frame(unit);
            assert_eq!(repeater.build_repeated_frame(), None, "{unit:x?}");
        }
    }
}
