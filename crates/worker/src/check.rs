//! Checks what this host lacks for a pipeline. Loading plugins runs native code, so this happens in a disposable
//! process.

use gstreamer as gst;

use crate::pipeline::build;
use millstream_worker_runtime::wire::{Failure, Finding, Job};

/// Tries to build each pipeline. Nothing is opened or started.
pub(crate) fn check(jobs: &[(String, Job)]) -> Vec<Finding> {
    if let Err(error) = gst::init() {
        let failure = Failure::Stream(error.to_string());
        return jobs
            .iter()
            .map(|(name, _)| Finding {
                name: name.clone(),
                failure: Some(failure.clone()),
            })
            .collect();
    }
    jobs.iter()
        .map(|(name, job)| Finding {
            name: name.clone(),
            failure: build(job).err(),
        })
        .collect()
}
