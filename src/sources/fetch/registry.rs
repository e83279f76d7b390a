//! All fetched streams by name: their status and demand.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::status::{SourceState, SourceStatus};
use crate::config::FailoverConfig;
use millstream_core::hub::Hub;
use millstream_core::hub::changes::{ChangeNotifier, ChangeTopic};
use millstream_core::hub::lock::{LockRank, RankedGuard, RankedMutex};
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::sources::failover_group::switcher::FailoverGroup;

/// The fetched streams, and the streams with several sources. Clones share the same entries.
#[derive(Clone, Debug, Default)]
pub struct SourceRegistry {
    failover_groups: Arc<RwLock<BTreeMap<StreamName, ConfiguredFailoverGroup>>>,
    registered_sources: Arc<RwLock<BTreeMap<StreamKey, Arc<RegisteredSource>>>>,
}

/// A stream with several sources.
#[derive(Clone, Debug)]
pub struct ConfiguredFailoverGroup {
    pub config: FailoverConfig,
    pub failover_group: Arc<FailoverGroup>,
}

/// One fetched stream.
#[derive(Debug)]
pub struct RegisteredSource {
    /// The stream that it writes to.
    pub stream: StreamKey,
    /// Kind as in the configuration: `rtsp`, `hls` or `pipeline`.
    pub source_kind: &'static str,
    /// The source runs only while the stream is watched.
    pub on_demand: bool,
    status: watch::Sender<SourceStatus>,
    change_notifier: Arc<ChangeNotifier>,
    start_request_notify: Notify,
    last_requested_at: RankedMutex<Option<Instant>>,
}

/// The result of starting a stream for a viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOutcome {
    /// The stream is live.
    Live,
    /// Its source failed and is being retried, or was stopped.
    Unavailable,
    /// No source is configured for the stream.
    NotConfigured,
}

/// Maximum time that a viewer waits for a source to start.
const SOURCE_START_TIMEOUT: Duration = Duration::from_secs(8);

impl SourceRegistry {
    /// Returns the entry of a stream. A stream with several sources has none of its own.
    pub fn get(&self, stream: impl Into<StreamKey>) -> Option<Arc<RegisteredSource>> {
        self.lock_sources_for_reading().get(&stream.into()).cloned()
    }

    /// Returns all entries, sorted by name.
    pub fn all(&self) -> Vec<Arc<RegisteredSource>> {
        self.lock_sources_for_reading().values().cloned().collect()
    }

    /// Returns the failover group of a stream with several sources.
    pub fn failover_group(&self, stream: &StreamName) -> Option<ConfiguredFailoverGroup> {
        let failover_groups = self.failover_groups.read().unwrap_or_else(PoisonError::into_inner);
        failover_groups.get(stream).cloned()
    }

    /// Whether the gateway pulls the stream, from one source or from the streams of a camera: there is no publisher to wait for.
    pub fn is_pulled_by_gateway(&self, stream: &StreamName) -> bool {
        self.get(stream).is_some() || !self.camera_layers(stream).is_empty()
    }

    /// Returns the streams of the camera whose layers a stream has, in the configured order.
    fn camera_layers(&self, stream: &StreamName) -> Vec<Arc<RegisteredSource>> {
        let failover_group = self
            .failover_group(stream)
            .filter(|failover_group| failover_group.config.has_camera_layers());
        let configs = failover_group
            .iter()
            .flat_map(|failover_group| &failover_group.config.sources);
        configs
            .filter_map(|source| self.get(stream.failover_source_key(&source.name)))
            .collect()
    }

    /// Returns all failover groups, sorted by stream.
    pub fn all_failover_groups(&self) -> Vec<ConfiguredFailoverGroup> {
        let failover_groups = self.failover_groups.read().unwrap_or_else(PoisonError::into_inner);
        failover_groups.values().cloned().collect()
    }

    /// Adds the failover group of a stream, replacing its previous one.
    pub fn insert_failover_group(&self, failover_group: ConfiguredFailoverGroup) {
        let mut failover_groups = self.failover_groups.write().unwrap_or_else(PoisonError::into_inner);
        failover_groups.insert(failover_group.config.stream.clone(), failover_group);
    }

    /// Removes the failover group of a stream.
    pub fn remove_failover_group(&self, stream: &StreamName) {
        let mut failover_groups = self.failover_groups.write().unwrap_or_else(PoisonError::into_inner);
        failover_groups.remove(stream);
    }

    /// Adds an entry, replacing the previous one of the stream.
    pub(super) fn insert(&self, entry: Arc<RegisteredSource>) {
        let mut entries = self.registered_sources.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(entry.stream.clone(), entry);
    }

    pub(super) fn remove(&self, stream: &StreamKey) {
        let mut entries = self.registered_sources.write().unwrap_or_else(PoisonError::into_inner);
        entries.remove(stream);
    }

    /// Marks a stream as stopped until it is started again.
    pub(super) fn mark_stopped(&self, stream: &StreamKey) {
        if let Some(entry) = self.get(stream) {
            entry.set_state(SourceState::Stopped);
        }
    }

