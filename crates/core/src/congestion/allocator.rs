//! Chooses what a viewer is sent: down at once by what arrives, up by what a probe has shown.

use super::ladder::{FrameSelection, MAX_RUNGS, QualityLadder};
use super::prober::{ProbeParameters, ProbeResult};

/// The choice for one viewer. Times are in microseconds.
#[derive(Debug)]
pub(super) struct LayerAllocator {
    /// What was chosen; `None` before the start.
    target_choice: Option<LayerChoice>,
    /// What is being sent.
    current_choice: Option<LayerChoice>,
    /// What the running probe is for.
    probe_goal: Option<LayerChoice>,
    /// The last step down: when, the rate received then, and until when it holds.
    last_step_down_at: u64,
    bitrate_at_step_down: u32,
    step_down_hold_until: u64,
    /// When what is sent began.
    current_choice_began_at: u64,
    /// Until when a step up is on trial; 0 if none is.
    step_up_trial_until: u64,
    /// Pauses after failures, by rung of the ladder.
    step_up_pauses_by_rung: [RungStepUpBackoff; MAX_RUNGS],
    /// Less than the best rung was chosen because of overload.
    is_limited_by_overload: bool,
    random: u32,
}

type LayerChoice = (u8, FrameSelection);

/// A rung is no goal before a time; each failure makes the pause twice as long.
#[derive(Clone, Copy, Debug, Default)]
struct RungStepUpBackoff {
    until: u64,
    pause_micros: u32,
    /// The failure was that of a train: cheap, and no trouble for others.
    caused_by_packet_train: bool,
}

/// What must be sent instead of what is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSwitchTarget {
    pub layer: u8,
    pub frames: FrameSelection,
    /// Send nothing more of the old layer: it only makes the queue longer. Otherwise it goes on until the new one
    /// begins.
    pub stops_old_layer_at_once: bool,
}

/// What is known of the path when a choice is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerChoiceInputs {
    /// Bits per second that arrive.
    pub(super) received_bitrate: Option<u32>,
    /// Excess delay in microseconds, without what others cause.
    pub(super) excess_delay: i32,
    /// When the last probe ended.
    pub(super) last_probe_ended_at: u64,
    /// Bytes that sustained probes may have.
    pub(super) sustained_probe_credit_bytes: i32,
}

/// How going up works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepUpMode {
    /// With a probe before.
    ProbeFirst,
    /// Without feedback the step itself is the attempt, if all was calm since then.
    TryWithoutProbe {
        uncongested_since: Option<u64>,
        limit: Option<u32>,
        /// A rung that failed waits for this much longer than its pause.
        longer_pause: u64,
    },
}

/// What to do to go up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepUpAction {
    /// Probe the path at this rate.
    Probe(ProbeParameters),
    Switch(LayerSwitchTarget),
}

/// A rung must cost at most this share of what arrives, in percent.
const MAX_RUNG_PERCENT_OF_RECEIVED_BITRATE: u64 = 85;

/// A probe has this rate in relation to the cost of its goal, in percent.
const PROBE_PERCENT_OF_RUNG_BITRATE: u64 = 115;

/// Excess with which the old layer is stopped at once.
const MIN_EXCESS_DELAY_TO_STOP_OLD_LAYER_US: i32 = 80_000;

/// With a budget of less, no train is sent that a sustained probe may follow.
const MIN_PROBE_CREDIT_BYTES_FOR_PACKET_TRAIN: i32 = -30_000;

/// The next rung may be probed with a budget of this: it costs less than the top, and matters more.
const MIN_PROBE_CREDIT_BYTES_FOR_NEXT_RUNG: i32 = -60_000;

/// Excess with which no attempt to go up is made.
const MAX_EXCESS_DELAY_FOR_STEP_UP_US: i32 = 20_000;

/// After a step down the next one waits, unless less arrives.
const STEP_DOWN_HOLD_TIME_US: u64 = 700_000;
const HOLD_OVERRIDE_PERCENT_OF_BITRATE_AT_STEP_DOWN: u64 = 85;

/// The first frame of a lower layer leaves at the rate received within this time after the switch; before it little
/// does.
const FIRST_FRAME_WINDOW_START_US: u64 = 70_000;
const FIRST_FRAME_WINDOW_END_US: u64 = 170_000;
const PACING_PERCENT_OF_RECEIVED_BITRATE_BEFORE_FIRST_FRAME: u64 = 30;

