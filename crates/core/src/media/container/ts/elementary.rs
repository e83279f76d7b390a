//! PES packets of one elementary stream (ISO/IEC 13818-1 §2.4.3.6).

use bytes::BytesMut;

use super::super::adts::AdtsParser;
use super::super::mpeg_ts_clock::{MPEG_TIMESTAMP_MASK, MPEG_TS_CLOCK_RATE, MpegTimestampUnwrapper};
use super::super::sample::{DemuxedSample, SampleCodec, ticks_to_duration};
use super::access_units::{AccessUnit, AccessUnitSplitter, DecodeAndPresentationTimes, VideoCodec};
use super::continuity::{ContinuityChecker, PacketContinuity};
use super::packet::TsPacket;
use super::tables::{ElementaryStreamInfo, SupportedElementaryStreamKind};

/// Reads the frames of one stream.
pub(super) struct ElementaryStreamParser {
    pub(super) info: ElementaryStreamInfo,
    parser: FrameParser,
    continuity_checker: ContinuityChecker,
    /// No packet has come since the segment began.
    awaits_first_packet: bool,
    /// Header of the PES packet in progress, while it is incomplete.
    partial_pes_header: Option<Vec<u8>>,
    /// Bytes of the PES packet in progress that are still to come, if it is of audio and says how long it is.
    pes_bytes_left: Option<usize>,
    /// A PES packet is in progress.
    in_pes_packet: bool,
}

enum FrameParser {
    Video(AccessUnitSplitter, VideoCodec),
    Audio {
        adts: AdtsParser,
        times: Option<DecodeAndPresentationTimes>,
        /// The PES packet in progress.
        packet: BytesMut,
    },
}

/// Maximum length of a PES packet with audio, in bytes.
const MAX_AUDIO_PES_BYTES: usize = 1 << 20;

/// Length of a PES header up to the optional fields.
const PES_FIXED_HEADER_LEN: usize = 9;

impl ElementaryStreamParser {
    pub(super) fn new(stream: ElementaryStreamInfo) -> Self {
        let contents = match stream.kind {
            SupportedElementaryStreamKind::Video(codec) => FrameParser::Video(AccessUnitSplitter::new(codec), codec),
            SupportedElementaryStreamKind::Aac => FrameParser::Audio {
                adts: AdtsParser::default(),
                times: None,
                packet: BytesMut::new(),
            },
        };
        Self {
            info: stream,
            parser: contents,
            continuity_checker: ContinuityChecker::default(),
            awaits_first_packet: true,
            partial_pes_header: None,
            pes_bytes_left: None,
            in_pes_packet: false,
        }
    }

    /// Records that a segment begins: many packagers start their continuity counters again.
    pub(super) fn begin_segment(&mut self) {
        self.awaits_first_packet = true;
    }

    /// Whether a packet has come since the segment began.
    pub(super) fn has_packet_in_segment(&self) -> bool {
        !self.awaits_first_packet
    }

    pub(super) fn push_packet(
        &mut self,
        packet: &TsPacket<'_>,
        clock: &mut MpegTimestampUnwrapper,
        out: &mut Vec<DemuxedSample>,
    ) {
        if packet.payload.is_empty() {
            self.continuity_checker
                .record_packet_without_payload(packet.continuity_counter);
            return;
        }
        let is_first = std::mem::take(&mut self.awaits_first_packet);
        let may_jump = packet.is_discontinuous || is_first && packet.payload_unit_start;
        match self.continuity_checker.classify_continuity(packet, may_jump) {
            PacketContinuity::Continues => {}
            PacketContinuity::Duplicate => return,
            PacketContinuity::Lost => self.drop_incomplete_frame_after_loss(),
        }
        if packet.payload_unit_start {
            self.end_pes_packet(out);
            self.in_pes_packet = true;
            self.partial_pes_header = Some(Vec::new());
            self.pes_bytes_left = None;
        }
        if self.in_pes_packet {
            self.read_pes_header_or_push_payload(packet.payload, clock, out);
        }
    }

    fn drop_incomplete_frame_after_loss(&mut self) {
        self.in_pes_packet = false;
        self.partial_pes_header = None;
        match &mut self.parser {
            FrameParser::Video(units, _) => units.drop_damaged_nal(),
            FrameParser::Audio { adts, packet, .. } => {
                packet.clear();
                adts.reset();
            }
        }
    }

    fn read_pes_header_or_push_payload(
        &mut self,
        payload: &[u8],
        clock: &mut MpegTimestampUnwrapper,
        out: &mut Vec<DemuxedSample>,
    ) {
        let Some(mut header) = self.partial_pes_header.take() else {
            return self.push_pes_payload(payload, out);
        };
        header.extend_from_slice(payload);
        let Some(length) = PesHeader::header_len_if_complete(&header) else {
            self.partial_pes_header = Some(header);
            return;
        };
        let Some(parsed) = PesHeader::parse(&header, length) else {
            self.in_pes_packet = false;
            return;
        };
        // Some writers put the low 16 bits of a longer length there. Video goes on until the next packet begins.
        let is_audio = matches!(self.parser, FrameParser::Audio { .. });
        self.pes_bytes_left = parsed.payload_len.filter(|_| is_audio);
        let begun = parsed
            .timestamps
            .map(|ticks| ticks.to_decode_and_presentation_times(clock));
        match &mut self.parser {
            FrameParser::Video(units, _) => units.begin_pes_packet(begun),
            FrameParser::Audio { times, .. } => *times = begun,
        }
        self.push_pes_payload(header.get(length..).unwrap_or_default(), out);
    }

