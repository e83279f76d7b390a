//! What was sent to one viewer, by bursts, and which of it was acknowledged.

use std::time::Instant;

/// When the batches of a shard's outbox were handed to the kernel: one per shard. A tick that is late would otherwise
/// look like delay of the network.
#[derive(Debug)]
pub struct FlushTimes {
    origin: Instant,
    /// Microseconds since the origin, by batch modulo the length.
    times: Box<[(u32, u64)]>,
    /// The batch that is recorded next.
    next_batch: u32,
}

/// Batches that are remembered: about one second of a busy shard.
const MAX_REMEMBERED_SEND_BATCHES: usize = 4_096;

impl FlushTimes {
    /// `origin` is the one of all controllers of the shard.
    pub fn new(origin: Instant) -> Self {
        Self {
            origin,
            // No batch has the index of another one.
            times: std::iter::once((1, 0))
                .chain(std::iter::repeat_n((0, 0), MAX_REMEMBERED_SEND_BATCHES - 1))
                .collect(),
            next_batch: 0,
        }
    }

    /// Records when a batch was handed over.
    pub fn record_batch_flush_time(&mut self, batch: u32, at: Instant) {
        if let Some(slot) = self.times.get_mut(batch as usize % MAX_REMEMBERED_SEND_BATCHES) {
            *slot = (batch, micros_since_origin(self.origin, at));
        }
    }

    /// Records when the batches before `end` were handed over, those that have no time yet.
    pub fn record_flush_time_of_batches_before(&mut self, end: u32, at: Instant) {
        let count = end
            .wrapping_sub(self.next_batch)
            .min(MAX_REMEMBERED_SEND_BATCHES as u32);
        for behind in 1..=count {
            self.record_batch_flush_time(end.wrapping_sub(behind), at);
        }
        self.next_batch = end;
    }

    /// Returns microseconds since the origin, by the low bits of the batch.
    #[inline]
    pub(super) fn flush_time_of_batch(&self, batch: u16) -> Option<u64> {
        let (known, at) = self.times.get(usize::from(batch) % MAX_REMEMBERED_SEND_BATCHES)?;
        (*known as u16 == batch).then_some(*at)
    }
}

/// Microseconds since the origin.
#[inline]
pub(super) fn micros_since_origin(origin: Instant, at: Instant) -> u64 {
    let elapsed = at.saturating_duration_since(origin);
    elapsed.as_secs() * 1_000_000 + u64::from(elapsed.subsec_micros())
}

/// Packets that left together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Burst {
    /// Number of the first packet.
    pub(super) first_sequence_number: u16,
    pub(super) packet_count: u16,
    /// In units of [`BURST_SIZE_UNIT_BYTES`].
    size_in_units: u16,
    /// Low bits of the batch of the first packet; see [`FlushTimes`].
    pub(super) first_batch_low_bits: u16,
}

/// Unit of the size of bursts: one is at most a megabyte.
const BURST_SIZE_UNIT_BYTES: u32 = 16;

impl Burst {
    pub(super) fn approximate_bytes(self) -> u32 {
        u32::from(self.size_in_units) * BURST_SIZE_UNIT_BYTES
    }
}

/// Bursts that are remembered: at least 0.64 s.
const MAX_REMEMBERED_BURSTS: usize = 128;

/// Packets that leave within this time are one burst, in microseconds.
const BURST_MERGE_WINDOW_US: u64 = 5_000;

/// The latest bursts.
#[derive(Debug)]
pub(super) struct SentBurstLog {
    bursts: [Burst; MAX_REMEMBERED_BURSTS],
    /// Index of the newest burst.
    newest: usize,
    len: usize,
    /// When the newest burst began, in microseconds.
    newest_burst_began_at: u64,
}

impl SentBurstLog {
    pub(super) fn new() -> Self {
        Self {
            bursts: [Burst::default(); MAX_REMEMBERED_BURSTS],
            newest: 0,
            len: 0,
            newest_burst_began_at: 0,
        }
    }

    /// Records a packet; numbers ascend by one.
    #[inline]
    pub(super) fn push(&mut self, now: u64, batch: u32, number: u16, bytes: u32) {
        let rounded = u16::try_from((bytes + BURST_SIZE_UNIT_BYTES / 2) / BURST_SIZE_UNIT_BYTES).unwrap_or(u16::MAX);
        if self.len > 0
            && now < self.newest_burst_began_at + BURST_MERGE_WINDOW_US
            && let Some(burst) = self.bursts.get_mut(self.newest)
            && burst.packet_count < u16::MAX / 4
        {
            burst.packet_count += 1;
            burst.size_in_units = burst.size_in_units.saturating_add(rounded);
            return;
        }
        self.newest = (self.newest + 1) % MAX_REMEMBERED_BURSTS;
        self.len = (self.len + 1).min(MAX_REMEMBERED_BURSTS);
        self.newest_burst_began_at = now;
        if let Some(burst) = self.bursts.get_mut(self.newest) {
            *burst = Burst {
                first_sequence_number: number,
                packet_count: 1,
                size_in_units: rounded,
                first_batch_low_bits: batch as u16,
            };
        }
    }

