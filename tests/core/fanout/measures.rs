//! What is counted is what happened: two publishers, ten viewers, three per cent of loss.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::StreamState;
use millstream_test_support::{LinkConfig, VideoConfig};

use crate::fanout::publisher::Publisher;
use crate::fanout::world::World;
use crate::fanout::{SECOND, near};

const SECONDS: u32 = 30;

/// Whether a measure is that of the other side, but for what the network lost of the telling.
fn assert_near(what: &str, counted: f64, happened: f64, tolerance: f64) {
    let apart = (counted - happened).abs() / happened.max(1.0);
    println!("{what}: counted {counted:.1}, happened {happened:.1}");
    assert!(apart <= tolerance, "{what}: counted {counted}, happened {happened}");
}

fn assert_rates(state: &StreamState, now: Instant) {
    let rate = state.video.rate_meter().current_rate(now);
    assert_near("frames per second", rate.frames_per_second, 30.0, 0.05);
    let bitrate = f64::from(VideoConfig::default().bitrate);
    assert_near("bits per second", rate.bitrate as f64, bitrate, 0.2);
    let interval = state.video.key_frame_interval().expect("two of them").as_secs_f64();
    let gop = f64::from(VideoConfig::default().gop) / 30.0;
    assert_near("seconds between key frames", interval, gop, 0.05);
}

fn assert_delays(state: &StreamState, now: Instant, encoding: f64) {
    for track in [&state.video, &state.audio] {
        let delays = track.capture_delay_stats();
        let mean = delays.delay_sum.as_secs_f64() * 1e3 / delays.measurement_count as f64;
        let recent = delays.recent_mean_capture_delay_seconds(now).expect("it was measured") * 1e3;
        println!(
            "{} delays, mean {mean:.1} ms, of late {recent:.1} ms",
            delays.measurement_count
        );
        assert!(
            delays.measurement_count > u64::from(SECONDS) * 25,
            "{}",
            delays.measurement_count
        );
        // The network has none, the rest is the pace at which the publisher looks.
        for measured in [mean, recent] {
            assert!((encoding - 1.0..encoding + 12.0).contains(&measured), "{measured} ms");
        }
    }
}

