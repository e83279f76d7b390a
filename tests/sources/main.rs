//! Sources of streams, each with a whole gateway: cameras by RTSP, and pipelines in worker processes.

mod pipeline;
mod rtsp;
