//! All sessions with a URL: offered, open, and nothing else. An entry is removed in one place, when the media plane forgets
//! the session, a minute after its end; everything that belongs to a session goes with it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::record::{IceSession, SessionRecord};
use crate::access::{Access, Action};
use crate::shard::{MediaPlane, Placement, SessionId, SessionState};
use millstream_core::sdp::LocalDescription;
use millstream_core::session::CloseReason;

/// How long an offer of the gateway waits for its answer: what the WHEP draft uses as its example (§4.3.2).
pub const OFFER_LIFETIME: Duration = Duration::from_secs(30);

/// Maximum number of offers that wait for an answer; more are refused.
const MAX_OFFERS: usize = 2_048;

/// Maximum number of event streams of one session; more are refused.
const MAX_EVENT_STREAMS: usize = 4;

/// An event that an event stream of a session reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    Active,
    Inactive,
    Layers,
    Reconnect,
    ViewerCount,
}

/// An offer of the gateway that a viewer has not answered yet (WHEP §4.3.2).
#[derive(Clone, Debug)]
pub struct OfferedSession {
    pub placement: Placement,
    pub record: SessionRecord,
    pub description: LocalDescription,
    created: Instant,
}

impl OfferedSession {
    pub fn new(placement: Placement, record: SessionRecord, description: LocalDescription) -> Self {
        Self {
            placement,
            record,
            description,
            created: Instant::now(),
        }
    }

    fn is_valid(&self) -> bool {
        self.created.elapsed() < OFFER_LIFETIME
    }
}

/// A session of the media plane.
#[derive(Debug)]
struct OpenSession {
    ice: IceSession,
    record: SessionRecord,
    /// Event streams by their id.
    event_streams: Vec<(String, Vec<SessionEvent>)>,
}

#[derive(Debug, Default)]
struct Entries {
    offered: HashMap<SessionId, OfferedSession>,
    open: HashMap<SessionId, OpenSession>,
}

/// The sessions of a gateway, by id.
pub struct SessionTable {
    media: MediaPlane,
    entries: Mutex<Entries>,
    expiries: mpsc::UnboundedSender<(SystemTime, SessionId)>,
}

/// Expiries of tokens, for [`SessionTable::run`].
pub type Expiries = mpsc::UnboundedReceiver<(SystemTime, SessionId)>;

impl SessionTable {
    pub fn new(media: MediaPlane) -> (Self, Expiries) {
        let (expiries, expiring) = mpsc::unbounded_channel();
        let table = Self {
            media,
            entries: Mutex::default(),
            expiries,
        };
        (table, expiring)
    }

