//! The viewers of a shard: packets to them, and their subscriptions.

use std::sync::Arc;
use std::time::Instant;

use super::Core;
use crate::hub::name::StreamKey;
use crate::hub::ring::Entry;
use crate::hub::stream::{Stream, StreamId};
use crate::media::Kind;
use crate::outputs::whep::ViewerOutput;
use crate::session::CloseReason;
use crate::session::egress::Egress;
use crate::shard::peers::{Peer, PeerKey, Role};

impl Core {
    /// Forwards packets of a stream to its viewers on this shard.
    pub(super) fn forward(&mut self, now: Instant, stream: StreamId, packets: &[Arc<Entry>]) {
        let Some(viewers) = self.subscriptions.get_mut(&stream).map(std::mem::take) else {
            return;
        };
        if let (Some(first), false) = (packets.first(), viewers.is_empty()) {
            self.oldest_arrival = Some(
                self.oldest_arrival
                    .map_or(first.packet.arrival, |oldest| oldest.min(first.packet.arrival)),
            );
        }
        let mut with_output = Vec::new();
        for &key in &viewers {
            let Some(peer) = self.peers.get(key) else { continue };
            let Role::Viewer(viewer) = &mut peer.role else { continue };
            let mut egress = Egress::new(&mut peer.session, peer.destination, &mut self.outbox);
            viewer.handle_packets(stream, packets, &mut egress);
            if viewer.has_output() {
                with_output.push(key);
            }
        }
        if let Some(list) = self.subscriptions.get_mut(&stream) {
            *list = viewers;
        }
        for key in with_output {
            self.drain(now, key, None);
        }
    }

    /// Has the viewers of a stream whose formats or layers have changed select again what they are sent.
    pub(super) fn stream_changed(&mut self, now: Instant, stream: StreamId) {
        for key in self.subscriptions.get(&stream).cloned().unwrap_or_default() {
            if let Some(Peer {
                role: Role::Viewer(viewer),
                ..
            }) = self.peers.get(key)
            {
                viewer.handle_stream_changed(stream);
                self.drain(now, key, None);
            }
        }
    }

    /// Does everything that a viewer requests.
    pub(super) fn drain_viewer(&mut self, now: Instant, key: PeerKey) {
        while let Some(output) = self.poll_viewer(now, key) {
            match output {
                ViewerOutput::RequestKeyFrame(source) => self.request_key_frame_of_source(now, source),
                ViewerOutput::Subscribe { kind, stream } => self.subscribe(now, key, kind, &stream),
                ViewerOutput::Unsubscribe(stream) => self.unsubscribe(&stream, key),
                ViewerOutput::Close => self.close(now, key, CloseReason::Internal),
            }
        }
    }

    fn poll_viewer(&mut self, now: Instant, key: PeerKey) -> Option<ViewerOutput> {
        let peer = self.peers.get(key)?;
        let Role::Viewer(viewer) = &mut peer.role else {
            return None;
        };
        if !viewer.has_output() {
            return None;
        }
        let mut egress = Egress::new(&mut peer.session, peer.destination, &mut self.outbox);
        let hub = &self.shared.hub;
        viewer.poll_output(now, &mut egress, |codec| hub.can_transcode(codec))
    }

    /// Subscribes a viewer to a stream other than its own.
    fn subscribe(&mut self, now: Instant, key: PeerKey, kind: Kind, name: &StreamKey) {
        let shard = self.index;
        let stream = self.shared.hub.open_with(name, |state| state.subscribe(shard));
        self.subscriptions.entry(stream.id).or_default().push(key);
        if let Some(Peer {
            role: Role::Viewer(viewer),
            ..
        }) = self.peers.get(key)
        {
            viewer.handle_subscribed(now, kind, stream);
        }
    }

    /// Cancels the subscription of a viewer to a stream.
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
