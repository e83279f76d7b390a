//! What a publisher negotiated and does not send: noticed once a second, for the warnings of a stream.

use std::time::{Duration, Instant};

use crate::hub::stream::StreamState;
use crate::hub::track::MissingPacketsOrKeyFrame;
use crate::media::MediaKind;

/// Arrivals of one publisher's negotiated tracks.
#[derive(Debug)]
pub(super) struct MissingMediaDetector {
    /// When its transport came up.
    connected_at: Option<Instant>,
    tracks: Vec<TrackPacketAndKeyFrameTimes>,
    accepts_key_frame_requests: bool,
    /// The first key frame request that no key frame came after.
    unanswered_request_at: Option<Instant>,
}

#[derive(Debug)]
struct TrackPacketAndKeyFrameTimes {
    kind: MediaKind,
    first_packet_at: Option<Instant>,
    last_key_frame_at: Option<Instant>,
}

/// A track that was negotiated begins within this time.
const FIRST_PACKET_OR_KEY_FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// Video of an encoder that answers no requests has a key frame within this time; longer intervals than ten seconds are
/// nowhere a default.
const MIN_TIME_SINCE_KEY_FRAME_TO_WARN: Duration = Duration::from_secs(20);
/// A request is answered within this time.
const KEY_FRAME_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

impl MissingMediaDetector {
    /// `accepts_key_frame_requests`: the publisher negotiated key frame requests.
    pub(crate) fn new(kinds: impl Iterator<Item = MediaKind>, accepts_key_frame_requests: bool) -> Self {
        let track = |kind| TrackPacketAndKeyFrameTimes {
            kind,
            first_packet_at: None,
            last_key_frame_at: None,
        };
        Self {
            connected_at: None,
            tracks: kinds.map(track).collect(),
            accepts_key_frame_requests,
            unanswered_request_at: None,
        }
    }

    pub(crate) fn on_connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    pub(crate) fn on_packet(&mut self, now: Instant, kind: MediaKind, key_frame: bool) {
        let Some(track) = self.tracks.iter_mut().find(|track| track.kind == kind) else {
            return;
        };
        track.first_packet_at.get_or_insert(now);
        if key_frame {
            track.last_key_frame_at = Some(now);
            self.unanswered_request_at = None;
        }
    }

    pub(crate) fn on_key_frame_request(&mut self, now: Instant) {
        self.unanswered_request_at.get_or_insert(now);
    }

    /// Notes in the stream what is missing.
    pub(crate) fn record_missing_media_in_stream(&self, now: Instant, state: &mut StreamState) {
        for track in &self.tracks {
            state
                .track(track.kind)
                .set_missing_media(self.missing_media_of_track(now, track));
        }
    }

    fn missing_media_of_track(
        &self,
        now: Instant,
        track: &TrackPacketAndKeyFrameTimes,
    ) -> Option<MissingPacketsOrKeyFrame> {
        let is_over = |since: Instant, time| now.saturating_duration_since(since) > time;
        let Some(first) = track.first_packet_at else {
            let is_late = self
                .connected_at
                .is_some_and(|connected| is_over(connected, FIRST_PACKET_OR_KEY_FRAME_TIMEOUT));
            return is_late.then_some(MissingPacketsOrKeyFrame::Packets);
        };
        if track.kind == MediaKind::Audio {
            return None;
        }
        let is_late = match track.last_key_frame_at {
            None => is_over(first, FIRST_PACKET_OR_KEY_FRAME_TIMEOUT),
            // A browser sends none until it is asked.
            Some(last) => {
                let is_owed = !self.accepts_key_frame_requests
                    || self
                        .unanswered_request_at
                        .is_some_and(|at| is_over(at, KEY_FRAME_REQUEST_TIMEOUT));
                is_owed && is_over(last, MIN_TIME_SINCE_KEY_FRAME_TO_WARN)
            }
        };
        is_late.then_some(MissingPacketsOrKeyFrame::KeyFrame)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn missing_by_track(arrivals: &MissingMediaDetector, now: Instant) -> [Option<MissingPacketsOrKeyFrame>; 2] {
        [0, 1].map(|track| arrivals.missing_media_of_track(now, &arrivals.tracks[track]))
    }

    #[test]
    fn a_track_that_never_begins_is_missing_and_one_that_was_not_negotiated_is_not() {
        let t = Instant::now();
        let mut arrivals = MissingMediaDetector::new([MediaKind::Video, MediaKind::Audio].into_iter(), true);
        assert_eq!(
            missing_by_track(&arrivals, t + 60 * SECOND),
            [None; 2],
            "the publisher is not connected"
        );
        arrivals.on_connected(t);
        assert_eq!(missing_by_track(&arrivals, t + 9 * SECOND), [None; 2]);
        arrivals.on_packet(t + 9 * SECOND, MediaKind::Audio, false);
        assert_eq!(
            missing_by_track(&arrivals, t + 11 * SECOND),
            [Some(MissingPacketsOrKeyFrame::Packets), None]
        );
        arrivals.on_packet(t + 12 * SECOND, MediaKind::Video, false);
        assert_eq!(missing_by_track(&arrivals, t + 13 * SECOND), [None; 2]);
        assert_eq!(
            missing_by_track(&arrivals, t + 23 * SECOND),
            [Some(MissingPacketsOrKeyFrame::KeyFrame), None]
        );
        arrivals.on_packet(t + 24 * SECOND, MediaKind::Video, true);
        assert_eq!(missing_by_track(&arrivals, t + 24 * SECOND), [None; 2]);
        let alone = MissingMediaDetector::new([MediaKind::Video].into_iter(), true);
        assert_eq!(alone.tracks.len(), 1);
    }

    #[test]
    fn key_frames_are_owed_to_a_request_or_by_the_clock() {
        let t = Instant::now();
        for takes_requests in [true, false] {
            let mut arrivals =
                MissingMediaDetector::new([MediaKind::Video, MediaKind::Audio].into_iter(), takes_requests);
            arrivals.on_connected(t);
            arrivals.on_packet(t, MediaKind::Video, true);
            arrivals.on_packet(t, MediaKind::Audio, false);
            let owed = (!takes_requests).then_some(MissingPacketsOrKeyFrame::KeyFrame);
            assert_eq!(
                missing_by_track(&arrivals, t + 60 * SECOND),
                [owed, None],
                "{takes_requests}"
            );
            arrivals.on_key_frame_request(t + 60 * SECOND);
            assert_eq!(
                missing_by_track(&arrivals, t + 64 * SECOND),
                [owed, None],
                "{takes_requests}"
            );
            assert_eq!(
                missing_by_track(&arrivals, t + 66 * SECOND),
                [Some(MissingPacketsOrKeyFrame::KeyFrame), None]
            );
            arrivals.on_packet(t + 67 * SECOND, MediaKind::Video, true);
            assert_eq!(missing_by_track(&arrivals, t + 80 * SECOND), [None; 2]);
        }
    }
}
