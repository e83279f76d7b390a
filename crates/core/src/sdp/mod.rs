//! SDP: parses a peer's offer into a validated, typed [`Offer`] and writes the answer (RFC 8866, RFC 8829, RFC 9725,
//! WHEP).
//!
//! ```text
//! bytes -> text (lines, rtc-sdp's grammar) -> offer (sections, typed) -> publisher | viewer -> answer (by rtc-sdp)
//!                                              transport, codec,                |
//!                                              extension, simulcast, ssrc       +-> plan: what session and shard need
//! ```
//!
//! All functions are pure: they use no clock, socket or random source of their own. An invalid offer yields an
//! [`OfferError`] with a stable code. No input makes this folder panic, and an answer contains only what was offered.

mod answer;
mod codec;
mod description;
mod error;
mod extension;
mod local;
mod offer;
pub mod plan;
mod publisher;
mod quirks;
mod restart;
mod simulcast;
mod sprop;
mod ssrc;
mod text;
mod transport;
mod viewer;
mod viewer_offer;

pub use description::{LocalDescription, VideoSection};
pub use error::OfferError;
pub use local::Local;
pub use offer::Offer;
pub use publisher::answer_publisher;
pub use restart::IceSection;
pub use transport::{SHORTEST_PWD, SHORTEST_UFRAG, is_ice_text};
pub use viewer::{answer_viewer, formats_for};
pub use viewer_offer::offer_viewer;
