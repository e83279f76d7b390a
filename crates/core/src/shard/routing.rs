//! Whose an address is: which session, and on which shard.
//!
//! A check names its session; everything else is known by the address that it comes from, and a check says whose that
//! is. Its source can be forged by anybody who has a session, so an address is not taken from a session that was heard
//! there within [`ice::HOLD`]. All datagrams from one address arrive at one shard, which decides: it knows its own peers,
//! and for an address of another shard's it has that shard's word ([`Message::Route`]), renewed while something authentic
//! comes from there.
//!
//! The check of a newcomer at a held address is ignored. It could be answered without harm, but every agent sends a check
//! again that was not answered, and some send none after one that was: FFmpeg would go on to its handshake, whose records
//! would still go to the other session. Ignored, it comes back until the address is free.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::Core;
use crate::hub::stream::ShardIndex;
use crate::session::ice;
use crate::shard::counters::DropReason;
use crate::shard::message::Message;
use crate::shard::peers::PeerKey;
use crate::shard::ufrag;

/// Where datagrams from an address go.
#[derive(Clone, Copy)]
pub(super) struct Route {
    pub(super) owner: ShardIndex,
    /// Until then nobody else gets them.
    pub(super) until: Instant,
}

/// Whom a datagram is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Recipient {
    Peer(PeerKey),
    Shard(ShardIndex),
}

/// Foreign addresses remembered; the sessions behind them are bounded already, this bounds mistakes.
const MAX_FOREIGN: usize = 1 << 20;

/// The word for an address is renewed when it can be extended by this much: a fraction of [`ice::HOLD`], and far more
/// than the time between two packets of a publisher.
const RENEWAL: Duration = Duration::from_millis(500);

impl Core {
    /// A connectivity check names its session; anything else has to come from an address that a check vouched for
    /// (invariant 7).
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

    /// Whether an address is not to be taken from whom it belongs to.
    pub(super) fn is_held(&self, now: Instant, address: SocketAddr, claimant: Recipient) -> bool {
        let peer = self
            .peers
            .holder(address)
            .map(|(key, until)| (Recipient::Peer(key), until));
        let route = self.foreign.get(&address).map(|r| (Recipient::Shard(r.owner), r.until));
        peer.or(route)
            .is_some_and(|(holder, until)| holder != claimant && now < until)
    }

    /// Gives a datagram to the shard that it is for.
    pub(super) fn hand_over(&self, owner: ShardIndex, from: SocketAddr, to: Option<IpAddr>, datagram: &[u8]) {
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

    /// Tells the shard that received a datagram for us to hand over what follows from there, once it is authenticated:
    /// after each check, and when there is so much more to say.
    pub(super) fn vouch_for(&mut self, key: PeerKey, from: SocketAddr, via: ShardIndex, is_check: bool) {
        let Some((_, until)) = self.peers.holder(from).filter(|(holder, _)| *holder == key) else {
            return;
        };
        let Some(known) = self.peers.get(key).and_then(|peer| peer.known(from)) else {
            return;
        };
        let is_news = known
            .vouched
            .is_none_or(|(to, told)| to != via || until >= told + RENEWAL);
        if !is_check && !is_news {
            return;
        }
        known.vouched = Some((via, until));
        let owner = self.index;
        if let Some(mailbox) = self.shared.mailbox(via) {
            let _ = mailbox.push(Message::Route {
                address: from,
                owner,
                until,
            });
        }
    }

    /// Another shard says that an address belongs to it. It cannot know who had it meanwhile.
    pub(super) fn route(&mut self, now: Instant, address: SocketAddr, route: Route) {
        let is_held = self.is_held(now, address, Recipient::Shard(route.owner));
        if !is_held && self.foreign.len() < MAX_FOREIGN {
            self.peers.release(address);
            self.foreign.insert(address, route);
        }
    }

    /// Tells the other shards that datagrams from an address are no longer for us, unless another peer has it by now.
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
