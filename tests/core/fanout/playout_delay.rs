//! The playout delay that viewers are told to have: none on a clean path, enough for retransmissions on a lossy one.

use std::time::Duration;

use millstream_core::media::MediaKind;
use millstream_core::media::rtp::ParsedRtpHeader;
use millstream_test_support::{LinkConfig, VideoConfig};

use super::publisher::Publisher;
use super::world::World;
use super::{SECOND, near};

const EXTMAP: &str = "a=extmap:5 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay\r\n";

/// A viewer that offers the extension for its video.
fn watch(world: &mut World, link: LinkConfig) -> usize {
    let offer = world.offer(0, 0);
    let (audio, video) = offer
        .whep()
        .split_once("m=video")
        .map(|(a, v)| (a.to_owned(), v.to_owned()))
        .expect("video");
    let text = format!("{audio}m=video{video}{EXTMAP}");
    let index = world.watch_with_text("live", 0, link, (&offer, text));
    let viewer = world.viewer(index);
    viewer.plain_packets = Some(Vec::new());
    viewer.sends_reports = true;
    index
}

/// The least delays in the packets of the media since the last call, in milliseconds, and how many packets there were. All
/// allow at most 10 s, and so many that players smooth what they show.
fn sent_delays(world: &mut World, viewer: usize, is_retransmitted: bool) -> (Vec<u32>, usize) {
    let viewer = world.viewer(viewer);
    let track = viewer.track(MediaKind::Video).clone();
    let packets = std::mem::take(viewer.plain_packets.as_mut().expect("kept"));
    let wanted = if is_retransmitted {
        track.rtx_ssrc
    } else {
        Some(track.ssrc)
    };
    let headers: Vec<ParsedRtpHeader<'_>> = packets
        .iter()
        .map(|packet| ParsedRtpHeader::parse(packet).expect("RTP"))
        .filter(|header| Some(header.ssrc) == wanted)
        .collect();
    let delays = headers.iter().filter_map(|header| {
        let bytes = header.extension(5)?;
        let both = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        assert_eq!((bytes.len(), both & 0xfff), (3, 1_000));
        Some((both >> 12) * 10)
    });
    (delays.collect(), headers.len())
}

#[test]
fn the_playout_delay_follows_loss_and_ends_ten_seconds_after_it() {
    let mut world = World::new(44, 1, 8192);
    world.publish("live", 0, near(), Publisher::obedient(VideoConfig::default()));
    world.run(SECOND);
    let clean = LinkConfig::delay(Duration::from_millis(50));
    let index = watch(&mut world, clean);
    world.run(10 * SECOND);
    let (delays, packets) = sent_delays(&mut world, index, false);
    assert!(
        delays.is_empty() && packets > 1_000,
        "a clean path: {delays:?}, {packets} packets"
    );

    let lossy = LinkConfig { loss: 0.05, ..clean };
    world.nodes[index].down.set_config(lossy);
    world.nodes[index].up.set_config(lossy);
    world.run(20 * SECOND);
    let (delays, packets) = sent_delays(&mut world, index, false);
    let highest = delays.iter().copied().max();
    // A round trip or two of 100 ms, and 50 ms.
    println!("{highest:?} ms, in {} of {packets} packets", delays.len());
    assert!(highest.is_some_and(|delay| (240..=280).contains(&delay)), "{highest:?}");
    assert!(delays.iter().all(|delay| (140..=280).contains(delay)), "{delays:?}");
    assert!(
        delays.len() * 10 < packets,
        "not in every packet: {} of {packets}",
        delays.len()
    );
    world.run(10 * SECOND);
    let (retransmitted, count) = sent_delays(&mut world, index, true);
    assert!(
        count > 20 && retransmitted.len() == count,
        "{} of {count} retransmissions",
        retransmitted.len()
    );

    world.nodes[index].down.set_config(clean);
    world.nodes[index].up.set_config(clean);
    world.run(9 * SECOND);
    let (delays, _) = sent_delays(&mut world, index, false);
    assert!(!delays.contains(&0), "{delays:?}");
    world.run(3 * SECOND);
    let (delays, packets) = sent_delays(&mut world, index, false);
    assert!(
        !delays.is_empty() && delays.iter().all(|delay| *delay == 0),
        "{delays:?}"
    );
    assert!(delays.len() * 2 < packets, "eight frames of three seconds");
    world.run(20 * SECOND);
    assert!(sent_delays(&mut world, index, false).0.is_empty());
    assert_eq!(world.viewer(index).check.corrupt(), 0);
}

/// The header would have to be that of the packet that was lost.
#[test]
fn a_viewer_without_rtx_is_told_no_playout_delay() {
    let mut world = World::new(45, 1, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let mut offer = world.offer(0, 0);
    offer.rtx = false;
    let text = format!("{}{EXTMAP}", offer.whep());
    let link = LinkConfig {
        loss: 0.05,
        ..LinkConfig::delay(Duration::from_millis(50))
    };
    let index = world.watch_with_text("live", 0, link, (&offer, text));
    world.viewer(index).plain_packets = Some(Vec::new());
    world.run(10 * SECOND);
    let (delays, packets) = sent_delays(&mut world, index, false);
    assert!(delays.is_empty() && packets > 1_000, "{delays:?}");
    assert!(world.nodes[index].sealed_again > 50);
}
