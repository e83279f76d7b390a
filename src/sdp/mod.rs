//! SDP: the peer's offer, validated into a typed [`Offer`], and our answer to it (RFC 8866, RFC 8829, RFC 9725, WHEP).
//!
//! ```text
//! bytes -> text (lines, rtc-sdp's grammar) -> offer (sections, typed) -> publisher | viewer -> answer (rtc-sdp writes it)
//!                                              transport, codec,                |
//!                                              extension, simulcast, ssrc       +-> plan: what session and shard need
//! ```
//!
//! Pure functions: no clock, no socket, no randomness of their own. What an offer breaks is an [`OfferError`] with a
//! stable code; nothing received makes this folder panic, and no answer holds anything that was not offered.

mod answer;
mod codec;
mod error;
mod extension;
mod offer;
pub mod plan;
mod publisher;
mod quirks;
mod restart;
mod simulcast;
mod ssrc;
mod text;
mod transport;
mod viewer;
mod viewer_offer;

pub use answer::Local;
pub use error::OfferError;
pub use offer::Offer;
pub use publisher::answer_publisher;
pub use restart::Frame;
pub use transport::{SHORTEST_PWD, SHORTEST_UFRAG, is_ice_text};
pub use viewer::{answer_viewer, formats_for};
pub use viewer_offer::offer_viewer;
