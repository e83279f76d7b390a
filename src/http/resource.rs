//! The session URL `/session/{id}` (RFC 9725 §4.2, §4.3). Who knows it may use it: its id has 128 random bits.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tracing::debug;

use super::endpoint::{self, ACCEPT_POST, no_store};
use super::fragment::{Fragment, FragmentError};
use super::precondition::IfMatch;
use super::problem::Problem;
use super::{body, cors};
use crate::access::Action;
use crate::control::Control;
use crate::control::record::{IceSession, SessionRecord};
use crate::shard::{Refusal, SessionId, SessionState};
use millstream_core::sdp::Local;

/// RFC 5789 §3.1.
pub const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");
const ALLOW: &str = "OPTIONS, HEAD, GET, PATCH, DELETE";
/// What the path of a session's URL begins with.
pub(super) const PREFIX: &str = "/session/";

/// What follows it for layers and for events.
pub(super) const SUB_LAYER: &str = "/layer";
pub(super) const SUB_EVENTS: &str = "/events";

/// The running viewer's session that a path below its URL is about.
pub(super) fn session_under(
    control: &Control,
    uri: &Uri,
    below: &'static str,
) -> Result<(SessionId, SessionRecord), Problem> {
    let path = uri.path().strip_suffix(below).ok_or_else(Problem::not_found)?;
    let session = session_of_path(path)?;
    let held = control.sessions.record(session);
    let held = held.filter(|held| held.action == Action::Play);
    Ok((session, held.ok_or_else(Problem::unknown_session)?))
}

/// Path of a session's URL.
pub fn path_of(session: SessionId) -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(session.0))
}

/// The session that a path is about.
pub(super) fn session_of(uri: &Uri) -> Result<SessionId, Problem> {
    session_of_path(uri.path())
}

fn session_of_path(path: &str) -> Result<SessionId, Problem> {
    let id = path.strip_prefix(PREFIX).and_then(|id| URL_SAFE_NO_PAD.decode(id).ok());
    let id = id.and_then(|id| id.try_into().ok());
    id.map(SessionId).ok_or_else(Problem::unknown_session)
}

/// `/session/{id}`.
pub async fn session(State(control): State<Arc<Control>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    match parts.method {
        // A preflight says nothing about the session, so that it cannot be used to look for one.
        Method::OPTIONS => Ok(options()),
        Method::GET | Method::HEAD => {
            let session = session_of(&parts.uri)?;
            require(&control, session)?;
            Ok(no_store(StatusCode::NO_CONTENT.into_response()))
        }
        Method::PATCH => patch(&control, session_of(&parts.uri)?, &parts.headers, body).await,
        Method::DELETE => delete(&control, session_of(&parts.uri)?),
        _ => Err(Problem::method_not_allowed(ALLOW)),
    }
}

/// Ends the session. Entity tags do not matter (RFC 9725 §4.3.1). OBS closes its transport first and then expects
/// exactly 200, so that a session that has just ended by itself is a success as well.
fn delete(control: &Control, session: SessionId) -> Result<Response, Problem> {
    if control.sessions.take_offer(session) {
        return Ok(no_store(StatusCode::OK.into_response()));
    }
    match control.media.close(session) {
        SessionState::Connecting | SessionState::Connected | SessionState::Ended(_) => {
            Ok(no_store(StatusCode::OK.into_response()))
        }
        SessionState::Unknown => Err(Problem::unknown_session()),
    }
}

