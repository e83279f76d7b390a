//! For how long viewers should avoid a simulcast layer of which packets were lost on the way from the publisher.

use std::time::{Duration, Instant};

/// What is known of the losses of one layer.
#[derive(Debug, Default)]
pub(super) struct LayerLossDetector {
    /// Since when packets are missing for good, up to the next key frame.
    lacks_packets_since: Option<Instant>,
    /// When viewers last had a reason to avoid the layer.
    last_lossy_at: Option<Instant>,
}

/// A publisher that answers the request for a key frame has sent one by then: a change of the layer would take as long.
const EXPECTED_KEY_FRAME_TIME: Duration = Duration::from_millis(500);

/// A layer is avoided for this long after it is whole again: where packets are lost once, more are mostly lost soon.
const LOSSY_LAYER_HOLD_TIME: Duration = Duration::from_secs(5);

impl LayerLossDetector {
    /// Returns whether viewers should avoid the layer. `lacks_packets` is whether some were lost for good since the newest key
    /// frame.
    pub(super) fn update(&mut self, now: Instant, lacks_packets: bool) -> bool {
        let since = lacks_packets.then(|| self.lacks_packets_since.unwrap_or(now));
        self.lacks_packets_since = since;
        if since.is_some_and(|since| now.saturating_duration_since(since) >= EXPECTED_KEY_FRAME_TIME) {
            self.last_lossy_at = Some(now);
        }
        self.last_lossy_at
            .is_some_and(|at| now.saturating_duration_since(at) < LOSSY_LAYER_HOLD_TIME)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_avoided_until_its_key_frame_and_some_seconds_more() {
        let start = Instant::now();
        let mut loss = LayerLossDetector::default();
        let mut update = |at: u64, lacks| loss.update(start + Duration::from_millis(at), lacks);
        assert!(!update(0, false) && !update(500, true));
        assert!(update(1_000, true) && update(2_500, true));
        assert!(update(2_600, false) && update(7_400, false));
        assert!(!update(7_600, false));
        // Lost again while it is held: no change in between.
        assert!(!update(7_700, true) && update(8_200, true) && update(9_000, false));
        assert!(update(12_000, true) && update(12_600, true) && update(17_500, false));
        assert!(!update(17_700, false));
    }

    #[test]
    fn a_publisher_that_answers_requests_for_key_frames_has_time_for_one() {
        let start = Instant::now();
        let mut loss = LayerLossDetector::default();
        let mut update = |at: u64, lacks| loss.update(start + Duration::from_millis(at), lacks);
        assert!(!update(1_000, true) && !update(1_400, true) && !update(1_450, false));
        assert!(!update(2_000, true) && update(2_500, true));
    }
}
