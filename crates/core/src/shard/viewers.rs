//! The viewers of a shard: packets to them, and their subscriptions.

use std::sync::Arc;
use std::time::Instant;

use super::ShardCore;
use crate::hub::name::StreamKey;
use crate::hub::ring::RingEntry;
use crate::hub::stream::{LayerSelection, SessionId, Stream, StreamId};
use crate::media::MediaKind;
use crate::outputs::whep::{Viewer, ViewerShardAction};
use crate::session::CloseReason;
use crate::session::egress::Egress;
use crate::session::outbox::Destination;
use crate::shard::path_capacities::PathCapacities;
use crate::shard::peers::{Peer, PeerRole, PeerSlotIndex};
use crate::shard::tcp::{TcpConnectionControl, is_tcp_address};

impl ShardCore {
    /// Forwards packets of a stream to its viewers on this shard.
    pub(super) fn forward_packets(&mut self, now: Instant, stream: StreamId, packets: &[Arc<RingEntry>]) {
        let Some(viewers) = self.viewers_by_stream.get_mut(&stream).map(std::mem::take) else {
            return;
        };
        if let (Some(first), false) = (packets.first(), viewers.is_empty()) {
            self.oldest_forwarded_arrival = Some(
                self.oldest_forwarded_arrival
                    .map_or(first.packet.arrival, |oldest| oldest.min(first.packet.arrival)),
            );
        }
        let mut with_output = Vec::new();
        for &key in &viewers {
            let Some(peer) = self.peers.get(key) else { continue };
            let PeerRole::Viewer(viewer) = &mut peer.role else {
                continue;
            };
            let mut egress = Egress::new(&mut peer.session, peer.destination, &mut self.outbox);
            viewer.forward_stream_packets(now, stream, packets, &mut egress);
            if viewer.has_pending_work() {
                with_output.push(key);
            }
        }
        if let Some(list) = self.viewers_by_stream.get_mut(&stream) {
            *list = viewers;
        }
        for key in with_output {
            self.drain_peer_outputs_and_reschedule(now, key, None);
        }
    }

    /// Has a viewer watch another layer.
    pub(super) fn set_viewer_layer_selection(&mut self, now: Instant, session: SessionId, selection: LayerSelection) {
        let Some(key) = self.peers.slot_index_by_session_id(session) else {
            return;
        };
        if let Some(Peer {
            role: PeerRole::Viewer(viewer),
            ..
        }) = self.peers.get(key)
        {
            viewer.set_layer_selection(selection);
        }
        self.drain_peer_outputs_and_reschedule(now, key, None);
    }

    /// Has the viewers of a stream whose formats or layers have changed select again what they are sent.
    pub(super) fn on_formats_or_layers_changed(&mut self, now: Instant, stream: StreamId) {
        for key in self.viewers_by_stream.get(&stream).cloned().unwrap_or_default() {
            if let Some(Peer {
                role: PeerRole::Viewer(viewer),
                ..
            }) = self.peers.get(key)
            {
                viewer.handle_stream_changed(stream);
                self.drain_peer_outputs_and_reschedule(now, key, None);
            }
        }
    }

    /// Does everything that a viewer requests.
    pub(super) fn perform_viewer_actions(&mut self, now: Instant, key: PeerSlotIndex) {
        while let Some(output) = self.run_viewer_until_action(now, key) {
            match output {
                ViewerShardAction::RequestKeyFrame { source, layer } => {
                    self.route_key_frame_request(now, source, layer);
                }
                ViewerShardAction::Subscribe { kind, stream } => {
                    self.subscribe_and_switch_to_stream(now, key, kind, &stream)
                }
                ViewerShardAction::Unsubscribe(stream) => self.unsubscribe(&stream, key),
                ViewerShardAction::ReportQuality(mut quality) => {
                    let sending = self.sending_delay.recent_mean(now).unwrap_or_default();
                    let waited = quality.delays.gateway;
                    quality.delays.gateway = waited.map(|waited| waited + sending);
                    if let Some(peer) = self.peers.get(key) {
                        record_path_capacity(now, peer, &self.shared.path_capacities);
                        self.shared
                            .session_registry
                            .on_viewer_quality(peer.session_id, *quality);
                    }
                }
                ViewerShardAction::Close => self.close_session(now, key, CloseReason::Internal),
            }
        }
    }

    fn run_viewer_until_action(&mut self, now: Instant, key: PeerSlotIndex) -> Option<ViewerShardAction> {
        let peer = self.peers.get(key)?;
        let PeerRole::Viewer(viewer) = &mut peer.role else {
            return None;
        };
        if !viewer.has_pending_work() {
            return None;
        }
        let mut egress = Egress::new(&mut peer.session, peer.destination, &mut self.outbox);
        let hub = &self.shared.hub;
        viewer
            .run_pending_work_until_shard_action(now, &mut egress, |codec| hub.can_transcode_codec_for_browsers(codec))
    }

    /// Subscribes a viewer to a stream other than its own.
    fn subscribe_and_switch_to_stream(&mut self, now: Instant, key: PeerSlotIndex, kind: MediaKind, name: &StreamKey) {
        let shard = self.index;
        let stream = self
            .shared
            .hub
            .open_and_update_stream(name, |state| state.add_viewer(shard));
        self.viewers_by_stream.entry(stream.id).or_default().push(key);
        if let Some(Peer {
            role: PeerRole::Viewer(viewer),
            ..
        }) = self.peers.get(key)
        {
            viewer.begin_switch_to_subscribed_stream(now, kind, stream);
        }
    }

    /// Cancels the subscription of a viewer to a stream.
    pub(super) fn unsubscribe(&mut self, stream: &Stream, key: PeerSlotIndex) {
        if let Some(list) = self.viewers_by_stream.get_mut(&stream.id) {
            list.retain(|k| *k != key);
            if list.is_empty() {
                self.viewers_by_stream.remove(&stream.id);
            }
        }
        let shard = self.index;
        self.shared
            .hub
            .update_stream_and_remove_if_unused(stream, |state| state.remove_viewer(shard));
    }
}

/// Records what the path to a viewer carries, if its feedback proves it.
pub(super) fn record_path_capacity(now: Instant, peer: &Peer, capacities: &PathCapacities) {
    if let (PeerRole::Viewer(viewer), Some(destination)) = (&peer.role, peer.destination)
        && let Some(bitrate) = viewer.proven_path_bitrate(now)
    {
        capacities.record(now, destination.to.ip(), bitrate);
    }
}

/// Tells a viewer who is connected by TCP how long its datagrams wait to be written.
pub(super) fn report_tcp_delay_to_viewer(
    now: Instant,
    viewer: &mut Viewer,
    destination: Option<Destination>,
    connections: &dyn TcpConnectionControl,
) {
    let by_tcp = destination
        .map(|destination| destination.to)
        .filter(|to| is_tcp_address(*to));
    if let Some(to) = by_tcp.filter(|_| viewer.start_tcp_queue_check_if_due(now)) {
        viewer.handle_tcp_queue_delay(now, connections.queue_delay(now, to));
    }
}
