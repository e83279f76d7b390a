//! One stream: at most one source, one audio and one video track, and the shards that have viewers of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::changes::{ChangeNotifier, ChangeTopic};
use super::data_tracks::DataTracks;
use super::failover_input::{FailoverInput, FailoverInputs};
pub use super::id::{SessionId, ShardIndex, StreamId};
pub use super::layer::{LayerOrigin, LayerSelection, SimulcastLayer};
use super::lock::{LockRank, RankedMutex};
use super::name::{StreamKey, StreamName};
use super::tap_queue::{TapList, TapQueue};
use super::track::Track;
use super::traffic::StreamTransportStats;
use crate::media::track_delivery::SourceTrack;
use crate::media::{Codec, CodecFormat, MediaKind};
use crate::sdp::negotiation_result::{AudioVideoFormats, AvailableTrack, AvailableTracks, MAX_LAYERS_WITH_OWN_FORMATS};

/// The session that feeds a stream, and its shard. A source that is not a peer has [`ShardIndex::NO_SHARD`]: it detects a
/// takeover by itself and polls for key frame requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRef {
    pub session_id: SessionId,
    pub shard: ShardIndex,
    /// It has an encoder that can be asked for a key frame: a publisher that negotiated PLI, or a pipeline whose encoder
    /// takes GstForceKeyUnit. Cameras and HLS origins send what is encoded already.
    pub accepts_key_frame_requests: bool,
}

/// A stream. Its state is behind one lock, which [`Stream::with_state`] holds for the duration of a call and for nothing else.
#[derive(Debug)]
pub struct Stream {
    pub id: StreamId,
    pub key: StreamKey,
    pub transport_stats: StreamTransportStats,
    state: RankedMutex<StreamState>,
    change_notifier: Arc<ChangeNotifier>,
}

/// A peer that is the source of a stream is stalled when nothing has arrived from it for this long. Its session ends after
/// 30 s.
pub(crate) const SOURCE_STALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The layers of a source appear one after another, within this time after its first key frame.
const MAX_LAYER_APPEARANCE_DELAY: Duration = Duration::from_millis(300);

/// State of a stream.
#[derive(Debug)]
pub struct StreamState {
    pub video: Track,
    pub audio: Track,
    /// Whether the source responds to key frame requests; OBS does not.
    pub responds_to_key_frame_requests: bool,
    /// Simulcast layers, best first; empty without simulcast.
    layers: Vec<SimulcastLayer>,
    /// Layers that the source may send.
    pub negotiated_layer_count: usize,
    /// The layers changed since the last batch.
    layers_changed: bool,
    /// Something changed of which listeners are notified; see [`ChangeTopic::Stream`].
    has_unnotified_change: bool,
    source: Option<SourceRef>,
    /// The source is one of the failover group of this stream, which copies it here.
    is_fed_by_failover_group: bool,
    /// Since when media of the source is expected, if it is a peer: when its transport was up.
    media_expected_since: Option<Instant>,
    /// Set when a viewer needs a key frame; polled by sources without a shard.
    key_frame_requested: bool,
    /// Shards with viewers, and the number of viewers on each.
    viewer_counts_by_shard: Vec<(ShardIndex, usize)>,
    taps: TapList,
    failover_inputs: FailoverInputs,
    /// Messages of data channels. They outlive the source: who publishes again goes on with them.
    pub data_tracks: DataTracks,
}

impl Stream {
    pub(super) fn new(id: StreamId, key: StreamKey, changes: Arc<ChangeNotifier>) -> Self {
        let state = StreamState {
            video: Track::new(MediaKind::Video),
            audio: Track::new(MediaKind::Audio),
            responds_to_key_frame_requests: false,
            layers: Vec::new(),
            negotiated_layer_count: 0,
            layers_changed: false,
            has_unnotified_change: false,
            source: None,
            is_fed_by_failover_group: false,
            media_expected_since: None,
            key_frame_requested: false,
            viewer_counts_by_shard: Vec::new(),
            taps: TapList::default(),
            failover_inputs: FailoverInputs::default(),
            data_tracks: DataTracks::default(),
        };
        Self {
            id,
            key,
            transport_stats: StreamTransportStats::default(),
            state: RankedMutex::new(LockRank::Stream, state),
            change_notifier: changes,
        }
    }

