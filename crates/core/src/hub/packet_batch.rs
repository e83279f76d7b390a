//! The packets of one stream that arrived in one tick, and who reads them.

use std::sync::Arc;

use super::failover_input::FailoverInput;
use super::ring::{RingEntries, RingEntry};
use super::stream::{ShardIndex, SourceRef, Stream, StreamId, StreamState};
use super::tap::TapQueue;
use super::track::TrackSourceProperties;

/// Packets to be delivered: see [`crate::shard::SharedState::deliver_to_taps_and_other_shards`].
pub struct PacketBatchToDeliver {
    pub stream_id: StreamId,
    pub packets: RingEntries,
    /// The formats or the layers of the stream changed: viewers select their streams again.
    pub formats_or_layers_changed: bool,
    /// Shards with viewers of the stream.
    pub shards_with_viewers: Vec<ShardIndex>,
    /// Queues of the readers that are not viewers.
    pub tap_queues: Vec<Arc<TapQueue>>,
    /// For a stream that is a source of failover groups. Boxed: hardly any stream is.
    pub failover_feed: Option<Box<FailoverFeed>>,
}

/// What the failover groups that a stream is a source of need beside its packets.
pub struct FailoverFeed {
    pub inputs: Vec<FailoverInput>,
    pub source: SourceAndTrackProperties,
}

/// The source of a stream and what is known of its tracks.
#[derive(Clone, Copy, Debug)]
pub struct SourceAndTrackProperties {
    pub source: SourceRef,
    pub video: TrackSourceProperties,
    pub audio: TrackSourceProperties,
    pub responds_to_key_frame_requests: bool,
}

impl SourceAndTrackProperties {
    /// Returns that of a stream; `None` without a source.
    pub(crate) fn from_stream_state(state: &StreamState) -> Option<Self> {
        Some(Self {
            source: state.source()?,
            video: state.video.source_properties(),
            audio: state.audio.source_properties(),
            responds_to_key_frame_requests: state.responds_to_key_frame_requests,
        })
    }
}

impl FailoverFeed {
    fn from_stream_state(state: &StreamState) -> Option<Box<Self>> {
        let inputs = state.failover_inputs();
        if inputs.is_empty() {
            return None;
        }
        let source = SourceAndTrackProperties::from_stream_state(state)?;
        Some(Box::new(Self { inputs, source }))
    }
}

impl PacketBatchToDeliver {
    /// Gives the packets to the readers that are not viewers.
    pub fn deliver_to_taps(&self) {
        for tap in &self.tap_queues {
            let _ = tap.push_or_flag_overflow(self.packets.clone());
        }
    }

    /// Makes a batch for the current readers of a stream, whose state this is. Returns `None` without packets.
    pub fn new(stream: &Stream, state: &mut StreamState, packets: Vec<Arc<RingEntry>>) -> Option<Self> {
        (!packets.is_empty()).then(|| Self {
            stream_id: stream.id,
            packets: packets.into(),
            formats_or_layers_changed: state.take_format_or_layer_change_flag(),
            shards_with_viewers: state.shards_with_viewers().collect(),
            tap_queues: state.prune_and_list_tap_queues_with_reader(),
            failover_feed: FailoverFeed::from_stream_state(state),
        })
    }
}
