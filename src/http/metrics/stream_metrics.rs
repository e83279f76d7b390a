//! Metrics of streams and of their tracks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millstream_core::hub::meter::{BitrateAndFrameRate, CaptureDelayStats};
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::Stream;
use millstream_core::hub::traffic::StreamTransportStats;
use millstream_core::media::{Codec, MediaKind};

use super::MAX_LISTED_STREAMS;
use super::metrics_text::MetricsText;
use crate::control::ControlPlane;

/// The exported values of a stream.
struct StreamMetrics {
    name: StreamName,
    is_live: bool,
    is_stalled: bool,
    viewer_count: usize,
    hls_viewer_count: usize,
    key_frame_interval: Option<Duration>,
    /// Values of [`STREAM_TRAFFIC_SUMMARIES`], in its order: sum and number.
    traffic_summaries: [(f64, f64); STREAM_TRAFFIC_SUMMARIES.len()],
    /// Values of [`STREAM_TRAFFIC_METRIC_FAMILIES`], in its order.
    traffic: [f64; STREAM_TRAFFIC_METRIC_FAMILIES.len()],
    tracks: Vec<TrackMetrics>,
}

/// A summary of [`StreamTransportStats`].
struct TrafficSummary {
    name: &'static str,
    help: &'static str,
    sum_and_count: fn(&StreamTransportStats) -> (f64, f64),
    /// Former names of the sum and of the number.
    former_names: [&'static str; 2],
}

const STREAM_TRAFFIC_SUMMARIES: [TrafficSummary; 2] = [
    TrafficSummary {
        name: "millstream_stream_reported_loss_ratio",
        help: "Fractions of packets lost, 0 to 1, as reported by viewers of the stream in RTCP receiver reports.",
        sum_and_count: |traffic| {
            let reports = &traffic.viewer_report_totals;
            let lost = read_counter_as_f64(&reports.fraction_lost_sum) / 256.0;
            (lost, read_counter_as_f64(&reports.report_block_count))
        },
        former_names: [
            "millstream_stream_reported_loss_total",
            "millstream_stream_reports_total",
        ],
    },
    TrafficSummary {
        name: "millstream_stream_round_trip_seconds",
        help: "Round-trip times to viewers of the stream.",
        sum_and_count: |traffic| {
            let sum = read_counter_as_f64(&traffic.rtt_sum_micros) / 1e6;
            (sum, read_counter_as_f64(&traffic.rtt_measurement_count))
        },
        former_names: [
            "millstream_stream_round_trip_seconds_total",
            "millstream_stream_round_trips_total",
        ],
    },
];

/// A metric family of [`StreamTransportStats`]: its name, help text and value.
type TrafficMetricFamily = (&'static str, &'static str, fn(&StreamTransportStats) -> f64);

/// Per-stream counters of the networks on both sides of a stream.
const STREAM_TRAFFIC_METRIC_FAMILIES: [TrafficMetricFamily; 7] = [
    (
        "millstream_source_packets_total",
        "Packets that the publisher sent, counted from its RTP sequence numbers, as of the last RTCP receiver report \
         to it.",
        |traffic| read_counter_as_f64(&traffic.expected_packet_count),
    ),
    (
        "millstream_source_missing_packets_total",
        "Packets of the publisher that were missing in the interval of each RTCP receiver report to it, summed; one \
         that arrives after the report, as a retransmission, reduces the count of the next interval.",
        |traffic| read_counter_as_f64(&traffic.missing_packet_count),
    ),
    (
        "millstream_source_nacked_packets_total",
        "Packets requested again from the publisher (NACK).",
        |traffic| read_counter_as_f64(&traffic.packet_count_nacked_to_source),
    ),
    (
        "millstream_source_key_frame_requests_total",
        "Key frame requests to the publisher (PLI).",
        |traffic| read_counter_as_f64(&traffic.key_frame_request_count_to_source),
    ),
    (
        "millstream_stream_nacked_packets_total",
        "Packets requested again by viewers of the stream (NACK).",
        |traffic| read_counter_as_f64(&traffic.viewer_report_totals.nacked_packet_count),
    ),
    (
        "millstream_stream_resent_packets_total",
        "Packets retransmitted to viewers of the stream.",
        |traffic| read_counter_as_f64(&traffic.retransmitted_packet_count),
    ),
    (
        "millstream_stream_key_frame_requests_total",
        "Key frame requests of viewers of the stream (PLI, FIR).",
        |traffic| read_counter_as_f64(&traffic.viewer_report_totals.key_frame_request_count),
    ),
];

fn read_counter_as_f64(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64
}

struct TrackMetrics {
    kind: MediaKind,
    codec: Codec,
    rate: BitrateAndFrameRate,
    /// Width and height in pixels, of video.
    resolution: Option<(u16, u16)>,
    capture_delays: CaptureDelayStats,
}

impl StreamMetrics {
    fn from_stream(stream: &Stream, hls_viewers: usize, now: Instant) -> Self {
        let traffic_summaries =
            STREAM_TRAFFIC_SUMMARIES.map(|summary| (summary.sum_and_count)(&stream.transport_stats));
        let traffic = STREAM_TRAFFIC_METRIC_FAMILIES.map(|(_, _, value)| value(&stream.transport_stats));
        stream.with_state(|state| {
            let is_live = state.source().is_some();
            let tracks = [&state.video, &state.audio]
                .into_iter()
                .filter(|_| is_live)
                .filter_map(|track| {
                    Some(TrackMetrics {
                        kind: track.kind(),
                        codec: track.format()?.codec(),
                        rate: track.rate_meter().current_rate(now),
                        resolution: track.resolution(),
                        capture_delays: *track.capture_delay_stats(),
                    })
                });
            Self {
                name: stream.key.name.clone(),
                is_live,
                is_stalled: state.is_source_stalled(now),
                viewer_count: state.viewer_count(),
                hls_viewer_count: hls_viewers,
                key_frame_interval: state.video.key_frame_interval().filter(|_| is_live),
                traffic_summaries,
                traffic,
                tracks: tracks.collect(),
            }
        })
    }
}

fn write_viewer_totals(page: &mut MetricsText, streams: &[StreamMetrics]) {
    page.begin_metric_family("millstream_viewers", "gauge", "Viewers of all streams, by transport.");
    page.add_sample_with_label(
        "transport",
        "webrtc",
        streams.iter().map(|s| s.viewer_count).sum::<usize>(),
    );
    page.add_sample_with_label(
        "transport",
        "hls",
        streams.iter().map(|s| s.hls_viewer_count).sum::<usize>(),
    );
}

pub(super) fn write_stream_metrics(page: &mut MetricsText, control: &ControlPlane) {
    #[expect(clippy::disallowed_methods, reason = "the time of the request")]
    let now = Instant::now();
    let all = control.media_plane.hub().streams();
    let (streams, variants): (Vec<_>, Vec<_>) = all.iter().partition(|stream| stream.key.is_original_stream());
    let streams = streams.into_iter();
    let mut streams: Vec<StreamMetrics> = streams
        .map(|stream| StreamMetrics::from_stream(stream, control.hls_service.viewer_count(&stream.key.name), now))
        .collect();
    let live = streams.iter().filter(|stream| stream.is_live).count();
    page.add_gauge(
        "millstream_streams_live",
        "Streams that are live now, from a publisher or another source.",
        live,
    );
    page.add_gauge(
        "millstream_streams_stalled",
        "Live streams whose publisher is connected and has sent nothing for 5 s.",
        streams.iter().filter(|stream| stream.is_stalled).count(),
    );
    write_viewer_totals(page, &streams);
    let total = |stream: &StreamMetrics| stream.viewer_count + stream.hls_viewer_count;
    streams.sort_by(|a, b| (total(b), &a.name).cmp(&(total(a), &b.name)));
    streams.truncate(MAX_LISTED_STREAMS);
    page.begin_metric_family(
        "millstream_stream_viewers",
        "gauge",
        "Viewers of the stream. HLS players with the same address and user agent count as one. At most 1000 streams \
         are listed.",
    );
    for stream in &streams {
        for (transport, viewers) in [("webrtc", stream.viewer_count), ("hls", stream.hls_viewer_count)] {
            // No character of a stream name needs escaping.
            page.add_sample_with_label_list(
                &format!("stream=\"{}\",transport=\"{transport}\"", stream.name),
                viewers,
            );
        }
    }
    page.begin_metric_family(
        "millstream_stream_stalled",
        "gauge",
        "1 while the publisher of the stream is connected and has sent nothing for 5 s, else 0.",
    );
    for stream in &streams {
        page.add_sample_with_label("stream", &stream.name, u8::from(stream.is_stalled));
    }
    write_track_rate_delay_and_resolution_metrics(page, &streams);
    for (index, (name, help, _)) in STREAM_TRAFFIC_METRIC_FAMILIES.iter().enumerate() {
        page.begin_metric_family(name, "counter", help);
        for stream in &streams {
            let value = stream.traffic.get(index).copied().unwrap_or_default();
            page.add_sample_with_label("stream", &stream.name, value);
        }
    }
    write_traffic_summaries(page, &streams);
    // The second family is the former name of the first; it is removed in the next version.
    for (family, label, help) in [
        (
            "millstream_transcode_viewers",
            "target",
            "Viewers that get a transcoded track, by its codec.",
        ),
        (
            "millstream_repair_viewers",
            "repair",
            "Deprecated: the same as millstream_transcode_viewers.",
        ),
    ] {
        page.begin_metric_family(family, "gauge", help);
        for (stream, target) in variants
            .iter()
            .filter_map(|stream| Some((stream, stream.key.transcoded_to()?)))
        {
            let labels = format!("stream=\"{}\",{label}=\"{}\"", stream.key.name, target.label());
            page.add_sample_with_label_list(&labels, stream.with_state(|state| state.viewer_count()));
        }
    }
}

fn write_traffic_summaries(page: &mut MetricsText, streams: &[StreamMetrics]) {
    for (index, summary) in STREAM_TRAFFIC_SUMMARIES.into_iter().enumerate() {
        let of_stream = |stream: &StreamMetrics| stream.traffic_summaries.get(index).copied().unwrap_or_default();
        page.begin_metric_family(summary.name, "summary", summary.help);
        for stream in streams {
            let (sum, count) = of_stream(stream);
            page.add_sum_and_count(&format!("stream=\"{}\"", stream.name), sum, count);
        }
        let [sum_name, count_name] = summary.former_names;
        page.begin_deprecated_metric_family(sum_name, "counter", summary.name);
        for stream in streams {
            page.add_sample_with_label("stream", &stream.name, of_stream(stream).0);
        }
        page.begin_deprecated_metric_family(count_name, "counter", summary.name);
        for stream in streams {
            page.add_sample_with_label("stream", &stream.name, of_stream(stream).1);
        }
    }
}

fn write_track_rate_delay_and_resolution_metrics(page: &mut MetricsText, streams: &[StreamMetrics]) {
    let name = "millstream_stream_bytes_per_second";
    page.begin_metric_family(name, "gauge", "Payload bytes of the source per second.");
    for (stream, track) in streams_with_tracks(streams) {
        page.add_sample_with_label_list(&codec_labels(stream, track), track.rate.bitrate as f64 / 8.0);
    }
    page.begin_deprecated_metric_family("millstream_stream_bitrate", "gauge", name);
    for (stream, track) in streams_with_tracks(streams) {
        page.add_sample_with_label_list(&codec_labels(stream, track), track.rate.bitrate);
    }
    let video_tracks = || streams_with_tracks(streams).filter(|(_, track)| track.kind == MediaKind::Video);
    page.add_renamed_family(
        ["millstream_stream_frames_per_second", "millstream_stream_frame_rate"],
        "gauge",
        "Video frames per second of the source.",
        |page| {
            for (stream, track) in video_tracks() {
                page.add_sample_with_label("stream", &stream.name, format!("{:.2}", track.rate.frames_per_second));
            }
        },
    );
    page.begin_metric_family(
        "millstream_stream_key_frame_interval_seconds",
        "gauge",
        "Time between the last two key frames of the source.",
    );
    for stream in streams {
        if let Some(interval) = stream.key_frame_interval {
            page.add_sample_with_label("stream", &stream.name, interval.as_secs_f64());
        }
    }
    write_capture_delays(page, streams);
    let resolutions = || video_tracks().filter_map(|(stream, track)| Some((stream, track.resolution?)));
    page.add_renamed_family(
        ["millstream_stream_width_pixels", "millstream_stream_width"],
        "gauge",
        "Width of the video in pixels.",
        |page| {
            for (stream, (width, _)) in resolutions() {
                page.add_sample_with_label("stream", &stream.name, width);
            }
        },
    );
    page.add_renamed_family(
        ["millstream_stream_height_pixels", "millstream_stream_height"],
        "gauge",
        "Height of the video in pixels.",
        |page| {
            for (stream, (_, height)) in resolutions() {
                page.add_sample_with_label("stream", &stream.name, height);
            }
        },
    );
}

fn write_capture_delays(page: &mut MetricsText, streams: &[StreamMetrics]) {
    let name = "millstream_source_delay_seconds";
    page.begin_metric_family(
        name,
        "summary",
        "Delays of video frames and audio packets from capture (by the RTCP sender reports of the source) to arrival \
         at the gateway. The shortest network delay of a sender report counts as zero, since the clocks are not \
         synchronized.",
    );
    for (stream, track) in streams_with_tracks(streams) {
        let delays = &track.capture_delays;
        page.add_sum_and_count(
            &track_labels(stream, track),
            delays.delay_sum.as_secs_f64(),
            delays.measurement_count,
        );
    }
    page.begin_deprecated_metric_family("millstream_source_delays_total", "counter", name);
    for (stream, track) in streams_with_tracks(streams) {
        page.add_sample_with_label_list(&track_labels(stream, track), track.capture_delays.measurement_count);
    }
    page.begin_deprecated_metric_family("millstream_source_delay_seconds_total", "counter", name);
    for (stream, track) in streams_with_tracks(streams) {
        let sum = track.capture_delays.delay_sum.as_secs_f64();
        page.add_sample_with_label_list(&track_labels(stream, track), sum);
    }
}

fn codec_labels(stream: &StreamMetrics, track: &TrackMetrics) -> String {
    format!("{},codec=\"{}\"", track_labels(stream, track), track.codec.name())
}

fn track_labels(stream: &StreamMetrics, track: &TrackMetrics) -> String {
    format!("stream=\"{}\",kind=\"{}\"", stream.name, track.kind)
}

fn streams_with_tracks(streams: &[StreamMetrics]) -> impl Iterator<Item = (&StreamMetrics, &TrackMetrics)> {
    streams
        .iter()
        .flat_map(|stream| stream.tracks.iter().map(move |track| (stream, track)))
}
