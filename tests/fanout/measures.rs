//! What is counted is what happened: two publishers, ten viewers, three per cent of loss.

use std::sync::atomic::Ordering;
use std::time::Duration;

use millstream::hub::name::StreamName;
use millstream_test_support::{LinkConfig, VideoConfig};

use crate::publisher::Publisher;
use crate::world::World;
use crate::{SECOND, near};

const SECONDS: u32 = 30;

/// Whether a measure is that of the other side, but for what the network lost of the telling.
fn assert_near(what: &str, counted: f64, happened: f64, tolerance: f64) {
    let apart = (counted - happened).abs() / happened.max(1.0);
    println!("{what}: counted {counted:.1}, happened {happened:.1}");
    assert!(apart <= tolerance, "{what}: counted {counted}, happened {happened}");
}

#[test]
fn measures_are_those_of_the_clients() {
    let lossy = LinkConfig {
        loss: 0.03,
        ..LinkConfig::delay(Duration::from_millis(20))
    };
    let mut world = World::new(21, 2, 8192);
    for (shard, (stream, ssrc)) in [("one", 1_000), ("two", 2_000)].into_iter().enumerate() {
        let config = VideoConfig {
            ssrc,
            ..VideoConfig::default()
        };
        world.publish(stream, shard, near(), Publisher::deaf(config));
    }
    world.run(SECOND);
    let viewers: Vec<usize> = (0..10)
        .map(|n| world.watch(if n < 6 { "one" } else { "two" }, n % 2, lossy))
        .collect();
    world.run(SECONDS * SECOND);

    let shared = world.shared.clone();
    let counters = &shared.counters;
    let asked: u64 = viewers.iter().map(|index| world.viewer(*index).asked).sum();
    let nacked = counters.nacked.load(Ordering::Relaxed) as f64;
    // Three in a hundred requests are lost too.
    assert_near("packets asked for again", nacked, asked as f64 * 0.97, 0.02);
    let received: usize = viewers
        .iter()
        .map(|index| {
            let viewer = world.viewer(*index);
            viewer.video.packets.len() + viewer.audio.packets.len()
        })
        .sum();
    // Of what was lost on the way a part is not asked for: sound, and what was asked for once too often.
    let missed = asked as f64 / (received as f64 + asked as f64);
    assert!((0.02..0.05).contains(&missed), "{missed}");
    assert_eq!(
        counters.connecting.cumulative().last(),
        Some(&12),
        "all of them connected"
    );
    let mean = counters.connecting.sum() / 12.0;
    assert!((0.02..2.0).contains(&mean), "{mean} s");
    assert_eq!(
        counters.key_frames_wanted.load(Ordering::Relaxed),
        0,
        "nobody asked for one"
    );
    assert_eq!(shared.registry.live(), 12);
    for (name, watching) in [("one", 6), ("two", 4)] {
        let stream = shared
            .hub
            .find(&StreamName::parse(name).expect("a name"))
            .expect("live");
        let state = stream.lock();
        assert_eq!(state.viewers(), watching, "{name}");
        let rate = state.video.meter.rate(world.now);
        assert_near("pictures per second", rate.frames, 30.0, 0.05);
        assert_near(
            "bits per second",
            rate.bitrate as f64,
            f64::from(VideoConfig::default().bitrate),
            0.2,
        );
        let interval = state.video.key_frame_interval().expect("two of them").as_secs_f64();
        let gop = f64::from(VideoConfig::default().gop) / 30.0;
        assert_near("seconds between key frames", interval, gop, 0.05);
    }
}
