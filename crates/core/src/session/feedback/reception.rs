//! Reception statistics of one incoming SSRC (RFC 3550 §6.4.1, appendices A.1, A.3 and A.8).
//!
//! Packets arrive here decrypted and authenticated, so there is no probation. A sender cannot go back in its sequence
//! numbers either: SRTP would reject its packets as replays (RFC 3711 §3.3.2).

use std::time::{Duration, Instant};

use crate::media::Ssrc;
use crate::media::rtcp;
use crate::media::rtp::SeqUnwrapper;

/// Number of recent packets whose arrival is remembered: two seconds at 16 Mbit/s.
const ARRIVAL_WINDOW_PACKETS: u64 = 4096;

/// A larger forward jump is a restart, not packet loss (MAX_DROPOUT of RFC 3550 A.1).
const MAX_DROPOUT: u64 = 3000;

/// Packets up to this far before the first are reordered; those further back are rejected (MAX_MISORDER of RFC 3550
/// A.1).
const MAX_MISORDER_BEFORE_FIRST: u64 = 100;

/// Extended sequence numbers start here, so that packets before the first one have one too.
const RTP_SEQ_MOD: u64 = 1 << 16;

/// How a packet relates to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrivalKind {
    /// Its sequence number is higher than all before.
    New,
    /// It fills a gap: reordered, or retransmitted after a NACK.
    Late,
    /// It arrived before. OBS 30.1 retransmits packets that arrived, with other content: drop it.
    Duplicate,
    /// It is too old to distinguish from a duplicate: drop it.
    TooOld,
}

/// Classification of an arrived packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Sequence number that does not wrap. For the first packet it is between 65,536 and 131,071.
    pub ext_seq: u64,
    pub kind: ArrivalKind,
}

/// Reception statistics of one SSRC.
pub(crate) struct ReceptionStats {
    media_ssrc: Ssrc,
    clock_rate: u32,
    seq_unwrapper: SeqUnwrapper,
    /// One bit for each of the last [`ARRIVAL_WINDOW_PACKETS`] sequence numbers, indexed modulo [`ARRIVAL_WINDOW_PACKETS`].
    received_bitmap: Box<[u64; ARRIVAL_WINDOW_PACKETS as usize / 64]>,
    /// `None` before the first packet.
    packet_counts: Option<PacketCounts>,
    jitter: Jitter,
    /// Packets expected in the interval of the last report, and how many of them were missing at its end.
    interval_expected_and_lost: (u64, u64),
    /// Middle 32 bits of the NTP time of the last sender report, and its arrival time.
    last_sender_report: Option<(u32, Instant)>,
}

struct PacketCounts {
    /// First expected extended sequence number.
    base_seq: u64,
    highest_seq: u64,
    received_count: u64,
    /// `expected` and `received_count` at the time of the last report.
    counts_at_last_report: (u64, u64),
}

impl ReceptionStats {
    /// Creates statistics with nothing received. `clock_rate` is in Hz.
    pub(crate) fn new(media: Ssrc, clock_rate: u32) -> Self {
        Self {
            media_ssrc: media,
            clock_rate,
            seq_unwrapper: SeqUnwrapper::with_first_value_at_or_above(RTP_SEQ_MOD),
            received_bitmap: Box::new([0; ARRIVAL_WINDOW_PACKETS as usize / 64]),
            packet_counts: None,
            jitter: Jitter::default(),
            interval_expected_and_lost: (0, 0),
            last_sender_report: None,
        }
    }

    /// Counts a packet with RTP sequence number `seq` and RTP timestamp `time`.
    pub(crate) fn on_packet(&mut self, now: Instant, seq: u16, time: u32) -> Arrival {
        let ext_seq = self.seq_unwrapper.extend(seq);
        let kind = self.record_and_classify_arrival(ext_seq);
        if kind == ArrivalKind::New {
            // The arrival time of a retransmission says nothing about network jitter.
            self.jitter.on_packet(now, time, self.clock_rate);
        }
        Arrival { ext_seq, kind }
    }

    /// Goes on with another SSRC, whose packets continue the numbering.
    pub(crate) fn continue_numbering_with_ssrc(&mut self, ssrc: Ssrc) {
        (self.media_ssrc, self.last_sender_report) = (ssrc, None);
    }

