//! SDP: the peer's offer, validated into a typed [`Offer`], and our answer to it.
pub mod plan;
