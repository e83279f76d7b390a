//! Sources come and go under a viewer: it sees one line (invariant 3) that begins and resumes at key frames
//! (invariant 4).

use std::net::SocketAddr;
use std::time::Duration;

use millstream_core::media::MediaKind;
use millstream_core::session::CloseReason;
use millstream_test_support::{LinkConfig, VideoCodec, VideoConfig};

use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, near, ticks};

/// Frames of the second source are called from here on.
const SECOND_SOURCE: u32 = 10_000;

/// Another encoder, whose numbers have nothing to do with those of the first.
fn other() -> VideoConfig {
    VideoConfig {
        ssrc: 77,
        first_seq: 60_000,
        first_time: 4_294_900_000,
        first_number: SECOND_SOURCE,
        seed: 9,
        ..VideoConfig::default()
    }
}

/// The same encoder with VP8.
fn other_vp8() -> VideoConfig {
    VideoConfig {
        codec: VideoCodec::Vp8,
        pt: VideoConfig::vp8().pt,
        ..other()
    }
}

/// One line without a hole, whose times rise and never jump further than `longest`.
fn assert_unbroken(world: &mut World, index: usize, longest: Duration) {
    let viewer = world.viewer(index);
    assert_eq!((viewer.video.holes(), viewer.audio.holes()), (0, 0));
    assert_eq!((viewer.check.corrupt(), viewer.check.duplicates()), (0, 0));
    viewer.video.assert_steady(ticks(longest));
    let times: Vec<u64> = viewer.audio.packets.values().map(|s| s.time).collect();
    assert!(times.windows(2).all(|w| w[0] < w[1]), "audio never goes back");
}

/// All frames of the second source from its key frame on.
fn assert_follows_from_the_key_frame(world: &mut World, source: usize, index: usize) {
    let newest = world.publisher(source).newest();
    let whole = &world.viewer(index).whole_at;
    let of_second: Vec<u32> = whole.keys().copied().filter(|n| *n >= SECOND_SOURCE).collect();
    assert_eq!(of_second[0], SECOND_SOURCE, "begins at the key frame");
    assert!(of_second.windows(2).all(|w| w[1] == w[0] + 1), "nothing is left out");
    assert!(newest - of_second[of_second.len() - 1] <= 1, "up to the newest");
}

#[test]
fn invariant_3_the_same_encoder_returns_with_the_same_ssrc_and_new_numbers() {
    let mut world = World::new(201, 2, 8192);
    let first = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(2 * SECOND);
    let index = world.watch("live", 1, near());
    world.run(2 * SECOND);
    world.delete(first);
    world.run(2 * SECOND);
    let same_ssrc = VideoConfig {
        ssrc: VideoConfig::default().ssrc,
        ..other()
    };
    let second = world.publish("live", 0, near(), Publisher::deaf(same_ssrc));
    world.run(3 * SECOND);
    assert_eq!(world.reason(index), None);
    assert_unbroken(&mut world, index, Duration::from_millis(2_500));
    assert_follows_from_the_key_frame(&mut world, second, index);
}

#[test]
fn invariant_3_a_publisher_whose_packets_vanish_returns_before_its_session_is_given_up() {
    let mut world = World::new(211, 2, 8192);
    let first = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(2 * SECOND);
    let index = world.watch("live", 1, near());
    world.run(2 * SECOND);
    let dead = LinkConfig { loss: 1.0, ..near() };
    world.nodes[first].up.set_config(dead);
    world.nodes[first].down.set_config(dead);
    world.run(5 * SECOND);
    let second = world.publish("live", 1, near(), Publisher::deaf(other()));
    world.run(3 * SECOND);
    assert_eq!(world.reason(first), Some(CloseReason::TakenOver));
    assert_unbroken(&mut world, index, Duration::from_millis(5_500));
    assert_follows_from_the_key_frame(&mut world, second, index);
}

