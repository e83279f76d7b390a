//! The HTTP side: WHIP (RFC 9725) and WHEP (draft-ietf-wish-whep) endpoints, session URLs, pages, probes and metrics.
//!
//! ```text
//! server (connections, deadlines) -> router -> guard (rate, CORS, counters) -> whip | whep -> sdp -> shard::MediaPlane
//!                                                                           -> resource (session URL)
//!                                                                           -> pages, operations
//! ```
//!
//! Nothing here touches media. A client's fault is a [`problem::Problem`] with a 4xx status, never a 5xx.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::http::Uri;
use axum::http::request::Parts;
use axum::middleware;
use axum::routing::{any, get};
use tokio::sync::Semaphore;

mod activity;
pub mod alternate;
pub mod auth;
pub mod body;
pub mod cors;
pub mod endpoint;
pub mod events;
pub mod expiry;
pub mod fragment;
pub mod guard;
pub mod hls;
pub mod layer;
pub mod limits;
pub mod links;
pub mod metrics;
pub mod offers;
pub mod operations;
pub mod pages;
pub mod precondition;
pub mod problem;
pub mod reload;
pub mod resource;
pub mod server;
pub mod sessions;
pub mod tls;
pub mod write_timeout;

use self::auth::{Authenticator, Caller};
use self::events::EventStreams;
use self::expiry::Expiries;
use self::limits::RateLimit;
use self::links::IceServers;
use self::offers::Offers;
use self::problem::Problem;
use self::reload::Reloads;
use self::server::Peer;
use self::sessions::Sessions;
use crate::config::{Config, CorsOrigins, CounterOffer, Limits};
use crate::outputs::hls::service::Service;
use crate::shard::MediaPlane;
use crate::sources::fetch::directory::Directory;
use crate::sources::fetch::supervisor::SourceSupervisor;
use crate::telemetry::HttpCounters;
use millstream_core::hub::name::StreamName;

/// How clients are treated: what may change while they are there.
#[derive(Clone, Debug)]
pub struct ClientPolicy {
    pub cors_origins: CorsOrigins,
    pub ice_servers: IceServers,
    /// See [`crate::config::Http::strict_preconditions`].
    pub strict: bool,
    /// See [`crate::config::Http::counter_offer`] and what follows there.
    pub counter_offer: CounterOffer,
    pub legacy_server_offer: bool,
    /// How long a viewer's POST may wait for a publisher.
    pub wait_for_publisher: Duration,
}

impl ClientPolicy {
    /// As the configuration says.
    pub fn new(config: &Config) -> Self {
        Self {
            cors_origins: config.http.cors_origins.clone(),
            ice_servers: (&config.ice).into(),
            strict: config.http.strict_preconditions,
            counter_offer: config.http.counter_offer,
            legacy_server_offer: config.http.legacy_server_offer,
            wait_for_publisher: config.http.wait_for_publisher,
        }
    }
}

/// What all handlers share.
pub struct Signalling {
    pub media: MediaPlane,
    pub gate: Authenticator,
    /// When sessions are to end.
    expiries: Expiries,
    client_policy: RwLock<Arc<ClientPolicy>>,
    /// A place for each viewer who waits.
    waiting: Semaphore,
    pub sessions: Sessions,
    /// Offers of ours that wait for an answer.
    pub offers: Offers,
    /// Streams of events about them.
    pub events: EventStreams,
    pub rate: RateLimit,
    pub counters: HttpCounters,
    /// Streams that are fetched.
    pub fetched: Directory,
    /// The tasks that fetch them.
    pub supervisor: Arc<SourceSupervisor<MediaPlane>>,
    /// Where a reload is asked for.
    pub reloads: Reloads,
    /// Streams that are packaged for HLS.
    pub hls: Arc<Service>,
    draining: AtomicBool,
}

impl Signalling {
    pub fn new(
        media: MediaPlane,
        gate: Authenticator,
        expiries: Expiries,
        client_policy: ClientPolicy,
        limits: &Limits,
        reloads: Reloads,
    ) -> Self {
        let fetched = Directory::default();
        let origin = hls::Origin {
            media: media.clone(),
            fetched: fetched.clone(),
        };
        Self {
            hls: Service::new(Arc::new(origin)),
            supervisor: Arc::new(SourceSupervisor::new(fetched.clone(), media.clone())),
            reloads,
            media,
            gate,
            expiries,
            client_policy: RwLock::new(Arc::new(client_policy)),
            waiting: Semaphore::new(endpoint::MAX_WAITING),
            sessions: Sessions::default(),
            events: EventStreams::default(),
            offers: Offers::default(),
            rate: RateLimit::new(limits.requests_per_second, limits.request_burst),
            counters: HttpCounters::default(),
            fetched,
            draining: AtomicBool::new(false),
        }
    }

    /// How clients are treated at the moment.
    pub fn client_policy(&self) -> Arc<ClientPolicy> {
        self.client_policy
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// From here on clients are treated so.
    pub fn set_client_policy(&self, client_policy: ClientPolicy) {
        *self.client_policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(client_policy);
    }

    /// From here on no new session is opened.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

/// All routes, and `more` beside them.
pub fn router(signalling: Arc<Signalling>, more: Router) -> Router {
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
        .fallback(pages::lost)
        .method_not_allowed_fallback(async || Problem::method_not_allowed("GET, HEAD"))
        .with_state(signalling.clone())
        .merge(more)
        .layer(middleware::from_fn_with_state(signalling, guard::guard))
}

/// What of a request says who sent it.
pub fn caller(request: &Parts) -> Caller<'_> {
    Caller {
        headers: &request.headers,
        query: request.uri.query(),
        address: request.extensions.get::<Peer>().map(|Peer(address)| address.ip()),
    }
}

/// The stream that a path like `/whip/NAME` is about. The path is taken as it was sent: no character of a name needs
/// escapes, so that `%2F` and its like are refused by the grammar. One slash at the end is tolerated.
fn stream_of(uri: &Uri) -> Result<StreamName, Problem> {
    let name = uri.path().splitn(3, '/').nth(2).unwrap_or_default();
    Ok(StreamName::parse(name.strip_suffix('/').unwrap_or(name))?)
}
