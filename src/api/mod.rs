//! The control API, `/api/v1`: what the gateway does, as JSON for programs and dashboards. It is closed unless
//! `auth.api_token` is set.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};

use self::streams::Stream;
use crate::hub::name::StreamName;
use crate::signalling::auth::Action;
use crate::signalling::problem::Problem;
use crate::signalling::{Signalling, caller};

pub mod streams;

/// All routes.
pub fn router(signalling: Arc<Signalling>) -> Router {
    Router::new()
        .route("/api/v1/streams", get(all))
        .route("/api/v1/streams/{*stream}", get(one))
        .layer(middleware::from_fn_with_state(signalling.clone(), guard))
        .with_state(signalling)
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

async fn all(State(signalling): State<Arc<Signalling>>) -> Json<Vec<Stream>> {
    Json(streams::all(signalling.media.hub(), &signalling.fetched))
}

async fn one(State(signalling): State<Arc<Signalling>>, Path(stream): Path<String>) -> Result<Json<Stream>, Problem> {
    let name = StreamName::parse(&stream)?;
    let found = streams::one(&name, signalling.media.hub(), &signalling.fetched);
    found.map(Json).ok_or_else(|| {
        let detail = "there is no such stream: nobody publishes, watches or fetches it";
        Problem::new(StatusCode::NOT_FOUND, "unknown_stream", detail)
    })
}
