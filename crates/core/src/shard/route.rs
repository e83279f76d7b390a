//! Whose a datagram is.

use std::time::Instant;

use super::peers::PeerSlotIndex;
use crate::hub::stream::ShardIndex;

/// The shard that receives the datagrams of an address.
#[derive(Clone, Copy)]
pub(super) struct ReservedAddressRoute {
    pub(super) owner_shard: ShardIndex,
    /// The address is held until this instant.
    pub(super) held_until: Instant,
}

/// The recipient of a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DatagramRecipient {
    Peer(PeerSlotIndex),
    Shard(ShardIndex),
}
