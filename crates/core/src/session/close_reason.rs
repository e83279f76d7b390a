//! Why a session ended.

/// Why a session ended. Shown in the log, the API and the player; a label of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// DELETE on the session URL of a connected session.
    Deleted,
    /// The peer sent a DTLS close_notify.
    PeerClosed,
    /// Nothing authentic was received for 30 s (RFC 7675 §5.1).
    PeerSilent,
    /// No connectivity check arrived in time, or before the client gave up: it cannot reach the addresses that it was
    /// given.
    NoConnectivityChecks,
    /// Checks arrived, and no handshake was complete in time, or before the client gave up.
    NoHandshake,
    /// The peer's certificate does not match its fingerprint.
    WrongCertificate,
    /// The handshake failed or broke a limit of the guard.
    HandshakeFailed,
    /// Another publisher took the stream over.
    TakenOver,
    /// The token that it was opened with has expired.
    TokenExpired,
    /// The configuration no longer gives what it was opened with.
    TokenRevoked,
    /// The configuration no longer has the source that it fed.
    SourceRemoved,
    /// The camera that it talked to closed the connection, or did not take the audio.
    BackChannelClosed,
    /// A talker that is connected sent no audio for 30 s.
    NoAudio,
    /// Ended by the API.
    Kicked,
    /// It had sent no check, and a newer session needed its place.
    Evicted,
    /// The gateway is stopping.
    Shutdown,
    /// Our own fault.
    Internal,
}

impl CloseReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 17] = [
        Self::Deleted,
        Self::PeerClosed,
        Self::PeerSilent,
        Self::NoConnectivityChecks,
        Self::NoHandshake,
        Self::WrongCertificate,
        Self::HandshakeFailed,
        Self::TakenOver,
        Self::TokenExpired,
        Self::TokenRevoked,
        Self::SourceRemoved,
        Self::BackChannelClosed,
        Self::NoAudio,
        Self::Kicked,
        Self::Evicted,
        Self::Shutdown,
        Self::Internal,
    ];

    /// What it means, and what can be done about it, where somebody can.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::Deleted => "the client ended the session",
            Self::PeerClosed => "the client closed its DTLS connection",
            Self::PeerSilent => {
                "no authenticated packet came from the client for 30 s: it may have lost its network or crashed"
            }
            Self::NoConnectivityChecks => {
                "no ICE connectivity check arrived: unless the client was closed immediately, it probably cannot reach the ICE \
                 candidates of the gateway; open the media port (UDP and TCP), announce the public address of the gateway \
                 (webrtc.announce), or offer a TURN server to clients (ice.servers)"
            }
            Self::NoHandshake => {
                "ICE connectivity checks arrived, but the DTLS handshake did not complete: perhaps the network path lets only small packets \
                 through, or the client has given up"
            }
            Self::WrongCertificate => "the client's DTLS certificate does not match the fingerprint in its SDP",
            Self::HandshakeFailed => "the DTLS handshake failed",
            Self::TakenOver => "another publisher took the stream over",
            Self::TokenExpired => "the access token of the session has expired",
            Self::TokenRevoked => {
                "the access token of the session was revoked through the API, or by a change of the configuration"
            }
            Self::SourceRemoved => {
                "the source that this publisher published to is no longer configured, or the camera that this talker \
                 spoke to is no longer configured, or was stopped or restarted: try again, or use another stream"
            }
            Self::BackChannelClosed => {
                "the camera closed its audio back channel, or did not respond on it: see the log of the gateway for the cause"
            }
            Self::NoAudio => "no audio came from the talker for 30 s, so the camera was released for other talkers",
            Self::Kicked => "the session was ended through the API",
            Self::Evicted => {
                "the client had sent no ICE connectivity check, and a newer session took its place: too many sessions were being set up at the \
                 same time (limits.half_open_sessions, limits.half_open_per_address)"
            }
            Self::Shutdown => "the gateway is stopping",
            Self::Internal => "internal error, a bug of the gateway: please report it with the log of the gateway",
        }
    }

    /// Whether an operator should look at it.
    pub(crate) fn is_failure(self) -> bool {
        matches!(
            self,
            Self::NoConnectivityChecks
                | Self::NoHandshake
                | Self::WrongCertificate
                | Self::HandshakeFailed
                | Self::Internal
        )
    }

    /// Whether the connection was not established in time, or before the client gave up.
    pub fn is_setup_timed_out_or_abandoned(self) -> bool {
        matches!(self, Self::NoConnectivityChecks | Self::NoHandshake)
    }

    /// Label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::PeerClosed => "peer_closed",
            Self::PeerSilent => "silent",
            Self::NoConnectivityChecks => "no_checks",
            Self::NoHandshake => "no_handshake",
            Self::WrongCertificate => "wrong_certificate",
            Self::HandshakeFailed => "handshake_failed",
            Self::TakenOver => "taken_over",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
            Self::SourceRemoved => "source_removed",
            Self::BackChannelClosed => "back_channel_closed",
            Self::NoAudio => "no_audio",
            Self::Kicked => "kicked",
            Self::Evicted => "evicted",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
        }
    }
}
