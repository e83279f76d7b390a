//! Server-sent events of a viewer's session: `/session/{id}/events`, the extension
//! `urn:ietf:params:whep:ext:core:server-sent-events` (draft-ietf-wish-webrtc-http-egress-events §3).
//!
//! A POST with the names of events opens an event stream with its own URL. The URL is a capability, because an
//! `SseEventProducer` cannot send an `Authorization` header. A change of the stream or of the session wakes the response; only
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

use super::api::sessions::Quality;
use super::problem::Problem;
use super::response::add_no_store_header;
use super::session_url::{EVENTS_PATH_SUFFIX, find_viewer_session};
use super::sse::{SseBody, SseEventProducer};
use super::{body, cors, layer_resource, session_url};
use crate::control::ControlPlane;
use crate::control::session_record::SessionRecord;
use crate::control::sessions::{EventStreamReader, SessionEventType};
use crate::shard::{SessionId, SessionState, SimulcastLayer};
use millstream_core::hub::changes::{ChangeListener, ChangeTopic};
use millstream_core::hub::viewer_quality::ViewerQuality;

/// Interval at which the number of viewers is read.
const VIEWER_COUNT_POLL_INTERVAL: Duration = Duration::from_secs(2);

const ALLOW_HEADER_METHODS: &str = "OPTIONS, POST";
const EVENT_STREAM_ALLOW_HEADER_METHODS: &str = "OPTIONS, GET, DELETE";
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Handles `/session/{id}/events`.
pub async fn serve_events_resource(
    State(control): State<Arc<ControlPlane>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    match parts.method {
        Method::OPTIONS => Ok(cors::preflight_response(ALLOW_HEADER_METHODS)),
        Method::POST => {
            let (session, _) = find_viewer_session(&control, &parts.uri, EVENTS_PATH_SUFFIX)?;
            let bytes =
                body::read_uncompressed_request_body(&parts.headers, body, layer_resource::MAX_JSON_BODY_BYTES).await?;
            let events = parse_event_names(&bytes)?;
            let id = random_event_stream_id();
            if !control.sessions.add_event_stream(session, id.clone(), events) {
                let detail = "this session has the maximum number of event streams, or it has just ended: close an event stream or start a new session";
                return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", detail).with_retry_after(5));
            }
            let location = format!("{}{EVENTS_PATH_SUFFIX}/{id}", session_url::session_path(session));
            Ok(add_no_store_header(
                (StatusCode::CREATED, [(header::LOCATION, location)]).into_response(),
            ))
        }
        _ => Err(Problem::method_not_allowed(ALLOW_HEADER_METHODS)),
    }
}

/// Returns a random id for an event stream, which is a capability.
fn random_event_stream_id() -> String {
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    URL_SAFE_NO_PAD.encode(id)
}

/// Parses the body, a JSON array of event names. An empty body means all events.
fn parse_event_names(bytes: &[u8]) -> Result<Vec<SessionEventType>, Problem> {
    let refuse = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "bad_events", detail);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(SessionEventType::ALL_EVENT_TYPES.to_vec());
    }
    let requested: Vec<String> = serde_json::from_slice(bytes).map_err(|_| {
        refuse(format!(
            "the body must be a JSON array with some of these event names: {}",
            SessionEventType::comma_separated_event_names()
        ))
    })?;
    let event = |name: &String| {
        let found = SessionEventType::ALL_EVENT_TYPES
            .into_iter()
            .find(|event| event.name() == name);
        found.ok_or_else(|| {
            refuse(format!(
                "unknown session event `{}`; valid events: {}",
                shorten_event_name(name),
                SessionEventType::comma_separated_event_names()
            ))
        })
    };
    requested.iter().map(event).collect()
}

fn shorten_event_name(name: &str) -> String {
    name.chars().take(32).filter(|c| !c.is_control()).collect()
}

