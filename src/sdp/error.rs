//! What can be wrong with an offer. Every variant blames the client: 400 for a text that is not a WebRTC offer, 422 for
//! an offer that is well formed but cannot be served (RFC 9725 §4.4).

use thiserror::Error;

use crate::media::Kind;

/// Why an offer was refused. The `Display` text is for the person at the client: it says what to do.
///
/// Line numbers count from 1, as editors do.
#[derive(Debug, Error)]
pub enum OfferError {
    // 400: the text
    #[error("the body is empty: send the SDP offer in it")]
    Missing,
    #[error("the body looks like JSON, send raw SDP: the `sdp` member of the session description alone")]
    Json,
    #[error("the offer has more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("line {line} has more than {limit} bytes")]
    LineTooLong { line: usize, limit: usize },
    #[error("line {line} holds bytes that are not text: SDP is UTF-8 without control characters")]
    NotText { line: usize },
    #[error("line {line} does not end: the offer was cut off; every line, also the last, needs a line end")]
    CutOff { line: usize },
    #[error("line {line} names an SDP version other than 0: send `v=0`")]
    BadVersion { line: usize },
    #[error("line {line} is not SDP: {rule}")]
    Syntax { line: usize, rule: &'static str },
    #[error("line {line} is not SDP or stands in the wrong place")]
    Grammar {
        line: usize,
        #[source]
        source: rtc_shared::error::Error,
    },
    #[error("line {line} begins m-section number {} of at most {limit}", limit + 1)]
    TooManySections { line: usize, limit: usize },

    // 400: attributes
    #[error("the m-section at line {line} has no `a=mid`: every section of an offer with several needs one")]
    MidMissing { line: usize },
    #[error("line {line} holds a mid that is not a token of 1 to {limit} characters")]
    BadMid { line: usize, limit: usize },
    #[error("line {line} repeats the mid of an earlier m-section")]
    DuplicateMid { line: usize },
    #[error("the m-section at line {line} has no `a=ice-ufrag` and `a=ice-pwd`, nor has the session")]
    IceCredentialsMissing { line: usize },
    #[error("line {line}: an ICE ufrag has 4 to 256, a pwd 22 to 256 characters of letters, digits, `+` and `/`")]
    BadIceCredentials { line: usize },
    #[error("the m-section at line {line} has no `a=fingerprint`, nor has the session")]
    FingerprintMissing { line: usize },
    #[error("line {line} holds a fingerprint whose digest does not fit its hash function")]
    BadFingerprint { line: usize },
    #[error("the m-section at line {line} has no `a=setup`, nor has the session: send `actpass`")]
    SetupMissing { line: usize },
    #[error("line {line} holds an unknown DTLS role: send `actpass`, `active` or `passive`")]
    BadSetup { line: usize },
    #[error("line {line}: {rule}")]
    BadPayloadType { line: usize, rule: &'static str },
    #[error("the m-line at line {line} lists more than {limit} payload types")]
    TooManyPayloadTypes { line: usize, limit: usize },
    #[error("line {line} gives payload type {pt} to a second codec: within a BUNDLE each has its own")]
    PayloadTypeReused { line: usize, pt: u8 },
    #[error("line {line}: {rule}")]
    BadExtmap { line: usize, rule: &'static str },
    #[error("line {line} holds an SSRC that is not a number or belongs to an earlier m-section")]
    BadSsrc { line: usize },
    #[error("line {line}: a rid is 1 to 16 letters, digits, `-` and `_`, declared once, with `send` or `recv`")]
    BadRid { line: usize },
    #[error("line {line}: simulcast lists each rid once, and only rids that an `a=rid:.. send` declares")]
    BadSimulcast { line: usize },
    #[error("line {line} declares more than {limit} simulcast layers: send fewer")]
    TooManyLayers { line: usize, limit: usize },

    // 422
    #[error("the offer has no audio or video to negotiate: add an audio or a video track")]
    NoMedia,
    #[error("line {line} offers a second {kind} track: send at most one audio and one video track")]
    TooManyTracks { line: usize, kind: Kind },
    #[error("the m-section at line {line} has the wrong direction: offer `{wanted}` or `sendrecv`")]
    BadDirection { line: usize, wanted: &'static str },
    #[error("line {line} offers a section that is neither audio or video over UDP/TLS/RTP/SAVPF nor a data channel")]
    UnsupportedSection { line: usize },
    #[error(
        "the {kind} section at line {line} has no codec in common with us: it offers {offered}; offer one of {accepted}"
    )]
    NoCommonCodec {
        line: usize,
        kind: Kind,
        offered: String,
        accepted: &'static str,
    },
    #[error("the stream carries {carries}, which the offer cannot receive: it takes {takes}")]
    NothingPlayable { carries: String, takes: String },
    #[error("line {line}: only weak fingerprints are offered: send sha-256, sha-384 or sha-512")]
    WeakFingerprint { line: usize },
    #[error("line {line}: `setup:holdconn` asks for no connection: send `actpass`")]
    Holdconn { line: usize },
    #[error("line {line}: the bundled m-sections disagree about `a=setup`")]
    SetupConflict { line: usize },
    #[error("the m-section at line {line} has no `a=rtcp-mux`: RTP and RTCP share one port here")]
    RtcpMuxMissing { line: usize },
    #[error("the m-section at line {line} is not in one BUNDLE group with the others: use bundlePolicy `max-bundle`")]
    BundleRequired { line: usize },
    #[error("the m-section at line {line} offers simulcast without the rtp-stream-id header extension")]
    RidExtensionMissing { line: usize },
}

impl OfferError {
    /// Stable name of the error, for programs.
    pub fn code(&self) -> &'static str {
        self.entry().0
    }

    /// HTTP status that the error is answered with: 400 or 422.
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
            Self::NoMedia => ("no_media", 422),
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

    /// The line of the offer that is to blame; `None` when it is the offer as a whole.
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
            | Self::IceCredentialsMissing { line }
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
