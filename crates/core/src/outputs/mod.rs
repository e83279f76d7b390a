//! Outputs of a stream: WHEP viewers.
mod adaptation;
mod adaptation_limits;
pub(crate) mod forwarding_delay;
mod playout_delay;
mod reference_frame_selector;
mod retransmission_limiter;
mod sent_transport_sequence_numbers;
pub mod seq_and_timestamp_rewriter;
pub mod track;
pub mod transport_cc_egress;
mod viewer_track;
pub mod whep;