    /// Runs `work` on the state, under the lock, and returns its result. The result is an owned value: no reference to the
    /// state and no guard can leave, so nobody holds one stream while working on another.
    ///
    /// `work` must be brief: it must not wait, and it must not take a lock of the same or a lower [`LockRank`], in particular
    /// that of another stream. Debug builds panic if it does. A panic in an earlier call may have left a partially inserted
    /// frame, which the ring tolerates.
    pub fn with_state<R: 'static>(&self, work: impl FnOnce(&mut StreamState) -> R) -> R {
        let mut state = self.state.lock();
        let result = work(&mut state);
        let changed = std::mem::take(&mut state.has_unnotified_change);
        drop(state);
        if changed {
            self.change_notifier.notify(&ChangeTopic::Stream(self.key.name.clone()));
        }
        result
    }
}

impl StreamState {
    /// Makes this session the source; new viewers start with its first key frame. Returns the previous source, which
    /// the caller must close.
    pub fn replace_source(&mut self, source: SourceRef, formats: &AudioVideoFormats) -> Option<SourceRef> {
        self.has_unnotified_change = true;
        self.responds_to_key_frame_requests = false;
        self.is_fed_by_failover_group = false;
        self.media_expected_since = None;
        self.key_frame_requested = false;
        self.layers.clear();
        self.negotiated_layer_count = 0;
        self.video.begin_source(formats.video);
        self.audio.begin_source(formats.audio);
        self.source
            .replace(source)
            .filter(|previous| previous.session_id != source.session_id)
    }

    /// Makes a session that feeds a source of this stream's failover group the source. The one before it goes on feeding its own.
    pub(crate) fn replace_source_by_failover_group(&mut self, source: SourceRef, formats: &AudioVideoFormats) {
        self.replace_source(source, formats);
        self.is_fed_by_failover_group = true;
    }

    /// Whether the failover group of this stream feeds it: a session that is none of its sources may not take it over.
    pub(crate) fn is_fed_by_failover_group(&self) -> bool {
        self.is_fed_by_failover_group
    }

    /// Detaches the source if it is this session. Returns whether it was.
    pub fn detach_source_if_current(&mut self, session: SessionId) -> bool {
        let is_source = self.is_source_session(session);
        if is_source {
            self.has_unnotified_change = true;
            self.source = None;
            self.is_fed_by_failover_group = false;
            self.layers.clear();
        }
        is_source
    }

    /// Whether this session is the source.
    pub(crate) fn is_source_session(&self, session: SessionId) -> bool {
        self.source.is_some_and(|source| source.session_id == session)
    }

    /// The current source.
    pub fn source(&self) -> Option<SourceRef> {
        self.source
    }

    /// Expects media of the source from now on: see [`Self::source_inactivity_duration`].
    pub fn expect_media_since(&mut self, now: Instant) {
        self.media_expected_since = Some(now);
    }

    /// For how long nothing has arrived from the source, if that is a peer: since its last packet, or since its transport
    /// was up. `None` for other sources, which detect silence themselves: a camera may send a frame every ten seconds.
    pub fn source_inactivity_duration(&self, now: Instant) -> Option<Duration> {
        let expected_since = self.source.and(self.media_expected_since)?;
        let newest = [&self.video, &self.audio].map(|track| track.ring().newest_track_time_and_arrival());
        let arrivals = newest.into_iter().flatten().map(|(_, arrival)| arrival);
        let last = arrivals
            .max()
            .map_or(expected_since, |arrival| arrival.max(expected_since));
        Some(now.saturating_duration_since(last))
    }

    /// Whether the source is stalled: nothing has arrived for [`SOURCE_STALL_TIMEOUT`].
    pub fn is_source_stalled(&self, now: Instant) -> bool {
        self.source_inactivity_duration(now)
            .is_some_and(|silence| silence >= SOURCE_STALL_TIMEOUT)
    }

    /// Formats of the current source; `None` without a source.
    pub fn formats(&self) -> Option<AudioVideoFormats> {
        self.source.map(|_| AudioVideoFormats {
            video: self.video.format(),
            audio: self.audio.format(),
        })
    }

    /// Simulcast layers, best first.
    pub fn layers(&self) -> &[SimulcastLayer] {
        &self.layers
    }

