//! What viewers are sent, and from which stream each takes it.

use std::sync::Arc;
use std::time::Instant;

use super::Core;
use crate::hub::stream::{Stream, StreamId};
use crate::media::packet::Packet;
use crate::session::CloseReason;
use crate::shard::peers::{Peer, PeerKey, Role};

impl Core {
    /// Forwards to the viewers of a stream on this shard.
    pub(super) fn forward(&mut self, now: Instant, stream: StreamId, packets: &[Arc<Packet>]) {
        let Some(viewers) = self.subscriptions.get_mut(&stream).map(std::mem::take) else {
            return;
        };
        if let (Some(first), false) = (packets.first(), viewers.is_empty()) {
            self.oldest = Some(self.oldest.map_or(first.arrival, |oldest| oldest.min(first.arrival)));
        }
        let format_changed = packets.iter().any(|packet| packet.format_changed);
        let (mut behind, mut changing, mut broken) = (Vec::new(), Vec::new(), Vec::new());
        for &key in &viewers {
            let Some(peer) = self.peers.get(key) else { continue };
            let (Role::Viewer(viewer), Some(destination)) = (&mut peer.role, peer.destination) else {
                continue;
            };
            let forwarded = viewer.forward(stream, packets, &mut peer.session, destination, &mut self.outbox);
            if forwarded.may_catch_up {
                behind.push(key);
            }
            if forwarded.may_change || (format_changed && viewer.stream.id == stream) {
                changing.push(key);
            }
            if viewer.is_broken() {
                broken.push(key);
            }
        }
        if let Some(list) = self.subscriptions.get_mut(&stream) {
            *list = viewers;
        }
        for key in behind {
            self.catch_up(now, key);
            self.reschedule(now, key);
        }
        for key in changing {
            self.update_subscriptions(now, key);
            self.catch_up(now, key);
            self.reschedule(now, key);
        }
        for key in broken {
            self.close(now, key, CloseReason::Internal);
        }
    }

    pub(super) fn catch_up(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(key) else { return };
        let (Role::Viewer(viewer), Some(destination)) = (&mut peer.role, peer.destination) else {
            return;
        };
        if viewer
            .catch_up(now, &mut peer.session, destination, &mut self.outbox)
            .key_frame
        {
            let source = viewer.request_key_frame_of_source();
            self.request_key_frame_of_source(now, source);
        }
    }

    /// Looks where a viewer should take its media from, and has it change there.
    pub(super) fn update_subscriptions(&mut self, now: Instant, key: PeerKey) {
        let shared = self.shared.clone();
        let hub = &shared.hub;
        let Some(Peer {
            role: Role::Viewer(viewer),
            ..
        }) = self.peers.get(key)
        else {
            return;
        };
        let home = viewer.stream.clone();
        let wanted = home.with(|state| viewer.wanted(state, |codec| hub.can_transcode(codec)));
        let mut left = Vec::new();
        for (kind, stream) in wanted {
            if viewer.is_bound_for(kind, &stream) {
                continue;
            }
            let to = if stream == home.key {
                home.clone()
            } else {
                let shard = self.index;
                let to = hub.open_with(&stream, |state| state.subscribe(shard));
                self.subscriptions.entry(to.id).or_default().push(key);
                to
            };
            left.extend(viewer.bind(now, kind, to));
        }
        left.extend(viewer.change(now));
        // A layer is changed to at a key frame: the sooner there is one, the better.
        let source = viewer
            .awaits_layer()
            .then(|| viewer.request_key_frame_of_source())
            .flatten();
        for stream in left.into_iter().filter(|stream| stream.id != home.id) {
            self.unsubscribe(&stream, key);
        }
        self.request_key_frame_of_source(now, source);
    }

    pub(super) fn unsubscribe(&mut self, stream: &Stream, key: PeerKey) {
        if let Some(list) = self.subscriptions.get_mut(&stream.id) {
            list.retain(|k| *k != key);
            if list.is_empty() {
                self.subscriptions.remove(&stream.id);
            }
        }
        let shard = self.index;
        self.shared.hub.release(stream, |state| state.unsubscribe(shard));
    }
}
