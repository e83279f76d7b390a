//! The control API, `/api/v1`: what the gateway does, as JSON for programs and dashboards. It is closed unless something
//! gives access to it: `auth.api_token`, or another token with the right. `/api/v1/openapi.json` describes it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::sync::oneshot;
use utoipa::OpenApi;

use self::events::{EventStream, Log};
use self::sessions::{Page, Session, Sessions};
use self::snapshot::Image;
use self::streams::Stream;
use crate::hub::name::StreamName;
use crate::session::CloseReason;
use crate::signalling::auth::Action;
use crate::signalling::problem::Problem;
use crate::signalling::reload::Reloaded;
use crate::signalling::{Signalling, caller};

pub mod events;
pub mod sessions;
pub mod snapshot;
pub mod streams;

/// What the handlers share.
#[derive(Clone)]
struct Api {
    signalling: Arc<Signalling>,
    log: Arc<Log>,
}

/// The description of all of it.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Millstream",
        description = "What the gateway does, and what can be done to it. Errors are problem documents (RFC 9457)."
    ),
    paths(
        all_streams,
        one_stream,
        take_snapshot,
        take_png,
        all_sessions,
        one_session,
        end_session,
        start_source,
        stop_source,
        reload,
        tell_events,
        openapi
    )
)]
struct Description;

/// All routes; events are those of `log`.
pub fn router(signalling: Arc<Signalling>, log: Arc<Log>) -> Router {
    let api = Api {
        signalling: signalling.clone(),
        log,
    };
    Router::new()
        .route("/api/v1/streams", get(all_streams))
        .route("/api/v1/streams/{*stream}", get(one_stream))
        .route("/api/v1/sessions", get(all_sessions))
        .route("/api/v1/sessions/{id}", get(one_session).delete(end_session))
        .route("/api/v1/sources/start/{*stream}", post(start_source))
        .route("/api/v1/sources/stop/{*stream}", post(stop_source))
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/events", get(tell_events))
        .layer(middleware::from_fn_with_state(signalling, guard))
        .route("/api/v1/openapi.json", get(openapi))
        .with_state(api)
}

async fn guard(State(signalling): State<Arc<Signalling>>, request: Request, next: Next) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    signalling.gate.check(caller(&parts), Action::Api, None).await?;
    let request = Request::from_parts(parts, body);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// All streams that somebody publishes, watches or fetches, by name.
#[utoipa::path(get, path = "/api/v1/streams", responses((status = 200, body = Vec<Stream>)))]
async fn all_streams(State(api): State<Api>) -> Json<Vec<Stream>> {
    Json(streams::all(
        api.signalling.media.hub(),
        &api.signalling.fetched,
        |name| api.signalling.hls.viewers(name),
    ))
}

/// One stream.
#[utoipa::path(
    get,
    path = "/api/v1/streams/{stream}",
    params(("stream" = String, Path, description = "its name, slashes and all")),
    responses((status = 200, body = Stream), (status = 404, description = "there is no such stream"))
)]
async fn one_stream(State(api): State<Api>, Path(stream): Path<String>) -> Result<Response, Problem> {
    for image in Image::ALL {
        if let Some(stream) = stream.strip_suffix(image.suffix()) {
            return snapshot::take(&api.signalling, &StreamName::parse(stream)?, image).await;
        }
    }
    let name = StreamName::parse(&stream)?;
    let found = streams::one(&name, api.signalling.media.hub(), &api.signalling.fetched, |name| {
        api.signalling.hls.viewers(name)
    });
    found.map(|found| Json(found).into_response()).ok_or_else(|| {
        let detail = "there is no such stream: nobody publishes, watches or fetches it";
        Problem::new(StatusCode::NOT_FOUND, "unknown_stream", detail)
    })
}

/// Sessions that run, and those that ended within the last minute, with the cause.
#[utoipa::path(get, path = "/api/v1/sessions", params(Page), responses((status = 200, body = Sessions)))]
async fn all_sessions(State(api): State<Api>, Query(page): Query<Page>) -> Json<Sessions> {
    Json(sessions::page(&api.signalling, &page))
}

/// A picture of the stream: its last key frame.
#[utoipa::path(
    get,
    path = "/api/v1/streams/{stream}/snapshot.jpg",
    params(("stream" = String, Path, description = "its name, slashes and all")),
    responses(
        (status = 200, description = "a picture", content_type = "image/jpeg"),
        (status = 409, description = "the stream is not live, or has no picture"),
        (status = 422, description = "this machine cannot make one"),
    )
)]
#[expect(dead_code, reason = "the wildcard of streams takes its path; this describes it")]
fn take_snapshot() {}

