//! Joins the timelines of a sender whose RTP timestamps jump, away from their time of arrival.
//!
//! Some recorders stamp a frame every few seconds hours away from its neighbours, and cameras set their clock while they
//! send. Players show such frames when they arrive. A [`TimestampJumpCorrector`] does the same: it times stray frames by
//! their arrival, and believes another timeline after [`FRAMES_TO_FOLLOW_JUMP`] of its frames.

use std::time::{Duration, Instant};

use super::clock::{duration_to_ticks, ticks_to_duration};

/// A larger deviation between timestamps and arrivals is a jump.
const MAX_DEVIATION_FROM_ARRIVAL: Duration = Duration::from_secs(5);

/// B-frames have earlier timestamps than frames before them. A step back by more than this many usual steps between two
/// frames is a jump, such as of a camera whose timestamps begin again with each group of pictures.
const MAX_REORDERED_STEPS: u32 = 8;
const MIN_BACKWARD_JUMP: Duration = Duration::from_millis(500);

/// Fraction of each step that moves the usual one.
const STEP_SMOOTHING_DIVISOR: u32 = 8;

/// Frames in a row on another timeline after which it is followed.
const FRAMES_TO_FOLLOW_JUMP: u32 = 3;

/// Minimum step to a stray frame that arrives together with the one before.
const MIN_STRAY_FRAME_STEP: Duration = Duration::from_millis(1);

/// Joins the timelines of one RTP stream.
#[derive(Debug)]
pub(super) struct TimestampJumpCorrector {
    clock_rate: u32,
    /// Added to the timestamps of the current timeline, wrapping.
    offset: u64,
    /// The same of the timeline before, of which late packets may come.
    previous_offset: Option<u64>,
    /// The newest frame of the current timeline.
    newest: Option<TimestampAndArrival>,
    /// Timestamp of the last packet of the current timeline, and the usual distance between frames, either way.
    last_time: Option<u64>,
    usual_step: Option<Duration>,
    stray: Option<StrayTimeline>,
}

#[derive(Clone, Copy, Debug)]
struct TimestampAndArrival {
    time: u64,
    arrival: Instant,
}

/// Frames that are on another timeline than those before them.
#[derive(Debug)]
struct StrayTimeline {
    offset: u64,
    newest: TimestampAndArrival,
    frame_count: u32,
}

impl TimestampJumpCorrector {
    /// `clock_rate` is that of the timestamps, in Hz.
    pub(super) fn new(clock_rate: u32) -> Self {
        Self {
            clock_rate,
            offset: 0,
            previous_offset: None,
            newest: None,
            last_time: None,
            usual_step: None,
            stray: None,
        }
    }

    /// What follows has unrelated timestamps.
    pub(super) fn on_seq_and_timestamp_discontinuity(&mut self) {
        *self = Self::new(self.clock_rate);
    }

    /// Returns the timestamp of the next packet in sequence order on the joined timeline.
    pub(super) fn join_next_timestamp(&mut self, time: u64, arrival: Instant) -> u64 {
        let packet = TimestampAndArrival { time, arrival };
        let Some(newest) = self
            .newest
            .filter(|newest| !self.is_step_consistent_with_arrival(*newest, packet))
        else {
            self.stray = None;
            self.record_step(time);
            // B-frames have earlier timestamps.
            if self.newest.is_none_or(|newest| newest.time <= time) {
                self.newest = Some(packet);
            }
            return time.wrapping_add(self.offset);
        };
        let continued = self
            .stray
            .take()
            .filter(|stray| self.is_step_consistent_with_arrival(stray.newest, packet));
        let mut stray = continued.unwrap_or_else(|| {
            let elapsed = arrival.saturating_duration_since(newest.arrival);
            let step = duration_to_ticks(elapsed.max(MIN_STRAY_FRAME_STEP), self.clock_rate).max(1);
            let joined = newest.time.wrapping_add(self.offset).wrapping_add(step);
            StrayTimeline {
                offset: joined.wrapping_sub(time),
                newest: packet,
                frame_count: 1,
            }
        });
        stray.frame_count += u32::from(stray.newest.time != time);
        stray.newest.arrival = arrival;
        stray.newest.time = stray.newest.time.max(time);
        let joined = time.wrapping_add(stray.offset);
        if stray.frame_count >= FRAMES_TO_FOLLOW_JUMP {
            self.previous_offset = Some(std::mem::replace(&mut self.offset, stray.offset));
            self.newest = Some(stray.newest);
            self.last_time = None;
        } else {
            self.stray = Some(stray);
        }
        joined
    }

    /// Returns the joined timestamp of a late packet or of a sender report, of whichever timeline it is.
    pub(super) fn map_timestamp_to_joined_timeline(&self, time: u64) -> u64 {
        let Some(newest) = self.newest else {
            return time.wrapping_add(self.offset);
        };
        let now = newest.time.wrapping_add(self.offset);
        let stray = self.stray.as_ref().map(|stray| stray.offset);
        let offsets = [Some(self.offset), self.previous_offset, stray];
        let joined = offsets.into_iter().flatten().map(|offset| time.wrapping_add(offset));
        let distance = |joined: &u64| joined.wrapping_sub(now).min(now.wrapping_sub(*joined));
        joined.min_by_key(distance).unwrap_or(time.wrapping_add(self.offset))
    }