/// After it this share of what was received at a step down is sent, while the step holds, in percent.
const PACING_PERCENT_OF_RECEIVED_BITRATE_WHILE_DRAINING: u64 = 55;

/// A queue that stands for this long after a step to the lowest rung is not ours.
const MAX_DRAIN_TIME_AT_LOWEST_RUNG_US: u64 = 2_500_000;

const STEP_UP_DELAY_AFTER_STEP_DOWN_US: u64 = 1_000_000;
const STEP_UP_DELAY_AFTER_PROBE_US: u64 = 400_000;

/// A step up that fails within this time was wrong.
const PROBED_STEP_UP_TRIAL_US: u64 = 4_000_000;
const UNPROBED_STEP_UP_TRIAL_US: u64 = 5_000_000;

/// The next step up may be probed this long before the end of a trial.
const MAX_STEP_UP_LEAD_BEFORE_TRIAL_END_US: u64 = 2_500_000;

/// A rung that was held for this long was right. One that is left before makes the pause longer, also if others who
/// share the path are the reason: else they would take turns.
const MIN_STABLE_TIME_ON_RUNG_US: u64 = 15_000_000;

/// Pauses after failures, each twice as long as the one before.
const FIRST_PROBED_STEP_UP_PAUSE_US: u64 = 2_000_000;
const MAX_PROBED_STEP_UP_PAUSE_US: u64 = 8_000_000;

/// The same if the step itself failed, which a viewer sees.
const MAX_FAILED_STEP_UP_PAUSE_US: u64 = 30_000_000;
const INITIAL_LOSSY_PROBE_PAUSE_US: u64 = 8_000_000;
const MAX_LOSSY_PROBE_PAUSE_US: u64 = 120_000_000;
const FIRST_UNPROBED_STEP_UP_PAUSE_US: u64 = 10_000_000;
const MAX_UNPROBED_STEP_UP_PAUSE_US: u64 = 300_000_000;

/// The longest pause while only trains fail, which cost next to nothing.
const MAX_STEP_UP_PAUSE_AFTER_FAILED_PACKET_TRAIN_US: u64 = 3_000_000;

impl LayerAllocator {
    /// `random` spreads the probes of many viewers.
    pub(super) fn new(random: u32) -> Self {
        Self {
            target_choice: None,
            current_choice: None,
            probe_goal: None,
            last_step_down_at: 0,
            bitrate_at_step_down: 0,
            step_down_hold_until: 0,
            current_choice_began_at: 0,
            step_up_trial_until: 0,
            step_up_pauses_by_rung: [RungStepUpBackoff::default(); MAX_RUNGS],
            is_limited_by_overload: false,
            random: random | 1,
        }
    }

    /// What is sent, or was chosen last before anything is.
    pub(super) fn current_or_target_choice(&self) -> Option<LayerChoice> {
        self.current_choice.or(self.target_choice)
    }

    pub(super) fn target_choice(&self) -> Option<LayerChoice> {
        self.target_choice
    }

    /// Chooses the first rung: the lowest with whole video, or the highest that costs at most `hint`.
    pub(super) fn choose_first_rung(&mut self, ladder: &QualityLadder, hint: Option<u32>) -> Option<LayerSwitchTarget> {
        let lowest = ladder.lowest_usable_full_video_index()?;
        let fitting = hint.and_then(|hint| {
            ladder.highest_fitting_or_lowest_rung_below(
                ladder.rungs().len(),
                percent_of(hint, MAX_RUNG_PERCENT_OF_RECEIVED_BITRATE),
            )
        });
        let rung = fitting.filter(|fitting| *fitting > lowest).unwrap_or(lowest);
        self.set_target_rung(ladder, rung, false)
    }

    /// Chooses again if the chosen rung is gone or not usable: the next one below, or else the lowest.
    pub(super) fn replace_unusable_target_rung(&mut self, ladder: &QualityLadder) -> Option<LayerSwitchTarget> {
        let (layer, frames) = self.target_choice?;
        let index = ladder.rung_index_of(layer, frames);
        if index.is_some_and(|index| ladder.is_rung_usable(index)) {
            return None;
        }
        let index = index.unwrap_or_else(|| ladder.rungs().len());
        let rung = ladder
            .next_usable_index_below(index)
            .or_else(|| ladder.lowest_usable_full_video_index())?;
        self.set_target_rung(ladder, rung, false)
    }

