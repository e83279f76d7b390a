//! PES packets of one elementary stream (ISO/IEC 13818-1 §2.4.3.6).

use bytes::BytesMut;

use super::super::adts::Adts;
use super::super::clock::{Clock, MASK, RATE};
use super::super::sample::{Content, Sample, time};
use super::packet::Packet;
use super::tables::{Stream, StreamKind};
use super::units::{AccessUnit, AccessUnits, Times, VideoCodec};

/// Reads the frames of one stream.
pub(super) struct ElementaryStream {
    pub(super) stream: Stream,
    contents: Contents,
    counter: Option<u8>,
    /// No packet has come since the segment began.
    is_first: bool,
    /// Header of the PES packet in progress, while it is incomplete.
    header: Option<Vec<u8>>,
    /// Bytes of the PES packet in progress that are still to come, if it says how long it is.
    left: Option<usize>,
    /// A PES packet is in progress.
    is_open: bool,
}

enum Contents {
    Video(AccessUnits, VideoCodec),
    Audio {
        adts: Adts,
        times: Option<Times>,
        /// The PES packet in progress.
        packet: BytesMut,
    },
}

/// Maximum length of a PES packet with audio, in bytes.
const MAX_AUDIO: usize = 1 << 20;

/// Length of a PES header up to the optional fields.
const HEADER: usize = 9;

impl ElementaryStream {
    pub(super) fn new(stream: Stream) -> Self {
        let contents = match stream.kind {
            StreamKind::Video(codec) => Contents::Video(AccessUnits::new(codec), codec),
            StreamKind::Aac => Contents::Audio {
                adts: Adts::default(),
                times: None,
                packet: BytesMut::new(),
            },
        };
        Self {
            stream,
            contents,
            counter: None,
            is_first: true,
            header: None,
            left: None,
            is_open: false,
        }
    }

    /// Records that a segment begins: many packagers start their continuity counters again.
    pub(super) fn begin_segment(&mut self) {
        self.is_first = true;
    }

    /// Whether a packet has come since the segment began.
    pub(super) fn is_fed(&self) -> bool {
        !self.is_first
    }

    pub(super) fn packet(&mut self, packet: &Packet<'_>, clock: &mut Clock, out: &mut Vec<Sample>) {
        let is_first = std::mem::take(&mut self.is_first);
        if let Some(last) = self.counter.replace(packet.counter) {
            let may_jump = packet.is_discontinuous || is_first && packet.begins;
            if packet.counter == last && !may_jump {
                return;
            }
            if packet.counter != (last + 1) & 0xf && !may_jump {
                self.lose();
            }
        }
        if packet.begins {
            self.end(out);
            self.is_open = true;
            self.header = Some(Vec::new());
            self.left = None;
        }
        if self.is_open {
            self.payload(packet.payload, clock, out);
        }
    }

    fn lose(&mut self) {
        self.is_open = false;
        self.header = None;
        match &mut self.contents {
            Contents::Video(units, _) => units.lose(),
            Contents::Audio { adts, packet, .. } => {
                packet.clear();
                adts.reset();
            }
        }
    }

    fn payload(&mut self, payload: &[u8], clock: &mut Clock, out: &mut Vec<Sample>) {
        let Some(mut header) = self.header.take() else {
            return self.contents(payload, out);
        };
        header.extend_from_slice(payload);
        let Some(length) = Header::length(&header) else {
            self.header = Some(header);
            return;
        };
        let Some(parsed) = Header::parse(&header, length) else {
            self.is_open = false;
            return;
        };
        self.left = parsed.left;
        let begun = parsed.times.map(|ticks| ticks.times(clock));
        match &mut self.contents {
            Contents::Video(units, _) => units.begin(begun),
            Contents::Audio { times, .. } => *times = begun,
        }
        self.contents(header.get(length..).unwrap_or_default(), out);
    }

