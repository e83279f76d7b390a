//! When frames are due: segments come at once, later than they should, and in time again.
//!
//! A segment that comes too late moves all that follows: what was late once will be late again, and one stop is better
//! than one with every segment. For what is live the delay that this leaves is given back slowly, by playing a little
//! faster than it was made, as long as segments come well before they are due.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Holds frames back to their time.
#[derive(Debug)]
pub(super) struct Pacer {
    is_live: bool,
    /// When the beginning of the line is due.
    zero: Option<Instant>,
    /// How long before they were due the last segments came.
    slacks: VecDeque<Duration>,
    ticked: Option<Instant>,
}

/// The first frame of a live stream is held back so long: the next segment may come as much too late.
const LEAD: Duration = Duration::from_millis(300);

/// What comes too late is given so much more time.
const MARGIN: Duration = Duration::from_millis(100);

/// Segments come this much before they are due, once the delay has been given back.
const SLACK: Duration = Duration::from_millis(200);

/// Segments that are looked back on.
const MEMORY: usize = 4;

/// One part in so many is gained: nobody hears it.
const HASTE: u32 = 50;

impl Pacer {
    pub(super) fn new(is_live: bool) -> Self {
        Self {
            is_live,
            zero: None,
            slacks: VecDeque::new(),
            ticked: None,
        }
    }

    /// A segment has come whose first frame has this time; `leads` if it is of the rendition that leads.
    pub(super) fn arrived(&mut self, now: Instant, first: Duration, leads: bool) {
        let Some(due) = self.due(first) else {
            let lead = if self.is_live { LEAD } else { Duration::ZERO };
            self.zero = (now + lead).checked_sub(first);
            return;
        };
        if due < now {
            let late = now - due + MARGIN;
            self.zero = self.zero.map(|zero| zero + late);
            self.slacks.clear();
        } else if leads {
            self.slacks.push_back(due - now);
            if self.slacks.len() > MEMORY {
                self.slacks.pop_front();
            }
        }
    }

    /// Gives back delay.
    pub(super) fn tick(&mut self, now: Instant) {
        let last = self.ticked.replace(now).unwrap_or(now);
        if !self.is_live || self.slacks.len() < MEMORY {
            return;
        }
        let excess = self.slacks.iter().min().map(|least| least.saturating_sub(SLACK));
        let step = excess
            .unwrap_or_default()
            .min(now.saturating_duration_since(last) / HASTE);
        self.zero = self.zero.and_then(|zero| zero.checked_sub(step));
        for slack in &mut self.slacks {
            *slack = slack.saturating_sub(step);
        }
    }

    /// When a time of the line is due; `None` before the first segment.
    pub(super) fn due(&self, time: Duration) -> Option<Instant> {
        Some(self.zero? + time)
    }

    /// The time of the line that is due now.
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
        // Two seconds later it should be there, and comes half a second too late.
        let late = t + LEAD + ms(2_500);
        pacer.arrived(late, ms(3_000), true);
        assert_eq!(pacer.due(ms(3_000)), Some(late + MARGIN));
        let again = late + ms(2_000);
        pacer.arrived(again, ms(5_000), true);
        assert_eq!(pacer.due(ms(5_000)), Some(again + MARGIN), "as late as before: in time");
    }

    #[test]
    fn delay_is_given_back_slowly_as_long_as_segments_come_early() {
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
        // It ends when segments come just in time.
        for second in 3..300 {
            pacer.tick(t + ms(1_000 * second));
        }
        let gained = before - pacer.due(ms(100_000)).expect("it began");
        assert_eq!(gained, ms(1_000) + LEAD - SLACK);
    }

    #[test]
    fn what_is_not_live_is_not_hurried() {
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
