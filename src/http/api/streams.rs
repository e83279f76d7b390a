//! Streams in the API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;

use super::sources::{
    FailoverSource, Source, SourceSwitch, count_connections, describe_failover_group, describe_source,
};
use super::warnings::{self, SourceWarningInputs, VideoWarningInputs, Warning};
use crate::sources::fetch::registry::SourceRegistry;
use millstream_core::hub::Hub;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::{ShardIndex, StreamState};
use millstream_core::media::track_delivery::TranscodeTarget;
use millstream_core::media::{CodecFormat, MediaKind};

/// A stream.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Stream {
    pub name: String,
    /// The stream has a source.
    pub live: bool,
    /// The publisher is connected, and nothing has come from it for 5 s. Its session ends after 30 s.
    pub stalled: bool,
    /// Number of WebRTC viewers.
    pub viewers: usize,
    /// Number of HLS players that recently requested a playlist. Players with the same address and user agent count as
    /// one.
    pub hls_viewers: usize,
    /// Kind of the current source.
    pub publisher: Option<&'static str>,
    /// Somebody talks to the camera.
    pub talker: bool,
    /// The configured source; `null` if the stream has several.
    pub source: Option<Source>,
    /// The sources of a stream that has several, the best one first; else empty.
    pub sources: Vec<FailoverSource>,
    /// Number of connections to cameras and other sources that the gateway pulls, those that are being made included.
    pub source_connections: usize,
    /// The source that was chosen by hand; `null` while the gateway selects by itself.
    pub chosen_source: Option<String>,
    /// The most recent changes between the sources, the oldest first.
    pub source_switches: Vec<SourceSwitch>,
    pub video: Option<Video>,
    pub audio: Option<Audio>,
    /// Running transcodes.
    pub transcodes: Vec<Transcode>,
    /// Deprecated: the same as `running_transcodes`.
    #[serde(rename = "repairs")]
    pub transcodes_by_old_name: Vec<Transcode>,
    /// Simulcast layers that viewers may select, best first.
    pub layers: Vec<Layer>,
    /// Labels of data channels with messages so far.
    pub data: Vec<DataTrack>,
    /// Settings of the source that were set through the API, without secrets; `null` if it was not set through the API.
    #[schema(value_type = Option<Object>)]
    pub settings: Option<serde_json::Map<String, serde_json::Value>>,
    /// What the owner of the stream should change, as text.
    #[schema(value_type = Vec<String>)]
    pub warnings: Vec<Warning>,
}

/// A simulcast layer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Layer {
    pub rid: String,
    pub width: Option<u16>,
    pub height: Option<u16>,
    /// Bits per second.
    pub bitrate: u64,
    /// It is being received.
    pub active: bool,
    /// It is one of several streams of a camera, and is connected once a viewer needs it.
    pub on_demand: bool,
    /// Codec of a stream of a camera, as of its last connection; `null` if it is that of the stream.
    pub codec: Option<&'static str>,
}

/// The messages of one data channel label.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DataTrack {
    pub label: String,
    /// Number of messages so far, of the publisher, of viewers and of the API, and their bytes.
    pub messages: u64,
    pub bytes: u64,
}

/// The video track of a stream.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Video {
    pub codec: &'static str,
    /// Profile in the bitstream: `42e01f` for H.264, a number for other codecs.
    pub profile: Option<String>,
    /// In pixels.
    pub width: Option<u16>,
    pub height: Option<u16>,
    /// Frames per second.
    pub frame_rate: f64,
    /// Bits per second.
    pub bitrate: u64,
    pub b_frames: bool,
    /// Seconds between the last two key frames.
    pub key_frame_interval: Option<f64>,
    /// Recent delay in seconds from the capture of a frame to its arrival, if the source reports capture times. The
    /// shortest network delay of its RTCP sender reports counts as zero, since the clocks are not synchronized.
    pub delay: Option<f64>,
    /// The source answers key frame requests.
    pub encoder_answers_key_frame_requests: bool,
    /// Packets of the source that are not forwarded because players cannot use them: their number by kind.
    pub left_out: BTreeMap<String, u64>,
    /// Number of frames that are shown by their time of arrival, because the timestamps of the source stood still.
    pub timed_by_arrival: u64,
}

