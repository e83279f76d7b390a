//! What a peer gains by checks of its own with a forged source: neither the address nor media for it (invariant 7).

use std::net::SocketAddr;
use std::time::Duration;

use millstream_core::session::CloseReason;
use millstream_core::shard::counters::RoutingDropReason;
use millstream_test_support::{IceStyle, VideoConfig};

use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, near};

const SHARDS: usize = 3;

/// What a client that starts anew where it was may wait for: a little longer than an address is held.
const PATIENCE: Duration = Duration::from_secs(3);

/// Shards of two sessions; the datagrams of both arrive at one that may be either's or a third.
fn pairs_of_shards() -> impl Iterator<Item = (usize, usize)> {
    (0..SHARDS).flat_map(|first| (0..SHARDS).map(move |second| (first, second)))
}

fn thin() -> VideoConfig {
    VideoConfig {
        bitrate: 200_000,
        ..VideoConfig::default()
    }
}

/// A publisher like FFmpeg, which sends no check after the handshake.
fn publish(world: &mut World, stream: &str, shard: usize) -> usize {
    let index = world.publish(stream, shard, near(), Publisher::deaf(thin()));
    world.nodes[index].peer.set_ice_style(IceStyle::FFMPEG);
    index
}

/// Delivers a check of one peer as if it came from this address. Returns its length.
fn forge(world: &mut World, thief: usize, source: SocketAddr) -> usize {
    let now = world.now;
    let peer = &mut world.nodes[thief].peer;
    peer.check_now(now);
    peer.handle_timeout(now);
    let checks: Vec<_> = std::iter::from_fn(|| peer.poll_transmit()).collect();
    assert!(!checks.is_empty());
    for check in &checks {
        world.inject(usize::from(source.port()) % SHARDS, source, &check.payload);
    }
    checks.iter().map(|check| check.payload.len()).sum()
}

/// A peer is gone without a word, and another one begins where it was.
fn succeed(world: &mut World, old: usize, new: usize) {
    let address = world.nodes[old].address;
    world.nodes[old].closed = true;
    world.nodes[old].address = SocketAddr::from(([192, 0, 2, 99], 9));
    world.nodes[new].address = address;
}

fn held(world: &World) -> u64 {
    let mut drops = world.shared.counters.dropped_datagram_counts();
    drops
        .find(|(reason, _)| *reason == RoutingDropReason::AddressHeld)
        .map_or(0, |(_, n)| n)
}

#[test]
fn invariant_7_no_check_takes_an_address_from_a_session_that_sends_from_it() {
    for (victim_on, thief_on) in pairs_of_shards() {
        println!("victim on shard {victim_on}, thief on {thief_on}");
        let mut world = World::new(701, SHARDS, 8192);
        let victim = publish(&mut world, "live", victim_on);
        world.run(SECOND);
        let viewer = world.watch("live", 0, near());
        let thief = world.watch("live", thief_on, near());
        world.run(SECOND);
        let address = world.nodes[victim].address;
        for _ in 0..50 {
            forge(&mut world, thief, address);
            world.run(Duration::from_millis(100));
        }
        assert_eq!(held(&world), 50, "none of them is answered");
        let newest = world.publisher(victim).newest();
        let viewer = world.viewer(viewer);
        assert!(viewer.whole_at.contains_key(&(newest - 1)));
        assert_eq!((viewer.video.holes(), viewer.check.corrupt()), (0, 0));
    }
}

#[test]
fn invariant_7_no_check_disturbs_a_handshake_at_its_address() {
    for (victim_on, thief_on) in pairs_of_shards() {
        println!("victim on shard {victim_on}, thief on {thief_on}");
        let mut world = World::new(711, SHARDS, 8192);
        publish(&mut world, "live", 0);
        world.run(SECOND);
        let thief = world.watch("live", thief_on, near());
        world.run(SECOND);
        let (victim, began) = (world.watch("live", victim_on, near()), world.now);
        let address = world.nodes[victim].address;
        // The thief is quicker than every round trip, but not than the first check.
        world.run(Duration::from_millis(15));
        for _ in 0..200 {
            forge(&mut world, thief, address);
            world.run(Duration::from_millis(1));
        }
        let connected = world.nodes[victim].connected_at.expect("connected");
        assert!(connected < began + Duration::from_millis(150));
    }
}

