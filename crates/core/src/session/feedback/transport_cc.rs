//! Transport-wide congestion feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01): reports the arrival time of
//! each packet to the publisher, for its own bandwidth estimator.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::media::Ssrc;
use crate::media::rtp::SeqUnwrapper;

/// Time between two feedback packets.
const FEEDBACK_INTERVAL: Duration = Duration::from_millis(50);

/// Number of arrivals that trigger feedback before the interval ends.
const ARRIVALS_TRIGGERING_FEEDBACK: usize = 100;

/// Maximum number of arrivals in one feedback packet. In the worst case each takes 6 bytes: two chunks and a large
/// delta.
const MAX_RECEIVED_PACKETS_PER_FEEDBACK: usize = 200;

/// How long reported arrivals are remembered: a late packet is reported together with all that follow it.
const ARRIVAL_HISTORY_DURATION: Duration = Duration::from_millis(500);

/// Maximum number of remembered arrivals.
const MAX_REMEMBERED_ARRIVALS: usize = 2000;

/// A longer gap is a restart, not packet loss; packets this late are not reported.
const MAX_SEQ_GAP: u64 = 1000;

/// Unit of the deltas, in microseconds (§3.1.5).
const TWCC_DELTA_TICK_US: u128 = 250;

/// The reference time counts units of 64 ms (§3.1).
const TICKS_PER_REFERENCE_TIME_UNIT: i64 = 256;

/// Maximum length of a run-length chunk: 13 bits (§3.1.3).
const MAX_RUN_LENGTH: usize = 0x1fff;

/// Collects the arrivals of one transport.
pub struct TransportFeedbackGenerator {
    sender_ssrc: Ssrc,
    base_time: Instant,
    seq_unwrapper: SeqUnwrapper,
    arrivals: BTreeMap<u64, Instant>,
    /// Arrivals before this sequence number are reported and forgotten.
    forgotten_before_seq: u64,
    /// First sequence number not reported yet, and the media SSRC of the latest packet.
    next_unreported: Option<(u64, Ssrc)>,
    /// Number of arrivals since feedback was last due.
    pending_arrival_count: usize,
    last_feedback_at: Instant,
    /// Feedback is due and did not fit into one packet.
    has_more_due_feedback: bool,
    feedback_count: u8,
}

impl TransportFeedbackGenerator {
    /// `sender_ssrc` is our SSRC. Arrival times are reported relative to `base_time`, which must precede the first packet.
    pub fn new(base: Instant, from: Ssrc) -> Self {
        Self {
            sender_ssrc: from,
            base_time: base,
            seq_unwrapper: SeqUnwrapper::with_first_value_at_or_above(0),
            arrivals: BTreeMap::new(),
            forgotten_before_seq: 0,
            next_unreported: None,
            pending_arrival_count: 0,
            last_feedback_at: base,
            has_more_due_feedback: false,
            feedback_count: 0,
        }
    }

    /// Records the arrival of a packet of `media` with a transport-wide sequence number.
    pub fn on_packet(&mut self, now: Instant, media: Ssrc, wide_seq: u16) {
        let highest = self.seq_unwrapper.highest();
        let ext_seq = self.seq_unwrapper.extend(wide_seq);
        let mut next = self.next_unreported.map_or(ext_seq, |(next, _)| next);
        if highest.is_some_and(|highest| ext_seq > highest + MAX_SEQ_GAP) {
            self.arrivals.clear();
            self.pending_arrival_count = 0;
            (self.forgotten_before_seq, next) = (ext_seq, ext_seq);
        } else if ext_seq < self.forgotten_before_seq
            || ext_seq + MAX_SEQ_GAP < next
            || self.arrivals.contains_key(&ext_seq)
        {
            return;
        }
        if self.arrivals.len() == MAX_REMEMBERED_ARRIVALS {
            self.forgotten_before_seq = self
                .arrivals
                .pop_first()
                .map_or(self.forgotten_before_seq, |(seq, _)| seq + 1);
        }
        self.arrivals.insert(ext_seq, now);
        self.next_unreported = Some((next.min(ext_seq), media));
        self.pending_arrival_count += 1;
    }

