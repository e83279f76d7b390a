//! Cameras as users of other programs reported them: each plays. The reports are named as repository#number; what the
//! cameras do here was written for these tests.

mod messages;
mod reports;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use millstream::Gateway;
use millstream::config::Config;
use millstream::http::api::streams;
use millstream::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;
use millstream_core::hub::name::StreamName;

use crate::pipeline::programs;
use crate::rtsp::scripted::{GOP, Script, Scripted};
use crate::rtsp::{PATIENCE, shown};

use self::reports::{
    CREDENTIALS, Quirk, Way, answers, contents, descriptions, packets, refusals, resets, unauthorized, unclear_channels,
};

/// Frames that arrived, as far as the packets tell: a group has a packet with parameter sets more.
fn frames(gateway: &Gateway, name: &str) -> u64 {
    let stream = gateway
        .media_plane()
        .hub()
        .find_stream(StreamName::parse(name).expect("a name"));
    let packets = stream.map_or(0, |stream| {
        stream
            .with_state(|state| state.video.ring().end_seq())
            .saturating_sub(1 << 16)
    });
    packets * GOP / (GOP + 1)
}

/// Frames of which nearly all have to arrive.
const ENOUGH: u64 = 150;

async fn play(quirks: Vec<Quirk>) {
    let mut text = "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n".to_owned();
    let mut cameras = Vec::new();
    for (index, quirk) in quirks.into_iter().enumerate() {
        let camera = Scripted::start(quirk.script).await;
        let (port, keys, shows) = (camera.port, quirk.keys, quirk.shows);
        text += &format!("[streams.\"c{index}\"]\nrtsp = \"rtsp://127.0.0.1:{port}/cam\"\n{keys}\n");
        cameras.push((format!("c{index}"), quirk.name, quirk.way, shows, camera));
    }
    let config = Config::parse(&text, "test.toml".as_ref(), []).map_err(|error| error.to_string());
    let gateway = Gateway::start_with_worker_programs(config.expect("valid"), programs())
        .await
        .expect("free ports");
    let gateway = Arc::new(gateway);
    let mut playing = tokio::task::JoinSet::new();
    for (stream, name, way, shows, camera) in cameras {
        let gateway = gateway.clone();
        playing.spawn(async move {
            let problem = check(&gateway, &stream, way, &camera).await;
            let seen = summary(&gateway, &stream);
            let problem = problem.or((!seen.contains(shows)).then(|| format!("{shows}: {seen}")))?;
            Some(format!("{name}: {problem}"))
        });
    }
    let problems: Vec<String> = playing.join_all().await.into_iter().flatten().collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    if let Some(gateway) = Arc::into_inner(gateway) {
        gateway.stop().await;
    }
}

/// What the API shows of the audio, and of what was passed over.
fn summary(gateway: &Gateway, stream: &str) -> String {
    let name = StreamName::parse(stream).expect("a name");
    let shown = streams::describe_stream(&name, gateway.media_plane().hub(), gateway.source_registry(), |_| 0);
    let audio = shown
        .and_then(|stream| stream.audio)
        .map_or("none", |audio| audio.codec);
    let source = self::shown(gateway, stream);
    format!("audio {audio}; {}", source.passed_over_reason.unwrap_or_default())
}

