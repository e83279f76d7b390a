//! Millstream: a WHIP/WHEP live-streaming gateway.
pub mod media;
pub mod sdp;
