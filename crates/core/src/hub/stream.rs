//! One stream: at most one source, one audio and one video track, and the shards that have viewers of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::changes::{Changes, Topic};
pub use super::id::{SessionId, ShardIndex, StreamId};
use super::lock::{Rank, RankedMutex};
use super::name::StreamKey;
use super::tap_queue::{TapQueue, Taps};
use super::track::Track;
use super::traffic::Traffic;
use crate::media::transcode::SourceTrack;
use crate::media::{Codec, Format, Kind, Rid};
use crate::sdp::plan::{AvailableTrack, AvailableTracks, SourceFormats};

/// The session that feeds a stream, and its shard. A source that is not a peer has [`ShardIndex::NONE`]: it detects a
/// takeover by itself and polls for key frame requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRef {
    pub session: SessionId,
    pub shard: ShardIndex,
    /// It has an encoder that can be asked for a key frame: a publisher that negotiated PLI, or a pipeline whose encoder
    /// takes GstForceKeyUnit. Cameras and HLS origins send what is encoded already.
    pub takes_key_frame_requests: bool,
}

/// One simulcast layer (RFC 8853). Its packets are in a stream of its own, derived from the main stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub rid: Rid,
    /// Width and height in pixels.
    pub resolution: Option<(u16, u16)>,
    /// Payload bits per second.
    pub bitrate: u64,
    /// Whether the layer is being received; browsers pause the highest layers when their uplink is too slow.
    pub active: bool,
}

/// Layer requested by a viewer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LayerSelection {
    /// The best layer.
    #[default]
    Automatic,
    /// The layer with this RID, while it is active.
    Named(Rid),
    /// The best active layer within this size in pixels.
    Within { width: u16, height: u16 },
}

impl LayerSelection {
    /// Returns the layer to forward; `None` selects the main stream, which carries the best layer.
    pub fn choose(&self, layers: &[Layer]) -> Option<Rid> {
        let mut active = layers.iter().filter(|layer| layer.active);
        let chosen = match self {
            Self::Automatic => None,
            Self::Named(rid) => active.find(|layer| layer.rid == *rid),
            Self::Within { width, height } => {
                let fits = |layer: &&Layer| layer.resolution.is_some_and(|(w, h)| w <= *width && h <= *height);
                active.clone().find(fits).or_else(|| active.next_back())
            }
        };
        chosen.map(|layer| layer.rid.clone())
    }
}

/// A stream. Its state is behind one lock, which [`Stream::with`] holds for the duration of a call and for nothing else.
#[derive(Debug)]
pub struct Stream {
    pub id: StreamId,
    pub key: StreamKey,
    pub traffic: Traffic,
    state: RankedMutex<StreamState>,
    changes: Arc<Changes>,
}

/// State of a stream.
#[derive(Debug)]
pub struct StreamState {
    pub video: Track,
    pub audio: Track,
    /// Whether the source responds to key frame requests; OBS does not.
    pub answers_requests: bool,
    /// Simulcast layers, best first; empty without simulcast.
    layers: Vec<Layer>,
    /// The layers changed since the last batch.
    layers_changed: bool,
    /// Something changed of which listeners are notified; see [`Topic::Stream`].
    changed: bool,
    source: Option<SourceRef>,
    /// Set when a viewer needs a key frame; polled by sources without a shard.
    key_frame_requested: bool,
    /// Shards with viewers, and the number of viewers on each.
    subscribers: Vec<(ShardIndex, usize)>,
    taps: Taps,
}

impl Stream {
    pub(super) fn new(id: StreamId, key: StreamKey, changes: Arc<Changes>) -> Self {
        let state = StreamState {
            video: Track::new(Kind::Video),
            audio: Track::new(Kind::Audio),
            answers_requests: false,
            layers: Vec::new(),
            layers_changed: false,
            changed: false,
            source: None,
            key_frame_requested: false,
            subscribers: Vec::new(),
            taps: Taps::default(),
        };
        Self {
            id,
            key,
            traffic: Traffic::default(),
            state: RankedMutex::new(Rank::Stream, state),
            changes,
        }
    }

