//! What handlers share.

use std::sync::Arc;

use axum::extract::FromRef;

use super::auth::Authenticator;
use super::forwarded_headers::TrustedProxies;
use super::limits::PerAddressRateLimit;
use super::webhooks::EventWebhooks;
use crate::access::AccessControl;
use crate::config::Config;
use crate::control::ControlPlane;
use crate::telemetry::HttpCounters;

/// State of the HTTP server. Handlers extract the parts that they use.
#[derive(Clone)]
pub struct HttpState {
    pub control: Arc<ControlPlane>,
    pub authenticator: Arc<Authenticator>,
    pub request_rate_limit: Arc<PerAddressRateLimit>,
    pub counters: Arc<HttpCounters>,
    pub trusted_proxies: TrustedProxies,
    /// URLs that are told of events.
    pub webhooks: Arc<EventWebhooks>,
}

impl HttpState {
    pub fn new(control: Arc<ControlPlane>, access: AccessControl, config: &Config) -> Self {
        let (limits, counters) = (&config.limits, Arc::<HttpCounters>::default());
        Self {
            control,
            authenticator: Arc::new(Authenticator::new(access, limits, counters.clone())),
            request_rate_limit: Arc::new(PerAddressRateLimit::new(
                limits.requests_per_second,
                limits.request_burst,
            )),
            counters,
            webhooks: Arc::default(),
            trusted_proxies: TrustedProxies::new(&config.http.trusted_proxies),
        }
    }
}

impl FromRef<HttpState> for Arc<ControlPlane> {
    fn from_ref(state: &HttpState) -> Self {
        state.control.clone()
    }
}

impl FromRef<HttpState> for Arc<Authenticator> {
    fn from_ref(state: &HttpState) -> Self {
        state.authenticator.clone()
    }
}
