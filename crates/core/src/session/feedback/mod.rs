//! Feedback from the gateway to a publisher: reception statistics, requests for lost packets and key frames, and two
//! kinds of congestion feedback.
//!
//! Each part is a state machine without IO: packets and time go in, feedback comes out. The owner of a publisher's
//! session creates one of each per incoming SSRC, but only one [`TransportFeedback`] for the whole transport, and
//! writes the RTCP with [`crate::media::rtcp`].

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
