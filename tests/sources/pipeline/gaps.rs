//! HLS origins whose playlists go on while they have nothing to play.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use millstream::Gateway;
use millstream_core::hub::name::StreamName;
use millstream_core::media::MediaKind;

use crate::pipeline::origin_servers::{Server, restarts};
use crate::pipeline::origins::{FRAME, Reader, film, source, steps};
use crate::pipeline::renditions::shown;
use crate::pipeline::{PATIENCE, plays, trouble};

type Asked = Arc<Mutex<Vec<String>>>;

/// Longer than a source may be without frames, and than what a playlist lists.
const GAP: Range<u64> = 14..28;

/// Longer than both together: the playlist lists nothing else for longer than a source may be without frames.
const LONG_GAP: Range<u64> = 14..38;

/// How segments of a gap are listed.
#[derive(Clone, Copy, Debug)]
enum GapKind {
    Missing,
    Drm,
}

/// A live playlist of ten segments of one second.
fn list(first: u64, gap: Range<u64>, kind: GapKind) -> String {
    const KEY: &str = "#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"skd://x\",KEYFORMAT=\"com.apple.streamingkeydelivery\"\n";
    let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:{first}\n");
    for number in first..first + 10 {
        text += match kind {
            GapKind::Missing if gap.contains(&number) => "#EXT-X-GAP\n",
            GapKind::Drm if gap.contains(&number) => KEY,
            GapKind::Drm => "#EXT-X-KEY:METHOD=NONE\n",
            GapKind::Missing => "",
        };
        text += &format!("#EXTINF:1,\nfilm{number}.ts\n");
    }
    text
}

/// Starts an origin whose live playlists begin when they are first asked for. `playlist` makes one of its name and second.
async fn origin(name: &str, playlist: impl Fn(&str, u64) -> String + Send + Sync + 'static) -> (Server, Asked) {
    let (started, asked) = (OnceLock::new(), Asked::default());
    let noted = asked.clone();
    let server = Server::start(name, move |file, _, _| {
        noted.lock().expect("no panic").push(file.to_owned());
        let name = file.strip_suffix(".m3u8")?;
        let since: Instant = *started.get_or_init(|| tokio::time::Instant::now().into_std());
        Some(playlist(name, since.elapsed().as_secs()).into_response())
    })
    .await;
    film(&server.folder.0, 60, &["-hls_playlist_type", "vod"], "film.m3u8");
    (server, asked)
}

fn was_asked(asked: &Asked, file: &str) -> bool {
    asked.lock().expect("no panic").iter().any(|asked| asked == file)
}

