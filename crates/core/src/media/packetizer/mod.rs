//! Packetizes frames into RTP payloads: H.264 (RFC 6184, packetization mode 1), H.265 (RFC 7798), Opus (RFC 7587) and
//! G.711 (RFC 3551 §4.5.14).
//!
//! Used for sources that do not send RTP to the gateway, or whose packets are too long to forward. A [`Packetizer`]
//! belongs to one track of one source. It drops NAL units that no receiver needs (access unit delimiters, filler), and
//! inserts the latest parameter sets before a key frame without them. Sequence numbers and timestamps are assigned by
//! the caller.

use bytes::Bytes;
use thiserror::Error;

use super::codec::{MAX_RTP_PAYLOAD_BYTES, PayloadInspector};
use super::{Codec, CodecFormat};

mod h264;
mod h265;
mod nal;
#[cfg(test)]
mod tests;

pub(in crate::media) use nal::find_start_code;
pub use nal::split_annex_b;
pub(crate) use nal::split_length_prefixed_nals;

/// Maximum length of a NAL unit in bytes. An uncompressed 1080p frame in 4:2:0 has 3 MB.
pub const MAX_NAL_BYTES: usize = 4 << 20;

/// Maximum length of an access unit in bytes.
pub const MAX_ACCESS_UNIT_BYTES: usize = 8 << 20;

/// Maximum number of NAL units in an access unit. Typical frames have one to a few dozen.
pub const MAX_NALS_PER_ACCESS_UNIT: usize = 4_096;

/// Reason why a frame was not packetized. No part of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PacketizerError {
    #[error("the RTP packetizer does not support {} for this kind of frame", .0.name())]
    UnsupportedCodec(Codec),
    #[error("an access unit of {0} bytes is longer than the limit of {MAX_ACCESS_UNIT_BYTES} bytes")]
    AccessUnitTooLong(usize),
    #[error("a NAL unit of {0} bytes is longer than the limit of {MAX_NAL_BYTES} bytes")]
    NalTooLong(usize),
    #[error("an access unit has more NAL units than the limit of {MAX_NALS_PER_ACCESS_UNIT}")]
    TooManyNals,
    #[error("an access unit of {0} bytes does not start with a start code")]
    NoStartCode(usize),
    #[error("a NAL unit of {length} bytes is truncated: only {left} bytes are left")]
    TruncatedNal { length: usize, left: usize },
    #[error("an Opus packet of {0} bytes is longer than the limit of {MAX_RTP_PAYLOAD_BYTES} bytes")]
    OpusTooLong(usize),
    #[error("a G.711 frame of {0} bytes is longer than the limit of {MAX_G711_FRAME_BYTES} bytes")]
    G711TooLong(usize),
    #[error("an AAC frame of {0} bytes is longer than the limit of {MAX_AAC_FRAME_BYTES} bytes")]
    AacTooLong(usize),
    #[error("a JPEG image of {0} bytes is longer than the limit of {MAX_JPEG_BYTES} bytes")]
    JpegTooLong(usize),
}

/// One RTP payload, of at most [`MAX_RTP_PAYLOAD_BYTES`] bytes. A frame of AAC or JPEG is never sent to peers and stays whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RtpPayload {
    pub bytes: Bytes,
    /// Last payload of an access unit.
    pub marker: bool,
    /// Identifies its access unit as a key frame, as in [`PayloadInspection`](super::codec::PayloadInspection).
    pub identifies_key_frame: bool,
    /// Offset from the timestamp of the frame in clock ticks; 0 except for split G.711.
    pub timestamp_offset: u32,
}

/// Packetizes the frames of one track.
pub struct Packetizer {
    codec: Codec,
    /// Inspects NAL units one by one: a NAL unit is a valid payload by itself (RFC 6184 §5.6, RFC 7798 §4.4.1).
    payload_inspector: PayloadInspector,
    /// Number of the access unit, used as its timestamp for the inspector.
    access_unit_number: u32,
}

