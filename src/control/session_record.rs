//! What the control plane stores about one session.

use std::net::IpAddr;
use std::time::Instant;

use crate::access::{AccessAction, Grant};
use crate::shard::SessionRequester;
use millstream_core::hub::name::{SourceName, StreamName};
use millstream_core::media::Codec;
use millstream_core::sdp::negotiation_result::IceCredentials;
use millstream_core::sdp::{IceFragmentTemplate, LocalDescription, VideoSectionId};

/// The current ICE session: the peer's credentials and the entity tag that identifies it (RFC 9725 §4.3.1).
#[derive(Clone, Debug)]
pub struct IceSession {
    pub remote_credentials: IceCredentials,
    opaque_tag: String,
    /// The SDP lines that the fragment of an ICE restart repeats.
    pub sdp_section: IceFragmentTemplate,
}

impl IceSession {
    /// Makes an ICE session. Its tag is the local ufrag, which is random and changes with every ICE session.
    pub fn new(remote: IceCredentials, local: &IceCredentials, description: &LocalDescription) -> Self {
        Self {
            remote_credentials: remote,
            opaque_tag: local.ufrag.clone(),
            sdp_section: description.ice_fragment_template.clone(),
        }
    }

    /// Returns the opaque part of the entity tag, without quotes.
    pub fn opaque_tag(&self) -> &str {
        &self.opaque_tag
    }

    /// Returns the strong entity tag for the `ETag` header.
    pub fn entity_tag(&self) -> String {
        format!("\"{}\"", self.opaque_tag)
    }

    /// Replaces it with a new ICE session that has these credentials.
    pub fn record_ice_restart(&mut self, remote: IceCredentials, local: &IceCredentials) {
        self.remote_credentials = remote;
        self.opaque_tag.clone_from(&local.ufrag);
    }
}

/// The purpose of a session, the grant it was opened with, and its client.
#[derive(Clone, Debug)]
pub struct SessionRecord {
    pub grant: Grant,
    pub action: AccessAction,
    pub stream: StreamName,
    /// The source that a publisher feeds, if the stream has several.
    pub failover_source: Option<SourceName>,
    /// The video section of a viewer's session.
    pub video_section: Option<VideoSectionId>,
    /// Codecs that the video may be sent in; see `http::alternate`.
    pub negotiated_video_codecs: Option<Vec<Codec>>,
    pub opened_at: Instant,
    /// Address that the offer was received from.
    pub offer_sender_address: Option<IpAddr>,
    /// `User-Agent` of the offer.
    pub user_agent: Option<String>,
}

impl SessionRecord {
    /// Returns who requested the session.
    pub fn requester(&self) -> SessionRequester {
        SessionRequester {
            address: self.offer_sender_address,
            has_token: self.grant.is_token_based,
        }
    }
}
