//! HLS origins that do not do as RFC 8216 says, as they were reported to players.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use millstream::Gateway;
use millstream_core::media::MediaKind;

use crate::pipeline::init_sections::encrypt;
use crate::pipeline::origin_servers::{Server, live, restarts};
use crate::pipeline::origins::{FRAME, Reader, film, refused, source, steps};
use crate::pipeline::renditions::shown;
use crate::pipeline::{PATIENCE, plays, trouble};

/// Makes a film of ten seconds, in segments of one second.
fn make_film(server: &Server, options: &[&str]) {
    let options = [options, &["-hls_playlist_type", "vod"]].concat();
    film(&server.folder.0, 10, &options, "film.m3u8");
}

/// Plays a source for a while; asserts that no frame is missing and that nothing failed.
async fn plays_without_loss(gateway: &Gateway, count: usize, what: &str) {
    let mut reader = Reader::open(gateway);
    let times = reader.times(MediaKind::Video, count).await;
    let longest = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max();
    assert!(longest <= Some(5 * FRAME as u64), "{what}: {:?}", steps(&times));
    assert_eq!(restarts(gateway).await, 0, "{what}: {}", trouble(gateway, "far"));
    let source = shown(gateway).source.expect("configured");
    assert_eq!(source.passed_over, 0, "{what}: {:?}", source.passed_over_reason);
}

fn warning_codes(gateway: &Gateway) -> Vec<&'static str> {
    shown(gateway)
        .warnings
        .into_iter()
        .map(|warning| warning.code)
        .collect()
}

/// video-dev/hls.js#3913, ossrs/srs#3506: the sequence number is missing, or begins anew while the segments go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_does_not_count_is_followed_and_warned_of() {
    let numbers: [fn(usize) -> String; 2] = [
        |_| String::new(),
        |load| format!("#EXT-X-MEDIA-SEQUENCE:{}\n", if load < 4 { 600 + load } else { load }),
    ];
    for (kind, number) in numbers.into_iter().enumerate() {
        let loads = AtomicUsize::new(0);
        let server = Server::start("uncounted", move |file, _, _| {
            (file == "live.m3u8").then(|| {
                let load = loads.fetch_add(1, Ordering::SeqCst);
                let counted = format!("#EXT-X-MEDIA-SEQUENCE:{load}\n");
                live(load).replacen(&counted, &number(load), 1).into_response()
            })
        })
        .await;
        make_film(&server, &[]);
        let gateway = source(&server.uri("live.m3u8"), "").await;
        plays(&gateway, "far").await;
        plays_without_loss(&gateway, 25 * 8, &kind.to_string()).await;
        assert!(
            warning_codes(&gateway).contains(&"media_sequence"),
            "{:?}",
            shown(&gateway)
        );
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_counts_is_not_warned_of() {
    let loads = AtomicUsize::new(0);
    let server = Server::start("counted", move |file, _, _| {
        (file == "live.m3u8").then(|| live(loads.fetch_add(1, Ordering::SeqCst)).into_response())
    })
    .await;
    make_film(&server, &[]);
    let gateway = source(&server.uri("live.m3u8"), "").await;
    plays(&gateway, "far").await;
    plays_without_loss(&gateway, 25 * 6, "counted").await;
    assert!(!warning_codes(&gateway).contains(&"media_sequence"));
    gateway.stop().await;
}

/// rfc8216bis §4.4.2.3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn playlists_with_variables_are_played() {
    let server = Server::start("variables", |file, query, _| {
        let is_allowed = query == "auth=a%20b" || file.starts_with("path/to/");
        let text = match file {
            "index.m3u8" => {
                "#EXTM3U\n#EXT-X-VERSION:11\n#EXT-X-DEFINE:NAME=\"folder\",VALUE=\"path\"\n\
                 #EXT-X-DEFINE:QUERYPARAM=\"auth\"\n\
                 #EXT-X-STREAM-INF:BANDWIDTH=1\n{$folder}/list.m3u8?auth={$auth}\n"
            }
            "path/list.m3u8" => {
                "#EXTM3U\n#EXT-X-VERSION:11\n#EXT-X-TARGETDURATION:1\n#EXT-X-DEFINE:IMPORT=\"folder\"\n\
                 #EXT-X-DEFINE:NAME=\"to\",VALUE=\"/to/\"\n#EXT-X-MAP:URI=\"/{$folder}{$to}init.mp4\"\n\
                 #EXTINF:1,\n/{$folder}{$to}film0.m4s\n#EXTINF:1,\n/{$folder}{$to}film1.m4s\n#EXT-X-ENDLIST\n"
            }
            "undefined.m3u8" => "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{$nothing}film0.m4s\n#EXT-X-ENDLIST\n",
            _ => return None,
        };
        Some(match is_allowed || file == "undefined.m3u8" {
            true => text.into_response(),
            false => StatusCode::FORBIDDEN.into_response(),
        })
    })
    .await;
    make_film(&server, &["-hls_segment_type", "fmp4"]);
    let gateway = source(&server.uri("index.m3u8?auth=a%20b"), "").await;
    plays(&gateway, "far").await;
    plays_without_loss(&gateway, 60, "variables").await;
    gateway.stop().await;
    let gateway = source(&server.uri("undefined.m3u8"), "").await;
    refused(
        &gateway,
        "the playlist uses the variable nothing, but does not define it",
    )
    .await;
    gateway.stop().await;
}

