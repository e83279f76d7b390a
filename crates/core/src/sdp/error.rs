//! Errors of an offer. Each is a client error: 400 for a body that is not a WebRTC offer, 422 for a well-formed offer
//! that cannot be served (RFC 9725 §4.4).

use thiserror::Error;

use crate::media::MediaKind;

/// Why an offer was rejected. The `Display` text tells the user of the client what to do.
///
/// Line numbers count from 1.
#[derive(Debug, Error)]
pub enum OfferError {
    // 400: the text
    #[error("the request body is empty: send the SDP offer in it")]
    EmptyBody,
    #[error("the request body looks like JSON: send only the raw SDP, the `sdp` member of the session description")]
    JsonBody,
    #[error("the SDP offer has more than {limit} bytes: send a shorter one")]
    TooLarge { limit: usize },
    #[error("SDP line {line} has more than {limit} bytes")]
    LineTooLong { line: usize, limit: usize },
    #[error("SDP line {line} contains bytes that are not text: SDP is UTF-8 without control characters")]
    NotText { line: usize },
    #[error("SDP line {line} has no line end: every line, even the last, needs one; the offer may have been cut off")]
    MissingLineEnd { line: usize },
    #[error("SDP line {line} has a version other than 0: send `v=0`")]
    BadVersion { line: usize },
    #[error("SDP line {line} is invalid: {rule}")]
    SyntaxRuleViolated { line: usize, rule: &'static str },
    #[error(
        "SDP line {line} is not valid there: its value is malformed, or it belongs before or after other lines (RFC 8866)"
    )]
    RejectedByParser {
        line: usize,
        #[source]
        source: rtc_shared::error::Error,
    },
    #[error("SDP line {line} begins m-section number {}; at most {limit} m-sections are accepted", limit + 1)]
    TooManySections { line: usize, limit: usize },

    // 400: attributes
    #[error("the m-section at line {line} has no `a=mid`: in an offer with several m-sections each needs an `a=mid`")]
    MidMissing { line: usize },
    #[error("SDP line {line} has a MID that is not a token of 1 to {limit} characters")]
    BadMid { line: usize, limit: usize },
    #[error("SDP line {line} repeats the MID of an earlier m-section")]
    DuplicateMid { line: usize },
    #[error("neither the m-section at line {line} nor the session has an `a={name}`")]
    IceCredentialsMissing { line: usize, name: &'static str },
    #[error(
        "SDP line {line} has an invalid ICE ufrag or pwd: a ufrag has 4 to 256 and a pwd 22 to 256 letters, digits, `+` and `/`"
    )]
    BadIceCredentials { line: usize },
    #[error("neither the m-section at line {line} nor the session has an `a=fingerprint`")]
    FingerprintMissing { line: usize },
    #[error("SDP line {line} has a fingerprint whose digest length does not match its hash function")]
    BadFingerprint { line: usize },
    #[error("neither the m-section at line {line} nor the session has an `a=setup`: send `actpass`")]
    SetupMissing { line: usize },
    #[error("SDP line {line} has an unknown DTLS role: send `a=setup:actpass`, `active` or `passive`")]
    BadSetup { line: usize },
    #[error("SDP line {line} is invalid: {rule}")]
    BadPayloadType { line: usize, rule: &'static str },
    #[error("the m-line at line {line} lists more than {limit} payload types")]
    TooManyPayloadTypes { line: usize, limit: usize },
    #[error(
        "SDP line {line} maps payload type {pt} to a second codec: in a BUNDLE group each payload type has one codec"
    )]
    PayloadTypeReused { line: usize, pt: u8 },
    #[error("SDP line {line} is invalid: {rule}")]
    BadExtmap { line: usize, rule: &'static str },
    #[error("SDP line {line} has an SSRC that is not a number or belongs to an earlier m-section")]
    BadSsrc { line: usize },
    #[error(
        "SDP line {line} has an invalid `a=rid`: a RID is 1 to 16 letters, digits, `-` and `_`, declared once, with `send` or `recv`"
    )]
    BadRid { line: usize },
    #[error(
        "SDP line {line} has an invalid `a=simulcast`: it must list each RID once, and only RIDs declared by an `a=rid:.. send`"
    )]
    BadSimulcast { line: usize },
    #[error("SDP line {line} declares more than {limit} simulcast layers: offer fewer")]
    TooManySimulcastLayers { line: usize, limit: usize },

    // 422
    #[error("the offer has no audio or video to negotiate: add an audio or a video track")]
    NoMedia,
    #[error(
        "the m-section at line {line} is disabled by port 0, and no other m-section has media: offer this one with port 9"
    )]
    NoEnabledMedia { line: usize },
    #[error(
        "SDP line {line} offers `a=ice-lite`, but the gateway is ICE-lite too, so neither side would send ICE checks: use full ICE"
    )]
    IceLite { line: usize },
    #[error("SDP line {line}: bundled m-sections must have the same ICE credentials: use bundlePolicy `max-bundle`")]
    IceCredentialsDiffer { line: usize },
    #[error("SDP line {line} offers a second {kind} track: send at most one audio and one video track")]
    TooManyTracks { line: usize, kind: MediaKind },
    #[error("the m-section at line {line} has the wrong direction: offer `{wanted}` or `sendrecv`")]
    BadDirection { line: usize, wanted: &'static str },
    #[error(
        "the m-section at line {line} is not supported: expected audio or video over DTLS-SRTP (such as \
         UDP/TLS/RTP/SAVPF, with an `a=fingerprint`), or a data channel"
    )]
    UnsupportedSection { line: usize },
    #[error(
        "the {kind} section at line {line} offers no supported codec: it offers {offered}; offer one of {accepted}"
    )]
    NoCommonCodec {
        line: usize,
        kind: MediaKind,
        offered: String,
        accepted: &'static str,
    },
    #[error(
        "SDP line {line} offers video, but cameras accept only audio: offer one audio section with a microphone, and no video"
    )]
    VideoToCamera { line: usize },
    #[error(
        "the camera accepts {accepted}, but the audio section at line {line} offers only {offered}: do not restrict the \
         audio codecs in the client (setCodecPreferences)"
    )]
    NoCodecOfCamera {
        line: usize,
        offered: String,
        accepted: &'static str,
    },
    #[error("the stream carries {carries}, which the viewer cannot receive: the offer of the viewer has {takes}")]
    NothingPlayable { carries: String, takes: String },
    #[error("SDP line {line}: all fingerprints have weak or unknown hash functions: send sha-256 or stronger")]
    WeakFingerprint { line: usize },
    #[error("SDP line {line}: `a=setup:holdconn` requests no connection: send `a=setup:actpass`")]
    Holdconn { line: usize },
    #[error("SDP line {line}: the bundled m-sections have different `a=setup` values: send the same in each")]
    SetupConflict { line: usize },
    #[error("the m-section at line {line} has no `a=rtcp-mux`: RTP and RTCP must share one port")]
    RtcpMuxMissing { line: usize },
    #[error("the m-section at line {line} is not in the BUNDLE group of the others: use bundlePolicy `max-bundle`")]
    BundleRequired { line: usize },
    #[error(
        "the m-section at line {line} offers simulcast without a usable header extension for the RID: offer \
         `a=extmap:ID urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id` with an ID from 1 to 14; if a direction follows \
         the ID, it must be `/sendonly` or `/sendrecv`"
    )]
    RidExtensionMissing { line: usize },
}

