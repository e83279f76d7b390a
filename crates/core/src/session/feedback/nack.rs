//! Retransmission requests for lost packets (RFC 4585 §6.2.1): which packets, when, how often.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::reception::{Arrival, ArrivalKind};
use crate::media::MediaKind;

/// Maximum number of missing packets that are tracked; beyond it the oldest are given up.
const MAX_TRACKED_LOSSES: usize = 1000;

/// A longer gap is a restart, not packet loss: nothing of it is requested.
const MAX_SEQ_GAP: u64 = 1000;

/// A packet counts as lost once two later ones arrived, or this long after the first later one. Until then it may only
/// be reordered.
const REORDER_WAIT: Duration = Duration::from_millis(10);

/// Minimum time between two requests for the same packet; a longer round-trip time takes precedence.
const MIN_NACK_INTERVAL: Duration = Duration::from_millis(20);

/// Maximum time between two requests: a wrong round-trip time must not suppress them.
const MAX_NACK_INTERVAL: Duration = Duration::from_millis(500);

/// Maximum number of requests for the same packet.
const MAX_NACKS_PER_PACKET: u8 = 10;

/// A video packet that has been missing for longer is of no use.
const MAX_VIDEO_LOSS_AGE: Duration = Duration::from_secs(2);

/// The same of audio: viewers do not wait for it as they do for video, and no packet depends on it. Each packet is
/// requested for so long, and forwarded when it arrives, whatever was forwarded meanwhile.
const MAX_AUDIO_LOSS_AGE: Duration = Duration::from_millis(300);

/// Maximum sequence numbers in one request. Each may take 4 bytes, which makes about 1,000 bytes of RTCP.
const MAX_SEQS_PER_NACK: usize = 250;

/// Tracks the missing packets of one SSRC.
pub(crate) struct NackGenerator {
    max_loss_age: Duration,
    highest_seq: Option<u64>,
    missing_packets: BTreeMap<u64, MissingPacket>,
    unrecovered_packet_count: u64,
    /// The newest of them.
    newest_unrecovered_seq: Option<u64>,
    /// First packet of the newest key frame, and its timestamp.
    newest_key_frame: Option<(u64, u64)>,
}

struct MissingPacket {
    missing_since: Instant,
    nacks_sent: u8,
    next_nack_at: Instant,
}

impl NackGenerator {
    /// Creates the state for media of a kind. Audio is requested for a shorter time.
    pub(crate) fn new(kind: MediaKind) -> Self {
        Self {
            max_loss_age: match kind {
                MediaKind::Video => MAX_VIDEO_LOSS_AGE,
                MediaKind::Audio => MAX_AUDIO_LOSS_AGE,
            },
            highest_seq: None,
            missing_packets: BTreeMap::new(),
            unrecovered_packet_count: 0,
            newest_unrecovered_seq: None,
            newest_key_frame: None,
        }
    }

    /// A packet that identifies its frame as a key frame has arrived; `time` is its timestamp.
    pub(crate) fn on_key_frame_packet(&mut self, ext_seq: u64, time: u64) {
        if self
            .newest_key_frame
            .is_none_or(|(newest, of)| newest < ext_seq && of != time)
        {
            self.newest_key_frame = Some((ext_seq, time));
        }
    }

    /// Whether a packet of the newest key frame or after it is missing for good.
    pub(crate) fn lacks_packets_since_key_frame(&self) -> bool {
        let key_frame = self.newest_key_frame.map(|(seq, _)| seq);
        self.newest_unrecovered_seq > key_frame && key_frame.is_some()
    }

    /// Records a packet as classified by [`super::ReceptionStats`].
    pub(crate) fn on_packet(&mut self, now: Instant, arrival: Arrival) {
        match arrival.kind {
            ArrivalKind::Late => {
                self.missing_packets.remove(&arrival.ext_seq);
            }
            ArrivalKind::New => self.on_new_packet(now, arrival.ext_seq),
            ArrivalKind::Duplicate | ArrivalKind::TooOld => {}
        }
    }

    fn on_new_packet(&mut self, now: Instant, ext_seq: u64) {
        let Some(highest) = self.highest_seq.replace(ext_seq) else {
            return;
        };
        if ext_seq <= highest || ext_seq - highest > MAX_SEQ_GAP {
            self.unrecovered_packet_count += self.missing_packets.len() as u64 + ext_seq.saturating_sub(highest + 1);
            self.newest_unrecovered_seq = Some(ext_seq.saturating_sub(1));
            self.missing_packets.clear();
            return;
        }
        // The second later packet arrived: all that still wait for their first request are due.
        for packet in self
            .missing_packets
            .values_mut()
            .filter(|packet| packet.nacks_sent == 0)
        {
            packet.next_nack_at = packet.next_nack_at.min(now);
        }
        for seq in highest + 1..ext_seq {
            let packet = MissingPacket {
                missing_since: now,
                nacks_sent: 0,
                next_nack_at: now + REORDER_WAIT,
            };
            self.missing_packets.insert(seq, packet);
        }
        while self.missing_packets.len() > MAX_TRACKED_LOSSES {
            let oldest = self.missing_packets.pop_first().map(|(seq, _)| seq);
            self.newest_unrecovered_seq = self.newest_unrecovered_seq.max(oldest);
            self.unrecovered_packet_count += 1;
        }
    }

    /// Whether packets are missing that may still be requested.
    pub(crate) fn has_missing_packets(&self) -> bool {
        !self.missing_packets.is_empty()
    }

