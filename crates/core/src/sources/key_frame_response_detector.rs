//! Whether a publisher answers requests for key frames: judged by the key frames that come, against those that would have
//! come anyway.

use std::time::{Duration, Instant};

/// What requests and key frames say of an encoder. OBS takes requests and ignores them; its key frames come every few
/// seconds, and some of them soon after a request.
#[derive(Debug, Default)]
pub(super) struct KeyFrameResponseDetector {
    /// The first request that nothing came for yet.
    unanswered_request_at: Option<Instant>,
    /// When the last key frame came, and how long after the one before it.
    last_key_frame_at: Option<Instant>,
    key_frame_interval: Option<Duration>,
    consecutive_response_count: u8,
}

impl KeyFrameResponseDetector {
    /// An encoder that is asked sends a key frame within this time: a round trip and a frame.
    const MAX_RESPONSE_DELAY: Duration = Duration::from_millis(500);

    /// So many answers in a row are no accident.
    const MIN_CONSECUTIVE_RESPONSES: u8 = 3;

    /// Key frames so close to each other are those of the layers of one simulcast, or packets of one.
    const KEY_FRAME_DEDUPLICATION_WINDOW: Duration = Duration::from_millis(100);

    pub(crate) fn on_key_frame_request(&mut self, now: Instant) {
        if self.unanswered_request_at.is_some() {
            self.consecutive_response_count = 0;
        }
        self.unanswered_request_at.get_or_insert(now);
    }

    /// A key frame is an answer if it comes soon after a request, and at another time than the distance of the last two
    /// has it. One that comes at its usual time says nothing: neither where it would have come anyway, nor where requests
    /// themselves are regular.
    pub(crate) fn on_key_frame(&mut self, now: Instant) {
        let since = self.last_key_frame_at.map(|last| now.saturating_duration_since(last));
        let asked = self.unanswered_request_at.take();
        if since.is_some_and(|since| since < Self::KEY_FRAME_DEDUPLICATION_WINDOW) {
            return;
        }
        if let Some(asked) = asked {
            // Of irregular key frames no more than a quarter comes so soon by chance.
            let soon = self.key_frame_interval.map_or(Self::MAX_RESPONSE_DELAY, |interval| {
                Self::MAX_RESPONSE_DELAY.min(interval / 4)
            });
            if now.duration_since(asked) > soon {
                self.consecutive_response_count = 0;
            } else if !self.is_periodic_key_frame(since) {
                self.consecutive_response_count = self.consecutive_response_count.saturating_add(1);
            }
        }
        self.last_key_frame_at = Some(now);
        self.key_frame_interval = since.or(self.key_frame_interval);
    }

    /// Whether a key frame would have come about now by itself.
    fn is_periodic_key_frame(&self, since: Option<Duration>) -> bool {
        // Packets wait on their way, and encoders count frames.
        let is_near = |usual: Duration, since: Duration| {
            usual.abs_diff(since) <= (usual / 10).max(Self::KEY_FRAME_DEDUPLICATION_WINDOW)
        };
        match (self.key_frame_interval, since) {
            (Some(usual), Some(since)) => is_near(usual, since),
            // The first one begins the stream.
            (None, None) => true,
            _ => false,
        }
    }

    pub(crate) fn encoder_answers_key_frame_requests(&self) -> bool {
        self.consecutive_response_count >= Self::MIN_CONSECUTIVE_RESPONSES
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
    use std::collections::HashSet;

    const MS: Duration = Duration::from_millis(1);

    /// An encoder with a key frame every `key_frame_interval` ms (0: none by itself), which answers in `answer` ms or not at all,
    /// and is asked at these times, in ms; a request is repeated each second. Whether it ever seemed to answer.
    fn is_detected_as_answering(interval: u32, answer: Option<u32>, asked: impl Fn(u32) -> bool) -> bool {
        let start = Instant::now();
        let mut requests = KeyFrameResponseDetector::default();
        let (mut next, mut wanted, mut due, mut seemed) = (0, None::<u32>, None, false);
        for at in 0..600_000 {
            if asked(at) && wanted.is_none() {
                wanted = Some(at);
            }
            if wanted.is_some_and(|since| (at - since).is_multiple_of(1_000)) {
                requests.on_key_frame_request(start + at * MS);
                due = due.or(answer.map(|answer| at + answer));
            }
            if at == next || due == Some(at) {
                requests.on_key_frame(start + at * MS);
                (wanted, due) = (None, None);
                next = if interval == 0 { u32::MAX } else { at + interval };
            }
            seemed |= requests.encoder_answers_key_frame_requests();
        }
        seemed
    }

    /// OBS at the key frame intervals that people set, with viewers who come at all times.
    #[test]
    fn periodic_key_frames_are_not_taken_as_answers() {
        for interval in [1_000, 2_000, 4_000, 10_000] {
            for period in [700, 1_700, 1_900, 2_000, 3_100, 7_300, 9_900] {
                let asked = |at: u32| at.is_multiple_of(period);
                assert!(
                    !is_detected_as_answering(interval, None, asked),
                    "{interval} ms, asked each {period} ms"
                );
            }
        }
    }

    /// Viewers who come when they like: once in so many milliseconds.
    fn random_request_times(seed: u64, period: u32) -> impl Fn(u32) -> bool {
        let mut random = StdRng::seed_from_u64(seed);
        let times: HashSet<u32> = (0..600_000 / period).map(|_| random.random_range(0..600_000)).collect();
        move |at| times.contains(&at)
    }

    #[test]
    fn an_encoder_that_answers_is_known_whatever_its_interval() {
        for interval in [0, 2_000, 4_000, 10_000] {
            for (seed, (period, answer)) in (1..).zip([(1_300, 60), (3_700, 150), (5_300, 250)]) {
                assert!(
                    is_detected_as_answering(interval, Some(answer), random_request_times(seed, period)),
                    "{interval} ms, asked once in {period} ms, seed {seed}"
                );
            }
        }
    }

    #[test]
    fn regular_key_frames_are_no_answers_to_requests_at_random() {
        for interval in [1_000, 2_000, 4_000] {
            for seed in 1..=5 {
                for period in [500, 2_000, 6_000] {
                    assert!(
                        !is_detected_as_answering(interval, None, random_request_times(seed, period)),
                        "{interval} ms, asked once in {period} ms, seed {seed}"
                    );
                }
            }
        }
    }

    #[test]
    fn missing_answer_resets_response_detection() {
        let start = Instant::now();
        let mut requests = KeyFrameResponseDetector::default();
        let mut at = 0;
        requests.on_key_frame(start);
        for step in [1_500, 2_500, 1_900, 3_300] {
            at += step;
            requests.on_key_frame_request(start + at * MS);
            requests.on_key_frame(start + (at + 80) * MS);
        }
        assert!(requests.encoder_answers_key_frame_requests());
        requests.on_key_frame_request(start + (at + 5_000) * MS);
        requests.on_key_frame_request(start + (at + 6_000) * MS);
        assert!(!requests.encoder_answers_key_frame_requests());
    }

    #[test]
    fn key_frames_of_layers_are_one_answer() {
        let start = Instant::now();
        let mut requests = KeyFrameResponseDetector::default();
        requests.on_key_frame(start);
        requests.on_key_frame_request(start + 2_500 * MS);
        for layer in 0..3 {
            requests.on_key_frame(start + (2_580 + 10 * layer) * MS);
        }
        assert!(!requests.encoder_answers_key_frame_requests());
    }
}
