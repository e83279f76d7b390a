//! The sources of a failover group as layers of one picture, such as the main and the sub stream of a camera: which of them have to
//! run, what viewers may choose from, and a copy of each for those who watch it.
//!
//! The smallest layer always runs, a larger one while somebody watches it, or while all smaller ones have failed; the largest
//! also while the video of the stream is transcoded for viewers. All copies have the timeline of the stream itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::settings::{FailoverSourceSettings, SourceLayerSettings};
use super::source::{FailoverSource, ObservedVideo, SourceCopyStart};
use super::status::FailoverSourceState;
use super::track_copy::TrackCopy;
use crate::hub::Hub;
use crate::hub::name::{StreamKey, StreamName};
use crate::hub::packet_batch::{PacketBatchToDeliver, SourceAndTrackProperties};
use crate::hub::ring::RingEntry;
use crate::hub::stream::{LayerOrigin, SessionId, SimulcastLayer, Stream};
use crate::media::track_delivery::TranscodeTarget;
use crate::media::{MediaKind, Rid};
use crate::sdp::negotiation_result::AudioVideoFormats;

/// The layers of a stream.
#[derive(Debug)]
pub(super) struct SourceLayers {
    settings: SourceLayerSettings,
    stream_name: StreamName,
    /// By the index of the source.
    layers: Vec<SourceLayer>,
    /// The sources, that with the largest picture first. As configured until all sizes are known.
    order: Vec<usize>,
    next_update_at: Option<Instant>,
}

/// One layer, and what is known of it.
#[derive(Debug)]
struct SourceLayer {
    rid: Rid,
    key: StreamKey,
    copy: Option<LayerCopy>,
    /// As of its last connection.
    video: ObservedVideo,
    /// Its size and its bitrate were measured: it need not run for that.
    is_measured: bool,
    /// It was live, and has to run since then.
    was_live: bool,
    /// Since when it has to run and is not live.
    missing_since: Option<Instant>,
    /// It has to run and does not, or does again for less than the hold-off time.
    has_failed: bool,
    /// Viewers can be sent it.
    is_active: bool,
}

/// The copy of the video of a source's session to the stream of its layer.
#[derive(Debug)]
struct LayerCopy {
    session: SessionId,
    stream: Arc<Stream>,
    video: TrackCopy,
}

/// How often the readers of the layers are looked at, and the list of layers is updated.
const UPDATE_INTERVAL: Duration = Duration::from_millis(100);

/// A source that has to run has failed if it sends nothing within this time. Cameras take up to three seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A source that sends has failed if no key frame comes within this time. Cameras may have them ten seconds apart.
const KEY_FRAME_TIMEOUT: Duration = Duration::from_secs(15);

/// A layer that nobody watches runs for this long once, so that its size and bitrate are known.
const MEASUREMENT_TIME: Duration = Duration::from_secs(3);

impl SourceLayers {
    pub(super) fn new(stream: &StreamName, settings: SourceLayerSettings, sources: &[FailoverSourceSettings]) -> Self {
        let layer = |source: &FailoverSourceSettings| {
            let rid = Rid(source.name.as_str().into());
            SourceLayer {
                key: stream.lower_simulcast_layer_key(&rid),
                rid,
                copy: None,
                video: ObservedVideo::default(),
                is_measured: false,
                was_live: false,
                missing_since: None,
                has_failed: false,
                is_active: false,
            }
        };
        Self {
            settings,
            stream_name: stream.clone(),
            layers: sources.iter().map(layer).collect(),
            order: (0..sources.len()).collect(),
            next_update_at: None,
        }
    }

    /// The sources, that with the largest picture first.
    pub(super) fn sources_largest_first(&self) -> &[usize] {
        &self.order
    }

    /// Returns the layers as viewers choose from them; the stream itself carries that of the source `shown`.
    pub(super) fn selectable_layers(&self, shown: Option<usize>) -> Vec<SimulcastLayer> {
        let ordered = self
            .order
            .iter()
            .filter_map(|index| Some((*index, self.layers.get(*index)?)));
        let listed = ordered.map(|(index, layer)| SimulcastLayer {
            rid: layer.rid.clone(),
            resolution: layer.video.resolution,
            measured_bitrate: layer.video.bitrate,
            active: layer.is_active,
            is_carried_by_main_stream: shown == Some(index),
            is_lossy: false,
            origin: LayerOrigin::Pulled {
                track: layer.video.track,
                can_start: !layer.is_active && !layer.has_failed && layer.video.track.is_some(),
            },
        });
        listed.collect()
    }

