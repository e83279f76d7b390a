//! Outputs of a stream: WHEP viewers.
mod history;
mod played;
pub mod rewriter;
pub mod track;
pub mod whep;