    /// Returns the sequence numbers to request now, in ascending order modulo wrap, at most 250. Call again until there
    /// are none. `rtt` is the round-trip time to the publisher, zero if unknown.
    pub(crate) fn poll(&mut self, now: Instant, rtt: Duration) -> Vec<u16> {
        let spacing = rtt.clamp(MIN_NACK_INTERVAL, MAX_NACK_INTERVAL);
        let mut seqs = Vec::new();
        let (mut given_up, mut newest_given_up) = (0, None);
        self.missing_packets.retain(|ext_seq, packet| {
            if packet.next_nack_at > now || seqs.len() == MAX_SEQS_PER_NACK {
                return true;
            }
            if packet.nacks_sent == MAX_NACKS_PER_PACKET
                || now.saturating_duration_since(packet.missing_since) >= self.max_loss_age
            {
                given_up += 1;
                newest_given_up = newest_given_up.max(Some(*ext_seq));
                return false;
            }
            seqs.push(*ext_seq as u16);
            packet.nacks_sent += 1;
            packet.next_nack_at = now + spacing;
            true
        });
        self.unrecovered_packet_count += given_up;
        self.newest_unrecovered_seq = self.newest_unrecovered_seq.max(newest_given_up);
        seqs
    }

    /// When [`Self::poll`] must be called; `None` while nothing is missing.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.missing_packets.values().map(|packet| packet.next_nack_at).min()
    }

    /// Returns the total number of missing packets that are no longer requested. A rise means that viewers see
    /// corrupted video until the next key frame.
    pub(crate) fn unrecovered_packet_count(&self) -> u64 {
        self.unrecovered_packet_count
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;
    use crate::media::Ssrc;
    use crate::session::feedback::ReceptionStats;

    const MS: Duration = Duration::from_millis(1);
    const UNKNOWN_RTT: Duration = Duration::ZERO;

    struct Receiver {
        reception: ReceptionStats,
        nack: NackGenerator,
        start: Instant,
    }

    impl Receiver {
        fn new() -> Self {
            Self::of(MediaKind::Video)
        }

        fn of(kind: MediaKind) -> Self {
            Self {
                reception: ReceptionStats::new(Ssrc(1), 90_000),
                nack: NackGenerator::new(kind),
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
            self.nack.poll(self.start + at, UNKNOWN_RTT)
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
            assert_eq!(receiver.nack.unrecovered_packet_count(), 1);
            assert_eq!(receiver.nack.poll_timeout(), None);
        }
    }

    #[test]
    fn audio_is_requested_for_as_long_as_viewers_can_wait_for_it() {
        for (kind, expected) in [(MediaKind::Audio, 3), (MediaKind::Video, 10)] {
            let mut receiver = Receiver::of(kind);
            receiver.receive(Duration::ZERO, &[1, 3, 4]);
            let times: Vec<u32> = (0..5_000)
                .filter(|at| !receiver.nack.poll(receiver.start + *at * MS, 100 * MS).is_empty())
                .collect();
            assert_eq!(times.len(), expected, "{kind:?}: {times:?}");
            assert_eq!(receiver.nack.unrecovered_packet_count(), 1);
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
        assert_eq!(receiver.nack.unrecovered_packet_count(), 0);
    }

    #[test]
    fn long_seq_jump_counts_losses_without_nack() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[1, 3, 2000, 2001]);
        assert!(receiver.poll(20 * MS).is_empty());
        assert_eq!(
            receiver.nack.unrecovered_packet_count(),
            1 + 1996,
            "so that a key frame is requested"
        );
    }

    #[test]
    fn packets_are_lacking_until_the_next_key_frame() {
        // Numbers begin in the second round.
        let key_frame =
            |receiver: &mut Receiver, seq: u64, time| receiver.nack.on_key_frame_packet((1 << 16) + seq, time);
        let give_up = |receiver: &mut Receiver| (0..300).for_each(|at| drop(receiver.poll(at * 10 * MS)));
        let mut receiver = Receiver::new();
        receiver.receive(Duration::ZERO, &[1, 3, 4]);
        key_frame(&mut receiver, 1, 0);
        assert!(!receiver.nack.lacks_packets_since_key_frame());
        give_up(&mut receiver);
        assert_eq!(receiver.nack.unrecovered_packet_count(), 1);
        assert!(receiver.nack.lacks_packets_since_key_frame());
        // Another packet of the same key frame does not bring the one before it.
        key_frame(&mut receiver, 4, 0);
        assert!(receiver.nack.lacks_packets_since_key_frame());
        key_frame(&mut receiver, 5, 3_000);
        assert!(!receiver.nack.lacks_packets_since_key_frame());

        // It is given up only after the next key frame: nothing refers to it any more.
        let mut receiver = Receiver::new();
        receiver.receive(Duration::ZERO, &[1, 3, 4]);
        key_frame(&mut receiver, 1, 0);
        key_frame(&mut receiver, 4, 3_000);
        give_up(&mut receiver);
        assert_eq!(receiver.nack.unrecovered_packet_count(), 1);
        assert!(!receiver.nack.lacks_packets_since_key_frame());
    }

    #[test]
    fn missing_packets_and_requests_are_bounded() {
        let mut receiver = Receiver::new();
        receiver.receive(MS, &[0, 900, 1800, 2700, 2701]);
        assert_eq!(receiver.nack.missing_packets.len(), MAX_TRACKED_LOSSES);
        let first = receiver.poll(MS);
        assert_eq!(first.len(), MAX_SEQS_PER_NACK);
        let mut all = first;
        loop {
            let more = receiver.poll(MS);
            if more.is_empty() {
                break;
            }
            all.extend(more);
        }
        assert_eq!(all.len(), MAX_TRACKED_LOSSES);
        assert!(all.is_sorted());
        assert_eq!(receiver.nack.unrecovered_packet_count(), 2697 - 1000);
    }
}
