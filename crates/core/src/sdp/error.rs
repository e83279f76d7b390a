//! Errors of an offer. Each is a client error: 400 for a body that is not a WebRTC offer, 422 for a well-formed offer
//! that cannot be served (RFC 9725 §4.4).

use thiserror::Error;

use crate::media::Kind;

/// Why an offer was rejected. The `Display` text tells the user of the client what to do.
///
/// Line numbers count from 1.
#[derive(Debug, Error)]
pub enum OfferError {
    // 400: the text
    #[error("the body is empty: send the SDP offer in it")]
    Missing,
    #[error("the body looks like JSON: send only the raw SDP, which is the `sdp` member of the session description")]
    Json,
    #[error("the offer has more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("line {line} has more than {limit} bytes")]
    LineTooLong { line: usize, limit: usize },
    #[error("line {line} contains bytes that are not text: SDP is UTF-8 without control characters")]
    NotText { line: usize },
    #[error("line {line} has no line end: the offer was cut off; every line including the last needs a line end")]
    CutOff { line: usize },
    #[error("line {line} has an SDP version other than 0: send `v=0`")]
    BadVersion { line: usize },
    #[error("line {line} is not valid SDP: {rule}")]
    Syntax { line: usize, rule: &'static str },
    #[error("line {line} is not valid SDP or is in the wrong place")]
    Grammar {
        line: usize,
        #[source]
        source: rtc_shared::error::Error,
    },
    #[error("line {line} begins m-section number {}; at most {limit} are accepted", limit + 1)]
    TooManySections { line: usize, limit: usize },

    // 400: attributes
    #[error("the m-section at line {line} has no `a=mid`: in an offer with several sections each needs one")]
    MidMissing { line: usize },
    #[error("line {line} has a mid that is not a token of 1 to {limit} characters")]
    BadMid { line: usize, limit: usize },
    #[error("line {line} repeats the mid of an earlier m-section")]
    DuplicateMid { line: usize },
    #[error("neither the m-section at line {line} nor the session has an `a={name}`")]
    IceCredentialsMissing { line: usize, name: &'static str },
    #[error("line {line}: an ICE ufrag has 4 to 256 and a pwd 22 to 256 letters, digits, `+` and `/`")]
    BadIceCredentials { line: usize },
    #[error("neither the m-section at line {line} nor the session has an `a=fingerprint`")]
    FingerprintMissing { line: usize },
    #[error("line {line} has a fingerprint whose digest does not match its hash function")]
    BadFingerprint { line: usize },
    #[error("neither the m-section at line {line} nor the session has an `a=setup`: send `actpass`")]
    SetupMissing { line: usize },
    #[error("line {line} has an unknown DTLS role: send `actpass`, `active` or `passive`")]
    BadSetup { line: usize },
    #[error("line {line}: {rule}")]
    BadPayloadType { line: usize, rule: &'static str },
    #[error("the m-line at line {line} lists more than {limit} payload types")]
    TooManyPayloadTypes { line: usize, limit: usize },
    #[error("line {line} maps payload type {pt} to a second codec: in a BUNDLE group each payload type has one codec")]
    PayloadTypeReused { line: usize, pt: u8 },
    #[error("line {line}: {rule}")]
    BadExtmap { line: usize, rule: &'static str },
    #[error("line {line} has an SSRC that is not a number or belongs to an earlier m-section")]
    BadSsrc { line: usize },
    #[error("line {line}: a rid is 1 to 16 letters, digits, `-` and `_`, declared once, with `send` or `recv`")]
    BadRid { line: usize },
    #[error("line {line}: `a=simulcast` lists each rid once, and only rids declared by an `a=rid:.. send`")]
    BadSimulcast { line: usize },
    #[error("line {line} declares more than {limit} simulcast layers: send fewer")]
    TooManyLayers { line: usize, limit: usize },

    // 422
    #[error("the offer has no audio or video to negotiate: add an audio or a video track")]
    NoMedia,
    #[error("the m-section at line {line} is disabled by port 0, and there is no other: offer it with port 9")]
    NoEnabledMedia { line: usize },
    #[error("line {line}: `a=ice-lite` says that the peer sends no ICE checks, and nor does the gateway: use full ICE")]
    IceLite { line: usize },
    #[error("line {line}: bundled m-sections must have the same ICE credentials: use bundlePolicy `max-bundle`")]
    IceCredentialsDiffer { line: usize },
    #[error("line {line} offers a second {kind} track: send at most one audio and one video track")]
    TooManyTracks { line: usize, kind: Kind },
    #[error("the m-section at line {line} has the wrong direction: offer `{wanted}` or `sendrecv`")]
    BadDirection { line: usize, wanted: &'static str },
    #[error(
        "line {line} is neither audio or video over DTLS-SRTP, such as UDP/TLS/RTP/SAVPF with a fingerprint, nor a data \
         channel"
    )]
    UnsupportedSection { line: usize },
    #[error(
        "the {kind} section at line {line} offers no supported codec: it offers {offered}; offer one of {accepted}"
    )]
    NoCommonCodec {
        line: usize,
        kind: Kind,
        offered: String,
        accepted: &'static str,
    },
    #[error("the stream carries {carries}; the offer cannot receive that: it offers {takes}")]
    NothingPlayable { carries: String, takes: String },
    #[error("line {line}: the offer has only weak fingerprints: send sha-256, sha-384 or sha-512")]
    WeakFingerprint { line: usize },
    #[error("line {line}: `setup:holdconn` requests no connection: send `actpass`")]
    Holdconn { line: usize },
    #[error("line {line}: the bundled m-sections disagree about `a=setup`")]
    SetupConflict { line: usize },
    #[error("the m-section at line {line} has no `a=rtcp-mux`: RTP and RTCP must share one port")]
    RtcpMuxMissing { line: usize },
    #[error("the m-section at line {line} is not in the BUNDLE group of the others: use bundlePolicy `max-bundle`")]
    BundleRequired { line: usize },
    #[error(
        "the m-section at line {line} offers simulcast without an rtp-stream-id header extension that it sends with an \
         id from 1 to 14"
    )]
    RidExtensionMissing { line: usize },
}