    /// Whether the step from one packet to another is about that of their arrivals. One without a step always follows:
    /// timestamps may stand still.
    fn is_step_consistent_with_arrival(&self, before: TimestampAndArrival, next: TimestampAndArrival) -> bool {
        let elapsed = next.arrival.saturating_duration_since(before.arrival);
        let deviation = match next.time.checked_sub(before.time) {
            Some(0) => Duration::ZERO,
            Some(ahead) => ticks_to_duration(ahead, self.clock_rate).abs_diff(elapsed),
            None => {
                let back = ticks_to_duration(before.time - next.time, self.clock_rate);
                return back <= self.max_backward_step();
            }
        };
        deviation <= MAX_DEVIATION_FROM_ARRIVAL
    }

    fn max_backward_step(&self) -> Duration {
        self.usual_step.map_or(MAX_DEVIATION_FROM_ARRIVAL, |step| {
            (step * MAX_REORDERED_STEPS).clamp(MIN_BACKWARD_JUMP, MAX_DEVIATION_FROM_ARRIVAL)
        })
    }

    fn record_step(&mut self, time: u64) {
        let Some(last) = self.last_time.replace(time).filter(|last| *last != time) else {
            return;
        };
        let step = ticks_to_duration(last.abs_diff(time), self.clock_rate);
        let usual = self.usual_step.unwrap_or(step);
        self.usual_step = Some(usual - usual / STEP_SMOOTHING_DIVISOR + step / STEP_SMOOTHING_DIVISOR);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    const HOUR_TICKS: u64 = 3_600 * 90_000;
    const FRAME_TICKS: u64 = 3_600;
    const MS: Duration = Duration::from_millis(1);

    /// Joins frames that arrive each 40 ms.
    fn join_frames(corrector: &mut TimestampJumpCorrector, times: &[u64]) -> Vec<u64> {
        let mut arrival = Instant::now();
        times
            .iter()
            .map(|time| {
                arrival += 40 * MS;
                // Two packets each.
                let first = corrector.join_next_timestamp(*time, arrival);
                assert_eq!(corrector.join_next_timestamp(*time, arrival), first);
                first
            })
            .collect()
    }

    #[test]
    fn a_stray_frame_is_timed_by_its_arrival_and_costs_no_other() {
        for stray in [10 * HOUR_TICKS, 90 * HOUR_TICKS] {
            let start = 50 * HOUR_TICKS;
            let mut times: Vec<u64> = (0..20).map(|frame| start + frame * FRAME_TICKS).collect();
            (times[5], times[11]) = (stray, stray);
            let joined = join_frames(&mut TimestampJumpCorrector::new(90_000), &times);
            let wanted: Vec<u64> = (0..20).map(|frame| start + frame * FRAME_TICKS).collect();
            assert_eq!(joined, wanted);
        }
    }

    #[test]
    fn a_clock_that_jumps_and_jumps_back_goes_on() {
        let at = |frame: u64| match frame {
            20..40 => 51 * HOUR_TICKS + frame * FRAME_TICKS,
            _ => 50 * HOUR_TICKS + frame * FRAME_TICKS,
        };
        let mut corrector = TimestampJumpCorrector::new(90_000);
        let joined = join_frames(&mut corrector, &(0..60).map(at).collect::<Vec<_>>());
        let wanted: Vec<u64> = (0..60).map(|frame| 50 * HOUR_TICKS + frame * FRAME_TICKS).collect();
        assert_eq!(joined, wanted);
        // Reports and late packets of both timelines.
        for time in [at(59), at(39) + 20 * FRAME_TICKS] {
            assert_eq!(corrector.map_timestamp_to_joined_timeline(time), wanted[59]);
        }
    }

    /// Two seconds each, and half a minute: no B-frame is that far back.
    #[test]
    fn timestamps_that_begin_again_with_each_group_go_on() {
        for gop in [25, 50, 750] {
            let times: Vec<u64> = (0..2_000).map(|frame| frame % gop * FRAME_TICKS).collect();
            let joined = join_frames(&mut TimestampJumpCorrector::new(90_000), &times);
            let steps: Vec<u64> = joined.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
            assert!(steps.iter().all(|step| *step == FRAME_TICKS), "{gop}: {steps:?}");
        }
    }

    #[test]
    fn frames_that_are_shown_out_of_order_are_kept() {
        // Pyramids of seven and three B-frames, at 25 and 2 frames per second.
        for (order, ticks) in [
            (&[8, 4, 2, 1, 3, 6, 5, 7][..], FRAME_TICKS),
            (&[4, 2, 1, 3], FRAME_TICKS),
            (&[4, 2, 1, 3], 45_000),
        ] {
            let count = order.len() as u64;
            let at = |frame: u64| (frame / count * count + order[(frame % count) as usize]) * ticks;
            let mut corrector = TimestampJumpCorrector::new(90_000);
            let mut arrival = Instant::now();
            for frame in 0..400 {
                arrival += ticks_to_duration(ticks, 90_000);
                assert_eq!(corrector.join_next_timestamp(at(frame), arrival), at(frame), "{frame}");
            }
        }
    }

    #[test]
    fn timestamps_that_follow_arrivals_are_kept() {
        let mut corrector = TimestampJumpCorrector::new(48_000);
        let mut arrival = Instant::now();
        // B-frames, a pause of a minute, and a pause in which the timestamps stood still.
        for (pause_ms, time, wanted) in [
            (0, 48_000, 48_000),
            (40, 52_000, 52_000),
            (40, 50_000, 50_000),
            (60_000, 60 * 48_000, 60 * 48_000),
            (4_000, 60 * 48_000 + 960, 60 * 48_000 + 960),
            (9_000, 60 * 48_000 + 1_920, 69 * 48_000 + 960),
        ] {
            arrival += pause_ms * MS;
            assert_eq!(corrector.join_next_timestamp(time, arrival), wanted, "{time}");
        }
    }
}
