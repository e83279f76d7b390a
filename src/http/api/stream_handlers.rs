//! `GET /api/v1/streams`, and which handler a request below `/api/v1/streams/` is for: the wildcard route of a stream includes
//! its resources.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};

use super::extract::Path;
use super::snapshot::SnapshotFormat;
use super::state::ApiState;
use super::stream_settings::{add_entity_tag, describe_stream_with_settings, list_streams_with_settings};
use super::stream_subresources::{SOURCE_CHOICE_SUFFIX, authorize_and_take_snapshot, choose_source};
use super::streams::Stream;
use super::{api_streams, data};
use crate::http::problem::Problem;
use millstream_core::hub::name::StreamName;

/// All streams that are published, watched or configured, sorted by name.
#[utoipa::path(get, path = "/api/v1/streams", responses((status = 200, body = Vec<Stream>, description = "the streams")))]
pub(super) async fn all_streams(State(api): State<ApiState>) -> Json<Vec<Stream>> {
    Json(list_streams_with_settings(&api.control))
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
pub(super) async fn one_stream(
    State(api): State<ApiState>,
    Path(stream): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    for image in SnapshotFormat::ALL_FORMATS {
        if let Some(stream) = stream.strip_suffix(image.path_suffix()) {
            let (parts, _) = request.into_parts();
            return authorize_and_take_snapshot(&api, &parts, stream, image).await;
        }
    }
    let name = StreamName::parse(&stream)?;
    let found = describe_stream_with_settings(&api.control, &name).ok_or_else(|| {
        let detail = "no such stream: it is not published, watched or configured";
        Problem::new(StatusCode::NOT_FOUND, "unknown_stream", detail)
    })?;
    let mut response = Json(found).into_response();
    if let Some(set) = api.control.api_streams.get(&name) {
        add_entity_tag(response.headers_mut(), &set);
    }
    Ok(response)
}

/// The wildcard of the route includes the suffix `/source`.
pub(super) async fn put_stream_or_choose_source(
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
pub(super) async fn add_stream_or_send_data_message(
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
