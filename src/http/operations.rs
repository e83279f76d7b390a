//! For probes and monitoring: `/healthz`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::auth::{Action, Caller};
use super::endpoint::no_store;
use super::problem::Problem;
use super::{HttpState, caller, metrics};
use crate::control::Control;

/// The process answers, and its shards tick.
pub async fn healthz(State(control): State<Arc<Control>>) -> Result<Response, Problem> {
    if let Some(stalled) = control.media.stalled() {
        return Err(Problem::stalled(&stalled));
    }
    Ok(no_store((StatusCode::OK, "ok\n").into_response()))
}

/// New sessions are taken.
pub async fn readyz(State(control): State<Arc<Control>>) -> Result<Response, Problem> {
    if control.is_draining() {
        return Err(Problem::stopping());
    }
    if let Some(stalled) = control.media.stalled() {
        return Err(Problem::stalled(&stalled));
    }
    Ok(no_store((StatusCode::OK, "ready\n").into_response()))
}

/// Prometheus text. Open, unless something gives access to the API.
pub async fn metrics(State(state): State<HttpState>, request: Request) -> Result<Response, Problem> {
    if state.authenticator.access().has_api() {
        let (parts, _) = request.into_parts();
        // Whoever reads metrics can send a header.
        let caller = Caller {
            query: None,
            ..caller(&parts)
        };
        state.authenticator.check(caller, Action::Api, None).await?;
    }
    let media_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok(no_store((media_type, metrics::render(&state)).into_response()))
}
