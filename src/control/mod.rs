//! The control plane: state and decisions outside of the media path, independent of HTTP.
//!
//! * [`sessions`]: all sessions with a URL, from the offer to their end.
//! * [`policy`]: configured settings that apply to clients.
//! * [`reload`]: requests to reload the configuration.
//!
//! [`Control`] holds them together with the handle of the media plane, the configured sources and the LL-HLS service.
//! Handlers of [`crate::http`] use its parts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Semaphore;

pub mod packaging;
pub mod policy;
pub mod record;
pub mod reload;
pub mod sessions;

use self::policy::ClientPolicy;
use self::reload::Reloads;
use self::sessions::SessionTable;
use crate::outputs::hls::service::Service;
use crate::shard::MediaPlane;
use crate::sources::fetch::directory::Directory;
use crate::sources::fetch::supervisor::SourceSupervisor;

/// Maximum number of viewers that wait for a publisher (`http.wait_for_publisher`).
const MAX_WAITING: usize = 1_024;

/// The control plane of one gateway.
pub struct Control {
    pub media: MediaPlane,
    pub sessions: SessionTable,
    /// Permits for viewers that wait for a publisher.
    pub waiting: Semaphore,
    /// State of the configured sources.
    pub sources: Directory,
    /// Runs the configured sources.
    pub supervisor: Arc<SourceSupervisor<MediaPlane>>,
    /// Requests to reload the configuration.
    pub reloads: Reloads,
    /// Streams packaged for LL-HLS.
    pub hls: Arc<Service>,
    policy: RwLock<Arc<ClientPolicy>>,
    draining: AtomicBool,
}

impl Control {
    pub fn new(
        media: MediaPlane,
        sessions: SessionTable,
        sources: Directory,
        hls: Arc<Service>,
        policy: ClientPolicy,
        reloads: Reloads,
    ) -> Self {
        Self {
            supervisor: Arc::new(SourceSupervisor::new(sources.clone(), media.clone())),
            media,
            sessions,
            waiting: Semaphore::new(MAX_WAITING),
            sources,
            reloads,
            hls,
            policy: RwLock::new(Arc::new(policy)),
            draining: AtomicBool::new(false),
        }
    }

    /// Returns the current client policy.
    pub fn policy(&self) -> Arc<ClientPolicy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the client policy.
    pub fn set_policy(&self, policy: ClientPolicy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// Rejects new sessions from now on, because the gateway is stopping.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.media.hub().changes().notify_all();
    }

    /// Returns whether new sessions are rejected.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}
