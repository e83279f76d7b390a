//! Messages of data channels, from publishers, viewers and the API to viewers.

use std::time::Duration;

use millstream_core::hub::data_settings::{DataSettings, ViewerMessageRecipients};
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::ShardIndex;
use millstream_core::media::data_message::{DataLabel, DataMessage, DataPayload};
use millstream_core::shard::data_counters::DataDropReason;
use millstream_test_support::{OfferParameters, VideoConfig};

use crate::fanout::publisher::Publisher;
use crate::fanout::world::{Role, World};
use crate::fanout::{SECOND, near};

/// Adds a data channel section to an offer, as browsers write it.
fn with_data_channels(offer: &str) -> String {
    let section = |line: &str| {
        offer
            .lines()
            .find(|written| written.starts_with(line))
            .expect("a line")
            .to_owned()
    };
    let transport: Vec<String> = ["a=ice-ufrag:", "a=ice-pwd:", "a=fingerprint:", "a=setup:"]
        .map(section)
        .into();
    let mut text = offer.replace("a=group:BUNDLE 0 1\r\n", "a=group:BUNDLE 0 1 2\r\n");
    text.push_str("m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:2\r\n");
    for line in transport {
        text.push_str(&format!("{line}\r\n"));
    }
    text.push_str("a=sctp-port:5000\r\na=max-message-size:262144\r\n");
    text
}

impl World {
    fn watch_with_data(&mut self, shard: usize, labels: &[&str]) -> usize {
        let offer: OfferParameters = self.offer(0, 0);
        let text = with_data_channels(&offer.whep());
        let index = self.watch_with_text("live", shard, near(), (&offer, text));
        self.nodes[index].peer.use_data_channels(labels);
        index
    }

    fn publish_with_data(&mut self, shard: usize, labels: &[&str]) -> usize {
        let publisher = Publisher::deaf(VideoConfig::default());
        let offer = self.publisher_offer(&publisher);
        let text = with_data_channels(&publisher.offer_text(&offer));
        let role = Role::Publisher(Box::new(publisher));
        let index = self.join("live", shard, near(), (&offer, text), role);
        self.nodes[index].peer.use_data_channels(labels);
        index
    }

    fn send_text(&mut self, index: usize, text: &str) {
        let now = self.now;
        let peer = &mut self.nodes[index].peer;
        assert!(peer.send_data_message(now, 0, text.as_bytes(), true));
    }

    fn texts(&self, index: usize) -> Vec<(&str, &str)> {
        let messages = self.nodes[index].data.iter();
        messages
            .map(|message| {
                (
                    message.label.as_str(),
                    std::str::from_utf8(&message.bytes).expect("text"),
                )
            })
            .collect()
    }

    fn dropped(&self, reason: DataDropReason) -> u64 {
        let mut dropped = self.shared.counters.data.dropped();
        dropped.find(|(other, _)| *other == reason).expect("a reason").1
    }

    fn post(&mut self, label: &str, text: &str) {
        let stream = StreamName::parse("live").expect("a name");
        let stream = self.shared.hub.find_stream(&stream).expect("a stream");
        let message = DataMessage {
            label: DataLabel::parse(label).expect("a label"),
            payload: DataPayload::Text(text.into()),
        };
        let published = self
            .shared
            .publish_data_message(ShardIndex::NO_SHARD, &stream, &message);
        assert_eq!(published, Ok(false));
    }
}

#[test]
fn what_a_publisher_sends_reaches_the_viewers_of_all_shards_by_its_label() {
    let mut world = World::new(2_001, 2, 8_192);
    let publisher = world.publish_with_data(0, &["score"]);
    world.run(2 * SECOND);
    let own_channel = world.watch_with_data(0, &["score"]);
    let none = world.watch_with_data(1, &["for-the-section"]);
    let without = world.watch("live", 1, near());
    world.run(2 * SECOND);
    for text in ["1:0", "1:1"] {
        world.send_text(publisher, text);
    }
    world.run(SECOND);
    let both = [("score", "1:0"), ("score", "1:1")];
    assert_eq!(
        (world.texts(own_channel), world.texts(none)),
        (both.into(), both.into())
    );
    assert!(world.nodes[without].data.is_empty() && world.nodes[publisher].data.is_empty());
    // The channel that the viewer has opened is used; the other one has got one of the gateway.
    assert_eq!(world.nodes[own_channel].peer.data_channels(), [(0, "score".to_owned())]);
    let channels = [(0, "for-the-section".to_owned()), (9, "score".to_owned())];
    assert_eq!(world.nodes[none].peer.data_channels(), channels);
    assert_eq!(
        world
            .shared
            .counters
            .data
            .sent_messages
            .load(std::sync::atomic::Ordering::Relaxed),
        4
    );
}

