//! The tasks that fetch streams: one each, started, stopped and exchanged while everything else goes on.

use std::collections::BTreeMap;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::directory::{Directory, Entry};
use super::{Fetched, run};
use crate::config::StreamConfig;
use crate::hub::name::StreamName;
use crate::sources::feed::FanOut;

/// All fetched streams of a gateway.
pub struct Fleet<P> {
    directory: Directory,
    plane: P,
    ships: Mutex<BTreeMap<StreamName, Ship>>,
}

struct Ship {
    fetched: Fetched,
    /// What the configuration says about it.
    config: StreamConfig,
    /// `None` while it is stopped by hand.
    task: Option<JoinHandle<()>>,
}

/// What became of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchanged {
    pub started: Vec<StreamName>,
    pub stopped: Vec<StreamName>,
    pub restarted: Vec<StreamName>,
}

/// A stream to be fetched, and what the configuration says about it.
pub type Ordered = (Fetched, StreamConfig);

impl<P: FanOut + Clone + 'static> Fleet<P> {
    /// Starts nothing yet.
    pub fn new(directory: Directory, plane: P) -> Self {
        Self {
            directory,
            plane,
            ships: Mutex::default(),
        }
    }

    /// Fetches these streams from now on and no others. What is ordered as before is not touched, unless `all` are to
    /// begin anew because what they share has changed.
    pub async fn exchange(&self, ordered: Vec<Ordered>, all: bool) -> Exchanged {
        let mut ships = self.ships.lock().await;
        let mut exchanged = Exchanged::default();
        let mut wanted: BTreeMap<StreamName, Ordered> = ordered
            .into_iter()
            .map(|ordered| (ordered.0.stream.clone(), ordered))
            .collect();
        let gone: Vec<StreamName> = ships
            .iter()
            .filter(|(name, ship)| match wanted.get(*name) {
                Some((_, config)) => all || config != &ship.config,
                None => true,
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(ship) = ships.remove(&name) {
                ship.end().await;
            }
            if !wanted.contains_key(&name) {
                self.directory.remove(&name);
                exchanged.stopped.push(name);
            } else {
                exchanged.restarted.push(name);
            }
        }
        wanted.retain(|name, _| !ships.contains_key(name));
        for (name, (fetched, config)) in wanted {
            let task = Some(self.start(&fetched));
            if !exchanged.restarted.contains(&name) {
                exchanged.started.push(name.clone());
            }
            ships.insert(name, Ship { fetched, config, task });
        }
        exchanged
    }

    fn start(&self, fetched: &Fetched) -> JoinHandle<()> {
        let entry = Entry::new(fetched.stream.clone(), fetched.how.label(), fetched.on_demand.is_some());
        self.directory.insert(entry.clone());
        tokio::spawn(run(entry, fetched.clone(), self.plane.clone()))
    }

    /// Stops fetching a stream until it is started again; whether there is such a stream.
    pub async fn stop(&self, name: &StreamName) -> bool {
        let mut ships = self.ships.lock().await;
        let Some(ship) = ships.get_mut(name) else { return false };
        if let Some(task) = ship.task.take() {
            end(task).await;
            self.directory.stopped(name);
        }
        true
    }

    /// Fetches a stream again that was stopped, or begins with it anew; whether there is such a stream.
    pub async fn begin(&self, name: &StreamName) -> bool {
        let mut ships = self.ships.lock().await;
        let Some(ship) = ships.get_mut(name) else { return false };
        if let Some(task) = ship.task.take() {
            end(task).await;
        }
        ship.task = Some(self.start(&ship.fetched));
        true
    }

    /// Ends all of them.
    pub async fn end(&self) {
        for (_, ship) in std::mem::take(&mut *self.ships.lock().await) {
            ship.end().await;
        }
    }
}

impl Ship {
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
