//! Routing of datagrams: which session, on which shard, an address belongs to.
//!
//! A connectivity check names its session. All other datagrams are assigned by their source address, which a check has
//! assigned to a session. Any peer with a session can forge the source address of a check, so an address is not taken from
//! a session that received something authentic from it within [`ice::ADDRESS_RESERVATION_TIME`]. The kernel delivers all datagrams of one
//! address to one shard, which decides: it knows its own peers, and other shards announce their addresses to it
//! ([`ShardMessage::AnnounceRoute`]) and renew the announcement while something authentic arrives.
//!
//! A check of another session from a held address is ignored. Answering it would do no harm by itself, but some agents
//! send no further check after an answer: FFmpeg would continue with its handshake, whose records would go to the session
//! that holds the address. An ignored check is repeated until the address is free.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::ShardCore;
use super::route::{DatagramRecipient, ReservedAddressRoute};
use crate::hub::stream::ShardIndex;
use crate::session::ice;
use crate::shard::counters::RoutingDropReason;
use crate::shard::message::ShardMessage;
use crate::shard::peers::PeerSlotIndex;
use crate::shard::ufrag;

/// Maximum number of addresses of other shards. Their sessions are bounded already; this bounds the effect of errors.
const MAX_ROUTES_TO_OTHER_SHARDS: usize = 1 << 20;

/// A route is announced again when its hold time can be extended by this much: a fraction of [`ice::ADDRESS_RESERVATION_TIME`], and far more
/// than the time between two packets of a publisher.
const ROUTE_RENEWAL_INTERVAL: Duration = Duration::from_millis(500);

impl ShardCore {
    /// Returns the recipient of a datagram: the session that a connectivity check names, or the one that its source address
    /// was assigned to by a check (invariant 7).
    pub(super) fn find_recipient(
        &self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<DatagramRecipient, RoutingDropReason> {
        if !ice::is_binding_request(datagram) {
            let peer = self.peers.peer_by_address(from).map(DatagramRecipient::Peer);
            let recipient = peer.or_else(|| {
                self.foreign_routes
                    .get(&from)
                    .map(|route| DatagramRecipient::Shard(route.owner_shard))
            });
            return recipient.ok_or(RoutingDropReason::UnknownSender);
        }
        let named = ice::read_local_ufrag(datagram).and_then(|ufrag| {
            let peer = self.peers.slot_index_by_ufrag(&ufrag).map(DatagramRecipient::Peer);
            peer.or_else(|| ufrag::shard_of_ufrag(&ufrag).map(DatagramRecipient::Shard))
        });
        let claimant = named.ok_or(RoutingDropReason::UnknownSender)?;
        if self.is_address_reserved_by_other(now, from, claimant) {
            return Err(RoutingDropReason::AddressHeld);
        }
        Ok(claimant)
    }

    /// Whether an address is held by another recipient than `claimant`.
    pub(super) fn is_address_reserved_by_other(
        &self,
        now: Instant,
        address: SocketAddr,
        claimant: DatagramRecipient,
    ) -> bool {
        let peer = self
            .peers
            .address_owner_and_reservation_end(address)
            .map(|(key, until)| (DatagramRecipient::Peer(key), until));
        let route = self
            .foreign_routes
            .get(&address)
            .map(|r| (DatagramRecipient::Shard(r.owner_shard), r.held_until));
        peer.or(route)
            .is_some_and(|(holder, until)| holder != claimant && now < until)
    }

    /// Passes a datagram on to the shard of its session.
    pub(super) fn forward_datagram_to_shard(
        &self,
        owner: ShardIndex,
        from: SocketAddr,
        to: Option<IpAddr>,
        datagram: &[u8],
    ) {
        let Some(mailbox) = self.shared.mailbox(owner).filter(|_| owner != self.index) else {
            return self
                .shared
                .counters
                .count_dropped_datagram(RoutingDropReason::UnknownSender);
        };
        let message = ShardMessage::ForwardedDatagram {
            from,
            to,
            bytes: datagram.to_vec(),
            via: self.index,
        };
        if mailbox.push_low_priority(message).is_err() {
            self.shared
                .counters
                .count_dropped_datagram(RoutingDropReason::MailboxFull);
        }
    }

    /// Announces an authenticated address to shard `via`, which passed on a datagram from it: after each check, and when the
    /// hold time has grown by [`ROUTE_RENEWAL_INTERVAL`].
    pub(super) fn announce_route_to_shard(
        &mut self,
        key: PeerSlotIndex,
        from: SocketAddr,
        via: ShardIndex,
        is_check: bool,
    ) {
        let Some((_, until)) = self
            .peers
            .address_owner_and_reservation_end(from)
            .filter(|(holder, _)| *holder == key)
        else {
            return;
        };
        let Some(address) = self.peers.get(key).and_then(|peer| peer.path_by_remote_address(from)) else {
            return;
        };
        let is_due = address
            .last_route_announcement
            .is_none_or(|(to, announced)| to != via || until >= announced + ROUTE_RENEWAL_INTERVAL);
        if !is_check && !is_due {
            return;
        }
        address.last_route_announcement = Some((via, until));
        let owner = self.index;
        if let Some(mailbox) = self.shared.mailbox(via) {
            let _ = mailbox.push_control(ShardMessage::AnnounceRoute {
                address: from,
                owner,
                until,
            });
        }
    }

    /// Handles the announcement of another shard that an address belongs to it, unless a peer of this shard holds it.
    pub(super) fn reassign_address_to_foreign_shard(
        &mut self,
        now: Instant,
        address: SocketAddr,
        route: ReservedAddressRoute,
    ) {
        let is_held = self.is_address_reserved_by_other(now, address, DatagramRecipient::Shard(route.owner_shard));
        if !is_held && self.foreign_routes.len() < MAX_ROUTES_TO_OTHER_SHARDS {
            self.peers.unassign_address_from_any_peer(address);
            self.foreign_routes.insert(address, route);
        }
    }

    /// Withdraws the route of an address from the other shards, unless it belongs to another peer of this shard.
    pub(super) fn withdraw_route_from_other_shards(&self, address: SocketAddr) {
        if self.peers.peer_by_address(address).is_some() {
            return;
        }
        for (index, mailbox) in self.shared.mailboxes.iter().enumerate() {
            if index != usize::from(self.index.0) {
                let owner = self.index;
                let _ = mailbox.push_control(ShardMessage::WithdrawRoute { address, owner });
            }
        }
    }
}