/// Maximum length of a G.711 frame in bytes: eight seconds.
const MAX_G711_FRAME_BYTES: usize = 64_000;

/// Maximum length of an AAC frame in bytes: the 13-bit length of ADTS (ISO/IEC 13818-7 §6.2).
const MAX_AAC_FRAME_BYTES: usize = 8_191;

/// Maximum length of a JPEG image in bytes.
const MAX_JPEG_BYTES: usize = 2 << 20;

/// How a NAL unit is packetized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NalPacketization {
    /// Not sent: not needed by receivers, or invalid.
    Dropped,
    /// Parameter sets and other small NAL units, which are aggregated.
    Aggregated,
    /// Coded slice data.
    Slice,
}

impl Packetizer {
    /// Creates a packetizer.
    ///
    /// # Errors
    ///
    /// [`PacketizerError::UnsupportedCodec`] for VP8, VP9 and AV1, which no frame-based source has.
    pub fn new(codec: Codec) -> Result<Self, PacketizerError> {
        match codec {
            Codec::H264 | Codec::H265 | Codec::Jpeg | Codec::Opus | Codec::Pcmu | Codec::Pcma | Codec::Aac => {
                Ok(Self {
                    codec,
                    payload_inspector: PayloadInspector::new(codec),
                    access_unit_number: 0,
                })
            }
            Codec::Vp8 | Codec::Vp9 | Codec::Av1 => Err(PacketizerError::UnsupportedCodec(codec)),
        }
    }

    /// Returns the codec of the track.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Format from the parameter sets; `None` before the first.
    pub fn format(&self) -> Option<CodecFormat> {
        self.payload_inspector.format()
    }

    /// Width and height in pixels; `None` before the first parameter sets.
    pub fn resolution(&self) -> Option<(u16, u16)> {
        self.payload_inspector.resolution()
    }

    /// Whether the bitstream has B-frames.
    pub fn has_b_frames(&self) -> bool {
        self.payload_inspector.found_b_frames()
    }

    /// Whether H.264 has no IDR frames, but others that most decoders can start with.
    pub(crate) fn lacks_idr_frames(&self) -> bool {
        self.payload_inspector.lacks_idr_frames()
    }

    /// Stores parameter sets that were signalled separately, e.g. in the SDP. Later ones with the same ID replace them.
    pub fn store_out_of_band_parameter_sets(&mut self, parameter_sets: &[Bytes]) {
        self.access_unit_number = self.access_unit_number.wrapping_add(1);
        for nal in parameter_sets {
            if self.nal_packetization(nal) == NalPacketization::Aggregated {
                self.payload_inspector.inspect_rtp_payload(self.access_unit_number, nal);
            }
        }
    }

    /// Packetizes one access unit of H.264 or H.265, given as NAL units in decoding order without start codes.
    ///
    /// # Errors
    ///
    /// A [`PacketizerError`] if it is too long, or if the track is not H.264 or H.265.
    pub fn packetize_video(&mut self, nals: &[Bytes]) -> Result<Vec<RtpPayload>, PacketizerError> {
        if !matches!(self.codec, Codec::H264 | Codec::H265) {
            return Err(PacketizerError::UnsupportedCodec(self.codec));
        }
        check_access_unit_limits(nals)?;
        self.access_unit_number = self.access_unit_number.wrapping_add(1);
        let mut out = Vec::new();
        let mut missing = Vec::new();
        let mut small = Vec::new();
        for nal in nals {
            let role = self.nal_packetization(nal);
            if role == NalPacketization::Dropped {
                continue;
            }
            let inspection = self.payload_inspector.inspect_rtp_payload(self.access_unit_number, nal);
            missing.extend(inspection.parameter_sets_to_insert);
            if role == NalPacketization::Aggregated && nal.len() <= MAX_RTP_PAYLOAD_BYTES {
                small.push(nal.clone());
                continue;
            }
            self.aggregate_small_nals(&mut small, &mut out);
            let first = out.len();
            self.push_nal_or_fragments(nal, &mut out);
            if let Some(payload) = out.get_mut(first) {
                payload.identifies_key_frame = inspection.identifies_key_frame;
            }
        }
        self.aggregate_small_nals(&mut small, &mut out);
        // Parameter sets come first: SEI messages may refer to them.
        out.splice(0..0, missing.into_iter().map(RtpPayload::new));
        if let Some(last) = out.last_mut() {
            last.marker = true;
        }
        Ok(out)
    }

