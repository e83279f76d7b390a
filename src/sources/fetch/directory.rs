//! All fetched streams by name: their status and demand.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::status::{State, Status};
use millstream_core::hub::Hub;
use millstream_core::hub::changes::{Changes, Topic};
use millstream_core::hub::lock::{Rank, RankedGuard, RankedMutex};
use millstream_core::hub::name::StreamName;

/// The fetched streams. Clones share the same entries.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    entries: Arc<RwLock<BTreeMap<StreamName, Arc<Entry>>>>,
}

/// One fetched stream.
#[derive(Debug)]
pub struct Entry {
    pub stream: StreamName,
    /// Kind as in the configuration: `rtsp`, `hls` or `pipeline`.
    pub source: &'static str,
    /// The source runs only while the stream is watched.
    pub on_demand: bool,
    status: watch::Sender<Status>,
    changes: Arc<Changes>,
    requested: Notify,
    requested_at: RankedMutex<Option<Instant>>,
}

/// The result of starting a stream for a viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOutcome {
    /// The stream is live.
    Live,
    /// Its source failed and is being retried, or was stopped.
    Unavailable,
    /// No source is configured for the stream.
    Unknown,
}

/// Maximum time that a viewer waits for a source to start.
const START_TIMEOUT: Duration = Duration::from_secs(8);

impl Directory {
    /// Returns the entry of a stream.
    pub fn get(&self, stream: &StreamName) -> Option<Arc<Entry>> {
        self.read().get(stream).cloned()
    }

    /// Returns all entries, sorted by name.
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.read().values().cloned().collect()
    }

    /// Adds an entry, replacing the previous one of the stream.
    pub(super) fn insert(&self, entry: Arc<Entry>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(entry.stream.clone(), entry);
    }

    pub(super) fn remove(&self, stream: &StreamName) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.remove(stream);
    }

    /// Marks a stream as stopped until it is started again.
    pub(super) fn stopped(&self, stream: &StreamName) {
        if let Some(entry) = self.get(stream) {
            entry.set(State::Stopped);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<StreamName, Arc<Entry>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a stream for a viewer if it is not live, and waits until it is live or its source fails.
    pub async fn ensure_started(&self, stream: &StreamName, hub: &Hub) -> StartOutcome {
        let is_live = || {
            hub.find(stream)
                .is_some_and(|stream| stream.with(|state| state.source().is_some()))
        };
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
                StartOutcome::Unavailable
            };
        }
        let mut status = entry.status.subscribe();
        entry.request();
        let waiting = async {
            // Earlier failures do not count: an idle source has yet to handle the request.
            let failures = status.borrow().restarts;
            loop {
                if is_live() {
                    return StartOutcome::Live;
                }
                let failed =
                    status.borrow().restarts > failures || (!entry.on_demand && status.borrow().state == State::Failed);
                if failed || status.changed().await.is_err() {
                    return StartOutcome::Unavailable;
                }
            }
        };
        timeout(START_TIMEOUT, waiting)
            .await
            .unwrap_or(StartOutcome::Unavailable)
    }
}

impl Entry {
    /// Makes the entry of a stream that is not started yet.
    pub fn new(stream: StreamName, source: &'static str, on_demand: bool, changes: Arc<Changes>) -> Arc<Self> {
        Arc::new(Self {
            stream,
            source,
            on_demand,
            status: watch::Sender::new(Status::default()),
            changes,
            requested: Notify::new(),
            requested_at: RankedMutex::new(Rank::Demand, None),
        })
    }

    /// Returns the current status.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(super) fn set(&self, state: State) {
        let changed = self.status.send_if_modified(|status| {
            let changes = status.state != state;
            if changes {
                status.state = state;
                status.since = Some(Instant::now().into_std());
            }
            changes
        });
        if changed {
            self.notify();
        }
    }

    /// Changes what is shown of the source, without waking those who wait for its state.
    pub fn note(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_if_modified(|status| {
            change(status);
            false
        });
    }

    pub(super) fn failed(&self, error: &str) {
        self.status.send_modify(|status| {
            status.state = State::Failed;
            status.since = Some(Instant::now().into_std());
            status.last_error = Some(error.to_owned());
            status.restarts += 1;
        });
        self.notify();
    }

    fn notify(&self) {
        self.changes.notify(&Topic::Stream(self.stream.clone()));
    }

    fn request(&self) {
        *self.lock() = Some(Instant::now());
        self.requested.notify_one();
    }

    /// Whether the stream is watched, or was watched or requested within `linger` (ever, if it is `None`).
    pub(super) fn is_needed(&self, hub: &Hub, linger: Option<Duration>) -> bool {
        let is_watched = hub
            .find(&self.stream)
            .is_some_and(|stream| stream.with(|state| state.is_watched()));
        let mut requested = self.lock();
        if is_watched {
            *requested = Some(Instant::now());
        }
        requested.is_some_and(|requested| linger.is_none_or(|linger| requested.elapsed() < linger))
    }

    /// Waits until the stream is requested or watched.
    pub(super) async fn until_needed(&self, hub: &Hub) {
        let mut changes = hub.changes().listen([Topic::Stream(self.stream.clone())]);
        let is_watched = || {
            let stream = hub.find(&self.stream);
            stream.is_some_and(|stream| stream.with(|state| state.is_watched()))
        };
        while !is_watched() {
            tokio::select! {
                () = self.requested.notified() => return,
                () = changes.changed() => {}
            }
        }
    }

    fn lock(&self) -> RankedGuard<'_, Option<Instant>> {
        self.requested_at.lock()
    }
}
