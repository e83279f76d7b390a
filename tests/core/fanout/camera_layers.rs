//! A stream whose layers are pulled from several sources, as the main and the sub stream of a camera: each viewer is sent the
//! layer for its path and its decoder, and only what somebody watches is pulled.

use std::time::Duration;

use millstream_core::congestion::QualityLimitationReason;
use millstream_core::hub::name::{SourceName, StreamName};
use millstream_core::hub::stream::{LayerSelection, SimulcastLayer};
use millstream_core::media::Rid;
use millstream_core::sources::failover_group::settings::{FailoverSourceSettings, FailoverTimes, SourceLayerSettings};
use millstream_test_support::{VideoCodec, VideoConfig};

use crate::fanout::adaptation::{LAYER_NUMBERS, layers_between, path, quality, watch_with_feedback};
use crate::fanout::failover_group::stream_key;
use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, near};

const TIMES: FailoverTimes = FailoverTimes {
    hold_off: Duration::from_secs(2),
    stall_timeout: Duration::from_millis(400),
};

/// Layers as [`layers_between`] has them.
const MAIN: u32 = 1;
const SUB: u32 = 0;

/// A camera that is connected while its stream is demanded, as the gateway does it. Indexes of the nodes.
struct Camera {
    main: Option<usize>,
    sub: Option<usize>,
    /// Its main stream cannot be connected.
    is_main_broken: bool,
    main_codec: VideoCodec,
    sessions: u32,
}

impl Camera {
    /// Makes the stream `live` of a camera.
    fn start(world: &World, on_demand: bool) -> Self {
        let settings = |name: &str| {
            let name = SourceName::parse(name).expect("a source name");
            FailoverSourceSettings {
                key: live().failover_source_key(&name),
                name,
                runs_on_demand: true,
            }
        };
        let sources = (
            ["main", "sub"].map(settings).to_vec(),
            SourceLayerSettings { on_demand },
        );
        world
            .shared
            .failover_groups
            .add_with_layers(&world.shared.hub, live(), sources, TIMES);
        Self {
            main: None,
            sub: None,
            is_main_broken: false,
            main_codec: VideoCodec::H264,
            sessions: 0,
        }
    }

    fn run(&mut self, world: &mut World, duration: Duration) {
        let end = world.now + duration;
        while world.now < end {
            for (name, is_main) in [("live=main", true), ("live=sub", false)] {
                let connected = if is_main { &mut self.main } else { &mut self.sub };
                let is_wanted = is_demanded(world, name) && !(is_main && self.is_main_broken);
                match (is_wanted, connected.take()) {
                    (true, None) => {
                        self.sessions += 1;
                        let encoder = encoder(is_main, self.main_codec, self.sessions);
                        *connected = Some(world.publish(name, 0, near(), Publisher::deaf(encoder)));
                    }
                    (false, Some(index)) => world.delete(index),
                    (_, before) => *connected = before,
                }
            }
            world.run(Duration::from_millis(50));
        }
    }

    /// Which streams are connected: main and sub.
    fn connections(&self) -> (bool, bool) {
        (self.main.is_some(), self.sub.is_some())
    }
}

fn encoder(is_main: bool, main_codec: VideoCodec, session: u32) -> VideoConfig {
    let layer = if is_main { MAIN } else { SUB };
    let config = match (is_main, main_codec) {
        (true, VideoCodec::Vp8) => VideoConfig::vp8(),
        _ => VideoConfig::default(),
    };
    VideoConfig {
        ssrc: 1_000 + session,
        first_seq: (session * 7_919) as u16,
        first_time: session.wrapping_mul(800_000_000),
        first_number: layer * LAYER_NUMBERS + session * 10_000,
        bitrate: if is_main { 2_500_000 } else { 300_000 },
        gop: 30,
        seed: u64::from(session),
        ..config
    }
}

fn live() -> StreamName {
    StreamName::parse("live").expect("a name")
}

fn is_demanded(world: &World, key: &str) -> bool {
    let stream = world.shared.hub.find_stream(stream_key(key));
    stream.is_some_and(|stream| stream.with_state(|state| state.has_consumers()))
}