/// The audio track of a stream.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Audio {
    pub codec: &'static str,
    /// Sampling rate in Hz.
    pub sample_rate: u32,
    /// Bits per second.
    pub bitrate: u64,
}

/// A running transcode.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Transcode {
    /// Output codec: `h264` or `opus`.
    pub to: &'static str,
    pub viewers: usize,
    /// It produces media.
    pub live: bool,
}

/// How long nothing must have arrived from a source before a warning is shown. A publisher that has died has its session
/// for 30 s.
const NO_MEDIA_WARNING_AFTER: Duration = Duration::from_secs(3);

/// Returns all streams that are published, watched or configured, sorted by name. `hls_viewer_count` returns the number of HLS
/// viewers of a stream.
pub fn list_streams(
    hub: &Hub,
    sources: &SourceRegistry,
    hls_viewer_count: impl Fn(&StreamName) -> usize,
) -> Vec<Stream> {
    let streams = hub.streams();
    let originals = streams.iter().filter(|stream| stream.key.is_original_stream());
    let names: BTreeSet<StreamName> = originals
        .map(|stream| stream.key.name.clone())
        .chain(sources.all().into_iter().map(|entry| entry.stream.name.clone()))
        .chain(
            sources
                .all_failover_groups()
                .into_iter()
                .map(|failover_group| failover_group.config.stream),
        )
        .collect();
    names
        .iter()
        .filter_map(|name| describe_stream(name, hub, sources, &hls_viewer_count))
        .collect()
}

/// Returns one stream, or `None` if there is none of that name.
pub fn describe_stream(
    name: &StreamName,
    hub: &Hub,
    sources: &SourceRegistry,
    hls_viewer_count: impl Fn(&StreamName) -> usize,
) -> Option<Stream> {
    let (stream, entry, failover_group) = (hub.find_stream(name), sources.get(name), sources.failover_group(name));
    if stream.is_none() && entry.is_none() && failover_group.is_none() {
        return None;
    }
    let transcodes = running_transcodes(name, hub);
    let mut shown = Stream {
        name: name.to_string(),
        source: entry.map(|entry| describe_source(&entry)),
        transcodes_by_old_name: transcodes.clone(),
        transcodes,
        hls_viewers: hls_viewer_count(name),
        talker: has_talker(name, hub),
        ..Stream::default()
    };
    if let Some(failover_group) = failover_group {
        let described = describe_failover_group(&failover_group, sources);
        shown.sources = described.sources;
        shown.chosen_source = described.chosen;
        shown.source_switches = described.switches;
    }
    shown.source_connections = count_connections(shown.source.as_ref(), &shown.sources);
    let selected = shown
        .sources
        .iter()
        .find(|source| source.selected)
        .map(|source| source.kind);
    let mut silence = None;
    if let Some(stream) = stream {
        stream.with_state(|state| {
            silence = state.source_inactivity_duration(monotonic_now());
            shown.stalled = state.is_source_stalled(monotonic_now());
            shown.live = state.source().is_some();
            shown.viewers = state.viewer_count();
            shown.publisher = state.source().map(|source| match (source.shard, &shown.source) {
                (ShardIndex::NO_SHARD, Some(source)) => source.kind,
                _ => selected.unwrap_or("whip"),
            });
            shown.data = describe_data_tracks(state);
            if shown.live {
                shown.video = describe_video(state);
                shown.audio = describe_audio(state);
                shown.layers = describe_layers(state);
                shown.warnings = warnings::source_warnings(source_warning_inputs(state, shown.hls_viewers));
            }
        });
    }
    let silence = silence.filter(|silence| *silence >= NO_MEDIA_WARNING_AFTER);
    if let Some(silence) = silence {
        let text = format!("No media has arrived from the publisher for {} s.", silence.as_secs());
        shown.warnings.push(Warning { code: "no_media", text });
    }
    shown.warnings.extend(gap_warning(&shown));
    shown.warnings.extend(media_sequence_warning(&shown));
    shown.warnings.extend(left_out_media_warnings(&shown));
    shown.warnings.extend(unavailable_layer_warnings(&shown));
    Some(shown)
}

