//! What signalling remembers of a session: the ICE credentials that a PATCH is judged by, and what it was granted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::access::{Access, Action, Grant};
use crate::shard::{MediaPlane, Requester, SessionId, SessionState};
use millstream_core::hub::name::StreamName;
use millstream_core::media::Codec;
use millstream_core::sdp::Frame;
use millstream_core::sdp::plan::IceCredentials;

/// The current ICE session: the peer's credentials, and the tag that names it (RFC 9725 §4.3.1).
#[derive(Clone, Debug)]
pub struct IceSession {
    pub remote: IceCredentials,
    tag: String,
    /// What a fragment of ours repeats of the answer.
    pub frame: Frame,
}

impl IceSession {
    /// The tag is our ufrag: random, and new with every ICE session.
    pub fn new(remote: IceCredentials, local: &IceCredentials, answer: &str) -> Self {
        Self {
            remote,
            tag: local.ufrag.clone(),
            frame: Frame::of(answer),
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
    pub video: Option<VideoLine>,
    /// What it may come in; see [`super::alternate::video_codecs`].
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

/// The m-line of the video in an answer.
#[derive(Clone, Debug)]
pub struct VideoLine {
    pub index: usize,
    pub mid: Option<String>,
}

impl VideoLine {
    /// Finds it in an answer of ours; `None` if there is none or it was refused.
    pub fn of(answer: &str) -> Option<Self> {
        let mut found: Option<Self> = None;
        let mut index = 0;
        for line in answer.lines() {
            if let Some(media) = line.strip_prefix("m=") {
                if found.is_some() {
                    break;
                }
                if media.starts_with("video ") && !media.starts_with("video 0 ") {
                    found = Some(Self { index, mid: None });
                }
                index += 1;
            } else if let (Some(found), Some(mid)) = (&mut found, line.strip_prefix("a=mid:")) {
                found.mid = Some(mid.to_owned());
            }
        }
        found
    }
}

/// The sessions that have a URL. Entries of sessions that have long ended are removed when the table has doubled.
#[derive(Debug, Default)]
pub struct Sessions {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<SessionId, (IceSession, SessionRecord)>,
    sweep_at: usize,
}

/// Entries below which nothing is removed.
const LEAST_SWEEP: usize = 256;

impl Sessions {
    /// Remembers a new session.
    pub fn insert(&self, media: &MediaPlane, id: SessionId, ice: IceSession, held: SessionRecord) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.by_id.len() >= table.sweep_at.max(LEAST_SWEEP) {
            table.by_id.retain(|id, _| media.state(*id) != SessionState::Unknown);
            table.sweep_at = table.by_id.len() * 2;
        }
        table.by_id.insert(id, (ice, held));
    }

    /// Does something with the ICE session of a session that runs, one request at a time.
    pub fn with<T>(&self, media: &MediaPlane, id: SessionId, work: impl FnOnce(&mut IceSession) -> T) -> Option<T> {
        match media.state(id) {
            SessionState::Connecting | SessionState::Connected => {
                let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
                table.by_id.get_mut(&id).map(|(ice, _)| work(ice))
            }
            SessionState::Ended(_) | SessionState::Unknown => None,
        }
    }

    /// The sessions whose right is no longer given.
    pub fn without_right(&self, access: &Access) -> Vec<SessionId> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = table.by_id.iter().filter(|(_, (_, held))| {
            let is_open = held.action == Action::Play && access.is_open();
            !is_open && !access.still_grants(&held.grant, held.action, &held.stream)
        });
        lost.map(|(id, _)| *id).collect()
    }

    /// What a session that runs was opened for.
    pub fn held(&self, media: &MediaPlane, id: SessionId) -> Option<SessionRecord> {
        if !self.is_running(media, id) {
            return None;
        }
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.by_id.get(&id).map(|(_, held)| held.clone())
    }

    /// All sessions that are remembered.
    pub fn all(&self) -> Vec<(SessionId, SessionRecord)> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.by_id.iter().map(|(id, (_, held))| (*id, held.clone())).collect()
    }

    /// Whether a session runs.
    pub fn is_running(&self, media: &MediaPlane, id: SessionId) -> bool {
        self.with(media, id, |_| ()).is_some()
    }
}
