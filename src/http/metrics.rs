//! `/metrics` in the Prometheus text format 0.0.4. Label values come from enums, except for stream names, whose number
//! is limited.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::state::HttpState;
use crate::control::Control;
use crate::pipeline::process;
use crate::sources::fetch::status::State;
use crate::telemetry;
use millstream_core::hub::meter::{Delays, Rate};
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::Stream;
use millstream_core::hub::traffic::Traffic;
use millstream_core::media::{Codec, Kind};
use millstream_core::shard::counters::Histogram;

/// Maximum number of streams that are listed by name; those with the most viewers come first.
const MAX_STREAMS: usize = 1_000;

/// Returns all metrics as text.
pub fn render(state: &HttpState) -> String {
    let mut page = Page::default();
    page.family(
        "millstream_http_responses_total",
        "counter",
        "HTTP responses by class of status.",
    );
    let control = &state.control;
    for (class, count) in state.counters.by_class() {
        page.labelled("class", class, count);
    }
    page.family(
        "millstream_http_rejected_total",
        "counter",
        "Rejected connections and requests, by the limit that was reached: connections_per_address, request_rate, \
         failure_rate (wrong tokens), webhook_queue, response_unread (HTTP/2 responses that were reset).",
    );
    for (rejection, count) in state.counters.rejections() {
        page.labelled("reason", rejection.label(), count);
    }
    page.single(
        "millstream_sessions",
        "gauge",
        "Open sessions.",
        control.media.sessions(),
    );
    admission(&mut page, control);
    streams(&mut page, control);
    sources(&mut page, control);
    media(&mut page, control);
    reception(&mut page, control);
    process(&mut page, control);
    page.text
}

/// Half-open sessions and rejected sessions.
fn admission(page: &mut Page, control: &Control) {
    page.single(
        "millstream_half_open_sessions",
        "gauge",
        "Sessions between the offer and the end of the DTLS handshake.",
        control.media.half_open_sessions(),
    );
    let counters = control.media.counters();
    page.family(
        "millstream_sessions_refused_total",
        "counter",
        "Refused sessions, by the limit that was reached.",
    );
    for (full, count) in counters.refusals() {
        page.labelled("reason", full.label(), count);
    }
    page.family(
        "millstream_sessions_evicted_total",
        "counter",
        "Half-open sessions without an ICE check that were evicted for a newer one, by the limit that was reached.",
    );
    for (full, count) in counters.evictions() {
        page.labelled("reason", full.label(), count);
    }
}

/// RTCP feedback of viewers, connection setup time and forwarding time.
fn reception(page: &mut Page, control: &Control) {
    let counters = control.media.counters();
    for (name, help, counter) in [
        (
            "millstream_viewer_nacked_packets_total",
            "Packets requested again by viewers (NACK).",
            &counters.reception.nacked,
        ),
        (
            "millstream_viewer_key_frame_requests_total",
            "Key frame requests of viewers (PLI, FIR).",
            &counters.reception.key_frames_requested,
        ),
        (
            "millstream_viewer_reports_total",
            "Receiver reports of viewers.",
            &counters.reception.reports,
        ),
    ] {
        page.single(name, "counter", help, counter.load(Ordering::Relaxed));
    }
    page.single(
        "millstream_viewer_reported_loss_total",
        "counter",
        "Sum of the fractions lost in these reports; divided by the number of reports it is the mean loss.",
        counters.reception.reported_loss.load(Ordering::Relaxed) as f64 / 256.0,
    );
    page.histogram(
        "millstream_connect_seconds",
        "Time from the offer to the end of the DTLS handshake.",
        &counters.connecting,
    );
    page.histogram(
        "millstream_forward_seconds",
        "Time from the arrival of a packet until it was sent to all viewers of a shard; the longest of each tick.",
        &counters.forwarding,
    );
}

