//! What the worker processes of Millstream have in common, and the gateway needs to talk to them.
//!
//! * [`addresses`]: which addresses no source of media has.
//! * [`wire`]: the protocol between gateway and worker: jobs, whole frames, heartbeats.
//! * [`channel`]: the worker's end of the socket.
//! * [`sandbox`]: the restrictions that a worker puts on itself before it touches media.
//!
//! Two programs use it: `millstream-worker`, which runs GStreamer, and the gateway itself, whose hidden command `demuxer`
//! parses HLS segments.
pub mod addresses;
pub mod channel;
pub mod sandbox;
pub mod wire;

use std::io;

use channel::GatewayMessageSender;
use wire::{MessageFromWorker, PipelineJob, WorkerFailure};

/// Enters the sandbox of a job; reports a failure to the gateway and returns `false`.
pub fn enter_sandbox_or_report_failure(job: &PipelineJob, gateway: &GatewayMessageSender) -> bool {
    match sandbox::sandbox_this_process(job) {
        Ok(_) => true,
        Err(error) => {
            let failure = WorkerFailure::Stream(format!("the worker process cannot enter its sandbox: {error}"));
            gateway.send(&MessageFromWorker::Failed(failure));
            false
        }
    }
}

/// The error of a worker that was not started by a gateway.
pub fn not_started_by_gateway_error() -> io::Error {
    io::Error::other("this program is a worker process of Millstream: only the gateway can start it")
}
