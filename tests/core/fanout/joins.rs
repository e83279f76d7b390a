//! Viewers that come late, all at once, or over bad networks.

use std::time::Duration;

use millstream_core::media::MediaKind;
use millstream_test_support::{LinkConfig, VideoConfig};

use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, long_gop, near, ticks};

/// The delays of the publisher's and the viewer's link, 10 ms each, and two clock steps.
const WAY: Duration = Duration::from_millis(22);

#[test]
fn a_late_viewer_is_at_the_live_edge_within_600_ms_and_nothing_after_that_is_late() {
    for (seed, phase) in [(401, 1_300), (402, 5_000), (403, 9_300)] {
        let mut world = World::new(seed, 1, 8192);
        let publisher = world.publish("live", 0, near(), Publisher::deaf(long_gop()));
        world.run(Duration::from_millis(phase));
        let index = world.watch("live", 0, near());
        world.run(3 * SECOND);
        let sent_at = world.publisher(publisher).sent_at.clone();
        let connected = world.nodes[index].connected_at.expect("connected");
        let viewer = world.viewer(index);
        // The key frame is sent at the end of the handshake.
        assert_eq!(viewer.whole_at.keys().next(), Some(&0));
        let first = viewer.whole_at[&0].duration_since(connected);
        assert!(first < Duration::from_millis(60), "{first:?}");
        // All of it, in order, bit by bit.
        assert!(viewer.whole_at.values().is_sorted());
        assert!(viewer.whole_at.keys().copied().eq(0..viewer.whole_at.len() as u32));
        assert_eq!(
            (viewer.video.holes(), viewer.check.corrupt(), viewer.check.duplicates()),
            (0, 0, 0)
        );
        // The first moment at which the newest frame there is has just arrived.
        let age = |frame: &u32| viewer.whole_at[frame].duration_since(sent_at[frame]);
        let live = viewer
            .whole_at
            .keys()
            .find(|frame| age(frame) <= WAY)
            .expect("gets there");
        let took = viewer.whole_at[live].duration_since(connected);
        println!("joined {phase} ms into the interval: live after {took:?}, with frame {live}");
        assert!(took <= Duration::from_millis(600), "{took:?}");
        assert!(
            viewer.whole_at.range(live..).all(|(frame, _)| age(frame) <= WAY),
            "stays there"
        );
        viewer.video.assert_steady(ticks(Duration::from_millis(50)));
        // Strictly rising from frame to frame, squeezed ones included.
        let firsts = viewer
            .video
            .packets
            .values()
            .filter(|s| s.stamp.is_some_and(|s| s.index == 0));
        let times: Vec<u64> = firsts.map(|s| s.time).collect();
        assert!(times.windows(2).all(|w| w[0] < w[1]));
        // What was squeezed spans no more than the burst took.
        let squeezed = times[*live as usize] - times[0];
        assert!(squeezed <= ticks(Duration::from_millis(600)), "{squeezed}");
        // Audio begins at the live edge: its frames are as old as the way is long.
        let first_audio = viewer.audio.packets.values().next().expect("audio");
        let begins = Duration::from_millis(20) * first_audio.stamp.expect("stamped").frame;
        let before = first_audio.at.duration_since(sent_at[&0]).saturating_sub(begins);
        assert!(before <= WAY, "{before:?}");
    }
}

#[test]
fn reports_begin_when_the_catch_up_is_over_and_put_audio_and_video_on_one_clock() {
    for (seed, phase) in [(411, 4_000), (412, 9_500)] {
        let mut world = World::new(seed, 1, 8192);
        let publisher = world.publish("live", 0, near(), Publisher::deaf(long_gop()));
        world.run(Duration::from_millis(phase));
        let index = world.watch("live", 0, near());
        for _ in 0..30 {
            world.run(Duration::from_millis(200));
            let sent_at = world.publisher(publisher).sent_at.clone();
            let viewer = world.viewer(index);
            let ssrc = viewer.track(MediaKind::Video).ssrc.0;
            if !viewer.reports.contains_key(&ssrc) {
                continue;
            }
            let newest = viewer.whole_at.last_key_value().expect("a report without a frame").0;
            let behind = sent_at.keys().max().expect("sent") - newest;
            assert!(behind <= 1, "reported {behind} frames behind");
            if viewer.reports.len() == 2 {
                let offset = viewer.audio_video_offset();
                assert!(offset.abs() < 0.020, "{offset}");
            }
        }
        assert_eq!(world.viewer(index).reports.len(), 2);
    }
}

