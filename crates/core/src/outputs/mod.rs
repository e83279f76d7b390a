//! Outputs of a stream: WHEP viewers.
mod adapt_limits;
mod adaptation;
pub mod numbered_egress;
mod playout_delay;
mod retransmission_history;
pub mod rewriter;
mod sent_numbers;
pub mod track;
mod viewer_track;
pub mod whep;
