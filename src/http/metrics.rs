//! `/metrics` in the Prometheus text format 0.0.4. Label values come from enums, except for stream names, whose number
//! is limited.

mod metrics_text;
mod process_metrics;
mod stream_metrics;
mod webhook_metrics;

use std::sync::atomic::Ordering;

use self::metrics_text::MetricsText;
use super::api::sessions;
use super::state::HttpState;
use crate::control::ControlPlane;
use crate::pipeline::worker_process;
use crate::sources::fetch::status::SourceState;
use crate::telemetry;
use millstream_core::hub::name::StreamKey;
use millstream_core::shard::data_counters::DataCounters;
use millstream_core::sources::failover_group::status::{FailoverSourceState, SwitchReason};

/// Maximum number of streams that are listed by name; those with the most viewers come first.
const MAX_LISTED_STREAMS: usize = 1_000;

/// Returns all metrics as text.
pub fn render_metrics_text(state: &HttpState) -> String {
    let mut page = MetricsText::default();
    page.begin_metric_family(
        "millstream_http_responses_total",
        "counter",
        "HTTP responses by status class, such as 2xx.",
    );
    let control = &state.control;
    for (class, count) in state.counters.responses_by_class() {
        page.add_sample_with_label("class", class, count);
    }
    page.begin_metric_family(
        "millstream_http_request_duration_seconds",
        "histogram",
        "Time from a request to the header of its response, by endpoint. It includes the time that blocking LL-HLS \
         requests wait for a playlist or part that does not exist yet.",
    );
    for (endpoint, durations) in state.counters.request_durations() {
        page.add_histogram_with_labels(&format!("endpoint=\"{}\"", endpoint.label()), durations);
    }
    page.add_counters_by_reason(
        "millstream_http_rejected_total",
        "Rejected connections and requests, by the limit that was reached: connections_per_address, request_rate, \
         failure_rate (wrong tokens), webhook_queue (too many requests waited for the authorization webhook), \
         response_unread (HTTP/2 responses that were reset because the client did not read them), open_files \
         (connections made while all file descriptors were in use, including those with health checks, which are still \
         answered).",
        state
            .counters
            .rejections()
            .map(|(reason, count)| (reason.label(), count)),
    );
    page.add_gauge(
        "millstream_sessions",
        "Open WebRTC sessions of publishers and viewers.",
        control.media_plane.session_count(),
    );
    write_session_admission_metrics(&mut page, control);
    stream_metrics::write_stream_metrics(&mut page, control);
    write_source_metrics(&mut page, control);
    write_transport_and_close_metrics(&mut page, control);
    write_talk_metrics(&mut page, control);
    write_data_metrics(&mut page, &control.media_plane.counters().data);
    write_viewer_feedback_and_delay_metrics(&mut page, control);
    write_connection_queue_and_worker_metrics(&mut page, control);
    webhook_metrics::write_webhook_metrics(&mut page, &state.webhooks);
    process_metrics::write_build_and_process_metrics(&mut page);
    page.text
}

/// Audio to cameras.
fn write_talk_metrics(page: &mut MetricsText, control: &ControlPlane) {
    page.add_gauge(
        "millstream_talkers",
        "Cameras with a session of two-way audio: a client sends audio to their back channel.",
        control.talkers.count(),
    );
    let counters = &control.talkers.counters;
    for (name, help, counter) in [
        (
            "millstream_back_channels_opened_total",
            "Audio back channels opened to cameras.",
            &counters.opened,
        ),
        (
            "millstream_back_channel_packets_total",
            "Packets of audio that were sent to cameras.",
            &counters.sent_packets,
        ),
        (
            "millstream_back_channel_dropped_packets_total",
            "Packets of audio that were dropped: they came late, or the connection to the camera was too slow.",
            &counters.dropped_packets,
        ),
    ] {
        page.add_counter(name, help, counter.load(Ordering::Relaxed));
    }
}

