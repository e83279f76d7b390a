//! Sources, each with a whole gateway: RTSP cameras, and pipelines in worker processes.

mod pipeline;
mod rtsp;
