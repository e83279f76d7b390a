//! Outputs of a stream: WHEP viewers and LL-HLS.
mod history;
pub mod hls;
pub mod rewriter;
pub mod track;
pub mod whep;
