//! One track of one viewer: its position in the stream's track, and the packets that it sends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::history::{History, SendStats};
use super::rewriter::{SequenceRewriter, TimestampCompression};
use crate::hub::ring::{Entry, Ring};
use crate::hub::vp8_rewriter::{Vp8Rewriter, Vp8Shift};
use crate::media::clock::{duration, ticks};
use crate::media::packet::{Packet, TrackSeq, TrackTime};
use crate::media::{Codec, Kind, Pt, Ssrc};
use crate::sdp::plan::OutgoingTrack;
use crate::session::egress::RtpEgress;
use crate::session::outbox::RtpHeader;
use crate::session::srtp::SealError;

/// A track that a viewer negotiated.
pub struct OutTrack {
    kind: Kind,
    ssrc: Ssrc,
    rtx_ssrc: Option<Ssrc>,
    /// Payload type and that of its retransmissions, by [`Codec`].
    payload_types: [Option<(Pt, Option<Pt>)>; CODECS],
    rewriter: SequenceRewriter,
    state: State,
    /// Track position after the last packet that was sent.
    sent_until: TrackSeq,
    /// Track position after the last packet that was skipped because the viewer cannot receive it.
    skipped_until: TrackSeq,
    /// Latest rewritten track time that was sent.
    sent_time: TrackTime,
    /// Audio before this time was already sent, from another track.
    not_before: TrackTime,
    /// Number of bursts so far. A burst that had to be repeated exceeded the capacity of the path to this viewer.
    bursts: u32,
    /// The last burst repeated what was sent before.
    replays: bool,
    rtx_seq: u64,
    sent: SendStats,
    /// Offsets of the VP8 picture id and TL0PICIDX of the current track, and the values that the next track continues
    /// from.
    vp8: Vp8Shift,
    vp8_anchor: Option<Vp8Rewriter>,
    history: Option<Box<History>>,
}

/// State of a track.
#[derive(Clone, Copy, Debug)]
enum State {
    /// No key frame to start with yet, or waiting until `until` for a requested one.
    Waiting {
        until: Option<Instant>,
        /// The key frame in the ring when a new one was requested.
        cached: Option<TrackSeq>,
    },
    /// Reads from the ring.
    CatchUp {
        cursor: TrackSeq,
        read_order: u64,
        started: Instant,
        due: Instant,
        pace: Option<Pace>,
    },
    /// Forwards packets as they arrive. Packets with an `order` up to this one were read from the ring.
    Live { after_order: u64 },
}

impl State {
    const WAITING: Self = Self::Waiting {
        until: None,
        cached: None,
    };
}

#[derive(Clone, Copy, Debug)]
struct Pace {
    compression: TimestampCompression,
    rate: u32,
    key_frame: TrackSeq,
}

/// A packet to be retransmitted, and its outgoing sequence number.
pub struct Retransmissions {
    out: u64,
    entry: Arc<Entry>,
}

const CODECS: usize = 10;

/// Minimum rate of the burst with which a viewer starts, in bytes per second.
const BURST_RATE: usize = 8_000_000;

/// Maximum duration of the first burst, whatever is in the ring.
const MAX_BURST: Duration = Duration::from_millis(500);

/// Each repeated burst takes twice as long as the one before, for at most this many doublings.
const MAX_DOUBLINGS: u32 = 3;

/// If the cached key frame is younger than this, the burst is sent without timestamp compression.
const MIN_COMPRESSED: Duration = Duration::from_millis(100);

/// Time between two parts of a burst.
const BURST_STEP: Duration = Duration::from_millis(10);

/// Maximum number of packets in one part of a burst: what the socket buffer of a receiver holds.
const MAX_PART: usize = 128;

impl OutTrack {
    /// `random` seeds the initial sequence numbers and timestamp, which must be unpredictable.
    pub fn new(plan: OutgoingTrack, random: &mut dyn FnMut() -> u32) -> Self {
        let mut payload_types = [None; CODECS];
        for codec in plan.codecs.iter().rev() {
            if let Some(slot) = payload_types.get_mut(codec.format.codec() as usize) {
                *slot = Some((codec.pt, codec.rtx_pt));
            }
        }
        Self {
            kind: plan.kind,
            ssrc: plan.ssrc,
            rtx_ssrc: plan.rtx_ssrc,
            payload_types,
            rewriter: SequenceRewriter::new(random() as u16, random()),
            state: State::WAITING,
            sent_until: 0,
            skipped_until: 0,
            sent_time: 0,
            not_before: 0,
            bursts: 0,
            replays: false,
            rtx_seq: u64::from(random() & 0x7fff),
            sent: SendStats::default(),
            vp8: Vp8Shift::default(),
            vp8_anchor: None,
            history: None,
        }
    }

