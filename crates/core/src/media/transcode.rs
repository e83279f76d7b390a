//! Decides which formats browsers cannot play, and which formats they are transcoded to.

use super::aac::AacConfig;
use super::{Format, H264Class, Kind, ProfileLevelId};

/// A transcode output, produced by one shared worker for all viewers of a stream that need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TranscodeTarget {
    /// Any video to H.264, Constrained Baseline, without B-frames.
    H264,
    /// Any audio to Opus.
    Opus,
    /// Any audio to AAC, for HLS players without Opus support.
    Aac,
    /// Any video to JPEG images, for snapshots.
    Jpeg,
}

impl TranscodeTarget {
    /// All targets.
    pub const ALL: [Self; 4] = [Self::H264, Self::Opus, Self::Aac, Self::Jpeg];

    /// The default target of a kind for WebRTC viewers.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Video => Self::H264,
            Kind::Audio => Self::Opus,
        }
    }

    /// Media kind of input and output.
    pub fn kind(self) -> Kind {
        match self {
            Self::H264 | Self::Jpeg => Kind::Video,
            Self::Opus | Self::Aac => Kind::Audio,
        }
    }

    /// Format of the output.
    pub fn format(self) -> Format {
        match self {
            Self::H264 => Format::H264 {
                profile: ProfileLevelId::CONSTRAINED_BASELINE_3_1,
                packetization_mode: 1,
            },
            Self::Opus => Format::Opus { stereo: true },
            Self::Aac => Format::Aac(AacConfig::STEREO),
            Self::Jpeg => Format::Jpeg,
        }
    }

    /// Label in stream names, logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::H264 => "h264",
            Self::Opus => "opus",
            Self::Aac => "aac",
            Self::Jpeg => "jpeg",
        }
    }
}

/// Whether browsers cannot play a track as it is: the codec is not available in WebRTC, browser decoders lack the
/// profile, or the track is `reordered`, i.e. has B-frames. WebRTC renders frames in the order of their arrival.
pub fn is_unplayable(format: Format, reordered: bool) -> bool {
    match format {
        Format::Aac(_) | Format::Jpeg => true,
        Format::H264 { profile, .. } => {
            reordered
                || matches!(
                    profile.class(),
                    H264Class::Extended | H264Class::High444 | H264Class::Other
                )
        }
        Format::H265 { .. } => reordered,
        Format::Vp8 | Format::Vp9 { .. } | Format::Av1 { .. } => false,
        Format::Opus { .. } | Format::Pcmu | Format::Pcma => false,
    }
}
