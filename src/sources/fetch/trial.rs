//! Tries a source for a few seconds, by the same clients as for a stream. It feeds a stream in a hub of its own, which no
//! client can watch.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::error::FetchError;
use super::registry::{RegisteredSource, SourceRegistry};
use super::status::SourceState;
use super::{SourceConfig, run_source_once};
use crate::pipeline::worker_slots::WorkerSlotReservation;
use millstream_core::hub::Hub;
use millstream_core::hub::name::StreamKey;
use millstream_core::hub::packet_batch::PacketBatchToDeliver;
use millstream_core::hub::stream::SourceRef;
use millstream_core::media::MediaKind;
use millstream_core::sources::frame_source::{FrameSink, FrameSource};

/// The streams of sources that are tried. Clones share them.
#[derive(Clone, Default)]
pub struct TrialSourceHub(Arc<Hub>);

impl FrameSink for TrialSourceHub {
    fn hub(&self) -> &Hub {
        &self.0
    }

    fn publish_frames_unless_displaced(&self, feed: &mut FrameSource) -> bool {
        let published = feed.publish_to_hub(&self.0);
        // There are no shards: only transcodes read the stream.
        published.batches.iter().for_each(PacketBatchToDeliver::deliver_to_taps);
        !published.displaced
    }

    fn request_key_frame_from_source(&self, _source: SourceRef) {}
}

/// A source that is being tried; it ends when this is dropped.
pub struct SourceTrial {
    /// Holds the status of this source only.
    pub registry: SourceRegistry,
    plane: TrialSourceHub,
    stream: StreamKey,
    task: JoinHandle<()>,
    failure: oneshot::Receiver<FetchError>,
}

/// Why nothing is known of a source.
#[derive(Debug)]
pub enum TrialFailure {
    Source(FetchError),
    /// No media came in time.
    Timeout,
}

/// How long a source has to deliver media until its rates are measured.
const RATE_MEASUREMENT_DURATION: Duration = Duration::from_secs(2);

/// How often the trial looks at its stream.
const TRIAL_POLL_INTERVAL: Duration = Duration::from_millis(50);

impl SourceTrial {
    /// Starts a source.
    pub fn start(config: SourceConfig, plane: &TrialSourceHub) -> Self {
        let changes = plane.hub().change_notifier().clone();
        let entry = RegisteredSource::new(config.stream.clone(), config.kind.label(), false, changes);
        let registry = SourceRegistry::default();
        registry.insert(entry.clone());
        let stream = config.stream.clone();
        let (failed, failure) = oneshot::channel();
        let fed = plane.clone();
        let task = tokio::spawn(async move {
            let _ = failed.send(run_trial_source_until_failure(&entry, &config, &fed).await);
        });
        Self {
            registry,
            plane: plane.clone(),
            stream,
            task,
            failure,
        }
    }

    /// Waits until enough is known of the source: it has delivered media for a while, and two key frames if it has video.
    /// At the end of `limit` less is enough.
    ///
    /// # Errors
    ///
    /// A [`TrialFailure`] if the source delivers no media.
    pub async fn wait_for_enough_media(&mut self, limit: Duration) -> Result<(), TrialFailure> {
        let known = wait_for_enough_media(&self.plane, &self.stream);
        let waiting = async {
            tokio::select! {
                () = known => Ok(()),
                failure = &mut self.failure => Err(failure.map_or(TrialFailure::Timeout, TrialFailure::Source)),
            }
        };
        match timeout(limit, waiting).await {
            Ok(known) => known,
            Err(_) if is_live(&self.plane, &self.stream) => Ok(()),
            Err(_) => Err(TrialFailure::Timeout),
        }
    }
}

impl Drop for SourceTrial {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Plays a source as [`super::run_source`] does, until it fails for the first time.
async fn run_trial_source_until_failure(
    entry: &RegisteredSource,
    config: &SourceConfig,
    plane: &TrialSourceHub,
) -> FetchError {
    let reservation = WorkerSlotReservation::default();
    entry.set_state(SourceState::Starting);
    let mut live = |_: &dyn std::fmt::Debug| entry.set_state(SourceState::Live);
    loop {
        match run_source_once(entry, config, plane, &reservation, &mut live).await {
            FetchError::ReaderSwitched | FetchError::Reopened => {}
            error => return error,
        }
    }
}

async fn wait_for_enough_media(plane: &TrialSourceHub, stream: &StreamKey) {
    let mut live_since = None;
    loop {
        if is_live(plane, stream) {
            let since: Instant = *live_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= RATE_MEASUREMENT_DURATION && has_known_key_frame_interval(plane, stream) {
                return;
            }
        }
        sleep(TRIAL_POLL_INTERVAL).await;
    }
}

fn is_live(plane: &TrialSourceHub, stream: &StreamKey) -> bool {
    let stream = plane.hub().find_stream(stream);
    stream.is_some_and(|stream| stream.with_state(|state| state.source().is_some()))
}

/// Whether the interval of key frames is known, or there are none.
fn has_known_key_frame_interval(plane: &TrialSourceHub, stream: &StreamKey) -> bool {
    let stream = plane.hub().find_stream(stream);
    stream.is_some_and(|stream| {
        stream
            .with_state(|state| state.format(MediaKind::Video).is_none() || state.video.key_frame_interval().is_some())
    })
}
