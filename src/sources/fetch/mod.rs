//! Streams that the gateway fetches by itself: from cameras and from pipelines, always or while somebody watches.
//!
//! [`run`] keeps one source in its stream for as long as it is polled: it brings it back when it failed, and stands
//! back while a publisher has the stream. It is a shell: it reads the clock of tokio and the chance of the operating
//! system. What becomes of each source can be read in its [`Entry`].

use std::sync::Arc;
use std::time::Duration;

use rand::RngCore as _;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use self::backoff::Backoff;
use self::directory::Entry;
use self::status::State;
use super::frame_source::{FanOut, FrameSource};
use super::hls::{self, HlsError, Origin};
use super::rtsp::{self, Camera, CameraError};
use crate::hub::name::StreamName;
use crate::hub::stream::SessionId;
use crate::pipeline::process::ProcessError;

pub mod address;
pub mod backoff;
pub mod build;
pub mod directory;
pub mod pipeline;
pub mod status;
pub mod supervisor;

use self::address::AddressError;
use self::pipeline::PipelineSpec;

/// A stream and where it is fetched from.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    pub stream: StreamName,
    pub how: SourceKind,
    /// Only while somebody watches, and so long after; `None`: always.
    pub on_demand: Option<Duration>,
}

/// Where a stream comes from.
#[derive(Clone, Debug)]
pub enum SourceKind {
    Camera(Box<Camera>),
    Pipeline(Box<PipelineSpec>),
    Hls(Box<Origin>),
}

impl SourceKind {
    /// Name of the pipeline, if it is one.
    pub fn pipeline(&self) -> Option<&str> {
        match self {
            Self::Camera(_) | Self::Hls(_) => None,
            Self::Pipeline(order) => Some(&order.name),
        }
    }

    /// As in the configuration.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Camera(_) => "rtsp",
            Self::Pipeline(_) => "pipeline",
            Self::Hls(_) => "hls",
        }
    }
}

/// Why a source is away.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error(transparent)]
    Camera(#[from] CameraError),
    #[error(transparent)]
    Worker(#[from] ProcessError),
    #[error(transparent)]
    Hls(#[from] HlsError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("another source has the stream")]
    Displaced,
}

/// A source that played for so long is tried again soon.
const STEADY: Duration = Duration::from_secs(2);

/// Between looks at whether a stream has lost its other source, or its viewers.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Feeds a stream from its source for ever.
pub async fn run<P: FanOut>(entry: Arc<Entry>, fetched: SourceConfig, plane: P) {
    let mut backoff = Backoff::default();
    let mut told = None;
    loop {
        if fetched.on_demand.is_some() && !entry.is_wanted(plane.hub(), fetched.on_demand) {
            entry.set(State::Idle);
            entry.until_wanted(plane.hub(), POLL_INTERVAL).await;
        }
        if has_other_source(&plane, &fetched.stream) {
            entry.set(State::StandingBack);
            sleep(POLL_INTERVAL).await;
            continue;
        }
        entry.set(State::Starting);
        let mut lived = None;
        let result = tokio::select! {
            error = play(&entry, &fetched, &plane, &mut told, &mut lived) => Err(error),
            () = until_unused(&entry, &fetched, &plane) => Ok(()),
        };
        if lived.is_some_and(|lived: Instant| lived.elapsed() >= STEADY) {
            backoff.reset();
        }
        let Err(error) = result else {
            info!(stream = %fetched.stream, "nobody watches: source stopped");
            continue;
        };
        let wait = wait_after(&error, &mut backoff, rand::rng().next_u32());
        if !matches!(error, FetchError::Displaced) {
            let text = error.to_string();
            if told.as_ref() != Some(&text) {
                warn!(stream = %fetched.stream, source = fetched.how.label(), error = %text, "source is away");
            }
            entry.failed(&text);
            told = Some(text);
        }
        debug!(stream = %fetched.stream, ?wait, "waiting for source");
        wait_for(&fetched, wait).await;
    }
}

fn wait_after(error: &FetchError, backoff: &mut Backoff, random: u32) -> Duration {
    match error {
        FetchError::Displaced => POLL_INTERVAL,
        FetchError::Camera(CameraError::Credentials) => backoff.after_refused_credentials(random),
        FetchError::Camera(_) | FetchError::Worker(_) | FetchError::Hls(_) | FetchError::Address(_) => {
            backoff.after_failure(random)
        }
    }
}

/// Waits, but not any longer when the operator gave another password.
async fn wait_for(fetched: &SourceConfig, wait: Duration) {
    let other_password = async {
        match &fetched.how {
            SourceKind::Camera(camera) => camera.until_other_password(POLL_INTERVAL).await,
            SourceKind::Pipeline(_) | SourceKind::Hls(_) => std::future::pending().await,
        }
    };
    let _ = timeout(wait, other_password).await;
}

async fn until_unused<P: FanOut>(entry: &Entry, fetched: &SourceConfig, plane: &P) {
    if fetched.on_demand.is_none() {
        return std::future::pending().await;
    }
    while entry.is_wanted(plane.hub(), fetched.on_demand) {
        sleep(POLL_INTERVAL).await;
    }
}

fn has_other_source<P: FanOut>(plane: &P, stream: &StreamName) -> bool {
    let stream = plane.hub().find(stream);
    stream.is_some_and(|stream| stream.lock().source().is_some())
}

/// One go at a source, until it fails. `told` is the failure that the log knows of; `lived` becomes the time at which its
/// stream got frames.
async fn play<P: FanOut>(
    entry: &Entry,
    fetched: &SourceConfig,
    plane: &P,
    told: &mut Option<String>,
    lived: &mut Option<Instant>,
) -> FetchError {
    let mut live = |what: &dyn std::fmt::Debug| {
        *told = None;
        *lived = Some(Instant::now());
        entry.set(State::Live);
        info!(stream = %fetched.stream, source = fetched.how.label(), tracks = ?what, "source plays");
    };
    match &fetched.how {
        SourceKind::Camera(camera) => rtsp::play(camera, &fetched.stream, plane, &mut live).await,
        SourceKind::Hls(origin) => hls::play(origin, &fetched.stream, plane, &mut live).await,
        SourceKind::Pipeline(order) => pipeline::play(order, &fetched.stream, plane, &mut live).await,
    }
}

/// Takes the feed off its stream whenever it is dropped: also when the task is cancelled.
pub struct Attached<'a, P: FanOut> {
    pub feed: FrameSource,
    pub plane: &'a P,
}

impl<P: FanOut> Drop for Attached<'_, P> {
    fn drop(&mut self) {
        self.feed.ended(self.plane.hub());
    }
}

/// An id of a source or a session, which tells it from all others and which nobody can guess (RFC 9725 §5).
pub fn random_id() -> SessionId {
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    SessionId(id)
}
