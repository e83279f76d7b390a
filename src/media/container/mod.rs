//! What segments of HLS are made of: MPEG-TS, fragmented MP4 and packed audio. Whole segments go in, frames come out.
//!
//! A [`Demuxer`] is for the segments of one rendition between two discontinuities. It is told nothing of what the
//! segments are: it looks (RFC 8216 §3).

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

/// What a frame is. Video has start codes (ITU-T H.264 and H.265, annex B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    H264,
    H265,
    Opus,
    Aac(AacConfig),
}

impl Content {
    /// Audio or video.
    pub fn kind(self) -> Kind {
        match self {
            Self::H264 | Self::H265 => Kind::Video,
            Self::Opus | Self::Aac(_) => Kind::Audio,
        }
    }
}

/// A frame. Its times count from an origin that all renditions of a stream share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub content: Content,
    /// When it is due at a decoder.
    pub decode: Duration,
    /// When it is shown.
    pub present: Duration,
    pub bytes: Bytes,
}

/// Why a segment holds nothing that can be played.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ContainerError {
    #[error("the segment is neither MPEG-TS nor fragmented MP4 nor packed AAC")]
    Unrecognised,
    #[error("the segment is fragmented MP4 without its initialization section")]
    NoInit,
    #[error("the segment is broken: {0}")]
    Broken(String),
    #[error("the segment holds neither H.264, H.265, AAC nor Opus but {0}")]
    Unsupported(String),
    #[error("the segment is encrypted inside (DRM), which only a licensed player can undo")]
    Encrypted,
    #[error("the segment holds no frames")]
    Empty,
}

/// Takes the segments of one rendition apart.
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
    /// What stands before the next segments (EXT-X-MAP).
    pub fn set_init(&mut self, init: Bytes) {
        if self.init != init {
            self.init = init;
            if matches!(self.format, Some(Container::Mp4(_))) {
                self.format = None;
            }
        }
    }

    /// What [`Self::set_init`] gave.
    pub fn take_init(&mut self) -> Bytes {
        std::mem::take(&mut self.init)
    }

    /// The frames of a segment, in the order of decoding for each kind.
    ///
    /// # Errors
    ///
    /// A [`ContainerError`]; the next segment may be given nevertheless.
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
                // Tables may stand apart from the segments; then they are the initialization section.
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
            (ContainerKind::Packed, known) => {
                let mut packed = match known {
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

/// What a segment looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContainerKind {
    Ts,
    Mp4,
    Packed,
}

/// Boxes that a segment or an initialization section may begin with.
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

/// A time of a clock that counts `rate` ticks a second.
fn time(ticks: u64, rate: u32) -> Duration {
    super::clock::duration(ticks, rate.max(1))
}

#[cfg(test)]
mod tests;
