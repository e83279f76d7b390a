//! A stream with several sources: viewers see one line (invariant 3) that resumes at key frames (invariant 4), whatever
//! happens to the sources.

use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream_core::hub::name::{SourceName, StreamKey, StreamName};
use millstream_core::hub::stream::SessionId;
use millstream_core::media::MediaKind;
use millstream_core::media::{Codec, CodecFormat};
use millstream_core::sources::failover_group::settings::{FailoverSourceSettings, FailoverTimes};
use millstream_core::sources::failover_group::status::{FailoverSourceState, FailoverStatus, SwitchReason};
use millstream_core::sources::frame_source::{FrameSource, NalFraming};
use millstream_test_support::{LinkConfig, VideoCodec, VideoConfig};

use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, near};

const TIMES: FailoverTimes = FailoverTimes {
    hold_off: Duration::from_secs(2),
    stall_timeout: Duration::from_millis(400),
};

/// Viewers have no video for no longer than this when a source stands by.
const LONGEST_GAP: Duration = Duration::from_millis(500);

/// Audio and video of one moment, in seconds.
const FURTHEST_OFFSET: f64 = 0.08;

/// Frames from one key frame to the next: a second.
const GOP: u32 = 30;

/// Frames of the sources of one test are numbered in ranges of this length.
const RANGE: u32 = 100_000;

/// `live`, or `live=backup` for a source of it.
pub(super) fn stream_key(text: &str) -> StreamKey {
    let parse = |name| StreamName::parse(name).expect("a stream name");
    match text.split_once('=') {
        Some((stream, source)) => parse(stream).failover_source_key(&SourceName::parse(source).expect("a source name")),
        None => parse(text).into(),
    }
}

fn live() -> StreamName {
    StreamName::parse("live").expect("a name")
}

/// Makes the failover group of the stream `live`; sources with an `*` run on demand.
fn add_failover_group(world: &World, sources: &[&str]) {
    let settings = |source: &&str| {
        let name = SourceName::parse(source.trim_end_matches('*')).expect("a source name");
        FailoverSourceSettings {
            key: live().failover_source_key(&name),
            name,
            runs_on_demand: source.ends_with('*'),
        }
    };
    let settings = sources.iter().map(settings).collect();
    world
        .shared
        .failover_groups
        .add(&world.shared.hub, live(), settings, TIMES);
}

fn status(world: &World) -> FailoverStatus {
    world
        .shared
        .failover_groups
        .get(&live())
        .expect("a failover group")
        .status()
}

fn selected(world: &World) -> Option<String> {
    let sources = status(world).sources.into_iter();
    sources
        .filter(|source| source.is_selected)
        .map(|source| source.name.to_string())
        .next()
}

fn last_reason(world: &World) -> Option<SwitchReason> {
    status(world).recent_switches.last().map(|switch| switch.reason)
}

fn choose(world: &World, source: Option<&str>) {
    let failover_group = world.shared.failover_groups.get(&live()).expect("a failover group");
    failover_group
        .choose_source(source)
        .expect("a source of the failover group");
}

/// The encoder of a source: `number` distinguishes all of a test.
fn encoder(number: u32) -> VideoConfig {
    VideoConfig {
        ssrc: 1_000 + number,
        first_seq: (number * 7_919) as u16,
        first_time: number.wrapping_mul(800_000_000),
        first_number: number * RANGE,
        bitrate: 500_000,
        gop: GOP,
        seed: u64::from(number),
        ..VideoConfig::default()
    }
}

/// One line without a hole; each source begins with a key frame, and nothing of it is left out.
fn assert_decodable(world: &mut World, index: usize) {
    assert_eq!(world.reason(index), None);
    let viewer = world.viewer(index);
    assert_eq!((viewer.video.holes(), viewer.audio.holes()), (0, 0));
    assert_eq!((viewer.check.corrupt(), viewer.check.duplicates()), (0, 0));
    viewer.video.assert_steady(u64::MAX);
    let times: Vec<u64> = viewer.audio.packets.values().map(|seen| seen.time).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "audio never goes back");
    let mut frames: Vec<u32> = Vec::new();
    for frame in viewer.video.packets.values().filter_map(|seen| Some(seen.stamp?.frame)) {
        if frames.last() != Some(&frame) {
            frames.push(frame);
        }
    }
    for pair in frames.windows(2) {
        let begins = (pair[1] % RANGE).is_multiple_of(GOP);
        assert!(pair[1] == pair[0] + 1 || begins, "frame {} after {}", pair[1], pair[0]);
    }
}

