//! HLS origins as their servers behave: cookies, compression, addresses that expire, variants that die, and parts.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use millstream::Gateway;
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::tap::{StreamTap, TapQueue};
use millstream_core::media::MediaKind;
use tokio::task::JoinHandle;

use crate::pipeline::origins::{FRAME, Reader, film, source, steps};
use crate::pipeline::{Folder, PATIENCE, plays, trouble};

/// A server that answers as a function says, or with a file of a folder.
pub(super) struct Server {
    pub(super) folder: Folder,
    address: SocketAddr,
    running: JoinHandle<()>,
}

/// A request: its path, its query, its headers.
type Hook = dyn Fn(&str, &str, &HeaderMap) -> Option<Response> + Send + Sync;

impl Server {
    pub(super) async fn start(
        name: &str,
        hook: impl Fn(&str, &str, &HeaderMap) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let folder = Folder::new(name);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (path, hook): (_, Arc<Hook>) = (folder.0.clone(), Arc::new(hook));
        let serve = move |request: Request| {
            let (path, hook) = (path.clone(), hook.clone());
            async move {
                let (parts, _) = request.into_parts();
                let file = parts.uri.path().trim_start_matches('/');
                let answer = hook(file, parts.uri.query().unwrap_or_default(), &parts.headers);
                answer.unwrap_or_else(
                    || match std::fs::read(path.join(file.rsplit('/').next().unwrap_or(file))) {
                        Ok(bytes) => bytes.into_response(),
                        Err(_) => StatusCode::NOT_FOUND.into_response(),
                    },
                )
            }
        };
        let router = Router::new().fallback(serve);
        let running = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self {
            folder,
            address,
            running,
        }
    }

    pub(super) fn uri(&self, file: &str) -> String {
        format!("http://{}/{file}", self.address)
    }

