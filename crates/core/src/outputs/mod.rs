//! Outputs of a stream: WHEP viewers.
mod adapt_limits;
mod adaptation;
mod playout_delay;
mod retransmission_limiter;
pub mod rewriter;
mod sent_transport_numbers;
pub mod track;
pub mod transport_cc_egress;
mod viewer_track;
pub mod whep;
