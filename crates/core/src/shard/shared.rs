//! The state that all shards share, and the delivery of batches between them.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::counters::SharedMediaCounters;
use super::data_counters::DataDropReason;
use super::message::{ShardMailbox, ShardMessage};
use super::path_capacities::PathCapacities;
use super::tcp::TcpConnectionControl;
use crate::hub::Hub;
use crate::hub::data_settings::DataSettings;
use crate::hub::data_tracks::DataPublishError;
use crate::hub::packet_batch::PacketBatchToDeliver;
use crate::hub::session_registry::SessionRegistry;
use crate::hub::stream::{ShardIndex, Stream};
use crate::media::clock;
use crate::media::data_message::DataMessage;
use crate::session::identity::DtlsIdentity;
use crate::sources::failover_group::map::SourceFailoverMap;
use crate::sources::failover_group::switcher::FailoverOutput;
use crate::sources::frame_source::FrameSource;

/// State shared by all shards of a gateway.
pub struct SharedState {
    pub hub: Hub,
    pub failover_groups: SourceFailoverMap,
    pub session_registry: SessionRegistry,
    pub dtls_identity: Arc<DtlsIdentity>,
    /// Maximum time from the offer to the end of the DTLS handshake.
    pub connect_timeout: Duration,
    pub mailboxes: Vec<ShardMailbox>,
    pub counters: SharedMediaCounters,
    /// Candidate addresses for peers, the best first.
    pub candidate_addresses: RwLock<Arc<[SocketAddr]>>,
    /// What the paths of viewers carried.
    pub path_capacities: PathCapacities,
    /// The TCP connections of peers.
    pub tcp_connections: Arc<dyn TcpConnectionControl>,
    pub data_settings: DataSettings,
    /// An instant, and the wall-clock time at that instant as the duration since 1970.
    pub wall_clock_origin: (Instant, Duration),
}

impl SharedState {
    /// Returns the current candidate addresses.
    pub fn candidate_addresses(&self) -> Arc<[SocketAddr]> {
        self.candidate_addresses
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Delivers the packets of a batch to the taps of the stream and to the shards that have viewers of it. Never waits:
    /// a reader whose queue is full learns of the loss and reads the missed packets from the rings.
    ///
    /// Returns the batch if shard `local`, the caller's own, has viewers too; sources without a shard pass
    /// [`ShardIndex::NO_SHARD`].
    pub(crate) fn deliver_to_taps_and_other_shards(
        &self,
        local: ShardIndex,
        batch: PacketBatchToDeliver,
    ) -> Option<PacketBatchToDeliver> {
        batch.deliver_to_taps();
        let (stream, mut has_local_viewers) = (batch.stream_id, false);
        for shard in &batch.shards_with_viewers {
            if *shard == local {
                has_local_viewers = true;
            } else if let Some(mailbox) = self.mailbox(*shard) {
                let packets = batch.packets.clone();
                let _ = mailbox.push_or_flag_overflow(ShardMessage::StreamPackets { stream, packets });
                if batch.formats_or_layers_changed {
                    let _ = mailbox.push_or_flag_overflow(ShardMessage::StreamChanged { stream });
                }
            }
        }
        has_local_viewers.then_some(batch)
    }

    /// Appends the batches of the streams that show what these ones carry: see [`crate::sources::failover_group`].
    pub(crate) fn append_batches_of_failover_groups(&self, now: Instant, batches: &mut Vec<PacketBatchToDeliver>) {
        for index in 0..batches.len() {
            let Some(batch) = batches.get_mut(index) else { return };
            if let Some(feed) = batch.failover_feed.take() {
                let output = self.failover_groups.feed_batch_to_groups(now, &self.hub, batch, &feed);
                batches.extend(self.send_key_frame_requests_and_take_batches(output));
            }
        }
    }

    fn send_key_frame_requests_and_take_batches(&self, output: FailoverOutput) -> Vec<PacketBatchToDeliver> {
        for source in output.key_frame_requests {
            if let Some(mailbox) = self.mailbox(source.shard) {
                // If the message is lost, the failover group requests again.
                let _ = mailbox.push_low_priority(ShardMessage::RequestKeyFrame {
                    session: source.session_id,
                    layer: None,
                });
            }
        }
        output.batches
    }

    /// Publishes the frames that a source took since the last call. Returns `false` if its stream has another source; the
    /// frame source must then end.
    pub fn publish_frames_unless_displaced(&self, now: Instant, source: &mut FrameSource) -> bool {
        let mut published = source.publish_to_hub(&self.hub);
        self.append_batches_of_failover_groups(now, &mut published.batches);
        for batch in published.batches {
            self.deliver_to_taps_and_other_shards(ShardIndex::NO_SHARD, batch);
        }
        !published.displaced
    }

    /// Lets the failover groups select another source if it is time: see
    /// [`FailoverGroup::handle_timeout`](crate::sources::failover_group::switcher::FailoverGroup::handle_timeout).
    pub fn run_due_failover_switches(&self, now: Instant) {
        let output = self.failover_groups.handle_timeout(now, &self.hub);
        for batch in self.send_key_frame_requests_and_take_batches(output) {
            self.deliver_to_taps_and_other_shards(ShardIndex::NO_SHARD, batch);
        }
    }

    /// Records a data channel message of a stream, and leaves it for the other shards that have viewers. Returns whether
    /// shard `local`, the caller's own, has viewers too.
    ///
    /// # Errors
    ///
    /// [`DataPublishError::TooManyTracks`]; the message is dropped and counted.
    pub fn publish_data_message(
        &self,
        local: ShardIndex,
        stream: &Stream,
        message: &DataMessage,
    ) -> Result<bool, DataPublishError> {
        let retained_messages = self.data_settings.retained_messages;
        let recorded = stream.with_state(|state| {
            state.data_tracks.record_message(message, retained_messages)?;
            Ok::<_, DataPublishError>(state.shards_with_viewers().collect::<Vec<_>>())
        });
        let shards = recorded.inspect_err(|_| self.counters.data.count_dropped(DataDropReason::TooManyLabels))?;
        for shard in shards.iter().filter(|shard| **shard != local) {
            let message = ShardMessage::StreamData {
                stream: stream.id,
                message: message.clone(),
            };
            // It takes none of the room of media.
            if let Some(mailbox) = self.mailbox(*shard)
                && mailbox.push_low_priority(message).is_err()
            {
                self.counters.data.count_dropped(DataDropReason::MailboxFull);
            }
        }
        Ok(shards.contains(&local))
    }

    /// The mailbox of a shard; `None` for [`ShardIndex::NO_SHARD`].
    pub fn mailbox(&self, shard: ShardIndex) -> Option<&ShardMailbox> {
        self.mailboxes.get(usize::from(shard.0))
    }

    /// Returns the wall-clock time as an NTP timestamp (RFC 3550 §4).
    pub fn ntp_timestamp(&self, now: Instant) -> u64 {
        clock::unix_to_ntp(self.wall_clock_time(now))
    }

    /// Returns the wall-clock time as the duration since 1970.
    pub(crate) fn wall_clock_time(&self, now: Instant) -> Duration {
        let (instant, wall) = self.wall_clock_origin;
        wall + now.saturating_duration_since(instant)
    }
}
