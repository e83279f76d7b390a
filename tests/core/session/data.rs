//! Data channels of one session (RFC 8831, RFC 8832).

use std::time::Duration;

use millstream_core::media::data_message::{DataLabel, DataMessage, DataPayload};
use millstream_core::sdp::negotiation_result::DataPeerRole;
use millstream_core::session::CloseReason;
use millstream_core::session::data::{DataEvent, DataSendError, IgnoredMessageReason};
use millstream_test_support::{DtlsRole, LinkConfig, PeerEvent};

use crate::session::heap;
use crate::session::world::{SECOND, Setup, World, rtp};

fn setup(peer_role: DataPeerRole) -> Setup {
    Setup {
        data_channels: Some(peer_role),
        ..Setup::default()
    }
}

/// A world whose peer has connected, and opened channels with these labels.
fn connected(setup: Setup, labels: &[&str]) -> World {
    let mut world = World::new(setup);
    world.peer.use_data_channels(labels);
    world.run(3 * SECOND);
    assert!(world.both_connected() && world.peer.has_data_association());
    assert_eq!(world.data(), [DataEvent::Ready]);
    world
}

fn message(label: &str, text: &str) -> DataMessage {
    DataMessage {
        label: DataLabel::parse(label).expect("a label"),
        payload: DataPayload::Text(text.into()),
    }
}

fn labels(world: &World) -> Vec<(u16, String)> {
    world.peer.data_channels()
}

#[test]
fn messages_pass_both_ways_in_both_roles_of_dtls_in_order_and_once_over_a_lossy_path() {
    for (role, own, gateways) in [(DtlsRole::Client, 0, 9), (DtlsRole::Server, 1, 8)] {
        for seed in 1..4 {
            let lossy = LinkConfig {
                loss: 0.05,
                ..LinkConfig::delay(Duration::from_millis(20))
            };
            let base = setup(DataPeerRole::Publisher);
            let mut world = World::new(Setup {
                role,
                seed,
                link: lossy,
                ..base
            });
            world.peer.use_data_channels(&["up"]);
            world.run(20 * SECOND);
            assert_eq!(world.data(), [DataEvent::Ready], "seed {seed}");
            let texts: Vec<String> = (0..500).map(|n| n.to_string()).collect();
            for text in &texts {
                assert!(world.peer.send_data_message(world.now, own, text.as_bytes(), true));
                assert_eq!(world.session.send_data(world.now, &message("down", text)), Ok(()));
                world.run(Duration::from_millis(10));
            }
            world.run(30 * SECOND);
            let sent = texts.iter().map(|text| DataEvent::Message(message("up", text)));
            let expected: Vec<DataEvent> = std::iter::once(DataEvent::Ready).chain(sent).collect();
            assert_eq!(world.data(), expected, "seed {seed}");
            let expected: Vec<_> = texts.iter().map(|text| ("down".to_owned(), text.clone())).collect();
            assert_eq!(world.texts_at_peer(), expected, "seed {seed}");
            // RFC 8832 §6: even ids are those of the DTLS client.
            let both = [(own, "up".to_owned()), (gateways, "down".to_owned())];
            assert!(both.iter().all(|channel| labels(&world).contains(channel)));
            assert_eq!(world.reason(), None);
        }
    }
}

/// Chromium guesses its DTLS role for channels that are created after the offer and before the answer.
#[test]
fn channels_with_the_stream_ids_of_the_other_role_work_beside_those_of_the_gateway() {
    for (role, guessed, id) in [
        (DtlsRole::Client, DtlsRole::Server, 1),
        (DtlsRole::Server, DtlsRole::Client, 0),
    ] {
        let base = setup(DataPeerRole::Publisher);
        let mut world = World::new(Setup { role, ..base });
        world.peer.use_data_channels_with_ids_of(guessed, &["a", "b"]);
        world.run(3 * SECOND);
        assert!(world.peer.send_data_message(world.now, id, b"up", true));
        for label in ["a", "b", "c"] {
            assert_eq!(world.session.send_data(world.now, &message(label, "down")), Ok(()));
        }
        world.run(SECOND);
        assert_eq!(world.data(), [DataEvent::Ready, DataEvent::Message(message("a", "up"))]);
        let expected = ["a", "b", "c"].map(|label| (label.to_owned(), "down".to_owned()));
        assert_eq!(world.texts_at_peer(), expected);
        let opened: Vec<String> = labels(&world).into_iter().map(|(_, label)| label).collect();
        assert_eq!(opened, ["a", "b", "c"]);
    }
}