    /// What was chosen is being sent. A step up is on trial from now on.
    pub(super) fn on_layer_switch_begun(&mut self, now: u64, layer: u8, frames: FrameSelection, ascent: StepUpMode) {
        let before = self.current_choice.replace((layer, frames));
        self.current_choice_began_at = now;
        if before.is_some_and(|before| before < (layer, frames)) {
            let trial = if ascent == StepUpMode::ProbeFirst {
                PROBED_STEP_UP_TRIAL_US
            } else {
                UNPROBED_STEP_UP_TRIAL_US
            };
            self.step_up_trial_until = now + trial;
        }
    }

    /// Steps down, at once.
    pub(super) fn step_down_on_overload(
        &mut self,
        now: u64,
        ladder: &QualityLadder,
        path: LayerChoiceInputs,
        is_probed: bool,
    ) -> Option<LayerSwitchTarget> {
        let less = percent_of(self.bitrate_at_step_down, HOLD_OVERRIDE_PERCENT_OF_BITRATE_AT_STEP_DOWN);
        let falls = path.received_bitrate.is_some_and(|received| received < less);
        if now < self.step_down_hold_until && !falls {
            return None;
        }
        let (layer, frames) = self.current_or_target_choice()?;
        let current = ladder.rung_index_of(layer, frames)?;
        // A choice that has not begun is taken back first; what is sent is the overload.
        let rung = match path.received_bitrate {
            Some(received) => ladder.highest_fitting_or_lowest_rung_below(
                current,
                percent_of(received, MAX_RUNG_PERCENT_OF_RECEIVED_BITRATE),
            ),
            None => ladder.next_usable_index_below(current),
        };
        if now < self.current_choice_began_at + MIN_STABLE_TIME_ON_RUNG_US && self.step_up_trial_until > 0 {
            let (first, longest) = match is_probed {
                true => (FIRST_PROBED_STEP_UP_PAUSE_US, MAX_FAILED_STEP_UP_PAUSE_US),
                false => (FIRST_UNPROBED_STEP_UP_PAUSE_US, MAX_UNPROBED_STEP_UP_PAUSE_US),
            };
            self.begin_step_up_pause(now, current, first, longest);
        }
        self.step_up_trial_until = 0;
        let Some(rung) = rung else {
            return self.cancel_pending_step_up(ladder, current);
        };
        if self
            .target_choice
            .and_then(|(layer, frames)| ladder.rung_index_of(layer, frames))
            .is_some_and(|target| target <= rung)
        {
            return None;
        }
        self.last_step_down_at = now;
        self.bitrate_at_step_down = path.received_bitrate.unwrap_or(0);
        self.step_down_hold_until = now + STEP_DOWN_HOLD_TIME_US;
        let stop = path.excess_delay > MIN_EXCESS_DELAY_TO_STOP_OLD_LAYER_US || current >= rung + 2;
        let switch = self.set_target_rung(ladder, rung, stop);
        self.is_limited_by_overload = true;
        switch
    }

    /// Whether less than the best rung is chosen because of overload.
    pub(super) fn is_limited_by_overload(&self) -> bool {
        self.is_limited_by_overload
    }

    /// Chooses the best rung again, after it was not there and unless overload speaks against it.
    pub(super) fn return_to_top_rung_unless_overloaded(
        &mut self,
        now: u64,
        ladder: &QualityLadder,
    ) -> Option<LayerSwitchTarget> {
        let top = ladder.top_usable_index()?;
        let (layer, frames) = self.target_choice?;
        let pause = self.step_up_pauses_by_rung.get(top);
        let is_free = !self.is_limited_by_overload && pause.is_none_or(|pause| now >= pause.until);
        (is_free && ladder.rung_index_of(layer, frames)? < top).then(|| self.set_target_rung(ladder, top, false))?
    }

