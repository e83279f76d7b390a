//! Server-sent events of a viewer's session: `/session/{id}/events`, the extension
//! `urn:ietf:params:whep:ext:core:server-sent-events` (draft-ietf-wish-webrtc-http-egress-events §3).
//!
//! A POST with the names of events opens an event stream with its own URL. The URL is a capability, because an
//! `EventSource` cannot send an `Authorization` header. A change of the stream or of the session wakes the response; only
//! the number of viewers, which can change many times per second, is read at an interval.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore as _;
use serde_json::{Value, json};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::problem::Problem;
use super::response::no_store;
use super::session_url::{SUB_EVENTS, session_under};
use super::sse::{EventBody, EventSource};
use super::{body, cors, layer, session_url};
use crate::control::Control;
use crate::control::record::SessionRecord;
use crate::control::sessions::{EventReader, SessionEvent};
use crate::shard::{Layer, SessionId, SessionState};
use millstream_core::hub::changes::{Listener, Topic};

/// Interval at which the number of viewers is read.
const VIEWER_COUNT_INTERVAL: Duration = Duration::from_secs(2);

const ALLOWED_METHODS: &str = "OPTIONS, POST";
const ALLOWED_METHODS_OF_STREAM: &str = "OPTIONS, GET, DELETE";
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Handles `/session/{id}/events`.
pub async fn events(State(control): State<Arc<Control>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    match parts.method {
        Method::OPTIONS => Ok(options(ALLOWED_METHODS)),
        Method::POST => {
            let (session, _) = session_under(&control, &parts.uri, SUB_EVENTS)?;
            let bytes = body::read(&parts.headers, body, layer::LIMIT).await?;
            let events = parse_events(&bytes)?;
            let id = random_id();
            if !control.sessions.open_event_stream(session, id.clone(), events) {
                let detail = "this session has the maximum number of event streams";
                return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", detail).retry_after(5));
            }
            let location = format!("{}{SUB_EVENTS}/{id}", session_url::path_of(session));
            Ok(no_store(
                (StatusCode::CREATED, [(header::LOCATION, location)]).into_response(),
            ))
        }
        _ => Err(Problem::method_not_allowed(ALLOWED_METHODS)),
    }
}

/// Returns a random id for an event stream, which is a capability.
fn random_id() -> String {
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    URL_SAFE_NO_PAD.encode(id)
}

fn options(allow: &'static str) -> Response {
    let mut response = [(header::ALLOW, allow)].into_response();
    cors::answer_preflight(response.headers_mut());
    response
}

/// Parses the body, a JSON array of event names. An empty body means all events.
fn parse_events(bytes: &[u8]) -> Result<Vec<SessionEvent>, Problem> {
    let refuse = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "bad_events", detail);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(SessionEvent::ALL.to_vec());
    }
    let requested: Vec<String> = serde_json::from_slice(bytes)
        .map_err(|_| refuse(format!("expected a JSON array with some of: {}", SessionEvent::names())))?;
    let event = |name: &String| {
        let found = SessionEvent::ALL.into_iter().find(|event| event.name() == name);
        found.ok_or_else(|| {
            refuse(format!(
                "unknown event `{}`; valid events: {}",
                shortened(name),
                SessionEvent::names()
            ))
        })
    };
    requested.iter().map(event).collect()
}

fn shortened(name: &str) -> String {
    name.chars().take(32).filter(|c| !c.is_control()).collect()
}

