//! What a publisher negotiated and does not send: noticed once a second, for the warnings of a stream.

use std::time::{Duration, Instant};

use crate::hub::stream::StreamState;
use crate::hub::track::Missing;
use crate::media::Kind;

/// Arrivals of one publisher's negotiated tracks.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// When its transport came up.
    connected: Option<Instant>,
    tracks: Vec<TrackArrivals>,
    takes_requests: bool,
    /// The first key frame request that no key frame came after.
    requested: Option<Instant>,
}

#[derive(Debug)]
struct TrackArrivals {
    kind: Kind,
    first: Option<Instant>,
    key_frame: Option<Instant>,
}

/// A track that was negotiated begins within this time.
const FIRST_PACKET_TIMEOUT: Duration = Duration::from_secs(10);
/// Video of an encoder that answers no requests has a key frame within this time; longer intervals than ten seconds are
/// nowhere a default.
const KEY_FRAME_TIMEOUT: Duration = Duration::from_secs(20);
/// A request is answered within this time.
const KEY_FRAME_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

impl Arrivals {
    /// `takes_requests`: the publisher negotiated key frame requests.
    pub(crate) fn new(kinds: impl Iterator<Item = Kind>, takes_requests: bool) -> Self {
        let track = |kind| TrackArrivals {
            kind,
            first: None,
            key_frame: None,
        };
        Self {
            connected: None,
            tracks: kinds.map(track).collect(),
            takes_requests,
            requested: None,
        }
    }

    pub(crate) fn on_connected(&mut self, now: Instant) {
        self.connected = Some(now);
    }

    pub(crate) fn on_packet(&mut self, now: Instant, kind: Kind, key_frame: bool) {
        let Some(track) = self.tracks.iter_mut().find(|track| track.kind == kind) else {
            return;
        };
        track.first.get_or_insert(now);
        if key_frame {
            track.key_frame = Some(now);
            self.requested = None;
        }
    }

    pub(crate) fn on_request(&mut self, now: Instant) {
        self.requested.get_or_insert(now);
    }

    /// Notes in the stream what is missing.
    pub(crate) fn record(&self, now: Instant, state: &mut StreamState) {
        for track in &self.tracks {
            state.track(track.kind).set_missing(self.missing(now, track));
        }
    }

    fn missing(&self, now: Instant, track: &TrackArrivals) -> Option<Missing> {
        let is_over = |since: Instant, time| now.saturating_duration_since(since) > time;
        let Some(first) = track.first else {
            let is_late = self
                .connected
                .is_some_and(|connected| is_over(connected, FIRST_PACKET_TIMEOUT));
            return is_late.then_some(Missing::Packets);
        };
        if track.kind == Kind::Audio {
            return None;
        }
        let is_late = match track.key_frame {
            None => is_over(first, FIRST_PACKET_TIMEOUT),
            // A browser sends none until it is asked.
            Some(last) => {
                let is_owed =
                    !self.takes_requests || self.requested.is_some_and(|at| is_over(at, KEY_FRAME_REQUEST_TIMEOUT));
                is_owed && is_over(last, KEY_FRAME_TIMEOUT)
            }
        };
        is_late.then_some(Missing::KeyFrame)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn missing(arrivals: &Arrivals, now: Instant) -> [Option<Missing>; 2] {
        [0, 1].map(|track| arrivals.missing(now, &arrivals.tracks[track]))
    }

    #[test]
    fn a_track_that_never_begins_is_missing_and_one_that_was_not_negotiated_is_not() {
        let t = Instant::now();
        let mut arrivals = Arrivals::new([Kind::Video, Kind::Audio].into_iter(), true);
        assert_eq!(missing(&arrivals, t + 60 * S), [None; 2], "it is not connected");
        arrivals.on_connected(t);
        assert_eq!(missing(&arrivals, t + 9 * S), [None; 2]);
        arrivals.on_packet(t + 9 * S, Kind::Audio, false);
        assert_eq!(missing(&arrivals, t + 11 * S), [Some(Missing::Packets), None]);
        arrivals.on_packet(t + 12 * S, Kind::Video, false);
        assert_eq!(missing(&arrivals, t + 13 * S), [None; 2]);
        assert_eq!(missing(&arrivals, t + 23 * S), [Some(Missing::KeyFrame), None]);
        arrivals.on_packet(t + 24 * S, Kind::Video, true);
        assert_eq!(missing(&arrivals, t + 24 * S), [None; 2]);
        let alone = Arrivals::new([Kind::Video].into_iter(), true);
        assert_eq!(alone.tracks.len(), 1);
    }

    #[test]
    fn key_frames_are_owed_to_a_request_or_by_the_clock() {
        let t = Instant::now();
        for takes_requests in [true, false] {
            let mut arrivals = Arrivals::new([Kind::Video, Kind::Audio].into_iter(), takes_requests);
            arrivals.on_connected(t);
            arrivals.on_packet(t, Kind::Video, true);
            arrivals.on_packet(t, Kind::Audio, false);
            let owed = (!takes_requests).then_some(Missing::KeyFrame);
            assert_eq!(missing(&arrivals, t + 60 * S), [owed, None], "{takes_requests}");
            arrivals.on_request(t + 60 * S);
            assert_eq!(missing(&arrivals, t + 64 * S), [owed, None], "{takes_requests}");
            assert_eq!(missing(&arrivals, t + 66 * S), [Some(Missing::KeyFrame), None]);
            arrivals.on_packet(t + 67 * S, Kind::Video, true);
            assert_eq!(missing(&arrivals, t + 80 * S), [None; 2]);
        }
    }
}
