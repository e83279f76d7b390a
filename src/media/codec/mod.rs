//! Judges a video stream by its bitstream, packet by packet: where a decoder can begin, which parameter sets are missing
//! there, profile and resolution. What the SDP says of them is a wish (OBS writes one profile for every encoder).
//!
//! An [`Inspector`] belongs to one SSRC and sees its packets as they arrive, gaps and all: a packet is judged by what it
//! proves, never by what probably came before. Memory per stream is bounded (about 10 KiB), and nothing here panics
//! on any input.

use bytes::Bytes;

use super::{Codec, Format};

pub mod av1;
pub(crate) mod bits;
mod h264;
mod h265;
mod parameter_sets;
pub mod vp8;
pub mod vp9;

pub use parameter_sets::MAX_PAYLOAD;

/// What one packet says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// This packet proves that its frame is one that a decoder can begin with, once what is in `insert` stands before it.
    /// The frame may have begun earlier, and several packets of it may prove it. A fragment in the middle of a slice
    /// proves nothing: without its start the frame cannot be decoded.
    ///
    /// Always false for audio, of which every packet is a start.
    pub key_frame: bool,
    /// Parameter sets that the publisher left out, each one RTP payload of at most [`MAX_PAYLOAD`] bytes, to be placed
    /// right before this packet with its time and no marker. Asked for once per frame, at the first packet in arrival
    /// order that starts a slice to begin with. Where they cannot be placed, because the packet is late and what follows
    /// it is placed already, the packet proves no key frame.
    pub insert: Vec<Bytes>,
    /// The format, if it is another one than before or the first.
    pub format_changed: Option<Format>,
    /// Width and height in pixels, if they are others than before or the first.
    pub resolution_changed: Option<(u16, u16)>,
}

/// Inspects the packets of one SSRC.
pub struct Inspector {
    stream: Stream,
    format: Option<Format>,
    resolution: Option<(u16, u16)>,
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

/// What a codec found in one packet.
#[derive(Debug, Default, PartialEq, Eq)]
struct Finding {
    key_frame: bool,
    insert: Vec<Bytes>,
    format: Option<Format>,
    resolution: Option<(u16, u16)>,
}

impl Inspector {
    /// Begins with nothing known. G.711 has no parameters, so its format is known at once; whether Opus is stereo may
    /// change with every packet and never matters to a decoder, so its format stays unknown here.
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
            // Its configuration comes apart from the frames.
            Codec::Aac => (Stream::Audio, None),
        };
        Self {
            stream,
            format,
            resolution: None,
        }
    }

    /// Judges one packet. `time` is its RTP time, `payload` is without padding and not empty in any packet that matters.
    /// Duplicates do no harm, but ask for nothing twice only while their frame is one of the last eight.
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
        Inspection {
            key_frame: finding.key_frame,
            insert: finding.insert,
            format_changed: replace(&mut self.format, finding.format),
            resolution_changed: replace(&mut self.resolution, finding.resolution),
        }
    }

    /// The format of the stream; `None` before its bitstream told.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Width and height in pixels; `None` before the bitstream told.
    pub fn resolution(&self) -> Option<(u16, u16)> {
        self.resolution
    }
}

/// Takes over what was found, and returns it if it is new.
fn replace<T: Copy + PartialEq>(known: &mut Option<T>, found: Option<T>) -> Option<T> {
    if found.is_none() || *known == found {
        return None;
    }
    *known = found;
    found
}

#[cfg(test)]
mod tests;