/// An origin whose key has one address, and is replaced every three segments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_replaced_at_its_address_is_fetched_again() {
    let (loads, keys) = (AtomicUsize::new(0), Arc::new(Mutex::new(Vec::new())));
    let (asked, folder) = (keys.clone(), Arc::new(Mutex::new(None::<std::path::PathBuf>)));
    let path = folder.clone();
    let key_of = |number: usize| u8::try_from(number / 3 % 200).expect("small") + 1;
    let newest = Arc::new(AtomicUsize::new(0));
    let server = Server::start("rotation", move |file, _, _| match file {
        "live.m3u8" => {
            let load = loads.fetch_add(1, Ordering::SeqCst);
            let key = "#EXT-X-KEY:METHOD=AES-128,URI=\"key\",IV=0x01\n#EXTINF";
            let mut text = live(load).replace("#EXTINF", key);
            // The number of each segment.
            for number in load..load + 4 {
                text = text.replacen(&format!("\nfilm{}.ts", number % 10), &format!("\nnumber{number}.ts"), 1);
            }
            Some(text.into_response())
        }
        "key" => {
            let key = key_of(newest.load(Ordering::SeqCst));
            asked.lock().expect("no panic").push(key);
            Some(vec![key; 16].into_response())
        }
        _ => {
            let number: usize = file.strip_prefix("number")?.strip_suffix(".ts")?.parse().ok()?;
            newest.store(number, Ordering::SeqCst);
            let folder = path.lock().expect("no panic").clone()?;
            let bytes = std::fs::read(folder.join(format!("film{}.ts", number % 10))).ok()?;
            Some(encrypt(key_of(number), 1, &bytes).into_response())
        }
    })
    .await;
    make_film(&server, &[]);
    *folder.lock().expect("no panic") = Some(server.folder.0.clone());
    let gateway = source(&server.uri("live.m3u8"), "").await;
    plays(&gateway, "far").await;
    plays_without_loss(&gateway, 25 * 10, "rotation").await;
    let keys = keys.lock().expect("no panic").clone();
    assert!(
        keys.len() >= 4 && keys.windows(2).all(|pair| pair[0] < pair[1]),
        "once each: {keys:?}"
    );
    gateway.stop().await;
}

/// The first answer of the key's server is a wrong key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_forgotten() {
    let (asked, folder) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(None::<std::path::PathBuf>)),
    );
    let (count, path) = (asked.clone(), folder.clone());
    let server = Server::start("wrong-key", move |file, _, _| match file {
        "list.m3u8" => {
            let segments: String = (0..4).map(|number| format!("#EXTINF:1,\n{number}.bin\n")).collect();
            let key = "#EXT-X-KEY:METHOD=AES-128,URI=\"key\",IV=0x01\n";
            Some(format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n{key}{segments}#EXT-X-ENDLIST\n").into_response())
        }
        "key" => {
            let is_first = count.fetch_add(1, Ordering::SeqCst) == 0;
            Some(vec![if is_first { 9 } else { 7 }; 16].into_response())
        }
        _ => {
            let number = file.strip_suffix(".bin")?;
            let folder = path.lock().expect("no panic").clone()?;
            let bytes = std::fs::read(folder.join(format!("film{number}.ts"))).ok()?;
            Some(encrypt(7, 1, &bytes).into_response())
        }
    })
    .await;
    make_film(&server, &[]);
    *folder.lock().expect("no panic") = Some(server.folder.0.clone());
    let gateway = source(&server.uri("list.m3u8"), "").await;
    plays(&gateway, "far").await;
    let source = shown(&gateway).source.expect("configured");
    assert_eq!(
        source.passed_over, 1,
        "the first segment: {:?}",
        source.passed_over_reason
    );
    assert_eq!((asked.load(Ordering::SeqCst), source.restarts), (2, 0));
    gateway.stop().await;
}

/// videojs/videojs-contrib-hls#1072: a content delivery network answers with nothing while a file is on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_answer_is_asked_for_again() {
    let (loads, asked) = (AtomicUsize::new(0), Mutex::new(HashMap::<String, usize>::new()));
    let server = Server::start("empty", move |file, _, _| {
        if file == "live.m3u8" {
            return Some(live(loads.fetch_add(1, Ordering::SeqCst)).into_response());
        }
        let mut asked = asked.lock().expect("no panic");
        let count = asked.entry(file.to_owned()).or_default();
        *count += 1;
        (*count % 2 == 1).then(|| StatusCode::OK.into_response())
    })
    .await;
    make_film(&server, &[]);
    let gateway = source(&server.uri("live.m3u8"), "").await;
    plays(&gateway, "far").await;
    plays_without_loss(&gateway, 25 * 6, "empty").await;
    gateway.stop().await;
}

