//! Messages to a shard.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::hub::mailbox::Mailbox;
use crate::hub::name::StreamKey;
use crate::hub::ring::RingEntries;
use crate::hub::stream::{LayerSelection, SessionId, ShardIndex, StreamId};
use crate::media::Rid;
use crate::media::data_message::DataMessage;
use crate::sdp::negotiation_result::{IceCredentials, NegotiatedPlayback, NegotiatedPublication};
use crate::session::CloseReason;

/// A message to a shard, from another shard or from the control plane.
#[derive(Debug)]
pub enum ShardMessage {
    /// Opens a session.
    OpenSession(Box<NewSession>),
    /// A viewer selects another simulcast layer.
    SelectLayer {
        session: SessionId,
        selection: LayerSelection,
    },
    /// Ends a session.
    CloseSession { session: SessionId, reason: CloseReason },
    /// Begins a new ICE session with these local and remote credentials.
    RestartIce {
        session: SessionId,
        local: IceCredentials,
        remote: IceCredentials,
    },
    /// A datagram that the kernel delivered to another shard, `via`.
    ForwardedDatagram {
        from: SocketAddr,
        to: Option<IpAddr>,
        bytes: Vec<u8>,
        via: ShardIndex,
    },
    /// A datagram that arrived over TCP; see [`super::tcp`].
    TcpFrame { from: SocketAddr, bytes: Vec<u8> },
    /// The authenticated TCP connection of this address has ended.
    TcpDisconnected { from: SocketAddr },
    /// Datagrams from this address belong to shard `owner`, which holds the address until `until`.
    AnnounceRoute {
        address: SocketAddr,
        owner: ShardIndex,
        until: Instant,
    },
    /// Withdraws a route.
    WithdrawRoute { address: SocketAddr, owner: ShardIndex },
    /// Packets of a stream that has viewers on this shard.
    StreamPackets { stream: StreamId, packets: RingEntries },
    /// The formats or the layers of a stream that has viewers on this shard have changed.
    StreamChanged { stream: StreamId },
    /// A data channel message for the viewers of a stream on this shard.
    StreamData { stream: StreamId, message: DataMessage },
    /// A data channel message for one session.
    DataForSession { session: SessionId, message: DataMessage },
    /// A viewer needs a key frame of this layer from this publisher; `None` is the one that the stream carries.
    RequestKeyFrame { session: SessionId, layer: Option<Rid> },
    /// Ends all sessions, and then the thread.
    Stop,
}

/// A session to be opened: the result of the SDP negotiation.
#[derive(Debug)]
pub struct NewSession {
    pub session_id: SessionId,
    /// The stream that a viewer watches, or the one that a publisher writes to.
    pub stream_key: StreamKey,
    pub local_credentials: IceCredentials,
    pub role: NegotiatedRole,
}

/// The role of the peer, with the result of its negotiation.
#[derive(Debug)]
pub enum NegotiatedRole {
    Publish(NegotiatedPublication),
    Play(NegotiatedPlayback),
}

/// The mailbox of one shard.
pub type ShardMailbox = Arc<Mailbox<ShardMessage>>;
