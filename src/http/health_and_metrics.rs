//! Probes and monitoring: `/healthz`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::auth::{AccessAction, HttpClientIdentity};
use super::metrics;
use super::problem::Problem;
use super::request::client_identity;
use super::response::add_no_store_header;
use super::state::HttpState;
use crate::control::ControlPlane;

/// Liveness: succeeds if all shards tick.
pub async fn healthz(State(control): State<Arc<ControlPlane>>) -> Result<Response, Problem> {
    if let Some(stalled) = control.media_plane.stalled_shard() {
        return Err(Problem::shard_stalled(&stalled));
    }
    Ok(add_no_store_header((StatusCode::OK, "ok\n").into_response()))
}

/// Readiness: succeeds if new sessions are accepted.
pub async fn readyz(State(control): State<Arc<ControlPlane>>) -> Result<Response, Problem> {
    if control.is_rejecting_new_sessions() {
        return Err(Problem::gateway_stopping());
    }
    if let Some(stalled) = control.media_plane.stalled_shard() {
        return Err(Problem::shard_stalled(&stalled));
    }
    Ok(add_no_store_header((StatusCode::OK, "ready\n").into_response()))
}

/// Answers everything but liveness while the process is out of file descriptors.
pub async fn respond_out_of_file_descriptors() -> Problem {
    let detail = "the gateway is out of file descriptors: retry later; the operator of the gateway should raise their \
                  limit (`ulimit -n`)";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "out_of_descriptors", detail).with_retry_after(2)
}

/// Returns the metrics as Prometheus text. Requires an API token if API access is configured. Closed if anything else is
/// restricted: metrics name the streams.
pub async fn serve_metrics(State(state): State<HttpState>, request: Request) -> Result<Response, Problem> {
    let access = state.authenticator.access_control();
    if access.restricts_more_than_publishing() && !access.has_api_credential() {
        let detail = "/metrics requires an API token because access to streams is restricted: set `auth.api_token`, or `api = \"read\"` \
                      for one of `auth.tokens`, and send that token as `Authorization: Bearer TOKEN`";
        return Err(Problem::new(StatusCode::FORBIDDEN, "metrics_closed", detail));
    }
    if access.has_api_credential() {
        let (parts, _) = request.into_parts();
        // A token in the query is not accepted: metrics clients can send a header.
        let caller = HttpClientIdentity {
            query: None,
            ..client_identity(&parts)
        };
        state
            .authenticator
            .authorize_request(caller, AccessAction::ApiRead, None)
            .await?;
    }
    let media_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok(add_no_store_header(
        (media_type, metrics::render_metrics_text(&state)).into_response(),
    ))
}
