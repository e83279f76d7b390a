//! Retransmission requests for lost packets (RFC 4585 §6.2.1): which packets, when, how often.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::reception::{Arrival, ArrivalKind};

/// Maximum number of missing packets that are tracked; beyond it the oldest are given up.
const MAX_MISSING: usize = 1000;

/// A longer gap is a restart, not packet loss: nothing of it is requested.
const MAX_GAP: u64 = 1000;

/// A packet counts as lost once two later ones arrived, or this long after the first later one. Until then it may only
/// be reordered.
const REORDER_TIME: Duration = Duration::from_millis(10);

/// Minimum time between two requests for the same packet; a longer round-trip time takes precedence.
const MIN_SPACING: Duration = Duration::from_millis(20);

/// Maximum time between two requests: a wrong round-trip time must not suppress them.
const MAX_SPACING: Duration = Duration::from_millis(500);

/// Maximum number of requests for the same packet.
const MAX_REQUESTS: u8 = 10;

/// A packet that has been missing for longer is of no use.
const MAX_AGE: Duration = Duration::from_secs(2);

/// Maximum sequence numbers in one request. Each may take 4 bytes, which makes about 1,000 bytes of RTCP.
const MAX_IN_REQUEST: usize = 250;

/// Tracks the missing packets of one SSRC.
#[derive(Default)]
pub struct NackGenerator {
    highest: Option<u64>,
    missing: BTreeMap<u64, MissingPacket>,
    given_up: u64,
}

struct MissingPacket {
    since: Instant,
    requests: u8,
    due: Instant,
}

impl NackGenerator {
    pub fn new() -> Self {
        Self::default()
    }

    /// Records a packet as classified by [`super::Reception`].
    pub fn on_packet(&mut self, now: Instant, arrival: Arrival) {
        match arrival.kind {
            ArrivalKind::Late => {
                self.missing.remove(&arrival.ext_seq);
            }
            ArrivalKind::New => self.on_new(now, arrival.ext_seq),
            ArrivalKind::Duplicate | ArrivalKind::TooOld => {}
        }
    }

    fn on_new(&mut self, now: Instant, ext_seq: u64) {
        let Some(highest) = self.highest.replace(ext_seq) else {
            return;
        };
        if ext_seq <= highest || ext_seq - highest > MAX_GAP {
            self.given_up += self.missing.len() as u64 + ext_seq.saturating_sub(highest + 1);
            self.missing.clear();
            return;
        }
        // The second later packet arrived: all that still wait for their first request are due.
        for packet in self.missing.values_mut().filter(|packet| packet.requests == 0) {
            packet.due = packet.due.min(now);
        }
        for seq in highest + 1..ext_seq {
            let packet = MissingPacket {
                since: now,
                requests: 0,
                due: now + REORDER_TIME,
            };
            self.missing.insert(seq, packet);
        }
        while self.missing.len() > MAX_MISSING {
            self.missing.pop_first();
            self.given_up += 1;
        }
    }

    /// Returns the sequence numbers to request now, in ascending order modulo wrap, at most 250. Call again until there
    /// are none. `rtt` is the round-trip time to the publisher, zero if unknown.
    pub fn poll(&mut self, now: Instant, rtt: Duration) -> Vec<u16> {
        let spacing = rtt.clamp(MIN_SPACING, MAX_SPACING);
        let mut seqs = Vec::new();
        let mut given_up = 0;
        self.missing.retain(|ext_seq, packet| {
            if packet.due > now || seqs.len() == MAX_IN_REQUEST {
                return true;
            }
            if packet.requests == MAX_REQUESTS || now.saturating_duration_since(packet.since) >= MAX_AGE {
                given_up += 1;
                return false;
            }
            seqs.push(*ext_seq as u16);
            packet.requests += 1;
            packet.due = now + spacing;
            true
        });
        self.given_up += given_up;
        seqs
    }

