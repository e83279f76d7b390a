//! The delay of each viewer from capture to display by its parts, and the alarm for viewers whose delay is high or rises.

use std::time::{Duration, Instant};

use crate::shard::SessionId;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::viewer_quality::ViewerDelays;

/// What a player reports of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlayerDelay {
    /// From the arrival of the first packet of a frame until it leaves the jitter buffer.
    pub jitter_buffer: Duration,
    /// From there until it is decoded.
    pub decoding: Duration,
}

/// A report of a player is outdated after this time: hidden pages send none. Longer than two reports apart.
const MAX_PLAYER_REPORT_AGE: Duration = Duration::from_secs(75);

/// Reports of one player that come sooner after each other are refused.
pub const MIN_PLAYER_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// A part of the delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelayPart {
    CaptureToGateway,
    Gateway,
    Network,
    Player,
}

impl DelayPart {
    pub const ALL: [Self; 4] = [Self::CaptureToGateway, Self::Gateway, Self::Network, Self::Player];

    /// Returns the label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::CaptureToGateway => "capture_to_gateway",
            Self::Gateway => "gateway",
            Self::Network => "network",
            Self::Player => "player",
        }
    }
}

/// The known parts of a viewer's delay.
#[derive(Clone, Copy, Debug, Default)]
pub struct KnownDelays {
    pub measured: ViewerDelays,
    pub player: Option<Duration>,
}

impl KnownDelays {
    /// Returns one part, if it is known.
    pub fn part(&self, part: DelayPart) -> Option<Duration> {
        match part {
            DelayPart::CaptureToGateway => self.measured.capture_to_gateway.map(|captured| captured.delay),
            DelayPart::Gateway => self.measured.gateway,
            DelayPart::Network => self.measured.network,
            DelayPart::Player => self.player,
        }
    }

    /// Returns the sum of the known parts; `None` while the viewer is sent nothing.
    pub fn total(&self) -> Option<Duration> {
        self.measured.gateway?;
        Some(DelayPart::ALL.into_iter().filter_map(|part| self.part(part)).sum())
    }

    fn parts(&self) -> [Option<Duration>; DelayPart::ALL.len()] {
        DelayPart::ALL.map(|part| self.part(part))
    }
}

/// Why a viewer needs attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelayAlarm {
    /// Its delay is above the threshold.
    High,
    /// Its delay has risen above its own minimum.
    Rising,
}

impl DelayAlarm {
    pub const ALL: [Self; 2] = [Self::High, Self::Rising];

    /// Returns the name in the API and the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Rising => "rising",
        }
    }
}

/// A change of the alarm of a viewer.
pub struct DelayAlarmChange {
    pub session: SessionId,
    pub stream: StreamName,
    pub alarm: Option<DelayAlarm>,
    pub delays: KnownDelays,
}

/// How long the delay has to be above the threshold before an alarm, and below it before its end.
const HIGH_DELAY_DURATION: Duration = Duration::from_secs(10);

/// How long the smoothed delay has to be above its minimum by half and by this before an alarm.
const RISING_DELAY_DURATION: Duration = Duration::from_secs(60);
const MIN_DELAY_RISE: Duration = Duration::from_millis(200);

/// How long it has to be below that again before the end of the alarm.
const RISE_END_DURATION: Duration = Duration::from_secs(10);

/// Each observation contributes one of so many parts to the smoothed delay.
const SMOOTHING_DIVISOR: u32 = 8;

/// Watches the delay of one viewer: what its player reports, and whether there is an alarm.
#[derive(Debug, Default)]
pub struct DelayWatch {
    player_report: Option<(PlayerDelay, Instant)>,
    smoothed_parts: [Option<SmoothedPart>; DelayPart::ALL.len()],
    high: SustainedCondition,
    rising: SustainedCondition,
}

/// A part of the delay, and the least that it was.
#[derive(Clone, Copy, Debug)]
struct SmoothedPart {
    smoothed: Duration,
    least: Duration,
}

impl SmoothedPart {
    fn observe(before: Option<Self>, delay: Duration) -> Self {
        let Self { smoothed, least } = before.unwrap_or(Self {
            smoothed: delay,
            least: delay,
        });
        let smoothed = smoothed - smoothed / SMOOTHING_DIVISOR + delay / SMOOTHING_DIVISOR;
        Self {
            smoothed,
            least: least.min(smoothed),
        }
    }
}

