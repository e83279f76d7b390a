//! Tests of sources that are no streams (yet), for the API.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
    permits: Arc<Semaphore>,
    last_number: AtomicU64,
    /// `None` until the first test.
    newest_bench: Mutex<Option<Arc<SourceTestEnvironment>>>,
}

/// Where sources are tested with the configuration of one time. A reload makes another one; tests that run_source_trial go on in theirs.
pub struct SourceTestEnvironment {
    context: Arc<ApiStreamContext>,
    plane: TrialSourceHub,
    /// Transcodes to JPEG for snapshots; started with the first one.
    transcoding: OnceCell<Option<AbortOnDropTranscodingTask>>,
}

impl Default for SourceTestService {
    fn default() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_SOURCE_TESTS)),
            last_number: AtomicU64::new(0),
            newest_bench: Mutex::default(),
        }
    }
}

/// Ends transcoding when its last test has ended and no other will come.
struct AbortOnDropTranscodingTask(JoinHandle<()>);

impl Drop for AbortOnDropTranscodingTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl SourceTestService {
    /// Returns a permit for one test, or `None` if there are too many.
    pub fn try_acquire_test_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// Returns a name for the stream of a test.
    pub fn next_stream_name(&self) -> Result<StreamName, StreamNameError> {
        let number = self.last_number.fetch_add(1, Ordering::Relaxed);
        StreamName::parse(&format!("source-test/{number}"))
    }

    /// Returns where a source is tested with the configuration that is in force.
    pub fn environment_for_config(&self, context: &Arc<ApiStreamContext>) -> Arc<SourceTestEnvironment> {
        let mut newest = self.newest_bench.lock().unwrap_or_else(PoisonError::into_inner);
        match &*newest {
            Some(bench) if Arc::ptr_eq(&bench.context, context) => bench.clone(),
            _ => {
                let bench = Arc::new(SourceTestEnvironment {
                    context: context.clone(),
                    plane: TrialSourceHub::default(),
                    transcoding: OnceCell::new(),
                });
                newest.insert(bench).clone()
            }
        }
    }
}

impl SourceTestEnvironment {
    /// Returns the streams of the sources that are tested.
    pub fn trial_source_hub(&self) -> &TrialSourceHub {
        &self.plane
    }

    /// Runs a source until enough is known of it, at most for `limit`. It goes on until the result is dropped.
    pub async fn run_source_trial(
        &self,
        config: SourceConfig,
        limit: Duration,
    ) -> (SourceTrial, Result<(), TrialFailure>) {
        let mut trial = SourceTrial::start(config, &self.plane);
        let known = trial.wait_for_enough_media(limit).await;
        (trial, known)
    }

    /// Starts what makes snapshots of the tested streams.
    pub async fn start_snapshot_transcoding(&self) {
        let start = || async {
            let library = self.context.pipeline_library.clone();
            let programs = self.context.worker_programs.clone();
            let owners: transcode::WorkerOwnerLookup = Arc::new(|_| WorkerOwner::TokenHolder);
            let task = transcode::start_transcoding_service(library, programs, self.plane.clone(), owners).await;
            task.map(AbortOnDropTranscodingTask)
        };
        self.transcoding.get_or_init(start).await;
    }
}
