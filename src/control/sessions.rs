//! The table of all sessions that have a URL: offers and open sessions. An open session is removed in one place,
//! together with everything that belongs to it, when the media plane forgets it: one minute after its end.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::record::{IceSession, SessionRecord};
use crate::access::Access;
use crate::shard::{MediaPlane, Placement, SessionId, SessionState};
use millstream_core::hub::changes::Topic;
use millstream_core::sdp::LocalDescription;
use millstream_core::session::CloseReason;

/// How long an offer of the gateway is valid: the value in the example of the WHEP draft (§4.3.2).
pub const OFFER_LIFETIME: Duration = Duration::from_secs(30);

/// Maximum number of unanswered offers; more are rejected.
const MAX_OFFERS: usize = 2_048;

/// Maximum number of event streams of one session; more are rejected.
const MAX_EVENT_STREAMS: usize = 4;

/// An event type of a session's event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    Active,
    Inactive,
    Layers,
    Reconnect,
    ViewerCount,
}

impl SessionEvent {
    /// All events.
    pub const ALL: [Self; 5] = [
        Self::Active,
        Self::Inactive,
        Self::Layers,
        Self::Reconnect,
        Self::ViewerCount,
    ];

    /// Returns the name that clients know (draft-ietf-wish-webrtc-http-egress-events §3).
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Layers => "layers",
            Self::Reconnect => "reconnect",
            Self::ViewerCount => "viewercount",
        }
    }

    /// Returns the names of all events, separated by commas.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(",")
    }
}

/// An offer of the gateway that the viewer has not answered yet (WHEP §4.3.2).
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
    event_streams: Vec<OpenEventStream>,
    /// Its URL was deleted: no request may use it, although its shard has not closed it yet.
    is_deleted: bool,
}

#[derive(Debug)]
struct OpenEventStream {
    id: String,
    events: Vec<SessionEvent>,
    /// Number of requests that have read it. Only the last one continues.
    readers: u64,
}

/// A request that reads an event stream.
#[derive(Clone, Debug)]
pub struct EventReader {
    id: String,
    number: u64,
    pub events: Vec<SessionEvent>,
}

#[derive(Default)]
struct Entries {
    /// The access rules in effect; `None` until the first reload.
    access: Option<Arc<Access>>,
    offered: HashMap<SessionId, OfferedSession>,
    open: HashMap<SessionId, OpenSession>,
}

/// The sessions of a gateway, by id.
pub struct SessionTable {
    media: MediaPlane,
    entries: Mutex<Entries>,
    expiries: mpsc::UnboundedSender<(SystemTime, SessionId)>,
}