/// The longest time without video within a part of the test.
fn longest_gap(world: &mut World, index: usize, from: Instant) -> Duration {
    let arrivals: Vec<Instant> = world.viewer(index).video.packets.values().map(|seen| seen.at).collect();
    let recent: Vec<Instant> = arrivals.into_iter().filter(|at| *at >= from).collect();
    let end = world.now;
    let last = recent
        .last()
        .map_or(end.duration_since(from), |last| end.duration_since(*last));
    let gaps = recent.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0]));
    gaps.max().unwrap_or_default().max(last)
}

/// By how much audio and video of one moment are apart for the viewer, in seconds.
fn audio_video_offset(world: &mut World, index: usize) -> f64 {
    let viewer = world.viewer(index);
    let newest = viewer
        .video
        .packets
        .values()
        .rev()
        .find_map(|seen| Some(seen.stamp?.frame));
    let first_of_source = newest.expect("stamped") / RANGE * RANGE;
    viewer.audio_video_offset() + f64::from(first_of_source) / 30.0
}

/// The network of a publisher ends: nothing arrives from it, and nothing arrives at it.
fn cut_off(world: &mut World, index: usize) {
    let dead = LinkConfig { loss: 1.0, ..near() };
    world.nodes[index].up.set_config(dead);
    world.nodes[index].down.set_config(dead);
}

#[test]
fn invariant_3_fifty_rounds_of_failing_and_returning_sources_leave_one_line() {
    let mut world = World::new(401, 2, 8192);
    add_failover_group(&world, &["main", "backup", "camera"]);
    let mut number = 0;
    let mut publish = |world: &mut World, source: &str, shard: usize| {
        number += 1;
        let publisher = Publisher::deaf(encoder(number));
        world.publish(&format!("live={source}"), shard, near(), publisher)
    };
    let mut main = publish(&mut world, "main", 0);
    let mut backup = publish(&mut world, "backup", 1);
    let camera = publish(&mut world, "camera", 0);
    world.run(3 * SECOND);
    let viewers = [world.watch("live", 0, near()), world.watch("live", 1, near())];
    world.run(2 * SECOND);
    assert_eq!(selected(&world).as_deref(), Some("main"));
    let (mut furthest, mut longest) = (0.0_f64, Duration::ZERO);
    for round in 0..50 {
        let begin = world.now;
        world.delete(main);
        world.run(SECOND);
        assert_eq!(selected(&world).as_deref(), Some("backup"), "round {round}");
        assert_eq!(last_reason(&world), Some(SwitchReason::Ended));
        cut_off(&mut world, backup);
        world.run(SECOND);
        assert_eq!(selected(&world).as_deref(), Some("camera"), "round {round}");
        assert_eq!(last_reason(&world), Some(SwitchReason::Stalled));
        let gaps = viewers.map(|viewer| longest_gap(&mut world, viewer, begin));
        assert!(gaps.iter().all(|gap| *gap <= LONGEST_GAP), "round {round}: {gaps:?}");
        longest = longest.max(gaps[0].max(gaps[1]));
        let offsets = viewers.map(|viewer| audio_video_offset(&mut world, viewer));
        furthest = offsets
            .iter()
            .fold(furthest, |furthest, offset| furthest.max(offset.abs()));
        assert!(furthest <= FURTHEST_OFFSET, "round {round}: {offsets:?} s");
        // With nothing to replace it, what freezes stays, and goes on by itself.
        world.publisher(camera).is_frozen = true;
        world.run(SECOND);
        assert_eq!(selected(&world).as_deref(), Some("camera"), "round {round}");
        world.publisher(camera).is_frozen = false;
        world.run(Duration::from_millis(1_500));
        let back = world.now;
        main = publish(&mut world, "main", (round + 1) % 2);
        world.run(Duration::from_millis(100));
        backup = publish(&mut world, "backup", round % 2);
        // Connecting, the hold-off, and at most a key frame interval.
        world.run(Duration::from_millis(3_800));
        assert_eq!(selected(&world).as_deref(), Some("main"), "round {round}");
        assert_eq!(last_reason(&world), Some(SwitchReason::Recovered));
        let gaps = viewers.map(|viewer| longest_gap(&mut world, viewer, back));
        assert!(
            gaps.iter().all(|gap| *gap <= Duration::from_millis(100)),
            "round {round}: {gaps:?}"
        );
        let offsets = viewers.map(|viewer| audio_video_offset(&mut world, viewer));
        furthest = offsets
            .iter()
            .fold(furthest, |furthest, offset| furthest.max(offset.abs()));
        assert!(furthest <= FURTHEST_OFFSET, "round {round}: {offsets:?} s");
    }
    for viewer in viewers {
        assert_decodable(&mut world, viewer);
    }
    println!(
        "measured: 50 rounds, 150 switches: no video for {longest:.0?} at most, audio and video {:.3} ms apart at most",
        furthest * 1e3
    );
}

