//! Streams as the API shows them.

use std::collections::BTreeSet;
use std::time::Instant;

use serde::Serialize;
use utoipa::ToSchema;

use crate::hub::Hub;
use crate::hub::name::StreamName;
use crate::hub::stream::{ShardIndex, StreamState};
use crate::media::{Format, Kind};
use crate::sources::fetch::directory::{Directory, Entry};

/// A stream.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Stream {
    pub name: String,
    /// Something is being sent.
    pub live: bool,
    /// WebRTC viewers.
    pub viewers: usize,
    /// HLS players that asked for a playlist of late; those behind one address that are of one kind count as one.
    pub hls_viewers: usize,
    /// Where it comes from at the moment.
    pub publisher: Option<&'static str>,
    /// Where the configuration says it comes from.
    pub source: Option<Source>,
    pub video: Option<Video>,
    pub audio: Option<Audio>,
    /// What is being transcoded for viewers who need it.
    pub can_transcode: Vec<TranscodeTarget>,
    /// Versions of the picture that viewers may choose from, the best first.
    pub layers: Vec<Layer>,
    /// What could be better, in plain words.
    pub warnings: Vec<String>,
}

/// One version of the picture of a simulcast.
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
    /// `rtsp` or `pipeline`.
    pub kind: &'static str,
    pub on_demand: bool,
    /// `idle`, `starting`, `live`, `failed` or `standing_back`.
    pub state: &'static str,
    /// Seconds in this state.
    pub seconds: Option<f64>,
    /// The last thing that went wrong, if any; it may be long ago.
    pub last_error: Option<String>,
    /// Failures so far.
    pub restarts: u64,
}

/// A picture track.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Video {
    pub codec: &'static str,
    /// As in the bitstream: `42e01f` for H.264, a number for others.
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
    /// Seconds from the capture of a picture until it is here, of late; only where the source says when that was. The time
    /// on the way of its fastest report is not in it.
    pub delay: Option<f64>,
    /// The source sends a key frame when one is asked for.
    pub answers_requests: bool,
}

/// A sound track.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Audio {
    pub codec: &'static str,
    /// Sampling rate in Hz.
    pub sample_rate: u32,
    /// Bits per second.
    pub bitrate: u64,
}

/// A transcode that runs.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TranscodeTarget {
    /// What it makes: `h264` or `opus`.
    pub to: &'static str,
    pub viewers: usize,
    /// It makes something.
    pub live: bool,
}

/// All streams that somebody publishes, watches or fetches, by name. `by_hls` is how many watch one by HLS.
pub fn all(hub: &Hub, fetched: &Directory, by_hls: impl Fn(&StreamName) -> usize) -> Vec<Stream> {
    let streams = hub.streams();
    let live = streams.iter().map(|stream| stream.name.clone());
    let names: BTreeSet<StreamName> = live
        .filter(|name| name.is_whole())
        .chain(fetched.all().into_iter().map(|entry| entry.stream.clone()))
        .collect();
    names
        .iter()
        .filter_map(|name| one(name, hub, fetched, &by_hls))
        .collect()
}

/// One stream; `None` if there is none of that name.
pub fn one(name: &StreamName, hub: &Hub, fetched: &Directory, by_hls: impl Fn(&StreamName) -> usize) -> Option<Stream> {
    let (stream, entry) = (hub.find(name), fetched.get(name));
    if stream.is_none() && entry.is_none() {
        return None;
    }
    let mut shown = Stream {
        name: name.to_string(),
        source: entry.map(|entry| source(&entry)),
        can_transcode: can_transcode(name, hub),
        hls_viewers: by_hls(name),
        ..Stream::default()
    };
    if let Some(stream) = stream {
        let state = stream.lock();
        shown.live = state.source().is_some();
        shown.viewers = state.viewers();
        shown.publisher = state.source().map(|source| match (source.shard, &shown.source) {
            (ShardIndex::NONE, Some(source)) => source.kind,
            _ => "whip",
        });
        if shown.live {
            shown.video = video(&state);
            shown.audio = audio(&state);
            shown.layers = layers(&state);
        }
    }
    shown.warnings = warnings(&shown);
    Some(shown)
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

/// Key frames further apart make viewers of HLS wait, and cost those of WebRTC a longer burst.
const LONG_INTERVAL: f64 = 4.5;

fn warnings(stream: &Stream) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(video) = &stream.video {
        let interval = video.key_frame_interval.filter(|_| !video.answers_requests);
        if let Some(interval) = interval.filter(|interval| *interval > LONG_INTERVAL) {
            warnings.push(format!(
                "A key frame comes every {interval:.0} s: set the encoder's key frame interval to 2 s."
            ));
        }
        if video.b_frames {
            let text = "B-frames: WebRTC cannot show them, so viewers get a transcoded picture; turn them off in the encoder \
                        to save that.";
            warnings.push(text.to_owned());
        }
        let profile = video.profile.as_deref().unwrap_or_default();
        if video.codec == "H264" && profile.starts_with("64") {
            warnings.push("H.264 High profile: some browsers cannot decode it; Baseline plays everywhere.".to_owned());
        }
        if video.codec == "VP8" && stream.hls_viewers > 0 {
            let text = "VP8: HLS cannot carry it, so viewers by HLS get the sound alone; publish H.264, VP9 or AV1.";
            warnings.push(text.to_owned());
        }
        if video.codec == "H265" {
            warnings.push("H.265: many browsers cannot decode it; they get H.264 made of it.".to_owned());
        }
    }
    if stream.live && stream.audio.is_none() {
        warnings.push("No sound comes.".to_owned());
    }
    warnings
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
    }
}

fn video(state: &StreamState) -> Option<Video> {
    let format = state.format(Kind::Video)?;
    let rate = state.video.meter.rate(now());
    let (width, height) = state.video.resolution.unzip();
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
        delay: state.video.delays.recent(now()),
        answers_requests: state.answers_requests,
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
        bitrate: state.audio.meter.rate(now()).bitrate,
    })
}

fn can_transcode(name: &StreamName, hub: &Hub) -> Vec<TranscodeTarget> {
    let all = crate::media::transcode::TranscodeTarget::ALL.into_iter();
    all.filter_map(|transcode| {
        let stream = hub.find(&name.transcoded(transcode))?;
        let state = stream.lock();
        Some(TranscodeTarget {
            to: transcode.label(),
            viewers: state.viewers(),
            live: state.source().is_some(),
        })
    })
    .collect()
}

#[expect(clippy::disallowed_methods, reason = "the moment of the request")]
fn now() -> Instant {
    Instant::now()
}