/// Waits until nearly all frames of a camera arrive. Returns what is wrong.
async fn check(gateway: &Gateway, stream: &str, way: Way, camera: &Scripted) -> Option<String> {
    let source = || shown(gateway, stream);
    let plays = async {
        while source().state != "live" || (way != Way::Client && source().fallback.is_none()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let sent = || camera.counts.frames.load(Ordering::SeqCst);
        let (arrived, first) = (frames(gateway, stream), sent());
        while sent() < first + ENOUGH {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What was sent until here arrives, but for one of a hundred.
        let wanted = arrived + (sent() - first) * 99 / 100;
        while frames(gateway, stream) < wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let played = tokio::time::timeout(PATIENCE, plays).await;
    let sessions = camera.counts.sessions.load(Ordering::SeqCst);
    let is_way = match source().fallback {
        None => way == Way::Client,
        Some(_) if camera.counts.is_gstreamer.load(Ordering::SeqCst) => way == Way::Pipeline,
        Some(_) => way == Way::Relay,
    };
    let is_right =
        played.is_ok() && is_way && source().restarts == 0 && sessions <= if way == Way::Client { 1 } else { 2 };
    (!is_right).then(|| {
        format!(
            "{:?}, {} frames, {sessions} sessions",
            source(),
            frames(gateway, stream)
        )
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptions_that_deviate_are_read() {
    play(descriptions()).await;
    play(contents()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_deviate_are_understood() {
    play(answers()).await;
    play(unclear_channels()).await;
    play(refusals()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_deviate_are_corrected() {
    play(messages::descriptions()).await;
    play(messages::answers()).await;
    play(messages::keepalives_and_requests()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_packets_are_passed_over() {
    play(packets()).await;
    play(resets()).await;
}

pub(super) fn without_worker() -> WorkerExecutablesAndProcessSlots {
    WorkerExecutablesAndProcessSlots {
        pipeline_worker: PathBuf::from("/nonexistent/millstream-worker"),
        ..programs()
    }
}

pub(super) async fn start(camera: &Scripted, programs: WorkerExecutablesAndProcessSlots) -> Gateway {
    start_with(camera, programs, "").await
}

async fn start_with(camera: &Scripted, programs: WorkerExecutablesAndProcessSlots, keys: &str) -> Gateway {
    let text = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n[streams.\"c0\"]\n\
         rtsp = \"rtsp://127.0.0.1:{}/cam\"\n{keys}\n",
        camera.port
    );
    let config = Config::parse(&text, "test.toml".as_ref(), []).map_err(|error| error.to_string());
    let started = Gateway::start_with_worker_programs(config.expect("valid"), programs);
    started.await.expect("free ports")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_gstreamer_the_status_says_why_it_is_needed() {
    let script = Script {
        frame: Box::new(|n, sender| {
            sender.frame(n);
            sender.closes = n == 5;
        }),
        ..Script::default()
    };
    let camera = Scripted::start(script).await;
    let gateway = start(&camera, without_worker()).await;
    let says = |error: &str| error.contains("ends its RTSP sessions") && error.contains("millstream-worker");
    let said = async {
        while !shown(&gateway, "c0").last_error.is_some_and(|error| says(&error)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let said = tokio::time::timeout(PATIENCE, said).await;
    assert!(said.is_ok(), "{:?}", shown(&gateway, "c0").last_error);
    gateway.stop().await;
}

/// A camera whose RTP timestamps never change: frames are timed by their arrival, which a warning says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_whose_timestamps_stand_still_are_timed_by_their_arrival() {
    let script = Script {
        frame: Box::new(|n, sender| {
            sender.time = 0;
            sender.frame(n);
        }),
        ..Script::default()
    };
    let camera = Scripted::start(script).await;
    let gateway = start(&camera, without_worker()).await;
    let name = StreamName::parse("c0").expect("a name");
    let described = || streams::describe_stream(&name, gateway.media_plane().hub(), gateway.source_registry(), |_| 0);
    let timed = || {
        described()
            .and_then(|stream| stream.video)
            .map_or(0, |video| video.timed_by_arrival)
    };
    let is_timed = async {
        while timed() < 100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, is_timed).await.is_ok(), "{}", timed());
    let sent = camera.counts.frames.load(Ordering::SeqCst);
    let have_arrived = async {
        while frames(&gateway, "c0") + GOP < sent * 99 / 100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let arrived = tokio::time::timeout(PATIENCE, have_arrived).await;
    assert!(arrived.is_ok(), "{} of {sent}", frames(&gateway, "c0"));
    let stream = described().expect("it is live");
    assert!(
        stream.video.as_ref().is_some_and(|video| video.frame_rate > 1.0),
        "{:?}",
        stream.video
    );
    let warnings: Vec<&str> = stream.warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(warnings, ["video_timestamps"]);
    gateway.stop().await;
}

/// A camera that ends each session after the same time, such as one whose authentication expires for keepalives
/// (ffmpeg and VLC renew it): the next session begins before the last one ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_end_regularly_are_replaced_in_advance() {
    let script = Script {
        frame: Box::new(|n, sender| {
            sender.frame(n);
            sender.closes = n == 200;
        }),
        ..Script::default()
    };
    let camera = Scripted::start(script).await;
    let gateway = start(&camera, programs()).await;
    let replaced = async {
        while camera.counts.sessions.load(Ordering::SeqCst) < 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, replaced)
        .await
        .expect("session after session");
    let source = shown(&gateway, "c0");
    assert_eq!(
        (source.restarts, source.state, source.fallback),
        (2, "live", None),
        "{source:?}"
    );
    gateway.stop().await;
}

/// A camera whose nonce is good for the beginning of a session only, and that ends sessions without valid keepalives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalives_are_authenticated_anew() {
    const FRAMES_BETWEEN_KEEPALIVES: u64 = 150;
    let is_kept_alive = Arc::new(AtomicBool::new(false));
    let (nonces, kept) = (AtomicUsize::new(0), is_kept_alive.clone());
    let script = Script {
        session: "1;timeout=2".to_owned(),
        answer: Box::new(move |request| {
            let authorization = request.header("authorization");
            let is_current = authorization.contains(&format!("nonce=\"n{}\"", nonces.load(Ordering::SeqCst)));
            let is_keepalive = matches!(request.method.as_str(), "OPTIONS" | "GET_PARAMETER" | "SET_PARAMETER");
            if authorization.is_empty() || (is_keepalive && !is_current) {
                let nonce = nonces.fetch_add(1, Ordering::SeqCst) + 1;
                return Some(unauthorized(request, &format!("n{nonce}"), "auth"));
            }
            kept.fetch_or(is_keepalive, Ordering::SeqCst);
            if is_keepalive || request.method == "PLAY" {
                nonces.fetch_add(1, Ordering::SeqCst);
            }
            None
        }),
        frame: Box::new(move |n, sender| {
            sender.frame(n);
            let is_due = (n + 1).is_multiple_of(FRAMES_BETWEEN_KEEPALIVES);
            sender.closes = is_due && !is_kept_alive.swap(false, Ordering::SeqCst);
        }),
        ..Script::default()
    };
    let camera = Scripted::start(script).await;
    let gateway = start_with(&camera, without_worker(), CREDENTIALS).await;
    let plays = async {
        while camera.counts.frames.load(Ordering::SeqCst) < 4 * FRAMES_BETWEEN_KEEPALIVES {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let played = tokio::time::timeout(PATIENCE, plays).await;
    let (source, sessions) = (shown(&gateway, "c0"), camera.counts.sessions.load(Ordering::SeqCst));
    assert!(played.is_ok() && sessions == 1, "{sessions} {source:?}");
    assert_eq!((source.fallback, source.restarts), (None, 0));
    gateway.stop().await;
}
