//! Sources of streams: what a WHIP publisher sends, and whole frames of cameras, HLS origins and pipelines.
mod feedback;
pub mod frame_source;
pub mod incoming_encoding;
mod key_frame_response_detector;
pub mod ladder;
pub mod layers;
mod missing_media_detector;
mod publisher_track;
pub mod whip;

#[cfg(test)]
mod tests;
