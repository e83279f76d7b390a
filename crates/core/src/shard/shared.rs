//! The state that all shards share, and the delivery of batches between them.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::counters::Counters;
use super::message::{Message, ShardMailbox};
use super::tcp::TcpPeers;
use crate::hub::Hub;
use crate::hub::batch::Batch;
use crate::hub::registry::Registry;
use crate::hub::stream::ShardIndex;
use crate::media::clock;
use crate::session::identity::Identity;
use crate::sources::frame_source::FrameSource;

/// State shared by all shards of a gateway.
pub struct Shared {
    pub hub: Hub,
    pub registry: Registry,
    pub identity: Arc<Identity>,
    pub mailboxes: Vec<ShardMailbox>,
    pub counters: Counters,
    /// Candidate addresses for peers, the best first.
    pub announced: RwLock<Arc<[SocketAddr]>>,
    /// The TCP connections of peers.
    pub tcp: Arc<dyn TcpPeers>,
    /// An instant, and the wall-clock time at that instant as the duration since 1970.
    pub epoch: (Instant, Duration),
}

impl Shared {
    /// Returns the current candidate addresses.
    pub fn announced(&self) -> Arc<[SocketAddr]> {
        self.announced.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Delivers the packets of a batch to the taps of the stream and to the shards that have viewers of it. Never waits:
    /// a reader whose queue is full learns of the loss and reads the missed packets from the rings.
    ///
    /// Returns the batch if shard `local`, the caller's own, has viewers too; sources without a shard pass
    /// [`ShardIndex::NONE`].
    pub fn deliver(&self, local: ShardIndex, batch: Batch) -> Option<Batch> {
        for tap in &batch.taps {
            let _ = tap.push_lossy(batch.packets.clone());
        }
        let (stream, mut has_local_viewers) = (batch.stream, false);
        for shard in &batch.subscribers {
            if *shard == local {
                has_local_viewers = true;
            } else if let Some(mailbox) = self.mailbox(*shard) {
                let packets = batch.packets.clone();
                let _ = mailbox.push_lossy(Message::Media { stream, packets });
                if batch.stream_changed {
                    let _ = mailbox.push_lossy(Message::StreamChanged { stream });
                }
            }
        }
        has_local_viewers.then_some(batch)
    }

    /// Publishes the frames that a source took since the last call. Returns `false` if its stream has another source; the
    /// frame source must then end.
    pub fn publish_frames(&self, source: &mut FrameSource) -> bool {
        let published = source.publish(&self.hub);
        for batch in published.batches {
            self.deliver(ShardIndex::NONE, batch);
        }
        !published.displaced
    }

    /// The mailbox of a shard; `None` for [`ShardIndex::NONE`].
    pub fn mailbox(&self, shard: ShardIndex) -> Option<&ShardMailbox> {
        self.mailboxes.get(usize::from(shard.0))
    }

    /// Returns the wall-clock time as an NTP timestamp (RFC 3550 §4).
    pub fn ntp(&self, now: Instant) -> u64 {
        let (instant, wall) = self.epoch;
        clock::ntp(wall + now.saturating_duration_since(instant))
    }
}
