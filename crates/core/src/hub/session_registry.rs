//! What became of each session: what the control plane asks when a session URL is used.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::changes::{ChangeNotifier, ChangeTopic};
use super::half_open::{HalfOpenSequenceNumber, HalfOpenSessions};
pub use super::half_open::{ReachedLimit, SessionLimits, SessionRequester};
use super::lock::{LockRank, RankedGuard, RankedMutex};
use super::shrink_sparse::{shrink_sparse_map, shrink_sparse_queue};
use super::stream::{SessionId, ShardIndex};
use super::viewer_quality::{ViewerDelays, ViewerQuality};
use crate::congestion::QualityLimitationReason;
use crate::congestion::ladder::FrameSelection;
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

/// All sessions, the ended ones for [`ENDED_SESSION_RETENTION`].
pub struct SessionRegistry {
    entries: RankedMutex<SessionEntries>,
    change_notifier: Arc<ChangeNotifier>,
}

struct SessionEntries {
    by_id: HashMap<SessionId, SessionEntry>,
    /// Of viewers that have not ended.
    viewer_quality: HashMap<SessionId, ViewerQuality>,
    live_count: usize,
    half_open: HalfOpenSessions,
    ended: EndedSessions,
    evicted: EndedSessions,
    on_session_forgotten: OnSessionForgotten,
}

/// Called with the id of each session that is forgotten, a minute after its end, under the registry's lock: it must return
/// at once.
pub(crate) type OnSessionForgotten = Box<dyn Fn(SessionId) + Send>;

/// Ended sessions that are still known, the first to be forgotten first.
#[derive(Debug)]
struct EndedSessions {
    sessions: VecDeque<(Instant, SessionId)>,
    max_sessions: usize,
}

#[derive(Clone, Copy, Debug)]
struct SessionEntry {
    shard: ShardIndex,
    state: SessionState,
    /// Of a half-open one.
    half_open_id: Option<HalfOpenSequenceNumber>,
}

/// A session that gave way to another one: its shard has to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictedSession {
    pub id: SessionId,
    pub shard: ShardIndex,
    /// What there was too much of.
    pub reached_limit: ReachedLimit,
}

/// How long an ended session is remembered: clients close their transport before they send DELETE.
const ENDED_SESSION_RETENTION: Duration = Duration::from_secs(60);

/// Ended sessions that are remembered: more than may run at the same time by default.
const MAX_REMEMBERED_ENDED_SESSIONS: usize = 16_384;

/// Evicted sessions that are remembered. Anybody can cause any number of them, and hardly any of their clients asks.
const MAX_REMEMBERED_EVICTED_SESSIONS: usize = 2_048;

impl SessionRegistry {
    pub fn new(limits: SessionLimits, changes: Arc<ChangeNotifier>, on_forget: OnSessionForgotten) -> Self {
        let entries = SessionEntries {
            by_id: HashMap::new(),
            viewer_quality: HashMap::new(),
            live_count: 0,
            half_open: HalfOpenSessions::new(limits),
            ended: EndedSessions::new(MAX_REMEMBERED_ENDED_SESSIONS),
            evicted: EndedSessions::new(MAX_REMEMBERED_EVICTED_SESSIONS),
            on_session_forgotten: on_forget,
        };
        Self {
            entries: RankedMutex::new(LockRank::SessionRegistry, entries),
            change_notifier: changes,
        }
    }

    /// Notes a new session. A half-open one without a connectivity check may have to give way to it; that one has ended then.
    ///
    /// # Errors
    ///
    /// What there is too much of.
    pub fn open_session(
        &self,
        now: Instant,
        id: SessionId,
        shard: ShardIndex,
        requester: SessionRequester,
    ) -> Result<Option<EvictedSession>, ReachedLimit> {
        let mut guard = self.lock_entries();
        let entries = &mut *guard;
        let to_evict = entries.half_open.session_to_evict(requester, entries.live_count)?;
        let evicted = to_evict.and_then(|(ticket, full)| {
            let waiting = entries.half_open.remove(ticket)?;
            let (id, shard) = (waiting.id, waiting.shard);
            entries.end_session(now, id, CloseReason::Evicted);
            Some(EvictedSession {
                id,
                shard,
                reached_limit: full,
            })
        });
        entries.forget_expired_and_excess(now);
        entries.live_count += 1;
        let ticket = entries.half_open.insert(id, shard, requester);
        let entry = SessionEntry {
            shard,
            state: SessionState::Connecting,
            half_open_id: Some(ticket),
        };
        entries.by_id.insert(id, entry);
        drop(guard);
        self.notify_session_change(id);
        if let Some(evicted) = evicted {
            self.notify_session_change(evicted.id);
        }
        Ok(evicted)
    }

