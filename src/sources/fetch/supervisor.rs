//! Starts, stops and replaces the tasks that fetch streams, one per stream, at runtime.

use std::collections::BTreeMap;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::registry::{RegisteredSource, SourceRegistry};
use super::status::SourceState;
use super::unbuildable_source::{UnbuildableSource, retry_build_and_run_source};
use super::{SourceConfig, run_source};
use crate::config::StreamConfig;
use millstream_core::hub::name::StreamKey;
use millstream_core::sources::frame_source::FrameSink;

/// All fetched streams of a gateway.
pub struct SourceSupervisor<P> {
    registry: SourceRegistry,
    media_plane: P,
    supervised_sources: Mutex<BTreeMap<StreamKey, SupervisedSource>>,
}

struct SupervisedSource {
    configured: ConfiguredSource,
    /// `None` while it is stopped by the API.
    task: Option<JoinHandle<()>>,
}

/// The changes made by [`SourceSupervisor::reconcile`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceReconcileResult {
    pub started: Vec<StreamKey>,
    pub stopped: Vec<StreamKey>,
    pub restarted: Vec<StreamKey>,
}

/// A source and its configuration.
#[derive(Clone)]
pub struct ConfiguredSource {
    pub stream_config: StreamConfig,
    pub source: SourceBuildResult,
}

/// What was built from the configuration of a source.
#[derive(Clone)]
pub enum SourceBuildResult {
    Ready(SourceConfig),
    /// The stream is marked as failed until the source can be built.
    Unbuildable(UnbuildableSource),
}

impl ConfiguredSource {
    /// Returns a source that was built.
    pub fn from_built_source(source: SourceConfig, stream_config: StreamConfig) -> Self {
        Self {
            stream_config,
            source: SourceBuildResult::Ready(source),
        }
    }

    /// Returns whether it was built.
    pub fn is_ready(&self) -> bool {
        matches!(self.source, SourceBuildResult::Ready(_))
    }
}

impl<P: FrameSink + Clone + 'static> SourceSupervisor<P> {
    /// Makes a supervisor without sources.
    pub fn new(directory: SourceRegistry, plane: P) -> Self {
        Self {
            registry: directory,
            media_plane: plane,
            supervised_sources: Mutex::default(),
        }
    }

    /// Starts and stops sources so that exactly these run. Sources whose configuration is unchanged keep running,
    /// unless `restart_all` is set because a shared setting has changed.
    pub async fn reconcile(
        &self,
        configured_sources: Vec<ConfiguredSource>,
        restart_all: bool,
    ) -> SourceReconcileResult {
        let mut supervised = self.supervised_sources.lock().await;
        let mut reconciled = SourceReconcileResult::default();
        let mut desired: BTreeMap<StreamKey, ConfiguredSource> = configured_sources
            .into_iter()
            .map(|configured| (configured.stream_config.stream_key(), configured))
            .collect();
        let gone: Vec<StreamKey> = supervised
            .iter()
            .filter(|(name, source)| match desired.get(*name) {
                Some(wanted) => {
                    restart_all
                        || wanted.stream_config != source.configured.stream_config
                        || self.has_build_result_changed(name, source, wanted)
                }
                None => true,
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(source) = supervised.remove(&name) {
                source.abort_task_and_wait().await;
            }
            if !desired.contains_key(&name) {
                self.registry.remove(&name);
                reconciled.stopped.push(name);
            } else {
                reconciled.restarted.push(name);
            }
        }
        desired.retain(|name, _| !supervised.contains_key(name));
        for (name, configured) in desired {
            let task = Some(self.spawn_source(&configured));
            if !reconciled.restarted.contains(&name) {
                reconciled.started.push(name.clone());
            }
            supervised.insert(name, SupervisedSource { configured, task });
        }
        reconciled
    }

    /// Starts the source of one stream, in place of the one that it has.
    pub async fn replace_and_start_source(&self, configured: ConfiguredSource) {
        let mut supervised = self.supervised_sources.lock().await;
        let name = configured.stream_config.stream_key();
        if let Some(previous) = supervised.remove(&name) {
            previous.abort_task_and_wait().await;
        }
        let task = Some(self.spawn_source(&configured));
        supervised.insert(name, SupervisedSource { configured, task });
    }

    /// Ends the source of one stream, which then has none.
    pub async fn remove_source(&self, name: &StreamKey) {
        let mut supervised = self.supervised_sources.lock().await;
        if let Some(source) = supervised.remove(name) {
            source.abort_task_and_wait().await;
            self.registry.remove(name);
        }
    }

    /// Returns the source of a stream as it runs; `None` if it was stopped by the API, or could not be built.
    pub async fn running_source_config(&self, name: &StreamKey) -> Option<SourceConfig> {
        let supervised = self.supervised_sources.lock().await;
        let source = supervised.get(name).filter(|source| source.task.is_some())?;
        match &source.configured.source {
            SourceBuildResult::Ready(config) => Some(config.clone()),
            SourceBuildResult::Unbuildable(_) => None,
        }
    }

    /// Whether a source that waits to be built was built now, or one that does not run cannot be built any more.
    fn has_build_result_changed(&self, name: &StreamKey, old: &SupervisedSource, new: &ConfiguredSource) -> bool {
        let state = self.registry.get(name).map(|entry| entry.status().state);
        match (old.configured.is_ready(), new.is_ready()) {
            (false, true) => state == Some(SourceState::Failed),
            (true, false) => matches!(state, Some(SourceState::Failed | SourceState::Idle)),
            (true, true) | (false, false) => false,
        }
    }

    fn spawn_source(&self, configured: &ConfiguredSource) -> JoinHandle<()> {
        let config = &configured.stream_config;
        let entry = RegisteredSource::new(
            config.stream_key(),
            config.source.kind_label(),
            config.on_demand_stop_after().is_some(),
            self.media_plane.hub().change_notifier().clone(),
        );
        self.registry.insert(entry.clone());
        let plane = self.media_plane.clone();
        match &configured.source {
            SourceBuildResult::Ready(source) => tokio::spawn(run_source(entry, source.clone(), plane)),
            SourceBuildResult::Unbuildable(source) => {
                entry.mark_failed(&source.problem);
                tokio::spawn(retry_build_and_run_source(entry, source.clone(), plane))
            }
        }
    }

    /// Stops fetching a stream until it is started again. Returns whether it has a configured source.
    pub async fn stop_source_until_started(&self, name: &StreamKey) -> bool {
        let mut supervised = self.supervised_sources.lock().await;
        let Some(source) = supervised.get_mut(name) else {
            return false;
        };
        if let Some(task) = source.task.take() {
            abort_and_join(task).await;
            self.registry.mark_stopped(name);
        }
        true
    }

    /// Starts or restarts the source of a stream. Returns whether it has a configured source.
    pub async fn start_or_restart_source(&self, name: &StreamKey) -> bool {
        let mut supervised = self.supervised_sources.lock().await;
        let Some(source) = supervised.get_mut(name) else {
            return false;
        };
        if let Some(task) = source.task.take() {
            abort_and_join(task).await;
        }
        source.task = Some(self.spawn_source(&source.configured));
        true
    }

    /// Ends all sources.
    pub async fn stop_all(&self) {
        for (_, source) in std::mem::take(&mut *self.supervised_sources.lock().await) {
            source.abort_task_and_wait().await;
        }
    }
}

impl SupervisedSource {
    async fn abort_task_and_wait(self) {
        if let Some(task) = self.task {
            abort_and_join(task).await;
        }
    }
}

/// Aborts a task. Its source is detached from the stream when this returns.
async fn abort_and_join(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}
