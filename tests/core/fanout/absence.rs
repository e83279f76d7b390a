//! Viewers of a stream whose source is gone, or has fallen silent: nothing of it is shown again as if it were live.

use std::time::Duration;

use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::{LayerOrigin, LayerSelection, SimulcastLayer};
use millstream_core::media::Rid;
use millstream_test_support::{LinkConfig, VideoConfig};

use crate::fanout::adaptation::watch_with_feedback;
use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, long_gop, near};

/// Number of the first frame of the later source.
const LATER_SOURCE: u32 = 10_000;

fn later() -> VideoConfig {
    VideoConfig {
        ssrc: 77,
        first_seq: 60_000,
        first_time: 4_294_900_000,
        first_number: LATER_SOURCE,
        seed: 9,
        ..VideoConfig::default()
    }
}

/// How the source ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By DELETE: the gateway is notified at once.
    Deleted,
    /// Without a word, as when its process is killed or its network dies.
    Silent,
}

fn end(world: &mut World, source: usize, how: End) {
    match how {
        End::Deleted => world.delete(source),
        End::Silent => {
            let dead = LinkConfig { loss: 1.0, ..near() };
            world.nodes[source].up.set_config(dead);
            world.nodes[source].down.set_config(dead);
        }
    }
}

/// Asks for a key frame five times a second, as browsers do that cannot decode.
fn run_asking(world: &mut World, viewers: &[usize], seconds: u32) {
    for _ in 0..seconds * 5 {
        for viewer in viewers {
            world.viewer(*viewer).ask_for_key_frame();
        }
        world.run(Duration::from_millis(200));
    }
}

/// All datagrams of video that came, retransmissions included.
fn received(world: &mut World, viewer: usize) -> (usize, u64) {
    let viewer = world.viewer(viewer);
    (viewer.video.packets.len(), viewer.retransmitted)
}

/// The first frame of the later source that is whole, and how long after it was sent.
fn goes_on(world: &mut World, source: usize, viewer: usize) -> (u32, Duration) {
    let sent_at = world.publisher(source).sent_at.clone();
    let viewer = world.viewer(viewer);
    let (first, at) = viewer.whole_at.range(LATER_SOURCE..).next().expect("it goes on");
    (*first, at.duration_since(sent_at[first]))
}

/// Each request was answered with a replay of what the dead source had sent last, every three seconds.
#[test]
fn viewers_get_no_video_two_seconds_after_their_source_was_there() {
    for how in [End::Deleted, End::Silent] {
        println!("{how:?}");
        let mut world = World::new(801, 2, 8192);
        let source = world.publish("live", 0, near(), Publisher::deaf(long_gop()));
        world.run(4 * SECOND);
        let asking = [world.watch("live", 0, near()), world.watch("live", 1, near())];
        let listens = world.watch("live", 1, near());
        // Two replays before the end: a third would take two seconds.
        run_asking(&mut world, &asking, 8);
        assert!(
            world.viewer(asking[0]).check.duplicates() > 0,
            "replayed while it lives"
        );
        end(&mut world, source, how);
        run_asking(&mut world, &asking, 2);
        let viewers = [asking[0], asking[1], listens];
        let before = viewers.map(|viewer| received(&mut world, viewer));
        run_asking(&mut world, &asking, 20);
        assert_eq!(viewers.map(|viewer| received(&mut world, viewer)), before);

        // The same sessions go on with the first key frame of the next source.
        let source = world.publish("live", 1, near(), Publisher::deaf(later()));
        run_asking(&mut world, &asking, 2);
        for viewer in viewers {
            assert_eq!(world.reason(viewer), None);
            let (first, after) = goes_on(&mut world, source, viewer);
            assert_eq!(first, LATER_SOURCE);
            assert!(after < Duration::from_millis(300), "{after:?}");
            let viewer = world.viewer(viewer);
            assert_eq!((viewer.video.holes(), viewer.check.corrupt()), (0, 0));
            let times: Vec<u64> = viewer.video.packets.values().map(|seen| seen.time).collect();
            assert!(times.is_sorted(), "time never goes back");
        }
    }
}

