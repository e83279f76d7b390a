//! From whole frames to RTP payloads: H.264 (RFC 6184, packetization mode 1), H.265 (RFC 7798), Opus (RFC 7587) and G.711
//! (RFC 3551 §4.5.14).
//!
//! This is for sources that are no RTP senders of ours, or whose packets are too long to be forwarded. A
//! [`Packetizer`] belongs to one track of one source. It leaves out what no receiver needs (access unit delimiters,
//! filler), and puts the latest parameter sets before a key frame that came without them. It numbers nothing: sequence
//! numbers and times are its caller's.

use bytes::Bytes;
use thiserror::Error;

use super::codec::{Inspector, MAX_PAYLOAD};
use super::{Codec, Format};

mod h264;
mod h265;
mod nal;
#[cfg(test)]
mod tests;

pub use nal::{annex_b, length_prefixed};

/// Longest NAL unit that is taken, in bytes. An uncompressed 1080p picture in 4:2:0 has 3 MB.
pub const MAX_NAL: usize = 4 << 20;

/// Longest access unit that is taken, in bytes.
pub const MAX_ACCESS_UNIT: usize = 8 << 20;

/// Most NAL units of one access unit. Real pictures have one to some dozens.
pub const MAX_NALS: usize = 4_096;

/// Why a frame was not packetized. Nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PacketizerError {
    #[error("{} cannot be packetized", .0.name())]
    Codec(Codec),
    #[error("an access unit of {0} bytes is longer than {MAX_ACCESS_UNIT} bytes")]
    AccessUnitTooLong(usize),
    #[error("a NAL unit of {0} bytes is longer than {MAX_NAL} bytes")]
    NalTooLong(usize),
    #[error("an access unit has more than {MAX_NALS} NAL units")]
    TooManyNals,
    #[error("an access unit of {0} bytes begins without a start code")]
    NoStartCode(usize),
    #[error("a NAL unit of {length} bytes is announced where {left} are left")]
    Truncated { length: usize, left: usize },
    #[error("an Opus packet of {0} bytes is longer than {MAX_PAYLOAD} bytes")]
    OpusTooLong(usize),
    #[error("a G.711 frame of {0} bytes is longer than {MAX_G711} bytes")]
    G711TooLong(usize),
    #[error("an AAC frame of {0} bytes is longer than {MAX_AAC} bytes")]
    AacTooLong(usize),
    #[error("a JPEG picture of {0} bytes is longer than {MAX_PICTURE} bytes")]
    PictureTooLong(usize),
}

/// One RTP payload, of at most [`MAX_PAYLOAD`] bytes; a frame of AAC or JPEG, which no peer is sent, is one whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    pub bytes: Bytes,
    /// The last one of an access unit.
    pub marker: bool,
    /// It proves that its access unit is one that a decoder can begin with, as an
    /// [`Inspection`](super::codec::Inspection) would.
    pub key_frame: bool,
    /// How long after the time of its frame it begins, in units of the clock rate; 0 but for split G.711.
    pub delay: u32,
}

/// Makes payloads of the frames of one track.
pub struct Packetizer {
    codec: Codec,
    /// Sees the NAL units one by one: a NAL unit is a payload by itself (RFC 6184 §5.6, RFC 7798 §4.4.1).
    inspector: Inspector,
    /// Number of the access unit, which stands for its time.
    unit: u32,
}

/// Longest G.711 frame that is taken, in bytes: eight seconds.
const MAX_G711: usize = 64_000;

/// Longest AAC frame: the 13 bits that ADTS has for its length (ISO/IEC 13818-7 §6.2).
const MAX_AAC: usize = 8_191;

/// Longest JPEG picture that is taken, in bytes.
const MAX_PICTURE: usize = 2 << 20;

/// What becomes of a NAL unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Nobody needs it, or it is none.
    Dropped,
    /// Parameter sets and their like, which share a packet.
    Small,
    /// A part of the picture.
    Slice,
}

impl Packetizer {
    /// Begins with nothing known.
    ///
    /// # Errors
    ///
    /// [`PacketizerError::Codec`] for those that no source of frames has: VP8, VP9 and AV1.
    pub fn new(codec: Codec) -> Result<Self, PacketizerError> {
        match codec {
            Codec::H264 | Codec::H265 | Codec::Jpeg | Codec::Opus | Codec::Pcmu | Codec::Pcma | Codec::Aac => {
                Ok(Self {
                    codec,
                    inspector: Inspector::new(codec),
                    unit: 0,
                })
            }
            Codec::Vp8 | Codec::Vp9 | Codec::Av1 => Err(PacketizerError::Codec(codec)),
        }
    }

