//! Ways into a stream.
pub mod encoding;
pub mod feed;
pub mod fetch;
pub mod hls;
mod incoming;
pub mod layers;
pub mod rtsp;
pub mod whip;