    /// Returns an RTCP packet of at most 1,224 bytes if one is due. Call again until there is none.
    pub fn poll(&mut self, now: Instant) -> Option<Vec<u8>> {
        if !self.has_more_due_feedback {
            let due = self.poll_timeout()? <= now || self.pending_arrival_count >= ARRIVALS_TRIGGERING_FEEDBACK;
            if !due {
                return None;
            }
            self.has_more_due_feedback = true;
            self.pending_arrival_count = 0;
            self.last_feedback_at = now;
        }
        let packet = self.build_next_packet();
        if packet.is_none() {
            self.has_more_due_feedback = false;
            self.forget_old_reported_arrivals(now);
        }
        packet
    }

    /// When [`Self::poll`] must be called at the latest; `None` while nothing arrived. Feedback can be due earlier if
    /// many packets arrive: poll after each tick.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.pending_arrival_count > 0).then(|| self.last_feedback_at + FEEDBACK_INTERVAL)
    }

    /// Drops arrivals that are reported and too old to be reported again.
    fn forget_old_reported_arrivals(&mut self, now: Instant) {
        while let (Some(entry), Some((next, _))) = (self.arrivals.first_entry(), self.next_unreported) {
            if *entry.key() >= next || now.saturating_duration_since(*entry.get()) < ARRIVAL_HISTORY_DURATION {
                break;
            }
            self.forgotten_before_seq = entry.key() + 1;
            entry.remove();
        }
    }

    /// Builds a feedback packet of the arrivals from `next_unreported` on, as many as fit, and advances `next_unreported` past them.
    fn build_next_packet(&mut self) -> Option<Vec<u8>> {
        let (first, media) = self.next_unreported?;
        let base = self.base_time;
        let mut reported = self
            .arrivals
            .range(first..)
            .map(|(seq, at)| (*seq, ticks_since_base(base, *at)));
        let (seq, at) = reported.next()?;
        let reference = at.div_euclid(TICKS_PER_REFERENCE_TIME_UNIT);
        let mut report = FeedbackPacket::new(first);
        let mut before = reference * TICKS_PER_REFERENCE_TIME_UNIT;
        report.push_arrival_and_preceding_losses(seq, at - before);
        before = at;
        for (seq, at) in reported.take(MAX_RECEIVED_PACKETS_PER_FEEDBACK - 1) {
            // A delta that does not fit requires a new packet with its own reference time (§3.1.5).
            if i16::try_from(at - before).is_err() {
                break;
            }
            report.push_arrival_and_preceding_losses(seq, at - before);
            before = at;
        }
        self.next_unreported = Some((first + report.packet_statuses.len() as u64, media));
        let packet = report.write(self.sender_ssrc, media, reference as u32, self.feedback_count);
        self.feedback_count = self.feedback_count.wrapping_add(1);
        Some(packet)
    }
}

/// Arrival time in ticks since `base_time`.
fn ticks_since_base(base: Instant, at: Instant) -> i64 {
    i64::try_from(at.saturating_duration_since(base).as_micros() / TWCC_DELTA_TICK_US).unwrap_or(i64::MAX)
}

/// Status of a packet (§3.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PacketStatus {
    NotReceived = 0,
    SmallDelta = 1,
    LargeDelta = 2,
}

/// The content of one feedback packet.
struct FeedbackPacket {
    base_seq: u64,
    packet_statuses: Vec<PacketStatus>,
    deltas: Vec<u8>,
}

impl FeedbackPacket {
    fn new(first: u64) -> Self {
        Self {
            base_seq: first,
            packet_statuses: Vec::new(),
            deltas: Vec::new(),
        }
    }

    /// Adds an arrival; all packets between the previous one and this one did not arrive.
    fn push_arrival_and_preceding_losses(&mut self, seq: u64, delta: i64) {
        let index = usize::try_from(seq - self.base_seq).unwrap_or(0);
        self.packet_statuses.resize(index, PacketStatus::NotReceived);
        if let Ok(small) = u8::try_from(delta) {
            self.packet_statuses.push(PacketStatus::SmallDelta);
            self.deltas.push(small);
        } else {
            self.packet_statuses.push(PacketStatus::LargeDelta);
            let large = i16::try_from(delta).unwrap_or(i16::MAX);
            self.deltas.extend_from_slice(&large.to_be_bytes());
        }
    }

