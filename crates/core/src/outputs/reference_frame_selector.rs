//! Which frame of a track is being passed where frames that nothing refers to are left out.

use crate::media::packet::{TrackSeq, TrackTime};

/// Which frame is being passed, and whether it is left out: one decision for all of its packets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReferenceFrameSelector {
    pub(super) passed_frame: Option<PassedFrame>,
    /// All frames are sent once a key frame at or after this position was reached: what was left out before it, those in
    /// between may refer to.
    pub(super) ends_at_key_frame_from: Option<TrackSeq>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PassedFrame {
    pub(super) time: TrackTime,
    pub(super) is_left_out: bool,
}

impl ReferenceFrameSelector {
    /// What is sent next is not what follows, but a key frame, which may have any position.
    pub(super) fn forget_frames(&mut self) {
        self.passed_frame = None;
        self.ends_at_key_frame_from = self.ends_at_key_frame_from.map(|_| 0);
    }

    /// Whether a decision on the frame with this time was made, and which.
    pub(super) fn is_left_out(&self, time: TrackTime) -> Option<bool> {
        self.passed_frame
            .filter(|frame| frame.time == time)
            .map(|frame| frame.is_left_out)
    }
}