    fn contents(&mut self, mut payload: &[u8], out: &mut Vec<Sample>) {
        if let Some(left) = &mut self.left {
            payload = payload.get(..*left).unwrap_or(payload);
            *left -= payload.len();
        }
        match &mut self.contents {
            Contents::Video(units, codec) => {
                let mut found = Vec::new();
                units.push(payload, &mut found);
                add(*codec, found, out);
            }
            Contents::Audio { packet, .. } if packet.len() < MAX_AUDIO => packet.extend_from_slice(payload),
            Contents::Audio { .. } => {}
        }
        if self.left == Some(0) {
            self.end(out);
        }
    }

    /// Ends the PES packet in progress. Its last access unit may go on in the next one.
    fn end(&mut self, out: &mut Vec<Sample>) {
        self.is_open = false;
        self.header = None;
        if let Contents::Audio { adts, times, packet } = &mut self.contents
            && !packet.is_empty()
        {
            adts.push(times.take().map(|times| times.decode), packet, out);
            packet.clear();
        }
    }

    /// Returns the rest of the frames.
    pub(super) fn flush(&mut self, out: &mut Vec<Sample>) {
        self.end(out);
        self.counter = None;
        match &mut self.contents {
            Contents::Video(units, codec) => {
                let mut found = Vec::new();
                units.flush(&mut found);
                add(*codec, found, out);
            }
            Contents::Audio { adts, .. } => adts.reset(),
        }
    }
}

fn add(codec: VideoCodec, units: Vec<AccessUnit>, out: &mut Vec<Sample>) {
    let content = match codec {
        VideoCodec::H264 => Content::H264,
        VideoCodec::H265 => Content::H265,
    };
    out.extend(units.into_iter().map(|unit| Sample {
        content,
        decode: unit.times.decode,
        present: unit.times.present,
        bytes: unit.bytes.freeze(),
    }));
}

/// What the header of a PES packet says.
struct Header {
    /// Length of the contents in bytes, if it is stated.
    left: Option<usize>,
    times: Option<Ticks>,
}

/// Timestamps in units of 1/90000 s.
struct Ticks {
    present: u64,
    decode: Option<u64>,
}

impl Header {
    /// Length of the header; `None` while that is unknown.
    fn length(bytes: &[u8]) -> Option<usize> {
        let length = HEADER + usize::from(*bytes.get(HEADER - 1)?);
        (bytes.len() >= length).then_some(length)
    }

    /// Parses a header; `None` if it is none, or the contents are scrambled.
    fn parse(bytes: &[u8], length: usize) -> Option<Self> {
        let &[0, 0, 1, _, l1, l2, b6, b7, _] = bytes.first_chunk::<HEADER>()? else {
            return None;
        };
        let is_scrambled = b6 & 0x30 != 0;
        if b6 & 0xc0 != 0x80 || is_scrambled {
            return None;
        }
        let stated = usize::from(l1) << 8 | usize::from(l2);
        // The stated length counts the header behind it.
        let left = (stated > 0).then(|| (stated + 6).saturating_sub(length));
        let fields = bytes.get(HEADER..length)?;
        let present = (b7 & 0x80 != 0).then(|| ticks(fields)).flatten();
        let decode = (b7 & 0x40 != 0).then(|| ticks(fields.get(5..)?)).flatten();
        Some(Self {
            left,
            times: present.map(|present| Ticks { present, decode }),
        })
    }
}

fn ticks(field: &[u8]) -> Option<u64> {
    let &[b0, b1, b2, b3, b4] = field.first_chunk::<5>()?;
    let high = u64::from(b0 >> 1 & 7) << 30;
    let middle = (u64::from(b1) << 8 | u64::from(b2)) >> 1 << 15;
    Some(high | middle | (u64::from(b3) << 8 | u64::from(b4)) >> 1)
}

impl Ticks {
    fn times(&self, clock: &mut Clock) -> Times {
        // Unwrapping uses decoding times: they never go back within a stream.
        let decode = self.decode.unwrap_or(self.present);
        let ahead = self.present.wrapping_sub(decode) & MASK;
        // More than ten seconds cannot be a reordering delay.
        let ahead = if ahead > 10 * u64::from(RATE) { 0 } else { ahead };
        let decode = clock.time(decode);
        Times {
            decode,
            present: decode + time(ahead, RATE),
        }
    }
}