/// clappr/clappr#106, videojs/videojs-contrib-hls#952: playlists that are read while they are written, empty ones, pages of
/// errors, and types that say nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn playlists_that_are_not_whole_are_loaded_again() {
    let faults: [fn(String) -> Response; 4] = [
        |text| text.trim_end().trim_end_matches(".ts").to_owned().into_response(),
        |_| StatusCode::OK.into_response(),
        |_| {
            (
                [(header::CONTENT_TYPE, "text/html")],
                "<html><body>Please wait</body></html>",
            )
                .into_response()
        },
        |text| {
            text[..text.find("#EXTINF").expect("a segment") + 9]
                .to_owned()
                .into_response()
        },
    ];
    for (kind, fault) in faults.into_iter().enumerate() {
        let (loads, requests) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let server = Server::start("not-whole", move |file, _, _| {
            (file == "live.m3u8").then(|| {
                // After the first ones, each is whole at the second request only.
                let request = requests.fetch_add(1, Ordering::SeqCst);
                if request > 2 && request % 2 == 1 {
                    return fault(live(loads.load(Ordering::SeqCst)));
                }
                let text = live(loads.fetch_add(1, Ordering::SeqCst));
                ([(header::CONTENT_TYPE, "application/octet-stream")], text).into_response()
            })
        })
        .await;
        make_film(&server, &[]);
        let gateway = source(&server.uri("live.m3u8"), "").await;
        plays(&gateway, "far").await;
        let mut reader = Reader::open(&gateway);
        let times = reader.times(MediaKind::Video, 25 * 6).await;
        let longest = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max();
        assert!(longest <= Some(5 * FRAME as u64), "{kind}: {:?}", steps(&times));
        assert_eq!(restarts(&gateway).await, 0, "{kind}: {}", trouble(&gateway, "far"));
        drop(reader);
        gateway.stop().await;
    }
}

/// The addresses of the variants have a token of each request, and a variant with a gap is left for one with other renditions,
/// for which the source is opened anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variant_is_known_again_though_its_address_has_a_token_of_each_request() {
    let (tokens, begun) = (Arc::new(AtomicUsize::new(0)), std::sync::OnceLock::new());
    let asked = Arc::new(Mutex::new(Vec::<(String, usize)>::new()));
    let (noted, issued) = (asked.clone(), tokens.clone());
    let server = Server::start("tokens", move |file, _, _| {
        if file == "index.m3u8" {
            let token = issued.fetch_add(1, Ordering::SeqCst) + 1;
            let line = "#EXT-X-STREAM-INF:CODECS=\"avc1.42c01e,mp4a.40.2\",BANDWIDTH";
            return Some(
                format!(
                    "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"a\",URI=\"{token}/audio.m3u8\"\n\
                     {line}=9,AUDIO=\"a\"\n{token}/best.m3u8\n{line}=5\n{token}/least.m3u8\n"
                )
                .into_response(),
            );
        }
        let (token, name) = file.split_once('/')?;
        let name = name.strip_suffix(".m3u8")?;
        noted
            .lock()
            .expect("no panic")
            .push((name.to_owned(), token.parse().ok()?));
        let since = *begun.get_or_init(tokio::time::Instant::now);
        let second = since.elapsed().as_secs();
        let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:{second}\n");
        for number in second..second + 4 {
            let is_gap = name == "best" && number > 7;
            let clip = if name == "audio" { "audio" } else { "film" };
            text += &format!(
                "{}#EXTINF:1,\n{clip}{number}.ts\n",
                if is_gap { "#EXT-X-GAP\n" } else { "" }
            );
        }
        Some(text.into_response())
    })
    .await;
    film(&server.folder.0, 60, &["-hls_playlist_type", "vod"], "film.m3u8");
    film(
        &server.folder.0,
        60,
        &["-vn", "-hls_playlist_type", "vod"],
        "audio.m3u8",
    );
    let gateway = source(&server.uri("index.m3u8"), "").await;
    plays(&gateway, "far").await;
    let count = |wanted: &str| {
        let asked = asked.lock().expect("no panic");
        asked.iter().filter(|(name, _)| name == wanted).count()
    };
    let left = async {
        while count("least") < 8 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let left = tokio::time::timeout(PATIENCE, left).await;
    assert!(
        left.is_ok(),
        "{} {:?}",
        trouble(&gateway, "far"),
        asked.lock().expect("no panic")
    );
    plays(&gateway, "far").await;
    assert_eq!(restarts(&gateway).await, 0, "{}", trouble(&gateway, "far"));
    // It was opened anew, and its address had another token then.
    let asked = asked.lock().expect("no panic").clone();
    let token_of = |wanted: &str| {
        asked
            .iter()
            .rev()
            .find(|(name, _)| name == wanted)
            .map(|(_, token)| *token)
    };
    assert!(token_of("least") > Some(1), "{asked:?}");
    let audio_after = asked.iter().rev().take(4).filter(|(name, _)| name == "audio").count();
    assert_eq!(audio_after, 0, "{asked:?}");
    gateway.stop().await;
}
