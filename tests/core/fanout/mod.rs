//! From publishers to viewers in virtual time: the promises of the fan-out, over seeded networks.

mod absence;
mod adaptation;
mod camera_layers;
mod data;
mod delays;
mod failover_group;
mod joins;
mod layers;
mod locks;
mod log;
mod lossy_layers;
mod lost_audio;
mod measures;
mod one_against_all;
mod playout_delay;
mod publications;
mod publisher;
mod reference_frames;
mod reports;
mod returning_viewers;
mod sources;
mod theft;
mod transcoding;
mod viewer;
mod world;

use std::net::SocketAddr;
use std::time::Duration;

use millstream_core::hub::session_registry::SessionState;
use millstream_core::media::MediaKind;
use millstream_core::media::Ssrc;
use millstream_core::media::rtcp;
use millstream_core::session::CloseReason;
use millstream_test_support::{LinkConfig, VideoConfig};

use publisher::Publisher;
use world::{Role, World};

const SECOND: Duration = Duration::from_secs(1);

/// Half of a round trip of 20 ms.
fn near() -> LinkConfig {
    LinkConfig::delay(Duration::from_millis(10))
}

fn long_gop() -> VideoConfig {
    VideoConfig {
        gop: 300,
        ..VideoConfig::default()
    }
}

/// Ticks of the video clock.
fn ticks(duration: Duration) -> u64 {
    duration.as_millis() as u64 * 90
}

