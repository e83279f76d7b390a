//! Starts, stops and replaces the tasks that fetch streams, one per stream, at runtime.

use std::collections::BTreeMap;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::directory::{Directory, Entry};
use super::{SourceConfig, run};
use crate::config::StreamConfig;
use millstream_core::hub::name::StreamName;
use millstream_core::sources::frame_source::FanOut;

/// All fetched streams of a gateway.
pub struct SourceSupervisor<P> {
    directory: Directory,
    plane: P,
    supervised: Mutex<BTreeMap<StreamName, Supervised>>,
}

struct Supervised {
    fetched: SourceConfig,
    /// The configuration it was built from.
    config: StreamConfig,
    /// `None` while it is stopped by the API.
    task: Option<JoinHandle<()>>,
}

/// The changes made by [`SourceSupervisor::reconcile`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    pub started: Vec<StreamName>,
    pub stopped: Vec<StreamName>,
    pub restarted: Vec<StreamName>,
}

/// A source and the configuration that it was built from.
pub type ConfiguredSource = (SourceConfig, StreamConfig);

impl<P: FanOut + Clone + 'static> SourceSupervisor<P> {
    /// Makes a supervisor without sources.
    pub fn new(directory: Directory, plane: P) -> Self {
        Self {
            directory,
            plane,
            supervised: Mutex::default(),
        }
    }

    /// Starts and stops sources so that exactly these run. Sources whose configuration is unchanged keep running,
    /// unless `all` is set because a shared setting has changed.
    pub async fn reconcile(&self, configured_sources: Vec<ConfiguredSource>, all: bool) -> Reconciled {
        let mut supervised = self.supervised.lock().await;
        let mut reconciled = Reconciled::default();
        let mut desired: BTreeMap<StreamName, ConfiguredSource> = configured_sources
            .into_iter()
            .map(|configured| (configured.0.stream.clone(), configured))
            .collect();
        let gone: Vec<StreamName> = supervised
            .iter()
            .filter(|(name, source)| match desired.get(*name) {
                Some((_, config)) => all || config != &source.config,
                None => true,
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(source) = supervised.remove(&name) {
                source.end().await;
            }
            if !desired.contains_key(&name) {
                self.directory.remove(&name);
                reconciled.stopped.push(name);
            } else {
                reconciled.restarted.push(name);
            }
        }
        desired.retain(|name, _| !supervised.contains_key(name));
        for (name, (fetched, config)) in desired {
            let task = Some(self.start(&fetched));
            if !reconciled.restarted.contains(&name) {
                reconciled.started.push(name.clone());
            }
            supervised.insert(name, Supervised { fetched, config, task });
        }
        reconciled
    }

    fn start(&self, fetched: &SourceConfig) -> JoinHandle<()> {
        let entry = Entry::new(
            fetched.stream.clone(),
            fetched.kind.label(),
            fetched.on_demand.is_some(),
            self.plane.hub().changes().clone(),
        );
        self.directory.insert(entry.clone());
        tokio::spawn(run(entry, fetched.clone(), self.plane.clone()))
    }

    /// Stops fetching a stream until it is started again. Returns whether it has a configured source.
    pub async fn stop(&self, name: &StreamName) -> bool {
        let mut supervised = self.supervised.lock().await;
        let Some(source) = supervised.get_mut(name) else {
            return false;
        };
        if let Some(task) = source.task.take() {
            end(task).await;
            self.directory.stopped(name);
        }
        true
    }

    /// Starts or restarts the source of a stream. Returns whether it has a configured source.
    pub async fn begin(&self, name: &StreamName) -> bool {
        let mut supervised = self.supervised.lock().await;
        let Some(source) = supervised.get_mut(name) else {
            return false;
        };
        if let Some(task) = source.task.take() {
            end(task).await;
        }
        source.task = Some(self.start(&source.fetched));
        true
    }

    /// Ends all sources.
    pub async fn end(&self) {
        for (_, source) in std::mem::take(&mut *self.supervised.lock().await) {
            source.end().await;
        }
    }
}

impl Supervised {
    async fn end(self) {
        if let Some(task) = self.task {
            end(task).await;
        }
    }
}

/// Aborts a task. Its source is detached from the stream when this returns.
async fn end(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}