/// A condition that begins or ends only after it has held, or not, for some time.
#[derive(Debug, Default)]
struct SustainedCondition {
    holds: bool,
    /// Since when it is the other way round.
    changing_since: Option<Instant>,
}

impl SustainedCondition {
    fn observe(&mut self, now: Instant, is_met: bool, begins_after: Duration, ends_after: Duration) {
        if is_met == self.holds {
            self.changing_since = None;
            return;
        }
        let since = *self.changing_since.get_or_insert(now);
        let needed = if self.holds { ends_after } else { begins_after };
        if now.saturating_duration_since(since) >= needed {
            (self.holds, self.changing_since) = (is_met, None);
        }
    }
}

impl DelayWatch {
    /// Takes a report of the player. Returns `false` if it comes too soon after the last one.
    pub fn record_player_report(&mut self, now: Instant, report: PlayerDelay) -> bool {
        let is_early = |(_, at): (PlayerDelay, Instant)| now.saturating_duration_since(at) < MIN_PLAYER_REPORT_INTERVAL;
        if self.player_report.is_some_and(is_early) {
            return false;
        }
        self.player_report = Some((report, now));
        true
    }

    /// Adds what the player reported of late to what was measured.
    pub fn known_delays(&self, now: Instant, measured: ViewerDelays) -> KnownDelays {
        let is_recent = |(_, at): &(PlayerDelay, Instant)| now.saturating_duration_since(*at) < MAX_PLAYER_REPORT_AGE;
        let recent = self.player_report.filter(is_recent);
        KnownDelays {
            measured,
            player: recent.map(|(report, _)| report.jitter_buffer + report.decoding),
        }
    }

    /// Observes the delay: to be called about once a second. Without a `threshold` there are no alarms.
    pub fn observe(&mut self, now: Instant, delays: &KnownDelays, threshold: Option<Duration>) {
        let Some(threshold) = threshold else {
            (self.high, self.rising) = Default::default();
            return;
        };
        let total = delays.total();
        let is_high = total.is_some_and(|total| total > threshold);
        self.high
            .observe(now, is_high, HIGH_DELAY_DURATION, HIGH_DELAY_DURATION);
        let has_risen = total.is_some() && self.smooth_and_check_rise(delays.parts());
        self.rising
            .observe(now, has_risen, RISING_DELAY_DURATION, RISE_END_DURATION);
    }

    /// Whether the parts that are known now are above the minima of the same parts. A part keeps its minimum while it is not
    /// known.
    fn smooth_and_check_rise(&mut self, parts: [Option<Duration>; DelayPart::ALL.len()]) -> bool {
        let (mut smoothed, mut least) = (Duration::ZERO, Duration::ZERO);
        for (delay, kept) in parts.into_iter().zip(&mut self.smoothed_parts) {
            let Some(delay) = delay else { continue };
            let part = SmoothedPart::observe(*kept, delay);
            *kept = Some(part);
            (smoothed, least) = (smoothed + part.smoothed, least + part.least);
        }
        smoothed > least + (least / 2).max(MIN_DELAY_RISE)
    }