    /// The codec of the track.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// What the parameter sets say; `None` before the first.
    pub fn format(&self) -> Option<Format> {
        self.inspector.format()
    }

    /// Width and height in pixels; `None` before the first parameter sets.
    pub fn resolution(&self) -> Option<(u16, u16)> {
        self.inspector.resolution()
    }

    /// Takes parameter sets that came apart from the stream, as in an SDP. Later ones of the same id replace them.
    pub fn remember(&mut self, parameter_sets: &[Bytes]) {
        self.unit = self.unit.wrapping_add(1);
        for nal in parameter_sets {
            if self.role(nal) == Role::Small {
                self.inspector.inspect(self.unit, nal);
            }
        }
    }

    /// Makes payloads of one access unit of H.264 or H.265, given as NAL units in decoding order without start codes.
    ///
    /// # Errors
    ///
    /// A [`PacketizerError`] if it is too long, or if the track is audio.
    pub fn packetize_video(&mut self, nals: &[Bytes]) -> Result<Vec<Payload>, PacketizerError> {
        if !matches!(self.codec, Codec::H264 | Codec::H265) {
            return Err(PacketizerError::Codec(self.codec));
        }
        check(nals)?;
        self.unit = self.unit.wrapping_add(1);
        let mut out = Vec::new();
        let mut missing = Vec::new();
        let mut small = Vec::new();
        for nal in nals {
            let role = self.role(nal);
            if role == Role::Dropped {
                continue;
            }
            let inspection = self.inspector.inspect(self.unit, nal);
            missing.extend(inspection.insert);
            if role == Role::Small && nal.len() <= MAX_PAYLOAD {
                small.push(nal.clone());
                continue;
            }
            self.aggregate(&mut small, &mut out);
            let first = out.len();
            self.fragment(nal, &mut out);
            if let Some(payload) = out.get_mut(first) {
                payload.key_frame = inspection.key_frame;
            }
        }
        self.aggregate(&mut small, &mut out);
        // Parameter sets stand before all else: supplemental information may refer to them.
        out.splice(0..0, missing.into_iter().map(Payload::new));
        if let Some(last) = out.last_mut() {
            last.marker = true;
        }
        Ok(out)
    }

    /// Makes payloads of one frame of Opus or G.711. Opus passes as it is; G.711 is split where it is too long.
    ///
    /// # Errors
    ///
    /// A [`PacketizerError`] if it is too long, or if the track is video.
    pub fn packetize_audio(&mut self, frame: &Bytes) -> Result<Vec<Payload>, PacketizerError> {
        match self.codec {
            Codec::Opus if frame.len() > MAX_PAYLOAD => Err(PacketizerError::OpusTooLong(frame.len())),
            Codec::Opus => Ok(vec![Payload::new(frame.clone())]),
            Codec::Pcmu | Codec::Pcma if frame.len() > MAX_G711 => Err(PacketizerError::G711TooLong(frame.len())),
            // One byte is one sample and one unit of time.
            Codec::Pcmu | Codec::Pcma => Ok((0..frame.len())
                .step_by(MAX_G711_PAYLOAD)
                .map(|start| Payload {
                    delay: u32::try_from(start).unwrap_or(0),
                    ..Payload::new(frame.slice(start..frame.len().min(start + MAX_G711_PAYLOAD)))
                })
                .collect()),
            Codec::Aac if frame.len() > MAX_AAC => Err(PacketizerError::AacTooLong(frame.len())),
            Codec::Aac => Ok(vec![Payload::new(frame.clone())]),
            Codec::H264 | Codec::H265 | Codec::Vp8 | Codec::Vp9 | Codec::Av1 | Codec::Jpeg => {
                Err(PacketizerError::Codec(self.codec))
            }
        }
    }

