//! The session URL `/session/{id}` (RFC 9725 §4.2, §4.3). Who knows it may use it: its id has 128 random bits.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::endpoint::{ACCEPT_POST, no_store};
use super::problem::Problem;
use super::{Signalling, body, cors, split};
use crate::shard::{SessionId, SessionState};

/// RFC 5789 §3.1.
pub const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");
const ALLOW: &str = "OPTIONS, HEAD, GET, PATCH, DELETE";
const PREFIX: &str = "/session/";

/// Path of a session's URL.
pub fn path_of(session: SessionId) -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(session.0))
}

fn session_of(uri: &Uri) -> Result<SessionId, Problem> {
    let id = uri
        .path()
        .strip_prefix(PREFIX)
        .and_then(|id| URL_SAFE_NO_PAD.decode(id).ok());
    let id = id.and_then(|id| id.try_into().ok());
    id.map(SessionId).ok_or_else(Problem::unknown_session)
}

/// `/session/{id}`.
pub async fn session(State(signalling): State<Arc<Signalling>>, request: Request) -> Result<Response, Problem> {
    let (parts, _body) = split(request);
    match parts.method {
        // A preflight says nothing about the session, so that it cannot be used to look for one.
        Method::OPTIONS => Ok(options()),
        Method::GET | Method::HEAD => {
            let session = session_of(&parts.uri)?;
            signalling
                .sessions
                .find(&signalling.media, session)
                .ok_or_else(Problem::unknown_session)?;
            Ok(no_store(StatusCode::NO_CONTENT.into_response()))
        }
        Method::DELETE => delete(&signalling, session_of(&parts.uri)?),
        _ => Err(Problem::method_not_allowed(ALLOW)),
    }
}

/// Ends the session. Entity tags do not matter (RFC 9725 §4.3.1). OBS closes its transport first and then expects
/// exactly 200, so that a session that has just ended by itself is a success as well.
fn delete(signalling: &Signalling, session: SessionId) -> Result<Response, Problem> {
    match signalling.media.close(session) {
        SessionState::Connecting | SessionState::Connected | SessionState::Ended(_) => {
            Ok(no_store(StatusCode::OK.into_response()))
        }
        SessionState::Unknown => Err(Problem::unknown_session()),
    }
}

fn options() -> Response {
    let mut response = StatusCode::OK.into_response();
    let headers = response.headers_mut();
    headers.insert(ACCEPT_PATCH, HeaderValue::from_static(body::FRAGMENT));
    headers.insert(ACCEPT_POST, HeaderValue::from_static(body::SDP));
    headers.insert(header::ALLOW, HeaderValue::from_static(ALLOW));
    cors::answer_preflight(headers);
    response
}