/// A return is no start: the key frame of the next source leaves for each of many viewers as soon as it is there, however
/// long the last one has been away and whatever its rate was.
#[test]
fn many_viewers_see_the_first_key_frame_of_the_next_source_at_once() {
    for (away, before, after) in [
        (3, 2_500_000, 2_500_000),
        (12, 2_500_000, 2_500_000),
        (12, 300_000, 4_000_000),
    ] {
        let mut world = World::new(861, 2, 8192);
        let rate = |bitrate, config| VideoConfig { bitrate, ..config };
        let source = world.publish("live", 0, near(), Publisher::deaf(rate(before, VideoConfig::default())));
        world.run(2 * SECOND);
        let viewers: Vec<usize> = (0..20).map(|_| watch_with_feedback(&mut world, near())).collect();
        world.run(6 * SECOND);
        end(&mut world, source, End::Silent);
        run_asking(&mut world, &viewers, away);
        let source = world.publish("live", 1, near(), Publisher::deaf(rate(after, later())));
        run_asking(&mut world, &viewers, 2);
        let mut delays: Vec<Duration> = Vec::new();
        for viewer in viewers {
            let (first, after) = goes_on(&mut world, source, viewer);
            assert_eq!(first, LATER_SOURCE);
            delays.push(after);
        }
        delays.sort_unstable();
        println!(
            "away for {away} s, {before} then {after} bit/s: {:?} to {:?}",
            delays[0], delays[19]
        );
        assert!(delays[19] < Duration::from_millis(60), "{delays:?}");
    }
}

/// A network outage of some seconds, with an encoder that ignores key frame requests.
#[test]
fn a_viewer_that_asks_is_answered_again_when_the_same_source_goes_on() {
    let mut world = World::new(811, 1, 8192);
    let source = world.publish("live", 0, near(), Publisher::deaf(long_gop()));
    world.run(2 * SECOND);
    let viewer = world.watch("live", 0, near());
    run_asking(&mut world, &[viewer], 2);
    // Frames of the outage are lost, and the numbering continues.
    world.publisher(source).paused = true;
    run_asking(&mut world, &[viewer], 4);
    let before = world.viewer(viewer).check.duplicates();
    world.publisher(source).paused = false;
    run_asking(&mut world, &[viewer], 4);
    assert!(world.viewer(viewer).check.duplicates() > before, "replayed");
    world.run(4 * SECOND);
    let newest = world.publisher(source).newest();
    assert!(world.viewer(viewer).whole_at.contains_key(&(newest - 1)));
}

/// The offer was answered while there was a source, and the connection is made after it has left.
#[test]
fn a_viewer_who_connects_after_the_source_has_left_is_not_shown_its_last_seconds() {
    for shard in [0, 1] {
        let mut world = World::new(821, 2, 8192);
        let source = world.publish("live", 0, near(), Publisher::deaf(long_gop()));
        world.run(5 * SECOND);
        let early = world.watch("live", 0, near());
        world.run(SECOND);
        let late = world.watch("live", shard, near());
        world.delete(source);
        run_asking(&mut world, &[late], 5);
        assert!(world.nodes[late].connected_at.is_some());
        assert_eq!(received(&mut world, late), (0, 0));
        let source = world.publish("live", 0, near(), Publisher::deaf(later()));
        world.run(2 * SECOND);
        for viewer in [early, late] {
            let (first, after) = goes_on(&mut world, source, viewer);
            assert_eq!(first, LATER_SOURCE);
            assert!(after < Duration::from_millis(300), "{after:?}");
            assert_eq!(world.viewer(viewer).video.holes(), 0);
        }
    }
}

