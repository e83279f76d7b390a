//! Checks in a worker process what this host lacks for pipelines.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::worker_command::{pipeline_worker_command, set_socket_and_environment};
use super::worker_error::{WorkerProcessError, start_error};
use super::worker_executables::WorkerExecutablesAndProcessSlots;
use super::worker_stderr::log_stderr;
use millstream_worker_runtime::wire::{MessageFromWorker, MessageToWorker, PipelineCheckResult, PipelineJob};

/// Checking all pipelines loads all their plugins; the first run also scans every installed plugin.
const PIPELINE_CHECK_TIMEOUT: Duration = Duration::from_secs(120);

/// Checks in a worker process what this host lacks for each job.
///
/// # Errors
///
/// A [`WorkerProcessError`] if the check itself fails.
pub async fn check_pipelines(
    programs: &WorkerExecutablesAndProcessSlots,
    jobs: Vec<(String, PipelineJob)>,
) -> Result<Vec<PipelineCheckResult>, WorkerProcessError> {
    let (mut command, mut ours) = set_socket_and_environment(pipeline_worker_command(&programs.pipeline_worker))
        .map_err(WorkerProcessError::CannotStart)?;
    let mut child = command.spawn().map_err(start_error)?;
    drop(command);
    let missing_library = Arc::new(OnceLock::new());
    let logging = child
        .stderr
        .take()
        .map(|stderr| tokio::spawn(log_stderr(stderr, child.id(), missing_library.clone())));
    let checking = async {
        let mut bytes = BytesMut::new();
        MessageToWorker::CheckPipelines(jobs).write(&mut bytes);
        // A worker that could not be loaded does not read it; the end of its output says so.
        let _ = ours.write_all(&bytes).await;
        let mut buffer = BytesMut::new();
        loop {
            while let Some(message) = MessageFromWorker::take_message_from_buffer(&mut buffer)? {
                if let MessageFromWorker::CheckResults(findings) = message {
                    return Ok(findings);
                }
            }
            if ours.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                let status = child.wait().await.map_err(WorkerProcessError::CannotStart)?;
                if let Some(logging) = logging {
                    let _ = logging.await;
                }
                return Err(match missing_library.get() {
                    Some(library) => WorkerProcessError::GStreamerNotInstalled {
                        library: library.clone(),
                    },
                    None => WorkerProcessError::Crashed(status),
                });
            }
        }
    };
    tokio::time::timeout(PIPELINE_CHECK_TIMEOUT, checking)
        .await
        .unwrap_or(Err(WorkerProcessError::Hung))
}