    /// When the newest burst began, in microseconds.
    pub(super) fn newest_burst_began_at(&self) -> u64 {
        self.newest_burst_began_at
    }

    /// Returns the burst that is `age` bursts older than the newest.
    pub(super) fn nth_newest_burst(&self, age: usize) -> Option<Burst> {
        if age >= self.len {
            return None;
        }
        self.bursts
            .get((self.newest + MAX_REMEMBERED_BURSTS - age) % MAX_REMEMBERED_BURSTS)
            .copied()
    }

    /// Number of packets between the oldest burst and the end of the newest, and the number of the first.
    pub(super) fn oldest_sequence_number_and_packet_count(&self) -> Option<(u16, u16)> {
        let (oldest, newest) = (
            self.nth_newest_burst(self.len.checked_sub(1)?)?,
            self.nth_newest_burst(0)?,
        );
        let end = newest.first_sequence_number.wrapping_add(newest.packet_count);
        Some((
            oldest.first_sequence_number,
            end.wrapping_sub(oldest.first_sequence_number),
        ))
    }

    /// Returns the age in bursts of the burst with this packet.
    pub(super) fn burst_index_from_newest(&self, number: u16) -> Option<usize> {
        let (first, len) = self.oldest_sequence_number_and_packet_count()?;
        let offset = number.wrapping_sub(first);
        if offset >= len {
            return None;
        }
        // The first burst, from the oldest on, that begins after the packet.
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = usize::midpoint(low, high);
            let begin = self
                .nth_newest_burst(self.len - 1 - middle)?
                .first_sequence_number
                .wrapping_sub(first);
            if begin <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(self.len - low)
    }
}

/// Which of the latest numbers were covered by feedback, and which of them were acknowledged.
#[derive(Debug)]
pub(super) struct FeedbackCoverage {
    /// Number after the highest one that was covered.
    first_sequence_number_beyond_feedback: u16,
    covered: [u64; BITMAP_WORD_COUNT],
    acknowledged: [u64; BITMAP_WORD_COUNT],
}

const BITMAP_WORD_COUNT: usize = 4;

/// Numbers below the highest covered one whose state is kept.
const TRACKED_SEQUENCE_NUMBER_COUNT: u16 = 64 * BITMAP_WORD_COUNT as u16;

/// What a feedback tells of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PacketFeedbackChange {
    /// Received, and not covered before.
    NewlyReceived,
    /// Not received, and not covered before.
    NewlyLost,
    /// Received, and taken for lost before.
    ReceivedAfterLost,
    /// Nothing new: what was acknowledged stays so, whatever later feedback says.
    NothingNew,
}

impl FeedbackCoverage {
    /// Nothing before `first_sequence_number` will be judged.
    pub(super) fn new(first: u16) -> Self {
        Self {
            first_sequence_number_beyond_feedback: first,
            covered: [u64::MAX; BITMAP_WORD_COUNT],
            acknowledged: [u64::MAX; BITMAP_WORD_COUNT],
        }
    }

    /// Number after the highest one that was covered.
    pub(super) fn first_sequence_number_beyond_feedback(&self) -> u16 {
        self.first_sequence_number_beyond_feedback
    }

    #[inline]
    pub(super) fn record_packet_feedback(&mut self, number: u16, received: bool) -> PacketFeedbackChange {
        let (word, bit) = bitmap_position(number);
        let ahead = number.wrapping_sub(self.first_sequence_number_beyond_feedback);
        if ahead < u16::MAX / 2 {
            self.clear_overwritten_sequence_numbers(ahead.saturating_add(1));
            self.first_sequence_number_beyond_feedback = number.wrapping_add(1);
        } else if self.first_sequence_number_beyond_feedback.wrapping_sub(number) > TRACKED_SEQUENCE_NUMBER_COUNT {
            return PacketFeedbackChange::NothingNew;
        }
        let (Some(covered), Some(acknowledged)) = (self.covered.get_mut(word), self.acknowledged.get_mut(word)) else {
            return PacketFeedbackChange::NothingNew;
        };
        let was_covered = *covered & bit != 0;
        let was_acknowledged = *acknowledged & bit != 0;
        *covered |= bit;
        if received {
            *acknowledged |= bit;
        }
        match (was_covered, received && !was_acknowledged) {
            (false, true) => PacketFeedbackChange::NewlyReceived,
            (false, false) => PacketFeedbackChange::NewlyLost,
            (true, true) => PacketFeedbackChange::ReceivedAfterLost,
            (true, false) => PacketFeedbackChange::NothingNew,
        }
    }

