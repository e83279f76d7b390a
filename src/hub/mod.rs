//! Streams by name, their tracks, and the packets that all viewers share.
pub mod name;
