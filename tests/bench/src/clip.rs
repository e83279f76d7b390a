//! An H.264 file in Annex B form (ITU-T H.264 Annex B) as the payloads of RTP packets (RFC 6184). It knows one slice
//! layout: a frame begins where the first macroblock is number zero.

use std::io;

/// RTP payload per packet, in bytes.
const PAYLOAD_LEN: usize = 1200;

/// NAL unit types (ITU-T H.264 table 7-1) and FU-A (RFC 6184 §5.8).
const SLICE: u8 = 1;
const IDR: u8 = 5;
const FU_A: u8 = 28;
const FU_START: u8 = 0x80;
const FU_END: u8 = 0x40;

/// Payloads of one frame in order, parameter sets included; the last one bears the marker.
pub(crate) type Frame = Vec<Vec<u8>>;

/// Cuts a file into frames.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] when it does not begin with a frame that a decoder can begin with.
pub(crate) fn frames(file: &[u8]) -> io::Result<Vec<Frame>> {
    let mut frames: Vec<Frame> = Vec::new();
    let mut before = Vec::new();
    for nal in nal_units(file) {
        let [header, slice, ..] = *nal else { continue };
        let kind = header & 0x1f;
        if frames.is_empty() && kind == SLICE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file does not begin with an IDR frame",
            ));
        }
        if !matches!(kind, SLICE | IDR) {
            packetize(nal, &mut before);
            continue;
        }
        // `first_mb_in_slice` is zero: one bit, set (§7.3.3, §9.1).
        if slice & 0x80 != 0 {
            frames.push(std::mem::take(&mut before));
        }
        if let Some(frame) = frames.last_mut() {
            frame.append(&mut before);
            packetize(nal, frame);
        }
    }
    match frames.len() {
        0 => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "there is no frame in the file",
        )),
        _ => Ok(frames),
    }
}

/// The NAL units between start codes, trailing zeros removed (Annex B.1.1).
fn nal_units(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = after_start_code(file);
    std::iter::from_fn(move || {
        let from = rest?;
        rest = after_start_code(from);
        let next = rest.map_or(0, |rest| rest.len() + 3);
        let unit = from.get(..from.len().saturating_sub(next))?;
        let end = unit.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        unit.get(..end)
    })
}

fn after_start_code(bytes: &[u8]) -> Option<&[u8]> {
    let at = bytes.windows(3).position(|window| window == [0, 0, 1])?;
    bytes.get(at + 3..)
}

/// A NAL unit as one packet, or as fragments where it is too long.
fn packetize(nal: &[u8], payloads: &mut Vec<Vec<u8>>) {
    let Some((&header, body)) = nal.split_first().filter(|_| nal.len() > PAYLOAD_LEN) else {
        payloads.push(nal.to_vec());
        return;
    };
    let parts = body.len().div_ceil(PAYLOAD_LEN - 2);
    for (index, part) in body.chunks(PAYLOAD_LEN - 2).enumerate() {
        let start = if index == 0 { FU_START } else { 0 };
        let end = if index + 1 == parts { FU_END } else { 0 };
        let mut payload = vec![header & 0xe0 | FU_A, header & 0x1f | start | end];
        payload.extend_from_slice(part);
        payloads.push(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_sets_precede_the_frame_that_they_came_before() {
        let mut file = vec![0, 0, 0, 1, 0x67, 1, 2, 0, 0, 0, 1, 0x68, 3, 0, 0, 1, 0x65, 0x88];
        file.extend([7; 2000]);
        file.extend([0, 0, 1, 0x41, 0x9a, 5, 0, 0, 1, 0x41, 0x1a, 6]);
        let frames = frames(&file).unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0][..2], [vec![0x67, 1, 2], vec![0x68, 3]]);
        assert_eq!(frames[0][2][..3], [0x7c, 0x85, 0x88]);
        assert_eq!((frames[0][2].len(), frames[0].len()), (PAYLOAD_LEN, 4));
        assert_eq!(frames[0][3][..2], [0x7c, 0x45]);
        let joined: Vec<u8> = frames[0][2..].iter().flat_map(|part| part[2..].to_vec()).collect();
        assert_eq!(joined.len(), 2001);
        assert_eq!(frames[1], [vec![0x41, 0x9a, 5], vec![0x41, 0x1a, 6]], "two slices");
    }

    #[test]
    fn a_file_without_a_beginning_is_refused() {
        assert!(frames(&[0, 0, 1, 0x41, 0x9a, 5]).is_err());
        assert!(frames(b"no start code").is_err());
    }
}