/// The peer's first SCTP packet may come in one datagram with the end of its handshake.
#[test]
fn an_association_is_opened_at_once_by_an_init_beside_the_finished() {
    let base = setup(DataPeerRole::Viewer);
    let mut world = World::new(Setup {
        role: DtlsRole::Server,
        ..base
    });
    world.joins_records = true;
    world.peer.use_data_channels(&["a"]);
    while !world.session.is_connected() {
        world.run(Duration::from_millis(1));
    }
    // INIT, INIT-ACK, COOKIE-ECHO, COOKIE-ACK, and no wait of a second for an INIT that was lost.
    world.run(Duration::from_millis(200));
    assert!(world.peer.has_data_association());
}

#[test]
fn a_message_of_each_kind_and_of_any_length_arrives_as_it_was_sent() {
    let mut world = connected(setup(DataPeerRole::Publisher), &["a"]);
    for (bytes, is_text) in [(b"x".to_vec(), true), (vec![0, 0xff], false), (vec![7; 60_000], false)] {
        assert!(world.peer.send_data_message(world.now, 0, &bytes, is_text));
        world.run(SECOND);
        let payload = match is_text {
            true => DataPayload::Text(String::from_utf8(bytes).expect("text").into()),
            false => DataPayload::Binary(bytes.into()),
        };
        let sent = DataMessage {
            label: DataLabel::parse("a").expect("a label"),
            payload,
        };
        assert_eq!(world.data().last(), Some(&DataEvent::Message(sent.clone())));
        assert_eq!(world.session.send_data(world.now, &sent), Ok(()));
        world.run(SECOND);
        let received = world.peer_events.iter().rev().find_map(|event| match event {
            PeerEvent::Data(message) => Some(message.bytes.clone()),
            _ => None,
        });
        assert_eq!(received.as_deref(), Some(sent.payload.as_bytes()));
    }
    let empty = message("a", "");
    assert_eq!(world.session.send_data(world.now, &empty), Ok(()));
    let long = message("a", &"x".repeat(70_000));
    assert_eq!(world.session.send_data(world.now, &long), Err(DataSendError::TooLong));
}

#[test]
fn what_is_not_text_and_what_has_no_valid_label_is_ignored() {
    let mut world = connected(setup(DataPeerRole::Publisher), &["a", "no label"]);
    assert!(world.peer.send_data_message(world.now, 0, &[0xff], true));
    assert!(world.peer.send_data_message(world.now, 2, b"x", true));
    world.run(SECOND);
    let ignored = DataEvent::MessageIgnored(IgnoredMessageReason::Invalid);
    assert_eq!(world.data()[1..], [ignored.clone(), ignored]);
}

#[test]
fn a_viewer_may_send_few_messages_a_second() {
    let mut world = connected(setup(DataPeerRole::Viewer), &["a"]);
    for _ in 0..100 {
        assert!(world.peer.send_data_message(world.now, 0, b"x", true));
    }
    world.run(SECOND);
    let taken = world
        .data()
        .iter()
        .filter(|event| matches!(event, DataEvent::Message(_)))
        .count();
    let ignored = DataEvent::MessageIgnored(IgnoredMessageReason::Rate);
    let ignored = world.data().iter().filter(|event| **event == ignored).count();
    assert_eq!(taken + ignored, 100);
    assert!((20..=30).contains(&taken), "{taken}");
}

