//! Viewers that change layers.

use std::time::Duration;

use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::LayerSelection;
use millstream_core::media::Rid;
use millstream_test_support::VideoConfig;

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