    /// Returns whether this is audio or video.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the SSRC of the media.
    pub fn ssrc(&self) -> Ssrc {
        self.ssrc
    }

    /// Returns what was sent so far, without retransmissions.
    pub fn sent(&self) -> SendStats {
        self.sent
    }

    /// Returns whether the track waits for a key frame.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    /// Starts at the live edge. For audio, where every packet can be decoded on its own.
    pub fn start_live(&mut self, ring: &Ring) {
        self.rewriter.continue_at(self.sent_until, ring.end(), None);
        self.sent_until = ring.end();
        self.state = State::Live {
            after_order: ring.order(),
        };
    }

    /// Returns the position of the last packet that was sent from the current track.
    pub fn last_sent(&self) -> Option<TrackSeq> {
        self.sent_until.checked_sub(1).filter(|_| self.sent.packets > 0)
    }

    /// Stops reading the current track. The next start is from another track with the same time base. `last` is the
    /// last packet that was sent, if the ring still holds it: VP8 picture ids continue after it.
    pub fn leave(&mut self, last: Option<&Packet>) {
        if let Some(last) = last.filter(|last| last.codec == Codec::Vp8) {
            let mut anchor = Vp8Rewriter::default();
            anchor.follow(&self.vp8.apply(last.payload.clone()));
            self.vp8_anchor = Some(anchor);
        }
        self.rewriter.leave(self.sent_until);
        (self.sent_until, self.skipped_until) = (0, 0);
        self.not_before = self.sent_time + 1;
        self.state = State::WAITING;
    }

    /// Returns whether a codec was negotiated.
    pub fn can_take(&self, codec: Codec) -> bool {
        self.payload_type(codec).is_some()
    }

    /// Waits until `until` for the key frame that was requested from the source, then starts at the cached one.
    pub fn wait(&mut self, until: Instant, ring: &Ring) {
        self.state = State::Waiting {
            until: Some(until),
            cached: ring.key_frame(),
        };
    }

    /// Starts at the cached key frame. Returns its age, or `None` if there is none and the track waits.
    pub fn start(&mut self, now: Instant, ring: &Ring) -> Option<Duration> {
        let cached = ring.key_frame().and_then(|seq| Some((seq, &ring.get(seq)?.packet)));
        let (Some((key_frame, first)), Some((newest, _))) = (cached, ring.newest()) else {
            self.state = State::WAITING;
            return None;
        };
        let rate = first.codec.clock_rate();
        let age = duration(newest.saturating_sub(first.time), rate);
        // What was already sent has the time of the live edge; what follows must be later.
        let begin = newest.max(self.sent_time) + 1;
        let compression = (age >= MIN_COMPRESSED || first.time <= self.sent_time).then(|| {
            let by_bytes = Duration::from_secs_f64(ring.bytes_since_key_frame() as f64 / BURST_RATE as f64);
            let longest = MAX_BURST * (1 << self.bursts.min(MAX_DOUBLINGS));
            let room = by_bytes * (1 << self.bursts.min(MAX_DOUBLINGS));
            let room = room.min(longest).min(age / 2).max(BURST_STEP);
            TimestampCompression {
                from: first.time,
                begin,
                end: begin + ticks(room, rate),
            }
        });
        self.bursts += 1;
        self.replays = false;
        self.rewriter.continue_at(self.sent_until, key_frame, compression);
        self.sent_until = key_frame;
        let pace = compression.map(|compression| Pace {
            compression,
            rate,
            key_frame,
        });
        self.state = State::CatchUp {
            cursor: key_frame,
            read_order: 0,
            started: now,
            due: now,
            pace,
        };
        Some(age)
    }

    /// Sends the cached key frame and everything after it once more, with new sequence numbers: the viewer cannot
    /// decode, and the source sends no key frame.
    pub fn replay(&mut self, now: Instant, ring: &Ring) {
        let is_idle = matches!(self.state, State::Live { .. } | State::Waiting { until: None, .. });
        if ring.key_frame().is_some() && is_idle {
            self.start(now, ring);
            self.replays = true;
        }
    }

    /// Whether a burst is being sent because the viewer could not decode what it was sent before.
    pub fn is_replaying(&self) -> bool {
        self.replays && matches!(self.state, State::CatchUp { .. })
    }

