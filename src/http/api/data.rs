//! Data channel messages through the API: `POST /api/v1/streams/{stream}/data`.

use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use utoipa::ToSchema;

use super::state::ApiState;
use crate::http::body;
use crate::http::problem::{Problem, ProblemError};
use crate::shard::data::DataMessageRefusal;
use millstream_core::hub::data_tracks::DataPublishError;
use millstream_core::hub::name::StreamName;
use millstream_core::media::data_message::{DataLabel, DataMessage, DataPayload};

/// A message to the viewers of a stream. Exactly one of `text` and `base64` is set.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DataPost {
    /// Label of the data channel: 1 to 64 characters of `[A-Za-z0-9._-]`.
    #[schema(min_length = 1, max_length = 64, pattern = r"^[A-Za-z0-9._-]+$")]
    label: String,
    /// A text message.
    text: Option<String>,
    /// A binary message (RFC 4648 §4).
    base64: Option<String>,
}

/// Longest message in bytes, as from a publisher.
const MAX_DATA_MESSAGE_BYTES: usize = 64 << 10;

/// Longest request body in bytes: the longest message in base64, or with escapes.
const MAX_DATA_POST_BODY_BYTES: usize = 128 << 10;

const STREAMS_PATH_PREFIX: &str = "/api/v1/streams/";

/// Path suffix of a stream for its messages.
pub(super) const DATA_PATH_SUFFIX: &str = "/data";

/// Returns the stream that a request sends a message to, if it is such a request.
pub(super) fn target_stream_of_data_message(method: &Method, uri: &Uri) -> Option<StreamName> {
    let name = uri
        .path()
        .strip_prefix(STREAMS_PATH_PREFIX)?
        .strip_suffix(DATA_PATH_SUFFIX)?;
    StreamName::parse(name).ok().filter(|_| *method == Method::POST)
}

/// Sends a message to the viewers of a stream on the data channel with its label. A token that may publish the stream is
/// enough.
#[utoipa::path(
    post,
    path = "/api/v1/streams/{stream}/data",
    params(("stream" = String, Path, description = "the name of the stream, which may contain slashes")),
    request_body = DataPost,
    responses(
        (status = 202, description = "the message is being sent; slow viewers may miss it"),
        (status = 400, description = "the body is not JSON of a data channel message"),
        (status = 422, description = "the label or the base64 is not valid, or there is not exactly one of `text` and `base64`"),
        (status = 404, description = "no such stream: it is neither published nor watched"),
        (status = 409, description = "the label is new, and the stream already has eight data channel labels, which is \
                                      the maximum; or data channels are switched off (`webrtc.data_channels`)"),
        (status = 413, description = "the message is longer than 64 KiB"),
        (status = 415, description = "the `Content-Type` of the body is not `application/json`"),
        (status = 429, description = "more than 100 messages a second were posted for the stream"),
    )
)]
pub(super) async fn send_data_message(
    api: &ApiState,
    stream: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    let stream = StreamName::parse(stream)?;
    if !body::has_content_type(headers, "application/json") {
        let detail = "send the message as application/json";
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            detail,
        ));
    }
    let bytes = body::read_uncompressed_request_body(headers, body, MAX_DATA_POST_BODY_BYTES).await?;
    let message = parse_data_message(&bytes)?;
    let media = &api.control.media_plane;
    if !media.accepts_data_channels() {
        let detail = "data channels are switched off (webrtc.data_channels)";
        return Err(Problem::new(StatusCode::CONFLICT, "data_channels_off", detail));
    }
    media.send_data_message(&stream, &message)?;
    Ok(StatusCode::ACCEPTED)
}

fn parse_data_message(body: &[u8]) -> Result<DataMessage, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_message", detail);
    let bad_member = |pointer: &str, detail: String| {
        let mut problem = bad(detail.clone());
        let pointer = pointer.to_owned();
        problem.errors.push(ProblemError { pointer, detail });
        problem
    };
    let post: DataPost = serde_json::from_slice(body).map_err(|error| {
        let detail = format!("the body is not JSON of a data channel message: {error}");
        Problem::new(StatusCode::BAD_REQUEST, "bad_json", detail)
    })?;
    let label = DataLabel::parse(&post.label).map_err(|error| bad_member("/label", error.to_string()))?;
    let payload = match (post.text, post.base64) {
        (Some(text), None) => DataPayload::Text(text.into()),
        (None, Some(encoded)) => {
            let bytes = STANDARD.decode(encoded);
            let bytes = bytes.map_err(|error| bad_member("/base64", format!("base64 is invalid: {error}")))?;
            DataPayload::Binary(bytes.into())
        }
        (None, None) | (Some(_), Some(_)) => return Err(bad("a message has either `text` or `base64`".to_owned())),
    };
    if payload.len() > MAX_DATA_MESSAGE_BYTES {
        let detail = format!("the message is longer than {} KiB", MAX_DATA_MESSAGE_BYTES >> 10);
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "message_too_long", detail));
    }
    Ok(DataMessage { label, payload })
}

impl From<DataMessageRefusal> for Problem {
    fn from(refusal: DataMessageRefusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            DataMessageRefusal::UnknownStream => Self::new(StatusCode::NOT_FOUND, "unknown_stream", detail),
            DataMessageRefusal::NotPublished(DataPublishError::TooManyTracks) => {
                Self::new(StatusCode::CONFLICT, "too_many_labels", detail)
            }
            DataMessageRefusal::NotPublished(DataPublishError::TooManyMessages) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_messages", detail).with_retry_after(1)
            }
        }
    }
}