    /// How many sequence numbers a packet is ahead of all that arrived; `None` before the first.
    pub(crate) fn seqs_ahead_of_highest(&self, seq: u16) -> Option<u16> {
        let counts = self.packet_counts.as_ref()?;
        Some(seq.wrapping_sub(counts.highest_seq as u16))
    }

    /// Whether a packet is newer than all that arrived. No retransmission is: it is of another sequence then.
    pub(crate) fn is_newer_than_highest(&self, seq: u16) -> bool {
        let highest = self.packet_counts.as_ref().map(|counts| counts.highest_seq as u16);
        highest.is_none_or(|highest| (seq.wrapping_sub(highest) as i16) > 0)
    }

    fn record_and_classify_arrival(&mut self, ext_seq: u64) -> ArrivalKind {
        let Some(counts) = &mut self.packet_counts else {
            self.restart_counts_at_seq(ext_seq);
            return ArrivalKind::New;
        };
        if ext_seq > counts.highest_seq {
            if ext_seq - counts.highest_seq > MAX_DROPOUT {
                self.restart_counts_at_seq(ext_seq);
                return ArrivalKind::New;
            }
            let from = counts.highest_seq + 1;
            counts.highest_seq = ext_seq;
            counts.received_count += 1;
            for missing in from..ext_seq {
                self.replace_received_bit(missing, false);
            }
            self.replace_received_bit(ext_seq, true);
            return ArrivalKind::New;
        }
        if counts.highest_seq - ext_seq >= ARRIVAL_WINDOW_PACKETS
            || ext_seq + MAX_MISORDER_BEFORE_FIRST < counts.base_seq
        {
            return ArrivalKind::TooOld;
        }
        if self.replace_received_bit(ext_seq, true) {
            return ArrivalKind::Duplicate;
        }
        if let Some(counts) = &mut self.packet_counts {
            counts.base_seq = counts.base_seq.min(ext_seq);
            counts.received_count += 1;
        }
        ArrivalKind::Late
    }

    /// Starts counting at this packet.
    fn restart_counts_at_seq(&mut self, ext_seq: u64) {
        self.received_bitmap.fill(0);
        self.packet_counts = Some(PacketCounts {
            base_seq: ext_seq,
            highest_seq: ext_seq,
            received_count: 1,
            counts_at_last_report: (0, 0),
        });
        self.replace_received_bit(ext_seq, true);
    }

    /// Sets the bit of a sequence number; returns its previous value.
    fn replace_received_bit(&mut self, ext_seq: u64, arrived: bool) -> bool {
        let index = ext_seq % ARRIVAL_WINDOW_PACKETS;
        let word = &mut self.received_bitmap[(index / 64) as usize];
        let mask = 1 << (index % 64);
        let before = *word & mask != 0;
        *word = if arrived { *word | mask } else { *word & !mask };
        before
    }

    /// Records a sender report of this SSRC; `ntp` is its 64-bit NTP timestamp.
    pub(crate) fn on_sender_report(&mut self, now: Instant, ntp: u64) {
        self.last_sender_report = Some(((ntp >> 16) as u32, now));
    }

    /// Returns the packets expected in the interval of the last report, and how many of them were missing at its end.
    pub(crate) fn last_report_expected_and_lost(&self) -> (u64, u64) {
        self.interval_expected_and_lost
    }

    /// Whether packets are missing of the interval since the last report.
    pub(crate) fn has_lost_since_last_report(&self) -> bool {
        self.packet_counts.as_ref().is_some_and(|counts| {
            let expected = counts.highest_seq - counts.base_seq + 1;
            let (expected_before, received_before) = counts.counts_at_last_report;
            expected - expected_before > counts.received_count - received_before
        })
    }

