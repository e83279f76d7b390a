//! Detects from the bitstream that pictures are sent in another order than they are shown (B-frames). Timestamps do not
//! always say it: OBS sends decoding times.

/// The order of the pictures of one stream.
#[derive(Debug, Default)]
pub(super) struct PictureOrder {
    /// Highest picture order count so far.
    last: Option<u32>,
    /// By how much it exceeds the highest before it. Reordered pictures fill this gap.
    gap: u32,
    /// RTP timestamp of the newest picture.
    time: Option<u32>,
    pictures: u32,
    steps_back: u32,
    is_reordered: bool,
}

/// Number of steps back within [`WINDOW`] pictures that indicate B-frames, not a loss.
const MIN_STEPS_BACK: u32 = 2;
const WINDOW: u32 = 64;

impl PictureOrder {
    /// Whether pictures are sent in another order than they are shown.
    pub(super) fn is_reordered(&self) -> bool {
        self.is_reordered
    }

    /// A picture of a stream whose parameter sets announce another order, of a type that makes use of it.
    pub(super) fn observe_announced(&mut self) {
        self.is_reordered = true;
    }

    /// What follows has unrelated timestamps.
    pub(super) fn restart(&mut self) {
        (self.last, self.gap, self.time) = (None, 0, None);
    }

    /// Records the order count of the next picture, which counts modulo `modulus`. A picture that arrives late, whose
    /// timestamp is older, says nothing.
    pub(super) fn observe(&mut self, time: u32, is_start: bool, count: u32, modulus: u32) {
        let is_late = self.time.is_some_and(|newest| newest.wrapping_sub(time) < 1 << 31);
        if self.is_reordered || (is_late && !is_start) {
            return;
        }
        self.time = Some(time);
        self.pictures += 1;
        if self.pictures > WINDOW {
            (self.pictures, self.steps_back) = (0, 0);
        }
        let behind = self
            .last
            .filter(|_| !is_start)
            .map(|last| last.wrapping_sub(count) % modulus);
        match behind {
            Some(0) => {}
            // Shown between the last two that were the highest. Those that follow are compared with the same.
            Some(behind) if behind < self.gap => self.steps_back += 1,
            // The start of a new count was lost.
            Some(behind) if behind < modulus / 2 => (self.last, self.gap) = (Some(count), 0),
            Some(behind) => (self.last, self.gap) = (Some(count), modulus - behind),
            None => (self.last, self.gap) = (Some(count), 0),
        }
        self.is_reordered = self.steps_back >= MIN_STEPS_BACK;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reorders(counts: &[u32], starts: &[usize]) -> bool {
        let mut order = PictureOrder::default();
        for (index, count) in counts.iter().enumerate() {
            order.observe(index as u32 * 3_000, starts.contains(&index), *count, 16);
        }
        order.is_reordered()
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
        let mut order = PictureOrder::default();
        for (time, count) in [(0, 0), (6_000, 4), (3_000, 2), (12_000, 8), (9_000, 6), (15_000, 10)] {
            order.observe(time, count == 0, count, 256);
        }
        assert!(!order.is_reordered());
    }
}
