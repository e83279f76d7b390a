//! AAC in ADTS frames (ISO/IEC 14496-3 §1.A.3.2), as used in MPEG-TS and in packed audio of HLS (RFC 8216 §3.4).

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};

use super::clock::{Clock, MASK};
use super::sample::{ContainerError, Content, Sample, time};
use crate::media::aac::AacConfig;

/// Parses ADTS frames. Frames without a timestamp of their own continue from the last one.
#[derive(Debug, Default)]
pub(super) struct Adts {
    rest: BytesMut,
    /// Timestamp of the first frame in `rest`.
    next: Option<Duration>,
}

/// Samples per raw data block.
const FRAME: u64 = 1_024;

/// Maximum frame length in bytes (13 bits).
const MAX_FRAME: usize = 8_191;

impl Adts {
    /// Appends data and parses complete frames; `at` is the timestamp of the first frame that starts in `bytes`.
    pub(super) fn push(&mut self, at: Option<Duration>, bytes: &[u8], out: &mut Vec<Sample>) {
        if self.rest.is_empty() || self.next.is_none() {
            self.next = at.or(self.next);
        }
        let mut fresh = (!self.rest.is_empty()).then_some(at).flatten();
        let buffered = self.rest.len();
        let mut taken = 0;
        self.rest.extend_from_slice(bytes);
        while let Some(header) = self.header() {
            if self.rest.len() < header.length {
                return;
            }
            // A frame that started in earlier data keeps its own timestamp; the first one after it gets the new one.
            if taken >= buffered
                && let Some(at) = fresh.take()
            {
                self.next = Some(at);
            }
            taken += header.length;
            let mut frame = self.rest.split_to(header.length).freeze();
            frame.advance(header.size.min(frame.len()));
            let Some(at) = self.next else { continue };
            self.next = Some(at + time(FRAME * header.blocks, header.config.rate));
            if !frame.is_empty() {
                out.push(Sample {
                    content: Content::Aac(header.config),
                    decode: at,
                    present: at,
                    bytes: frame,
                });
            }
        }
    }

    /// Returns the next header, skipping data that is not a frame.
    fn header(&mut self) -> Option<Header> {
        loop {
            if self.rest.len() < SHORT {
                return None;
            }
            if let Some(header) = Header::parse(&self.rest) {
                return Some(header);
            }
            let next = self.rest.iter().skip(1).position(|byte| *byte == 0xff);
            let skip = next.map_or(self.rest.len(), |at| at + 1);
            self.rest.advance(skip);
        }
    }

    /// Drops the incomplete frame after a gap.
    pub(super) fn reset(&mut self) {
        self.rest.clear();
        self.next = None;
    }
}

/// Header length in bytes, without and with CRC.
const SHORT: usize = 7;
const LONG: usize = 9;

struct Header {
    config: AacConfig,
    /// Frame length including the header, in bytes.
    length: usize,
    /// Header length in bytes.
    size: usize,
    /// Number of raw data blocks.
    blocks: u64,
}

impl Header {
    /// Parses a header; `None` if it is invalid.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let &[b0, b1, b2, b3, b4, b5, b6] = bytes.first_chunk::<SHORT>()?;
        // Sync word of twelve ones, any version, layer 0.
        if b0 != 0xff || b1 & 0xf6 != 0xf0 {
            return None;
        }
        let size = if b1 & 1 == 1 { SHORT } else { LONG };
        let object_type = (b2 >> 6) + 1;
        let rate_index = b2 >> 2 & 0xf;
        let channels = (b2 & 1) << 2 | b3 >> 6;
        let config = [object_type << 3 | rate_index >> 1, rate_index << 7 | channels << 3];
        let length = usize::from(b3 & 3) << 11 | usize::from(b4) << 3 | usize::from(b5 >> 5);
        (rate_index < 13 && (size + 1..=MAX_FRAME).contains(&length)).then_some(())?;
        Some(Self {
            config: AacConfig::parse(&config)?,
            length,
            size,
            blocks: u64::from(b6 & 3) + 1,
        })
    }
}

/// Whether the data starts with an ADTS frame.
pub(super) fn is_frame(bytes: &[u8]) -> bool {
    Header::parse(bytes).is_some()
}

/// Packed audio: ADTS after an ID3 tag with the start time.
#[derive(Debug, Default)]
pub(super) struct Packed {
    adts: Adts,
    clock: Clock,
}

impl Packed {
    pub(super) fn segment(&mut self, segment: &Bytes) -> Result<Vec<Sample>, ContainerError> {
        let (start, rest) = id3(segment)?;
        let at = start.map(|ticks| self.clock.time(ticks));
        self.adts.reset();
        let mut out = Vec::new();
        self.adts.push(at, rest, &mut out);
        if out.is_empty() && at.is_none() {
            return Err(ContainerError::Broken("packed audio has no start timestamp".to_owned()));
        }
        Ok(out)
    }
}

/// Owner of the ID3 private frame with the timestamp (RFC 8216 §3.4).
const OWNER: &[u8] = b"com.apple.streaming.transportStreamTimestamp\0";

/// Returns the timestamp in the ID3 tag, in units of 1/90000 s, and the data after the tag.
fn id3(segment: &[u8]) -> Result<(Option<u64>, &[u8]), ContainerError> {
    let broken = || ContainerError::Broken("the ID3 tag exceeds the segment".to_owned());
    let mut rest = segment;
    let mut start = None;
    while rest.starts_with(b"ID3") {
        // Synchsafe integer: four groups of seven bits (ID3v2.4 §3.1).
        let size = rest.get(6..10).ok_or_else(broken)?;
        let size = size.iter().fold(0, |size, byte| size << 7 | usize::from(byte & 0x7f));
        let tag = rest.get(10..10 + size).ok_or_else(broken)?;
        let owned = tag.windows(OWNER.len()).position(|window| window == OWNER);
        let ticks = owned.and_then(|at| tag.get(at + OWNER.len()..)?.first_chunk::<8>());
        start = start.or(ticks.map(|ticks| u64::from_be_bytes(*ticks) & MASK));
        rest = rest.get(10 + size..).ok_or_else(broken)?;
    }
    Ok((start, rest))
}
