//! Deviations of real clients and of `rtc-sdp` from the specifications, one function each.

/// Whether a protocol is RTP. RFC 8829 §5.1.2: with a fingerprint each of these means DTLS-SRTP, whatever it says of the
/// transport, of encryption and of feedback; the answer repeats it.
pub(super) fn is_rtp_profile(proto: &str) -> bool {
    const RTP_PROFILES: [&str; 8] = [
        "UDP/TLS/RTP/SAVPF",
        "UDP/TLS/RTP/SAVP",
        "TCP/DTLS/RTP/SAVPF",
        "TCP/DTLS/RTP/SAVP",
        "RTP/SAVPF",
        "RTP/SAVP",
        "RTP/AVPF",
        "RTP/AVP",
    ];
    RTP_PROFILES.iter().any(|profile| profile.eq_ignore_ascii_case(proto))
}

/// Replaces an unknown media kind of an m-line by `application` for the parser. `rtc-sdp` 0.21.1 rejects a description
/// that has a media kind it does not know, but RFC 8866 §5.14 allows new ones, and the answer must contain a (rejected)
/// section for each (RFC 3264 §6).
pub(super) fn replace_unknown_media_kind(line: &str, media: &str) -> String {
    const MEDIA_KINDS_KNOWN_TO_PARSER: [&str; 6] = ["audio", "video", "text", "application", "message", "image"];
    if MEDIA_KINDS_KNOWN_TO_PARSER.contains(&media) {
        line.to_owned()
    } else {
        line.replacen(media, "application", 1)
    }
}