    /// The rate to send at while a step down holds: what was received for the key frame that the viewer waits for, and
    /// then less, so that the queue drains.
    pub(super) fn pacing_bitrate_limit_after_step_down(&self, now: u64) -> Option<u32> {
        if now >= self.step_down_hold_until || self.bitrate_at_step_down == 0 {
            return None;
        }
        let began = self.current_choice_began_at.max(self.last_step_down_at);
        let percent = match now.saturating_sub(began) {
            // The queue may be full.
            0..FIRST_FRAME_WINDOW_START_US => PACING_PERCENT_OF_RECEIVED_BITRATE_BEFORE_FIRST_FRAME,
            FIRST_FRAME_WINDOW_START_US..FIRST_FRAME_WINDOW_END_US => 100,
            _ => PACING_PERCENT_OF_RECEIVED_BITRATE_WHILE_DRAINING,
        };
        Some(percent_of(self.bitrate_at_step_down, percent))
    }

    /// What arrived at the last step down, in bits per second; 0 before one.
    pub(super) fn bitrate_at_step_down(&self) -> u32 {
        self.bitrate_at_step_down
    }

    /// Whether a step up was made of late.
    pub(super) fn is_step_up_on_trial(&self, now: u64) -> bool {
        now < self.step_up_trial_until
    }

    /// Whether the lowest rung is sent, since long enough that the queue before it is gone.
    pub(super) fn is_settled_on_lowest_rung(&self, now: u64, ladder: &QualityLadder) -> bool {
        let index =
            |choice: Option<LayerChoice>| choice.and_then(|(layer, frames)| ladder.rung_index_of(layer, frames));
        let current = index(self.current_choice).filter(|_| self.current_choice == self.target_choice);
        let is_lowest = current.is_some_and(|current| ladder.next_usable_index_below(current).is_none());
        is_lowest && now >= self.last_step_down_at + MAX_DRAIN_TIME_AT_LOWEST_RUNG_US
    }

    /// Cancels a step up that has not begun.
    fn cancel_pending_step_up(&mut self, ladder: &QualityLadder, current: usize) -> Option<LayerSwitchTarget> {
        if self.target_choice == self.current_choice || self.current_choice.is_none() {
            return None;
        }
        let switch = self.set_target_rung(ladder, current, false);
        self.is_limited_by_overload |= current + 1 < ladder.rungs().len();
        switch
    }

    /// Returns what to do to go up, if it is time.
    pub(super) fn choose_step_up_action(
        &mut self,
        now: u64,
        ladder: &QualityLadder,
        path: LayerChoiceInputs,
        ascent: StepUpMode,
    ) -> Option<StepUpAction> {
        let is_settled = self.current_choice == self.target_choice;
        if !is_settled
            || now < self.next_step_up_at(path.last_probe_ended_at)
            || path.excess_delay >= MAX_EXCESS_DELAY_FOR_STEP_UP_US
        {
            return None;
        }
        let (layer, frames) = self.current_or_target_choice()?;
        let current = ladder.rung_index_of(layer, frames)?;
        let is_held = now >= self.current_choice_began_at + MIN_STABLE_TIME_ON_RUNG_US;
        if self.step_up_trial_until > 0 && is_held {
            self.step_up_trial_until = 0;
            self.step_up_pauses_by_rung
                .iter_mut()
                .take(current + 1)
                .for_each(|pause| *pause = RungStepUpBackoff::default());
        }
        let is_free = |goal: &usize| {
            self.step_up_pauses_by_rung
                .get(*goal)
                .is_none_or(|pause| now >= pause.until)
        };
        let mut goals = (current + 1..ladder.rungs().len()).filter(|goal| ladder.is_rung_usable(*goal));
        match ascent {
            StepUpMode::ProbeFirst => {
                let is_new = |goal: &usize| {
                    self.step_up_pauses_by_rung
                        .get(*goal)
                        .is_none_or(|pause| pause.pause_micros == 0)
                };
                let next_above = goals.clone().next();
                let can_probe_sustained = |goal: &usize| {
                    let least = if Some(*goal) == next_above {
                        MIN_PROBE_CREDIT_BYTES_FOR_NEXT_RUNG
                    } else {
                        0
                    };
                    is_new(goal) || path.sustained_probe_credit_bytes >= least
                };
                let top = ladder.top_usable_index().filter(|top| *top > current && is_free(top));
                // The top first. If a sustained probe for it failed: the next rung above, and at last a train for the
                // top.
                let is_cheap = |goal: &usize| {
                    is_new(goal)
                        || self
                            .step_up_pauses_by_rung
                            .get(*goal)
                            .is_none_or(|pause| pause.caused_by_packet_train)
                };
                let goal = top
                    .filter(is_cheap)
                    .or_else(|| goals.find(|goal| is_free(goal) && can_probe_sustained(goal)));
                let goal = goal.or_else(|| {
                    top.filter(|_| path.sustained_probe_credit_bytes > MIN_PROBE_CREDIT_BYTES_FOR_PACKET_TRAIN)
                })?;
                let rung = ladder.get(goal)?;
                self.probe_goal = Some((rung.layer, rung.frames));
                Some(StepUpAction::Probe(ProbeParameters {
                    probe_bitrate: percent_of(ladder.wire_bitrate_with_audio(goal), PROBE_PERCENT_OF_RUNG_BITRATE),
                    is_for_top_rung: Some(goal) == ladder.top_usable_index(),
                    allows_sustained_probe: can_probe_sustained(&goal),
                    has_failed_before: !is_new(&goal),
                }))
            }
            StepUpMode::TryWithoutProbe {
                uncongested_since,
                limit,
                longer_pause,
            } => {
                let is_calm = uncongested_since.is_some_and(|since| now >= since + UNPROBED_STEP_UP_TRIAL_US);
                let is_free = |goal: &usize| {
                    self.step_up_pauses_by_rung
                        .get(*goal)
                        .is_none_or(|pause| pause.pause_micros == 0 || now >= pause.until + longer_pause)
                };
                let next = goals.next().filter(is_free)?;
                let is_allowed = limit.is_none_or(|limit| ladder.wire_bitrate_with_audio(next) <= limit);
                (is_calm && is_allowed).then(|| self.set_target_rung(ladder, next, false).map(StepUpAction::Switch))?
            }
        }
    }