    /// Makes a film of some seconds, in segments of one second each.
    fn film(&self, seconds: u32) {
        film(&self.folder.0, seconds, &["-hls_playlist_type", "vod"], "film.m3u8");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// A live playlist of the segments of a film of ten seconds, repeated; one is added with each load.
pub(super) fn live(load: usize) -> String {
    let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:{load}\n");
    for number in load..load + 4 {
        if number % 10 == 0 {
            text += "#EXT-X-DISCONTINUITY\n";
        }
        text += &format!("#EXTINF:1,\nfilm{}.ts\n", number % 10);
    }
    text
}

pub(super) async fn restarts(gateway: &Gateway) -> u64 {
    let name = StreamName::parse("far").expect("a name");
    gateway
        .source_registry()
        .get(&name)
        .expect("configured")
        .status()
        .restart_count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_of_the_first_answer_open_the_others() {
    let server = Server::start("cookies", |file, query, headers| {
        let sent = headers
            .get(header::COOKIE)
            .and_then(|sent| sent.to_str().ok())
            .unwrap_or_default();
        let has = |pair: &str| sent.split("; ").any(|found| found == pair);
        match file {
            "index.m3u8" if query.is_empty() => {
                let set = [
                    (header::LOCATION, "/index.m3u8?checked"),
                    (header::SET_COOKIE, "a=1; Path=/; HttpOnly"),
                ];
                Some((StatusCode::FOUND, set).into_response())
            }
            "index.m3u8" => {
                let list = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nfilm.m3u8\n";
                Some(([(header::SET_COOKIE, "b=2; Path=/")], list).into_response())
            }
            _ if has("a=1") && has("b=2") => None,
            _ => Some(StatusCode::FORBIDDEN.into_response()),
        }
    })
    .await;
    server.film(3);
    let gateway = source(&server.uri("index.m3u8"), "").await;
    plays(&gateway, "far").await;
    assert_eq!(trouble(&gateway, "far"), "");
    gateway.stop().await;
}

fn gzip(command: &str) -> Bytes {
    let output = Command::new("sh").args(["-c", command]).stderr(Stdio::null()).output();
    output.expect("a shell").stdout.into()
}

/// A stream of RFC 7932 with one block that is not compressed.
fn brotli(text: &[u8]) -> Vec<u8> {
    let head = u32::try_from(text.len() - 1).expect("short") << 4 | 1 << 20;
    [&head.to_le_bytes()[..3], text, &[3]].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_playlist_is_read_within_its_limit() {
    let folder = Folder::new("bomb");
    let path = folder.0.display().to_string();
    let bomb = gzip("head -c 67108864 /dev/zero | gzip -1");
    let server = Server::start("compressed", move |file, _, _| {
        let path = format!("{path}/film.m3u8");
        match file {
            "gzip.m3u8" => {
                let body = gzip(&format!("gzip -c {path}"));
                Some(([(header::CONTENT_ENCODING, "gzip")], body).into_response())
            }
            "br.m3u8" => {
                let body = brotli(&std::fs::read(path).expect("written"));
                Some(([(header::CONTENT_ENCODING, "br")], body).into_response())
            }
            "bomb.m3u8" => Some(([(header::CONTENT_ENCODING, "gzip")], bomb.clone()).into_response()),
            _ => None,
        }
    })
    .await;
    server.film(3);
    std::fs::copy(server.folder.0.join("film.m3u8"), folder.0.join("film.m3u8")).expect("copied");
    for name in ["gzip.m3u8", "br.m3u8"] {
        let gateway = source(&server.uri(name), "").await;
        plays(&gateway, "far").await;
        assert_eq!(trouble(&gateway, "far"), "", "{name}");
        gateway.stop().await;
    }
    let gateway = source(&server.uri("bomb.m3u8"), "").await;
    let refused = async {
        while !trouble(&gateway, "far").contains("larger than the limit of 16777216 bytes") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await;
    assert!(refused.is_ok(), "{}", trouble(&gateway, "far"));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_expired_is_asked_for_again() {
    const GOOD_FOR: usize = 4;
    let (loads, left, begun) = (AtomicUsize::new(0), AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let tokens = begun.clone();
    let server = Server::start("expired", move |file, _, _| match file.split_once('/') {
        None if file == "index.m3u8" => {
            let token = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            left.store(GOOD_FOR, Ordering::SeqCst);
            Some((StatusCode::FOUND, [(header::LOCATION, format!("/{token}/live.m3u8"))]).into_response())
        }
        Some((token, "live.m3u8")) => {
            let is_last = token.parse() == Ok(tokens.load(Ordering::SeqCst));
            if !is_last || left.load(Ordering::SeqCst) == 0 {
                return Some(StatusCode::FORBIDDEN.into_response());
            }
            left.fetch_sub(1, Ordering::SeqCst);
            Some(live(loads.fetch_add(1, Ordering::SeqCst)).into_response())
        }
        _ => None,
    })
    .await;
    server.film(10);
    let gateway = source(&server.uri("index.m3u8"), "").await;
    plays(&gateway, "far").await;
    let mut reader = Reader::open(&gateway);
    reader.times(MediaKind::Video, 25 * 12).await;
    assert!(begun.load(Ordering::SeqCst) >= 3, "it expired at least twice");
    assert_eq!(restarts(&gateway).await, 0);
    drop(reader);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_variant_is_left_for_its_twin_and_remembered() {
    const LOADS: usize = 5;
    let (loads, asked) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let dead = asked.clone();
    let server = Server::start("variants", move |file, _, _| match file {
        "index.m3u8" => {
            let line = "#EXT-X-STREAM-INF:BANDWIDTH=900000,CODECS=\"avc1.42c01e,mp4a.40.2\"";
            let small = "#EXT-X-STREAM-INF:BANDWIDTH=1\nsmall/live.m3u8\n";
            Some(
                format!("#EXTM3U\n{line}\nnever/live.m3u8\n{line}\ndies/live.m3u8\n{line}\ntwin/live.m3u8\n{small}")
                    .into_response(),
            )
        }
        "never/live.m3u8" => {
            dead.fetch_add(1, Ordering::SeqCst);
            Some(StatusCode::NOT_FOUND.into_response())
        }
        "dies/live.m3u8" if loads.load(Ordering::SeqCst) >= LOADS => Some(StatusCode::BAD_GATEWAY.into_response()),
        "dies/live.m3u8" | "twin/live.m3u8" => Some(live(loads.fetch_add(1, Ordering::SeqCst)).into_response()),
        "small/live.m3u8" => panic!("the twin is better"),
        _ => None,
    })
    .await;
    server.film(10);
    let gateway = source(&server.uri("index.m3u8"), "").await;
    plays(&gateway, "far").await;
    let mut reader = Reader::open(&gateway);
    reader.times(MediaKind::Video, 25 * 12).await;
    assert_eq!(restarts(&gateway).await, 0, "{}", trouble(&gateway, "far"));
    assert_eq!(asked.load(Ordering::SeqCst), 1, "the first one is remembered");
    drop(reader);
    gateway.stop().await;
}

/// A content delivery network with cookies, tokens and a server for each region.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_redirects_are_followed() {
    const HOPS: usize = 6;
    let server = Server::start("redirects", |file, _, _| {
        let hop: usize = file.strip_prefix("hop")?.parse().ok()?;
        let next = if hop < HOPS {
            format!("/hop{}", hop + 1)
        } else {
            "/film.m3u8".to_owned()
        };
        Some((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, next)]).into_response())
    })
    .await;
    server.film(3);
    let gateway = source(&server.uri("hop1"), "").await;
    plays(&gateway, "far").await;
    assert_eq!(trouble(&gateway, "far"), "");
    gateway.stop().await;
}

/// An origin with blocking playlist reload numbers anew after a restart: it answers 400 to requests for segments far ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_blocks_reloads_is_followed_over_its_restart() {
    const LOADS_BEFORE_RESTART: usize = 5;
    let (loads, refused) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let refusals = refused.clone();
    let server = Server::start("blocking", move |file, query, _| {
        if file != "live.m3u8" {
            return None;
        }
        let load = loads.load(Ordering::SeqCst);
        let first = load.checked_sub(LOADS_BEFORE_RESTART).unwrap_or(7_000 + load);
        let wanted = query
            .strip_prefix("_HLS_msn=")
            .and_then(|number| number.parse::<usize>().ok());
        if wanted.is_some_and(|wanted| wanted > first + 6) {
            refusals.fetch_add(1, Ordering::SeqCst);
            return Some(StatusCode::BAD_REQUEST.into_response());
        }
        loads.fetch_add(1, Ordering::SeqCst);
        let control = "#EXTM3U\n#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES\n";
        Some(live(first).replacen("#EXTM3U\n", control, 1).into_response())
    })
    .await;
    server.film(10);
    let gateway = source(&server.uri("live.m3u8"), "").await;
    plays(&gateway, "far").await;
    let mut reader = Reader::open(&gateway);
    reader.times(MediaKind::Video, 25 * 12).await;
    assert!(refused.load(Ordering::SeqCst) > 0, "it was restarted");
    assert_eq!(restarts(&gateway).await, 0, "{}", trouble(&gateway, "far"));
    drop(reader);
    gateway.stop().await;
}

/// A content delivery network whose playlists are faster than its segments: each is there at the second request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_that_are_listed_before_they_are_there_are_played() {
    let (loads, asked) = (AtomicUsize::new(0), Mutex::new(HashMap::<String, usize>::new()));
    let server = Server::start("early", move |file, _, _| {
        if file == "live.m3u8" {
            return Some(live(loads.fetch_add(1, Ordering::SeqCst)).into_response());
        }
        let mut asked = asked.lock().expect("no panic");
        let count = asked.entry(file.to_owned()).or_default();
        *count += 1;
        (*count % 2 == 1 && file.ends_with(".ts")).then(|| StatusCode::NOT_FOUND.into_response())
    })
    .await;
    server.film(10);
    let gateway = source(&server.uri("live.m3u8"), "").await;
    let mut reader = Reader::open(&gateway);
    let times = reader.times(MediaKind::Video, 200).await;
    let longest = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max();
    assert!(
        longest <= Some(5 * FRAME as u64),
        "none is left out: {:?}",
        steps(&times)
    );
    let name = StreamName::parse("far").expect("a name");
    let status = gateway.source_registry().get(&name).expect("configured").status();
    assert_eq!(status.ignored_input.count, 0, "{:?}", status.ignored_input);
    assert_eq!(restarts(&gateway).await, 0, "{}", trouble(&gateway, "far"));
    drop(reader);
    gateway.stop().await;
}

/// Some origins list hours of segments whose addresses are signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_playlist_of_megabytes_is_followed() {
    let loads = AtomicUsize::new(0);
    let server = Server::start("megabytes", move |file, _, _| {
        (file == "live.m3u8").then(|| {
            let load = loads.fetch_add(1, Ordering::SeqCst) + 3_000;
            let before: String = (load - 3_000..load)
                .map(|number| format!("#EXTINF:1,\nfilm{}.ts?sig={}\n", number % 10, "A1b2".repeat(280)))
                .collect();
            let (head, rest) = live(load)
                .split_once("SEQUENCE:")
                .map(|(head, rest)| (head.to_owned(), rest.to_owned()))
                .expect("a number");
            let (_, rest) = rest.split_once('\n').expect("a line");
            let text = format!("{head}SEQUENCE:{}\n{before}{rest}", load - 3_000);
            assert!(text.len() > 3 << 20);
            text.into_response()
        })
    })
    .await;
    server.film(10);
    let gateway = source(&server.uri("live.m3u8"), "").await;
    let mut reader = Reader::open(&gateway);
    let times = reader.times(MediaKind::Video, 150).await;
    let regular = steps(&times)
        .iter()
        .find(|(step, _)| *step == FRAME)
        .map_or(0, |(_, count)| *count);
    assert!(regular >= 140, "{:?}", steps(&times));
    drop(reader);
    gateway.stop().await;
}

/// Frames of a stream as they arrive, by their bytes.
struct Frames<'a> {
    _tapped: StreamTap<'a>,
    queue: Arc<TapQueue>,
}

impl<'a> Frames<'a> {
    fn open(gateway: &'a Gateway) -> Self {
        let queue = Arc::new(Mailbox::new(4_096, || {}));
        let name = StreamName::parse("far").expect("a name");
        Self {
            _tapped: StreamTap::open(gateway.media_plane().hub(), &name, &queue),
            queue,
        }
    }

