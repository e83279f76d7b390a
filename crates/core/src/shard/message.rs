//! Messages to a shard.

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
    /// Opens a session.
    Open(Box<Opening>),
    /// A viewer selects another simulcast layer.
    ChooseLayer {
        session: SessionId,
        selection: LayerSelection,
    },
    /// Ends a session.
    Close { session: SessionId, reason: CloseReason },
    /// Begins a new ICE session with these local and remote credentials.
    Restart {
        session: SessionId,
        local: IceCredentials,
        remote: IceCredentials,
    },
    /// A datagram that the kernel delivered to another shard, `via`.
    Datagram {
        from: SocketAddr,
        to: Option<IpAddr>,
        bytes: Vec<u8>,
        via: ShardIndex,
    },
    /// A datagram that arrived over TCP; see [`super::tcp`].
    Framed { from: SocketAddr, bytes: Vec<u8> },
    /// The authenticated TCP connection of this address has ended.
    Disconnected { from: SocketAddr },
    /// Datagrams from this address belong to shard `owner`, which holds the address until `until`.
    Route {
        address: SocketAddr,
        owner: ShardIndex,
        until: Instant,
    },
    /// Withdraws a route.
    Unroute { address: SocketAddr, owner: ShardIndex },
    /// Packets of a stream that has viewers on this shard.
    Media { stream: StreamId, packets: Entries },
    /// The formats or the layers of a stream that has viewers on this shard have changed.
    StreamChanged { stream: StreamId },
    /// A viewer needs a key frame from this publisher.
    RequestKeyFrame { session: SessionId },
    /// Ends all sessions, and then the thread.
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

/// The role of the peer, with the result of its negotiation.
#[derive(Debug)]
pub enum OpeningRole {
    Publish(Publication),
    Play(Playback),
}

/// The mailbox of one shard.
pub type ShardMailbox = Arc<Mailbox<Message>>;
