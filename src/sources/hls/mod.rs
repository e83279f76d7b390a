//! HLS sources (RFC 8216): live and recorded, MPEG-TS and fragmented MP4, with AES-128 and byte ranges.
//!
//! ```text
//! origin --HTTP--> Client -> Playlist -> Cursor (which segment) -> Fetcher --segments--> worker (demuxes, paces)
//!                                                                  Relay <---frames----
//! ```
//!
//! * `http`: an HTTP client that restricts destination, size and time.
//! * [`playlist`]: parses playlists.
//! * [`cursor`]: selects the next segment, without IO or clock.
//! * `fetcher`: follows one rendition; a source has one, or two if its audio is a separate rendition.
//! * `crypt`: AES-128.
//!
//! Segments are parsed only in a worker process without network and file access ([`crate::pipeline::demuxer`]). Formats
//! that a viewer cannot play are transcoded as for any other source.

use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::HeaderMap;
use tokio::sync::Semaphore;
use url::Url;

use self::cursor::Cursor;
use self::error::{FileKind, HlsError};
use self::fetcher::{Fetcher, LastError};
use self::http::{Client, HttpError};
use self::playlist::{Media, Multivariant, Playlist, Variant};
use crate::pipeline::description::Limits;
use crate::pipeline::process::{Process, ProcessError};
use crate::pipeline::programs::WorkerPrograms;
use crate::sources::fetch::address::Allowed;
use crate::sources::fetch::error::FetchError;
use crate::sources::fetch::pipeline::{Relay, Running};
use millstream_core::hub::name::StreamName;
use millstream_core::sources::frame_source::FanOut;
use millstream_worker_runtime::wire::{DemuxJob, FromWorker};

mod crypt;
pub mod cursor;
pub mod error;
mod fetcher;
pub mod http;
pub mod playlist;

/// An HLS source.
#[derive(Clone)]
pub struct Origin {
    /// URL of its multivariant or media playlist.
    pub address: Url,
    /// Sent only to the host of the URL.
    pub headers: HeaderMap,
    pub choice: Choice,
    /// Whether a recorded source is repeated.
    pub repeats: bool,
    pub allowed: Allowed,
    /// The executable of the worker.
    pub programs: WorkerPrograms,
}

impl std::fmt::Debug for Origin {
    /// Shows only the host, because URL and headers may contain secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Origin({})", self.address.host_str().unwrap_or_default())
    }
}

/// Limits for the variant: the best variant within them is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// In pixels.
    pub max_height: Option<u32>,
    /// In bit/s.
    pub max_bandwidth: Option<u64>,
}

/// Limits of the worker. Segments arrive in bursts, so the timeouts are longer than those of a camera.
const LIMITS: Limits = Limits {
    memory: 384,
    processors: 1,
    start_timeout: 20.0,
    stall_timeout: 8.0,
};

/// Plays the source until it fails. `live` is called once the stream receives frames.
pub async fn play<P: FanOut>(
    origin: &Origin,
    stream: &StreamName,
    plane: &P,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    let client = match Client::new(&origin.address, origin.allowed.clone(), origin.headers.clone()) {
        Ok(client) => client,
        Err(error) => return error_of(origin, error).into(),
    };
    let (renditions, first) = match open(origin, &client).await {
        Ok(opened) => opened,
        Err(error) => return error.into(),
    };
    let job = DemuxJob {
        renditions: if renditions.len() > 1 { 2 } else { 1 },
        is_live: !first.has_ended,
        memory: LIMITS.memory_bytes(),
    };
    let mut running = match Process::start_demuxer(&origin.programs, job, LIMITS) {
        Ok(process) => Running(Some(process)),
        Err(error) => return error.into(),
    };
    let Some(process) = &mut running.0 else {
        return FetchError::Displaced;
    };
    let last_error: LastError = Arc::new(Mutex::new(None));
    let requested: Vec<Arc<Semaphore>> = renditions.iter().map(|_| Arc::new(Semaphore::new(0))).collect();
    let mut first = Some(first);
    let mut fetching = tokio::task::JoinSet::new();
    let client = Arc::new(client);
    for ((rendition, address), requested) in (0u8..).zip(renditions).zip(&requested) {
        let fetcher = Fetcher {
            client: client.clone(),
            address,
            rendition,
            cursor: Cursor::new(origin.repeats),
            feeder: process.feeder(),
            requested: requested.clone(),
            last_error: last_error.clone(),
            init: None,
            key: None,
            can_wait: false,
        };
        fetching.spawn(fetcher.run(first.take()));
    }
    // An origin serves encoded media, so it cannot make key frames on request.
    let mut relay = Relay::new(stream, plane, false);
    loop {
        match process.next().await {
            Ok(FromWorker::Want(rendition)) => {
                if let Some(requested) = requested.get(usize::from(rendition)) {
                    requested.add_permits(1);
                }
            }
            Ok(message) => {
                if let Err(error) = relay.handle(message, process, live) {
                    return error;
                }
            }
            Err(error) => return cause(error, &last_error),
        }
    }
}

