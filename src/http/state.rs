//! What handlers share.

use std::sync::Arc;

use axum::extract::FromRef;

use super::auth::Authenticator;
use super::forwarded::TrustedProxies;
use super::limits::RateLimit;
use crate::access::Access;
use crate::config::Config;
use crate::control::Control;
use crate::telemetry::HttpCounters;

/// State of the HTTP server. Handlers extract the parts that they use.
#[derive(Clone)]
pub struct HttpState {
    pub control: Arc<Control>,
    pub authenticator: Arc<Authenticator>,
    pub rate: Arc<RateLimit>,
    pub counters: Arc<HttpCounters>,
    pub proxies: TrustedProxies,
}

impl HttpState {
    pub fn new(control: Arc<Control>, access: Access, config: &Config) -> Self {
        let (limits, counters) = (&config.limits, Arc::<HttpCounters>::default());
        Self {
            control,
            authenticator: Arc::new(Authenticator::new(access, limits, counters.clone())),
            rate: Arc::new(RateLimit::new(limits.requests_per_second, limits.request_burst)),
            counters,
            proxies: TrustedProxies::new(&config.http.trusted_proxies),
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
