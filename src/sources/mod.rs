//! Clients of other servers that supply sources: RTSP cameras, HLS origins and pipelines.
pub mod fetch;
pub mod hls;
pub mod onvif;
pub mod rtsp;