/// Both clocks of the publisher run a little wrong, and are set by its reports.
#[test]
fn audio_and_video_stay_on_one_clock_over_minutes_and_sources() {
    let mut world = World::new(421, 1, 8192);
    let quiet = VideoConfig {
        bitrate: 200_000,
        ..VideoConfig::default()
    };
    let first = world.publish("live", 0, near(), Publisher::deaf(quiet));
    world.run(SECOND);
    let index = world.watch("live", 0, near());
    world.run(90 * SECOND);
    let offset = world.viewer(index).audio_video_offset();
    assert!(offset.abs() < 0.020, "{offset}");
    world.delete(first);
    world.run(2 * SECOND);
    let returned = VideoConfig {
        ssrc: 99,
        first_time: 77_000_000,
        ..quiet
    };
    world.publish("live", 0, near(), Publisher::deaf(returned));
    world.run(10 * SECOND);
    let returned = world.viewer(index).audio_video_offset();
    println!(
        "measured: audio {:.1} ms beside video after 90 s, {:.1} ms after the next source",
        offset * 1e3,
        returned * 1e3
    );
    assert!(returned.abs() < 0.020, "after the return: {returned}");
}

#[test]
fn a_late_viewer_on_a_bad_network_has_the_whole_interval_in_the_end() {
    for seed in 431..434 {
        let mut world = World::new(seed, 1, 8192);
        let publisher = world.publish("live", 0, near(), Publisher::deaf(long_gop()));
        world.run(5 * SECOND);
        let link = LinkConfig {
            loss: 0.05,
            jitter: Duration::from_millis(10),
            duplicate: 0.01,
            ..LinkConfig::delay(Duration::from_millis(50))
        };
        let index = world.watch("live", 0, link);
        world.run(4 * SECOND);
        let sent = world.publisher(publisher).newest();
        let viewer = world.viewer(index);
        let whole = viewer.check.whole().filter(|frame| *frame + 15 < sent).count() as u32;
        println!(
            "measured: {whole} of {} frames whole, {} packets retransmitted",
            sent - 15,
            viewer.retransmitted
        );
        assert!(whole * 100 >= (sent - 15) * 99);
        assert_eq!(viewer.check.corrupt(), 0);
        viewer.video.assert_steady(ticks(Duration::from_millis(400)));
    }
}

/// Two hundred at once, on two shards: nobody waits for another.
#[test]
fn invariant_5_many_viewers_that_join_at_once_are_all_served() {
    let mut world = World::new(441, 2, 8192);
    let light = VideoConfig {
        bitrate: 500_000,
        gop: 150,
        ..VideoConfig::default()
    };
    let publisher = world.publish("live", 0, near(), Publisher::deaf(light));
    world.run(4 * SECOND);
    let viewers: Vec<usize> = (0..200).map(|i| world.watch("live", i % 2, near())).collect();
    world.run(2 * SECOND);
    let newest = world.publisher(publisher).newest();
    for index in viewers {
        let viewer = world.viewer(index);
        assert_eq!(
            (viewer.video.holes(), viewer.check.corrupt(), viewer.check.duplicates()),
            (0, 0, 0)
        );
        assert!(viewer.whole_at.contains_key(&(newest - 1)));
        viewer.video.assert_steady(ticks(Duration::from_millis(50)));
    }
}

#[test]
fn a_viewer_whose_network_was_away_for_twenty_seconds_comes_back() {
    for away in [2, 10, 25] {
        let mut world = World::new(450 + away, 1, 8192);
        let publisher = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
        world.run(SECOND);
        let index = world.watch("live", 0, near());
        world.run(2 * SECOND);
        let dead = LinkConfig { loss: 1.0, ..near() };
        world.nodes[index].up.set_config(dead);
        world.nodes[index].down.set_config(dead);
        world.run(Duration::from_secs(away));
        world.nodes[index].up.set_config(near());
        world.nodes[index].down.set_config(near());
        world.run(Duration::from_millis(100));
        let back = world.publisher(publisher).newest();
        world.run(3 * SECOND);
        assert_eq!(world.reason(index), None);
        let newest = world.publisher(publisher).newest();
        let viewer = world.viewer(index);
        let missing = (back..newest)
            .filter(|frame| !viewer.whole_at.contains_key(frame))
            .count();
        println!(
            "measured: away for {away} s: session kept, {missing} of {} frames missing from 100 ms after it",
            newest - back
        );
        assert_eq!(missing, 0);
        let times: Vec<u64> = viewer.video.packets.values().map(|s| s.time).collect();
        assert!(times.is_sorted(), "time never goes back");
    }
}