#[test]
fn the_higher_source_waits_for_the_hold_off_and_comes_at_its_key_frame() {
    let mut world = World::new(411, 1, 8192);
    add_failover_group(&world, &["main", "backup"]);
    world.publish("live=backup", 0, near(), Publisher::deaf(encoder(1)));
    world.run(SECOND);
    let viewer = world.watch("live", 0, near());
    let first = world.publish("live=main", 0, near(), Publisher::obedient(encoder(2)));
    world.run(SECOND);
    assert_eq!(
        (selected(&world).as_deref(), last_reason(&world)),
        (Some("main"), Some(SwitchReason::Preferred)),
        "it has not failed yet"
    );
    world.delete(first);
    world.run(SECOND);
    let main = world.publish("live=main", 0, near(), Publisher::obedient(encoder(3)));
    world.run(Duration::from_millis(1_900));
    assert_eq!(selected(&world).as_deref(), Some("backup"));
    // It stalls for a moment: the hold-off begins again.
    world.publisher(main).is_frozen = true;
    world.run(Duration::from_millis(600));
    assert_eq!(status(&world).sources[0].state, FailoverSourceState::Stalled);
    world.publisher(main).is_frozen = false;
    world.run(Duration::from_millis(1_900));
    assert_eq!(selected(&world).as_deref(), Some("backup"));
    world.run(Duration::from_millis(400));
    assert_eq!(selected(&world).as_deref(), Some("main"));
    assert!(!world.publisher(main).requests.is_empty(), "a key frame was requested");
    world.run(SECOND);
    let gap = {
        let begin = world.now - 3 * SECOND;
        longest_gap(&mut world, viewer, begin)
    };
    assert!(gap < Duration::from_millis(100), "{gap:?}");
    assert_eq!(world.reason(viewer), None);
    assert_eq!(world.viewer(viewer).video.holes(), 0);
}

#[test]
fn a_choice_by_hand_holds_until_the_source_fails_and_can_be_withdrawn() {
    let mut world = World::new(421, 1, 8192);
    add_failover_group(&world, &["main", "backup"]);
    world.publish("live=main", 0, near(), Publisher::obedient(encoder(1)));
    let backup = world.publish("live=backup", 0, near(), Publisher::obedient(encoder(2)));
    world.run(2 * SECOND);
    let viewer = world.watch("live", 0, near());
    world.run(SECOND);
    choose(&world, Some("backup"));
    world.run(Duration::from_millis(200));
    assert_eq!(
        (selected(&world).as_deref(), last_reason(&world)),
        (Some("backup"), Some(SwitchReason::Chosen))
    );
    world.run(4 * SECOND);
    assert_eq!(selected(&world).as_deref(), Some("backup"), "no hold-off ends a choice");
    world.publisher(backup).is_frozen = true;
    world.run(SECOND);
    assert_eq!(selected(&world).as_deref(), Some("main"));
    world.publisher(backup).is_frozen = false;
    world.run(3 * SECOND);
    assert_eq!(selected(&world).as_deref(), Some("backup"), "back to the choice");
    choose(&world, None);
    world.run(Duration::from_millis(200));
    assert_eq!(selected(&world).as_deref(), Some("main"));
    let unknown = world
        .shared
        .failover_groups
        .get(&live())
        .expect("a failover group")
        .choose_source(Some("third"));
    assert_eq!(
        unknown.map_err(|error| error.to_string()),
        Err("the stream has no source \"third\"".to_owned())
    );
    assert_eq!((world.reason(viewer), world.viewer(viewer).video.holes()), (None, 0));
}

