//! Repeats a frame of VP9: a frame header with `show_existing_frame`, by which decoders show a stored frame once more (VP9
//! bitstream specification §6.2). What follows is decoded as without it.

use bytes::Bytes;

use super::bit_reader::BitReader;
use super::bit_writer::BitWriter;
use super::vp9::{skip_color_config, split_superframe};

/// Repeats the frames of one stream.
#[derive(Debug, Default)]
pub(super) struct Vp9FrameRepeater {
    profile: u8,
    /// Slots of the decoder that hold the newest shown frame, a bit each.
    shown_slots: u8,
}

/// What a frame header says of the slots of the decoder.
struct FrameSlots {
    profile: u8,
    is_shown: bool,
    /// `refresh_frame_flags`.
    refreshed: u8,
    /// The slot that is shown, of a frame that repeats another one.
    repeated: Option<u8>,
}

const KEY_FRAME_SYNC_CODE: u32 = 0x49_8342;

impl Vp9FrameRepeater {
    /// Records a picture: a frame, or a superframe with hidden frames and spatial layers.
    pub(super) fn observe_frame(&mut self, picture: &[u8]) {
        let Some(frames) = split_superframe(picture)
            .into_iter()
            .map(FrameSlots::parse)
            .collect::<Option<Vec<_>>>()
        else {
            self.shown_slots = 0;
            return;
        };
        // Of several spatial layers the last one is shown.
        let shown = frames
            .iter()
            .rposition(|frame| frame.is_shown || frame.repeated.is_some());
        for (index, frame) in frames.into_iter().enumerate() {
            self.profile = frame.profile;
            self.shown_slots = match frame.repeated {
                Some(slot) if Some(index) == shown => 1 << slot,
                // A frame that is not stored cannot be shown again: the one before can.
                None if Some(index) == shown && frame.refreshed != 0 => frame.refreshed,
                _ => self.shown_slots & !frame.refreshed,
            };
        }
    }

    /// Returns a frame that shows the last one again; `None` if that is not stored.
    pub(super) fn build_repeated_frame(&self) -> Option<Bytes> {
        let slot = (self.shown_slots != 0).then(|| self.shown_slots.trailing_zeros())?;
        let mut bits = BitWriter::default();
        bits.write_bits(2, 2); // frame_marker
        bits.write_bits(u32::from(self.profile & 1), 1);
        bits.write_bits(u32::from(self.profile >> 1), 1);
        if self.profile == 3 {
            bits.write_bits(0, 1); // reserved_zero
        }
        bits.write_bits(1, 1); // show_existing_frame
        bits.write_bits(slot, 3);
        Some(Bytes::copy_from_slice(bits.bytes()))
    }
}

impl FrameSlots {
    /// Reads an uncompressed header up to the slots (VP9 bitstream specification §6.2).
    fn parse(frame: &[u8]) -> Option<Self> {
        let mut bits = BitReader::new(frame);
        bits.read_bits(2).filter(|marker| *marker == 2)?;
        let (low, high) = (bits.read_bits_u8(1)?, bits.read_bits_u8(1)?);
        let profile = high << 1 | low;
        if profile == 3 {
            bits.skip(1); // reserved_zero
        }
        if bits.read_flag()? {
            let repeated = Some(bits.read_bits_u8(3)?);
            return Some(Self {
                profile,
                is_shown: true,
                refreshed: 0,
                repeated,
            });
        }
        let is_key_frame = !bits.read_flag()?;
        let (is_shown, is_error_resilient) = (bits.read_flag()?, bits.read_flag()?);
        let refreshed = if is_key_frame {
            u8::MAX
        } else {
            let is_intra_only = !is_shown && bits.read_flag()?;
            if !is_error_resilient {
                bits.skip(2); // reset_frame_context
            }
            if is_intra_only {
                bits.read_bits(24).filter(|code| *code == KEY_FRAME_SYNC_CODE)?;
                if profile > 0 {
                    skip_color_config(&mut bits, profile)?;
                }
            }
            bits.read_bits_u8(8)?
        };
        Some(Self {
            profile,
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

    /// Decoders show the frame before again, and what follows as without.
    #[test]
    fn a_repeated_frame_is_that_before() {
        for (name, options) in [
            ("realtime", &["-deadline", "realtime", "-cpu-used", "8"][..]),
            // Hidden frames in superframes.
            (
                "hidden",
                &[
                    "-deadline",
                    "good",
                    "-cpu-used",
                    "5",
                    "-auto-alt-ref",
                    "1",
                    "-lag-in-frames",
                    "16",
                ],
            ),
            (
                "profile1",
                &["-pix_fmt", "yuv444p", "-deadline", "realtime", "-cpu-used", "8"],
            ),
        ] {
            let options = [&["-c:v", "libvpx-vp9", "-g", "30"], options].concat();
            let frames = encode_ivf(&format!("vp9-{name}"), &options);
            let (mut repeater, mut with, mut repeats) = (Vp9FrameRepeater::default(), Vec::new(), Vec::new());
            for (index, frame) in frames.iter().enumerate() {
                repeater.observe_frame(frame);
                let count = if index % 7 == 3 || index == 0 { 5 } else { 0 };
                let repeated = (0..count).map(|_| repeater.build_repeated_frame().expect("it is stored").to_vec());
                with.push(frame.clone());
                with.extend(repeated);
                repeats.push(1 + count);
            }
            let once = decode_ivf(&format!("vp9-{name}"), *b"VP90", &frames);
            let wanted: Vec<String> = once
                .into_iter()
                .zip(repeats)
                .flat_map(|(sum, count)| std::iter::repeat_n(sum, count))
                .collect();
            assert_eq!(decode_ivf(&format!("vp9-{name}"), *b"VP90", &with), wanted, "{name}");
        }
    }

    #[test]
    fn a_frame_that_is_not_stored_is_not_repeated() {
        let mut repeater = Vp9FrameRepeater::default();
        assert_eq!(repeater.build_repeated_frame(), None);
        // A key frame, and one that replaces slot 0 without being shown.
        repeater.observe_frame(&[0x82, 0x49, 0x83, 0x42]);
        assert_eq!(repeater.build_repeated_frame().as_deref(), Some(&[0x88][..]));
        repeater.observe_frame(&[0x84, 0x00, 0x20]);
        assert_eq!(repeater.build_repeated_frame().as_deref(), Some(&[0x89][..]));
        for picture in [&[][..], &[0x00], &[0x84], &[0xff; 9]] {
            repeater.observe_frame(picture);
            assert_eq!(repeater.build_repeated_frame(), None, "{picture:x?}");
        }
    }
}