    /// Whether more layers of the source may be about to appear: what is there so far may be too much for a viewer. Before
    /// the first key frame of a peer's video nothing is known of them.
    pub fn may_more_layers_appear(&self, now: Instant) -> bool {
        let Some(expected_since) = self.source.and(self.media_expected_since) else {
            return false;
        };
        match self.video.first_key_frame_arrival() {
            None => {
                let waits = now.saturating_duration_since(expected_since) < SOURCE_STALL_TIMEOUT;
                self.video.format().is_some() && waits
            }
            Some(first) => {
                let active = self.layers.iter().filter(|layer| layer.active).count();
                let is_new = now.saturating_duration_since(first) < MAX_LAYER_APPEARANCE_DELAY;
                is_new && active < self.negotiated_layer_count
            }
        }
    }

    /// Updates the layers. A change of their set, resolutions or activity makes viewers select their layer again.
    pub fn set_layers(&mut self, layers: Vec<SimulcastLayer>) {
        let choice = |layer: &SimulcastLayer| {
            let carried = layer.is_carried_by_main_stream;
            let received = (layer.active, layer.is_lossy);
            (layer.rid.clone(), layer.resolution, received, carried, layer.origin)
        };
        let sends = |layer: &SimulcastLayer| layer.measured_bitrate > 0;
        let is_same = self.layers.iter().map(choice).eq(layers.iter().map(choice));
        self.layers_changed |= !is_same;
        self.has_unnotified_change |= !is_same || !self.layers.iter().map(sends).eq(layers.iter().map(sends));
        self.layers = layers;
    }

    /// Returns whether the formats or the layers changed since the last call.
    pub(super) fn take_format_or_layer_change_flag(&mut self) -> bool {
        let layers = std::mem::take(&mut self.layers_changed);
        let tracks = [&mut self.video, &mut self.audio].map(Track::take_format_change_flag);
        let changed = layers || tracks.contains(&true);
        self.has_unnotified_change |= changed;
        changed
    }

    /// What the source says of itself has changed, if it is still this one.
    pub(crate) fn update_source_if_current(&mut self, source: SourceRef) {
        if self.is_source_session(source.session_id) && self.source != Some(source) {
            self.source = Some(source);
            self.has_unnotified_change = true;
        }
    }

    /// A viewer wants a key frame. Returns whom to ask, `None` where there is nobody who can make one; a source that lives
    /// on no shard finds the request here.
    pub fn flag_key_frame_request_and_get_source(&mut self) -> Option<SourceRef> {
        let source = self.source.filter(|source| source.accepts_key_frame_requests);
        self.key_frame_requested |= source.is_some();
        source
    }

    /// Whether a key frame was requested since the last call.
    pub(crate) fn take_key_frame_request_flag(&mut self) -> bool {
        std::mem::take(&mut self.key_frame_requested)
    }

    /// Returns the tracks that can be offered to a viewer; `None` without a source. `can_transcode_codec_for_browsers` says whether a codec
    /// can be transcoded to one that browsers play.
    pub fn tracks_offerable_to_viewers(&self, can_transcode: impl Fn(Codec) -> bool) -> Option<AvailableTracks> {
        self.source?;
        let track = |kind| self.track_offerable_to_viewers(kind, &can_transcode);
        let available = self.layers.iter().filter(|layer| layer.is_available());
        let mut video_layers = [None; MAX_LAYERS_WITH_OWN_FORMATS];
        for (slot, track) in video_layers
            .iter_mut()
            .zip(available.filter_map(SimulcastLayer::pulled_source_track))
        {
            *slot = Some(track);
        }
        Some(AvailableTracks {
            video: track(MediaKind::Video),
            audio: track(MediaKind::Audio),
            video_layers,
        })
    }

    /// Returns the track of a kind as it can be offered to a viewer.
    pub(crate) fn track_offerable_to_viewers(
        &self,
        kind: MediaKind,
        can_transcode: impl Fn(Codec) -> bool,
    ) -> Option<AvailableTrack> {
        let source = self.source_format_and_b_frames(kind)?;
        Some(AvailableTrack {
            source_track: source,
            can_transcode: can_transcode(source.format.codec()),
        })
    }

