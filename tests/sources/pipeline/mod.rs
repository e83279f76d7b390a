//! Pipelines in worker processes, with the real worker binary, the installed GStreamer, and a whole gateway.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream::Gateway;
use millstream::config::Config;
use millstream::gateway::sources_and_credentials::SourcesAndCredentials;
use millstream::pipeline::worker_executables::{PIPELINE_WORKER_EXECUTABLE_NAME, WorkerExecutablesAndProcessSlots};
use millstream::pipeline::worker_slots::WorkerSlots;
use millstream_core::hub;
use millstream_core::hub::name::StreamName;
use millstream_core::media::{Codec, CodecFormat};

mod cycles;
mod escapes;
mod failover_group;
mod faults;
mod gaps;
mod hostile;
mod init_sections;
mod many_players;
mod odd_origins;
mod origin_servers;
mod origins;
mod reloads;
mod renditions;
mod sandbox;
mod shipped;
mod source_tests;
mod transcoding;
mod without_gstreamer;
mod worker_limit;

/// Far beyond what anything here takes, for machines that are busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The worker programs, as cargo built them in one folder.
pub(crate) fn programs() -> WorkerExecutablesAndProcessSlots {
    let gateway = PathBuf::from(env!("CARGO_BIN_EXE_millstream"));
    let programs = WorkerExecutablesAndProcessSlots {
        pipeline_worker: gateway.with_file_name(PIPELINE_WORKER_EXECUTABLE_NAME),
        demuxer: gateway,
        slots: WorkerSlots::default(),
    };
    assert!(
        programs.pipeline_worker.exists(),
        "{} is missing: build it with `cargo build --workspace`",
        programs.pipeline_worker.display()
    );
    programs
}

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    /// Tests of one process may give the same name.
    fn new(name: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("millstream-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs ignored tests, each in a process of its own, and shows what they measured.
fn alone(tests: &[&str]) {
    for test in tests {
        let output = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args([test, "--exact", "--ignored", "--nocapture"])
            .output()
            .expect("starts");
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text
            .lines()
            .filter(|line| !line.starts_with("test ") && !line.is_empty())
        {
            println!("{line}");
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        for skip in errors.lines().filter_map(|line| line.strip_prefix("SKIPPED ")) {
            let (test, why) = skip.split_once(": ").unwrap_or((skip, ""));
            millstream_test_support::skipped(test, why);
        }
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{test}: {text}{errors}"
        );
    }
}

/// A configuration of which everything can be made.
fn config(text: &str) -> Result<Config, String> {
    let base = "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n";
    let parsed = Config::parse(&format!("{base}{text}"), "test.toml".as_ref(), []);
    let config = parsed.map_err(|error| error.to_string())?;
    SourcesAndCredentials::build(&config, &programs()).map_err(|error| error.to_string())?;
    Ok(config)
}

/// Starts a gateway that uses the real worker programs.
async fn gateway(text: &str) -> Gateway {
    let config = config(text).expect("valid");
    let started = Gateway::start_with_worker_programs(config, programs()).await;
    started.expect("free ports")
}

/// What the tracks of a stream hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    video: u64,
    audio: u64,
    video_codec: Option<Codec>,
    audio_codec: Option<Codec>,
}

fn poll(hub: &hub::Hub, stream: &str) -> Option<Seen> {
    let stream = hub.find_stream(StreamName::parse(stream).expect("a name"))?;
    stream.with_state(|state| {
        state.source()?;
        Some(Seen {
            video: state.video.ring().end_seq(),
            audio: state.audio.ring().end_seq(),
            video_codec: state.video.format().map(CodecFormat::codec),
            audio_codec: state.audio.format().map(CodecFormat::codec),
        })
    })
}

fn trouble(gateway: &Gateway, stream: &str) -> String {
    let entry = gateway
        .source_registry()
        .get(StreamName::parse(stream).expect("a name"));
    entry.and_then(|entry| entry.status().last_error).unwrap_or_default()
}

async fn until(gateway: &Gateway, stream: &str, what: &str, wanted: impl Fn(Option<Seen>) -> bool) -> Option<Seen> {
    let waiting = async {
        loop {
            let seen = poll(gateway.media_plane().hub(), stream);
            if wanted(seen) {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| {
        let seen = poll(gateway.media_plane().hub(), stream);
        panic!("{stream} {what}: {seen:?}, {}", trouble(gateway, stream))
    })
}

async fn plays(gateway: &Gateway, stream: &str) -> Seen {
    let begins = until(gateway, stream, "begins", |seen| seen.is_some())
        .await
        .unwrap_or_default();
    let on = |seen: Option<Seen>| seen.is_some_and(|seen| seen.video > begins.video + 10);
    until(gateway, stream, "plays", on).await.unwrap_or_default()
}

/// Processes that this one started and that are not gone.
fn workers() -> BTreeSet<u32> {
    let own = std::process::id().to_string();
    let ids = std::fs::read_dir("/proc").expect("Linux").filter_map(|entry| {
        let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
        };
        let is_child = field("PPid:") == Some(own.clone());
        let is_worker = std::fs::read(format!("/proc/{id}/cmdline"))
            .is_ok_and(|line| line.starts_with(b"millstream-worker\0") || line.ends_with(b"\0demuxer\0"));
        let is_dead = field("State:").is_some_and(|state| state.starts_with('Z'));
        (is_child && is_worker && !is_dead).then_some(id)
    });
    ids.collect()
}

fn signal(id: u32, name: &str) {
    let sent = std::process::Command::new("kill")
        .args(["-s", name, &id.to_string()])
        .status();
    assert!(sent.expect("kill starts").success());
}