    /// Notes that a connectivity check of a session's peer was authentic: it no longer gives way to another session.
    pub(crate) fn on_connectivity_check_passed(&self, id: SessionId) {
        let mut entries = self.lock_entries();
        if let Some(ticket) = entries.by_id.get(&id).and_then(|entry| entry.half_open_id) {
            entries.half_open.mark_connectivity_check_passed(ticket);
        }
    }

    /// Notes that a session is connected.
    pub(crate) fn on_connected(&self, id: SessionId) {
        let mut guard = self.lock_entries();
        let entries = &mut *guard;
        let entry = entries.by_id.get_mut(&id);
        let Some(entry) = entry.filter(|entry| entry.state == SessionState::Connecting) else {
            return;
        };
        entry.state = SessionState::Connected;
        if let Some(ticket) = entry.half_open_id.take() {
            entries.half_open.remove(ticket);
        }
        drop(guard);
        self.notify_session_change(id);
    }

    /// Notes the end of a session.
    pub fn on_session_ended(&self, now: Instant, id: SessionId, reason: CloseReason) {
        self.lock_entries().end_session(now, id, reason);
        self.notify_session_change(id);
    }

    /// Forgets the sessions that ended more than a minute ago. To be called every few seconds: nothing else does while no
    /// session opens or ends.
    pub fn forget_expired_ended_sessions(&self, now: Instant) {
        self.lock_entries().forget_expired_and_excess(now);
    }

    /// State of a session and the shard that it lives on.
    pub fn session_state_and_shard(&self, id: SessionId) -> (SessionState, Option<ShardIndex>) {
        let entries = self.lock_entries();
        entries
            .by_id
            .get(&id)
            .map_or((SessionState::Unknown, None), |e| (e.state, Some(e.shard)))
    }

    /// Notes what a viewer is sent.
    pub(crate) fn on_viewer_quality(&self, id: SessionId, quality: ViewerQuality) {
        let mut entries = self.lock_entries();
        let is_live = |entry: &SessionEntry| matches!(entry.state, SessionState::Connecting | SessionState::Connected);
        if !entries.by_id.get(&id).is_some_and(is_live) {
            return;
        }
        let before = entries.viewer_quality.insert(id, quality.clone());
        drop(entries);
        if before.is_none_or(|before| quality.has_selection_or_limitation_changed_since(&before)) {
            self.notify_session_change(id);
        }
    }

    /// What a viewer is sent; `None` for publishers, and before anything is.
    pub fn viewer_quality(&self, id: SessionId) -> Option<ViewerQuality> {
        self.lock_entries().viewer_quality.get(&id).cloned()
    }

    /// The measured delays of all viewers.
    pub fn all_viewer_delays(&self) -> Vec<(SessionId, ViewerDelays)> {
        let entries = self.lock_entries();
        let delays = entries.viewer_quality.iter();
        delays.map(|(id, quality)| (*id, quality.delays)).collect()
    }

    /// Viewers whose path is too small for more than they are sent, by what is sent of the video.
    pub fn bandwidth_limited_viewer_counts_by_frames(&self) -> [(FrameSelection, usize); 4] {
        let entries = self.lock_entries();
        let is_limited = |quality: &&ViewerQuality| quality.limitation_reason == QualityLimitationReason::Bandwidth;
        [
            FrameSelection::All,
            FrameSelection::ReferenceFrames,
            FrameSelection::KeyFrames,
            FrameSelection::AudioOnly,
        ]
        .map(|frames| {
            let limited = entries.viewer_quality.values().filter(is_limited);
            (frames, limited.filter(|quality| quality.frames == frames).count())
        })
    }

    /// Sessions that have not ended.
    pub fn open_session_count(&self) -> usize {
        self.lock_entries().live_count
    }

    /// Sessions that have not ended and are not connected.
    pub fn half_open_count(&self) -> usize {
        self.lock_entries().half_open.len()
    }

    fn notify_session_change(&self, id: SessionId) {
        self.change_notifier.notify(&ChangeTopic::Session(id));
    }

