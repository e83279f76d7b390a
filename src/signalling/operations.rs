//! For probes and monitoring: `/healthz`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::Signalling;
use super::endpoint::no_store;
use super::problem::Problem;

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

/// Prometheus text format 0.0.4.
pub async fn metrics(State(signalling): State<Arc<Signalling>>) -> Response {
    let text = format!("millstream_sessions {}\n", signalling.media.sessions());
    no_store(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
