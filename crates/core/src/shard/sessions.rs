//! The sessions of a shard: how they are opened, connected, closed and removed.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::ShardCore;
use super::message::{NegotiatedRole, NewSession};
use super::peers::{Peer, PeerRole, PeerSlotIndex};
use super::tcp::AddressDisplay;
use super::viewers;
use crate::hub::name::StreamKey;
use crate::hub::session_registry::SessionState;
use crate::hub::stream::SourceRef;
use crate::outputs::whep::{ShardTimeOriginAndNow, Viewer};
use crate::session::{CloseReason, Session};
use crate::sources::whip::Publisher;

/// A client that leaves sooner, without a connection, has not waited for one: this is not worth a warning.
const MIN_CONNECT_WAIT_TO_WARN: Duration = Duration::from_secs(3);

impl ShardCore {
    pub(super) fn open_session(&mut self, now: Instant, opening: NewSession) {
        let NewSession {
            session_id: id,
            stream_key: stream,
            local_credentials: local,
            role,
        } = opening;
        if self.stopping {
            return self
                .shared
                .session_registry
                .on_session_ended(now, id, CloseReason::Shutdown);
        }
        // It may have been evicted already.
        if self.shared.session_registry.session_state_and_shard(id).0 != SessionState::Connecting {
            return;
        }
        let (transport, role) = match role {
            NegotiatedRole::Publish(publication) => {
                let transport = publication.transport.clone();
                let source = SourceRef {
                    session_id: id,
                    shard: self.index,
                    accepts_key_frame_requests: publication.accepts_key_frame_requests(),
                };
                let publisher = Publisher::new(now, stream, source, publication, &mut self.random);
                (transport, PeerRole::Publisher(Box::new(publisher)))
            }
            NegotiatedRole::Play(playback) => {
                let transport = playback.transport.clone();
                let shard = self.index;
                let stream = self
                    .shared
                    .hub
                    .open_and_update_stream(&stream, |state| state.add_viewer(shard));
                let time = ShardTimeOriginAndNow {
                    origin: self.shared.wall_clock_origin.0,
                    now,
                };
                let viewer = Viewer::new(stream, playback, time, &mut self.random);
                (transport, PeerRole::Viewer(Box::new(viewer)))
            }
        };
        let ufrag = local.ufrag.clone();
        let identity = self.shared.dtls_identity.clone();
        let session = Session::new(now, identity, local, transport, self.shared.connect_timeout);
        let key = self.peers.insert(Peer {
            session_id: id,
            ufrags: vec![ufrag],
            session,
            role,
            destination: None,
            paths: Vec::new(),
            next_timer_at: None,
            opened_at: now,
            connected_at: None,
            has_unpublished_packets: false,
        });
        self.drain_peer_outputs_and_reschedule(now, key, None);
    }

    pub(super) fn close_session(&mut self, now: Instant, key: PeerSlotIndex, reason: CloseReason) {
        if let Some(peer) = self.peers.get(key) {
            peer.session.close(now, reason);
        }
        self.drain_peer_outputs_and_reschedule(now, key, None);
    }

    pub(super) fn handle_connected(&mut self, now: Instant, key: PeerSlotIndex) {
        let Some(peer) = self.peers.get(key) else { return };
        peer.connected_at = Some(now);
        self.shared.session_registry.on_connected(peer.session_id);
        let took = now.duration_since(peer.opened_at);
        self.shared.counters.connect_time.record(took);
        let remote = peer.destination.map(|d| tracing::field::display(AddressDisplay(d.to)));
        match &mut peer.role {
            PeerRole::Publisher(publisher) => {
                let (stream, role) = (publisher.stream_key(), publisher_role_name(publisher.stream_key()));
                info!(session = ?peer.session_id, %stream, remote, ?took, "{role} connected");
                publisher.attach_to_stream_if_no_source(now, &self.shared.hub);
            }
            PeerRole::Viewer(viewer) => {
                info!(session = ?peer.session_id, stream = %viewer.stream.key, remote, ?took, "viewer connected");
                let host = peer.destination.map(|destination| destination.to.ip());
                let capacity = host.and_then(|host| self.shared.path_capacities.recent_bitrate(now, host));
                viewer.start_playback(now, capacity);
                self.viewers_by_stream.entry(viewer.stream.id).or_default().push(key);
            }
        }
    }

    pub(super) fn remove_peer(&mut self, now: Instant, key: PeerSlotIndex, reason: CloseReason) {
        let Some(peer) = self.peers.remove(key) else { return };
        viewers::record_path_capacity(now, &peer, &self.shared.path_capacities);
        self.shared
            .session_registry
            .on_session_ended(now, peer.session_id, reason);
        self.shared.counters.count_closed_session(reason);
        self.shared
            .counters
            .add_packets_dropped_by_session(&peer.session.drop_counts());
        for address in &peer.paths {
            self.withdraw_route_from_other_shards(address.remote);
            // Another session may have taken over the connection.
            if self.peers.peer_by_address(address.remote).is_none() {
                self.shared.tcp_connections.close_after_session_end(address.remote);
            }
        }
        let (role, stream) = match peer.role {
            PeerRole::Publisher(publisher) => {
                publisher.detach_from_stream(&self.shared.hub);
                let stream = publisher.stream_key().clone();
                (publisher_role_name(&stream), stream)
            }
            PeerRole::Viewer(viewer) => {
                for stream in viewer.current_and_target_streams_except_own() {
                    self.unsubscribe(&stream, key);
                }
                self.unsubscribe(&viewer.stream, key);
                ("viewer", viewer.stream.key.clone())
            }
        };
        let (session, is_connected) = (peer.session_id, peer.connected_at.is_some());
        let lasted = now.duration_since(peer.opened_at);
        let has_given_up = reason.is_setup_timed_out_or_abandoned() && lasted < MIN_CONNECT_WAIT_TO_WARN;
        if !reason.is_failure() || reason == CloseReason::Evicted || has_given_up {
            match is_connected {
                true => info!(?session, %stream, ?reason, ?lasted, "{role} session ended"),
                false => {
                    debug!(?session, %stream, ?reason, ?lasted, "{role} session ended before ICE and DTLS were complete")
                }
            }
            return;
        }
        let candidates = tracing::field::debug(self.shared.candidate_addresses());
        let why = reason.explanation();
        let limit = self.failure_log_limiters.entry((role, reason)).or_default();
        let reason = reason.label();
        match limit.allow_log_line(now) {
            Some(suppressed) => {
                warn!(?session, %stream, reason, ?lasted, why, candidates, suppressed, "{role} session failed (see `why`)");
            }
            None => {
                debug!(?session, %stream, reason, ?lasted, why, candidates, "{role} session failed (see `why`)")
            }
        }
    }
}

/// Returns the role of a publisher for the log: a talker publishes to the back channel of a camera.
fn publisher_role_name(stream: &StreamKey) -> &'static str {
    match stream.is_back_channel() {
        true => "talker",
        false => "publisher",
    }
}
