//! Streams in the API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;

use super::warnings::{self, SourceFacts, VideoFacts, Warning};
use crate::sources::fetch::directory::{Directory, Entry};
use millstream_core::hub::Hub;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::{ShardIndex, StreamState};
use millstream_core::media::transcode::TranscodeTarget;
use millstream_core::media::{Format, Kind};

/// A stream.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Stream {
    pub name: String,
    /// The stream has a source.
    pub live: bool,
    /// Number of WebRTC viewers.
    pub viewers: usize,
    /// Number of HLS players that recently requested a playlist. Players with the same address and user agent count as
    /// one.
    pub hls_viewers: usize,
    /// Kind of the current source.
    pub publisher: Option<&'static str>,
    /// The configured source.
    pub source: Option<Source>,
    pub video: Option<Video>,
    pub audio: Option<Audio>,
    /// Running transcodes.
    pub transcodes: Vec<Transcode>,
    /// Deprecated: the same as `transcodes`.
    #[serde(rename = "repairs")]
    pub transcodes_by_old_name: Vec<Transcode>,
    /// Simulcast layers that viewers may select, best first.
    pub layers: Vec<Layer>,
    /// What the owner of the stream should change, in plain words.
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
    pub active: bool,
}

/// A configured source.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Source {
    /// `rtsp`, `hls` or `pipeline`.
    pub kind: &'static str,
    pub on_demand: bool,
    /// `idle`, `starting`, `live`, `failed`, `standing_back` or `stopped`.
    pub state: &'static str,
    /// Seconds in this state.
    pub seconds: Option<f64>,
    /// The last error, if any. It may be long ago.
    pub last_error: Option<String>,
    /// Number of failures.
    pub restarts: u64,
    /// Why the camera is read by the pipeline `rtsp` instead of the gateway's own client, if it is.
    pub fallback: Option<&'static str>,
    /// Number of packets and messages in this session that were odd and passed over.
    pub passed_over: u64,
    /// The first of them.
    pub passed_over_reason: Option<String>,
    /// Tracks that are left out because their codec is not supported, such as `audio L16/44100`.
    pub left_out: Vec<String>,
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
    /// Recent delay in seconds from the capture of a frame to its arrival, if the source reports capture times. It does
    /// not include the network delay of the source's fastest sender report.
    pub delay: Option<f64>,
    /// The source answers key frame requests.
    pub answers_requests: bool,
    /// What of the source was left out, because no player makes anything of it: the kind of packet, and how many.
    pub left_out: BTreeMap<String, u64>,
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
const SILENT_AFTER: Duration = Duration::from_secs(3);

/// Returns all streams that are published, watched or configured, sorted by name. `by_hls` returns the number of HLS
/// viewers of a stream.
pub fn all(hub: &Hub, fetched: &Directory, by_hls: impl Fn(&StreamName) -> usize) -> Vec<Stream> {
    let streams = hub.streams();
    let originals = streams.iter().filter(|stream| stream.key.is_original());
    let names: BTreeSet<StreamName> = originals
        .map(|stream| stream.key.name.clone())
        .chain(fetched.all().into_iter().map(|entry| entry.stream.clone()))
        .collect();
    names
        .iter()
        .filter_map(|name| one(name, hub, fetched, &by_hls))
        .collect()
}

/// Returns one stream, or `None` if there is none of that name.
pub fn one(name: &StreamName, hub: &Hub, fetched: &Directory, by_hls: impl Fn(&StreamName) -> usize) -> Option<Stream> {
    let (stream, entry) = (hub.find(name), fetched.get(name));
    if stream.is_none() && entry.is_none() {
        return None;
    }
    let transcodes = transcodes(name, hub);
    let mut shown = Stream {
        name: name.to_string(),
        source: entry.map(|entry| source(&entry)),
        transcodes_by_old_name: transcodes.clone(),
        transcodes,
        hls_viewers: by_hls(name),
        ..Stream::default()
    };
    let mut silence = None;
    if let Some(stream) = stream {
        stream.with(|state| {
            silence = state.silence(now()).filter(|_| state.source().is_some());
            shown.live = state.source().is_some();
            shown.viewers = state.viewers();
            shown.publisher = state.source().map(|source| match (source.shard, &shown.source) {
                (ShardIndex::NONE, Some(source)) => source.kind,
                _ => "whip",
            });
            if shown.live {
                shown.video = video(state);
                shown.audio = audio(state);
                shown.layers = layers(state);
                shown.warnings = warnings::of(facts(state, shown.hls_viewers));
            }
        });
    }
    // A camera may send a frame each ten seconds, and its source ends when nothing comes.
    let silence = silence.filter(|silence| *silence >= SILENT_AFTER && shown.publisher == Some("whip"));
    if let Some(silence) = silence {
        let text = format!("No incoming media for {} s.", silence.as_secs());
        shown.warnings.push(Warning { code: "no_media", text });
    }
    shown.warnings.extend(audio_left_out(&shown));
    Some(shown)
}

