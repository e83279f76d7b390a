//! Reception statistics of one incoming SSRC (RFC 3550 §6.4.1, appendices A.1, A.3 and A.8).
//!
//! Packets arrive here decrypted and authenticated, so there is no probation. A sender cannot go back in its sequence
//! numbers either: SRTP would reject its packets as replays (RFC 3711 §3.3.2).

use std::time::{Duration, Instant};

use crate::media::Ssrc;
use crate::media::rtcp;
use crate::media::rtp::SeqUnwrapper;

/// Number of recent packets whose arrival is remembered: two seconds at 16 Mbit/s.
const WINDOW: u64 = 4096;

/// A larger forward jump is a restart, not packet loss (MAX_DROPOUT of RFC 3550 A.1).
const MAX_DROPOUT: u64 = 3000;

/// Packets up to this far before the first are reordered; those further back are rejected (MAX_MISORDER of RFC 3550
/// A.1).
const MAX_MISORDER: u64 = 100;

/// Extended sequence numbers start here, so that packets before the first one have one too.
const CYCLE: u64 = 1 << 16;

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
pub struct Reception {
    media: Ssrc,
    clock_rate: u32,
    unwrapper: SeqUnwrapper,
    /// One bit for each of the last [`WINDOW`] sequence numbers, indexed modulo [`WINDOW`].
    seen: Box<[u64; WINDOW as usize / 64]>,
    /// `None` before the first packet.
    counts: Option<Counts>,
    jitter: Jitter,
    /// Packets expected in the interval of the last report, and how many of them were missing at its end.
    interval: (u64, u64),
    /// Middle 32 bits of the NTP time of the last sender report, and its arrival time.
    sender_report: Option<(u32, Instant)>,
}

struct Counts {
    /// First expected extended sequence number.
    base: u64,
    highest: u64,
    received: u64,
    /// `expected` and `received` at the time of the last report.
    reported: (u64, u64),
}

impl Reception {
    /// Creates statistics with nothing received. `clock_rate` is in Hz.
    pub fn new(media: Ssrc, clock_rate: u32) -> Self {
        Self {
            media,
            clock_rate,
            unwrapper: SeqUnwrapper::starting_at(CYCLE),
            seen: Box::new([0; WINDOW as usize / 64]),
            counts: None,
            jitter: Jitter::default(),
            interval: (0, 0),
            sender_report: None,
        }
    }

    /// Counts a packet with RTP sequence number `seq` and RTP timestamp `time`.
    pub fn on_packet(&mut self, now: Instant, seq: u16, time: u32) -> Arrival {
        let ext_seq = self.unwrapper.extend(seq);
        let kind = self.place(ext_seq);
        if kind == ArrivalKind::New {
            // The arrival time of a retransmission says nothing about network jitter.
            self.jitter.on_packet(now, time, self.clock_rate);
        }
        Arrival { ext_seq, kind }
    }

    /// Whether a packet is newer than all that arrived. No retransmission is: it is of another sequence then.
    pub fn is_ahead(&self, seq: u16) -> bool {
        let highest = self.counts.as_ref().map(|counts| counts.highest as u16);
        highest.is_none_or(|highest| (seq.wrapping_sub(highest) as i16) > 0)
    }

    fn place(&mut self, ext_seq: u64) -> ArrivalKind {
        let Some(counts) = &mut self.counts else {
            self.begin(ext_seq);
            return ArrivalKind::New;
        };
        if ext_seq > counts.highest {
            if ext_seq - counts.highest > MAX_DROPOUT {
                self.begin(ext_seq);
                return ArrivalKind::New;
            }
            let from = counts.highest + 1;
            counts.highest = ext_seq;
            counts.received += 1;
            for missing in from..ext_seq {
                self.mark(missing, false);
            }
            self.mark(ext_seq, true);
            return ArrivalKind::New;
        }
        if counts.highest - ext_seq >= WINDOW || ext_seq + MAX_MISORDER < counts.base {
            return ArrivalKind::TooOld;
        }
        if self.mark(ext_seq, true) {
            return ArrivalKind::Duplicate;
        }
        if let Some(counts) = &mut self.counts {
            counts.base = counts.base.min(ext_seq);
            counts.received += 1;
        }
        ArrivalKind::Late
    }

