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
mod data_channel;
mod error;
mod extension;
mod ice_restart;
mod local_description;
mod local_transport;
pub mod negotiation_result;
mod offer;
mod offer_to_viewer;
mod publisher;
mod quirks;
mod sdp_lines;
mod simulcast;
mod sprop;
mod ssrc;
mod transport;
mod viewer;

pub use error::OfferError;
pub use ice_restart::IceFragmentTemplate;
pub use local_description::{LocalDescription, VideoSectionId};
pub use local_transport::LocalTransport;
pub use offer::Offer;
pub use offer_to_viewer::create_offer_to_viewer;
pub use publisher::{answer_talk_offer, answer_whip_offer, choose_talk_codec};
pub use transport::{MIN_PWD_LEN, MIN_UFRAG_LEN, is_valid_ice_credential};
pub use viewer::{answer_whep_offer, formats_sent_to_offerer};