#[test]
fn a_new_session_of_the_selected_source_is_shown_at_once() {
    let mut world = World::new(431, 2, 8192);
    add_failover_group(&world, &["main", "backup"]);
    let first = world.publish("live=main", 0, near(), Publisher::deaf(encoder(1)));
    world.run(SECOND);
    world.publish("live=backup", 0, near(), Publisher::deaf(encoder(2)));
    world.run(SECOND);
    let viewer = world.watch("live", 1, near());
    world.run(SECOND);
    world.publish("live=main", 1, near(), Publisher::deaf(encoder(3)));
    world.run(2 * SECOND);
    assert!(world.reason(first).is_some(), "taken over");
    assert_eq!(
        (selected(&world).as_deref(), last_reason(&world)),
        (Some("main"), Some(SwitchReason::NewSession))
    );
    assert_decodable(&mut world, viewer);
    let newest = world.viewer(viewer).whole_at.keys().max().copied();
    assert!(newest.is_some_and(|newest| newest > 3 * RANGE));
}

/// A publisher that was accepted when the stream had one source, and connects when the failover group shows its own.
#[test]
fn a_session_that_is_no_source_of_the_failover_group_does_not_take_the_stream() {
    let mut world = World::new(435, 2, 8192);
    add_failover_group(&world, &["main", "backup"]);
    let main = world.publish("live=main", 0, near(), Publisher::deaf(encoder(1)));
    world.run(SECOND);
    let viewer = world.watch("live", 1, near());
    world.run(SECOND);
    let (begin, switches) = (world.now, status(&world).recent_switches.len());
    let stranger = world.publish("live", 1, near(), Publisher::deaf(encoder(2)));
    world.run(3 * SECOND);
    assert!(world.reason(stranger).is_some(), "it was ended");
    assert_eq!(world.reason(main), None);
    assert_eq!(selected(&world).as_deref(), Some("main"));
    assert_eq!(status(&world).recent_switches.len(), switches);
    let gap = longest_gap(&mut world, viewer, begin);
    assert!(gap <= Duration::from_millis(100), "{gap:?}");
    assert_decodable(&mut world, viewer);
    let packets = &world.viewer(viewer).video.packets;
    let frames = packets.values().filter_map(|seen| Some(seen.stamp?.frame));
    assert_eq!(frames.filter(|frame| !(RANGE..2 * RANGE).contains(frame)).count(), 0);
}

#[test]
fn a_source_with_another_codec_is_taken_by_viewers_who_negotiated_it() {
    let mut world = World::new(441, 1, 8192);
    add_failover_group(&world, &["main", "backup"]);
    let main = world.publish("live=main", 0, near(), Publisher::deaf(encoder(1)));
    let vp8 = VideoConfig {
        codec: VideoCodec::Vp8,
        pt: VideoConfig::vp8().pt,
        ..encoder(2)
    };
    world.publish("live=backup", 0, near(), Publisher::deaf(vp8));
    world.run(2 * SECOND);
    let viewer = world.watch_with_video("live", 0, near(), &[VideoCodec::H264, VideoCodec::Vp8]);
    world.run(SECOND);
    let begin = world.now;
    world.delete(main);
    world.run(2 * SECOND);
    assert_eq!(selected(&world).as_deref(), Some("backup"));
    assert_decodable(&mut world, viewer);
    assert!(longest_gap(&mut world, viewer, begin) <= LONGEST_GAP);
    let formats = world
        .shared
        .hub
        .find_stream(live())
        .and_then(|stream| stream.with_state(|state| state.formats()));
    assert_eq!(formats.and_then(|formats| formats.video), Some(CodecFormat::Vp8));
}

/// A camera that is fed by hand.
struct Camera {
    feed: FrameSource,
    frames: u64,
}

impl Camera {
    fn new(source: &str) -> Self {
        let tracks = [Codec::H264.into(), Codec::Opus.into()];
        let feed = FrameSource::new(stream_key(source), SessionId([7; 16]), &tracks).expect("codecs of frames");
        Self { feed, frames: 0 }
    }

    /// Sends for so long: 25 frames a second with a key frame every two seconds, and audio.
    fn run(&mut self, world: &mut World, duration: Duration) {
        let end = world.now + duration;
        while world.now < end {
            let key_frame: &[u8] = &[
                0, 0, 0, 1, 0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4, 0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80, 0, 0, 0, 1,
                0x65, 0x88, 0x80,
            ];
            let delta: &[u8] = &[0, 0, 0, 1, 0x41, 0x9a, 0x80];
            let unit = if self.frames.is_multiple_of(50) {
                key_frame
            } else {
                delta
            };
            let unit = Bytes::copy_from_slice(&[unit, &[7; 200]].concat());
            self.feed
                .packetize_and_queue_video(world.now, self.frames * 3_600, &unit, NalFraming::AnnexB)
                .expect("a frame");
            let audio = Bytes::from_static(&[0xf8; 80]);
            for half in 0..2 {
                let time = self.frames * 1_920 + half * 960;
                self.feed
                    .packetize_and_queue_audio(world.now, time, &audio)
                    .expect("a frame");
            }
            world.feed(&mut self.feed);
            self.frames += 1;
            world.run(Duration::from_millis(40));
        }
    }
}

