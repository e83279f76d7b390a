//! Where decoders can start in H.264 without IDR frames: recovery points (ITU-T H.264 §D.2.8), I frames with parameter
//! sets, and other I frames once no IDR frame is expected any more; in H.265 without IRAP pictures: recovery points.
//! Broadcasters and encoders with open groups of pictures or gradual refresh send nothing else.
//!
//! Decoders of browsers start with IDR frames only, so the others count as long as there are no IDR frames.

use super::bit_reader::remove_emulation_prevention;

/// Random access of one stream.
#[derive(Debug, Default)]
pub(super) struct RecoveryPointTracker {
    /// The newest access units with a recovery point, and with a sequence parameter set, by their timestamp.
    recovery_point_time: Option<u32>,
    parameter_set_time: Option<u32>,
    newest_frame_time: Option<u32>,
    frames_since_idr: u32,
    has_seen_idr: bool,
    has_recovery_points: bool,
}

/// Frames without an IDR frame after which none is expected: 16 s at 25 frames per second.
const MAX_FRAMES_BETWEEN_IDR_FRAMES: u32 = 400;

/// Maximum number of bytes of an SEI NAL unit that are searched.
const MAX_SEI_BYTES: usize = 256;

const SEI_RECOVERY_POINT: u32 = 6;

impl RecoveryPointTracker {
    /// Records an SEI NAL unit, without its header.
    pub(super) fn observe_sei(&mut self, time: u32, body: &[u8]) {
        if has_recovery_point(body.get(..MAX_SEI_BYTES).unwrap_or(body)) {
            self.recovery_point_time = Some(time);
        }
    }

    /// Records a sequence parameter set.
    pub(super) fn observe_sequence_parameter_set(&mut self, time: u32) {
        self.parameter_set_time = Some(time);
    }

    /// Whether the access unit with this timestamp has a sequence parameter set so far.
    pub(super) fn has_sequence_parameter_set(&self, time: u32) -> bool {
        self.parameter_set_time == Some(time)
    }

    /// Whether an IDR frame may still come.
    pub(super) fn expects_idr_frames(&self) -> bool {
        self.frames_since_idr < MAX_FRAMES_BETWEEN_IDR_FRAMES
    }

    /// Records the start of an IDR slice.
    pub(super) fn observe_idr(&mut self) {
        (self.has_seen_idr, self.has_recovery_points, self.frames_since_idr) = (true, false, 0);
    }

    /// Records the start of another slice; `starts_i_frame` says that it is the first of an I frame with parameter sets.
    /// Returns whether decoders have to start with it, because no IDR frames come.
    pub(super) fn observe_slice_and_check_random_access(&mut self, time: u32, starts_i_frame: bool) -> bool {
        if self.newest_frame_time.replace(time) != Some(time) {
            self.frames_since_idr = self.frames_since_idr.saturating_add(1);
        }
        let is_start = starts_i_frame || self.recovery_point_time == Some(time);
        self.has_recovery_points |= is_start;
        is_start && (!self.has_seen_idr || !self.expects_idr_frames())
    }

    /// Whether the stream has no IDR frames, but others that decoders can start with.
    pub(super) fn lacks_idr_frames(&self) -> bool {
        self.has_recovery_points && !self.expects_idr_frames()
    }
}

/// Whether one of the SEI messages is a recovery point (ITU-T H.264 §7.3.2.3.1).
fn has_recovery_point(body: &[u8]) -> bool {
    let rbsp = remove_emulation_prevention(body);
    let mut rest = &rbsp[..];
    while let (Some(payload_type), Some(size)) = (
        read_sei_payload_type_or_size(&mut rest),
        read_sei_payload_type_or_size(&mut rest),
    ) {
        if payload_type == SEI_RECOVERY_POINT && size > 0 && !rest.is_empty() {
            return true;
        }
        let Some(after) = usize::try_from(size).ok().and_then(|size| rest.get(size..)) else {
            return false;
        };
        rest = after;
    }
    false
}

/// Type and size are sums of bytes, of which all but the last are 255.
fn read_sei_payload_type_or_size(rest: &mut &[u8]) -> Option<u32> {
    let mut value = 0;
    loop {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value += u32::from(byte);
        if byte != 0xff {
            return Some(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_points_are_found_among_other_messages() {
        let long = [&[0xff, 0x2d, 0xff, 5][..], &[9; 260]].concat();
        for (body, expected) in [
            (&[6, 1, 0xc4, 0x80][..], true),
            // Picture timing first.
            (&[1, 2, 7, 7, 6, 1, 0xc4, 0x80], true),
            (&[1, 2, 6, 1, 0x80], false),
            (&[5, 9, 6, 1], false),
            (&[6], false),
            (&long, false),
            (&[], false),
        ] {
            assert_eq!(has_recovery_point(body), expected, "{body:x?}");
        }
    }
}
