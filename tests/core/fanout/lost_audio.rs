//! Audio under loss: requested again from publishers, and retransmitted to viewers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millstream_core::media::MediaKind;
use millstream_test_support::{LinkConfig, VideoConfig};

use super::adaptation::{begin_feedback, path, quality};
use super::publisher::{AudioRetransmission, Publisher};
use super::world::World;
use super::{SECOND, near};

/// Audio that is not there so long after it could have been is concealed: a jitter buffer of a round trip of 100 ms and some
/// more.
const CONCEALED_AFTER: Duration = Duration::from_millis(200);

const OPUS: &str = "a=rtpmap:111 opus/48000/2\r\n";

fn lossy(delay: u64) -> LinkConfig {
    LinkConfig {
        loss: 0.05,
        ..LinkConfig::delay(Duration::from_millis(delay))
    }
}

/// When each audio frame arrived at a viewer.
fn arrivals(world: &mut World, viewer: usize) -> BTreeMap<u32, Instant> {
    let seen = world.viewer(viewer).audio.packets.values();
    seen.filter_map(|seen| Some((seen.stamp.filter(|stamp| stamp.intact)?.frame, seen.at)))
        .collect()
}

/// The share of the audio frames, in percent, that arrived at most `late` after the soonest possible instant. The first
/// second, in which the viewer joins, and the last do not count.
fn percent_in_time(world: &mut World, viewer: usize, late: Duration) -> f64 {
    let end = world.now - SECOND;
    let frames = arrivals(world, viewer);
    let (first, begin) = frames.first_key_value().expect("audio");
    // Frames are 20 ms apart: the one that came soonest says when each of them could have.
    let due = |frame: u32, at: Instant| at - Duration::from_millis(20) * (frame - first);
    let origin = frames.iter().map(|(frame, at)| due(*frame, *at)).min().expect("audio");
    let count = end.duration_since(*begin).as_millis() as u32 / 20;
    let in_time = (first + 50..first + count).filter(|frame| {
        let limit = origin + Duration::from_millis(20) * (frame - first) + late;
        frames.get(frame).is_some_and(|at| *at <= limit)
    });
    in_time.count() as f64 * 100.0 / f64::from(count - 50)
}

#[test]
fn audio_that_is_lost_on_the_way_to_the_gateway_is_requested_again() {
    let mut shares = Vec::new();
    for kind in [None, Some(AudioRetransmission::Plain), Some(AudioRetransmission::Rtx)] {
        let mut world = World::new(24, 2, 8192);
        let mut publisher = Publisher::obedient(VideoConfig::default());
        publisher.audio_retransmission = kind;
        let publisher = world.publish("live", 0, lossy(20), publisher);
        world.run(2 * SECOND);
        let viewer = world.watch("live", 1, near());
        world.run(40 * SECOND);
        let share = percent_in_time(&mut world, viewer, CONCEALED_AFTER);
        let requests = world.publisher(publisher).audio_requests.len();
        println!("{kind:?}: {share:.2} % of audio in time, {requests} requests");
        assert_eq!(requests > 0, kind.is_some(), "only where it was offered");
        let mut line = world.viewer(viewer).audio.packets.values();
        assert!(line.all(|seen| seen.stamp.is_some_and(|stamp| stamp.intact)));
        shares.push(share);
    }
    assert!(shares[0] < 97.0, "{shares:?}");
    assert!(shares[1..].iter().all(|share| *share >= 99.5), "{shares:?}");
}

/// A publisher that ignores the requests is not bothered for long.
#[test]
fn audio_is_requested_for_three_hundred_milliseconds_only() {
    let mut world = World::new(25, 1, 8192);
    let mut publisher = Publisher::obedient(VideoConfig::default());
    publisher.audio_retransmission = Some(AudioRetransmission::Plain);
    publisher.ignores_audio_requests = true;
    let publisher = world.publish("live", 0, lossy(20), publisher);
    world.run(20 * SECOND);
    let mut by_packet: BTreeMap<u16, Vec<Instant>> = BTreeMap::new();
    for (at, seq) in &world.publisher(publisher).audio_requests {
        by_packet.entry(*seq).or_default().push(*at);
    }
    assert!(by_packet.len() > 20, "{}", by_packet.len());
    for (seq, times) in by_packet {
        let span = times[times.len() - 1].duration_since(times[0]);
        assert!(
            span <= Duration::from_millis(300) && times.len() <= 7,
            "{seq}: {times:?}"
        );
    }
}

/// Loss of 5 % each way and a round trip of 100 ms. Without retransmission 5 % of the audio is concealed.
#[test]
fn audio_that_a_viewer_requests_again_arrives_in_time() {
    let mut shares = Vec::new();
    for (nacks, transport_cc, rtx) in [
        (false, false, false),
        (true, false, false),
        (true, true, false),
        (true, false, true),
    ] {
        let mut world = World::new(26, 2, 8192);
        world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
        world.run(SECOND);
        let mut offer = world.offer(0, 0);
        offer.transport_cc = transport_cc;
        let mut text = offer.whep();
        if nacks {
            text = text.replace(OPUS, &format!("{OPUS}a=rtcp-fb:111 nack\r\n"));
        }
        if rtx {
            text = text
                .replace(OPUS, &format!("{OPUS}a=rtpmap:112 rtx/48000\r\na=fmtp:112 apt=111\r\n"))
                .replace("SAVPF 111\r\n", "SAVPF 111 112\r\n");
        }
        let index = world.watch_with_text("live", 1, lossy(50), (&offer, text));
        let viewer = world.viewer(index);
        let track = viewer.track(MediaKind::Audio);
        assert_eq!(
            track.codecs[0].rtcp_feedback.nack, nacks,
            "the answer keeps what was offered"
        );
        assert_eq!(track.rtx_ssrc.is_some(), rtx);
        viewer.nacks_audio = nacks;
        world.run(60 * SECOND);
        let share = percent_in_time(&mut world, index, CONCEALED_AFTER);
        println!("NACK of audio: {nacks}, transport-wide numbers: {transport_cc}, RTX: {rtx}: {share:.2} % in time");
        shares.push(share);
    }
    assert!(shares[0] < 97.0, "{shares:?}");
    assert!(shares[1..].iter().all(|share| *share >= 99.0), "{shares:?}");
}

/// A path that carries less than the audio alone: what its full queue drops of it would only fill it further.
#[test]
fn audio_is_not_sent_again_into_a_path_that_is_full() {
    let mut world = World::new(27, 1, 8192);
    world.publish("live", 0, near(), Publisher::obedient(VideoConfig::default()));
    world.run(2 * SECOND);
    let mut offer = world.offer(0, 0);
    offer.transport_cc = true;
    let text = offer.whep().replace(OPUS, &format!("{OPUS}a=rtcp-fb:111 nack\r\n"));
    let index = world.watch_with_text("live", 0, path(5_000_000), (&offer, text));
    begin_feedback(&mut world, index, path(5_000_000));
    world.viewer(index).nacks_audio = true;
    world.run(4 * SECOND);
    world.nodes[index].down.set_config(path(80_000));
    world.run(6 * SECOND);
    let before = quality(&world, index).retransmitted_packet_count;
    let from = world.now;
    world.run(10 * SECOND);
    let again = quality(&world, index).retransmitted_packet_count - before;
    let received = arrivals(&mut world, index).values().filter(|at| **at > from).count();
    println!("{received} of 500 packets of audio arrived, {again} were sent once more");
    assert!((50..480).contains(&received), "the path is full: {received}");
    assert_eq!(again, 0);
}
