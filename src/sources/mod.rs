//! Ways into a stream.
pub mod encoding;
pub mod whip;
