//! HLS sources: segments of a real encoder, from an HTTP server with configurable faults.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use millstream::Gateway;
use millstream::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::tap::StreamTap;
use millstream_core::media::{Codec, MediaKind};
use millstream_core::sources::frame_source::FrameSink as _;
use tokio::task::JoinHandle;

use crate::pipeline::{Folder, PATIENCE, config, gateway, plays, programs, trouble};

mod networks;

/// A server of the files of a folder.
struct Server {
    folder: Folder,
    address: SocketAddr,
    /// Files that are not found though they are there.
    missing: Arc<Mutex<BTreeSet<String>>>,
    asked: Arc<Mutex<Vec<String>>>,
    running: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Shared {
    folder: PathBuf,
    missing: Arc<Mutex<BTreeSet<String>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(name: &str) -> Self {
        let mut server = Self {
            folder: Folder::new(name),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            missing: Arc::default(),
            asked: Arc::default(),
            running: None,
        };
        server.up().await;
        server
    }

    async fn up(&mut self) {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        socket.bind(self.address).expect("the port is free");
        let listener = socket.listen(64).expect("listens");
        self.address = listener.local_addr().expect("it is bound");
        let shared = Shared {
            folder: self.folder.0.clone(),
            missing: self.missing.clone(),
            asked: self.asked.clone(),
        };
        let router = Router::new().fallback(serve).with_state(shared);
        self.running = Some(tokio::spawn(async move {
            // Connections are closed after each answer, so that nothing outlasts the server.
            let _ = axum::serve(listener, router).await;
        }));
    }

    fn down(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }

    fn uri(&self, file: &str) -> String {
        format!("http://{}/{file}", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.0.join(file)
    }
}

async fn serve(State(shared): State<Shared>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let asked = format!(
        "{path}{}",
        request
            .uri()
            .query()
            .map_or_else(String::new, |query| format!("?{query}"))
    );
    shared.asked.lock().expect("no panic").push(asked);
    let close = [(header::CONNECTION, "close")];
    let lead = |to: String| {
        let headers = [(header::CONNECTION, "close".to_owned()), (header::LOCATION, to)];
        (StatusCode::FOUND, headers).into_response()
    };
    if let Some(rest) = path.strip_prefix("away/") {
        return lead(format!("/{rest}"));
    }
    if path == "lead" {
        return lead(request.uri().query().unwrap_or_default().to_owned());
    }
    if path == "endless.m3u8" {
        let lines =
            futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from("#EXTM3U\n".repeat(4_096))));
        return (close, Body::from_stream(lines)).into_response();
    }
    if shared.missing.lock().expect("no panic").contains(&path) {
        return (StatusCode::NOT_FOUND, close).into_response();
    }
    let Ok(bytes) = std::fs::read(shared.folder.join(&path)) else {
        return (StatusCode::NOT_FOUND, close).into_response();
    };
    let range = request.headers().get(header::RANGE).and_then(|range| {
        let (begin, end) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        Some(begin.parse::<usize>().ok()?..end.parse::<usize>().ok()? + 1)
    });
    match range.and_then(|range| bytes.get(range)) {
        Some(part) => (StatusCode::PARTIAL_CONTENT, close, part.to_vec()).into_response(),
        None => (close, bytes).into_response(),
    }
}

/// An encoder that runs until it is dropped.
struct Encoder(Child);

impl Drop for Encoder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const PICTURE: [&str; 2] = ["-i", "testsrc=size=320x180:rate=25"];
const SOUND: [&str; 2] = ["-i", "sine=frequency=440:sample_rate=48000"];

/// Starts `ffmpeg`, which writes HLS into a folder for `seconds`, or forever in real time.
fn encode(folder: &Path, seconds: Option<u32>, options: &[&str], playlist: &str) -> Encoder {
    let mut command = Command::new("ffmpeg");
    command.current_dir(folder).args(["-loglevel", "error", "-y"]);
    let pace: &[&str] = if seconds.is_none() { &["-re"] } else { &[] };
    for input in [PICTURE, SOUND] {
        command.args(pace).args(["-f", "lavfi"]).args(input);
    }
    if let Some(seconds) = seconds {
        command.args(["-t", &seconds.to_string()]);
    }
    command
        .args([
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-bf",
            "0",
            "-g",
            "25",
            "-pix_fmt",
            "yuv420p",
            "-c:a",
            "aac",
        ])
        .args(["-f", "hls", "-hls_time", "1"])
        .args(options)
        .arg(playlist)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Encoder(command.spawn().expect("ffmpeg is installed by `scripts/setup.sh test`"))
}

pub(super) fn film(folder: &Path, seconds: u32, options: &[&str], playlist: &str) {
    let mut encoder = encode(folder, Some(seconds), options, playlist);
    assert!(encoder.0.wait().expect("it ends").success());
}

