//! A shard without its thread and socket: datagrams, messages and time go in, datagrams come out of the outbox.
//!
//! One tick is any number of `handle_*` calls and one [`Core::finish_tick`]. All packets that arrived in one tick are
//! forwarded together: batches grow under load, and a lone packet is forwarded at once.
//!
//! [`routing`] decides which session an address belongs to, [`viewers`] forwards packets and keeps subscriptions.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use self::counters::DropReason;
use self::message::{Message, Opening, OpeningRole};
use self::peers::{Peer, PeerKey, Peers, Role};
use self::tcp::PeerAddress;
use crate::hub::log_limit::LogLimit;
use crate::hub::registry::SessionState;
use crate::hub::stream::{SessionId, ShardIndex, SourceRef, StreamId};
use crate::media::rtcp;
use crate::outputs::whep::Viewer;
use crate::session::egress::Egress;
use crate::session::outbox::{Destination, Outbox};
use crate::session::{CloseReason, Event, Session, ice};
use crate::sources::whip::Publisher;

pub mod counters;
pub mod message;
pub mod peers;
mod route;
mod routing;
mod shared;
pub mod tcp;
pub mod ufrag;
mod viewers;

use self::route::{Recipient, Route};
pub use self::shared::Shared;

/// A client that leaves sooner, without a connection, has not waited for one: this is not worth a warning.
const GIVE_UP_TIME: Duration = Duration::from_secs(3);

/// Remote address of a datagram, and the local address that it was sent to.
type DatagramPath = (SocketAddr, Option<IpAddr>);

/// State of one shard.
pub struct Core {
    index: ShardIndex,
    shared: Arc<Shared>,
    peers: Peers,
    outbox: Outbox,
    /// Viewers of each stream on this shard.
    subscriptions: HashMap<StreamId, Vec<PeerKey>>,
    /// Addresses whose sessions live on another shard; datagrams from them are passed on.
    foreign: HashMap<SocketAddr, Route>,
    timers: BinaryHeap<Reverse<(Instant, PeerKey)>>,
    /// Publishers that received RTP in this tick.
    dirty: Vec<PeerKey>,
    /// Arrival of the oldest packet that was forwarded in this tick.
    oldest_arrival: Option<Instant>,
    random: Box<dyn FnMut() -> u32 + Send>,
    /// Limits of the warnings about sessions that failed, which any viewer can cause, by role and reason.
    failure_log: HashMap<(&'static str, CloseReason), LogLimit>,
    stopping: bool,
}

/// Minimum time until the next timer of a peer, so that each tick ends.
const MIN_TIMEOUT: Duration = Duration::from_micros(200);

impl Core {
    /// Creates a shard without peers. `random` must be unpredictable: it seeds sequence numbers and SSRCs.
    pub fn new(index: ShardIndex, shared: Arc<Shared>, outbox: Outbox, random: Box<dyn FnMut() -> u32 + Send>) -> Self {
        Self {
            index,
            shared,
            peers: Peers::default(),
            outbox,
            subscriptions: HashMap::new(),
            foreign: HashMap::new(),
            timers: BinaryHeap::new(),
            dirty: Vec::new(),
            oldest_arrival: None,
            random,
            failure_log: HashMap::new(),
            stopping: false,
        }
    }

    /// Whether the shard has been stopped and its last session has ended.
    pub fn is_done(&self) -> bool {
        self.stopping && self.peers.is_empty()
    }

    /// Handles a datagram from the socket. `to` is the local address that it was sent to.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, to: Option<IpAddr>, datagram: &mut [u8]) {
        match self.recipient(now, from, datagram) {
            Ok(Recipient::Peer(key)) => self.handle_datagram_of(now, key, (from, to), datagram),
            Ok(Recipient::Shard(owner)) => self.pass_on(owner, from, to, datagram),
            Err(reason) => self.shared.counters.dropped(reason),
        }
    }

