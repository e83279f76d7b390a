//! MPEG transport streams (ISO/IEC 13818-1).
//!
//! The segments of one rendition are one stream: tables may come late or only once, and frames may go over the border of
//! two segments. What cannot be parsed is passed over.

use bytes::Bytes;

use self::elementary::ElementaryStream;
use self::packet::{Packet, Packets};
pub(super) use self::packet::{SYNC, is_transport_stream};
use self::tables::{PAT, Program, Section, Stream, StreamKind, is_intact, program, program_pids};
use self::units::VideoCodec;
use super::adts;
use super::clock::Clock;
use super::sample::{ContainerError, Sample};

mod elementary;
mod packet;
mod tables;
mod units;

#[cfg(test)]
mod tests;

/// The segments of one rendition.
#[derive(Default)]
pub(super) struct TransportStream {
    clock: Clock,
    packets: Packets,
    /// Sections in progress, by PID.
    sections: Vec<(u16, Section)>,
    /// PIDs of the program map tables.
    programs: Vec<u16>,
    /// The program that is played.
    program: Option<Program>,
    streams: Vec<ElementaryStream>,
    /// Packets that came before the tables.
    early: Vec<u8>,
    /// Sections with a right checksum have come, so others are damaged.
    has_checksums: bool,
    scrambled: bool,
}

/// Maximum number of programs.
const MAX_PROGRAMS: usize = 64;

/// Maximum number of bytes of packets that wait for the tables.
const MAX_EARLY: usize = 16 << 20;

impl TransportStream {
    /// Reads the PAT and PMT of an initialization section.
    pub(super) fn tables(&mut self, tables: &Bytes) {
        self.push(tables, &mut Vec::new());
        self.packets.clear();
    }

    /// Returns the frames that are complete. The last one of a segment may go on in the next.
    pub(super) fn segment(&mut self, segment: &Bytes) -> Result<Vec<Sample>, ContainerError> {
        let mut samples = Vec::new();
        self.streams.iter_mut().for_each(ElementaryStream::begin_segment);
        self.scrambled = false;
        self.push(segment, &mut samples);
        if self.program.is_none() {
            self.guess(&mut samples);
        }
        if !samples.is_empty() || self.streams.iter().any(ElementaryStream::is_fed) {
            return Ok(samples);
        }
        let others = self.program.as_ref().map(|program| program.others.join(", "));
        match others.filter(|others| !others.is_empty()) {
            _ if self.scrambled => Err(ContainerError::Encrypted),
            Some(others) => Err(ContainerError::Unsupported(others)),
            None => Err(ContainerError::Empty),
        }
    }

    /// Returns the rest of the frames: what follows is another stream. The tables are kept.
    pub(super) fn flush(&mut self) -> Vec<Sample> {
        let mut samples = Vec::new();
        self.packets.clear();
        self.early.clear();
        self.streams.iter_mut().for_each(|stream| stream.flush(&mut samples));
        self.clock = Clock::default();
        samples
    }

    fn push(&mut self, bytes: &[u8], out: &mut Vec<Sample>) {
        self.packets.push(bytes);
        while let Some(packet) = self.packets.next() {
            self.packet(&packet, out);
        }
    }

    fn packet(&mut self, bytes: &[u8], out: &mut Vec<Sample>) {
        let Some(packet) = Packet::parse(bytes) else { return };
        if packet.pid == PAT || self.programs.contains(&packet.pid) {
            self.table(&packet, out);
        } else if let Some(stream) = self.streams.iter_mut().find(|stream| stream.stream.pid == packet.pid) {
            if packet.is_scrambled {
                self.scrambled = true;
            } else {
                stream.packet(&packet, &mut self.clock, out);
            }
        } else if self.program.is_none() && self.early.len() < MAX_EARLY {
            self.early.extend_from_slice(bytes);
        }
    }