    fn lock_sources_for_reading(&self) -> RwLockReadGuard<'_, BTreeMap<StreamKey, Arc<RegisteredSource>>> {
        self.registered_sources.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a stream for a viewer if it is not live, and waits until it is live or its source fails.
    pub async fn start_and_wait_until_live(&self, stream: &StreamName, hub: &Hub) -> StartOutcome {
        let is_live = || {
            hub.find_stream(stream)
                .is_some_and(|stream| stream.with_state(|state| state.source().is_some()))
        };
        let layers = self.camera_layers(stream);
        if let Some(smallest) = layers.last() {
            smallest.request_start();
            return wait_for_any_layer(hub, &layers, is_live).await;
        }
        let Some(entry) = self.get(stream) else {
            return if is_live() {
                StartOutcome::Live
            } else {
                StartOutcome::NotConfigured
            };
        };
        if entry.status().state == SourceState::Stopped {
            return if is_live() {
                StartOutcome::Live
            } else {
                StartOutcome::Unavailable
            };
        }
        let mut status = entry.status.subscribe();
        entry.request_start();
        let waiting = async {
            // Earlier failures do not count: an idle source has yet to handle the request.
            let failures = status.borrow().restart_count;
            loop {
                if is_live() {
                    return StartOutcome::Live;
                }
                let failed = status.borrow().restart_count > failures
                    || (!entry.on_demand && status.borrow().state == SourceState::Failed);
                if failed || status.changed().await.is_err() {
                    return StartOutcome::Unavailable;
                }
            }
        };
        timeout(SOURCE_START_TIMEOUT, waiting)
            .await
            .unwrap_or(StartOutcome::Unavailable)
    }
}

/// Waits until one of the streams of a camera is live, or until all are stopped or have failed.
async fn wait_for_any_layer(hub: &Hub, layers: &[Arc<RegisteredSource>], is_live: impl Fn() -> bool) -> StartOutcome {
    let stream = layers.first().map(|layer| layer.stream.name.clone());
    let mut changes = hub.change_notifier().listen(stream.map(ChangeTopic::Stream));
    let failures = |layer: &Arc<RegisteredSource>| layer.status().restart_count;
    let before: Vec<u64> = layers.iter().map(failures).collect();
    let is_away = |(layer, before): (&Arc<RegisteredSource>, &u64)| {
        layer.status().state == SourceState::Stopped || failures(layer) > *before
    };
    let waiting = async {
        while !is_live() {
            if layers.iter().zip(&before).all(is_away) {
                return StartOutcome::Unavailable;
            }
            changes.changed().await;
        }
        StartOutcome::Live
    };
    timeout(SOURCE_START_TIMEOUT, waiting)
        .await
        .unwrap_or(StartOutcome::Unavailable)
}

impl RegisteredSource {
    /// Makes the entry of a stream that is not started yet.
    pub fn new(stream: StreamKey, source: &'static str, on_demand: bool, changes: Arc<ChangeNotifier>) -> Arc<Self> {
        Arc::new(Self {
            stream,
            source_kind: source,
            on_demand,
            status: watch::Sender::new(SourceStatus::default()),
            change_notifier: changes,
            start_request_notify: Notify::new(),
            last_requested_at: RankedMutex::new(LockRank::OnDemandSource, None),
        })
    }

    /// Returns the current status.
    pub fn status(&self) -> SourceStatus {
        self.status.borrow().clone()
    }

    pub(super) fn set_state(&self, state: SourceState) {
        let changed = self.status.send_if_modified(|status| {
            let changes = status.state != state;
            if changes {
                status.state = state;
                status.state_since = Some(Instant::now().into_std());
            }
            changes
        });
        if changed {
            self.notify_stream_change_listeners();
        }
    }

    /// Changes what is shown of the source, without waking those who wait for its state.
    pub fn modify_status_without_notifying(&self, change: impl FnOnce(&mut SourceStatus)) {
        self.status.send_if_modified(|status| {
            change(status);
            false
        });
    }

    pub(super) fn mark_failed(&self, error: &str) {
        self.status.send_modify(|status| {
            status.state = SourceState::Failed;
            status.state_since = Some(Instant::now().into_std());
            status.last_error = Some(error.to_owned());
            status.restart_count += 1;
        });
        self.notify_stream_change_listeners();
    }

    fn notify_stream_change_listeners(&self) {
        self.change_notifier
            .notify(&ChangeTopic::Stream(self.stream.name.clone()));
    }

    fn request_start(&self) {
        *self.lock_last_requested_at() = Some(Instant::now());
        self.start_request_notify.notify_one();
    }

    /// Whether the stream is watched, or was watched or requested within `linger` (ever, if it is `None`).
    pub(super) fn renew_and_report_demand(&self, hub: &Hub, linger: Option<Duration>) -> bool {
        let has_consumers = hub
            .find_stream(&self.stream)
            .is_some_and(|stream| stream.with_state(|state| state.has_consumers()));
        let mut requested = self.lock_last_requested_at();
        if has_consumers {
            *requested = Some(Instant::now());
        }
        requested.is_some_and(|requested| linger.is_none_or(|linger| requested.elapsed() < linger))
    }

    /// Waits until the stream is requested or watched.
    pub(super) async fn wait_until_watched_or_requested(&self, hub: &Hub) {
        let mut changes = hub
            .change_notifier()
            .listen([ChangeTopic::Stream(self.stream.name.clone())]);
        let has_consumers = || {
            let stream = hub.find_stream(&self.stream);
            stream.is_some_and(|stream| stream.with_state(|state| state.has_consumers()))
        };
        while !has_consumers() {
            tokio::select! {
                () = self.start_request_notify.notified() => return,
                () = changes.changed() => {}
            }
        }
    }

    fn lock_last_requested_at(&self) -> RankedGuard<'_, Option<Instant>> {
        self.last_requested_at.lock()
    }
}
