//! Checks what this host lacks for a pipeline. Loading plugins runs native code, so this happens in a disposable
//! process.

use gstreamer as gst;

use crate::pipeline::build_pipeline;
use millstream_worker_runtime::wire::{PipelineCheckResult, PipelineJob, WorkerFailure};

/// Tries to build each pipeline. Nothing is opened or started.
pub(crate) fn check_pipelines(jobs: &[(String, PipelineJob)]) -> Vec<PipelineCheckResult> {
    if let Err(error) = gst::init() {
        let failure = WorkerFailure::Stream(error.to_string());
        return jobs
            .iter()
            .map(|(name, _)| PipelineCheckResult {
                name: name.clone(),
                failure: Some(failure.clone()),
            })
            .collect();
    }
    jobs.iter()
        .map(|(name, job)| PipelineCheckResult {
            name: name.clone(),
            failure: build_pipeline(job).err(),
        })
        .collect()
}
