//! Messages of data channels: from the peers of a shard to the hub, and to the viewers of the shard.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ShardCore;
use super::data_counters::{DataDropReason, DataOrigin};
use super::message::ShardMessage;
use super::peers::{PeerRole, PeerSlotIndex};
use crate::hub::data_settings::ViewerMessageRecipients;
use crate::hub::name::StreamName;
use crate::hub::stream::{SessionId, Stream, StreamId};
use crate::media::data_message::{DataMessage, DataPayload};
use crate::session::data::DataEvent;

/// Longest name that a viewer may give itself, in characters.
const MAX_SENDER_NAME_CHARS: usize = 64;

impl ShardCore {
    pub(super) fn handle_data_event(&mut self, now: Instant, key: PeerSlotIndex, event: DataEvent) {
        let Some(peer) = self.peers.get(key) else { return };
        let session = peer.session_id;
        let (origin, name) = match &peer.role {
            PeerRole::Publisher(publisher) => (DataOrigin::Publisher, publisher.stream_key().name.clone()),
            PeerRole::Viewer(viewer) => (DataOrigin::Viewer, viewer.stream.key.name.clone()),
        };
        let counters = &self.shared.counters.data;
        match (origin, event) {
            (DataOrigin::Viewer, DataEvent::Ready) => self.send_retained_messages(now, key),
            (_, DataEvent::Ready) => {}
            (_, DataEvent::MessageIgnored(reason)) => counters.count_dropped(reason.into()),
            (_, DataEvent::PacketDropped(reason)) => counters.count_dropped_packet(reason),
            (DataOrigin::Viewer, DataEvent::Message(message)) => {
                counters.count_received(origin);
                self.handle_viewer_message(now, session, &name, &message);
            }
            (_, DataEvent::Message(message)) => {
                counters.count_received(origin);
                self.publish_message_if_from_source(now, session, &name, &message);
            }
        }
    }

    /// The messages of a stream are those of its source: of several sources, the selected one.
    fn publish_message_if_from_source(
        &mut self,
        now: Instant,
        session: SessionId,
        name: &StreamName,
        message: &DataMessage,
    ) {
        let stream = self.shared.hub.find_stream(name);
        let stream = stream.filter(|stream| stream.with_state(move |state| state.is_source_session(session)));
        match stream {
            Some(stream) => self.publish_data_message(now, &stream, message),
            None => self.shared.counters.data.count_dropped(DataDropReason::NotSource),
        }
    }

    fn publish_data_message(&mut self, now: Instant, stream: &Stream, message: &DataMessage) {
        let id = stream.id;
        let published = self.shared.publish_data_message(self.index, stream, message);
        if published.is_ok_and(|has_local_viewers| has_local_viewers) {
            self.send_data_to_viewers(now, id, message);
        }
    }

    fn handle_viewer_message(&mut self, now: Instant, session: SessionId, name: &StreamName, message: &DataMessage) {
        let recipients = self.shared.data_settings.viewer_messages;
        let stream = self.shared.hub.find_stream(name);
        let (Some(stream), DataPayload::Text(text)) = (stream, &message.payload) else {
            return self.shared.counters.data.count_dropped(DataDropReason::Invalid);
        };
        if recipients == ViewerMessageRecipients::Off {
            return self.shared.counters.data.count_dropped(DataDropReason::NotAllowed);
        }
        let wrapped = DataMessage {
            label: message.label.clone(),
            payload: DataPayload::Text(wrap_viewer_message(session, self.shared.wall_clock_time(now), text).into()),
        };
        if let Some(source) = stream.with_state(|state| state.source()) {
            let message = ShardMessage::DataForSession {
                session: source.session_id,
                message: wrapped.clone(),
            };
            if source.shard == self.index {
                self.handle_message(now, message);
            } else if let Some(mailbox) = self.shared.mailbox(source.shard)
                && mailbox.push_low_priority(message).is_err()
            {
                self.shared.counters.data.count_dropped(DataDropReason::MailboxFull);
            }
        }
        if recipients == ViewerMessageRecipients::All {
            self.publish_data_message(now, &stream, &wrapped);
        }
    }

    /// Sends a message to the viewers of a stream on this shard.
    pub(super) fn send_data_to_viewers(&mut self, now: Instant, stream: StreamId, message: &DataMessage) {
        for key in self.viewers_by_stream.get(&stream).cloned().unwrap_or_default() {
            self.send_data_to_peer(now, key, std::slice::from_ref(message));
        }
    }

    /// Sends a message to one peer of this shard.
    pub(super) fn send_data_to_session(&mut self, now: Instant, session: SessionId, message: &DataMessage) {
        if let Some(key) = self.peers.slot_index_by_session_id(session) {
            self.send_data_to_peer(now, key, std::slice::from_ref(message));
        }
    }

    fn send_retained_messages(&mut self, now: Instant, key: PeerSlotIndex) {
        let Some(peer) = self.peers.get(key) else { return };
        let PeerRole::Viewer(viewer) = &peer.role else { return };
        let retained = viewer.stream.with_state(|state| state.data_tracks.retained_messages());
        self.send_data_to_peer(now, key, &retained);
    }

    fn send_data_to_peer(&mut self, now: Instant, key: PeerSlotIndex, messages: &[DataMessage]) {
        let Some(peer) = self.peers.get(key) else { return };
        for message in messages {
            let result = peer.session.send_data(now, message);
            let counters = &self.shared.counters.data;
            counters.count_send_result(message.payload.len(), result);
        }
        self.drain_peer_outputs_and_reschedule(now, key, None);
    }
}

/// Writes what others get of a viewer's text: never the raw text, so that nobody can speak for the publisher. A viewer may
/// send a JSON object with `text` and its `name`.
fn wrap_viewer_message(session: SessionId, time: Duration, text: &str) -> String {
    let given = serde_json::from_str::<Value>(text).ok();
    let given = given.as_ref().and_then(Value::as_object);
    let field = |key| given.and_then(|given| given.get(key)?.as_str());
    let name: Option<String> = field("name").map(|name| name.chars().take(MAX_SENDER_NAME_CHARS).collect());
    let message = json!({
        "from": format!("{session:?}"),
        "name": name,
        "time": time.as_secs_f64(),
        "text": field("text").unwrap_or(text),
    });
    message.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrap(text: &str) -> Value {
        let session = SessionId([0xab; 16]);
        let wrapped = wrap_viewer_message(session, Duration::from_millis(1_500), text);
        serde_json::from_str(&wrapped).expect("JSON")
    }

    #[test]
    fn the_text_of_a_viewer_is_wrapped() {
        let expected = json!({ "from": "ababab", "name": null, "time": 1.5, "text": "hi \"you\"" });
        assert_eq!(wrap("hi \"you\""), expected);
        let expected = json!({ "from": "ababab", "name": "Ann", "time": 1.5, "text": "hi" });
        assert_eq!(wrap(r#"{"name": "Ann", "text": "hi"}"#), expected);
    }

    #[test]
    fn a_viewer_cannot_say_who_it_is_or_when() {
        let forged = wrap(r#"{"from": "publisher", "time": 0, "text": "x"}"#);
        assert_eq!((&forged["from"], &forged["time"]), (&json!("ababab"), &json!(1.5)));
        assert_eq!(wrap(r#"{"text": 5}"#)["text"], json!(r#"{"text": 5}"#));
        let long = json!({ "name": "x".repeat(1_000), "text": "y" }).to_string();
        assert_eq!(wrap(&long)["name"].as_str().map(str::len), Some(MAX_SENDER_NAME_CHARS));
    }
}