    /// ```text
    ///  |V=2|P|  FMT=15 |    PT=205     |           length              |
    ///  |                     SSRC of packet sender                     |
    ///  |                      SSRC of media source                     |
    ///  |      base sequence number     |      packet status count      |
    ///  |                 reference time                | fb pkt. count |
    ///  |  packet chunks, 2 bytes each, then receive deltas, 1 or 2 each |
    /// ```
    fn write(&self, from: Ssrc, media: Ssrc, reference: u32, count: u8) -> Vec<u8> {
        let mut out = vec![0x8f, 205, 0, 0];
        out.extend_from_slice(&from.0.to_be_bytes());
        out.extend_from_slice(&media.0.to_be_bytes());
        out.extend_from_slice(&(self.base_seq as u16).to_be_bytes());
        out.extend_from_slice(&(self.packet_statuses.len() as u16).to_be_bytes());
        out.extend_from_slice(&(reference << 8 | u32::from(count)).to_be_bytes());
        let mut rest = self.packet_statuses.as_slice();
        while !rest.is_empty() {
            let (chunk, length) = encode_status_chunk(rest);
            out.extend_from_slice(&chunk.to_be_bytes());
            rest = rest.get(length..).unwrap_or_default();
        }
        out.extend_from_slice(&self.deltas);
        let padding = (4 - out.len() % 4) % 4;
        if padding > 0 {
            out[0] |= 0x20;
            out.resize(out.len() + padding, 0);
            // RFC 3550 §6.4.1: the last byte is the length of the padding.
            if let Some(last) = out.last_mut() {
                *last = padding as u8;
            }
        }
        let words = (out.len() / 4 - 1) as u16;
        out[2..4].copy_from_slice(&words.to_be_bytes());
        out
    }
}

