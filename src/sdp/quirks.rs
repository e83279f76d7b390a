//! What real clients and the library below do differently from the specifications, each as one named policy.

use std::collections::HashSet;

use super::offer::Section;

/// FFmpeg 9.0.2 (`tests/data/offers/ffmpeg-9.0.2-whip-default.sdp`) always writes `a=group:BUNDLE 0 1`, also when it
/// sends only one of the two. A mid without an m-section breaks RFC 9143 §7.1; it is passed over.
///
/// Returns the indexes of the sections that a BUNDLE group names, in its order, each once.
pub(super) fn sections_without_ghosts(mids: &str, sections: &[Section]) -> Vec<usize> {
    let mut seen = HashSet::new();
    mids.split_whitespace()
        .filter_map(|mid| {
            sections
                .iter()
                .position(|section| section.names_mid && &*section.mid.0 == mid)
        })
        .filter(|index| seen.insert(*index))
        .collect()
}

/// The counter-offer example of the WHEP draft spells the protocol `RTP/SAVPF`, and so do clients made after it. In an
/// offer with fingerprints both mean DTLS-SRTP; the answer repeats the spelling.
pub(super) fn is_rtp_over_dtls(proto: &str) -> bool {
    matches!(proto, "UDP/TLS/RTP/SAVPF" | "RTP/SAVPF")
}

/// `rtc-sdp` 0.21.1 refuses a whole description because of one media kind that it does not know, but RFC 8866 §5.14 lets
/// new ones be registered, and an answer has to hold a (refused) section for each (RFC 3264 §6). The library sees
/// `application` in its place.
pub(super) fn with_known_media(line: &str, media: &str) -> String {
    const KNOWN: [&str; 6] = ["audio", "video", "text", "application", "message", "image"];
    if KNOWN.contains(&media) {
        line.to_owned()
    } else {
        line.replacen(media, "application", 1)
    }
}
