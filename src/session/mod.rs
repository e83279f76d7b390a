//! One peer: ICE-lite, DTLS and SRTP composed into one sans-IO machine.
//!
//! Bytes and time go in by `handle_*`; datagrams, events and the next deadline come out by `poll_*`. Nothing here reads a
//! clock or a socket. A session does not know whether its peer publishes or watches.

use std::net::SocketAddr;

use bytes::Bytes;
use thiserror::Error;

pub mod feedback;
pub mod ice;
pub mod identity;
pub mod srtp;

/// Why a session could not be made or went wrong.
#[derive(Debug, Error)]
pub enum SessionError {
    #[error("cannot make the DTLS identity: {0}")]
    Identity(#[source] rtc_shared::error::Error),
}

/// A datagram to be sent.
#[derive(Debug)]
pub struct Transmit {
    pub to: SocketAddr,
    pub payload: Bytes,
}

/// What a session tells its owner.
#[derive(Debug)]
pub enum Event {
    /// This address was authenticated by a connectivity check: datagrams from it belong to this session.
    AddressLearned(SocketAddr),
    /// From now on datagrams go to this address.
    Moved(SocketAddr),
    /// The handshake is over, the fingerprint matched, media may flow.
    Connected,
    /// A decrypted RTP packet that passed authentication and replay check.
    Rtp(Bytes),
    /// A decrypted compound RTCP packet.
    Rtcp(Bytes),
    /// The session is over; nothing follows.
    Closed(CloseReason),
}

/// Why a session ended. Shown in the log, the API and the player; a label of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// DELETE on the session URL.
    Deleted,
    /// The peer sent a DTLS close_notify.
    PeerClosed,
    /// Nothing authentic was heard for 30 s (RFC 7675 §5.1).
    Silent,
    /// ICE or DTLS was not complete in time.
    NotConnected,
    /// The peer's certificate does not match its fingerprint.
    WrongCertificate,
    /// The handshake failed or broke a limit of the guard.
    HandshakeFailed,
    /// Another publisher took the stream over.
    TakenOver,
    /// The gateway is stopping.
    Shutdown,
    /// Our own fault.
    Internal,
}
