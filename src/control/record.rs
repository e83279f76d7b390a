//! What the control plane knows of one session.

use std::net::IpAddr;
use std::time::Instant;

use crate::access::{Action, Grant};
use crate::shard::Requester;
use millstream_core::hub::name::StreamName;
use millstream_core::media::Codec;
use millstream_core::sdp::plan::IceCredentials;
use millstream_core::sdp::{IceSection, LocalDescription, VideoSection};

/// The current ICE session: the peer's credentials, and the tag that names it (RFC 9725 §4.3.1).
#[derive(Clone, Debug)]
pub struct IceSession {
    pub remote: IceCredentials,
    tag: String,
    /// What the SDP fragment of a restart repeats.
    pub section: IceSection,
}

impl IceSession {
    /// The tag is our ufrag: random, and new with every ICE session.
    pub fn new(remote: IceCredentials, local: &IceCredentials, description: &LocalDescription) -> Self {
        Self {
            remote,
            tag: local.ufrag.clone(),
            section: description.ice.clone(),
        }
    }

    /// The opaque part of the entity tag, without quotes.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The strong entity tag for the `ETag` header.
    pub fn entity_tag(&self) -> String {
        format!("\"{}\"", self.tag)
    }

    /// Another one with these credentials takes its place.
    pub fn restart(&mut self, remote: IceCredentials, local: &IceCredentials) {
        self.remote = remote;
        self.tag.clone_from(&local.ufrag);
    }
}

/// What a session was opened for, and by what right.
#[derive(Clone, Debug)]
pub struct SessionRecord {
    pub grant: Grant,
    pub action: Action,
    pub stream: StreamName,
    /// A viewer's video.
    pub video: Option<VideoSection>,
    /// What it may come in; see [`crate::http::alternate::video_codecs`].
    pub video_codecs: Option<Vec<Codec>>,
    pub opened: Instant,
    /// Where the offer came from, and what sent it.
    pub address: Option<IpAddr>,
    pub agent: Option<String>,
}

impl SessionRecord {
    /// Who asked for it.
    pub fn requester(&self) -> Requester {
        Requester {
            address: self.address,
            has_token: self.grant.by_token,
        }
    }
}