    /// Sends nothing more from the ring, and goes on with the next key frame.
    pub fn stop_reading(&mut self) {
        if matches!(
            self.state,
            State::CatchUp { .. } | State::Waiting { until: Some(_), .. }
        ) {
            self.state = State::WAITING;
        }
    }

    /// Reads from the ring what the mailbox of this shard lost.
    pub fn recover(&mut self, now: Instant) {
        if let State::Live { after_order } = self.state {
            self.replays = false;
            let cursor = self.sent_until;
            self.state = State::CatchUp {
                cursor,
                read_order: after_order,
                started: now,
                due: now,
                pace: None,
            };
        }
    }

    /// Returns whether a packet that has just arrived must be sent now.
    pub fn takes(&self, entry: &Entry) -> bool {
        match self.state {
            State::Waiting { .. } => false,
            State::CatchUp { cursor, read_order, .. } => entry.packet.seq < cursor && entry.order > read_order,
            State::Live { after_order } => entry.order > after_order,
        }
    }

    /// When [`Self::catch_up`] must be called.
    pub fn poll_catch_up(&self) -> Option<Instant> {
        match self.state {
            State::CatchUp { due, .. } => Some(due),
            State::Waiting { until, .. } => until,
            State::Live { .. } => None,
        }
    }

    /// Reads the packets that are due from the ring.
    pub fn catch_up(&mut self, now: Instant, ring: &Ring, due: &mut Vec<Arc<Entry>>) {
        if let State::Waiting { until, cached } = self.state {
            let timed_out = until.is_some_and(|until| until <= now);
            let fresh = ring.key_frame().is_some_and(|key_frame| Some(key_frame) != cached);
            if timed_out || fresh {
                self.start(now, ring);
            }
        }
        let State::CatchUp {
            mut cursor,
            started,
            mut pace,
            ..
        } = self.state
        else {
            return;
        };
        if let Some(resume) = self.resume_at(cursor, pace, ring) {
            let compression = self.compress_after_sent(ring.get(resume).map(|entry| &entry.packet));
            self.rewriter.continue_at(cursor, resume, compression);
            (cursor, pace) = (resume, None);
        } else if cursor < ring.first() {
            self.state = State::WAITING;
            return;
        }
        let limit = due.len() + MAX_PART;
        while cursor < ring.end() && due.len() < limit {
            if let Some(entry) = ring.get(cursor) {
                if pace.is_some_and(|pace| !pace.is_due(entry.packet.time, now.duration_since(started))) {
                    break;
                }
                due.push(entry.clone());
            }
            cursor += 1;
        }
        self.state = if cursor < ring.end() {
            State::CatchUp {
                cursor,
                read_order: ring.order(),
                started,
                due: now + BURST_STEP,
                pace,
            }
        } else {
            State::Live {
                after_order: ring.order(),
            }
        };
    }

    /// Returns where to continue if the ring no longer holds the next packet, or if a newer key frame makes the rest of
    /// the burst unnecessary. `None` if neither applies, and for video without a key frame in the ring.
    fn resume_at(&self, cursor: TrackSeq, pace: Option<Pace>, ring: &Ring) -> Option<TrackSeq> {
        let lost = cursor < ring.first();
        match (self.kind, ring.key_frame()) {
            (Kind::Audio, _) => lost.then(|| ring.first()),
            (Kind::Video, Some(key_frame)) => {
                let newer = pace.is_some_and(|pace| key_frame > pace.key_frame && key_frame > cursor);
                (lost || newer).then_some(key_frame)
            }
            (Kind::Video, None) => None,
        }
    }

    /// The timestamps of a burst can be slightly ahead of a packet that arrived late; timestamps must not go back.
    fn compress_after_sent(&self, first: Option<&Packet>) -> Option<TimestampCompression> {
        let first = first.filter(|first| first.time <= self.sent_time)?;
        let begin = self.sent_time + 1;
        Some(TimestampCompression {
            from: first.time,
            begin,
            end: begin + ticks(MIN_COMPRESSED, first.codec.clock_rate()),
        })
    }