///
#[test]
fn invariant_3_a_viewer_sees_one_line_without_a_hole() {
    let mut world = World::new(1, 2, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let viewers = [world.watch("live", 0, near()), world.watch("live", 1, near())];
    world.run(5 * SECOND);
    for index in viewers {
        let viewer = world.viewer(index);
        assert_eq!((viewer.video.holes(), viewer.audio.holes()), (0, 0));
        assert_eq!((viewer.check.corrupt(), viewer.check.duplicates()), (0, 0));
        viewer.video.assert_steady(ticks(Duration::from_millis(50)));
        assert!(viewer.check.whole().count() > 140, "{}", viewer.check.whole().count());
        assert!(viewer.audio.packets.len() > 240, "{}", viewer.audio.packets.len());
    }
}

/// T-10.
#[test]
fn a_late_viewer_of_a_publisher_without_key_frame_requests_has_video_at_once_and_is_live_within_a_second() {
    for phase in [1_000, 3_700, 9_600] {
        let mut world = World::new(phase, 1, 8192);
        let publisher = world.publish("live", 0, near(), Publisher::deaf(long_gop()));
        world.run(Duration::from_millis(phase));
        let joined = world.now;
        let index = world.watch("live", 0, near());
        world.run(3 * SECOND);
        let sent_at = world.publisher(publisher).sent_at.clone();
        let newest = world.publisher(publisher).newest();
        let viewer = world.viewer(index);
        assert_eq!(
            (viewer.video.holes(), viewer.check.corrupt(), viewer.check.duplicates()),
            (0, 0, 0)
        );
        // Frame by frame from the key frame on, nothing left out.
        let seen: Vec<u32> = viewer.check.whole().collect();
        assert_eq!(seen[0], 0, "begins at the key frame");
        assert!(seen.windows(2).all(|w| w[1] == w[0] + 1));
        let first = viewer.whole_at[&0].duration_since(joined);
        println!("measured: {phase} ms after the key frame: first frame after {first:.0?}, no frame left out");
        assert!(
            first < Duration::from_millis(150),
            "first frame after {first:?}, handshake included"
        );
        viewer.video.assert_steady(ticks(Duration::from_millis(70)));
        // The burst is over half a second after the handshake, and from then on nothing is late.
        let settled = joined + Duration::from_millis(800);
        let late = viewer.whole_at.iter().filter(|(frame, at)| {
            sent_at[frame] >= settled && at.duration_since(sent_at[frame]) > Duration::from_millis(22)
        });
        assert_eq!(late.count(), 0);
        assert!(newest - seen.last().expect("frames") <= 1);
        // Squeezed times end where the clock would be: one second of arrivals is one second of times.
        let live: Vec<_> = viewer.video.packets.values().filter(|s| s.at >= settled).collect();
        let (a, b) = (live[0], live[live.len() - 1]);
        let (wall, media) = (
            b.at.duration_since(a.at).as_millis() as i64,
            (b.time - a.time) as i64 / 90,
        );
        assert!((wall - media).abs() <= 3, "{wall} ms of arrivals, {media} ms of times");
    }
}

#[test]
fn loss_of_five_percent_each_way_costs_no_frame() {
    let link = LinkConfig {
        loss: 0.05,
        ..LinkConfig::delay(Duration::from_millis(50))
    };
    for (seed, rtx) in [(11, true), (12, true), (13, false)] {
        let mut world = World::new(seed, 2, 8192);
        let publisher = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
        world.run(SECOND);
        let mut offer = world.offer(0, 0);
        offer.rtx = rtx;
        let index = world.watch_with("live", 1, link, &offer);
        world.run(30 * SECOND);
        let sent_at = world.publisher(publisher).sent_at.clone();
        let joined_at = world.viewer(index).whole_at.values().copied().min().expect("frames") + SECOND;
        let end = world.now - SECOND;
        let viewer = world.viewer(index);
        let due: Vec<u32> = sent_at
            .iter()
            .filter(|(_, at)| **at > joined_at && **at < end)
            .map(|(f, _)| *f)
            .collect();
        // The publisher's own 10 ms and the way of 50 ms belong to every frame; 400 ms is what a viewer waits.
        let in_time = due.iter().filter(|frame| {
            viewer
                .whole_at
                .get(frame)
                .is_some_and(|at| at.duration_since(sent_at[frame]) <= Duration::from_millis(400))
        });
        let (in_time, due) = (in_time.count(), due.len());
        println!(
            "measured: {in_time} of {due} frames whole within 400 ms, {} packets retransmitted",
            viewer.retransmitted
        );
        assert!(in_time * 100 >= due * 99, "{in_time} of {due}");
        assert_eq!(viewer.check.corrupt(), 0);
        viewer.video.assert_steady(ticks(Duration::from_millis(400)));
    }
}

/// Of the frames until a second ago 99 of 100 arrived whole, and none was changed.
fn assert_nearly_all_whole(world: &mut World, publisher: usize, index: usize) {
    let sent = world.publisher(publisher).newest();
    let viewer = world.viewer(index);
    let whole = viewer.check.whole().filter(|f| *f + 30 < sent).count();
    let first = viewer.check.whole().next().expect("frames");
    let due = (sent - 30 - first) as usize;
    assert!(whole * 100 >= due * 99, "{whole} of {due}");
    assert_eq!(viewer.check.corrupt(), 0);
}

#[test]
fn loss_on_the_way_to_the_gateway_is_recovered_once_for_all() {
    let link = LinkConfig {
        loss: 0.05,
        ..LinkConfig::delay(Duration::from_millis(20))
    };
    let mut world = World::new(21, 2, 8192);
    let publisher = world.publish("live", 0, link, Publisher::deaf(VideoConfig::default()));
    world.run(2 * SECOND);
    let index = world.watch("live", 1, near());
    world.run(10 * SECOND);
    assert_nearly_all_whole(&mut world, publisher, index);
}

/// Without retransmission three in a hundred packets damage more than half of the frames of a group of pictures.
#[test]
fn a_publisher_that_reads_one_rtcp_packet_of_a_datagram_is_asked_for_what_was_lost() {
    let link = LinkConfig {
        loss: 0.03,
        ..LinkConfig::delay(Duration::from_millis(20))
    };
    let mut world = World::new(22, 2, 8192);
    let publisher = world.publish("live", 0, link, Publisher::ffmpeg(VideoConfig::default()));
    world.run(2 * SECOND);
    let index = world.watch("live", 1, near());
    world.run(20 * SECOND);
    assert_nearly_all_whole(&mut world, publisher, index);
}

#[test]
fn invariant_3_viewers_stay_when_the_publisher_leaves_and_returns() {
    let mut world = World::new(31, 2, 8192);
    let first = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(2 * SECOND);
    let index = world.watch("live", 1, near());
    world.run(2 * SECOND);
    world.delete(first);
    world.run(3 * SECOND);
    // Another encoder: other SSRC, numbers, times; same codec.
    let other = VideoConfig {
        ssrc: 77,
        first_seq: 40_000,
        first_time: 3_000_000_000,
        seed: 9,
        ..VideoConfig::default()
    };
    world.publish("live", 1, near(), Publisher::deaf(other));
    world.run(3 * SECOND);
    let session = world.nodes[index].session;
    assert_eq!(
        world.shared.session_registry.session_state_and_shard(session).0,
        SessionState::Connected
    );
    let viewer = world.viewer(index);
    assert_eq!(
        (viewer.video.holes(), viewer.audio.holes(), viewer.check.corrupt()),
        (0, 0, 0)
    );
    let times: Vec<u64> = viewer.video.packets.values().map(|s| s.time).collect();
    assert!(times.windows(2).all(|w| w[0] <= w[1]), "time never goes back");
    let gap = times.windows(2).map(|w| w[1] - w[0]).max().expect("packets");
    assert!(
        (ticks(2_800 * SECOND / 1000)..ticks(3_400 * SECOND / 1000)).contains(&gap),
        "the gap is the pause: {gap}"
    );
}

/// I-11, B-35.
#[test]
fn a_second_publisher_takes_over_with_its_first_packet() {
    let mut world = World::new(41, 2, 8192);
    let first = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(2 * SECOND);
    let index = world.watch("live", 0, near());
    world.run(SECOND);
    // The first one fell silent without a word, as when a network dies; its session lingers.
    world.publisher(first).paused = true;
    world.run(2 * SECOND);
    let second = world.publish(
        "live",
        1,
        near(),
        Publisher::deaf(VideoConfig {
            ssrc: 5,
            seed: 5,
            ..VideoConfig::default()
        }),
    );
    world.run(SECOND);
    let (old, new) = (world.nodes[first].session, world.nodes[second].session);
    assert_eq!(
        world.shared.session_registry.session_state_and_shard(old).0,
        SessionState::Ended(CloseReason::TakenOver)
    );
    assert_eq!(
        world.shared.session_registry.session_state_and_shard(new).0,
        SessionState::Connected
    );
    let newest = world.publisher(second).newest();
    let viewer = world.viewer(index);
    assert!(viewer.whole_at.contains_key(&(newest - 1)));
    println!(
        "measured: the old session ended as taken over; {} packets missing for a viewer",
        viewer.video.holes()
    );
    assert_eq!((viewer.video.holes(), viewer.check.corrupt()), (0, 0));
}

#[test]
fn invariant_7_media_follows_an_authenticated_nomination_to_a_new_address() {
    let mut world = World::new(51, 2, 8192);
    let publisher = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let index = world.watch("live", 0, near());
    world.run(2 * SECOND);
    world.move_to(index, SocketAddr::from(([192, 0, 2, 9], 4_000)));
    world.run(2 * SECOND);
    let newest = world.publisher(publisher).newest();
    let viewer = world.viewer(index);
    assert!(
        viewer.whole_at.contains_key(&(newest - 1)),
        "media arrives at the new address"
    );
    // What was on its way to the old address when the check arrived is asked for again.
    println!("measured: {} packets missing across the move", viewer.video.holes());
    assert_eq!(viewer.video.holes(), 0);
    viewer.video.assert_steady(ticks(Duration::from_millis(50)));
}

#[test]
fn a_viewer_whose_request_is_ignored_gets_the_cached_key_frame_again() {
    let mut world = World::new(71, 1, 8192);
    world.publish("live", 0, near(), Publisher::deaf(long_gop()));
    world.run(4 * SECOND);
    let index = world.watch("live", 0, near());
    world.run(2 * SECOND);
    let duplicates = world.viewer(index).check.duplicates();
    assert_eq!(duplicates, 0);
    world.viewer(index).ask_for_key_frame();
    world.run(3 * SECOND);
    let viewer = world.viewer(index);
    assert!(
        viewer.check.duplicates() > 500,
        "replayed: {}",
        viewer.check.duplicates()
    );
    assert_eq!((viewer.video.holes(), viewer.check.corrupt()), (0, 0));
    let times: Vec<u64> = viewer.video.packets.values().map(|s| s.time).collect();
    assert!(times.windows(2).all(|w| w[0] <= w[1]), "time never goes back");
}

#[test]
fn invariant_6_a_retransmission_without_rtx_is_the_same_packet() {
    let mut world = World::new(91, 1, 8192);
    world.publish("live", 0, near(), Publisher::deaf(long_gop()));
    world.run(3 * SECOND);
    let mut offer = world.offer(0, 0);
    offer.rtx = false;
    let link = LinkConfig {
        loss: 0.1,
        duplicate: 0.0,
        ..near()
    };
    let index = world.watch_with("live", 0, link, &offer);
    world.run(5 * SECOND);
    // Ask for packets that are there as well: they come again, squeezed times included.
    let viewer = world.viewer(index);
    assert!(viewer.track(MediaKind::Video).rtx_ssrc.is_none());
    let media = viewer.track(MediaKind::Video).ssrc;
    let all: Vec<u64> = viewer.video.packets.keys().copied().collect();
    let seqs: Vec<u16> = all
        .iter()
        .rev()
        .take(200)
        .chain(all.iter().take(100))
        .map(|s| *s as u16)
        .collect();
    let mut compound = Vec::new();
    rtcp::write_receiver_report_with_cname(&mut compound, Ssrc(1), &[], "viewer");
    rtcp::write_nack(&mut compound, Ssrc(1), media, &seqs[..200]);
    viewer.plis.push(compound);
    world.run(SECOND);
    // The world compares the bytes of everything that is sent again.
    assert!(
        world.nodes[index].sealed_again > 200,
        "{}",
        world.nodes[index].sealed_again
    );
    assert!(
        world.viewer(index).video.holes() < 10,
        "{}",
        world.viewer(index).video.holes()
    );
}

#[test]
fn invariant_5_a_shard_that_was_stuck_goes_on_from_the_ring() {
    let mut world = World::new(101, 2, 4);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    // The publisher is node 0: its datagrams reach shard 0, which goes on.
    world.run(SECOND);
    let (stuck, free) = (world.watch("live", 1, near()), world.watch("live", 0, near()));
    world.run(SECOND);
    let others = world.viewer(free).video.packets.len();
    world.frozen.push(1);
    world.run(Duration::from_millis(600));
    world.frozen.clear();
    world.run(2 * SECOND);
    let viewer = world.viewer(stuck);
    assert_eq!((viewer.video.holes(), viewer.check.corrupt()), (0, 0));
    viewer.video.assert_steady(ticks(Duration::from_millis(700)));
    assert!(world.viewer(free).video.packets.len() > others);
}

/// T-12.
#[test]
fn audio_and_video_are_reported_on_one_clock() {
    let mut world = World::new(111, 1, 8192);
    world.publish("live", 0, near(), Publisher::deaf(long_gop()));
    world.run(4 * SECOND);
    let index = world.watch("live", 0, near());
    world.run(4 * SECOND);
    let viewer = world.viewer(index);
    let offset = viewer.audio_video_offset();
    println!("audio and video differ by {:.1} ms", offset * 1e3);
    assert!(offset.abs() < 0.020, "{offset}");
}

#[test]
fn a_source_that_answers_is_asked_when_that_is_cheaper_than_the_cache() {
    let mut world = World::new(121, 1, 8192);
    let only_first = VideoConfig {
        gop: 0,
        ..VideoConfig::default()
    };
    let publisher = world.publish("live", 0, near(), Publisher::obedient(only_first));
    world.run(8 * SECOND);
    // It has to show first that it answers.
    for _ in 0..4 {
        let index = world.watch("live", 0, near());
        world.run(4 * SECOND);
        world.delete(index);
        world.run(2 * SECOND);
    }
    let joined = world.now;
    let requests = world.publisher(publisher).requests.len();
    let index = world.watch("live", 0, near());
    world.run(SECOND);
    assert_eq!(world.publisher(publisher).requests.len(), requests + 1);
    let viewer = world.viewer(index);
    let first = viewer
        .whole_at
        .values()
        .copied()
        .min()
        .expect("frames")
        .duration_since(joined);
    println!("first frame after {first:?}");
    assert!(first < Duration::from_millis(250), "{first:?}");
    assert!(
        viewer.video.packets.len() < 600,
        "no burst of the whole cache: {}",
        viewer.video.packets.len()
    );
}

#[test]
fn a_viewer_that_came_before_the_media_receives_all_of_it() {
    let mut world = World::new(141, 1, 8192);
    let publisher = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.publisher(publisher).paused = true;
    world.run(SECOND);
    let index = world.watch("live", 0, near());
    world.run(SECOND);
    world.publisher(publisher).paused = false;
    world.run(3 * SECOND);
    let viewer = world.viewer(index);
    assert!(viewer.check.whole().count() > 20, "{}", viewer.check.whole().count());
    // SRTP receivers begin with a roll-over counter of zero: a first packet of a later cycle is never authentic.
    assert!(viewer.audio.packets.len() > 140, "{}", viewer.audio.packets.len());
}

#[test]
fn a_viewer_does_not_begin_with_what_an_earlier_source_sent() {
    let mut world = World::new(151, 1, 8192);
    let first = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(2 * SECOND);
    let stays = world.watch("live", 0, near());
    world.run(SECOND);
    world.delete(first);
    world.run(SECOND);
    let second = world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.publisher(second).paused = true;
    world.run(SECOND);
    let index = world.watch("live", 0, near());
    world.run(SECOND);
    assert_eq!(world.viewer(index).video.packets.len(), 0);
    assert_eq!(world.viewer(stays).video.holes(), 0);
}

#[test]
fn invariant_9_routes_to_addresses_that_a_peer_left_are_forgotten() {
    let mut world = World::new(161, 2, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    // Shard 0 gets what comes from even ports and hands it to shard 1.
    let index = world.watch("live", 1, near());
    world.run(SECOND);
    for step in 0..40 {
        world.move_to(index, SocketAddr::from(([192, 0, 2, 9], 4_000 + 2 * step)));
        world.run(Duration::from_millis(200));
    }
    assert!(
        world.routes.len() <= millstream_core::session::ice::MAX_LEARNED_ADDRESSES,
        "{}",
        world.routes.len()
    );
    assert_eq!(world.viewer(index).video.holes(), 0);
}

#[test]
fn a_shard_learns_a_route_by_each_check_and_not_by_each_datagram() {
    let mut world = World::new(171, 2, 8192);
    // The first peer has an even port: shard 0 gets all of its media and hands it to shard 1.
    let publisher = world.publish("live", 1, near(), Publisher::deaf(VideoConfig::default()));
    world.run(5 * SECOND);
    assert!(world.publisher(publisher).newest() > 100);
    assert!((1..50).contains(&world.route_messages), "{}", world.route_messages);
}

#[test]
fn a_dead_viewer_is_forgotten_after_thirty_seconds_and_its_stream_lives_on() {
    let mut world = World::new(131, 2, 8192);
    world.publish(
        "live",
        0,
        near(),
        Publisher::deaf(VideoConfig {
            bitrate: 100_000,
            ..VideoConfig::default()
        }),
    );
    world.run(SECOND);
    let index = world.watch("live", 1, near());
    world.run(SECOND);
    world.nodes[index].closed = true;
    world.run(31 * SECOND);
    let session = world.nodes[index].session;
    assert_eq!(
        world.shared.session_registry.session_state_and_shard(session).0,
        SessionState::Ended(CloseReason::PeerSilent)
    );
    let stream = world.shared.hub.streams().pop().expect("still there");
    assert_eq!(stream.with_state(|state| state.viewer_count()), 0);
    assert!(matches!(world.nodes[0].role, Role::Publisher(_)));
}

#[test]
fn invariant_8_a_peer_that_is_abandoned_takes_nobody_with_it() {
    let mut world = World::new(141, 1, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let (lost, kept) = (world.watch("live", 0, near()), world.watch("live", 0, near()));
    world.run(SECOND);
    world.abandon(0, lost);
    world.run(2 * SECOND);
    assert_eq!(world.reason(lost), Some(CloseReason::Internal));
    assert_eq!((world.reason(kept), world.viewer(kept).video.holes()), (None, 0));
    println!("measured: 1 session ended, the other lost 0 packets");
    let stream = world.shared.hub.streams().pop().expect("still there");
    assert_eq!(stream.with_state(|state| state.viewer_count()), 1);
}

#[test]
fn invariant_4_a_viewer_whose_place_in_the_ring_is_gone_has_the_source_asked_for_a_key_frame() {
    let mut world = World::new(151, 2, 4);
    // At 20 Mbit/s the ring holds three seconds, and there is no key frame but the first.
    let endless = VideoConfig {
        gop: 0,
        bitrate: 20_000_000,
        ..VideoConfig::default()
    };
    let publisher = world.publish("live", 0, near(), Publisher::obedient(endless));
    world.run(SECOND);
    let stuck = world.watch("live", 1, near());
    world.run(SECOND);
    world.frozen.push(1);
    world.run(6 * SECOND);
    world.frozen.clear();
    world.run(2 * SECOND);
    let newest = world.publisher(publisher).newest();
    assert!(
        world.viewer(stuck).whole_at.contains_key(&(newest - 2)),
        "the video goes on"
    );
}