    /// When [`Self::poll`] must be called; `None` while nothing is missing.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.missing.values().map(|packet| packet.due).min()
    }

    /// Returns the total number of missing packets that are no longer requested. A rise means that viewers see
    /// corrupted video until the next key frame.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;
    use crate::media::Ssrc;
    use crate::session::feedback::Reception;

    const MS: Duration = Duration::from_millis(1);
    const NO_RTT: Duration = Duration::ZERO;

    struct Receiver {
        reception: Reception,
        nack: NackGenerator,
        start: Instant,
    }

    impl Receiver {
        fn new() -> Self {
            Self {
                reception: Reception::new(Ssrc(1), 90_000),
                nack: NackGenerator::new(),
                start: Instant::now(),
            }
        }

        fn receive(&mut self, at: Duration, seqs: &[u16]) {
            for seq in seqs {
                let arrival = self.reception.on_packet(self.start + at, *seq, 0);
                self.nack.on_packet(self.start + at, arrival);
            }
        }

        fn poll(&mut self, at: Duration) -> Vec<u16> {
            self.nack.poll(self.start + at, NO_RTT)
        }
    }

    #[test]
    fn nothing_is_requested_while_nothing_is_missing() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[65_534, 65_535, 0, 1]);
        assert_eq!(receiver.nack.poll_timeout(), None);
        assert!(receiver.poll(MS).is_empty());
    }

    #[test]
    fn a_missing_packet_is_requested_after_two_later_packets() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[65_534, 1]);
        assert!(receiver.poll(MS).is_empty());
        receiver.receive(2 * MS, &[2]);
        assert_eq!(receiver.poll(2 * MS), [65_535, 0]);
    }

    #[test]
    fn a_missing_packet_is_requested_after_ten_milliseconds() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[1, 3]);
        assert!(receiver.poll(10 * MS).is_empty());
        assert_eq!(receiver.nack.poll_timeout(), Some(receiver.start + 11 * MS));
        assert_eq!(receiver.poll(11 * MS), [2]);
    }

    #[test]
    fn a_reordered_packet_is_never_requested() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[1, 3, 2, 4, 5]);
        assert!(receiver.poll(20 * MS).is_empty());
    }

    #[test]
    fn requests_are_spaced_by_the_round_trip_and_end() {
        for (rtt, spacing, expected) in [(0, 20, 10), (100, 100, 10), (60_000, 500, 4)] {
            let mut receiver = Receiver::new();
            receiver.receive(Duration::ZERO, &[1, 3, 4]);
            let mut times = Vec::new();
            for at in 0..5000 {
                if !receiver.nack.poll(receiver.start + at * MS, rtt * MS).is_empty() {
                    times.push(at);
                }
            }
            assert_eq!(times.len(), expected, "{times:?}");
            assert!(times.windows(2).all(|pair| pair[1] - pair[0] == spacing), "{times:?}");
            assert_eq!(receiver.nack.given_up(), 1);
            assert_eq!(receiver.nack.poll_timeout(), None);
        }
    }

    #[test]
    fn an_answer_ends_the_requests() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[1, 3, 4]);
        assert_eq!(receiver.poll(MS), [2]);
        receiver.receive(5 * MS, &[2]);
        assert!(receiver.poll(100 * MS).is_empty());
        assert_eq!(receiver.nack.given_up(), 0);
    }

    #[test]
    fn a_long_jump_requests_nothing_and_forgets_everything() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[1, 3, 2000, 2001]);
        assert!(receiver.poll(20 * MS).is_empty());
        assert_eq!(receiver.nack.given_up(), 1 + 1996, "so that a key frame is requested");
    }

    #[test]
    fn missing_packets_and_requests_are_bounded() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[0, 900, 1800, 2700, 2701]);
        assert_eq!(receiver.nack.missing.len(), MAX_MISSING);
        let first = receiver.poll(MS);
        assert_eq!(first.len(), MAX_IN_REQUEST);
        let mut all = first;
        loop {
            let more = receiver.poll(MS);
            if more.is_empty() {
                break;
            }
            all.extend(more);
        }
        assert_eq!(all.len(), MAX_MISSING);
        assert!(all.is_sorted());
        assert_eq!(receiver.nack.given_up(), 2697 - 1000);
    }
}
