//! What a receiver owes a publisher: reception statistics, requests for lost packets and key frames, and the two kinds of
//! congestion feedback.
//!
//! Each part is a small machine of its own without IO: packets and time go in, what to send comes out. Whoever owns a
//! publisher's session makes one of each for every incoming SSRC, but one [`TransportFeedback`] for the whole transport,
//! and writes the RTCP with [`crate::media::rtcp`].

mod key_frames;
mod nack;
mod reception;
mod remb;
mod transport_cc;

pub use key_frames::KeyFrameRequests;
pub use nack::NackGenerator;
pub use reception::{Arrival, ArrivalKind, Reception};
pub use remb::{Bitrate, ReceiverEstimate};
pub use transport_cc::TransportFeedback;