    /// Starts counting at this packet.
    fn begin(&mut self, ext_seq: u64) {
        self.seen.fill(0);
        self.counts = Some(Counts {
            base: ext_seq,
            highest: ext_seq,
            received: 1,
            reported: (0, 0),
        });
        self.mark(ext_seq, true);
    }

    /// Sets the bit of a sequence number; returns its previous value.
    fn mark(&mut self, ext_seq: u64, arrived: bool) -> bool {
        let index = ext_seq % WINDOW;
        let word = &mut self.seen[(index / 64) as usize];
        let mask = 1 << (index % 64);
        let before = *word & mask != 0;
        *word = if arrived { *word | mask } else { *word & !mask };
        before
    }

    /// Records a sender report of this SSRC; `ntp` is its 64-bit NTP timestamp.
    pub fn on_sender_report(&mut self, now: Instant, ntp: u64) {
        self.sender_report = Some(((ntp >> 16) as u32, now));
    }

    /// Returns the packets expected in the interval of the last report, and how many of them were missing at its end.
    pub fn interval(&self) -> (u64, u64) {
        self.interval
    }

    /// Returns the report block for the interval since the last one; `None` before the first packet.
    pub fn report(&mut self, now: Instant) -> Option<rtcp::Reception> {
        let counts = self.counts.as_mut()?;
        let expected = counts.highest - counts.base + 1;
        let (expected_before, received_before) = std::mem::replace(&mut counts.reported, (expected, counts.received));
        let expected_since = expected - expected_before;
        let received_since = counts.received - received_before;
        // Late packets of the previous interval can make more arrive than was expected: no loss (RFC 3550 A.3).
        let lost_since = expected_since.saturating_sub(received_since);
        self.interval = (expected_since, lost_since);
        let fraction_lost = (lost_since * 256).checked_div(expected_since).unwrap_or(0);
        let (last_sr, delay_since_last_sr) = match self.sender_report {
            Some((last_sr, at)) => (last_sr, in_65536ths(now.saturating_duration_since(at))),
            None => (0, 0),
        };
        Some(rtcp::Reception {
            media: self.media,
            fraction_lost: u8::try_from(fraction_lost).unwrap_or(u8::MAX),
            lost: u32::try_from(expected - counts.received).unwrap_or(u32::MAX),
            // The count of cycles starts at zero (RFC 3550 §6.4.1).
            highest_seq: (counts.highest - CYCLE) as u32,
            jitter: self.jitter.value(),
            last_sr,
            delay_since_last_sr,
        })
    }
}

fn in_65536ths(duration: Duration) -> u32 {
    u32::try_from((duration.as_nanos() << 16) / 1_000_000_000).unwrap_or(u32::MAX)
}

/// Interarrival jitter (RFC 3550 A.8).
#[derive(Default)]
struct Jitter {
    /// Arrival time of the first packet.
    start: Option<Instant>,
    /// Arrival time minus RTP timestamp of the last packet, in timestamp units.
    transit: Option<u32>,
    /// In 1/16 of a timestamp unit.
    scaled: u64,
}

impl Jitter {
    fn on_packet(&mut self, now: Instant, time: u32, clock_rate: u32) {
        let start = *self.start.get_or_insert(now);
        let elapsed = now.saturating_duration_since(start);
        let arrival = (elapsed.as_nanos() * u128::from(clock_rate) / 1_000_000_000) as u32;
        let transit = arrival.wrapping_sub(time);
        if let Some(before) = self.transit.replace(transit) {
            let difference = (transit.wrapping_sub(before) as i32).unsigned_abs();
            self.scaled = self.scaled + u64::from(difference) - ((self.scaled + 8) >> 4);
        }
    }

