//! A shard without its thread and socket: datagrams, messages and time go in, datagrams come out of the outbox.
//!
//! One tick is any number of `handle_*` calls and one [`ShardCore::finish_tick`]. All packets that arrived in one tick are
//! forwarded together: batches grow under load, and a lone packet is forwarded at once.
//!
//! [`routing`] decides which session an address belongs to, [`publishers`] publishes what arrived, [`viewers`] forwards
//! packets and keeps subscriptions, [`data`] passes on messages of data channels.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use self::counters::RoutingDropReason;
use self::message::{NegotiatedRole, NewSession, ShardMessage};
use self::peers::{Peer, PeerRole, PeerSlotIndex, Peers};
use self::tcp::AddressDisplay;
use crate::congestion::sent::FlushTimes;
use crate::hub::log_limit::LogRateLimiter;
use crate::hub::session_registry::SessionState;
use crate::hub::stream::{ShardIndex, SourceRef, StreamId};
use crate::media::rtcp;
use crate::outputs::whep::rtcp_reports::round_trip_times;
use crate::outputs::whep::{ShardTimeOriginAndNow, Viewer};
use crate::session::egress::Egress;
use crate::session::outbox::{Destination, Outbox};
use crate::session::{CloseReason, Session, TransportEvent, ice};
use crate::sources::whip::Publisher;

pub mod counters;
mod data;
pub mod data_counters;
pub mod message;
pub mod path_capacities;
pub mod peers;
mod publishers;
mod route;
mod routing;
mod shared;
pub mod tcp;
pub mod ufrag;
mod viewers;

use self::route::{DatagramRecipient, ReservedAddressRoute};
pub use self::shared::SharedState;

/// A client that leaves sooner, without a connection, has not waited for one: this is not worth a warning.
const MIN_CONNECT_WAIT_TO_WARN: Duration = Duration::from_secs(3);

/// Remote address of a datagram, and the local address that it was sent to.
type RemoteAndLocalAddress = (SocketAddr, Option<IpAddr>);

/// State of one shard.
pub struct ShardCore {
    index: ShardIndex,
    shared: Arc<SharedState>,
    peers: Peers,
    outbox: Outbox,
    /// When the batches of the outbox were sent.
    flush_times: FlushTimes,
    /// Viewers of each stream on this shard.
    viewers_by_stream: HashMap<StreamId, Vec<PeerSlotIndex>>,
    /// Addresses whose sessions live on another shard; datagrams from them are passed on.
    foreign_routes: HashMap<SocketAddr, ReservedAddressRoute>,
    peer_timers: BinaryHeap<Reverse<(Instant, PeerSlotIndex)>>,
    /// Publishers that received RTP in this tick.
    publishers_with_pending_packets: Vec<PeerSlotIndex>,
    /// Arrival of the oldest packet that was forwarded in this tick.
    oldest_forwarded_arrival: Option<Instant>,
    random: Box<dyn FnMut() -> u32 + Send>,
    /// Limits of the warnings about sessions that failed, which any viewer can cause, by role and reason.
    failure_log_limiters: HashMap<(&'static str, CloseReason), LogRateLimiter>,
    stopping: bool,
}

/// Minimum time until the next timer of a peer, so that each tick ends.
const MIN_TIMER_DELAY: Duration = Duration::from_micros(200);

impl ShardCore {
    /// Creates a shard without peers. `random` must be unpredictable: it seeds sequence numbers and SSRCs.
    pub fn new(
        index: ShardIndex,
        shared: Arc<SharedState>,
        outbox: Outbox,
        random: Box<dyn FnMut() -> u32 + Send>,
    ) -> Self {
        let flush_times = FlushTimes::new(shared.wall_clock_origin.0);
        Self {
            index,
            shared,
            peers: Peers::default(),
            outbox,
            flush_times,
            viewers_by_stream: HashMap::new(),
            foreign_routes: HashMap::new(),
            peer_timers: BinaryHeap::new(),
            publishers_with_pending_packets: Vec::new(),
            oldest_forwarded_arrival: None,
            random,
            failure_log_limiters: HashMap::new(),
            stopping: false,
        }
    }

    /// Whether the shard has been stopped and its last session has ended.
    pub fn is_done(&self) -> bool {
        self.stopping && self.peers.is_empty()
    }

    /// Handles a datagram from the socket. `to` is the local address that it was sent to.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, to: Option<IpAddr>, datagram: &mut [u8]) {
        match self.find_recipient(now, from, datagram) {
            Ok(DatagramRecipient::Peer(key)) => self.handle_peer_datagram(now, key, (from, to), datagram),
            Ok(DatagramRecipient::Shard(owner)) => self.forward_datagram_to_shard(owner, from, to, datagram),
            Err(reason) => self.shared.counters.count_dropped_datagram(reason),
        }
    }

    fn handle_peer_datagram(
        &mut self,
        now: Instant,
        key: PeerSlotIndex,
        path: RemoteAndLocalAddress,
        datagram: &mut [u8],
    ) {
        if let Some(peer) = self.peers.get(key) {
            peer.session.handle_datagram(now, path.0, datagram, &mut self.random);
        }
        self.drain_peer_outputs_and_reschedule(now, key, Some(path));
    }

