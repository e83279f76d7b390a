//! Which tracks of a camera are read, and what is known of them before the first packet.

use bytes::Bytes;
use retina::client::{Described, Session, Stream};

use super::assembler::{FrameTimestampCorrector, TrackFrameAssembler};
use super::packet_silence::PacketSilenceDetector;
use super::retina_errors::PacketRejections;
use super::sdp::{self, CameraMediaSection};
use millstream_core::media::aac_depacketizer::AacDepacketizer;
use millstream_core::media::decoding_order_numbers::announces_decoding_order_numbers;
use millstream_core::media::{Codec, CodecFormat, MediaKind};
use millstream_core::sources::frame_source::AnnouncedTrack;

/// A track of the session.
pub(super) struct CameraTrack {
    /// Index in the session description.
    pub(super) index: usize,
    pub(super) announced_track: AnnouncedTrack,
    pub(super) payload_type: u8,
    /// Clock rate of the session description, in Hz.
    clock_rate: u32,
    pub(super) parameter_sets: Vec<Bytes>,
    pub(super) assembler: TrackFrameAssembler,
    /// For frames that retina depacketized, which do not go through the assembler.
    pub(super) frame_timestamps: FrameTimestampCorrector,
    pub(super) packet_silence: PacketSilenceDetector,
    /// Its silence was logged.
    pub(super) packet_silence_logged: bool,
    pub(super) packet_rejections: PacketRejections,
    /// NTP timestamp of the last sender report.
    pub(super) last_sender_report_ntp: Option<u64>,
}

/// The tracks that are read, video first, and the names of those that are not.
pub(super) struct TrackSelection {
    pub(super) tracks: Vec<CameraTrack>,
    /// Such as `audio L16/44100`.
    pub(super) unsupported_tracks: Vec<String>,
    /// Audio that the pipeline `rtsp-audio` converts is among those.
    pub(super) has_convertible_audio: bool,
}

/// Offset added to timestamps, because those of retina may be slightly negative.
const RETINA_TIMESTAMP_OFFSET: i64 = 1 << 33;

/// Maximum number of tracks that are named as left out.
const MAX_LISTED_UNSUPPORTED_TRACKS: usize = 8;

impl CameraTrack {
    fn new(index: usize, stream: &Stream, candidate: SupportedTrack, silence: PacketSilenceDetector) -> Self {
        let codec = candidate.announced_track.codec;
        let parameter_sets = candidate.parameter_sets;
        let assembler = match candidate.aac_depacketizer {
            Some(aac) => TrackFrameAssembler::new_aac(aac, stream.clock_rate_hz()),
            None => TrackFrameAssembler::new(codec, &parameter_sets, candidate.has_decoding_order_numbers),
        };
        Self {
            index,
            announced_track: candidate.announced_track,
            payload_type: stream.rtp_payload_type(),
            clock_rate: stream.clock_rate_hz(),
            parameter_sets,
            assembler,
            frame_timestamps: FrameTimestampCorrector::new(codec, stream.clock_rate_hz()),
            packet_silence: silence,
            packet_silence_logged: false,
            packet_rejections: PacketRejections::default(),
            last_sender_report_ntp: None,
        }
    }

    pub(super) fn kind(&self) -> MediaKind {
        self.announced_track.codec.kind()
    }

    /// Makes a timestamp of retina positive.
    pub(super) fn to_unsigned_timestamp(time: i64) -> u64 {
        time.saturating_add(RETINA_TIMESTAMP_OFFSET).unsigned_abs()
    }

