//! Events of the gateway as server-sent events: changes of streams and sources, sessions that start and end. A new
//! client first receives the most recent events.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use millstream_core::hub::changes::{ChangeListener, ChangeNotifier, ChangeTopic};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::streams::Stream;
use super::warnings::LoggedWarnings;
use super::{sessions, streams};
use crate::control::ControlPlane;
use crate::http::sse::{SseBody, SseEventProducer};

/// Time between two comparisons of all streams and sessions with their last state: many changes at once cost one.
const MIN_STATE_COMPARE_INTERVAL: Duration = Duration::from_millis(100);
/// Time after which they are compared without a change.
const MAX_STATE_COMPARE_INTERVAL: Duration = Duration::from_secs(2);
/// Number of recent events that are kept.
const MAX_KEPT_EVENTS: usize = 200;
/// Name of the events about delay alarms.
const VIEWER_DELAY_EVENT: &str = "viewer_delay";
/// So many of the kept events are about delay alarms: any viewer can cause them, and they must not push out the others.
const MAX_KEPT_VIEWER_DELAY_EVENTS: usize = 50;
/// Further changes of delay alarms in one comparison have no events: the sessions have them.
const MAX_VIEWER_DELAY_EVENTS_PER_COMPARISON: usize = 20;

/// The most recent events with their ids.
#[derive(Default)]
pub struct EventLog {
    recent_events: Mutex<KeptEvents>,
    /// Notified of each new event.
    changes: Arc<ChangeNotifier>,
    /// Is told of each event, also of those that readers are too slow for.
    observer: OnceLock<EventObserver>,
}

/// The text of events by their ids, which ascend.
#[derive(Default)]
struct KeptEvents {
    last_id: u64,
    events: VecDeque<(u64, String)>,
    viewer_delay_events: VecDeque<(u64, String)>,
}

impl KeptEvents {
    fn add(&mut self, name: &str, data: &Value) {
        self.last_id += 1;
        let (kept, max_count) = match name {
            VIEWER_DELAY_EVENT => (&mut self.viewer_delay_events, MAX_KEPT_VIEWER_DELAY_EVENTS),
            _ => (&mut self.events, MAX_KEPT_EVENTS),
        };
        let id = self.last_id;
        kept.push_back((id, format!("id: {id}\nevent: {name}\ndata: {data}\n\n")));
        if kept.len() > max_count {
            kept.pop_front();
        }
    }
}

/// Is called with the name of an event and its data. It must not wait.
pub type EventObserver = Box<dyn Fn(&str, &Value) + Send + Sync>;

impl EventLog {
    /// Sets who is told of each event. Only the first call has an effect.
    pub fn set_event_observer(&self, observer: EventObserver) {
        let _ = self.observer.set(observer);
    }

    /// Adds an event with this data, a JSON object, and the time.
    fn add(&self, name: &str, mut data: Value) {
        if let Some(members) = data.as_object_mut() {
            members.insert("time".to_owned(), current_unix_time_secs().into());
        }
        if let Some(observer) = self.observer.get() {
            observer(name, &data);
        }
        let mut kept = self.recent_events.lock().unwrap_or_else(PoisonError::into_inner);
        kept.add(name, &data);
        drop(kept);
        self.changes.notify(&ChangeTopic::Everything);
    }

    /// Returns the events after the one with this id, and the id of the last one.
    fn sse_text_of_events_after(&self, number: u64) -> (u64, String) {
        let kept = self.recent_events.lock().unwrap_or_else(PoisonError::into_inner);
        // A higher one is of an earlier run of the gateway.
        let number = if number > kept.last_id { 0 } else { number };
        let all = kept.events.iter().chain(&kept.viewer_delay_events);
        let mut new: Vec<_> = all.filter(|(id, _)| *id > number).collect();
        new.sort_unstable_by_key(|(id, _)| *id);
        (kept.last_id, new.into_iter().map(|(_, text)| text.as_str()).collect())
    }
}

/// Seconds since 1970, with milliseconds.
fn current_unix_time_secs() -> f64 {
    #[expect(clippy::disallowed_methods, reason = "the time of the event")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_millis() as f64 / 1_000.0
}

/// Records events by comparing all streams and sessions with their last state, and logs new warnings of streams.
pub struct EventRecorder {
    control: Arc<ControlPlane>,
    log: Arc<EventLog>,
    previous_streams: BTreeMap<String, Value>,
    seen_switches: BTreeMap<String, u64>,
    previous_sessions: BTreeMap<String, (&'static str, Option<&'static str>)>,
    logged_warnings: LoggedWarnings,
}

impl EventRecorder {
    pub fn new(control: Arc<ControlPlane>, log: Arc<EventLog>) -> Self {
        Self {
            control,
            log,
            previous_streams: BTreeMap::new(),
            seen_switches: BTreeMap::new(),
            previous_sessions: BTreeMap::new(),
            logged_warnings: LoggedWarnings::default(),
        }
    }

    /// Records what has changed since the last call.
    pub fn record_changes(&mut self) {
        self.record_stream_events();
        self.record_session_events();
    }

