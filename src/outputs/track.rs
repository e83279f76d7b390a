//! One track of one viewer: where it stands on the stream's line, and what it sends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::history::History;
use super::rewriter::{SequenceRewriter, TimestampCompression};
use crate::hub::ring::Ring;
use crate::hub::vp8_rewriter::{Vp8Rewriter, Vp8Shift};
use crate::media::clock::{duration, ticks};
use crate::media::packet::{Packet, TrackSeq, TrackTime};
use crate::media::{Codec, Kind, Pt, Ssrc};
use crate::sdp::plan::OutgoingTrack;
use crate::session::outbox::{Destination, Outbox, RtpHeader};
use crate::session::srtp::{RtpCipher, SealError};

/// A track that a viewer negotiated.
pub struct OutTrack {
    kind: Kind,
    ssrc: Ssrc,
    rtx_ssrc: Option<Ssrc>,
    /// By [`Codec`]: payload type and that of its retransmissions.
    payload_types: [Option<(Pt, Option<Pt>)>; CODECS],
    line: SequenceRewriter,
    state: State,
    /// Position after the last packet in line order that was sent.
    sent_until: TrackSeq,
    /// Position after the last packet that was left out because the viewer cannot take its codec.
    left_out_until: TrackSeq,
    /// Latest time on the line that was sent.
    sent_time: TrackTime,
    /// Sound before this was sent already, from another track.
    not_before: TrackTime,
    /// Bursts so far. One that had to be repeated was too much for the way to this viewer.
    bursts: u32,
    /// The last burst repeated what was sent before.
    replays: bool,
    rtx_seq: u64,
    sent: SendStats,
    /// What the counters inside VP8 of the present track are moved by, and what they go on behind once it is known.
    vp8: Vp8Shift,
    vp8_goes_on: Option<Vp8Rewriter>,
    history: Option<Box<History>>,
}

/// Where a track stands.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing to begin with yet; or a fresh key frame is on its way, for which it waits until then.
    Waiting {
        until: Option<Instant>,
        /// The key frame that was cached when the fresh one was asked for.
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
    /// Forwards what arrives; what was inserted up to this order was read from the ring.
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
    squeeze: TimestampCompression,
    rate: u32,
    key_frame: TrackSeq,
}

/// Counts for sender reports; both wrap (RFC 3550 §6.4.1).
#[derive(Clone, Copy, Debug, Default)]
pub struct SendStats {
    pub packets: u32,
    pub octets: u32,
}

/// A packet to be sent again.
pub struct Retransmissions {
    out: u64,
    packet: Arc<Packet>,
}

const CODECS: usize = 10;

/// Bytes per second of the burst with which a viewer begins, at least.
const BURST_RATE: usize = 8_000_000;

/// The burst takes no longer than this, whatever is in the cache.
const MAX_BURST: Duration = Duration::from_millis(500);

/// Each repeated burst takes twice as long as the one before, so often at most.
const MAX_DOUBLINGS: u32 = 3;

/// A cache younger than this is sent as it is: nothing to squeeze.
const MIN_SQUEEZED: Duration = Duration::from_millis(100);

/// Between two parts of the burst.
const BURST_STEP: Duration = Duration::from_millis(10);

/// Packets of one part of the burst at most: what the socket buffer of a receiver holds.
const MAX_PART: usize = 128;

