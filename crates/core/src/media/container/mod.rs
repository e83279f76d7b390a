//! Demultiplexes HLS segments: MPEG-TS, fragmented MP4 and packed audio. The input is whole segments, the output
//! frames.
//!
//! A [`Demuxer`] handles the segments of one rendition between two discontinuities. It detects the container format
//! from the data (RFC 8216 §3).

use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use self::adts::Packed;
use self::mp4::Fragments;
use self::ts::TransportStream;
use super::Kind;
use super::aac::AacConfig;

mod adts;
mod mp4;
mod ts;

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

/// Demultiplexes the segments of one rendition.
#[derive(Default)]
pub struct Demuxer {
    init: Bytes,
    format: Option<Container>,
}

enum Container {
    Ts(Box<TransportStream>),
    Mp4(Box<Fragments>),
    Packed(Packed),
}

impl Demuxer {
    /// Sets the initialization section of the next segments (EXT-X-MAP).
    pub fn set_init(&mut self, init: Bytes) {
        if self.init != init {
            self.init = init;
            if matches!(self.format, Some(Container::Mp4(_))) {
                self.format = None;
            }
        }
    }

    /// Takes the initialization section out of the demuxer.
    pub fn take_init(&mut self) -> Bytes {
        std::mem::take(&mut self.init)
    }

    /// Returns the frames of a segment, each kind in decoding order.
    ///
    /// # Errors
    ///
    /// A [`ContainerError`]; the next segment can be demultiplexed nevertheless.
    pub fn segment(&mut self, segment: &Bytes) -> Result<Vec<Sample>, ContainerError> {
        let found = ContainerKind::of(segment).ok_or(ContainerError::Unrecognised)?;
        let samples = match (found, self.format.take()) {
            (ContainerKind::Ts, Some(Container::Ts(mut stream))) => {
                let samples = stream.segment(segment);
                self.format = Some(Container::Ts(stream));
                samples?
            }
            (ContainerKind::Ts, _) => {
                let mut stream = Box::<TransportStream>::default();
                // PAT and PMT may be in the initialization section instead of the segments.
                stream.tables(&self.init);
                let samples = stream.segment(segment);
                self.format = Some(Container::Ts(stream));
                samples?
            }
            (ContainerKind::Mp4, Some(Container::Mp4(mut fragments))) => {
                let samples = fragments.segment(segment);
                self.format = Some(Container::Mp4(fragments));
                samples?
            }
            (ContainerKind::Mp4, _) => {
                let init = if self.init.is_empty() { segment } else { &self.init };
                let mut fragments = Box::new(Fragments::new(init)?);
                let samples = fragments.segment(segment);
                self.format = Some(Container::Mp4(fragments));
                samples?
            }
            (ContainerKind::Packed, current) => {
                let mut packed = match current {
                    Some(Container::Packed(packed)) => packed,
                    _ => Packed::default(),
                };
                let samples = packed.segment(segment);
                self.format = Some(Container::Packed(packed));
                samples?
            }
        };
        if samples.is_empty() {
            return Err(ContainerError::Empty);
        }
        Ok(samples)
    }
}

/// Detected container format of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContainerKind {
    Ts,
    Mp4,
    Packed,
}

/// Boxes that a segment or an initialization section may start with.
const BOXES: [&[u8; 4]; 9] = [
    b"ftyp", b"styp", b"moof", b"moov", b"sidx", b"emsg", b"prft", b"free", b"skip",
];

impl ContainerKind {
    fn of(segment: &[u8]) -> Option<Self> {
        let byte = |at: usize| segment.get(at).copied();
        if byte(0) == Some(ts::SYNC) && byte(ts::PACKET).is_none_or(|byte| byte == ts::SYNC) {
            return Some(Self::Ts);
        }
        if segment.starts_with(b"ID3") || adts::is_frame(segment) {
            return Some(Self::Packed);
        }
        let name = segment.get(4..8)?;
        BOXES.iter().any(|known| name == *known).then_some(Self::Mp4)
    }
}

/// Converts ticks of a clock rate in Hz to a duration.
fn time(ticks: u64, rate: u32) -> Duration {
    super::clock::duration(ticks, rate.max(1))
}

#[cfg(test)]
mod tests;
