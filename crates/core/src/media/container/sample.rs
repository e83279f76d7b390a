//! What demultiplexing a segment yields.

use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use crate::media::Kind;
use crate::media::aac::AacConfig;

/// Codec of a sample. Video has start codes (ITU-T H.264 and H.265, Annex B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    H264,
    H265,
    Opus,
    Aac(AacConfig),
}

impl Content {
    /// Returns the media kind.
    pub fn kind(self) -> Kind {
        match self {
            Self::H264 | Self::H265 => Kind::Video,
            Self::Opus | Self::Aac(_) => Kind::Audio,
        }
    }
}

/// A frame. Its timestamps count from an origin shared by all renditions of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub content: Content,
    /// Decoding time.
    pub decode: Duration,
    /// Presentation time.
    pub present: Duration,
    pub bytes: Bytes,
}

/// Reason why a segment cannot be played.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ContainerError {
    #[error("unknown segment format: neither MPEG-TS, fragmented MP4 nor packed AAC")]
    Unrecognised,
    #[error("the fragmented MP4 segment has no initialization section (EXT-X-MAP)")]
    NoInit,
    #[error("malformed segment: {0}")]
    Broken(String),
    #[error("unsupported codec {0}: the segment has no H.264, H.265, AAC or Opus")]
    Unsupported(String),
    #[error("the segment is protected by DRM and needs a licensed player")]
    Encrypted,
    #[error("the segment contains no frames")]
    Empty,
}

/// Converts ticks of a clock rate in Hz to a duration.
pub(super) fn time(ticks: u64, rate: u32) -> Duration {
    crate::media::clock::duration(ticks, rate.max(1))
}
