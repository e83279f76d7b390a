//! The session URL `/session/{id}` (RFC 9725 §4.2, §4.3). It is a capability: its id has 128 random bits.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use tracing::debug;

use super::endpoint;
use super::fragment::{Fragment, FragmentError};
use super::precondition::IfMatch;
use super::problem::Problem;
use super::response::{ACCEPT_PATCH, ACCEPT_POST, no_store};
use super::session_url::session_of;
use super::{body, cors};
use crate::control::Control;
use crate::control::record::IceSession;
use crate::shard::{Refusal, SessionId, SessionState};
use millstream_core::sdp::Local;

const ALLOWED_METHODS: &str = "OPTIONS, HEAD, GET, PATCH, DELETE";

/// Handles `/session/{id}`.
pub async fn session(State(control): State<Arc<Control>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    match parts.method {
        // The response to a preflight does not depend on the session, so that it cannot be used to probe for sessions.
        Method::OPTIONS => Ok(options()),
        Method::GET | Method::HEAD => {
            let session = session_of(&parts.uri)?;
            require_session(&control, session)?;
            Ok(no_store(StatusCode::NO_CONTENT.into_response()))
        }
        Method::PATCH => patch(&control, session_of(&parts.uri)?, &parts.headers, body).await,
        Method::DELETE => delete(&control, session_of(&parts.uri)?),
        _ => Err(Problem::method_not_allowed(ALLOWED_METHODS)),
    }
}

/// Ends the session. Entity tags are ignored (RFC 9725 §4.3.1). OBS closes its transport first and then expects exactly
/// 200, so deleting a session that has just ended succeeds too.
fn delete(control: &Control, session: SessionId) -> Result<Response, Problem> {
    if control.sessions.take_offer(session) {
        return Ok(no_store(StatusCode::OK.into_response()));
    }
    control.sessions.delete(session);
    match control.media.close(session) {
        SessionState::Connecting | SessionState::Connected | SessionState::Ended(_) => {
            Ok(no_store(StatusCode::OK.into_response()))
        }
        SessionState::Unknown => Err(Problem::unknown_session()),
    }
}

/// Handles trickle ICE (RFC 9725 §4.3.2): 204 without an `ETag`, because the ICE session stays the same. Credentials
/// that differ from the current ones start a new ICE session (§4.3.3): 200 with the local credentials and the new
/// `ETag`. The answer to an offer of the gateway is a PATCH too (WHEP §4.3.2).
async fn patch(control: &Control, session: SessionId, headers: &HeaderMap, body: Body) -> Result<Response, Problem> {
    let is_offered = control.sessions.offered(session).is_some();
    if is_offered && body::is_of_type(headers, body::SDP) {
        let bytes = body::read(headers, body, body::OFFER_LIMIT).await?;
        return endpoint::accept_answer(control, session, &bytes).await;
    }
    require_session(control, session)?;
    if body::is_of_type(headers, body::SDP) {
        let detail = "sessions cannot be renegotiated (RFC 9725 §3): end the session and POST a new offer";
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
        // Candidates that a viewer sends before its answer are not needed: its addresses are learned from its checks.
        return Ok(no_store(StatusCode::NO_CONTENT.into_response()));
    }
    // The tag is compared and changed under one lock, so that concurrent restarts are serialized.
    let patched = control.sessions.with_ice(session, |ice| {
        check_precondition(headers, ice, &fragment, control.policy().strict)?;
        if fragment.belongs_to(&ice.remote) {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        restart(control, session, ice, &fragment)
    });
    Ok(no_store(patched.ok_or_else(Problem::unknown_session)??))
}

/// Fails unless the session is offered or running.
fn require_session(control: &Control, session: SessionId) -> Result<(), Problem> {
    let is_offered = control.sessions.offered(session).is_some();
    if is_offered || control.sessions.is_running(session) {
        return Ok(());
    }
    Err(match control.media.state(session) {
        SessionState::Ended(reason) => Problem::ended(reason, &control.media.explain(reason)),
        _ => Problem::unknown_session(),
    })
}

/// Checks `If-Match` (RFC 9725 §4.3.1). Three client libraries do not send it with trickle ICE; this is harmless and
/// accepted unless the configuration is strict. A restart requires it, because it might be meant for a previous ICE
/// session.
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

/// Restarts ICE (RFC 9725 §4.3.3). If this fails, the current ICE session continues.
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
    debug!(?session, "ICE restart");
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
    headers.insert(header::ALLOW, HeaderValue::from_static(ALLOWED_METHODS));
    cors::answer_preflight(headers);
    response
}
