//! Reads request bodies, with limits on type, length and time.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;

use super::problem::Problem;

/// Maximum size of an offer: 64 KiB. The largest offer of a real client, a browser with all codecs, has 15 KiB.
pub const MAX_SDP_BODY_BYTES: usize = 64 * 1024;
/// Maximum size of a trickle ICE fragment, in bytes.
pub const MAX_TRICKLE_FRAGMENT_BYTES: usize = 16 * 1024;
/// Maximum time for receiving a whole body.
const REQUEST_BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Media type of an offer and an answer.
pub const SDP_MEDIA_TYPE: &str = "application/sdp";
/// Media type of a trickle ICE fragment (RFC 8840 §9).
pub const TRICKLE_ICE_MEDIA_TYPE: &str = "application/trickle-ice-sdpfrag";

/// Returns whether `Content-Type` is this media type, regardless of case and parameters (RFC 9110 §8.3.1).
pub fn has_content_type(headers: &HeaderMap, media_type: &str) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let value = value.to_str().unwrap_or_default();
    let essence = value.split_once(';').map_or(value, |(essence, _)| essence);
    essence.trim().eq_ignore_ascii_case(media_type)
}

/// Reads at most `limit` bytes within [`REQUEST_BODY_TIMEOUT`]. A body with a content coding is refused (RFC 9110 §15.5.16).
pub async fn read_uncompressed_request_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    if !has_no_content_coding(headers) {
        let detail = "send the request body without Content-Encoding: no content coding is accepted";
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_content_encoding",
            detail,
        )
        .with_header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")));
    }
    let content_length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if content_length.is_some_and(|length| length > limit as u64) {
        return Err(body_too_large_problem(limit));
    }
    tokio::time::timeout(REQUEST_BODY_TIMEOUT, collect_body(body, limit))
        .await
        .unwrap_or_else(|_| {
            let detail = format!(
                "the request body did not arrive within {} seconds",
                REQUEST_BODY_TIMEOUT.as_secs()
            );
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", detail)
                .with_header(header::CONNECTION, HeaderValue::from_static("close")))
        })
}

/// Whether the body has no content coding. `identity` is none.
fn has_no_content_coding(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    codings.all(|coding| coding.trim_ascii().is_empty() || coding.trim_ascii().eq_ignore_ascii_case(b"identity"))
}

async fn collect_body(mut body: Body, limit: usize) -> Result<Bytes, Problem> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "body_broken",
                "the request body is incomplete or its HTTP framing is invalid: send the request again",
            )
        })?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > limit {
                return Err(body_too_large_problem(limit));
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(bytes.freeze())
}

fn body_too_large_problem(limit: usize) -> Problem {
    let detail = format!("the request body exceeds the limit of {} KiB", limit / 1024);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
        .with_header(header::CONNECTION, HeaderValue::from_static("close"))
}