/// Metrics of the process, with the names that Prometheus client libraries use.
fn process(page: &mut Page, control: &Control) {
    page.single(
        "millstream_media_tcp_connections",
        "gauge",
        "Peers connected by ICE-TCP.",
        control.media.tcp_connections(),
    );
    page.single(
        "millstream_media_tcp_queued_bytes",
        "gauge",
        "Bytes queued for these connections.",
        control.media.tcp_queued(),
    );
    page.single(
        "millstream_hls_streams",
        "gauge",
        "Streams that are packaged for HLS.",
        control.hls.packaged(),
    );
    page.single(
        "millstream_hls_waiting_requests",
        "gauge",
        "Blocked HLS requests that wait for the next part.",
        control.hls.waiting(),
    );
    page.single(
        "millstream_workers",
        "gauge",
        "Worker processes that run GStreamer pipelines.",
        process::running(),
    );
    page.family(
        "millstream_shard_queue",
        "gauge",
        "Messages queued for a shard of the media plane.",
    );
    for (shard, waiting) in control.media.queues().into_iter().enumerate() {
        page.labelled("shard", shard, waiting);
    }
    page.family(
        "millstream_shard_tick_age_seconds",
        "gauge",
        "Time since the last tick of a shard; above 1, /healthz answers 503.",
    );
    for (shard, age) in control.media.tick_ages().into_iter().enumerate() {
        page.labelled("shard", shard, age.as_secs_f64());
    }
    page.single(
        "millstream_log_lines_dropped_total",
        "counter",
        "Log lines that were dropped because standard error was not read in time.",
        telemetry::dropped_lines(),
    );
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    page.single("process_open_fds", "gauge", "Open files.", files);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| {
        let kilobytes = line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?;
        kilobytes.trim().parse::<u64>().ok()
    });
    page.single(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory.",
        resident.unwrap_or(0) * 1_024,
    );
}

/// The exported values of a stream.
struct StreamSample {
    name: StreamName,
    is_live: bool,
    viewers: usize,
    hls_viewers: usize,
    key_frame_interval: Option<Duration>,
    /// Values of [`TRAFFIC`], in its order.
    traffic: [f64; TRAFFIC.len()],
    tracks: Vec<TrackSample>,
}

/// A metric family of [`Traffic`]: its name, help text and value.
type TrafficFamily = (&'static str, &'static str, fn(&Traffic) -> f64);

/// Per-stream counters of the networks on both sides of a stream.
const TRAFFIC: [TrafficFamily; 11] = [
    (
        "millstream_source_packets_total",
        "Packets that the publisher sent, by its sequence numbers, as of the last report to it.",
        |traffic| count(&traffic.expected),
    ),
    (
        "millstream_source_missing_packets_total",
        "Packets of these that had not arrived by then; some arrive later as retransmissions.",
        |traffic| count(&traffic.missing),
    ),
    (
        "millstream_source_nacked_packets_total",
        "Packets requested again from the publisher (NACK).",
        |traffic| count(&traffic.asked),
    ),
    (
        "millstream_source_key_frame_requests_total",
        "Key frame requests to the publisher (PLI).",
        |traffic| count(&traffic.key_frames_asked),
    ),
    (
        "millstream_stream_reports_total",
        "Receiver reports of viewers of the stream.",
        |traffic| count(&traffic.reception.reports),
    ),
    (
        "millstream_stream_reported_loss_total",
        "Sum of the fractions lost in these reports; divided by the number of reports it is the mean loss.",
        |traffic| count(&traffic.reception.reported_loss) / 256.0,
    ),
    (
        "millstream_stream_round_trips_total",
        "Measured round trips to viewers of the stream.",
        |traffic| count(&traffic.round_trips),
    ),
    (
        "millstream_stream_round_trip_seconds_total",
        "Sum of these round trips; divided by their number it is the mean.",
        |traffic| count(&traffic.round_trip_micros) / 1e6,
    ),
    (
        "millstream_stream_nacked_packets_total",
        "Packets requested again by viewers of the stream (NACK).",
        |traffic| count(&traffic.reception.nacked),
    ),
    (
        "millstream_stream_resent_packets_total",
        "Packets retransmitted to viewers of the stream.",
        |traffic| count(&traffic.resent),
    ),
    (
        "millstream_stream_key_frame_requests_total",
        "Key frame requests of viewers of the stream (PLI, FIR).",
        |traffic| count(&traffic.reception.key_frames_requested),
    ),
];

fn count(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64
}

struct TrackSample {
    kind: Kind,
    codec: Codec,
    rate: Rate,
    /// Width and height in pixels, of video.
    resolution: Option<(u16, u16)>,
    delays: Delays,
}

impl StreamSample {
    fn of(stream: &Stream, hls_viewers: usize, now: Instant) -> Self {
        let traffic = TRAFFIC.map(|(_, _, value)| value(&stream.traffic));
        stream.with(|state| {
            let is_live = state.source().is_some();
            let tracks = [&state.video, &state.audio]
                .into_iter()
                .filter(|_| is_live)
                .filter_map(|track| {
                    Some(TrackSample {
                        kind: track.kind(),
                        codec: track.format()?.codec(),
                        rate: track.meter().rate(now),
                        resolution: track.resolution(),
                        delays: *track.delays(),
                    })
                });
            Self {
                name: stream.key.name.clone(),
                is_live,
                viewers: state.viewers(),
                hls_viewers,
                key_frame_interval: state.video.key_frame_interval().filter(|_| is_live),
                traffic,
                tracks: tracks.collect(),
            }
        })
    }
}

