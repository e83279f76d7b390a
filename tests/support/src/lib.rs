//! Test peers for Millstream: a sans-IO WebRTC client, synthetic media that a receiver can check bit by bit, lossy links in
//! virtual time, and just enough SDP to talk to a gateway. Knows nothing of Millstream's own code, so that it can judge it.

pub mod link;
pub mod media;
pub mod peer;
pub mod sdp;

pub use link::{Datagram, LinkConfig, LossyLink};
pub use media::{FrameCheck, MediaFrame, Stamp, SyntheticAudio, SyntheticVideo, VideoCodec, VideoConfig};
pub use peer::{Credentials, DtlsRole, IceStyle, Peer, PeerConfig, PeerEvent, PeerIdentity, Profiles, Transmit};
pub use sdp::{Answer, AnswerMedia, OfferParameters};
