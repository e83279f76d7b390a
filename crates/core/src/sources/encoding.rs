//! One incoming RTP stream of a publisher: a track, or one simulcast layer of it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::hub::intake::{Intake, ReceivedPacket};
use crate::media::codec::{Inspector, part};
use crate::media::marker::{Mark, MarkerFilter};
use crate::media::odd::{Odd, OddCounts};
use crate::media::rtcp;
use crate::media::rtp::{Header, TimeUnwrapper};
use crate::media::{Codec, Format, Kind, Rid, Ssrc};
use crate::session::feedback::{ArrivalKind, NackGenerator, Reception};

/// State of one SSRC and its RTX SSRC.
pub struct Encoding {
    pub ssrc: Option<Ssrc>,
    pub rtx_ssrc: Option<Ssrc>,
    pub rid: Option<Rid>,
    pub intake: Intake,
    /// A packet of an SSRC that another one has followed, and that sends again after a silence.
    pub returning: Option<(Ssrc, Bytes)>,
    reception: Option<Reception>,
    nacks: Option<NackGenerator>,
    times: TimeUnwrapper,
    inspector: Option<(Codec, Inspector)>,
    /// Parameter sets in the offer, by the codec of their payload type.
    parameter_sets: Vec<(Codec, Vec<Bytes>)>,
    markers: MarkerFilter<(ReceivedPacket, Change)>,
    /// Packets whose marker is known, to be published.
    released: Vec<((ReceivedPacket, Change), bool)>,
    odd: OddCounts,
    /// NTP timestamp of the last sender report.
    last_report: Option<u64>,
    /// Counts the SSRCs and the codecs so far; see [`ReceivedPacket::epoch`].
    epoch: u32,
    rate: ByteRate,
    /// When the last packet arrived.
    last_packet: Option<Instant>,
}

/// A layer without packets for this long counts as no longer sent. Longer than the frame interval of static content.
const SILENCE: Duration = Duration::from_secs(2);

/// An SSRC that was followed by another one and sends again after this time is no straggler: its sender came back to it.
pub const RESUME: Duration = Duration::from_millis(250);

/// The negotiated properties of a payload type.
#[derive(Clone, Copy, Debug)]
pub struct PacketFormat {
    pub codec: Codec,
    pub nack: bool,
}

/// A change of format or resolution, found in the bitstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub format: Option<Format>,
    pub resolution: Option<(u16, u16)>,
}

/// Payload bytes per second, to rank layers whose resolution is not known.
#[derive(Debug, Default)]
struct ByteRate {
    since: Option<Instant>,
    bytes: u64,
    per_second: u64,
}

impl Encoding {
    pub fn new(ssrc: Option<Ssrc>, rtx_ssrc: Option<Ssrc>, rid: Option<Rid>) -> Self {
        Self {
            ssrc,
            rtx_ssrc,
            rid,
            intake: Intake::new(),
            returning: None,
            reception: None,
            nacks: None,
            times: TimeUnwrapper::starting_at(0),
            inspector: None,
            parameter_sets: Vec::new(),
            markers: MarkerFilter::new(Codec::H264),
            released: Vec::new(),
            odd: OddCounts::default(),
            last_report: None,
            epoch: 0,
            rate: ByteRate::default(),
            last_packet: None,
        }
    }

    /// Sets the parameter sets of the offer.
    pub fn with_parameter_sets(mut self, sets: Vec<(Codec, Vec<Bytes>)>) -> Self {
        self.parameter_sets = sets;
        self
    }

    /// Sets the SSRC of the media. If packets of another SSRC were received before, sequence numbers and timestamps start
    /// again: those of different SSRCs are unrelated (RFC 3550 §8.2). Parameter sets are kept, because encoders that change
    /// their SSRC with each key frame send them only once.
    pub fn begin(&mut self, ssrc: Ssrc) {
        if self.reception.take().is_some() {
            self.nacks = None;
            self.times = TimeUnwrapper::starting_at(0);
            self.markers.restart(&mut self.released);
            self.epoch += 1;
            self.last_report = None;
            if let Some((_, inspector)) = &mut self.inspector {
                inspector.restart();
            }
        }
        self.ssrc = Some(ssrc);
    }