#[test]
fn invariant_3_a_takeover_while_both_send_leaves_one_line() {
    for (seed, shard) in [(221, 0), (222, 1)] {
        let mut world = World::new(seed, 2, 8192);
        let first = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
        world.run(2 * SECOND);
        let viewers = [world.watch("live", 0, near()), world.watch("live", 1, near())];
        world.run(2 * SECOND);
        let second = world.publish("live", shard, near(), Publisher::deaf(other()));
        world.run(3 * SECOND);
        assert_eq!(
            (world.reason(first), world.reason(second)),
            (Some(CloseReason::TakenOver), None)
        );
        for index in viewers {
            assert_unbroken(&mut world, index, Duration::from_millis(100));
            assert_follows_from_the_key_frame(&mut world, second, index);
            // Not one packet of the first came after one of the second.
            let viewer = world.viewer(index);
            let numbers: Vec<u32> = viewer
                .video
                .packets
                .values()
                .filter_map(|s| Some(s.stamp?.frame))
                .collect();
            assert!(numbers.is_sorted());
        }
    }
}

#[test]
fn invariant_3_two_publishers_that_take_over_from_each_other_leave_one_line() {
    let mut world = World::new(231, 2, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let index = world.watch("live", 0, near());
    let mut last = 0;
    for round in 0..10 {
        world.run(SECOND);
        let config = VideoConfig {
            ssrc: 1_000 + round,
            first_seq: (round * 7_919) as u16,
            first_time: round.wrapping_mul(800_000_000),
            first_number: (round + 1) * 1_000,
            ..VideoConfig::default()
        };
        last = world.publish("live", round as usize % 2, near(), Publisher::deaf(config));
    }
    world.run(SECOND);
    assert_unbroken(&mut world, index, Duration::from_millis(100));
    let newest = world.publisher(last).newest();
    assert!(world.viewer(index).whole_at.contains_key(&(newest - 1)));
}

#[test]
fn invariant_4_a_source_whose_key_frame_was_lost_begins_with_the_next_one() {
    let mut world = World::new(241, 1, 8192);
    let short = VideoConfig {
        gop: 30,
        ..VideoConfig::default()
    };
    let first = world.publish("live", 0, near(), Publisher::deaf(short));
    // What it sends for half a second is lost for good.
    world.publisher(first).paused = true;
    world.run(Duration::from_millis(600));
    world.publisher(first).paused = false;
    let index = world.watch("live", 0, near());
    world.run(2 * SECOND);
    let begins = world.viewer(index).whole_at.keys().copied().min().expect("frames");
    assert_eq!(begins, 30);
    let viewer = world.viewer(index);
    assert!(
        viewer
            .video
            .packets
            .values()
            .all(|s| s.stamp.is_none_or(|s| s.frame >= 30))
    );
    assert_unbroken(&mut world, index, Duration::from_millis(50));
}

#[test]
fn invariant_7_a_publisher_changes_its_network_and_no_viewer_notices() {
    let mut world = World::new(251, 2, 8192);
    let source = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let index = world.watch("live", 1, near());
    world.run(SECOND);
    // The new address is one whose datagrams arrive at the other shard.
    for port in [30_001, 30_002, 30_003] {
        world.move_to(source, SocketAddr::from(([192, 0, 2, 9], port)));
        world.run(2 * SECOND);
    }
    assert_eq!(world.reason(source), None);
    assert_unbroken(&mut world, index, Duration::from_millis(100));
    let newest = world.publisher(source).newest();
    assert!(world.viewer(index).whole_at.contains_key(&(newest - 1)));
}

#[test]
fn a_stream_that_changes_its_codec_goes_on_for_viewers_of_both() {
    let mut world = World::new(261, 2, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let index = world.watch_with_video("live", 1, near(), &[VideoCodec::H264, VideoCodec::Vp8]);
    world.run(SECOND);
    let second = world.publish("live", 0, near(), Publisher::deaf(other_vp8()));
    world.run(2 * SECOND);
    assert_unbroken(&mut world, index, Duration::from_millis(100));
    assert_follows_from_the_key_frame(&mut world, second, index);
    println!("measured: H.264 to VP8 in the same session: no packet missing, from the key frame on");
}

/// V-13.
#[test]
fn invariant_3_the_counters_inside_vp8_go_on_across_sources() {
    let mut world = World::new(271, 1, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::vp8()));
    world.run(SECOND);
    let index = world.watch_with_video("live", 0, near(), &[VideoCodec::Vp8]);
    world.run(SECOND);
    let second = world.publish("live", 0, near(), Publisher::deaf(other_vp8()));
    world.run(2 * SECOND);
    assert_unbroken(&mut world, index, Duration::from_millis(100));
    assert_follows_from_the_key_frame(&mut world, second, index);
    let counters: Vec<(u16, u8)> = world.viewer(index).vp8_counters.values().copied().collect();
    let steps = |from: (u16, u8), to: (u16, u8)| (to.0.wrapping_sub(from.0) & 0x7fff, to.1.wrapping_sub(from.1));
    for pair in counters.windows(2) {
        assert!([(0, 0), (1, 1)].contains(&steps(pair[0], pair[1])), "{pair:?}");
    }
}

#[test]
fn a_viewer_of_vp8_alone_gets_nothing_of_an_h264_stream_but_its_audio() {
    let mut world = World::new(281, 1, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let index = world.watch_with_video("live", 0, near(), &[VideoCodec::Vp8]);
    world.run(2 * SECOND);
    // A packet under a payload type or SSRC that was not answered would have been a panic of the viewer.
    let viewer = world.viewer(index);
    assert_eq!(viewer.video.packets.len(), 0);
    assert!(viewer.audio.packets.len() > 90);
}

/// The viewer joined a VP8 stream; an H.264 source took over and left again.
#[test]
fn invariant_3_packets_that_a_viewer_cannot_take_leave_no_hole_in_its_line() {
    let mut world = World::new(291, 1, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::vp8()));
    world.run(SECOND);
    let index = world.watch_with_video("live", 0, near(), &[VideoCodec::Vp8]);
    world.run(SECOND);
    let h264 = VideoConfig {
        ssrc: 5,
        ..VideoConfig::default()
    };
    world.publish("live", 0, near(), Publisher::deaf(h264));
    world.run(2 * SECOND);
    let vp8 = VideoConfig {
        codec: VideoCodec::Vp8,
        pt: VideoConfig::vp8().pt,
        ..other()
    };
    let third = world.publish("live", 0, near(), Publisher::deaf(vp8));
    world.run(2 * SECOND);
    assert_unbroken(&mut world, index, Duration::from_millis(2_200));
    assert_follows_from_the_key_frame(&mut world, third, index);
    assert_eq!(world.viewer(index).retransmitted, 0, "there was nothing to ask for");
    assert!(world.viewer(index).track(MediaKind::Video).rtx_ssrc.is_some());
}

/// The stream lived on for an old viewer; the video of the source that left is not for a new one.
#[test]
fn invariant_4_a_new_viewer_does_not_begin_with_what_an_earlier_source_sent() {
    let mut world = World::new(301, 1, 8192);
    let first = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let old = world.watch("live", 0, near());
    world.run(2 * SECOND);
    world.delete(first);
    world.run(20 * SECOND);
    let second = world.publish("live", 0, near(), Publisher::deaf(other()));
    world.publisher(second).paused = true;
    world.run(Duration::from_millis(200));
    let new = world.watch("live", 0, near());
    world.run(SECOND);
    assert_eq!(world.viewer(new).video.packets.len(), 0);
    world.publisher(second).paused = false;
    world.run(3 * SECOND);
    let frames =
        |world: &mut World, index: usize| -> Vec<u32> { world.viewer(index).whole_at.keys().copied().collect() };
    let seen = frames(&mut world, new);
    // One frame in sixty is a key frame; the first one was lost.
    assert_eq!(seen[0], SECOND_SOURCE + 60);
    let seen_by_old: Vec<u32> = frames(&mut world, old)
        .into_iter()
        .filter(|n| *n >= SECOND_SOURCE)
        .collect();
    assert_eq!(seen, seen_by_old);
}
