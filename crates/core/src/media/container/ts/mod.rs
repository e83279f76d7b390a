//! MPEG transport streams (ISO/IEC 13818-1).
//!
//! The segments of one rendition are one stream: tables may come late or only once, and frames may go over the border of
//! two segments. What cannot be parsed is passed over.

use bytes::Bytes;

use self::access_units::VideoCodec;
use self::elementary::ElementaryStreamParser;
pub(super) use self::packet::{SYNC_BYTE, is_transport_stream, is_transport_stream_behind_garbage};
use self::packet::{TsPacket, TsPacketSplitter};
use self::tables::{
    ElementaryStreamInfo, PAT_PID, SectionAssembler, SupportedElementaryStreamKind, TsProgram, has_valid_crc,
    parse_pmt, parse_pmt_pids_from_pat,
};
use super::adts;
use super::mpeg_ts_clock::MpegTimestampUnwrapper;
use super::sample::{ContainerError, DemuxedSample};

mod access_units;
mod continuity;
mod elementary;
mod packet;
mod tables;

#[cfg(test)]
mod tests;

/// The segments of one rendition.
#[derive(Default)]
pub(super) struct TransportStreamDemuxer {
    timestamp_unwrapper: MpegTimestampUnwrapper,
    packet_splitter: TsPacketSplitter,
    /// Sections in progress, by PID.
    section_assemblers: Vec<(u16, SectionAssembler)>,
    /// PIDs of the program map tables.
    pmt_pids: Vec<u16>,
    /// The program that is played.
    selected_program: Option<TsProgram>,
    streams: Vec<ElementaryStreamParser>,
    /// Packets that came before the tables.
    packets_before_tables: Vec<u8>,
    /// Sections with a right checksum have come, so others are damaged.
    has_seen_valid_checksum: bool,
    has_scrambled_packets: bool,
}

/// Maximum number of programs.
const MAX_PROGRAMS: usize = 64;

/// Maximum number of bytes of packets that wait for the tables.
const MAX_BYTES_BEFORE_TABLES: usize = 16 << 20;

impl TransportStreamDemuxer {
    /// Reads the PAT and PMT of an initialization section.
    pub(super) fn push_tables(&mut self, tables: &Bytes) {
        self.demux_bytes(tables, &mut Vec::new());
        self.packet_splitter.clear();
    }

    /// Returns the frames that are complete. The last one of a segment may go on in the next.
    pub(super) fn push_segment(&mut self, segment: &Bytes) -> Result<Vec<DemuxedSample>, ContainerError> {
        let mut samples = Vec::new();
        self.streams.iter_mut().for_each(ElementaryStreamParser::begin_segment);
        self.has_scrambled_packets = false;
        self.demux_bytes(segment, &mut samples);
        if self.selected_program.is_none() {
            self.guess_and_select_program(&mut samples);
        }
        if !samples.is_empty() || self.streams.iter().any(ElementaryStreamParser::has_packet_in_segment) {
            return Ok(samples);
        }
        let others = self.unsupported_tracks();
        if self.has_scrambled_packets {
            Err(ContainerError::Encrypted)
        } else if others.is_empty() {
            Err(ContainerError::NoFrames)
        } else {
            Err(ContainerError::UnsupportedCodec(others.join(", ")))
        }
    }

    /// Returns the tracks whose codec is not supported.
    pub(super) fn unsupported_tracks(&self) -> Vec<String> {
        let others = self
            .selected_program
            .iter()
            .flat_map(|program| &program.unsupported_codecs);
        others.map(|(kind, name)| format!("{kind} {name}")).collect()
    }

    /// Returns the rest of the frames: what follows is another stream. The tables are kept.
    pub(super) fn flush(&mut self) -> Vec<DemuxedSample> {
        let samples = self.flush_keeping_clock();
        self.timestamp_unwrapper = MpegTimestampUnwrapper::default();
        samples
    }

    /// The same where the clock goes on.
    pub(super) fn flush_keeping_clock(&mut self) -> Vec<DemuxedSample> {
        let mut samples = Vec::new();
        self.packet_splitter.clear();
        self.packets_before_tables.clear();
        self.streams.iter_mut().for_each(|stream| stream.flush(&mut samples));
        samples
    }

    fn demux_bytes(&mut self, bytes: &[u8], out: &mut Vec<DemuxedSample>) {
        self.packet_splitter.push_segment_dropping_incomplete_packet(bytes);
        while let Some(packet) = self.packet_splitter.next() {
            self.demux_packet(&packet, out);
        }
    }

    fn demux_packet(&mut self, bytes: &[u8], out: &mut Vec<DemuxedSample>) {
        let Some(packet) = TsPacket::parse(bytes) else { return };
        if packet.pid == PAT_PID || self.pmt_pids.contains(&packet.pid) {
            if packet.payload.is_empty() {
                return;
            }
            self.parse_tables_and_select_program(&packet, out);
        } else if let Some(stream) = self.streams.iter_mut().find(|stream| stream.info.pid == packet.pid) {
            if packet.is_scrambled {
                self.has_scrambled_packets = true;
            } else {
                stream.push_packet(&packet, &mut self.timestamp_unwrapper, out);
            }
        } else if self.selected_program.is_none() && self.packets_before_tables.len() < MAX_BYTES_BEFORE_TABLES {
            self.packets_before_tables.extend_from_slice(bytes);
        }
    }