    /// Returns the report block for the interval since the last one; `None` before the first packet.
    pub(crate) fn take_report_block(&mut self, now: Instant) -> Option<rtcp::ReceiverReportStats> {
        let counts = self.packet_counts.as_mut()?;
        let expected = counts.highest_seq - counts.base_seq + 1;
        let (expected_before, received_before) =
            std::mem::replace(&mut counts.counts_at_last_report, (expected, counts.received_count));
        let expected_since = expected - expected_before;
        let received_since = counts.received_count - received_before;
        // Late packets of the previous interval can make more arrive than was expected: no loss (RFC 3550 A.3).
        let lost_since = expected_since.saturating_sub(received_since);
        self.interval_expected_and_lost = (expected_since, lost_since);
        let fraction_lost = (lost_since * 256).checked_div(expected_since).unwrap_or(0);
        let (last_sr, delay_since_last_sr) = match self.last_sender_report {
            Some((last_sr, at)) => (last_sr, ntp_short_duration(now.saturating_duration_since(at))),
            None => (0, 0),
        };
        Some(rtcp::ReceiverReportStats {
            media_ssrc: self.media_ssrc,
            fraction_lost: u8::try_from(fraction_lost).unwrap_or(u8::MAX),
            cumulative_lost: u32::try_from(expected - counts.received_count).unwrap_or(u32::MAX),
            // The count of cycles starts at zero (RFC 3550 §6.4.1).
            highest_seq: (counts.highest_seq - RTP_SEQ_MOD) as u32,
            jitter: self.jitter.jitter_in_timestamp_units(),
            last_sr,
            delay_since_last_sr,
        })
    }
}

fn ntp_short_duration(duration: Duration) -> u32 {
    u32::try_from((duration.as_nanos() << 16) / 1_000_000_000).unwrap_or(u32::MAX)
}

/// Interarrival jitter (RFC 3550 A.8).
#[derive(Default)]
struct Jitter {
    /// Arrival time of the first packet.
    first_arrival: Option<Instant>,
    /// Arrival time minus RTP timestamp of the last packet, in timestamp units.
    last_transit: Option<u32>,
    /// In 1/16 of a timestamp unit.
    scaled_jitter: u64,
}

impl Jitter {
    fn on_packet(&mut self, now: Instant, time: u32, clock_rate: u32) {
        let start = *self.first_arrival.get_or_insert(now);
        let elapsed = now.saturating_duration_since(start);
        let arrival = (elapsed.as_nanos() * u128::from(clock_rate) / 1_000_000_000) as u32;
        let transit = arrival.wrapping_sub(time);
        if let Some(before) = self.last_transit.replace(transit) {
            let difference = (transit.wrapping_sub(before) as i32).unsigned_abs();
            self.scaled_jitter = self.scaled_jitter + u64::from(difference) - ((self.scaled_jitter + 8) >> 4);
        }
    }

