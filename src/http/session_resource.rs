//! The session URL `/session/{id}` (RFC 9725 §4.2, §4.3). It is a capability: its id has 128 random bits.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use tracing::debug;

use super::precondition::IfMatchResult;
use super::problem::Problem;
use super::response::{ACCEPT_PATCH_HEADER_NAME, ACCEPT_POST_HEADER_NAME, add_no_store_header};
use super::session_url::session_id_from_uri;
use super::trickle_fragment::{TrickleFragmentCredentials, TrickleFragmentError};
use super::whip_whep;
use super::{body, cors};
use crate::control::ControlPlane;
use crate::control::session_record::IceSession;
use crate::shard::{SessionId, SessionRefusal, SessionState};
use millstream_core::sdp::LocalTransport;

const ALLOW_HEADER_METHODS: &str = "OPTIONS, HEAD, GET, PATCH, DELETE";

/// Handles `/session/{id}`.
pub async fn serve_session_resource(
    State(control): State<Arc<ControlPlane>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    match parts.method {
        // The response to a preflight does not depend on the session, so that it cannot be used to probe for sessions.
        Method::OPTIONS => Ok(options_response()),
        Method::GET | Method::HEAD => {
            let session = session_id_from_uri(&parts.uri)?;
            require_running_or_offered_session(&control, session)?;
            Ok(add_no_store_header(StatusCode::NO_CONTENT.into_response()))
        }
        Method::PATCH => patch_session(&control, session_id_from_uri(&parts.uri)?, &parts.headers, body).await,
        Method::DELETE => delete_session(&control, session_id_from_uri(&parts.uri)?),
        _ => Err(Problem::method_not_allowed(ALLOW_HEADER_METHODS)),
    }
}

/// Ends the session. Entity tags are ignored (RFC 9725 §4.3.1). OBS closes its transport first and then expects exactly
/// 200, so deleting a session that has just ended succeeds too.
fn delete_session(control: &ControlPlane, session: SessionId) -> Result<Response, Problem> {
    if control.sessions.remove_unexpired_offer(session) {
        return Ok(add_no_store_header(StatusCode::OK.into_response()));
    }
    control.sessions.mark_deleted(session);
    match control.media_plane.delete_session(session) {
        SessionState::Connecting | SessionState::Connected | SessionState::Ended(_) => {
            Ok(add_no_store_header(StatusCode::OK.into_response()))
        }
        SessionState::Unknown => Err(Problem::unknown_session()),
    }
}

/// Handles trickle ICE (RFC 9725 §4.3.2): 204 without an `ETag`, because the ICE session stays the same. Credentials
/// that differ from the current ones start a new ICE session (§4.3.3): 200 with the local credentials and the new
/// `ETag`. The answer to an offer of the gateway is a PATCH too (WHEP §4.3.2).
async fn patch_session(
    control: &ControlPlane,
    session: SessionId,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let is_offered = control.sessions.unexpired_offer(session).is_some();
    if is_offered && body::has_content_type(headers, body::SDP_MEDIA_TYPE) {
        let bytes = body::read_uncompressed_request_body(headers, body, body::MAX_SDP_BODY_BYTES).await?;
        return whip_whep::open_session_from_answer(control, session, &bytes).await;
    }
    require_running_or_offered_session(control, session)?;
    if body::has_content_type(headers, body::SDP_MEDIA_TYPE) {
        let detail = "sessions cannot be renegotiated (RFC 9725 §3): end the session and POST a new offer";
        return Err(Problem::new(StatusCode::CONFLICT, "no_renegotiation", detail));
    }
    if !body::has_content_type(headers, body::TRICKLE_ICE_MEDIA_TYPE) {
        let detail = format!(
            "send the trickle ICE fragment with `Content-Type: {}`",
            body::TRICKLE_ICE_MEDIA_TYPE
        );
        return Err(
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail).with_header(
                ACCEPT_PATCH_HEADER_NAME,
                HeaderValue::from_static(body::TRICKLE_ICE_MEDIA_TYPE),
            ),
        );
    }
    let bytes = body::read_uncompressed_request_body(headers, body, body::MAX_TRICKLE_FRAGMENT_BYTES).await?;
    let fragment = TrickleFragmentCredentials::parse(&bytes).map_err(fragment_problem)?;
    if is_offered {
        // Candidates that a viewer sends before its answer are not needed: its addresses are learned from its checks.
        return Ok(add_no_store_header(StatusCode::NO_CONTENT.into_response()));
    }
    // The tag is compared and changed under one lock, so that concurrent restarts are serialized.
    let patched = control.sessions.with_ice_session_mut(session, |ice| {
        require_matching_if_match(headers, ice, &fragment, control.client_settings().strict_preconditions)?;
        if fragment.matches_credentials(&ice.remote_credentials) {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        restart_ice(control, session, ice, &fragment)
    });
    Ok(add_no_store_header(patched.ok_or_else(Problem::unknown_session)??))
}