    /// The last packet of each new video frame.
    fn take(&self) -> Vec<Bytes> {
        let mut batches = VecDeque::new();
        self.queue.take_all_messages(&mut batches);
        let entries = batches.iter().flat_map(|batch| batch.iter());
        let video = entries.filter(|entry| entry.packet.codec.kind() == MediaKind::Video && entry.packet.marker);
        video.map(|entry| entry.packet.payload.clone()).collect()
    }
}

/// Our own LL-HLS is the origin of another gateway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_are_read_close_to_the_edge_of_the_origin() {
    let server = Server::start("parts", |_, _, _| None).await;
    server.film(20);
    let near = source(&server.uri("film.m3u8"), "").await;
    plays(&near, "far").await;
    let sent = Frames::open(&near);
    let far = source(&format!("http://{}/hls/far/index.m3u8", near.http_address()), "").await;
    let received = Frames::open(&far);
    let (mut known, mut count) = (HashMap::new(), 0_usize);
    let mut behind = Vec::new();
    let measuring = async {
        while behind.len() < 200 {
            for frame in sent.take() {
                known.insert(frame, count);
                count += 1;
            }
            behind.extend(
                received
                    .take()
                    .iter()
                    .filter_map(|frame| Some(count - known.get(frame)?)),
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let measured = tokio::time::timeout(PATIENCE, measuring).await;
    assert!(measured.is_ok(), "{} frames, {}", behind.len(), trouble(&far, "far"));
    behind.sort_unstable();
    let median = behind[behind.len() / 2];
    println!("{median} frames behind, at most {:?}", behind.last());
    // Parts have five frames: one is in progress, and two more may be on the way.
    assert!(median <= 15, "{behind:?}");
    assert_eq!(trouble(&far, "far"), "");
    drop((sent, received));
    far.stop().await;
    near.stop().await;
}