    /// Removes the sessions that the media plane has forgotten, and ends those whose token expires. Runs as long as the
    /// gateway.
    pub async fn run(&self, mut forgotten: mpsc::UnboundedReceiver<SessionId>, mut expiring: Expiries) {
        let mut due: BinaryHeap<Reverse<(Instant, SessionId)>> = BinaryHeap::new();
        loop {
            let next = due.peek().map(|Reverse((at, _))| *at);
            tokio::select! {
                session = forgotten.recv() => match session {
                    Some(session) => self.remove(session),
                    None => return,
                },
                Some((at, session)) = expiring.recv() => due.push(Reverse((instant(at), session))),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    if let Some(Reverse((_, session))) = due.pop() {
                        self.media.end(session, CloseReason::TokenExpired);
                    }
                }
            }
        }
    }

    /// Adds a session that the media plane has opened.
    pub fn insert(&self, id: SessionId, ice: IceSession, record: SessionRecord) {
        if let Some(expires) = record.grant.expires {
            // The receiver is gone only when the gateway is stopping.
            let _ = self.expiries.send((expires, id));
        }
        let session = OpenSession {
            ice,
            record,
            event_streams: Vec::new(),
        };
        self.lock().open.insert(id, session);
        // It may have been forgotten already, before it was in the table.
        if self.media.state(id) == SessionState::Unknown {
            self.remove(id);
        }
    }

    /// The only place where an open session is removed.
    fn remove(&self, id: SessionId) {
        self.lock().open.remove(&id);
    }

    /// Changes the ICE session of a running session, one request at a time; `None` if it does not run.
    pub fn with_ice<T>(&self, id: SessionId, change: impl FnOnce(&mut IceSession) -> T) -> Option<T> {
        self.with_open(id, |session| change(&mut session.ice))
    }

    /// Returns what a running session was opened for.
    pub fn record(&self, id: SessionId) -> Option<SessionRecord> {
        self.with_open(id, |session| session.record.clone())
    }

    /// Returns whether a session runs.
    pub fn is_running(&self, id: SessionId) -> bool {
        self.with_open(id, |_| ()).is_some()
    }

    /// Returns all sessions that have not been removed.
    pub fn all(&self) -> Vec<(SessionId, SessionRecord)> {
        let entries = self.lock();
        let open = entries.open.iter();
        open.map(|(id, session)| (*id, session.record.clone())).collect()
    }

    /// Returns the sessions whose grant `access` no longer gives.
    pub fn without_right(&self, access: &Access) -> Vec<SessionId> {
        let is_granted = |record: &SessionRecord| {
            let is_open = record.action == Action::Play && access.is_open();
            is_open || access.still_grants(&record.grant, record.action, &record.stream)
        };
        let entries = self.lock();
        let lost = entries.open.iter().filter(|(_, session)| !is_granted(&session.record));
        lost.map(|(id, _)| *id).collect()
    }

    /// Adds an offer; returns `false` if too many wait.
    pub fn offer(&self, id: SessionId, offered: OfferedSession) -> bool {
        let mut entries = self.lock();
        entries.offered.retain(|_, offered| offered.is_valid());
        let has_room = entries.offered.len() < MAX_OFFERS;
        if has_room {
            entries.offered.insert(id, offered);
        }
        has_room
    }

    /// Returns an offer that is still valid.
    pub fn offered(&self, id: SessionId) -> Option<OfferedSession> {
        let found = self.lock().offered.get(&id).cloned();
        found.filter(OfferedSession::is_valid)
    }

    /// Removes an offer that was answered or declined; returns whether it was there and valid. Of two callers one gets it.
    pub fn take_offer(&self, id: SessionId) -> bool {
        let taken = self.lock().offered.remove(&id);
        taken.is_some_and(|offered| offered.is_valid())
    }

    /// Adds an event stream to a running session; returns `false` if it has as many as it may have.
    pub fn open_event_stream(&self, session: SessionId, id: String, events: Vec<SessionEvent>) -> bool {
        let opened = self.with_open(session, |session| {
            let has_room = session.event_streams.len() < MAX_EVENT_STREAMS;
            if has_room {
                session.event_streams.push((id, events));
            }
            has_room
        });
        opened.unwrap_or(false)
    }

    /// Returns the events of an event stream; `None` if it was closed or its session has ended.
    pub fn event_stream(&self, session: SessionId, id: &str) -> Option<Vec<SessionEvent>> {
        self.with_open(session, |session| {
            let mut streams = session.event_streams.iter();
            streams.find(|(known, _)| known == id).map(|(_, events)| events.clone())
        })?
    }

    /// Closes an event stream; returns whether it was open.
    pub fn close_event_stream(&self, session: SessionId, id: &str) -> bool {
        let closed = self.with_open(session, |session| {
            let before = session.event_streams.len();
            session.event_streams.retain(|(known, _)| known != id);
            session.event_streams.len() < before
        });
        closed.unwrap_or(false)
    }

    fn with_open<T>(&self, id: SessionId, work: impl FnOnce(&mut OpenSession) -> T) -> Option<T> {
        if !self.is_alive(id) {
            return None;
        }
        self.lock().open.get_mut(&id).map(work)
    }

    fn is_alive(&self, id: SessionId) -> bool {
        matches!(self.media.state(id), SessionState::Connecting | SessionState::Connected)
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns when a time of the wall clock will be, as far as is known now.
fn instant(at: SystemTime) -> Instant {
    #[expect(clippy::disallowed_methods, reason = "tokens expire at a time of the wall clock")]
    let wait = at.duration_since(SystemTime::now()).unwrap_or_default();
    let now = Instant::now();
    now.checked_add(wait.min(FAR)).unwrap_or(now + FAR)
}

/// Longer than any gateway runs, and short enough for every clock.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