#[test]
fn a_camera_on_demand_is_needed_only_while_no_higher_source_is_live() {
    let mut world = World::new(451, 1, 8192);
    add_failover_group(&world, &["main", "camera*"]);
    let is_needed = |world: &World| {
        let stream = world
            .shared
            .hub
            .find_stream(stream_key("live=camera"))
            .expect("kept by its failover group");
        stream.with_state(|state| state.has_consumers())
    };
    world.run(Duration::from_millis(100));
    assert!(is_needed(&world), "nothing is live");
    let main = world.publish("live=main", 0, near(), Publisher::deaf(encoder(1)));
    world.run(2 * SECOND);
    assert!(!is_needed(&world));
    let viewer = world.watch("live", 0, near());
    world.run(SECOND);
    world.delete(main);
    world.run(SECOND);
    assert!(is_needed(&world) && selected(&world).is_none());
    let mut camera = Camera::new("live=camera");
    camera.run(&mut world, 2 * SECOND);
    assert_eq!(selected(&world).as_deref(), Some("camera"));
    assert!(is_needed(&world));
    let before = world.viewer(viewer).video.packets.len();
    camera.run(&mut world, SECOND);
    assert!(world.viewer(viewer).video.packets.len() >= before + 24);
    world.viewer(viewer).ask_for_key_frame();
    camera.feed.set_accepts_key_frame_requests(true);
    camera.run(&mut world, SECOND / 2);
    assert_eq!((world.reason(viewer), world.viewer(viewer).video.holes()), (None, 0));
    assert!(world.viewer(viewer).track(MediaKind::Video).rtx_ssrc.is_some());
}

#[test]
fn a_request_for_a_key_frame_reaches_a_selected_source_that_lives_on_no_shard() {
    let mut world = World::new(461, 1, 8192);
    add_failover_group(&world, &["camera"]);
    let mut camera = Camera::new("live=camera");
    camera.feed.set_accepts_key_frame_requests(true);
    camera.run(&mut world, SECOND);
    let viewer = world.watch("live", 0, near());
    camera.run(&mut world, SECOND);
    camera.feed.take_key_frame_request();
    world.viewer(viewer).ask_for_key_frame();
    camera.run(&mut world, Duration::from_millis(200));
    assert!(camera.feed.take_key_frame_request());
}

#[test]
fn a_failover_group_that_is_removed_leaves_nothing_behind() {
    let mut world = World::new(471, 1, 8192);
    add_failover_group(&world, &["main", "backup"]);
    let main = world.publish("live=main", 0, near(), Publisher::deaf(encoder(1)));
    world.run(2 * SECOND);
    assert!(world.shared.hub.find_stream(live()).is_some());
    let connected = world.shared.failover_groups.remove(&world.shared.hub, &live());
    assert_eq!(connected.len(), 1);
    assert!(world.shared.hub.find_stream(live()).is_none());
    world.run(SECOND);
    world.delete(main);
    world.run(SECOND);
    assert!(world.shared.hub.streams().is_empty());
}

#[test]
fn two_failover_groups_share_a_source() {
    let mut world = World::new(481, 1, 8192);
    let slate = SourceName::parse("slate").expect("a source name");
    for stream in ["one", "two"] {
        let settings = FailoverSourceSettings {
            name: slate.clone(),
            key: stream_key("one=slate"),
            runs_on_demand: false,
        };
        let name = StreamName::parse(stream).expect("a name");
        world
            .shared
            .failover_groups
            .add(&world.shared.hub, name, vec![settings], TIMES);
    }
    let mut camera = Camera::new("one=slate");
    camera.run(&mut world, SECOND);
    let viewers = [world.watch("one", 0, near()), world.watch("two", 0, near())];
    camera.run(&mut world, 2 * SECOND);
    for viewer in viewers {
        assert!(world.viewer(viewer).video.packets.len() > 40);
    }
    // The stream under whose name the source runs loses its failover_group: the other one keeps it.
    let one = StreamName::parse("one").expect("a name");
    world.shared.failover_groups.remove(&world.shared.hub, &one);
    let before = world.viewer(viewers[1]).video.packets.len();
    camera.run(&mut world, SECOND);
    assert!(world.viewer(viewers[1]).video.packets.len() >= before + 24);
}
