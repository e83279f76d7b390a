//! The ladders of a gateway, by stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::settings::{LadderSourceSettings, LadderTimes};
use super::switcher::{Ladder, LadderOutput};
use crate::hub::Hub;
use crate::hub::batch::{LadderFeed, PacketBatchToDeliver};
use crate::hub::lock::{LockRank, RankedMutex};
use crate::hub::name::StreamName;
use crate::hub::stream::SourceRef;

/// The ladders by stream. Most streams have none.
#[derive(Debug)]
pub struct LadderMap {
    by_stream: RankedMutex<BTreeMap<StreamName, Arc<Ladder>>>,
}

impl Default for LadderMap {
    fn default() -> Self {
        Self {
            by_stream: RankedMutex::new(LockRank::LadderMap, BTreeMap::new()),
        }
    }
}

impl LadderMap {
    /// Returns the ladder of a stream.
    pub fn get(&self, stream: &StreamName) -> Option<Arc<Ladder>> {
        self.by_stream.lock().get(stream).cloned()
    }

    /// Returns all ladders, sorted by stream.
    pub fn all(&self) -> Vec<Arc<Ladder>> {
        self.by_stream.lock().values().cloned().collect()
    }

    /// Adds a ladder of these sources, the highest first. The stream must have none.
    pub fn add(
        &self,
        hub: &Hub,
        stream: StreamName,
        sources: Vec<LadderSourceSettings>,
        times: LadderTimes,
    ) -> Arc<Ladder> {
        let ladder = Ladder::new(hub, stream.clone(), sources, times);
        self.by_stream.lock().insert(stream, ladder.clone());
        ladder
    }

    /// Whether no stream has several sources.
    pub fn is_empty(&self) -> bool {
        self.by_stream.lock().is_empty()
    }

    /// Ends the ladder of a stream. Returns its sources that were connected.
    pub fn remove(&self, hub: &Hub, stream: &StreamName) -> Vec<SourceRef> {
        let removed = self.by_stream.lock().remove(stream);
        removed.map_or_else(Vec::new, |ladder| ladder.close(hub))
    }

    /// Hands a batch to the ladders that its stream is a source of.
    pub(crate) fn feed(
        &self,
        now: Instant,
        hub: &Hub,
        batch: &PacketBatchToDeliver,
        feed: &LadderFeed,
    ) -> LadderOutput {
        let mut output = LadderOutput::default();
        for input in &feed.inputs {
            if let Some(ladder) = self.get(&input.ladder) {
                output.append(ladder.handle_batch(now, hub, input, (batch, &feed.source)));
            }
        }
        output
    }

    /// Lets all ladders select another source if it is time.
    pub(crate) fn handle_timeout(&self, now: Instant, hub: &Hub) -> LadderOutput {
        let mut output = LadderOutput::default();
        for ladder in self.all() {
            output.append(ladder.handle_timeout(now, hub));
        }
        output
    }
}
