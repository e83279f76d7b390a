//! Why a worker stopped, in words that say what to do.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;

use super::packages;
use super::worker_executables::PIPELINE_WORKER_EXECUTABLE_NAME;
use super::worker_slots::WorkerSlotLimitReached;
use millstream_worker_runtime::wire::{WireError, WorkerFailure};

/// Maximum time between two messages; heartbeats arrive every 200 ms.
pub(super) const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(1_000);

/// Why a worker stopped or must be stopped.
#[derive(Debug, Error)]
pub enum WorkerProcessError {
    #[error("the pipeline or demuxer worker cannot be started: {0}")]
    CannotStart(io::Error),
    #[error("no further worker can be started: {0}")]
    NoSlot(#[from] WorkerSlotLimitReached),
    #[error(
        "the program {PIPELINE_WORKER_EXECUTABLE_NAME}, which runs pipelines, is not installed: put it next to the program of the gateway, \
         from the same release"
    )]
    WorkerNotInstalled,
    #[error(
        "GStreamer is not installed ({library} is missing); install the missing Debian packages with: apt-get install {}",
        packages::GSTREAMER_LIBRARY_PACKAGES
    )]
    GStreamerNotInstalled { library: String },
    #[error("the pipeline or demuxer worker crashed ({0})")]
    Crashed(ExitStatus),
    #[error("the pipeline or demuxer worker hung: it sent no heartbeat for {} ms", HEARTBEAT_TIMEOUT.as_millis())]
    Hung,
    #[error("the pipeline or demuxer worker used {used} MiB of memory, more than its limit of {limit} MiB")]
    MemoryLimitExceeded { used: u64, limit: u32 },
    #[error("the pipeline or demuxer worker delivered no frame within {0:?} of its start")]
    NoFirstFrame(Duration),
    #[error("the pipeline or demuxer worker delivered no frame for {0:?}")]
    Stalled(Duration),
    #[error("the pipeline or demuxer worker sent an invalid message: {0}")]
    InvalidMessage(#[from] WireError),
    #[error("{}", describe_failure_with_advice(.0))]
    WorkerFailed(WorkerFailure),
    #[error("the pipeline or HLS source reached the end of its media")]
    SourceEnded,
}

/// Returns a failure as text, with advice on how to fix it.
pub fn describe_failure_with_advice(failure: &WorkerFailure) -> String {
    match failure {
        WorkerFailure::Missing(elements) => format!("{failure}; {}", packages::install_advice(elements)),
        failure => failure.to_string(),
    }
}

pub(super) fn start_error(error: io::Error) -> WorkerProcessError {
    match error.kind() {
        io::ErrorKind::NotFound => WorkerProcessError::WorkerNotInstalled,
        _ => WorkerProcessError::CannotStart(error),
    }
}
