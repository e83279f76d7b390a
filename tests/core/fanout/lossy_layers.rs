//! Simulcast layers of which packets were lost for good on the way from the publisher.

use std::time::{Duration, Instant};

use millstream_core::congestion::QualityLimitationReason;
use millstream_core::hub::stream::LayerSelection;
use millstream_core::media::Rid;

use crate::fanout::adaptation::{
    LAYER_NUMBERS, layer, layers_between, path, quality, three_layers, watch_with_feedback,
};
use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, near};

const MBIT: u64 = 1_000_000;

/// SSRC of a layer.
fn ssrc(index: u32) -> u32 {
    layer(index, 0).ssrc
}

/// As OBS: asked for a key frame it does nothing, there is one each two seconds.
fn deaf_layers() -> Publisher {
    let mut publisher = three_layers();
    publisher.ignores_key_frame_requests = true;
    publisher
}

/// Has a packet of a layer lost just after a key frame. Returns when.
fn lose_after_key_frame(world: &mut World, publisher: usize, index: u32) -> Instant {
    while (world.publisher(publisher).newest() - 2 * LAYER_NUMBERS) % 60 != 2 {
        world.run(Duration::from_millis(1));
    }
    world.publisher(publisher).loses_packet_of = Some(ssrc(index));
    world.run(Duration::from_millis(40));
    assert_eq!(world.publisher(publisher).loses_packet_of, None);
    world.now
}

#[test]
fn a_layer_that_lacks_packets_is_avoided_for_some_seconds_but_by_those_who_selected_it() {
    for seed in 390..392 {
        let mut world = World::new(seed, 1, 8192);
        let publisher = world.publish("live", 0, near(), deaf_layers());
        world.run(4 * SECOND);
        let automatic = watch_with_feedback(&mut world, path(8 * MBIT));
        let without_feedback = world.watch("live", 0, near());
        let pinned = watch_with_feedback(&mut world, path(8 * MBIT));
        world.choose_layer(pinned, LayerSelection::Named(Rid("0".into())));
        world.run(8 * SECOND);
        let lost = lose_after_key_frame(&mut world, publisher, 2);
        // Once more while it is avoided: viewers stay where they are.
        world.run(2 * SECOND);
        lose_after_key_frame(&mut world, publisher, 2);
        world.run(16 * SECOND);
        let now = world.now;
        for index in [automatic, without_feedback] {
            let frames = world.viewer(index).whole_at.iter();
            let avoided: Vec<Duration> = frames
                .filter(|(frame, at)| **frame / LAYER_NUMBERS == 1 && **at > lost)
                .map(|(_, at)| at.duration_since(lost))
                .collect();
            let (first, last) = (
                avoided.iter().min().expect("avoided"),
                avoided.iter().max().expect("avoided"),
            );
            println!("measured: another layer from {first:.2?} to {last:.2?} after the first of two losses");
            // Without feedback the rate of the path is not known: such a viewer waits for the next key frame.
            assert!(*first < 2 * SECOND && *last > 9 * SECOND, "{first:?} {last:?}");
            let of = |world: &mut World, from, until| layers_between(world, index, lost + from, lost + until);
            assert_eq!(of(&mut world, 3 * SECOND, 9 * SECOND), [1], "viewer {index}");
            assert_eq!(of(&mut world, 14 * SECOND, 18 * SECOND), [2], "viewer {index}");
            assert_eq!(quality(&world, index).limitation_reason, QualityLimitationReason::None);
            assert_eq!(world.viewer(index).check.corrupt(), 0);
        }
        assert_eq!(layers_between(&mut world, pinned, lost, now), [2], "pinned");
    }
}

#[test]
fn a_layer_that_lacks_packets_stays_where_nothing_lower_is_whole() {
    let mut world = World::new(393, 1, 8192);
    let publisher = world.publish("live", 0, near(), deaf_layers());
    world.run(4 * SECOND);
    let slow = watch_with_feedback(&mut world, path(8 * MBIT / 10));
    let middle = watch_with_feedback(&mut world, path(2 * MBIT));
    world.run(14 * SECOND);
    let lost = lose_after_key_frame(&mut world, publisher, 0);
    world.publisher(publisher).loses_packet_of = Some(ssrc(1));
    world.run(8 * SECOND);
    let now = world.now;
    assert_eq!(layers_between(&mut world, slow, lost, now), [0]);
    assert_eq!(layers_between(&mut world, middle, lost, now), [1]);
}

/// It takes as long to change the layer as to wait for the key frame.
#[test]
fn a_loss_that_a_key_frame_ends_at_once_changes_no_layer() {
    let mut world = World::new(394, 1, 8192);
    let publisher = world.publish("live", 0, near(), three_layers());
    world.run(4 * SECOND);
    let viewer = watch_with_feedback(&mut world, path(8 * MBIT));
    world.run(8 * SECOND);
    let lost = world.now;
    world.publisher(publisher).loses_packet_of = Some(ssrc(2));
    let requests = world.publisher(publisher).requests.len();
    world.run(10 * SECOND);
    let now = world.now;
    assert_eq!(layers_between(&mut world, viewer, lost, now), [2]);
    assert!(world.publisher(publisher).requests.len() > requests);
}

/// A layer that nobody watches is whole again when somebody needs it.
#[test]
fn a_key_frame_of_any_layer_is_requested_after_a_loss() {
    let mut world = World::new(395, 1, 8192);
    let no_key_frames = |index, bitrate| millstream_test_support::VideoConfig {
        gop: 0,
        ..layer(index, bitrate)
    };
    let layers = [(2, 2_500_000), (1, 1_000_000), (0, 300_000)].map(|(index, bitrate)| no_key_frames(index, bitrate));
    let publisher = world.publish("live", 0, near(), Publisher::simulcast(&layers));
    world.run(4 * SECOND);
    let viewer = watch_with_feedback(&mut world, path(8 * MBIT));
    world.run(8 * SECOND);
    world.publisher(publisher).loses_packet_of = Some(ssrc(1));
    world.run(8 * SECOND);
    let dropped = world.now;
    world.nodes[viewer].down.set_config(path(2 * MBIT));
    world.run(10 * SECOND);
    let now = world.now;
    assert_eq!(layers_between(&mut world, viewer, dropped + 3 * SECOND, now), [1]);
}