/// Returns the packet chunk that covers the most symbols, and how many it covers (§3.1.2).
fn encode_status_chunk(symbols: &[PacketStatus]) -> (u16, usize) {
    let first = symbols.first().copied().unwrap_or(PacketStatus::NotReceived);
    let run = symbols
        .iter()
        .take(MAX_RUN_LENGTH)
        .take_while(|symbol| **symbol == first)
        .count();
    let one_bit = symbols
        .iter()
        .take(14)
        .all(|symbol| *symbol != PacketStatus::LargeDelta);
    let (in_vector, width) = if one_bit { (14, 1) } else { (7, 2) };
    if run >= in_vector.min(symbols.len()) {
        return ((first as u16) << 13 | run as u16, run);
    }
    let mut chunk = 0x8000 | (width - 1) << 14;
    for (index, symbol) in symbols.iter().take(in_vector).enumerate() {
        chunk |= (*symbol as u16) << (14 - width * (index as u16 + 1));
    }
    (chunk, in_vector.min(symbols.len()))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
    use rtc_rtcp::transport_feedbacks::transport_layer_cc::{PacketStatusChunk, SymbolTypeTcc, TransportLayerCc};
    use rtc_shared::marshal::Unmarshal as _;

    const MS: Duration = Duration::from_millis(1);
    const MEDIA_SSRC: Ssrc = Ssrc(2);

    /// Reads feedback with an independent parser: each reported sequence number, with its arrival time in microseconds
    /// since the base if it arrived.
    fn read_feedback(bytes: &[u8]) -> Vec<(u16, Option<i64>)> {
        assert!(bytes.len() <= 1224 && bytes.len().is_multiple_of(4));
        let packet = TransportLayerCc::unmarshal(&mut &bytes[..]).expect("valid feedback");
        assert_eq!((packet.sender_ssrc, packet.media_ssrc), (1, 2));
        let mut symbols = Vec::new();
        for chunk in &packet.packet_chunks {
            match chunk {
                PacketStatusChunk::RunLengthChunk(run) => {
                    symbols.extend(vec![run.packet_status_symbol; usize::from(run.run_length)]);
                }
                PacketStatusChunk::StatusVectorChunk(vector) => symbols.extend_from_slice(&vector.symbol_list),
            }
        }
        symbols.truncate(usize::from(packet.packet_status_count));
        assert_eq!(symbols.len(), usize::from(packet.packet_status_count));
        let mut at = i64::from(packet.reference_time) * 64_000;
        let mut deltas = packet.recv_deltas.iter();
        let mut seq = packet.base_sequence_number.wrapping_sub(1);
        let reported = symbols.iter().map(|symbol| {
            seq = seq.wrapping_add(1);
            let arrived = *symbol != SymbolTypeTcc::PacketNotReceived;
            let reported = arrived.then(|| {
                at += deltas.next().expect("a delta").delta;
                at
            });
            (seq, reported)
        });
        reported.collect()
    }

    fn new_generator() -> (TransportFeedbackGenerator, Instant) {
        let base = Instant::now();
        (TransportFeedbackGenerator::new(base, Ssrc(1)), base)
    }

    #[test]
    fn arrivals_and_losses_are_reported_across_the_wrap() {
        let (mut feedback, base) = new_generator();
        for (at, seq) in [(100, 65_534), (101, 65_535), (103, 2)] {
            feedback.on_packet(base + at * MS, MEDIA_SSRC, seq);
        }
        let bytes = feedback.poll(base + 150 * MS).expect("due");
        let expected = [
            (65_534, Some(100_000)),
            (65_535, Some(101_000)),
            (0, None),
            (1, None),
            (2, Some(103_000)),
        ];
        assert_eq!(read_feedback(&bytes), expected);
        assert_eq!(feedback.poll(base + 500 * MS), None, "all reported");
    }

    #[test]
    fn feedback_waits_for_its_interval_or_enough_packets() {
        let (mut feedback, base) = new_generator();
        assert_eq!(feedback.poll_timeout(), None);
        feedback.on_packet(base, MEDIA_SSRC, 0);
        assert_eq!(feedback.poll_timeout(), Some(base + FEEDBACK_INTERVAL));
        assert!(feedback.poll(base + 49 * MS).is_none());
        assert!(feedback.poll(base + 50 * MS).is_some());
        for seq in 1..=100 {
            assert!(feedback.poll(base + 51 * MS).is_none());
            feedback.on_packet(base + 51 * MS, MEDIA_SSRC, seq);
        }
        assert!(feedback.poll(base + 51 * MS).is_some());
    }

    #[test]
    fn a_reordered_packet_has_a_negative_delta() {
        let (mut feedback, base) = new_generator();
        feedback.on_packet(base + 10 * MS, MEDIA_SSRC, 2);
        feedback.on_packet(base + 5 * MS, MEDIA_SSRC, 3);
        let bytes = feedback.poll(base + 50 * MS).expect("due");
        assert_eq!(read_feedback(&bytes), [(2, Some(10_000)), (3, Some(5_000))]);
    }

    #[test]
    fn a_late_packet_is_reported_again_with_its_followers() {
        let (mut feedback, base) = new_generator();
        feedback.on_packet(base + MS, MEDIA_SSRC, 1);
        feedback.on_packet(base + 2 * MS, MEDIA_SSRC, 3);
        assert!(feedback.poll(base + 50 * MS).is_some());
        assert!(feedback.poll(base + 50 * MS).is_none());
        feedback.on_packet(base + 60 * MS, MEDIA_SSRC, 2);
        feedback.on_packet(base + 61 * MS, MEDIA_SSRC, 2);
        let bytes = feedback.poll(base + 100 * MS).expect("due");
        assert_eq!(read_feedback(&bytes), [(2, Some(60_000)), (3, Some(2_000))]);
    }

    #[test]
    fn a_packet_older_than_the_history_is_not_reported() {
        let (mut feedback, base) = new_generator();
        for (at, seq) in [(0, 1), (1, 3), (600, 4)] {
            feedback.on_packet(base + at * MS, MEDIA_SSRC, seq);
            while feedback.poll(base + (at + 50) * MS).is_some() {}
        }
        feedback.on_packet(base + 700 * MS, MEDIA_SSRC, 2);
        assert_eq!(feedback.poll(base + 800 * MS), None);
    }

    #[test]
    fn a_pause_longer_than_a_delta_needs_a_second_packet() {
        let (mut feedback, base) = new_generator();
        feedback.on_packet(base, MEDIA_SSRC, 1);
        feedback.on_packet(base + 9000 * MS, MEDIA_SSRC, 2);
        let first = feedback.poll(base + 9000 * MS).expect("due");
        let second = feedback.poll(base + 9000 * MS).expect("the rest");
        assert_eq!(read_feedback(&first), [(1, Some(0))]);
        assert_eq!(read_feedback(&second), [(2, Some(9_000_000))]);
        assert_eq!((first[19], second[19]), (0, 1), "feedback is counted");
    }

    #[test]
    fn the_reference_time_wraps_after_twelve_days() {
        let (mut feedback, base) = new_generator();
        let cycle = 64 * MS * (1 << 24);
        feedback.on_packet(base + cycle + 65 * MS, MEDIA_SSRC, 1);
        let bytes = feedback.poll(base + 2 * cycle).expect("due");
        assert_eq!(read_feedback(&bytes), [(1, Some(65_000))]);
    }

    #[test]
    fn the_worst_pattern_still_fits_a_packet() {
        let (mut feedback, base) = new_generator();
        for index in 0..300u16 {
            feedback.on_packet(base + 70 * MS * u32::from(index), MEDIA_SSRC, index * 21);
        }
        let first = feedback.poll(base + 30_000 * MS).expect("due");
        assert!(first.len() > 1200, "as bad as it gets: {}", first.len());
        let second = feedback.poll(base + 30_000 * MS).expect("the rest");
        let arrived = |bytes| read_feedback(bytes).iter().filter(|(_, at)| at.is_some()).count();
        assert_eq!(
            (arrived(&first), arrived(&second)),
            (MAX_RECEIVED_PACKETS_PER_FEEDBACK, 100)
        );
    }

    #[test]
    fn long_seq_jump_restarts_feedback() {
        let (mut feedback, base) = new_generator();
        feedback.on_packet(base, MEDIA_SSRC, 1);
        feedback.on_packet(base, MEDIA_SSRC, 20_000);
        let bytes = feedback.poll(base + 50 * MS).expect("due");
        assert_eq!(read_feedback(&bytes), [(20_000, Some(0))]);
    }

    #[test]
    fn every_arrival_is_reported_once_whatever_the_network_does() {
        let seed = 5;
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut feedback, base) = new_generator();
        let mut sent = std::collections::BTreeMap::new();
        let mut reported = std::collections::BTreeMap::new();
        let mut now = base;
        for seq in 0..60_000u16 {
            now += Duration::from_micros(rng.random_range(0..2000));
            if rng.random_range(0..2000) == 0 {
                now += Duration::from_millis(rng.random_range(0..20_000));
            }
            let lost = if seq / 1000 % 2 == 0 { 2 } else { 50 };
            if rng.random_range(0..100) >= lost {
                let jitter = Duration::from_micros(rng.random_range(0..1000));
                feedback.on_packet(now + jitter, MEDIA_SSRC, seq);
                let us = (now + jitter).duration_since(base).as_micros() as i64;
                sent.insert(seq, us / 250 * 250);
            }
            while let Some(bytes) = feedback.poll(now) {
                for (seq, at) in read_feedback(&bytes) {
                    // The reference time covers twelve days, so it does not wrap here.
                    assert!(at.is_none_or(|at| reported.insert(seq, at).is_none()), "{seq} twice");
                }
            }
        }
        while let Some(bytes) = feedback.poll(now + FEEDBACK_INTERVAL) {
            reported.extend(
                read_feedback(&bytes)
                    .into_iter()
                    .filter_map(|(seq, at)| Some((seq, at?))),
            );
        }
        assert_eq!(reported, sent);
        assert!(feedback.arrivals.len() <= MAX_REMEMBERED_ARRIVALS);
    }
}