    /// Whether a sequence number is newer than all that arrived.
    pub fn is_ahead(&self, seq: u16) -> bool {
        self.reception.as_ref().is_none_or(|reception| reception.is_ahead(seq))
    }

    /// Processes a packet; [`Self::released`] returns it, or earlier ones. `seq` is its sequence number or, for a
    /// retransmission, the original one. A duplicate or a packet that is too old is dropped.
    pub fn take(&mut self, now: Instant, header: &Header<'_>, seq: u16, payload: Bytes, format: PacketFormat) {
        let ssrc = self.ssrc.unwrap_or(header.ssrc);
        let reception = self
            .reception
            .get_or_insert_with(|| Reception::new(ssrc, format.codec.clock_rate()));
        let arrival = reception.on_packet(now, seq, header.time);
        match arrival.kind {
            ArrivalKind::New | ArrivalKind::Late => {}
            ArrivalKind::Duplicate | ArrivalKind::TooOld => return,
        }
        if format.nack {
            self.nacks
                .get_or_insert_with(NackGenerator::new)
                .on_packet(now, arrival);
        }
        self.rate.add(now, payload.len());
        self.last_packet = Some(now);
        let part = part(format.codec, &payload);
        if let Err(odd) = part
            && self.odd.add(odd)
            && odd != Odd::Empty
        {
            tracing::warn!(ssrc = ssrc.0, codec = format.codec.name(), "{odd} are left out");
        }
        let mut packet = ReceivedPacket {
            epoch: self.epoch,
            seq: arrival.ext_seq,
            // Probes and odd packets may have any timestamp.
            time: match part {
                Ok(_) => self.times.extend(header.time),
                Err(_) => self.times.highest().unwrap_or_default(),
            },
            marker: header.marker,
            codec: format.codec,
            key_frame: false,
            insert: Vec::new(),
            payload: if part.is_ok() { payload } else { Bytes::new() },
            arrival: now,
        };
        let mark = Mark {
            seq: packet.seq,
            time: packet.time,
            marker: packet.marker,
            part: part.ok(),
            arrival: now,
        };
        let change = self.inspect(header.time, &mut packet);
        if format.codec.kind() == Kind::Audio {
            let marker = packet.marker;
            self.released.push(((packet, change), marker));
        } else {
            self.markers.push(mark, (packet, change), &mut self.released);
        }
    }

    /// Finds key frames and changes of the format; a packet that was emptied has none.
    fn inspect(&mut self, time: u32, packet: &mut ReceivedPacket) -> Change {
        if packet.payload.is_empty() {
            return Change::default();
        }
        let codec = packet.codec;
        if self.inspector.as_ref().is_none_or(|(other, _)| *other != codec) {
            // RFC 3264 lets a publisher switch between negotiated payload types at any time.
            let mut inspector = Inspector::new(codec);
            let sets = self.parameter_sets.iter().filter(|(other, _)| *other == codec);
            sets.for_each(|(_, sets)| inspector.seed(sets));
            if self.inspector.replace((codec, inspector)).is_some() {
                self.markers.restart(&mut self.released);
                self.epoch += 1;
            }
            self.markers = MarkerFilter::new(codec);
        }
        packet.epoch = self.epoch;
        let inspection = self.inspector.as_mut().map(|(_, i)| i.inspect(time, &packet.payload));
        let inspection = inspection.unwrap_or_default();
        packet.key_frame = inspection.key_frame;
        packet.insert = inspection.insert;
        Change {
            format: inspection.format_changed,
            resolution: inspection.resolution_changed,
        }
    }