    /// Makes the one payload of a JPEG picture, which is kept whole: no peer is ever sent it.
    ///
    /// # Errors
    ///
    /// A [`PacketizerError`] if it is too long, or if the track is none of pictures.
    pub fn packetize_picture(&mut self, picture: &Bytes) -> Result<Vec<Payload>, PacketizerError> {
        if self.codec != Codec::Jpeg {
            return Err(PacketizerError::Codec(self.codec));
        }
        if picture.len() > MAX_PICTURE {
            return Err(PacketizerError::PictureTooLong(picture.len()));
        }
        self.unit = self.unit.wrapping_add(1);
        self.inspector.inspect(self.unit, picture);
        Ok(vec![Payload {
            marker: true,
            key_frame: true,
            ..Payload::new(picture.clone())
        }])
    }

    fn role(&self, nal: &[u8]) -> Role {
        match self.codec {
            Codec::H264 => h264::role(nal),
            Codec::H265 => h265::role(nal),
            _ => Role::Dropped,
        }
    }

    /// Puts small NAL units into as few payloads as they need, in their order; each fits into one.
    fn aggregate(&self, small: &mut Vec<Bytes>, out: &mut Vec<Payload>) {
        let header = self.header_len();
        let mut group = Vec::new();
        let mut length = header;
        for nal in small.drain(..) {
            if length + LENGTH_FIELD + nal.len() > MAX_PAYLOAD {
                self.finish_group(&mut group, out);
                length = header;
            }
            length += LENGTH_FIELD + nal.len();
            group.push(nal);
        }
        self.finish_group(&mut group, out);
    }

    fn finish_group(&self, group: &mut Vec<Bytes>, out: &mut Vec<Payload>) {
        let payload = match group.as_slice() {
            [] => return,
            [single] => single.clone(),
            several if self.codec == Codec::H265 => aggregation(&h265::aggregation_header(several), several),
            several => aggregation(&h264::aggregation_header(several), several),
        };
        group.clear();
        out.push(Payload::new(payload));
    }

    fn fragment(&self, nal: &Bytes, out: &mut Vec<Payload>) {
        if nal.len() <= MAX_PAYLOAD {
            out.push(Payload::new(nal.clone()));
        } else if self.codec == Codec::H265 {
            out.extend(h265::fragments(nal).map(Payload::new));
        } else {
            out.extend(h264::fragments(nal).map(Payload::new));
        }
    }

    /// Bytes of a NAL unit header, which is also that of an aggregation packet.
    fn header_len(&self) -> usize {
        if self.codec == Codec::H265 { 2 } else { 1 }
    }
}

impl Payload {
    fn new(bytes: Bytes) -> Self {
        Self {
            bytes,
            marker: false,
            key_frame: false,
            delay: 0,
        }
    }
}

/// 100 ms of G.711. Browsers take more, but their jitter buffers count packets of 10 to 60 ms.
const MAX_G711_PAYLOAD: usize = 800;

/// Bytes before each NAL unit of an aggregation packet.
const LENGTH_FIELD: usize = 2;

fn check(nals: &[Bytes]) -> Result<(), PacketizerError> {
    if nals.len() > MAX_NALS {
        return Err(PacketizerError::TooManyNals);
    }
    if let Some(nal) = nals.iter().find(|nal| nal.len() > MAX_NAL) {
        return Err(PacketizerError::NalTooLong(nal.len()));
    }
    match nals.iter().map(Bytes::len).sum() {
        length if length > MAX_ACCESS_UNIT => Err(PacketizerError::AccessUnitTooLong(length)),
        _ => Ok(()),
    }
}

/// The header, and then each NAL unit after its length in 16 bits (RFC 6184 §5.7.1, RFC 7798 §4.4.2).
fn aggregation(header: &[u8], nals: &[Bytes]) -> Bytes {
    let mut payload = header.to_vec();
    for nal in nals {
        payload.extend_from_slice(&u16::try_from(nal.len()).unwrap_or(u16::MAX).to_be_bytes());
        payload.extend_from_slice(nal);
    }
    payload.into()
}

/// Cuts a body into pieces of `size` bytes, each behind what `header` makes of whether it is the first and the last.
fn pieces(body: &[u8], size: usize, header: impl Fn(u8) -> Vec<u8>) -> impl Iterator<Item = Bytes> {
    let count = body.len().div_ceil(size);
    body.chunks(size).enumerate().map(move |(index, chunk)| {
        // The FU header of both codecs has start and end in its two highest bits.
        let start = if index == 0 { 0x80 } else { 0 };
        let end = if index + 1 == count { 0x40 } else { 0 };
        let mut payload = header(start | end);
        payload.extend_from_slice(chunk);
        payload.into()
    })
}
