//! A shard without its thread and socket: datagrams, messages and time go in, datagrams come out of the outbox.
//!
//! One tick is any number of `handle_*` calls and one [`ShardCore::finish_tick`]. All packets that arrived in one tick are
//! forwarded together: batches grow under load, and a lone packet is forwarded at once.
//!
//! [`routing`] decides which session an address belongs to, [`sessions`] opens and removes sessions, [`session_outputs`] does
//! what they ask for, [`timers`] calls them when they are due, [`publishers`] publishes what arrived, [`viewers`] forwards
//! packets and keeps subscriptions, [`data`] passes on messages of data channels.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::counters::RoutingDropReason;
use self::message::ShardMessage;
use self::peers::{Peer, PeerRole, PeerSlotIndex, Peers};
use crate::congestion::sent::FlushTimes;
use crate::hub::log_limit::LogRateLimiter;
use crate::hub::stream::{ShardIndex, StreamId};
use crate::outputs::forwarding_delay::ForwardingDelay;
use crate::session::outbox::Outbox;
use crate::session::{CloseReason, ice};

pub mod counters;
mod data;
pub mod data_counters;
pub mod message;
pub mod path_capacities;
pub mod peers;
mod publishers;
mod route;
mod routing;
mod session_outputs;
mod sessions;
mod shared;
pub mod tcp;
mod timers;
pub mod ufrag;
mod viewers;

use self::route::{DatagramRecipient, ReservedAddressRoute};
pub use self::shared::SharedState;

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
    /// Time from the end of a tick until what it forwarded is sent to all viewers, of late.
    sending_delay: ForwardingDelay,
    random: Box<dyn FnMut() -> u32 + Send>,
    /// Limits of the warnings about sessions that failed, which any viewer can cause, by role and reason.
    failure_log_limiters: HashMap<(&'static str, CloseReason), LogRateLimiter>,
    stopping: bool,
}

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
            sending_delay: ForwardingDelay::default(),
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
            ShardMessage::SelectLayer { session, selection } => {
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
            ShardMessage::RequestKeyFrame { session, layer } => {
                self.request_key_frame_from_publisher(now, session, layer.as_ref())
            }
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

    /// Records that all datagrams of the tick that ended at `tick_end` were sent at `sent_at`. Returns how long the oldest packet
    /// that was forwarded in it took from its arrival; `None` if none was.
    pub fn record_sending_of_tick(&mut self, tick_end: Instant, sent_at: Instant) -> Option<Duration> {
        let oldest = self.oldest_forwarded_arrival.take()?;
        // Each viewer has the time until the end of the tick by its own packets.
        self.sending_delay
            .record_delay(sent_at.saturating_duration_since(tick_end), sent_at);
        Some(sent_at.saturating_duration_since(oldest))
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
}