    /// The earliest time to go up.
    pub(super) fn next_step_up_at(&self, probe_ended: u64) -> u64 {
        let after_down = if self.last_step_down_at > 0 {
            self.last_step_down_at + STEP_UP_DELAY_AFTER_STEP_DOWN_US
        } else {
            0
        };
        let after_probe = if probe_ended > 0 {
            probe_ended + STEP_UP_DELAY_AFTER_PROBE_US
        } else {
            0
        };
        // A wrong step up mostly shows soon; the next one waits for that.
        after_down.max(after_probe).max(
            self.step_up_trial_until
                .saturating_sub(MAX_STEP_UP_LEAD_BEFORE_TRIAL_END_US),
        )
    }

    /// Evaluates a probe.
    pub(super) fn on_probe_result(
        &mut self,
        now: u64,
        ladder: &QualityLadder,
        result: ProbeResult,
    ) -> Option<LayerSwitchTarget> {
        let goal = self.probe_goal.take()?;
        if result == ProbeResult::Passed {
            return self.set_target_rung(ladder, ladder.rung_index_of(goal.0, goal.1)?, false);
        }
        let (first, longest) = match result {
            ProbeResult::PacketTrainFailed => (
                FIRST_PROBED_STEP_UP_PAUSE_US,
                MAX_STEP_UP_PAUSE_AFTER_FAILED_PACKET_TRAIN_US,
            ),
            ProbeResult::SustainedProbeLost => (INITIAL_LOSSY_PROBE_PAUSE_US, MAX_LOSSY_PROBE_PAUSE_US),
            _ => (FIRST_PROBED_STEP_UP_PAUSE_US, MAX_PROBED_STEP_UP_PAUSE_US),
        };
        self.begin_step_up_pause(now, ladder.rung_index_of(goal.0, goal.1)?, first, longest);
        None
    }

    /// The probe was ended by overload: its goal is tried again.
    pub(super) fn forget_probe_goal(&mut self) {
        self.probe_goal = None;
    }

