//! Which source of a failover group its stream should show. Pure: time is an argument.

use std::time::{Duration, Instant};

use super::status::{FailoverSourceState, SwitchReason};

/// What is known of a source.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SourceCondition {
    pub state: FailoverSourceState,
    /// Since when media arrives without interruption.
    pub live_since: Option<Instant>,
    /// It was selected and failed: it has to show that it is stable before it is shown again.
    pub has_failed: bool,
}

/// What the selection follows from.
#[derive(Clone, Copy, Debug)]
pub(super) struct SourceSelectionInput<'a> {
    pub now: Instant,
    /// The highest source first.
    pub conditions: &'a [SourceCondition],
    pub selected: Option<usize>,
    /// Whether viewers have received nothing from the selected source for too long.
    pub is_selected_silent: bool,
    /// The source that was chosen by hand. It ranks above all others.
    pub chosen: Option<usize>,
    /// The choice has not had an effect yet: it waits for no hold-off.
    pub is_choice_new: bool,
    pub hold_off: Duration,
}

/// What should happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceSelectionDecision {
    Keep,
    /// Viewers have nothing: the source begins with its cached key frame.
    SwitchAtOnce {
        to: usize,
        reason: SwitchReason,
    },
    /// Viewers have the selected source until the next key frame of this one.
    SwitchAtKeyFrame {
        to: usize,
        reason: SwitchReason,
    },
    /// The selected source is gone, and no other one is live.
    Release(SwitchReason),
}

impl SourceSelectionDecision {
    /// Returns this with the source that has this rank: `order` has the source of each rank.
    pub(super) fn map_ranks_to_sources(self, order: &[usize]) -> Self {
        let source = |rank: usize| order.get(rank).copied().unwrap_or(rank);
        match self {
            Self::Keep | Self::Release(_) => self,
            Self::SwitchAtOnce { to, reason } => Self::SwitchAtOnce { to: source(to), reason },
            Self::SwitchAtKeyFrame { to, reason } => Self::SwitchAtKeyFrame { to: source(to), reason },
        }
    }
}

