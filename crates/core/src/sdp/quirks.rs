//! Deviations of real clients and of `rtc-sdp` from the specifications, one function each.

/// Whether a protocol means RTP over DTLS-SRTP. The counter-offer example of the WHEP draft writes `RTP/SAVPF`, and so
/// do clients that follow it. In an offer with fingerprints both mean DTLS-SRTP; the answer repeats the spelling.
pub(super) fn is_rtp_over_dtls(proto: &str) -> bool {
    matches!(proto, "UDP/TLS/RTP/SAVPF" | "RTP/SAVPF")
}

/// Replaces an unknown media kind of an m-line by `application` for the parser. `rtc-sdp` 0.21.1 rejects a description
/// that has a media kind it does not know, but RFC 8866 §5.14 allows new ones, and the answer must contain a (rejected)
/// section for each (RFC 3264 §6).
pub(super) fn with_known_media(line: &str, media: &str) -> String {
    const KNOWN: [&str; 6] = ["audio", "video", "text", "application", "message", "image"];
    if KNOWN.contains(&media) {
        line.to_owned()
    } else {
        line.replacen(media, "application", 1)
    }
}
