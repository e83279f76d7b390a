//! The control API, `/api/v1`: what the gateway does, as JSON for programs and dashboards. It is closed unless
//! `auth.api_token` is set.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use crate::hub::name::StreamName;
use crate::shard::MediaPlane;
use crate::sources::fetch::directory::Directory;

pub mod streams;

/// The refusal of a request, by its headers and query; `None` lets it pass.
pub type Refuse = Arc<dyn Fn(&HeaderMap, Option<&str>) -> Option<Response> + Send + Sync>;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    pub media: MediaPlane,
    pub fetched: Directory,
    pub refuse: Refuse,
}

/// All routes.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/api/v1/streams", get(all))
        .route("/api/v1/streams/{*stream}", get(one))
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .with_state(api)
}

async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    if let Some(refusal) = (api.refuse)(request.headers(), request.uri().query()) {
        return refusal;
    }
    let mut response = next.run(request).await;
    let no_store = header::HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    response
}

async fn all(State(api): State<Api>) -> Response {
    Json(streams::all(api.media.hub(), &api.fetched)).into_response()
}

const DETAIL: &str = "there is no such stream: nobody publishes, watches or fetches it";

async fn one(State(api): State<Api>, Path(stream): Path<String>) -> Response {
    let found = StreamName::parse(&stream)
        .ok()
        .and_then(|name| streams::one(&name, api.media.hub(), &api.fetched));
    match found {
        Some(stream) => Json(stream).into_response(),
        None => {
            let problem = serde_json::json!({
                "type": "about:blank",
                "title": "Not Found",
                "status": 404,
                "code": "unknown_stream",
                "detail": DETAIL,
                "error": DETAIL,
            });
            let media_type = [(header::CONTENT_TYPE, "application/problem+json")];
            (StatusCode::NOT_FOUND, media_type, problem.to_string()).into_response()
        }
    }
}
