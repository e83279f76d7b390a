//! Makes the events of webhooks from the states of streams and sessions that the event log has. It remembers what it has
//! told of each stream, and which viewers were connected.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::config::WebhookEventType;

/// Remembers the state of each stream, and the viewers that are connected.
#[derive(Default)]
pub(super) struct EventTranslator {
    streams: HashMap<String, StreamEventState>,
    connected_viewers: HashSet<String>,
}

#[derive(Default)]
struct StreamEventState {
    is_live: bool,
    /// The last event about its source. A source that is retried fails many times.
    source: Option<WebhookEventType>,
}

impl EventTranslator {
    /// Returns the events for an entry of the event log.
    pub(super) fn webhook_events_from_log_entry(&mut self, name: &str, data: &Value) -> Vec<(WebhookEventType, Value)> {
        match name {
            "stream" => self.webhook_events_from_stream(data),
            "session" => self.webhook_event_from_session(data).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn webhook_events_from_stream(&mut self, data: &Value) -> Vec<(WebhookEventType, Value)> {
        let Some(name) = data["stream"].as_str() else {
            return Vec::new();
        };
        let mut events = Vec::new();
        let known = self.streams.entry(name.to_owned()).or_default();
        let source = match data["source"].as_str() {
            Some("live") => Some(WebhookEventType::SourceLive),
            Some("failed") => Some(WebhookEventType::SourceFailed),
            _ => None,
        };
        if source.is_some() && source != known.source {
            known.source = source;
            events.extend(source.map(|event| {
                (
                    event,
                    json!({ "stream": name, "error": error_if_source_failed(event, data) }),
                )
            }));
        }
        let is_live = data["live"] == true;
        if is_live != known.is_live {
            known.is_live = is_live;
            events.push(match is_live {
                true => (
                    WebhookEventType::StreamLive,
                    json!({ "stream": name, "publisher": data["publisher"] }),
                ),
                false => (WebhookEventType::StreamEnded, json!({ "stream": name })),
            });
        }
        if data["gone"] == true || (!known.is_live && known.source.is_none()) {
            self.streams.remove(name);
        }
        events
    }

    /// Anybody who may watch can open sessions that never connect, at any rate: of these nothing is told. A publisher has a
    /// token, and whoever runs it needs to know.
    fn webhook_event_from_session(&mut self, data: &Value) -> Option<(WebhookEventType, Value)> {
        let viewer = data["id"].as_str().filter(|_| data["role"] == "viewer");
        let event = match data["state"].as_str()? {
            "connected" => {
                self.connected_viewers.extend(viewer.map(str::to_owned));
                WebhookEventType::SessionStarted
            }
            "ended" if viewer.is_none_or(|viewer| self.connected_viewers.remove(viewer)) => {
                WebhookEventType::SessionEnded
            }
            _ => return None,
        };
        let mut shown = data.clone();
        // Of this moment, and without meaning for one that begins or ends.
        if let Some(members) = shown.as_object_mut() {
            members.remove("quality");
        }
        Some((event, shown))
    }
}

/// The last error of a source that works may be long ago.
fn error_if_source_failed(event: WebhookEventType, data: &Value) -> Value {
    match event {
        WebhookEventType::SourceFailed => data["error"].clone(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(translator: &mut EventTranslator, data: &Value) -> Vec<&'static str> {
        let events = translator.webhook_events_from_log_entry("stream", data);
        events.iter().map(|(event, _)| event.name()).collect()
    }

    #[test]
    fn a_change_of_a_stream_is_told_once() {
        let mut translator = EventTranslator::default();
        let state = |live: bool, source: &str, error: Option<&str>| json!({ "stream": "a", "live": live, "source": source, "error": error });
        for (data, expected) in [
            (state(false, "starting", None), &[][..]),
            (state(false, "failed", Some("refused")), &["source.failed"]),
            (state(false, "starting", Some("refused")), &[]),
            (state(false, "failed", Some("refused")), &[]),
            (state(true, "live", Some("refused")), &["source.live", "stream.live"]),
            (state(true, "live", Some("refused")), &[]),
            (
                state(false, "failed", Some("frozen")),
                &["source.failed", "stream.ended"],
            ),
            (json!({ "stream": "a", "live": false, "gone": true }), &[]),
            (
                json!({ "stream": "b", "live": true, "publisher": "whip" }),
                &["stream.live"],
            ),
            (json!({ "stream": "b", "live": false, "gone": true }), &["stream.ended"]),
        ] {
            assert_eq!(names(&mut translator, &data), expected, "{data}");
        }
        assert!(
            translator.streams.is_empty(),
            "nothing is kept of streams that are gone"
        );
    }

    #[test]
    fn sessions_are_told_of_when_they_connect_and_end() {
        for (state, expected) in [
            ("connecting", None),
            ("connected", Some(WebhookEventType::SessionStarted)),
            ("ended", Some(WebhookEventType::SessionEnded)),
        ] {
            let session = json!({ "id": "a", "role": "publisher", "state": state, "quality": {} });
            let found = EventTranslator::default().webhook_event_from_session(&session);
            assert_eq!(found.as_ref().map(|(event, _)| *event), expected);
            assert!(found.is_none_or(|(_, data)| data.get("quality").is_none()));
        }
    }

    #[test]
    fn the_end_of_a_viewer_is_told_if_it_was_connected() {
        let mut translator = EventTranslator::default();
        let session = |id: &str, state: &str| json!({ "id": id, "role": "viewer", "state": state });
        for (id, state, expected) in [
            ("a", "connecting", None),
            ("a", "ended", None),
            ("b", "connected", Some(WebhookEventType::SessionStarted)),
            ("b", "ended", Some(WebhookEventType::SessionEnded)),
        ] {
            let found = translator.webhook_event_from_session(&session(id, state));
            assert_eq!(found.map(|(event, _)| event), expected, "{id} {state}");
        }
        assert!(translator.connected_viewers.is_empty());
    }
}
