//! Cameras: GStreamer's RTSP server as the camera, a whole gateway, and the tracks that viewers read.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use millstream::Gateway;
use millstream::config::{Config, ConfigError};
use millstream::http::api::sources::Source;
use millstream::http::api::streams;
use millstream_core::hub;
use millstream_core::hub::name::StreamName;
use millstream_core::media::{Codec, CodecFormat};

mod audio;

mod faults;
mod layers;
mod media;
mod quirks;
mod redirects;
mod refusals;
mod scripted;
mod source_tests;
mod talk;

/// Far beyond what anything here takes, for machines that are busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The state of a configured stream, as the API shows it.
fn shown(gateway: &Gateway, name: &str) -> Source {
    let name = StreamName::parse(name).expect("a name");
    let shown = streams::describe_stream(&name, gateway.media_plane().hub(), gateway.source_registry(), |_| 0);
    shown.and_then(|stream| stream.source).expect("it is configured")
}

struct Camera {
    process: Child,
    port: u16,
}

impl Camera {
    /// `port` 0 takes a free one.
    fn start(port: u16, media: &str, options: &[&str]) -> Self {
        Self::spawn(Command::new("/usr/bin/python3"), port, media, options)
    }

    /// In a network namespace, at an address there.
    fn start_in(namespace: &str, address: &str, port: u16, media: &str, options: &[&str]) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, "/usr/bin/python3"]);
        Self::spawn(command, port, media, &[options, &["--address", address]].concat())
    }

    fn spawn(mut command: Command, port: u16, media: &str, options: &[&str]) -> Self {
        let mut process = command
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sources/rtsp/server.py"))
            .args([&port.to_string(), media])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let port = line
            .trim()
            .parse()
            .expect("the camera tells its port; if it did not start, run `scripts/setup.sh test`");
        Self { process, port }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args(["-s", name, &self.process.id().to_string()])
            .status();
        assert!(sent.expect("kill starts").success());
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn gateway(camera: &str) -> Gateway {
    let text = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n[pipelines]\ntranscode = false\n[streams.\"door\"]\n{camera}"
    );
    let config: Result<Config, ConfigError> = Config::parse(&text, "test.toml".as_ref(), []);
    Gateway::start(config.expect("valid")).await.expect("free ports")
}

/// What the tracks hold.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Ends of the lines.
    video: u64,
    audio: u64,
    video_format: Option<CodecFormat>,
    audio_format: Option<CodecFormat>,
    resolution: Option<(u16, u16)>,
    reordered: bool,
    has_source: bool,
}

fn poll(hub: &hub::Hub) -> Option<Seen> {
    let stream = hub.find_stream(StreamName::parse("door").expect("a name"))?;
    Some(stream.with_state(|state| Seen {
        video: state.video.ring().end_seq(),
        audio: state.audio.ring().end_seq(),
        video_format: state.video.format(),
        audio_format: state.audio.format(),
        resolution: state.video.resolution(),
        reordered: state.video.has_b_frames(),
        has_source: state.source().is_some(),
    }))
}

async fn until(gateway: &Gateway, what: &str, wanted: impl Fn(Option<Seen>) -> bool) -> Option<Seen> {
    let waiting = async {
        loop {
            let seen = poll(gateway.media_plane().hub());
            if wanted(seen) {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| {
        panic!("{what}: {:?}", poll(gateway.media_plane().hub()));
    })
}

/// Returns whether a second of video and audio has arrived since `before`.
fn plays_on(before: Option<Seen>, now: Option<Seen>) -> bool {
    let (before, now) = (
        before.map_or((0, 0), |s| (s.video, s.audio)),
        now.map_or((0, 0), |s| (s.video, s.audio)),
    );
    now.0 >= before.0 + 20 && now.1 >= before.1 + 50
}

/// The lines begin at this number.
const NOTHING: Option<Seen> = Some(Seen {
    video: 1 << 16,
    audio: 1 << 16,
    video_format: None,
    audio_format: None,
    resolution: None,
    reordered: false,
    has_source: false,
});

/// What the status of the source says is wrong.
fn trouble(gateway: &Gateway) -> String {
    let entry = gateway
        .source_registry()
        .get(StreamName::parse("door").expect("a name"));
    entry.and_then(|entry| entry.status().last_error).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h264_and_pcma_play_and_come_back_when_the_camera_restarts() {
    let camera = Camera::start(0, "h264+pcma", &[]);
    let port = camera.port;
    let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{port}/cam\"")).await;
    let seen = until(&gateway, "plays", |now| plays_on(NOTHING, now)).await;
    assert_eq!(
        seen.and_then(|s| s.video_format).map(CodecFormat::codec),
        Some(Codec::H264)
    );

    // A viewer keeps the stream while its source is unavailable.
    let name = StreamName::parse("door").expect("a name");
    let hub = gateway.media_plane().hub();
    let stream = hub.open_and_update_stream(&name, |state| state.add_viewer(hub::stream::ShardIndex(0)));
    drop(camera);
    let before = until(&gateway, "is away", |now| now.is_some_and(|s| !s.has_source)).await;
    let _camera = Camera::start(port, "h264+pcma", &[]);
    until(&gateway, "plays again", |now| plays_on(before, now)).await;
    hub.update_stream_and_remove_if_unused(&stream, |state| state.remove_viewer(hub::stream::ShardIndex(0)));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h265_plays_with_digest_credentials_by_udp() {
    let camera = Camera::start(0, "h265+pcma", &["--credentials", "viewer", "s3cret"]);
    let port = camera.port;
    let gateway = gateway(&format!(
        "rtsp = \"rtsp://127.0.0.1:{port}/cam\"\ntransport = \"udp\"\nusername = \"viewer\"\npassword = \"s3cret\""
    ))
    .await;
    let seen = until(&gateway, "plays", |now| plays_on(NOTHING, now)).await;
    assert_eq!(
        seen.and_then(|s| s.video_format).map(CodecFormat::codec),
        Some(Codec::H265)
    );
    gateway.stop().await;
}
