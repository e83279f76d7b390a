//! The control plane: state and decisions outside of the media path, independent of HTTP.
//!
//! * [`failover_groups`]: streams with several sources.
//! * [`sessions`]: all sessions with a URL, from the offer to their end.
//! * [`api_streams`]: streams that are set through the API, and the file that keeps them.
//! * [`client_settings`]: configured settings that apply to clients.
//! * [`reload`]: requests to reload the configuration.
//! * [`source_tests`]: tests of sources that are no streams.
//! * [`talk`], [`talkers`]: sessions that send audio to cameras, and which cameras have one.
//! * [`viewer_delays`], [`viewer_delay_check`], [`viewer_delay_histograms`]: the delay of each viewer by its parts, and alarms.
//! * [`worker_limit`]: for whom workers transcode, and whether a further one may run.
//!
//! [`ControlPlane`] holds them together with the handle of the media plane, the configured sources and the LL-HLS service.
//! Handlers of [`crate::http`] use its parts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{Notify, Semaphore};

mod api_stream_changes;
pub mod api_streams;
pub mod client_settings;
pub mod failover_groups;
pub mod reload;
pub mod session_record;
pub mod sessions;
pub mod source_tests;
mod state_file;
pub mod stream_provider;
pub mod talk;
pub mod talkers;
mod token_expiries;
pub mod viewer_delay_check;
pub mod viewer_delay_histograms;
pub mod viewer_delays;
pub mod worker_limit;

use self::api_streams::ApiStreams;
use self::client_settings::ClientSettings;
use self::reload::ReloadRequestSender;
use self::sessions::SessionTable;
use self::source_tests::SourceTestService;
use self::talkers::Talkers;
use self::viewer_delay_histograms::ViewerDelayHistograms;
use crate::outputs::hls::service::HlsService;
use crate::pipeline::worker_slots::WorkerSlots;
use crate::shard::MediaPlane;
use crate::sources::fetch::registry::SourceRegistry;
use crate::sources::fetch::supervisor::SourceSupervisor;

/// Maximum number of viewers that wait for a publisher (`http.wait_for_publisher`).
const MAX_VIEWERS_WAITING_FOR_PUBLISHER: usize = 1_024;

/// The control plane of one gateway.
pub struct ControlPlane {
    pub media_plane: MediaPlane,
    pub sessions: SessionTable,
    /// Permits for viewers that wait for a publisher.
    pub waiting_viewer_permits: Semaphore,
    /// State of the configured sources.
    pub source_registry: SourceRegistry,
    /// Runs the configured sources.
    pub supervisor: Arc<SourceSupervisor<MediaPlane>>,
    /// Requests to reload the configuration.
    pub reload_request_sender: ReloadRequestSender,
    /// Streams packaged for LL-HLS.
    pub hls_service: Arc<HlsService>,
    /// How many worker processes may run.
    pub worker_slots: WorkerSlots,
    /// Streams that were set through the API.
    pub api_streams: ApiStreams,
    /// Tests of sources for the API.
    pub source_tests: SourceTestService,
    /// Who talks to the cameras of streams.
    pub talkers: Talkers,
    /// Notified when there may be the first stream with several sources.
    pub failover_groups_changed: Arc<Notify>,
    pub viewer_delay_histograms: ViewerDelayHistograms,
    client_settings: RwLock<Arc<ClientSettings>>,
    draining: AtomicBool,
}

impl ControlPlane {
    pub fn new(
        media: MediaPlane,
        sessions: SessionTable,
        sources: SourceRegistry,
        hls: Arc<HlsService>,
        client_settings: ClientSettings,
        reloads: ReloadRequestSender,
    ) -> Self {
        Self {
            supervisor: Arc::new(SourceSupervisor::new(sources.clone(), media.clone())),
            media_plane: media,
            sessions,
            waiting_viewer_permits: Semaphore::new(MAX_VIEWERS_WAITING_FOR_PUBLISHER),
            source_registry: sources,
            reload_request_sender: reloads,
            hls_service: hls,
            worker_slots: WorkerSlots::default(),
            api_streams: ApiStreams::default(),
            source_tests: SourceTestService::default(),
            talkers: Talkers::default(),
            failover_groups_changed: Arc::default(),
            viewer_delay_histograms: ViewerDelayHistograms::default(),
            client_settings: RwLock::new(Arc::new(client_settings)),
            draining: AtomicBool::new(false),
        }
    }

    /// Sets how many worker processes may run.
    #[must_use]
    pub fn with_worker_slots(mut self, slots: WorkerSlots) -> Self {
        self.worker_slots = slots;
        self
    }

    /// Sets the streams that were set through the API.
    #[must_use]
    pub fn with_api_streams(mut self, streams: ApiStreams) -> Self {
        self.api_streams = streams;
        self
    }

    /// Returns the current client settings.
    pub fn client_settings(&self) -> Arc<ClientSettings> {
        self.client_settings
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces the client settings.
    pub fn set_client_settings(&self, client_settings: ClientSettings) {
        *self.client_settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(client_settings);
    }

    /// Rejects new sessions from now on, because the gateway is stopping.
    pub fn reject_new_sessions(&self) {
        self.draining.store(true, Ordering::Release);
        self.media_plane.hub().change_notifier().notify_all();
    }

    /// Returns whether new sessions are rejected.
    pub fn is_rejecting_new_sessions(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}
