//! Program association and program map tables (ISO/IEC 13818-1 §2.4.4).

use super::access_units::VideoCodec;
use crate::media::MediaKind;

/// PID of the program association table.
pub(super) const PAT_PID: u16 = 0;

/// Codec of an elementary stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SupportedElementaryStreamKind {
    Video(VideoCodec),
    /// AAC in ADTS frames.
    Aac,
}

/// An elementary stream of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ElementaryStreamInfo {
    pub(super) pid: u16,
    pub(super) kind: SupportedElementaryStreamKind,
}

/// What a program map table says: the first video and the first audio, and the codecs that are not supported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TsProgram {
    pub(super) streams: Vec<ElementaryStreamInfo>,
    pub(super) unsupported_codecs: Vec<(MediaKind, &'static str)>,
}

impl TsProgram {
    pub(super) fn has_video(&self) -> bool {
        self.streams
            .iter()
            .any(|stream| matches!(stream.kind, SupportedElementaryStreamKind::Video(_)))
    }
}

/// Assembles the sections of one PID (§2.4.4.1).
#[derive(Debug, Default)]
pub(super) struct SectionAssembler {
    buffer: Vec<u8>,
}

/// Maximum length of a section in bytes.
const MAX_PSI_SECTION_LEN: usize = 1_024;

impl SectionAssembler {
    /// Appends the payload of a packet. Returns complete sections.
    pub(super) fn push_and_take_sections(&mut self, payload_unit_start: bool, payload: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        if payload_unit_start {
            let Some((&pointer, rest)) = payload.split_first() else {
                return found;
            };
            let (before, rest) = rest.split_at(usize::from(pointer).min(rest.len()));
            if !self.buffer.is_empty() {
                self.buffer.extend_from_slice(before);
                self.take_complete_sections(&mut found);
            }
            self.buffer = rest.to_vec();
        } else if !self.buffer.is_empty() {
            self.buffer.extend_from_slice(payload);
        }
        self.take_complete_sections(&mut found);
        found
    }

    fn take_complete_sections(&mut self, found: &mut Vec<Vec<u8>>) {
        // Stuffing follows the last section of a packet.
        while let Some(&[id, b1, b2]) = self.buffer.first_chunk::<3>() {
            let length = 3 + (usize::from(b1 & 0xf) << 8 | usize::from(b2));
            if id == 0xff || length > MAX_PSI_SECTION_LEN + 3 {
                self.buffer.clear();
                return;
            }
            if self.buffer.len() < length {
                return;
            }
            let rest = self.buffer.split_off(length);
            found.push(std::mem::replace(&mut self.buffer, rest));
        }
    }
}

/// Header of a section, up to the first entry, and its checksum.
const LONG_SECTION_HEADER_LEN: usize = 8;
const CRC_LEN: usize = 4;

/// Body of a section that is in force; `None` for another table and for one that comes into force later.
fn current_table_body_without_crc_check(section: &[u8], table: u8) -> Option<&[u8]> {
    let is_current = section.get(5)? & 1 == 1;
    let is_table = *section.first()? == table && is_current;
    is_table.then(|| section.get(LONG_SECTION_HEADER_LEN..section.len().checked_sub(CRC_LEN)?))?
}

/// Whether the checksum of a section is right.
pub(super) fn has_valid_crc(section: &[u8]) -> bool {
    let crc = section.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte) << 24, |crc, _| {
            crc << 1 ^ if crc & 0x8000_0000 != 0 { 0x04c1_1db7 } else { 0 }
        })
    });
    crc == 0
}

/// PIDs of the program map tables.
pub(super) fn parse_pmt_pids_from_pat(section: &[u8]) -> Option<Vec<u16>> {
    let entries = current_table_body_without_crc_check(section, 0)?.chunks_exact(4);
    let pids = entries.filter_map(|entry| match entry {
        // Program 0 is the network information table.
        [0, 0, ..] => None,
        [_, _, high, low] => Some(u16::from(high & 0x1f) << 8 | u16::from(*low)),
        _ => None,
    });
    Some(pids.collect())
}

/// Maximum number of codecs that an error names.
const MAX_LISTED_UNSUPPORTED_CODECS: usize = 8;

