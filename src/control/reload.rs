//! Requests of the API to reload the configuration, which the owner of the gateway serves.

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

/// The result of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Reloaded {
    /// Changed keys that are in effect.
    pub changed: Vec<String>,
    /// Changed keys that need a restart.
    pub needs_restart: Vec<String>,
    /// Streams whose source was added.
    pub started: Vec<String>,
    /// Streams whose source was removed.
    pub stopped: Vec<String>,
    /// Streams whose source was changed and restarted.
    pub restarted: Vec<String>,
    /// Streams set through the API whose source cannot be started at present: see `last_error` of their source.
    pub failed: Vec<String>,
    /// Number of sessions that were ended because their token is no longer valid.
    pub sessions_ended: usize,
    /// Number of tokens issued through the API that are no longer valid, because the credential that issued them is not
    /// either.
    pub tokens_ended: usize,
}

/// Receives the result of a reload, or the reason why nothing was changed.
pub type ReloadReplySender = oneshot::Sender<Result<Reloaded, String>>;

/// Sends reload requests.
pub type ReloadRequestSender = mpsc::Sender<ReloadReplySender>;