    /// Looks at the sources, and sets which of them have to run. Returns whether the list may have changed.
    pub(super) fn update_layers_and_demands(
        &mut self,
        now: Instant,
        hub: &Hub,
        sources: &mut [FailoverSource],
        hold_off: Duration,
    ) -> bool {
        let mut has_changed = false;
        for (layer, source) in self.layers.iter_mut().zip(sources.iter()) {
            has_changed |= layer.update_from_source(now, source, hold_off, &self.stream_name);
            // Viewers leave a layer without a source at once.
            let is_live = source.condition.state == FailoverSourceState::Live;
            layer.end_copy_of_other_session(hub, source.session_id().filter(|_| is_live));
        }
        if !has_changed && self.next_update_at.is_some_and(|at| now < at) {
            return false;
        }
        self.next_update_at = Some(now + UPDATE_INTERVAL);
        self.sort_layers_by_size();
        let is_stream_watched = has_consumers(hub, &StreamKey::from(&self.stream_name));
        let demands: Vec<bool> = (0..sources.len())
            .map(|index| self.is_demanded(hub, index, is_stream_watched))
            .collect();
        for (source, is_needed) in sources.iter_mut().zip(demands) {
            source.set_source_demand(is_needed);
            // What ends because nobody watches it has not failed.
            source.condition.has_failed &= is_needed;
        }
        true
    }

    fn sort_layers_by_size(&mut self) {
        let pixels = |index: &usize| {
            let size = self.layers.get(*index).and_then(|layer| layer.video.resolution);
            size.map(|(width, height)| u32::from(width) * u32::from(height))
        };
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        if order.iter().all(|index| pixels(index).is_some()) {
            order.sort_by_key(|index| std::cmp::Reverse(pixels(index)));
            self.order = order;
        }
    }

    fn is_demanded(&self, hub: &Hub, index: usize, is_stream_watched: bool) -> bool {
        let rank = self.order.iter().position(|other| *other == index);
        let (Some(rank), Some(layer)) = (rank, self.layers.get(index)) else {
            return false;
        };
        if self.settings.on_demand && !is_stream_watched {
            return false;
        }
        let smaller = self
            .order
            .iter()
            .skip(rank + 1)
            .filter_map(|other| self.layers.get(*other));
        let Some(smallest) = smaller.clone().next_back() else {
            return true;
        };
        let stands_in = smaller.clone().all(|layer| layer.has_failed);
        let is_to_be_measured = !layer.is_measured && !layer.has_failed && smallest.is_active;
        // Those who have left it come back once it is there again.
        let is_retried = layer.has_failed && is_stream_watched;
        let transcoded = self.stream_name.transcode_key(TranscodeTarget::H264);
        let is_transcoded = || rank == 0 && has_consumers(hub, &transcoded);
        stands_in || is_to_be_measured || is_retried || has_consumers(hub, &layer.key) || is_transcoded()
    }

    /// Whether the packets of this session are copied to the stream of the layer.
    pub(super) fn is_copying(&self, index: usize, session: SessionId) -> bool {
        self.timestamp_offset_of_session(index, session).is_some()
    }

    /// Returns what is added to the timestamps of a source's session; `None` if it is not copied.
    pub(super) fn timestamp_offset_of_session(&self, index: usize, session: SessionId) -> Option<u64> {
        let copy = self.layers.get(index)?.copy.as_ref()?;
        copy.video.timestamp_offset().filter(|_| copy.session == session)
    }

    /// Returns another source whose video is copied, and what is added to its timestamps.
    pub(super) fn other_copied_source_and_offset(&self, index: usize) -> Option<(usize, u64)> {
        let mut others = self.layers.iter().enumerate().filter(|(other, _)| *other != index);
        others.find_map(|(other, layer)| Some((other, layer.copy.as_ref()?.video.timestamp_offset()?)))
    }

