//! The control API, `/api/v1`: status and control of the gateway as JSON, for programs and dashboards. Access requires
//! `auth.api_token` or another token with the right, which may be to read only. `/api/v1/openapi.json` describes the API.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use tokio::sync::oneshot;
use utoipa::OpenApi;

use self::authorization::require_api_access;
use self::events::{EventLog, EventLogReader};
use self::openapi::CommonOperationParts;
// Without the module: it would be the tag of its operations in the OpenAPI document.
use self::session_handlers::*;
use self::source_handlers::*;
use self::state::ApiState;
use self::stream_handlers::*;
use self::stream_subresources::*;
use crate::access::Grant;
use crate::control::reload::Reloaded;
use crate::http::problem::{Problem, ProblemDocument};
use crate::http::state::HttpState;

mod api_streams;
mod authorization;
pub mod data;
pub mod delay;
pub mod events;
mod extract;
mod openapi;
mod retained_secret_check;
mod session_handlers;
pub mod sessions;
pub mod snapshot;
mod source_handlers;
pub mod source_tests;
pub mod sources;
mod state;
mod stream_handlers;
mod stream_settings;
mod stream_subresources;
pub mod streams;
pub mod tokens;
pub mod warnings;

/// The OpenAPI document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Millstream",
        description = "Status and control of the gateway. Errors are problem documents (RFC 9457). `GET` needs a token \
                       with read access to the API (`api = \"read\"`), all other methods a token with full access \
                       (`api = true`): 403 `insufficient_scope` otherwise."
    ),
    paths(
        all_streams,
        one_stream,
        api_streams::add_stream,
        api_streams::put_stream,
        api_streams::patch_stream,
        api_streams::remove_stream,
        data::send_data_message,
        take_snapshot,
        take_png,
        all_sessions,
        one_session,
        end_session,
        start_source,
        stop_source,
        source_tests::test_source,
        tokens::all_tokens,
        tokens::issue_token,
        tokens::revoke_token,
        choose_source,
        reload,
        stream_events,
        openapi_document
    ),
    components(schemas(ProblemDocument)),
    modifiers(&CommonOperationParts)
)]
struct OpenApiDocument;

/// Returns the routes of the API. Events are read from `event_log`.
pub fn router(state: &HttpState, log: Arc<EventLog>) -> Router {
    let api = ApiState {
        control: state.control.clone(),
        event_log: log,
        authenticator: state.authenticator.clone(),
    };
    Router::new()
        .route("/api/v1/streams", get(all_streams))
        .route(
            "/api/v1/streams/{*stream}",
            get(one_stream)
                .post(add_stream_or_send_data_message)
                .put(put_stream_or_choose_source)
                .patch(api_streams::patch_stream)
                .delete(api_streams::remove_stream),
        )
        .route("/api/v1/sessions", get(all_sessions))
        .route("/api/v1/sessions/{id}", get(one_session).delete(end_session))
        .route("/api/v1/sources/start/{*stream}", post(start_source))
        .route("/api/v1/sources/stop/{*stream}", post(stop_source))
        .route("/api/v1/sources/test", post(source_tests::test_source))
        .route("/api/v1/tokens", get(tokens::all_tokens).post(tokens::issue_token))
        .route("/api/v1/tokens/{id}", delete(tokens::revoke_token))
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/events", get(stream_events))
        .method_not_allowed_fallback(refuse_method)
        .layer(middleware::from_fn_with_state(
            state.authenticator.clone(),
            require_api_access,
        ))
        .route("/api/v1/openapi.json", get(openapi_document))
        .method_not_allowed_fallback(refuse_method)
        .with_state(api)
}

/// Handles methods that a path does not support. The router adds `Allow`, unless its wildcard stands for several resources.
async fn refuse_method(uri: Uri) -> Problem {
    let below_streams = uri.path().strip_prefix("/api/v1/streams/");
    if let Some(allow) = below_streams.and_then(allowed_methods_of_stream_subresource) {
        return Problem::method_not_allowed(allow);
    }
    let detail = "this URL does not support the request method: `Allow` lists those that it supports";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

/// Reloads the configuration. An invalid one changes nothing.
#[utoipa::path(
    post,
    path = "/api/v1/reload",
    responses((status = 200, body = Reloaded, description = "what has changed"), (status = 422, description = "the configuration is invalid"))
)]
async fn reload(State(api): State<ApiState>) -> Result<Json<Reloaded>, Problem> {
    let unavailable = || {
        let detail = "the configuration cannot be reloaded: the gateway is stopping, or was started without support \
                      for reloading. Restart the gateway to apply changes";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no_reload", detail)
    };
    let (answer, answered) = oneshot::channel();
    api.control
        .reload_request_sender
        .send(answer)
        .await
        .map_err(|_| unavailable())?;
    match answered.await {
        Ok(Ok(reloaded)) => Ok(Json(reloaded)),
        Ok(Err(mistake)) => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad_configuration",
            mistake,
        )),
        Err(_) => Err(unavailable()),
    }
}

/// Server-sent events `stream`, `session`, `source_switch` and `viewer_delay`, each with its `time` in seconds since 1970. The
/// last 200 events are sent first, and the last 50 `viewer_delay`, or those after `Last-Event-ID`. The
/// stream ends within 15 s after the token has expired or was removed.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    responses((status = 200, description = "an endless stream of events", content_type = "text/event-stream"))
)]
async fn stream_events(
    State(api): State<ApiState>,
    Extension(grant): Extension<Grant>,
    headers: HeaderMap,
) -> Response {
    let last = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    let is_granted = move || api.authenticator.still_grants_api_read(&grant);
    let body = EventLogReader::response_body(api.event_log, last.unwrap_or(0), Box::new(is_granted));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// The OpenAPI 3.1 document of the API. Requires no token.
#[utoipa::path(get, path = "/api/v1/openapi.json", responses((status = 200, description = "OpenAPI")))]
async fn openapi_document() -> Json<utoipa::openapi::OpenApi> {
    Json(OpenApiDocument::openapi())
}