/// Receives the expiry times of tokens, for [`SessionTable::run`].
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

    /// Removes the sessions that the media plane has forgotten and ends those whose token expires. Runs until the
    /// gateway stops.
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
            is_deleted: false,
        };
        let mut entries = self.lock();
        let is_granted = entries
            .access
            .as_ref()
            .is_none_or(|access| is_granted(access, &session.record));
        entries.open.insert(id, session);
        drop(entries);
        if !is_granted {
            self.media.end(id, CloseReason::TokenRevoked);
        }
        self.media.hub().changes().notify(&Topic::Session(id));
        // The media plane may have forgotten the session before it was inserted.
        if self.media.state(id) == SessionState::Unknown {
            self.remove(id);
        }
    }

    /// Removes an open session. This is the only place that does.
    fn remove(&self, id: SessionId) {
        self.lock().open.remove(&id);
        self.media.hub().changes().notify(&Topic::Session(id));
    }

    /// Marks an open session as deleted by its owner: from now on it is not running.
    pub fn delete(&self, id: SessionId) {
        if let Some(session) = self.lock().open.get_mut(&id) {
            session.is_deleted = true;
        }
    }

    /// Calls `change` with the ICE session of a running session, one request at a time. Returns `None` if the session
    /// is not running.
    pub fn with_ice<T>(&self, id: SessionId, change: impl FnOnce(&mut IceSession) -> T) -> Option<T> {
        self.with_open(id, |session| change(&mut session.ice))
    }

    /// Returns the record of a running session.
    pub fn record(&self, id: SessionId) -> Option<SessionRecord> {
        self.with_open(id, |session| session.record.clone())
    }

    /// Returns whether a session is running.
    pub fn is_running(&self, id: SessionId) -> bool {
        self.with_open(id, |_| ()).is_some()
    }

    /// Returns all sessions that have not been removed.
    pub fn all(&self) -> Vec<(SessionId, SessionRecord)> {
        let entries = self.lock();
        let open = entries.open.iter();
        open.map(|(id, session)| (*id, session.record.clone())).collect()
    }

    /// Applies other access rules, also to sessions whose request was authorized before: drops offers whose grant is not
    /// valid any more, and returns open sessions with such a grant, which the caller ends.
    pub fn revoke(&self, access: Arc<Access>) -> Vec<SessionId> {
        let mut entries = self.lock();
        entries
            .offered
            .retain(|_, offered| is_granted(&access, &offered.record));
        let mut revoked = entries.open.iter().collect::<Vec<_>>();
        revoked.retain(|(_, session)| !is_granted(&access, &session.record));
        let revoked = revoked.into_iter().map(|(id, _)| *id).collect();
        entries.access = Some(access);
        revoked
    }

    /// Adds an offer. Returns `false` if there are too many unanswered offers.
    pub fn offer(&self, id: SessionId, offered: OfferedSession) -> bool {
        let mut entries = self.lock();
        entries.offered.retain(|_, offered| offered.is_valid());
        let has_room = entries.offered.len() < MAX_OFFERS;
        if has_room {
            entries.offered.insert(id, offered);
        }
        has_room
    }

    /// Returns an offer if it is still valid.
    pub fn offered(&self, id: SessionId) -> Option<OfferedSession> {
        let found = self.lock().offered.get(&id).cloned();
        found.filter(OfferedSession::is_valid)
    }

    /// Removes an offer that was answered or declined. Returns whether it existed and was valid; this is true for only
    /// one of two concurrent callers.
    pub fn take_offer(&self, id: SessionId) -> bool {
        let taken = self.lock().offered.remove(&id);
        taken.is_some_and(|offered| offered.is_valid())
    }

    /// Adds an event stream to a running session. Returns `false` if the session has the maximum number of event
    /// streams or is not running.
    pub fn open_event_stream(&self, session: SessionId, id: String, events: Vec<SessionEvent>) -> bool {
        let opened = self.with_open(session, |session| {
            let has_room = session.event_streams.len() < MAX_EVENT_STREAMS;
            if has_room {
                let readers = 0;
                session.event_streams.push(OpenEventStream { id, events, readers });
            }
            has_room
        });
        opened.unwrap_or(false)
    }

    /// Starts to read an event stream; another request that reads it ends. Returns `None` if the stream was closed or
    /// its session has ended.
    pub fn read_event_stream(&self, session: SessionId, id: &str) -> Option<EventReader> {
        let reader = self.with_open(session, |session| {
            let stream = session.event_streams.iter_mut().find(|stream| stream.id == id)?;
            stream.readers += 1;
            Some(EventReader {
                id: stream.id.clone(),
                number: stream.readers,
                events: stream.events.clone(),
            })
        })?;
        self.media.hub().changes().notify(&Topic::Session(session));
        reader
    }

    /// Whether an event stream is open and no later request reads it.
    pub fn is_read_by(&self, session: SessionId, reader: &EventReader) -> bool {
        let is_read = self.with_open(session, |session| {
            let mut streams = session.event_streams.iter();
            streams.any(|stream| stream.id == reader.id && stream.readers == reader.number)
        });
        is_read.unwrap_or(false)
    }

    /// Closes an event stream. Returns whether it was open.
    pub fn close_event_stream(&self, session: SessionId, id: &str) -> bool {
        let closed = self.with_open(session, |session| {
            let before = session.event_streams.len();
            session.event_streams.retain(|stream| stream.id != id);
            session.event_streams.len() < before
        });
        // Its response ends.
        self.media.hub().changes().notify(&Topic::Session(session));
        closed.unwrap_or(false)
    }

    fn with_open<T>(&self, id: SessionId, work: impl FnOnce(&mut OpenSession) -> T) -> Option<T> {
        if !self.is_alive(id) {
            return None;
        }
        let mut entries = self.lock();
        let session = entries.open.get_mut(&id).filter(|session| !session.is_deleted);
        session.map(work)
    }

    fn is_alive(&self, id: SessionId) -> bool {
        matches!(self.media.state(id), SessionState::Connecting | SessionState::Connected)
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_granted(access: &Access, record: &SessionRecord) -> bool {
    access.still_grants(&record.grant, record.action, Some(&record.stream))
}

/// Converts a time of the wall clock to an instant, assuming that the clock is not adjusted until then.
fn instant(at: SystemTime) -> Instant {
    #[expect(clippy::disallowed_methods, reason = "tokens expire at a time of the wall clock")]
    let wait = at.duration_since(SystemTime::now()).unwrap_or_default();
    let now = Instant::now();
    now.checked_add(wait.min(FAR)).unwrap_or(now + FAR)
}

/// Upper bound of a wait: longer than any gateway runs, and within the range of every clock.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
