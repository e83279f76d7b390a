//! Streams that the gateway fetches from cameras, HLS origins and pipelines, always or on demand.
//!
//! [`run`] feeds a stream from its source: it retries a failed source, and pauses it while a publisher has the stream.
//! It is a shell that reads tokio's clock and the system's random source. The status of each source is in its
//! [`Entry`].

use std::sync::Arc;
use std::time::Duration;

use rand::RngCore as _;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use self::backoff::Backoff;
use self::directory::Entry;
use self::status::State;
use super::hls::{self, Origin};
use super::rtsp::camera::{Camera, CameraError};
use super::rtsp::{self};
use millstream_core::hub::changes::Topic;
use millstream_core::hub::name::StreamName;
use millstream_core::sources::frame_source::FanOut;

pub mod address;
pub mod attached;
pub mod backoff;
pub mod build;
pub mod directory;
pub mod error;
pub mod pipeline;
pub mod status;
pub mod supervisor;

use self::error::FetchError;
use self::pipeline::PipelineSpec;

/// A stream and its source.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    pub stream: StreamName,
    pub kind: SourceKind,
    /// How long the source keeps running after the last viewer left; `None` if it always runs.
    pub on_demand: Option<Duration>,
}

/// The source of a stream.
#[derive(Clone, Debug)]
pub enum SourceKind {
    Camera(Box<Camera>),
    Pipeline(Box<PipelineSpec>),
    Hls(Box<Origin>),
}

impl SourceKind {
    /// Returns the name of the pipeline, if it is one.
    pub fn pipeline(&self) -> Option<&str> {
        match self {
            Self::Camera(_) | Self::Hls(_) => None,
            Self::Pipeline(spec) => Some(&spec.name),
        }
    }

    /// Returns the kind as in the configuration.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Camera(_) => "rtsp",
            Self::Pipeline(_) => "pipeline",
            Self::Hls(_) => "hls",
        }
    }
}

/// A source that was live for this long resets its backoff.
const STABLE_AFTER: Duration = Duration::from_secs(2);

/// Interval for checking whether a stream has viewers.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Feeds a stream from its source until the task is cancelled.
pub async fn run<P: FanOut>(entry: Arc<Entry>, fetched: SourceConfig, plane: P) {
    let mut backoff = Backoff::default();
    let mut logged = None;
    loop {
        if fetched.on_demand.is_some() && !entry.is_needed(plane.hub(), fetched.on_demand) {
            entry.set(State::Idle);
            entry.until_needed(plane.hub()).await;
        }
        if has_other_source(&plane, &fetched.stream) {
            entry.set(State::StandingBack);
            until_without_source(&plane, &fetched.stream).await;
            continue;
        }
        entry.set(State::Starting);
        let mut live_since = None;
        let result = tokio::select! {
            error = play(&entry, &fetched, &plane, &mut logged, &mut live_since) => Err(error),
            () = until_unused(&entry, &fetched, &plane) => Ok(()),
        };
        if live_since.is_some_and(|since: Instant| since.elapsed() >= STABLE_AFTER) {
            backoff.reset();
        }
        let Err(error) = result else {
            info!(stream = %fetched.stream, "source stopped: no viewers");
            continue;
        };
        let wait = wait_after(&error, &mut backoff, rand::rng().next_u32());
        if !matches!(error, FetchError::Displaced | FetchError::Rerouted) {
            let text = error.to_string();
            if logged.as_ref() != Some(&text) {
                let source = fetched.kind.label();
                warn!(stream = %fetched.stream, source, error = %text, "source unavailable, retrying");
            }
            entry.failed(&text);
            logged = Some(text);
        }
        debug!(stream = %fetched.stream, ?wait, "waiting before retry of source");
        wait_for(&fetched, wait).await;
    }
}

fn wait_after(error: &FetchError, backoff: &mut Backoff, random: u32) -> Duration {
    match error {
        FetchError::Displaced => POLL_INTERVAL,
        FetchError::Rerouted => Duration::ZERO,
        FetchError::Camera(CameraError::Credentials) => backoff.after_refused_credentials(random),
        FetchError::Camera(_) | FetchError::Worker(_) | FetchError::Hls(_) | FetchError::Address(_) => {
            backoff.after_failure(random)
        }
    }
}

/// Waits, but no longer once the password file has changed.
async fn wait_for(fetched: &SourceConfig, wait: Duration) {
    let password_change = async {
        match &fetched.kind {
            SourceKind::Camera(camera) => camera.until_password_changes(POLL_INTERVAL).await,
            SourceKind::Pipeline(_) | SourceKind::Hls(_) => std::future::pending().await,
        }
    };
    let _ = timeout(wait, password_change).await;
}

async fn until_unused<P: FanOut>(entry: &Entry, fetched: &SourceConfig, plane: &P) {
    if fetched.on_demand.is_none() {
        return std::future::pending().await;
    }
    while entry.is_needed(plane.hub(), fetched.on_demand) {
        sleep(POLL_INTERVAL).await;
    }
}

async fn until_without_source<P: FanOut>(plane: &P, stream: &StreamName) {
    let mut changes = plane.hub().changes().listen([Topic::Stream(stream.clone())]);
    while has_other_source(plane, stream) {
        changes.changed().await;
    }
}

fn has_other_source<P: FanOut>(plane: &P, stream: &StreamName) -> bool {
    let stream = plane.hub().find(stream);
    stream.is_some_and(|stream| stream.with(|state| state.source().is_some()))
}

/// Runs a source once until it fails. `logged` is the last failure that was logged; `live_since` is set when the stream
/// receives frames.
async fn play<P: FanOut>(
    entry: &Entry,
    fetched: &SourceConfig,
    plane: &P,
    logged: &mut Option<String>,
    live_since: &mut Option<Instant>,
) -> FetchError {
    let mut live = |what: &dyn std::fmt::Debug| {
        *logged = None;
        *live_since = Some(Instant::now());
        entry.set(State::Live);
        info!(stream = %fetched.stream, source = fetched.kind.label(), tracks = ?what, "source connected");
    };
    match &fetched.kind {
        SourceKind::Camera(camera) => rtsp::play(camera, entry, plane, &mut live).await,
        SourceKind::Hls(origin) => hls::play(origin, &fetched.stream, plane, &mut live).await,
        SourceKind::Pipeline(spec) => pipeline::play(spec, &fetched.stream, plane, &mut live).await,
    }
}
