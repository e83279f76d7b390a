//! The control API, `/api/v1`: status and control of the gateway as JSON, for programs and dashboards. Access requires
//! `auth.api_token` or another token with the right, which may be to read only. `/api/v1/openapi.json` describes the API.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use tokio::sync::oneshot;
use tracing::info;
use utoipa::{IntoParams, OpenApi};

use self::events::{EventLog, EventLogReader};
use self::extract::{Path, Query};
use self::openapi::CommonOperationParts;
use self::sessions::{Session, SessionListQuery, Sessions};
use self::snapshot::SnapshotFormat;
use self::sources::SourceChoice;
use self::streams::Stream;
use crate::access::Grant;
use crate::control::ControlPlane;
use crate::control::reload::Reloaded;
use crate::http::auth::AccessAction;
use crate::http::auth::Authenticator;
use crate::http::body;
use crate::http::problem::{Problem, ProblemDocument};
use crate::http::request::client_identity;
use crate::http::state::HttpState;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::session::CloseReason;

mod api_streams;
pub mod data;
pub mod events;
mod extract;
mod openapi;
mod retained_secret_check;
pub mod sessions;
pub mod snapshot;
pub mod source_tests;
pub mod sources;
pub mod streams;
pub mod tokens;
pub mod warnings;

/// Maximum length of the body that chooses a source.
const MAX_SOURCE_CHOICE_BYTES: usize = 1_024;

/// End of the path by which one of several sources of a stream is chosen.
const SOURCE_CHOICE_SUFFIX: &str = "/source";

/// State shared by the handlers.
#[derive(Clone)]
struct ApiState {
    control: Arc<ControlPlane>,
    event_log: Arc<EventLog>,
    authenticator: Arc<Authenticator>,
}

/// Who uses the API, for the log.
#[derive(Clone, Debug)]
struct ApiClient {
    /// Name of its credential, without anything secret.
    credential: String,
    address: Option<IpAddr>,
}

/// The OpenAPI document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Millstream",
        description = "Status and control of the gateway. Errors are problem documents (RFC 9457). `GET` needs a token that may \
                       read by the API (`api = \"read\"`), everything else one that may use all of it (`api = true`): 403 \
                       `insufficient_scope` otherwise."
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
    if let Some(allow) = below_streams.and_then(api_streams::allowed_methods_of_stream_subresource) {
        return Problem::method_not_allowed(allow);
    }
    let detail = "this URL does not support the request method: `Allow` lists those that it supports";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

async fn require_api_access(
    State(authenticator): State<Arc<Authenticator>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    // A GET changes nothing.
    let action = match parts.method {
        Method::GET | Method::HEAD => AccessAction::ApiRead,
        _ => AccessAction::ApiFull,
    };
    let grant = authorize_api_request(&authenticator, &parts, action).await?;
    // A message to viewers changes nothing either, and there may be many.
    let is_change =
        action == AccessAction::ApiFull && data::target_stream_of_data_message(&parts.method, &parts.uri).is_none();
    let client = ApiClient {
        credential: authenticator.access_control().credential_name(&grant),
        address: client_identity(&parts).address,
    };
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let mut request = Request::from_parts(parts, body);
    request.extensions_mut().insert(grant);
    request.extensions_mut().insert(client.clone());
    let mut response = next.run(request).await;
    if is_change && response.status().is_success() {
        let ApiClient { credential, address } = client;
        info!(%method, path, credential, address = address.map(tracing::field::display), "change made by the API");
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Who may publish a stream may also send its data channel messages.
async fn authorize_api_request(
    authenticator: &Authenticator,
    parts: &Parts,
    action: AccessAction,
) -> Result<Grant, Problem> {
    if let Some(stream) = data::target_stream_of_data_message(&parts.method, &parts.uri) {
        let publisher = authenticator.authorize_request(client_identity(parts), AccessAction::Publish, Some(&stream));
        match publisher.await {
            Err(problem) if problem.status == StatusCode::FORBIDDEN => {}
            granted_or_refused => return granted_or_refused,
        }
    }
    authenticator
        .authorize_request(client_identity(parts), action, None)
        .await
}

/// All streams that are published, watched or configured, sorted by name.
#[utoipa::path(get, path = "/api/v1/streams", responses((status = 200, body = Vec<Stream>, description = "the streams")))]
async fn all_streams(State(api): State<ApiState>) -> Json<Vec<Stream>> {
    let mut all = streams::list_streams(api.control.media_plane.hub(), &api.control.source_registry, |name| {
        api.control.hls_service.viewer_count(name)
    });
    for stream in &mut all {
        let set = StreamName::parse(&stream.name)
            .ok()
            .and_then(|name| api.control.api_streams.get(&name));
        stream.settings = set.map(|set| api_streams::settings_without_secrets(&set));
    }
    Json(all)
}

/// A snapshot shows what viewers see: who may only read by the API needs the right to watch the stream.
async fn authorize_snapshot(authenticator: &Authenticator, parts: &Parts, stream: &StreamName) -> Result<(), Problem> {
    let is_for_all_of_api = authenticator.authorize_request(client_identity(parts), AccessAction::ApiFull, None);
    if is_for_all_of_api.await.is_ok() {
        return Ok(());
    }
    let watching = authenticator.authorize_request(client_identity(parts), AccessAction::Play, Some(stream));
    watching.await.map(|_| ())
}

/// Describes a stream, with the settings that the API has set.
fn describe_one_stream(api: &ApiState, name: &StreamName) -> Option<Stream> {
    let control = &api.control;
    let mut stream = streams::describe_stream(name, control.media_plane.hub(), &control.source_registry, |name| {
        control.hls_service.viewer_count(name)
    })?;
    let set = control.api_streams.get(name);
    stream.settings = set.map(|set| api_streams::settings_without_secrets(&set));
    Some(stream)
}

/// One stream.
#[utoipa::path(
    get,
    path = "/api/v1/streams/{stream}",
    params(("stream" = String, Path, description = "the name of the stream, which may contain slashes")),
    responses(
        (status = 200, body = Stream, description = "the stream"),
        (status = 404, description = "no such stream"),
    )
)]
async fn one_stream(
    State(api): State<ApiState>,
    Path(stream): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    for image in SnapshotFormat::ALL_FORMATS {
        if let Some(stream) = stream.strip_suffix(image.path_suffix()) {
            let (parts, _) = request.into_parts();
            let stream = StreamName::parse(stream)?;
            authorize_snapshot(&api.authenticator, &parts, &stream).await?;
            return snapshot::take_snapshot(&api.control, &stream, image).await;
        }
    }
    let name = StreamName::parse(&stream)?;
    let found = describe_one_stream(&api, &name).ok_or_else(|| {
        let detail = "no such stream: it is not published, watched or configured";
        Problem::new(StatusCode::NOT_FOUND, "unknown_stream", detail)
    })?;
    let mut response = Json(found).into_response();
    if let Some(set) = api.control.api_streams.get(&name) {
        api_streams::add_entity_tag(response.headers_mut(), &set);
    }
    Ok(response)
}