/// Returns why no frames arrive: the last fetch error, if there is one.
fn cause(error: ProcessError, last_error: &LastError) -> FetchError {
    let known = last_error.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (error, known) {
        (ProcessError::Stalled(_) | ProcessError::NoOutput(_), Some(known)) => known.into(),
        (ProcessError::Ended, _) => HlsError::Ended.into(),
        (error, _) => error.into(),
    }
}

fn error_of(origin: &Origin, error: HttpError) -> HlsError {
    HlsError::Fetch {
        what: FileKind::Playlist,
        host: origin.address.host_str().unwrap_or_default().to_owned(),
        error,
    }
}

/// Returns the URLs of the media playlists to follow, and the first playlist.
async fn open(origin: &Origin, client: &Client) -> Result<(Vec<Url>, Media), HlsError> {
    let (found, playlist) = fetcher::load_playlist(client, &origin.address, fetcher::PLAYLIST).await?;
    let multivariant = match playlist {
        Playlist::Media(media) => return Ok((vec![found], media)),
        Playlist::Multivariant(multivariant) => multivariant,
    };
    let variant = choose(&multivariant, origin.choice)?;
    let join = |uri: &str| found.join(uri).map_err(|_| error_of(origin, HttpError::Scheme));
    let (main, media) = match fetcher::load_playlist(client, &join(&variant.uri)?, fetcher::PLAYLIST).await? {
        (main, Playlist::Media(media)) => (main, media),
        (_, Playlist::Multivariant(_)) => return Err(HlsError::Nested),
    };
    let mut renditions = vec![main];
    if let Some(uri) = audio_uri(&multivariant, variant) {
        renditions.push(join(uri)?);
    }
    Ok((renditions, media))
}

/// Ranks how well viewers can play a variant; `None` if not at all. A variant without codecs is tried.
fn playability(variant: &Variant) -> Option<u8> {
    let Some(codecs) = &variant.codecs else { return Some(1) };
    let mut best = Some(2);
    for codec in codecs.split(',').map(str::trim) {
        let name = codec.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let found = match name.as_str() {
            "avc1" | "avc3" | "mp4a" | "opus" => Some(2),
            "hvc1" | "hev1" => Some(1),
            // With unsupported audio the video still plays, and subtitles are not needed.
            "ac-3" | "ec-3" | "ac-4" | "flac" | "stpp" | "wvtt" | "mp3" => Some(0),
            _ => None,
        };
        best = best.zip(found).map(|(best, found)| best.min(found));
    }
    best
}