    /// Removes the peer of an address after a panic. Its session is not called again: its state may be inconsistent.
    pub fn remove_peer_after_panic(&mut self, now: Instant, address: SocketAddr) {
        if let Some(key) = self.peers.peer_by_address(address) {
            self.remove_peer(now, key, CloseReason::Internal);
        }
    }

    /// Handles a message from the mailbox.
    pub fn handle_message(&mut self, now: Instant, message: ShardMessage) {
        match message {
            ShardMessage::OpenSession(opening) => self.open_session(now, *opening),
            ShardMessage::ChooseLayer { session, selection } => {
                self.set_viewer_layer_selection(now, session, selection)
            }
            ShardMessage::CloseSession { session, reason } => {
                if let Some(key) = self.peers.slot_index_by_session_id(session) {
                    self.close_session(now, key, reason);
                }
            }
            ShardMessage::RestartIce { session, local, remote } => {
                if let Some(key) = self.peers.slot_index_by_session_id(session) {
                    self.peers.restart_ice(key, local, remote);
                }
            }
            ShardMessage::ForwardedDatagram {
                from,
                to,
                mut bytes,
                via,
            } => {
                let key = match self.find_recipient(now, from, &bytes) {
                    Ok(DatagramRecipient::Peer(key)) => key,
                    Ok(DatagramRecipient::Shard(_)) => {
                        return self
                            .shared
                            .counters
                            .count_dropped_datagram(RoutingDropReason::UnknownSender);
                    }
                    Err(reason) => return self.shared.counters.count_dropped_datagram(reason),
                };
                let is_check = ice::is_binding_request(&bytes);
                self.handle_peer_datagram(now, key, (from, to), &mut bytes);
                self.announce_route_to_shard(key, from, via, is_check);
            }
            ShardMessage::TcpFrame { from, mut bytes } => match self.find_recipient(now, from, &bytes) {
                Ok(DatagramRecipient::Peer(key)) => self.handle_peer_datagram(now, key, (from, None), &mut bytes),
                // A connection stays on the shard that its first check names.
                Ok(DatagramRecipient::Shard(_)) | Err(RoutingDropReason::UnknownSender) => {
                    self.shared
                        .counters
                        .count_dropped_datagram(RoutingDropReason::UnknownSender);
                    self.shared.tcp_connections.close_for_unknown_session(from);
                }
                Err(reason) => self.shared.counters.count_dropped_datagram(reason),
            },
            ShardMessage::TcpDisconnected { from } => {
                if let Some(key) = self.peers.peer_by_address(from) {
                    self.handle_tcp_disconnect(key, from);
                }
            }
            ShardMessage::AnnounceRoute { address, owner, until } => self.reassign_address_to_foreign_shard(
                now,
                address,
                ReservedAddressRoute {
                    owner_shard: owner,
                    held_until: until,
                },
            ),
            ShardMessage::WithdrawRoute { address, owner } => self.remove_route_to_other_shard(address, owner),
            ShardMessage::StreamPackets { stream, packets } => self.forward_packets(now, stream, &packets),
            ShardMessage::StreamChanged { stream } => self.on_formats_or_layers_changed(now, stream),
            ShardMessage::StreamData { stream, message } => self.send_data_to_viewers(now, stream, &message),
            ShardMessage::DataForSession { session, message } => self.send_data_to_session(now, session, &message),
            ShardMessage::RequestKeyFrame { session, layer } => self.request_key_frame(now, session, layer.as_ref()),
            ShardMessage::Stop => {
                self.stopping = true;
                for key in self.peers.keys() {
                    self.close_session(now, key, CloseReason::Shutdown);
                }
            }
        }
    }

    fn remove_route_to_other_shard(&mut self, address: SocketAddr, owner: ShardIndex) {
        let is_owner = |route: &ReservedAddressRoute| route.owner_shard == owner;
        if self.foreign_routes.get(&address).is_some_and(is_owner) {
            self.foreign_routes.remove(&address);
        }
    }

