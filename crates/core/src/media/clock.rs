//! Capture times of a track: maps track timestamps to the monotonic clock and back.

use std::time::{Duration, Instant};

use super::abs_capture_time;
use super::packet::TrackTime;

/// Maps [`TrackTime`] to [`Instant`].
///
/// Until the first sender report of the publisher, the packet with the least delay is the reference. From then on the
/// sender reports are, because only they relate audio to video (RFC 3550 §6.4.1).
#[derive(Clone, Copy, Debug)]
pub struct TrackClock {
    clock_rate: u32,
    arrival_anchor: Option<ClockAnchor>,
    report_anchor: Option<ClockAnchor>,
    /// `report_anchor` comes from the source's own sender reports, so it refers to capture times.
    has_capture_times: bool,
    /// [`SenderNtpMapper::standing_delay`] of the report of `report_anchor`.
    standing_delay: Duration,
    /// A capture time in a packet, by [`SenderNtpMapper::abs_capture_instant`].
    abs_capture_anchor: Option<ClockAnchor>,
}

/// Where capture times come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureTimeSource {
    /// The sender reports of the source: NTP and RTP timestamp of one instant (RFC 3550 §6.4.1).
    SenderReports,
    /// The header extension `abs-capture-time` of its packets; its sender reports relate that to the clock of the gateway.
    AbsCaptureTime,
}

#[derive(Clone, Copy, Debug)]
struct ClockAnchor {
    track_time: TrackTime,
    instant: Instant,
}

/// Compresses the times from `first_packet_time` on, so that they start at `mapped_first_packet_time`; times from
/// `live_edge_time` on are unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampCompression {
    /// Track time of the first packet.
    pub first_packet_time: TrackTime,
    /// Track time that it is mapped to: the live edge at the start.
    pub mapped_first_packet_time: TrackTime,
    /// Track time at which the viewer reaches the live edge.
    pub live_edge_time: TrackTime,
}

impl TimestampCompression {
    /// Maps a track time.
    pub fn compress_time(self, time: TrackTime) -> TrackTime {
        if time >= self.live_edge_time {
            return time;
        }
        let (past, whole, room) = (
            time.saturating_sub(self.first_packet_time),
            self.live_edge_time - self.first_packet_time,
            self.live_edge_time.saturating_sub(self.mapped_first_packet_time),
        );
        let compressed = u128::from(past) * u128::from(room) / u128::from(whole.max(1));
        self.mapped_first_packet_time + u64::try_from(compressed).unwrap_or(0)
    }
}

/// Senders leave the capture time out of packets whose time follows from an earlier one, for at most 5 s (libwebrtc). An older
/// one may be that of another encoder.
const MAX_ABS_CAPTURE_TIME_AGE: Duration = Duration::from_secs(30);

/// Fraction of a later arrival that moves the reference: 1/256 follows clock drift, but not jitter.
const CLOCK_DRIFT_SMOOTHING_DIVISOR: u32 = 256;

impl TrackClock {
    /// Creates a clock; `clock_rate` is the RTP clock rate in Hz.
    pub fn new(rate: u32) -> Self {
        Self {
            clock_rate: rate,
            arrival_anchor: None,
            report_anchor: None,
            has_capture_times: false,
            standing_delay: Duration::ZERO,
            abs_capture_anchor: None,
        }
    }

    /// Returns the RTP clock rate in Hz.
    pub fn clock_rate(&self) -> u32 {
        self.clock_rate
    }

    /// Resets the clock for a new source.
    pub fn reset(&mut self, rate: u32) {
        *self = Self::new(rate);
    }

    /// Records the arrival of a packet.
    pub fn on_packet(&mut self, time: TrackTime, at: Instant) {
        self.arrival_anchor = Some(update_arrival_anchor(
            self.arrival_anchor,
            self.clock_rate,
            ClockAnchor {
                track_time: time,
                instant: at,
            },
        ));
    }

