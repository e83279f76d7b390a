//! The failover groups of a gateway, by stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::settings::{FailoverSourceSettings, FailoverTimes, SourceLayerSettings};
use super::switcher::{FailoverGroup, FailoverOutput};
use crate::hub::Hub;
use crate::hub::lock::{LockRank, RankedMutex};
use crate::hub::name::StreamName;
use crate::hub::packet_batch::{FailoverFeed, PacketBatchToDeliver};
use crate::hub::stream::SourceRef;

/// The failover groups by stream. Most streams have none.
#[derive(Debug)]
pub struct SourceFailoverMap {
    by_stream: RankedMutex<BTreeMap<StreamName, Arc<FailoverGroup>>>,
}

impl Default for SourceFailoverMap {
    fn default() -> Self {
        Self {
            by_stream: RankedMutex::new(LockRank::SourceFailoverMap, BTreeMap::new()),
        }
    }
}

impl SourceFailoverMap {
    /// Returns the failover group of a stream.
    pub fn get(&self, stream: &StreamName) -> Option<Arc<FailoverGroup>> {
        self.by_stream.lock().get(stream).cloned()
    }

    /// Returns all failover groups, sorted by stream.
    pub fn all(&self) -> Vec<Arc<FailoverGroup>> {
        self.by_stream.lock().values().cloned().collect()
    }

    /// Adds a failover group of these sources, the highest first. The stream must have none.
    pub fn add(
        &self,
        hub: &Hub,
        stream: StreamName,
        sources: Vec<FailoverSourceSettings>,
        times: FailoverTimes,
    ) -> Arc<FailoverGroup> {
        let failover_group = FailoverGroup::new(hub, stream, (sources, None), times);
        self.insert(failover_group)
    }

    /// As [`Self::add`], for sources that are layers of one picture, the best one first.
    pub fn add_with_layers(
        &self,
        hub: &Hub,
        stream: StreamName,
        sources: (Vec<FailoverSourceSettings>, SourceLayerSettings),
        times: FailoverTimes,
    ) -> Arc<FailoverGroup> {
        let failover_group = FailoverGroup::new(hub, stream, (sources.0, Some(sources.1)), times);
        self.insert(failover_group)
    }

    fn insert(&self, failover_group: Arc<FailoverGroup>) -> Arc<FailoverGroup> {
        self.by_stream
            .lock()
            .insert(failover_group.stream.clone(), failover_group.clone());
        failover_group
    }

    /// Whether no stream has several sources.
    pub fn is_empty(&self) -> bool {
        self.by_stream.lock().is_empty()
    }

    /// Ends the failover group of a stream. Returns its sources that were connected.
    pub fn remove(&self, hub: &Hub, stream: &StreamName) -> Vec<SourceRef> {
        let removed = self.by_stream.lock().remove(stream);
        removed.map_or_else(Vec::new, |failover_group| failover_group.close(hub))
    }

    /// Hands a batch to the failover groups that its stream is a source of.
    pub(crate) fn feed_batch_to_groups(
        &self,
        now: Instant,
        hub: &Hub,
        batch: &PacketBatchToDeliver,
        feed: &FailoverFeed,
    ) -> FailoverOutput {
        let mut output = FailoverOutput::default();
        for input in &feed.inputs {
            if let Some(failover_group) = self.get(&input.failover_group) {
                output.append(failover_group.handle_batch(now, hub, input, (batch, &feed.source)));
            }
        }
        output
    }

    /// Lets all failover groups select another source if it is time.
    pub(crate) fn handle_timeout(&self, now: Instant, hub: &Hub) -> FailoverOutput {
        let mut output = FailoverOutput::default();
        for failover_group in self.all() {
            output.append(failover_group.handle_timeout(now, hub));
        }
        output
    }
}
