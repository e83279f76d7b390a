//! Reads the headers of JPEG images (ITU-T T.81 annex B).

/// Returns width and height in pixels; `None` without a frame header.
pub(crate) fn parse_jpeg_resolution(image: &[u8]) -> Option<(u16, u16)> {
    let mut rest = image.strip_prefix(&[0xff, START_OF_IMAGE])?;
    loop {
        let [marker, kind, high, low, ..] = *rest else {
            return None;
        };
        let is_frame = (0xc0..=0xcf).contains(&kind)
            && !matches!(
                kind,
                DEFINE_HUFFMAN_TABLES | RESERVED_JPEG_MARKER | DEFINE_ARITHMETIC_CODING
            );
        if marker != 0xff || kind == START_OF_SCAN {
            return None;
        }
        if is_frame {
            let [_, _, _, _, _, h1, h0, w1, w0, ..] = *rest else {
                return None;
            };
            return Some((u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0])));
        }
        rest = rest.get(2 + usize::from(u16::from_be_bytes([high, low]))..)?;
    }
}

const START_OF_IMAGE: u8 = 0xd8;
const START_OF_SCAN: u8 = 0xda;
const DEFINE_HUFFMAN_TABLES: u8 = 0xc4;
const RESERVED_JPEG_MARKER: u8 = 0xc8;
const DEFINE_ARITHMETIC_CODING: u8 = 0xcc;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_header_has_the_size() {
        let image = [
            0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xc4, 0, 2, 0xff, 0xc0, 0, 11, 8, 2, 0xd0, 5, 0, 1, 1, 0x11, 0,
        ];
        assert_eq!(parse_jpeg_resolution(&image), Some((1280, 720)));
        for end in 0..20 {
            assert_eq!(parse_jpeg_resolution(&image[..end]), None);
        }
        assert_eq!(parse_jpeg_resolution(&[0xff, 0xd8, 0xff, 0xda, 0, 2, 0, 0, 0, 0]), None);
    }
}