fn streams(page: &mut Page, control: &Control) {
    #[expect(clippy::disallowed_methods, reason = "the time of the request")]
    let now = Instant::now();
    let all = control.media.hub().streams();
    let (streams, variants): (Vec<_>, Vec<_>) = all.iter().partition(|stream| stream.key.is_original());
    let streams = streams.into_iter();
    let mut streams: Vec<StreamSample> = streams
        .map(|stream| StreamSample::of(stream, control.hls.viewers(&stream.key.name), now))
        .collect();
    let live = streams.iter().filter(|stream| stream.is_live).count();
    page.single("millstream_streams_live", "gauge", "Streams with a live source.", live);
    page.family("millstream_viewers", "gauge", "Viewers of all streams.");
    page.labelled("transport", "webrtc", streams.iter().map(|s| s.viewers).sum::<usize>());
    page.labelled("transport", "hls", streams.iter().map(|s| s.hls_viewers).sum::<usize>());
    let total = |stream: &StreamSample| stream.viewers + stream.hls_viewers;
    streams.sort_by(|a, b| (total(b), &a.name).cmp(&(total(a), &b.name)));
    streams.truncate(MAX_STREAMS);
    page.family(
        "millstream_stream_viewers",
        "gauge",
        "Viewers of the stream. HLS players with the same address and user agent count as one. At most 1000 streams \
         are listed.",
    );
    for stream in &streams {
        for (transport, viewers) in [("webrtc", stream.viewers), ("hls", stream.hls_viewers)] {
            // No character of a stream name needs escaping.
            page.sample(
                &format!("stream=\"{}\",transport=\"{transport}\"", stream.name),
                viewers,
            );
        }
    }
    tracks(page, &streams);
    for (index, (name, help, _)) in TRAFFIC.iter().enumerate() {
        page.family(name, "counter", help);
        for stream in &streams {
            let value = stream.traffic.get(index).copied().unwrap_or_default();
            page.labelled("stream", &stream.name, value);
        }
    }
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
        page.family(family, "gauge", help);
        for (stream, target) in variants
            .iter()
            .filter_map(|stream| Some((stream, stream.key.transcode_target()?)))
        {
            let labels = format!("stream=\"{}\",{label}=\"{}\"", stream.key.name, target.label());
            page.sample(&labels, stream.with(|state| state.viewers()));
        }
    }
}

fn tracks(page: &mut Page, streams: &[StreamSample]) {
    page.family(
        "millstream_stream_bitrate",
        "gauge",
        "Payload bit rate of the source, in bits per second.",
    );
    for (stream, track) in each_track(streams) {
        let labels = format!(
            "stream=\"{}\",kind=\"{}\",codec=\"{}\"",
            stream.name,
            track.kind,
            track.codec.name()
        );
        page.sample(&labels, track.rate.bitrate);
    }
    page.family(
        "millstream_stream_frame_rate",
        "gauge",
        "Video frames per second of the source.",
    );
    let video_tracks = || each_track(streams).filter(|(_, track)| track.kind == Kind::Video);
    for (stream, track) in video_tracks() {
        page.labelled("stream", &stream.name, format!("{:.2}", track.rate.frames));
    }
    page.family(
        "millstream_stream_key_frame_interval_seconds",
        "gauge",
        "Time between the last two key frames of the source.",
    );
    for stream in streams {
        if let Some(interval) = stream.key_frame_interval {
            page.labelled("stream", &stream.name, interval.as_secs_f64());
        }
    }
    page.family(
        "millstream_source_delays_total",
        "counter",
        "Video frames and audio packets whose delay was measured, from capture (by the sender reports of the source) \
         to arrival at the gateway. The network delay of the fastest sender report is not included.",
    );
    for (stream, track) in each_track(streams) {
        page.sample(&kind_labels(stream, track), track.delays.count);
    }
    page.family(
        "millstream_source_delay_seconds_total",
        "counter",
        "Sum of these delays; divided by their number it is the mean.",
    );
    for (stream, track) in each_track(streams) {
        page.sample(&kind_labels(stream, track), track.delays.sum.as_secs_f64());
    }
    page.family("millstream_stream_width", "gauge", "Width of the video in pixels.");
    for (stream, track) in video_tracks() {
        if let Some((width, _)) = track.resolution {
            page.labelled("stream", &stream.name, width);
        }
    }
    page.family("millstream_stream_height", "gauge", "Height of the video in pixels.");
    for (stream, track) in video_tracks() {
        if let Some((_, height)) = track.resolution {
            page.labelled("stream", &stream.name, height);
        }
    }
}

