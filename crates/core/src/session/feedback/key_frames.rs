//! Merges the key frame requests of all viewers into few requests to the source (RFC 4585 §6.3.1, RFC 5104 §4.3.1): an
//! encoder that is asked too often produces frames of poor quality.

use std::time::{Duration, Instant};

/// Minimum time between two requests.
pub(crate) const MIN_KEY_FRAME_REQUEST_INTERVAL: Duration = Duration::from_secs(1);

/// Minimum time between a request and another one that is sent at once.
const MIN_URGENT_KEY_FRAME_REQUEST_INTERVAL: Duration = Duration::from_millis(250);

/// Maximum number of requests until a key frame arrives. OBS never answers any. A new request resets the count.
const MAX_UNANSWERED_KEY_FRAME_REQUESTS: u8 = 10;

/// Pending key frame request to one source.
#[derive(Default)]
pub struct KeyFrameRequestScheduler {
    /// Requests that may still be sent; 0 while no key frame is needed.
    requests_left: u8,
    last_request_at: Option<Instant>,
    /// Nothing is sent before.
    earliest_request_at: Option<Instant>,
}

impl KeyFrameRequestScheduler {
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests a key frame: a viewer asked for one, a lost packet was given up, or a layer is to be switched.
    pub fn request_key_frame(&mut self) {
        self.requests_left = MAX_UNANSWERED_KEY_FRAME_REQUESTS;
        self.earliest_request_at = None;
    }

    /// As [`Self::request_key_frame`], to be sent at this time or later if none is pending: the key frame may come unasked until
    /// then.
    pub fn request_key_frame_not_before(&mut self, earliest: Instant) {
        if self.requests_left == 0 {
            self.earliest_request_at = Some(earliest);
        }
        self.requests_left = MAX_UNANSWERED_KEY_FRAME_REQUESTS;
    }

    /// As [`Self::request_key_frame`], without waiting for the second after the last request: what was requested then was of another
    /// SSRC. Not more often than every 250 ms.
    pub fn request_key_frame_at_once(&mut self, now: Instant) {
        self.request_key_frame();
        self.last_request_at = self
            .last_request_at
            .filter(|last| now.saturating_duration_since(*last) < MIN_URGENT_KEY_FRAME_REQUEST_INTERVAL);
    }

    /// A key frame arrived: the request is fulfilled.
    pub(crate) fn on_key_frame(&mut self) {
        self.requests_left = 0;
    }

    /// Returns true if a request must be sent now. It is repeated every second until a key frame arrives, at most ten
    /// times.
    pub fn poll(&mut self, now: Instant) -> bool {
        if self.poll_timeout(now).is_none_or(|due| now < due) {
            return false;
        }
        self.requests_left -= 1;
        self.last_request_at = Some(now);
        true
    }

    /// When [`Self::poll`] must be called, `now` if at once; `None` while no key frame is needed.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let after_last = self.last_request_at.map(|last| last + MIN_KEY_FRAME_REQUEST_INTERVAL);
        (self.requests_left > 0).then(|| {
            now.max(after_last.unwrap_or(now))
                .max(self.earliest_request_at.unwrap_or(now))
        })
    }

    /// When a request is due, or else when the last one was sent.
    pub fn newest_request_at(&self, now: Instant) -> Option<Instant> {
        self.poll_timeout(now).or(self.last_request_at)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn many_requests_become_one_per_second() {
        let start = Instant::now();
        let mut requests = KeyFrameRequestScheduler::new();
        let mut sent = Vec::new();
        for at in 0..3500 {
            requests.request_key_frame();
            if requests.poll(start + at * MS) {
                sent.push(at);
            }
        }
        assert_eq!(sent, [0, 1000, 2000, 3000]);
    }

    #[test]
    fn a_key_frame_ends_the_requests() {
        let start = Instant::now();
        let mut requests = KeyFrameRequestScheduler::new();
        assert_eq!(requests.poll_timeout(start), None);
        requests.request_key_frame();
        assert_eq!(requests.poll_timeout(start), Some(start));
        assert!(requests.poll(start));
        requests.on_key_frame();
        assert!(!requests.poll(start + 5000 * MS));
        assert_eq!(requests.poll_timeout(start), None);
    }

    #[test]
    fn an_unanswered_request_is_repeated_ten_times_and_a_new_one_starts_over() {
        let start = Instant::now();
        let mut requests = KeyFrameRequestScheduler::new();
        requests.request_key_frame();
        let sent = (0..60)
            .filter(|second| requests.poll(start + 1000 * *second * MS))
            .count();
        assert_eq!(sent, 10);
        requests.request_key_frame();
        assert!(requests.poll(start + 60_000 * MS));
    }

    #[test]
    fn a_request_that_may_wait_is_sent_unless_a_key_frame_comes_first() {
        let start = Instant::now();
        let mut requests = KeyFrameRequestScheduler::new();
        requests.request_key_frame_not_before(start + 500 * MS);
        requests.request_key_frame_not_before(start + 900 * MS);
        assert_eq!(requests.newest_request_at(start), Some(start + 500 * MS));
        assert!(!requests.poll(start + 499 * MS));
        assert!(requests.poll(start + 500 * MS));
        requests.on_key_frame();
        assert_eq!(requests.newest_request_at(start + 600 * MS), Some(start + 500 * MS));
        requests.request_key_frame_not_before(start + 2_000 * MS);
        requests.on_key_frame();
        assert!(!requests.poll(start + 5_000 * MS));
        requests.request_key_frame_not_before(start + 9_000 * MS);
        requests.request_key_frame();
        assert!(requests.poll(start + 5_000 * MS), "a viewer does not wait");
    }

    #[test]
    fn a_request_waits_a_second_after_the_last_one() {
        let start = Instant::now();
        let mut requests = KeyFrameRequestScheduler::new();
        requests.request_key_frame();
        assert!(requests.poll(start));
        requests.on_key_frame();
        requests.request_key_frame();
        assert!(!requests.poll(start + 999 * MS));
        assert_eq!(requests.poll_timeout(start + 10 * MS), Some(start + 1000 * MS));
        assert!(requests.poll(start + 1000 * MS));
    }
}