/// The same picture as a PNG.
#[utoipa::path(
    get,
    path = "/api/v1/streams/{stream}/snapshot.png",
    params(("stream" = String, Path, description = "its name, slashes and all")),
    responses(
        (status = 200, description = "a picture", content_type = "image/png"),
        (status = 409, description = "the stream is not live, or has no picture"),
        (status = 422, description = "this machine cannot make one, or the picture that came cannot be read"),
    )
)]
#[expect(dead_code, reason = "the wildcard of streams takes its path; this describes it")]
fn take_png() {}

fn find(api: &Api, id: &str) -> Result<(crate::shard::SessionId, Session), Problem> {
    let mut all = sessions::all(&api.signalling).into_iter();
    all.find(|(_, session)| session.id == id)
        .ok_or_else(Problem::unknown_session)
}

/// One session.
#[utoipa::path(
    get,
    path = "/api/v1/sessions/{id}",
    params(("id" = String, Path, description = "as the list gives it")),
    responses((status = 200, body = Session), (status = 404, description = "there is no such session"))
)]
async fn one_session(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Session>, Problem> {
    find(&api, &id).map(|(_, session)| Json(session))
}

/// Ends a session.
#[utoipa::path(
    delete,
    path = "/api/v1/sessions/{id}",
    params(("id" = String, Path, description = "as the list gives it")),
    responses((status = 204, description = "it ends"), (status = 404, description = "there is no such session"))
)]
async fn end_session(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let (session, _) = find(&api, &id)?;
    api.signalling.media.end(session, CloseReason::Kicked);
    Ok(StatusCode::NO_CONTENT)
}

fn no_source() -> Problem {
    let detail = "the configuration has no source for a stream of this name";
    Problem::new(StatusCode::NOT_FOUND, "unknown_source", detail)
}

/// Begins to fetch a configured stream, or begins anew.
#[utoipa::path(
    post,
    path = "/api/v1/sources/start/{stream}",
    params(("stream" = String, Path, description = "its name")),
    responses((status = 204, description = "it is being started"), (status = 404, description = "no such source"))
)]
async fn start_source(State(api): State<Api>, Path(stream): Path<String>) -> Result<StatusCode, Problem> {
    let found = api.signalling.supervisor.begin(&StreamName::parse(&stream)?).await;
    found.then_some(StatusCode::NO_CONTENT).ok_or_else(no_source)
}

/// Stops fetching a configured stream until it is started again.
#[utoipa::path(
    post,
    path = "/api/v1/sources/stop/{stream}",
    params(("stream" = String, Path, description = "its name")),
    responses((status = 204, description = "it is stopped"), (status = 404, description = "no such source"))
)]
async fn stop_source(State(api): State<Api>, Path(stream): Path<String>) -> Result<StatusCode, Problem> {
    let found = api.signalling.supervisor.stop(&StreamName::parse(&stream)?).await;
    found.then_some(StatusCode::NO_CONTENT).ok_or_else(no_source)
}

/// Reads the configuration again. One with a mistake changes nothing.
#[utoipa::path(
    post,
    path = "/api/v1/reload",
    responses((status = 200, body = Reloaded), (status = 422, description = "the configuration has a mistake"))
)]
async fn reload(State(api): State<Api>) -> Result<Json<Reloaded>, Problem> {
    let unavailable = || {
        let detail = "whoever runs the gateway reads no configuration again";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no_reload", detail)
    };
    let (answer, answered) = oneshot::channel();
    api.signalling.reloads.send(answer).await.map_err(|_| unavailable())?;
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

/// What happens, as server-sent events `stream` and `session`; the last two hundred are told first, or those after
/// `Last-Event-ID`.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    responses((status = 200, description = "events without an end", content_type = "text/event-stream"))
)]
async fn tell_events(State(api): State<Api>, headers: HeaderMap) -> Response {
    let last = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    let told = EventStream::new(api.log, last.unwrap_or(0));
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::new(told)).into_response()
}

/// The description of the API (OpenAPI 3.1). Open.
#[utoipa::path(get, path = "/api/v1/openapi.json", responses((status = 200, description = "OpenAPI")))]
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}