#[test]
fn a_channel_of_the_peer_is_used_for_its_label_and_replaced_after_it_was_closed() {
    let mut world = connected(setup(DataPeerRole::Viewer), &["a"]);
    assert_eq!(world.session.send_data(world.now, &message("a", "1")), Ok(()));
    world.run(SECOND);
    assert_eq!(labels(&world), [(0, "a".to_owned())]);
    world.peer.close_data_channel(world.now, 0);
    world.run(SECOND);
    assert_eq!(world.session.send_data(world.now, &message("a", "2")), Ok(()));
    world.run(SECOND);
    assert_eq!(labels(&world), [(9, "a".to_owned())]);
    let texts: Vec<String> = world.texts_at_peer().into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["1", "2"]);
}

#[test]
fn no_more_channels_are_opened_than_there_are_streams() {
    let mut world = connected(setup(DataPeerRole::Viewer), &["own"]);
    let results: Vec<_> = (0..9)
        .map(|n| world.session.send_data(world.now, &message(&n.to_string(), "x")))
        .collect();
    assert_eq!(results[..8], [Ok(()); 8]);
    assert_eq!(results[8], Err(DataSendError::TooManyChannels));
    world.run(SECOND);
    assert_eq!(world.texts_at_peer().len(), 8);
}

#[test]
fn a_peer_that_acknowledges_nothing_keeps_little_and_media_goes_on() {
    let mut world = connected(setup(DataPeerRole::Viewer), &["a"]);
    world.peer.ignore_data_packets();
    let text = "x".repeat(1_000);
    let mut accepted = 0;
    let grown = heap::growth(|| {
        for _ in 0..1_000 {
            let result = world.session.send_data(world.now, &message("a", &text));
            accepted += usize::from(result.is_ok());
            assert!(matches!(result, Ok(()) | Err(DataSendError::TooSlow)));
            while world.session.poll_transmit().is_some() {}
        }
    });
    println!("{accepted} of 1000 messages of 1000 bytes were taken, {grown} bytes of heap");
    assert!(accepted * text.len() <= 256 << 10 && accepted > 200, "{accepted}");
    assert!(grown < 1 << 20, "{grown}");
    world.send_rtp(1);
    world.run(SECOND);
    assert_eq!((world.rtp().len(), world.reason()), (1, None));
}

#[test]
fn the_association_is_aborted_before_the_session_says_goodbye() {
    let mut world = connected(setup(DataPeerRole::Viewer), &["a"]);
    world.session.close(world.now, CloseReason::Deleted);
    world.run(SECOND);
    assert!(world.peer.is_data_aborted());
    assert!(world.peer_events.contains(&PeerEvent::Closed));
    let result = world.session.send_data(world.now, &message("a", "x"));
    assert_eq!(result, Err(DataSendError::NotConnected));
}

#[test]
fn a_session_without_data_channels_ignores_application_data() {
    let mut world = World::connected(Setup::default());
    world.peer.send_dtls_data(world.now, &[0; 100]);
    world.run(SECOND);
    assert!(world.data().is_empty());
    let result = world.session.send_data(world.now, &message("a", "x"));
    assert_eq!((result, world.reason()), (Err(DataSendError::NotConnected), None));
    world.peer.send_rtp(&rtp(1));
    world.run(SECOND);
    assert_eq!(world.rtp().len(), 1);
}

#[test]
fn data_channels_cost_nothing_before_they_are_used_and_little_then() {
    let cost = |data_channels, labels: Option<&[&str]>| {
        let mut world = World::new(Setup {
            data_channels,
            ..Setup::default()
        });
        if let Some(labels) = labels {
            world.peer.use_data_channels(labels);
        }
        let before = heap::live();
        // The peer of the test has its part in this.
        world.run(3 * SECOND);
        heap::live() - before
    };
    let without = cost(None, None);
    let unused = cost(Some(DataPeerRole::Viewer), None);
    let used = cost(Some(DataPeerRole::Viewer), Some(&["a"]));
    println!("heap of session and peer: {without} bytes, {unused} negotiated, {used} with a channel");
    assert!((unused - without).abs() < 512, "{}", unused - without);
    assert!(used - without < 40 << 10, "{}", used - without);
}