impl SourceSelectionInput<'_> {
    pub(super) fn decide_source_switch(&self) -> SourceSelectionDecision {
        let Some(selected) = self.selected else {
            return match self.sources_by_preference().find(|index| self.is_live(*index)) {
                Some(to) => SourceSelectionDecision::SwitchAtOnce {
                    to,
                    reason: SwitchReason::Available,
                },
                None => SourceSelectionDecision::Keep,
            };
        };
        if let Some(reason) = self.failure_reason_of_source(selected) {
            let mut others = self.sources_by_preference().filter(|index| *index != selected);
            return match others.find(|index| self.is_live(*index)) {
                Some(to) => SourceSelectionDecision::SwitchAtOnce { to, reason },
                None if reason == SwitchReason::Ended => SourceSelectionDecision::Release(reason),
                None => SourceSelectionDecision::Keep,
            };
        }
        let mut higher = self.sources_by_preference().take_while(|index| *index != selected);
        let better = higher.find_map(|index| Some((index, self.reason_to_switch_to_source(index)?)));
        better.map_or(SourceSelectionDecision::Keep, |(to, reason)| {
            SourceSelectionDecision::SwitchAtKeyFrame { to, reason }
        })
    }

    /// The sources in the order of preference.
    fn sources_by_preference(&self) -> impl Iterator<Item = usize> + '_ {
        let rest = (0..self.conditions.len()).filter(|index| Some(*index) != self.chosen);
        self.chosen.into_iter().chain(rest)
    }

    fn is_live(&self, index: usize) -> bool {
        self.source_state(index) == FailoverSourceState::Live
    }

    fn source_state(&self, index: usize) -> FailoverSourceState {
        self.conditions
            .get(index)
            .map_or(FailoverSourceState::Away, |condition| condition.state)
    }

    fn failure_reason_of_source(&self, selected: usize) -> Option<SwitchReason> {
        match self.source_state(selected) {
            FailoverSourceState::Away => Some(SwitchReason::Ended),
            FailoverSourceState::Stalled => Some(SwitchReason::Stalled),
            // A new session of the same source may begin within the time that a stall is waited for.
            FailoverSourceState::Starting => self.is_selected_silent.then_some(SwitchReason::Stalled),
            FailoverSourceState::Live => None,
        }
    }

    /// Why a source that ranks above the selected one should be shown now.
    fn reason_to_switch_to_source(&self, index: usize) -> Option<SwitchReason> {
        let condition = self.conditions.get(index).filter(|_| self.is_live(index))?;
        let live_since = condition.live_since?;
        if self.chosen == Some(index) && self.is_choice_new {
            return Some(SwitchReason::Chosen);
        }
        if !condition.has_failed {
            return Some(SwitchReason::Preferred);
        }
        (self.now.saturating_duration_since(live_since) >= self.hold_off).then_some(SwitchReason::Recovered)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::FailoverSourceState::{Away, Live, Stalled, Starting};
    use super::*;

    const HOLD_OFF: Duration = Duration::from_secs(5);

    /// Sources in these states; those that are live have been for so many seconds.
    fn decide_source_switch(
        states: &[(FailoverSourceState, u64)],
        selected: Option<usize>,
        chosen: Option<(usize, bool)>,
    ) -> SourceSelectionDecision {
        let now = Instant::now() + Duration::from_secs(1_000);
        let condition = |(state, seconds): &(FailoverSourceState, u64)| SourceCondition {
            state: *state,
            live_since: (*state == Live).then(|| now - Duration::from_secs(*seconds)),
            has_failed: true,
        };
        let conditions: Vec<SourceCondition> = states.iter().map(condition).collect();
        let input = SourceSelectionInput {
            now,
            conditions: &conditions,
            selected,
            is_selected_silent: false,
            chosen: chosen.map(|(index, _)| index),
            is_choice_new: chosen.is_some_and(|(_, is_new)| is_new),
            hold_off: HOLD_OFF,
        };
        input.decide_source_switch()
    }

    fn switch_at_once(to: usize, reason: SwitchReason) -> SourceSelectionDecision {
        SourceSelectionDecision::SwitchAtOnce { to, reason }
    }

    fn switch_at_key_frame(to: usize, reason: SwitchReason) -> SourceSelectionDecision {
        SourceSelectionDecision::SwitchAtKeyFrame { to, reason }
    }

    #[test]
    fn the_first_live_source_is_shown() {
        assert_eq!(
            decide_source_switch(&[(Away, 0), (Starting, 0)], None, None),
            SourceSelectionDecision::Keep
        );
        let first = decide_source_switch(&[(Away, 0), (Live, 0), (Live, 9)], None, None);
        assert_eq!(first, switch_at_once(1, SwitchReason::Available));
    }

    #[test]
    fn the_next_live_source_follows_one_that_ends_or_stalls() {
        for (state, reason) in [(Away, SwitchReason::Ended), (Stalled, SwitchReason::Stalled)] {
            let next = decide_source_switch(&[(state, 0), (Stalled, 0), (Live, 0)], Some(0), None);
            assert_eq!(next, switch_at_once(2, reason));
        }
        // A higher one need not wait for the hold-off when the selected one fails.
        let next = decide_source_switch(&[(Live, 1), (Away, 0), (Live, 9)], Some(1), None);
        assert_eq!(next, switch_at_once(0, SwitchReason::Ended));
    }

    #[test]
    fn what_stalls_is_kept_and_what_ends_is_released_if_nothing_else_is_live() {
        assert_eq!(
            decide_source_switch(&[(Stalled, 0), (Away, 0)], Some(0), None),
            SourceSelectionDecision::Keep
        );
        let released = decide_source_switch(&[(Away, 0), (Stalled, 0)], Some(0), None);
        assert_eq!(released, SourceSelectionDecision::Release(SwitchReason::Ended));
    }

    #[test]
    fn a_new_session_of_the_selected_source_has_the_time_of_a_stall() {
        assert_eq!(
            decide_source_switch(&[(Starting, 0), (Live, 9)], Some(0), None),
            SourceSelectionDecision::Keep
        );
        let conditions = [(Starting, None), (Live, None)].map(|(state, live_since)| SourceCondition {
            state,
            live_since,
            has_failed: false,
        });
        let input = SourceSelectionInput {
            now: Instant::now(),
            conditions: &conditions,
            selected: Some(0),
            is_selected_silent: true,
            chosen: None,
            is_choice_new: false,
            hold_off: HOLD_OFF,
        };
        assert_eq!(input.decide_source_switch(), switch_at_once(1, SwitchReason::Stalled));
    }

    #[test]
    fn a_higher_source_returns_after_the_hold_off() {
        assert_eq!(
            decide_source_switch(&[(Live, 4), (Live, 9)], Some(1), None),
            SourceSelectionDecision::Keep
        );
        let back = decide_source_switch(&[(Live, 5), (Live, 9)], Some(1), None);
        assert_eq!(back, switch_at_key_frame(0, SwitchReason::Recovered));
        // The highest that is ready, not the highest of all.
        let back = decide_source_switch(&[(Live, 4), (Live, 5), (Live, 9)], Some(2), None);
        assert_eq!(back, switch_at_key_frame(1, SwitchReason::Recovered));
    }

    #[test]
    fn a_higher_source_that_has_not_failed_is_shown_at_once() {
        let now = Instant::now();
        let condition = SourceCondition {
            state: Live,
            live_since: Some(now),
            has_failed: false,
        };
        let input = SourceSelectionInput {
            now,
            conditions: &[condition, condition],
            selected: Some(1),
            is_selected_silent: false,
            chosen: None,
            is_choice_new: false,
            hold_off: HOLD_OFF,
        };
        assert_eq!(
            input.decide_source_switch(),
            switch_at_key_frame(0, SwitchReason::Preferred)
        );
    }

    #[test]
    fn a_choice_takes_effect_at_once_and_ranks_above_all_from_then_on() {
        let chosen = decide_source_switch(&[(Live, 9), (Live, 0)], Some(0), Some((1, true)));
        assert_eq!(chosen, switch_at_key_frame(1, SwitchReason::Chosen));
        assert_eq!(
            decide_source_switch(&[(Live, 9), (Live, 0)], Some(1), Some((1, false))),
            SourceSelectionDecision::Keep
        );
        let failed = decide_source_switch(&[(Live, 9), (Stalled, 0)], Some(1), Some((1, false)));
        assert_eq!(failed, switch_at_once(0, SwitchReason::Stalled));
        // Back to it as to any higher source.
        assert_eq!(
            decide_source_switch(&[(Live, 9), (Live, 1)], Some(0), Some((1, false))),
            SourceSelectionDecision::Keep
        );
        let back = decide_source_switch(&[(Live, 9), (Live, 5)], Some(0), Some((1, false)));
        assert_eq!(back, switch_at_key_frame(1, SwitchReason::Recovered));
    }

    #[test]
    fn a_choice_that_is_not_live_waits() {
        assert_eq!(
            decide_source_switch(&[(Live, 9), (Away, 0)], Some(0), Some((1, true))),
            SourceSelectionDecision::Keep
        );
        let withdrawn = decide_source_switch(&[(Live, 9), (Live, 9)], Some(1), None);
        assert_eq!(withdrawn, switch_at_key_frame(0, SwitchReason::Recovered));
    }
}
