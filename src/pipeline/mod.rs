//! GStreamer, in processes of its own: what native parsers and codecs do wrong costs one worker a restart, and nothing
//! else.
//!
//! ```text
//! pipelines/*.toml -> Library -> Description + values -> Job --socket pair--> worker process (same binary)
//!                                                        Process <--frames--  GStreamer pipeline
//! ```
//!
//! * [`description`]: a file of `pipelines/`: a launch line, its sinks and sources by name, typed parameters, limits.
//!   A value becomes the property of an element after the line was parsed, never text in it.
//! * [`wire`]: what gateway and worker say to each other: jobs, whole frames, signs of life.
//! * [`process`]: one worker as the gateway sees it: started, watched, ended.
//! * [`worker`]: the other end: limits itself first, then runs the pipeline.
//! * [`packages`]: which Debian package brings an element.
//!
//! Only `worker` names GStreamer, and only it is left out without the feature `gstreamer`.

pub mod description;
pub mod library;
pub mod packages;
pub mod process;
pub mod value;
pub mod wire;
pub mod worker;
