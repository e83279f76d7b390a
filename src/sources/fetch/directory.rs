//! All fetched streams by name: what they do, and who wants them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::status::{State, Status};
use crate::hub::Hub;
use crate::hub::lock::{Rank, RankedGuard, RankedMutex};
use crate::hub::name::StreamName;

/// The fetched streams. A clone is another handle on the same.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    entries: Arc<RwLock<BTreeMap<StreamName, Arc<Entry>>>>,
}

/// One fetched stream.
#[derive(Debug)]
pub struct Entry {
    pub stream: StreamName,
    /// As in the configuration: `rtsp` or `pipeline`.
    pub source: &'static str,
    /// It runs only while somebody watches.
    pub on_demand: bool,
    status: watch::Sender<Status>,
    asked: Notify,
    asked_at: RankedMutex<Option<Instant>>,
}

/// What a viewer who asks for a stream can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOutcome {
    /// The stream is live.
    Live,
    /// Its source is away; it is being tried again.
    Away,
    /// Nobody fetches such a stream.
    Unknown,
}

/// How long a viewer waits for a source that is being started.
const PATIENCE: Duration = Duration::from_secs(8);

impl Directory {
    /// The entry of a stream.
    pub fn get(&self, stream: &StreamName) -> Option<Arc<Entry>> {
        self.read().get(stream).cloned()
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.read().values().cloned().collect()
    }

    /// Takes the place of the entry that its stream had.
    pub(super) fn insert(&self, entry: Arc<Entry>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(entry.stream.clone(), entry);
    }

    pub(super) fn remove(&self, stream: &StreamName) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.remove(stream);
    }

    /// Nothing is done for a stream until it is started again.
    pub(super) fn stopped(&self, stream: &StreamName) {
        if let Some(entry) = self.get(stream) {
            entry.set(State::Stopped);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<StreamName, Arc<Entry>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a stream that somebody wants to watch, if it is not live, and waits until it is or cannot be.
    pub async fn ensure_started(&self, stream: &StreamName, hub: &Hub) -> StartOutcome {
        let is_live = || hub.find(stream).is_some_and(|stream| stream.lock().source().is_some());
        let Some(entry) = self.get(stream) else {
            return if is_live() {
                StartOutcome::Live
            } else {
                StartOutcome::Unknown
            };
        };
        if entry.status().state == State::Stopped {
            return if is_live() {
                StartOutcome::Live
            } else {
                StartOutcome::Away
            };
        }
        let mut status = entry.status.subscribe();
        entry.ask();
        let waiting = async {
            // What it was before does not count: an idle source has to notice first.
            let failures = status.borrow().restarts;
            loop {
                if is_live() {
                    return StartOutcome::Live;
                }
                let failed =
                    status.borrow().restarts > failures || (!entry.on_demand && status.borrow().state == State::Failed);
                if failed || status.changed().await.is_err() {
                    return StartOutcome::Away;
                }
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or(StartOutcome::Away)
    }
}

impl Entry {
    /// A stream that is fetched, before it is started.
    pub fn new(stream: StreamName, source: &'static str, on_demand: bool) -> Arc<Self> {
        Arc::new(Self {
            stream,
            source,
            on_demand,
            status: watch::Sender::new(Status::default()),
            asked: Notify::new(),
            asked_at: RankedMutex::new(Rank::Demand, None),
        })
    }

    /// What it does now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(super) fn set(&self, state: State) {
        self.status.send_if_modified(|status| {
            let changes = status.state != state;
            if changes {
                status.state = state;
                status.since = Some(Instant::now().into_std());
            }
            changes
        });
    }

    pub(super) fn failed(&self, error: &str) {
        self.status.send_modify(|status| {
            status.state = State::Failed;
            status.since = Some(Instant::now().into_std());
            status.last_error = Some(error.to_owned());
            status.restarts += 1;
        });
    }

    fn ask(&self) {
        *self.lock() = Some(Instant::now());
        self.asked.notify_one();
    }

    /// Whether somebody watches, or asked for it a short time ago.
    pub(super) fn is_wanted(&self, hub: &Hub, linger: Option<Duration>) -> bool {
        let is_watched = hub.find(&self.stream).is_some_and(|stream| stream.lock().is_watched());
        let mut asked = self.lock();
        if is_watched {
            *asked = Some(Instant::now());
        }
        asked.is_some_and(|asked| linger.is_none_or(|linger| asked.elapsed() < linger))
    }

    /// Waits until somebody asks, or watches what another source sends.
    pub(super) async fn until_wanted(&self, hub: &Hub, poll: Duration) {
        while timeout(poll, self.asked.notified()).await.is_err() {
            if hub.find(&self.stream).is_some_and(|stream| stream.lock().is_watched()) {
                return;
            }
        }
    }

    fn lock(&self) -> RankedGuard<'_, Option<Instant>> {
        self.asked_at.lock()
    }
}
