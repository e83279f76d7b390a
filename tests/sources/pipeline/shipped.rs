//! The shipped pipelines, each with a real peer if one is available.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use millstream::pipeline::library::PipelineLibrary;
use millstream::pipeline::pipeline_check;
use millstream::pipeline::worker_process::WorkerProcess;
use millstream::pipeline::worker_slots::{WorkerOwner, WorkerSlots};
use millstream_core::hub::name::StreamName;
use millstream_core::media::Codec;
use millstream_worker_runtime::wire::{InputTrack, MessageFromWorker, TrackFormat, WireFrame};

use crate::pipeline::{Folder, PATIENCE, gateway, plays, programs, until};

struct Partner(Child);

impl Partner {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("it is installed by `scripts/setup.sh test`"))
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port of UDP or TCP that is free now.
fn free_port() -> u16 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("it is bound").port()
}

/// A film of three seconds: H.264 without B-frames and AAC.
pub(super) fn film(folder: &Folder, name: &str) -> String {
    let path = folder.0.join(name).display().to_string();
    let made = Command::new("ffmpeg")
        .args(["-loglevel", "error", "-y"])
        .args([
            "-f",
            "lavfi",
            "-i",
            "testsrc=size=320x180:rate=25",
            "-f",
            "lavfi",
            "-i",
            "sine=frequency=440",
        ])
        .args([
            "-t", "3", "-c:v", "libx264", "-bf", "0", "-g", "25", "-pix_fmt", "yuv420p", "-c:a", "aac",
        ])
        .arg(&path)
        .status();
    assert!(made.expect("ffmpeg is installed").success());
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_them_can_be_built_here() {
    let findings = pipeline_check::check_pipelines(
        &programs(),
        PipelineLibrary::with_shipped_pipelines().pipeline_check_jobs(),
    )
    .await;
    for finding in findings.expect("it tells") {
        assert_eq!(finding.failure, None, "{}", finding.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_pattern_and_slate_play_with_audio() {
    let streams = "[streams.\"pattern\"]\npipeline = \"test\"\nparams = { pattern = \"ball\" }\n\
                   [streams.\"text\"]\npipeline = \"slate\"\nparams = { text = \"Back at 8\" }\n";
    let gateway = gateway(streams).await;
    for stream in ["pattern", "text"] {
        let seen = plays(&gateway, stream).await;
        assert_eq!(
            (seen.video_codec, seen.audio_codec),
            (Some(Codec::H264), Some(Codec::Opus)),
            "{stream}"
        );
    }
    gateway.stop().await;
}

/// Whether a stream's source takes requests for key frames, once one was made.
async fn accepts_key_frame_requests(gateway: &millstream::Gateway, stream: &str) -> bool {
    let name = StreamName::parse(stream).expect("a name");
    let stream_ = gateway.media_plane().hub().find_stream(&name).expect("it plays");
    stream_
        .with_state(|state| state.flag_key_frame_request_and_get_source())
        .expect("it is asked at first");
    let asked = plays(gateway, stream).await;
    let later = |seen: Option<crate::pipeline::Seen>| seen.is_some_and(|seen| seen.video > asked.video + 30);
    until(gateway, stream, "plays on", later).await;
    stream_
        .with_state(|state| state.source())
        .is_some_and(|source| source.accepts_key_frame_requests)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encoder_takes_requests_for_key_frames_and_a_file_refuses_the_first() {
    let folder = Folder::new("requests");
    for name in ["film.mp4", "film.mkv", "film.ts"] {
        let path = film(&folder, name);
        let stream = format!("[streams.\"film\"]\npipeline = \"file\"\nparams = {{ path = \"{path}\" }}\n");
        let gateway = gateway(&stream).await;
        plays(&gateway, "film").await;
        assert!(!accepts_key_frame_requests(&gateway, "film").await, "{name}");
        assert_eq!(crate::pipeline::trouble(&gateway, "film"), "", "{name}");
        gateway.stop().await;
    }
    let gateway = gateway("[streams.\"pattern\"]\npipeline = \"test\"\n").await;
    plays(&gateway, "pattern").await;
    assert!(accepts_key_frame_requests(&gateway, "pattern").await);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_plays_over_and_over_at_its_own_speed() {
    let folder = Folder::new("film");
    for name in ["film.mp4", "film.mkv", "film.ts"] {
        let path = film(&folder, name);
        let stream = format!("[streams.\"film\"]\npipeline = \"file\"\nparams = {{ path = \"{path}\" }}\n");
        let gateway = gateway(&stream).await;
        let first = plays(&gateway, "film").await;
        let began = tokio::time::Instant::now();
        assert_eq!(
            (first.video_codec, first.audio_codec),
            (Some(Codec::H264), Some(Codec::Aac)),
            "{name}"
        );
        // Two repetitions: 150 frames with audio.
        let twice = |seen: Option<crate::pipeline::Seen>| {
            seen.is_some_and(|seen| seen.video > first.video + 160 && seen.audio > first.audio + 230)
        };
        until(&gateway, "film", "begins again", twice).await;
        // 160 frames at 25 per second, less those that are read ahead or were late: it took a tenth of a second unpaced.
        let elapsed = began.elapsed();
        assert!(
            elapsed > Duration::from_secs(3),
            "{name}: two repetitions within {elapsed:?}"
        );
        assert_eq!(crate::pipeline::trouble(&gateway, "film"), "", "{name}");
        gateway.stop().await;
    }
}

/// A sink of its own kind must not have the pipeline begin its time anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_file_whose_audio_is_dropped_keeps_its_speed() {
    let folder = Folder::new("dropped");
    let path = film(&folder, "film.mp4");
    folder.write(
        "silent.toml",
        r#"
description = "The video of a file"
loop = true
launch = """
filesrc name=source ! parsebin name=media
  media. ! video/x-h264 ! queue ! h264parse config-interval=-1 ! appsink name=video
  media. ! audio/mpeg ! queue ! fakesink
"""
[params.path]
type = "file"
required = true
description = "Path"
set = ["source.location"]
"#,
    );
    let gateway = gateway(&format!(
        "[pipelines]\nfolder = \"{}\"\n[streams.\"film\"]\npipeline = \"silent\"\nparams = {{ path = \"{path}\" }}\n",
        folder.0.display()
    ))
    .await;
    let first = plays(&gateway, "film").await;
    let began = tokio::time::Instant::now();
    // Four repetitions of 75 frames.
    let often = |seen: Option<crate::pipeline::Seen>| seen.is_some_and(|seen| seen.video > first.video + 300);
    until(&gateway, "film", "plays on", often).await;
    let elapsed = began.elapsed();
    assert!(elapsed > Duration::from_secs(6), "four repetitions within {elapsed:?}");
    assert_eq!(crate::pipeline::trouble(&gateway, "film"), "");
    gateway.stop().await;
}

/// ffmpeg that sends a file over and over, at its own speed.
fn repeat(path: &str, container: &str, uri: &str) -> Partner {
    let input = ["-loglevel", "error", "-re", "-stream_loop", "-1", "-i", path];
    Partner::start("ffmpeg", &[&input[..], &["-c", "copy", "-f", container, uri]].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn srt_is_fetched_and_received() {
    let folder = Folder::new("srt");
    let path = film(&folder, "film.ts");
    let (listening, serving) = (free_port(), free_port());
    let streams = format!(
        "[streams.\"sent\"]\npipeline = \"srt-listen\"\nparams = {{ port = {listening}, address = \"127.0.0.1\", passphrase = \"correcthorsebattery\" }}\n\
         [streams.\"fetched\"]\npipeline = \"srt\"\nparams = {{ uri = \"srt://127.0.0.1:{serving}\" }}\n"
    );
    let gateway = gateway(&streams).await;
    // The receiver may not listen yet when the sender calls: ffmpeg does not call again.
    let listens = format!(":{listening:04X} ");
    let bound = async {
        while !std::fs::read_to_string("/proc/net/udp")
            .expect("Linux")
            .contains(&listens)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, bound).await.expect("it listens");
    let _sender = repeat(
        &path,
        "mpegts",
        &format!("srt://127.0.0.1:{listening}?passphrase=correcthorsebattery"),
    );
    let _server = repeat(&path, "mpegts", &format!("srt://127.0.0.1:{serving}?mode=listener"));
    for stream in ["sent", "fetched"] {
        let seen = plays(&gateway, stream).await;
        assert_eq!(
            (seen.video_codec, seen.audio_codec),
            (Some(Codec::H264), Some(Codec::Aac)),
            "{stream}"
        );
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rtmp_is_fetched() {
    let folder = Folder::new("rtmp");
    let path = film(&folder, "film.mp4");
    let port = free_port();
    let uri = format!("rtmp://127.0.0.1:{port}/live/film");
    // ffmpeg can be a server of RTMP, but sends on a message stream that no other client takes: nginx it is.
    let server = folder.write(
        "nginx.conf",
        &format!(
            "load_module /usr/lib/nginx/modules/ngx_rtmp_module.so;\ndaemon off; master_process off;\n\
             pid {0}/pid; error_log {0}/log;\nevents {{ }}\n\
             rtmp {{ server {{ listen 127.0.0.1:{port}; application live {{ live on; }} }} }}\n",
            folder.0.display()
        ),
    );
    let _server = Partner::start("nginx", &["-c", &server.display().to_string()]);
    let listening = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, listening).await.expect("nginx listens");
    let _publisher = repeat(&path, "flv", &uri);
    let gateway = gateway(&format!(
        "[streams.\"live\"]\npipeline = \"rtmp\"\nparams = {{ uri = \"{uri}\" }}\n"
    ))
    .await;
    let seen = plays(&gateway, "live").await;
    assert_eq!(
        (seen.video_codec, seen.audio_codec),
        (Some(Codec::H264), Some(Codec::Aac))
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_is_fetched_by_the_pipeline_too() {
    let folder = Folder::new("rtsps");
    let (key, certificate) = (folder.0.join("key"), folder.0.join("certificate"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=camera",
        ])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("openssl is installed").success());
    let read = |path| std::fs::read_to_string(path).expect("it was made");
    let both = folder
        .write("both", &(read(&certificate) + &read(&key)))
        .display()
        .to_string();
    for (scheme, options, params) in [
        ("rtsp", vec!["--credentials", "viewer", "s3cret"], ""),
        (
            "rtsps",
            vec!["--credentials", "viewer", "s3cret", "--tls", &both],
            ", certificate = \"no-flags\"",
        ),
    ] {
        let mut camera = Command::new("/usr/bin/python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sources/rtsp/server.py"))
            .args(["0", "h264+opus"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut line = String::new();
        let stdout = camera.stdout.take().expect("it is piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
        let camera = Partner(camera);
        let stream = |params: &str| {
            format!(
                "[streams.\"door\"]\npipeline = \"rtsp\"\nparams = {{ uri = \"{scheme}://127.0.0.1:{}/cam\", \
                 username = \"viewer\", password = \"s3cret\"{params} }}\n",
                line.trim()
            )
        };
        if !params.is_empty() {
            // Its certificate is self-signed.
            let gateway = gateway(&stream("")).await;
            let refused = async {
                while crate::pipeline::trouble(&gateway, "door").is_empty() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(PATIENCE, refused).await.expect("it says so");
            gateway.stop().await;
        }
        let gateway = gateway(&stream(params)).await;
        let seen = plays(&gateway, "door").await;
        assert_eq!(
            (seen.video_codec, seen.audio_codec),
            (Some(Codec::H264), Some(Codec::Opus)),
            "{scheme}"
        );
        gateway.stop().await;
        drop(camera);
    }
}

/// The output of one pipeline is the input of another: Opus of the slate becomes AAC.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opus_becomes_aac() {
    let library = PipelineLibrary::with_shipped_pipelines();
    let start = |name: &str, inputs: Vec<InputTrack>| {
        let description = library.get(name).expect("it is shipped");
        let (job, _) = description
            .build_job_and_target_urls(&toml::Table::new(), inputs)
            .expect("defaults");
        let slot = WorkerSlots::default()
            .acquire(WorkerOwner::ConfiguredSource)
            .expect("a free slot");
        WorkerProcess::spawn_pipeline_worker(&programs(), slot, job, description.limits).expect("starts")
    };
    let mut slate = start("slate", Vec::new());
    let mut convert = start(
        "opus-to-aac",
        vec![InputTrack {
            media: TrackFormat::Opus,
        }],
    );
    let converting = async {
        let (mut config, mut frames) = (None, 0);
        while frames < 20 {
            tokio::select! {
                message = slate.read_message_or_kill_worker() => {
                    if let MessageFromWorker::Frame(frame) = message.expect("it runs")
                        && frame.kind == millstream_core::media::MediaKind::Audio
                    {
                        convert.send_frame(frame);
                    }
                }
                message = convert.read_message_or_kill_worker() => match message.expect("it runs") {
                    MessageFromWorker::TrackFormat(media) => config = Some(media),
                    MessageFromWorker::Frame(WireFrame { bytes, .. }) => frames += usize::from(bytes != Bytes::new()),
                    _ => {}
                },
            }
        }
        config
    };
    let config = tokio::time::timeout(PATIENCE, converting).await.expect("frames");
    assert!(matches!(config, Some(TrackFormat::Aac(_))), "{config:?}");
    let _ = tokio::time::timeout(Duration::from_secs(5), slate.stop()).await;
}
