//! A track of a viewer and the stream that it reads: the viewer's own stream, a layer of it, or a transcode of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::track::OutTrack;
use crate::hub::stream::{Stream, StreamId, StreamState};
use crate::media::packet::TrackSeq;
use crate::media::transcode::TrackPlan;
use crate::media::{Codec, Kind};

/// A track and the stream that it reads.
pub(super) struct Played {
    pub(super) out: OutTrack,
    pub(super) from: Arc<Stream>,
    next: Option<PendingSwitch>,
}

/// The stream that a track switches to once that has a key frame or, for audio, a packet.
struct PendingSwitch {
    stream: Arc<Stream>,
    /// Set for a switch between layers, during which the current layer continues: the switch waits for a key frame
    /// newer than this one, at most until this instant.
    after: Option<(Option<TrackSeq>, Instant)>,
}

/// Maximum wait for a new key frame of the next layer, longer than the usual key frame interval. After that the cached
/// key frame is used.
const LAYER_SWITCH_TIMEOUT: Duration = Duration::from_secs(5);

impl Played {
    pub(super) fn new(out: OutTrack, home: &Arc<Stream>) -> Self {
        Self {
            out,
            from: home.clone(),
            next: None,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.out.kind()
    }

    /// Returns the stream that the track reads, or will read after a pending switch.
    pub(super) fn target(&self) -> &Arc<Stream> {
        self.next.as_ref().map_or(&self.from, |next| &next.stream)
    }

    /// Whether a switch to this stream is pending.
    pub(super) fn awaits(&self, stream: StreamId) -> bool {
        self.next.as_ref().is_some_and(|next| next.stream.id == stream)
    }

    /// Returns when a pending switch between layers stops waiting and uses the cached key frame.
    pub(super) fn switch_due(&self) -> Option<Instant> {
        self.next.as_ref()?.after.map(|(_, until)| until)
    }

    /// Returns the streams that the track reads or waits for.
    pub(super) fn streams(&self) -> impl Iterator<Item = &Arc<Stream>> {
        std::iter::once(&self.from).chain(self.next.as_ref().map(|next| &next.stream))
    }

    /// Returns how the track reaches the viewer; `None` as long as the stream has no such track.
    pub(super) fn plan(&self, home: &StreamState, can_transcode: impl Fn(Codec) -> bool) -> Option<TrackPlan> {
        let track = home.available_track(self.kind(), can_transcode)?;
        Some(track.plan(|format| self.out.can_take(format.codec())))
    }

    /// Begins a switch to another stream. `is_playing` is false before playback, when there is nothing to continue.
    pub(super) fn begin_switch(&mut self, now: Instant, to: Arc<Stream>, is_playing: bool) {
        let is_between_layers = to.key.is_layer() || self.from.key.is_layer();
        let is_smooth = is_playing && self.kind() == Kind::Video && is_between_layers;
        let after = is_smooth.then(|| {
            let cached = to.with(|state| state.video.ring().key_frame());
            (cached, now + LAYER_SWITCH_TIMEOUT)
        });
        self.next = Some(PendingSwitch { stream: to, after });
    }

    /// Cancels a pending switch. Returns its stream.
    pub(super) fn cancel_switch(&mut self) -> Option<Arc<Stream>> {
        self.next.take().map(|next| next.stream)
    }

    /// Completes a pending switch whose stream has media to start with. Returns the stream that the track has left.
    pub(super) fn complete_switch(&mut self, now: Instant) -> Option<Arc<Stream>> {
        let PendingSwitch { stream: next, after } = self.next.as_ref()?;
        let (next, after) = (next.clone(), *after);
        let kind = self.kind();
        // Read before the next stream is locked: two viewers that switch in opposite directions would deadlock.
        let last = self
            .out
            .last_sent()
            .and_then(|seq| self.from.with(|state| state.track(kind).ring().get(seq).cloned()));
        let out = &mut self.out;
        let has_begun = next.with(|state| {
            let has_source = state.source().is_some();
            let ring = state.track(kind).ring();
            let can_begin = match kind {
                Kind::Video => {
                    let is_new = after.is_none_or(|(cached, until)| ring.key_frame() != cached || now >= until);
                    ring.key_frame().is_some() && is_new
                }
                Kind::Audio => ring.newest().is_some(),
            };
            if has_source && can_begin {
                out.leave(last.as_ref().map(|entry| &entry.packet));
                match kind {
                    Kind::Video => {
                        out.start(now, ring);
                    }
                    Kind::Audio => out.start_live(ring),
                }
            }
            has_source && can_begin
        });
        if has_begun {
            self.next = None;
            return Some(std::mem::replace(&mut self.from, next));
        }
        if let Some(next) = &mut self.next
            && after.is_some_and(|(_, until)| until <= now)
        {
            // The wait is over and there is no cached key frame: switch at the next one.
            next.after = None;
        }
        None
    }
}
