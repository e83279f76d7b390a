//! Whose a datagram is.

use std::time::Instant;

use super::peers::PeerKey;
use crate::hub::stream::ShardIndex;

/// The shard that receives the datagrams of an address.
#[derive(Clone, Copy)]
pub(super) struct Route {
    pub(super) owner: ShardIndex,
    /// The address is held until this instant.
    pub(super) until: Instant,
}

/// The recipient of a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Recipient {
    Peer(PeerKey),
    Shard(ShardIndex),
}
