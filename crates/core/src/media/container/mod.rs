//! Demultiplexes HLS segments: MPEG-TS, fragmented MP4 and packed audio. The input is segments or parts of them, the
//! output frames.
//!
//! A [`HlsSegmentDemuxer`] handles the segments of one rendition. It detects the container format from the data (RFC 8216 §3).

use bytes::Bytes;

use self::adts::PackedAudioDemuxer;
use self::mp4::Mp4Demuxer;
pub use self::sample::{ContainerError, DemuxedSample, SampleCodec};
use self::ts::TransportStreamDemuxer;

pub(in crate::media) mod adts;
mod mp4;
mod mpeg_ts_clock;
mod sample;
mod ts;

/// Demultiplexes the segments of one rendition.
#[derive(Default)]
pub struct HlsSegmentDemuxer {
    init_section: Bytes,
    container_demuxer: Option<ContainerDemuxer>,
}

enum ContainerDemuxer {
    Ts(Box<TransportStreamDemuxer>),
    Mp4(Box<Mp4Demuxer>),
    PackedAudio(PackedAudioDemuxer),
}

impl HlsSegmentDemuxer {
    /// Sets the initialization section of the next segments (EXT-X-MAP).
    pub fn set_init_section(&mut self, init_section: Bytes) {
        if self.init_section == init_section {
            return;
        }
        self.init_section = init_section;
        match &mut self.container_demuxer {
            Some(ContainerDemuxer::Mp4(_)) => self.container_demuxer = None,
            Some(ContainerDemuxer::Ts(stream)) => stream.push_tables(&self.init_section),
            Some(ContainerDemuxer::PackedAudio(_)) | None => {}
        }
    }

    /// Returns the frames that are complete, each kind in decoding order. There may be none: the last frame of an MPEG-TS
    /// segment may go on in the next one.
    ///
    /// # Errors
    ///
    /// A [`ContainerError`]; the next segment can be demultiplexed nevertheless.
    pub fn demux_segment(&mut self, segment: &Bytes) -> Result<Vec<DemuxedSample>, ContainerError> {
        let current = match &self.container_demuxer {
            Some(ContainerDemuxer::Ts(_)) => Some(ContainerKind::Ts),
            Some(ContainerDemuxer::Mp4(_)) => Some(ContainerKind::Mp4),
            Some(ContainerDemuxer::PackedAudio(_)) => Some(ContainerKind::PackedAudio),
            None => None,
        };
        let kind = ContainerKind::detect(segment).ok_or(ContainerError::UnrecognisedFormat)?;
        if current != Some(kind) {
            self.container_demuxer = Some(self.create_demuxer(kind, segment)?);
        }
        match &mut self.container_demuxer {
            Some(ContainerDemuxer::Ts(stream)) => stream.push_segment(segment),
            // A new header without a new initialization section.
            Some(ContainerDemuxer::Mp4(fragments)) => {
                if self.init_section.is_empty()
                    && let Ok(next) = Mp4Demuxer::new(segment)
                {
                    **fragments = next;
                }
                fragments.demux_segment(segment)
            }
            Some(ContainerDemuxer::PackedAudio(packed)) => packed.demux_segment(segment),
            None => Err(ContainerError::UnrecognisedFormat),
        }
    }

    fn create_demuxer(&self, kind: ContainerKind, segment: &Bytes) -> Result<ContainerDemuxer, ContainerError> {
        Ok(match kind {
            ContainerKind::Ts => {
                let mut stream = Box::<TransportStreamDemuxer>::default();
                // PAT and PMT may be in the initialization section instead of the segments.
                stream.push_tables(&self.init_section);
                ContainerDemuxer::Ts(stream)
            }
            ContainerKind::Mp4 => {
                let init = if self.init_section.is_empty() {
                    segment
                } else {
                    &self.init_section
                };
                ContainerDemuxer::Mp4(Box::new(Mp4Demuxer::new(init)?))
            }
            ContainerKind::PackedAudio => ContainerDemuxer::PackedAudio(PackedAudioDemuxer::default()),
        })
    }

    /// Returns the tracks of the last segment whose codec is not supported, such as `audio AC-3`.
    pub fn unsupported_tracks(&self) -> Vec<String> {
        match &self.container_demuxer {
            Some(ContainerDemuxer::Ts(stream)) => stream.unsupported_tracks(),
            Some(ContainerDemuxer::Mp4(fragments)) => fragments.unsupported_tracks(),
            Some(ContainerDemuxer::PackedAudio(_)) | None => Vec::new(),
        }
    }

    /// Returns the rest of the frames of a variant: what follows is another one, on the same clock.
    pub fn flush_keeping_clock(&mut self) -> Vec<DemuxedSample> {
        match &mut self.container_demuxer {
            Some(ContainerDemuxer::Ts(stream)) => stream.flush_keeping_clock(),
            Some(ContainerDemuxer::Mp4(_) | ContainerDemuxer::PackedAudio(_)) | None => self.flush(),
        }
    }

    /// Returns the rest of the frames: the end, or a discontinuity. Tables and initialization section are kept, because
    /// they may apply on both sides.
    pub fn flush(&mut self) -> Vec<DemuxedSample> {
        match &mut self.container_demuxer {
            Some(ContainerDemuxer::Ts(stream)) => stream.flush(),
            Some(ContainerDemuxer::Mp4(_) | ContainerDemuxer::PackedAudio(_)) => {
                self.container_demuxer = None;
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
    PackedAudio,
}

/// Boxes that a segment or an initialization section may start with.
const TOP_LEVEL_MP4_BOXES: [&[u8; 4]; 13] = [
    b"ftyp", b"styp", b"moof", b"moov", b"sidx", b"ssix", b"emsg", b"prft", b"free", b"skip", b"uuid", b"mdat", b"pdin",
];

impl ContainerKind {
    fn detect(segment: &[u8]) -> Option<Self> {
        if segment.first() == Some(&ts::SYNC_BYTE) && ts::is_transport_stream(segment) {
            return Some(Self::Ts);
        }
        if segment.starts_with(b"ID3") || adts::starts_with_adts_frame(segment) {
            return Some(Self::PackedAudio);
        }
        let is_box = segment
            .get(4..8)
            .is_some_and(|name| TOP_LEVEL_MP4_BOXES.iter().any(|known| name == *known));
        if is_box {
            return Some(Self::Mp4);
        }
        let is_ts = ts::is_transport_stream(segment) || ts::is_transport_stream_behind_garbage(segment);
        if is_ts {
            return Some(Self::Ts);
        }
        adts::packed_codec(segment).map(|_| Self::PackedAudio)
    }
}

#[cfg(test)]
mod tests;