    fn parse_tables_and_select_program(&mut self, packet: &TsPacket<'_>, out: &mut Vec<DemuxedSample>) {
        let found = match self.section_assemblers.iter_mut().find(|(pid, _)| *pid == packet.pid) {
            Some((_, section)) => section.push_and_take_sections(packet.payload_unit_start, packet.payload),
            None => {
                let mut section = SectionAssembler::default();
                let found = section.push_and_take_sections(packet.payload_unit_start, packet.payload);
                self.section_assemblers.push((packet.pid, section));
                found
            }
        };
        for section in found {
            let is_intact = has_valid_crc(&section);
            self.has_seen_valid_checksum |= is_intact;
            // Some writers leave the checksum out.
            if !is_intact && self.has_seen_valid_checksum {
                continue;
            }
            if packet.pid == PAT_PID {
                self.update_pmt_pids_from_pat(&section);
            } else if let Some(program) = parse_pmt(&section) {
                self.switch_program_if_preferred(program, out);
            }
        }
    }

    fn update_pmt_pids_from_pat(&mut self, section: &[u8]) {
        let Some(mut pids) = parse_pmt_pids_from_pat(section) else {
            return;
        };
        pids.truncate(MAX_PROGRAMS);
        if pids != self.pmt_pids && !pids.is_empty() {
            self.section_assemblers
                .retain(|(pid, _)| *pid == PAT_PID || pids.contains(pid));
            self.pmt_pids = pids;
        }
    }

    /// Plays a program: the first one, or the first one with video.
    fn switch_program_if_preferred(&mut self, program: TsProgram, out: &mut Vec<DemuxedSample>) {
        let is_update = self.pmt_pids.len() == 1;
        let is_better = |current: &TsProgram| program.has_video() && !current.has_video();
        let shares = |current: &TsProgram| {
            let mut streams = program.streams.iter();
            streams.any(|stream| current.streams.iter().any(|known| known.pid == stream.pid))
        };
        let is_chosen = self
            .selected_program
            .as_ref()
            .is_none_or(|current| is_update || is_better(current) || shares(current));
        if !is_chosen || self.selected_program.as_ref() == Some(&program) {
            return;
        }
        self.streams.retain_mut(|stream| {
            let is_kept = program.streams.contains(&stream.info);
            if !is_kept {
                stream.flush(out);
            }
            is_kept
        });
        for stream in &program.streams {
            if !self.streams.iter().any(|known| known.info == *stream) {
                self.streams.push(ElementaryStreamParser::new(*stream));
            }
        }
        self.selected_program = Some(program);
        for bytes in std::mem::take(&mut self.packets_before_tables).chunks_exact(packet::TS_PACKET_LEN) {
            self.demux_packet(bytes, out);
        }
    }

    /// Finds streams by what they contain. Some segments have no tables at all.
    fn guess_and_select_program(&mut self, out: &mut Vec<DemuxedSample>) {
        let mut program = TsProgram::default();
        for packet in self
            .packets_before_tables
            .chunks_exact(packet::TS_PACKET_LEN)
            .filter_map(TsPacket::parse)
        {
            if let Some(kind) = guess_stream_kind(&packet)
                && !program.streams.iter().any(|known| known.pid == packet.pid)
            {
                let is_video =
                    |kind: &SupportedElementaryStreamKind| matches!(kind, SupportedElementaryStreamKind::Video(_));
                if !program
                    .streams
                    .iter()
                    .any(|known| is_video(&known.kind) == is_video(&kind))
                {
                    program.streams.push(ElementaryStreamInfo { pid: packet.pid, kind });
                }
            }
        }
        if !program.streams.is_empty() {
            self.switch_program_if_preferred(program, out);
        }
    }
}

/// Kind of the stream whose PES packet begins in a packet, if that is clear.
fn guess_stream_kind(packet: &TsPacket<'_>) -> Option<SupportedElementaryStreamKind> {
    let &[0, 0, 1, id, _, _, b6, _, length] = packet.payload.first_chunk::<9>()? else {
        return None;
    };
    let body = packet
        .payload
        .get(9 + usize::from(length)..)
        .filter(|_| packet.payload_unit_start && b6 & 0xc0 == 0x80)?;
    match id {
        0xc0..=0xdf => adts::starts_with_adts_frame(body).then_some(SupportedElementaryStreamKind::Aac),
        0xe0..=0xef => {
            let at = body.windows(3).take(8).position(|code| code == [0, 0, 1])?;
            Some(SupportedElementaryStreamKind::Video(match body.get(at + 3)? {
                // Delimiters and parameter sets of H.265.
                0x40 | 0x42 | 0x44 | 0x46 => VideoCodec::H265,
                0x09 | 0x67 | 0x27 | 0x47 | 0x65 | 0x41 | 0x61 | 0x06 => VideoCodec::H264,
                _ => return None,
            }))
        }
        _ => None,
    }
}