/// Half-open sessions and rejected sessions.
fn write_session_admission_metrics(page: &mut MetricsText, control: &ControlPlane) {
    page.add_gauge(
        "millstream_half_open_sessions",
        "Sessions between the offer and the end of the DTLS handshake.",
        control.media_plane.half_open_session_count(),
    );
    let counters = control.media_plane.counters();
    page.add_counters_by_reason(
        "millstream_sessions_refused_total",
        "Refused sessions, by the limit that was reached.",
        counters
            .refused_session_counts_by_limit()
            .map(|(reason, count)| (reason.label(), count)),
    );
    page.add_counters_by_reason(
        "millstream_sessions_evicted_total",
        "Half-open sessions without an ICE check that were evicted for a newer one, by the limit that was reached.",
        counters
            .evicted_session_counts_by_limit()
            .map(|(reason, count)| (reason.label(), count)),
    );
}

/// RTCP feedback of viewers, connection setup time and forwarding time.
fn write_viewer_feedback_and_delay_metrics(page: &mut MetricsText, control: &ControlPlane) {
    let counters = control.media_plane.counters();
    for (name, help, counter) in [
        (
            "millstream_viewer_nacked_packets_total",
            "Packets requested again by viewers (NACK).",
            &counters.viewer_reception_reports.nacked_packet_count,
        ),
        (
            "millstream_viewer_key_frame_requests_total",
            "Key frame requests of viewers (PLI, FIR).",
            &counters.viewer_reception_reports.key_frame_request_count,
        ),
    ] {
        page.add_counter(name, help, counter.load(Ordering::Relaxed));
    }
    let reports = &counters.viewer_reception_reports;
    let lost = reports.fraction_lost_sum.load(Ordering::Relaxed) as f64 / 256.0;
    let report_count = reports.report_block_count.load(Ordering::Relaxed);
    let name = "millstream_viewer_reported_loss_ratio";
    page.begin_metric_family(
        name,
        "summary",
        "Fractions of packets lost, 0 to 1, as reported by viewers in RTCP receiver reports.",
    );
    page.add_sum_and_count("", lost, report_count);
    page.begin_deprecated_metric_family("millstream_viewer_reported_loss_total", "counter", name);
    page.add_sample(lost);
    page.begin_deprecated_metric_family("millstream_viewer_reports_total", "counter", name);
    page.add_sample(report_count);
    page.begin_metric_family(
        "millstream_viewers_limited",
        "gauge",
        "Viewers that are sent reduced video because their bandwidth is too low, by the frames that they are sent: all \
         (of a lower simulcast layer), reference_frames, key_frames or none (audio only).",
    );
    for (frames, count) in control.media_plane.path_limited_viewer_counts() {
        page.add_sample_with_label("video", sessions::frame_selection_label(frames), count);
    }
    page.begin_metric_family(
        "millstream_viewers_delayed",
        "gauge",
        "Viewers with a delay alarm: high (above `quality.delay_alarm_ms`) or rising (above their own minimum).",
    );
    for (alarm, count) in control.sessions.delay_alarm_counts() {
        page.add_sample_with_label("alarm", alarm.label(), count);
    }
    page.begin_metric_family(
        "millstream_viewer_delay_seconds",
        "histogram",
        "Delays of viewers, each observed once a second, by part: capture_to_gateway, gateway, network and player, where they \
         are known, and total, which is the sum of those.",
    );
    for (part, delays) in control.viewer_delay_histograms.by_label() {
        page.add_histogram_with_labels(&format!("part=\"{part}\""), delays);
    }
    page.add_histogram(
        "millstream_viewer_round_trip_seconds",
        "Round-trip times to viewers, one for each report block of a receiver report.",
        &counters.viewer_round_trip_time,
    );
    page.add_histogram(
        "millstream_connect_seconds",
        "Time from the offer to the end of the DTLS handshake.",
        &counters.connect_time,
    );
    page.add_histogram(
        "millstream_forward_seconds",
        "Time from the arrival of a packet until it was sent to all viewers of a shard (media thread). Each iteration \
         of a shard's loop in which it forwards packets adds one value: the time of the packet that arrived first.",
        &counters.forwarding_delay,
    );
}

fn write_worker_metrics(page: &mut MetricsText, control: &ControlPlane) {
    page.add_gauge(
        "millstream_workers",
        "Worker processes that run GStreamer pipelines.",
        worker_process::running_worker_count(),
    );
    page.add_gauge(
        "millstream_workers_max",
        "Limit of worker processes (`pipelines.max_workers`).",
        control.worker_slots.max_workers(),
    );
    page.add_counter(
        "millstream_workers_refused_total",
        "Attempts that failed because `pipelines.max_workers` or `pipelines.max_workers_per_address` was reached: to \
         start a worker process, to watch a stream that has to be transcoded, and to take a snapshot.",
        control.worker_slots.refusal_count(),
    );
}