    /// Packetizes one audio frame. Opus and AAC stay unchanged; long G.711 frames are split.
    ///
    /// # Errors
    ///
    /// A [`PacketizerError`] if it is too long, or if the track is video.
    pub fn packetize_audio(&mut self, frame: &Bytes) -> Result<Vec<RtpPayload>, PacketizerError> {
        match self.codec {
            Codec::Opus if frame.len() > MAX_RTP_PAYLOAD_BYTES => Err(PacketizerError::OpusTooLong(frame.len())),
            Codec::Opus => Ok(vec![RtpPayload::new(frame.clone())]),
            Codec::Pcmu | Codec::Pcma if frame.len() > MAX_G711_FRAME_BYTES => {
                Err(PacketizerError::G711TooLong(frame.len()))
            }
            // One byte is one sample and one clock tick.
            Codec::Pcmu | Codec::Pcma => Ok((0..frame.len())
                .step_by(MAX_G711_PAYLOAD_BYTES)
                .map(|start| RtpPayload {
                    timestamp_offset: u32::try_from(start).unwrap_or(0),
                    ..RtpPayload::new(frame.slice(start..frame.len().min(start + MAX_G711_PAYLOAD_BYTES)))
                })
                .collect()),
            Codec::Aac if frame.len() > MAX_AAC_FRAME_BYTES => Err(PacketizerError::AacTooLong(frame.len())),
            Codec::Aac => Ok(vec![RtpPayload::new(frame.clone())]),
            Codec::H264 | Codec::H265 | Codec::Vp8 | Codec::Vp9 | Codec::Av1 | Codec::Jpeg => {
                Err(PacketizerError::UnsupportedCodec(self.codec))
            }
        }
    }

    /// Packetizes a JPEG image into one payload. It is not split, because it is never sent to peers.
    ///
    /// # Errors
    ///
    /// A [`PacketizerError`] if it is too long, or if the track is not JPEG.
    pub fn packetize_jpeg(&mut self, image: &Bytes) -> Result<Vec<RtpPayload>, PacketizerError> {
        if self.codec != Codec::Jpeg {
            return Err(PacketizerError::UnsupportedCodec(self.codec));
        }
        if image.len() > MAX_JPEG_BYTES {
            return Err(PacketizerError::JpegTooLong(image.len()));
        }
        self.access_unit_number = self.access_unit_number.wrapping_add(1);
        self.payload_inspector
            .inspect_rtp_payload(self.access_unit_number, image);
        Ok(vec![RtpPayload {
            marker: true,
            identifies_key_frame: true,
            ..RtpPayload::new(image.clone())
        }])
    }

    fn nal_packetization(&self, nal: &[u8]) -> NalPacketization {
        match self.codec {
            Codec::H264 => h264::classify_nal_for_packetization(nal),
            Codec::H265 => h265::classify_nal_for_packetization(nal),
            _ => NalPacketization::Dropped,
        }
    }