fn has_talker(name: &StreamName, hub: &Hub) -> bool {
    let stream = hub.find_stream(name.back_channel_key());
    stream.is_some_and(|stream| stream.with_state(|state| state.source().is_some()))
}

fn describe_data_tracks(state: &StreamState) -> Vec<DataTrack> {
    let tracks = state.data_tracks.tracks().iter();
    tracks
        .map(|track| DataTrack {
            label: track.label.to_string(),
            messages: track.message_count,
            bytes: track.byte_count,
        })
        .collect()
}

/// Says that an HLS source waits for segments that have media.
fn gap_warning(stream: &Stream) -> Option<Warning> {
    let gap = stream.source.as_ref()?.gap.as_ref()?;
    let text = format!(
        "For {} s the HLS source has had no playable segment, although its playlist is still updated ({}). The gateway \
         waits for the next playable segment.",
        gap.since.elapsed().as_secs(),
        gap.reason
    );
    Some(Warning {
        code: "source_gap",
        text,
    })
}

/// Says that an HLS origin does not count its segments.
fn media_sequence_warning(stream: &Stream) -> Option<Warning> {
    let source = stream.source.as_ref()?;
    let text = "EXT-X-MEDIA-SEQUENCE of the HLS source is wrong: it is missing, or it stays the same or decreases while \
                segments are removed. The gateway identifies segments by their names or dates instead; other players may \
                stall."
        .to_owned();
    source.has_corrected_media_sequence.then_some(Warning {
        code: "media_sequence",
        text,
    })
}