fn layers(world: &World) -> Vec<SimulcastLayer> {
    let stream = world.shared.hub.find_stream(live()).expect("it is live");
    stream.with_state(|state| state.layers().to_vec())
}

/// The layers that a viewer has been sent in the last seconds.
fn recent(world: &mut World, index: usize, duration: Duration) -> Vec<u32> {
    let now = world.now;
    layers_between(world, index, now - duration, now)
}

/// One line without a hole, whose times rise, and frames that follow each other from a key frame on.
fn assert_unbroken(world: &mut World, index: usize, longest: Duration) {
    assert_eq!(world.reason(index), None);
    let viewer = world.viewer(index);
    assert_eq!((viewer.video.holes(), viewer.audio.holes()), (0, 0));
    assert_eq!((viewer.check.corrupt(), viewer.check.duplicates()), (0, 0));
    viewer.video.assert_steady(longest.as_millis() as u64 * 90);
    let times: Vec<u64> = viewer.audio.packets.values().map(|seen| seen.time).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "audio never goes back");
    let mut frames: Vec<u32> = Vec::new();
    for frame in viewer.video.packets.values().filter_map(|seen| Some(seen.stamp?.frame)) {
        if frames.last() != Some(&frame) {
            frames.push(frame);
        }
    }
    for pair in frames.windows(2) {
        let begins = (pair[1] % 10_000).is_multiple_of(30);
        assert!(pair[1] == pair[0] + 1 || begins, "frame {} after {}", pair[1], pair[0]);
    }
}

fn named(rid: &str) -> LayerSelection {
    LayerSelection::Named(Rid(rid.into()))
}

#[test]
fn the_main_stream_is_pulled_for_those_who_watch_it_and_its_loss_leaves_them_the_sub_stream() {
    let mut world = World::new(601, 1, 8192);
    let mut camera = Camera::start(&world, false);
    camera.run(&mut world, 3 * SECOND);
    assert_eq!(camera.connections(), (true, true), "the size of each is measured");
    camera.run(&mut world, 3 * SECOND);
    assert_eq!(camera.connections(), (false, true), "nobody watches");
    let [main, sub] = &layers(&world)[..] else {
        panic!("{:?}", layers(&world))
    };
    assert!(
        !main.active && main.is_available() && main.measured_bitrate > 2_000_000,
        "{main:?}"
    );
    assert!(
        sub.active && sub.is_carried_by_main_stream && sub.measured_bitrate < 500_000,
        "{sub:?}"
    );

    let small = world.watch("live", 0, near());
    world.run(Duration::from_millis(5));
    world.choose_layer(small, named("sub"));
    camera.run(&mut world, 3 * SECOND);
    assert_eq!(
        camera.connections(),
        (false, true),
        "the sub stream alone serves a small viewer"
    );

    let large = world.watch("live", 0, near());
    camera.run(&mut world, 4 * SECOND);
    assert_eq!(camera.connections(), (true, true));
    assert_eq!(recent(&mut world, large, SECOND), [MAIN]);
    assert_eq!(recent(&mut world, small, 6 * SECOND), [SUB]);

    // The main stream ends and cannot be connected for a while.
    camera.is_main_broken = true;
    camera.run(&mut world, SECOND);
    assert_eq!(recent(&mut world, large, SECOND / 2), [SUB]);
    camera.run(&mut world, 10 * SECOND);
    assert!(is_demanded(&world, "live=main"), "it is tried again");
    assert!(!layers(&world)[0].is_available());
    camera.is_main_broken = false;
    camera.run(&mut world, 2 * SECOND);
    assert_eq!(recent(&mut world, large, SECOND), [SUB], "not before the hold-off");
    camera.run(&mut world, 4 * SECOND);
    assert_eq!(recent(&mut world, large, SECOND), [MAIN]);

    for viewer in [small, large] {
        assert_unbroken(&mut world, viewer, Duration::from_millis(700));
    }
    world.delete(large);
    camera.run(&mut world, SECOND);
    assert_eq!(camera.connections(), (false, true));
    assert_eq!(recent(&mut world, small, 20 * SECOND), [SUB]);
}

