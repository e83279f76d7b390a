//! What no browser can play, and what can be made of it.

use super::aac::AacConfig;
use super::{Format, H264Class, Kind, ProfileLevelId};

/// A conversion that one shared worker makes for all viewers of a stream that need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TranscodeTarget {
    /// Any video to H.264, constrained baseline, without B-frames.
    H264,
    /// Any audio to Opus.
    Opus,
    /// Any audio to AAC, for players of HLS that take nothing else.
    Aac,
    /// Any video to pictures, for snapshots.
    Jpeg,
}

impl TranscodeTarget {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::H264, Self::Opus, Self::Aac, Self::Jpeg];

    /// The conversion of a kind of media for viewers of WebRTC.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Video => Self::H264,
            Kind::Audio => Self::Opus,
        }
    }

    /// The kind of media that it converts.
    pub fn kind(self) -> Kind {
        match self {
            Self::H264 | Self::Jpeg => Kind::Video,
            Self::Opus | Self::Aac => Kind::Audio,
        }
    }

    /// What comes out.
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

    /// As it stands in names, logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::H264 => "h264",
            Self::Opus => "opus",
            Self::Aac => "aac",
            Self::Jpeg => "jpeg",
        }
    }
}

/// Whether no browser plays a track as it is: its codec is not one of WebRTC, its profile is one that their decoders
/// lack, or it is `reordered`, which is to say that it has B-frames: WebRTC shows pictures in the order in which they
/// come.
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
