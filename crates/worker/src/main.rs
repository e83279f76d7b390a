//! Runs one GStreamer pipeline for the gateway, in a sandbox, or checks which pipelines this host can run_worker.
//!
//! The gateway starts it with a socket as its standard input. It reads one job, restricts itself, then runs the pipeline.
//! It exits when the gateway tells it to stop or is gone. The gateway trusts nothing here.

use std::io::Write as _;
use std::process::ExitCode;

use millstream_worker_runtime::channel::connect_to_gateway_and_lower_priority;
use millstream_worker_runtime::wire::{MessageFromWorker, MessageToWorker};
use millstream_worker_runtime::{enter_sandbox_or_report_failure, not_started_by_gateway_error};

mod address_restriction;
mod pipeline;
mod pipeline_check;
mod rtspsrc_setup;

fn main() -> ExitCode {
    match run_worker() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "millstream-worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_worker() -> std::io::Result<()> {
    let (gateway, mut commands) = connect_to_gateway_and_lower_priority(c"millstream-gst")?;
    match commands.receive() {
        Some(MessageToWorker::CheckPipelines(jobs)) => {
            gateway.send(&MessageFromWorker::CheckResults(pipeline_check::check_pipelines(&jobs)));
        }
        Some(MessageToWorker::RunPipeline(job)) => {
            if enter_sandbox_or_report_failure(&job, &gateway) {
                pipeline::run_pipeline_job(&job, &gateway, commands);
            }
        }
        _ => return Err(not_started_by_gateway_error()),
    }
    Ok(())
}