    /// Records a sender report: `track_time` was captured at `instant`, and `standing_delay` earlier by the fastest reports
    /// ([`SenderNtpMapper::standing_delay`]). All tracks of the source share the clock of `instant`.
    pub(crate) fn on_sender_report(&mut self, time: TrackTime, at: Instant, standing_delay: Duration) {
        self.report_anchor = Some(ClockAnchor {
            track_time: time,
            instant: at,
        });
        self.has_capture_times = true;
        self.standing_delay = standing_delay;
    }

    /// Records the header extension `abs-capture-time` of a packet: media with this timestamp was captured at `at`, by
    /// [`SenderNtpMapper::abs_capture_instant`].
    pub(crate) fn on_abs_capture_time(&mut self, time: TrackTime, at: Instant) {
        self.abs_capture_anchor = Some(ClockAnchor {
            track_time: time,
            instant: at,
        });
    }

    /// Records the alignment with the other tracks of a source that sends no capture times: media with timestamp `track_time`
    /// would have arrived at `instant` with the least delay of the source.
    pub(crate) fn align_without_sender_reports(&mut self, time: TrackTime, at: Instant) {
        self.report_anchor = Some(ClockAnchor {
            track_time: time,
            instant: at,
        });
        self.has_capture_times = false;
    }

    /// Returns the timestamp of media that arrives at `instant` with the least observed delay. `None` before the first
    /// packet.
    pub(crate) fn track_time_for_arrival_at(&self, at: Instant) -> Option<TrackTime> {
        self.arrival_anchor
            .map(|anchor| anchor.track_time_at(at, self.clock_rate))
    }

    /// Returns the delay from capture to arrival for media with timestamp `track_time` that arrives at `instant`, by the capture
    /// times of its packets if they are younger than [`MAX_ABS_CAPTURE_TIME_AGE`], or else by the sender reports. The one-way
    /// delay of the fastest report (half a round trip) is not included: measuring it requires synchronized clocks. `None` before
    /// the first sender report, and for sources that send none.
    pub(crate) fn capture_to_arrival_delay(
        &self,
        time: TrackTime,
        at: Instant,
    ) -> Option<(Duration, CaptureTimeSource)> {
        let by_report = self.report_anchor.filter(|_| self.has_capture_times)?;
        let is_recent = |anchor: &ClockAnchor| at.saturating_duration_since(anchor.instant) < MAX_ABS_CAPTURE_TIME_AGE;
        let (anchor, standing, source) = match self.abs_capture_anchor.filter(is_recent) {
            Some(anchor) => (anchor, Duration::ZERO, CaptureTimeSource::AbsCaptureTime),
            None => (by_report, self.standing_delay, CaptureTimeSource::SenderReports),
        };
        let since_anchor = at.saturating_duration_since(anchor.instant);
        let before_anchor = anchor.instant.saturating_duration_since(at);
        let ahead = ticks_to_duration(time.saturating_sub(anchor.track_time), self.clock_rate);
        let behind = ticks_to_duration(anchor.track_time.saturating_sub(time), self.clock_rate);
        let delay = (since_anchor + behind + standing).saturating_sub(before_anchor + ahead);
        Some((delay, source))
    }

    /// Returns the timestamp of media captured at `instant` by the last sender report; `None` without one.
    pub(crate) fn reported_track_time_at(&self, at: Instant) -> Option<TrackTime> {
        let anchor = self.report_anchor.filter(|_| self.has_capture_times)?;
        Some(anchor.track_time_at(at, self.clock_rate))
    }

    /// Returns the last report or alignment of the source: a timestamp, the instant that belongs to it, and for a report
    /// [`Self::reported_standing_delay`].
    pub(crate) fn last_sender_report_or_alignment(&self) -> Option<(TrackTime, Instant, Option<Duration>)> {
        let anchor = self.report_anchor?;
        Some((anchor.track_time, anchor.instant, self.reported_standing_delay()))
    }

    /// Returns [`SenderNtpMapper::standing_delay`] of the last sender report; `None` if the source reports no capture times.
    pub fn reported_standing_delay(&self) -> Option<Duration> {
        self.has_capture_times.then_some(self.standing_delay)
    }

