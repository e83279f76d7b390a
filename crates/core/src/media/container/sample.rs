//! What demultiplexing a segment yields.

use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use crate::media::MediaKind;
use crate::media::aac::AacConfig;

/// Codec of a sample. Video has start codes (ITU-T H.264 and H.265, Annex B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleCodec {
    H264,
    H265,
    Opus,
    Aac(AacConfig),
}

impl SampleCodec {
    /// Returns the media kind.
    pub fn kind(self) -> MediaKind {
        match self {
            Self::H264 | Self::H265 => MediaKind::Video,
            Self::Opus | Self::Aac(_) => MediaKind::Audio,
        }
    }
}

/// A frame. Its timestamps count from an origin shared by all renditions of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemuxedSample {
    pub codec: SampleCodec,
    /// Decoding time.
    pub decode_time: Duration,
    /// Presentation time.
    pub presentation_time: Duration,
    pub bytes: Bytes,
}

impl DemuxedSample {
    /// Whether a decoder can start with the frame: it has a key frame's slice or the parameter sets that come with one.
    pub fn is_key_frame(&self) -> bool {
        let mut first_bytes = nal_unit_types(&self.bytes);
        match self.codec {
            SampleCodec::H264 => first_bytes.any(|first| matches!(first & 0x1f, 5 | 7)),
            SampleCodec::H265 => first_bytes.any(|first| matches!(first >> 1 & 0x3f, 16..=21 | 32 | 33)),
            SampleCodec::Opus | SampleCodec::Aac(_) => true,
        }
    }
}

/// First bytes of NAL units, which follow start codes.
fn nal_unit_types(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let with_header = bytes.windows(4).filter(|window| window.starts_with(&[0, 0, 1]));
    with_header.filter_map(|window| window.last().copied())
}

/// Reason why a segment cannot be played.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ContainerError {
    #[error("unknown HLS segment format: neither MPEG-TS, fragmented MP4 nor packed AAC")]
    UnrecognisedFormat,
    #[error("the fragmented MP4 segment has no initialization section (EXT-X-MAP)")]
    MissingInitSection,
    #[error("malformed HLS segment: {0}")]
    Malformed(String),
    #[error("the HLS segment has no frames of H.264, H.265, AAC or Opus, but has unsupported codecs: {0}")]
    UnsupportedCodec(String),
    #[error(
        "the media in the HLS segment is encrypted (MPEG-TS scrambling or MP4 Common Encryption), which the gateway cannot decrypt"
    )]
    Encrypted,
    #[error("the HLS segment contains no audio or video frames")]
    NoFrames,
}

/// Converts ticks of a clock rate in Hz to a duration.
pub(super) fn ticks_to_duration(ticks: u64, rate: u32) -> Duration {
    crate::media::clock::ticks_to_duration(ticks, rate.max(1))
}