/// Handles `/session/{id}/events/{stream}`.
pub async fn serve_event_stream_resource(
    State(control): State<Arc<ControlPlane>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    let Some((before, id)) = parts.uri.path().rsplit_once('/') else {
        return Err(Problem::not_found());
    };
    let Ok(uri) = before.parse() else {
        return Err(Problem::not_found());
    };
    match parts.method {
        Method::OPTIONS => Ok(cors::preflight_response(EVENT_STREAM_ALLOW_HEADER_METHODS)),
        Method::GET => {
            let (session, record) = find_viewer_session(&control, &uri, EVENTS_PATH_SUFFIX)?;
            let reader = control
                .sessions
                .start_reading_event_stream(session, id)
                .ok_or_else(Problem::unknown_session)?;
            let source = SessionEventStream::new(control.clone(), session, record, reader);
            let headers = [
                (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
                (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
            ];
            Ok(add_no_store_header(
                (headers, Body::new(SseBody::new(source))).into_response(),
            ))
        }
        Method::DELETE => {
            let (session, _) = find_viewer_session(&control, &uri, EVENTS_PATH_SUFFIX)?;
            if !control.sessions.close_event_stream(session, id) {
                return Err(Problem::unknown_session());
            }
            Ok(add_no_store_header(StatusCode::OK.into_response()))
        }
        _ => Err(Problem::method_not_allowed(EVENT_STREAM_ALLOW_HEADER_METHODS)),
    }
}

/// The events of a stream that ends when the session ends, the event stream is closed, or another request reads it.
struct SessionEventStream {
    control: Arc<ControlPlane>,
    session: SessionId,
    record: SessionRecord,
    reader: EventStreamReader,
    changes: ChangeListener,
    /// When the number of viewers is read; `None` where nobody asked for it.
    viewer_count_interval: Option<Interval>,
    viewer_count_due: bool,
    is_first_batch: bool,
    /// Last reported state; `None` if nothing was reported yet.
    reported_active: Option<bool>,
    reported_layers: Option<Vec<SimulcastLayer>>,
    reported_viewer_count: Option<usize>,
    reported_quality: Option<ViewerQuality>,
    /// A `reconnect_sent` event was sent.
    reconnect_sent: bool,
}

impl SessionEventStream {
    fn new(control: Arc<ControlPlane>, session: SessionId, record: SessionRecord, reader: EventStreamReader) -> Self {
        let topics = [
            ChangeTopic::Stream(record.stream.clone()),
            ChangeTopic::Session(session),
        ];
        let changes = control.media_plane.hub().change_notifier().listen(topics);
        let viewer_counts = reader.events.contains(&SessionEventType::ViewerCount).then(|| {
            let mut ticks = interval(VIEWER_COUNT_POLL_INTERVAL);
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
            viewer_count_interval: viewer_counts,
            viewer_count_due: true,
            is_first_batch: true,
            reported_active: None,
            reported_layers: None,
            reported_viewer_count: None,
            reported_quality: None,
            reconnect_sent: false,
        }
    }

    fn webrtc_session_state(&self) -> SessionState {
        self.control.media_plane.session_state(self.session)
    }

    fn push_event_if_requested(&self, text: &mut String, event: SessionEventType, data: &Value) {
        if self.reader.events.contains(&event) {
            text.push_str(&format!("event: {}\ndata: {data}\n\n", event.name()));
        }
    }
}

impl SseEventProducer for SessionEventStream {
    fn drain_new_events_as_sse_text(&mut self) -> Option<String> {
        let is_open = self
            .control
            .sessions
            .is_current_event_stream_reader(self.session, &self.reader);
        if !is_open
            || matches!(
                self.webrtc_session_state(),
                SessionState::Ended(_) | SessionState::Unknown
            )
        {
            return None;
        }
        let mut text = String::new();
        let stream = self.control.media_plane.hub().find_stream(&self.record.stream);
        let (is_active, layers, viewers) = stream.map_or((false, Vec::new(), 0), |stream| {
            stream.with_state(|state| (state.source().is_some(), state.layers().to_vec(), state.viewer_count()))
        });
        if self.reported_active.replace(is_active) != Some(is_active) {
            match is_active {
                true => self.push_event_if_requested(&mut text, SessionEventType::Active, &json!({})),
                // `inactive` is never the first event.
                false if !self.is_first_batch => {
                    self.push_event_if_requested(&mut text, SessionEventType::Inactive, &json!({}))
                }
                false => {}
            }
        }
        let reported = |layer: &SimulcastLayer| {
            (
                layer.rid.clone(),
                layer.resolution,
                layer.is_available(),
                layer.measured_bitrate > 0,
            )
        };
        let is_same = |previous: &Vec<SimulcastLayer>| previous.iter().map(reported).eq(layers.iter().map(reported));
        if !self.reported_layers.as_ref().is_some_and(is_same) {
            let is_first = self.reported_layers.is_none();
            let described = layer_resource::layers_json_by_mline_index(&self.record, &layers);
            if !is_first || !layers.is_empty() {
                self.push_event_if_requested(&mut text, SessionEventType::Layers, &described);
            }
            self.reported_layers = Some(layers);
        }
        if std::mem::take(&mut self.viewer_count_due) && self.reported_viewer_count.replace(viewers) != Some(viewers) {
            self.push_event_if_requested(
                &mut text,
                SessionEventType::ViewerCount,
                &json!({ "viewercount": viewers }),
            );
        }
        if let Some(quality) = self.control.media_plane.viewer_quality(self.session) {
            let is_new = self
                .reported_quality
                .as_ref()
                .is_none_or(|reported| quality.has_selection_or_limitation_changed_since(reported));
            if is_new {
                let described = Quality::from(quality.clone());
                let data = json!({
                    "layer": described.layer,
                    "video": described.video,
                    "limitation": described.limitation,
                    "bitrate": described.received_bitrate,
                });
                self.push_event_if_requested(&mut text, SessionEventType::Quality, &data);
                self.reported_quality = Some(quality);
            }
        }
        if self.control.is_rejecting_new_sessions() && !std::mem::replace(&mut self.reconnect_sent, true) {
            self.push_event_if_requested(&mut text, SessionEventType::Reconnect, &json!({}));
        }
        self.is_first_batch = false;
        Some(text)
    }

    fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let ticks = self.viewer_count_interval.as_mut();
        let is_due = ticks.is_some_and(|ticks| ticks.poll_tick(context).is_ready());
        self.viewer_count_due |= is_due;
        let changed = self.changes.poll_changed(context);
        if is_due { Poll::Ready(()) } else { changed }
    }
}