    /// Returns the alarm; a delay that is both is high.
    pub fn alarm(&self) -> Option<DelayAlarm> {
        if self.high.holds {
            Some(DelayAlarm::High)
        } else {
            self.rising.holds.then_some(DelayAlarm::Rising)
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn delays(network: Duration) -> KnownDelays {
        KnownDelays {
            measured: ViewerDelays {
                capture_to_gateway: None,
                gateway: Some(MS),
                network: Some(network),
            },
            player: None,
        }
    }

    /// Observes a delay each second; returns the alarms, and after how many seconds each began.
    fn alarms(watch: &mut DelayWatch, from: Instant, totals: &[(u32, u32)]) -> Vec<(u32, Option<DelayAlarm>)> {
        let (mut seconds, mut seen) = (0, vec![(0, watch.alarm())]);
        for (count, milliseconds) in totals {
            for _ in 0..*count {
                watch.observe(from + seconds * SECOND, &delays(*milliseconds * MS), Some(1_000 * MS));
                if seen.last().is_none_or(|(_, last)| *last != watch.alarm()) {
                    seen.push((seconds, watch.alarm()));
                }
                seconds += 1;
            }
        }
        seen
    }

    #[test]
    fn a_delay_above_the_threshold_for_ten_seconds_is_an_alarm_that_ends_ten_seconds_below_it() {
        let (mut watch, t) = (DelayWatch::default(), Instant::now());
        let seen = alarms(
            &mut watch,
            t,
            &[
                (5, 900),
                (9, 1_200),
                (1, 900),
                (20, 1_200),
                (5, 900),
                (1, 1_200),
                (30, 900),
            ],
        );
        let high = Some(DelayAlarm::High);
        assert_eq!(seen, [(0, None), (25, high), (51, None)]);
    }

    #[test]
    fn a_delay_that_rises_above_its_own_minimum_for_a_minute_is_an_alarm() {
        let (mut watch, t) = (DelayWatch::default(), Instant::now());
        // 150 ms more are not half of the least, and 190 ms are less than 200.
        let seen = alarms(&mut watch, t, &[(30, 400), (120, 550), (30, 100), (120, 290)]);
        assert_eq!(seen, [(0, None)]);
        let seen = alarms(&mut watch, t + 1_000 * SECOND, &[(100, 350), (60, 100)]);
        let rising = Some(DelayAlarm::Rising);
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(seen[1].1 == rising && (60..75).contains(&seen[1].0), "{seen:?}");
        assert!(seen[2].1.is_none() && (110..120).contains(&seen[2].0), "{seen:?}");
    }

    #[test]
    fn a_part_that_becomes_known_is_no_rise() {
        let (mut watch, t) = (DelayWatch::default(), Instant::now());
        for second in 0..200 {
            let mut known = delays(20 * MS);
            known.player = (second > 50).then_some(400 * MS);
            watch.observe(t + second * SECOND, &known, Some(SECOND));
        }
        assert_eq!(watch.alarm(), None);
    }

    #[test]
    fn a_rise_is_seen_although_another_part_comes_and_goes() {
        let (mut watch, t) = (DelayWatch::default(), Instant::now());
        for second in 0..300 {
            let mut known = delays(if second < 30 { 20 * MS } else { 620 * MS });
            // The page of the player is hidden half of the time.
            known.player = (second / 50 % 2 == 1).then_some(100 * MS);
            watch.observe(t + second * SECOND, &known, Some(SECOND));
        }
        assert_eq!(watch.alarm(), Some(DelayAlarm::Rising));
    }

    #[test]
    fn without_a_threshold_alarms_end() {
        let (mut watch, t) = (DelayWatch::default(), Instant::now());
        alarms(&mut watch, t, &[(30, 2_000)]);
        assert_eq!(watch.alarm(), Some(DelayAlarm::High));
        watch.observe(t + 30 * SECOND, &delays(2_000 * MS), None);
        assert_eq!(watch.alarm(), None);
    }

    #[test]
    fn a_report_of_the_player_counts_for_a_while_and_not_more_often_than_once_a_second() {
        let (mut watch, t) = (DelayWatch::default(), Instant::now());
        let report = |buffer: u32| PlayerDelay {
            jitter_buffer: buffer * MS,
            decoding: 5 * MS,
        };
        let known = |watch: &DelayWatch, at| watch.known_delays(at, delays(20 * MS).measured);
        assert_eq!(known(&watch, t).total(), Some(21 * MS));
        assert!(watch.record_player_report(t, report(60)));
        assert!(!watch.record_player_report(t + 999 * MS, report(70)));
        assert_eq!(known(&watch, t + SECOND).player, Some(65 * MS));
        assert_eq!(known(&watch, t + SECOND).total(), Some(86 * MS));
        assert!(watch.record_player_report(t + SECOND, report(70)));
        assert_eq!(known(&watch, t + 70 * SECOND).player, Some(75 * MS));
        assert_eq!(known(&watch, t + 80 * SECOND).player, None);
        let nothing = watch.known_delays(t, ViewerDelays::default());
        assert_eq!(nothing.total(), None, "a viewer that is sent nothing has no delay");
    }
}
