//! Decides when frames are due, although segments arrive in bursts and sometimes late.
//!
//! A late segment delays everything after it: the next ones are likely to be as late, and one stall is better than one
//! per segment. For live streams the added latency is reduced again slowly, by playing slightly faster than real time,
//! as long as segments arrive well before they are due.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Paces frames.
#[derive(Debug)]
pub(super) struct PlayoutPacer {
    is_live: bool,
    /// When playout time zero is due.
    playout_zero_due_at: Option<Instant>,
    /// How early the last segments arrived.
    early_margins: VecDeque<Duration>,
    last_tick_at: Option<Instant>,
    /// Longest piece of media that arrived at once, of the last ones.
    longest_burst_duration: Option<Duration>,
    /// The first arrival and the last one.
    first_and_last_arrival: Option<(Instant, Instant)>,
}

/// Initial delay of a live stream: the next segment may be this much too late without a stall.
const INITIAL_PLAYOUT_DELAY: Duration = Duration::from_millis(300);

/// Extra delay added on top of the lateness of a segment.
const EXTRA_DELAY_AFTER_LATE_SEGMENT: Duration = Duration::from_millis(100);

/// How early segments arrive once the latency has been reduced.
const TARGET_SEGMENT_EARLY_MARGIN: Duration = Duration::from_millis(200);

/// Least reserve for parts.
const MIN_EARLY_MARGIN_OF_PARTS: Duration = Duration::from_millis(100);

/// After the start of a live stream its latency is reduced at once: what arrived together before is played faster.
const STARTUP_CATCH_UP_PERIOD: Duration = Duration::from_millis(1_500);

/// Arrivals that are closer together than this came at once, from a list of what was there already.
const MAX_INTERVAL_WITHIN_BURST: Duration = Duration::from_millis(50);

/// What is longer is taken for a segment: its latency is reduced slowly.
const MAX_PART_DURATION: Duration = Duration::from_millis(600);

/// Number of recent segments that are considered.
const MAX_KEPT_EARLY_MARGINS: usize = 4;

/// Speed-up while latency is reduced: one part in this many (2 %), which is inaudible.
const LATENCY_CATCH_UP_SPEED_DIVISOR: u32 = 50;

impl PlayoutPacer {
    pub(super) fn new(is_live: bool) -> Self {
        Self {
            is_live,
            playout_zero_due_at: None,
            early_margins: VecDeque::new(),
            last_tick_at: None,
            longest_burst_duration: None,
            first_and_last_arrival: None,
        }
    }

    /// Records how much media arrives at once: parts arrive more regularly than segments.
    pub(super) fn record_burst_duration(&mut self, span: Duration) {
        let last = self.longest_burst_duration.unwrap_or_default();
        // A longer one is believed at once, shorter ones after a while.
        self.longest_burst_duration = Some(span.max(last - last / 16));
    }

    /// Limits a reserve to half of what arrives at once.
    fn limit_margin_to_half_burst(&self, most: Duration) -> Duration {
        self.longest_burst_duration
            .map_or(most, |span| most.min((span / 2).max(MIN_EARLY_MARGIN_OF_PARTS)))
    }

    /// A segment arrived whose first frame has this playout time; `is_leader` if it is of the leading rendition.
    pub(super) fn on_segment_arrival(&mut self, now: Instant, first_frame_time: Duration, is_leader: bool) {
        let (start, previous) = self.first_and_last_arrival.unwrap_or((now, now));
        if is_leader || self.first_and_last_arrival.is_none() {
            self.first_and_last_arrival = Some((start, now));
        }
        let Some(due) = self.playout_due_at(first_frame_time) else {
            let lead = if self.is_live {
                self.limit_margin_to_half_burst(INITIAL_PLAYOUT_DELAY)
            } else {
                Duration::ZERO
            };
            self.playout_zero_due_at = (now + lead).checked_sub(first_frame_time);
            return;
        };
        if due < now {
            let late = now - due + EXTRA_DELAY_AFTER_LATE_SEGMENT;
            self.playout_zero_due_at = self.playout_zero_due_at.map(|zero| zero + late);
            self.early_margins.clear();
        } else if is_leader {
            let mut slack = due - now;
            let is_new = now.saturating_duration_since(previous) >= MAX_INTERVAL_WITHIN_BURST;
            let are_parts = self
                .longest_burst_duration
                .is_some_and(|span| span <= MAX_PART_DURATION);
            if self.is_live && are_parts && is_new && now.saturating_duration_since(start) <= STARTUP_CATCH_UP_PERIOD {
                let excess = slack.saturating_sub(self.limit_margin_to_half_burst(TARGET_SEGMENT_EARLY_MARGIN));
                self.playout_zero_due_at = self.playout_zero_due_at.and_then(|zero| zero.checked_sub(excess));
                slack -= excess;
            }
            self.early_margins.push_back(slack);
            if self.early_margins.len() > MAX_KEPT_EARLY_MARGINS {
                self.early_margins.pop_front();
            }
        }
    }

