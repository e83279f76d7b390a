//! `GET /api/v1/sessions` and `GET` and `DELETE /api/v1/sessions/{id}`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::extract::{Path, Query};
use super::sessions::{self, Session, SessionListQuery, Sessions};
use super::state::ApiState;
use crate::http::problem::Problem;
use crate::shard::SessionId;
use millstream_core::session::CloseReason;

/// Running sessions, and those that ended within the last minute with the cause.
#[utoipa::path(get, path = "/api/v1/sessions", params(SessionListQuery), responses((status = 200, body = Sessions, description = "a page of the sessions")))]
pub(super) async fn all_sessions(
    State(api): State<ApiState>,
    Query(page): Query<SessionListQuery>,
) -> Result<Json<Sessions>, Problem> {
    Ok(Json(sessions::session_page(&api.control, &page)?))
}

fn find_session(api: &ApiState, id: &str) -> Result<(SessionId, Session), Problem> {
    let mut all = sessions::describe_all_sessions(&api.control).into_iter();
    all.find(|(_, session)| session.id == id)
        .ok_or_else(Problem::unknown_session)
}

/// One session.
#[utoipa::path(
    get,
    path = "/api/v1/sessions/{id}",
    params(("id" = String, Path, description = "the id in the list of sessions")),
    responses((status = 200, body = Session, description = "the session"), (status = 404, description = "no such session: it never existed, or it ended more than a minute ago"))
)]
pub(super) async fn one_session(State(api): State<ApiState>, Path(id): Path<String>) -> Result<Json<Session>, Problem> {
    find_session(&api, &id).map(|(_, session)| Json(session))
}

/// Ends a session.
#[utoipa::path(
    delete,
    path = "/api/v1/sessions/{id}",
    params(("id" = String, Path, description = "the id in the list of sessions")),
    responses(
        (status = 204, description = "success: the session ends now, or has ended in the last minute"),
        (status = 404, description = "no such session: it never existed, or it ended more than a minute ago"),
    )
)]
pub(super) async fn end_session(State(api): State<ApiState>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let (session, _) = find_session(&api, &id)?;
    api.control.media_plane.end_session(session, CloseReason::Kicked);
    Ok(StatusCode::NO_CONTENT)
}
