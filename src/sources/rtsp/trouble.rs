//! What an error of retina means for the session. Its errors are opaque, so they are told apart by their first line;
//! the tests with scripted cameras (`tests/sources/rtsp`) fail if a new version words them differently.
//!
//! A session of retina can be polled again after an error: the packet that caused it is consumed. Only a broken
//! connection, and data that is no RTSP message, cannot be passed over.

use std::time::{Duration, Instant};

use super::camera::{CameraError, Step, first_line};
use super::refusal::Refusal;

/// What to do about an error while packets are received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Count it and go on.
    PassOver,
    /// All packets of a track may be refused from now on.
    Refused(Refusal),
    /// The session is over.
    Fatal(CameraError),
}

pub(super) fn judge(line: &str) -> Verdict {
    let failed = || {
        Verdict::Fatal(CameraError::Failed {
            step: Step::Receive,
            text: line.to_owned(),
        })
    };
    if line.contains("respond to keepalive") {
        return Verdict::Fatal(CameraError::Refused(Refusal::Keepalive));
    }
    let is_broken = ["Error reading from RTSP peer", "Error writing to RTSP peer"];
    let is_garbage = ["RTSP framing error: Invalid", "RTSP framing error: Incomplete"];
    if is_broken.iter().chain(&is_garbage).any(|start| line.starts_with(start)) {
        return failed();
    }
    // Only with `max_timestamp_jump`, which asks for this.
    if line.starts_with("Timestamp jumped") {
        return failed();
    }
    if line.starts_with("wrong ssrc") {
        return Verdict::Refused(Refusal::Ssrc);
    }
    if line.starts_with("Out-of-order packet or large loss") {
        return Verdict::Refused(Refusal::Sequence);
    }
    Verdict::PassOver
}

/// Returns what an error before the first packet means.
pub(super) fn refused_at(step: Step, error: &retina::Error) -> Option<Refusal> {
    let line = first_line(error);
    match error.status_code() {
        // The camera agreed, but retina did not understand how.
        Some(200..=299) => Some(Refusal::Answer),
        // The credentials were accepted by DESCRIBE.
        Some(401) if matches!(step, Step::Setup | Step::Play) => Some(Refusal::Authentication),
        None if line.contains("Expected response to") && line.ends_with("request") => Some(Refusal::ServerRequest),
        None if line.starts_with("RTSP framing error") => Some(Refusal::Answer),
        _ => None,
    }
}

/// Packets of a track that retina refuses, since the last that it accepted, or for which it was quiet for a while.
#[derive(Debug, Default)]
pub(super) struct Rejections {
    count: u32,
    since: Option<Instant>,
    last: Option<Instant>,
}

/// A few packets of an earlier session are common after a reconnection. A track is given up after this many and this
/// time.
const MAX_REJECTIONS: u32 = 5;
const REJECTION_TIME: Duration = Duration::from_millis(500);

/// Rejections that are further apart than this have nothing to do with each other.
const REJECTION_MEMORY: Duration = Duration::from_secs(5);

impl Rejections {
    /// Counts a refused packet. Returns whether the track is given up.
    pub(super) fn add(&mut self, now: Instant) -> bool {
        if self
            .last
            .is_some_and(|last| now.duration_since(last) >= REJECTION_MEMORY)
        {
            *self = Self::default();
        }
        self.last = Some(now);
        self.count += 1;
        let since = *self.since.get_or_insert(now);
        self.count >= MAX_REJECTIONS && now.duration_since(since) >= REJECTION_TIME
    }

    pub(super) fn accepted(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_broken_connection_is_fatal() {
        for (line, wanted) in [
            (
                "corrupt RTP header while expecting seq=None: \"too short\"",
                Verdict::PassOver,
            ),
            (
                "RTSP framing error: Unexpected RTSP response Response {",
                Verdict::PassOver,
            ),
            ("wrong ssrc after 3 RTP pkts", Verdict::Refused(Refusal::Ssrc)),
            (
                "Out-of-order packet or large loss; expecting",
                Verdict::Refused(Refusal::Sequence),
            ),
        ] {
            assert_eq!(judge(line), wanted, "{line}");
        }
        for line in [
            "Error reading from RTSP peer: Connection reset by peer (os error 104)",
            "RTSP framing error: Invalid RTSP message: byte 7: request > request-line",
        ] {
            assert!(
                matches!(judge(line), Verdict::Fatal(CameraError::Failed { .. })),
                "{line}"
            );
        }
        let keepalive = "Error reading from RTSP peer: Server failed to respond to keepalive 5 within 30s";
        assert_eq!(
            judge(keepalive),
            Verdict::Fatal(CameraError::Refused(Refusal::Keepalive))
        );
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
    fn a_track_is_given_up_after_many_refusals_without_a_packet() {
        let (mut rejections, start) = (Rejections::default(), Instant::now());
        let mut at = |ms| rejections.add(start + Duration::from_millis(ms));
        assert!(!(0..100).any(&mut at), "a burst of an earlier session");
        assert!(at(500));
        rejections.accepted();
        assert!(!rejections.add(start + Duration::from_secs(9)));
        let rare = (10..20).map(|n| start + n * REJECTION_MEMORY);
        assert!(!rare.into_iter().any(|at| rejections.add(at)), "far apart");
    }
}