    fn open_session(&mut self, now: Instant, opening: NewSession) {
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

    fn close_session(&mut self, now: Instant, key: PeerSlotIndex, reason: CloseReason) {
        if let Some(peer) = self.peers.get(key) {
            peer.session.close(now, reason);
        }
        self.drain_peer_outputs_and_reschedule(now, key, None);
    }

    /// Drains a peer after a `handle_*` call: does what its session and its viewer request, and schedules its next timer.
    /// `path` is that of the datagram that was handled, if it was one.
    fn drain_peer_outputs_and_reschedule(
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

    fn handle_connected(&mut self, now: Instant, key: PeerSlotIndex) {
        let Some(peer) = self.peers.get(key) else { return };
        peer.connected_at = Some(now);
        self.shared.session_registry.on_connected(peer.session_id);
        let took = now.duration_since(peer.opened_at);
        self.shared.counters.connect_time.record(took);
        let remote = peer.destination.map(|d| tracing::field::display(AddressDisplay(d.to)));
        match &mut peer.role {
            PeerRole::Publisher(publisher) => {
                info!(session = ?peer.session_id, stream = %publisher.stream_key(), remote, ?took, "publisher connected");
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

    /// Handles an overflow of the mailbox: viewers read the missed packets from the rings.
    pub fn catch_up_viewers_after_mailbox_overflow(&mut self, now: Instant) {
        self.shared
            .counters
            .count_dropped_datagram(RoutingDropReason::MailboxFull);
        for key in self.peers.keys() {
            if let Some(Peer {
                role: PeerRole::Viewer(viewer),
                ..
            }) = self.peers.get(key)
            {
                viewer.handle_mailbox_overflow(now);
            }
            self.drain_peer_outputs_and_reschedule(now, key, None);
        }
    }

    /// Handles the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(Reverse((at, key))) = self.peer_timers.peek().copied() {
            if at > now {
                break;
            }
            self.peer_timers.pop();
            match self.peers.get(key) {
                Some(peer) if peer.next_timer_at == Some(at) => peer.next_timer_at = None,
                _ => continue,
            }
            self.run_peer_timer(now, key);
        }
    }

    fn run_peer_timer(&mut self, now: Instant, key: PeerSlotIndex) {
        let ntp = self.shared.ntp_timestamp(now);
        let Some(peer) = self.peers.get(key) else { return };
        peer.session.handle_timeout(now);
        if peer.destination.is_some() {
            let mut egress = Egress::new(&mut peer.session, peer.destination, &mut self.outbox);
            match &mut peer.role {
                PeerRole::Publisher(publisher) => {
                    if publisher.take_no_media_warning(now) {
                        let why =
                            "the publisher is connected but sends no packet of a negotiated format: check its encoder";
                        warn!(session = ?peer.session_id, stream = %publisher.stream_key(), why, "publisher is connected, but no usable media packet has arrived from it");
                    }
                    for feedback in publisher.handle_timeout(now) {
                        egress.send_rtcp(&feedback);
                    }
                    if publisher.has_packets_to_publish() && !std::mem::replace(&mut peer.has_unpublished_packets, true)
                    {
                        self.publishers_with_pending_packets.push(key);
                    }
                }
                PeerRole::Viewer(viewer) => {
                    viewers::report_tcp_delay_to_viewer(now, viewer, peer.destination, &*self.shared.tcp_connections);
                    viewer.handle_timeout(now, ntp, &mut egress);
                }
            }
        }
        self.drain_peer_outputs_and_reschedule(now, key, None);
    }

    /// Returns when [`Self::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.peer_timers.peek().map(|Reverse((at, _))| *at)
    }

    fn reschedule_timer(&mut self, now: Instant, key: PeerSlotIndex) {
        let Some(peer) = self.peers.get(key) else { return };
        let role = match &peer.role {
            _ if peer.connected_at.is_none() => None,
            PeerRole::Publisher(publisher) => publisher.poll_timeout(now),
            PeerRole::Viewer(viewer) => viewer.poll_timeout(),
        };
        let due = [peer.session.poll_timeout(), role].into_iter().flatten().min();
        if let Some(due) = due.map(|due| due.max(now + MIN_TIMER_DELAY))
            && peer.next_timer_at.is_none_or(|scheduled| due < scheduled)
        {
            peer.next_timer_at = Some(due);
            self.peer_timers.push(Reverse((due, key)));
        }
    }

    /// Publishes the packets that arrived in this tick and sends all datagrams in the outbox.
    pub fn finish_tick(&mut self, now: Instant) {
        self.publish_pending_packets(now);
        self.send_datagrams(now);
    }

    /// Sends all datagrams in the outbox, at the present instant: that of the beginning of the tick would look like delay.
    pub fn send_datagrams(&mut self, now: Instant) {
        self.outbox.flush();
        self.flush_times
            .record_flush_time_of_batches_before(self.outbox.current_batch_number(), now);
    }

    /// Returns the arrival of the oldest packet that was forwarded since the last call.
    pub fn take_oldest_forwarded_arrival(&mut self) -> Option<Instant> {
        self.oldest_forwarded_arrival.take()
    }

    fn send_or_handle_message(&mut self, now: Instant, shard: ShardIndex, message: ShardMessage) {
        if shard == self.index {
            self.handle_message(now, message);
        } else if let Some(mailbox) = self.shared.mailbox(shard) {
            let _ = mailbox.push_control(message);
        }
    }

    /// Handles the loss of the TCP connection behind an address of a peer. The session continues until its timeout, and
    /// moves to the address from which the peer is authenticated next.
    fn handle_tcp_disconnect(&mut self, key: PeerSlotIndex, address: SocketAddr) {
        self.peers.remove_peer_path(key, address);
        if let Some(peer) = self.peers.get(key) {
            peer.session.remove_address(address);
        }
    }

    fn remove_peer(&mut self, now: Instant, key: PeerSlotIndex, reason: CloseReason) {
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
                ("publisher", publisher.stream_key().clone())
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
