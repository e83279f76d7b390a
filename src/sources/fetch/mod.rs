//! Streams that the gateway fetches from cameras, HLS origins and pipelines, always or on demand.
//!
//! [`run_source`] feeds a stream from its source: it retries a failed source, and pauses it while a publisher has the stream.
//! It is a shell that reads tokio's clock and the system's random source. The status of each source is in its
//! [`RegisteredSource`].

use std::sync::Arc;
use std::time::Duration;

use rand::RngCore as _;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use self::backoff::Backoff;
use self::registry::RegisteredSource;
use self::status::SourceState;
use super::hls::{self, HlsOrigin};
use super::rtsp::camera::{Camera, CameraError};
use super::rtsp::{self};
use crate::pipeline::worker_slots::WorkerSlotReservation;
use millstream_core::hub::changes::ChangeTopic;
use millstream_core::hub::name::StreamKey;
use millstream_core::sources::frame_source::FrameSink;

pub mod address;
pub mod attached_source;
pub mod backoff;
pub mod build;
pub mod error;
pub mod pipeline;
pub mod registry;
pub mod status;
pub mod supervisor;
pub mod trial;
pub mod unbuildable_source;

use self::error::FetchError;
use self::pipeline::PipelineSpec;

/// A stream and its source.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// The stream that it writes to.
    pub stream: StreamKey,
    pub kind: SourceKind,
    /// How long the source keeps running after the last viewer left; `None` if it always runs.
    pub on_demand_linger: Option<Duration>,
}

/// The source of a stream.
#[derive(Clone, Debug)]
pub enum SourceKind {
    Camera(Box<Camera>),
    Pipeline(Box<PipelineSpec>),
    Hls(Box<HlsOrigin>),
}

impl SourceKind {
    /// Returns the name of the pipeline, if it is one.
    pub fn pipeline_name(&self) -> Option<&str> {
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
const MIN_LIVE_TIME_TO_RESET_BACKOFF: Duration = Duration::from_secs(2);

/// Interval for checking whether a stream has viewers.
const DEMAND_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Feeds a stream from its source until the task is cancelled.
pub async fn run_source<P: FrameSink>(entry: Arc<RegisteredSource>, config: SourceConfig, plane: P) {
    let mut backoff = Backoff::default();
    let mut logged = None;
    let reservation = WorkerSlotReservation::default();
    loop {
        if config.on_demand_linger.is_some() && !entry.renew_and_report_demand(plane.hub(), config.on_demand_linger) {
            entry.set_state(SourceState::Idle);
            reservation.release();
            entry.wait_until_watched_or_requested(plane.hub()).await;
        }
        if stream_has_source(&plane, &config.stream) {
            entry.set_state(SourceState::PausedForPublisher);
            reservation.release();
            wait_until_no_other_source(&plane, &config.stream).await;
            continue;
        }
        entry.set_state(SourceState::Starting);
        let mut live_since = None;
        let mut live = |tracks: &dyn std::fmt::Debug| {
            logged = None;
            live_since = Some(Instant::now());
            entry.set_state(SourceState::Live);
            info!(stream = %config.stream, source = config.kind.label(), ?tracks, "source of the stream connected");
        };
        let result = tokio::select! {
            error = run_source_once(&entry, &config, &plane, &reservation, &mut live) => Err(error),
            () = wait_until_not_needed(&entry, &config, &plane) => Ok(()),
        };
        if live_since.is_some_and(|since: Instant| since.elapsed() >= MIN_LIVE_TIME_TO_RESET_BACKOFF) {
            backoff.reset();
        }
        let Err(error) = result else {
            info!(stream = %config.stream, "on-demand source stopped: its stream has no viewers");
            continue;
        };
        let wait = match &error {
            // It would start one worker after the other.
            FetchError::Reopened if live_since.is_none() => backoff.next_delay_after_failure(rand::rng().next_u32()),
            error => retry_delay(error, &mut backoff, rand::rng().next_u32()),
        };
        if !matches!(
            error,
            FetchError::StreamOccupied | FetchError::ReaderSwitched | FetchError::Reopened
        ) {
            let text = error.to_string();
            if logged.as_ref() != Some(&text) {
                let source = config.kind.label();
                warn!(stream = %config.stream, source, error = %text, "source of the stream unavailable; the gateway retries it");
            }
            entry.mark_failed(&text);
            logged = Some(text);
        }
        debug!(stream = %config.stream, ?wait, "source of the stream failed; the gateway waits before it retries");
        wait_for_retry_or_password_change(&config, wait).await;
    }
}

fn retry_delay(error: &FetchError, backoff: &mut Backoff, random: u32) -> Duration {
    match error {
        FetchError::StreamOccupied => DEMAND_POLL_INTERVAL,
        FetchError::ReaderSwitched | FetchError::Reopened => Duration::ZERO,
        FetchError::Camera(CameraError::CredentialsRejected) => backoff.next_delay_after_credential_rejection(random),
        FetchError::Camera(_) | FetchError::Worker(_) | FetchError::Hls(_) | FetchError::Address(_) => {
            backoff.next_delay_after_failure(random)
        }
    }
}

/// Waits, but no longer once the password file has changed.
async fn wait_for_retry_or_password_change(config: &SourceConfig, wait: Duration) {
    let password_change = async {
        match &config.kind {
            SourceKind::Camera(camera) => camera.wait_until_password_file_changes(DEMAND_POLL_INTERVAL).await,
            SourceKind::Pipeline(_) | SourceKind::Hls(_) => std::future::pending().await,
        }
    };
    let _ = timeout(wait, password_change).await;
}

async fn wait_until_not_needed<P: FrameSink>(entry: &RegisteredSource, config: &SourceConfig, plane: &P) {
    if config.on_demand_linger.is_none() {
        return std::future::pending().await;
    }
    while entry.renew_and_report_demand(plane.hub(), config.on_demand_linger) {
        sleep(DEMAND_POLL_INTERVAL).await;
    }
}

async fn wait_until_no_other_source<P: FrameSink>(plane: &P, stream: &StreamKey) {
    let topic = ChangeTopic::Stream(stream.name.clone());
    let mut changes = plane.hub().change_notifier().listen([topic]);
    while stream_has_source(plane, stream) {
        changes.changed().await;
    }
}

fn stream_has_source<P: FrameSink>(plane: &P, stream: &StreamKey) -> bool {
    let stream = plane.hub().find_stream(stream);
    stream.is_some_and(|stream| stream.with_state(|state| state.source().is_some()))
}

/// Runs a source once until it fails. `live` is called when the stream receives frames.
async fn run_source_once<P: FrameSink>(
    entry: &RegisteredSource,
    config: &SourceConfig,
    plane: &P,
    reservation: &WorkerSlotReservation,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    match &config.kind {
        SourceKind::Camera(camera) => rtsp::run_camera_source(camera, entry, plane, reservation, live).await,
        SourceKind::Hls(origin) => hls::run_hls_source(origin, entry, plane, reservation, live).await,
        SourceKind::Pipeline(spec) => {
            pipeline::run_pipeline_source(spec, (&config.stream, plane), reservation, live).await
        }
    }
}