    fn value(&self) -> u32 {
        u32::try_from(self.scaled >> 4).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    fn reception() -> (Reception, Instant) {
        (Reception::new(Ssrc(9), 90_000), Instant::now())
    }

    fn kinds(reception: &mut Reception, now: Instant, seqs: &[u16]) -> Vec<ArrivalKind> {
        seqs.iter().map(|seq| reception.on_packet(now, *seq, 0).kind).collect()
    }

    #[test]
    fn arrivals_are_classified_across_the_wrap() {
        use ArrivalKind::{Duplicate, Late, New};
        let (mut reception, now) = reception();
        assert_eq!(
            kinds(&mut reception, now, &[65_533, 65_535, 1, 65_534, 1, 0, 0, 2]),
            [New, New, New, Late, Duplicate, Late, Duplicate, New]
        );
        let report = reception.report(now).expect("packets came");
        assert_eq!((report.lost, report.fraction_lost), (0, 0));
        assert_eq!(report.highest_seq, CYCLE as u32 + 2, "one cycle");
    }

    #[test]
    fn packets_older_than_the_window_are_too_old() {
        let (mut reception, now) = reception();
        for seq in 0..5000 {
            reception.on_packet(now, seq, 0);
        }
        assert_eq!(
            kinds(&mut reception, now, &[903, 904]),
            [ArrivalKind::TooOld, ArrivalKind::Duplicate]
        );
    }

    #[test]
    fn a_missing_packet_is_not_mistaken_for_the_packet_one_window_earlier() {
        let (mut reception, now) = reception();
        for seq in (0..5000).filter(|seq| *seq != 4500) {
            reception.on_packet(now, seq, 0);
        }
        assert_eq!(kinds(&mut reception, now, &[4500]), [ArrivalKind::Late]);
    }

    #[test]
    fn packets_shortly_before_the_first_are_late_and_older_ones_are_too_old() {
        let (mut reception, now) = reception();
        assert_eq!(
            kinds(&mut reception, now, &[0, 65_535, 65_000]),
            [ArrivalKind::New, ArrivalKind::Late, ArrivalKind::TooOld]
        );
        assert_eq!(reception.report(now).expect("packets came").lost, 0);
    }

    #[test]
    fn the_fraction_is_of_the_interval_and_the_sum_is_of_all() {
        let (mut reception, now) = reception();
        for seq in (0..100).filter(|seq| seq % 4 != 1) {
            reception.on_packet(now, seq, 0);
        }
        let report = reception.report(now).expect("packets came");
        assert_eq!((report.fraction_lost, report.lost), (64, 25));
        for seq in 100..200 {
            reception.on_packet(now, seq, 0);
        }
        let report = reception.report(now).expect("packets came");
        assert_eq!((report.fraction_lost, report.lost), (0, 25));
        reception.on_packet(now, 1, 0);
        assert_eq!(reception.report(now).expect("packets came").lost, 24, "filled");
    }

    #[test]
    fn a_long_jump_is_a_restart_and_not_loss() {
        let (mut reception, now) = reception();
        let first = reception.on_packet(now, 10, 0).ext_seq;
        let far = reception.on_packet(now, 20_000, 0);
        assert_eq!((far.ext_seq, far.kind), (first + 19_990, ArrivalKind::New));
        assert_eq!(reception.report(now).expect("packets came").lost, 0);
    }

    #[test]
    fn an_even_stream_has_no_jitter_and_an_uneven_one_converges() {
        let (mut even, start) = reception();
        let mut uneven = Reception::new(Ssrc(9), 90_000);
        for index in 0..500u16 {
            let time = (u32::from(index) * 900).wrapping_sub(9000);
            let now = start + Duration::from_millis(10) * u32::from(index);
            even.on_packet(now, index, time);
            // Every other packet is 2 ms late: each difference is 180 units.
            uneven.on_packet(now + Duration::from_millis(2) * u32::from(index % 2), index, time);
        }
        assert_eq!(even.report(start).expect("packets came").jitter, 0);
        let jitter = uneven.report(start).expect("packets came").jitter;
        assert!((175..=180).contains(&jitter), "{jitter}");
    }

    #[test]
    fn a_report_repeats_the_sender_report_and_its_age() {
        let (mut reception, now) = reception();
        assert!(reception.report(now).is_none());
        reception.on_packet(now, 1, 0);
        assert_eq!(reception.report(now).expect("packets came").last_sr, 0);
        reception.on_sender_report(now, 0x0102_0304_0506_0708);
        let report = reception
            .report(now + Duration::from_millis(500))
            .expect("packets came");
        assert_eq!((report.last_sr, report.delay_since_last_sr), (0x0304_0506, 32_768));
    }

    #[test]
    fn any_order_of_packets_keeps_the_counts_consistent() {
        let seed = 11;
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut reception, now) = reception();
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
                let _ = reception.report(now);
            }
        }
    }
}
