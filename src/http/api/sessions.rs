//! Sessions in the API: the running ones, and for a minute those that have ended, with the cause.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};

use crate::access::Action;
use crate::control::Control;
use crate::control::record::SessionRecord;
use crate::shard::{SessionId, SessionState};

/// A session of a publisher or of a viewer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Session {
    /// Unique id. It is not the id in the session URL, which is a secret.
    pub id: String,
    /// `publisher` or `viewer`.
    pub role: &'static str,
    pub stream: String,
    /// `connecting`, `connected` or `ended`.
    pub state: &'static str,
    /// Why it has ended, as in the metrics.
    pub cause: Option<&'static str>,
    /// The cause in words, with possible remedies, and for a session that was not connected with the addresses that
    /// clients receive.
    pub explanation: Option<String>,
    /// Seconds since its offer was received.
    pub seconds: f64,
    /// Address that sent the offer.
    pub address: Option<String>,
    /// `User-Agent` of the offer.
    pub client: Option<String>,
}

/// Query parameters of the list of sessions.
#[derive(Debug, Deserialize, IntoParams)]
pub struct Page {
    /// Maximum number of entries, 1 to 1000. Default: 100.
    pub limit: Option<usize>,
    /// Return the sessions after this id.
    pub after: Option<String>,
    /// Return only the sessions of this stream.
    pub stream: Option<String>,
}

/// A page of the list of sessions.
#[derive(Debug, Serialize, ToSchema)]
pub struct Sessions {
    pub sessions: Vec<Session>,
    /// Value of `after` for the next page; `null` on the last page.
    pub next: Option<String>,
}

/// Returns the id of a session in the API.
pub fn id_of(session: SessionId) -> String {
    let digest: [u8; 32] = Sha256::digest(session.0).into();
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Returns all sessions, sorted by id.
pub fn all(control: &Control) -> Vec<(SessionId, Session)> {
    #[expect(clippy::disallowed_methods, reason = "the time of the request")]
    let now = Instant::now();
    let records = control.sessions.all().into_iter();
    let mut shown: Vec<_> = records
        .filter_map(|(id, record)| Some((id, show(control, id, &record, now)?)))
        .collect();
    shown.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
    shown
}

fn show(control: &Control, id: SessionId, record: &SessionRecord, now: Instant) -> Option<Session> {
    let (state, cause) = match control.media.state(id) {
        SessionState::Connecting => ("connecting", None),
        SessionState::Connected => ("connected", None),
        SessionState::Ended(reason) => ("ended", Some(reason)),
        SessionState::Unknown => return None,
    };
    Some(Session {
        id: id_of(id),
        role: match record.action {
            Action::Publish => "publisher",
            Action::Play | Action::Api => "viewer",
        },
        stream: record.stream.to_string(),
        state,
        cause: cause.map(|reason| reason.label()),
        explanation: cause.map(|reason| control.media.explain(reason)),
        seconds: now.saturating_duration_since(record.opened).as_secs_f64(),
        address: record.address.map(|address| address.to_canonical().to_string()),
        client: record.agent.clone(),
    })
}

/// Returns one page of the sessions.
pub fn page(control: &Control, page: &Page) -> Sessions {
    let limit = page.limit.unwrap_or(100).clamp(1, 1_000);
    let fits = |session: &Session| {
        let is_later = page.after.as_ref().is_none_or(|after| session.id > *after);
        is_later && page.stream.as_ref().is_none_or(|stream| session.stream == *stream)
    };
    let mut sessions = all(control).into_iter().map(|(_, session)| session).filter(fits);
    let part: Vec<Session> = sessions.by_ref().take(limit).collect();
    let next = sessions.next().and(part.last()).map(|last| last.id.clone());
    Sessions { sessions: part, next }
}
