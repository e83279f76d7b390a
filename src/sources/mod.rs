//! Ways into a stream.
pub mod encoding;
pub mod feed;
pub mod rtsp;
pub mod whip;
