//! What a session puts out after each call: datagrams to send, addresses, media and RTCP.

use std::net::IpAddr;
use std::time::Instant;

use tracing::debug;

use super::RemoteAndLocalAddress;
use super::ShardCore;
use super::peers::{PeerRole, PeerSlotIndex};
use crate::media::rtcp;
use crate::outputs::whep::rtcp_reports::round_trip_times;
use crate::session::TransportEvent;
use crate::session::egress::Egress;
use crate::session::outbox::Destination;

impl ShardCore {
    /// Drains a peer after a `handle_*` call: does what its session and its viewer request, and schedules its next timer.
    /// `path` is that of the datagram that was handled, if it was one.
    pub(super) fn drain_peer_outputs_and_reschedule(
        &mut self,
        now: Instant,
        key: PeerSlotIndex,
        path: Option<RemoteAndLocalAddress>,
    ) {
        self.drain_session_outputs(now, key, path);
        self.perform_viewer_actions(now, key);
        self.reschedule_timer(now, key);
    }

    fn drain_session_outputs(&mut self, now: Instant, key: PeerSlotIndex, path: Option<RemoteAndLocalAddress>) {
        while let Some(peer) = self.peers.get(key) {
            while let Some(transmit) = peer.session.poll_transmit() {
                let to = transmit.to;
                let learned = peer.path_by_remote_address(to).map(|address| address.local);
                let from = learned
                    .or(path.filter(|(from, _)| *from == to).map(|(_, local)| local))
                    .flatten();
                self.outbox
                    .push_datagram(Destination { to, local_ip: from }, &transmit.payload);
            }
            let Some(event) = peer.session.poll_event() else { break };
            self.handle_transport_event(now, key, event, path.and_then(|(_, local)| local));
        }
    }

    fn handle_transport_event(
        &mut self,
        now: Instant,
        key: PeerSlotIndex,
        event: TransportEvent,
        local: Option<IpAddr>,
    ) {
        match event {
            TransportEvent::AddressLearned(address) => {
                self.foreign_routes.remove(&address);
                if let Some(peer) = self.peers.get(key)
                    && peer.paths.is_empty()
                {
                    self.shared
                        .session_registry
                        .on_connectivity_check_passed(peer.session_id);
                }
                self.peers.assign_address(key, address, local);
                self.shared.tcp_connections.mark_authenticated(address);
            }
            TransportEvent::AddressForgotten(address) => {
                self.peers.remove_peer_path(key, address);
                self.withdraw_route_from_other_shards(address);
                self.shared.tcp_connections.close_after_session_end(address);
            }
            TransportEvent::DestinationMoved(to) => {
                let Some(peer) = self.peers.get(key) else { return };
                let from = peer.path_by_remote_address(to).and_then(|address| address.local);
                if peer.destination.is_some() {
                    debug!(session = ?peer.session_id, %to, "ICE path changed: the session now sends to the new address");
                }
                peer.destination = Some(Destination { to, local_ip: from });
            }
            TransportEvent::Connected => self.handle_connected(now, key),
            TransportEvent::Rtp(packet) => {
                let Some(peer) = self.peers.get(key) else { return };
                if let PeerRole::Publisher(publisher) = &mut peer.role {
                    publisher.handle_rtp(now, packet);
                    if !std::mem::replace(&mut peer.has_unpublished_packets, true) {
                        self.publishers_with_pending_packets.push(key);
                    }
                }
            }
            TransportEvent::Rtcp(compound) => self.handle_rtcp(now, key, &compound),
            TransportEvent::Data(event) => self.handle_data_event(now, key, event),
            TransportEvent::Closed(reason) => self.remove_peer(now, key, reason),
        }
    }

    fn handle_rtcp(&mut self, now: Instant, key: PeerSlotIndex, compound: &[u8]) {
        let messages = rtcp::parse_compound_until_malformed(compound);
        let ntp = self.shared.ntp_timestamp(now);
        let Some(peer) = self.peers.get(key) else { return };
        match &mut peer.role {
            PeerRole::Publisher(publisher) => publisher.handle_rtcp(now, &messages),
            PeerRole::Viewer(viewer) => {
                self.shared.counters.viewer_reception_reports.record_rtcp(&messages);
                for rtt in round_trip_times(ntp, &messages) {
                    self.shared.counters.viewer_round_trip_time.record(rtt);
                }
                let mut egress = Egress::new(&mut peer.session, peer.destination, &mut self.outbox);
                viewer.handle_rtcp(now, ntp, &messages, &mut egress);
                viewer.handle_transport_feedback(now, compound, &self.flush_times);
            }
        }
    }
}