    /// Runs `work` on the state, under the lock, and returns its result. The result is an owned value: no reference to the
    /// state and no guard can leave, so nobody holds one stream while working on another.
    ///
    /// `work` must be brief: it must not wait, and it must not take a lock of the same or a lower [`Rank`], in particular
    /// that of another stream. Debug builds panic if it does. A panic in an earlier call may have left a partially inserted
    /// frame, which the ring tolerates.
    pub fn with<R: 'static>(&self, work: impl FnOnce(&mut StreamState) -> R) -> R {
        let mut state = self.state.lock();
        let result = work(&mut state);
        let changed = std::mem::take(&mut state.changed);
        drop(state);
        if changed {
            self.changes.notify(&Topic::Stream(self.key.name.clone()));
        }
        result
    }
}

impl StreamState {
    /// Makes this session the source; new viewers start with its first key frame. Returns the previous source, which
    /// the caller must close.
    pub fn attach(&mut self, source: SourceRef, formats: &SourceFormats) -> Option<SourceRef> {
        self.changed = true;
        self.answers_requests = false;
        self.key_frame_requested = false;
        self.layers.clear();
        self.video.begin(formats.video);
        self.audio.begin(formats.audio);
        self.source
            .replace(source)
            .filter(|previous| previous.session != source.session)
    }

    /// Detaches the source if it is this session. Returns whether it was.
    pub fn detach(&mut self, session: SessionId) -> bool {
        let is_source = self.is_source(session);
        if is_source {
            self.changed = true;
            self.source = None;
            self.layers.clear();
        }
        is_source
    }

    /// Whether this session is the source.
    pub fn is_source(&self, session: SessionId) -> bool {
        self.source.is_some_and(|source| source.session == session)
    }

    /// The current source.
    pub fn source(&self) -> Option<SourceRef> {
        self.source
    }

    /// For how long no packet has arrived; `None` if none ever has.
    pub fn silence(&self, now: Instant) -> Option<Duration> {
        let newest = [&self.video, &self.audio].map(|track| track.ring().newest());
        let arrival = newest.into_iter().flatten().map(|(_, arrival)| arrival).max()?;
        Some(now.saturating_duration_since(arrival))
    }

    /// Formats of the current source; `None` without a source.
    pub fn formats(&self) -> Option<SourceFormats> {
        self.source.map(|_| SourceFormats {
            video: self.video.format(),
            audio: self.audio.format(),
        })
    }

    /// Simulcast layers, best first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Updates the layers. A change of their set, resolutions or activity makes viewers select their layer again.
    pub fn set_layers(&mut self, layers: Vec<Layer>) {
        let choice = |layer: &Layer| (layer.rid.clone(), layer.resolution, layer.active);
        let sends = |layer: &Layer| layer.bitrate > 0;
        let is_same = self.layers.iter().map(choice).eq(layers.iter().map(choice));
        self.layers_changed |= !is_same;
        self.changed |= !is_same || !self.layers.iter().map(sends).eq(layers.iter().map(sends));
        self.layers = layers;
    }

    /// Returns whether the formats or the layers changed since the last call.
    pub(super) fn take_change(&mut self) -> bool {
        let layers = std::mem::take(&mut self.layers_changed);
        let tracks = [&mut self.video, &mut self.audio].map(Track::take_format_change);
        let changed = layers || tracks.contains(&true);
        self.changed |= changed;
        changed
    }

    /// What the source says of itself has changed, if it is still this one.
    pub fn update_source(&mut self, source: SourceRef) {
        if self.is_source(source.session) {
            self.source = Some(source);
            self.changed = true;
        }
    }