    fn push_pes_payload(&mut self, mut payload: &[u8], out: &mut Vec<DemuxedSample>) {
        if let Some(left) = &mut self.pes_bytes_left {
            payload = payload.get(..*left).unwrap_or(payload);
            *left -= payload.len();
        }
        match &mut self.parser {
            FrameParser::Video(units, codec) => {
                let mut found = Vec::new();
                units.push_bytes_and_split(payload, &mut found);
                append_access_units_as_samples(*codec, found, out);
            }
            FrameParser::Audio { packet, .. } if packet.len() < MAX_AUDIO_PES_BYTES => {
                packet.extend_from_slice(payload)
            }
            FrameParser::Audio { .. } => {}
        }
        if self.pes_bytes_left == Some(0) {
            self.end_pes_packet(out);
        }
    }

    /// Ends the PES packet in progress. Its last access unit may go on in the next one.
    fn end_pes_packet(&mut self, out: &mut Vec<DemuxedSample>) {
        self.in_pes_packet = false;
        self.partial_pes_header = None;
        if let FrameParser::Audio { adts, times, packet } = &mut self.parser
            && !packet.is_empty()
        {
            adts.push_and_parse_frames(times.take().map(|times| times.decode_time), packet, out);
            packet.clear();
        }
    }

    /// Returns the rest of the frames.
    pub(super) fn flush(&mut self, out: &mut Vec<DemuxedSample>) {
        self.end_pes_packet(out);
        self.continuity_checker.reset_last_counter();
        match &mut self.parser {
            FrameParser::Video(units, codec) => {
                let mut found = Vec::new();
                units.flush(&mut found);
                append_access_units_as_samples(*codec, found, out);
            }
            FrameParser::Audio { adts, .. } => adts.reset(),
        }
    }
}

fn append_access_units_as_samples(codec: VideoCodec, units: Vec<AccessUnit>, out: &mut Vec<DemuxedSample>) {
    let content = match codec {
        VideoCodec::H264 => SampleCodec::H264,
        VideoCodec::H265 => SampleCodec::H265,
    };
    out.extend(units.into_iter().map(|unit| DemuxedSample {
        codec: content,
        decode_time: unit.times.decode_time,
        presentation_time: unit.times.presentation_time,
        bytes: unit.bytes.freeze(),
    }));
}

/// What the header of a PES packet says.
struct PesHeader {
    /// Length of the contents in bytes, if it is stated.
    payload_len: Option<usize>,
    timestamps: Option<PesTimestamps>,
}

/// Timestamps in units of 1/90000 s.
struct PesTimestamps {
    pts: u64,
    dts: Option<u64>,
}

impl PesHeader {
    /// Length of the header; `None` while that is unknown.
    fn header_len_if_complete(bytes: &[u8]) -> Option<usize> {
        let length = PES_FIXED_HEADER_LEN + usize::from(*bytes.get(PES_FIXED_HEADER_LEN - 1)?);
        (bytes.len() >= length).then_some(length)
    }

    /// Parses a header; `None` if it is none, or the contents are scrambled.
    fn parse(bytes: &[u8], length: usize) -> Option<Self> {
        let &[0, 0, 1, _, l1, l2, b6, b7, _] = bytes.first_chunk::<PES_FIXED_HEADER_LEN>()? else {
            return None;
        };
        let is_scrambled = b6 & 0x30 != 0;
        if b6 & 0xc0 != 0x80 || is_scrambled {
            return None;
        }
        let stated = usize::from(l1) << 8 | usize::from(l2);
        // The stated length counts the header behind it.
        let left = (stated > 0).then(|| (stated + 6).saturating_sub(length));
        let fields = bytes.get(PES_FIXED_HEADER_LEN..length)?;
        let present = (b7 & 0x80 != 0).then(|| parse_pes_timestamp(fields)).flatten();
        let decode = (b7 & 0x40 != 0)
            .then(|| parse_pes_timestamp(fields.get(5..)?))
            .flatten();
        Some(Self {
            payload_len: left,
            timestamps: present.map(|present| PesTimestamps {
                pts: present,
                dts: decode,
            }),
        })
    }
}

fn parse_pes_timestamp(field: &[u8]) -> Option<u64> {
    let &[b0, b1, b2, b3, b4] = field.first_chunk::<5>()?;
    let high = u64::from(b0 >> 1 & 7) << 30;
    let middle = (u64::from(b1) << 8 | u64::from(b2)) >> 1 << 15;
    Some(high | middle | (u64::from(b3) << 8 | u64::from(b4)) >> 1)
}

impl PesTimestamps {
    fn to_decode_and_presentation_times(&self, clock: &mut MpegTimestampUnwrapper) -> DecodeAndPresentationTimes {
        // Unwrapping uses decoding times: they never go back within a stream.
        let decode = self.dts.unwrap_or(self.pts);
        let ahead = self.pts.wrapping_sub(decode) & MPEG_TIMESTAMP_MASK;
        // More than ten seconds cannot be a reordering delay.
        let ahead = if ahead > 10 * u64::from(MPEG_TS_CLOCK_RATE) {
            0
        } else {
            ahead
        };
        let decode = clock.unwrap_to_duration(decode);
        DecodeAndPresentationTimes {
            decode_time: decode,
            presentation_time: decode + ticks_to_duration(ahead, MPEG_TS_CLOCK_RATE),
        }
    }
}
