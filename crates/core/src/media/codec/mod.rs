//! Inspects video bitstreams packet by packet: where a decoder can start, which parameter sets are missing there,
//! profile and resolution. The SDP is only a hint for these (OBS announces one profile for every encoder).
//!
//! An [`Inspector`] belongs to one SSRC and gets its packets in arrival order, including gaps. A packet is classified
//! by its own contents, never by assumptions about lost packets. Memory per stream is bounded (about 10 KiB), and no
//! input causes a panic.

use bytes::Bytes;

use self::finding::Finding;
use super::{Codec, Format};

pub mod av1;
pub mod bits;
mod finding;
mod h264;
mod h264_slice;
mod h265;
mod h265_slice;
mod order;
mod parameter_sets;
mod part;
pub mod vp8;
pub mod vp9;

pub use parameter_sets::MAX_PAYLOAD;
pub use part::{Part, part};
pub(in crate::media) use part::{h264_nal, h265_nal};

/// Result of inspecting one packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// This packet identifies its frame as a key frame, provided that `insert` is placed before it. The frame may have
    /// started earlier, and several of its packets may identify it. A fragment from the middle of a slice does not:
    /// without its start the frame cannot be decoded.
    ///
    /// Always false for audio, where a decoder can start with every packet.
    pub key_frame: bool,
    /// Parameter sets that the publisher did not repeat, each an RTP payload of at most [`MAX_PAYLOAD`] bytes, to be
    /// inserted directly before this packet with its timestamp and without marker. Requested once per frame, at the
    /// first packet in arrival order that starts a random access slice. If they cannot be inserted, because the packet
    /// is late and its followers are numbered already, the packet does not identify a key frame.
    pub insert: Vec<Bytes>,
    /// The format, if it is the first or differs from the previous one.
    pub format_changed: Option<Format>,
    /// Width and height in pixels, if they are the first or differ from the previous ones.
    pub resolution_changed: Option<(u16, u16)>,
}

/// Inspects the packets of one SSRC.
pub struct Inspector {
    stream: Stream,
    format: Option<Format>,
    resolution: Option<(u16, u16)>,
    /// Format and resolution of parameter sets that were signalled separately, until the first packet.
    seeded: (Option<Format>, Option<(u16, u16)>),
}

enum Stream {
    H264(h264::Stream),
    H265(h265::Stream),
    Vp8,
    Vp9,
    Av1,
    Jpeg,
    Audio,
}

impl Inspector {
    /// Creates an inspector. The format of G.711 has no parameters and is known immediately. Whether Opus is stereo may
    /// change with every packet and does not matter to decoders, so its format remains unknown here.
    pub fn new(codec: Codec) -> Self {
        let (stream, format) = match codec {
            Codec::H264 => (Stream::H264(h264::Stream::new()), None),
            Codec::H265 => (Stream::H265(h265::Stream::new()), None),
            Codec::Vp8 => (Stream::Vp8, None),
            Codec::Vp9 => (Stream::Vp9, None),
            Codec::Av1 => (Stream::Av1, None),
            Codec::Opus => (Stream::Audio, None),
            Codec::Pcmu => (Stream::Audio, Some(Format::Pcmu)),
            Codec::Pcma => (Stream::Audio, Some(Format::Pcma)),
            Codec::Jpeg => (Stream::Jpeg, Some(Format::Jpeg)),
            // The configuration is signalled separately from the frames.
            Codec::Aac => (Stream::Audio, None),
        };
        Self {
            stream,
            format,
            resolution: None,
            seeded: (None, None),
        }
    }

    /// Stores parameter sets of H.264 or H.265 that were signalled separately, such as in an SDP: NAL units without start
    /// code. Later ones with the same ID replace them. Format and resolution are known from then on.
    pub fn seed(&mut self, parameter_sets: &[Bytes]) {
        let mut finding = Finding::default();
        for nal in parameter_sets {
            match &mut self.stream {
                Stream::H264(stream) => stream.seed(nal, &mut finding),
                Stream::H265(stream) => stream.seed(nal, &mut finding),
                Stream::Vp8 | Stream::Vp9 | Stream::Av1 | Stream::Jpeg | Stream::Audio => {}
            }
        }
        self.seeded = (finding.format.or(self.seeded.0), finding.resolution.or(self.seeded.1));
    }

    /// What follows has unrelated timestamps; parameter sets are kept.
    pub fn restart(&mut self) {
        match &mut self.stream {
            Stream::H264(stream) => stream.restart(),
            Stream::H265(stream) => stream.restart(),
            Stream::Vp8 | Stream::Vp9 | Stream::Av1 | Stream::Jpeg | Stream::Audio => {}
        }
    }

    /// Inspects one packet. `time` is its RTP timestamp, `payload` excludes padding. Duplicates are harmless, but avoid
    /// a second `insert` only while their frame is one of the last eight.
    pub fn inspect(&mut self, time: u32, payload: &Bytes) -> Inspection {
        let finding = match &mut self.stream {
            Stream::H264(stream) => stream.inspect(time, payload),
            Stream::H265(stream) => stream.inspect(time, payload),
            Stream::Vp8 => vp8::inspect(payload),
            Stream::Vp9 => vp9::inspect(payload),
            Stream::Av1 => av1::inspect(payload),
            Stream::Jpeg => Finding {
                key_frame: true,
                resolution: super::jpeg::resolution(payload),
                ..Finding::default()
            },
            Stream::Audio => Finding::default(),
        };
        let (format, resolution) = std::mem::take(&mut self.seeded);
        Inspection {
            key_frame: finding.key_frame,
            insert: finding.insert,
            format_changed: replace(&mut self.format, finding.format.or(format)),
            resolution_changed: replace(&mut self.resolution, finding.resolution.or(resolution)),
        }
    }

    /// Whether pictures are sent in another order than they are shown (B-frames), by parameter sets, slice types and picture
    /// order counts of H.264 and H.265.
    pub fn is_reordered(&self) -> bool {
        match &self.stream {
            Stream::H264(stream) => stream.is_reordered(),
            Stream::H265(stream) => stream.is_reordered(),
            Stream::Vp8 | Stream::Vp9 | Stream::Av1 | Stream::Jpeg | Stream::Audio => false,
        }
    }

    /// Format of the stream; `None` until it is found in the bitstream.
    pub fn format(&self) -> Option<Format> {
        self.seeded.0.or(self.format)
    }

    /// Width and height in pixels; `None` until they are found in the bitstream.
    pub fn resolution(&self) -> Option<(u16, u16)> {
        self.seeded.1.or(self.resolution)
    }
}

/// Stores a found value, and returns it if it has changed.
fn replace<T: Copy + PartialEq>(current: &mut Option<T>, found: Option<T>) -> Option<T> {
    if found.is_none() || *current == found {
        return None;
    }
    *current = found;
    found
}

#[cfg(test)]
mod tests;
