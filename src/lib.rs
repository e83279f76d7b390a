//! Millstream: a WHIP/WHEP live-streaming gateway.
pub mod hub;
pub mod media;
pub mod outputs;
pub mod sdp;
pub mod session;
pub mod shard;
pub mod sources;