    fn table(&mut self, packet: &Packet<'_>, out: &mut Vec<Sample>) {
        let found = match self.sections.iter_mut().find(|(pid, _)| *pid == packet.pid) {
            Some((_, section)) => section.push(packet.begins, packet.payload),
            None => {
                let mut section = Section::default();
                let found = section.push(packet.begins, packet.payload);
                self.sections.push((packet.pid, section));
                found
            }
        };
        for section in found {
            let is_intact = is_intact(&section);
            self.has_checksums |= is_intact;
            // Some writers leave the checksum out.
            if !is_intact && self.has_checksums {
                continue;
            }
            if packet.pid == PAT {
                self.associate(&section);
            } else if let Some(program) = program(&section) {
                self.select(program, out);
            }
        }
    }

    fn associate(&mut self, section: &[u8]) {
        let Some(mut pids) = program_pids(section) else { return };
        pids.truncate(MAX_PROGRAMS);
        if pids != self.programs && !pids.is_empty() {
            self.sections.retain(|(pid, _)| *pid == PAT || pids.contains(pid));
            self.programs = pids;
        }
    }

    /// Plays a program: the first one, or the first one with video.
    fn select(&mut self, program: Program, out: &mut Vec<Sample>) {
        let is_update = self.programs.len() == 1;
        let is_better = |current: &Program| program.has_video() && !current.has_video();
        let shares = |current: &Program| {
            let mut streams = program.streams.iter();
            streams.any(|stream| current.streams.iter().any(|known| known.pid == stream.pid))
        };
        let is_chosen = self
            .program
            .as_ref()
            .is_none_or(|current| is_update || is_better(current) || shares(current));
        if !is_chosen || self.program.as_ref() == Some(&program) {
            return;
        }
        self.streams.retain_mut(|stream| {
            let is_kept = program.streams.contains(&stream.stream);
            if !is_kept {
                stream.flush(out);
            }
            is_kept
        });
        for stream in &program.streams {
            if !self.streams.iter().any(|known| known.stream == *stream) {
                self.streams.push(ElementaryStream::new(*stream));
            }
        }
        self.program = Some(program);
        for bytes in std::mem::take(&mut self.early).chunks_exact(packet::PACKET) {
            self.packet(bytes, out);
        }
    }

    /// Finds streams by what they contain. Some segments have no tables at all.
    fn guess(&mut self, out: &mut Vec<Sample>) {
        let mut program = Program::default();
        for packet in self.early.chunks_exact(packet::PACKET).filter_map(Packet::parse) {
            if let Some(kind) = guess(&packet)
                && !program.streams.iter().any(|known| known.pid == packet.pid)
            {
                let is_video = |kind: &StreamKind| matches!(kind, StreamKind::Video(_));
                if !program
                    .streams
                    .iter()
                    .any(|known| is_video(&known.kind) == is_video(&kind))
                {
                    program.streams.push(Stream { pid: packet.pid, kind });
                }
            }
        }
        if !program.streams.is_empty() {
            self.select(program, out);
        }
    }
}

/// Kind of the stream whose PES packet begins in a packet, if that is clear.
fn guess(packet: &Packet<'_>) -> Option<StreamKind> {
    let &[0, 0, 1, id, _, _, b6, _, length] = packet.payload.first_chunk::<9>()? else {
        return None;
    };
    let body = packet
        .payload
        .get(9 + usize::from(length)..)
        .filter(|_| packet.begins && b6 & 0xc0 == 0x80)?;
    match id {
        0xc0..=0xdf => adts::is_frame(body).then_some(StreamKind::Aac),
        0xe0..=0xef => {
            let at = body.windows(3).take(8).position(|code| code == [0, 0, 1])?;
            Some(StreamKind::Video(match body.get(at + 3)? {
                // Delimiters and parameter sets of H.265.
                0x40 | 0x42 | 0x44 | 0x46 => VideoCodec::H265,
                0x09 | 0x67 | 0x27 | 0x47 | 0x65 | 0x41 | 0x61 | 0x06 => VideoCodec::H264,
                _ => return None,
            }))
        }
        _ => None,
    }
}
