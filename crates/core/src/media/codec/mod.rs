//! Inspects video bitstreams packet by packet: where a decoder can start, which parameter sets are missing there,
//! profile and resolution. The SDP is only a hint for these (OBS announces one profile for every encoder).
//!
//! An [`PayloadInspector`] belongs to one SSRC and gets its packets in arrival order, including gaps. A packet is classified
//! by its own contents, never by assumptions about lost packets. Memory per stream is bounded (about 10 KiB), and no
//! input causes a panic.

use bytes::Bytes;

use self::inspection_findings::KeyFrameAndFormatFindings;
use super::{Codec, CodecFormat};

pub mod av1;
mod av1_frame_repeater;
pub mod bit_reader;
mod bit_writer;
mod cabac_encoder;
mod frame_reference;
pub mod frame_repeater;
mod h264;
mod h264_cabac;
mod h264_frame_repeater;
mod h264_recovery_point;
mod h264_slice;
mod h265;
mod h265_frame_repeater;
mod h265_repeater_params;
mod h265_slice;
mod inspection_findings;
mod parameter_sets;
mod payload_framing;
mod poc_b_frame_detector;
pub mod vp8;
pub mod vp9;
mod vp9_frame_repeater;

pub use frame_reference::FrameReference;
pub use parameter_sets::MAX_RTP_PAYLOAD_BYTES;
pub(in crate::media) use parameter_sets::iter_aggregated_nals;
pub use payload_framing::PayloadFraming;
pub(crate) use payload_framing::classify_payload;
pub(in crate::media) use payload_framing::{classify_h264_nal, classify_h265_nal};

/// Result of inspecting one packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PayloadInspection {
    /// This packet identifies its frame as a key frame, provided that `parameter_sets_to_insert` is placed before it. The frame may have
    /// started earlier, and several of its packets may identify it. A fragment from the middle of a slice does not:
    /// without its start the frame cannot be decoded.
    ///
    /// Always false for audio, where a decoder can start with every packet.
    pub identifies_key_frame: bool,
    /// Parameter sets that the publisher did not repeat, each an RTP payload of at most [`MAX_RTP_PAYLOAD_BYTES`] bytes, to be
    /// inserted directly before this packet with its timestamp and without marker. Requested once per frame, at the
    /// first packet in arrival order that starts a random access slice. If they cannot be inserted, because the packet
    /// is late and its followers are numbered already, the packet does not identify a key frame.
    pub parameter_sets_to_insert: Vec<Bytes>,
    /// The format, if it is the first or differs from the previous one.
    pub new_format: Option<CodecFormat>,
    /// Width and height in pixels, if they are the first or differ from the previous ones.
    pub new_resolution: Option<(u16, u16)>,
}

/// Inspects the packets of one SSRC.
pub struct PayloadInspector {
    codec_inspector: CodecInspector,
    format: Option<CodecFormat>,
    resolution: Option<(u16, u16)>,
    /// Format and resolution of parameter sets that were signalled separately, until the first packet.
    out_of_band_properties: (Option<CodecFormat>, Option<(u16, u16)>),
}

enum CodecInspector {
    H264(h264::H264Inspector),
    H265(h265::H265Inspector),
    Vp8,
    Vp9,
    Av1,
    Jpeg,
    Audio,
}

impl PayloadInspector {
    /// Creates an inspector. The format of G.711 has no parameters and is known immediately. Whether Opus is stereo may
    /// change with every packet and does not matter to decoders, so its format remains unknown here.
    pub fn new(codec: Codec) -> Self {
        let (stream, format) = match codec {
            Codec::H264 => (CodecInspector::H264(h264::H264Inspector::new()), None),
            Codec::H265 => (CodecInspector::H265(h265::H265Inspector::new()), None),
            Codec::Vp8 => (CodecInspector::Vp8, None),
            Codec::Vp9 => (CodecInspector::Vp9, None),
            Codec::Av1 => (CodecInspector::Av1, None),
            Codec::Opus => (CodecInspector::Audio, None),
            Codec::Pcmu => (CodecInspector::Audio, Some(CodecFormat::Pcmu)),
            Codec::Pcma => (CodecInspector::Audio, Some(CodecFormat::Pcma)),
            Codec::Jpeg => (CodecInspector::Jpeg, Some(CodecFormat::Jpeg)),
            // The configuration is signalled separately from the frames.
            Codec::Aac => (CodecInspector::Audio, None),
        };
        Self {
            codec_inspector: stream,
            format,
            resolution: None,
            out_of_band_properties: (None, None),
        }
    }

