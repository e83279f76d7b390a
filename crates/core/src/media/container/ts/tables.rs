//! Program association and program map tables (ISO/IEC 13818-1 §2.4.4).

use super::units::VideoCodec;

/// PID of the program association table.
pub(super) const PAT: u16 = 0;

/// Codec of an elementary stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamKind {
    Video(VideoCodec),
    /// AAC in ADTS frames.
    Aac,
}

/// An elementary stream of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) pid: u16,
    pub(super) kind: StreamKind,
}

/// What a program map table says: the first video and the first audio, and the codecs that are not supported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) streams: Vec<Stream>,
    pub(super) others: Vec<String>,
}

impl Program {
    pub(super) fn has_video(&self) -> bool {
        self.streams
            .iter()
            .any(|stream| matches!(stream.kind, StreamKind::Video(_)))
    }
}

/// Assembles the sections of one PID (§2.4.4.1).
#[derive(Debug, Default)]
pub(super) struct Section {
    bytes: Vec<u8>,
}

/// Maximum length of a section in bytes.
const MAX_SECTION: usize = 1_024;

impl Section {
    /// Appends the payload of a packet. Returns complete sections.
    pub(super) fn push(&mut self, begins: bool, payload: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        if begins {
            let Some((&pointer, rest)) = payload.split_first() else {
                return found;
            };
            let (before, rest) = rest.split_at(usize::from(pointer).min(rest.len()));
            if !self.bytes.is_empty() {
                self.bytes.extend_from_slice(before);
                self.take(&mut found);
            }
            self.bytes = rest.to_vec();
        } else if !self.bytes.is_empty() {
            self.bytes.extend_from_slice(payload);
        }
        self.take(&mut found);
        found
    }

    fn take(&mut self, found: &mut Vec<Vec<u8>>) {
        // Stuffing follows the last section of a packet.
        while let Some(&[id, b1, b2]) = self.bytes.first_chunk::<3>() {
            let length = 3 + (usize::from(b1 & 0xf) << 8 | usize::from(b2));
            if id == 0xff || length > MAX_SECTION + 3 {
                self.bytes.clear();
                return;
            }
            if self.bytes.len() < length {
                return;
            }
            let rest = self.bytes.split_off(length);
            found.push(std::mem::replace(&mut self.bytes, rest));
        }
    }
}

/// Header of a section, up to the first entry, and its checksum.
const HEADER: usize = 8;
const CRC: usize = 4;

/// Body of a section that is in force; `None` for another table and for one that comes into force later.
fn body(section: &[u8], table: u8) -> Option<&[u8]> {
    let is_current = section.get(5)? & 1 == 1;
    let is_table = *section.first()? == table && is_current;
    is_table.then(|| section.get(HEADER..section.len().checked_sub(CRC)?))?
}

/// Whether the checksum of a section is right.
pub(super) fn is_intact(section: &[u8]) -> bool {
    let crc = section.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte) << 24, |crc, _| {
            crc << 1 ^ if crc & 0x8000_0000 != 0 { 0x04c1_1db7 } else { 0 }
        })
    });
    crc == 0
}

/// PIDs of the program map tables.
pub(super) fn program_pids(section: &[u8]) -> Option<Vec<u16>> {
    let entries = body(section, 0)?.chunks_exact(4);
    let pids = entries.filter_map(|entry| match entry {
        // Program 0 is the network information table.
        [0, 0, ..] => None,
        [_, _, high, low] => Some(u16::from(high & 0x1f) << 8 | u16::from(*low)),
        _ => None,
    });
    Some(pids.collect())
}

/// Maximum number of codecs that an error names.
const MAX_OTHERS: usize = 8;

/// Reads a program map table.
pub(super) fn program(section: &[u8]) -> Option<Program> {
    let body = body(section, 2)?;
    let descriptors = usize::from(body.get(2)? & 0xf) << 8 | usize::from(*body.get(3)?);
    let mut rest = body.get(4 + descriptors..)?;
    let mut program = Program::default();
    while let Some((&[stream_type, p1, p2, l1, l2], after)) = rest.split_first_chunk::<5>() {
        let length = usize::from(l1 & 0xf) << 8 | usize::from(l2);
        let (descriptors, next) = after.split_at(length.min(after.len()));
        rest = next;
        let pid = u16::from(p1 & 0x1f) << 8 | u16::from(p2);
        match kind(stream_type, descriptors) {
            Ok(kind) => {
                let is_video = |kind: &StreamKind| matches!(kind, StreamKind::Video(_));
                if !program
                    .streams
                    .iter()
                    .any(|known| is_video(&known.kind) == is_video(&kind))
                {
                    program.streams.push(Stream { pid, kind });
                }
            }
            Err(Some(other)) if program.others.len() < MAX_OTHERS => program.others.push(other.to_owned()),
            Err(_) => {}
        }
    }
    Some(program)
}

/// Kind of a stream, or the name of an unsupported codec if it is video or audio.
fn kind(stream_type: u8, descriptors: &[u8]) -> Result<StreamKind, Option<&'static str>> {
    Ok(match stream_type {
        0x1b => StreamKind::Video(VideoCodec::H264),
        0x24 => StreamKind::Video(VideoCodec::H265),
        0x0f => StreamKind::Aac,
        // Private data that says what it is (§2.6.8).
        0x06 => match registration(descriptors) {
            Some(b"HEVC") => StreamKind::Video(VideoCodec::H265),
            Some(b"Opus") => return Err(Some("Opus in MPEG-TS")),
            Some(b"AC-3") => return Err(Some("AC-3")),
            _ => return Err(None),
        },
        0x01 | 0x02 => return Err(Some("MPEG-2 video")),
        0x03 | 0x04 => return Err(Some("MPEG audio")),
        0x10 => return Err(Some("MPEG-4 video")),
        0x11 => return Err(Some("AAC in LATM")),
        0x81 => return Err(Some("AC-3")),
        0x87 => return Err(Some("E-AC-3")),
        0xdb | 0xcf => return Err(Some("SAMPLE-AES")),
        _ => return Err(None),
    })
}

fn registration(mut descriptors: &[u8]) -> Option<&[u8; 4]> {
    while let Some((&[tag, length], rest)) = descriptors.split_first_chunk::<2>() {
        let (body, next) = rest.split_at(usize::from(length).min(rest.len()));
        if tag == 5 {
            return body.first_chunk::<4>();
        }
        descriptors = next;
    }
    None
}