impl OfferError {
    /// Returns the stable, machine-readable name of the error.
    pub fn code(&self) -> &'static str {
        self.entry().0
    }

    /// Returns the HTTP status of the error: 400 or 422.
    pub fn status(&self) -> u16 {
        self.entry().1
    }

    fn entry(&self) -> (&'static str, u16) {
        match self {
            Self::Missing => ("offer_missing", 400),
            Self::Json => ("offer_is_json", 400),
            Self::TooLarge { .. } => ("offer_too_large", 400),
            Self::LineTooLong { .. } => ("line_too_long", 400),
            Self::NotText { .. } => ("not_text", 400),
            Self::CutOff { .. } => ("offer_cut_off", 400),
            Self::BadVersion { .. } => ("bad_version", 400),
            Self::Syntax { .. } | Self::Grammar { .. } => ("bad_syntax", 400),
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
            Self::TooManyLayers { .. } => ("too_many_layers", 400),
            Self::NoMedia | Self::NoEnabledMedia { .. } => ("no_media", 422),
            Self::IceLite { .. } => ("ice_lite", 422),
            Self::IceCredentialsDiffer { .. } => ("ice_credentials_differ", 422),
            Self::TooManyTracks { .. } => ("too_many_tracks", 422),
            Self::BadDirection { .. } => ("bad_direction", 422),
            Self::UnsupportedSection { .. } => ("unsupported_section", 422),
            Self::NoCommonCodec { .. } => ("no_common_codec", 422),
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
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Missing | Self::Json | Self::TooLarge { .. } | Self::NoMedia | Self::NothingPlayable { .. } => None,
            Self::LineTooLong { line, .. }
            | Self::NotText { line }
            | Self::CutOff { line }
            | Self::BadVersion { line }
            | Self::Syntax { line, .. }
            | Self::Grammar { line, .. }
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
            | Self::TooManyLayers { line, .. }
            | Self::TooManyTracks { line, .. }
            | Self::BadDirection { line, .. }
            | Self::UnsupportedSection { line }
            | Self::NoCommonCodec { line, .. }
            | Self::WeakFingerprint { line }
            | Self::Holdconn { line }
            | Self::SetupConflict { line }
            | Self::RtcpMuxMissing { line }
            | Self::BundleRequired { line }
            | Self::RidExtensionMissing { line } => Some(*line),
        }
    }
}