    /// Returns the track of a kind as the source sends it, or as the last source did.
    pub fn source_format_and_b_frames(&self, kind: MediaKind) -> Option<SourceTrack> {
        Some(SourceTrack {
            format: self.format(kind)?,
            // Decoders of browsers start with IDR frames only: without, they need a transcode as for B-frames.
            has_b_frames: kind == MediaKind::Video && (self.video.has_b_frames() || self.video.lacks_idr_frames()),
        })
    }

    /// Adds a viewer on a shard.
    pub fn add_viewer(&mut self, shard: ShardIndex) {
        self.has_unnotified_change |= !self.has_consumers();
        match self.viewer_counts_by_shard.iter_mut().find(|(s, _)| *s == shard) {
            Some((_, count)) => *count += 1,
            None => self.viewer_counts_by_shard.push((shard, 1)),
        }
    }

    /// Removes a viewer from a shard.
    pub fn remove_viewer(&mut self, shard: ShardIndex) {
        if let Some((_, count)) = self.viewer_counts_by_shard.iter_mut().find(|(s, _)| *s == shard) {
            *count -= 1;
        }
        self.viewer_counts_by_shard.retain(|(_, count)| *count > 0);
        self.has_unnotified_change |= !self.has_consumers();
    }

    /// Adds a reader that is not a viewer; see [`super::tap::StreamTap`].
    pub(super) fn add_tap(&mut self, tap: &Arc<TapQueue>) {
        self.has_unnotified_change |= !self.has_consumers();
        self.taps.add(tap);
    }

    /// Removes a reader that is not a viewer.
    pub(super) fn remove_tap(&mut self, tap: &Arc<TapQueue>) {
        self.taps.remove(tap);
        self.has_unnotified_change |= !self.has_consumers();
    }

    /// Makes this stream a source of a failover group.
    pub(crate) fn add_failover_input(&mut self, input: FailoverInput) {
        self.failover_inputs.add(input);
    }

    /// This stream is no longer a source of the failover group of `failover_group`.
    pub(crate) fn remove_from_failover_group(&mut self, failover_group: &StreamName) {
        self.has_unnotified_change = true;
        self.failover_inputs.remove_failover_group(failover_group);
    }

    /// Sets whether a failover group needs the source of this stream to run: see [`Self::has_consumers`].
    pub(crate) fn set_failover_group_demand(&mut self, input: &FailoverInput, is_needed: bool) {
        let was_watched = self.has_consumers();
        self.failover_inputs.set_source_demand(input, is_needed);
        self.has_unnotified_change |= was_watched != self.has_consumers();
    }

    /// The failover groups that this stream is a source of.
    pub(super) fn failover_inputs(&self) -> Vec<FailoverInput> {
        self.failover_inputs.to_vec()
    }

    /// Queues of the readers that are not viewers.
    pub(crate) fn prune_and_list_tap_queues_with_reader(&mut self) -> Vec<Arc<TapQueue>> {
        self.taps.prune_and_list_queues_with_reader()
    }

    /// Whether the stream has viewers or taps, or a failover group needs it.
    pub fn has_consumers(&self) -> bool {
        !self.viewer_counts_by_shard.is_empty()
            || !self.taps.has_no_reader()
            || self.failover_inputs.is_source_needed_by_failover_group()
    }

    /// Shards with viewers.
    pub(crate) fn shards_with_viewers(&self) -> impl Iterator<Item = ShardIndex> + '_ {
        self.viewer_counts_by_shard.iter().map(|(shard, _)| *shard)
    }

    /// Number of viewers.
    pub fn viewer_count(&self) -> usize {
        self.viewer_counts_by_shard.iter().map(|(_, count)| count).sum()
    }

    /// Current format of a kind, or the last one without a source.
    pub fn format(&self, kind: MediaKind) -> Option<CodecFormat> {
        match kind {
            MediaKind::Video => self.video.format(),
            MediaKind::Audio => self.audio.format(),
        }
    }

    /// The track of a kind.
    pub fn track(&mut self, kind: MediaKind) -> &mut Track {
        match kind {
            MediaKind::Video => &mut self.video,
            MediaKind::Audio => &mut self.audio,
        }
    }

    pub(super) fn is_unused(&self) -> bool {
        self.source.is_none() && !self.has_consumers() && self.failover_inputs.is_empty()
    }
}