impl OfferError {
    /// Returns the stable, machine-readable name of the error.
    pub fn code(&self) -> &'static str {
        self.error_code_and_http_status().0
    }

    /// Returns the HTTP status of the error: 400 or 422.
    pub fn http_status(&self) -> u16 {
        self.error_code_and_http_status().1
    }

    fn error_code_and_http_status(&self) -> (&'static str, u16) {
        match self {
            Self::EmptyBody => ("offer_missing", 400),
            Self::JsonBody => ("offer_is_json", 400),
            Self::TooLarge { .. } => ("offer_too_large", 400),
            Self::LineTooLong { .. } => ("line_too_long", 400),
            Self::NotText { .. } => ("not_text", 400),
            Self::MissingLineEnd { .. } => ("offer_cut_off", 400),
            Self::BadVersion { .. } => ("bad_version", 400),
            Self::SyntaxRuleViolated { .. } | Self::RejectedByParser { .. } => ("bad_syntax", 400),
            Self::TooManySections { .. } => ("too_many_sections", 400),
            Self::MidMissing { .. } => ("mid_missing", 400),
            Self::BadMid { .. } => ("bad_mid", 400),
            Self::DuplicateMid { .. } => ("duplicate_mid", 400),
            Self::IceCredentialsMissing { .. } => ("ice_credentials_missing", 400),
            Self::BadIceCredentials { .. } => ("bad_ice_credentials", 400),
            Self::FingerprintMissing { .. } => ("fingerprint_missing", 400),
            Self::BadFingerprint { .. } => ("bad_fingerprint", 400),
            Self::SetupMissing { .. } => ("setup_missing", 400),
            Self::BadSetup { .. } => ("bad_setup", 400),
            Self::BadPayloadType { .. } => ("bad_payload_type", 400),
            Self::TooManyPayloadTypes { .. } => ("too_many_payload_types", 400),
            Self::PayloadTypeReused { .. } => ("payload_type_reused", 400),
            Self::BadExtmap { .. } => ("bad_extmap", 400),
            Self::BadSsrc { .. } => ("bad_ssrc", 400),
            Self::BadRid { .. } => ("bad_rid", 400),
            Self::BadSimulcast { .. } => ("bad_simulcast", 400),
            Self::TooManySimulcastLayers { .. } => ("too_many_layers", 400),
            Self::NoMedia | Self::NoEnabledMedia { .. } => ("no_media", 422),
            Self::IceLite { .. } => ("ice_lite", 422),
            Self::IceCredentialsDiffer { .. } => ("ice_credentials_differ", 422),
            Self::TooManyTracks { .. } => ("too_many_tracks", 422),
            Self::BadDirection { .. } => ("bad_direction", 422),
            Self::UnsupportedSection { .. } => ("unsupported_section", 422),
            Self::NoCommonCodec { .. } => ("no_common_codec", 422),
            Self::VideoToCamera { .. } => ("audio_only", 422),
            Self::NoCodecOfCamera { .. } => ("no_common_codec", 422),
            Self::NothingPlayable { .. } => ("nothing_playable", 422),
            Self::WeakFingerprint { .. } => ("weak_fingerprint", 422),
            Self::Holdconn { .. } => ("setup_holdconn", 422),
            Self::SetupConflict { .. } => ("setup_conflict", 422),
            Self::RtcpMuxMissing { .. } => ("rtcp_mux_missing", 422),
            Self::BundleRequired { .. } => ("bundle_required", 422),
            Self::RidExtensionMissing { .. } => ("rid_extension_missing", 422),
        }
    }

    /// Returns the line of the offer that caused the error, or `None` if the whole offer did.
    pub fn line_number(&self) -> Option<usize> {
        match self {
            Self::EmptyBody | Self::JsonBody | Self::TooLarge { .. } | Self::NoMedia | Self::NothingPlayable { .. } => {
                None
            }
            Self::LineTooLong { line, .. }
            | Self::NotText { line }
            | Self::MissingLineEnd { line }
            | Self::BadVersion { line }
            | Self::SyntaxRuleViolated { line, .. }
            | Self::RejectedByParser { line, .. }
            | Self::TooManySections { line, .. }
            | Self::MidMissing { line }
            | Self::BadMid { line, .. }
            | Self::DuplicateMid { line }
            | Self::IceCredentialsMissing { line, .. }
            | Self::NoEnabledMedia { line }
            | Self::IceLite { line }
            | Self::IceCredentialsDiffer { line }
            | Self::BadIceCredentials { line }
            | Self::FingerprintMissing { line }
            | Self::BadFingerprint { line }
            | Self::SetupMissing { line }
            | Self::BadSetup { line }
            | Self::BadPayloadType { line, .. }
            | Self::TooManyPayloadTypes { line, .. }
            | Self::PayloadTypeReused { line, .. }
            | Self::BadExtmap { line, .. }
            | Self::BadSsrc { line }
            | Self::BadRid { line }
            | Self::BadSimulcast { line }
            | Self::TooManySimulcastLayers { line, .. }
            | Self::TooManyTracks { line, .. }
            | Self::BadDirection { line, .. }
            | Self::UnsupportedSection { line }
            | Self::NoCommonCodec { line, .. }
            | Self::VideoToCamera { line }
            | Self::NoCodecOfCamera { line, .. }
            | Self::WeakFingerprint { line }
            | Self::Holdconn { line }
            | Self::SetupConflict { line }
            | Self::RtcpMuxMissing { line }
            | Self::BundleRequired { line }
            | Self::RidExtensionMissing { line } => Some(*line),
        }
    }
}