    /// A number below 65,536.
    pub(super) fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        u64::from(self.random >> 16)
    }

    fn begin_step_up_pause(&mut self, now: u64, rung: usize, first: u64, longest: u64) {
        // Seven to nine eighths of it: viewers that fell together do not probe together.
        let random = self.next_random();
        let Some(pause) = self.step_up_pauses_by_rung.get_mut(rung) else {
            return;
        };
        let length = (u64::from(pause.pause_micros) * 2).clamp(first, longest);
        pause.pause_micros = length as u32;
        pause.caused_by_packet_train = longest == MAX_STEP_UP_PAUSE_AFTER_FAILED_PACKET_TRAIN_US;
        let eighth = length / 8;
        pause.until = now + 7 * eighth + 2 * eighth * random / 65_536;
    }

    fn set_target_rung(&mut self, ladder: &QualityLadder, rung: usize, stop: bool) -> Option<LayerSwitchTarget> {
        let rung = ladder.get(rung)?;
        let choice = (rung.layer, rung.frames);
        self.target_choice = Some(choice);
        self.is_limited_by_overload &= ladder.rungs().last().map(|last| (last.layer, last.frames)) != Some(choice);
        Some(LayerSwitchTarget {
            layer: rung.layer,
            frames: rung.frames,
            stops_old_layer_at_once: stop,
        })
    }
}