/// Running sessions, and those that ended within the last minute with the cause.
#[utoipa::path(get, path = "/api/v1/sessions", params(SessionListQuery), responses((status = 200, body = Sessions, description = "a page of the sessions")))]
async fn all_sessions(
    State(api): State<ApiState>,
    Query(page): Query<SessionListQuery>,
) -> Result<Json<Sessions>, Problem> {
    Ok(Json(sessions::session_page(&api.control, &page)?))
}

/// A snapshot of the stream: its last key frame, as a JPEG.
#[utoipa::path(
    get,
    path = "/api/v1/streams/{stream}/snapshot.jpg",
    params(("stream" = String, Path, description = "the name of the stream, which may contain slashes")),
    responses(
        (status = 200, description = "the snapshot", content_type = "image/jpeg"),
        (status = 409, description = "the stream is not live or has no video: retry while it is published with video"),
        (status = 422, description = "this host cannot make snapshots"),
    )
)]
#[expect(
    dead_code,
    reason = "served by the wildcard route of streams; only for the OpenAPI document"
)]
fn take_snapshot() {}

/// The same snapshot as a PNG.
#[utoipa::path(
    get,
    path = "/api/v1/streams/{stream}/snapshot.png",
    params(("stream" = String, Path, description = "the name of the stream, which may contain slashes")),
    responses(
        (status = 200, description = "the snapshot", content_type = "image/png"),
        (status = 409, description = "the stream is not live or has no video: retry while it is published with video"),
        (status = 422, description = "this host cannot make snapshots, or the frame is not a valid JPEG or too large for PNG"),
    )
)]
#[expect(
    dead_code,
    reason = "served by the wildcard route of streams; only for the OpenAPI document"
)]
fn take_png() {}

/// Chooses which of several sources the stream shows, from the next key frame of that source on. It ranks above all others
/// until the choice is withdrawn; while it fails, the others stand in.
#[utoipa::path(
    put,
    path = "/api/v1/streams/{stream}/source",
    params(("stream" = String, Path, description = "the name of the stream, which may contain slashes")),
    request_body = SourceChoice,
    responses(
        (status = 204, description = "the source is chosen"),
        (status = 400, description = "the body is not a choice"),
        (status = 404, description = "the stream does not have several sources, or none of this name"),
    )
)]
async fn choose_source(api: &ApiState, stream: &str, headers: &HeaderMap, body: Body) -> Result<StatusCode, Problem> {
    let stream = StreamName::parse(stream)?;
    let bytes = body::read_uncompressed_request_body(headers, body, MAX_SOURCE_CHOICE_BYTES).await?;
    sources::choose_source(&api.control, &stream, &bytes)
}

