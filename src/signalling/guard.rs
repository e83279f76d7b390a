//! What every request passes: counters and cross-origin headers.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;

use super::{Signalling, cors};

/// The outermost layer.
pub async fn guard(State(signalling): State<Arc<Signalling>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = next.run(request).await;
    cors::decorate(&signalling.cors_origins, origin.as_ref(), response.headers_mut());
    signalling.counters.responded(response.status().as_u16());
    response
}
