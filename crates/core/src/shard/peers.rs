//! The sessions of one shard, by id, username fragment and address.
//!
//! An address belongs to at most one session of the gateway: see [`super::routing`].

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::hub::shrink_sparse::shrink_sparse_map;
use crate::hub::stream::{SessionId, ShardIndex};
use crate::outputs::whep::Viewer;
use crate::sdp::negotiation_result::IceCredentials;
use crate::session::Session;
use crate::session::outbox::Destination;
use crate::sources::whip::Publisher;

/// Index of a peer in its shard. Reused after the peer was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerSlotIndex(u32);

/// One session and its role.
pub struct Peer {
    pub session_id: SessionId,
    /// Local username fragments: of the current ICE session, and of the previous one after a restart.
    pub ufrags: Vec<String>,
    pub session: Session,
    pub role: PeerRole,
    /// Destination of its packets; `None` before ICE has one.
    pub destination: Option<Destination>,
    /// Addresses that ICE has authenticated.
    pub paths: Vec<PeerPath>,
    /// Its valid entry in the timer heap; other entries are ignored.
    pub next_timer_at: Option<Instant>,
    pub opened_at: Instant,
    pub connected_at: Option<Instant>,
    /// Whether it is in the list of publishers that received RTP in this tick.
    pub has_unpublished_packets: bool,
}

/// An address from which a peer was authenticated.
#[derive(Clone, Copy, Debug)]
pub struct PeerPath {
    pub remote: SocketAddr,
    /// The local address that the peer sent its check to.
    pub local: Option<IpAddr>,
    /// The shard that the address was last announced to, and the end of the announced hold time.
    pub last_route_announcement: Option<(ShardIndex, Instant)>,
}

/// Maximum number of ICE sessions of one peer: see [`crate::session::ice::IceLite::restart`].
const MAX_UFRAGS_PER_PEER: usize = 2;

/// The role of a peer.
pub enum PeerRole {
    Publisher(Box<Publisher>),
    Viewer(Box<Viewer>),
}

impl Peer {
    /// Returns one of its addresses.
    pub(crate) fn path_by_remote_address(&mut self, remote: SocketAddr) -> Option<&mut PeerPath> {
        self.paths.iter_mut().find(|address| address.remote == remote)
    }
}

/// All peers of a shard.
#[derive(Default)]
pub struct Peers {
    slots: Vec<Option<Box<Peer>>>,
    free_keys: Vec<PeerSlotIndex>,
    slot_index_by_session_id: HashMap<SessionId, PeerSlotIndex>,
    slot_index_by_ufrag: HashMap<String, PeerSlotIndex>,
    peer_by_address: HashMap<SocketAddr, PeerSlotIndex>,
}

impl Peers {
    pub fn insert(&mut self, peer: Peer) -> PeerSlotIndex {
        let key = self.free_keys.pop().unwrap_or_else(|| {
            self.slots.push(None);
            PeerSlotIndex(self.slots.len() as u32 - 1)
        });
        self.slot_index_by_session_id.insert(peer.session_id, key);
        self.slot_index_by_ufrag
            .extend(peer.ufrags.iter().map(|ufrag| (ufrag.clone(), key)));
        if let Some(slot) = self.slots.get_mut(key.0 as usize) {
            *slot = Some(Box::new(peer));
        }
        key
    }

    pub fn remove(&mut self, key: PeerSlotIndex) -> Option<Box<Peer>> {
        let peer = self.slots.get_mut(key.0 as usize)?.take()?;
        self.free_keys.push(key);
        self.slot_index_by_session_id.remove(&peer.session_id);
        for ufrag in &peer.ufrags {
            self.slot_index_by_ufrag.remove(ufrag);
        }
        for address in &peer.paths {
            if self.peer_by_address.get(&address.remote) == Some(&key) {
                self.peer_by_address.remove(&address.remote);
            }
        }
        shrink_sparse_map(&mut self.slot_index_by_session_id);
        shrink_sparse_map(&mut self.slot_index_by_ufrag);
        shrink_sparse_map(&mut self.peer_by_address);
        Some(peer)
    }

    pub fn get(&mut self, key: PeerSlotIndex) -> Option<&mut Peer> {
        self.slots.get_mut(key.0 as usize)?.as_deref_mut()
    }

    pub(crate) fn slot_index_by_session_id(&self, id: SessionId) -> Option<PeerSlotIndex> {
        self.slot_index_by_session_id.get(&id).copied()
    }

    pub(crate) fn slot_index_by_ufrag(&self, ufrag: &str) -> Option<PeerSlotIndex> {
        self.slot_index_by_ufrag.get(ufrag).copied()
    }

    pub fn peer_by_address(&self, address: SocketAddr) -> Option<PeerSlotIndex> {
        self.peer_by_address.get(&address).copied()
    }

    /// Returns the peer that an address belongs to, and until when it is held.
    pub(crate) fn address_owner_and_reservation_end(&self, address: SocketAddr) -> Option<(PeerSlotIndex, Instant)> {
        let key = self.peer_by_address(address)?;
        let peer = self.slots.get(key.0 as usize)?.as_ref()?;
        Some((key, peer.session.address_reserved_until(address)?))
    }

    /// Assigns an address that ICE has authenticated to a peer. ICE bounds their number: see [`Self::remove_peer_path`].
    pub(crate) fn assign_address(&mut self, key: PeerSlotIndex, address: SocketAddr, local: Option<IpAddr>) {
        let Some(peer) = self.slots.get_mut(key.0 as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        match peer.path_by_remote_address(address) {
            Some(path) => path.local = local,
            None => peer.paths.push(PeerPath {
                remote: address,
                local,
                last_route_announcement: None,
            }),
        }
        self.peer_by_address.insert(address, key);
    }

    /// Begins a new ICE session of a peer, and indexes its username fragment.
    pub fn restart_ice(&mut self, key: PeerSlotIndex, local: IceCredentials, remote: IceCredentials) {
        let Some(peer) = self.slots.get_mut(key.0 as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        peer.ufrags.push(local.ufrag.clone());
        self.slot_index_by_ufrag.insert(local.ufrag.clone(), key);
        if let Some(gone) = peer.session.restart_ice(local, remote) {
            peer.ufrags.retain(|ufrag| *ufrag != gone);
            self.slot_index_by_ufrag.remove(&gone);
        }
        // An ICE session that ended before it was replaced is not reported.
        if peer.ufrags.len() > MAX_UFRAGS_PER_PEER {
            let oldest = peer.ufrags.remove(0);
            self.slot_index_by_ufrag.remove(&oldest);
        }
    }

    /// Removes an address of a peer that ICE has removed.
    pub(crate) fn remove_peer_path(&mut self, key: PeerSlotIndex, address: SocketAddr) {
        if let Some(peer) = self.get(key) {
            peer.paths.retain(|path| path.remote != address);
        }
        if self.peer_by_address.get(&address) == Some(&key) {
            self.peer_by_address.remove(&address);
        }
    }

    /// Unassigns an address. Its peer gets it back with its next check, unless another session holds it then.
    pub(crate) fn unassign_address_from_any_peer(&mut self, address: SocketAddr) {
        self.peer_by_address.remove(&address);
    }

    pub fn keys(&self) -> Vec<PeerSlotIndex> {
        self.slot_index_by_session_id.values().copied().collect()
    }

    pub fn is_empty(&self) -> bool {
        self.slot_index_by_session_id.is_empty()
    }
}
