//! What the API asks of whoever holds the gateway: to read the configuration again.

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

/// What a reload has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Reloaded {
    /// Keys that are set otherwise and are in force.
    pub changed: Vec<String>,
    /// Keys that are set otherwise and need a restart.
    pub needs_restart: Vec<String>,
    /// Fetched streams that are new, gone, or fetched otherwise.
    pub started: Vec<String>,
    pub stopped: Vec<String>,
    pub restarted: Vec<String>,
    /// Sessions that ended because their token is no longer in force.
    pub sessions_ended: usize,
}

/// Where the answer to a request goes: what has changed, or why nothing has.
pub type ReloadReply = oneshot::Sender<Result<Reloaded, String>>;

/// Asks for a reload.
pub type Reloads = mpsc::Sender<ReloadReply>;
