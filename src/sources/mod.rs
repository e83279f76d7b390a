//! Ways into a stream.
pub mod encoding;
pub mod feed;
mod incoming;
pub mod rtsp;
pub mod whip;
