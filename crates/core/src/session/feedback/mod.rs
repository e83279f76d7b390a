//! Feedback from the gateway to a publisher: reception statistics, requests for lost packets and key frames, and two
//! kinds of congestion feedback.
//!
//! Each part is a state machine without IO: packets and time go in, feedback comes out. The owner of a publisher's
//! session creates one of each per incoming SSRC, but only one [`TransportFeedbackGenerator`] for the whole transport, and
//! writes the RTCP with [`crate::media::rtcp`].

mod key_frames;
mod nack;
mod reception;
mod remb;
mod transport_cc;

pub(crate) use key_frames::{KeyFrameRequestScheduler, MIN_KEY_FRAME_REQUEST_INTERVAL};
pub(crate) use nack::NackGenerator;
pub use reception::Arrival;
pub(crate) use reception::{ArrivalKind, ReceptionStats};
pub(crate) use remb::{BitsPerSecond, RembEstimator};
pub use transport_cc::TransportFeedbackGenerator;
