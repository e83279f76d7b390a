//! What a camera does that the client refuses, and what it passes over.

use std::time::Instant;

/// What retina refuses and another client accepts: see [`fallback`](super::fallback).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CameraIncompatibility {
    SsrcChanges,
    SequenceNumberJumpsBack,
    NonstandardResponse,
    RequestBeforeResponse,
    UnusualAuthentication,
    KeepaliveUnanswered,
    ShortSessions,
    /// Its responses to SETUP name no interleaved channels, or unusable ones, or no session.
    UnclearChannels,
    /// It sends bytes between messages and frames that belong to neither.
    GarbageBetweenMessages,
    /// Browsers do not play its audio, and the pipeline converts it.
    Audio,
    /// With `sources.allow`: retina sends datagrams to the address of the answer to SETUP before it can be checked.
    UncheckedUdpAddress,
}

impl CameraIncompatibility {
    /// Whether the relay corrects it, mostly, so that no pipeline is needed.
    pub(super) fn is_corrected_by_relay(self) -> bool {
        match self {
            Self::NonstandardResponse
            | Self::RequestBeforeResponse
            | Self::KeepaliveUnanswered
            | Self::SsrcChanges
            | Self::SequenceNumberJumpsBack
            | Self::UnclearChannels
            | Self::GarbageBetweenMessages => true,
            Self::UnusualAuthentication | Self::ShortSessions | Self::Audio | Self::UncheckedUdpAddress => false,
        }
    }

    /// Returns what the camera does, in a clause.
    pub fn text(self) -> &'static str {
        match self {
            Self::SsrcChanges => "the camera changes its SSRC during an RTSP session",
            Self::SequenceNumberJumpsBack => "the camera's RTP sequence numbers jump back",
            Self::NonstandardResponse => "the camera's RTSP responses deviate from the RTSP or SDP standard",
            Self::RequestBeforeResponse => "the camera sends RTSP requests before it responds to the gateway's request",
            Self::UnusualAuthentication => "the camera demands a new Digest nonce for each request, or `qop=auth-int`",
            Self::KeepaliveUnanswered => "the camera does not respond to RTSP keepalive requests",
            Self::ShortSessions => "the camera ends its RTSP sessions after a short time",
            Self::UnclearChannels => {
                "the camera's responses to SETUP have no usable `Transport` header (interleaved channels), or no `Session` header"
            }
            Self::GarbageBetweenMessages => "the camera sends stray bytes between its RTSP messages",
            Self::Audio => "the camera's audio has to be transcoded to Opus, which only a GStreamer pipeline does",
            Self::UncheckedUdpAddress => {
                "with RTP over UDP, only a GStreamer pipeline can check the media addresses against `sources.allow`"
            }
        }
    }
}

/// Counts what was passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnoredInputStats {
    pub count: u64,
    /// The first of them in this session.
    pub first_description: Option<String>,
    /// When the last one was.
    pub last_at: Option<Instant>,
}