    fn record_stream_events(&mut self) {
        let Self { control, log, .. } = self;
        let mut now = BTreeMap::new();
        let all = streams::list_streams(control.media_plane.hub(), &control.source_registry, |name| {
            control.hls_service.viewer_count(name)
        });
        let live = all.iter().filter(|stream| stream.live);
        self.logged_warnings
            .log_new_warnings(live.map(|stream| (stream.name.as_str(), stream.warnings.as_slice())));
        for stream in &all {
            record_source_switch_events(log, stream, &mut self.seen_switches);
        }
        for stream in all {
            let source = stream.source.as_ref();
            let shown = json!({
                "stream": stream.name,
                "live": stream.live,
                "stalled": stream.stalled,
                "publisher": stream.publisher,
                "selected_source": selected_source_name(&stream),
                "source": source.map(|source| source.state),
                "error": source.and_then(|source| source.last_error.clone()),
            });
            if self.previous_streams.get(&stream.name) != Some(&shown) {
                log.add("stream", shown.clone());
            }
            now.insert(stream.name, shown);
        }
        for gone in self.previous_streams.keys().filter(|name| !now.contains_key(*name)) {
            log.add("stream", json!({ "stream": gone, "live": false, "gone": true }));
        }
        self.previous_streams = now;
    }

    fn record_session_events(&mut self) {
        let (mut now, mut alarm_changes) = (BTreeMap::new(), 0);
        for (_, session) in sessions::describe_all_sessions(&self.control) {
            let alarm = session.delay.as_ref().and_then(|delay| delay.alarm);
            let previous = self.previous_sessions.get(&session.id);
            if previous.is_none_or(|(state, _)| *state != session.state)
                && let Ok(shown) = serde_json::to_value(&session)
            {
                self.log.add("session", shown);
            }
            // The end of a session ends its alarm: that has an event already.
            if session.state == "connected" && previous.and_then(|(_, alarm)| *alarm) != alarm {
                alarm_changes += 1;
                if alarm_changes <= MAX_VIEWER_DELAY_EVENTS_PER_COMPARISON {
                    let (id, stream) = (&session.id, &session.stream);
                    let shown = json!({ "id": id, "stream": stream, "alarm": alarm, "delay": session.delay });
                    self.log.add(VIEWER_DELAY_EVENT, shown);
                }
            }
            now.insert(session.id, (session.state, alarm));
        }
        self.previous_sessions = now;
    }
}

/// Records events until the gateway ends, which then records the last ones.
pub async fn record_events_on_change(recorder: Arc<Mutex<EventRecorder>>, changes: Arc<ChangeNotifier>) {
    let mut changes = changes.listen([ChangeTopic::Everything]);
    loop {
        recorder.lock().unwrap_or_else(PoisonError::into_inner).record_changes();
        sleep(MIN_STATE_COMPARE_INTERVAL).await;
        // Warnings also come with time.
        let _ = timeout(MAX_STATE_COMPARE_INTERVAL, changes.changed()).await;
    }
}

/// Adds the switches between the sources of a stream since the last call.
fn record_source_switch_events(log: &EventLog, stream: &Stream, seen: &mut BTreeMap<String, u64>) {
    let Some(newest) = stream.source_switches.last().map(|switch| switch.number) else {
        seen.remove(&stream.name);
        return;
    };
    let before = seen.insert(stream.name.clone(), newest).unwrap_or(0);
    // A lower number is one of new sources.
    let before = if before > newest { 0 } else { before };
    for switch in stream.source_switches.iter().filter(|switch| switch.number > before) {
        let shown = json!({
            "stream": stream.name,
            "from": switch.from,
            "to": switch.to,
            "reason": switch.reason,
        });
        log.add("source_switch", shown);
    }
}

fn selected_source_name(stream: &Stream) -> Option<&str> {
    let selected = stream.sources.iter().find(|source| source.selected);
    selected.map(|source| source.name.as_str())
}

/// The events of the log, while their reader has access to the API.
pub struct EventLogReader {
    log: Arc<EventLog>,
    is_access_granted: AccessCheck,
    last_event_id: u64,
    changes: ChangeListener,
}

/// Returns whether the reader of events still has access.
pub type AccessCheck = Box<dyn Fn() -> bool + Send>;

impl EventLogReader {
    /// Returns a body with the events after the one with this id.
    pub fn response_body(log: Arc<EventLog>, last: u64, is_granted: AccessCheck) -> Body {
        let changes = log.changes.listen([ChangeTopic::Everything]);
        Body::new(SseBody::new(Self {
            log,
            is_access_granted: is_granted,
            last_event_id: last,
            changes,
        }))
    }
}

impl SseEventProducer for EventLogReader {
    fn drain_new_events_as_sse_text(&mut self) -> Option<String> {
        if !(self.is_access_granted)() {
            return None;
        }
        let (last, text) = self.log.sse_text_of_events_after(self.last_event_id);
        self.last_event_id = last;
        Some(text)
    }

    fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.changes.poll_changed(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_say_when_they_happened() {
        let log = EventLog::default();
        let before = current_unix_time_secs();
        log.add("stream", json!({ "stream": "live" }));
        let (last, text) = log.sse_text_of_events_after(0);
        let data = text.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!((last, &data["stream"]), (1, &json!("live")));
        let time = data["time"].as_f64().expect("time");
        assert!((before..=current_unix_time_secs()).contains(&time), "{time}");
    }

    #[test]
    fn delay_alarms_do_not_push_out_other_events() {
        let log = EventLog::default();
        for n in 0..10 {
            log.add("session", json!({ "n": n }));
        }
        for n in 0..1_000 {
            log.add(VIEWER_DELAY_EVENT, json!({ "n": n }));
        }
        log.add("stream", json!({ "stream": "live" }));
        let (last, text) = log.sse_text_of_events_after(0);
        let ids: Vec<u64> = text
            .lines()
            .filter_map(|line| line.strip_prefix("id: ")?.parse().ok())
            .collect();
        let expected: Vec<u64> = (1..=10).chain(961..=1_010).chain([1_011]).collect();
        assert_eq!((last, ids), (1_011, expected));
        let (_, text) = log.sse_text_of_events_after(1_009);
        assert_eq!(text.matches("id: ").count(), 2, "{text}");
    }
}
