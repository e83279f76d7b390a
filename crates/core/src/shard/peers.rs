//! The sessions of one shard, by id, username fragment and address.
//!
//! An address belongs to at most one session of the gateway: see [`super::routing`].

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::hub::stream::{SessionId, ShardIndex};
use crate::outputs::whep::Viewer;
use crate::sdp::plan::IceCredentials;
use crate::session::Session;
use crate::session::outbox::Destination;
use crate::sources::whip::Publisher;

/// Index of a peer in its shard. Reused after the peer was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey(u32);

/// One session and its role.
pub struct Peer {
    pub id: SessionId,
    /// Local username fragments: of the current ICE session, and of the previous one after a restart.
    pub ufrags: Vec<String>,
    pub session: Session,
    pub role: Role,
    /// Destination of its packets; `None` before ICE has one.
    pub destination: Option<Destination>,
    /// Addresses that ICE has authenticated.
    pub addresses: Vec<PeerPath>,
    /// Its valid entry in the timer heap; other entries are ignored.
    pub scheduled: Option<Instant>,
    pub opened: Instant,
    pub connected: Option<Instant>,
    /// Whether it is in the list of publishers that received RTP in this tick.
    pub dirty: bool,
}

/// An address from which a peer was authenticated.
#[derive(Clone, Copy, Debug)]
pub struct PeerPath {
    pub remote: SocketAddr,
    /// The local address that the peer sent its check to.
    pub local: Option<IpAddr>,
    /// The shard that the address was last announced to, and the end of the announced hold time.
    pub announced: Option<(ShardIndex, Instant)>,
}

/// Maximum number of ICE sessions of one peer: see [`crate::session::ice::IceLite::restart`].
const MAX_UFRAGS: usize = 2;

/// The role of a peer.
pub enum Role {
    Publisher(Box<Publisher>),
    Viewer(Box<Viewer>),
}

impl Peer {
    /// Returns one of its addresses.
    pub fn address(&mut self, remote: SocketAddr) -> Option<&mut PeerPath> {
        self.addresses.iter_mut().find(|address| address.remote == remote)
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
        for address in &peer.addresses {
            if self.by_address.get(&address.remote) == Some(&key) {
                self.by_address.remove(&address.remote);
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

    /// Returns the peer that an address belongs to, and until when it is held.
    pub fn holder(&self, address: SocketAddr) -> Option<(PeerKey, Instant)> {
        let key = self.by_address(address)?;
        let peer = self.slots.get(key.0 as usize)?.as_ref()?;
        Some((key, peer.session.held_until(address)?))
    }

    /// Assigns an address that ICE has authenticated to a peer. ICE bounds their number: see [`Self::forget`].
    pub fn learn(&mut self, key: PeerKey, address: SocketAddr, local: Option<IpAddr>) {
        let Some(peer) = self.slots.get_mut(key.0 as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        match peer.address(address) {
            Some(path) => path.local = local,
            None => peer.addresses.push(PeerPath {
                remote: address,
                local,
                announced: None,
            }),
        }
        self.by_address.insert(address, key);
    }

    /// Begins a new ICE session of a peer, and indexes its username fragment.
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
        // An ICE session that ended before it was replaced is not reported.
        if peer.ufrags.len() > MAX_UFRAGS {
            let oldest = peer.ufrags.remove(0);
            self.by_ufrag.remove(&oldest);
        }
    }

    /// Removes an address of a peer that ICE has removed.
    pub fn forget(&mut self, key: PeerKey, address: SocketAddr) {
        if let Some(peer) = self.get(key) {
            peer.addresses.retain(|path| path.remote != address);
        }
        if self.by_address.get(&address) == Some(&key) {
            self.by_address.remove(&address);
        }
    }

    /// Unassigns an address. Its peer gets it back with its next check, unless another session holds it then.
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