#[test]
fn measures_are_those_of_the_clients() {
    let lossy = LinkConfig {
        loss: 0.03,
        ..LinkConfig::delay(Duration::from_millis(20))
    };
    let mut world = World::new(21, 2, 8192);
    for (shard, (stream, ssrc, encoding)) in [("one", 1_000, 80), ("two", 2_000, 0)].into_iter().enumerate() {
        let config = VideoConfig {
            ssrc,
            ..VideoConfig::default()
        };
        let publisher = world.publish(stream, shard, near(), Publisher::deaf(config));
        world.publisher(publisher).encoding = Duration::from_millis(encoding);
    }
    world.run(SECOND);
    let viewers: Vec<usize> = (0..10)
        .map(|n| world.watch(if n < 6 { "one" } else { "two" }, n % 2, lossy))
        .collect();
    for viewer in &viewers {
        world.viewer(*viewer).sends_reports = true;
    }
    world.run(SECONDS * SECOND);

    let shared = world.shared.clone();
    let counters = &shared.counters;
    let reception = &counters.viewer_reception_reports;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let asked: u64 = viewers.iter().map(|index| world.viewer(*index).asked).sum();
    let nacked = count(&reception.nacked_packet_count) as f64;
    // Three in a hundred requests are lost too.
    assert_near("packets asked for again", nacked, asked as f64 * 0.97, 0.02);
    let received: usize = viewers
        .iter()
        .map(|index| {
            let viewer = world.viewer(*index);
            viewer.video.packets.len() + viewer.audio.packets.len()
        })
        .sum();
    // Of what was lost on the way a part is not asked for: audio, and what was asked for once too often.
    let missed = asked as f64 / (received as f64 + asked as f64);
    assert!((0.02..0.05).contains(&missed), "{missed}");
    let connected = counters.connect_time.cumulative_counts();
    assert_eq!(connected.last(), Some(&12), "all of them connected");
    let mean = counters.connect_time.sum_seconds() / 12.0;
    assert!((0.02..2.0).contains(&mean), "{mean} s");
    assert_eq!(count(&reception.key_frame_request_count), 0, "nobody asked for one");
    let trips = counters.viewer_round_trip_time.cumulative_counts();
    let up_to_25_and_50_ms: Vec<u64> = trips.iter().copied().skip(2).take(2).collect();
    let all = trips.last().copied().expect("all of them");
    // Twice 20 ms of the link.
    assert!(all > 0 && up_to_25_and_50_ms == [0, all], "{trips:?}");
    assert_eq!(shared.session_registry.open_session_count(), 12);
    let (mut nacked_of_streams, mut reports, mut resent) = (0, 0, 0);
    for (name, watching, encoding) in [("one", 6, 80.0), ("two", 4, 0.0)] {
        let stream = shared
            .hub
            .find_stream(StreamName::parse(name).expect("a name"))
            .expect("live");
        let traffic = &stream.transport_stats;
        nacked_of_streams += count(&traffic.viewer_report_totals.nacked_packet_count);
        resent += count(&traffic.retransmitted_packet_count);
        reports += count(&traffic.viewer_report_totals.report_block_count);
        let trips = count(&traffic.rtt_measurement_count) as f64;
        let mean = count(&traffic.rtt_sum_micros) as f64 / 1e3 / trips;
        // Twice 20 ms of the link.
        assert_near("round trip in ms", mean, 40.0, 0.05);
        let blocks = count(&traffic.viewer_report_totals.report_block_count) as f64;
        let loss = count(&traffic.viewer_report_totals.fraction_lost_sum) as f64 / 256.0 / blocks;
        assert_near("loss that viewers tell, in percent", loss * 100.0, 3.0, 0.25);
        assert_eq!(count(&traffic.missing_packet_count), 0, "{name}: its publisher is near");
        assert_eq!(
            count(&traffic.packet_count_nacked_to_source),
            0,
            "{name}: its publisher is near"
        );
        assert!(count(&traffic.expected_packet_count) > 1_000, "{name}");
        let now = world.now;
        stream.with_state(move |state| {
            assert_eq!(state.viewer_count(), watching, "{name}");
            assert_rates(state, now);
            assert_delays(state, now, encoding);
        });
    }
    assert_eq!(nacked_of_streams, count(&reception.nacked_packet_count));
    assert_eq!(reports, count(&reception.report_block_count));
    assert_near("packets sent again", resent as f64, nacked, 0.05);
}

#[test]
fn what_a_publisher_loses_on_the_way_is_counted() {
    let lossy = LinkConfig {
        loss: 0.03,
        ..LinkConfig::delay(Duration::from_millis(20))
    };
    let mut world = World::new(22, 1, 8192);
    let publisher = world.publish("live", 0, lossy, Publisher::obedient(VideoConfig::default()));
    world.run(SECOND);
    let viewer = world.watch("live", 0, near());
    for _ in 0..SECONDS / 3 {
        world.run(3 * SECOND);
        world.viewer(viewer).ask_for_key_frame();
    }
    world.run(3 * SECOND);
    let shared = world.shared.clone();
    let stream = shared
        .hub
        .find_stream(StreamName::parse("live").expect("a name"))
        .expect("live");
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let traffic = &stream.transport_stats;
    let loss = count(&traffic.missing_packet_count) / count(&traffic.expected_packet_count) * 100.0;
    // What was asked for may be here before the report is written.
    assert!((0.2..=3.5).contains(&loss), "{loss} %");
    assert_near(
        "asked for again",
        count(&traffic.packet_count_nacked_to_source),
        count(&traffic.expected_packet_count) * 0.03,
        0.25,
    );
    let requests = world.publisher(publisher).requests.len() as f64;
    assert!(requests >= f64::from(SECONDS / 3) * 0.7, "{requests}");
    assert_near(
        "key frames asked for",
        count(&traffic.key_frame_request_count_to_source),
        requests / 0.97,
        0.25,
    );
}

const OVERHEARD_PER_KIND: usize = 200;

/// Keeps one of each kind and some more: media would push everything else out.
pub(super) fn capture(captured: &mut Vec<Vec<u8>>, datagram: &[u8]) {
    let kind = |datagram: &[u8]| datagram.first().map(|first| first >> 4);
    let same = captured.iter().filter(|other| kind(other) == kind(datagram));
    if same.count() < OVERHEARD_PER_KIND {
        captured.push(datagram.to_vec());
    }
}
