//! What became of each session: what the control plane asks when a session URL is used.

use std::collections::HashMap;
use std::time::{Duration, Instant};

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
#[derive(Debug)]
pub struct Registry {
    entries: RankedMutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_id: HashMap<SessionId, Entry>,
    live: usize,
    half_open: usize,
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    shard: ShardIndex,
    state: SessionState,
    ended: Option<Instant>,
}

/// How long an ended session is remembered: clients close their transport before they send DELETE.
const GRACE: Duration = Duration::from_secs(60);

impl Default for Registry {
    fn default() -> Self {
        Self {
            entries: RankedMutex::new(Rank::Sessions, Entries::default()),
        }
    }
}

impl Registry {
    /// Notes a new session, unless there are as many as may be. `max_half_open` bounds those that are not connected.
    pub fn open(
        &self,
        now: Instant,
        id: SessionId,
        shard: ShardIndex,
        max_sessions: usize,
        max_half_open: usize,
    ) -> bool {
        let mut entries = self.lock();
        entries.sweep(now);
        if entries.live >= max_sessions || entries.half_open >= max_half_open {
            return false;
        }
        entries.live += 1;
        entries.half_open += 1;
        entries.by_id.insert(
            id,
            Entry {
                shard,
                state: SessionState::Connecting,
                ended: None,
            },
        );
        true
    }

    /// Notes that a session is connected.
    pub fn connected(&self, id: SessionId) {
        let mut entries = self.lock();
        let entries = &mut *entries;
        if let Some(entry) = entries
            .by_id
            .get_mut(&id)
            .filter(|e| e.state == SessionState::Connecting)
        {
            entry.state = SessionState::Connected;
            entries.half_open -= 1;
        }
    }

    /// Notes the end of a session.
    pub fn ended(&self, now: Instant, id: SessionId, reason: CloseReason) {
        let mut entries = self.lock();
        let entries = &mut *entries;
        let Some(entry) = entries.by_id.get_mut(&id) else {
            return;
        };
        match entry.state {
            SessionState::Connecting => entries.half_open -= 1,
            SessionState::Connected => {}
            SessionState::Ended(_) | SessionState::Unknown => return,
        }
        entries.live -= 1;
        entry.state = SessionState::Ended(reason);
        entry.ended = Some(now);
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

    fn lock(&self) -> RankedGuard<'_, Entries> {
        self.entries.lock()
    }
}

impl Entries {
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|at| now.duration_since(at) < GRACE / 4) {
            return;
        }
        self.swept = Some(now);
        self.by_id
            .retain(|_, e| e.ended.is_none_or(|at| now.duration_since(at) < GRACE));
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    #[test]
    fn ended_sessions_are_remembered_for_a_minute_and_free_their_place_at_once() {
        let (registry, t) = (Registry::default(), Instant::now());
        let (a, b, shard) = (SessionId([1; 16]), SessionId([2; 16]), ShardIndex(0));
        assert!(registry.open(t, a, shard, 1, 10));
        assert!(!registry.open(t, b, shard, 1, 10));
        registry.connected(a);
        registry.ended(t, a, CloseReason::Silent);
        registry.ended(t, a, CloseReason::Deleted);
        assert_eq!(registry.find(a).0, SessionState::Ended(CloseReason::Silent));
        assert!(registry.open(t + GRACE, b, shard, 1, 10));
        assert_eq!(registry.find(a).0, SessionState::Unknown);
    }

    #[test]
    fn sessions_that_never_connect_are_bounded_apart() {
        let (registry, t, shard) = (Registry::default(), Instant::now(), ShardIndex(0));
        assert!(registry.open(t, SessionId([1; 16]), shard, 10, 1));
        assert!(!registry.open(t, SessionId([2; 16]), shard, 10, 1));
        registry.connected(SessionId([1; 16]));
        assert!(registry.open(t, SessionId([2; 16]), shard, 10, 1));
    }
}
