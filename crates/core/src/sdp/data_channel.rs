//! The m-section of data channels: SCTP over DTLS (RFC 8841), in offers and in what the gateway answers.

use super::negotiation_result::{DataPeerRole, NegotiatedDataChannels};
use super::sdp_lines::{RawSection, first_attribute_named};

/// An offered data channel section.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataChannelSection {
    /// Whether the section has the format `webrtc-datachannel` and a valid `a=sctp-port`, which has no default
    /// (RFC 8841 §5). The form of the drafts (`a=sctpmap`) lacks both.
    is_acceptable: bool,
    /// Longest message in bytes that the peer receives.
    max_message_size: u32,
}

/// The SCTP port of the gateway, by convention the same everywhere. Datagrams have the ports that the peer chooses.
pub(super) const SCTP_PORT: u16 = 5_000;

/// What a peer receives that does not say (RFC 8841 §6.1).
const DEFAULT_MAX_MESSAGE_SIZE: u32 = 64 << 10;

const DATA_CHANNEL_FORMAT: &str = "webrtc-datachannel";

impl DataChannelSection {
    pub(super) fn parse(raw: &RawSection) -> Self {
        let value = |key| first_attribute_named(&raw.attributes, key).map(|attribute| attribute.value.trim());
        let port = value("sctp-port").and_then(|port| port.parse::<u16>().ok());
        let has_format = raw.formats.first().is_some_and(|format| format == DATA_CHANNEL_FORMAT);
        let max_message_size = match value("max-message-size").map(str::parse::<u64>) {
            // Zero stands for any size.
            Some(Ok(0)) => u32::MAX,
            Some(Ok(size)) => u32::try_from(size).unwrap_or(u32::MAX),
            Some(Err(_)) | None => DEFAULT_MAX_MESSAGE_SIZE,
        };
        Self {
            is_acceptable: has_format && port.is_some_and(|port| port != 0),
            max_message_size,
        }
    }

    pub(super) fn is_acceptable(&self) -> bool {
        self.is_acceptable
    }

    /// Returns what is negotiated with a peer of this role.
    pub(super) fn negotiate(&self, peer_role: DataPeerRole) -> NegotiatedDataChannels {
        NegotiatedDataChannels {
            peer_role,
            max_sent_message_size: self.max_message_size,
        }
    }
}