    /// A viewer wants a key frame. Returns whom to ask, `None` where there is nobody who can make one; a source that lives
    /// on no shard finds the request here.
    pub fn request_key_frame_of_source(&mut self) -> Option<SourceRef> {
        let source = self.source.filter(|source| source.takes_key_frame_requests);
        self.key_frame_requested |= source.is_some();
        source
    }

    /// Whether a key frame was requested since the last call.
    pub fn take_key_frame_request(&mut self) -> bool {
        std::mem::take(&mut self.key_frame_requested)
    }

    /// Returns the tracks that can be offered to a viewer; `None` without a source. `can_transcode` says whether a codec
    /// can be transcoded to one that browsers play.
    pub fn available_tracks(&self, can_transcode: impl Fn(Codec) -> bool) -> Option<AvailableTracks> {
        self.source?;
        let track = |kind| self.available_track(kind, &can_transcode);
        Some(AvailableTracks {
            video: track(Kind::Video),
            audio: track(Kind::Audio),
        })
    }

    /// Returns the track of a kind as it can be offered to a viewer.
    pub fn available_track(&self, kind: Kind, can_transcode: impl Fn(Codec) -> bool) -> Option<AvailableTrack> {
        let source = self.source_track(kind)?;
        Some(AvailableTrack {
            source,
            can_transcode: can_transcode(source.format.codec()),
        })
    }

    /// Returns the track of a kind as the source sends it, or as the last source did.
    pub fn source_track(&self, kind: Kind) -> Option<SourceTrack> {
        Some(SourceTrack {
            format: self.format(kind)?,
            reordered: kind == Kind::Video && self.video.is_reordered(),
        })
    }

    /// Adds a viewer on a shard.
    pub fn subscribe(&mut self, shard: ShardIndex) {
        self.changed |= !self.is_watched();
        match self.subscribers.iter_mut().find(|(s, _)| *s == shard) {
            Some((_, count)) => *count += 1,
            None => self.subscribers.push((shard, 1)),
        }
    }

    /// Removes a viewer from a shard.
    pub fn unsubscribe(&mut self, shard: ShardIndex) {
        if let Some((_, count)) = self.subscribers.iter_mut().find(|(s, _)| *s == shard) {
            *count -= 1;
        }
        self.subscribers.retain(|(_, count)| *count > 0);
        self.changed |= !self.is_watched();
    }

    /// Adds a reader that is not a viewer; see [`super::tap::Tap`].
    pub(super) fn tap(&mut self, tap: &Arc<TapQueue>) {
        self.changed |= !self.is_watched();
        self.taps.add(tap);
    }

    /// Removes a reader that is not a viewer.
    pub(super) fn untap(&mut self, tap: &Arc<TapQueue>) {
        self.taps.remove(tap);
        self.changed |= !self.is_watched();
    }

    /// Queues of the readers that are not viewers.
    pub fn taps(&mut self) -> Vec<Arc<TapQueue>> {
        self.taps.open()
    }

    /// Whether the stream has viewers or taps.
    pub fn is_watched(&self) -> bool {
        !self.subscribers.is_empty() || !self.taps.is_empty()
    }

    /// Shards with viewers.
    pub fn subscribers(&self) -> impl Iterator<Item = ShardIndex> + '_ {
        self.subscribers.iter().map(|(shard, _)| *shard)
    }

    /// Number of viewers.
    pub fn viewers(&self) -> usize {
        self.subscribers.iter().map(|(_, count)| count).sum()
    }

    /// Current format of a kind, or the last one without a source.
    pub fn format(&self, kind: Kind) -> Option<Format> {
        match kind {
            Kind::Video => self.video.format(),
            Kind::Audio => self.audio.format(),
        }
    }

    /// The track of a kind.
    pub fn track(&mut self, kind: Kind) -> &mut Track {
        match kind {
            Kind::Video => &mut self.video,
            Kind::Audio => &mut self.audio,
        }
    }

    pub(super) fn is_unused(&self) -> bool {
        self.source.is_none() && !self.is_watched()
    }
}
