//! RTP header extensions (RFC 8285): the supported ones of an offer, with the peer's ids.

use std::collections::HashMap;

use super::error::OfferError;
use super::sdp_lines::{AttributeWithLineNumber, attributes_named};

/// Supported header extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RtpHeaderExtension {
    Mid,
    Rid,
    RepairedRid,
    TransportCc,
    AbsSendTime,
    AbsCaptureTime,
    PlayoutDelay,
}

impl RtpHeaderExtension {
    fn uri(self) -> &'static str {
        match self {
            RtpHeaderExtension::Mid => "urn:ietf:params:rtp-hdrext:sdes:mid",
            RtpHeaderExtension::Rid => "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id",
            RtpHeaderExtension::RepairedRid => "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id",
            RtpHeaderExtension::TransportCc => {
                "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
            }
            RtpHeaderExtension::AbsSendTime => "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
            RtpHeaderExtension::AbsCaptureTime => "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time",
            RtpHeaderExtension::PlayoutDelay => "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay",
        }
    }

    fn from_uri(uri: &str) -> Option<Self> {
        const ALL_EXTENSIONS: [RtpHeaderExtension; 7] = [
            RtpHeaderExtension::Mid,
            RtpHeaderExtension::Rid,
            RtpHeaderExtension::RepairedRid,
            RtpHeaderExtension::TransportCc,
            RtpHeaderExtension::AbsSendTime,
            RtpHeaderExtension::AbsCaptureTime,
            RtpHeaderExtension::PlayoutDelay,
        ];
        ALL_EXTENSIONS.into_iter().find(|known| known.uri() == uri)
    }
}

/// An `a=extmap` of a supported extension.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extmap {
    pub line_number: usize,
    pub extension: RtpHeaderExtension,
    /// 1 to 14: only one-byte headers are supported.
    pub id: u8,
    direction: ExtmapDirection,
}

/// Which side sends the extension. Firefox marks the extensions that it only receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExtmapDirection {
    Both,
    PeerSends,
    PeerReceives,
}

impl Extmap {
    /// Returns the attribute value for the answer.
    pub(crate) fn answer_value(&self) -> String {
        let direction = match self.direction {
            ExtmapDirection::Both => "",
            ExtmapDirection::PeerSends => "/recvonly",
            ExtmapDirection::PeerReceives => "/sendonly",
        };
        format!("{}{direction} {}", self.id, self.extension.uri())
    }

    /// Whether the peer may send the extension.
    pub(crate) fn peer_may_send_extension(&self) -> bool {
        self.direction != ExtmapDirection::PeerReceives
    }

    /// Whether the peer accepts the extension in packets of the gateway.
    pub(crate) fn peer_accepts_extension(&self) -> bool {
        self.direction != ExtmapDirection::PeerSends
    }
}

/// Reads the supported extensions of a section. Session-level ones apply to it too (RFC 8285 §6).
pub(super) fn parse_extmaps(
    session: &[AttributeWithLineNumber],
    section: &[AttributeWithLineNumber],
) -> Result<Vec<Extmap>, OfferError> {
    let mut ids: HashMap<u16, &str> = HashMap::new();
    let mut found: Vec<Extmap> = Vec::new();
    for attribute in attributes_named(session, "extmap").chain(attributes_named(section, "extmap")) {
        let line = attribute.line_number;
        let bad = |rule| OfferError::BadExtmap { line, rule };
        let mut fields = attribute.value.split_whitespace();
        let (Some(id), Some(uri)) = (fields.next(), fields.next()) else {
            return Err(bad("expected `a=extmap:<id>[/<direction>] <URI>`"));
        };
        let (id, direction) = id.split_once('/').map_or((id, None), |(id, d)| (id, Some(d)));
        let id = id
            .parse::<u16>()
            .map_err(|_| bad("the extmap id is not a valid number: use 1 to 14"))?;
        if id == 0 {
            return Err(bad("extmap id 0 is reserved for padding: use 1 to 14"));
        }
        // The session and a section may both name it.
        if ids.insert(id, uri).is_some_and(|other| other != uri) {
            return Err(bad("the extmap id is used by another extension of this section"));
        }
        let direction = match direction {
            None | Some("sendrecv") => ExtmapDirection::Both,
            Some("sendonly") => ExtmapDirection::PeerSends,
            Some("recvonly") => ExtmapDirection::PeerReceives,
            Some("inactive") => continue,
            Some(_) => {
                return Err(bad(
                    "expected the extmap direction `sendrecv`, `sendonly`, `recvonly` or `inactive`",
                ));
            }
        };
        // RFC 8285 §4.3: ids above 14 need two-byte headers, which are not supported.
        let id = u8::try_from(id).ok().filter(|id| *id <= 14);
        match (RtpHeaderExtension::from_uri(uri), id) {
            (Some(known), Some(id)) if found.iter().all(|extmap| extmap.extension != known) => found.push(Extmap {
                line_number: line,
                extension: known,
                id,
                direction,
            }),
            _ => {}
        }
    }
    Ok(found)
}
