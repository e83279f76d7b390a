//! One incoming RTP stream of a publisher: a track, or one simulcast layer of it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::hub::intake::{Intake, ReceivedPacket};
use crate::media::codec::Inspector;
use crate::media::rtcp;
use crate::media::rtp::{Header, TimeUnwrapper};
use crate::media::{Codec, Format, Rid, Ssrc};
use crate::session::feedback::{ArrivalKind, NackGenerator, Reception};

/// State of one SSRC and its RTX SSRC.
pub struct Encoding {
    pub ssrc: Option<Ssrc>,
    pub rtx_ssrc: Option<Ssrc>,
    pub rid: Option<Rid>,
    pub intake: Intake,
    reception: Option<Reception>,
    nacks: Option<NackGenerator>,
    times: TimeUnwrapper,
    inspector: Option<(Codec, Inspector)>,
    rate: ByteRate,
    /// When the last packet arrived.
    last_packet: Option<Instant>,
}

/// A layer without packets for this long counts as no longer sent. Longer than the frame interval of static content.
const SILENCE: Duration = Duration::from_secs(2);

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
            reception: None,
            nacks: None,
            times: TimeUnwrapper::starting_at(0),
            inspector: None,
            rate: ByteRate::default(),
            last_packet: None,
        }
    }

    /// Sets the SSRC of the media. If packets of another SSRC were received before, all state is reset: sequence
    /// numbers and timestamps of different SSRCs are unrelated (RFC 3550 §8.2).
    pub fn begin(&mut self, ssrc: Ssrc) {
        if self.reception.is_some() {
            *self = Self::new(None, self.rtx_ssrc, self.rid.take());
        }
        self.ssrc = Some(ssrc);
    }

    /// Processes a packet. `seq` is its sequence number or, for a retransmission, the original one. Returns `None` for
    /// a duplicate or a packet that is too old.
    pub fn take(
        &mut self,
        now: Instant,
        header: &Header<'_>,
        seq: u16,
        payload: Bytes,
        format: PacketFormat,
    ) -> Option<(ReceivedPacket, Change)> {
        let ssrc = self.ssrc.unwrap_or(header.ssrc);
        let reception = self
            .reception
            .get_or_insert_with(|| Reception::new(ssrc, format.codec.clock_rate()));
        let arrival = reception.on_packet(now, seq, header.time);
        match arrival.kind {
            ArrivalKind::New | ArrivalKind::Late => {}
            ArrivalKind::Duplicate | ArrivalKind::TooOld => return None,
        }
        if format.nack {
            self.nacks
                .get_or_insert_with(NackGenerator::new)
                .on_packet(now, arrival);
        }
        self.rate.add(now, payload.len());
        self.last_packet = Some(now);
        let time = self.times.extend(header.time);
        if self.inspector.as_ref().is_none_or(|(codec, _)| *codec != format.codec) {
            // RFC 3264 lets a publisher switch between negotiated payload types at any time.
            self.inspector = Some((format.codec, Inspector::new(format.codec)));
            self.intake = Intake::new();
        }
        let inspection = self
            .inspector
            .as_mut()
            .map(|(_, i)| i.inspect(header.time, &payload))
            .unwrap_or_default();
        let change = Change {
            format: inspection.format_changed,
            resolution: inspection.resolution_changed,
        };
        let arrived = ReceivedPacket {
            seq: arrival.ext_seq,
            time,
            marker: header.marker,
            codec: format.codec,
            key_frame: inspection.key_frame,
            insert: inspection.insert,
            payload,
            arrival: now,
        };
        Some((arrived, change))
    }

    /// Records a sender report. Returns its extended RTP timestamp.
    pub fn on_sender_report(&mut self, now: Instant, ntp: u64, rtp_time: u32) -> Option<u64> {
        self.reception.as_mut()?.on_sender_report(now, ntp);
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

    /// Returns when [`Self::poll_nacks`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.nacks.as_ref()?.poll_timeout()
    }

    /// Returns the format found in the bitstream.
    pub fn format(&self) -> Option<Format> {
        self.inspector.as_ref()?.1.format()
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
