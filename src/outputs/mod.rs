//! Ways out of a stream.
mod history;
pub mod hls;
pub mod rewriter;
pub mod track;
pub mod whep;