    /// Sends a packet for the first time. A packet of a codec that the viewer did not negotiate is skipped, without a
    /// gap in the sequence numbers.
    ///
    /// # Errors
    ///
    /// [`SealError`]: the session cannot continue.
    pub fn send(&mut self, entry: &Entry, egress: &mut RtpEgress<'_>) -> Result<(), SealError> {
        let packet = &entry.packet;
        let already_sent = self.kind == Kind::Audio && packet.time < self.not_before;
        let Some((pt, _)) = self.payload_type(packet.codec).filter(|_| !already_sent) else {
            self.skipped_until = self.skipped_until.max(packet.seq + 1);
            return Ok(());
        };
        if self.sent_until < self.skipped_until && self.skipped_until <= packet.seq {
            let compression = self.compress_after_sent(Some(packet));
            self.rewriter
                .continue_at(self.sent_until, self.skipped_until, compression);
        }
        let Some((seq, time)) = self.rewriter.map(packet.seq, packet.time) else {
            return Ok(());
        };
        if packet.codec == Codec::Vp8
            && let Some(anchor) = self.vp8_anchor.take()
        {
            self.vp8 = anchor.counter_offset_for(&packet.payload);
        }
        self.sent_until = self.sent_until.max(packet.seq + 1);
        self.sent_time = self.sent_time.max(time);
        self.sent.packets = self.sent.packets.wrapping_add(1);
        self.sent.octets = self.sent.octets.wrapping_add(packet.payload.len() as u32);
        let header = RtpHeader {
            pt,
            marker: packet.marker,
            seq,
            time: self.rewriter.stamp(time),
            ssrc: self.ssrc,
            padding: entry.padding,
        };
        let rewritten = self.rewritten(packet);
        egress.send(header, rewritten.as_ref().unwrap_or(&packet.payload))
    }

    /// Returns the payload with VP8 picture ids rewritten for this viewer; `None` if they need no change.
    fn rewritten(&self, packet: &Packet) -> Option<Bytes> {
        let needs_rewrite = packet.codec == Codec::Vp8 && self.vp8 != Vp8Shift::default();
        needs_rewrite.then(|| self.vp8.apply(packet.payload.clone()))
    }

    fn payload_type(&self, codec: Codec) -> Option<(Pt, Option<Pt>)> {
        self.payload_types.get(codec as usize).copied().flatten()
    }

    /// Returns the packets that a NACK requests and that may be retransmitted.
    pub fn find_nacked(&mut self, now: Instant, rtt: Duration, seqs: &[u16], ring: &Ring) -> Vec<Retransmissions> {
        let Some(newest) = self.sent_until.checked_sub(1) else {
            return Vec::new();
        };
        let sent = self.sent;
        let history = self.history.get_or_insert_with(|| Box::new(History::new(now, sent)));
        history.refill(now, sent);
        let rewriter = &self.rewriter;
        seqs.iter()
            .filter_map(|seq| {
                let (out, track) = rewriter.find(*seq, newest)?;
                let entry = ring.get(track)?.clone();
                history
                    .allows(out, entry.body_len(), now, rtt)
                    .then_some(Retransmissions { out, entry })
            })
            .collect()
    }

    /// Retransmits a packet: on the RTX stream if negotiated, else byte for byte as before.
    ///
    /// # Errors
    ///
    /// [`SealError`]: the session cannot continue.
    pub fn resend(&mut self, item: &Retransmissions, egress: &mut RtpEgress<'_>) -> Result<(), SealError> {
        let Entry { packet, padding, .. } = &*item.entry;
        let rewritten = self.rewritten(packet);
        let payload = rewritten.as_ref().unwrap_or(&packet.payload);
        let Some((pt, rtx_pt)) = self.payload_type(packet.codec) else {
            return Ok(());
        };
        let Some(time) = self.rewriter.stamp_of(item.out, packet.time) else {
            return Ok(());
        };
        match (self.rtx_ssrc, rtx_pt) {
            (Some(ssrc), Some(pt)) => {
                let header = RtpHeader {
                    pt,
                    marker: packet.marker,
                    seq: self.rtx_seq,
                    time,
                    ssrc,
                    padding: *padding,
                };
                self.rtx_seq += 1;
                egress.send_rtx(header, item.out as u16, payload)
            }
            _ => {
                let header = RtpHeader {
                    pt,
                    marker: packet.marker,
                    seq: item.out,
                    time,
                    ssrc: self.ssrc,
                    padding: *padding,
                };
                egress.send(header, payload)
            }
        }
    }

    /// Returns the RTP timestamp of a track time for a sender report; `None` unless at the live edge, where time is
    /// steady.
    pub fn live_stamp(&self, time: TrackTime) -> Option<u32> {
        (matches!(self.state, State::Live { .. }) && self.sent.packets > 0).then(|| self.rewriter.stamp(time))
    }
}

impl Pace {
    /// A burst is sent on the schedule of its compressed timestamps.
    fn is_due(&self, time: TrackTime, elapsed: Duration) -> bool {
        let at = self.compression.apply(time).saturating_sub(self.compression.begin);
        duration(at, self.rate) <= elapsed
    }
}

#[cfg(test)]
mod tests;
