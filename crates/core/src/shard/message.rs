//! What a shard is told.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::hub::mailbox::Mailbox;
use crate::hub::name::StreamName;
use crate::hub::ring::Entries;
use crate::hub::stream::{LayerSelection, SessionId, ShardIndex, StreamId};
use crate::sdp::plan::{IceCredentials, Playback, Publication};
use crate::session::CloseReason;

/// A message to a shard, from another shard or from the control plane.
#[derive(Debug)]
pub enum Message {
    /// A new session.
    Open(Box<Opening>),
    /// A viewer wants another version of the picture.
    ChooseLayer {
        session: SessionId,
        selection: LayerSelection,
    },
    /// End a session.
    Close { session: SessionId, reason: CloseReason },
    /// Begin a new ICE session with these credentials of ours and of the peer.
    Restart {
        session: SessionId,
        local: IceCredentials,
        remote: IceCredentials,
    },
    /// A datagram that the kernel gave to the wrong shard.
    Datagram {
        from: SocketAddr,
        to: Option<IpAddr>,
        bytes: Vec<u8>,
        via: ShardIndex,
    },
    /// What came over TCP instead; see [`super::tcp`].
    Framed { from: SocketAddr, bytes: Vec<u8> },
    /// The connection of this address is gone, which something authentic had come by.
    Disconnected { from: SocketAddr },
    /// Datagrams from this address belong to that shard, and to no other before `until`.
    Route {
        address: SocketAddr,
        owner: ShardIndex,
        until: Instant,
    },
    /// They no longer do.
    Unroute { address: SocketAddr, owner: ShardIndex },
    /// Packets of a stream that has viewers on this shard.
    Media { stream: StreamId, packets: Entries },
    /// The formats or the layers of a stream that has viewers on this shard have changed.
    StreamChanged { stream: StreamId },
    /// A viewer needs a key frame from this publisher.
    RequestKeyFrame { session: SessionId },
    /// End all sessions and then the thread.
    Stop,
}

/// A session to be opened: the result of the SDP negotiation.
#[derive(Debug)]
pub struct Opening {
    pub session: SessionId,
    pub stream: StreamName,
    pub local: IceCredentials,
    pub role: OpeningRole,
}

/// What the peer came for.
#[derive(Debug)]
pub enum OpeningRole {
    Publish(Publication),
    Play(Playback),
}

/// The way to one shard.
pub type ShardMailbox = Arc<Mailbox<Message>>;
