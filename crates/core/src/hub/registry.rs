//! What became of each session: what the control plane asks when a session URL is used.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::changes::{Changes, Topic};
pub use super::half_open::{Full, Requester, SessionLimits};
use super::half_open::{HalfOpen, Ticket};
use super::lock::{Rank, RankedGuard, RankedMutex};
use super::stream::{SessionId, ShardIndex};
use crate::session::CloseReason;

/// State of a session as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// ICE and DTLS are not complete.
    Connecting,
    Connected,
    /// Ended within the last minute.
    Ended(CloseReason),
    /// Never existed, or ended long ago.
    Unknown,
}

/// All sessions, the ended ones for [`GRACE`].
pub struct Registry {
    entries: RankedMutex<Entries>,
    changes: Arc<Changes>,
}

struct Entries {
    by_id: HashMap<SessionId, Entry>,
    live: usize,
    half_open: HalfOpen,
    ended: Remembered,
    evicted: Remembered,
    on_forget: OnForget,
}

/// Called with the id of each session that is forgotten, a minute after its end, under the registry's lock: it must return
/// at once.
pub type OnForget = Box<dyn Fn(SessionId) + Send>;

/// Ended sessions that are still known, the first to be forgotten first.
#[derive(Debug)]
struct Remembered {
    sessions: VecDeque<(Instant, SessionId)>,
    most: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    shard: ShardIndex,
    state: SessionState,
    /// Of a half-open one.
    ticket: Option<Ticket>,
}

/// A session that gave way to another one: its shard has to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evicted {
    pub id: SessionId,
    pub shard: ShardIndex,
    /// What there was too much of.
    pub full: Full,
}

/// How long an ended session is remembered: clients close their transport before they send DELETE.
const GRACE: Duration = Duration::from_secs(60);

/// Ended sessions that are remembered: more than may run at the same time by default.
const MAX_ENDED: usize = 16_384;

/// Evicted sessions that are remembered. Anybody can cause any number of them, and hardly any of their clients asks.
const MAX_EVICTED: usize = 2_048;

impl Registry {
    pub fn new(limits: SessionLimits, changes: Arc<Changes>, on_forget: OnForget) -> Self {
        let entries = Entries {
            by_id: HashMap::new(),
            live: 0,
            half_open: HalfOpen::new(limits),
            ended: Remembered::new(MAX_ENDED),
            evicted: Remembered::new(MAX_EVICTED),
            on_forget,
        };
        Self {
            entries: RankedMutex::new(Rank::Sessions, entries),
            changes,
        }
    }

    /// Notes a new session. A half-open one that was not heard may have to give way to it; that one has ended then.
    ///
    /// # Errors
    ///
    /// What there is too much of.
    pub fn open(
        &self,
        now: Instant,
        id: SessionId,
        shard: ShardIndex,
        requester: Requester,
    ) -> Result<Option<Evicted>, Full> {
        let mut guard = self.lock();
        let entries = &mut *guard;
        let gone = entries.half_open.make_room(requester, entries.live)?;
        let evicted = gone.and_then(|(ticket, full)| {
            let waiting = entries.half_open.remove(ticket)?;
            let (id, shard) = (waiting.id, waiting.shard);
            entries.end(now, id, CloseReason::Evicted);
            Some(Evicted { id, shard, full })
        });
        entries.forget(now);
        entries.live += 1;
        let ticket = entries.half_open.insert(id, shard, requester);
        let entry = Entry {
            shard,
            state: SessionState::Connecting,
            ticket: Some(ticket),
        };
        entries.by_id.insert(id, entry);
        drop(guard);
        self.notify(id);
        if let Some(evicted) = evicted {
            self.notify(evicted.id);
        }
        Ok(evicted)
    }

    /// Notes that a connectivity check of a session's peer was authentic: it no longer gives way to another session.
    pub fn checked(&self, id: SessionId) {
        let mut entries = self.lock();
        if let Some(ticket) = entries.by_id.get(&id).and_then(|entry| entry.ticket) {
            entries.half_open.checked(ticket);
        }
    }

    /// Notes that a session is connected.
    pub fn connected(&self, id: SessionId) {
        let mut guard = self.lock();
        let entries = &mut *guard;
        let entry = entries.by_id.get_mut(&id);
        let Some(entry) = entry.filter(|entry| entry.state == SessionState::Connecting) else {
            return;
        };
        entry.state = SessionState::Connected;
        if let Some(ticket) = entry.ticket.take() {
            entries.half_open.remove(ticket);
        }
        drop(guard);
        self.notify(id);
    }

    /// Notes the end of a session.
    pub fn ended(&self, now: Instant, id: SessionId, reason: CloseReason) {
        self.lock().end(now, id, reason);
        self.notify(id);
    }

    /// State of a session and the shard that it lives on.
    pub fn find(&self, id: SessionId) -> (SessionState, Option<ShardIndex>) {
        let entries = self.lock();
        entries
            .by_id
            .get(&id)
            .map_or((SessionState::Unknown, None), |e| (e.state, Some(e.shard)))
    }

    /// Sessions that have not ended.
    pub fn live(&self) -> usize {
        self.lock().live
    }

    /// Sessions that have not ended and are not connected.
    pub fn half_open(&self) -> usize {
        self.lock().half_open.len()
    }

    fn notify(&self, id: SessionId) {
        self.changes.notify(&Topic::Session(id));
    }

    fn lock(&self) -> RankedGuard<'_, Entries> {
        self.entries.lock()
    }
}