/// Trickle ICE (RFC 9725 §4.3.2): 204 without an `ETag`, as the ICE session stays the same. Other credentials than the
/// current ones begin a new ICE session (§4.3.3): 200 with ours, and the `ETag` of the new one.
async fn patch(control: &Control, session: SessionId, headers: &HeaderMap, body: Body) -> Result<Response, Problem> {
    let is_offered = control.sessions.offered(session).is_some();
    if is_offered && body::is_of_type(headers, body::SDP) {
        let bytes = body::read(headers, body, body::OFFER_LIMIT).await?;
        return endpoint::answered(control, session, &bytes).await;
    }
    require(control, session)?;
    if body::is_of_type(headers, body::SDP) {
        let detail = "a session is not renegotiated (RFC 9725 §3): end it and POST a new offer";
        return Err(Problem::new(StatusCode::CONFLICT, "no_renegotiation", detail));
    }
    if !body::is_of_type(headers, body::FRAGMENT) {
        let detail = format!("send the fragment with `Content-Type: {}`", body::FRAGMENT);
        return Err(
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
                .with(ACCEPT_PATCH, HeaderValue::from_static(body::FRAGMENT)),
        );
    }
    let bytes = body::read(headers, body, body::FRAGMENT_LIMIT).await?;
    let fragment = Fragment::parse(&bytes).map_err(bad_fragment)?;
    if is_offered {
        // What a viewer trickles before its answer is not needed: its checks tell.
        return Ok(no_store(StatusCode::NO_CONTENT.into_response()));
    }
    // The tag is compared and changed under one lock: of restarts at the same time one goes after the other.
    let patched = control.sessions.with_ice(session, |ice| {
        check_precondition(headers, ice, &fragment, control.policy().strict)?;
        if fragment.belongs_to(&ice.remote) {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        restart(control, session, ice, &fragment)
    });
    Ok(no_store(patched.ok_or_else(Problem::unknown_session)??))
}

fn require(control: &Control, session: SessionId) -> Result<(), Problem> {
    let is_offered = control.sessions.offered(session).is_some();
    if is_offered || control.sessions.is_running(session) {
        return Ok(());
    }
    Err(match control.media.state(session) {
        SessionState::Ended(reason) => Problem::ended(reason),
        _ => Problem::unknown_session(),
    })
}

/// RFC 9725 §4.3.1. Three client libraries send no `If-Match` when they trickle, which nothing can come of: only where
/// the configuration is strict they have to. A restart without one could have been meant for an ICE session that is
/// over.
fn check_precondition(
    headers: &HeaderMap,
    ice: &IceSession,
    fragment: &Fragment<'_>,
    strict: bool,
) -> Result<(), Problem> {
    match IfMatch::read(headers, ice.tag()) {
        IfMatch::Any | IfMatch::Current => Ok(()),
        IfMatch::Absent if !strict && fragment.belongs_to(&ice.remote) => Ok(()),
        IfMatch::Absent => {
            let detail = "send `If-Match` with the ETag of the session, or with `*` for an ICE restart";
            Err(Problem::new(
                StatusCode::PRECONDITION_REQUIRED,
                "if_match_missing",
                detail,
            ))
        }
        IfMatch::Stale => {
            let detail = "If-Match names an ICE session that is not the current one";
            Err(Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "stale_ice_session",
                detail,
            ))
        }
    }
}

/// An ICE restart (RFC 9725 §4.3.3). When it cannot be had, the old ICE session goes on.
fn restart(
    control: &Control,
    session: SessionId,
    ice: &mut IceSession,
    fragment: &Fragment<'_>,
) -> Result<Response, Problem> {
    let remote = fragment.credentials().map_err(bad_fragment)?;
    let media = &control.media;
    let local = media
        .restart_ice(session, remote.clone())
        .ok_or(Problem::from(Refusal::Full))?;
    ice.restart(remote, &local);
    debug!(?session, "ICE restarts");
    let candidates = media.candidates();
    let ours = Local {
        credentials: &local,
        fingerprint: media.fingerprint(),
        candidates: &candidates,
        tcp: media.takes_tcp(),
        session_id: 0,
    };
    let headers = [
        (header::CONTENT_TYPE, body::FRAGMENT.to_owned()),
        (header::ETAG, ice.entity_tag()),
    ];
    Ok((headers, ice.section.fragment(&local, &ours)).into_response())
}

fn bad_fragment(error: FragmentError) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_fragment", error.to_string())
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
