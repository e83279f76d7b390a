//! What every request passes: the rate limit, counters and headers of every response.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::problem::Problem;
use super::server::Peer;
use super::{Signalling, cors};

/// The outermost layer.
pub async fn guard(State(signalling): State<Arc<Signalling>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let peer = request.extensions().get::<Peer>().map(|Peer(address)| address.ip());
    let mut response = match check_rate(&signalling, request.method(), peer) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    cors::decorate(&signalling.cors_origins, origin.as_ref(), response.headers_mut());
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    signalling.counters.responded(response.status().as_u16());
    response
}

/// Bounds the requests that cost something ("avalanche control", RFC 9725 §5).
fn check_rate(signalling: &Signalling, method: &Method, peer: Option<IpAddr>) -> Result<(), Problem> {
    let (&Method::POST | &Method::PATCH | &Method::DELETE, Some(peer)) = (method, peer) else {
        return Ok(());
    };
    signalling.rate.take(now(), peer).map_err(|wait| {
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
    reason = "HTTP is a shell: it gives time to the rate limit"
)]
fn now() -> Instant {
    Instant::now()
}