    /// Begins to copy a session of a source, with its newest key frame.
    pub(super) fn begin_copy(
        &mut self,
        hub: &Hub,
        index: usize,
        start: &SourceCopyStart,
        timestamp_offset: u64,
    ) -> Option<PacketBatchToDeliver> {
        let layer = self.layers.get_mut(index)?;
        let source = start.state.source;
        let formats = AudioVideoFormats {
            video: start.formats.video,
            audio: None,
        };
        let stream = hub.open_and_update_stream(&layer.key, |state| {
            state.replace_source(source, &formats);
        });
        let copy = layer.copy.insert(LayerCopy {
            session: source.session_id,
            stream,
            video: TrackCopy::with_timestamp_offset(timestamp_offset),
        });
        copy.copy_packets(&start.video.cached_packets, &start.state)
    }

    /// Copies packets of the video of a source.
    pub(super) fn copy_packets_to_layer(
        &mut self,
        index: usize,
        packets: &[Arc<RingEntry>],
        source: &SourceAndTrackProperties,
    ) -> Option<PacketBatchToDeliver> {
        let copy = self.layers.get_mut(index)?.copy.as_mut()?;
        copy.copy_packets(packets, source)
    }

    /// Ends all copies.
    pub(super) fn end_all_copies(&mut self, hub: &Hub) {
        for layer in &mut self.layers {
            layer.end_copy_of_other_session(hub, None);
        }
    }
}

fn has_consumers(hub: &Hub, key: &StreamKey) -> bool {
    let stream = hub.find_stream(key);
    stream.is_some_and(|stream| stream.with_state(|state| state.has_consumers()))
}

impl SourceLayer {
    /// Returns whether what viewers can be sent has changed.
    fn update_from_source(
        &mut self,
        now: Instant,
        source: &FailoverSource,
        hold_off: Duration,
        stream: &StreamName,
    ) -> bool {
        let before = (self.is_active, self.has_failed);
        if source.condition.state == FailoverSourceState::Live {
            let since = source.condition.live_since.unwrap_or(now);
            let live_for = now.saturating_duration_since(since);
            let bitrate = match source.video.bitrate {
                0 => self.video.bitrate,
                measured => measured,
            };
            self.video = ObservedVideo {
                bitrate,
                ..source.video
            };
            self.is_measured |= live_for >= MEASUREMENT_TIME && bitrate > 0 && self.video.resolution.is_some();
            self.missing_since = None;
            self.was_live = source.is_demanded();
            self.has_failed &= live_for < hold_off;
            self.is_active = !self.has_failed;
        } else {
            let missing_since = source.is_demanded().then(|| self.missing_since.unwrap_or(now));
            let timeout = match source.condition.state {
                FailoverSourceState::Starting => KEY_FRAME_TIMEOUT,
                FailoverSourceState::Away | FailoverSourceState::Stalled | FailoverSourceState::Live => CONNECT_TIMEOUT,
            };
            let is_late = |since| now.saturating_duration_since(since) >= timeout;
            self.missing_since = missing_since;
            self.was_live &= source.is_demanded();
            self.has_failed =
                source.is_demanded() && (self.has_failed || self.was_live || missing_since.is_some_and(is_late));
            self.is_active = false;
        }
        if self.has_failed && !before.1 {
            warn!(%stream, layer = &*self.rid.0, "layer of the stream unavailable; its viewers are switched to another layer");
        } else if before.1 && self.is_active {
            info!(%stream, layer = &*self.rid.0, "layer of the stream available again");
        }
        before != (self.is_active, self.has_failed)
    }

    fn end_copy_of_other_session(&mut self, hub: &Hub, session: Option<SessionId>) {
        if let Some(copy) = self.copy.take_if(|copy| Some(copy.session) != session) {
            hub.update_stream_and_remove_if_unused(&copy.stream, |state| {
                state.detach_source_if_current(copy.session);
            });
        }
    }
}

impl LayerCopy {
    fn copy_packets(
        &mut self,
        packets: &[Arc<RingEntry>],
        source: &SourceAndTrackProperties,
    ) -> Option<PacketBatchToDeliver> {
        let (stream, session) = (self.stream.clone(), self.session);
        stream.with_state(|state| {
            if !state.is_source_session(session) {
                return None;
            }
            state.update_source_if_current(source.source);
            let mut copied = Vec::new();
            self.video
                .copy_packets_and_properties(state.track(MediaKind::Video), packets, &source.video, &mut copied);
            PacketBatchToDeliver::new(&stream, state, copied)
        })
    }
}