impl OutTrack {
    /// `random` seeds what has to be unpredictable.
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
            line: SequenceRewriter::new(random() as u16, random()),
            state: State::WAITING,
            sent_until: 0,
            left_out_until: 0,
            sent_time: 0,
            not_before: 0,
            bursts: 0,
            replays: false,
            rtx_seq: u64::from(random() & 0x7fff),
            sent: SendStats::default(),
            vp8: Vp8Shift::default(),
            vp8_goes_on: None,
            history: None,
        }
    }

    /// What it carries.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// SSRC of the media.
    pub fn ssrc(&self) -> Ssrc {
        self.ssrc
    }

    /// What was sent so far, retransmissions excluded.
    pub fn sent(&self) -> SendStats {
        self.sent
    }

    /// Whether nothing could be sent yet for want of a key frame.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    /// Begins at the live edge: every packet is a start (audio).
    pub fn start_live(&mut self, ring: &Ring) {
        self.line.go_on(self.sent_until, ring.end(), None);
        self.sent_until = ring.end();
        self.state = State::Live {
            after_order: ring.order(),
        };
    }

    /// The packet of the present track that was sent last, in its line's order.
    pub fn last_sent(&self) -> Option<TrackSeq> {
        self.sent_until.checked_sub(1).filter(|_| self.sent.packets > 0)
    }

    /// Leaves the track that was read so far: the next call begins with another one, whose times are the same. `last` is
    /// the packet that was sent last, if it is still there: the counters inside VP8 go on behind it.
    pub fn leave(&mut self, last: Option<&Packet>) {
        if let Some(last) = last.filter(|last| last.codec == Codec::Vp8) {
            let mut line = Vp8Rewriter::default();
            line.follow(&self.vp8.apply(last.payload.clone()));
            self.vp8_goes_on = Some(line);
        }
        self.line.leave(self.sent_until);
        (self.sent_until, self.left_out_until) = (0, 0);
        self.not_before = self.sent_time + 1;
        self.state = State::WAITING;
    }

    /// Whether a codec was negotiated.
    pub fn can_take(&self, codec: Codec) -> bool {
        self.payload_type(codec).is_some()
    }

    /// Waits for the key frame that the source was asked for, but begins with the cached one at the latest then.
    pub fn wait(&mut self, until: Instant, ring: &Ring) {
        self.state = State::Waiting {
            until: Some(until),
            cached: ring.key_frame(),
        };
    }

    /// Begins at the cached key frame. Returns its age, or `None` when there is none and the track waits.
    pub fn start(&mut self, now: Instant, ring: &Ring) -> Option<Duration> {
        let cached = ring.key_frame().and_then(|seq| Some((seq, ring.get(seq)?)));
        let (Some((key_frame, first)), Some((newest, _))) = (cached, ring.newest()) else {
            self.state = State::WAITING;
            return None;
        };
        let rate = first.codec.clock_rate();
        let age = duration(newest.saturating_sub(first.time), rate);
        // What was sent already has the time of the live edge; what follows has to be later.
        let begin = newest.max(self.sent_time) + 1;
        let squeeze = (age >= MIN_SQUEEZED || first.time <= self.sent_time).then(|| {
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
        self.line.go_on(self.sent_until, key_frame, squeeze);
        self.sent_until = key_frame;
        let pace = squeeze.map(|squeeze| Pace {
            squeeze,
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

    /// Sends the cached key frame and what followed once more, under new numbers: the viewer cannot decode and the
    /// source sends no key frame.
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

    /// Reads from the ring what was lost on the way to this shard.
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

    /// Whether a packet that has just arrived is to be sent now.
    pub fn takes(&self, packet: &Packet) -> bool {
        match self.state {
            State::Waiting { .. } => false,
            State::CatchUp { cursor, read_order, .. } => packet.seq < cursor && packet.order > read_order,
            State::Live { after_order } => packet.order > after_order,
        }
    }

    /// When [`Self::catch_up`] wants to be called.
    pub fn poll_catch_up(&self) -> Option<Instant> {
        match self.state {
            State::CatchUp { due, .. } => Some(due),
            State::Waiting { until, .. } => until,
            State::Live { .. } => None,
        }
    }

    /// Reads what is due from the ring.
    pub fn catch_up(&mut self, now: Instant, ring: &Ring, due: &mut Vec<Arc<Packet>>) {
        if let State::Waiting { until, cached } = self.state {
            let in_vain = until.is_some_and(|until| until <= now);
            let fresh = ring.key_frame().is_some_and(|key_frame| Some(key_frame) != cached);
            if in_vain || fresh {
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
        if let Some(further) = self.further_on(cursor, pace, ring) {
            let squeeze = self.squeeze_behind_sent(ring.get(further).map(Arc::as_ref));
            self.line.go_on(cursor, further, squeeze);
            (cursor, pace) = (further, None);
        } else if cursor < ring.first() {
            self.state = State::WAITING;
            return;
        }
        let limit = due.len() + MAX_PART;
        while cursor < ring.end() && due.len() < limit {
            if let Some(packet) = ring.get(cursor) {
                if pace.is_some_and(|pace| !pace.is_due(packet.time, now.duration_since(started))) {
                    break;
                }
                due.push(packet.clone());
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

    /// Where to go on when the ring no longer holds the packet that is due, or when a newer key frame saves the rest of
    /// the burst. `None` for video whose key frame is gone.
    fn further_on(&self, cursor: TrackSeq, pace: Option<Pace>, ring: &Ring) -> Option<TrackSeq> {
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

    /// The times of a burst may be a little ahead of a packet that was late on its way here; it must not go back.
    fn squeeze_behind_sent(&self, first: Option<&Packet>) -> Option<TimestampCompression> {
        let first = first.filter(|first| first.time <= self.sent_time)?;
        let begin = self.sent_time + 1;
        Some(TimestampCompression {
            from: first.time,
            begin,
            end: begin + ticks(MIN_SQUEEZED, first.codec.clock_rate()),
        })
    }

    /// Sends a packet for the first time. A packet of a codec that the viewer cannot take is left out; the line goes on
    /// behind it without a hole.
    ///
    /// # Errors
    ///
    /// [`SealError`]: the session cannot go on.
    pub fn send(
        &mut self,
        packet: &Packet,
        sealer: &mut RtpCipher,
        destination: Destination,
        outbox: &mut Outbox,
    ) -> Result<(), SealError> {
        let was_sent = self.kind == Kind::Audio && packet.time < self.not_before;
        let Some((pt, _)) = self.payload_type(packet.codec).filter(|_| !was_sent) else {
            self.left_out_until = self.left_out_until.max(packet.seq + 1);
            return Ok(());
        };
        if self.sent_until < self.left_out_until && self.left_out_until <= packet.seq {
            let squeeze = self.squeeze_behind_sent(Some(packet));
            self.line.go_on(self.sent_until, self.left_out_until, squeeze);
        }
        let Some((seq, time)) = self.line.map(packet.seq, packet.time) else {
            return Ok(());
        };
        if packet.codec == Codec::Vp8
            && let Some(line) = self.vp8_goes_on.take()
        {
            self.vp8 = line.shift_for(&packet.payload);
        }
        self.sent_until = self.sent_until.max(packet.seq + 1);
        self.sent_time = self.sent_time.max(time);
        self.sent.packets = self.sent.packets.wrapping_add(1);
        self.sent.octets = self.sent.octets.wrapping_add(packet.payload.len() as u32);
        let header = RtpHeader {
            pt,
            marker: packet.marker,
            seq,
            time: self.line.stamp(time),
            ssrc: self.ssrc,
        };
        let moved = self.moved(packet);
        outbox.rtp(destination, sealer, header, moved.as_ref().unwrap_or(packet))
    }

    /// The packet with the counters inside it as this viewer knows them; `None` where they are its own.
    fn moved(&self, packet: &Packet) -> Option<Packet> {
        let moves = packet.codec == Codec::Vp8 && self.vp8 != Vp8Shift::default();
        moves.then(|| Packet {
            payload: self.vp8.apply(packet.payload.clone()),
            ..packet.clone()
        })
    }

    fn payload_type(&self, codec: Codec) -> Option<(Pt, Option<Pt>)> {
        self.payload_types.get(codec as usize).copied().flatten()
    }

    /// Picks the packets that a NACK asks for and that may be sent again.
    pub fn find_nacked(&mut self, now: Instant, rtt: Duration, seqs: &[u16], ring: &Ring) -> Vec<Retransmissions> {
        let Some(newest) = self.sent_until.checked_sub(1) else {
            return Vec::new();
        };
        let sent = self.sent;
        let history = self.history.get_or_insert_with(|| Box::new(History::new(now, sent)));
        history.refill(now, sent);
        let line = &self.line;
        seqs.iter()
            .filter_map(|seq| {
                let (out, track) = line.find(*seq, newest)?;
                let packet = ring.get(track)?.clone();
                history
                    .allows(out, packet.body_len(), now, rtt)
                    .then_some(Retransmissions { out, packet })
            })
            .collect()
    }

    /// Sends a packet again: on the RTX stream where that was negotiated, byte for byte the same else.
    ///
    /// # Errors
    ///
    /// [`SealError`]: the session cannot go on.
    pub fn resend(
        &mut self,
        item: &Retransmissions,
        sealer: &mut RtpCipher,
        destination: Destination,
        outbox: &mut Outbox,
    ) -> Result<(), SealError> {
        let moved = self.moved(&item.packet);
        let packet = moved.as_ref().unwrap_or(&item.packet);
        let Some((pt, rtx_pt)) = self.payload_type(packet.codec) else {
            return Ok(());
        };
        let Some(time) = self.line.stamp_of(item.out, packet.time) else {
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
                };
                self.rtx_seq += 1;
                outbox.rtx(destination, sealer, header, item.out as u16, packet)
            }
            _ => {
                let header = RtpHeader {
                    pt,
                    marker: packet.marker,
                    seq: item.out,
                    time,
                    ssrc: self.ssrc,
                };
                outbox.rtp(destination, sealer, header, packet)
            }
        }
    }

    /// RTP timestamp of a track time for a sender report; only at the live edge, where time runs steadily.
    pub fn live_stamp(&self, time: TrackTime) -> Option<u32> {
        (matches!(self.state, State::Live { .. }) && self.sent.packets > 0).then(|| self.line.stamp(time))
    }
}

impl Pace {
    /// The burst is sent on the schedule of its own timestamps.
    fn is_due(&self, time: TrackTime, elapsed: Duration) -> bool {
        let at = self.squeeze.apply(time).saturating_sub(self.squeeze.begin);
        duration(at, self.rate) <= elapsed
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;
    use crate::media::{Format, Mid, ProfileLevelId};
    use crate::sdp::plan::{Extensions, Feedback, NegotiatedCodec};
    use crate::session::outbox::{Run, Sink};
    use crate::session::srtp::Profile;
    use bytes::Bytes;
    use rtc_crypto::RTCCryptoProvider as _;
    use rtc_crypto::providers::AwsLcRsProvider;

    const HERE: Destination = Destination {
        to: std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9),
        from: None,
    };

    struct Nowhere;

    impl Sink for Nowhere {
        fn send(&mut self, _: &[u8], _: &[Run]) {}
    }

    fn track() -> OutTrack {
        let format = Format::H264 {
            profile: ProfileLevelId::CONSTRAINED_BASELINE_3_1,
            packetization_mode: 1,
        };
        let codec = NegotiatedCodec {
            pt: Pt(102),
            rtx_pt: None,
            format,
            feedback: Feedback::default(),
        };
        let plan = OutgoingTrack {
            mid: Mid("0".into()),
            kind: Kind::Video,
            codecs: vec![codec],
            extensions: Extensions::default(),
            ssrc: Ssrc(1),
            rtx_ssrc: None,
        };
        OutTrack::new(plan, &mut || 7)
    }

    fn insert(ring: &mut Ring, at: Instant, frame: u64) -> Arc<Packet> {
        let make = |order| Packet {
            seq: 100 + frame,
            time: 1_000_000 + frame * 3_000,
            order,
            codec: Codec::H264,
            marker: true,
            key_frame: frame == 0,
            format_changed: false,
            padding: 0,
            arrival: at,
            payload: Bytes::from_static(&[0; 1_000]),
        };
        ring.insert(100 + frame, make).expect("new")
    }

    #[test]
    fn what_was_read_from_the_ring_is_not_sent_again_when_its_batch_arrives() {
        let (mut ring, t, mut track) = (Ring::default(), Instant::now(), track());
        let batches: Vec<Arc<Packet>> = (0..3).map(|frame| insert(&mut ring, t, frame)).collect();
        track.start(t, &ring);
        let mut due = Vec::new();
        track.catch_up(t, &ring, &mut due);
        assert_eq!(due.len(), 3);
        assert!(batches.iter().all(|packet| !track.takes(packet)));
        assert!(track.takes(&insert(&mut ring, t, 3)));
    }

    #[test]
    fn a_viewer_that_waits_for_an_answer_begins_with_the_cache_if_none_comes() {
        let (mut ring, t, mut track) = (Ring::default(), Instant::now(), track());
        insert(&mut ring, t, 0);
        track.wait(t + Duration::from_millis(300), &ring);
        assert_eq!(track.poll_catch_up(), Some(t + Duration::from_millis(300)));
        let mut due = Vec::new();
        track.catch_up(t + Duration::from_millis(300), &ring, &mut due);
        assert_eq!(due.len(), 1);
    }

    #[test]
    fn a_viewer_that_waits_in_vain_has_no_timer() {
        let (mut ring, t, mut track) = (Ring::default(), Instant::now(), track());
        let until = t + Duration::from_millis(300);
        track.wait(until, &ring);
        let mut due = Vec::new();
        track.catch_up(until, &ring, &mut due);
        assert_eq!(track.poll_catch_up(), None);
        insert(&mut ring, until, 0);
        track.catch_up(until, &ring, &mut due);
        assert_eq!(due.len(), 1, "the key frame that came at last");
    }

    #[test]
    fn a_viewer_that_waits_for_an_answer_does_not_begin_with_what_was_there_before() {
        let (mut ring, t, mut track) = (Ring::default(), Instant::now(), track());
        insert(&mut ring, t, 0);
        track.wait(t + Duration::from_millis(300), &ring);
        let mut due = Vec::new();
        track.catch_up(t, &ring, &mut due);
        assert!(due.is_empty());
    }

    #[test]
    fn what_the_viewer_cannot_take_is_no_gap_in_its_line() {
        let (t, mut track) = (Instant::now(), track());
        let mut ring = Ring::default();
        track.start(t, &ring);
        insert(&mut ring, t, 0);
        let mut sealer = RtpCipher::new(
            Profile::AeadAes128Gcm,
            &[3; 16],
            &[5; 12],
            AwsLcRsProvider::new().crypto(),
        )
        .expect("lengths fit");
        let mut outbox = Outbox::new(Box::new(Nowhere));
        let mut due = Vec::new();
        track.catch_up(t, &ring, &mut due);
        let mut send = |track: &mut OutTrack, seq, codec| {
            let packet = Packet {
                seq,
                time: 1_000_000 + seq * 30,
                order: u64::MAX,
                codec,
                marker: true,
                key_frame: false,
                format_changed: false,
                padding: 0,
                arrival: t,
                payload: Bytes::from_static(&[0; 1_000]),
            };
            track.send(&packet, &mut sealer, HERE, &mut outbox).expect("seals");
            track.line.map(seq, 0).map(|(out, _)| out)
        };
        let last = send(&mut track, 100, Codec::H264).expect("sent");
        for seq in 101..60_000 {
            send(&mut track, seq, Codec::Vp8);
        }
        // A receiver takes a step of more than 2^15 for one backwards (RFC 3711 §3.3.1).
        assert_eq!(send(&mut track, 60_000, Codec::H264), Some(last + 1));
        assert_eq!(send(&mut track, 60_001, Codec::H264), Some(last + 2));
        assert_eq!(track.line.map(100, 0).map(|(out, _)| out), Some(last));
    }

    #[test]
    fn the_burst_ends_at_a_newer_key_frame_and_time_does_not_go_back() {
        let (mut ring, t, mut track) = (Ring::default(), Instant::now(), track());
        for frame in 0..300 {
            insert(&mut ring, t + Duration::from_millis(frame * 33), frame);
        }
        let now = t + Duration::from_secs(10);
        track.start(now, &ring);
        let mut due = Vec::new();
        track.catch_up(now + Duration::from_millis(10), &ring, &mut due);
        let sent = due.len();
        assert!((1..200).contains(&sent), "{sent}");
        track.sent_until = 100 + sent as u64;
        track.sent_time = track.line.map(99 + sent as u64, due[sent - 1].time).expect("sent").1;
        // The key frame was late on its way: its time is behind that of the burst.
        let make = |order| Packet {
            seq: 400,
            time: track.sent_time - 10,
            order,
            codec: Codec::H264,
            marker: true,
            key_frame: true,
            format_changed: false,
            padding: 0,
            arrival: now,
            payload: Bytes::from_static(&[0; 1_000]),
        };
        let key_frame = ring.insert(400, make).expect("new");
        due.clear();
        track.catch_up(now + Duration::from_millis(20), &ring, &mut due);
        assert_eq!(due.iter().map(|p| p.seq).collect::<Vec<_>>(), [400]);
        let (_, time) = track.line.map(400, key_frame.time).expect("on the line");
        assert!(time > track.sent_time);
    }
}
