//! Sources of streams: what a WHIP publisher sends, and whole frames of cameras, HLS origins and pipelines.
mod arrivals;
pub mod encoding;
mod feedback;
pub mod frame_source;
mod incoming;
pub mod layers;
mod requests;
pub mod whip;

#[cfg(test)]
mod tests;
