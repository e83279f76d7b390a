//! AAC in ADTS frames (ISO/IEC 14496-3 §1.A.3.2), as used in MPEG-TS and in packed audio of HLS (RFC 8216 §3.4).

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};

use super::mpeg_ts_clock::{MPEG_TIMESTAMP_MASK, MpegTimestampUnwrapper};
use super::sample::{ContainerError, DemuxedSample, SampleCodec, ticks_to_duration};
use crate::media::aac::AacConfig;

/// Parses ADTS frames. Frames without a timestamp of their own continue from the last one.
#[derive(Debug, Default)]
pub(super) struct AdtsParser {
    buffered: BytesMut,
    /// Timestamp of the first frame in `buffered`.
    next_timestamp: Option<Duration>,
}

/// Samples per raw data block.
const AAC_SAMPLES_PER_RAW_DATA_BLOCK: u64 = 1_024;

/// Maximum frame length in bytes (13 bits).
const MAX_ADTS_FRAME_LENGTH: usize = 8_191;

impl AdtsParser {
    /// Appends data and parses complete frames; `at` is the timestamp of the first frame that starts in `bytes`.
    pub(super) fn push_and_parse_frames(&mut self, at: Option<Duration>, bytes: &[u8], out: &mut Vec<DemuxedSample>) {
        if self.buffered.is_empty() || self.next_timestamp.is_none() {
            self.next_timestamp = at.or(self.next_timestamp);
        }
        let mut new_timestamp = (!self.buffered.is_empty()).then_some(at).flatten();
        let buffered = self.buffered.len();
        let mut taken = 0;
        self.buffered.extend_from_slice(bytes);
        while let Some(header) = self.skip_to_next_adts_header() {
            if self.buffered.len() < header.frame_length {
                return;
            }
            // A frame that started in earlier data keeps its own timestamp; the first one after it gets the new one.
            if taken >= buffered
                && let Some(at) = new_timestamp.take()
            {
                self.next_timestamp = Some(at);
            }
            taken += header.frame_length;
            let mut frame = self.buffered.split_to(header.frame_length).freeze();
            frame.advance(header.header_length.min(frame.len()));
            let Some(at) = self.next_timestamp else { continue };
            self.next_timestamp = Some(
                at + ticks_to_duration(
                    AAC_SAMPLES_PER_RAW_DATA_BLOCK * header.block_count,
                    header.config.sample_rate,
                ),
            );
            if !frame.is_empty() {
                out.push(DemuxedSample {
                    codec: SampleCodec::Aac(header.config),
                    decode_time: at,
                    presentation_time: at,
                    bytes: frame,
                });
            }
        }
    }

    /// Returns the next header, skipping data that is not a frame.
    fn skip_to_next_adts_header(&mut self) -> Option<AdtsHeader> {
        loop {
            if self.buffered.len() < ADTS_HEADER_LENGTH {
                return None;
            }
            if let Some(header) = AdtsHeader::parse(&self.buffered) {
                return Some(header);
            }
            let next = self.buffered.iter().skip(1).position(|byte| *byte == 0xff);
            let skip = next.map_or(self.buffered.len(), |at| at + 1);
            self.buffered.advance(skip);
        }
    }

    /// Drops the incomplete frame after a gap.
    pub(super) fn reset(&mut self) {
        self.buffered.clear();
        self.next_timestamp = None;
    }
}

/// Header length in bytes, without and with CRC.
const ADTS_HEADER_LENGTH: usize = 7;
const ADTS_HEADER_LENGTH_WITH_CRC: usize = 9;

struct AdtsHeader {
    config: AacConfig,
    /// Frame length including the header, in bytes.
    frame_length: usize,
    /// Header length in bytes.
    header_length: usize,
    /// Number of raw data blocks.
    block_count: u64,
}

impl AdtsHeader {
    /// Parses a header; `None` if it is invalid.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let &[b0, b1, b2, b3, b4, b5, b6] = bytes.first_chunk::<ADTS_HEADER_LENGTH>()?;
        // Sync word of twelve ones, any version, layer 0.
        if b0 != 0xff || b1 & 0xf6 != 0xf0 {
            return None;
        }
        let size = if b1 & 1 == 1 {
            ADTS_HEADER_LENGTH
        } else {
            ADTS_HEADER_LENGTH_WITH_CRC
        };
        let object_type = (b2 >> 6) + 1;
        let rate_index = b2 >> 2 & 0xf;
        let channels = (b2 & 1) << 2 | b3 >> 6;
        let config = [object_type << 3 | rate_index >> 1, rate_index << 7 | channels << 3];
        let length = usize::from(b3 & 3) << 11 | usize::from(b4) << 3 | usize::from(b5 >> 5);
        (rate_index < 13 && (size + 1..=MAX_ADTS_FRAME_LENGTH).contains(&length)).then_some(())?;
        Some(Self {
            config: AacConfig::parse(&config)?,
            frame_length: length,
            header_length: size,
            block_count: u64::from(b6 & 3) + 1,
        })
    }
}