/// Returns the best variant within the limits, or the smallest if none is.
fn choose(multivariant: &Multivariant, choice: Choice) -> Result<&Variant, HlsError> {
    let playable: Vec<(u8, &Variant)> = multivariant
        .variants
        .iter()
        .filter_map(|variant| Some((playability(variant)?, variant)))
        .collect();
    let within = |variant: &Variant| {
        let height = variant
            .height
            .zip(choice.max_height)
            .is_none_or(|(height, most)| height <= most);
        height && choice.max_bandwidth.is_none_or(|most| variant.bandwidth <= most)
    };
    let size = |variant: &Variant| (variant.height.unwrap_or_default(), variant.bandwidth);
    let best = playable
        .iter()
        .filter(|(_, variant)| within(variant))
        .max_by_key(|(playability, variant)| (*playability, size(variant)));
    let least = || playable.iter().min_by_key(|(_, variant)| size(variant));
    best.or_else(least).map(|(_, variant)| *variant).ok_or_else(|| {
        let codecs = multivariant
            .variants
            .iter()
            .filter_map(|variant| variant.codecs.as_deref());
        let codecs = codecs.collect::<Vec<_>>().join("; ");
        HlsError::NoVariant(millstream_worker_runtime::wire::shown(&codecs))
    })
}

/// Returns the URI of a variant's audio rendition, if its audio is separate.
fn audio_uri<'a>(multivariant: &'a Multivariant, variant: &Variant) -> Option<&'a str> {
    let group = variant.audio.as_deref()?;
    let mut renditions = multivariant.audio.iter().filter(|rendition| rendition.group == group);
    let default = renditions.clone().find(|rendition| rendition.is_default);
    default.or_else(|| renditions.next())?.uri.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn multivariant(text: &str) -> Multivariant {
        match Playlist::parse(&format!("#EXTM3U\n{text}")) {
            Ok(Playlist::Multivariant(multivariant)) => multivariant,
            other => panic!("{other:?}"),
        }
    }

    const LADDER: &str = "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"b\",URI=\"other.m3u8\"\n\
        #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"a\",DEFAULT=YES,URI=\"audio.m3u8\"\n\
        #EXT-X-STREAM-INF:BANDWIDTH=5000000,RESOLUTION=1920x1080,CODECS=\"hvc1.1.6.L120.90,mp4a.40.2\",AUDIO=\"a\"\nh265.m3u8\n\
        #EXT-X-STREAM-INF:BANDWIDTH=4000000,RESOLUTION=1920x1080,CODECS=\"avc1.640028,mp4a.40.2\",AUDIO=\"a\"\n1080.m3u8\n\
        #EXT-X-STREAM-INF:BANDWIDTH=1500000,RESOLUTION=1280x720,CODECS=\"avc1.64001f,mp4a.40.2\"\n720.m3u8\n\
        #EXT-X-STREAM-INF:BANDWIDTH=9000000,RESOLUTION=3840x2160,CODECS=\"dvh1.05.06,ec-3\"\n2160.m3u8\n";

    #[test]
    fn the_best_variant_within_limits_is_used_and_h264_comes_first() {
        let ladder = multivariant(LADDER);
        for (max_height, max_bandwidth, uri) in [
            (None, None, "1080.m3u8"),
            (Some(720), None, "720.m3u8"),
            (None, Some(2_000_000), "720.m3u8"),
            (Some(100), None, "720.m3u8"),
        ] {
            let choice = Choice {
                max_height,
                max_bandwidth,
            };
            assert_eq!(choose(&ladder, choice).map(|variant| variant.uri.as_str()), Ok(uri));
        }
    }

    #[test]
    fn a_separate_audio_rendition_is_found() {
        let ladder = multivariant(LADDER);
        let by_uri = |uri: &str| {
            ladder
                .variants
                .iter()
                .find(|variant| variant.uri == uri)
                .expect("listed")
        };
        assert_eq!(audio_uri(&ladder, by_uri("1080.m3u8")), Some("audio.m3u8"));
        assert_eq!(audio_uri(&ladder, by_uri("720.m3u8")), None);
    }

    #[test]
    fn a_source_without_a_playable_variant_is_an_error() {
        let none = multivariant("#EXT-X-STREAM-INF:BANDWIDTH=1,CODECS=\"dvh1.05.06\"\nx\n");
        let error = choose(&none, Choice::default()).expect_err("nothing to play");
        assert_eq!(error, HlsError::NoVariant("dvh1.05.06".to_owned()));
    }
}
