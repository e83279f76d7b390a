//! For probes and monitoring: `/healthz`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::auth::Permission;
use super::endpoint::no_store;
use super::problem::Problem;
use super::{Signalling, metrics};

/// The process answers.
pub async fn healthz() -> Response {
    no_store((StatusCode::OK, "ok\n").into_response())
}

/// New sessions are taken.
pub async fn readyz(State(signalling): State<Arc<Signalling>>) -> Result<Response, Problem> {
    if signalling.is_draining() {
        return Err(Problem::stopping());
    }
    Ok(no_store((StatusCode::OK, "ready\n").into_response()))
}

/// Prometheus text. Open, unless there is a token for the API.
pub async fn metrics(State(signalling): State<Arc<Signalling>>, headers: HeaderMap) -> Result<Response, Problem> {
    if signalling.tokens.api.is_some() {
        signalling.tokens.check(&headers, None, Permission::Api)?;
    }
    let media_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok(no_store((media_type, metrics::render(&signalling)).into_response()))
}
