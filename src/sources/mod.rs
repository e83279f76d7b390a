//! Sources of streams: WHIP publishers, RTSP cameras, HLS origins and pipelines.
pub mod encoding;
pub mod fetch;
pub mod frame_source;
pub mod hls;
mod incoming;
pub mod layers;
mod requests;
pub mod rtsp;
pub mod whip;