/// Names what of a source is left out, as far as it matters: audio if there is no other, variants that may be better, and
/// segments that were missing recently.
fn left_out_media_warnings(stream: &Stream) -> Vec<Warning> {
    let Some(source) = stream.source.as_ref().filter(|_| stream.live) else {
        return Vec::new();
    };
    let named = |prefix: &str| {
        let names: Vec<&str> = source
            .left_out
            .iter()
            .filter_map(|track| track.strip_prefix(prefix))
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let is_camera = source.kind == "rtsp";
    let mut warnings = Vec::new();
    let mut add = |code, text| warnings.push(Warning { code, text });
    if let Some(audio) = named("audio ").filter(|_| stream.audio.is_none() || !is_camera) {
        add(
            "audio_left_out",
            if is_camera {
                format!(
                    "The camera's audio codec ({audio}) is not supported: set it to G.711 with 8 kHz, AAC or Opus in the camera."
                )
            } else {
                format!("Audio of the source ({audio}) is left out: AAC is supported, and Opus in fragmented MP4.")
            },
        );
    }
    if let Some(video) = named("video ").filter(|_| stream.video.is_none() || !is_camera) {
        let text = format!("Video of the source ({video}) is left out: H.264 and H.265 are supported.");
        add("video_left_out", text);
    }
    if let Some(variants) = named("variant ") {
        let text = format!("Variants of the HLS source ({variants}) are left out: their codecs are not supported.");
        add("variants_left_out", text);
    }
    if let (Some(what), true) = (&source.passed_over_reason, source.has_recently_ignored && !is_camera) {
        let text = format!(
            "Segments of the HLS source are left out ({} so far): {what}.",
            source.passed_over
        );
        add("segments_left_out", text);
    }
    warnings
}

/// Names the streams of a camera that cannot be read while another one can.
fn unavailable_layer_warnings(stream: &Stream) -> Vec<Warning> {
    let unavailable = stream.layers.iter().filter(|layer| !layer.active && !layer.on_demand);
    let failed = unavailable.filter_map(|layer| {
        let source = stream.sources.iter().find(|source| source.name == layer.rid)?;
        let error = source.connection.as_ref()?.last_error.as_ref()?;
        let text = format!(
            "The stream `{}` of the camera cannot be read, so viewers get another stream of the camera: {error}.",
            layer.rid
        );
        Some(Warning {
            code: "layer_unavailable",
            text,
        })
    });
    failed.collect()
}

fn source_warning_inputs(state: &StreamState, hls_viewers: usize) -> SourceWarningInputs {
    let video = &state.video;
    SourceWarningInputs {
        video: state.format(MediaKind::Video).map(|format| VideoWarningInputs {
            codec: format.codec(),
            has_b_frames: video.has_b_frames(),
            lacks_idr_frames: video.lacks_idr_frames(),
            key_frame_interval: video.key_frame_interval().map(|interval| interval.as_secs_f64()),
            answers_key_frame_requests: state.responds_to_key_frame_requests,
        }),
        missing_video: video.missing_media(),
        missing_audio: state.audio.missing_media(),
        video_frames_timed_by_arrival: video.arrival_timestamped_frame_count(),
        audio_frames_timed_by_arrival: state.audio.arrival_timestamped_frame_count(),
        hls_viewer_count: hls_viewers,
    }
}

fn describe_layers(state: &StreamState) -> Vec<Layer> {
    let layers = state.layers().iter();
    layers
        .map(|layer| {
            let (width, height) = layer.resolution.unzip();
            Layer {
                rid: layer.rid.0.to_string(),
                width,
                height,
                bitrate: layer.measured_bitrate,
                active: layer.active,
                on_demand: !layer.active && layer.is_available(),
                codec: layer.pulled_source_track().map(|track| track.format.codec().name()),
            }
        })
        .collect()
}

fn describe_video(state: &StreamState) -> Option<Video> {
    let format = state.format(MediaKind::Video)?;
    let rate = state.video.rate_meter().current_rate(monotonic_now());
    let (width, height) = state.video.resolution().unzip();
    Some(Video {
        codec: format.codec().name(),
        profile: match format {
            CodecFormat::H264 { profile, .. } => Some(profile.to_string()),
            CodecFormat::H265 { profile_id, .. } => Some(profile_id.to_string()),
            CodecFormat::Vp9 { profile } | CodecFormat::Av1 { profile } => Some(profile.to_string()),
            _ => None,
        },
        width,
        height,
        frame_rate: rate.frames_per_second,
        bitrate: rate.bitrate,
        b_frames: state.video.has_b_frames(),
        key_frame_interval: state.video.key_frame_interval().map(|interval| interval.as_secs_f64()),
        delay: state
            .video
            .capture_delay_stats()
            .recent_mean_capture_delay_seconds(monotonic_now()),
        encoder_answers_key_frame_requests: state.responds_to_key_frame_requests,
        left_out: state
            .video
            .discard_counts()
            .iter()
            .map(|(odd, count)| (odd.to_string(), count))
            .collect(),
        timed_by_arrival: state.video.arrival_timestamped_frame_count(),
    })
}

fn describe_audio(state: &StreamState) -> Option<Audio> {
    let format = state.format(MediaKind::Audio)?;
    Some(Audio {
        codec: format.codec().name(),
        sample_rate: match format {
            CodecFormat::Aac(config) => config.sample_rate,
            format => format.codec().clock_rate(),
        },
        bitrate: state.audio.rate_meter().current_rate(monotonic_now()).bitrate,
    })
}

fn running_transcodes(name: &StreamName, hub: &Hub) -> Vec<Transcode> {
    let targets = TranscodeTarget::ALL_TARGETS.into_iter();
    let running = targets.filter_map(|target| {
        let stream = hub.find_stream(name.transcode_key(target))?;
        let (viewers, live) = stream.with_state(|state| (state.viewer_count(), state.source().is_some()));
        Some(Transcode {
            to: target.label(),
            viewers,
            live,
        })
    });
    running.collect()
}

#[expect(clippy::disallowed_methods, reason = "the time of the request")]
fn monotonic_now() -> Instant {
    Instant::now()
}
