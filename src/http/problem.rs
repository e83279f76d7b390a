//! Error responses: problem documents (RFC 9457, RFC 9725 §4.1).

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::control::failover_groups::PublisherSourceError;
use crate::control::talk::NoCameraError;
use crate::pipeline::worker_slots::WorkerSlotLimitReached;
use crate::shard::SessionRefusal;
use crate::shard::watchdog::StalledShard;
use crate::sources::rtsp::back_channel::BackChannelError;
use crate::sources::rtsp::camera::CameraError;
use millstream_core::hub::name::StreamNameError;
use millstream_core::sdp::OfferError;
use millstream_core::session::CloseReason;

/// An error response. `code` is stable and meant for programs, `detail` is meant for people.
#[derive(Debug)]
pub struct Problem {
    pub status: StatusCode,
    pub code: &'static str,
    pub detail: String,
    /// Line of the offer that caused the error.
    pub offer_line: Option<usize>,
    /// Mistakes in the request body, by their place in it.
    pub errors: Vec<ProblemError>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Media type of problem documents.
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// A mistake in a request body.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ProblemError {
    /// JSON pointer (RFC 6901).
    pub pointer: String,
    pub detail: String,
}

/// An error (RFC 9457).
#[derive(Serialize, ToSchema)]
pub(super) struct ProblemDocument<'a> {
    /// `about:blank`: the status is the type of the problem (RFC 9457 §4.2.1).
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    /// Stable, for programs.
    code: &'a str,
    /// Line of an SDP offer that caused the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    /// Mistakes in the request body, by their place in it.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<ProblemError>, required = false)]
    errors: &'a [ProblemError],
    /// The same as `detail`; the player of MediaMTX displays this member.
    error: &'a str,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            offer_line: None,
            errors: Vec::new(),
            headers: Vec::new(),
        }
    }

    /// Adds a header to the response.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Adds `Retry-After`, in seconds (RFC 9110 §10.2.3).
    pub fn with_retry_after(self, seconds: u64) -> Self {
        self.with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// 404: the path does not exist.
    pub fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "this path does not exist, or no longer exists",
        )
    }

    /// 404: the session never existed or ended more than a minute ago; the two cannot be distinguished.
    pub fn unknown_session() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "unknown_session",
            "no such session: it never existed, or it ended more than a minute ago",
        )
    }

    /// 404: the session has ended, for this reason.
    pub fn session_ended(reason: CloseReason, explanation: &str) -> Self {
        let detail = format!("the session has ended: {explanation}");
        Self::new(StatusCode::NOT_FOUND, reason.label(), detail)
    }

    /// 405: the resource does not support the method.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let detail = format!("this URL does not support the request method; allowed methods: {allow}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
            .with_header(header::ALLOW, HeaderValue::from_static(allow))
    }

    /// 503: the gateway is stopping and accepts no new sessions.
    pub fn gateway_stopping() -> Self {
        SessionRefusal::Stopping.into()
    }

    /// 503: a shard is stalled. If it does not recover, the process exits.
    pub fn shard_stalled(stalled: &StalledShard) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shard_stalled", stalled.to_string())
    }
}

impl From<OfferError> for Problem {
    fn from(error: OfferError) -> Self {
        let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::BAD_REQUEST);
        Self {
            offer_line: error.line_number(),
            ..Self::new(status, error.code(), error.to_string())
        }
    }
}

impl From<SessionRefusal> for Problem {
    fn from(refusal: SessionRefusal) -> Self {
        let (status, code, seconds) = match refusal {
            SessionRefusal::TooManySessions => (StatusCode::SERVICE_UNAVAILABLE, "full", 5),
            SessionRefusal::TooManyHalfOpenSessions => (StatusCode::SERVICE_UNAVAILABLE, "half_open_full", 2),
            SessionRefusal::TooManyHalfOpenSessionsFromAddress => {
                (StatusCode::TOO_MANY_REQUESTS, "half_open_address", 2)
            }
            SessionRefusal::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping", 2),
        };
        Self::new(status, code, refusal.to_string()).with_retry_after(seconds)
    }
}

impl From<WorkerSlotLimitReached> for Problem {
    fn from(reached: WorkerSlotLimitReached) -> Self {
        let detail = format!(
            "this stream must be transcoded for this client, but no further worker can be started. Retry later: \
             {reached}"
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "workers_full", detail).with_retry_after(5)
    }
}

impl From<PublisherSourceError> for Problem {
    fn from(error: PublisherSourceError) -> Self {
        let (status, code) = match error {
            PublisherSourceError::SingleSource | PublisherSourceError::UnknownSource { .. } => {
                (StatusCode::NOT_FOUND, "unknown_source")
            }
            PublisherSourceError::NoPublishers | PublisherSourceError::CameraLayers => {
                (StatusCode::CONFLICT, "no_publisher_source")
            }
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<NoCameraError> for Problem {
    fn from(error: NoCameraError) -> Self {
        match error {
            NoCameraError::NotCamera => Self::new(StatusCode::CONFLICT, "no_camera", error.to_string()),
            NoCameraError::SourceAway => {
                Self::new(StatusCode::CONFLICT, "source_away", error.to_string()).with_retry_after(5)
            }
        }
    }
}

impl From<BackChannelError> for Problem {
    /// The camera is a server that the gateway needs for its answer (RFC 9110 §15.6.3, §15.6.5). Its address and how it is
    /// configured are for the operator, and not for talkers.
    fn from(error: BackChannelError) -> Self {
        let (status, code) = match &error {
            BackChannelError::Missing => (StatusCode::CONFLICT, "no_back_channel"),
            BackChannelError::UnsupportedCodec(_) => (StatusCode::CONFLICT, "back_channel_codec"),
            BackChannelError::Camera(CameraError::Timeout(_)) => (StatusCode::GATEWAY_TIMEOUT, "camera_timeout"),
            BackChannelError::Camera(_) => (StatusCode::BAD_GATEWAY, "camera_unavailable"),
        };
        let detail = match &error {
            BackChannelError::Camera(
                CameraError::Address(_) | CameraError::Unreachable(_) | CameraError::PasswordFileUnreadable(_),
            ) => "the camera cannot be reached: see the log of the gateway for the reason".to_owned(),
            _ => error.to_string(),
        };
        Self::new(status, code, detail)
    }
}

impl From<StreamNameError> for Problem {
    fn from(error: StreamNameError) -> Self {
        Self::new(StatusCode::NOT_FOUND, "bad_stream_name", error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = ProblemDocument {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            line: self.offer_line,
            errors: &self.errors,
            error: &self.detail,
        };
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = (self.status, Body::from(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}
