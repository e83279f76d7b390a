//! URLs of sessions: `/session/ID`, and below it the extensions of WHEP. The id is a capability.

use axum::http::{Method, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::problem::Problem;
use crate::access::AccessAction;
use crate::control::ControlPlane;
use crate::control::session_record::SessionRecord;
use crate::shard::SessionId;

/// Path prefix of session URLs.
pub(super) const SESSION_PATH_PREFIX: &str = "/session/";

/// Path suffixes of a session URL for its layers, its events and reports of its delay.
pub(super) const LAYER_PATH_SUFFIX: &str = "/layer";

pub(super) const EVENTS_PATH_SUFFIX: &str = "/events";

pub(super) const DELAY_PATH_SUFFIX: &str = "/delay";

/// Whether this is a report of the delay of a running session.
pub(super) fn is_delay_report(control: &ControlPlane, method: &Method, uri: &Uri) -> bool {
    *method == Method::POST && find_viewer_session(control, uri, DELAY_PATH_SUFFIX).is_ok()
}

/// Returns the running viewer session of a URL that has the suffix `below`.
pub(super) fn find_viewer_session(
    control: &ControlPlane,
    uri: &Uri,
    suffix: &'static str,
) -> Result<(SessionId, SessionRecord), Problem> {
    let path = uri.path().strip_suffix(suffix).ok_or_else(Problem::not_found)?;
    let session = session_id_from_path(path)?;
    let record = control.sessions.running_session_record(session);
    let record = record.filter(|record| record.action == AccessAction::Play);
    Ok((session, record.ok_or_else(Problem::unknown_session)?))
}

/// Returns the path of a session's URL.
pub(super) fn session_path(session: SessionId) -> String {
    format!("{SESSION_PATH_PREFIX}{}", URL_SAFE_NO_PAD.encode(session.0))
}

/// Returns the session id in a URL.
pub(super) fn session_id_from_uri(uri: &Uri) -> Result<SessionId, Problem> {
    session_id_from_path(uri.path())
}

fn session_id_from_path(path: &str) -> Result<SessionId, Problem> {
    let id = path
        .strip_prefix(SESSION_PATH_PREFIX)
        .and_then(|id| URL_SAFE_NO_PAD.decode(id).ok());
    let id = id.and_then(|id| id.try_into().ok());
    id.map(SessionId).ok_or_else(Problem::unknown_session)
}
