//! Routing of datagrams: which session, on which shard, an address belongs to.
//!
//! A connectivity check names its session. All other datagrams are assigned by their source address, which a check has
//! assigned to a session. Any peer with a session can forge the source address of a check, so an address is not taken from
//! a session that received something authentic from it within [`ice::HOLD`]. The kernel delivers all datagrams of one
//! address to one shard, which decides: it knows its own peers, and other shards announce their addresses to it
//! ([`Message::Route`]) and renew the announcement while something authentic arrives.
//!
//! A check of another session from a held address is ignored. Answering it would do no harm by itself, but some agents
//! send no further check after an answer: FFmpeg would continue with its handshake, whose records would go to the session
//! that holds the address. An ignored check is repeated until the address is free.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::Core;
use super::route::{Recipient, Route};
use crate::hub::stream::ShardIndex;
use crate::session::ice;
use crate::shard::counters::DropReason;
use crate::shard::message::Message;
use crate::shard::peers::PeerKey;
use crate::shard::ufrag;

/// Maximum number of addresses of other shards. Their sessions are bounded already; this bounds the effect of errors.
const MAX_FOREIGN: usize = 1 << 20;

/// A route is announced again when its hold time can be extended by this much: a fraction of [`ice::HOLD`], and far more
/// than the time between two packets of a publisher.
const RENEWAL: Duration = Duration::from_millis(500);

impl Core {
    /// Returns the recipient of a datagram: the session that a connectivity check names, or the one that its source address
    /// was assigned to by a check (invariant 7).
    pub(super) fn recipient(&self, now: Instant, from: SocketAddr, datagram: &[u8]) -> Result<Recipient, DropReason> {
        if !ice::is_check(datagram) {
            let peer = self.peers.by_address(from).map(Recipient::Peer);
            let recipient = peer.or_else(|| self.foreign.get(&from).map(|route| Recipient::Shard(route.owner)));
            return recipient.ok_or(DropReason::UnknownSender);
        }
        let named = ice::local_ufrag(datagram).and_then(|ufrag| {
            let peer = self.peers.by_ufrag(&ufrag).map(Recipient::Peer);
            peer.or_else(|| ufrag::shard_of(&ufrag).map(Recipient::Shard))
        });
        let claimant = named.ok_or(DropReason::UnknownSender)?;
        if self.is_held(now, from, claimant) {
            return Err(DropReason::AddressHeld);
        }
        Ok(claimant)
    }

    /// Whether an address is held by another recipient than `claimant`.
    pub(super) fn is_held(&self, now: Instant, address: SocketAddr, claimant: Recipient) -> bool {
        let peer = self
            .peers
            .holder(address)
            .map(|(key, until)| (Recipient::Peer(key), until));
        let route = self.foreign.get(&address).map(|r| (Recipient::Shard(r.owner), r.until));
        peer.or(route)
            .is_some_and(|(holder, until)| holder != claimant && now < until)
    }

    /// Passes a datagram on to the shard of its session.
    pub(super) fn pass_on(&self, owner: ShardIndex, from: SocketAddr, to: Option<IpAddr>, datagram: &[u8]) {
        let Some(mailbox) = self.shared.mailbox(owner).filter(|_| owner != self.index) else {
            return self.shared.counters.dropped(DropReason::UnknownSender);
        };
        let message = Message::Datagram {
            from,
            to,
            bytes: datagram.to_vec(),
            via: self.index,
        };
        if mailbox.offer(message).is_err() {
            self.shared.counters.dropped(DropReason::MailboxFull);
        }
    }

    /// Announces an authenticated address to shard `via`, which passed on a datagram from it: after each check, and when the
    /// hold time has grown by [`RENEWAL`].
    pub(super) fn announce_route(&mut self, key: PeerKey, from: SocketAddr, via: ShardIndex, is_check: bool) {
        let Some((_, until)) = self.peers.holder(from).filter(|(holder, _)| *holder == key) else {
            return;
        };
        let Some(address) = self.peers.get(key).and_then(|peer| peer.address(from)) else {
            return;
        };
        let is_due = address
            .announced
            .is_none_or(|(to, announced)| to != via || until >= announced + RENEWAL);
        if !is_check && !is_due {
            return;
        }
        address.announced = Some((via, until));
        let owner = self.index;
        if let Some(mailbox) = self.shared.mailbox(via) {
            let _ = mailbox.push(Message::Route {
                address: from,
                owner,
                until,
            });
        }
    }

    /// Handles the announcement of another shard that an address belongs to it, unless a peer of this shard holds it.
    pub(super) fn route(&mut self, now: Instant, address: SocketAddr, route: Route) {
        let is_held = self.is_held(now, address, Recipient::Shard(route.owner));
        if !is_held && self.foreign.len() < MAX_FOREIGN {
            self.peers.release(address);
            self.foreign.insert(address, route);
        }
    }

    /// Withdraws the route of an address from the other shards, unless it belongs to another peer of this shard.
    pub(super) fn unroute(&self, address: SocketAddr) {
        if self.peers.by_address(address).is_some() {
            return;
        }
        for (index, mailbox) in self.shared.mailboxes.iter().enumerate() {
            if index != usize::from(self.index.0) {
                let owner = self.index;
                let _ = mailbox.push(Message::Unroute { address, owner });
            }
        }
    }
}
