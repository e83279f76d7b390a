//! Tests of sources that are no streams (yet), for the API.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::api_streams::ApiStreamContext;
use crate::pipeline::worker_slots::WorkerOwner;
use crate::sources::fetch::SourceConfig;
use crate::sources::fetch::trial::{SourceTrial, TrialFailure, TrialSourceHub};
use crate::transcode;
use millstream_core::hub::name::{StreamName, StreamNameError};

/// Maximum number of sources that are tested at the same time. Each may need a worker process.
const MAX_CONCURRENT_SOURCE_TESTS: usize = 4;

/// The tests of a gateway.
pub struct SourceTestService {
    plane: TrialSourceHub,
    permits: Arc<Semaphore>,
    last_number: AtomicU64,
    /// Transcodes to JPEG for snapshots; started with the first one.
    transcoding: OnceCell<Option<TranscodingTask>>,
}

impl Default for SourceTestService {
    fn default() -> Self {
        Self {
            plane: TrialSourceHub::default(),
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_SOURCE_TESTS)),
            last_number: AtomicU64::new(0),
            transcoding: OnceCell::new(),
        }
    }
}

/// Ends transcoding when the gateway is gone.
struct TranscodingTask(JoinHandle<()>);

impl Drop for TranscodingTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl SourceTestService {
    /// Returns the streams of the sources that are tested.
    pub fn plane(&self) -> &TrialSourceHub {
        &self.plane
    }

    /// Returns a permit for one test, or `None` if there are too many.
    pub fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// Returns a name for the stream of a test.
    pub fn next_stream_name(&self) -> Result<StreamName, StreamNameError> {
        let number = self.last_number.fetch_add(1, Ordering::Relaxed);
        StreamName::parse(&format!("source-test/{number}"))
    }

    /// Runs a source until enough is known of it, at most for `limit`. It goes on until the result is dropped.
    pub async fn run(&self, config: SourceConfig, limit: Duration) -> (SourceTrial, Result<(), TrialFailure>) {
        let mut trial = SourceTrial::start(config, &self.plane);
        let known = trial.wait_for_enough_media(limit).await;
        (trial, known)
    }

    /// Starts what makes snapshots of the tested streams.
    pub async fn start_snapshot_transcoding(&self, context: &ApiStreamContext) {
        let start = || async {
            let library = context.pipeline_library.clone();
            let programs = context.worker_programs.clone();
            let owners: transcode::WorkerOwnerLookup = Arc::new(|_| WorkerOwner::TokenHolder);
            let task = transcode::start_transcoding_service(library, programs, self.plane.clone(), owners).await;
            task.map(TranscodingTask)
        };
        self.transcoding.get_or_init(start).await;
    }
}
