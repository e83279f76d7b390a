//! Cameras: GStreamer's RTSP server as the camera, the gateway as a whole, and the tracks that viewers would read.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream::config::{Config, ConfigError};
use millstream::hub::name::StreamName;
use millstream::media::Codec;
use millstream::{Gateway, hub};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Far beyond what anything here takes, for machines that are busy.
const PATIENCE: Duration = Duration::from_secs(60);

struct Camera {
    process: Child,
    port: u16,
}

impl Camera {
    /// `port` 0 takes a free one.
    fn start(port: u16, codec: &str, credentials: &[&str]) -> Self {
        let mut process = Command::new("/usr/bin/python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rtsp/server.py"))
            .args([&port.to_string(), codec])
            .args(credentials)
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
        "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n[streams.\"door\"]\n{camera}"
    );
    let config: Result<Config, ConfigError> = Config::parse(&text, "test.toml".as_ref(), []);
    Gateway::start(config.expect("valid")).await.expect("free ports")
}

/// What the tracks hold: end of the video line, end of the audio line, codec of the picture.
#[derive(Clone, Copy, Debug)]
struct Seen {
    video: u64,
    audio: u64,
    codec: Option<Codec>,
    has_source: bool,
}

fn look(hub: &hub::Hub) -> Option<Seen> {
    let stream = hub.find(&StreamName::parse("door").expect("a name"))?;
    let state = stream.lock();
    Some(Seen {
        video: state.video.ring.end(),
        audio: state.audio.ring.end(),
        codec: state.video.format.map(|format| format.codec()),
        has_source: state.source().is_some(),
    })
}

async fn until(gateway: &Gateway, what: &str, wanted: impl Fn(Option<Seen>) -> bool) -> Option<Seen> {
    let waiting = async {
        loop {
            let seen = look(gateway.media().hub());
            if wanted(seen) {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| {
        panic!("{what}: {:?}", look(gateway.media().hub()));
    })
}

/// A second of picture and of sound after `before`.
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
    codec: None,
    has_source: false,
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h264_and_pcma_play_and_come_back_when_the_camera_restarts() {
    let camera = Camera::start(0, "h264", &[]);
    let port = camera.port;
    let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{port}/cam\"")).await;
    let seen = until(&gateway, "plays", |now| plays_on(NOTHING, now)).await;
    assert_eq!(seen.and_then(|s| s.codec), Some(Codec::H264));

    // A viewer keeps the stream while its source is away.
    let name = StreamName::parse("door").expect("a name");
    let hub = gateway.media().hub();
    let stream = hub.open_with(&name, |state| state.subscribe(hub::stream::ShardIndex(0)));
    drop(camera);
    let before = until(&gateway, "is away", |now| now.is_some_and(|s| !s.has_source)).await;
    let _camera = Camera::start(port, "h264", &[]);
    until(&gateway, "plays again", |now| plays_on(before, now)).await;
    hub.release(&stream, |state| state.unsubscribe(hub::stream::ShardIndex(0)));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h265_plays_with_digest_credentials_by_udp() {
    let camera = Camera::start(0, "h265", &["viewer", "s3cret"]);
    let port = camera.port;
    let gateway = gateway(&format!(
        "rtsp = \"rtsp://127.0.0.1:{port}/cam\"\ntransport = \"udp\"\nusername = \"viewer\"\npassword = \"s3cret\""
    ))
    .await;
    let seen = until(&gateway, "plays", |now| plays_on(NOTHING, now)).await;
    assert_eq!(seen.and_then(|s| s.codec), Some(Codec::H265));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_camera_is_given_up_and_comes_back() {
    let camera = Camera::start(0, "h264", &[]);
    let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{}/cam\"", camera.port)).await;
    until(&gateway, "plays", |now| plays_on(NOTHING, now)).await;
    camera.signal("STOP");
    // Its connections stay up: silence is all there is to see. A keepalive would be missed only after a minute.
    let away = until(&gateway, "is away", |now| now.is_none_or(|s| !s.has_source));
    let noticed = tokio::time::timeout(Duration::from_secs(30), away).await;
    assert!(noticed.is_ok(), "the silence is not noticed");
    camera.signal("CONT");
    until(&gateway, "plays again", |now| plays_on(NOTHING, now)).await;
    gateway.stop().await;
}

/// A camera that refuses everything with this status, and counts connections.
async fn refusing(status: &'static str) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let mut lines = tokio::io::BufReader::new(stream).lines();
            let mut cseq = String::new();
            while let Ok(Some(line)) = lines.next_line().await {
                if line.to_ascii_lowercase().starts_with("cseq:") {
                    cseq = line;
                } else if line.is_empty() {
                    let challenge = "WWW-Authenticate: Digest realm=\"camera\", nonce=\"1\"";
                    let answer = format!("RTSP/1.0 {status}\r\n{cseq}\r\n{challenge}\r\n\r\n");
                    let _ = lines.get_mut().write_all(answer.as_bytes()).await;
                }
            }
        }
    });
    (port, connections)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_are_not_tried_again_while_other_refusals_are() {
    let (unauthorized, wrong) = refusing("401 Unauthorized").await;
    let (missing, other) = refusing("404 Not Found").await;
    let first = gateway(&format!("rtsp = \"rtsp://u:wrong@127.0.0.1:{unauthorized}/cam\"")).await;
    let second = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{missing}/cam\"")).await;
    let tried = async {
        while wrong.load(Ordering::SeqCst) < 1 || other.load(Ordering::SeqCst) < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, tried).await.expect("it is tried again");
    assert_eq!(wrong.load(Ordering::SeqCst), 1);
    assert!(look(first.media().hub()).is_none() && look(second.media().hub()).is_none());
    first.stop().await;
    second.stop().await;
}