    fn lock_entries(&self) -> RankedGuard<'_, SessionEntries> {
        self.entries.lock()
    }
}

impl SessionEntries {
    fn end_session(&mut self, now: Instant, id: SessionId, reason: CloseReason) {
        let Some(entry) = self.by_id.get_mut(&id) else {
            return;
        };
        if let SessionState::Ended(_) | SessionState::Unknown = entry.state {
            return;
        }
        entry.state = SessionState::Ended(reason);
        self.viewer_quality.remove(&id);
        if let Some(ticket) = entry.half_open_id.take() {
            self.half_open.remove(ticket);
        }
        self.live_count -= 1;
        let remembered = if reason == CloseReason::Evicted {
            &mut self.evicted
        } else {
            &mut self.ended
        };
        remembered.sessions.push_back((now, id));
        self.forget_expired_and_excess(now);
    }

    /// Forgets those that ended long ago, and the oldest of too many.
    fn forget_expired_and_excess(&mut self, now: Instant) {
        for remembered in [&mut self.ended, &mut self.evicted] {
            for id in remembered.take_expired_and_excess_sessions(now) {
                self.by_id.remove(&id);
                (self.on_session_forgotten)(id);
            }
            shrink_sparse_queue(&mut remembered.sessions);
        }
        shrink_sparse_map(&mut self.by_id);
    }
}

impl EndedSessions {
    fn new(max_sessions: usize) -> Self {
        Self {
            sessions: VecDeque::new(),
            max_sessions,
        }
    }

    /// Those that are to be forgotten.
    fn take_expired_and_excess_sessions(&mut self, now: Instant) -> impl Iterator<Item = SessionId> + '_ {
        let is_due = |(at, _): &&(Instant, SessionId)| now.saturating_duration_since(*at) >= ENDED_SESSION_RETENTION;
        let due = self.sessions.iter().take_while(is_due).count();
        let due = due.max(self.sessions.len().saturating_sub(self.max_sessions));
        self.sessions.drain(..due).map(|(_, id)| id)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    const ANONYMOUS_REQUESTER: SessionRequester = SessionRequester {
        address: None,
        has_token: false,
    };

    fn test_registry(sessions: usize, half_open: usize) -> SessionRegistry {
        SessionRegistry::new(
            SessionLimits {
                max_sessions: sessions,
                max_half_open: half_open,
                half_open_reserved_for_token_holders: 0,
                max_half_open_per_address: 1,
            },
            Arc::default(),
            Box::new(|_| {}),
        )
    }

    fn session_id(number: u32) -> SessionId {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        SessionId(id)
    }

    #[test]
    fn ended_sessions_are_remembered_for_a_minute_and_free_their_place_at_once() {
        let (registry, t) = (test_registry(1, 10), Instant::now());
        let (a, b, shard) = (session_id(1), session_id(2), ShardIndex(0));
        assert_eq!(registry.open_session(t, a, shard, ANONYMOUS_REQUESTER), Ok(None));
        registry.on_connected(a);
        assert_eq!(
            registry.open_session(t, b, shard, ANONYMOUS_REQUESTER),
            Err(ReachedLimit::Sessions)
        );
        registry.on_session_ended(t, a, CloseReason::PeerSilent);
        registry.on_session_ended(t, a, CloseReason::Deleted);
        assert_eq!(
            registry.session_state_and_shard(a).0,
            SessionState::Ended(CloseReason::PeerSilent)
        );
        assert_eq!(
            registry.open_session(t + ENDED_SESSION_RETENTION, b, shard, ANONYMOUS_REQUESTER),
            Ok(None)
        );
        assert_eq!(registry.session_state_and_shard(a).0, SessionState::Unknown);
        assert_eq!((registry.open_session_count(), registry.half_open_count()), (1, 1));
    }

