//! GStreamer in worker processes: a fault in a native parser or codec costs one worker a restart and nothing else.
//!
//! ```text
//! pipelines/*.toml -> Library -> Description + values -> Job --socket pair--> worker process (same binary)
//!                                                        Process <--frames--  GStreamer pipeline
//! ```
//!
//! * [`description`]: a file of `pipelines/`: a launch line with named sinks and sources, typed parameters, limits.
//!   Values are set as element properties after the line was parsed; they are never inserted into its text.
//! * [`wire`]: the protocol between gateway and worker: jobs, whole frames, heartbeats.
//! * [`process`]: the gateway's side of a worker: start, supervision, stop.
//! * [`worker`]: the worker's side: it restricts itself first, then runs the pipeline.
//! * [`packages`]: the Debian packages that provide GStreamer elements.
//!
//! Only `worker` uses GStreamer; without the feature `gstreamer` these parts of it are not built.

pub mod description;
pub mod library;
pub mod packages;
pub mod process;
pub mod value;
pub mod wire;
pub mod worker;