fn percent_of(rate: u32, percent: u64) -> u32 {
    u32::try_from(u64::from(rate) * percent / 100).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::ladder::QualityRung;
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Layers of 0.3, 1 and 2.5 Mbit/s, which cost 0.365, 1.1 and 2.675 with audio.
    fn ladder() -> QualityLadder {
        let mut ladder = QualityLadder::new(50_000);
        for (layer, rate) in [(0, 300_000), (1, 1_000_000), (2, 2_500_000)] {
            ladder.push(QualityRung {
                layer,
                frames: FrameSelection::All,
                payload_bitrate: rate,
                usable: true,
            });
        }
        ladder
    }

    fn path(received: u32, excess: i32) -> LayerChoiceInputs {
        LayerChoiceInputs {
            received_bitrate: Some(received),
            excess_delay: excess,
            last_probe_ended_at: 0,
            sustained_probe_credit_bytes: 60_000,
        }
    }

    /// An allocator that sends this layer since long.
    fn sending(layer: u8) -> LayerAllocator {
        let mut allocator = LayerAllocator::new(7);
        allocator.target_choice = Some((layer, FrameSelection::All));
        allocator.current_choice = allocator.target_choice;
        allocator
    }

    fn switch(layer: u8, stop: bool) -> Option<LayerSwitchTarget> {
        Some(LayerSwitchTarget {
            layer,
            frames: FrameSelection::All,
            stops_old_layer_at_once: stop,
        })
    }

    fn goal(allocator: &mut LayerAllocator, now: u64, path: LayerChoiceInputs) -> Option<u8> {
        allocator.probe_goal = None;
        allocator.choose_step_up_action(now, &ladder(), path, StepUpMode::ProbeFirst)?;
        Some(allocator.probe_goal?.0)
    }

    #[test]
    fn the_start_is_the_lowest_layer_or_what_was_seen_before() {
        assert_eq!(
            LayerAllocator::new(7).choose_first_rung(&ladder(), None),
            switch(0, false)
        );
        assert_eq!(
            LayerAllocator::new(7).choose_first_rung(&ladder(), Some(1_300_000)),
            switch(1, false)
        );
        assert_eq!(
            LayerAllocator::new(7).choose_first_rung(&ladder(), Some(100_000)),
            switch(0, false)
        );
    }

    #[test]
    fn overload_leads_to_what_fits_into_85_percent_of_what_arrives() {
        let down = |received, excess| sending(2).step_down_on_overload(SECOND, &ladder(), path(received, excess), true);
        assert_eq!(down(1_300_000, 0), switch(1, false));
        assert_eq!(down(1_200_000, 0), switch(0, true), "two steps");
        assert_eq!(down(1_300_000, 80_001), switch(1, true));
        assert_eq!(down(5_000_000, 0), switch(1, false), "at least one step");
        assert_eq!(
            sending(0).step_down_on_overload(SECOND, &ladder(), path(100_000, 0), true),
            None
        );
    }

    #[test]
    fn a_step_down_holds_unless_less_arrives() {
        let step = |now, received| {
            let mut allocator = sending(2);
            assert!(
                allocator
                    .step_down_on_overload(SECOND, &ladder(), path(1_300_000, 0), true)
                    .is_some()
            );
            allocator.on_layer_switch_begun(SECOND, 1, FrameSelection::All, StepUpMode::ProbeFirst);
            allocator.step_down_on_overload(now, &ladder(), path(received, 0), true)
        };
        assert_eq!(step(SECOND + 600_000, 1_200_000), None);
        assert_eq!(step(SECOND + 600_000, 1_000_000), switch(0, false));
        assert_eq!(step(SECOND + 700_000, 1_200_000), switch(0, false));
    }

    #[test]
    fn the_top_is_probed_first_and_after_a_failure_the_next_above() {
        let mut allocator = sending(0);
        assert_eq!(goal(&mut allocator, SECOND, path(364_000, 0)), Some(2));
        assert_eq!(
            allocator.on_probe_result(SECOND, &ladder(), ProbeResult::SustainedProbeFailed),
            None
        );
        assert_eq!(goal(&mut allocator, SECOND, path(364_000, 0)), Some(1));
        assert_eq!(
            allocator.on_probe_result(SECOND, &ladder(), ProbeResult::Passed),
            switch(1, false)
        );
        assert_eq!(
            goal(&mut allocator, SECOND, path(364_000, 0)),
            None,
            "a switch is under way"
        );
        allocator.on_layer_switch_begun(SECOND, 1, FrameSelection::All, StepUpMode::ProbeFirst);
        assert_eq!(goal(&mut allocator, 2_499_999, path(364_000, 0)), None, "on trial");
        assert_eq!(goal(&mut allocator, 3_000_000, path(364_000, 0)), Some(2));
    }

    #[test]
    fn nothing_is_probed_in_a_queue_after_a_step_or_after_a_probe() {
        assert_eq!(
            goal(&mut sending(0), SECOND, path(364_000, MAX_EXCESS_DELAY_FOR_STEP_UP_US)),
            None
        );
        let mut allocator = sending(1);
        allocator.step_down_on_overload(SECOND, &ladder(), path(364_000, 0), true);
        allocator.on_layer_switch_begun(SECOND, 0, FrameSelection::All, StepUpMode::ProbeFirst);
        assert_eq!(goal(&mut allocator, 2 * SECOND - 1, path(364_000, 0)), None);
        assert_eq!(goal(&mut allocator, 2 * SECOND, path(364_000, 0)), Some(2));
        let ended = LayerChoiceInputs {
            last_probe_ended_at: SECOND,
            ..path(364_000, 0)
        };
        assert_eq!(goal(&mut sending(0), SECOND + 399_999, ended), None);
        assert_eq!(goal(&mut sending(0), SECOND + 400_000, ended), Some(2));
        assert_eq!(
            goal(&mut sending(2), SECOND, path(364_000, 0)),
            None,
            "nothing is above the top"
        );
    }

    #[test]
    fn pauses_double_and_without_budget_only_the_top_gets_a_train() {
        let mut allocator = sending(1);
        let mut lengths = Vec::new();
        let mut now = SECOND;
        for _ in 0..6 {
            assert_eq!(goal(&mut allocator, now, path(1_100_000, 0)), Some(2));
            allocator.on_probe_result(now, &ladder(), ProbeResult::SustainedProbeFailed);
            lengths.push(allocator.step_up_pauses_by_rung[2].pause_micros / 1_000_000);
            assert_eq!(
                goal(
                    &mut allocator,
                    now + u64::from(lengths[lengths.len() - 1]) * SECOND / 2,
                    path(0, 0)
                ),
                None
            );
            now = allocator.step_up_pauses_by_rung[2].until;
        }
        assert_eq!(lengths, [2, 4, 8, 8, 8, 8]);
        let debt = |budget| LayerChoiceInputs {
            sustained_probe_credit_bytes: budget,
            ..path(364_000, 0)
        };
        let mut allocator = sending(0);
        allocator.step_up_pauses_by_rung[1].pause_micros = 1;
        allocator.step_up_pauses_by_rung[2].pause_micros = 1;
        assert_eq!(goal(&mut allocator, now, debt(0)), Some(1));
        assert_eq!(
            goal(&mut allocator, now, debt(MIN_PROBE_CREDIT_BYTES_FOR_NEXT_RUNG)),
            Some(1)
        );
        assert_eq!(
            goal(&mut allocator, now, debt(MIN_PROBE_CREDIT_BYTES_FOR_NEXT_RUNG - 1)),
            None
        );
        allocator.step_up_pauses_by_rung[1].until = 2 * now;
        assert_eq!(goal(&mut allocator, now, debt(-1)), Some(2));
        assert_eq!(
            goal(&mut allocator, now, debt(MIN_PROBE_CREDIT_BYTES_FOR_PACKET_TRAIN)),
            None
        );
    }

    #[test]
    fn a_rung_that_is_left_soon_is_paused_for_longer_each_time_and_one_that_was_held_is_not() {
        let mut allocator = sending(1);
        let mut now = SECOND;
        let mut lengths = Vec::new();
        for held in [1, 14, 14, 16, 14] {
            allocator.target_choice = Some((2, FrameSelection::All));
            allocator.on_layer_switch_begun(now, 2, FrameSelection::All, StepUpMode::ProbeFirst);
            now += held * SECOND;
            // An attempt to go up notices that the rung is held.
            allocator.choose_step_up_action(now, &ladder(), path(0, 0), StepUpMode::ProbeFirst);
            allocator.step_down_on_overload(now, &ladder(), path(1_500_000, 0), true);
            lengths.push(allocator.step_up_pauses_by_rung[2].pause_micros / 1_000_000);
            allocator.on_layer_switch_begun(now, 1, FrameSelection::All, StepUpMode::ProbeFirst);
            now += 20 * SECOND;
        }
        assert_eq!(lengths, [2, 4, 8, 0, 2]);
    }

    #[test]
    fn after_a_step_down_little_leaves_then_the_first_frame_and_then_the_queue_drains() {
        let mut allocator = sending(2);
        allocator.step_down_on_overload(SECOND, &ladder(), path(1_000_000, 0), true);
        allocator.on_layer_switch_begun(SECOND, 0, FrameSelection::All, StepUpMode::ProbeFirst);
        let rate = |after: u64| allocator.pacing_bitrate_limit_after_step_down(SECOND + after);
        assert_eq!(rate(0), Some(300_000));
        assert_eq!(rate(FIRST_FRAME_WINDOW_START_US), Some(1_000_000));
        assert_eq!(rate(FIRST_FRAME_WINDOW_END_US), Some(550_000));
        assert_eq!(rate(STEP_DOWN_HOLD_TIME_US), None);
    }

    #[test]
    fn overload_on_trial_is_a_failure_of_the_step() {
        let mut allocator = sending(1);
        allocator.target_choice = Some((2, FrameSelection::All));
        allocator.on_layer_switch_begun(SECOND, 2, FrameSelection::All, StepUpMode::ProbeFirst);
        assert_eq!(
            allocator.step_down_on_overload(2 * SECOND, &ladder(), path(1_500_000, 0), true),
            switch(1, false)
        );
        assert_eq!(allocator.step_up_pauses_by_rung[2].pause_micros, 2_000_000);
    }

    #[test]
    fn a_layer_that_is_gone_is_left_for_the_one_below() {
        let mut without = QualityLadder::new(50_000);
        for rung in ladder().rungs() {
            without.push(QualityRung {
                usable: rung.layer != 2,
                ..*rung
            });
        }
        assert_eq!(sending(2).replace_unusable_target_rung(&without), switch(1, false));
        assert_eq!(sending(1).replace_unusable_target_rung(&without), None);
        let mut top_alone = QualityLadder::new(50_000);
        top_alone.push(ladder().rungs()[2]);
        assert_eq!(sending(0).replace_unusable_target_rung(&top_alone), switch(2, false));
    }

    #[test]
    fn without_feedback_the_next_layer_is_tried_after_five_calm_seconds() {
        let ascend = |uncongested_since, limit| {
            let tried = StepUpMode::TryWithoutProbe {
                uncongested_since,
                limit,
                longer_pause: 0,
            };
            sending(0).choose_step_up_action(6 * SECOND, &ladder(), path(0, 0), tried)
        };
        assert_eq!(ascend(None, None), None);
        assert_eq!(ascend(Some(2 * SECOND), None), None);
        assert_eq!(ascend(Some(SECOND), None), switch(1, false).map(StepUpAction::Switch));
        assert_eq!(
            ascend(Some(SECOND), Some(1_000_000)),
            None,
            "the viewer's own estimate is lower"
        );
    }
}