/// The burst with which a viewer begins ends with its source.
#[test]
fn a_burst_is_not_finished_without_its_source() {
    let mut world = World::new(831, 1, 8192);
    let source = world.publish("live", 0, near(), Publisher::deaf(long_gop()));
    world.run(Duration::from_millis(9_500));
    let newest = world.publisher(source).newest();
    let viewer = world.watch("live", 0, near());
    while world.viewer(viewer).whole_at.len() < 10 {
        world.run(Duration::from_millis(5));
    }
    world.delete(source);
    run_asking(&mut world, &[viewer], 5);
    let shown = world.viewer(viewer).whole_at.len();
    assert!(shown < newest as usize / 2, "{shown} of {newest}");
    let source = world.publish("live", 0, near(), Publisher::deaf(later()));
    world.run(2 * SECOND);
    let (first, after) = goes_on(&mut world, source, viewer);
    assert_eq!(first, LATER_SOURCE);
    assert!(after < Duration::from_millis(300), "{after:?}");
    let viewer = world.viewer(viewer);
    assert_eq!((viewer.video.holes(), viewer.check.corrupt()), (0, 0));
}

/// A viewer that begins with the answer of its source instead of the cache does not begin with the cache after all.
#[test]
fn a_viewer_that_waits_for_an_answer_waits_on_when_its_source_leaves() {
    let mut world = World::new(841, 1, 8192);
    let only_first = VideoConfig {
        gop: 0,
        ..VideoConfig::default()
    };
    let source = world.publish("live", 0, near(), Publisher::obedient(only_first));
    world.run(8 * SECOND);
    // It has to show first that it answers: key frames at regular times would not show it.
    for seconds in [4, 6, 3, 7] {
        let index = world.watch("live", 0, near());
        world.run(seconds * SECOND);
        world.delete(index);
        world.run(2 * SECOND);
    }
    let stays = world.watch("live", 0, near());
    world.run(3 * SECOND);
    let viewer = world.watch("live", 0, near());
    while world.nodes[viewer].connected_at.is_none() {
        world.run(Duration::from_millis(1));
    }
    world.delete(source);
    run_asking(&mut world, &[viewer], 5);
    assert_eq!(received(&mut world, viewer), (0, 0));
    let source = world.publish("live", 0, near(), Publisher::deaf(later()));
    world.run(2 * SECOND);
    for viewer in [stays, viewer] {
        assert_eq!(goes_on(&mut world, source, viewer).0, LATER_SOURCE);
    }
}

/// What a receiver asks for again long after the source has left is not sent again.
#[test]
fn nothing_is_retransmitted_long_after_the_source_has_left() {
    let mut world = World::new(851, 1, 8192);
    let source = world.publish("live", 0, near(), Publisher::deaf(long_gop()));
    world.run(2 * SECOND);
    let viewer = world.watch("live", 0, near());
    world.run(2 * SECOND);
    // Asked for right after the end it is: the last frame may have lost a packet.
    world.delete(source);
    world.run(SECOND);
    world.viewer(viewer).ask_again(20);
    world.run(SECOND / 2);
    let before = world.viewer(viewer).retransmitted;
    assert!(before > 0);
    world.run(SECOND);
    world.viewer(viewer).ask_again(20);
    world.run(SECOND);
    assert_eq!(world.viewer(viewer).retransmitted, before);
}

/// The layer is listed, and nothing of it has come yet: its time to begin with the cache passes.
#[test]
fn a_viewer_that_waits_for_a_layer_without_a_source_goes_on_and_wakes_nobody() {
    let mut world = World::new(861, 1, 8192);
    let source = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let viewer = world.watch("live", 0, near());
    world.run(SECOND);
    let wakes = |world: &mut World| {
        let before = world.timeouts;
        world.run(SECOND);
        world.timeouts - before
    };
    let usual = wakes(&mut world);
    let rid = Rid("q".into());
    let name = StreamName::parse("live").expect("a name");
    let stream = world.shared.hub.find_stream(&name).expect("published");
    let layer = SimulcastLayer {
        rid: rid.clone(),
        resolution: None,
        measured_bitrate: 1,
        active: true,
        is_carried_by_main_stream: false,
        is_lossy: false,
        origin: LayerOrigin::Pushed,
    };
    stream.with_state(|state| state.set_layers(vec![layer]));
    world.choose_layer(viewer, LayerSelection::Named(rid));
    world.run(6 * SECOND);
    let waiting = wakes(&mut world);
    assert!(waiting <= 2 * usual, "{waiting} a second, {usual} before");
    let newest = world.publisher(source).newest();
    assert!(world.viewer(viewer).whole_at.contains_key(&(newest - 1)));
}