    /// Returns the timestamp of media captured at `instant`. `None` before the first packet.
    pub fn track_time_for_capture_at(&self, at: Instant) -> Option<TrackTime> {
        let anchor = self.report_anchor.or(self.arrival_anchor)?;
        Some(anchor.track_time_at(at, self.clock_rate))
    }
}

impl ClockAnchor {
    fn track_time_at(&self, at: Instant, rate: u32) -> TrackTime {
        if at >= self.instant {
            self.track_time + duration_to_ticks(at - self.instant, rate)
        } else {
            self.track_time
                .saturating_sub(duration_to_ticks(self.instant - at, rate))
        }
    }
}

/// Moves the reference to the newest packet, at the time at which it would have arrived with the least delay.
fn update_arrival_anchor(anchor: Option<ClockAnchor>, rate: u32, newest: ClockAnchor) -> ClockAnchor {
    let Some(anchor) = anchor else { return newest };
    let Some(ahead) = newest.track_time.checked_sub(anchor.track_time) else {
        return anchor;
    };
    let expected = anchor.instant + ticks_to_duration(ahead, rate);
    let at = match newest.instant.checked_duration_since(expected) {
        Some(late) => expected + late / CLOCK_DRIFT_SMOOTHING_DIVISOR,
        None => newest.instant,
    };
    ClockAnchor {
        track_time: newest.track_time,
        instant: at,
    }
}