    /// Converts a timestamp from the clock rate of the session description to that of the codec.
    pub(super) fn to_codec_clock_rate(&self, time: u64) -> u64 {
        let rate = self.announced_track.codec.clock_rate();
        if rate == self.clock_rate {
            return time;
        }
        let scaled = u128::from(time) * u128::from(rate) / u128::from(self.clock_rate.max(1));
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
}

/// A track that can be read.
struct SupportedTrack {
    announced_track: AnnouncedTrack,
    /// Those of the session description. Some cameras send them nowhere else.
    parameter_sets: Vec<Bytes>,
    aac_depacketizer: Option<AacDepacketizer>,
    has_decoding_order_numbers: bool,
}

/// Returns the best track of each kind.
pub(super) fn select_best_tracks(
    session: &Session<Described>,
    silence: &dyn Fn() -> PacketSilenceDetector,
) -> TrackSelection {
    let (mut left_out, mut has_convertible_audio) = (Vec::new(), false);
    let sections = sdp::parse_media_sections(session.sdp());
    let mut known: Vec<(usize, &Stream, SupportedTrack)> = Vec::new();
    for (index, stream) in session.streams().iter().enumerate() {
        let control = stream.control().map(|url| url.as_str());
        let is_own =
            |section: &&CameraMediaSection| section.matches_track(stream.media(), stream.rtp_payload_type(), control);
        let section = sections.iter().find(is_own);
        if section.is_some_and(|section| section.is_back_channel(&sections)) {
            continue;
        }
        let parameters = section.map(CameraMediaSection::fmtp_parameters).unwrap_or_default();
        match supported_track(stream, &parameters) {
            Some(candidate) => known.push((index, stream, candidate)),
            None if matches!(stream.media(), "video" | "audio") => {
                has_convertible_audio |= is_convertible_audio(stream);
                left_out.push(track_label(stream));
            }
            None => {}
        }
    }
    let is_video =
        |(.., candidate): &(usize, &Stream, SupportedTrack)| candidate.announced_track.codec.kind() == MediaKind::Video;
    let video = known.iter().position(is_video).map(|at| known.remove(at));
    let can_be_packets = video
        .as_ref()
        .is_none_or(|(.., video)| video.announced_track.codec != Codec::Jpeg);
    let rank = |(_, stream, candidate): &(usize, &Stream, SupportedTrack)| match candidate.announced_track.codec {
        Codec::Opus if can_be_packets => Some(0),
        Codec::Pcmu | Codec::Pcma => Some(1),
        // Beside JPEG, retina reads it, if it understood its parameters.
        Codec::Aac if can_be_packets || stream.parameters().is_some() => Some(2),
        _ => None,
    };
    let ranked = known
        .iter()
        .enumerate()
        .filter_map(|(at, track)| Some((rank(track)?, at)));
    let audio = ranked.min().map(|(_, at)| known.remove(at));
    let tracks: Vec<CameraTrack> = video
        .into_iter()
        .chain(audio)
        .map(|(index, stream, candidate)| CameraTrack::new(index, stream, candidate, silence()))
        .collect();
    left_out.truncate(MAX_LISTED_UNSUPPORTED_TRACKS);
    TrackSelection {
        tracks,
        unsupported_tracks: left_out,
        has_convertible_audio,
    }
}

/// Whether the pipeline `rtsp-audio` converts a track.
fn is_convertible_audio(stream: &Stream) -> bool {
    let encoding = stream.encoding_name().trim().to_ascii_lowercase();
    let rate = stream.clock_rate_hz();
    stream.media() == "audio"
        && match encoding.as_str() {
            "l16" | "g722" => true,
            // Wideband G.711 of cameras, mostly at 16 kHz.
            "pcmu" | "pcma" => (11_025..=48_000).contains(&rate),
            "g726-16" | "g726-24" | "g726-32" | "g726-40" => rate == 8_000,
            _ => false,
        }
}

fn track_label(stream: &Stream) -> String {
    let (media, encoding, rate) = (stream.media(), stream.encoding_name(), stream.clock_rate_hz());
    let channels = stream.channels().map_or(1, std::num::NonZeroU16::get);
    let channels = if channels > 1 {
        format!("/{channels}")
    } else {
        String::new()
    };
    let text = format!("{media} {}/{rate}{channels}", encoding.trim().to_ascii_uppercase());
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

fn supported_track(stream: &Stream, parameters: &str) -> Option<SupportedTrack> {
    let is_telephone = stream.clock_rate_hz() == 8_000 && stream.channels().is_none_or(|channels| channels.get() == 1);
    let announced = match (stream.media(), stream.encoding_name().trim()) {
        ("video", "h264") => Codec::H264.into(),
        ("video", "h265") => Codec::H265.into(),
        ("video", "jpeg") => Codec::Jpeg.into(),
        ("audio", "pcmu") if is_telephone => CodecFormat::Pcmu.into(),
        ("audio", "pcma") if is_telephone => CodecFormat::Pcma.into(),
        ("audio", "opus") => Codec::Opus.into(),
        ("audio", "mpeg4-generic" | "mp4a-latm") => {
            let channels = stream.channels().and_then(|channels| u8::try_from(channels.get()).ok());
            let (rate, channels) = (stream.clock_rate_hz(), channels.unwrap_or(1));
            let aac = match stream.encoding_name().trim() {
                "mp4a-latm" => AacDepacketizer::for_mp4a_latm(parameters, rate, channels),
                _ => AacDepacketizer::for_mpeg4_generic(parameters, rate, channels),
            }?;
            return Some(SupportedTrack {
                announced_track: CodecFormat::Aac(aac.config()).into(),
                parameter_sets: Vec::new(),
                aac_depacketizer: Some(aac),
                has_decoding_order_numbers: false,
            });
        }
        _ => return None,
    };
    Some(SupportedTrack {
        announced_track: announced,
        parameter_sets: sdp::parse_parameter_sets(parameters, announced.codec),
        aac_depacketizer: None,
        has_decoding_order_numbers: announces_decoding_order_numbers(announced.codec, parameters),
    })
}
