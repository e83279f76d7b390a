//! `POST /api/v1/sources/start/{stream}` and `POST /api/v1/sources/stop/{stream}`.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Path, Query};
use super::state::ApiState;
use crate::control::ControlPlane;
use crate::http::problem::Problem;
use millstream_core::hub::name::{StreamKey, StreamName};

fn unknown_source_problem() -> Problem {
    let detail = "no source is configured for this stream: add one under [streams] in the configuration";
    Problem::new(StatusCode::NOT_FOUND, "unknown_source", detail)
}

/// Which of several sources of a stream is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SourceQuery {
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
        (status = 204, description = "success: the source starts, or restarts if it was running"),
        (status = 404, description = "no source is configured for this stream"),
    )
)]
pub(super) async fn start_source(
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
    responses(
        (status = 204, description = "success: the source was stopped"),
        (status = 404, description = "no source is configured for this stream"),
    )
)]
pub(super) async fn stop_source(
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
