//! Decides when frames are due, although segments arrive in bursts and sometimes late.
//!
//! A late segment delays everything after it: the next ones are likely to be as late, and one stall is better than one
//! per segment. For live streams the added latency is reduced again slowly, by playing slightly faster than real time,
//! as long as segments arrive well before they are due.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Paces frames.
#[derive(Debug)]
pub(super) struct Pacer {
    is_live: bool,
    /// When playout time zero is due.
    zero: Option<Instant>,
    /// How early the last segments arrived.
    slacks: VecDeque<Duration>,
    ticked: Option<Instant>,
    /// Longest piece of media that arrived at once, of the last ones.
    span: Option<Duration>,
    /// The first arrival and the last one.
    arrivals: Option<(Instant, Instant)>,
}

/// Initial delay of a live stream: the next segment may be this much too late without a stall.
const LEAD: Duration = Duration::from_millis(300);

/// Extra delay added on top of the lateness of a segment.
const MARGIN: Duration = Duration::from_millis(100);

/// How early segments arrive once the latency has been reduced.
const SLACK: Duration = Duration::from_millis(200);

/// Least reserve for parts.
const MIN_RESERVE: Duration = Duration::from_millis(100);

/// After the start of a live stream its latency is reduced at once: what arrived together before is played faster.
const START: Duration = Duration::from_millis(1_500);

/// Arrivals that are closer together than this came at once, from a list of what was there already.
const TOGETHER: Duration = Duration::from_millis(50);

/// What is longer is taken for a segment: its latency is reduced slowly.
const LONGEST_PART: Duration = Duration::from_millis(600);

/// Number of recent segments that are considered.
const MAX_SLACKS: usize = 4;

/// Speed-up while latency is reduced: one part in this many (2 %), which is inaudible.
const SPEED_UP: u32 = 50;

impl Pacer {
    pub(super) fn new(is_live: bool) -> Self {
        Self {
            is_live,
            zero: None,
            slacks: VecDeque::new(),
            ticked: None,
            span: None,
            arrivals: None,
        }
    }

    /// Records how much media arrives at once: parts arrive more regularly than segments.
    pub(super) fn record_burst_duration(&mut self, span: Duration) {
        let last = self.span.unwrap_or_default();
        // A longer one is believed at once, shorter ones after a while.
        self.span = Some(span.max(last - last / 16));
    }

    /// Limits a reserve to half of what arrives at once.
    fn reserve(&self, most: Duration) -> Duration {
        self.span.map_or(most, |span| most.min((span / 2).max(MIN_RESERVE)))
    }

    /// A segment arrived whose first frame has this playout time; `leads` if it is of the leading rendition.
    pub(super) fn arrived(&mut self, now: Instant, first: Duration, leads: bool) {
        let (start, previous) = self.arrivals.unwrap_or((now, now));
        if leads || self.arrivals.is_none() {
            self.arrivals = Some((start, now));
        }
        let Some(due) = self.due(first) else {
            let lead = if self.is_live {
                self.reserve(LEAD)
            } else {
                Duration::ZERO
            };
            self.zero = (now + lead).checked_sub(first);
            return;
        };
        if due < now {
            let late = now - due + MARGIN;
            self.zero = self.zero.map(|zero| zero + late);
            self.slacks.clear();
        } else if leads {
            let mut slack = due - now;
            let is_new = now.saturating_duration_since(previous) >= TOGETHER;
            let are_parts = self.span.is_some_and(|span| span <= LONGEST_PART);
            if self.is_live && are_parts && is_new && now.saturating_duration_since(start) <= START {
                let excess = slack.saturating_sub(self.reserve(SLACK));
                self.zero = self.zero.and_then(|zero| zero.checked_sub(excess));
                slack -= excess;
            }
            self.slacks.push_back(slack);
            if self.slacks.len() > MAX_SLACKS {
                self.slacks.pop_front();
            }
        }
    }

    /// Reduces latency; called regularly.
    pub(super) fn tick(&mut self, now: Instant) {
        let last = self.ticked.replace(now).unwrap_or(now);
        if !self.is_live || self.slacks.len() < MAX_SLACKS {
            return;
        }
        let reserve = self.reserve(SLACK);
        let excess = self.slacks.iter().min().map(|least| least.saturating_sub(reserve));
        let step = excess
            .unwrap_or_default()
            .min(now.saturating_duration_since(last) / SPEED_UP);
        self.zero = self.zero.and_then(|zero| zero.checked_sub(step));
        for slack in &mut self.slacks {
            *slack = slack.saturating_sub(step);
        }
    }

    /// When a playout time is due; `None` before the first segment.
    pub(super) fn due(&self, time: Duration) -> Option<Instant> {
        Some(self.zero? + time)
    }

    /// Returns the playout time that is due now.
    pub(super) fn position(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.zero?))
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
        let mut pacer = Pacer::new(true);
        pacer.arrived(t, ms(1_000), true);
        assert_eq!(pacer.due(ms(1_000)), Some(t + LEAD));
        // It should arrive two seconds later, and is half a second late.
        let late = t + LEAD + ms(2_500);
        pacer.arrived(late, ms(3_000), true);
        assert_eq!(pacer.due(ms(3_000)), Some(late + MARGIN));
        let again = late + ms(2_000);
        pacer.arrived(again, ms(5_000), true);
        assert_eq!(pacer.due(ms(5_000)), Some(again + MARGIN), "as late as before: in time");
    }

    #[test]
    fn latency_is_reduced_slowly_as_long_as_segments_come_early() {
        let t = Instant::now();
        let mut pacer = Pacer::new(true);
        pacer.arrived(t, ms(0), true);
        for index in 1..=4 {
            pacer.arrived(t + ms(1_000), ms(2_000 * index), true);
        }
        let before = pacer.due(ms(100_000)).expect("it began");
        pacer.tick(t + ms(1_000));
        pacer.tick(t + ms(2_000));
        assert_eq!(pacer.due(ms(100_000)), Some(before - ms(20)));
        // The reduction ends when segments arrive just in time.
        for second in 3..300 {
            pacer.tick(t + ms(1_000 * second));
        }
        let gained = before - pacer.due(ms(100_000)).expect("it began");
        assert_eq!(gained, ms(1_000) + LEAD - SLACK);
    }

    #[test]
    fn parts_that_were_there_at_the_start_are_no_latency_later() {
        let t = Instant::now();
        let mut pacer = Pacer::new(true);
        // Three parts of 200 ms come at once, then one each 200 ms.
        for index in 0..3 {
            pacer.record_burst_duration(ms(200));
            pacer.arrived(t, ms(200 * index), true);
        }
        assert_eq!(pacer.due(ms(0)), Some(t + MIN_RESERVE));
        for index in 3..10 {
            pacer.record_burst_duration(ms(200));
            let now = t + ms(150 + 200 * (index - 3));
            pacer.arrived(now, ms(200 * index), true);
            assert_eq!(pacer.due(ms(200 * index)), Some(now + MIN_RESERVE), "{index}");
        }
    }

    #[test]
    fn a_stream_that_is_not_live_is_not_sped_up() {
        let t = Instant::now();
        let mut pacer = Pacer::new(false);
        for index in 0..6 {
            pacer.arrived(t, ms(6_000 * index), true);
        }
        for second in 1..60 {
            pacer.tick(t + ms(1_000 * second));
        }
        assert_eq!(pacer.due(ms(6_000)), Some(t + ms(6_000)));
    }
}
