//! The publishers of a shard: packets from them, and requests for key frames.

use std::time::Instant;

use super::ShardCore;
use super::message::ShardMessage;
use super::peers::{Peer, PeerRole, PeerSlotIndex};
use crate::hub::stream::{SessionId, SourceRef};
use crate::media::Rid;
use crate::session::CloseReason;

impl ShardCore {
    /// Publishes the packets that arrived in this tick.
    pub fn publish_pending_packets(&mut self, now: Instant) {
        while let Some(key) = self.publishers_with_pending_packets.pop() {
            self.publish_packets(now, key);
        }
    }

    fn publish_packets(&mut self, now: Instant, key: PeerSlotIndex) {
        let Some(peer) = self.peers.get(key) else { return };
        peer.has_unpublished_packets = false;
        let PeerRole::Publisher(publisher) = &mut peer.role else {
            return;
        };
        let mut published = publisher.publish_arrived_packets(&self.shared.hub);
        if let Some(previous) = published.replaced_source {
            self.send_or_handle_message(
                now,
                previous.shard,
                ShardMessage::CloseSession {
                    session: previous.session_id,
                    reason: CloseReason::TakenOver,
                },
            );
        }
        if published.displaced {
            return self.close_session(now, key, CloseReason::TakenOver);
        }
        self.shared
            .append_batches_of_failover_groups(now, &mut published.batches);
        for batch in published.batches {
            if let Some(local) = self.shared.deliver_to_taps_and_other_shards(self.index, batch) {
                self.forward_packets(now, local.stream_id, &local.packets);
                if local.formats_or_layers_changed {
                    self.on_formats_or_layers_changed(now, local.stream_id);
                }
            }
        }
        self.run_peer_timer(now, key);
    }

    pub(super) fn route_key_frame_request(&mut self, now: Instant, source: SourceRef, layer: Option<Rid>) {
        if source.shard == self.index {
            self.request_key_frame_from_publisher(now, source.session_id, layer.as_ref());
        } else if let Some(mailbox) = self.shared.mailbox(source.shard) {
            // If the message is lost, this viewer or another one requests again.
            let _ = mailbox.push_low_priority(ShardMessage::RequestKeyFrame {
                session: source.session_id,
                layer,
            });
        }
    }

    pub(super) fn request_key_frame_from_publisher(&mut self, now: Instant, session: SessionId, layer: Option<&Rid>) {
        let Some(key) = self.peers.slot_index_by_session_id(session) else {
            return;
        };
        if let Some(Peer {
            role: PeerRole::Publisher(publisher),
            ..
        }) = self.peers.get(key)
        {
            publisher.schedule_key_frame_request(layer);
        }
        self.run_peer_timer(now, key);
    }
}