/// Connections, queues and workers.
fn write_connection_queue_and_worker_metrics(page: &mut MetricsText, control: &ControlPlane) {
    page.add_gauge(
        "millstream_media_tcp_connections",
        "Peers currently connected over ICE-TCP.",
        control.media_plane.tcp_connection_count(),
    );
    page.add_gauge(
        "millstream_media_tcp_queued_bytes",
        "Bytes queued for sending on ICE-TCP connections.",
        control.media_plane.tcp_queued_bytes(),
    );
    page.add_gauge(
        "millstream_hls_streams",
        "Streams that are packaged for HLS.",
        control.hls_service.packaged_stream_count(),
    );
    page.add_gauge(
        "millstream_hls_waiting_requests",
        "Blocking HLS requests that are waiting for a playlist or part that does not exist yet.",
        control.hls_service.blocked_request_count(),
    );
    write_worker_metrics(page, control);
    let mailbox_lengths = control.media_plane.mailbox_lengths();
    page.add_renamed_family(
        ["millstream_shard_queued_messages", "millstream_shard_queue"],
        "gauge",
        "Messages waiting in the mailbox of a shard (media thread), such as packets from other shards.",
        |page| {
            for (shard, waiting) in mailbox_lengths.iter().enumerate() {
                page.add_sample_with_label("shard", shard, waiting);
            }
        },
    );
    page.begin_metric_family(
        "millstream_shard_tick_age_seconds",
        "gauge",
        "Seconds since a shard (media thread) last began an iteration of its loop. Above 1 it hangs or is overloaded, \
         and /healthz answers 503.",
    );
    for (shard, age) in control.media_plane.times_since_last_tick().into_iter().enumerate() {
        page.add_sample_with_label("shard", shard, age.as_secs_f64());
    }
    page.add_counter(
        "millstream_log_lines_dropped_total",
        "Log lines that were dropped because standard error was not read in time.",
        telemetry::dropped_log_line_count(),
    );
}

fn write_source_metrics(page: &mut MetricsText, control: &ControlPlane) {
    page.begin_metric_family(
        "millstream_source_state",
        "gauge",
        "1 for the current state of the configured source of the stream, else 0.",
    );
    for entry in control.source_registry.all() {
        let status = entry.status();
        for state in SourceState::ALL_STATES {
            let labels = format!("{},state=\"{}\"", source_labels(&entry.stream), state.label());
            page.add_sample_with_label_list(&labels, u8::from(state == status.state));
        }
    }
    page.begin_metric_family(
        "millstream_source_failures_total",
        "counter",
        "Failures of the configured source of the stream; the gateway restarts the source after each.",
    );
    for entry in control.source_registry.all() {
        page.add_sample_with_label_list(&source_labels(&entry.stream), entry.status().restart_count);
    }
    write_failover_group_metrics(page, control);
}

/// The stream of a source, and its name if the stream has several.
fn source_labels(key: &StreamKey) -> String {
    match key.failover_source() {
        Some(source) => format!("stream=\"{}\",source=\"{source}\"", key.name),
        None => format!("stream=\"{}\"", key.name),
    }
}

/// Streams with several sources.
fn write_failover_group_metrics(page: &mut MetricsText, control: &ControlPlane) {
    let failover_groups = control.media_plane.failover_groups().all();
    let failover_groups: Vec<_> = failover_groups
        .iter()
        .map(|failover_group| (&failover_group.stream, failover_group.status()))
        .collect();
    page.begin_metric_family(
        "millstream_stream_source_state",
        "gauge",
        "1 for the current state of each source of a stream with several sources, else 0.",
    );
    for (stream, status) in &failover_groups {
        for source in &status.sources {
            for state in FailoverSourceState::ALL {
                let labels = format!(
                    "stream=\"{stream}\",source=\"{}\",state=\"{}\"",
                    source.name,
                    state.label()
                );
                page.add_sample_with_label_list(&labels, u8::from(state == source.state));
            }
        }
    }
    page.begin_metric_family(
        "millstream_stream_source_selected",
        "gauge",
        "1 for the source that viewers of a stream with several sources are sent, else 0.",
    );
    for (stream, status) in &failover_groups {
        for source in &status.sources {
            let labels = format!("stream=\"{stream}\",source=\"{}\"", source.name);
            page.add_sample_with_label_list(&labels, u8::from(source.is_selected));
        }
    }
    page.begin_metric_family(
        "millstream_stream_source_switches_total",
        "counter",
        "Switches between the sources of a stream with several sources, by reason.",
    );
    for (stream, status) in &failover_groups {
        for reason in SwitchReason::ALL {
            let counted = status.switch_counts.iter().find(|(counted, _)| *counted == reason);
            let labels = format!("stream=\"{stream}\",reason=\"{}\"", reason.label());
            page.add_sample_with_label_list(&labels, counted.map_or(0, |(_, count)| *count));
        }
    }
}