async fn live(server: &Server, options: &[&str], playlist: &str) -> Encoder {
    let options = [&["-hls_list_size", "5", "-hls_flags", "delete_segments"], options].concat();
    let encoder = encode(&server.folder.0, None, &options, playlist);
    let file = server.path(playlist);
    let written = async {
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.matches("#EXTINF").count() >= 2) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.expect("a playlist");
    encoder
}

pub(super) async fn source(uri: &str, more: &str) -> Gateway {
    gateway(&format!("[streams.\"far\"]\nhls = \"{uri}\"\n{more}")).await
}

/// Reads a stream as a viewer does, by tap.
pub(super) struct Reader<'a> {
    _tapped: StreamTap<'a>,
    mailbox: Arc<millstream_core::hub::tap::TapQueue>,
}

impl<'a> Reader<'a> {
    pub(super) fn open(gateway: &'a Gateway) -> Self {
        let mailbox = Arc::new(Mailbox::new(4_096, || {}));
        let name = StreamName::parse("far").expect("a name");
        Self {
            _tapped: StreamTap::open(gateway.media_plane().hub(), &name, &mailbox),
            mailbox,
        }
    }

    /// Times of the next frames of a kind, on the line of the stream.
    pub(super) async fn times(&mut self, kind: MediaKind, count: usize) -> Vec<u64> {
        let mut times = Vec::new();
        let reading = async {
            while times.len() < count {
                let mut batches = VecDeque::new();
                self.mailbox.take_all_messages(&mut batches);
                for entry in batches.iter().flat_map(|batch| batch.iter()) {
                    if entry.packet.codec.kind() == kind && times.last() != Some(&entry.packet.time) {
                        times.push(entry.packet.time);
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let read = tokio::time::timeout(PATIENCE, reading).await;
        assert!(read.is_ok(), "{} of {count} frames came", times.len());
        // The last batch may have had more.
        times.truncate(count);
        times
    }
}

/// How far apart frames are, each kind of step once, and how often.
pub(super) fn steps(times: &[u64]) -> Vec<(i64, usize)> {
    let mut steps: Vec<(i64, usize)> = Vec::new();
    for pair in times.windows(2) {
        let step = pair[1] as i64 - pair[0] as i64;
        match steps.iter_mut().find(|(known, _)| *known == step) {
            Some((_, count)) => *count += 1,
            None => steps.push((step, 1)),
        }
    }
    steps
}

/// Duration of a frame at 25 fps, in units of 1/90000 s.
pub(super) const FRAME: i64 = 3_600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_is_followed_without_a_frame_lost() {
    for options in [&[][..], &["-hls_segment_type", "fmp4"]] {
        let server = Server::start("live").await;
        let _encoder = live(&server, options, "live.m3u8").await;
        let gateway = source(&server.uri("live.m3u8"), "").await;
        let seen = plays(&gateway, "far").await;
        assert_eq!(
            (seen.video_codec, seen.audio_codec),
            (Some(Codec::H264), Some(Codec::Aac))
        );
        let mut reader = Reader::open(&gateway);
        let times = reader.times(MediaKind::Video, 150).await;
        assert_eq!(steps(&times), [(FRAME, 149)], "{options:?}");
        assert_eq!(trouble(&gateway, "far"), "");
        drop(reader);
        gateway.stop().await;
    }
}

/// A source that cannot make key frames is not asked for any: neither by viewers nor by our own HLS, whose segments
/// begin at key frames that come further apart here than it would like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_is_not_asked_for_key_frames_and_is_not_restarted() {
    let server = Server::start("asked").await;
    film(
        &server.folder.0,
        24,
        &["-hls_playlist_type", "vod", "-g", "150", "-hls_time", "6"],
        "film.m3u8",
    );
    let gateway = source(&server.uri("film.m3u8"), "").await;
    plays(&gateway, "far").await;
    let name = StreamName::parse("far").expect("a name");
    let stream = gateway.media_plane().hub().find_stream(&name).expect("live");
    let first = stream.with_state(|state| state.source().expect("live"));
    let played = Arc::new(AtomicUsize::new(0));
    let (http, playing) = (gateway.http_address(), played.clone());
    let player = tokio::spawn(async move {
        loop {
            let response = reqwest::get(format!("http://{http}/hls/far/index.m3u8")).await;
            let is_served = response.is_ok_and(|response| response.status().is_success());
            playing.fetch_add(usize::from(is_served), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    let mut reader = Reader::open(&gateway);
    // Longer than from one key frame to the next.
    for _ in 0..8 {
        let asked = stream.with_state(|state| state.flag_key_frame_request_and_get_source());
        if let Some(source) = asked {
            gateway.media_plane().request_key_frame_from_source(source);
        }
        reader.times(MediaKind::Video, 25).await;
    }
    player.abort();
    assert!(played.load(Ordering::Relaxed) > 4, "it was watched by HLS");
    assert_eq!(
        stream.with_state(|state| state.source()),
        Some(first),
        "the same worker feeds it"
    );
    let status = gateway.source_registry().get(&name).expect("configured").status();
    assert_eq!((status.restart_count, status.last_error), (0, None));
    drop(reader);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_film_plays_at_its_own_speed_and_again() {
    for options in [
        &[][..],
        &["-hls_segment_type", "fmp4"],
        &["-hls_flags", "single_file"],
        &["-hls_flags", "single_file", "-hls_segment_type", "fmp4"],
    ] {
        let server = Server::start("film").await;
        film(
            &server.folder.0,
            3,
            &[&["-hls_playlist_type", "vod"], options].concat(),
            "film.m3u8",
        );
        let gateway = source(&server.uri("film.m3u8"), "").await;
        let mut reader = Reader::open(&gateway);
        let begun = tokio::time::Instant::now();
        // Three times through it, without a break.
        let times = reader.times(MediaKind::Video, 200).await;
        let took = begun.elapsed();
        assert_eq!(times.len(), 200);
        let irregular: usize = steps(&times)
            .iter()
            .filter(|(step, _)| *step != FRAME)
            .map(|(_, n)| n)
            .sum();
        assert!(irregular <= 3, "{options:?}: {:?}", steps(&times));
        // It is not read as fast as it can be: that would be a moment.
        assert!(took >= Duration::from_secs(7), "{took:?}");
        assert_eq!(trouble(&gateway, "far"), "");
        drop(reader);
        gateway.stop().await;
    }
}

/// Segments are demuxed by the program of the gateway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_plays_on_a_host_without_gstreamer() {
    let server = Server::start("without").await;
    film(&server.folder.0, 3, &["-hls_playlist_type", "vod"], "film.m3u8");
    let programs = WorkerExecutablesAndProcessSlots {
        pipeline_worker: PathBuf::from("/nonexistent"),
        ..programs()
    };
    let text = format!("[streams.\"far\"]\nhls = \"{}\"\n", server.uri("film.m3u8"));
    let started = Gateway::start_with_worker_programs(config(&text).expect("valid"), programs).await;
    let gateway = started.expect("it starts without GStreamer");
    plays(&gateway, "far").await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_film_plays() {
    let server = Server::start("encrypted").await;
    std::fs::write(server.path("key"), [7u8; 16]).expect("written");
    let info = format!("{}\n{}\n", server.uri("key"), server.path("key").display());
    let info = server.folder.write("info", &info).display().to_string();
    let options = ["-hls_playlist_type", "vod", "-hls_key_info_file", &info];
    film(&server.folder.0, 3, &options, "film.m3u8");
    let gateway = source(&server.uri("film.m3u8"), "").await;
    let seen = plays(&gateway, "far").await;
    assert_eq!(
        (seen.video_codec, seen.audio_codec),
        (Some(Codec::H264), Some(Codec::Aac))
    );
    gateway.stop().await;
    std::fs::write(server.path("key"), [8u8; 16]).expect("written");
    let gateway = source(&server.uri("film.m3u8"), "").await;
    refused(
        &gateway,
        "its AES-128 key, its initialization vector or its content is wrong",
    )
    .await;
    gateway.stop().await;
}

/// Waits until the source reports an error.
pub(super) async fn refused(gateway: &Gateway, wanted: &str) {
    let waiting = async {
        while !trouble(gateway, "far").contains(wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "wanted: {wanted}; it says: {}", trouble(gateway, "far"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_variants_one_is_taken_with_its_audio() {
    let server = Server::start("versions").await;
    film(
        &server.folder.0,
        4,
        &[
            "-hls_playlist_type",
            "vod",
            "-hls_segment_type",
            "fmp4",
            "-map",
            "0:v",
            "-map",
            "0:v",
            "-map",
            "1:a",
            "-s:v:1",
            "160x90",
            "-var_stream_map",
            "v:0,agroup:sound v:1,agroup:sound a:0,agroup:sound,default:yes",
            "-master_pl_name",
            "all.m3u8",
            "-hls_fmp4_init_filename",
            "init.mp4",
        ],
        "list-%v.m3u8",
    );
    for (more, size) in [("", (320, 180)), ("max_height = 100\n", (160, 90))] {
        let gateway = source(&server.uri("all.m3u8"), more).await;
        let seen = plays(&gateway, "far").await;
        assert_eq!(
            (seen.video_codec, seen.audio_codec),
            (Some(Codec::H264), Some(Codec::Aac))
        );
        let stream = gateway
            .media_plane()
            .hub()
            .find_stream(StreamName::parse("far").expect("a name"))
            .expect("live");
        assert_eq!(stream.with_state(|state| state.video.resolution()), Some(size));
        let mut reader = Reader::open(&gateway);
        assert_eq!(reader.times(MediaKind::Audio, 40).await.len(), 40);
        drop(reader);
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discontinuity_is_no_gap() {
    let server = Server::start("discontinuity").await;
    for name in ["one", "two"] {
        let segments = format!("{name}-%d.ts");
        film(
            &server.folder.0,
            2,
            &["-hls_playlist_type", "vod", "-hls_segment_filename", &segments],
            "x.m3u8",
        );
    }
    let list = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\none-0.ts\n#EXTINF:1,\none-1.ts\n#EXT-X-DISCONTINUITY\n\
                #EXTINF:1,\ntwo-0.ts\n#EXTINF:1,\ntwo-1.ts\n#EXT-X-ENDLIST\n";
    server.folder.write("both.m3u8", list);
    let gateway = source(&server.uri("both.m3u8"), "").await;
    let mut reader = Reader::open(&gateway);
    let times = reader.times(MediaKind::Video, 140).await;
    // The audio of the recording is slightly longer than the video, and is played to its end.
    let most = steps(&times).iter().map(|(step, _)| step.abs()).max();
    assert!(most < Some(9_000), "a tenth of a second: {:?}", steps(&times));
    drop(reader);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_is_missing_is_left_out() {
    let server = Server::start("missing").await;
    film(&server.folder.0, 5, &["-hls_playlist_type", "vod"], "film.m3u8");
    server.missing.lock().expect("no panic").insert("film2.ts".to_owned());
    let gateway = source(&server.uri("film.m3u8"), "").await;
    let mut reader = Reader::open(&gateway);
    let times = reader.times(MediaKind::Video, 99).await;
    let steps = steps(&times);
    assert!(steps.contains(&(26 * FRAME, 1)), "a second is missing: {steps:?}");
    drop(reader);
    gateway.stop().await;
}

/// How long the origin is away in the longer of two outages, in seconds. `make source-faults` has it away for 60.
#[expect(clippy::disallowed_methods, reason = "the length of a test")]
fn outage() -> Duration {
    let seconds = std::env::var("ORIGIN_OUTAGE")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(14))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_was_away_is_back() {
    let mut server = Server::start("away").await;
    let _encoder = live(&server, &[], "live.m3u8").await;
    let gateway = source(&server.uri("live.m3u8"), "").await;
    plays(&gateway, "far").await;
    let mut reader = Reader::open(&gateway);
    for away in [Duration::from_secs(5), outage()] {
        reader.times(MediaKind::Video, 25).await;
        server.down();
        tokio::time::sleep(away).await;
        let said = trouble(&gateway, "far");
        if away > Duration::from_secs(12) {
            assert!(said.contains("cannot fetch the playlist from 127.0.0.1"), "{said}");
        }
        server.up().await;
        let times = reader.times(MediaKind::Video, 100).await;
        let back = steps(&times).iter().map(|(step, _)| *step).min();
        assert!(back > Some(0), "times never go back: {:?}", steps(&times));
        println!("measured: origin away for {away:?}: back, and the time of frames never went back");
        println!(
            "origin away for {away:?}: steps in 1/90000 s, and how often: {:?}",
            steps(&times)
        );
    }
    drop(reader);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_playlist_is_refused() {
    let server = Server::start("garbage").await;
    std::fs::write(
        server.path("garbage.m3u8"),
        (0..=255).cycle().take(50_000).collect::<Vec<u8>>(),
    )
    .expect("written");
    server.folder.write("empty.m3u8", "");
    server.folder.write(
        "broken.m3u8",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ngarbage.m3u8\n#EXTINF:1,\ngarbage.m3u8\n#EXTINF:1,\ngarbage.m3u8\n#EXT-X-ENDLIST\n",
    );
    server.folder.write(
        "drm.m3u8",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"skd://x\"\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n",
    );
    for (file, wanted) in [
        ("garbage.m3u8", "is not a playlist"),
        ("empty.m3u8", "is not a playlist"),
        ("endless.m3u8", "larger than the limit of 16777216 bytes"),
        ("none.m3u8", "answered with status 404"),
        ("broken.m3u8", "neither MPEG-TS, fragmented MP4 nor packed AAC"),
        ("drm.m3u8", "unsupported encryption (SAMPLE-AES)"),
    ] {
        let gateway = source(&server.uri(file), "").await;
        refused(&gateway, wanted).await;
        gateway.stop().await;
    }
}
