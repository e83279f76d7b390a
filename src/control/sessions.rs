//! The table of all sessions that have a URL: offers and open sessions. An open session is removed in one place,
//! together with everything that belongs to it, when the media plane forgets it: one minute after its end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::session_record::{IceSession, SessionRecord};
use super::token_expiries::TokenExpiries;
use super::viewer_delays::{DelayAlarm, DelayAlarmChange, DelayWatch, KnownDelays, PlayerDelay};
use crate::access::AccessControl;
use crate::shard::{MediaPlane, SessionId, SessionPlacement, SessionState};
use millstream_core::hub::changes::ChangeTopic;
use millstream_core::hub::shrink_sparse::shrink_sparse_map;
use millstream_core::hub::viewer_quality::ViewerDelays;
use millstream_core::sdp::LocalDescription;
use millstream_core::session::CloseReason;

/// How long an offer of the gateway is valid: the value in the example of the WHEP draft (§4.3.2).
pub const GATEWAY_OFFER_LIFETIME: Duration = Duration::from_secs(30);

/// Maximum number of unanswered offers; more are rejected.
const MAX_UNANSWERED_OFFERS: usize = 2_048;

/// Interval at which expired offers and sessions that ended a minute ago are forgotten. They would otherwise be kept until
/// the next client comes.
const EXPIRED_SESSION_REMOVAL_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of event streams of one session; more are rejected.
const MAX_EVENT_STREAMS_PER_SESSION: usize = 4;

/// An event type of a session's event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEventType {
    Active,
    Inactive,
    Layers,
    Reconnect,
    ViewerCount,
    Quality,
}

impl SessionEventType {
    /// All events.
    pub const ALL_EVENT_TYPES: [Self; 6] = [
        Self::Active,
        Self::Inactive,
        Self::Layers,
        Self::Reconnect,
        Self::ViewerCount,
        Self::Quality,
    ];

    /// Returns the name that clients know (draft-ietf-wish-webrtc-http-egress-events §3).
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Layers => "layers",
            Self::Reconnect => "reconnect",
            Self::ViewerCount => "viewercount",
            Self::Quality => "quality",
        }
    }

    /// Returns the names of all events, separated by commas.
    pub fn comma_separated_event_names() -> String {
        Self::ALL_EVENT_TYPES.map(Self::name).join(",")
    }
}

/// An offer of the gateway that the viewer has not answered yet (WHEP §4.3.2).
#[derive(Clone, Debug)]
pub struct UnansweredGatewayOffer {
    pub placement: SessionPlacement,
    pub record: SessionRecord,
    pub description: LocalDescription,
    created: Instant,
}

impl UnansweredGatewayOffer {
    pub fn new(placement: SessionPlacement, record: SessionRecord, description: LocalDescription) -> Self {
        Self {
            placement,
            record,
            description,
            created: Instant::now(),
        }
    }

    fn is_offer_unexpired(&self) -> bool {
        self.created.elapsed() < GATEWAY_OFFER_LIFETIME
    }
}

/// A session of the media plane.
#[derive(Debug)]
struct OpenSession {
    ice: IceSession,
    record: SessionRecord,
    event_streams: Vec<OpenEventStream>,
    delay_watch: DelayWatch,
    /// Its URL was deleted: no request may use it, although its shard has not closed it yet.
    is_deleted: bool,
}

#[derive(Debug)]
struct OpenEventStream {
    id: String,
    events: Vec<SessionEventType>,
    /// Number of requests that have read it. Only the last one continues.
    latest_reader_number: u64,
}

/// A request that reads an event stream.
#[derive(Clone, Debug)]
pub struct EventStreamReader {
    event_stream_id: String,
    reader_number: u64,
    pub events: Vec<SessionEventType>,
}

#[derive(Default)]
struct SessionTableState {
    /// The access rules in effect; `None` until the gateway has started.
    access_control: Option<Arc<AccessControl>>,
    offered_sessions: HashMap<SessionId, UnansweredGatewayOffer>,
    open_sessions: HashMap<SessionId, OpenSession>,
}

/// The sessions of a gateway, by id.
pub struct SessionTable {
    media_plane: MediaPlane,
    state: Mutex<SessionTableState>,
    token_expiry_sender: mpsc::UnboundedSender<(SystemTime, SessionId)>,
    pending_token_expiries: AtomicUsize,
}

/// Receives the expiry times of tokens, for [`SessionTable::run_session_removal_and_token_expiry`].
pub type TokenExpiryReceiver = mpsc::UnboundedReceiver<(SystemTime, SessionId)>;

impl SessionTable {
    pub fn new(media: MediaPlane) -> (Self, TokenExpiryReceiver) {
        let (expiries, expiring) = mpsc::unbounded_channel();
        let table = Self {
            media_plane: media,
            state: Mutex::default(),
            token_expiry_sender: expiries,
            pending_token_expiries: AtomicUsize::new(0),
        };
        (table, expiring)
    }

