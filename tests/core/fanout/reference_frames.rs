//! Viewers whose path is smaller than the only layer, of a stream with frames that nothing refers to.

use std::time::Instant;

use millstream_core::congestion::QualityLimitationReason;
use millstream_core::congestion::ladder::FrameSelection;
use millstream_test_support::{LinkConfig, VideoCodec, VideoConfig};

use crate::fanout::adaptation::{begin_feedback, path, quality};
use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, near};

const MBIT: u64 = 1_000_000;

/// Of 2.5 Mbit/s, of which frames that nothing refers to have 46 %.
fn every_second_frame_unreferenced() -> VideoConfig {
    VideoConfig {
        has_non_reference_frames: true,
        ..VideoConfig::default()
    }
}

/// A path that carries 70 % of that.
fn seventy_percent() -> LinkConfig {
    path(19 * MBIT / 10)
}

/// The frames that were whole between two times, in their order.
fn whole_between(world: &mut World, index: usize, from: Instant, until: Instant) -> Vec<u32> {
    let frames = world.viewer(index).whole_at.iter();
    let within = frames.filter(|(_, at)| (from..until).contains(*at));
    within.map(|(frame, _)| *frame).collect()
}

/// Audio packets that came between two times, per second.
fn audio_per_second(world: &mut World, index: usize, from: Instant, until: Instant) -> f64 {
    let audio = world.viewer(index).audio.packets.values();
    let received = audio.filter(|seen| (from..until).contains(&seen.at)).count();
    received as f64 / until.duration_since(from).as_secs_f64()
}

#[test]
fn frames_that_nothing_refers_to_are_left_out_where_the_rest_fits() {
    for (seed, codec) in [(380, VideoCodec::H264), (381, VideoCodec::Vp8), (382, VideoCodec::H264)] {
        let mut world = World::new(seed, 1, 8192);
        let config = VideoConfig {
            codec,
            pt: if codec == VideoCodec::Vp8 {
                VideoConfig::vp8().pt
            } else {
                VideoConfig::default().pt
            },
            ..every_second_frame_unreferenced()
        };
        world.publish("live", 0, near(), Publisher::obedient(config));
        world.run(4 * SECOND);
        let mut offer = world.offer(0, 0);
        offer.transport_cc = true;
        offer.video = &[VideoCodec::H264, VideoCodec::Vp8];
        let index = world.watch_with("live", 0, path(5 * MBIT), &offer);
        begin_feedback(&mut world, index, path(5 * MBIT));
        world.run(6 * SECOND);
        assert_eq!(quality(&world, index).frames, FrameSelection::All);

        world.nodes[index].down.set_config(seventy_percent());
        let dropped = world.now;
        let mut limited_after = None;
        for _ in 0..200 {
            world.run(SECOND / 10);
            let quality = quality(&world, index);
            if quality.frames < FrameSelection::All && limited_after.is_none() {
                assert_eq!(quality.limitation_reason, QualityLimitationReason::Bandwidth);
                limited_after = Some(world.now.duration_since(dropped));
            }
        }
        let (from, until) = (dropped + 5 * SECOND, world.now);
        let whole = whole_between(&mut world, index, from, until);
        let audio = audio_per_second(&mut world, index, from, until);
        println!(
            "limited after {limited_after:?}; {} frames in 15 s; audio {audio:.1}/s",
            whole.len()
        );
        assert!(
            limited_after.is_some_and(|after| after <= 4 * SECOND),
            "{limited_after:?}"
        );
        assert_eq!(quality(&world, index).frames, FrameSelection::ReferenceFrames);
        // Each one that others refer to, and none of the others.
        let is_alternating = whole.windows(2).all(|pair| pair[1] == pair[0] + 2);
        assert!(is_alternating && whole.len() > 220, "{whole:?}");
        assert!(audio > 49.0, "{audio}");

        world.nodes[index].down.set_config(path(5 * MBIT));
        let back = world.now;
        world.run(12 * SECOND);
        let now = world.now;
        let whole = whole_between(&mut world, index, back, now);
        let resumed = whole
            .windows(2)
            .position(|pair| pair[1] == pair[0] + 1)
            .expect("all frames again");
        let resumed_after = world.viewer(index).whole_at[&whole[resumed]].duration_since(back);
        println!(
            "measured: all frames again after {resumed_after:.2?}, {} frames in 12 s",
            whole.len()
        );
        assert!(resumed_after < 8 * SECOND, "{resumed_after:?}");
        let skipped = whole.windows(2).filter(|pair| pair[1] > pair[0] + 2).count();
        assert_eq!(skipped, 0, "the picture never stops: {whole:?}");
        assert_eq!(
            (quality(&world, index).frames, quality(&world, index).limitation_reason),
            (FrameSelection::All, QualityLimitationReason::None)
        );
        let viewer = world.viewer(index);
        let received = viewer.video.packets.iter();
        let seqs: Vec<u64> = received
            .filter(|(_, seen)| seen.at >= from)
            .map(|(seq, _)| *seq)
            .collect();
        let holes = seqs.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
        assert_eq!((holes, viewer.check.corrupt()), (0, 0), "consecutive numbers");
        viewer.video.assert_steady(90 * 5_000);
    }
}
