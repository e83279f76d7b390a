//! Detects from the bitstream that pictures are sent in another order than they are shown (B-frames). Timestamps do not
//! always say it: OBS sends decoding times.

/// The order of the pictures of one stream.
#[derive(Debug, Default)]
pub(super) struct PocBFrameDetector {
    /// Highest picture order count so far.
    highest_poc: Option<u32>,
    /// By how much it exceeds the highest before it. Reordered pictures fill this gap.
    highest_poc_step: u32,
    /// RTP timestamp of the newest picture.
    newest_timestamp: Option<u32>,
    window_picture_count: u32,
    poc_backward_step_count: u32,
    has_b_frames: bool,
}

/// Number of steps back within [`POC_WINDOW_PICTURES`] pictures that indicate B-frames, not a loss.
const MIN_POC_BACKWARD_STEPS: u32 = 2;
const POC_WINDOW_PICTURES: u32 = 64;

impl PocBFrameDetector {
    /// Whether pictures are sent in another order than they are shown.
    pub(super) fn found_b_frames(&self) -> bool {
        self.has_b_frames
    }

    /// A picture of a stream whose parameter sets announce another order, of a type that makes use of it.
    pub(super) fn conclude_b_frames_from_b_slice(&mut self) {
        self.has_b_frames = true;
    }

    /// What follows has unrelated timestamps.
    pub(super) fn on_timestamp_discontinuity(&mut self) {
        (self.highest_poc, self.highest_poc_step, self.newest_timestamp) = (None, 0, None);
    }

    /// Records the order count of the next picture, which counts modulo `modulus`. A picture that arrives late, whose
    /// timestamp is older, says nothing.
    pub(super) fn observe_picture(&mut self, time: u32, is_idr: bool, poc: u32, modulus: u32) {
        let is_late = self
            .newest_timestamp
            .is_some_and(|newest| newest.wrapping_sub(time) < 1 << 31);
        if self.has_b_frames || (is_late && !is_idr) {
            return;
        }
        self.newest_timestamp = Some(time);
        self.window_picture_count += 1;
        if self.window_picture_count > POC_WINDOW_PICTURES {
            (self.window_picture_count, self.poc_backward_step_count) = (0, 0);
        }
        let behind = self
            .highest_poc
            .filter(|_| !is_idr)
            .map(|last| last.wrapping_sub(poc) % modulus);
        match behind {
            Some(0) => {}
            // Shown between the last two that were the highest. Those that follow are compared with the same.
            Some(behind) if behind < self.highest_poc_step => self.poc_backward_step_count += 1,
            // The start of a new count was lost.
            Some(behind) if behind < modulus / 2 => (self.highest_poc, self.highest_poc_step) = (Some(poc), 0),
            Some(behind) => (self.highest_poc, self.highest_poc_step) = (Some(poc), modulus - behind),
            None => (self.highest_poc, self.highest_poc_step) = (Some(poc), 0),
        }
        self.has_b_frames = self.poc_backward_step_count >= MIN_POC_BACKWARD_STEPS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reorders(counts: &[u32], starts: &[usize]) -> bool {
        let mut order = PocBFrameDetector::default();
        for (index, count) in counts.iter().enumerate() {
            order.observe_picture(index as u32 * 3_000, starts.contains(&index), *count, 16);
        }
        order.found_b_frames()
    }

    #[test]
    fn steps_back_are_b_frames_and_a_wrap_is_none() {
        assert!(reorders(&[0, 6, 2, 4, 12, 8, 10], &[0]));
        assert!(!reorders(
            &[0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14, 0],
            &[0]
        ));
        assert!(!reorders(&[0, 2, 4, 0, 2, 4, 0], &[0, 3, 6]), "each start counts anew");
        assert!(!reorders(&[0, 6, 2, 8, 10, 12], &[0]), "one step back may be a loss");
    }

    #[test]
    fn a_lost_start_is_no_b_frame() {
        let p_frames = |from: u32, to: u32| (from..to).map(|n| n * 2 % 16);
        for lost in 1..4 {
            let counts: Vec<u32> = p_frames(0, 7).chain(p_frames(lost, 30)).collect();
            assert!(!reorders(&counts, &[0]), "{counts:?}");
        }
    }

    #[test]
    fn a_late_picture_is_no_b_frame() {
        let mut order = PocBFrameDetector::default();
        for (time, count) in [(0, 0), (6_000, 4), (3_000, 2), (12_000, 8), (9_000, 6), (15_000, 10)] {
            order.observe_picture(time, count == 0, count, 256);
        }
        assert!(!order.found_b_frames());
    }
}
