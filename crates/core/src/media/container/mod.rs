//! Demultiplexes HLS segments: MPEG-TS, fragmented MP4 and packed audio. The input is segments or parts of them, the
//! output frames.
//!
//! A [`Demuxer`] handles the segments of one rendition. It detects the container format from the data (RFC 8216 §3).

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
        if self.init == init {
            return;
        }
        self.init = init;
        match &mut self.format {
            Some(Container::Mp4(_)) => self.format = None,
            Some(Container::Ts(stream)) => stream.tables(&self.init),
            Some(Container::Packed(_)) | None => {}
        }
    }

    /// Returns the frames that are complete, each kind in decoding order. There may be none: the last frame of an MPEG-TS
    /// segment may go on in the next one.
    ///
    /// # Errors
    ///
    /// A [`ContainerError`]; the next segment can be demultiplexed nevertheless.
    pub fn segment(&mut self, segment: &Bytes) -> Result<Vec<Sample>, ContainerError> {
        let current = match &self.format {
            Some(Container::Ts(_)) => Some(ContainerKind::Ts),
            Some(Container::Mp4(_)) => Some(ContainerKind::Mp4),
            Some(Container::Packed(_)) => Some(ContainerKind::Packed),
            None => None,
        };
        let kind = ContainerKind::of(segment).ok_or(ContainerError::Unrecognised)?;
        if current != Some(kind) {
            self.format = Some(self.container(kind, segment)?);
        }
        match &mut self.format {
            Some(Container::Ts(stream)) => stream.segment(segment),
            // A new header without a new initialization section.
            Some(Container::Mp4(fragments)) => {
                if self.init.is_empty()
                    && let Ok(next) = Fragments::new(segment)
                {
                    **fragments = next;
                }
                fragments.segment(segment)
            }
            Some(Container::Packed(packed)) => packed.segment(segment),
            None => Err(ContainerError::Unrecognised),
        }
    }

    fn container(&self, kind: ContainerKind, segment: &Bytes) -> Result<Container, ContainerError> {
        Ok(match kind {
            ContainerKind::Ts => {
                let mut stream = Box::<TransportStream>::default();
                // PAT and PMT may be in the initialization section instead of the segments.
                stream.tables(&self.init);
                Container::Ts(stream)
            }
            ContainerKind::Mp4 => {
                let init = if self.init.is_empty() { segment } else { &self.init };
                Container::Mp4(Box::new(Fragments::new(init)?))
            }
            ContainerKind::Packed => Container::Packed(Packed::default()),
        })
    }

    /// Returns the rest of the frames: the end, or a discontinuity. Tables and initialization section are kept, because
    /// they may apply on both sides.
    pub fn flush(&mut self) -> Vec<Sample> {
        match &mut self.format {
            Some(Container::Ts(stream)) => stream.flush(),
            Some(Container::Mp4(_) | Container::Packed(_)) => {
                self.format = None;
                Vec::new()
            }
            None => Vec::new(),
        }
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
const BOXES: [&[u8; 4]; 13] = [
    b"ftyp", b"styp", b"moof", b"moov", b"sidx", b"ssix", b"emsg", b"prft", b"free", b"skip", b"uuid", b"mdat", b"pdin",
];

impl ContainerKind {
    fn of(segment: &[u8]) -> Option<Self> {
        if segment.first() == Some(&ts::SYNC) && ts::is_transport_stream(segment) {
            return Some(Self::Ts);
        }
        if segment.starts_with(b"ID3") || adts::is_frame(segment) {
            return Some(Self::Packed);
        }
        let is_box = segment
            .get(4..8)
            .is_some_and(|name| BOXES.iter().any(|known| name == *known));
        if is_box {
            return Some(Self::Mp4);
        }
        ts::is_transport_stream(segment).then_some(Self::Ts)
    }
}

#[cfg(test)]
mod tests;