/// Names the codecs of a camera's audio if none of them can be passed on.
fn audio_left_out(stream: &Stream) -> Option<Warning> {
    let tracks = stream.source.iter().flat_map(|source| &source.left_out);
    let left_out: Vec<&str> = tracks.filter_map(|track| track.strip_prefix("audio ")).collect();
    let is_missing = stream.live && stream.audio.is_none() && !left_out.is_empty();
    is_missing.then(|| Warning {
        code: "audio_left_out",
        text: format!(
            "The camera's audio ({}) is left out: set it to G.711 with 8 kHz, AAC or Opus in the camera.",
            left_out.join(", ")
        ),
    })
}

fn facts(state: &StreamState, hls_viewers: usize) -> SourceFacts {
    let video = &state.video;
    SourceFacts {
        video: state.format(Kind::Video).map(|format| VideoFacts {
            codec: format.codec(),
            b_frames: video.is_reordered(),
            key_frame_interval: video.key_frame_interval().map(|interval| interval.as_secs_f64()),
            answers_requests: state.answers_requests,
        }),
        missing_video: video.missing(),
        missing_audio: state.audio.missing(),
        hls_viewers,
    }
}

fn layers(state: &StreamState) -> Vec<Layer> {
    let layers = state.layers().iter();
    layers
        .map(|layer| {
            let (width, height) = layer.resolution.unzip();
            Layer {
                rid: layer.rid.0.to_string(),
                width,
                height,
                bitrate: layer.bitrate,
                active: layer.active,
            }
        })
        .collect()
}

fn source(entry: &Entry) -> Source {
    let status = entry.status();
    Source {
        kind: entry.source,
        on_demand: entry.on_demand,
        state: status.state.label(),
        seconds: status.since.map(|since| since.elapsed().as_secs_f64()),
        last_error: status.last_error,
        restarts: status.restarts,
        fallback: status.fallback,
        passed_over: status.passed_over.count,
        passed_over_reason: status.passed_over.what,
        left_out: status.left_out,
    }
}

fn video(state: &StreamState) -> Option<Video> {
    let format = state.format(Kind::Video)?;
    let rate = state.video.meter().rate(now());
    let (width, height) = state.video.resolution().unzip();
    Some(Video {
        codec: format.codec().name(),
        profile: match format {
            Format::H264 { profile, .. } => Some(profile.to_string()),
            Format::H265 { profile_id, .. } => Some(profile_id.to_string()),
            Format::Vp9 { profile } | Format::Av1 { profile } => Some(profile.to_string()),
            _ => None,
        },
        width,
        height,
        frame_rate: rate.frames,
        bitrate: rate.bitrate,
        b_frames: state.video.is_reordered(),
        key_frame_interval: state.video.key_frame_interval().map(|interval| interval.as_secs_f64()),
        delay: state.video.delays().recent(now()),
        answers_requests: state.answers_requests,
        left_out: state
            .video
            .left_out()
            .iter()
            .map(|(odd, count)| (odd.to_string(), count))
            .collect(),
    })
}

fn audio(state: &StreamState) -> Option<Audio> {
    let format = state.format(Kind::Audio)?;
    Some(Audio {
        codec: format.codec().name(),
        sample_rate: match format {
            Format::Aac(config) => config.rate,
            format => format.codec().clock_rate(),
        },
        bitrate: state.audio.meter().rate(now()).bitrate,
    })
}

fn transcodes(name: &StreamName, hub: &Hub) -> Vec<Transcode> {
    let targets = TranscodeTarget::ALL.into_iter();
    let running = targets.filter_map(|target| {
        let stream = hub.find(name.transcoded(target))?;
        let (viewers, live) = stream.with(|state| (state.viewers(), state.source().is_some()));
        Some(Transcode {
            to: target.label(),
            viewers,
            live,
        })
    });
    running.collect()
}

#[expect(clippy::disallowed_methods, reason = "the time of the request")]
fn now() -> Instant {
    Instant::now()
}
