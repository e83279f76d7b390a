//! RTP padding (RFC 3550 §5.1) that makes the packets of a frame equally long: UDP_SEGMENT allows only the last packet of a
//! run to be shorter.

/// Length differences up to this many bytes are padded. libwebrtc splits a frame into packets that differ by one byte,
/// the longer ones last; a larger difference occurs only at a short last packet.
const MAX_PADDED_LENGTH_DIFFERENCE: usize = 8;

/// Chooses the padding for the packets of one frame that are sent as a batch: each packet but the last is padded to the
/// length of the longest if it is nearly that long.
pub(crate) fn padding_to_equalize_lengths(lengths: &[usize]) -> impl Iterator<Item = u8> + '_ {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let last = lengths.len().saturating_sub(1);
    lengths.iter().enumerate().map(move |(index, length)| {
        let missing = longest - length;
        if index != last && missing <= MAX_PADDED_LENGTH_DIFFERENCE {
            u8::try_from(missing).unwrap_or(0)
        } else {
            0
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_equal_packets_become_equal_and_the_last_stays_short() {
        let padding: Vec<u8> = padding_to_equalize_lengths(&[1078, 1078, 1079, 1079, 400]).collect();
        assert_eq!(padding, [1, 1, 0, 0, 0]);
    }

    #[test]
    fn very_different_packets_are_left_alone() {
        let padding: Vec<u8> = padding_to_equalize_lengths(&[30, 1100, 1100]).collect();
        assert_eq!(padding, [0, 0, 0]);
    }
}