/// Returns the frames without their headers, and what is left from the first position that is no whole frame.
pub(in crate::media) fn split_adts_frames(data: &Bytes) -> (Vec<Bytes>, Bytes) {
    let (mut frames, mut rest) = (Vec::new(), data.clone());
    while let Some(header) = AdtsHeader::parse(&rest).filter(|header| header.frame_length <= rest.len()) {
        let frame = rest.split_to(header.frame_length);
        frames.push(frame.slice(header.header_length..));
    }
    (frames, rest)
}

/// Whether the data starts with an ADTS frame.
pub(in crate::media) fn starts_with_adts_frame(bytes: &[u8]) -> bool {
    AdtsHeader::parse(bytes).is_some()
}

/// Packed audio: ADTS after an ID3 tag with the start time. Some origins of radio leave the tag out: their segments follow
/// each other.
#[derive(Debug, Default)]
pub(super) struct PackedAudioDemuxer {
    adts: AdtsParser,
    timestamp_unwrapper: MpegTimestampUnwrapper,
}

/// Time of the first segment if it states none.
const DEFAULT_FIRST_SEGMENT_START_TIME: Duration = Duration::from_secs(10);

impl PackedAudioDemuxer {
    pub(super) fn demux_segment(&mut self, segment: &Bytes) -> Result<Vec<DemuxedSample>, ContainerError> {
        let (start, rest) = parse_and_strip_id3_timestamp(segment)?;
        let stated = start.map(|ticks| self.timestamp_unwrapper.unwrap_to_duration(ticks));
        let at = stated
            .or(self.adts.next_timestamp)
            .unwrap_or(DEFAULT_FIRST_SEGMENT_START_TIME);
        self.adts.reset();
        let mut out = Vec::new();
        self.adts.push_and_parse_frames(Some(at), rest, &mut out);
        match packed_codec(rest).filter(|_| out.is_empty()) {
            Some(codec) => Err(ContainerError::UnsupportedCodec(format!("audio {codec}"))),
            None if out.is_empty() => Err(ContainerError::NoFrames),
            None => Ok(out),
        }
    }
}

/// Returns the codec of packed audio that is not played (RFC 8216 §3.4), by the sync word at its begin: MPEG audio (ISO/IEC
/// 11172-3 §2.4.1.3) or AC-3 (ETSI TS 102 366 §4.4.1).
pub(super) fn packed_codec(audio: &[u8]) -> Option<&'static str> {
    match *audio.first_chunk::<6>()? {
        // Layers 1 to 3, of a version, with a bitrate and a sampling rate.
        [0xff, b1, b2, ..]
            if b1 & 0xe0 == 0xe0 && b1 & 6 != 0 && b1 & 0x18 != 8 && b2 & 0xf0 != 0xf0 && b2 & 12 != 12 =>
        {
            Some(if b1 & 6 == 2 { "MP3" } else { "MPEG" })
        }
        // E-AC-3 has another version of the bit stream.
        [0x0b, 0x77, _, _, _, b5] => Some(if b5 >> 3 > 10 { "E-AC-3" } else { "AC-3" }),
        _ => None,
    }
}

/// Owner of the ID3 private frame with the timestamp (RFC 8216 §3.4).
const ID3_TIMESTAMP_OWNER: &[u8] = b"com.apple.streaming.transportStreamTimestamp\0";

/// Returns the timestamp in the ID3 tag, in units of 1/90000 s, and the data after the tag.
fn parse_and_strip_id3_timestamp(segment: &[u8]) -> Result<(Option<u64>, &[u8]), ContainerError> {
    let broken = || ContainerError::Malformed("the ID3 tag is longer than the packed audio segment".to_owned());
    let mut rest = segment;
    let mut start = None;
    while rest.starts_with(b"ID3") {
        // Synchsafe integer: four groups of seven bits (ID3v2.4 §3.1).
        let size = rest.get(6..10).ok_or_else(broken)?;
        let size = size.iter().fold(0, |size, byte| size << 7 | usize::from(byte & 0x7f));
        let tag = rest.get(10..10 + size).ok_or_else(broken)?;
        let owned = tag
            .windows(ID3_TIMESTAMP_OWNER.len())
            .position(|window| window == ID3_TIMESTAMP_OWNER);
        let ticks = owned.and_then(|at| tag.get(at + ID3_TIMESTAMP_OWNER.len()..)?.first_chunk::<8>());
        start = start.or(ticks.map(|ticks| u64::from_be_bytes(*ticks) & MPEG_TIMESTAMP_MASK));
        rest = rest.get(10 + size..).ok_or_else(broken)?;
    }
    Ok((start, rest))
}
