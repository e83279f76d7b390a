//! Viewers that give no transport-wide feedback: they are sent what they would be sent without congestion control, until
//! their reports speak against it.

use std::time::Duration;

use millstream_core::media::Ssrc;
use millstream_core::media::rtcp;
use millstream_test_support::{LinkConfig, VideoConfig};

use crate::fanout::adaptation::{LAYER_NUMBERS, first_of_layer, layer, layers_between, three_layers};
use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, near};

/// What a viewer of a simulcast stream without feedback saw while its publisher was gone and came again, and while the best
/// layer paused.
struct Interrupted {
    packets: Vec<Vec<u8>>,
    after_return: Vec<u32>,
    after_pause: Vec<u32>,
}

fn interrupted(congestion_control: bool, offers_feedback: bool) -> Interrupted {
    let mut world = World::new(301, 1, 8192);
    world.congestion_control = congestion_control;
    let publisher = world.publish("live", 0, near(), three_layers());
    world.run(3 * SECOND);
    let mut offer = world.offer(0, 0);
    offer.transport_cc = offers_feedback;
    let index = world.watch_with("live", 0, near(), &offer);
    world.viewer(index).plain_packets = Some(Vec::new());
    world.viewer(index).sends_reports = true;
    world.run(4 * SECOND);

    world.delete(publisher);
    world.run(SECOND);
    let later = |index: u32, bitrate: u32| VideoConfig {
        first_number: index * LAYER_NUMBERS + LAYER_NUMBERS / 2,
        ..layer(index, bitrate)
    };
    let layers = [later(2, 2_500_000), later(1, 1_000_000), later(0, 300_000)];
    let returned = world.now;
    let publisher = world.publish("live", 0, near(), Publisher::simulcast(&layers));
    world.run(8 * SECOND);
    let paused = world.now;
    let after_return = layers_between(&mut world, index, returned, paused);

    world.publisher(publisher).is_best_layer_paused = true;
    world.run(4 * SECOND);
    world.publisher(publisher).is_best_layer_paused = false;
    // The stream itself returns to its best layer within this time.
    world.run(3 * SECOND);
    let now = world.now;
    world.run(2 * SECOND);
    let end = world.now;
    let after_pause = layers_between(&mut world, index, now, end);
    let packets = world.viewer(index).plain_packets.take().expect("kept");
    Interrupted {
        packets,
        after_return,
        after_pause,
    }
}

#[test]
fn a_viewer_without_feedback_is_sent_the_same_bytes_with_congestion_control_and_without() {
    let off = interrupted(false, true);
    assert!(off.packets.len() > 3_000, "{}", off.packets.len());
    assert_eq!(off.after_return, [2]);
    assert_eq!(off.after_pause, [2]);
    for (congestion_control, offers_feedback) in [(true, false), (false, false)] {
        let other = interrupted(congestion_control, offers_feedback);
        assert_eq!(other.after_return, [2], "congestion control: {congestion_control}");
        assert_eq!(other.after_pause, [2], "congestion control: {congestion_control}");
        assert!(
            other.packets == off.packets,
            "congestion control: {congestion_control}: {} and {} packets",
            other.packets.len(),
            off.packets.len()
        );
    }
}

/// Without congestion control nothing that a viewer reports changes its layer; with it an estimate does not that the
/// gateway has declined.
#[test]
fn reports_count_only_where_congestion_control_is_on_and_estimates_only_where_they_were_negotiated() {
    for (congestion_control, loss) in [(false, 0.25), (true, 0.0)] {
        let mut world = World::new(302, 1, 8192);
        world.congestion_control = congestion_control;
        world.publish("live", 0, near(), three_layers());
        world.run(4 * SECOND);
        let index = world.watch("live", 0, near());
        world.viewer(index).sends_reports = true;
        world.run(2 * SECOND);
        world.nodes[index].down.set_config(LinkConfig { loss, ..near() });
        let from = world.now;
        for _ in 0..10 {
            let mut compound = Vec::new();
            rtcp::write_receiver_report_with_cname(&mut compound, Ssrc(1), &[], "viewer");
            rtcp::write_remb(&mut compound, Ssrc(1), Ssrc(2), 100_000);
            world.viewer(index).plis.push(compound);
            world.run(SECOND);
        }
        let now = world.now;
        assert_eq!(layers_between(&mut world, index, from, now), [2]);
    }
}

/// Without transport-wide feedback the best layer is sent until two reports in a row speak against it; after calm ones it
/// is tried again.
#[test]
fn reports_take_a_viewer_without_feedback_down_and_bring_it_up_again() {
    let mut world = World::new(350, 1, 8192);
    world.publish("live", 0, near(), three_layers());
    world.run(4 * SECOND);
    let index = world.watch("live", 0, near());
    world.viewer(index).sends_reports = true;
    world.run(6 * SECOND);
    let now = world.now;
    assert_eq!(layers_between(&mut world, index, now - 5 * SECOND, now), [2]);
    world.nodes[index].down.set_config(LinkConfig { loss: 0.25, ..near() });
    let lossy = world.now;
    world.run(8 * SECOND);
    let lower = first_of_layer(&mut world, index, 1, lossy);
    assert!(lower.is_some_and(|lower| lower < 7 * SECOND), "{lower:?}");
    world.nodes[index].down.set_config(near());
    let calm = world.now;
    world.run(60 * SECOND);
    let best = first_of_layer(&mut world, index, 2, calm);
    println!("down after {lower:?}, up after {best:?}");
    assert!(best.is_some(), "it is tried again");
    assert_eq!(world.viewer(index).numbered, 0);
}

/// A satellite's round trip is no queue, although the first report has none.
#[test]
fn a_long_round_trip_takes_nothing_from_a_viewer_without_feedback() {
    let mut world = World::new(351, 1, 8192);
    world.publish("live", 0, near(), three_layers());
    world.run(4 * SECOND);
    let index = world.watch("live", 0, LinkConfig::delay(Duration::from_millis(400)));
    world.viewer(index).sends_reports = true;
    world.run(6 * SECOND);
    let from = world.now;
    world.run(30 * SECOND);
    let now = world.now;
    assert_eq!(layers_between(&mut world, index, from, now), [2]);
}

/// A path that becomes longer for good may look like a queue, but not for ever.
#[test]
fn a_round_trip_that_has_grown_for_good_is_the_new_base() {
    let mut world = World::new(352, 1, 8192);
    world.publish("live", 0, near(), three_layers());
    world.run(4 * SECOND);
    let index = world.watch("live", 0, near());
    world.viewer(index).sends_reports = true;
    world.run(6 * SECOND);
    let longer = LinkConfig::delay(Duration::from_millis(150));
    world.nodes[index].down.set_config(longer);
    world.nodes[index].up.set_config(longer);
    let stepped = world.now;
    world.run(60 * SECOND);
    let now = world.now;
    let seen = layers_between(&mut world, index, stepped, now);
    println!("layers after the step: {seen:?}");
    assert_eq!(layers_between(&mut world, index, now - 10 * SECOND, now), [2]);
}
