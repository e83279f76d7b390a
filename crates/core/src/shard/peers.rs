//! The sessions of one shard, and the ways to find them.
//!
//! An address belongs to one session of the gateway at a time, and is not taken from one that is heard there: see
//! [`super::routing`].

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::hub::stream::{SessionId, ShardIndex};
use crate::outputs::whep::Viewer;
use crate::sdp::plan::IceCredentials;
use crate::session::Session;
use crate::session::outbox::Destination;
use crate::sources::whip::Publisher;

/// Place of a peer in its shard. Used again after its peer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey(u32);

/// One session and what it is for.
pub struct Peer {
    pub id: SessionId,
    /// Ours: of the current ICE session, and of one that a restart may have left.
    pub ufrags: Vec<String>,
    pub session: Session,
    pub role: Role,
    /// Where its packets go; `None` before ICE.
    pub destination: Option<Destination>,
    /// Addresses that ICE learned.
    pub addresses: Vec<KnownAddress>,
    /// Entry in the timer heap that counts.
    pub scheduled: Option<Instant>,
    pub opened: Instant,
    pub connected: Option<Instant>,
    /// In the list of publishers that received something in this turn.
    pub dirty: bool,
}

/// An address that a peer was authenticated at.
#[derive(Clone, Copy, Debug)]
pub struct KnownAddress {
    pub remote: SocketAddr,
    /// The one of ours that the peer checked.
    pub local: Option<IpAddr>,
    /// The shard that was told last that the address is ours, and until when.
    pub vouched: Option<(ShardIndex, Instant)>,
}

/// The ICE sessions of one peer that may be in use: see [`crate::session::ice::IceLite::restart`].
const MAX_UFRAGS: usize = 2;

/// What a peer came for.
pub enum Role {
    Publisher(Box<Publisher>),
    Viewer(Box<Viewer>),
}

impl Peer {
    /// What is known of one of its addresses.
    pub fn known(&mut self, address: SocketAddr) -> Option<&mut KnownAddress> {
        self.addresses.iter_mut().find(|known| known.remote == address)
    }
}

/// All peers of a shard.
#[derive(Default)]
pub struct Peers {
    slots: Vec<Option<Box<Peer>>>,
    free: Vec<PeerKey>,
    by_id: HashMap<SessionId, PeerKey>,
    by_ufrag: HashMap<String, PeerKey>,
    by_address: HashMap<SocketAddr, PeerKey>,
}

impl Peers {
    pub fn insert(&mut self, peer: Peer) -> PeerKey {
        let key = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            PeerKey(self.slots.len() as u32 - 1)
        });
        self.by_id.insert(peer.id, key);
        self.by_ufrag
            .extend(peer.ufrags.iter().map(|ufrag| (ufrag.clone(), key)));
        if let Some(slot) = self.slots.get_mut(key.0 as usize) {
            *slot = Some(Box::new(peer));
        }
        key
    }

    pub fn remove(&mut self, key: PeerKey) -> Option<Box<Peer>> {
        let peer = self.slots.get_mut(key.0 as usize)?.take()?;
        self.free.push(key);
        self.by_id.remove(&peer.id);
        for ufrag in &peer.ufrags {
            self.by_ufrag.remove(ufrag);
        }
        for known in &peer.addresses {
            if self.by_address.get(&known.remote) == Some(&key) {
                self.by_address.remove(&known.remote);
            }
        }
        Some(peer)
    }

    pub fn get(&mut self, key: PeerKey) -> Option<&mut Peer> {
        self.slots.get_mut(key.0 as usize)?.as_deref_mut()
    }

    pub fn by_id(&self, id: SessionId) -> Option<PeerKey> {
        self.by_id.get(&id).copied()
    }

    pub fn by_ufrag(&self, ufrag: &str) -> Option<PeerKey> {
        self.by_ufrag.get(ufrag).copied()
    }

    pub fn by_address(&self, address: SocketAddr) -> Option<PeerKey> {
        self.by_address.get(&address).copied()
    }

    /// The peer that an address belongs to, and until when it belongs to no other.
    pub fn holder(&self, address: SocketAddr) -> Option<(PeerKey, Instant)> {
        let key = self.by_address(address)?;
        let peer = self.slots.get(key.0 as usize)?.as_ref()?;
        Some((key, peer.session.held_until(address)?))
    }

    /// Datagrams from this address belong to this peer: ICE authenticated it. ICE bounds them too: see
    /// [`Self::forget`].
    pub fn learn(&mut self, key: PeerKey, address: SocketAddr, local: Option<IpAddr>) {
        let Some(peer) = self.slots.get_mut(key.0 as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        match peer.known(address) {
            Some(known) => known.local = local,
            None => peer.addresses.push(KnownAddress {
                remote: address,
                local,
                vouched: None,
            }),
        }
        self.by_address.insert(address, key);
    }

    /// Begins a new ICE session of a peer, which is found by its username fragment as well.
    pub fn restart(&mut self, key: PeerKey, local: IceCredentials, remote: IceCredentials) {
        let Some(peer) = self.slots.get_mut(key.0 as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        peer.ufrags.push(local.ufrag.clone());
        self.by_ufrag.insert(local.ufrag.clone(), key);
        if let Some(gone) = peer.session.restart_ice(local, remote) {
            peer.ufrags.retain(|ufrag| *ufrag != gone);
            self.by_ufrag.remove(&gone);
        }
        // One whose session was over before it was replaced is not heard of again.
        if peer.ufrags.len() > MAX_UFRAGS {
            let oldest = peer.ufrags.remove(0);
            self.by_ufrag.remove(&oldest);
        }
    }

    /// ICE no longer knows this address of a peer.
    pub fn forget(&mut self, key: PeerKey, address: SocketAddr) {
        if let Some(peer) = self.get(key) {
            peer.addresses.retain(|known| known.remote != address);
        }
        if self.by_address.get(&address) == Some(&key) {
            self.by_address.remove(&address);
        }
    }

    /// Datagrams from this address belong to no peer of this shard any more. The peer that it belonged to still has it
    /// by its next check, if nobody holds it then.
    pub fn release(&mut self, address: SocketAddr) {
        self.by_address.remove(&address);
    }

    pub fn keys(&self) -> Vec<PeerKey> {
        self.by_id.values().copied().collect()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}