fn kind_labels(stream: &StreamSample, track: &TrackSample) -> String {
    format!("stream=\"{}\",kind=\"{}\"", stream.name, track.kind)
}

fn each_track(streams: &[StreamSample]) -> impl Iterator<Item = (&StreamSample, &TrackSample)> {
    streams
        .iter()
        .flat_map(|stream| stream.tracks.iter().map(move |track| (stream, track)))
}

fn sources(page: &mut Page, control: &Control) {
    page.family(
        "millstream_source_state",
        "gauge",
        "1 for the state that the configured source of the stream is in.",
    );
    for entry in control.sources.all() {
        let status = entry.status();
        for state in State::ALL {
            let labels = format!("stream=\"{}\",state=\"{}\"", entry.stream, state.label());
            page.sample(&labels, u8::from(state == status.state));
        }
    }
    page.family(
        "millstream_source_failures_total",
        "counter",
        "Failures of the configured source of the stream; each is followed by another start.",
    );
    for entry in control.sources.all() {
        page.labelled("stream", &entry.stream, entry.status().restarts);
    }
}

fn media(page: &mut Page, control: &Control) {
    let counters = control.media.counters();
    let sent = &counters.sent;
    for (name, help, counter) in [
        (
            "millstream_received_datagrams_total",
            "Datagrams received.",
            &counters.received_datagrams,
        ),
        (
            "millstream_received_bytes_total",
            "Bytes received, without UDP and IP headers.",
            &counters.received_bytes,
        ),
        ("millstream_sent_datagrams_total", "Datagrams sent.", &sent.datagrams),
        (
            "millstream_send_calls_total",
            "System calls used to send them.",
            &sent.calls,
        ),
    ] {
        page.single(name, "counter", help, counter.load(Ordering::Relaxed));
    }
    page.family(
        "millstream_dropped_total",
        "counter",
        "Datagrams and messages dropped, by reason.",
    );
    for (reason, count) in counters.drops() {
        page.labelled("reason", reason.label(), count);
    }
    page.labelled("reason", "send_buffer_full", sent.dropped_full.load(Ordering::Relaxed));
    page.labelled("reason", "send_refused", sent.dropped_refused.load(Ordering::Relaxed));
    page.labelled("reason", "tcp_queue_full", sent.dropped_tcp.load(Ordering::Relaxed));
    page.family(
        "millstream_session_dropped_total",
        "counter",
        "Packets that sessions rejected, by reason; counted when a session ends.",
    );
    for (reason, count) in counters.session_drops() {
        page.labelled("reason", reason.label(), count);
    }
    page.family(
        "millstream_media_tcp_closed_total",
        "counter",
        "Closed connections of the media TCP port, by reason.",
    );
    for (reason, count) in counters.tcp_ends() {
        page.labelled("reason", reason.label(), count);
    }
    page.family(
        "millstream_sessions_closed_total",
        "counter",
        "Sessions that ended, by reason.",
    );
    for (reason, count) in counters.closes() {
        page.labelled("reason", reason.label(), count);
    }
}

/// The text so far and the current metric family, which samples are added to.
#[derive(Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, labels: &str, sample: impl Display) {
        let _ = writeln!(self.text, "{}{{{labels}}} {sample}", self.name);
    }

    fn labelled(&mut self, label: &str, value: impl Display, sample: impl Display) {
        let _ = writeln!(self.text, "{}{{{label}=\"{value}\"}} {sample}", self.name);
    }

    fn histogram<const N: usize>(&mut self, name: &'static str, help: &str, histogram: &Histogram<N>) {
        self.family(name, "histogram", help);
        let counts = histogram.cumulative();
        let bounds = histogram.bounds().map(|bound| bound.to_string());
        let bounds = bounds.chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&counts) {
            let _ = writeln!(self.text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(self.text, "{name}_sum {}", histogram.sum());
        let _ = writeln!(self.text, "{name}_count {}", counts.last().copied().unwrap_or(0));
    }

    fn single(&mut self, name: &'static str, kind: &str, help: &str, sample: impl Display) {
        self.family(name, kind, help);
        let _ = writeln!(self.text, "{name} {sample}");
    }
}
