//! The packets of one stream that arrived in one tick, and who reads them.

use std::sync::Arc;

use super::ring::{Entries, Entry};
use super::stream::{ShardIndex, Stream, StreamId, StreamState};
use super::tap::TapQueue;

/// Packets to be delivered: see [`crate::shard::Shared::deliver`].
pub struct Batch {
    pub stream: StreamId,
    pub packets: Entries,
    /// The formats or the layers of the stream changed: viewers select their streams again.
    pub stream_changed: bool,
    /// Shards with viewers of the stream.
    pub subscribers: Vec<ShardIndex>,
    /// Queues of the readers that are not viewers.
    pub taps: Vec<Arc<TapQueue>>,
}

impl Batch {
    /// Makes a batch for the current readers of a stream, whose state this is. Returns `None` without packets.
    pub fn new(stream: &Stream, state: &mut StreamState, packets: Vec<Arc<Entry>>) -> Option<Self> {
        (!packets.is_empty()).then(|| Self {
            stream: stream.id,
            packets: packets.into(),
            stream_changed: state.take_change(),
            subscribers: state.subscribers().collect(),
            taps: state.taps(),
        })
    }
}