/// Reads a program map table.
pub(super) fn parse_pmt(section: &[u8]) -> Option<TsProgram> {
    let body = current_table_body_without_crc_check(section, 2)?;
    let descriptors = usize::from(body.get(2)? & 0xf) << 8 | usize::from(*body.get(3)?);
    let mut rest = body.get(4 + descriptors..)?;
    let mut program = TsProgram::default();
    while let Some((&[stream_type, p1, p2, l1, l2], after)) = rest.split_first_chunk::<5>() {
        let length = usize::from(l1 & 0xf) << 8 | usize::from(l2);
        let (descriptors, next) = after.split_at(length.min(after.len()));
        rest = next;
        let pid = u16::from(p1 & 0x1f) << 8 | u16::from(p2);
        match classify_elementary_stream(stream_type, descriptors) {
            Ok(kind) => {
                let is_video =
                    |kind: &SupportedElementaryStreamKind| matches!(kind, SupportedElementaryStreamKind::Video(_));
                if !program
                    .streams
                    .iter()
                    .any(|known| is_video(&known.kind) == is_video(&kind))
                {
                    program.streams.push(ElementaryStreamInfo { pid, kind });
                }
            }
            Err(Some(other)) if program.unsupported_codecs.len() < MAX_LISTED_UNSUPPORTED_CODECS => {
                program.unsupported_codecs.push(other)
            }
            Err(_) => {}
        }
    }
    Some(program)
}

/// Kind of a stream, or the name of an unsupported codec if it is video or audio.
fn classify_elementary_stream(
    stream_type: u8,
    descriptors: &[u8],
) -> Result<SupportedElementaryStreamKind, Option<(MediaKind, &'static str)>> {
    let audio = |name| Err(Some((MediaKind::Audio, name)));
    Ok(match stream_type {
        0x1b => SupportedElementaryStreamKind::Video(VideoCodec::H264),
        0x24 => SupportedElementaryStreamKind::Video(VideoCodec::H265),
        0x0f => SupportedElementaryStreamKind::Aac,
        // Private data that says what it is (§2.6.8).
        0x06 => match registration_format_id(descriptors) {
            Some(b"HEVC") => SupportedElementaryStreamKind::Video(VideoCodec::H265),
            Some(b"Opus") => return audio("Opus in MPEG-TS"),
            Some(b"AC-3") => return audio("AC-3"),
            Some(b"EAC3") => return audio("E-AC-3"),
            // ETSI EN 300 468 annex D: DVB_DEVICE_CLASS names these codecs by a descriptor of their own.
            _ if has_descriptor(descriptors, 0x6a) => return audio("AC-3"),
            _ if has_descriptor(descriptors, 0x7a) => return audio("E-AC-3"),
            _ if has_descriptor(descriptors, 0x7b) => return audio("DTS"),
            _ => return Err(None),
        },
        0x01 | 0x02 => return Err(Some((MediaKind::Video, "MPEG-2"))),
        0x03 | 0x04 => return audio("MPEG"),
        0x10 => return Err(Some((MediaKind::Video, "MPEG-4 part 2"))),
        0x11 => return audio("AAC in LATM"),
        0x81 => return audio("AC-3"),
        0x82 | 0x85 | 0x86 | 0x8a => return audio("DTS"),
        0x87 => return audio("E-AC-3"),
        0xdb => return Err(Some((MediaKind::Video, "SAMPLE-AES"))),
        0xc1 | 0xc2 | 0xcf => return audio("SAMPLE-AES"),
        _ => return Err(None),
    })
}

fn has_descriptor(descriptors: &[u8], wanted: u8) -> bool {
    iter_descriptors(descriptors).any(|(tag, _)| tag == wanted)
}

/// Tag and body of each descriptor.
fn iter_descriptors(mut rest: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[tag, length], after) = rest.split_first_chunk::<2>()?;
        let (body, next) = after.split_at(usize::from(length).min(after.len()));
        rest = next;
        Some((tag, body))
    })
}

fn registration_format_id(descriptors: &[u8]) -> Option<&[u8; 4]> {
    let (_, body) = iter_descriptors(descriptors).find(|(tag, _)| *tag == 5)?;
    body.first_chunk::<4>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(length: u8, content: u8) -> Vec<u8> {
        let mut section = vec![content; 3 + usize::from(length)];
        section[..3].copy_from_slice(&[0x02, 0xb0, length]);
        section
    }

    #[test]
    fn a_section_may_end_in_the_packet_in_which_the_next_one_begins() {
        let (first, second) = (section(10, 1), section(5, 2));
        let mut assembler = SectionAssembler::default();
        let begin = [&[0][..], &first[..7]].concat();
        assert!(assembler.push_and_take_sections(true, &begin).is_empty());
        let both = [&[6][..], &first[7..], &second].concat();
        assert_eq!(assembler.push_and_take_sections(true, &both), [first, second]);
    }

    #[test]
    fn nothing_is_kept_of_stuffing_and_of_a_length_that_no_section_has() {
        for begin in [[0xff, 0xff, 0xff], [0x02, 0xbf, 0xff]] {
            let mut assembler = SectionAssembler::default();
            let packet = [&[0][..], &begin, &[0; 100]].concat();
            assert!(assembler.push_and_take_sections(true, &packet).is_empty());
            assert!(assembler.push_and_take_sections(false, &[0; 184]).is_empty());
            assert!(assembler.buffer.is_empty());
        }
    }
}
