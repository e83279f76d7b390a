//! The tasks that fetch streams: one each, started, stopped and exchanged while everything else goes on.

use std::collections::BTreeMap;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::directory::{Directory, Entry};
use super::{SourceConfig, run};
use crate::config::StreamConfig;
use crate::hub::name::StreamName;
use crate::sources::frame_source::FanOut;

/// All fetched streams of a gateway.
pub struct SourceSupervisor<P> {
    directory: Directory,
    plane: P,
    supervised: Mutex<BTreeMap<StreamName, Supervised>>,
}

struct Supervised {
    fetched: SourceConfig,
    /// What the configuration says about it.
    config: StreamConfig,
    /// `None` while it is stopped by hand.
    task: Option<JoinHandle<()>>,
}

/// What became of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    pub started: Vec<StreamName>,
    pub stopped: Vec<StreamName>,
    pub restarted: Vec<StreamName>,
}

/// A stream to be fetched, and what the configuration says about it.
pub type ConfiguredSource = (SourceConfig, StreamConfig);

impl<P: FanOut + Clone + 'static> SourceSupervisor<P> {
    /// Starts nothing yet.
    pub fn new(directory: Directory, plane: P) -> Self {
        Self {
            directory,
            plane,
            supervised: Mutex::default(),
        }
    }

    /// Fetches these streams from now on and no others. What is ordered as before is not touched, unless `all` are to
    /// begin anew because what they share has changed.
    pub async fn reconcile(&self, configured_sources: Vec<ConfiguredSource>, all: bool) -> Reconciled {
        let mut supervised = self.supervised.lock().await;
        let mut reconciled = Reconciled::default();
        let mut wanted: BTreeMap<StreamName, ConfiguredSource> = configured_sources
            .into_iter()
            .map(|configured_sources| (configured_sources.0.stream.clone(), configured_sources))
            .collect();
        let gone: Vec<StreamName> = supervised
            .iter()
            .filter(|(name, supervised_source)| match wanted.get(*name) {
                Some((_, config)) => all || config != &supervised_source.config,
                None => true,
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(supervised_source) = supervised.remove(&name) {
                supervised_source.end().await;
            }
            if !wanted.contains_key(&name) {
                self.directory.remove(&name);
                reconciled.stopped.push(name);
            } else {
                reconciled.restarted.push(name);
            }
        }
        wanted.retain(|name, _| !supervised.contains_key(name));
        for (name, (fetched, config)) in wanted {
            let task = Some(self.start(&fetched));
            if !reconciled.restarted.contains(&name) {
                reconciled.started.push(name.clone());
            }
            supervised.insert(name, Supervised { fetched, config, task });
        }
        reconciled
    }

    fn start(&self, fetched: &SourceConfig) -> JoinHandle<()> {
        let entry = Entry::new(fetched.stream.clone(), fetched.how.label(), fetched.on_demand.is_some());
        self.directory.insert(entry.clone());
        tokio::spawn(run(entry, fetched.clone(), self.plane.clone()))
    }

    /// Stops fetching a stream until it is started again; whether there is such a stream.
    pub async fn stop(&self, name: &StreamName) -> bool {
        let mut supervised = self.supervised.lock().await;
        let Some(supervised_source) = supervised.get_mut(name) else {
            return false;
        };
        if let Some(task) = supervised_source.task.take() {
            end(task).await;
            self.directory.stopped(name);
        }
        true
    }

    /// Fetches a stream again that was stopped, or begins with it anew; whether there is such a stream.
    pub async fn begin(&self, name: &StreamName) -> bool {
        let mut supervised = self.supervised.lock().await;
        let Some(supervised_source) = supervised.get_mut(name) else {
            return false;
        };
        if let Some(task) = supervised_source.task.take() {
            end(task).await;
        }
        supervised_source.task = Some(self.start(&supervised_source.fetched));
        true
    }

    /// Ends all of them.
    pub async fn end(&self) {
        for (_, supervised_source) in std::mem::take(&mut *self.supervised.lock().await) {
            supervised_source.end().await;
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

/// Its feed is taken off the stream when this returns.
async fn end(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}
