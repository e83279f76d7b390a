//! Ways out of a stream.
pub mod line;
pub mod track;
pub mod whep;
