//! Bit writer for frame headers, with Exp-Golomb codes.

/// Bits, most significant first.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    /// Bits of the last byte that are used; 0 for all of them.
    used_bits: u32,
}

impl BitWriter {
    /// Returns what was written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes the `count` low bits, at most 32.
    pub(super) fn write_bits(&mut self, value: u32, count: u32) {
        for shift in (0..count).rev() {
            if self.used_bits == 0 {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= ((value >> shift & 1) as u8) << (7 - self.used_bits);
            }
            self.used_bits = (self.used_bits + 1) % 8;
        }
    }

    /// Writes an unsigned Exp-Golomb code (ITU-T H.264 §9.1). The code of 0 is that of the signed 0, too.
    pub(super) fn write_ue(&mut self, value: u32) {
        let code = value.saturating_add(1);
        let length = code.ilog2();
        self.write_bits(0, length);
        self.write_bits(code, length + 1);
    }

    /// Fills the last byte with ones.
    pub(super) fn align_with_ones(&mut self) {
        while self.used_bits != 0 {
            self.write_bits(1, 1);
        }
    }

    /// Fills the last byte with zeros.
    pub(super) fn align_with_zeros(&mut self) {
        self.used_bits = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::bit_reader::BitReader;
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = BitWriter::default();
        let numbers = [0, 1, 2, 3, 254, 255, 65_535, 139_264];
        numbers.iter().for_each(|number| writer.write_ue(*number));
        writer.write_bits(0b101, 3);
        writer.align_with_ones();
        let mut reader = BitReader::new(writer.bytes());
        assert_eq!(numbers.map(|_| reader.read_ue().expect("a code")), numbers);
        assert_eq!(reader.read_bits(3), Some(0b101));
        assert!(std::iter::from_fn(|| reader.read_flag()).all(|bit| bit));
    }
}
