//! Viewers that come again from a host whose path is known.

use crate::fanout::adaptation::{layers_between, path, three_layers, watch_with_feedback};
use crate::fanout::world::World;
use crate::fanout::{SECOND, near};

const MBIT: u64 = 1_000_000;

/// Reloading a page is not to cost a second of the lowest layer, and no queue of a layer that is too large.
#[test]
fn a_viewer_that_comes_again_begins_with_the_layer_that_its_path_carried() {
    for (rate, expected) in [(5 * MBIT, 2), (1_400_000, 1), (500_000, 0)] {
        let mut world = World::new(340, 2, 8192);
        world.publish("live", 0, near(), three_layers());
        world.run(SECOND);
        let first = watch_with_feedback(&mut world, path(rate));
        world.run(12 * SECOND);
        let begins = |world: &mut World, shares_host: bool| {
            let index = watch_with_feedback(world, path(rate));
            if shares_host {
                let host = world.nodes[first].address.ip();
                world.nodes[index].address.set_ip(host);
            }
            let joined = world.now;
            world.run(SECOND * 3 / 4);
            let until = world.now;
            let layers = layers_between(world, index, joined, until);
            world.delete(index);
            world.run(SECOND);
            layers
        };
        world.delete(first);
        world.run(SECOND);
        assert_eq!(
            begins(&mut world, false).first(),
            Some(&0),
            "another host, {rate} bit/s"
        );
        assert_eq!(begins(&mut world, true), [expected], "the same host, {rate} bit/s");
    }
}