/// Waits until something has happened; returns the warnings that were shown meanwhile.
async fn warnings_until(gateway: &Gateway, what: &str, has_happened: impl Fn() -> bool) -> BTreeSet<String> {
    let mut warnings = BTreeSet::new();
    let waiting = async {
        while !has_happened() {
            warnings.extend(
                shown(gateway)
                    .warnings
                    .into_iter()
                    .map(|warning| warning.code.to_owned()),
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "{what}: {:?}", shown(gateway));
    warnings
}

async fn is_waited_out(gap: Range<u64>, kind: GapKind) {
    let (server, asked) = origin("gap", {
        let gap = gap.clone();
        move |_, second| list(second, gap.clone(), kind)
    })
    .await;
    let gateway = source(&server.uri("live.m3u8"), "").await;
    plays(&gateway, "far").await;
    assert!(!was_asked(&asked, &format!("film{}.ts", gap.end)));
    let after = format!("film{}.ts", gap.end + 1);
    let warnings = warnings_until(&gateway, "it goes on after the gap", || was_asked(&asked, &after)).await;
    assert!(warnings.contains("source_gap"), "{kind:?}: {warnings:?}");
    assert!(was_asked(&asked, &format!("film{}.ts", gap.end)), "the first after it");
    for number in gap {
        assert!(!was_asked(&asked, &format!("film{number}.ts")), "{number}");
    }
    let mut reader = Reader::open(&gateway);
    reader.times(MediaKind::Video, 25).await;
    assert_eq!(restarts(&gateway).await, 0, "{kind:?}: {}", trouble(&gateway, "far"));
    let is_over = || {
        !shown(&gateway)
            .warnings
            .iter()
            .any(|warning| warning.code == "source_gap")
    };
    warnings_until(&gateway, "no gap is warned of", is_over).await;
    drop(reader);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_segments_are_waited_out_without_a_restart() {
    is_waited_out(GAP, GapKind::Missing).await;
}

/// An advertisement that only some players can decrypt. For a while the playlist lists nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_with_drm_are_waited_out_without_a_restart() {
    is_waited_out(LONG_GAP, GapKind::Drm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_playlist_that_stands_still_in_a_gap_is_a_stall() {
    let (server, _) = origin("still", |_, second| list(second.min(10), GAP, GapKind::Missing)).await;
    let gateway = source(&server.uri("live.m3u8"), "").await;
    plays(&gateway, "far").await;
    warnings_until(&gateway, "a stall", || trouble(&gateway, "far").contains("no frame")).await;
    assert!(restarts(&gateway).await > 0);
    gateway.stop().await;
}

/// The encoder of one variant has failed, and its packager lists gaps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variant_that_has_media_is_played_instead_of_a_gap() {
    let (server, asked) = origin("gaps", |name, second| match name {
        "index" => "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9\nbest/live.m3u8\n\
                    #EXT-X-STREAM-INF:BANDWIDTH=7\nmiddle/live.m3u8\n#EXT-X-STREAM-INF:BANDWIDTH=5\nleast/live.m3u8\n"
            .to_owned(),
        "least/live" => list(second, 0..0, GapKind::Missing),
        _ => list(second, 14..1_000, GapKind::Missing),
    })
    .await;
    let gateway = source(&server.uri("index.m3u8"), "").await;
    plays(&gateway, "far").await;
    let has_least = || {
        asked
            .lock()
            .expect("no panic")
            .iter()
            .any(|file| file.starts_with("least/film"))
    };
    assert!(!has_least());
    warnings_until(&gateway, "the variant with media", has_least).await;
    plays(&gateway, "far").await;
    assert_eq!(restarts(&gateway).await, 0, "{}", trouble(&gateway, "far"));
    gateway.stop().await;
}

/// Starts a source with a better and a lesser variant. `better` answers for the better one, by name and second. Waits until the
/// source has left it and has returned to it, and asserts that viewers had one source all the time.
async fn is_returned_to(better: impl Fn(&str, u64) -> Option<Response> + Send + Sync + 'static) {
    let (started, asked) = (OnceLock::new(), Asked::default());
    let noted = asked.clone();
    let server = Server::start("return", move |file, _, headers| {
        // The first byte of a segment is asked for to see whether it is there.
        if !headers.contains_key(header::RANGE) {
            noted.lock().expect("no panic").push(file.to_owned());
        }
        let since: Instant = *started.get_or_init(|| tokio::time::Instant::now().into_std());
        let second = since.elapsed().as_secs();
        match file.split_once('/') {
            None if file == "index.m3u8" => {
                let lines =
                    "#EXT-X-STREAM-INF:BANDWIDTH=9\nbest/live.m3u8\n#EXT-X-STREAM-INF:BANDWIDTH=5\nleast/live.m3u8\n";
                Some(format!("#EXTM3U\n{lines}").into_response())
            }
            Some(("least", "live.m3u8")) => Some(list(second, 0..0, GapKind::Missing).into_response()),
            Some(("best", name)) => better(name, second),
            _ => None,
        }
    })
    .await;
    film(&server.folder.0, 110, &["-hls_playlist_type", "vod"], "film.m3u8");
    let gateway = source(&server.uri("index.m3u8"), "").await;
    plays(&gateway, "far").await;
    let name = StreamName::parse("far").expect("a name");
    let stream = gateway.media_plane().hub().find_stream(&name).expect("live");
    let first = stream.with_state(|state| state.source().expect("live"));
    let newest = |folder: &str| {
        let asked = asked.lock().expect("no panic");
        let numbers = asked.iter().filter_map(|file| {
            let number = file.strip_prefix(folder)?.strip_prefix("/film")?.strip_suffix(".ts")?;
            number.parse::<u64>().ok()
        });
        numbers.max()
    };
    warnings_until(&gateway, "the lesser variant", || newest("least").is_some()).await;
    let left_at = newest("best");
    let has_returned = || newest("best") > newest("least").max(left_at);
    let mut reader = Reader::open(&gateway);
    warnings_until(&gateway, "the better variant again", has_returned).await;
    let returned_at = newest("best");
    warnings_until(&gateway, "it is followed", || {
        newest("best") > returned_at.map(|number| number + 5)
    })
    .await;
    assert!(newest("least") < returned_at, "{:?} {returned_at:?}", newest("least"));
    let times = reader.times(MediaKind::Video, 50).await;
    assert!(times.is_sorted(), "{:?}", steps(&times));
    assert_eq!(
        stream.with_state(|state| state.source()),
        Some(first),
        "the same worker feeds it"
    );
    assert_eq!(restarts(&gateway).await, 0, "{}", trouble(&gateway, "far"));
    drop(reader);
    gateway.stop().await;
}

/// The encoder of the best variant was away for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variant_that_has_media_again_is_returned_to() {
    is_returned_to(|name, second| match name {
        "live.m3u8" => Some(list(second, 14..26, GapKind::Missing).into_response()),
        _ => None,
    })
    .await;
}

/// Its segments were listed, but not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variant_whose_segments_are_there_again_is_returned_to() {
    is_returned_to(|name, second| match name {
        "live.m3u8" => Some(list(second, 0..0, GapKind::Missing).into_response()),
        _ => (6..18).contains(&second).then(|| StatusCode::NOT_FOUND.into_response()),
    })
    .await;
}

/// Many short ones, as a packager lists what it did not get: they take no time of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_of_a_gap_are_passed_over_at_once() {
    const COUNT: usize = 120;
    let listed_at = Arc::new(OnceLock::new());
    let (noted, fetched_at) = (listed_at.clone(), Arc::new(OnceLock::new()));
    let fetched = fetched_at.clone();
    let now = || tokio::time::Instant::now();
    let begun = OnceLock::new();
    let server = Server::start("short", move |file, _, _| {
        let begun = *begun.get_or_init(now);
        if file == "film4.ts" {
            fetched.get_or_init(now);
        }
        (file == "live.m3u8").then(|| {
            let head = (0..4)
                .map(|number| format!("#EXTINF:1,\nfilm{number}.ts\n"))
                .collect::<String>();
            let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n{head}");
            if begun.elapsed() >= Duration::from_secs(2) {
                noted.get_or_init(now);
                text += &"#EXT-X-GAP\n#EXTINF:0.01,\nnone.ts\n".repeat(COUNT);
                for number in 4..12 {
                    text += &format!("#EXTINF:1,\nfilm{number}.ts\n");
                }
            }
            text.into_response()
        })
    })
    .await;
    film(&server.folder.0, 12, &["-hls_playlist_type", "vod"], "film.m3u8");
    let gateway = source(&server.uri("live.m3u8"), "").await;
    let mut reader = Reader::open(&gateway);
    // From the last segment of the first list to the last one.
    let times = reader.times(MediaKind::Video, 60).await;
    assert_eq!(steps(&times), [(FRAME, times.len() - 1)]);
    let took = fetched_at.get().copied().expect("fetched") - listed_at.get().copied().expect("listed");
    // A pause for each was a minute.
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(restarts(&gateway).await, 0);
    drop(reader);
    gateway.stop().await;
}
