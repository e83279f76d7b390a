//! MPEG transport streams (ISO/IEC 13818-1), using the parser of `mpeg2ts-reader`.

use bytes::Bytes;
use mpeg2ts_reader::demultiplex::{
    Demultiplex, DemuxContext, FilterChangeset, FilterRequest, NullPacketFilter, PatPacketFilter, PmtPacketFilter,
};
use mpeg2ts_reader::pes::{ElementaryStreamConsumer, PesContents, PesHeader, PesPacketFilter, PtsDts, Timestamp};
use mpeg2ts_reader::psi::pat::PAT_PID;
use mpeg2ts_reader::{StreamType, packet_filter_switch};

use super::adts::Adts;
use super::clock::{Clock, MASK, RATE};
use super::sample::{ContainerError, Content, Sample, time};

/// Packet length in bytes, and the sync byte.
pub(super) const PACKET: usize = 188;
pub(super) const SYNC: u8 = 0x47;

/// Maximum length of an access unit in bytes.
const MAX_UNIT: usize = 8 << 20;

/// The segments of one rendition.
#[derive(Default)]
pub(super) struct TransportStream {
    clock: Clock,
    adts: Adts,
    tables: Bytes,
}

impl TransportStream {
    /// Sets the PAT and PMT to parse before each segment.
    pub(super) fn tables(&mut self, tables: &Bytes) {
        self.tables = tables.clone();
    }

    pub(super) fn segment(&mut self, segment: &Bytes) -> Result<Vec<Sample>, ContainerError> {
        let mut context = Context::default();
        let mut demultiplexer = Demultiplex::new(&mut context);
        demultiplexer.push(&mut context, &self.tables);
        demultiplexer.push(&mut context, segment);
        for track in [Track::H264, Track::H265, Track::Aac] {
            context.end(track);
        }
        let mut samples = Vec::new();
        for unit in std::mem::take(&mut context.units) {
            self.take(unit, &mut samples);
        }
        if samples.is_empty() && !context.others.is_empty() {
            return Err(ContainerError::Unsupported(context.others.join(", ")));
        }
        Ok(samples)
    }

    fn take(&mut self, unit: Unit, samples: &mut Vec<Sample>) {
        // Unwrapping uses decoding times: they never go back within a stream.
        let decode = unit.decode.or(unit.present).map(|ticks| self.clock.time(ticks));
        let content = match unit.track {
            Track::Aac => {
                if unit.after_gap {
                    self.adts.reset();
                }
                return self.adts.push(decode, &unit.bytes, samples);
            }
            Track::H264 => Content::H264,
            Track::H265 => Content::H265,
        };
        let Some(decode) = decode else { return };
        let ahead = match (unit.present, unit.decode) {
            (Some(present), Some(decode)) => present.wrapping_sub(decode) & MASK,
            _ => 0,
        };
        // More than ten seconds cannot be a reordering delay.
        let ahead = if ahead > 10 * u64::from(RATE) { 0 } else { ahead };
        samples.push(Sample {
            content,
            decode,
            present: decode + time(ahead, RATE),
            bytes: unit.bytes.into(),
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Track {
    H264,
    H265,
    Aac,
}

/// Contents of one PES packet.
pub(crate) struct Unit {
    track: Track,
    present: Option<u64>,
    decode: Option<u64>,
    after_gap: bool,
    bytes: Vec<u8>,
}

/// Demultiplexing state of one segment.
#[derive(Default)]
#[expect(unreachable_pub, reason = "the macro below makes public items of it")]
pub struct Context {
    changeset: FilterChangeset<Filter>,
    units: Vec<Unit>,
    open: Vec<Unit>,
    /// Selected tracks: the first of each kind.
    found: Vec<Track>,
    /// Unsupported stream types.
    others: Vec<String>,
}

packet_filter_switch! {
    Filter<Context> {
        Pes: PesPacketFilter<Context, Consumer>,
        Pat: PatPacketFilter<Context>,
        Pmt: PmtPacketFilter<Context>,
        Null: NullPacketFilter<Context>,
    }
}

impl DemuxContext for Context {
    type F = Filter;

    fn filter_changeset(&mut self) -> &mut FilterChangeset<Filter> {
        &mut self.changeset
    }

    fn construct(&mut self, request: FilterRequest<'_, '_>) -> Filter {
        match request {
            FilterRequest::ByPid(PAT_PID) => Filter::Pat(PatPacketFilter::default()),
            FilterRequest::Pmt { pid, program_number } => Filter::Pmt(PmtPacketFilter::new(pid, program_number)),
            FilterRequest::ByStream { stream_type, .. } => self.stream(stream_type),
            FilterRequest::ByPid(_) | FilterRequest::Nit { .. } => Filter::Null(NullPacketFilter::default()),
        }
    }
}

impl Context {
    fn stream(&mut self, stream_type: StreamType) -> Filter {
        let track = match stream_type {
            StreamType::H264 => Some(Track::H264),
            StreamType::H265 => Some(Track::H265),
            StreamType::ADTS => Some(Track::Aac),
            _ => None,
        };
        let is_video = |track: &Track| *track != Track::Aac;
        match track {
            Some(track) if !self.found.iter().any(|found| is_video(found) == is_video(&track)) => {
                self.found.push(track);
                Filter::Pes(PesPacketFilter::new(Consumer {
                    track,
                    after_gap: false,
                }))
            }
            Some(_) => Filter::Null(NullPacketFilter::default()),
            None => {
                // Streams without PES, e.g. metadata sections, are ignored.
                if stream_type.is_pes() && self.others.len() < 8 {
                    self.others.push(format!("{stream_type:?}"));
                }
                Filter::Null(NullPacketFilter::default())
            }
        }
    }

    fn end(&mut self, track: Track) {
        while let Some(at) = self.open.iter().position(|unit| unit.track == track) {
            let unit = self.open.swap_remove(at);
            if !unit.bytes.is_empty() {
                self.units.push(unit);
            }
        }
    }

    fn append(&mut self, track: Track, bytes: &[u8]) {
        if let Some(unit) = self.open.iter_mut().find(|unit| unit.track == track)
            && unit.bytes.len() + bytes.len() <= MAX_UNIT
        {
            unit.bytes.extend_from_slice(bytes);
        }
    }
}

pub(crate) struct Consumer {
    track: Track,
    after_gap: bool,
}

impl ElementaryStreamConsumer<Context> for Consumer {
    fn start_stream(&mut self, _: &mut Context) {}

    fn begin_packet(&mut self, context: &mut Context, header: PesHeader<'_>) {
        context.end(self.track);
        let PesContents::Parsed(Some(parsed)) = header.contents() else {
            return;
        };
        let ticks = |time: Result<Timestamp, _>| time.ok().map(Timestamp::value);
        let (present, decode) = match parsed.pts_dts() {
            Ok(PtsDts::PtsOnly(present)) => (ticks(present), None),
            Ok(PtsDts::Both { pts, dts }) => (ticks(pts), ticks(dts)),
            _ => (None, None),
        };
        context.open.push(Unit {
            track: self.track,
            present,
            decode: decode.or(present),
            after_gap: std::mem::take(&mut self.after_gap),
            bytes: parsed.payload().to_vec(),
        });
    }

    fn continue_packet(&mut self, context: &mut Context, data: &[u8]) {
        context.append(self.track, data);
    }

    fn end_packet(&mut self, context: &mut Context) {
        context.end(self.track);
    }

    fn continuity_error(&mut self, context: &mut Context) {
        // Drop the incomplete access unit.
        context.open.retain(|unit| unit.track != self.track);
        self.after_gap = true;
    }
}
