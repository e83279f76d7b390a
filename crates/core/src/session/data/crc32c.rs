//! The checksum of SCTP packets (RFC 9260 appendix A).

/// Castagnoli's polynomial, with the bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Returns the CRC32c. It is used for one packet of 16 bytes in a session, so it needs no table.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| match crc & 1 {
            1 => (crc >> 1) ^ POLYNOMIAL,
            _ => crc >> 1,
        })
    });
    !crc
}

#[cfg(test)]
mod tests {
    /// The check value of the catalogue of parametrised CRC algorithms.
    #[test]
    fn it_is_that_of_castagnoli() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }
}