#[test]
fn the_sub_stream_that_ends_leaves_its_viewers_the_main_stream() {
    let mut world = World::new(611, 1, 8192);
    let mut camera = Camera::start(&world, false);
    camera.run(&mut world, 6 * SECOND);
    let viewer = world.watch("live", 0, near());
    world.run(Duration::from_millis(5));
    world.choose_layer(viewer, named("sub"));
    camera.run(&mut world, 2 * SECOND);
    let sub = camera.sub.expect("it is connected");
    world.publisher(sub).is_frozen = true;
    camera.run(&mut world, 3 * SECOND);
    assert_eq!(recent(&mut world, viewer, SECOND), [MAIN]);
    world.publisher(sub).is_frozen = false;
    camera.run(&mut world, 6 * SECOND);
    assert_eq!(recent(&mut world, viewer, SECOND), [SUB]);
    assert_unbroken(&mut world, viewer, 2 * SECOND);
}

#[test]
fn a_viewer_with_feedback_gets_the_layer_that_its_path_carries_and_the_main_stream_runs_for_that() {
    let mut world = World::new(621, 1, 8192);
    let mut camera = Camera::start(&world, false);
    camera.run(&mut world, 6 * SECOND);
    let narrow = watch_with_feedback(&mut world, path(800_000));
    camera.run(&mut world, 10 * SECOND);
    assert_eq!(camera.connections(), (false, true));
    let wide = watch_with_feedback(&mut world, path(8_000_000));
    camera.run(&mut world, 10 * SECOND);
    assert_eq!(camera.connections(), (true, true));
    assert_eq!(recent(&mut world, wide, 3 * SECOND), [MAIN]);
    assert_eq!(recent(&mut world, narrow, 10 * SECOND), [SUB]);
    assert_eq!(
        quality(&world, narrow).limitation_reason,
        QualityLimitationReason::Bandwidth
    );
    // The path of the other one gets smaller.
    world.nodes[wide].down.set_config(path(800_000));
    camera.run(&mut world, 10 * SECOND);
    assert_eq!(recent(&mut world, wide, 3 * SECOND), [SUB]);
    assert_eq!(camera.connections(), (false, true));
}

#[test]
fn a_viewer_that_cannot_decode_the_main_stream_is_sent_the_sub_stream_and_told_why() {
    let mut world = World::new(631, 1, 8192);
    let mut camera = Camera::start(&world, false);
    camera.main_codec = VideoCodec::Vp8;
    camera.run(&mut world, 6 * SECOND);
    let both = world.watch_with_video("live", 0, near(), &[VideoCodec::H264, VideoCodec::Vp8]);
    camera.run(&mut world, 4 * SECOND);
    assert_eq!(recent(&mut world, both, SECOND), [MAIN]);
    // The stream itself carries the main stream now.
    let one = world.watch_with_video("live", 0, near(), &[VideoCodec::H264]);
    camera.run(&mut world, 4 * SECOND);
    assert_eq!(recent(&mut world, one, 3 * SECOND), [SUB]);
    let reasons = [one, both].map(|viewer| quality(&world, viewer).limitation_reason);
    assert_eq!(reasons, [QualityLimitationReason::Codec, QualityLimitationReason::None]);
    world.delete(both);
    camera.run(&mut world, 2 * SECOND);
    assert_eq!(camera.connections(), (false, true), "it is of no use to the other one");
    assert_unbroken(&mut world, one, Duration::from_millis(700));
}

#[test]
fn no_stream_of_a_camera_on_demand_is_pulled_while_nobody_watches() {
    let mut world = World::new(641, 1, 8192);
    let mut camera = Camera::start(&world, true);
    camera.run(&mut world, 3 * SECOND);
    assert_eq!(camera.connections(), (false, false));
    let stream = world.shared.hub.open_and_update_stream(live(), |state| {
        state.add_viewer(millstream_core::hub::stream::ShardIndex(0))
    });
    camera.run(&mut world, 8 * SECOND);
    assert_eq!(camera.connections(), (false, true));
    assert_eq!(layers(&world).len(), 2);
    world.shared.hub.update_stream_and_remove_if_unused(&stream, |state| {
        state.remove_viewer(millstream_core::hub::stream::ShardIndex(0));
    });
    camera.run(&mut world, SECOND);
    assert_eq!(camera.connections(), (false, false));
}
