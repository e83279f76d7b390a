//! Resources below a stream, which its wildcard route includes: `/snapshot.jpg`, `/snapshot.png`, `/source` and `/data`.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use super::authorization::authorize_snapshot;
use super::data;
use super::snapshot::{self, SnapshotFormat};
use super::sources::{self, ChooseSourceRequest};
use super::state::ApiState;
use crate::http::body;
use crate::http::problem::Problem;
use millstream_core::hub::name::StreamName;

/// Maximum length of the body that chooses a source.
const MAX_SOURCE_CHOICE_BYTES: usize = 1_024;

/// End of the path by which one of several sources of a stream is chosen.
pub(super) const SOURCE_CHOICE_SUFFIX: &str = "/source";

/// Returns the methods of a resource below a stream; `None` if the path is that of a stream.
pub(super) fn allowed_methods_of_stream_subresource(path: &str) -> Option<&'static str> {
    if SnapshotFormat::ALL_FORMATS
        .iter()
        .any(|image| path.ends_with(image.path_suffix()))
    {
        return Some("GET, HEAD");
    }
    if path.ends_with(data::DATA_PATH_SUFFIX) {
        return Some("POST");
    }
    path.ends_with(SOURCE_CHOICE_SUFFIX).then_some("PUT")
}

/// Takes a snapshot for a request that may have one.
pub(super) async fn authorize_and_take_snapshot(
    api: &ApiState,
    parts: &Parts,
    stream: &str,
    image: SnapshotFormat,
) -> Result<Response, Problem> {
    let stream = StreamName::parse(stream)?;
    authorize_snapshot(&api.authenticator, parts, &stream).await?;
    snapshot::take_snapshot(&api.control, &stream, image).await
}

/// A snapshot of the stream: its last key frame, as a JPEG.
#[utoipa::path(
    get,
    path = "/api/v1/streams/{stream}/snapshot.jpg",
    params(("stream" = String, Path, description = "the name of the stream, which may contain slashes")),
    responses(
        (status = 200, description = "the snapshot", content_type = "image/jpeg"),
        (status = 409, description = "the stream is not live or has no video: retry while it is published with video"),
        (status = 422, description = "this host cannot make snapshots of this codec"),
    )
)]
#[expect(
    dead_code,
    reason = "served by the wildcard route of streams; only for the OpenAPI document"
)]
pub(super) fn take_snapshot() {}

/// The same snapshot as a PNG.
#[utoipa::path(
    get,
    path = "/api/v1/streams/{stream}/snapshot.png",
    params(("stream" = String, Path, description = "the name of the stream, which may contain slashes")),
    responses(
        (status = 200, description = "the snapshot", content_type = "image/png"),
        (status = 409, description = "the stream is not live or has no video: retry while it is published with video"),
        (status = 422, description = "this host cannot make snapshots of this codec, or the JPEG image of the snapshot \
                                      is invalid or too large to convert to PNG"),
    )
)]
#[expect(
    dead_code,
    reason = "served by the wildcard route of streams; only for the OpenAPI document"
)]
pub(super) fn take_png() {}

/// Chooses which of several sources the stream shows, from the next key frame of that source on. It ranks above all others
/// until the choice is withdrawn; while it fails, the others stand in.
#[utoipa::path(
    put,
    path = "/api/v1/streams/{stream}/source",
    params(("stream" = String, Path, description = "the name of the stream, which may contain slashes")),
    request_body = ChooseSourceRequest,
    responses(
        (status = 204, description = "the choice was accepted: the stream changes at the next key frame of the chosen \
                                      source; with `null`, the gateway selects the source automatically again"),
        (status = 400, description = "the body is not a valid choice of a source"),
        (status = 404, description = "the stream does not have several sources, or has no source of this name"),
    )
)]
pub(super) async fn choose_source(
    api: &ApiState,
    stream: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    let stream = StreamName::parse(stream)?;
    let bytes = body::read_uncompressed_request_body(headers, body, MAX_SOURCE_CHOICE_BYTES).await?;
    sources::choose_source(&api.control, &stream, &bytes)
}
