//! Viewers that change layers.

use std::time::Duration;

use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::LayerSelection;
use millstream_core::media::Rid;
use millstream_test_support::VideoConfig;

use crate::fanout::adaptation::{begin_feedback, layer, layers_between};
use crate::fanout::locks::add_layers;
use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, near};

/// A second subscription would send each packet of the layer twice, and keep the layer after the viewer has left.
#[test]
fn a_viewer_that_returns_to_its_layer_before_a_switch_is_complete_is_subscribed_once() {
    let mut world = World::new(78, 1, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let viewer = world.watch("live", 0, near());
    world.run(SECOND);
    add_layers(&world, ["h", "l"]);
    let viewers_of = |world: &World, rid: &str| {
        let name = StreamName::parse("live")
            .expect("a name")
            .lower_simulcast_layer_key(&Rid(rid.into()));
        let stream = world.shared.hub.find_stream(&name).expect("a layer with a source");
        stream.with_state(|state| state.viewer_count())
    };
    let layer = |rid: &str| LayerSelection::Named(Rid(rid.into()));
    world.choose_layer(viewer, layer("l"));
    // Nothing new comes on the layer, so the switch uses its cached key frame in the end.
    world.run(6 * SECOND);
    assert_eq!((viewers_of(&world, "h"), viewers_of(&world, "l")), (0, 1));
    for (other, of_h) in [(layer("h"), 1), (LayerSelection::Automatic, 0)] {
        world.choose_layer(viewer, other);
        world.run(Duration::from_millis(100));
        assert_eq!((viewers_of(&world, "h"), viewers_of(&world, "l")), (of_h, 1));
        world.choose_layer(viewer, layer("l"));
        world.run(Duration::from_millis(100));
        assert_eq!((viewers_of(&world, "h"), viewers_of(&world, "l")), (0, 1));
    }
    world.delete(viewer);
    world.run(SECOND);
    assert_eq!((viewers_of(&world, "h"), viewers_of(&world, "l")), (0, 0));
}

fn named(rid: &str) -> LayerSelection {
    LayerSelection::Named(Rid(rid.into()))
}

/// Adds a viewer, with feedback or without.
fn watch(world: &mut World, has_feedback: bool) -> usize {
    let mut offer = world.offer(0, 0);
    offer.transport_cc = has_feedback;
    let index = world.watch_with("live", 0, near(), &offer);
    if has_feedback {
        begin_feedback(world, index, near());
    }
    index
}

/// A publisher with one key frame in the lower layer, but for those that are requested, which the ring holds for 26 s.
fn simulcast_with_one_key_frame_in_the_lower_layer() -> Publisher {
    let lower = VideoConfig {
        gop: 0,
        ..layer(0, 2_500_000)
    };
    Publisher::simulcast(&[layer(1, 2_500_000), lower])
}

/// No key frame of the layer is in the ring: one is requested, and the best layer is not shown until then.
#[test]
fn a_viewer_that_selects_a_layer_before_it_is_connected_is_sent_no_other_one() {
    for (seed, has_feedback) in [(710, false), (711, true)] {
        let mut world = World::new(seed, 1, 8192);
        let publisher = world.publish("live", 0, near(), simulcast_with_one_key_frame_in_the_lower_layer());
        world.run(30 * SECOND);
        let begun = world.now;
        let viewer = watch(&mut world, has_feedback);
        world.choose_layer(viewer, named("1"));
        world.run(2 * SECOND);
        let now = world.now;
        assert_eq!(
            layers_between(&mut world, viewer, begun, now),
            [0],
            "feedback: {has_feedback}"
        );
        let first = *world.viewer(viewer).whole_at.values().min().expect("frames");
        let connected = world.nodes[viewer].connected_at.expect("connected");
        assert!(
            first < connected + Duration::from_millis(300),
            "{:?}",
            first - connected
        );
        let requests = world.publisher(publisher).requests.len();
        assert!((1..=2).contains(&requests), "{requests}");
        // What it selects now comes with the next key frame; until then it goes on.
        world.choose_layer(viewer, named("0"));
        world.run(3 * SECOND);
        let now = world.now;
        assert_eq!(layers_between(&mut world, viewer, begun, now), [0, 1]);
        assert_eq!(world.viewer(viewer).video.holes(), 0);
    }
}

/// The selection comes while the viewer waits for the key frame that was requested when it connected.
#[test]
fn a_viewer_that_selects_a_layer_before_its_first_frame_is_sent_no_other_one() {
    for (seed, has_feedback) in [(720, false), (721, true)] {
        let mut world = World::new(seed, 1, 8192);
        let rare = |index| VideoConfig {
            gop: 0,
            ..layer(index, 2_500_000)
        };
        world.publish("live", 0, near(), Publisher::simulcast(&[rare(1), rare(0)]));
        world.run(30 * SECOND);
        let begun = world.now;
        let viewer = watch(&mut world, has_feedback);
        while world.nodes[viewer].connected_at.is_none() {
            world.run(Duration::from_millis(1));
        }
        world.choose_layer(viewer, named("1"));
        world.run(2 * SECOND);
        let now = world.now;
        assert_eq!(
            layers_between(&mut world, viewer, begun, now),
            [0],
            "feedback: {has_feedback}"
        );
        let first = *world.viewer(viewer).whole_at.values().min().expect("frames");
        assert!(first < begun + SECOND, "{:?}", first - begun);
    }
}

/// A source that ignores requests for key frames may send none of the selected layer for long: better another one than none.
#[test]
fn a_viewer_whose_layer_has_no_key_frame_is_sent_the_best_one_after_a_while() {
    let mut world = World::new(730, 1, 8192);
    let publisher = simulcast_with_one_key_frame_in_the_lower_layer();
    let publisher = world.publish("live", 0, near(), publisher);
    world.run(30 * SECOND);
    world.publisher(publisher).ignores_key_frame_requests = true;
    let begun = world.now;
    let viewer = watch(&mut world, false);
    world.choose_layer(viewer, named("1"));
    world.run(4 * SECOND);
    let now = world.now;
    assert_eq!(layers_between(&mut world, viewer, begun, now), [0_u32; 0]);
    world.run(3 * SECOND);
    let now = world.now;
    assert_eq!(layers_between(&mut world, viewer, begun, now), [1]);
    world.publisher(publisher).ignores_key_frame_requests = false;
    world.run(3 * SECOND);
    let now = world.now;
    assert_eq!(layers_between(&mut world, viewer, now - SECOND, now), [0]);
    assert_eq!(world.viewer(viewer).video.holes(), 0);
}
