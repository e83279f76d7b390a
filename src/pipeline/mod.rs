//! Worker processes: a fault in a native parser or codec costs one worker a restart and nothing else.
//!
//! ```text
//! pipelines/*.toml -> Library -> Description + values -> Job --socket pair--> millstream-worker (GStreamer)
//!                                HLS segments --------------socket pair--> millstream demuxer
//!                                                        Process <--frames--  worker
//! ```
//!
//! * [`description`]: a file of `pipelines/`: a launch line with named sinks and sources, typed parameters, limits.
//!   Values are set as element properties after the line was parsed; they are never inserted into its text.
//! * [`host_access`]: which files, devices and ports streams of the API may use.
//! * [`worker_process`]: the gateway's side of a worker: start, supervision, stop. [`worker_error`]: why it stopped.
//! * [`expected_silence`]: pauses in the input of a worker that are no stall.
//! * [`pipeline_check`]: what this host lacks for pipelines.
//! * [`worker_executables`]: where the programs of workers are.
//! * [`worker_slots`]: how many workers may run, and for whom.
//! * [`demuxer`]: the worker that demuxes HLS segments, without GStreamer.
//! * [`packages`]: the Debian packages that provide GStreamer elements.
//!
//! The protocol and the sandbox are [`millstream_worker_runtime`]; the worker that runs GStreamer is a program of its own,
//! `crates/worker`. The gateway runs without it, and says what is missing when a pipeline is asked for.

pub mod demuxer;
pub mod description;
pub mod expected_silence;
pub mod host_access;
pub mod library;
pub mod packages;
pub mod parameter;
pub mod pipeline_check;
pub mod worker_command;
pub mod worker_error;
pub mod worker_executables;
pub mod worker_process;
pub mod worker_slots;
mod worker_stderr;
