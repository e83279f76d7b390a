//! Millstream: a WHIP/WHEP live-streaming gateway.
pub mod config;
pub mod gateway;
pub mod hub;
pub mod media;
pub mod outputs;
pub mod sdp;
pub mod session;
pub mod shard;
pub mod signalling;
pub mod sources;
pub mod telemetry;

pub use config::Config;
pub use gateway::{Gateway, GatewayError};
