//! The parts of the delay of a viewer, as the API has them.

use std::time::{Duration, Instant};

use millstream_core::hub::viewer_quality::ViewerDelays;
use millstream_core::media::clock::CaptureTimeSource;
use millstream_core::shard::ShardCore;
use millstream_test_support::{LinkConfig, VideoConfig};

use super::adaptation::quality;
use super::publisher::Publisher;
use super::world::World;
use super::{SECOND, near};

const MS: Duration = Duration::from_millis(1);

/// How long the ticks of the shards take.
#[derive(Clone, Copy, Default)]
pub(super) struct TickTimes {
    /// From the arrival of packets until they are forwarded.
    handling: Duration,
    /// From there until they are sent.
    sending: Duration,
}

impl TickTimes {
    pub(super) fn finish_tick(self, core: &mut ShardCore, now: Instant) {
        let end = now + self.handling;
        core.finish_tick(end);
        core.record_sending_of_tick(end, end + self.sending);
    }
}

/// The delays of a viewer behind 20 ms of network after some seconds of this publisher.
fn delays(seed: u64, publisher: Publisher) -> ViewerDelays {
    let mut world = World::new(seed, 1, 8192);
    world.publish("live", 0, near(), publisher);
    world.run(2 * SECOND);
    let index = world.watch("live", 0, LinkConfig::delay(20 * MS));
    world.viewer(index).sends_reports = true;
    world.run(6 * SECOND);
    let delays = quality(&world, index).delays;
    println!("{delays:?}");
    let network = delays.network.expect("it reports");
    assert!((19 * MS..23 * MS).contains(&network), "{network:?}");
    // What the cache has is older than it is late.
    let in_gateway = delays.gateway.expect("it is sent something");
    assert!(in_gateway < 2 * MS, "{in_gateway:?}");
    delays
}

fn publisher(encoding: Duration, by_abs_capture_time: Option<Duration>) -> Publisher {
    let mut publisher = Publisher::obedient(VideoConfig::default());
    publisher.encoding = encoding;
    publisher.encoding_by_abs_capture_time = by_abs_capture_time;
    publisher
}

#[test]
fn the_delay_of_a_viewer_is_known_by_its_parts() {
    let captured = delays(61, publisher(80 * MS, None)).capture_to_gateway;
    let captured = captured.expect("the publisher reports");
    assert_eq!(captured.source, CaptureTimeSource::SenderReports);
    // The rest is the pace at which the publisher looks.
    assert!((79 * MS..93 * MS).contains(&captured.delay), "{captured:?}");
}

#[test]
fn capture_times_in_packets_count_more_than_sender_reports() {
    let captured = delays(62, publisher(Duration::ZERO, Some(120 * MS))).capture_to_gateway;
    let captured = captured.expect("the publisher reports");
    assert_eq!(captured.source, CaptureTimeSource::AbsCaptureTime);
    assert!((119 * MS..133 * MS).contains(&captured.delay), "{captured:?}");
}

#[test]
fn the_time_of_a_tick_counts_once() {
    let in_gateway = |tick_times| {
        let mut world = World::new(63, 1, 8192);
        world.tick_times = tick_times;
        world.publish("live", 0, near(), publisher(Duration::ZERO, None));
        world.run(SECOND);
        let index = world.watch("live", 0, near());
        world.run(6 * SECOND);
        quality(&world, index).delays.gateway.expect("it is sent something")
    };
    let (handling, sending) = (700 * MS / 1_000, 200 * MS / 1_000);
    let (without, with) = (
        in_gateway(TickTimes::default()),
        in_gateway(TickTimes { handling, sending }),
    );
    println!("{without:?} and {with:?}");
    let tick = with - without;
    assert!((800 * MS / 1_000..1_000 * MS / 1_000).contains(&tick), "{tick:?}");
}
