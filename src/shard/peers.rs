//! The sessions of one shard, and the ways to find them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::hub::stream::SessionId;
use crate::outputs::whep::Viewer;
use crate::session::Session;
use crate::session::outbox::Destination;
use crate::sources::whip::Publisher;

/// Place of a peer in its shard. Used again after its peer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey(u32);

/// One session and what it is for.
pub struct Peer {
    pub id: SessionId,
    pub ufrag: String,
    pub session: Session,
    pub role: Role,
    /// Where its packets go; `None` before ICE.
    pub destination: Option<Destination>,
    /// Addresses that ICE learned, each with the local one that it was learned on.
    pub addresses: Vec<(SocketAddr, Option<IpAddr>)>,
    /// Entry in the timer heap that counts.
    pub scheduled: Option<Instant>,
    pub opened: Instant,
    pub connected: Option<Instant>,
    /// In the list of publishers that received something in this turn.
    pub dirty: bool,
}

/// What a peer came for.
pub enum Role {
    Publisher(Box<Publisher>),
    Viewer(Box<Viewer>),
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
        self.by_ufrag.insert(peer.ufrag.clone(), key);
        if let Some(slot) = self.slots.get_mut(key.0 as usize) {
            *slot = Some(Box::new(peer));
        }
        key
    }

    pub fn remove(&mut self, key: PeerKey) -> Option<Box<Peer>> {
        let peer = self.slots.get_mut(key.0 as usize)?.take()?;
        self.free.push(key);
        self.by_id.remove(&peer.id);
        self.by_ufrag.remove(&peer.ufrag);
        for (address, _) in &peer.addresses {
            if self.by_address.get(address) == Some(&key) {
                self.by_address.remove(address);
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

    /// Datagrams from this address belong to this peer: ICE authenticated it. ICE bounds them too: see
    /// [`Self::forget`].
    pub fn learn(&mut self, key: PeerKey, address: SocketAddr, local: Option<IpAddr>) {
        let Some(peer) = self.slots.get_mut(key.0 as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        match peer.addresses.iter_mut().find(|(known, _)| *known == address) {
            Some(entry) => entry.1 = local,
            None => peer.addresses.push((address, local)),
        }
        self.by_address.insert(address, key);
    }

    /// ICE no longer knows this address of a peer.
    pub fn forget(&mut self, key: PeerKey, address: SocketAddr) {
        if let Some(peer) = self.get(key) {
            peer.addresses.retain(|(known, _)| *known != address);
        }
        if self.by_address.get(&address) == Some(&key) {
            self.by_address.remove(&address);
        }
    }

    pub fn keys(&self) -> Vec<PeerKey> {
        self.by_id.values().copied().collect()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}
