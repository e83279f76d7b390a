//! Demultiplexes HLS segments: MPEG-TS, fragmented MP4 and packed audio. The input is whole segments, the output
//! frames.
//!
//! A [`Demuxer`] handles the segments of one rendition between two discontinuities. It detects the container format
//! from the data (RFC 8216 §3).

use bytes::Bytes;

use self::adts::Packed;
use self::mp4::Fragments;
pub use self::sample::{ContainerError, Content, Sample};
use self::ts::TransportStream;

mod adts;
mod clock;
mod mp4;
mod sample;
mod ts;

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

#[cfg(test)]
mod tests;