    /// Stores parameter sets of H.264 or H.265 that were signalled separately, such as in an SDP: NAL units without start
    /// code. Later ones with the same ID replace them. Format and resolution are known from then on.
    pub fn store_out_of_band_parameter_sets(&mut self, parameter_sets: &[Bytes]) {
        let mut finding = KeyFrameAndFormatFindings::default();
        for nal in parameter_sets {
            match &mut self.codec_inspector {
                CodecInspector::H264(stream) => stream.store_out_of_band_parameter_set(nal, &mut finding),
                CodecInspector::H265(stream) => stream.store_out_of_band_parameter_set(nal, &mut finding),
                CodecInspector::Vp8
                | CodecInspector::Vp9
                | CodecInspector::Av1
                | CodecInspector::Jpeg
                | CodecInspector::Audio => {}
            }
        }
        self.out_of_band_properties = (
            finding.format.or(self.out_of_band_properties.0),
            finding.resolution.or(self.out_of_band_properties.1),
        );
    }

    /// What follows has unrelated timestamps; parameter sets are kept.
    pub(crate) fn on_timestamp_discontinuity(&mut self) {
        match &mut self.codec_inspector {
            CodecInspector::H264(stream) => stream.on_timestamp_discontinuity(),
            CodecInspector::H265(stream) => stream.on_timestamp_discontinuity(),
            CodecInspector::Vp8
            | CodecInspector::Vp9
            | CodecInspector::Av1
            | CodecInspector::Jpeg
            | CodecInspector::Audio => {}
        }
    }

    /// Inspects one packet. `time` is its RTP timestamp, `payload` excludes padding. Duplicates are harmless, but avoid
    /// a second `parameter_sets_to_insert` only while their frame is one of the last eight.
    pub fn inspect_rtp_payload(&mut self, time: u32, payload: &Bytes) -> PayloadInspection {
        let finding = match &mut self.codec_inspector {
            CodecInspector::H264(stream) => stream.inspect_rtp_payload(time, payload),
            CodecInspector::H265(stream) => stream.inspect_rtp_payload(time, payload),
            CodecInspector::Vp8 => vp8::inspect_rtp_payload(payload),
            CodecInspector::Vp9 => vp9::inspect_rtp_payload(payload),
            CodecInspector::Av1 => av1::inspect_rtp_payload(payload),
            CodecInspector::Jpeg => KeyFrameAndFormatFindings {
                identifies_key_frame: true,
                resolution: super::jpeg::parse_jpeg_resolution(payload),
                ..KeyFrameAndFormatFindings::default()
            },
            CodecInspector::Audio => KeyFrameAndFormatFindings::default(),
        };
        let (format, resolution) = std::mem::take(&mut self.out_of_band_properties);
        PayloadInspection {
            identifies_key_frame: finding.identifies_key_frame,
            parameter_sets_to_insert: finding.parameter_sets_to_insert,
            new_format: replace_and_return_if_changed(&mut self.format, finding.format.or(format)),
            new_resolution: replace_and_return_if_changed(&mut self.resolution, finding.resolution.or(resolution)),
        }
    }

    /// Whether a payload starts the picture after the newest one, by the counter of reference pictures of H.264; `None` if
    /// that cannot be said.
    pub fn payload_starts_next_picture(&self, payload: &[u8]) -> Option<bool> {
        match &self.codec_inspector {
            CodecInspector::H264(stream) => stream.payload_starts_next_picture(payload),
            _ => None,
        }
    }

    /// Whether pictures are sent in another order than they are shown (B-frames), by parameter sets, slice types and picture
    /// order counts of H.264 and H.265.
    pub(crate) fn found_b_frames(&self) -> bool {
        match &self.codec_inspector {
            CodecInspector::H264(stream) => stream.found_b_frames(),
            CodecInspector::H265(stream) => stream.found_b_frames(),
            CodecInspector::Vp8
            | CodecInspector::Vp9
            | CodecInspector::Av1
            | CodecInspector::Jpeg
            | CodecInspector::Audio => false,
        }
    }

    /// Whether H.264 has no IDR frames, but others that most decoders can start with. Those of browsers cannot.
    pub(crate) fn lacks_idr_frames(&self) -> bool {
        match &self.codec_inspector {
            CodecInspector::H264(stream) => stream.lacks_idr_frames(),
            CodecInspector::H265(stream) => stream.lacks_irap_pictures(),
            CodecInspector::Vp8
            | CodecInspector::Vp9
            | CodecInspector::Av1
            | CodecInspector::Jpeg
            | CodecInspector::Audio => false,
        }
    }

    /// Format of the stream; `None` until it is found in the bitstream.
    pub fn format(&self) -> Option<CodecFormat> {
        self.out_of_band_properties.0.or(self.format)
    }

    /// Width and height in pixels; `None` until they are found in the bitstream.
    pub fn resolution(&self) -> Option<(u16, u16)> {
        self.out_of_band_properties.1.or(self.resolution)
    }
}

/// Stores a found value, and returns it if it has changed.
fn replace_and_return_if_changed<T: Copy + PartialEq>(current: &mut Option<T>, found: Option<T>) -> Option<T> {
    if found.is_none() || *current == found {
        return None;
    }
    *current = found;
    found
}

#[cfg(test)]
mod tests;