    fn jitter_in_timestamp_units(&self) -> u32 {
        u32::try_from(self.scaled_jitter >> 4).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    fn new_stats() -> (ReceptionStats, Instant) {
        (ReceptionStats::new(Ssrc(9), 90_000), Instant::now())
    }

    fn classify_arrivals(reception: &mut ReceptionStats, now: Instant, seqs: &[u16]) -> Vec<ArrivalKind> {
        seqs.iter().map(|seq| reception.on_packet(now, *seq, 0).kind).collect()
    }

    #[test]
    fn arrivals_are_classified_across_the_wrap() {
        use ArrivalKind::{Duplicate, Late, New};
        let (mut reception, now) = new_stats();
        assert_eq!(
            classify_arrivals(&mut reception, now, &[65_533, 65_535, 1, 65_534, 1, 0, 0, 2]),
            [New, New, New, Late, Duplicate, Late, Duplicate, New]
        );
        let report = reception.take_report_block(now).expect("packets came");
        assert_eq!((report.cumulative_lost, report.fraction_lost), (0, 0));
        assert_eq!(report.highest_seq, RTP_SEQ_MOD as u32 + 2, "one cycle");
    }

    #[test]
    fn packets_older_than_the_window_are_too_old() {
        let (mut reception, now) = new_stats();
        for seq in 0..5000 {
            reception.on_packet(now, seq, 0);
        }
        assert_eq!(
            classify_arrivals(&mut reception, now, &[903, 904]),
            [ArrivalKind::TooOld, ArrivalKind::Duplicate]
        );
    }

    #[test]
    fn a_missing_packet_is_not_mistaken_for_the_packet_one_window_earlier() {
        let (mut reception, now) = new_stats();
        for seq in (0..5000).filter(|seq| *seq != 4500) {
            reception.on_packet(now, seq, 0);
        }
        assert_eq!(classify_arrivals(&mut reception, now, &[4500]), [ArrivalKind::Late]);
    }

    #[test]
    fn packets_shortly_before_the_first_are_late_and_older_ones_are_too_old() {
        let (mut reception, now) = new_stats();
        assert_eq!(
            classify_arrivals(&mut reception, now, &[0, 65_535, 65_000]),
            [ArrivalKind::New, ArrivalKind::Late, ArrivalKind::TooOld]
        );
        assert_eq!(
            reception.take_report_block(now).expect("packets came").cumulative_lost,
            0
        );
    }

    #[test]
    fn fraction_lost_is_per_interval_sum_is_total() {
        let (mut reception, now) = new_stats();
        for seq in (0..100).filter(|seq| seq % 4 != 1) {
            reception.on_packet(now, seq, 0);
        }
        let report = reception.take_report_block(now).expect("packets came");
        assert_eq!((report.fraction_lost, report.cumulative_lost), (64, 25));
        for seq in 100..200 {
            reception.on_packet(now, seq, 0);
        }
        let report = reception.take_report_block(now).expect("packets came");
        assert_eq!((report.fraction_lost, report.cumulative_lost), (0, 25));
        reception.on_packet(now, 1, 0);
        assert_eq!(
            reception.take_report_block(now).expect("packets came").cumulative_lost,
            24,
            "filled"
        );
    }

    #[test]
    fn a_long_jump_is_a_restart_and_not_loss() {
        let (mut reception, now) = new_stats();
        let first = reception.on_packet(now, 10, 0).ext_seq;
        let far = reception.on_packet(now, 20_000, 0);
        assert_eq!((far.ext_seq, far.kind), (first + 19_990, ArrivalKind::New));
        assert_eq!(
            reception.take_report_block(now).expect("packets came").cumulative_lost,
            0
        );
    }

    #[test]
    fn an_even_stream_has_no_jitter_and_an_uneven_one_converges() {
        let (mut even, start) = new_stats();
        let mut uneven = ReceptionStats::new(Ssrc(9), 90_000);
        for index in 0..500u16 {
            let time = (u32::from(index) * 900).wrapping_sub(9000);
            let now = start + Duration::from_millis(10) * u32::from(index);
            even.on_packet(now, index, time);
            // Every other packet is 2 ms late: each difference is 180 units.
            uneven.on_packet(now + Duration::from_millis(2) * u32::from(index % 2), index, time);
        }
        assert_eq!(even.take_report_block(start).expect("packets came").jitter, 0);
        let jitter = uneven.take_report_block(start).expect("packets came").jitter;
        assert!((175..=180).contains(&jitter), "{jitter}");
    }

    #[test]
    fn a_report_repeats_the_sender_report_and_its_age() {
        let (mut reception, now) = new_stats();
        assert!(reception.take_report_block(now).is_none());
        reception.on_packet(now, 1, 0);
        assert_eq!(reception.take_report_block(now).expect("packets came").last_sr, 0);
        reception.on_sender_report(now, 0x0102_0304_0506_0708);
        let report = reception
            .take_report_block(now + Duration::from_millis(500))
            .expect("packets came");
        assert_eq!((report.last_sr, report.delay_since_last_sr), (0x0304_0506, 32_768));
    }

    #[test]
    fn any_order_of_packets_keeps_the_counts_consistent() {
        let seed = 11;
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut reception, now) = new_stats();
        let mut seq = 0u16;
        for _ in 0..100_000 {
            seq = match rng.random_range(0..100) {
                0 => rng.random(),
                1..10 => seq.wrapping_sub(rng.random_range(0..200)),
                _ => seq.wrapping_add(rng.random_range(0..4)),
            };
            let arrival = reception.on_packet(now, seq, rng.random());
            assert_eq!(arrival.ext_seq as u16, seq);
            if rng.random_range(0..50) == 0 {
                let _ = reception.take_report_block(now);
            }
        }
    }
}
