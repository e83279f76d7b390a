//! Test peers for Millstream: a sans-IO WebRTC client, synthetic media that a receiver can check bit by bit, lossy links in
//! virtual time, and just enough SDP to talk to a gateway. Knows nothing of Millstream's own code, so that it can judge it.

use std::io::Write as _;

pub mod link;
pub mod media;
pub mod peer;
pub mod sdp;
pub mod tls;

pub use link::{Datagram, LinkConfig, LossyLink};
pub use media::{FrameCheck, MediaFrame, Stamp, SyntheticAudio, SyntheticVideo, VideoCodec, VideoConfig};
pub use peer::{
    Credentials, DtlsRole, IceStyle, Peer, PeerConfig, PeerEvent, PeerIdentity, Profiles, ReceivedData, Transmit,
};
pub use sdp::{Answer, AnswerMedia, OfferParameters};

/// Says that a test, or a part of it, does not run on this host. `scripts/skips.sh` refuses tests that are not listed in
/// `tests/skips.txt`. Written past the capture of the test harness, which shows the output of failed tests only.
pub fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
