//! Ways out of a stream.
mod history;
pub mod hls;
pub mod line;
pub mod track;
pub mod whep;
