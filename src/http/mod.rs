//! The HTTP side: WHIP (RFC 9725) and WHEP (draft-ietf-wish-whep) endpoints, session URLs, pages, probes and metrics.
//!
//! ```text
//! server (connections, deadlines) -> router -> guard (rate, CORS, counters) -> whip | whep -> sdp -> shard::MediaPlane
//!                                                                           -> resource (session URL)
//!                                                                           -> pages, operations
//! ```
//!
//! Nothing here handles media. A client error is a [`problem::Problem`] with a 4xx status, never 5xx.

use axum::Router;
use axum::middleware;
use axum::routing::{any, get};

mod activity;
pub mod alternate;
pub mod api;
pub mod auth;
pub mod body;
pub mod cors;
pub mod endpoint;
pub mod events;
pub mod forwarded;
pub mod fragment;
pub mod guard;
pub mod hls;
pub mod layer;
pub mod limits;
pub mod links;
pub mod metrics;
pub mod operations;
pub mod pages;
pub mod precondition;
pub mod problem;
mod request;
pub mod resource;
mod response;
mod response_timeout;
pub mod server;
mod session_url;
mod sse;
mod state;
pub mod tls;
pub mod write_timeout;

use self::problem::Problem;
pub use self::state::HttpState;

/// Returns the router with all routes, including `more`.
pub fn router(state: HttpState, more: Router) -> Router {
    pages::add_to(Router::new())
        .route("/whip/{*stream}", any(endpoint::whip))
        .route("/whep/{*stream}", any(endpoint::whep))
        .route("/hls/{*path}", any(hls::serve))
        .route("/session/{id}", any(resource::session))
        .route("/session/{id}/layer", any(layer::layer))
        .route("/session/{id}/events", any(events::events))
        .route("/session/{id}/events/{stream}", any(events::stream))
        .route("/healthz", get(operations::healthz))
        .route("/readyz", get(operations::readyz))
        .route("/metrics", get(operations::metrics))
        .fallback(pages::not_found)
        .method_not_allowed_fallback(async || Problem::method_not_allowed("GET, HEAD"))
        .with_state(state.clone())
        .merge(more)
        .layer(middleware::from_fn_with_state(state, guard::guard))
}
