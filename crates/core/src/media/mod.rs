//! Media types: identifiers, codecs and formats. Plain data, no I/O, no clock.

use std::fmt;
use std::sync::Arc;

pub mod aac;
pub mod aac_depacketizer;
mod abs_capture_time;
pub mod clock;
pub mod codec;
pub mod container;
pub mod data_message;
pub mod decoding_order_numbers;
pub mod depacketizer;
pub mod frame_assembler;
pub mod jpeg;
mod latm;
pub mod marker;
mod nal_unit_separator;
pub mod packet;
pub mod packetizer;
pub mod payload_discard;
pub mod rtcp;
pub mod rtp;
pub mod rtp_packet;
pub mod timestamp_corrector;
mod timestamp_jumps;
pub mod track_delivery;

/// Synchronisation source of an RTP stream (RFC 3550 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ssrc(pub u32);

/// RTP payload type, 0..=127 (RFC 3550 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PayloadType(pub u8);

/// Media identification of an m-section (RFC 5888 §4); opaque.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mid(pub Arc<str>);

/// Restriction identifier (RID) of a simulcast layer (RFC 8851 §4).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rid(pub Arc<str>);

/// Media kind of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaKind {
    Audio,
    Video,
}

impl fmt::Display for MediaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MediaKind::Audio => "audio",
            MediaKind::Video => "video",
        })
    }
}

/// Supported codecs. The parameters that decide about compatibility are in [`CodecFormat`].
///
/// AAC and JPEG come from cameras and pipelines and are stored as whole frames. WebRTC supports neither, so viewers get
/// a track_deliveryd stream, see [`track_delivery`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    H264,
    H265,
    Vp8,
    Vp9,
    Av1,
    Opus,
    Pcmu,
    Pcma,
    Aac,
    Jpeg,
}

impl Codec {
    /// Returns the media kind of the codec.
    pub fn kind(self) -> MediaKind {
        match self {
            Codec::H264 | Codec::H265 | Codec::Vp8 | Codec::Vp9 | Codec::Av1 | Codec::Jpeg => MediaKind::Video,
            Codec::Opus | Codec::Pcmu | Codec::Pcma | Codec::Aac => MediaKind::Audio,
        }
    }

    /// RTP clock rate in Hz. AAC always uses 48 kHz, regardless of its sampling rate.
    pub fn clock_rate(self) -> u32 {
        match self {
            Codec::H264 | Codec::H265 | Codec::Vp8 | Codec::Vp9 | Codec::Av1 | Codec::Jpeg => 90_000,
            Codec::Opus | Codec::Aac => 48_000,
            Codec::Pcmu | Codec::Pcma => 8_000,
        }
    }

    /// Encoding name as registered for SDP `rtpmap`.
    pub fn name(self) -> &'static str {
        match self {
            Codec::H264 => "H264",
            Codec::H265 => "H265",
            Codec::Vp8 => "VP8",
            Codec::Vp9 => "VP9",
            Codec::Av1 => "AV1",
            Codec::Opus => "opus",
            Codec::Pcmu => "PCMU",
            Codec::Pcma => "PCMA",
            Codec::Aac => "AAC",
            Codec::Jpeg => "JPEG",
        }
    }
}

/// H.264 `profile-level-id`: profile_idc, constraint flags, level_idc (RFC 6184 §8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProfileLevelId(pub [u8; 3]);

impl ProfileLevelId {
    /// Constrained Baseline, level 3.1: the default of browsers if the parameter is missing.
    pub const CONSTRAINED_BASELINE_3_1: Self = Self([0x42, 0xe0, 0x1f]);

    /// The profile class, which decides whether a decoder can play the stream; the level is ignored.
    pub fn profile(self) -> H264Profile {
        let [idc, iop, _] = self.0;
        match idc {
            0x42 if iop & 0x40 != 0 => H264Profile::ConstrainedBaseline,
            0x42 => H264Profile::Baseline,
            0x4d if iop & 0x80 != 0 => H264Profile::ConstrainedBaseline,
            0x4d => H264Profile::Main,
            0x58 if iop & 0xc0 == 0xc0 => H264Profile::ConstrainedBaseline,
            0x58 => H264Profile::Extended,
            0x64 if iop & 0x0c == 0x0c => H264Profile::ConstrainedHigh,
            0x64 => H264Profile::High,
            0xf4 => H264Profile::High444,
            _ => H264Profile::Other,
        }
    }
}

impl fmt::Display for ProfileLevelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}")
    }
}

/// Profile classes of H.264 (RFC 6184 §8.1, table 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum H264Profile {
    ConstrainedBaseline,
    Baseline,
    Main,
    Extended,
    High,
    ConstrainedHigh,
    High444,
    Other,
}

/// A codec with the parameters that decide whether a peer can decode it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodecFormat {
    /// `packetization_mode` is 0 or 1 (RFC 6184 §6.2).
    H264 {
        profile: ProfileLevelId,
        packetization_mode: u8,
    },
    /// `profile_id` and `tier_flag` of RFC 7798 §7.1; the level is ignored.
    H265 {
        profile_id: u8,
        tier_flag: u8,
    },
    Vp8,
    /// `profile` 0..=3.
    Vp9 {
        profile: u8,
    },
    /// `profile` 0..=2.
    Av1 {
        profile: u8,
    },
    /// `stereo` as requested by the author of the description.
    Opus {
        stereo: bool,
    },
    Pcmu,
    Pcma,
    Aac(aac::AacConfig),
    Jpeg,
}

impl CodecFormat {
    /// Returns the codec without its parameters.
    pub fn codec(self) -> Codec {
        match self {
            CodecFormat::H264 { .. } => Codec::H264,
            CodecFormat::H265 { .. } => Codec::H265,
            CodecFormat::Vp8 => Codec::Vp8,
            CodecFormat::Vp9 { .. } => Codec::Vp9,
            CodecFormat::Av1 { .. } => Codec::Av1,
            CodecFormat::Opus { .. } => Codec::Opus,
            CodecFormat::Pcmu => Codec::Pcmu,
            CodecFormat::Pcma => Codec::Pcma,
            CodecFormat::Aac(_) => Codec::Aac,
            CodecFormat::Jpeg => Codec::Jpeg,
        }
    }
}

#[cfg(test)]
mod ffmpeg_clip;
