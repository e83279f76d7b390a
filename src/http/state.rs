//! What handlers share.

use std::sync::Arc;

use axum::extract::FromRef;

use super::auth::Authenticator;
use super::limits::RateLimit;
use crate::config::Limits;
use crate::control::Control;
use crate::telemetry::HttpCounters;

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