    /// Reduces latency; called regularly.
    pub(super) fn reduce_latency(&mut self, now: Instant) {
        let last = self.last_tick_at.replace(now).unwrap_or(now);
        if !self.is_live || self.early_margins.len() < MAX_KEPT_EARLY_MARGINS {
            return;
        }
        let reserve = self.limit_margin_to_half_burst(TARGET_SEGMENT_EARLY_MARGIN);
        let excess = self
            .early_margins
            .iter()
            .min()
            .map(|least| least.saturating_sub(reserve));
        let step = excess
            .unwrap_or_default()
            .min(now.saturating_duration_since(last) / LATENCY_CATCH_UP_SPEED_DIVISOR);
        self.playout_zero_due_at = self.playout_zero_due_at.and_then(|zero| zero.checked_sub(step));
        for slack in &mut self.early_margins {
            *slack = slack.saturating_sub(step);
        }
    }

    /// When a playout time is due; `None` before the first segment.
    pub(super) fn playout_due_at(&self, time: Duration) -> Option<Instant> {
        Some(self.playout_zero_due_at? + time)
    }

    /// Returns the playout time that is due now.
    pub(super) fn current_playout_time(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.playout_zero_due_at?))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_late_segment_moves_what_follows_once() {
        let t = Instant::now();
        let mut pacer = PlayoutPacer::new(true);
        pacer.on_segment_arrival(t, ms(1_000), true);
        assert_eq!(pacer.playout_due_at(ms(1_000)), Some(t + INITIAL_PLAYOUT_DELAY));
        // It should arrive two seconds later, and is half a second late.
        let late = t + INITIAL_PLAYOUT_DELAY + ms(2_500);
        pacer.on_segment_arrival(late, ms(3_000), true);
        assert_eq!(
            pacer.playout_due_at(ms(3_000)),
            Some(late + EXTRA_DELAY_AFTER_LATE_SEGMENT)
        );
        let again = late + ms(2_000);
        pacer.on_segment_arrival(again, ms(5_000), true);
        assert_eq!(
            pacer.playout_due_at(ms(5_000)),
            Some(again + EXTRA_DELAY_AFTER_LATE_SEGMENT),
            "as late as before: in time"
        );
    }

    #[test]
    fn latency_is_reduced_slowly_as_long_as_segments_come_early() {
        let t = Instant::now();
        let mut pacer = PlayoutPacer::new(true);
        pacer.on_segment_arrival(t, ms(0), true);
        for index in 1..=4 {
            pacer.on_segment_arrival(t + ms(1_000), ms(2_000 * index), true);
        }
        let before = pacer.playout_due_at(ms(100_000)).expect("it began");
        pacer.reduce_latency(t + ms(1_000));
        pacer.reduce_latency(t + ms(2_000));
        assert_eq!(pacer.playout_due_at(ms(100_000)), Some(before - ms(20)));
        // The reduction ends when segments arrive just in time.
        for second in 3..300 {
            pacer.reduce_latency(t + ms(1_000 * second));
        }
        let gained = before - pacer.playout_due_at(ms(100_000)).expect("it began");
        assert_eq!(gained, ms(1_000) + INITIAL_PLAYOUT_DELAY - TARGET_SEGMENT_EARLY_MARGIN);
    }

    #[test]
    fn parts_present_at_start_add_no_latency() {
        let t = Instant::now();
        let mut pacer = PlayoutPacer::new(true);
        // Three parts of 200 ms come at once, then one each 200 ms.
        for index in 0..3 {
            pacer.record_burst_duration(ms(200));
            pacer.on_segment_arrival(t, ms(200 * index), true);
        }
        assert_eq!(pacer.playout_due_at(ms(0)), Some(t + MIN_EARLY_MARGIN_OF_PARTS));
        for index in 3..10 {
            pacer.record_burst_duration(ms(200));
            let now = t + ms(150 + 200 * (index - 3));
            pacer.on_segment_arrival(now, ms(200 * index), true);
            assert_eq!(
                pacer.playout_due_at(ms(200 * index)),
                Some(now + MIN_EARLY_MARGIN_OF_PARTS),
                "{index}"
            );
        }
    }

    #[test]
    fn a_stream_that_is_not_live_is_not_sped_up() {
        let t = Instant::now();
        let mut pacer = PlayoutPacer::new(false);
        for index in 0..6 {
            pacer.on_segment_arrival(t, ms(6_000 * index), true);
        }
        for second in 1..60 {
            pacer.reduce_latency(t + ms(1_000 * second));
        }
        assert_eq!(pacer.playout_due_at(ms(6_000)), Some(t + ms(6_000)));
    }
}