/// Handles `/session/{id}/events/{stream}`.
pub async fn stream(State(control): State<Arc<Control>>, request: Request) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    let Some((before, id)) = parts.uri.path().rsplit_once('/') else {
        return Err(Problem::not_found());
    };
    let Ok(uri) = before.parse() else {
        return Err(Problem::not_found());
    };
    match parts.method {
        Method::OPTIONS => Ok(options(ALLOWED_METHODS_OF_STREAM)),
        Method::GET => {
            let (session, record) = session_under(&control, &uri, SUB_EVENTS)?;
            let reader = control
                .sessions
                .read_event_stream(session, id)
                .ok_or_else(Problem::unknown_session)?;
            let source = EventStream::new(control.clone(), session, record, reader);
            let headers = [
                (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
                (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
            ];
            Ok(no_store((headers, Body::new(EventBody::new(source))).into_response()))
        }
        Method::DELETE => {
            let (session, _) = session_under(&control, &uri, SUB_EVENTS)?;
            if !control.sessions.close_event_stream(session, id) {
                return Err(Problem::unknown_session());
            }
            Ok(no_store(StatusCode::OK.into_response()))
        }
        _ => Err(Problem::method_not_allowed(ALLOWED_METHODS_OF_STREAM)),
    }
}

/// The events of a stream that ends when the session ends, the event stream is closed, or another request reads it.
struct EventStream {
    control: Arc<Control>,
    session: SessionId,
    record: SessionRecord,
    reader: EventReader,
    changes: Listener,
    /// When the number of viewers is read; `None` where nobody asked for it.
    viewer_counts: Option<Interval>,
    viewer_count_due: bool,
    is_first: bool,
    /// Last reported state; `None` if nothing was reported yet.
    active: Option<bool>,
    layers: Option<Vec<Layer>>,
    viewers: Option<usize>,
    /// A `reconnect` event was sent.
    reconnect: bool,
}

impl EventStream {
    fn new(control: Arc<Control>, session: SessionId, record: SessionRecord, reader: EventReader) -> Self {
        let topics = [Topic::Stream(record.stream.clone()), Topic::Session(session)];
        let changes = control.media.hub().changes().listen(topics);
        let viewer_counts = reader.events.contains(&SessionEvent::ViewerCount).then(|| {
            let mut ticks = interval(VIEWER_COUNT_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.reset();
            ticks
        });
        Self {
            control,
            session,
            record,
            reader,
            changes,
            viewer_counts,
            viewer_count_due: true,
            is_first: true,
            active: None,
            layers: None,
            viewers: None,
            reconnect: false,
        }
    }

    fn state(&self) -> SessionState {
        self.control.media.state(self.session)
    }

    fn push_event(&self, text: &mut String, event: SessionEvent, data: &Value) {
        if self.reader.events.contains(&event) {
            text.push_str(&format!("event: {}\ndata: {data}\n\n", event.name()));
        }
    }
}

impl EventSource for EventStream {
    fn new_events(&mut self) -> Option<String> {
        let is_open = self.control.sessions.is_read_by(self.session, &self.reader);
        if !is_open || matches!(self.state(), SessionState::Ended(_) | SessionState::Unknown) {
            return None;
        }
        let mut text = String::new();
        let stream = self.control.media.hub().find(&self.record.stream);
        let (is_active, layers, viewers) = stream.map_or((false, Vec::new(), 0), |stream| {
            stream.with(|state| (state.source().is_some(), state.layers().to_vec(), state.viewers()))
        });
        if self.active.replace(is_active) != Some(is_active) {
            match is_active {
                true => self.push_event(&mut text, SessionEvent::Active, &json!({})),
                // `inactive` is never the first event.
                false if !self.is_first => self.push_event(&mut text, SessionEvent::Inactive, &json!({})),
                false => {}
            }
        }
        let reported = |layer: &Layer| (layer.rid.clone(), layer.resolution, layer.active, layer.bitrate > 0);
        let is_same = |previous: &Vec<Layer>| previous.iter().map(reported).eq(layers.iter().map(reported));
        if !self.layers.as_ref().is_some_and(is_same) {
            let is_first = self.layers.is_none();
            let described = layer::describe(&self.record, &layers);
            if !is_first || !layers.is_empty() {
                self.push_event(&mut text, SessionEvent::Layers, &described);
            }
            self.layers = Some(layers);
        }
        if std::mem::take(&mut self.viewer_count_due) && self.viewers.replace(viewers) != Some(viewers) {
            self.push_event(&mut text, SessionEvent::ViewerCount, &json!({ "viewercount": viewers }));
        }
        if self.control.is_draining() && !std::mem::replace(&mut self.reconnect, true) {
            self.push_event(&mut text, SessionEvent::Reconnect, &json!({}));
        }
        self.is_first = false;
        Some(text)
    }

    fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let ticks = self.viewer_counts.as_mut();
        let is_due = ticks.is_some_and(|ticks| ticks.poll_tick(context).is_ready());
        self.viewer_count_due |= is_due;
        let changed = self.changes.poll_changed(context);
        if is_due { Poll::Ready(()) } else { changed }
    }
}
