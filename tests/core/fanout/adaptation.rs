//! Viewers whose path is smaller than the stream: numbered packets, feedback, layers that change by themselves.

use std::time::{Duration, Instant};

use millstream_core::congestion::QualityLimitationReason;
use millstream_core::congestion::ladder::FrameSelection;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::LayerSelection;
use millstream_core::hub::viewer_quality::ViewerQuality;
use millstream_core::media::rtcp;
use millstream_core::media::{MediaKind, Rid, Ssrc};
use millstream_core::session::feedback::TransportFeedbackGenerator;
use millstream_test_support::{LinkConfig, VideoCodec, VideoConfig};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, long_gop, near};

const MBIT: u64 = 1_000_000;

/// Frames of layer n have numbers from here on.
pub(super) const LAYER_NUMBERS: u32 = 1_000_000;

pub(super) fn layer(index: u32, bitrate: u32) -> VideoConfig {
    VideoConfig {
        ssrc: 0x2000_0000 + index,
        bitrate,
        first_number: index * LAYER_NUMBERS,
        seed: u64::from(index) + 5,
        ..VideoConfig::default()
    }
}

/// Layers 2, 1 and 0 with 2.5, 1 and 0.3 Mbit/s, a key frame every two seconds and on request.
pub(super) fn three_layers() -> Publisher {
    Publisher::simulcast(&[layer(2, 2_500_000), layer(1, 1_000_000), layer(0, 300_000)])
}

/// A path with this rate, 300 ms of queue, a round trip of 40 ms, and 10 ms of jitter.
pub(super) fn path(rate: u64) -> LinkConfig {
    LinkConfig {
        rate: Some(rate),
        queue: Duration::from_millis(300),
        jitter: Duration::from_millis(10),
        ..LinkConfig::delay(Duration::from_millis(20))
    }
}

/// A viewer that gives feedback.
pub(super) fn watch_with_feedback(world: &mut World, link: LinkConfig) -> usize {
    let mut offer = world.offer(0, 0);
    offer.transport_cc = true;
    let index = world.watch_with("live", 0, link, &offer);
    begin_feedback(world, index, link);
    index
}

/// Has a viewer that offered feedback give it.
pub(super) fn begin_feedback(world: &mut World, index: usize, link: LinkConfig) {
    // The way back is not the bottleneck.
    world.nodes[index].up.set_config(LinkConfig { rate: None, ..link });
    let now = world.now;
    world.viewer(index).feedback = Some(TransportFeedbackGenerator::new(now, Ssrc(1)));
}

/// When the first whole frame of a layer came after this time.
pub(super) fn first_of_layer(world: &mut World, index: usize, layer: u32, after: Instant) -> Option<Duration> {
    let frames = world.viewer(index).whole_at.iter();
    let of_layer = frames.filter(|(frame, at)| **frame / LAYER_NUMBERS == layer && **at > after);
    of_layer.map(|(_, at)| at.duration_since(after)).min()
}

/// The layers of the whole frames between two times, in the order of their arrival, without repetition.
pub(super) fn layers_between(world: &mut World, index: usize, from: Instant, until: Instant) -> Vec<u32> {
    let frames = world.viewer(index).whole_at.iter();
    let mut seen: Vec<(Instant, u32)> = frames
        .filter(|(_, at)| (from..until).contains(*at))
        .map(|(frame, at)| (*at, frame / LAYER_NUMBERS))
        .collect();
    seen.sort_unstable();
    let mut layers: Vec<u32> = seen.into_iter().map(|(_, layer)| layer).collect();
    layers.dedup();
    layers
}