    #[test]
    fn a_half_open_session_is_evicted_at_the_limit() {
        let (registry, t, shard) = (test_registry(10, 1), Instant::now(), ShardIndex(3));
        assert_eq!(
            registry.open_session(t, session_id(1), shard, ANONYMOUS_REQUESTER),
            Ok(None)
        );
        let evicted = EvictedSession {
            id: session_id(1),
            shard,
            reached_limit: ReachedLimit::HalfOpen,
        };
        assert_eq!(
            registry.open_session(t, session_id(2), ShardIndex(0), ANONYMOUS_REQUESTER),
            Ok(Some(evicted))
        );
        assert_eq!(
            registry.session_state_and_shard(session_id(1)).0,
            SessionState::Ended(CloseReason::Evicted)
        );
        // Its shard did not know yet.
        registry.on_connectivity_check_passed(session_id(1));
        registry.on_connected(session_id(1));
        registry.on_session_ended(t, session_id(1), CloseReason::Evicted);
        assert_eq!((registry.open_session_count(), registry.half_open_count()), (1, 1));
        registry.on_connectivity_check_passed(session_id(2));
        assert_eq!(
            registry.open_session(t, session_id(3), shard, ANONYMOUS_REQUESTER),
            Err(ReachedLimit::HalfOpen)
        );
        registry.on_connected(session_id(2));
        assert_eq!(
            registry.open_session(t, session_id(3), shard, ANONYMOUS_REQUESTER),
            Ok(None)
        );
        assert_eq!((registry.open_session_count(), registry.half_open_count()), (2, 1));
    }

    #[test]
    fn a_flood_of_sessions_leaves_no_more_behind_than_may_be_remembered() {
        let (registry, t, shard) = (test_registry(10, 1), Instant::now(), ShardIndex(0));
        for number in 0..50_000 {
            assert!(
                registry
                    .open_session(t, session_id(number), shard, ANONYMOUS_REQUESTER)
                    .is_ok()
            );
        }
        assert!(registry.lock_entries().by_id.len() <= MAX_REMEMBERED_EVICTED_SESSIONS + 1);
        assert_eq!(
            registry.session_state_and_shard(session_id(49_998)).0,
            SessionState::Ended(CloseReason::Evicted)
        );
        assert_eq!(registry.session_state_and_shard(session_id(0)).0, SessionState::Unknown);
        assert_eq!(registry.open_session_count(), 1);
    }

    #[test]
    fn ended_sessions_are_forgotten_although_no_other_session_comes_and_their_memory_is_given_back() {
        let (registry, t, shard) = (test_registry(20_000, 20_000), Instant::now(), ShardIndex(0));
        let ids = || (0..10_000).map(session_id);
        for id in ids() {
            assert!(registry.open_session(t, id, shard, ANONYMOUS_REQUESTER).is_ok());
        }
        ids().for_each(|id| registry.on_session_ended(t, id, CloseReason::NoConnectivityChecks));
        registry.forget_expired_ended_sessions(t + ENDED_SESSION_RETENTION / 2);
        assert_eq!(registry.lock_entries().by_id.len(), 10_000);
        registry.forget_expired_ended_sessions(t + ENDED_SESSION_RETENTION);
        let entries = registry.lock_entries();
        assert_eq!((entries.by_id.len(), entries.ended.sessions.len()), (0, 0));
        assert!(entries.by_id.capacity() < 200, "{}", entries.by_id.capacity());
        assert!(entries.ended.sessions.capacity() < 200);
    }

    #[test]
    fn each_session_is_reported_once_when_it_is_forgotten() {
        let (sender, forgotten) = std::sync::mpsc::channel();
        let limits = SessionLimits {
            max_sessions: 10,
            max_half_open: 10,
            half_open_reserved_for_token_holders: 0,
            max_half_open_per_address: 1,
        };
        let on_forget = move |id| sender.send(id).expect("the receiver is alive");
        let (registry, t) = (
            SessionRegistry::new(limits, Arc::default(), Box::new(on_forget)),
            Instant::now(),
        );
        let open = |n: u8, at| {
            registry
                .open_session(at, SessionId([n; 16]), ShardIndex(0), ANONYMOUS_REQUESTER)
                .expect("room")
        };
        open(1, t);
        open(2, t);
        registry.on_session_ended(t, SessionId([1; 16]), CloseReason::Deleted);
        registry.on_session_ended(t + ENDED_SESSION_RETENTION, SessionId([2; 16]), CloseReason::Deleted);
        assert_eq!(forgotten.try_iter().collect::<Vec<_>>(), [SessionId([1; 16])]);
        open(3, t + ENDED_SESSION_RETENTION * 2);
        open(4, t + ENDED_SESSION_RETENTION * 3);
        assert_eq!(forgotten.try_iter().collect::<Vec<_>>(), [SessionId([2; 16])]);
    }
}