#[test]
fn a_client_that_starts_anew_at_its_address_connects_within_three_seconds_on_any_shard() {
    for (old_on, new_on) in pairs_of_shards() {
        println!("from shard {old_on} to {new_on}");
        let mut world = World::new(721, SHARDS, 8192);
        let old = publish(&mut world, "live", old_on);
        world.run(3 * SECOND);
        let new = publish(&mut world, "anew", new_on);
        succeed(&mut world, old, new);
        let began = world.now;
        world.run(PATIENCE);
        let connected = world.nodes[new].connected_at.expect("connected");
        println!("after {:?}", connected - began);
        // The rest of the old session expires without affecting others.
        let viewer = world.watch("anew", 0, near());
        world.run(32 * SECOND);
        assert_eq!(world.reason(old), Some(CloseReason::PeerSilent));
        let newest = world.publisher(new).newest();
        let viewer = world.viewer(viewer);
        assert!(viewer.whole_at.contains_key(&(newest - 1)));
        assert_eq!((viewer.video.holes(), viewer.check.corrupt()), (0, 0));
    }
}

#[test]
fn forged_checks_do_not_keep_out_the_host_whose_address_they_name() {
    for (host_on, thief_on) in pairs_of_shards() {
        println!("host on shard {host_on}, thief on {thief_on}");
        let mut world = World::new(731, SHARDS, 8192);
        publish(&mut world, "live", 0);
        world.run(SECOND);
        let thief = world.watch("live", thief_on, near());
        world.run(SECOND);
        let address = SocketAddr::from(([192, 0, 2, 7], 5_001));
        forge(&mut world, thief, address);
        let (host, began) = (world.watch("live", host_on, near()), world.now);
        world.nodes[host].address = address;
        while world.now < began + PATIENCE {
            forge(&mut world, thief, address);
            world.run(Duration::from_millis(20));
        }
        assert!(world.nodes[host].connected_at.is_some());
    }
}

/// A viewer who only listens says little: in a pause of more than two seconds its address can be taken, for a moment
/// and not for good.
#[test]
fn a_viewer_that_lost_its_address_in_a_pause_has_it_again_by_its_next_check() {
    for (victim_on, thief_on) in pairs_of_shards() {
        println!("victim on shard {victim_on}, thief on {thief_on}");
        let mut world = World::new(741, SHARDS, 8192);
        let publisher = publish(&mut world, "live", 0);
        world.run(SECOND);
        let thief = world.watch("live", thief_on, near());
        let victim = world.watch("live", victim_on, near());
        world.viewer(victim).nacks = false;
        world.run(SECOND);
        let address = world.nodes[victim].address;
        for round in 0..150 {
            forge(&mut world, thief, address);
            if round >= 100 {
                world.viewer(victim).ask_for_key_frame();
            }
            world.run(Duration::from_millis(100));
        }
        // The publisher is asked once a second at most.
        let requests = world.publisher(publisher).requests.len();
        assert!(requests >= 3, "{requests}");
        assert_eq!(world.viewer(victim).video.holes(), 0);
    }
}

#[test]
fn invariant_7_a_nomination_with_a_forged_source_sends_no_media_there() {
    for (shard, port) in pairs_of_shards() {
        println!("viewer on shard {shard}, forged checks at shard {port}");
        let mut world = World::new(751, SHARDS, 8192);
        let publisher = publish(&mut world, "live", 0);
        world.run(SECOND);
        let viewer = world.watch("live", shard, near());
        world.run(SECOND);
        let address = SocketAddr::from(([192, 0, 2, 7], 4_998 + port as u16));
        let mut forged = 0;
        for _ in 0..400 {
            forged += forge(&mut world, viewer, address);
            world.run(Duration::from_millis(100));
        }
        let sent = world.astray[&address];
        println!("{sent} bytes for {forged}");
        assert!(sent < 3 * forged, "{sent} bytes for {forged}");
        let newest = world.publisher(publisher).newest();
        let viewer = world.viewer(viewer);
        assert!(viewer.whole_at.contains_key(&(newest - 1)), "media stays where it was");
        assert_eq!((viewer.video.holes(), viewer.check.corrupt()), (0, 0));
    }
}
