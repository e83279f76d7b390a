//! Sessions as the API shows them: those that run, and for a minute those that have ended, with the cause.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};

use crate::access::Action;
use crate::shard::{SessionId, SessionState};
use crate::signalling::Signalling;
use crate::signalling::sessions::SessionRecord;

/// A session of a publisher or of a viewer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Session {
    /// Tells it from others. It is not the name in its URL, which is a capability.
    pub id: String,
    /// `publisher` or `viewer`.
    pub role: &'static str,
    pub stream: String,
    /// `connecting`, `connected` or `ended`.
    pub state: &'static str,
    /// Why it has ended, as the metrics call it.
    pub cause: Option<&'static str>,
    /// The same in words, with what can be done.
    pub explanation: Option<&'static str>,
    /// Seconds since its offer came.
    pub seconds: f64,
    /// Where the offer came from.
    pub address: Option<String>,
    /// What sent it (`User-Agent`).
    pub client: Option<String>,
}

/// A part of a list.
#[derive(Debug, Deserialize, IntoParams)]
pub struct Page {
    /// Entries at most: 1 to 1000, 100 without it.
    pub limit: Option<usize>,
    /// Begin behind this one.
    pub after: Option<String>,
    /// Only those of this stream.
    pub stream: Option<String>,
}

/// A part of the list of sessions.
#[derive(Debug, Serialize, ToSchema)]
pub struct Sessions {
    pub sessions: Vec<Session>,
    /// What `after` has to be for the next part; `null` at the end.
    pub next: Option<String>,
}

/// What stands for a session in the API.
pub fn id_of(session: SessionId) -> String {
    let digest: [u8; 32] = Sha256::digest(session.0).into();
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// All that are known, by id.
pub fn all(signalling: &Signalling) -> Vec<(SessionId, Session)> {
    #[expect(clippy::disallowed_methods, reason = "the moment of the request")]
    let now = Instant::now();
    let known = signalling.sessions.all().into_iter();
    let mut shown: Vec<_> = known
        .filter_map(|(id, held)| Some((id, show(id, &held, signalling.media.state(id), now)?)))
        .collect();
    shown.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
    shown
}

fn show(id: SessionId, held: &SessionRecord, state: SessionState, now: Instant) -> Option<Session> {
    let (state, cause) = match state {
        SessionState::Connecting => ("connecting", None),
        SessionState::Connected => ("connected", None),
        SessionState::Ended(reason) => ("ended", Some(reason)),
        SessionState::Unknown => return None,
    };
    Some(Session {
        id: id_of(id),
        role: match held.action {
            Action::Publish => "publisher",
            Action::Play | Action::Api => "viewer",
        },
        stream: held.stream.to_string(),
        state,
        cause: cause.map(|reason| reason.label()),
        explanation: cause.map(|reason| reason.explanation()),
        seconds: now.saturating_duration_since(held.opened).as_secs_f64(),
        address: held.address.map(|address| address.to_canonical().to_string()),
        client: held.agent.clone(),
    })
}

/// One part of them.
pub fn page(signalling: &Signalling, page: &Page) -> Sessions {
    let limit = page.limit.unwrap_or(100).clamp(1, 1_000);
    let fits = |session: &Session| {
        let is_later = page.after.as_ref().is_none_or(|after| session.id > *after);
        is_later && page.stream.as_ref().is_none_or(|stream| session.stream == *stream)
    };
    let mut sessions = all(signalling).into_iter().map(|(_, session)| session).filter(fits);
    let part: Vec<Session> = sessions.by_ref().take(limit).collect();
    let next = sessions.next().and(part.last()).map(|last| last.id.clone());
    Sessions { sessions: part, next }
}
