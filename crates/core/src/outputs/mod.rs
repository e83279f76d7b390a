//! Outputs of a stream: WHEP viewers.
mod history;
pub mod rewriter;
pub mod track;
pub mod whep;