impl Entries {
    fn end(&mut self, now: Instant, id: SessionId, reason: CloseReason) {
        let Some(entry) = self.by_id.get_mut(&id) else {
            return;
        };
        if let SessionState::Ended(_) | SessionState::Unknown = entry.state {
            return;
        }
        entry.state = SessionState::Ended(reason);
        if let Some(ticket) = entry.ticket.take() {
            self.half_open.remove(ticket);
        }
        self.live -= 1;
        let remembered = if reason == CloseReason::Evicted {
            &mut self.evicted
        } else {
            &mut self.ended
        };
        remembered.sessions.push_back((now, id));
        self.forget(now);
    }

    /// Forgets those that ended long ago, and the oldest of too many.
    fn forget(&mut self, now: Instant) {
        for remembered in [&mut self.ended, &mut self.evicted] {
            for id in remembered.take_due(now) {
                self.by_id.remove(&id);
                (self.on_forget)(id);
            }
        }
    }
}

impl Remembered {
    fn new(most: usize) -> Self {
        Self {
            sessions: VecDeque::new(),
            most,
        }
    }

    /// Those that are to be forgotten.
    fn take_due(&mut self, now: Instant) -> impl Iterator<Item = SessionId> + '_ {
        let is_due = |(at, _): &&(Instant, SessionId)| now.saturating_duration_since(*at) >= GRACE;
        let due = self.sessions.iter().take_while(is_due).count();
        let due = due.max(self.sessions.len().saturating_sub(self.most));
        self.sessions.drain(..due).map(|(_, id)| id)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    const ANYBODY: Requester = Requester {
        address: None,
        has_token: false,
    };

    fn registry(sessions: usize, half_open: usize) -> Registry {
        Registry::new(
            SessionLimits {
                sessions,
                half_open,
                half_open_reserved: 0,
                half_open_per_address: 1,
            },
            Arc::default(),
            Box::new(|_| {}),
        )
    }

    fn id(number: u32) -> SessionId {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        SessionId(id)
    }

    #[test]
    fn ended_sessions_are_remembered_for_a_minute_and_free_their_place_at_once() {
        let (registry, t) = (registry(1, 10), Instant::now());
        let (a, b, shard) = (id(1), id(2), ShardIndex(0));
        assert_eq!(registry.open(t, a, shard, ANYBODY), Ok(None));
        registry.connected(a);
        assert_eq!(registry.open(t, b, shard, ANYBODY), Err(Full::Sessions));
        registry.ended(t, a, CloseReason::Silent);
        registry.ended(t, a, CloseReason::Deleted);
        assert_eq!(registry.find(a).0, SessionState::Ended(CloseReason::Silent));
        assert_eq!(registry.open(t + GRACE, b, shard, ANYBODY), Ok(None));
        assert_eq!(registry.find(a).0, SessionState::Unknown);
        assert_eq!((registry.live(), registry.half_open()), (1, 1));
    }

    #[test]
    fn one_that_was_not_heard_gives_way_and_has_ended_for_everybody() {
        let (registry, t, shard) = (registry(10, 1), Instant::now(), ShardIndex(3));
        assert_eq!(registry.open(t, id(1), shard, ANYBODY), Ok(None));
        let evicted = Evicted {
            id: id(1),
            shard,
            full: Full::HalfOpen,
        };
        assert_eq!(registry.open(t, id(2), ShardIndex(0), ANYBODY), Ok(Some(evicted)));
        assert_eq!(registry.find(id(1)).0, SessionState::Ended(CloseReason::Evicted));
        // Its shard did not know yet.
        registry.checked(id(1));
        registry.connected(id(1));
        registry.ended(t, id(1), CloseReason::Evicted);
        assert_eq!((registry.live(), registry.half_open()), (1, 1));
        registry.checked(id(2));
        assert_eq!(registry.open(t, id(3), shard, ANYBODY), Err(Full::HalfOpen));
        registry.connected(id(2));
        assert_eq!(registry.open(t, id(3), shard, ANYBODY), Ok(None));
        assert_eq!((registry.live(), registry.half_open()), (2, 1));
    }

    #[test]
    fn a_flood_of_sessions_leaves_no_more_behind_than_may_be_remembered() {
        let (registry, t, shard) = (registry(10, 1), Instant::now(), ShardIndex(0));
        for number in 0..50_000 {
            assert!(registry.open(t, id(number), shard, ANYBODY).is_ok());
        }
        assert!(registry.lock().by_id.len() <= MAX_EVICTED + 1);
        assert_eq!(registry.find(id(49_998)).0, SessionState::Ended(CloseReason::Evicted));
        assert_eq!(registry.find(id(0)).0, SessionState::Unknown);
        assert_eq!(registry.live(), 1);
    }

    #[test]
    fn each_session_is_reported_once_when_it_is_forgotten() {
        let (sender, forgotten) = std::sync::mpsc::channel();
        let limits = SessionLimits {
            sessions: 10,
            half_open: 10,
            half_open_reserved: 0,
            half_open_per_address: 1,
        };
        let on_forget = move |id| sender.send(id).expect("the receiver is alive");
        let (registry, t) = (
            Registry::new(limits, Arc::default(), Box::new(on_forget)),
            Instant::now(),
        );
        let open = |n: u8, at| {
            registry
                .open(at, SessionId([n; 16]), ShardIndex(0), ANYBODY)
                .expect("room")
        };
        open(1, t);
        open(2, t);
        registry.ended(t, SessionId([1; 16]), CloseReason::Deleted);
        registry.ended(t + GRACE, SessionId([2; 16]), CloseReason::Deleted);
        assert_eq!(forgotten.try_iter().collect::<Vec<_>>(), [SessionId([1; 16])]);
        open(3, t + GRACE * 2);
        open(4, t + GRACE * 3);
        assert_eq!(forgotten.try_iter().collect::<Vec<_>>(), [SessionId([2; 16])]);
    }
}
