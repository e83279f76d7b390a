//! The HTTP side: WHIP (RFC 9725) and WHEP (draft-ietf-wish-whep) endpoints, session URLs, pages, probes and metrics.
//!
//! ```text
//! server (connections, deadlines) -> router -> guard (rate, CORS, counters) -> whip | whep -> sdp -> shard::MediaPlane
//!                                                                           -> resource (session URL)
//!                                                                           -> pages, operations
//! ```
//!
//! Nothing here handles media. A client error is a [`problem::Problem`] with a 4xx status, never 5xx.

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRef;
use axum::http::Uri;
use axum::http::request::Parts;
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
pub mod resource;
pub mod server;
pub mod tls;
pub mod write_timeout;

use self::auth::{Authenticator, Caller};
use self::limits::RateLimit;
use self::problem::Problem;
use self::server::Peer;
use crate::config::Limits;
use crate::control::Control;
use crate::telemetry::HttpCounters;
use millstream_core::hub::name::StreamName;

/// State of the HTTP server. Handlers extract the parts that they use.
#[derive(Clone)]
pub struct HttpState {
    pub control: Arc<Control>,
    pub authenticator: Arc<Authenticator>,
    pub rate: Arc<RateLimit>,
    pub counters: Arc<HttpCounters>,
}

impl HttpState {
    pub fn new(control: Arc<Control>, authenticator: Arc<Authenticator>, limits: &Limits) -> Self {
        Self {
            control,
            authenticator,
            rate: Arc::new(RateLimit::new(limits.requests_per_second, limits.request_burst)),
            counters: Arc::default(),
        }
    }
}

impl FromRef<HttpState> for Arc<Control> {
    fn from_ref(state: &HttpState) -> Self {
        state.control.clone()
    }
}

impl FromRef<HttpState> for Arc<Authenticator> {
    fn from_ref(state: &HttpState) -> Self {
        state.authenticator.clone()
    }
}

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

/// Returns the parts of a request that identify its sender.
pub fn caller(request: &Parts) -> Caller<'_> {
    Caller {
        headers: &request.headers,
        query: request.uri.query(),
        address: request.extensions.get::<Peer>().map(|Peer(address)| address.ip()),
    }
}

/// Returns the stream name in a path like `/whip/NAME`. The path is not percent-decoded: no character of a name needs
/// escaping, and the grammar rejects `%2F` and the like. One trailing slash is tolerated.
fn stream_of(uri: &Uri) -> Result<StreamName, Problem> {
    let name = uri.path().splitn(3, '/').nth(2).unwrap_or_default();
    Ok(StreamName::parse(name.strip_suffix('/').unwrap_or(name))?)
}