    fn handle_datagram_of(&mut self, now: Instant, key: PeerKey, path: DatagramPath, datagram: &mut [u8]) {
        if let Some(peer) = self.peers.get(key) {
            peer.session.handle_datagram(now, path.0, datagram, &mut self.random);
        }
        self.drain(now, key, Some(path));
    }

    /// Removes the peer of an address after a panic. Its session is not called again: its state may be inconsistent.
    pub fn abandon(&mut self, now: Instant, address: SocketAddr) {
        if let Some(key) = self.peers.by_address(address) {
            self.remove(now, key, CloseReason::Internal);
        }
    }

    /// Handles a message from the mailbox.
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        match message {
            Message::Open(opening) => self.open(now, *opening),
            Message::ChooseLayer { session, selection } => {
                if let Some(key) = self.peers.by_id(session) {
                    if let Some(Peer {
                        role: Role::Viewer(viewer),
                        ..
                    }) = self.peers.get(key)
                    {
                        viewer.handle_layer_selection(selection);
                    }
                    self.drain(now, key, None);
                }
            }
            Message::Close { session, reason } => {
                if let Some(key) = self.peers.by_id(session) {
                    self.close(now, key, reason);
                }
            }
            Message::Restart { session, local, remote } => {
                if let Some(key) = self.peers.by_id(session) {
                    self.peers.restart(key, local, remote);
                }
            }
            Message::Datagram {
                from,
                to,
                mut bytes,
                via,
            } => {
                let key = match self.recipient(now, from, &bytes) {
                    Ok(Recipient::Peer(key)) => key,
                    Ok(Recipient::Shard(_)) => return self.shared.counters.dropped(DropReason::UnknownSender),
                    Err(reason) => return self.shared.counters.dropped(reason),
                };
                let is_check = ice::is_check(&bytes);
                self.handle_datagram_of(now, key, (from, to), &mut bytes);
                self.announce_route(key, from, via, is_check);
            }
            Message::Framed { from, mut bytes } => match self.recipient(now, from, &bytes) {
                Ok(Recipient::Peer(key)) => self.handle_datagram_of(now, key, (from, None), &mut bytes),
                // A connection stays on the shard that its first check names.
                Ok(Recipient::Shard(_)) | Err(DropReason::UnknownSender) => {
                    self.shared.counters.dropped(DropReason::UnknownSender);
                    self.shared.tcp.refuse(from);
                }
                Err(reason) => self.shared.counters.dropped(reason),
            },
            Message::Disconnected { from } => {
                if let Some(key) = self.peers.by_address(from) {
                    self.lose_address(key, from);
                }
            }
            Message::Route { address, owner, until } => self.route(now, address, Route { owner, until }),
            Message::Unroute { address, owner } => {
                if self.foreign.get(&address).is_some_and(|route| route.owner == owner) {
                    self.foreign.remove(&address);
                }
            }
            Message::Media { stream, packets } => self.forward(now, stream, &packets),
            Message::StreamChanged { stream } => self.stream_changed(now, stream),
            Message::RequestKeyFrame { session } => self.request_key_frame(now, session),
            Message::Stop => {
                self.stopping = true;
                for key in self.peers.keys() {
                    self.close(now, key, CloseReason::Shutdown);
                }
            }
        }
    }

    fn open(&mut self, now: Instant, opening: Opening) {
        let Opening {
            session: id,
            stream,
            local,
            role,
        } = opening;
        if self.stopping {
            return self.shared.registry.ended(now, id, CloseReason::Shutdown);
        }
        // It may have been evicted already.
        if self.shared.registry.find(id).0 != SessionState::Connecting {
            return;
        }
        let (transport, role) = match role {
            OpeningRole::Publish(publication) => {
                let transport = publication.transport.clone();
                let source = SourceRef {
                    session: id,
                    shard: self.index,
                    takes_key_frame_requests: publication.takes_key_frame_requests(),
                };
                let publisher = Publisher::new(now, stream, source, publication, &mut self.random);
                (transport, Role::Publisher(Box::new(publisher)))
            }
            OpeningRole::Play(playback) => {
                let transport = playback.transport.clone();
                let shard = self.index;
                let stream = self.shared.hub.open_with(&stream, |state| state.subscribe(shard));
                (
                    transport,
                    Role::Viewer(Box::new(Viewer::new(stream, playback, &mut self.random))),
                )
            }
        };
        let ufrag = local.ufrag.clone();
        let session = Session::new(now, self.shared.identity.clone(), local, transport);
        let key = self.peers.insert(Peer {
            id,
            ufrags: vec![ufrag],
            session,
            role,
            destination: None,
            addresses: Vec::new(),
            scheduled: None,
            opened: now,
            connected: None,
            dirty: false,
        });
        self.drain(now, key, None);
    }

    fn close(&mut self, now: Instant, key: PeerKey, reason: CloseReason) {
        if let Some(peer) = self.peers.get(key) {
            peer.session.close(now, reason);
        }
        self.drain(now, key, None);
    }

    /// Drains a peer after a `handle_*` call: does what its session and its viewer request, and schedules its next timer.
    /// `path` is that of the datagram that was handled, if it was one.
    fn drain(&mut self, now: Instant, key: PeerKey, path: Option<DatagramPath>) {
        self.drain_session(now, key, path);
        self.drain_viewer(now, key);
        self.reschedule(now, key);
    }

    fn drain_session(&mut self, now: Instant, key: PeerKey, path: Option<DatagramPath>) {
        while let Some(peer) = self.peers.get(key) {
            while let Some(transmit) = peer.session.poll_transmit() {
                let to = transmit.to;
                let learned = peer.address(to).map(|address| address.local);
                let from = learned
                    .or(path.filter(|(from, _)| *from == to).map(|(_, local)| local))
                    .flatten();
                self.outbox.datagram(Destination { to, from }, &transmit.payload);
            }
            let Some(event) = peer.session.poll_event() else { break };
            self.handle_event(now, key, event, path.and_then(|(_, local)| local));
        }
    }

    fn handle_event(&mut self, now: Instant, key: PeerKey, event: Event, local: Option<IpAddr>) {
        match event {
            Event::AddressLearned(address) => {
                self.foreign.remove(&address);
                if let Some(peer) = self.peers.get(key)
                    && peer.addresses.is_empty()
                {
                    self.shared.registry.checked(peer.id);
                }
                self.peers.learn(key, address, local);
                self.shared.tcp.authenticated(address);
            }
            Event::AddressForgotten(address) => {
                self.peers.forget(key, address);
                self.unroute(address);
                self.shared.tcp.close(address);
            }
            Event::Moved(to) => {
                let Some(peer) = self.peers.get(key) else { return };
                let from = peer.address(to).and_then(|address| address.local);
                if peer.destination.is_some() {
                    debug!(session = ?peer.id, %to, "path moved");
                }
                peer.destination = Some(Destination { to, from });
            }
            Event::Connected => self.connected(now, key),
            Event::Rtp(packet) => {
                let Some(peer) = self.peers.get(key) else { return };
                if let Role::Publisher(publisher) = &mut peer.role {
                    publisher.handle_rtp(now, packet);
                    if !std::mem::replace(&mut peer.dirty, true) {
                        self.dirty.push(key);
                    }
                }
            }
            Event::Rtcp(compound) => self.handle_rtcp(now, key, &compound),
            Event::Closed(reason) => self.remove(now, key, reason),
        }
    }

    fn connected(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(key) else { return };
        peer.connected = Some(now);
        self.shared.registry.connected(peer.id);
        let took = now.duration_since(peer.opened);
        self.shared.counters.connecting.record(took);
        let remote = peer.destination.map(|d| tracing::field::display(PeerAddress(d.to)));
        match &mut peer.role {
            Role::Publisher(publisher) => {
                info!(session = ?peer.id, stream = %publisher.stream_name(), remote, ?took, "publisher connected");
                publisher.connected(now, &self.shared.hub);
            }
            Role::Viewer(viewer) => {
                info!(session = ?peer.id, stream = %viewer.stream.key, remote, ?took, "viewer connected");
                viewer.handle_connected(now);
                self.subscriptions.entry(viewer.stream.id).or_default().push(key);
            }
        }
    }

    fn handle_rtcp(&mut self, now: Instant, key: PeerKey, compound: &[u8]) {
        let messages = rtcp::read(compound);
        let ntp = self.shared.ntp(now);
        let Some(peer) = self.peers.get(key) else { return };
        match &mut peer.role {
            Role::Publisher(publisher) => publisher.handle_rtcp(now, &messages),
            Role::Viewer(viewer) => {
                self.shared.counters.reception.record(&messages);
                let mut egress = Egress::new(&mut peer.session, peer.destination, &mut self.outbox);
                viewer.handle_rtcp(now, ntp, &messages, &mut egress);
            }
        }
    }

    fn request_key_frame_of_source(&mut self, now: Instant, source: SourceRef) {
        if source.shard == self.index {
            self.request_key_frame(now, source.session);
        } else if let Some(mailbox) = self.shared.mailbox(source.shard) {
            // If the message is lost, this viewer or another one requests again.
            let _ = mailbox.offer(Message::RequestKeyFrame {
                session: source.session,
            });
        }
    }

    fn request_key_frame(&mut self, now: Instant, session: SessionId) {
        let Some(key) = self.peers.by_id(session) else { return };
        if let Some(Peer {
            role: Role::Publisher(publisher),
            ..
        }) = self.peers.get(key)
        {
            publisher.request_key_frame();
        }
        self.run_timer(now, key);
    }

    /// Handles an overflow of the mailbox: viewers read the missed packets from the rings.
    pub fn handle_overflow(&mut self, now: Instant) {
        self.shared.counters.dropped(DropReason::MailboxFull);
        for key in self.peers.keys() {
            if let Some(Peer {
                role: Role::Viewer(viewer),
                ..
            }) = self.peers.get(key)
            {
                viewer.handle_overflow(now);
            }
            self.drain(now, key, None);
        }
    }

    /// Handles the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(Reverse((at, key))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            match self.peers.get(key) {
                Some(peer) if peer.scheduled == Some(at) => peer.scheduled = None,
                _ => continue,
            }
            self.run_timer(now, key);
        }
    }

    fn run_timer(&mut self, now: Instant, key: PeerKey) {
        let ntp = self.shared.ntp(now);
        let Some(peer) = self.peers.get(key) else { return };
        peer.session.handle_timeout(now);
        if peer.destination.is_some() {
            let mut egress = Egress::new(&mut peer.session, peer.destination, &mut self.outbox);
            match &mut peer.role {
                Role::Publisher(publisher) => {
                    if publisher.is_silent_publisher(now) {
                        let why = "it is connected but sends no packet of a negotiated format: check its encoder";
                        warn!(session = ?peer.id, stream = %publisher.stream_name(), why, "no media received");
                    }
                    for feedback in publisher.handle_timeout(now) {
                        egress.rtcp(&feedback);
                    }
                    if publisher.has_arrived() && !std::mem::replace(&mut peer.dirty, true) {
                        self.dirty.push(key);
                    }
                }
                Role::Viewer(viewer) => viewer.handle_timeout(now, ntp, &mut egress),
            }
        }
        self.drain(now, key, None);
    }

    /// Returns when [`Self::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    fn reschedule(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(key) else { return };
        let role = match &peer.role {
            _ if peer.connected.is_none() => None,
            Role::Publisher(publisher) => publisher.poll_timeout(now),
            Role::Viewer(viewer) => viewer.poll_timeout(),
        };
        let due = [peer.session.poll_timeout(), role].into_iter().flatten().min();
        if let Some(due) = due.map(|due| due.max(now + MIN_TIMEOUT))
            && peer.scheduled.is_none_or(|scheduled| due < scheduled)
        {
            peer.scheduled = Some(due);
            self.timers.push(Reverse((due, key)));
        }
    }

    /// Publishes the packets that arrived in this tick and sends all datagrams in the outbox.
    pub fn finish_tick(&mut self, now: Instant) {
        while let Some(key) = self.dirty.pop() {
            self.publish(now, key);
        }
        self.outbox.flush();
    }

    /// Returns the arrival of the oldest packet that was forwarded since the last call.
    pub fn take_oldest_arrival(&mut self) -> Option<Instant> {
        self.oldest_arrival.take()
    }

    fn publish(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(key) else { return };
        peer.dirty = false;
        let Role::Publisher(publisher) = &mut peer.role else {
            return;
        };
        let published = publisher.publish(&self.shared.hub);
        if let Some(previous) = published.replaced {
            self.notify(
                now,
                previous.shard,
                Message::Close {
                    session: previous.session,
                    reason: CloseReason::TakenOver,
                },
            );
        }
        if published.displaced {
            return self.close(now, key, CloseReason::TakenOver);
        }
        for batch in published.batches {
            if let Some(local) = self.shared.deliver(self.index, batch) {
                self.forward(now, local.stream, &local.packets);
                if local.stream_changed {
                    self.stream_changed(now, local.stream);
                }
            }
        }
        self.run_timer(now, key);
    }

    fn notify(&mut self, now: Instant, shard: ShardIndex, message: Message) {
        if shard == self.index {
            self.handle_message(now, message);
        } else if let Some(mailbox) = self.shared.mailbox(shard) {
            let _ = mailbox.push(message);
        }
    }

    /// Handles the loss of the TCP connection behind an address of a peer. The session continues until its timeout, and
    /// moves to the address from which the peer is authenticated next.
    fn lose_address(&mut self, key: PeerKey, address: SocketAddr) {
        self.peers.forget(key, address);
        if let Some(peer) = self.peers.get(key) {
            peer.session.lose_address(address);
        }
    }

    fn remove(&mut self, now: Instant, key: PeerKey, reason: CloseReason) {
        let Some(peer) = self.peers.remove(key) else { return };
        self.shared.registry.ended(now, peer.id, reason);
        self.shared.counters.closed(reason);
        self.shared.counters.add_session_drops(&peer.session.drops());
        for address in &peer.addresses {
            self.unroute(address.remote);
            // Another session may have taken over the connection.
            if self.peers.by_address(address.remote).is_none() {
                self.shared.tcp.close(address.remote);
            }
        }
        let (role, stream) = match peer.role {
            Role::Publisher(publisher) => {
                publisher.ended(&self.shared.hub);
                ("publisher", publisher.stream_name().clone())
            }
            Role::Viewer(viewer) => {
                for stream in viewer.other_streams() {
                    self.unsubscribe(&stream, key);
                }
                self.unsubscribe(&viewer.stream, key);
                ("viewer", viewer.stream.key.name.clone())
            }
        };
        let (session, is_connected) = (peer.id, peer.connected.is_some());
        let lasted = now.duration_since(peer.opened);
        let has_given_up = reason.is_not_connected() && lasted < GIVE_UP_TIME;
        if !reason.is_failure() || reason == CloseReason::Evicted || has_given_up {
            match is_connected {
                true => info!(?session, %stream, ?reason, ?lasted, "{role} left"),
                false => debug!(?session, %stream, ?reason, ?lasted, "{role} left before it was connected"),
            }
            return;
        }
        let candidates = tracing::field::debug(self.shared.announced());
        let why = reason.explanation();
        let limit = self.failure_log.entry((role, reason)).or_default();
        let reason = reason.label();
        match limit.allow(now) {
            Some(suppressed) => {
                warn!(?session, %stream, reason, ?lasted, why, candidates, suppressed, "{role} failed to connect");
            }
            None => debug!(?session, %stream, reason, ?lasted, why, candidates, "{role} failed to connect"),
        }
    }
}
