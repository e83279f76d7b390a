//! What the handlers of the API share.

use std::net::IpAddr;
use std::sync::Arc;

use super::events::EventLog;
use crate::control::ControlPlane;
use crate::http::auth::Authenticator;

/// State shared by the handlers.
#[derive(Clone)]
pub(super) struct ApiState {
    pub(super) control: Arc<ControlPlane>,
    pub(super) event_log: Arc<EventLog>,
    pub(super) authenticator: Arc<Authenticator>,
}

/// Who uses the API, for the log.
#[derive(Clone, Debug)]
pub(super) struct ApiClient {
    /// Name of its credential, without anything secret.
    pub(super) credential: String,
    pub(super) address: Option<IpAddr>,
}
