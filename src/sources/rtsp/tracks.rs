//! Which tracks of a camera are read, and what is known of them before the first packet.

use bytes::Bytes;
use retina::client::{Described, Session, Stream};

use super::assembler::Assembler;
use super::sdp::{self, Section};
use super::silence::Silence;
use super::trouble::Rejections;
use millstream_core::media::mpeg4_audio::AacDepacketizer;
use millstream_core::media::{Codec, Format, Kind};
use millstream_core::sources::frame_source::Announced;

/// A track of the session.
pub(super) struct Track {
    /// Index in the session description.
    pub(super) index: usize,
    pub(super) announced: Announced,
    pub(super) payload_type: u8,
    /// Clock rate of the session description, in Hz.
    rate: u32,
    pub(super) parameter_sets: Vec<Bytes>,
    pub(super) assembler: Assembler,
    pub(super) silence: Silence,
    /// Its silence was logged.
    pub(super) silence_logged: bool,
    pub(super) rejections: Rejections,
    /// NTP timestamp of the last sender report.
    pub(super) last_report: Option<u64>,
}

/// The tracks that are read, video first, and the names of those that are not.
pub(super) struct Choice {
    pub(super) tracks: Vec<Track>,
    /// Such as `audio L16/44100`.
    pub(super) left_out: Vec<String>,
}

/// Offset added to timestamps, because those of retina may be slightly negative.
const TIME_ORIGIN: i64 = 1 << 33;

/// Maximum number of tracks that are named as left out.
const MAX_LEFT_OUT: usize = 8;

impl Track {
    fn new(index: usize, stream: &Stream, candidate: Candidate, silence: Silence) -> Self {
        let codec = candidate.announced.codec;
        let parameter_sets = candidate.parameter_sets;
        let assembler = match candidate.aac {
            Some(aac) => Assembler::aac(aac, stream.clock_rate_hz()),
            None => Assembler::new(codec, &parameter_sets),
        };
        Self {
            index,
            announced: candidate.announced,
            payload_type: stream.rtp_payload_type(),
            rate: stream.clock_rate_hz(),
            parameter_sets,
            assembler,
            silence,
            silence_logged: false,
            rejections: Rejections::default(),
            last_report: None,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.announced.codec.kind()
    }

    /// Makes a timestamp of retina positive.
    pub(super) fn positive(time: i64) -> u64 {
        time.saturating_add(TIME_ORIGIN).unsigned_abs()
    }

    /// Converts a timestamp from the clock rate of the session description to that of the codec.
    pub(super) fn scaled(&self, time: u64) -> u64 {
        let rate = self.announced.codec.clock_rate();
        if rate == self.rate {
            return time;
        }
        let scaled = u128::from(time) * u128::from(rate) / u128::from(self.rate.max(1));
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
}

/// A track that can be read.
struct Candidate {
    announced: Announced,
    /// Those of the session description. Some cameras send them nowhere else.
    parameter_sets: Vec<Bytes>,
    aac: Option<AacDepacketizer>,
}

/// Returns the best track of each kind.
pub(super) fn choose(session: &Session<Described>, silence: &dyn Fn() -> Silence) -> Choice {
    let mut left_out = Vec::new();
    let sections = sdp::sections(session.sdp());
    let mut known: Vec<(usize, &Stream, Candidate)> = Vec::new();
    for (index, stream) in session.streams().iter().enumerate() {
        let control = stream.control().map(|url| url.as_str());
        let is_own = |section: &&Section| section.is_of(stream.media(), stream.rtp_payload_type(), control);
        let section = sections.iter().find(is_own);
        if section.is_some_and(|section| section.is_back_channel(&sections)) {
            continue;
        }
        match candidate(stream, section.map_or("", Section::parameters)) {
            Some(candidate) => known.push((index, stream, candidate)),
            None if matches!(stream.media(), "video" | "audio") => left_out.push(label(stream)),
            None => {}
        }
    }
    let is_video = |(.., candidate): &(usize, &Stream, Candidate)| candidate.announced.codec.kind() == Kind::Video;
    let video = known.iter().position(is_video).map(|at| known.remove(at));
    let can_be_packets = video
        .as_ref()
        .is_none_or(|(.., video)| video.announced.codec != Codec::Jpeg);
    let rank = |(_, stream, candidate): &(usize, &Stream, Candidate)| match candidate.announced.codec {
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
    let tracks: Vec<Track> = video
        .into_iter()
        .chain(audio)
        .map(|(index, stream, candidate)| Track::new(index, stream, candidate, silence()))
        .collect();
    left_out.truncate(MAX_LEFT_OUT);
    Choice { tracks, left_out }
}

fn label(stream: &Stream) -> String {
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

fn candidate(stream: &Stream, parameters: &str) -> Option<Candidate> {
    let is_telephone = stream.clock_rate_hz() == 8_000 && stream.channels().is_none_or(|channels| channels.get() == 1);
    let announced = match (stream.media(), stream.encoding_name().trim()) {
        ("video", "h264") => Codec::H264.into(),
        ("video", "h265") => Codec::H265.into(),
        ("video", "jpeg") => Codec::Jpeg.into(),
        ("audio", "pcmu") if is_telephone => Format::Pcmu.into(),
        ("audio", "pcma") if is_telephone => Format::Pcma.into(),
        ("audio", "opus") => Codec::Opus.into(),
        ("audio", "mpeg4-generic" | "mp4a-latm") => {
            let channels = stream.channels().and_then(|channels| u8::try_from(channels.get()).ok());
            let (rate, channels) = (stream.clock_rate_hz(), channels.unwrap_or(1));
            let aac = match stream.encoding_name().trim() {
                "mp4a-latm" => AacDepacketizer::latm(parameters),
                _ => AacDepacketizer::generic(parameters, rate, channels),
            }?;
            return Some(Candidate {
                announced: Format::Aac(aac.config()).into(),
                parameter_sets: Vec::new(),
                aac: Some(aac),
            });
        }
        _ => return None,
    };
    Some(Candidate {
        announced,
        parameter_sets: sdp::parameter_sets(parameters, announced.codec),
        aac: None,
    })
}
