//! The middleware of all requests: rate limit, counters, common response headers, tracing span and log line.

use std::net::IpAddr;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tracing::field::Empty;
use tracing::{Instrument as _, debug, info_span};

use super::cors::{self, CorsRequestHeaders};
use super::forwarded_headers::ClientAddress;
use super::problem::Problem;
use super::server::HttpPeerAddress;
use super::session_url;
use super::state::HttpState;
use crate::telemetry::{self, HttpEndpoint, ReachedHttpLimit};

/// The outermost middleware.
pub async fn trace_limit_and_add_headers(State(state): State<HttpState>, mut request: Request, next: Next) -> Response {
    let start = monotonic_now();
    let (method, path) = (request.method().clone(), loggable_path(request.uri()));
    let cors_request = CorsRequestHeaders::from_headers(request.headers());
    let peer = request
        .extensions()
        .get::<HttpPeerAddress>()
        .map(|HttpPeerAddress(address)| address.ip());
    let client = peer.map(|peer| state.trusted_proxies.client_address(peer, request.headers()));
    if let Some(client) = client {
        request.extensions_mut().insert(ClientAddress(client));
    }
    let span = info_span!(
        target: telemetry::REQUEST_SPAN_TARGET,
        "request",
        otel.kind = "server",
        http.request.method = %method,
        url.path = path,
        http.response.status_code = Empty
    );
    // Players report by themselves, and sessions limit that: they must not use up what viewers of the same address need to join.
    let limited_client = client.filter(|_| !session_url::is_delay_report(&state.control, &method, request.uri()));
    let mut response = match limit_state_changing_request_rate(&state, start, &method, limited_client) {
        Ok(()) => next.run(request).instrument(span.clone()).await,
        Err(problem) => problem.into_response(),
    };
    cors::add_cors_headers(
        &state.control.client_settings().cors_origins,
        &cors_request,
        response.headers_mut(),
    );
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let (status, took) = (response.status().as_u16(), monotonic_now().duration_since(start));
    state
        .counters
        .count_response(HttpEndpoint::of_path(&path), status, took);
    span.record("http.response.status_code", status);
    let client = client.map(tracing::field::display);
    debug!(%method, path, status, ?took, client, "HTTP request answered");
    response
}

/// Maximum length of a logged path, in characters; a stream name has at most 128.
const MAX_LOGGED_PATH_CHARS: usize = 160;

/// Returns the path for the log: without the query, which may contain a token, and with the session id, which is a
/// capability, shortened as in its `Debug` output. The id may be anywhere in the path, because some clients append
/// `Location` to their own URL.
fn loggable_path(uri: &Uri) -> String {
    let path = match (
        session_url::session_id_from_uri(uri),
        uri.path().split_once(session_url::SESSION_PATH_PREFIX),
    ) {
        (Ok(session), _) => format!("{}{session:?}", session_url::SESSION_PATH_PREFIX),
        (Err(_), Some((before, _))) => format!("{before}{}..", session_url::SESSION_PATH_PREFIX),
        (Err(_), None) => uri.path().to_owned(),
    };
    path.chars().take(MAX_LOGGED_PATH_CHARS).collect()
}

/// Limits the rate of requests that change state ("avalanche control", RFC 9725 §5).
fn limit_state_changing_request_rate(
    state: &HttpState,
    now: Instant,
    method: &Method,
    client: Option<IpAddr>,
) -> Result<(), Problem> {
    let (&Method::POST | &Method::PUT | &Method::PATCH | &Method::DELETE, Some(client)) = (method, client) else {
        return Ok(());
    };
    state
        .request_rate_limit
        .take_rate_limit_token(now, client)
        .map_err(|wait| {
            state.counters.count_rejection(ReachedHttpLimit::RequestRate);
            let seconds = wait.as_secs() + 1;
            Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_requests",
                "too many requests from this address: retry later",
            )
            .with_retry_after(seconds)
        })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the HTTP side passes the time to the rate limit and the log"
)]
fn monotonic_now() -> Instant {
    Instant::now()
}
