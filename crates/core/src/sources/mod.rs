//! Sources of streams: what a WHIP publisher sends, and whole frames of cameras, HLS origins and pipelines.
pub mod failover_group;
mod feedback;
pub mod frame_source;
pub mod incoming_encoding;
mod key_frame_response_detector;
mod layer_loss;
pub mod layers;
mod missing_media_detector;
mod publisher_track;
pub mod whip;

#[cfg(test)]
mod tests;
