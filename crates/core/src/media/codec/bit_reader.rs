//! Bit reader for parameter sets and frame headers, with Exp-Golomb codes. Reads past the end return `None`, never
//! panic.

/// A bit position in a byte slice.
#[derive(Clone)]
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    bit_position: usize,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, bit_position: 0 }
    }

    /// Returns the number of bits that were read or skipped.
    pub(crate) fn position(&self) -> usize {
        self.bit_position
    }

    /// Reads one bit.
    pub(crate) fn read_flag(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.bit_position / 8)?;
        let bit = byte >> (7 - self.bit_position % 8) & 1;
        self.bit_position += 1;
        Some(bit == 1)
    }

    /// Reads `count` bits, at most 32, most significant first.
    pub(crate) fn read_bits(&mut self, count: u32) -> Option<u32> {
        let mut value = 0;
        for _ in 0..count {
            value = value << 1 | u32::from(self.read_flag()?);
        }
        Some(value)
    }

    /// Reads at most eight bits.
    pub(crate) fn read_bits_u8(&mut self, count: u32) -> Option<u8> {
        u8::try_from(self.read_bits(count)?).ok()
    }

    /// Skips `count` bits. Skipping past the end makes the next read fail.
    pub(crate) fn skip(&mut self, count: usize) {
        self.bit_position = self.bit_position.saturating_add(count);
    }

    /// Reads an unsigned Exp-Golomb code, at most 2^32 - 2 (ITU-T H.264 §9.1).
    pub(crate) fn read_ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.read_flag()? {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        Some((1u32 << zeros) - 1 + self.read_bits(zeros)?)
    }

    /// Reads a signed Exp-Golomb code (ITU-T H.264 §9.1.1).
    pub(crate) fn read_signed_exp_golomb(&mut self) -> Option<i64> {
        let code = i64::from(self.read_ue()?);
        Some(if code % 2 == 1 { code / 2 + 1 } else { -(code / 2) })
    }
}

/// Removes the emulation prevention bytes of a NAL unit: the 3 in every `00 00 03` (ITU-T H.264 §7.4.1).
pub fn remove_emulation_prevention(nal: &[u8]) -> Vec<u8> {
    let mut zeros = 0;
    let mut out = Vec::with_capacity(nal.len());
    for &byte in nal {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

/// Width or height in pixels: coded size minus cropping; `None` if the result is invalid.
pub(crate) fn cropped_dimension(coded: u64, crop: u64) -> Option<u16> {
    u16::try_from(coded.checked_sub(crop)?).ok().filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_golomb_codes_are_read() {
        // 1, 010, 011, 00100, 00101, then the signed 010 and 011.
        let mut reader = BitReader::new(&[0b1010_0110, 0b0100_0010, 0b1010_0110]);
        let codes: Vec<_> = (0..5).map(|_| reader.read_ue()).collect();
        assert_eq!(codes, [Some(0), Some(1), Some(2), Some(3), Some(4)]);
        assert_eq!(
            (reader.read_signed_exp_golomb(), reader.read_signed_exp_golomb()),
            (Some(1), Some(-1))
        );
        assert_eq!(reader.read_ue(), None, "the end");
    }

    #[test]
    fn the_longest_code_fits_and_a_longer_one_is_rejected() {
        let longest = [0, 0, 0, 1, 0xff, 0xff, 0xff, 0xfe];
        assert_eq!(BitReader::new(&longest).read_ue(), Some(u32::MAX - 1));
        assert_eq!(BitReader::new(&[0; 16]).read_ue(), None);
    }

    #[test]
    fn emulation_prevention_is_removed() {
        let nal = [0x67, 0, 0, 3, 1, 0, 0, 3, 0, 0, 3, 3, 0, 0, 3];
        assert_eq!(remove_emulation_prevention(&nal), [0x67, 0, 0, 1, 0, 0, 0, 0, 3, 0, 0]);
    }
}
