//! What an error of retina means for the session. Its errors are opaque, so their first line distinguishes them;
//! the tests with scripted cameras (`tests/sources/rtsp`) fail if a new version words them differently.
//!
//! A session of retina can be polled again after an error: the packet that caused it is consumed. Only a broken
//! connection, and data that is no RTSP message, cannot be passed over.

use std::time::{Duration, Instant};

use super::camera::{CameraError, RtspStep, first_line_of_error};
use super::incompatibility::CameraIncompatibility;

/// What to do about an error while packets are received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RetinaErrorVerdict {
    /// Count it and go on.
    Ignore,
    /// All packets of a track may be refused from now on.
    PacketRefused(CameraIncompatibility),
    /// The session is over.
    Fatal(CameraError),
}

pub(super) fn classify_retina_error(line: &str) -> RetinaErrorVerdict {
    let failed = || {
        RetinaErrorVerdict::Fatal(CameraError::StepFailed {
            step: RtspStep::Receive,
            text: line.to_owned(),
        })
    };
    if line.contains("respond to keepalive") {
        return RetinaErrorVerdict::Fatal(CameraError::Incompatible(CameraIncompatibility::KeepaliveUnanswered));
    }
    if line.starts_with("RTSP framing error: Invalid") {
        return RetinaErrorVerdict::Fatal(CameraError::Incompatible(CameraIncompatibility::GarbageBetweenMessages));
    }
    let is_broken = [
        "Error reading from RTSP peer",
        "Error writing to RTSP peer",
        "RTSP framing error: Incomplete",
    ];
    if is_broken.iter().any(|start| line.starts_with(start)) {
        return failed();
    }
    // Only with `max_timestamp_jump`, which asks for this.
    if line.starts_with("Timestamp jumped") {
        return failed();
    }
    if line.starts_with("wrong ssrc") {
        return RetinaErrorVerdict::PacketRefused(CameraIncompatibility::SsrcChanges);
    }
    if line.starts_with("Out-of-order packet or large loss") {
        return RetinaErrorVerdict::PacketRefused(CameraIncompatibility::SequenceNumberJumpsBack);
    }
    RetinaErrorVerdict::Ignore
}

/// Parts of retina's errors about the `Transport` and the session in an answer to SETUP.
const SETUP_TRANSPORT_ERROR_TEXTS: [&str; 5] = [
    "Transport header",
    "channel number",
    "adjacent channels",
    "channel id",
    "Missing Session header",
];

/// Returns what an error before the first packet means.
pub(super) fn incompatibility_from_setup_error(step: RtspStep, error: &retina::Error) -> Option<CameraIncompatibility> {
    let line = first_line_of_error(error);
    match error.status_code() {
        Some(200..=299)
            if step == RtspStep::Setup && SETUP_TRANSPORT_ERROR_TEXTS.iter().any(|text| line.contains(text)) =>
        {
            Some(CameraIncompatibility::UnclearChannels)
        }
        // The camera agreed, but retina did not understand how, or does not wait for the final answer.
        Some(100..=299) => Some(CameraIncompatibility::NonstandardResponse),
        // The credentials were accepted by DESCRIBE.
        Some(401) if matches!(step, RtspStep::Setup | RtspStep::Play) => {
            Some(CameraIncompatibility::UnusualAuthentication)
        }
        None if line.contains("Expected response to") && line.ends_with("request") => {
            Some(CameraIncompatibility::RequestBeforeResponse)
        }
        None if line.starts_with("RTSP framing error") => Some(CameraIncompatibility::NonstandardResponse),
        _ => None,
    }
}

/// Packets of a track that retina refuses, since the last that it accepted, or for which it was quiet for a while.
#[derive(Debug, Default)]
pub(super) struct PacketRejections {
    count: u32,
    first_rejected_at: Option<Instant>,
    last_rejected_at: Option<Instant>,
}

/// A few packets of an earlier session are common after a reconnection. A track is given up after this many and this
/// time.
const MAX_PACKET_REJECTIONS: u32 = 5;
const MIN_PACKET_REJECTION_DURATION: Duration = Duration::from_millis(500);

/// Rejections that are further apart than this have nothing to do with each other.
const MAX_PACKET_REJECTION_GAP: Duration = Duration::from_secs(5);

impl PacketRejections {
    /// Counts a refused packet. Returns whether the track is given up.
    pub(super) fn record_rejection(&mut self, now: Instant) -> bool {
        if self
            .last_rejected_at
            .is_some_and(|last| now.duration_since(last) >= MAX_PACKET_REJECTION_GAP)
        {
            *self = Self::default();
        }
        self.last_rejected_at = Some(now);
        self.count += 1;
        let since = *self.first_rejected_at.get_or_insert(now);
        self.count >= MAX_PACKET_REJECTIONS && now.duration_since(since) >= MIN_PACKET_REJECTION_DURATION
    }

    pub(super) fn reset(&mut self) {
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
                RetinaErrorVerdict::Ignore,
            ),
            (
                "RTSP framing error: Unexpected RTSP response Response {",
                RetinaErrorVerdict::Ignore,
            ),
            (
                "wrong ssrc after 3 RTP pkts",
                RetinaErrorVerdict::PacketRefused(CameraIncompatibility::SsrcChanges),
            ),
            (
                "Out-of-order packet or large loss; expecting",
                RetinaErrorVerdict::PacketRefused(CameraIncompatibility::SequenceNumberJumpsBack),
            ),
        ] {
            assert_eq!(classify_retina_error(line), wanted, "{line}");
        }
        let garbage = "RTSP framing error: Invalid RTSP message: byte 7: request > request-line";
        assert_eq!(
            classify_retina_error(garbage),
            RetinaErrorVerdict::Fatal(CameraError::Incompatible(CameraIncompatibility::GarbageBetweenMessages))
        );
        for line in [
            "Error reading from RTSP peer: Connection reset by peer (os error 104)",
            "RTSP framing error: Incomplete RTSP message",
        ] {
            assert!(
                matches!(
                    classify_retina_error(line),
                    RetinaErrorVerdict::Fatal(CameraError::StepFailed { .. })
                ),
                "{line}"
            );
        }
        let keepalive = "Error reading from RTSP peer: Server failed to respond to keepalive 5 within 30s";
        assert_eq!(
            classify_retina_error(keepalive),
            RetinaErrorVerdict::Fatal(CameraError::Incompatible(CameraIncompatibility::KeepaliveUnanswered))
        );
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
    fn a_track_is_given_up_after_many_refusals_without_a_packet() {
        let (mut rejections, start) = (PacketRejections::default(), Instant::now());
        let mut at = |ms| rejections.record_rejection(start + Duration::from_millis(ms));
        assert!(!(0..100).any(&mut at), "a burst of an earlier session");
        assert!(at(500));
        rejections.reset();
        assert!(!rejections.record_rejection(start + Duration::from_secs(9)));
        let rare = (10..20).map(|n| start + n * MAX_PACKET_REJECTION_GAP);
        assert!(!rare.into_iter().any(|at| rejections.record_rejection(at)), "far apart");
    }
}
