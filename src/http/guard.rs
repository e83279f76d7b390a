//! The middleware of all requests: rate limit, counters, common response headers, tracing span and log line.

use std::net::IpAddr;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tracing::field::Empty;
use tracing::{Instrument as _, debug, info_span};

use super::cors::{self, CrossOrigin};
use super::forwarded::Client;
use super::problem::Problem;
use super::server::Peer;
use super::session_url;
use super::state::HttpState;
use crate::telemetry::{self, Rejection};

/// The outermost middleware.
pub async fn guard(State(state): State<HttpState>, mut request: Request, next: Next) -> Response {
    let start = now();
    let (method, path) = (request.method().clone(), loggable(request.uri()));
    let cross_origin = CrossOrigin::read(request.headers());
    let peer = request.extensions().get::<Peer>().map(|Peer(address)| address.ip());
    let client = peer.map(|peer| state.proxies.client(peer, request.headers()));
    if let Some(client) = client {
        request.extensions_mut().insert(Client(client));
    }
    let span = info_span!(
        target: telemetry::SPANS,
        "request",
        otel.kind = "server",
        http.request.method = %method,
        url.path = path,
        http.response.status_code = Empty
    );
    let mut response = match check_rate(&state, start, &method, client) {
        Ok(()) => next.run(request).instrument(span.clone()).await,
        Err(problem) => problem.into_response(),
    };
    cors::decorate(
        &state.control.policy().cors_origins,
        &cross_origin,
        response.headers_mut(),
    );
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let (status, took) = (response.status().as_u16(), now().duration_since(start));
    state.counters.responded(status);
    span.record("http.response.status_code", status);
    debug!(%method, path, status, ?took, ?client, "request");
    response
}

/// Maximum length of a logged path, in characters; a stream name has at most 128.
const LOGGED_PATH: usize = 160;

/// Returns the path for the log: without the query, which may contain a token, and with the session id, which is a
/// capability, shortened as in its `Debug` output. The id may be anywhere in the path, because some clients append
/// `Location` to their own URL.
fn loggable(uri: &Uri) -> String {
    let path = match (session_url::session_of(uri), uri.path().split_once(session_url::PREFIX)) {
        (Ok(session), _) => format!("{}{session:?}", session_url::PREFIX),
        (Err(_), Some((before, _))) => format!("{before}{}..", session_url::PREFIX),
        (Err(_), None) => uri.path().to_owned(),
    };
    path.chars().take(LOGGED_PATH).collect()
}

/// Limits the rate of requests that change state ("avalanche control", RFC 9725 §5).
fn check_rate(state: &HttpState, now: Instant, method: &Method, client: Option<IpAddr>) -> Result<(), Problem> {
    let (&Method::POST | &Method::PATCH | &Method::DELETE, Some(client)) = (method, client) else {
        return Ok(());
    };
    state.rate.take(now, client).map_err(|wait| {
        state.counters.rejected(Rejection::RequestRate);
        let seconds = wait.as_secs() + 1;
        Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_requests",
            "too many requests from this address",
        )
        .retry_after(seconds)
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the HTTP side passes the time to the rate limit and the log"
)]
fn now() -> Instant {
    Instant::now()
}