    /// Releases a packet whose marker is not known yet, but which cannot wait longer.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.markers.handle_timeout(now, &mut self.released);
    }

    /// Returns the packets to be published, and what changed with each of them.
    pub fn released(&mut self) -> impl Iterator<Item = (ReceivedPacket, Change)> + '_ {
        self.released
            .drain(..)
            .map(|((packet, change), marker)| (ReceivedPacket { marker, ..packet }, change))
    }

    /// Returns the epoch of the packets that arrive now.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether no packet arrived for [`RESUME`], or ever: another SSRC may take its place.
    pub fn is_left(&self, now: Instant) -> bool {
        self.last_packet
            .is_none_or(|at| now.saturating_duration_since(at) >= RESUME)
    }

    /// Returns what was passed over so far.
    pub fn odd(&self) -> &OddCounts {
        &self.odd
    }

    /// Records a sender report. Returns its extended RTP timestamp. A report without wall clock (RFC 3550 §6.4.1), or with one
    /// that stands still, says nothing.
    pub fn on_sender_report(&mut self, now: Instant, ntp: u64, rtp_time: u32) -> Option<u64> {
        self.reception.as_mut()?.on_sender_report(now, ntp);
        if ntp == 0 || self.last_report.replace(ntp) == Some(ntp) {
            return None;
        }
        let highest = self.times.highest()?;
        Some(crate::media::rtp::extend_time(highest, rtp_time))
    }

    /// Returns the report block for a receiver report.
    pub fn report(&mut self, now: Instant) -> Option<rtcp::Reception> {
        self.reception.as_mut()?.report(now)
    }

    /// Returns the packets expected in the interval of the last report, and how many of them were missing at its end.
    pub fn interval(&self) -> (u64, u64) {
        self.reception.as_ref().map_or((0, 0), Reception::interval)
    }

    /// Returns the sequence numbers to NACK now.
    pub fn poll_nacks(&mut self, now: Instant, rtt: Duration) -> Vec<u16> {
        self.nacks.as_mut().map(|n| n.poll(now, rtt)).unwrap_or_default()
    }

    /// Returns how many lost packets were given up after NACKs without retransmission.
    pub fn given_up(&self) -> u64 {
        self.nacks.as_ref().map_or(0, NackGenerator::given_up)
    }

    /// Returns when [`Self::poll_nacks`] and [`Self::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let nacks = self.nacks.as_ref().and_then(NackGenerator::poll_timeout);
        [nacks, self.markers.poll_timeout()].into_iter().flatten().min()
    }

    /// Returns the format found in the bitstream.
    pub fn format(&self) -> Option<Format> {
        self.inspector.as_ref()?.1.format()
    }

    /// Whether the bitstream has B-frames.
    pub fn is_reordered(&self) -> bool {
        self.inspector
            .as_ref()
            .is_some_and(|(_, inspector)| inspector.is_reordered())
    }

    /// Returns width and height in pixels.
    pub fn resolution(&self) -> Option<(u16, u16)> {
        self.inspector.as_ref()?.1.resolution()
    }

    /// Whether no packet arrived within [`SILENCE`], or ever.
    pub fn is_silent(&self, now: Instant) -> bool {
        self.last_packet
            .is_none_or(|at| now.saturating_duration_since(at) >= SILENCE)
    }

    /// Returns the rank among the layers of a track: pixels, then bytes per second. The order of the offer is not used.
    pub fn rank(&self) -> (u32, u64) {
        let pixels = self.resolution().map_or(0, |(w, h)| u32::from(w) * u32::from(h));
        (pixels, self.rate.per_second)
    }
}

impl ByteRate {
    fn add(&mut self, now: Instant, bytes: usize) {
        let since = *self.since.get_or_insert(now);
        self.bytes += bytes as u64;
        let elapsed = now.duration_since(since);
        if elapsed >= Duration::from_secs(1) {
            self.per_second = (self.bytes as f64 / elapsed.as_secs_f64()) as u64;
            (self.since, self.bytes) = (Some(now), 0);
        }
    }
}