#[test]
fn who_joins_late_gets_the_last_message_once() {
    let mut world = World::new(2_002, 1, 8_192);
    let publisher = world.publish_with_data(0, &["score"]);
    world.run(2 * SECOND);
    for text in ["1:0", "1:1"] {
        world.send_text(publisher, text);
    }
    world.post("title", "Final");
    world.run(SECOND);
    let late = world.watch_with_data(0, &["title"]);
    world.run(2 * SECOND);
    let mut texts = world.texts(late);
    texts.sort_unstable();
    assert_eq!(texts, [("score", "1:1"), ("title", "Final")]);
    assert!(
        world.nodes[late]
            .peer
            .data_channels()
            .contains(&(0, "title".to_owned()))
    );
}

#[test]
fn a_publisher_that_was_displaced_is_not_heard() {
    let mut world = World::new(2_003, 1, 8_192);
    let first = world.publish_with_data(0, &["score"]);
    world.run(2 * SECOND);
    let viewer = world.watch_with_data(0, &["score"]);
    world.run(2 * SECOND);
    world.send_text(first, "first");
    world.run(SECOND);
    let second = world.publish_with_data(0, &["score"]);
    world.run(3 * SECOND);
    world.send_text(second, "second");
    world.run(SECOND);
    assert!(world.nodes[first].closed);
    assert_eq!(world.texts(viewer), [("score", "first"), ("score", "second")]);
}

#[test]
fn viewers_are_not_heard_unless_that_is_configured() {
    let mut world = World::new(2_004, 1, 8_192);
    let publisher = world.publish_with_data(0, &["chat"]);
    world.run(2 * SECOND);
    let viewers = [0, 1].map(|_| world.watch_with_data(0, &["chat"]));
    world.run(2 * SECOND);
    world.send_text(viewers[0], "hello");
    world.run(SECOND);
    assert!(
        viewers
            .iter()
            .chain([&publisher])
            .all(|index| world.nodes[*index].data.is_empty())
    );
    assert_eq!(world.dropped(DataDropReason::NotAllowed), 1);
}

#[test]
fn viewers_are_heard_by_the_publisher_or_by_all_with_their_sender() {
    for (viewer_messages, hears_viewers) in [
        (ViewerMessageRecipients::Publisher, false),
        (ViewerMessageRecipients::All, true),
    ] {
        let settings = DataSettings {
            viewer_messages,
            ..DataSettings::default()
        };
        let mut world = World::with_data_settings(2_005, 2, 8_192, settings);
        let publisher = world.publish_with_data(0, &["chat"]);
        world.run(2 * SECOND);
        let viewers = [0, 1].map(|shard| world.watch_with_data(shard, &["chat"]));
        world.run(2 * SECOND);
        world.send_text(viewers[1], r#"{"name": "Ann", "text": "hello"}"#);
        world.run(SECOND);
        let sender = format!("{:?}", world.nodes[viewers[1]].session);
        let texts = world.texts(publisher);
        let [("chat", text)] = texts[..] else {
            panic!("{texts:?}")
        };
        let message: serde_json::Value = serde_json::from_str(text).expect("JSON");
        assert_eq!((&message["name"], &message["text"]), (&"Ann".into(), &"hello".into()));
        assert_eq!(message["from"], sender);
        assert!(message["time"].as_f64().is_some_and(|time| time > 1_800_000_000.0));
        for viewer in viewers {
            assert_eq!(
                !world.nodes[viewer].data.is_empty(),
                hears_viewers,
                "{viewer_messages:?}"
            );
        }
    }
}

#[test]
fn a_viewer_that_reads_nothing_holds_up_nobody() {
    let mut world = World::new(2_006, 1, 8_192);
    let publisher = world.publish_with_data(0, &["telemetry"]);
    world.run(2 * SECOND);
    let (deaf, other) = (
        world.watch_with_data(0, &["telemetry"]),
        world.watch_with_data(0, &["telemetry"]),
    );
    world.run(2 * SECOND);
    world.nodes[deaf].peer.ignore_data_packets();
    let text = "x".repeat(1_000);
    for _ in 0..600 {
        world.send_text(publisher, &text);
        world.run(Duration::from_millis(5));
    }
    world.run(2 * SECOND);
    assert_eq!(world.nodes[other].data.len(), 600);
    assert!(world.dropped(DataDropReason::SlowReceiver) > 300);
    for index in [deaf, other] {
        let viewer = world.viewer(index);
        assert_eq!((viewer.video.holes(), viewer.check.corrupt()), (0, 0));
        assert!(viewer.whole_at.len() > 100);
    }
}

#[test]
fn channels_go_on_over_an_ice_path_change() {
    let mut world = World::new(2_007, 1, 8_192);
    let publisher = world.publish_with_data(0, &["score"]);
    world.run(2 * SECOND);
    let viewer = world.watch_with_data(0, &["score"]);
    world.run(2 * SECOND);
    world.move_to(viewer, "198.51.100.200:4000".parse().expect("an address"));
    world.run(SECOND);
    world.send_text(publisher, "1:0");
    world.run(SECOND);
    assert_eq!(world.texts(viewer), [("score", "1:0")]);
}
