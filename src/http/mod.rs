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
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::{any, get};

pub mod alternate_links;
pub mod api;
pub mod auth;
pub mod body;
mod content_coding;
pub mod cors;
pub mod delay_resource;
pub mod forwarded_headers;
pub mod health_and_metrics;
pub mod hls;
mod http2_idle;
pub mod layer_resource;
pub mod limits;
pub mod link_headers;
pub mod metrics;
pub mod outer_middleware;
pub mod pages;
pub mod precondition;
pub mod problem;
mod request;
mod reserved_descriptors;
mod response;
mod response_timeout;
pub mod server;
pub mod session_events;
pub mod session_resource;
mod session_url;
mod sse;
mod state;
mod static_file;
pub mod talk;
pub mod tls;
pub mod trickle_fragment;
pub mod webhooks;
pub mod whip_whep;
mod write_timeout;

use self::problem::Problem;
pub use self::state::HttpState;

/// Returns the router with all routes, including `extra_routes`.
pub fn router(state: HttpState, extra_routes: Router) -> Router {
    pages::add_page_routes(Router::new())
        .route("/whip/{*stream}", any(whip_whep::serve_whip_endpoint))
        .route("/whep/{*stream}", any(whip_whep::serve_whep_endpoint))
        .route("/talk/{*stream}", any(talk::serve_talk_endpoint))
        .route("/hls/{*path}", any(hls::serve_hls_file))
        .route("/session/{id}", any(session_resource::serve_session_resource))
        .route("/session/{id}/layer", any(layer_resource::serve_layer_resource))
        .route("/session/{id}/delay", any(delay_resource::serve_delay_resource))
        .route("/session/{id}/events", any(session_events::serve_events_resource))
        .route(
            "/session/{id}/events/{stream}",
            any(session_events::serve_event_stream_resource),
        )
        .route("/healthz", get(health_and_metrics::healthz))
        .route("/readyz", get(health_and_metrics::readyz))
        .route("/metrics", get(health_and_metrics::serve_metrics))
        .fallback(pages::respond_to_unknown_path)
        .method_not_allowed_fallback(async || Problem::method_not_allowed("GET, HEAD"))
        .with_state(state.clone())
        .merge(extra_routes)
        .layer(middleware::from_fn_with_state(
            state,
            outer_middleware::trace_limit_and_add_headers,
        ))
}

/// Returns the routes of connections that are accepted while the process is out of file descriptors: health checks. Each
/// response ends its connection.
pub fn out_of_descriptors_router(state: HttpState) -> Router {
    Router::new()
        .route("/healthz", get(health_and_metrics::healthz))
        .route("/readyz", get(health_and_metrics::respond_out_of_file_descriptors))
        .fallback(health_and_metrics::respond_out_of_file_descriptors)
        .with_state(state)
        .layer(middleware::from_fn(add_connection_close_header))
}

async fn add_connection_close_header(request: Request, next: middleware::Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
