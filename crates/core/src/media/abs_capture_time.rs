//! The RTP header extension `abs-capture-time` (draft-alvestrand-avtcore-abs-capture-time): when the first frame in a packet was
//! captured.

/// Returns when the frame was captured, as a 64-bit NTP timestamp of the clock of the packet's sender; `None` for an element
/// without the offset that relates the two clocks.
///
/// ```text
/// absolute capture timestamp (64 bits, 32 of them fraction bits)
/// estimated capture clock offset (64 bits, signed, 32 of them fraction bits; optional)
/// ```
///
/// The offset is that of the capturer's clock from the sender's: 0 if the sender is the capturer.
pub(crate) fn sender_ntp_timestamp(element: &[u8]) -> Option<u64> {
    let (captured, offset) = element.split_first_chunk::<8>()?;
    let offset = i64::from_be_bytes(*<&[u8; 8]>::try_from(offset).ok()?);
    u64::from_be_bytes(*captured).checked_add_signed(offset.checked_neg()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1 << 32;

    #[test]
    fn a_capture_time_is_that_of_the_senders_clock_and_unknown_without_the_offset() {
        let captured = (1_000 * SECOND).to_be_bytes();
        let itself = [captured, [0; 8]].concat();
        assert_eq!(sender_ntp_timestamp(&itself), Some(1_000 * SECOND));
        // The clock of the capturer is two seconds ahead.
        let element = [captured, (2 * SECOND).to_be_bytes()].concat();
        assert_eq!(sender_ntp_timestamp(&element), Some(998 * SECOND));
        for length in [0, 7, 8, 9, 15] {
            assert_eq!(sender_ntp_timestamp(&element[..length]), None, "{length}");
        }
        let hostile = [[0; 8], i64::MIN.to_be_bytes()].concat();
        assert_eq!(sender_ntp_timestamp(&hostile), None);
        let before_zero = [[0; 8], 1_i64.to_be_bytes()].concat();
        assert_eq!(sender_ntp_timestamp(&before_zero), None);
    }
}