/// Converts a duration to clock ticks.
pub fn duration_to_ticks(duration: Duration, rate: u32) -> u64 {
    let nanos = duration.as_nanos() * u128::from(rate) / 1_000_000_000;
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

/// Converts clock ticks to a duration.
pub fn ticks_to_duration(ticks: u64, rate: u32) -> Duration {
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Maps the NTP timestamps of a publisher's sender reports to instants. Shared by all tracks of a source.
#[derive(Debug, Default)]
pub struct SenderNtpMapper {
    reference: Option<NtpReference>,
}

/// An NTP timestamp, and when it was written.
#[derive(Clone, Copy, Debug)]
struct NtpReference {
    ntp: u64,
    /// Follows the delay of the reports, so that media is played when it arrives.
    instant: Instant,
    /// By the report with the least delay. It follows nothing but the drift of clocks, so that delay stays visible.
    by_fastest_report: Instant,
}

impl SenderNtpMapper {
    /// Returns the instant of a 64-bit NTP timestamp (32 fraction bits) in a report that arrived at `now`; `None` without a
    /// wall clock (zero), or with one that stands still.
    ///
    /// The report with the least delay sets the offset; later ones move it slowly to follow clock drift.
    pub fn observe_ntp_and_convert_to_instant(&mut self, ntp: u64, now: Instant) -> Option<Instant> {
        if ntp == 0 {
            return None;
        }
        match self.reference {
            Some(last) if last.ntp == ntp && now.saturating_duration_since(last.instant) > MAX_REPEATED_NTP_AGE => None,
            _ => Some(self.update_reference_and_convert_to_instant(ntp, now)),
        }
    }

    /// Returns how much longer the reports take of late than the fastest one did: it waits in the uplink, as media does.
    pub fn standing_delay(&self) -> Duration {
        self.reference.map_or(Duration::ZERO, |last| {
            last.instant.saturating_duration_since(last.by_fastest_report)
        })
    }

    /// Returns the instant of a 64-bit NTP timestamp of the same wall clock, by the fastest report; `None` before the first, and
    /// for one that is far from the last: of another clock.
    fn convert_ntp_to_instant(&self, ntp: u64) -> Option<Instant> {
        let NtpReference {
            ntp: last,
            by_fastest_report: at,
            ..
        } = self.reference?;
        let ahead = ntp_to_duration(ntp.saturating_sub(last));
        let behind = ntp_to_duration(last.saturating_sub(ntp));
        if ahead + behind > MAX_CAPTURE_TIME_REPORT_DISTANCE {
            return None;
        }
        at.checked_add(ahead)?.checked_sub(behind)
    }

    /// Returns the instant of an element `abs-capture-time` of the sender's packets, by its reports so far.
    pub(crate) fn abs_capture_instant(&self, element: &[u8]) -> Option<Instant> {
        self.convert_ntp_to_instant(abs_capture_time::sender_ntp_timestamp(element)?)
    }

    fn update_reference_and_convert_to_instant(&mut self, ntp: u64, now: Instant) -> Instant {
        let start_over = NtpReference {
            ntp,
            instant: now,
            by_fastest_report: now,
        };
        let Some(last) = self.reference else {
            self.reference = Some(start_over);
            return now;
        };
        let elapsed = match ntp.checked_sub(last.ntp) {
            Some(ahead) if ahead < NTP_UNITS_PER_DAY => ntp_to_duration(ahead),
            // Reports of two tracks may arrive out of order.
            None if last.ntp - ntp < MAX_REORDERED_REPORT_AGE_NTP_UNITS => {
                let earlier = last.instant.checked_sub(ntp_to_duration(last.ntp - ntp));
                return earlier.unwrap_or(now).min(now);
            }
            _ => {
                // The publisher's wall clock was changed, or the publisher is another one.
                self.reference = Some(start_over);
                return now;
            }
        };
        let expected = last.instant + elapsed;
        let instant = match now.checked_duration_since(expected) {
            Some(late) if late < Duration::from_secs(5) => expected + late / REPORT_SMOOTHING_DIVISOR,
            Some(_) => now,
            None => now,
        };
        let expected = last.by_fastest_report + elapsed;
        let by_fastest_report = match now.checked_duration_since(expected) {
            Some(late) if late < MAX_REPORT_DELAY => {
                expected + (late / REPORT_SMOOTHING_DIVISOR).min(elapsed / CLOCK_DRIFT_DIVISOR)
            }
            _ => now,
        };
        self.reference = Some(NtpReference {
            ntp,
            instant,
            by_fastest_report,
        });
        instant
    }
}

/// Fraction of a later report that moves the reference.
const REPORT_SMOOTHING_DIVISOR: u32 = 16;

/// Clocks drift by at most 500 ppm.
const CLOCK_DRIFT_DIVISOR: u32 = 2_000;

/// A report that is later was not delayed: the wall clock of the publisher was set back between two.
const MAX_REPORT_DELAY: Duration = Duration::from_secs(30);

/// Reports of several tracks may carry one NTP timestamp, if they arrive together.
const MAX_REPEATED_NTP_AGE: Duration = Duration::from_millis(200);

/// Sender reports come every few seconds, and delays are shorter than a minute.
const MAX_CAPTURE_TIME_REPORT_DISTANCE: Duration = Duration::from_secs(120);

/// A report up to one second older than the last one was reordered; the wall clock was not set back.
const MAX_REORDERED_REPORT_AGE_NTP_UNITS: u64 = 1 << 32;
const NTP_UNITS_PER_DAY: u64 = 86_400 << 32;

fn ntp_to_duration(ntp: u64) -> Duration {
    Duration::from_secs(ntp >> 32) + Duration::from_nanos(((ntp & 0xffff_ffff) * 1_000_000_000) >> 32)
}

/// Converts wall clock time, as the duration since 1970, to an NTP timestamp (RFC 3550 §4).
pub fn unix_to_ntp(since_unix_epoch: Duration) -> u64 {
    /// Seconds from 1900 to 1970.
    const NTP_TO_UNIX_SECONDS: u64 = 2_208_988_800;
    let fraction = (u64::from(since_unix_epoch.subsec_nanos()) << 32) / 1_000_000_000;
    (since_unix_epoch.as_secs().wrapping_add(NTP_TO_UNIX_SECONDS) << 32) | fraction
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    #[test]
    fn jitter_does_not_move_the_clock_and_the_earliest_packet_does() {
        let (mut clock, t) = (TrackClock::new(90_000), Instant::now());
        clock.on_packet(0, t + Duration::from_millis(30));
        clock.on_packet(3_000, t + Duration::from_millis(33));
        clock.on_packet(6_000, t + Duration::from_millis(130));
        let time = clock
            .track_time_for_capture_at(t + Duration::from_millis(66))
            .expect("anchored");
        assert!((5_900..=6_000).contains(&time), "{time}");
    }

    #[test]
    fn reports_of_two_tracks_agree_whatever_their_packets_did() {
        let (mut ntp, t) = (SenderNtpMapper::default(), Instant::now());
        let (mut video, mut audio) = (TrackClock::new(90_000), TrackClock::new(48_000));
        video.on_packet(0, t + Duration::from_millis(300));
        audio.on_packet(0, t);
        let captured = 1_000 << 32;
        video.on_sender_report(
            0,
            ntp.observe_ntp_and_convert_to_instant(captured, t).expect("a clock"),
            Duration::ZERO,
        );
        audio.on_sender_report(
            480,
            ntp.observe_ntp_and_convert_to_instant(captured + (1 << 32) / 100, t + Duration::from_millis(10))
                .expect("a clock"),
            Duration::ZERO,
        );
        let now = t + Duration::from_secs(1);
        let (v, a) = (
            video.track_time_for_capture_at(now).expect("anchored"),
            audio.track_time_for_capture_at(now).expect("anchored"),
        );
        assert_eq!(v / 90, a / 48, "both at the same millisecond");
    }

    #[test]
    fn a_delay_is_that_of_the_packet_whatever_the_clock_of_the_publisher_says() {
        let (mut clock, t) = (TrackClock::new(90_000), Instant::now());
        let ms = Duration::from_millis;
        assert_eq!(clock.capture_to_arrival_delay(0, t), None);
        clock.on_sender_report(9_000, t + ms(100), Duration::ZERO);
        for (time, arrives, delay) in [(9_000, 130, 30), (0, 70, 70), (18_000, 260, 60), (18_000, 190, 0)] {
            assert_eq!(
                clock.capture_to_arrival_delay(time, t + ms(arrives)),
                Some((ms(delay), CaptureTimeSource::SenderReports)),
                "{time} at {arrives} ms"
            );
        }
        clock.align_without_sender_reports(18_000, t + ms(200));
        assert_eq!(
            clock.capture_to_arrival_delay(18_000, t + ms(260)),
            None,
            "no capture times"
        );
    }

    #[test]
    fn the_capture_time_of_a_packet_counts_more_than_the_sender_reports_as_long_as_it_is_recent() {
        let (mut clock, t) = (TrackClock::new(90_000), Instant::now());
        let (ms, minute) = (Duration::from_millis, 90_000 * 60);
        clock.on_abs_capture_time(9_000, t + ms(60));
        assert_eq!(
            clock.capture_to_arrival_delay(9_000, t + ms(100)),
            None,
            "no report relates the clock of the sender to ours"
        );
        clock.on_sender_report(9_000, t + ms(100), Duration::ZERO);
        assert_eq!(
            clock.capture_to_arrival_delay(9_000, t + ms(100)),
            Some((ms(40), CaptureTimeSource::AbsCaptureTime))
        );
        // A packet without the extension: its capture time follows from its timestamp.
        assert_eq!(
            clock.capture_to_arrival_delay(18_000, t + ms(210)),
            Some((ms(50), CaptureTimeSource::AbsCaptureTime))
        );
        assert_eq!(
            clock.capture_to_arrival_delay(9_000 + minute, t + ms(60_130)),
            Some((ms(30), CaptureTimeSource::SenderReports))
        );
    }

    #[test]
    fn an_ntp_timestamp_is_converted_by_the_reports_and_one_of_another_clock_is_not() {
        let (mut ntp, t) = (SenderNtpMapper::default(), Instant::now());
        let second = 1_u64 << 32;
        assert_eq!(ntp.convert_ntp_to_instant(1_000 * second), None, "no report yet");
        ntp.observe_ntp_and_convert_to_instant(1_000 * second, t + Duration::from_secs(10));
        for (stamp, expected) in [(1_000 * second, 10), (1_001 * second, 11), (997 * second, 7)] {
            assert_eq!(
                ntp.convert_ntp_to_instant(stamp),
                Some(t + Duration::from_secs(expected)),
                "{stamp:x}"
            );
        }
        for other in [0, 500 * second, 2_000 * second, u64::MAX] {
            assert_eq!(ntp.convert_ntp_to_instant(other), None, "{other:x}");
        }
    }

    /// Reports and frames of a publisher each second, of which the first ten are not delayed. Returns the delays from capture to
    /// the gateway by both sources, at the end.
    fn delays_after(seconds: u64, uplink: Duration) -> [Duration; 2] {
        let (mut ntp, t) = (SenderNtpMapper::default(), Instant::now());
        let mut clock = TrackClock::new(90_000);
        let mut delays = [Duration::ZERO; 2];
        for second in 0..seconds + 10 {
            let (captured, time) = ((1_000 + second) << 32, second * 90_000);
            let arrival = t + Duration::from_secs(second) + if second < 10 { Duration::ZERO } else { uplink };
            let at = ntp
                .observe_ntp_and_convert_to_instant(captured, arrival)
                .expect("a clock");
            clock.on_sender_report(time, at, ntp.standing_delay());
            let mut with_capture_times = clock;
            with_capture_times.on_abs_capture_time(time, ntp.convert_ntp_to_instant(captured).expect("of that clock"));
            delays = [clock, with_capture_times].map(|clock| {
                let (delay, _) = clock.capture_to_arrival_delay(time, arrival).expect("it reports");
                delay
            });
        }
        delays
    }

    #[test]
    fn a_delay_of_the_uplink_that_stays_for_minutes_is_not_taken_for_drift_of_the_clock() {
        for uplink in [Duration::from_millis(1_500), Duration::from_secs(8)] {
            for delay in delays_after(120, uplink) {
                assert!(delay <= uplink && delay > uplink * 9 / 10, "{uplink:?}: {delay:?}");
            }
        }
        assert_eq!(delays_after(120, Duration::ZERO), [Duration::ZERO; 2]);
        // The clock was set back.
        assert_eq!(delays_after(120, Duration::from_secs(31)), [Duration::ZERO; 2]);
    }

    #[test]
    fn a_reordered_report_keeps_its_time() {
        let (mut ntp, t) = (SenderNtpMapper::default(), Instant::now());
        let ms = Duration::from_millis;
        let written = |at: u64| (1_000 << 32) + (at << 32) / 1_000;
        for (at, arrives, expected) in [
            (0, 0, 0),
            (1_000, 1_000, 1_000),
            (990, 1_100, 990),
            (2_000, 2_000, 2_000),
        ] {
            let instant = ntp
                .observe_ntp_and_convert_to_instant(written(at), t + ms(arrives))
                .expect("a clock");
            let instant = instant.duration_since(t);
            assert!(instant.abs_diff(ms(expected)) < ms(1), "{at}: {instant:?}");
        }
    }

    #[test]
    fn a_changed_wall_clock_resets_the_mapping() {
        let (mut ntp, t) = (SenderNtpMapper::default(), Instant::now());
        assert_eq!(ntp.observe_ntp_and_convert_to_instant(5_000 << 32, t), Some(t));
        assert_eq!(
            ntp.observe_ntp_and_convert_to_instant(1_000 << 32, t + Duration::from_secs(1)),
            Some(t + Duration::from_secs(1))
        );
    }

    #[test]
    fn a_wall_clock_that_is_absent_or_stands_still_says_nothing() {
        let (mut ntp, t) = (SenderNtpMapper::default(), Instant::now());
        assert_eq!(ntp.observe_ntp_and_convert_to_instant(0, t), None);
        assert_eq!(ntp.observe_ntp_and_convert_to_instant(7 << 32, t), Some(t));
        let together = t + Duration::from_millis(5);
        assert!(
            ntp.observe_ntp_and_convert_to_instant(7 << 32, together).is_some(),
            "of another track"
        );
        assert_eq!(
            ntp.observe_ntp_and_convert_to_instant(7 << 32, t + Duration::from_secs(3)),
            None
        );
    }
}