/// The wildcard of the route includes the suffix `/source`.
async fn put_stream_or_choose_source(
    State(api): State<ApiState>,
    path: Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    match path.0.strip_suffix(SOURCE_CHOICE_SUFFIX) {
        Some(stream) => Ok(choose_source(&api, stream, &headers, body).await?.into_response()),
        None => api_streams::put_stream(State(api), path, headers, body).await,
    }
}

/// The wildcard of the route includes the suffix `/data`.
async fn add_stream_or_send_data_message(
    State(api): State<ApiState>,
    path: Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    match path.0.strip_suffix(data::DATA_PATH_SUFFIX) {
        Some(stream) => Ok(data::send_data_message(&api, stream, &headers, body)
            .await?
            .into_response()),
        None => api_streams::add_stream(State(api), path, headers, body).await,
    }
}

fn find_session(api: &ApiState, id: &str) -> Result<(crate::shard::SessionId, Session), Problem> {
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
async fn one_session(State(api): State<ApiState>, Path(id): Path<String>) -> Result<Json<Session>, Problem> {
    find_session(&api, &id).map(|(_, session)| Json(session))
}

/// Ends a session.
#[utoipa::path(
    delete,
    path = "/api/v1/sessions/{id}",
    params(("id" = String, Path, description = "the id in the list of sessions")),
    responses(
        (status = 204, description = "the session is being ended"),
        (status = 404, description = "no such session: it never existed, or it ended more than a minute ago"),
    )
)]
async fn end_session(State(api): State<ApiState>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let (session, _) = find_session(&api, &id)?;
    api.control.media_plane.end_session(session, CloseReason::Kicked);
    Ok(StatusCode::NO_CONTENT)
}

fn unknown_source_problem() -> Problem {
    let detail = "no source is configured for this stream: add one under [streams] in the configuration";
    Problem::new(StatusCode::NOT_FOUND, "unknown_source", detail)
}

/// Which of several sources of a stream is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct SourceQuery {
    /// Name of the source, if the stream has several.
    source: Option<String>,
}

/// Returns the key of the stream that a source writes to.
fn parse_source_stream_key(control: &ControlPlane, stream: &str, which: &SourceQuery) -> Result<StreamKey, Problem> {
    let stream = StreamName::parse(stream)?;
    let Some(name) = &which.source else {
        return Ok(stream.into());
    };
    let failover_group = control
        .source_registry
        .failover_group(&stream)
        .ok_or_else(unknown_source_problem)?;
    let mut sources = failover_group.config.sources.iter();
    let source = sources.find(|source| source.name.as_str() == name);
    source
        .map(|source| failover_group.config.source_key(source))
        .ok_or_else(unknown_source_problem)
}

/// Starts or restarts the source of a configured stream.
#[utoipa::path(
    post,
    path = "/api/v1/sources/start/{stream}",
    params(("stream" = String, Path, description = "the name of the stream"), SourceQuery),
    responses(
        (status = 204, description = "the source is being started"),
        (status = 404, description = "no source is configured for this stream"),
    )
)]
async fn start_source(
    State(api): State<ApiState>,
    Path(stream): Path<String>,
    Query(which): Query<SourceQuery>,
) -> Result<StatusCode, Problem> {
    let found = api
        .control
        .supervisor
        .start_or_restart_source(&parse_source_stream_key(&api.control, &stream, &which)?)
        .await;
    found
        .then_some(StatusCode::NO_CONTENT)
        .ok_or_else(unknown_source_problem)
}

/// Stops the source of a configured stream until it is started again.
#[utoipa::path(
    post,
    path = "/api/v1/sources/stop/{stream}",
    params(("stream" = String, Path, description = "the name of the stream"), SourceQuery),
    responses((status = 204, description = "the source is stopped"), (status = 404, description = "no source is configured for this stream"))
)]
async fn stop_source(
    State(api): State<ApiState>,
    Path(stream): Path<String>,
    Query(which): Query<SourceQuery>,
) -> Result<StatusCode, Problem> {
    let found = api
        .control
        .supervisor
        .stop_source_until_started(&parse_source_stream_key(&api.control, &stream, &which)?)
        .await;
    found
        .then_some(StatusCode::NO_CONTENT)
        .ok_or_else(unknown_source_problem)
}

/// Reloads the configuration. An invalid one changes nothing.
#[utoipa::path(
    post,
    path = "/api/v1/reload",
    responses((status = 200, body = Reloaded, description = "what has changed"), (status = 422, description = "the configuration is invalid"))
)]
async fn reload(State(api): State<ApiState>) -> Result<Json<Reloaded>, Problem> {
    let unavailable = || {
        let detail = "the configuration cannot be reloaded because the gateway is stopping or its process does not handle reload requests: restart the gateway to apply changes";
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

/// Server-sent events `stream`, `session` and `source_switch`, each with its `time` in seconds since 1970. The last 200 events
/// are sent first, or those after `Last-Event-ID`. The
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