fn write_transport_and_close_metrics(page: &mut MetricsText, control: &ControlPlane) {
    let counters = control.media_plane.counters();
    let sent = &counters.send_counters;
    for (name, help, counter) in [
        (
            "millstream_received_datagrams_total",
            "UDP datagrams received on the media ports.",
            &counters.received_datagrams,
        ),
        (
            "millstream_received_bytes_total",
            "Bytes received in UDP datagrams on the media ports, without UDP and IP headers.",
            &counters.received_bytes,
        ),
        (
            "millstream_sent_datagrams_total",
            "Datagrams sent.",
            &sent.sent_datagrams,
        ),
        (
            "millstream_send_calls_total",
            "System calls used to send datagrams.",
            &sent.send_calls,
        ),
    ] {
        page.add_counter(name, help, counter.load(Ordering::Relaxed));
    }
    page.add_counters_by_reason(
        "millstream_dropped_total",
        "UDP datagrams, and messages to shards (media threads), that were dropped, by reason.",
        counters
            .dropped_datagram_counts()
            .map(|(reason, count)| (reason.label(), count)),
    );
    page.add_sample_with_label(
        "reason",
        "send_buffer_full",
        sent.dropped_buffer_full.load(Ordering::Relaxed),
    );
    page.add_sample_with_label("reason", "send_refused", sent.dropped_by_kernel.load(Ordering::Relaxed));
    page.add_sample_with_label(
        "reason",
        "tcp_queue_full",
        sent.dropped_tcp_queue_full.load(Ordering::Relaxed),
    );
    page.add_counters_by_reason(
        "millstream_session_dropped_total",
        "Packets that sessions rejected, by reason; counted when a session ends.",
        counters
            .packets_dropped_by_ended_sessions()
            .map(|(reason, count)| (reason.label(), count)),
    );
    page.add_counters_by_reason(
        "millstream_media_tcp_closed_total",
        "Closed connections of the media TCP port, by reason.",
        counters
            .closed_tcp_connection_counts()
            .map(|(reason, count)| (reason.label(), count)),
    );
    page.add_counters_by_reason(
        "millstream_sessions_closed_total",
        "Sessions that ended, by reason.",
        counters
            .closed_session_counts()
            .map(|(reason, count)| (reason.label(), count)),
    );
}

fn write_data_metrics(page: &mut MetricsText, counters: &DataCounters) {
    page.begin_metric_family(
        "millstream_data_messages_received_total",
        "counter",
        "Data channel messages received, by who sent them: publisher, viewer or api.",
    );
    for (origin, count) in counters.received_message_counts() {
        page.add_sample_with_label("origin", origin.label(), count);
    }
    page.add_counter(
        "millstream_data_messages_sent_total",
        "Data channel messages sent, counted for each receiver.",
        counters.sent_messages.load(Ordering::Relaxed),
    );
    page.add_counter(
        "millstream_data_sent_bytes_total",
        "Bytes of the data channel messages sent, without headers.",
        counters.sent_bytes.load(Ordering::Relaxed),
    );
    page.add_counters_by_reason(
        "millstream_data_messages_dropped_total",
        "Data channel messages dropped, by reason.",
        counters.dropped().map(|(reason, count)| (reason.label(), count)),
    );
    page.add_counters_by_reason(
        "millstream_data_packets_dropped_total",
        "SCTP packets of data channels that were rejected, by reason.",
        counters
            .dropped_packets()
            .map(|(reason, count)| (reason.label(), count)),
    );
}