    /// Aggregates small NAL units in order into as few payloads as possible; each fits into one.
    fn aggregate_small_nals(&self, small: &mut Vec<Bytes>, out: &mut Vec<RtpPayload>) {
        let header = self.nal_header_len();
        let mut group = Vec::new();
        let mut length = header;
        for nal in small.drain(..) {
            if length + NAL_SIZE_FIELD_LEN + nal.len() > MAX_RTP_PAYLOAD_BYTES {
                self.push_aggregation_packet(&mut group, out);
                length = header;
            }
            length += NAL_SIZE_FIELD_LEN + nal.len();
            group.push(nal);
        }
        self.push_aggregation_packet(&mut group, out);
    }

    fn push_aggregation_packet(&self, group: &mut Vec<Bytes>, out: &mut Vec<RtpPayload>) {
        let payload = match group.as_slice() {
            [] => return,
            [single] => single.clone(),
            several if self.codec == Codec::H265 => aggregation_packet(&h265::aggregation_header(several), several),
            several => aggregation_packet(&h264::aggregation_header(several), several),
        };
        group.clear();
        out.push(RtpPayload::new(payload));
    }

    fn push_nal_or_fragments(&self, nal: &Bytes, out: &mut Vec<RtpPayload>) {
        if nal.len() <= MAX_RTP_PAYLOAD_BYTES {
            out.push(RtpPayload::new(nal.clone()));
        } else if self.codec == Codec::H265 {
            out.extend(h265::fu_payloads(nal).map(RtpPayload::new));
        } else {
            out.extend(h264::fu_a_payloads(nal).map(RtpPayload::new));
        }
    }

    /// Length of a NAL unit header in bytes; that of an aggregation packet is the same.
    fn nal_header_len(&self) -> usize {
        if self.codec == Codec::H265 { 2 } else { 1 }
    }
}

impl RtpPayload {
    fn new(bytes: Bytes) -> Self {
        Self {
            bytes,
            marker: false,
            identifies_key_frame: false,
            timestamp_offset: 0,
        }
    }
}

/// 100 ms of G.711. Browsers accept more, but their jitter buffers are designed for packets of 10 to 60 ms.
const MAX_G711_PAYLOAD_BYTES: usize = 800;

/// Length of the size field of each NAL unit in an aggregation packet, in bytes.
const NAL_SIZE_FIELD_LEN: usize = 2;

fn check_access_unit_limits(nals: &[Bytes]) -> Result<(), PacketizerError> {
    if nals.len() > MAX_NALS_PER_ACCESS_UNIT {
        return Err(PacketizerError::TooManyNals);
    }
    if let Some(nal) = nals.iter().find(|nal| nal.len() > MAX_NAL_BYTES) {
        return Err(PacketizerError::NalTooLong(nal.len()));
    }
    match nals.iter().map(Bytes::len).sum() {
        length if length > MAX_ACCESS_UNIT_BYTES => Err(PacketizerError::AccessUnitTooLong(length)),
        _ => Ok(()),
    }
}

/// The header, then each NAL unit with a 16-bit size field (RFC 6184 §5.7.1, RFC 7798 §4.4.2).
fn aggregation_packet(header: &[u8], nals: &[Bytes]) -> Bytes {
    let mut payload = header.to_vec();
    for nal in nals {
        payload.extend_from_slice(&u16::try_from(nal.len()).unwrap_or(u16::MAX).to_be_bytes());
        payload.extend_from_slice(nal);
    }
    payload.into()
}

/// Splits a body into fragments of `size` bytes. `header` returns the header of a fragment for its start and end flags.
fn split_into_fragments(body: &[u8], size: usize, header: impl Fn(u8) -> Vec<u8>) -> impl Iterator<Item = Bytes> {
    let count = body.len().div_ceil(size);
    body.chunks(size).enumerate().map(move |(index, chunk)| {
        // The FU header of both codecs has the start and end flags in its two highest bits.
        let start = if index == 0 { 0x80 } else { 0 };
        let end = if index + 1 == count { 0x40 } else { 0 };
        let mut payload = header(start | end);
        payload.extend_from_slice(chunk);
        payload.into()
    })
}