    /// Removes the sessions that the media plane has forgotten and ends those whose token expires. Runs until the
    /// gateway stops.
    pub async fn run_session_removal_and_token_expiry(
        &self,
        mut forgotten: mpsc::UnboundedReceiver<SessionId>,
        mut expiring: TokenExpiryReceiver,
    ) {
        let mut expiries = TokenExpiries::default();
        let mut expiry = interval(EXPIRED_SESSION_REMOVAL_INTERVAL);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = expiries.next_expiry();
            tokio::select! {
                session = forgotten.recv() => match session {
                    Some(session) => self.remove_open_session(session),
                    None => return,
                },
                Some((at, session)) = expiring.recv() => expiries.add_token_expiry(instant_from_wall_clock(at), session),
                _ = expiry.tick() => {
                    self.media_plane.forget_expired_sessions(Instant::now().into_std());
                    self.remove_expired_offers();
                    self.remove_expiries_of_forgotten_sessions(&mut expiries);
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    if let Some(session) = expiries.pop() {
                        self.media_plane.end_session(session, CloseReason::TokenExpired);
                    }
                }
            }
        }
    }

    /// Adds a session that the media plane has opened.
    pub fn insert_session_and_end_if_revoked(&self, id: SessionId, ice: IceSession, record: SessionRecord) {
        let expires_at = record.grant.expires_at;
        let session = OpenSession {
            ice,
            record,
            event_streams: Vec::new(),
            delay_watch: DelayWatch::default(),
            is_deleted: false,
        };
        let mut entries = self.lock_state();
        let is_granted = entries
            .access_control
            .as_ref()
            .is_none_or(|access| access_control_still_grants(access, &session.record));
        entries.open_sessions.insert(id, session);
        drop(entries);
        // Once it is known: expiry times of unknown sessions are dropped.
        if let Some(expires_at) = expires_at {
            // The receiver is gone only when the gateway is stopping.
            let _ = self.token_expiry_sender.send((expires_at, id));
        }
        if !is_granted {
            self.media_plane.end_session(id, CloseReason::TokenRevoked);
        }
        self.media_plane
            .hub()
            .change_notifier()
            .notify(&ChangeTopic::Session(id));
        // The media plane may have forgotten the session before it was inserted.
        if self.media_plane.session_state(id) == SessionState::Unknown {
            self.remove_open_session(id);
        }
    }

    /// Removes an open session. This is the only place that does.
    fn remove_open_session(&self, id: SessionId) {
        let mut entries = self.lock_state();
        entries.open_sessions.remove(&id);
        shrink_sparse_map(&mut entries.open_sessions);
        drop(entries);
        self.media_plane
            .hub()
            .change_notifier()
            .notify(&ChangeTopic::Session(id));
    }

    /// Marks an open session as deleted by its owner: from now on it is not running.
    pub fn mark_deleted(&self, id: SessionId) {
        if let Some(session) = self.lock_state().open_sessions.get_mut(&id) {
            session.is_deleted = true;
        }
    }

    /// Calls `change` with the ICE session of a running session, one request at a time. Returns `None` if the session
    /// is not running.
    pub fn with_ice_session_mut<T>(&self, id: SessionId, change: impl FnOnce(&mut IceSession) -> T) -> Option<T> {
        self.with_running_session_mut(id, |session| change(&mut session.ice))
    }

    /// Returns the record of a running session.
    pub fn running_session_record(&self, id: SessionId) -> Option<SessionRecord> {
        self.with_running_session_mut(id, |session| session.record.clone())
    }

    /// Returns whether a session is running.
    pub fn is_session_running(&self, id: SessionId) -> bool {
        self.with_running_session_mut(id, |_| ()).is_some()
    }

    /// Returns all sessions that have not been removed.
    pub fn open_and_recently_ended_sessions(&self) -> Vec<(SessionId, SessionRecord)> {
        let entries = self.lock_state();
        let open = entries.open_sessions.iter();
        open.map(|(id, session)| (*id, session.record.clone())).collect()
    }

    /// Applies other access rules, also to sessions whose request was authorized before. Sessions whose grant is not valid
    /// any more end. Returns how many were running.
    pub fn replace_access_control_and_end_revoked(&self, access: Arc<AccessControl>) -> usize {
        let mut entries = self.lock_state();
        entries.access_control = Some(access.clone());
        let revoked = drop_offers_and_find_sessions_without_grant(&mut entries, &access);
        drop(entries);
        self.end_revoked_sessions(&revoked)
    }

    /// Ends sessions whose grant is not valid any more, because the token was revoked while the access rules stayed the
    /// same. The rules are those of this table: a caller may have read them before a reload. Returns how many were running.
    pub fn end_sessions_of_revoked_tokens(&self) -> usize {
        let mut entries = self.lock_state();
        let Some(access) = entries.access_control.clone() else {
            return 0;
        };
        let revoked = drop_offers_and_find_sessions_without_grant(&mut entries, &access);
        drop(entries);
        self.end_revoked_sessions(&revoked)
    }

    fn end_revoked_sessions(&self, revoked: &[SessionId]) -> usize {
        let ended = revoked.iter().filter(|session| {
            let state = self.media_plane.end_session(**session, CloseReason::TokenRevoked);
            matches!(state, SessionState::Connecting | SessionState::Connected)
        });
        ended.count()
    }

    fn remove_expiries_of_forgotten_sessions(&self, expiries: &mut TokenExpiries) {
        let entries = self.lock_state();
        if expiries.has_many_stale_entries(entries.open_sessions.len()) {
            expiries.retain(|session| entries.open_sessions.contains_key(&session));
        }
        self.pending_token_expiries.store(expiries.len(), Ordering::Relaxed);
    }

    /// Returns how many expiry times of tokens were pending at the last check.
    pub fn pending_token_expiry_count(&self) -> usize {
        self.pending_token_expiries.load(Ordering::Relaxed)
    }

    fn remove_expired_offers(&self) {
        let mut entries = self.lock_state();
        entries
            .offered_sessions
            .retain(|_, offered| offered.is_offer_unexpired());
        shrink_sparse_map(&mut entries.offered_sessions);
    }

    /// Adds an offer. Returns `false` if there are too many unanswered offers.
    pub fn add_unanswered_gateway_offer(&self, id: SessionId, offered: UnansweredGatewayOffer) -> bool {
        let mut entries = self.lock_state();
        entries
            .offered_sessions
            .retain(|_, offered| offered.is_offer_unexpired());
        let has_room = entries.offered_sessions.len() < MAX_UNANSWERED_OFFERS;
        if has_room {
            entries.offered_sessions.insert(id, offered);
        }
        has_room
    }

    /// Returns an offer if it is still valid.
    pub fn unexpired_offer(&self, id: SessionId) -> Option<UnansweredGatewayOffer> {
        let found = self.lock_state().offered_sessions.get(&id).cloned();
        found.filter(UnansweredGatewayOffer::is_offer_unexpired)
    }

    /// Removes an offer that was answered or declined. Returns whether it existed and was valid; this is true for only
    /// one of two concurrent callers.
    pub fn remove_unexpired_offer(&self, id: SessionId) -> bool {
        let taken = self.lock_state().offered_sessions.remove(&id);
        taken.is_some_and(|offered| offered.is_offer_unexpired())
    }

    /// Adds an event stream to a running session. Returns `false` if the session has the maximum number of event
    /// streams or is not running.
    pub fn add_event_stream(&self, session: SessionId, id: String, events: Vec<SessionEventType>) -> bool {
        let opened = self.with_running_session_mut(session, |session| {
            let has_room = session.event_streams.len() < MAX_EVENT_STREAMS_PER_SESSION;
            if has_room {
                let readers = 0;
                session.event_streams.push(OpenEventStream {
                    id,
                    events,
                    latest_reader_number: readers,
                });
            }
            has_room
        });
        opened.unwrap_or(false)
    }

    /// Starts to read an event stream; another request that reads it ends. Returns `None` if the stream was closed or
    /// its session has ended.
    pub fn start_reading_event_stream(&self, session: SessionId, id: &str) -> Option<EventStreamReader> {
        let reader = self.with_running_session_mut(session, |session| {
            let stream = session.event_streams.iter_mut().find(|stream| stream.id == id)?;
            stream.latest_reader_number += 1;
            Some(EventStreamReader {
                event_stream_id: stream.id.clone(),
                reader_number: stream.latest_reader_number,
                events: stream.events.clone(),
            })
        })?;
        self.media_plane
            .hub()
            .change_notifier()
            .notify(&ChangeTopic::Session(session));
        reader
    }

    /// Whether an event stream is open and no later request reads it.
    pub fn is_current_event_stream_reader(&self, session: SessionId, reader: &EventStreamReader) -> bool {
        let is_read = self.with_running_session_mut(session, |session| {
            let mut streams = session.event_streams.iter();
            streams.any(|stream| {
                stream.id == reader.event_stream_id && stream.latest_reader_number == reader.reader_number
            })
        });
        is_read.unwrap_or(false)
    }

    /// Closes an event stream. Returns whether it was open.
    pub fn close_event_stream(&self, session: SessionId, id: &str) -> bool {
        let closed = self.with_running_session_mut(session, |session| {
            let before = session.event_streams.len();
            session.event_streams.retain(|stream| stream.id != id);
            session.event_streams.len() < before
        });
        // Its response ends.
        self.media_plane
            .hub()
            .change_notifier()
            .notify(&ChangeTopic::Session(session));
        closed.unwrap_or(false)
    }

    /// Takes what the player of a running session reports. Returns `None` if the session is not running, and `false` if the
    /// last report was just before.
    pub fn record_player_delay(&self, now: std::time::Instant, id: SessionId, report: PlayerDelay) -> Option<bool> {
        self.with_running_session_mut(id, |session| session.delay_watch.record_player_report(now, report))
    }

    /// Returns the known parts of a viewer's delay, of which these were measured, and its alarm.
    pub fn viewer_delays_and_alarm(
        &self,
        now: std::time::Instant,
        id: SessionId,
        measured: ViewerDelays,
    ) -> Option<(KnownDelays, Option<DelayAlarm>)> {
        let entries = self.lock_state();
        let watch = &entries.open_sessions.get(&id)?.delay_watch;
        Some((watch.known_delays(now, measured), watch.alarm()))
    }

    /// Observes the delays of all viewers, and passes each to `record`. Returns the alarms that have begun, changed or ended.
    pub fn observe_viewer_delays(
        &self,
        now: std::time::Instant,
        measured: &[(SessionId, ViewerDelays)],
        threshold: Option<Duration>,
        record: impl Fn(&KnownDelays),
    ) -> Vec<DelayAlarmChange> {
        let mut entries = self.lock_state();
        let mut changes = Vec::new();
        for (id, measured) in measured {
            let Some(session) = entries.open_sessions.get_mut(id) else {
                continue;
            };
            let watch = &mut session.delay_watch;
            let delays = watch.known_delays(now, *measured);
            record(&delays);
            let before = watch.alarm();
            watch.observe(now, &delays, threshold);
            if watch.alarm() != before {
                changes.push(DelayAlarmChange {
                    session: *id,
                    stream: session.record.stream.clone(),
                    alarm: watch.alarm(),
                    delays,
                });
            }
        }
        changes
    }

    /// Returns the number of viewers with each alarm.
    pub fn delay_alarm_counts(&self) -> [(DelayAlarm, usize); DelayAlarm::ALL.len()] {
        let entries = self.lock_state();
        let open = || entries.open_sessions.iter();
        DelayAlarm::ALL.map(|alarm| {
            let alarmed = open().filter(|(_, session)| session.delay_watch.alarm() == Some(alarm));
            let live = alarmed.filter(|(id, _)| self.is_media_session_open(**id));
            (alarm, live.count())
        })
    }

    fn with_running_session_mut<T>(&self, id: SessionId, work: impl FnOnce(&mut OpenSession) -> T) -> Option<T> {
        if !self.is_media_session_open(id) {
            return None;
        }
        let mut entries = self.lock_state();
        let session = entries.open_sessions.get_mut(&id).filter(|session| !session.is_deleted);
        session.map(work)
    }

    fn is_media_session_open(&self, id: SessionId) -> bool {
        matches!(
            self.media_plane.session_state(id),
            SessionState::Connecting | SessionState::Connected
        )
    }

    fn lock_state(&self) -> MutexGuard<'_, SessionTableState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops offers whose grant is not valid, and returns open sessions with such a grant.