/// Fails unless the session is offered or running.
fn require_running_or_offered_session(control: &ControlPlane, session: SessionId) -> Result<(), Problem> {
    let is_offered = control.sessions.unexpired_offer(session).is_some();
    if is_offered || control.sessions.is_session_running(session) {
        return Ok(());
    }
    Err(match control.media_plane.session_state(session) {
        SessionState::Ended(reason) => {
            Problem::session_ended(reason, &control.media_plane.explain_close_reason(reason))
        }
        _ => Problem::unknown_session(),
    })
}

/// Checks `If-Match` (RFC 9725 §4.3.1). Three client libraries do not send it with trickle ICE; this is harmless and
/// accepted unless the configuration is strict. A restart requires it, because it might be meant for a previous ICE
/// session.
fn require_matching_if_match(
    headers: &HeaderMap,
    ice: &IceSession,
    fragment: &TrickleFragmentCredentials<'_>,
    strict: bool,
) -> Result<(), Problem> {
    match IfMatchResult::evaluate(headers, ice.opaque_tag()) {
        IfMatchResult::Any | IfMatchResult::Current => Ok(()),
        IfMatchResult::Absent if !strict && fragment.matches_credentials(&ice.remote_credentials) => Ok(()),
        IfMatchResult::Absent => {
            let detail = "send `If-Match` with the ETag of the session, or with `*` for an ICE restart";
            Err(Problem::new(
                StatusCode::PRECONDITION_REQUIRED,
                "if_match_missing",
                detail,
            ))
        }
        IfMatchResult::Stale => {
            let detail = "If-Match does not name the current ICE session: send the current ETag";
            Err(Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "stale_ice_session",
                detail,
            ))
        }
    }
}

/// Restarts ICE (RFC 9725 §4.3.3). If this fails, the current ICE session continues.
fn restart_ice(
    control: &ControlPlane,
    session: SessionId,
    ice: &mut IceSession,
    fragment: &TrickleFragmentCredentials<'_>,
) -> Result<Response, Problem> {
    let remote = fragment.credentials().map_err(fragment_problem)?;
    let media = &control.media_plane;
    let local = media
        .restart_ice(session, remote.clone())
        .ok_or(Problem::from(SessionRefusal::TooManySessions))?;
    ice.record_ice_restart(remote, &local);
    debug!(?session, "ICE restarted at the request of the client");
    let candidates = media.candidate_addresses();
    let ours = LocalTransport {
        ice_credentials: &local,
        fingerprint: media.fingerprint(),
        candidate_addresses: &candidates,
        accepts_ice_tcp: media.offers_tcp_candidates(),
        viewer_congestion_control: media.uses_viewer_congestion_control(),
        viewer_playout_delay: media.uses_viewer_playout_delay(),
        accepts_data_channels: media.accepts_data_channels(),
        sdp_session_id: 0,
    };
    let headers = [
        (header::CONTENT_TYPE, body::TRICKLE_ICE_MEDIA_TYPE.to_owned()),
        (header::ETAG, ice.entity_tag()),
    ];
    Ok((headers, ice.sdp_section.ice_restart_sdp_fragment(&local, &ours)).into_response())
}

fn fragment_problem(error: TrickleFragmentError) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_fragment", error.to_string())
}

fn options_response() -> Response {
    let mut response = StatusCode::OK.into_response();
    let headers = response.headers_mut();
    headers.insert(
        ACCEPT_PATCH_HEADER_NAME,
        HeaderValue::from_static(body::TRICKLE_ICE_MEDIA_TYPE),
    );
    headers.insert(ACCEPT_POST_HEADER_NAME, HeaderValue::from_static(body::SDP_MEDIA_TYPE));
    headers.insert(header::ALLOW, HeaderValue::from_static(ALLOW_HEADER_METHODS));
    cors::add_preflight_headers(headers);
    response
}