#[test]
fn a_viewer_with_feedback_has_numbered_packets_and_one_without_has_none() {
    let mut world = World::new(300, 1, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let with = watch_with_feedback(&mut world, near());
    let without = world.watch("live", 0, near());
    world.run(3 * SECOND);
    let viewer = world.viewer(with);
    let packets = viewer.video.packets.len() + viewer.audio.packets.len();
    assert!(
        viewer.numbered >= packets as u64 && packets > 500,
        "{} of {packets}",
        viewer.numbered
    );
    assert_eq!((viewer.video.holes(), viewer.check.corrupt()), (0, 0));
    assert!(world.nodes[with].sealed_packets().any(|packet| packet[0] & 0x10 != 0));
    assert!(
        world.nodes[without]
            .sealed_packets()
            .all(|packet| packet[0] & 0x10 == 0)
    );
}

/// Another number in the header of a retransmission would use the nonce of its packet for another one: the world looks at
/// each packet.
#[test]
fn nacks_never_make_a_packet_of_other_bytes() {
    for (rtx, codec) in [
        (true, VideoCodec::H264),
        (false, VideoCodec::H264),
        (false, VideoCodec::Vp8),
    ] {
        let mut world = World::new(302, 1, 8192);
        let config = VideoConfig {
            codec,
            ..VideoConfig::default()
        };
        world.publish("live", 0, near(), Publisher::deaf(config));
        world.run(SECOND);
        let mut offer = world.offer(0, 0);
        offer.transport_cc = true;
        offer.video = &[VideoCodec::H264, VideoCodec::Vp8];
        offer.rtx = rtx || codec == VideoCodec::Vp8;
        let text = if codec == VideoCodec::Vp8 {
            // The codec that is sent has no RTX, the other one has.
            let text = offer
                .whep()
                .replace("a=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n", "");
            text.replace(" 96 97\r\n", " 96\r\n")
        } else {
            offer.whep()
        };
        let index = world.watch_with_text("live", 0, near(), (&offer, text));
        let now = world.now;
        world.viewer(index).feedback = Some(TransportFeedbackGenerator::new(now, Ssrc(1)));
        world.run(SECOND);
        for _ in 0..40 {
            for kind in [MediaKind::Audio, MediaKind::Video] {
                let viewer = world.viewer(index);
                let line = if kind == MediaKind::Audio {
                    &viewer.audio
                } else {
                    &viewer.video
                };
                let seqs: Vec<u16> = line
                    .packets
                    .keys()
                    .rev()
                    .take(20)
                    .rev()
                    .map(|seq| *seq as u16)
                    .collect();
                let mut compound = Vec::new();
                rtcp::write_receiver_report_with_cname(&mut compound, Ssrc(1), &[], "viewer");
                rtcp::write_nack(&mut compound, Ssrc(1), viewer.track(kind).ssrc, &seqs);
                viewer.plis.push(compound);
            }
            world.run(Duration::from_millis(50));
        }
        let numbered = world.viewer(index).numbered;
        // Audio has no RTX: its packets come again as they were. A viewer that cannot be probed has no numbers at all.
        assert!(
            world.nodes[index].sealed_again > 100,
            "{}",
            world.nodes[index].sealed_again
        );
        assert_eq!(numbered > 0, rtx);
    }
}

/// C2 and C3: 5, 0.8 and 5 Mbit/s.
#[test]
fn the_layer_follows_the_path_down_at_once_and_up_again() {
    for seed in 310..316 {
        let mut world = World::new(seed, 1, 8192);
        world.publish("live", 0, near(), three_layers());
        world.run(4 * SECOND);
        let joined = world.now;
        let index = watch_with_feedback(&mut world, path(5 * MBIT));
        world.run(15 * SECOND);
        let top = first_of_layer(&mut world, index, 2, joined);
        println!("top layer after {top:?}");
        assert!(top.is_some_and(|top| top < 4 * SECOND), "{top:?}");
        let now = world.now;
        assert_eq!(layers_between(&mut world, index, now - 5 * SECOND, now), [2], "steady");

        let dropped = world.now;
        world.nodes[index].down.set_config(path(8 * MBIT / 10));
        world.run(15 * SECOND);
        let low = first_of_layer(&mut world, index, 0, dropped);
        let seen = layers_between(&mut world, index, dropped, dropped + 15 * SECOND);
        println!("measured: path of 5 to 0.8 Mbit/s: lowest layer after {low:.2?}");
        assert!(
            low.is_some_and(|low| low < Duration::from_millis(1_500)),
            "{low:?} {seen:?}"
        );
        let now = world.now;
        assert_eq!(layers_between(&mut world, index, now - 5 * SECOND, now), [0], "steady");

        let back = world.now;
        world.nodes[index].down.set_config(path(5 * MBIT));
        world.run(12 * SECOND);
        let top = first_of_layer(&mut world, index, 2, back);
        println!("measured: top layer again after {top:.2?}");
        assert!(top.is_some_and(|top| top < 8 * SECOND), "{top:?}");
        let viewer = world.viewer(index);
        assert_eq!(viewer.check.corrupt(), 0);
        viewer.video.assert_steady(90 * 3_000);
    }
}

/// What a hostile viewer reports is nonsense, and everybody else is served as before.
#[test]
fn hostile_feedback_harms_nobody() {
    let mut world = World::new(320, 1, 8192);
    world.publish("live", 0, near(), three_layers());
    world.run(4 * SECOND);
    let hostile = watch_with_feedback(&mut world, near());
    let other = watch_with_feedback(&mut world, near());
    world.run(4 * SECOND);
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..2_000 {
        let count = rng.random_range(1..60_u8);
        let words = (18 + usize::from(count)).div_ceil(4) + rng.random_range(0..20_usize);
        let mut compound = vec![0x8f, 205];
        compound.extend_from_slice(&(words as u16).to_be_bytes());
        let mut body = vec![0; words * 4];
        rng.fill_bytes(&mut body);
        if rng.random_bool(0.8) {
            // Packets that were sent, all received, at any times.
            let newest = world.viewer(hostile).last_number;
            let first = newest.wrapping_sub(rng.random_range(0..120)).to_be_bytes();
            body[8..12].copy_from_slice(&[first[0], first[1], 0, count]);
            body[16..18].copy_from_slice(&[0x20, count]);
        }
        compound.extend_from_slice(&body);
        world.viewer(hostile).plis.push(compound);
        world.run(Duration::from_millis(2));
    }
    let from = world.now;
    world.run(4 * SECOND);
    let now = world.now;
    assert_eq!(layers_between(&mut world, other, from, now), [2]);
    assert_eq!(world.reason(hostile), None);
}

/// The start into a long interval between key frames is paced: nothing of it is lost before a bottleneck.
#[test]
fn a_start_is_paced_to_the_path() {
    let mut world = World::new(330, 1, 8192);
    let publisher = world.publish("live", 0, near(), Publisher::deaf(long_gop()));
    world.run(Duration::from_millis(2_600));
    let joined = world.now;
    let index = watch_with_feedback(&mut world, path(5 * MBIT));
    world.run(6 * SECOND);
    let lost = world.nodes[index].down.lost();
    let sent_at = world.publisher(publisher).sent_at.clone();
    let viewer = world.viewer(index);
    let seen: Vec<u32> = viewer.check.whole().collect();
    let late = |at: Duration| {
        let frames = viewer
            .whole_at
            .iter()
            .filter(|(frame, _)| sent_at[frame] >= joined + at);
        frames.map(|(frame, when)| when.duration_since(sent_at[frame])).max()
    };
    println!("lost {lost}; delay of frames after 3 s: {:?}", late(3 * SECOND));
    let gaps: Vec<&[u32]> = seen.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(gaps.is_empty(), "nothing is left out: {gaps:?}");
    assert_eq!(lost, 0);
    // At the live edge after three seconds, but for what waits before the bottleneck.
    assert!(late(3 * SECOND).is_some_and(|late| late < Duration::from_millis(300)));
    assert!(late(5 * SECOND).is_some_and(|late| late < Duration::from_millis(100)));
}

/// One layer of 2.5 Mbit/s on a path of 0.6 Mbit/s: the audio stays, the gateway says what is left out and why, and the
/// video is back when the path is.
#[test]
fn audio_is_kept_where_the_only_layer_needs_too_much() {
    for (seed, gop) in [(340, 60), (341, 0)] {
        let mut world = World::new(seed, 1, 8192);
        let config = VideoConfig {
            gop,
            ..VideoConfig::default()
        };
        world.publish("live", 0, near(), Publisher::obedient(config));
        world.run(4 * SECOND);
        let index = watch_with_feedback(&mut world, path(5 * MBIT));
        world.run(6 * SECOND);
        let session = world.nodes[index].session;
        let quality = |world: &World| {
            let quality = world.shared.session_registry.viewer_quality(session);
            let quality = quality.expect("a viewer that is served");
            (quality.frames, quality.limitation_reason)
        };
        assert_eq!(quality(&world), (FrameSelection::All, QualityLimitationReason::None));

        world.nodes[index].down.set_config(path(6 * MBIT / 10));
        let dropped = world.now;
        let mut limited_after = None;
        for _ in 0..100 {
            world.run(Duration::from_millis(100));
            let (frames, reason) = quality(&world);
            if frames < FrameSelection::All && limited_after.is_none() {
                assert_eq!(reason, QualityLimitationReason::Bandwidth);
                limited_after = Some(world.now.duration_since(dropped));
            }
        }
        let (from, until) = (dropped + 4 * SECOND, world.now);
        let audio = world.viewer(index).audio.packets.values();
        let received = audio.filter(|seen| (from..until).contains(&seen.at)).count();
        println!(
            "limited after {limited_after:?}; {received} of 300 packets of audio; {:?}",
            quality(&world)
        );

        world.nodes[index].down.set_config(path(5 * MBIT));
        let back = world.now;
        world.run(10 * SECOND);
        let frames = world.viewer(index).whole_at.values();
        let recent: Vec<Instant> = frames.copied().filter(|at| *at > back).collect();
        let mut per_second = [0; 10];
        recent
            .iter()
            .for_each(|at| per_second[at.duration_since(back).as_secs() as usize % 10] += 1);
        println!("frames in each second after that: {per_second:?}");
        assert!(
            limited_after.is_some_and(|after| after <= 2 * SECOND),
            "{limited_after:?}"
        );
        assert!(received >= 297, "{received}");
        assert!(per_second[8] > 27 && per_second[9] > 27, "{per_second:?}");
        assert_eq!(quality(&world), (FrameSelection::All, QualityLimitationReason::None));
        world.viewer(index).video.assert_steady(90 * 20_000);
    }
}

/// A path that carries next to nothing: so little arrives that its rate cannot be measured.
#[test]
fn video_is_left_out_where_hardly_anything_arrives() {
    for rate in [60_000, 40_000, 20_000] {
        let mut world = World::new(343, 1, 8192);
        world.publish("live", 0, near(), Publisher::obedient(VideoConfig::default()));
        world.run(2 * SECOND);
        let index = watch_with_feedback(&mut world, path(5 * MBIT));
        world.run(4 * SECOND);
        world.nodes[index].down.set_config(path(rate));
        let limited_after = (1..100).find(|_| {
            world.run(SECOND / 10);
            quality(&world, index).frames < FrameSelection::All
        });
        println!("{rate} bit/s: limited after {limited_after:?} tenths of a second");
        assert!(limited_after.is_some_and(|tenths| tenths <= 40), "{limited_after:?}");
    }
}

/// What is sent to a viewer, as the API says.
pub(super) fn quality(world: &World, index: usize) -> ViewerQuality {
    let session = world.nodes[index].session;
    let quality = world.shared.session_registry.viewer_quality(session);
    quality.expect("a viewer that is served")
}

/// With feedback for video alone, nothing tells of the path while only audio is sent: key frames are too far apart to be
/// watched by themselves.
#[test]
fn video_is_back_although_nothing_is_numbered_without_it() {
    for seed in 342..345 {
        let mut world = World::new(seed, 1, 8192);
        let config = VideoConfig {
            gop: 330,
            ..VideoConfig::default()
        };
        world.publish("live", 0, near(), Publisher::deaf(config));
        world.run(13 * SECOND);
        let mut offer = world.offer(0, 0);
        offer.transport_cc = true;
        let text = offer.whep().replace("a=rtcp-fb:111 transport-cc\r\n", "");
        let index = world.watch_with_text("live", 0, path(5 * MBIT), (&offer, text));
        world.nodes[index].up.set_config(LinkConfig {
            rate: None,
            ..path(5 * MBIT)
        });
        let now = world.now;
        world.viewer(index).feedback = Some(TransportFeedbackGenerator::new(now, Ssrc(1)));
        world.run(6 * SECOND);
        world.nodes[index].down.set_config(path(3 * MBIT / 10));
        world.run(3 * SECOND);
        assert_eq!(quality(&world, index).frames, FrameSelection::AudioOnly);
        world.run(3 * SECOND);
        world.nodes[index].down.set_config(path(5 * MBIT));
        world.run(25 * SECOND);
        assert_eq!(quality(&world, index).frames, FrameSelection::All);
        let now = world.now;
        let recent = world
            .viewer(index)
            .whole_at
            .values()
            .filter(|at| **at > now - 2 * SECOND);
        assert!(recent.count() > 50);
    }
}

/// Audio alone of a source that sends none would be nothing.
#[test]
fn video_is_not_left_out_for_audio_that_is_silent() {
    let mut world = World::new(346, 1, 8192);
    let config = VideoConfig {
        gop: 330,
        ..VideoConfig::default()
    };
    let publisher = world.publish("live", 0, near(), Publisher::deaf(config));
    world.run(2 * SECOND);
    world.publisher(publisher).is_audio_paused = true;
    world.run(11 * SECOND);
    let index = watch_with_feedback(&mut world, path(5 * MBIT));
    world.run(6 * SECOND);
    world.nodes[index].down.set_config(path(6 * MBIT / 10));
    for _ in 0..80 {
        world.run(Duration::from_millis(100));
        assert_eq!(quality(&world, index).frames, FrameSelection::All);
    }
}

/// What feedback reported is not shown for ever.
#[test]
fn measurements_end_with_the_feedback() {
    let mut world = World::new(347, 1, 8192);
    world.publish("live", 0, near(), three_layers());
    world.run(4 * SECOND);
    let index = watch_with_feedback(&mut world, path(5 * MBIT));
    world.run(5 * SECOND);
    let before = quality(&world, index);
    assert!(
        before.gives_transport_feedback && before.received_bitrate > Some(1_000_000),
        "{before:?}"
    );
    world.viewer(index).feedback = None;
    world.run(4 * SECOND);
    let after = quality(&world, index);
    assert_eq!((after.gives_transport_feedback, after.received_bitrate), (false, None));
    assert_eq!((after.queue_delay, after.fraction_lost), (None, None));
}

/// A selection by size bounds the choice from above, and a selection by name leaves none.
#[test]
fn a_viewer_with_feedback_keeps_to_its_selection() {
    let mut world = World::new(360, 1, 8192);
    world.publish("live", 0, near(), three_layers());
    world.run(4 * SECOND);
    let index = watch_with_feedback(&mut world, path(5 * MBIT));
    world.run(5 * SECOND);
    // Layers of a SIM group are named by their place in it.
    for (rid, layer) in [("1", 1), ("2", 0), ("0", 2), ("2", 0)] {
        world.choose_layer(index, LayerSelection::Named(Rid(rid.into())));
        world.run(4 * SECOND);
        let now = world.now;
        assert_eq!(layers_between(&mut world, index, now - SECOND, now), [layer], "{rid}");
        world.run(8 * SECOND);
        let now = world.now;
        assert_eq!(
            layers_between(&mut world, index, now - 8 * SECOND, now),
            [layer],
            "{rid} stays"
        );
    }
    world.choose_layer(index, LayerSelection::Automatic);
    world.run(8 * SECOND);
    let now = world.now;
    assert_eq!(layers_between(&mut world, index, now - SECOND, now), [2]);
    // All layers have the same size here: 640x360.
    let within = |height| LayerSelection::WithinSize { width: 640, height };
    for (height, layer) in [(100, 0), (360, 2)] {
        world.choose_layer(index, within(height));
        world.run(8 * SECOND);
        let now = world.now;
        assert_eq!(
            layers_between(&mut world, index, now - SECOND, now),
            [layer],
            "{height}"
        );
    }
}

/// A viewer that moves up waits for the next key frame where they come often; a request would cost all others one more.
#[test]
fn steps_up_request_no_key_frames_where_they_come_often() {
    let mut world = World::new(371, 1, 8192);
    let often = |index, bitrate| VideoConfig {
        gop: 30,
        ..layer(index, bitrate)
    };
    let layers = [often(2, 2_500_000), often(1, 1_000_000), often(0, 300_000)];
    let publisher = world.publish("live", 0, near(), Publisher::simulcast(&layers));
    world.run(8 * SECOND);
    let joined = world.now;
    let viewers: Vec<usize> = (0..4)
        .map(|_| watch_with_feedback(&mut world, path(5 * MBIT)))
        .collect();
    world.run(12 * SECOND);
    for index in viewers {
        assert!(first_of_layer(&mut world, index, 2, joined).is_some());
    }
    let requests = world.publisher(publisher).requests.iter();
    let requests = requests
        .filter(|at| **at > joined + Duration::from_millis(1_500))
        .count();
    assert_eq!(requests, 0);
}

/// The layers of a publisher that comes again.
fn three_layers_again() -> Publisher {
    let later = |index: u32, bitrate: u32| VideoConfig {
        first_number: index * LAYER_NUMBERS + LAYER_NUMBERS / 2,
        ..layer(index, bitrate)
    };
    Publisher::simulcast(&[later(2, 2_500_000), later(1, 1_000_000), later(0, 300_000)])
}

/// A publisher that comes again sends no viewer more than its path carries, whether the viewer watched before or only
/// waits, and however long it takes until its first frame.
#[test]
fn a_publisher_that_comes_again_sends_nobody_a_layer_that_is_too_large() {
    for (seed, silent) in (372..376).zip([0, 0, 600, 2_500]) {
        let mut world = World::new(seed, 1, 8192);
        let publisher = world.publish("live", 0, near(), three_layers());
        world.run(4 * SECOND);
        let watches = watch_with_feedback(&mut world, path(8 * MBIT / 10));
        let is_fast = watch_with_feedback(&mut world, path(8 * MBIT));
        world.run(12 * SECOND);
        let waits = watch_with_feedback(&mut world, path(8 * MBIT / 10));
        world.delete(publisher);
        world.run(3 * SECOND);
        let again = world.publish("live", 0, near(), three_layers_again());
        world.publisher(again).paused = silent > 0;
        world.run(Duration::from_millis(silent));
        world.publisher(again).paused = false;
        let returned = world.now;
        world.run(6 * SECOND);
        let now = world.now;
        for index in [watches, waits] {
            let first = first_of_layer(&mut world, index, 0, returned);
            let later = |layer: u32| (2 * layer + 1) * LAYER_NUMBERS / 2..(layer + 1) * LAYER_NUMBERS;
            let viewer = world.viewer(index);
            let too_large = viewer.packets_of_frames(later(1)) + viewer.packets_of_frames(later(2));
            println!("first frame after {first:?}, {too_large} packets of larger layers");
            assert!(first.is_some_and(|first| first < SECOND), "{first:?}");
            assert_eq!(too_large, 0);
        }
        assert_eq!(layers_between(&mut world, is_fast, now - 2 * SECOND, now), [2]);
    }
}

/// Layers of nearly the same bitrate, of which now one and now the other has more, keep their order.
#[test]
fn nearly_equal_layers_keep_their_order() {
    let mut world = World::new(377, 1, 8192);
    let layers = [(2, 1_000_000, 60), (1, 1_000_000, 45), (0, 300_000, 60)].map(|(index, bitrate, gop)| VideoConfig {
        gop,
        ..layer(index, bitrate)
    });
    world.publish("live", 0, near(), Publisher::simulcast(&layers));
    world.run(4 * SECOND);
    let stream = world.shared.hub.find_stream(StreamName::parse("live").expect("a name"));
    let stream = stream.expect("somebody publishes");
    let order = || {
        stream.with_state(|state| {
            let layers = state.layers().iter();
            layers.map(|layer| layer.rid.clone()).collect::<Vec<Rid>>()
        })
    };
    let rates = || {
        stream.with_state(|state| {
            state
                .layers()
                .iter()
                .map(|layer| layer.measured_bitrate)
                .collect::<Vec<u64>>()
        })
    };
    let first = order();
    let mut is_inverted = false;
    for _ in 0..100 {
        world.run(Duration::from_millis(100));
        assert_eq!(order(), first);
        is_inverted |= !rates().is_sorted_by(|better, worse| better >= worse);
    }
    assert!(is_inverted, "the rates show nothing otherwise");
}