fn drop_offers_and_find_sessions_without_grant(
    entries: &mut SessionTableState,
    access: &AccessControl,
) -> Vec<SessionId> {
    entries
        .offered_sessions
        .retain(|_, offered| access_control_still_grants(access, &offered.record));
    let mut sessions = entries.open_sessions.iter().collect::<Vec<_>>();
    sessions.retain(|(_, session)| !access_control_still_grants(access, &session.record));
    sessions.into_iter().map(|(id, _)| *id).collect()
}

fn access_control_still_grants(access: &AccessControl, record: &SessionRecord) -> bool {
    access.is_grant_still_valid(&record.grant, record.action, Some(&record.stream))
}

/// Converts a time of the wall clock to an instant, assuming that the clock is not adjusted until then.
fn instant_from_wall_clock(at: SystemTime) -> Instant {
    #[expect(clippy::disallowed_methods, reason = "tokens expire at a time of the wall clock")]
    let wait = at.duration_since(SystemTime::now()).unwrap_or_default();
    let now = Instant::now();
    now.checked_add(wait.min(MAX_TIME_UNTIL_TOKEN_EXPIRY))
        .unwrap_or(now + MAX_TIME_UNTIL_TOKEN_EXPIRY)
}

/// Upper bound of a wait: longer than any gateway runs, and within the range of every clock.
const MAX_TIME_UNTIL_TOKEN_EXPIRY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
