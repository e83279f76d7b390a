//! Requests for lost packets (RFC 4585 §6.2.1): which, when, how often.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Arrival, ArrivalKind};

/// Holes that are tracked; beyond that the oldest are given up.
const MAX_HOLES: usize = 1000;

/// A longer gap is not loss but a new beginning: nothing of it is asked for.
const MAX_GAP: u64 = 1000;

/// A packet is missing once two later ones came, or this long after the first later one: until then it may be reordered.
const REORDER_TIME: Duration = Duration::from_millis(10);

/// Least time between two requests for the same packet; the round-trip time, if that is longer.
const MIN_SPACING: Duration = Duration::from_millis(20);

/// Longest spacing: a wrong round-trip time must not silence the requests.
const MAX_SPACING: Duration = Duration::from_millis(500);

/// Requests for the same packet.
const MAX_REQUESTS: u8 = 10;

/// A packet that is missing for longer is of no use to anyone.
const MAX_AGE: Duration = Duration::from_secs(2);

/// Sequence numbers in one request. Each may take 4 bytes, which makes about 1,000 bytes of RTCP.
const MAX_IN_REQUEST: usize = 250;

/// Tracks the holes of one SSRC.
#[derive(Default)]
pub struct NackGenerator {
    highest: Option<u64>,
    holes: BTreeMap<u64, MissingPacket>,
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

    /// Takes note of a packet as [`super::Reception`] placed it.
    pub fn on_packet(&mut self, now: Instant, arrival: Arrival) {
        match arrival.kind {
            ArrivalKind::Late => {
                self.holes.remove(&arrival.ext_seq);
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
            self.given_up += self.holes.len() as u64 + ext_seq.saturating_sub(highest + 1);
            self.holes.clear();
            return;
        }
        // The second later packet: whatever still waits for its first request is due.
        for hole in self.holes.values_mut().filter(|hole| hole.requests == 0) {
            hole.due = hole.due.min(now);
        }
        for missing in highest + 1..ext_seq {
            let hole = MissingPacket {
                since: now,
                requests: 0,
                due: now + REORDER_TIME,
            };
            self.holes.insert(missing, hole);
        }
        while self.holes.len() > MAX_HOLES {
            self.holes.pop_first();
            self.given_up += 1;
        }
    }

    /// The sequence numbers to ask for now, in ascending order modulo wrap, at most 250; call again until there are none.
    /// `rtt` is the round-trip time to the publisher, zero where it is unknown.
    pub fn poll(&mut self, now: Instant, rtt: Duration) -> Vec<u16> {
        let spacing = rtt.clamp(MIN_SPACING, MAX_SPACING);
        let mut seqs = Vec::new();
        let mut given_up = 0;
        self.holes.retain(|ext_seq, hole| {
            if hole.due > now || seqs.len() == MAX_IN_REQUEST {
                return true;
            }
            if hole.requests == MAX_REQUESTS || now.saturating_duration_since(hole.since) >= MAX_AGE {
                given_up += 1;
                return false;
            }
            seqs.push(*ext_seq as u16);
            hole.requests += 1;
            hole.due = now + spacing;
            true
        });
        self.given_up += given_up;
        seqs
    }

    /// When [`Self::poll`] has something to do; `None` while nothing is missing.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.holes.values().map(|hole| hole.due).min()
    }

    /// Packets that are missing and are no longer asked for, since the beginning. A rise means that viewers see damage
    /// until the next key frame.
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
    fn nothing_is_asked_for_while_nothing_is_missing() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[65_534, 65_535, 0, 1]);
        assert_eq!(receiver.nack.poll_timeout(), None);
        assert!(receiver.poll(MS).is_empty());
    }

    #[test]
    fn a_hole_is_asked_for_after_two_later_packets() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[65_534, 1]);
        assert!(receiver.poll(MS).is_empty());
        receiver.receive(2 * MS, &[2]);
        assert_eq!(receiver.poll(2 * MS), [65_535, 0]);
    }

    #[test]
    fn a_hole_is_asked_for_after_ten_milliseconds() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[1, 3]);
        assert!(receiver.poll(10 * MS).is_empty());
        assert_eq!(receiver.nack.poll_timeout(), Some(receiver.start + 11 * MS));
        assert_eq!(receiver.poll(11 * MS), [2]);
    }

    #[test]
    fn a_reordered_packet_is_never_asked_for() {
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
    fn a_long_jump_asks_for_nothing_and_forgets_everything() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[1, 3, 2000, 2001]);
        assert!(receiver.poll(20 * MS).is_empty());
        assert_eq!(receiver.nack.given_up(), 1 + 1996, "so that a key frame is asked for");
    }

    #[test]
    fn holes_and_requests_are_bounded() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[0, 900, 1800, 2700, 2701]);
        assert_eq!(receiver.nack.holes.len(), MAX_HOLES);
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
        assert_eq!(all.len(), MAX_HOLES);
        assert!(all.is_sorted());
        assert_eq!(receiver.nack.given_up(), 2697 - 1000);
    }
}