    /// Forgets the numbers that the next `packet_count` ones replace.
    fn clear_overwritten_sequence_numbers(&mut self, count: u16) {
        for ahead in 0..count.min(TRACKED_SEQUENCE_NUMBER_COUNT) {
            let (word, bit) = bitmap_position(
                self.first_sequence_number_beyond_feedback
                    .wrapping_add(count - 1 - ahead),
            );
            if let (Some(covered), Some(acknowledged)) = (self.covered.get_mut(word), self.acknowledged.get_mut(word)) {
                *covered &= !bit;
                *acknowledged &= !bit;
            }
        }
    }
}

#[inline]
fn bitmap_position(number: u16) -> (usize, u64) {
    let index = number % TRACKED_SEQUENCE_NUMBER_COUNT;
    (usize::from(index / 64), 1 << (index % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(bursts: u16, packets: u16) -> SentBurstLog {
        let mut log = SentBurstLog::new();
        for burst in 0..bursts {
            for packet in 0..packets {
                let number = 65_000_u16.wrapping_add(burst * packets + packet);
                log.push(u64::from(burst) * 10_000, u32::from(burst), number, 100);
            }
        }
        log
    }

    #[test]
    fn a_packet_is_found_in_its_burst_and_not_outside() {
        let log = log(200, 7);
        let (first, len) = log.oldest_sequence_number_and_packet_count().expect("sent");
        assert_eq!((first, len), (65_000_u16.wrapping_add(72 * 7), 128 * 7));
        for burst in 72..200_u16 {
            for packet in 0..7 {
                let number = 65_000_u16.wrapping_add(burst * 7 + packet);
                assert_eq!(log.burst_index_from_newest(number), Some(usize::from(199 - burst)));
            }
        }
        assert_eq!(log.burst_index_from_newest(first.wrapping_sub(1)), None);
        assert_eq!(log.burst_index_from_newest(first.wrapping_add(len)), None);
        assert_eq!(SentBurstLog::new().burst_index_from_newest(0), None);
    }

    #[test]
    fn packets_within_five_milliseconds_are_one_burst() {
        let mut log = SentBurstLog::new();
        for (number, at) in [(0, 0), (1, 4_999), (2, 5_000), (3, 9_000), (4, 10_001)] {
            log.push(at, 1, number, 100);
        }
        let counts: Vec<u16> = (0..3)
            .filter_map(|age| log.nth_newest_burst(age))
            .map(|b| b.packet_count)
            .collect();
        assert_eq!(counts, [1, 2, 2]);
    }

    #[test]
    fn what_was_acknowledged_stays_so_and_late_packets_are_no_loss() {
        let mut coverage = FeedbackCoverage::new(65_530);
        assert_eq!(
            coverage.record_packet_feedback(65_529, true),
            PacketFeedbackChange::NothingNew,
            "before the first"
        );
        assert_eq!(
            coverage.record_packet_feedback(65_530, true),
            PacketFeedbackChange::NewlyReceived
        );
        assert_eq!(
            coverage.record_packet_feedback(65_531, false),
            PacketFeedbackChange::NewlyLost
        );
        assert_eq!(
            coverage.record_packet_feedback(65_530, false),
            PacketFeedbackChange::NothingNew
        );
        assert_eq!(
            coverage.record_packet_feedback(65_531, true),
            PacketFeedbackChange::ReceivedAfterLost
        );
        assert_eq!(
            coverage.record_packet_feedback(65_531, true),
            PacketFeedbackChange::NothingNew
        );
        // Feedback was lost in between: its numbers are judged when they are covered.
        assert_eq!(
            coverage.record_packet_feedback(20, true),
            PacketFeedbackChange::NewlyReceived
        );
        assert_eq!(
            coverage.record_packet_feedback(10, false),
            PacketFeedbackChange::NewlyLost
        );
        assert_eq!(
            coverage.record_packet_feedback(11, true),
            PacketFeedbackChange::NewlyReceived
        );
        assert_eq!(coverage.first_sequence_number_beyond_feedback(), 21);
        // A jump over everything.
        assert_eq!(
            coverage.record_packet_feedback(5_000, true),
            PacketFeedbackChange::NewlyReceived
        );
        assert_eq!(
            coverage.record_packet_feedback(4_999, true),
            PacketFeedbackChange::NewlyReceived
        );
        assert_eq!(
            coverage.record_packet_feedback(4_000, true),
            PacketFeedbackChange::NothingNew,
            "too old"
        );
    }
}
