//! Renditions and variants of HLS origins: those that change, and those that cannot be played.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use millstream::Gateway;
use millstream::http::api::streams::{self, Stream};
use millstream_core::hub::name::StreamName;
use millstream_core::media::MediaKind;

use crate::pipeline::origin_servers::{Server, restarts};
use crate::pipeline::origins::{Reader, film, source};
use crate::pipeline::{PATIENCE, plays, trouble};

/// A live playlist of the segments of a clip of ten seconds, repeated.
fn live(clip: &str, since: Instant) -> String {
    let first = since.elapsed().as_secs();
    let mut text = format!(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:{first}\n#EXT-X-DISCONTINUITY-SEQUENCE:{}\n",
        first / 10
    );
    for number in first..first + 4 {
        if number % 10 == 0 && number > first {
            text += "#EXT-X-DISCONTINUITY\n";
        }
        text += &format!("#EXTINF:1,\n{clip}{}.ts\n", number % 10);
    }
    text
}

/// How the audio of a variant comes.
#[derive(Clone, Copy, Debug)]
enum AudioSource {
    Muxed,
    Separate,
}

impl AudioSource {
    /// Lines of the multivariant playlist.
    fn lines(self, folder: &str) -> String {
        let variant = "#EXT-X-STREAM-INF:BANDWIDTH=900000,CODECS=\"avc1.42c01e,mp4a.40.2\"";
        match self {
            Self::Muxed => format!("{variant}\n{folder}/film.m3u8\n"),
            Self::Separate => format!(
                "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"{folder}\",NAME=\"a\",URI=\"{folder}/audio.m3u8\"\n\
                 {variant},AUDIO=\"{folder}\"\n{folder}/video.m3u8\n"
            ),
        }
    }
}

async fn follows(from: AudioSource, to: AudioSource) {
    let is_dead = Arc::new(AtomicBool::new(false));
    let dies = is_dead.clone();
    let started = OnceLock::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let server = Server::start("renditions", move |file, _, _| {
        let (folder, name) = file.split_once('/').unwrap_or(("", file));
        let clip = name.strip_suffix(".m3u8")?;
        let since = *started.get_or_init(|| tokio::time::Instant::now().into_std());
        Some(match folder {
            "" => format!("#EXTM3U\n{}{}", from.lines("dies"), to.lines("twin")).into_response(),
            "dies" if dies.load(Ordering::SeqCst) => StatusCode::BAD_GATEWAY.into_response(),
            _ => {
                counted.fetch_add(usize::from(folder == "twin"), Ordering::SeqCst);
                live(clip, since).into_response()
            }
        })
    })
    .await;
    for (clip, options) in [("film", &[][..]), ("video", &["-an"]), ("audio", &["-vn"])] {
        let options = [options, &["-hls_playlist_type", "vod"]].concat();
        film(&server.folder.0, 10, &options, &format!("{clip}.m3u8"));
    }
    let gateway = source(&server.uri("index.m3u8"), "").await;
    plays(&gateway, "far").await;
    let mut reader = Reader::open(&gateway);
    reader.times(MediaKind::Audio, 47).await;
    assert_eq!(asked.load(Ordering::SeqCst), 0, "{from:?} to {to:?}");
    is_dead.store(true, Ordering::SeqCst);
    while asked.load(Ordering::SeqCst) == 0 {
        reader.times(MediaKind::Video, 5).await;
    }
    // More than was fetched of the other one.
    for _ in 0..3 {
        reader.times(MediaKind::Video, 100).await;
        let times = reader.times(MediaKind::Audio, 100).await;
        assert!(
            times.windows(2).all(|pair| pair[0] < pair[1]),
            "{from:?} to {to:?}: {times:?}"
        );
    }
    assert_eq!(restarts(&gateway).await, 0, "{}", trouble(&gateway, "far"));
    drop(reader);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_whose_audio_is_not_separate_is_followed() {
    follows(AudioSource::Separate, AudioSource::Muxed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_whose_audio_is_separate_is_followed() {
    follows(AudioSource::Muxed, AudioSource::Separate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_with_another_audio_rendition_is_followed() {
    follows(AudioSource::Separate, AudioSource::Separate).await;
}

pub(super) fn shown(gateway: &Gateway) -> Stream {
    let name = StreamName::parse("far").expect("a name");
    streams::describe_stream(&name, gateway.media_plane().hub(), gateway.source_registry(), |_| 0).expect("configured")
}

async fn warns(gateway: &Gateway, wanted: &[&str]) {
    let warned = async {
        loop {
            let warnings: Vec<String> = shown(gateway)
                .warnings
                .into_iter()
                .map(|warning| warning.text)
                .collect();
            if wanted
                .iter()
                .all(|wanted| warnings.iter().any(|text| text.contains(wanted)))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let warned = tokio::time::timeout(PATIENCE, warned).await;
    assert!(warned.is_ok(), "{wanted:?}: {:?}", shown(gateway));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracks_and_variants_that_are_left_out_are_named() {
    let server = Server::start("left-out", |file, _, _| {
        let index = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9,CODECS=\"dvh1.05.06,ec-3\"\ndolby.m3u8\n\
                     #EXT-X-STREAM-INF:BANDWIDTH=5,CODECS=\"avc1.42c01e,ac-3\"\nfilm.m3u8\n";
        (file == "index.m3u8").then(|| index.into_response())
    })
    .await;
    film(
        &server.folder.0,
        5,
        &["-c:a", "ac3", "-hls_playlist_type", "vod"],
        "film.m3u8",
    );
    let gateway = source(&server.uri("index.m3u8"), "").await;
    plays(&gateway, "far").await;
    warns(&gateway, &["(AC-3) is left out", "(dvh1.05.06,ec-3) are left out"]).await;
    let left_out = shown(&gateway).source.expect("configured").left_out;
    assert_eq!(left_out, ["variant dvh1.05.06,ec-3", "audio AC-3"]);
    assert_eq!(trouble(&gateway, "far"), "");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_that_are_left_out_are_counted_and_named() {
    const DRM: &str = "#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"skd://x\",KEYFORMAT=\"com.apple.streamingkeydelivery\"\n";
    let list = |second: &str| {
        format!(
            "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfilm0.ts\n{second}#EXTINF:1,\nfilm2.ts\n#EXT-X-ENDLIST\n"
        )
    };
    let encrypted = list(&format!("{DRM}#EXTINF:1,\nfilm1.ts\n#EXT-X-KEY:METHOD=NONE\n"));
    for (text, why) in [
        (list("#EXTINF:1,\nnone.ts\n"), "answered with status 404"),
        (
            list("#EXT-X-GAP\n#EXTINF:1,\nfilm1.ts\n"),
            "marks the segment as missing (EXT-X-GAP)",
        ),
        (list("#EXTINF:1,\nnoise.ts\n"), "unknown HLS segment format"),
        (encrypted, "keys of com.apple.streamingkeydelivery"),
    ] {
        let server = Server::start("segments", move |file, _, _| match file {
            "list.m3u8" => Some(text.clone().into_response()),
            "noise.ts" => Some("no segment".into_response()),
            _ => None,
        })
        .await;
        film(&server.folder.0, 3, &["-hls_playlist_type", "vod"], "film.m3u8");
        let gateway = source(&server.uri("list.m3u8"), "").await;
        plays(&gateway, "far").await;
        warns(&gateway, &["Segments of the HLS source are left out", why]).await;
        let source = shown(&gateway).source.expect("configured");
        assert!(source.passed_over > 0 && source.passed_over_reason.is_some_and(|reason| reason.contains(why)));
        gateway.stop().await;
    }
}
